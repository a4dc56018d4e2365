"""Locks of folders, by flock: they go with their process, whatever ends it. Not every file system has them."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

if sys.platform != "win32":
    import fcntl

LOCK: Final = "lock"
_PATIENCE: Final = 1.0  # seconds to wait for the others that look at the same folder, each of which takes milliseconds


def locked(folder: Path) -> int | None:
    """Lock a folder by a file in it, and return what holds the lock open; None where there are no locks.

    Raises
    ------
    BlockingIOError
        If a process holds the lock.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    return descriptor if _flock(descriptor) else None


def _flock(descriptor: int) -> bool:
    """Lock an open file or folder, or close it: whether this file system has locks."""
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            os.close(descriptor)
            raise
        except OSError:
            pass
    os.close(descriptor)
    return False


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Look at a folder one run after the other, so that of two that begin together only one is refused."""
    descriptor = None
    end = time.monotonic() + _PATIENCE
    while sys.platform != "win32":
        try:
            opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            descriptor = opened if _flock(opened) else None
            break
        except BlockingIOError:
            if time.monotonic() > end:
                break
            time.sleep(0.005)
        except OSError:  # a folder that may be written and not read
            break
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def is_lock_of(descriptor: int, folder: Path) -> bool:
    """Whether a lock is that of the folder that is there now, and not of one that was deleted meanwhile."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), (folder / LOCK).stat())
    return False
