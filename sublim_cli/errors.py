"""Every error sublim raises on purpose.

SublimError           exit 1: something that was asked for could not be done
├── RecipeError       exit 2: the recipe or a flag is wrong; the message names the field
├── MissingExtra      exit 2: an optional dependency is not installed; the message names the extra
├── ModelError        exit 1: a model cannot be found or cannot do what the recipe needs
├── RowsError         exit 1: rows cannot be read, drawn or trained on
├── ArtifactError     exit 1: a stored artifact cannot be read or written
└── CellsFailed       exit 1: a sweep finished, some of its cells did not
"""


class SublimError(Exception):
    """Base class: the command line prints it without a traceback and exits with `exit_code`."""

    exit_code = 1


class RecipeError(SublimError):
    """The recipe or a flag is not valid."""

    exit_code = 2


class MissingExtra(SublimError):
    """An optional dependency is not installed."""

    exit_code = 2


class ModelError(SublimError):
    """A model cannot be found, or cannot do what the recipe needs."""


class RowsError(SublimError):
    """Rows cannot be read, drawn or trained on."""


class ArtifactError(SublimError):
    """A stored artifact cannot be read or written."""


class CellsFailed(SublimError):
    """A sweep finished, but some of its cells did not."""
