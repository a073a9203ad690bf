"""What a model reads, token by token: the view of a text in every context, and how it is rendered."""
