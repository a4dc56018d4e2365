"""Where validation outputs lie: `.npz`, `.npy` files by key, Zarr groups, arrays in memory."""

import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from postproc_export.calibration.counting.arrays import (
    KEYS,
    AnyArray,
    ArrayLike,
    Block,
    Place,
    as_numpy,
    flat_chunks,
    paired,
)
from postproc_export.calibration.counting.checks import check_counts, checked_shape
from postproc_export.calibration.shards.rows import Rows
from postproc_export.calibration.shards.streams import StreamedArray, npy_array, npz_array, npz_members
from postproc_export.errors import CalibrationError, FileError, require
from postproc_export.stats import LEVELS, Level

NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "pred_score": ("pred_score", "scores"),
    "gt_label": ("gt_label", "labels"),
    "anomaly_map": ("anomaly_map", "maps"),
    "gt_mask": ("gt_mask", "masks"),
}
_UNREADABLE: Final = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError)


class Shard(Protocol):
    """A part of the validation outputs that can be read again and again."""

    name: str

    def signature(self) -> object:
        """Return what changes when the shard is written to."""
        ...

    def blocks(self, level: Level, *, verify: bool) -> Iterator[Block]:
        """Yield the blocks of a level, none where the shard does not have it; `verify` on the first pass."""
        ...


@dataclass(frozen=True, slots=True)
class Pair:
    """The arrays of one level, which fit each other; `truth` is None where there is none."""

    values: Any
    truth: Any
    place: Place


def level_pairs(named: Mapping[str, Any], *, name: str) -> dict[Level, Pair]:
    """Return the pairs of arrays of the levels that are there.

    Raises
    ------
    CalibrationError
        If types or shapes do not fit, or there is neither a score nor a map.
    """
    found = {key: alias for key, names in NAMES.items() for alias in reversed(names) if alias in named}
    pairs: dict[Level, Pair] = {}
    shapes: dict[Level, tuple[int, ...]] = {}
    for level in LEVELS:
        key, truth_key = KEYS[level]
        if key in found:
            values, truth = named[found[key]], named[found[truth_key]] if truth_key in found else None
            place = Place(name, found[key], found.get(truth_key, truth_key), tuple(values.shape))
            shapes[level] = checked_shape(level, values, truth, place=place)
            pairs[level] = Pair(values, truth, place)
    if not pairs:
        raise CalibrationError(
            f"{name} has neither scores nor maps",
            found=", ".join(sorted(named)) or "no array at all",
            needed="pred_score (or scores), anomaly_map (or maps)",
        )
    check_counts(shapes, where=name)
    return pairs


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn what reading a damaged or missing shard raises into an error that names it."""
    try:
        yield
    except CalibrationError:
        raise
    except FileNotFoundError as error:
        raise FileError(f"{name} is not there", found=str(error)) from error
    except _UNREADABLE as error:
        found = f"{type(error).__name__}: {error}"
        raise CalibrationError(f"{name} is damaged or truncated", found=found, fix="write it again") from error


class ArrayShard:
    """Arrays by key; subclasses say where they come from."""

    name: str

    def signature(self) -> object:
        """Return None: arrays in memory have no cheap sign of a change."""
        return None

    def arrays(self, *, verify: bool) -> dict[str, Any]:
        """Return the arrays by their names in the shard."""
        raise NotImplementedError

    def blocks(self, level: Level, *, verify: bool) -> Iterator[Block]:
        """Yield the blocks of a level after checking types and shapes.

        Raises
        ------
        CalibrationError
            If shapes or types do not fit, or the shard is damaged.
        """
        with readable(self.name):
            pair = level_pairs(self.arrays(verify=verify), name=self.name).get(level)
            if pair is not None:
                yield from self._blocks(pair)

    def _blocks(self, pair: Pair) -> Iterator[Block]:
        values, truth = pair.values, pair.truth
        if any(isinstance(each, StreamedArray) and each.order_matters for each in (values, truth)):
            values, truth = _in_c_order(values), None if truth is None else _in_c_order(truth)
        start = 0
        for part, truth_part in paired(_chunks(values), None if truth is None else _chunks(truth)):
            yield Block(part, truth_part, pair.place, start)
            start += part.size


def _chunks(array: ArrayLike | StreamedArray) -> Iterator[AnyArray]:
    return array.chunks() if isinstance(array, StreamedArray) else flat_chunks(array)


def _in_c_order(array: Any) -> AnyArray:
    """Load an array stored in Fortran order, which cannot be paired with another one while streaming."""
    return np.ascontiguousarray(array.whole() if isinstance(array, StreamedArray) else array)


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
        raise FileError(f"cannot read {path}", found=os.strerror(error.errno or 0)) from error
    return status.st_ino, status.st_size, status.st_mtime_ns


class NpzShard(ArrayShard):
    """A `.npz` file, streamed member by member; nothing in it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)

    def signature(self) -> object:
        """Return the state of the file."""
        return file_signature(self.path)

    def arrays(self, *, verify: bool) -> dict[str, Any]:
        """Return the members with known names."""
        known = {name for names in NAMES.values() for name in names}
        members = npz_members(self.path)
        return {name: npz_array(self.path, info, verify=verify) for name, info in members.items() if name in known}


