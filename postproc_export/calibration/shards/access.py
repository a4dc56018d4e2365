"""What opening and reading files may raise, as errors that name the file and tell damage from what is not allowed."""

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path
from typing import Final

from postproc_export.errors import CalibrationError, FileError, PostprocError

_UNREADABLE: Final = (
    *(zipfile.BadZipFile, zlib.error, LZMAError),
    *(EOFError, OSError, NotImplementedError, RuntimeError, ValueError),
)


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn what reading a damaged, missing or forbidden shard raises into an error that names it."""
    try:
        yield
    except PostprocError:
        raise
    except FileNotFoundError as error:
        raise FileError(f"{name} is not there", found=str(error), fix="check the path") from error
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise cannot_read(name, error) from error
        raise damaged(name, error) from error


def cannot_read(name: str, error: OSError) -> FileError:
    """Return the error for what the system does not let us read."""
    found, at = os.strerror(error.errno or 0), error.filename
    beside = "" if at is None or str(at) == name else f": {at}"
    return FileError(f"cannot read {name}", found=found + beside, needed="a file that this user may read")


def damaged(name: str, error: BaseException) -> CalibrationError:
    """Return the error for what is there but cannot be understood."""
    found = f"{type(error).__name__}: {error}"
    return CalibrationError(f"{name} is damaged or truncated", found=found, fix="write it again")


def file_signature(path: Path) -> tuple[int, int, int]:
    """Return inode, size and time of change of a file.

    Raises
    ------
    FileError
        If it is not there.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise cannot_read(str(path), error) from error
    return status.st_ino, status.st_size, status.st_mtime_ns
