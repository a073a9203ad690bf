"""Models: loading weights, rendering chats, and the embedded model `micro`."""