class NpyShard(ArrayShard):
    """`.npy` files that belong together, by key."""

    def __init__(self, files: Mapping[str, Path], *, name: str) -> None:
        self.files, self.name = dict(files), name

    def signature(self) -> object:
        """Return the state of each file."""
        return [file_signature(path) for path in self.files.values()]

    def arrays(self, *, verify: bool) -> dict[str, Any]:
        """Return the arrays of the files."""
        return {name: npy_array(path) for name, path in self.files.items()}


class MemoryShard(ArrayShard):
    """A mapping of arrays, memory maps, torch tensors or paths of `.npy` files."""

    def __init__(self, arrays: Mapping[str, Any], *, name: str = "the mapping") -> None:
        self.name = name
        known = {name for names in NAMES.values() for name in names}
        self.given = {key: value for key, value in arrays.items() if key in known and value is not None}

    def signature(self) -> object:
        """Return the state of the files among them."""
        return [file_signature(Path(value)) for value in self.given.values() if isinstance(value, str | Path)]

    def arrays(self, *, verify: bool) -> dict[str, Any]:
        """Return the arrays; what NumPy can slice stays where it is."""
        return {key: _array_of(value) for key, value in self.given.items()}


def _array_of(value: Any) -> Any:
    if isinstance(value, str | Path):
        return npy_array(Path(value))
    if hasattr(value, "detach"):
        return as_numpy(value)
    return value if hasattr(value, "shape") and hasattr(value, "dtype") else np.asarray(value)


class ZarrShard(ArrayShard):
    """A Zarr group on disk, read chunk by chunk; all of it, or some rows of both arrays of a level."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self.rows: tuple[int, int] | None = None

    def _blocks(self, pair: Pair) -> Iterator[Block]:
        if self.rows is None:
            yield from super()._blocks(pair)
            return
        values, truth = (None if each is None else Rows(each, *self.rows) for each in (pair.values, pair.truth))
        assert values is not None, "a pair has values"
        for block in super()._blocks(Pair(values, truth, pair.place)):
            yield Block(block.values, block.truth, block.place, values.start + block.start)

    def signature(self) -> object:
        """Return the number, sizes and newest time of the files of the store; nothing of a part of it."""
        if self.rows is not None:
            return None
        status = [path.stat() for path in sorted(self.path.rglob("*")) if path.is_file()]
        return len(status), sum(each.st_size for each in status), max((each.st_mtime_ns for each in status), default=0)

    def arrays(self, *, verify: bool) -> dict[str, Any]:
        """Return the arrays of the group with known names."""
        zarr = require("zarr", extra="zarr", purpose=f"reading the Zarr store {self.path}")
        group = zarr.open_group(str(self.path), mode="r")
        return {name: group[name] for names in NAMES.values() for name in names if name in group}
