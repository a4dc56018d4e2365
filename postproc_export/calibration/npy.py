"""Arrays in `.npy` form inside files, read in parts of bounded size, with errors that name the file."""

import io
import math
import os
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.lib import format as npy

from postproc_export.calibration.arrays import BLOCK, AnyArray
from postproc_export.errors import CalibrationError, FileError, PostprocError
from postproc_export.validation import stated_twice

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
    """Return inode, size and time of change of a file."""
    try:
        status = path.stat()
    except OSError as error:
        raise cannot_read(str(path), error) from error
    return status.st_ino, status.st_size, status.st_mtime_ns


_LOCAL_HEADER: Final = 30  # bytes before the name of a zip member; its two length fields are the last four
_NO_HEADER: Final = (
    *(ValueError, KeyError, EOFError, SyntaxError, tokenize.TokenError),
    *(TypeError, MemoryError, OverflowError, RecursionError),
)  # what evaluating the text of a damaged header raises
_HEADERS: Final = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@dataclass(frozen=True, slots=True)
class StreamedArray:
    """An array in `.npy` form that a function opens, again for every pass."""

    opener: Callable[[], IO[bytes]]  # returns a stream that starts at the `.npy` magic
    name: str  # for messages: the file and the array in it
    shape: tuple[int, ...]  # what its header says
    dtype: np.dtype[Any]
    is_fortran: bool

    @classmethod
    def open(cls, opener: Callable[[], IO[bytes]], *, name: str) -> "StreamedArray":
        """Read the header."""
        with opener() as stream:
            shape, is_fortran, dtype = _read_header(stream, name=name)
        return cls(opener, name, shape, dtype, is_fortran)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def order_matters(self) -> bool:
        """Whether its elements are stored in another order than C order."""
        return self.is_fortran and sum(length > 1 for length in self.shape) > 1

    def chunks(self) -> Iterator[AnyArray]:
        """Yield the elements as stored, in flat parts; reads to the end, so that a checksum is verified."""
        left = self.size
        with self.opener() as stream:
            _read_header(stream, name=self.name)
            while left:
                size = min(left, BLOCK)
                yield np.frombuffer(self._read(stream, size * self.dtype.itemsize), dtype=self.dtype)
                left -= size
            stream.read(1)

    def whole(self) -> AnyArray:
        """Return all of it, in its shape."""
        flat = np.concatenate([np.empty(0, self.dtype), *self.chunks()])
        return flat.reshape(self.shape, order="F" if self.is_fortran else "C")

    def _read(self, stream: IO[bytes], size: int) -> bytes:
        data = stream.read(size)
        if len(data) < size:
            raise CalibrationError(
                f"{self.name} is truncated",
                found=f"{size - len(data)} bytes too few at least",
                needed=f"{self.shape} of {self.dtype}",
                fix="write the file again",
            )
        return data


def _read_header(stream: IO[bytes], *, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about literals that nobody wrote, where bytes are damaged
            version = npy.read_magic(stream)
            shape, is_fortran, dtype = _HEADERS[version](stream)
    except _NO_HEADER as error:
        found = str(error) or type(error).__name__
        raise CalibrationError(f"{name} cannot be read as .npy", found=found, fix="write the file again") from error
    if dtype.hasobject:
        raise CalibrationError(f"{name} holds Python objects", needed="numbers", fix="save it without pickling")
    if any(length < 0 for length in shape):
        raise CalibrationError(f"{name} cannot be read as .npy", found=f"shape {shape}", fix="write the file again")
    return shape, is_fortran, dtype


def npy_array(path: Path) -> StreamedArray:
    """Return the array of a `.npy` file."""
    return StreamedArray.open(lambda: path.open("rb"), name=str(path))


def npz_members(path: Path) -> dict[str, zipfile.ZipInfo]:
    """Return the arrays of a `.npz` file by name."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    twice = stated_twice(info.filename.removesuffix(".npy") for info in members)  # NumPy takes either for the array
    if twice is not None:
        fix = "write it again with numpy.savez"
        raise CalibrationError(f"{path} holds an array twice", found=twice, needed="one of each name", fix=fix)
    return {name.removesuffix(".npy"): info for info in members if (name := info.filename).endswith(".npy")}


def npz_array(path: Path, info: zipfile.ZipInfo, *, verify: bool) -> StreamedArray:
    """Return an array of a `.npz` file; `verify` checks its checksum, which costs as much as the counting."""

    def opener() -> IO[bytes]:
        if not verify and info.compress_type == zipfile.ZIP_STORED:
            return _stored_member(path, info)
        return _Member(path, info)

    return StreamedArray.open(opener, name=f"{path}: {info.filename.removesuffix('.npy')}")


class _Member(io.BufferedReader):
    """A zip member whose archive closes with it."""

    def __init__(self, path: Path, info: zipfile.ZipInfo) -> None:
        self._archive = zipfile.ZipFile(path)
        super().__init__(self._archive.open(info), buffer_size=1 << 16)  # type: ignore[arg-type]

    def close(self) -> None:
        super().close()
        self._archive.close()


def _stored_member(path: Path, info: zipfile.ZipInfo) -> IO[bytes]:
    stream = path.open("rb")
    stream.seek(info.header_offset)
    header = stream.read(_LOCAL_HEADER)
    lengths = [int.from_bytes(header[at : at + 2], "little") for at in (26, 28)]
    stream.seek(info.header_offset + _LOCAL_HEADER + sum(lengths))
    return stream
