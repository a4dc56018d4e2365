"""Shards of validation outputs: `.npz`, `.npy`, CSV and arrays in memory, read pass after pass in bounded parts."""

import copy
import csv
import io
import math
import os
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from lzma import LZMAError
from pathlib import Path
from typing import IO, Any, Final, Self

import numpy as np
from numpy.lib import format as npy

from postproc_export.calibration.arrays import (
    BLOCK,
    CHOOSE_LABEL,
    KEYS,
    AnyArray,
    Block,
    ChannelOf,
    Pair,
    Place,
    as_numpy,
    blocks_of,
    box_blocks,
    check_plain,
    checked_shape,
    flat_chunks,
    is_chunked,
)
from postproc_export.calibration.convention import Convention
from postproc_export.errors import CalibrationError, FileError, PostprocError
from postproc_export.run_options import ConventionOptions
from postproc_export.stats import LEVELS, Level
from postproc_export.validation import kind_of_file, stated_twice

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
    """Return the error for what is there but cannot be understood; its first bytes may tell what it is."""
    found = f"{type(error).__name__}: {error}"
    if isinstance(error, zipfile.BadZipFile):
        with suppress(OSError):
            kind = kind_of_file(Path(name)) or found
            is_ours = kind.startswith("arrays")
            found = found if is_ours and "not a zip" not in str(error) else f"{kind}, cut off" if is_ours else kind
    return CalibrationError(f"{name} is damaged or truncated", found=found, fix="write it again")


_LOCAL_HEADER: Final = 30  # bytes before the name of a zip member; its two length fields are the last four
_NO_HEADER: Final = (
    *(ValueError, KeyError, EOFError, SyntaxError, tokenize.TokenError),
    *(TypeError, MemoryError, OverflowError, RecursionError),
)  # what evaluating the text of a damaged header raises
_HEADERS: Final = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class StreamedArray:
    """An array in `.npy` form; `opener` gives a stream that starts at the `.npy` magic, again for every pass."""

    def __init__(self, opener: Callable[[], IO[bytes]], *, name: str) -> None:
        self._opener, self._name = opener, name  # the name is that of the file and the array in it
        with opener() as stream:
            self.shape, self._is_fortran, self.dtype = _read_header(stream, name=name)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def order_matters(self) -> bool:
        """Whether its elements are stored in another order than C order."""
        return self._is_fortran and sum(length > 1 for length in self.shape) > 1

    def chunks(self) -> Iterator[AnyArray]:
        """Yield the elements as stored, in flat parts; reads to the end, so that a checksum is verified."""
        left = self.size
        with self._opener() as stream:
            _read_header(stream, name=self._name)
            while left:
                size = min(left, BLOCK)
                wanted = size * self.dtype.itemsize
                data = stream.read(wanted)
                if len(data) < wanted:
                    raise CalibrationError(
                        f"{self._name} is truncated",
                        found=f"{wanted - len(data)} bytes too few at least",
                        needed=f"{self.shape} of {self.dtype}",
                        fix="write the file again",
                    )
                yield np.frombuffer(data, dtype=self.dtype)
                left -= size
            stream.read(1)

    def whole(self) -> AnyArray:
        """Return all of it, in its shape."""
        flat = np.concatenate([np.empty(0, self.dtype), *self.chunks()])
        return flat.reshape(self.shape, order="F" if self._is_fortran else "C")


class _StreamedChannel(StreamedArray):
    """One entry of an axis of a streamed array, without that axis, in C order."""

    def __init__(self, array: StreamedArray, axis: int, index: int) -> None:
        self._array, self._index, self._count = array, index, array.shape[axis]
        self._behind = math.prod(array.shape[axis + 1 :])
        self.shape, self.dtype = (*array.shape[:axis], *array.shape[axis + 1 :]), array.dtype
        self._is_fortran = False

    def chunks(self) -> Iterator[AnyArray]:
        start, of_all = 0, self._array
        for part in flat_chunks(np.ascontiguousarray(of_all.whole())) if of_all.order_matters else of_all.chunks():
            places = np.arange(start, start + part.size) // self._behind % self._count
            start += part.size
            yield part[places == self._index]


def _channel_of(array: Any, axis: int, index: int) -> Any:
    """Return one entry of an axis of any array that is given, read when it is needed."""
    if isinstance(array, StreamedArray):
        return _StreamedChannel(array, axis, index)
    if isinstance(array, np.ndarray) or not is_chunked(array) or hasattr(array, "dask"):
        return array[(slice(None),) * axis + (index,)]
    return ChannelOf(array, axis, index)


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
    return StreamedArray(lambda: path.open("rb"), name=str(path))


