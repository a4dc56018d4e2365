"""Copies of large files: shared blocks where the file system can, else copied in the kernel, else read and written."""

import sys
from pathlib import Path
from typing import BinaryIO, Final

from graph_patterns.onnx.source import ChangedFileError, FileSource
from postproc_export.errors import FileError

if sys.platform == "linux":
    import fcntl

_FICLONE: Final = 0x40049409  # Linux: share the blocks of another file until one of the two is written


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content to a new path, in no more memory than one chunk.

    Raises
    ------
    FileError
        If the source changed meanwhile.
    OSError
        If it cannot be read or written.
    """
    with source.open("rb", buffering=0) as reading, target.open("xb", buffering=0) as writing:
        if _share_blocks(reading, writing):
            return
        content = FileSource(reading)
        try:
            content.copy(0, content.size, writing)
            content.check_unchanged()
        except ChangedFileError:
            raise FileError(f"cannot copy {source}: it changed meanwhile", fix="run again") from None


def link_file(source: Path, target: Path) -> None:
    """Make a hard link.

    Raises
    ------
    FileError
        If the file system does not allow it.
    """
    try:
        target.hardlink_to(source)
    except OSError as error:
        raise FileError(
            f"cannot make a hard link to {source}",
            found=error.strerror,
            needed="both folders on one file system that has hard links",
            fix="let the weights be copied: leave out --link-weights",
        ) from error


def _share_blocks(reading: BinaryIO, writing: BinaryIO) -> bool:
    if sys.platform == "linux":
        try:
            fcntl.ioctl(writing.fileno(), _FICLONE, reading.fileno())
        except OSError:  # most file systems cannot
            return False
        return True
    return False
