"""What attaching changed in a file besides the tail: nothing, or a list."""

from postproc_export.preservation.change import Change, Preservation
from postproc_export.preservation.files import compare_files

__all__ = ["Change", "Preservation", "compare_files"]