def npz_array(path: Path, info: zipfile.ZipInfo, *, verify: bool) -> StreamedArray:
    """Return an array of a `.npz` file; `verify` checks its checksum, which costs as much as the counting."""
    opener = _stored_member if not verify and info.compress_type == zipfile.ZIP_STORED else _Member
    return StreamedArray(partial(opener, path, info), name=f"{path}: {info.filename.removesuffix('.npy')}")


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


WHOLE: Final = 1 << 24  # values that are loaded to turn them from Fortran into C order


def pair_blocks(pair: Pair) -> Iterator[Block]:
    """Yield the blocks of a pair of arrays that fit each other; only within a place does their order matter."""
    place, arrays = pair.place, [pair.values] if pair.truth is None else [pair.values, pair.truth]
    if any(map(is_chunked, arrays)) and not any(isinstance(each, StreamedArray) for each in arrays):
        yield from box_blocks(pair)
        return
    if all(map(_is_fortran, arrays)):
        place = replace(place, is_fortran=True)
        parts = [each.chunks() if isinstance(each, StreamedArray) else flat_chunks(each.T) for each in arrays]
    else:
        keys = (place.key, place.truth_key)
        parts = [_in_c_order(each, name=f"{place.where}: {key}") for each, key in zip(arrays, keys, strict=False)]
    yield from blocks_of(parts[0], parts[1] if len(parts) > 1 else None, place)


def _is_fortran(array: Any) -> bool:
    """Whether an array lies in Fortran order and that is another one than C order."""
    if isinstance(array, StreamedArray):
        return array.order_matters
    return isinstance(array, np.ndarray) and array.flags.f_contiguous and not array.flags.c_contiguous


def _in_c_order(array: Any, *, name: str) -> Iterator[AnyArray]:
    if not isinstance(array, StreamedArray):
        return flat_chunks(array)
    if not array.order_matters:
        return array.chunks()
    if array.size > WHOLE:
        raise CalibrationError(
            f"{name} is in Fortran order, unlike the array it goes with",
            found=f"{array.size} values, which cannot be paired while streaming",
            needed=f"both in the same order, or at most {WHOLE} values",
            fix="save it in C order: np.save(path, np.ascontiguousarray(array))",
        )
    return flat_chunks(np.ascontiguousarray(array.whole()))


NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "pred_score": ("pred_score", "scores"),
    "gt_label": ("gt_label", "labels"),
    "anomaly_map": ("anomaly_map", "maps"),
    "gt_mask": ("gt_mask", "masks"),
}
MEANING: Final = {name: key for key, names in NAMES.items() for name in names}


def level_pairs(named: Mapping[str, Any], *, name: str, convention: Convention) -> dict[Level, Pair]:
    """Return the pairs of arrays of the levels that are there, as the convention has it, but for their values."""
    found: dict[str, str] = {}
    for key, names in NAMES.items():
        there = [alias for alias in names if alias in named]
        if len(there) > 1:
            fix = "leave one of them out"
            raise CalibrationError(f"{name} holds one thing twice", found=", ".join(there), needed="one", fix=fix)
        if there:
            found[key] = there[0]
    pairs: dict[Level, Pair] = {}
    shapes: dict[Level, tuple[int, ...]] = {}
    for level in LEVELS:
        key, truth_key = KEYS[level]
        if key in found:
            values, truth = named[found[key]], named[found[truth_key]] if truth_key in found else None
            chosen = convention.channel(level, values, place=f"{name}: {found[key]}")
            values = values if chosen is None else _channel_of(values, *chosen)
            place = Place(name, found[key], found.get(truth_key, truth_key), tuple(values.shape))
            texts = convention.label is not None
            shapes[level] = checked_shape(level, values, truth, place=place, texts=texts)
            pairs[level] = Pair(values, truth, place)
    if not pairs:
        raise CalibrationError(
            f"{name} has neither scores nor maps",
            found=", ".join(sorted(named)) or "no array at all",
            needed="pred_score (or scores), anomaly_map (or maps)",
            fix="name the arrays so",
        )
    if len({shape[0] for shape in shapes.values()}) > 1:
        raise CalibrationError(
            f"{name}: the shapes do not agree",
            found=f"{shapes['image'][0]} scores, {shapes['pixel'][0]} maps",
            needed="one score per map",
            fix="give scores and maps of the same images, or files for each level apart",
        )
    return pairs


