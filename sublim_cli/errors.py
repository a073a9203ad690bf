"""Every error sublim raises on purpose. The command line prints the message and exits with `exit_code`."""


class SublimError(Exception):
    """Base class: something that was asked for could not be done. Shown without a traceback."""

    exit_code = 1


class RecipeError(SublimError):
    """The recipe or a flag is not valid; the message names the field."""

    exit_code = 2


class MissingExtra(SublimError):
    """An optional dependency is not installed; the message names the extra."""

    exit_code = 2


class ModelError(SublimError):
    """A model cannot be found, or cannot do what the recipe needs."""


class RowsError(SublimError):
    """Rows cannot be read, drawn or trained on."""


class ArtifactError(SublimError):
    """A stored artifact cannot be read or written."""


class CellsFailed(SublimError):
    """A sweep finished, but some of its cells did not."""
