"""Bytes at positions, read without loading the rest: an open file or a message in memory, and copying out of either."""

import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

CHUNK: Final = 1024 * 1024


class ChangedFileError(Exception):
    """The file is no longer what it was when it was opened."""


class MemorySource:
    """A message in memory.

    Parameters
    ----------
    content
        The whole message.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size = len(content)

    def read(self, start: int, length: int) -> bytes:
        """Return `length` bytes from `start` on."""
        return self._content[start : start + length]

    def copy(self, start: int, length: int, target: BinaryIO) -> None:
        """Write a stretch to an unbuffered file."""
        write_all(target, memoryview(self._content)[start : start + length])

    def check_unchanged(self) -> None:
        """Do nothing: memory does not change."""

    def close(self) -> None:
        """Do nothing: memory needs no closing."""


class FileSource:
    """An open file; it is never mapped, so that one that shrinks meanwhile is an error and not a crash.

    Parameters
    ----------
    stream
        An unbuffered binary file; `close` closes it.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._status = os.fstat(stream.fileno())
        self.size = self._status.st_size

    def read(self, start: int, length: int) -> bytes:
        """Return `length` bytes from `start` on."""
        self._stream.seek(start)
        parts = []
        while length:
            part = self._stream.read(length)
            if not part:
                raise ChangedFileError
            parts.append(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def copy(self, start: int, length: int, target: BinaryIO) -> None:
        """Write a stretch to an unbuffered file, inside the kernel where that is possible."""
        done = copy_in_kernel(self._stream.fileno(), target.fileno(), start, length)
        while done < length:
            part = self.read(start + done, min(CHUNK, length - done))
            write_all(target, part)
            done += len(part)

    def check_unchanged(self) -> None:
        """Raise ChangedFileError if the file was written since it was opened."""
        now = os.fstat(self._stream.fileno())
        if (now.st_size, now.st_mtime_ns) != (self._status.st_size, self._status.st_mtime_ns):
            raise ChangedFileError

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def special_kind(path: Path) -> str | None:
    """Return what a path is in place of a regular file, such as a pipe, whose opening waits for a writer.

    Raises
    ------
    OSError
        If it is not there, or cannot be looked at.
    """
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return None
    kinds = {"a folder": stat.S_ISDIR, "a pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK}
    return next((kind for kind, is_kind in kinds.items() if is_kind(mode)), "a device")


def write_all(target: BinaryIO, content: bytes | memoryview) -> None:
    """Write every byte to an unbuffered file, which may take fewer at a time."""
    content = memoryview(content)
    while content:
        content = content[target.write(content) :]


def copy_in_kernel(source: int, target: int, start: int, length: int) -> int:
    """Copy with `copy_file_range` to the target's position and return how far it went; what is left has to be read.

    Parameters
    ----------
    source, target
        File descriptors.
    start, length
        The stretch of the source, in bytes.
    """
    copy_range = getattr(os, "copy_file_range", None)
    done = 0
    while copy_range is not None and done < length:
        try:
            copied = copy_range(source, target, length - done, start + done)
        except OSError:
            break  # another file system, or one that cannot: a full disk shows again when writing
        if copied == 0:
            break
        done += copied
    return done