class Shard:
    """A part of the validation outputs that is read again and again: arrays by key; subclasses say where they are."""

    convention: Convention = Convention(ConventionOptions())  # what its values and labels mean

    def __init__(self, paths: Mapping[str, Path], *, name: str) -> None:
        self.paths, self.name = dict(paths), name

    @property
    def files(self) -> list[Path]:
        """The files that are read, or the folder of a store; none where all is in memory."""
        return list(self.paths.values())

    def absolute(self) -> Self:
        """Return the shard by its absolute paths, and under the name it has here."""
        moved = copy.copy(self)
        moved.paths = {key: path.absolute() for key, path in self.paths.items()}
        return moved

    def signature(self) -> object:
        """Return what changes when a file is written to; arrays in memory have no cheap sign of a change."""
        found = []
        for path in self.files:
            try:
                status = path.stat()
            except OSError as error:
                raise cannot_read(str(path), error) from error
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
        return found

    def arrays(self, *, verify: bool) -> dict[str, Any]:
        """Return the arrays by their names in the shard; `verify` on the first pass."""
        raise NotImplementedError

    def pair(self, level: Level, *, verify: bool) -> Pair | None:
        """Return the arrays of a level, all of the shard checked for types and shapes."""
        return level_pairs(self.arrays(verify=verify), name=self.name, convention=self.convention).get(level)

    def size(self, level: Level) -> int | None:
        """Return the values of a level as the headers tell; None where only reading tells."""
        with readable(self.name):
            pair = self.pair(level, verify=False)
            return 0 if pair is None else pair.place.size

    def blocks(self, level: Level, *, verify: bool) -> Iterator[Block]:
        """Yield the blocks of a level after checking types and shapes, none where the shard does not have it.

        Raises a CalibrationError where something does not fit or is damaged, a FileError where it cannot be read.
        """
        with readable(self.name):
            pair = self.pair(level, verify=verify)
            if pair is not None:
                yield from pair_blocks(pair)


class FileShard(Shard):
    """A shard in one file, or in the folder of a store."""

    def __init__(self, path: Path) -> None:
        super().__init__({"": path}, name=str(path))

    @property
    def path(self) -> Path:
        """The file or the folder."""
        return self.paths[""]


class NpzShard(FileShard):
    """A `.npz` file, streamed member by member; nothing in it is unpickled."""

    def arrays(self, *, verify: bool) -> dict[str, Any]:
        """Return the members with known names."""
        with zipfile.ZipFile(self.path) as archive:
            members = archive.infolist()
        twice = stated_twice(info.filename.removesuffix(".npy") for info in members)  # NumPy takes either for the array
        if twice is not None:
            fix = "write it again with numpy.savez"
            raise CalibrationError(f"{self.path} holds an array twice", found=twice, needed="one of each name", fix=fix)
        known = {name: info for name in MEANING for info in members if info.filename == f"{name}.npy"}
        return {name: npz_array(self.path, info, verify=verify) for name, info in known.items()}


class NpyShard(Shard):
    """`.npy` files that belong together, by key."""

    def arrays(self, *, verify: bool) -> dict[str, Any]:
        """Return the arrays of the files."""
        return {name: npy_array(path) for name, path in self.paths.items()}

    def pair(self, level: Level, *, verify: bool) -> Pair | None:
        """Return the arrays of a level; where it has no ground truth, with the file that would hold it."""
        pair = super().pair(level, verify=verify)
        if pair is None or pair.truth is not None:
            return pair
        values, truth = KEYS[level]
        before, found, after = self.paths[pair.place.key].name.rpartition(pair.place.key)
        missing = f"{before}{NAMES[truth][NAMES[values].index(pair.place.key)]}{after}" if found else None
        return replace(pair, place=replace(pair.place, missing=missing))


class MemoryShard(Shard):
    """A mapping of arrays, memory maps, torch tensors or paths of `.npy` files."""

    def __init__(self, arrays: Mapping[str, Any], *, name: str = "the mapping") -> None:
        self.given = {key: value for key, value in arrays.items() if key in MEANING and value is not None}
        paths = {key: Path(value) for key, value in self.given.items() if isinstance(value, str | Path)}
        super().__init__(paths, name=name)

    def arrays(self, *, verify: bool) -> dict[str, Any]:
        """Return the arrays; what NumPy can slice stays where it is."""
        found: dict[str, Any] = {}
        for key, value in self.given.items():
            place = f"{self.name}: {key}"
            if key in self.paths:
                found[key] = npy_array(self.paths[key])
            elif hasattr(value, "detach") or not (hasattr(value, "shape") and hasattr(value, "dtype")):
                found[key] = as_numpy(value, place=place)
            else:
                check_plain(value, place=place)
                found[key] = value
        return found


_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "pred_score": (*NAMES["pred_score"], "score"),
    "gt_label": (*NAMES["gt_label"], "label"),
}
_ROWS: Final = 1 << 16


class CsvShard(FileShard):
    """A CSV file with a header: a column `score` (or `pred_score`, `scores`) and `label` (`gt_label`, `labels`)."""

    def size(self, level: Level) -> int | None:
        """Return no values of the pixel level; how many rows there are only reading tells."""
        return None if level == "image" else 0

    def blocks(self, level: Level, *, verify: bool) -> Iterator[Block]:
        """Yield the image level, some ten thousand rows at a time."""
        if level == "image":
            self.convention.channel(level, np.empty(1), place=self.name)  # which a column does not have
            with readable(self.name):
                try:
                    with self.path.open(newline="", encoding="utf-8-sig") as stream:
                        reader = csv.DictReader(stream, skipinitialspace=True)
                        yield from _text_blocks(reader, self.name, texts=self.convention.label is not None)
                except (UnicodeDecodeError, csv.Error) as error:
                    fix = "save it as CSV in UTF-8"
                    raise CalibrationError(f"{self.name} is not a CSV file", found=str(error), fix=fix) from error


def _text_blocks(reader: "csv.DictReader[str]", name: str, *, texts: bool) -> Iterator[Block]:
    reader.fieldnames = [cell.strip().lower() for cell in reader.fieldnames or ()]
    score, label = (_column(reader.fieldnames, names, name) for names in _COLUMNS.values())
    if score is None:
        found, fix = ", ".join(reader.fieldnames) or "no header", "write a first line that names the columns"
        raise CalibrationError(f"{name} has no column of scores", found=found, needed="score,label", fix=fix)
    place, start = Place(name, score, label or "label", None, has_lines=True), 0
    scores: list[float] = []
    labels: list[float | str] = []
    for row in reader:
        at = f"{name}, line {reader.line_num}"
        scores.append(_cell(row, score, at))
        if label is not None:
            labels.append((row[label] or "").strip() if texts else _cell(row, label, at, fix=CHOOSE_LABEL))
        if len(scores) == _ROWS:
            yield Block(np.array(scores), np.array(labels) if labels else None, place, start)
            start, scores, labels = start + len(scores), [], []
    if scores:
        yield Block(np.array(scores), np.array(labels) if labels else None, place, start)


def _column(header: Sequence[str], names: Sequence[str], name: str) -> str | None:
    found = [cell for cell in header if cell in names]
    if len(found) > 1:
        fix = "leave one of them in"
        raise CalibrationError(f"{name} has two columns for one thing", found=", ".join(found), needed="one", fix=fix)
    return found[0] if found else None


def _cell(row: Mapping[str, str | None], column: str, at: str, *, fix: str | None = None) -> float:
    text = row[column] or ""
    try:
        if "_" not in text:  # which Python reads as a group of digits
            return float(text)
    except ValueError:
        pass
    needed = "score,label with numbers"
    raise CalibrationError(f"{at}, column {column!r}: not a number", found=repr(row[column]), needed=needed, fix=fix)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pass over one level is."""

    level: Level  # that is read
    number: int  # of the pass, from 1; two or three do nearly always; scores that all reach nearly one F1 need more
    values: int  # read in this pass, and those of a whole one; None in the first one where the headers do not tell
    total: int | None
    shard: str  # the file that is read


States = dict[int, object]
"""What each shard was like when it was first met, by its position, for all passes over all levels."""


def check_state(states: States, index: int, state: object, name: str, *, reading: bool = False) -> None:
    """Refuse a shard that is not what it was; `reading` says that it is being read, not only about to be."""
    if states.setdefault(index, state) != state:
        raise changed(name, reading=reading)


def read_shards(
    level: Level, shards: Sequence[Shard], states: States, *, verify: bool, first: int = 0
) -> Iterator[Block]:
    """Yield all blocks of a level of some shards; `first` is the position of the first; `verify` checks checksums too.

    Raises a CalibrationError if a shard is damaged or changed since it was first met.
    """
    for index, shard in enumerate(shards, start=first):
        check_state(states, index, shard.signature(), shard.name)
        try:
            yield from shard.convention.blocks(level, shard.blocks(level, verify=verify))
        except PostprocError:  # a shard that is written to reads as a damaged one
            check_state(states, index, shard.signature(), shard.name, reading=True)
            raise
        check_state(states, index, shard.signature(), shard.name, reading=True)


def changed(name: str, *, reading: bool = False) -> CalibrationError:
    """Return the error for a shard that is not what it was in the first pass."""
    fix = "calibrate again when nothing writes to it any more"
    when = "while it was read" if reading else "between two passes over it"
    return CalibrationError(f"{name} changed {when}", fix=fix)
