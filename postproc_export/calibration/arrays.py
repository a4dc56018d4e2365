"""Arrays as users have them (NumPy, torch, memory maps, Zarr), checked, as flat blocks that know where they lie."""

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from postproc_export.errors import CalibrationError
from postproc_export.stats import Level

AnyArray = NDArray[Any]
Positions = NDArray[np.intp]

BLOCK: Final = 1 << 18  # values in a block: their int64 bucket numbers still fit a second-level cache
_SLAB: Final = 1 << 24  # values of stored chunks that are held at once, so that each of them is decoded once
KEYS: Final[dict[Level, tuple[str, str]]] = {"image": ("pred_score", "gt_label"), "pixel": ("anomaly_map", "gt_mask")}


@dataclass(frozen=True, slots=True)
class Place:
    """Where an array of raw values, or a box of it, comes from, for messages that give an element's position in it."""

    where: str  # the file or the batch, such as ``"shards/a.npz"`` or ``"batch 3"``
    key: str  # the names of the two arrays there
    truth_key: str
    shape: tuple[int, ...] | None  # the shape that positions refer to; None where it is not known beforehand
    missing: str | None = None  # the file that would hold its ground truth, where each array has a file of its own
    is_fortran: bool = False  # whether its elements are met in Fortran order, as they are stored, not in C order
    has_lines: bool = False  # whether it is a CSV file, whose lines messages give
    origin: tuple[int, ...] | None = None  # of a box: the index of its first element in the array,
    box: tuple[int, ...] = ()  # its own shape, to which flat indices refer,
    within: "Place | None" = None  # the place of the array, if other boxes of it are read in the same run,
    chunk: tuple[int, ...] | None = None  # and its number along every axis, if it is a chunk of a Dask array

    @property
    def size(self) -> int | None:
        """Values in the array; None where its shape is not known."""
        return None if self.shape is None else math.prod(self.shape)

    @property
    def array(self) -> "Place":
        """The place of the whole array: one object for all blocks of it."""
        return self if self.within is None else self.within

    def ranks(self, flat: Positions) -> Positions:
        """Return where flat indices stand in the C order of the whole array."""
        if not self.shape or (self.origin is None and not self.is_fortran):
            return flat
        index = np.unravel_index(flat, self.shape, "F") if self.is_fortran else np.unravel_index(flat, self.box)
        if self.origin is not None:
            index = tuple(np.add(first, axis) for first, axis in zip(self.origin, index, strict=True))
        return np.asarray(np.ravel_multi_index(index, self.shape), dtype=np.intp)

    def rank(self, flat: int) -> int:
        """Return where one flat index stands in the C order of the whole array."""
        return int(self.ranks(np.array([flat], dtype=np.intp))[0])

    def at(self, flat: int, *, truth: bool = False) -> str:
        """Return ``"a.npz: anomaly_map[3, 10, 12]"`` for a flat index, with the line or the chunk where it has one."""
        rank = self.rank(flat)
        index = np.unravel_index(rank, self.shape) if self.shape else (rank,)
        text = f"{self.where}: {self.truth_key if truth else self.key}[{', '.join(str(int(axis)) for axis in index)}]"
        if self.chunk is not None:
            text += f", in chunk ({', '.join(map(str, self.chunk))})"
        return text + (self._line(flat) if self.has_lines else "")

    def _line(self, row: int) -> str:
        """Return ``", line 5"`` for a row; it is looked up, since cells may span several lines."""
        try:
            with Path(self.where).open(newline="", encoding="utf-8-sig") as stream:
                reader = csv.DictReader(stream, skipinitialspace=True)
                next(islice(reader, row, None))
                return f", line {reader.line_num}"
        except (OSError, ValueError, csv.Error, StopIteration):
            return ""


@dataclass(frozen=True, slots=True)
class Pair:
    """The arrays of one level, which fit each other; `truth` is None where there is none."""

    values: Any
    truth: Any
    place: Place


@dataclass(frozen=True, slots=True)
class Block:
    """A flat run of raw values of one level as the source gives them: unchecked, of any number type."""

    values: AnyArray  # shape (n,), any real type
    truth: AnyArray | None  # shape (n,), 0 or 1 of any type; None where the source has no ground truth for the level
    place: Place
    start: int  # the flat index of the first value in its array or box


def as_numpy(array: Any, *, place: str) -> AnyArray:
    """Return a NumPy array; whatever has `detach` is a torch tensor, of any device, with gradients or not."""
    check_plain(array, place=place)
    if hasattr(array, "detach"):
        tensor = array.detach().cpu()
        tensor = tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor  # exact; NumPy has no bfloat16
        return np.asarray(tensor.numpy())
    try:
        return np.asarray(array)
    except ValueError as error:
        raise CalibrationError(f"{place} is not an array", found=str(error), needed="rows of equal length") from error


def check_plain(array: Any, *, place: str) -> None:
    """Refuse arrays whose values NumPy would read otherwise than they are meant: masked and sparse ones."""
    if isinstance(array, np.ma.MaskedArray):
        raise CalibrationError(
            f"{place} is a masked array, and what its mask hides would count",
            needed="a plain array",
            fix='array.filled(np.nan), and nonfinite="drop"',
        )
    if str(getattr(array, "layout", "torch.strided")).startswith("torch.sparse"):
        raise CalibrationError(f"{place} is sparse", found=str(array.layout), needed="all elements", fix=".to_dense()")
    if hasattr(array, "todense") and not hasattr(array, "detach"):
        found = type(array).__name__
        raise CalibrationError(f"{place} is sparse", found=found, needed="all elements", fix=".todense()")


def level_shape(shape: tuple[int, ...], *, level: Level, place: str) -> tuple[int, ...]:
    """Return the shape without singleton axes: `(N,)` for the image level, `(N, H, W)` for the pixel level."""
    if level == "image":
        if all(length == 1 for length in shape[1:]):
            return (shape[0] if shape else 1,)
        raise CalibrationError(
            f"{place} has more than one value per image",
            found=f"shape {shape}",
            needed="[N] or [N, 1]",
            fix="choose one with --step channel:index=1,level=image",
        )
    if len(shape) in (2, 3):
        return (1, *shape)[-3:]
    if len(shape) == 4 and shape[1] == 1:
        return (shape[0], *shape[2:])
    if len(shape) == 4 and shape[3] == 1:
        return shape[:3]
    raise CalibrationError(
        f"{place} is not a map of one channel",
        found=f"shape {shape}",
        needed="[N, 1, H, W], [N, H, W, 1], [N, H, W] or [H, W]",
        fix="choose one with --step channel:index=1,axis=second,level=pixel" if len(shape) == 4 else None,
    )


_TEXTS: Final = "UST"  # NumPy's kinds of text
CHOOSE_LABEL: Final = "say which label is anomalous: --anomalous-label VALUE"


def check_type(dtype: np.dtype[Any], *, place: str, truth: bool, texts: bool | None = None) -> None:
    """Refuse what is not a real number: objects, strings, complex numbers, and boolean scores.

    `texts` is whether labels may be texts; None for what are no labels.
    """
    legal = ("biuf" if truth else "iuf") + (_TEXTS if texts else "")
    if dtype.kind not in legal and str(dtype) != "bfloat16":
        raise CalibrationError(
            f"{place} has elements of type {dtype}",
            needed="0/1 as bool, integer or float" if truth else "real numbers",
            fix=CHOOSE_LABEL if texts is False and dtype.kind in _TEXTS else None,
        )


def flat_chunks(array: Any) -> Iterator[AnyArray]:
    """Yield an array's elements in C order, in flat parts of at most about `BLOCK`, reading no more at a time."""
    if isinstance(array, np.ndarray) and array.flags.c_contiguous:
        flat = array.reshape(-1)
        for start in range(0, flat.size, BLOCK):
            yield flat[start : start + BLOCK]
        return
    if len(array.shape) == 0:
        yield np.asarray(array[()]).reshape(-1)
        return
    rows, row = _stored_rows(array), int(np.prod(array.shape[1:], dtype=np.int64))
    if rows > 1 and BLOCK < rows * row <= _SLAB:
        for start in range(0, array.shape[0], rows):
            yield from flat_chunks(np.ascontiguousarray(array[start : start + rows]))
        return
    yield from _leading_chunks(array, ())


def _leading_chunks(array: Any, prefix: tuple[int, ...]) -> Iterator[AnyArray]:
    axis = len(prefix)
    row = int(np.prod(array.shape[axis + 1 :], dtype=np.int64))
    if row > BLOCK:
        for index in range(array.shape[axis]):
            yield from _leading_chunks(array, (*prefix, index))
        return
    step = max(1, BLOCK // max(row, 1), 1 if prefix else _stored_rows(array))
    for start in range(0, array.shape[axis], step):
        yield np.ascontiguousarray(array[(*prefix, slice(start, start + step))]).reshape(-1)


def _stored_rows(array: Any) -> int:
    """Return the rows of a chunk of a chunked array, so that each chunk is read once, not once per slice."""
    stored = getattr(array, "chunks", None)
    if not stored:
        return 1
    return int(max(stored[0])) if isinstance(stored[0], tuple) else int(stored[0])


def blocks_of(values: Iterator[AnyArray], truth: Iterator[AnyArray] | None, place: Place) -> Iterator[Block]:
    """Yield the blocks of two runs of flat parts of equal total length, whatever the lengths of their parts."""
    start, left = 0, np.zeros(0, dtype=np.bool_)
    for part in values:
        while part.size:
            if truth is not None and not left.size:
                left = next(truth)
            size = part.size if truth is None else min(part.size, left.size)
            yield Block(part[:size], None if truth is None else left[:size], place, start)
            start, part, left = start + size, part[size:], left[size:]
    for left in truth or ():  # so that a stream reads to its end and its checksum is verified
        assert left.size == 0, "both arrays have the same shape"


def checked_shape(level: Level, values: Any, truth: Any, *, place: Place, texts: bool) -> tuple[int, ...]:
    """Return the canonical shape of a pair of arrays; refuses types and shapes that do not fit.

    `texts` is whether labels may be texts.
    """
    values_at, truth_at = f"{place.where}: {place.key}", f"{place.where}: {place.truth_key}"
    check_type(values.dtype, place=values_at, truth=False)
    shape = level_shape(tuple(values.shape), level=level, place=values_at)
    if truth is not None:
        check_type(truth.dtype, place=truth_at, truth=True, texts=texts if level == "image" else None)
        truth_shape = level_shape(tuple(truth.shape), level=level, place=truth_at)
        if truth_shape != shape:
            found = f"{place.key} {tuple(values.shape)}, {place.truth_key} {tuple(truth.shape)}"
            raise CalibrationError(
                f"{place.where}: the shapes do not agree",
                found=found,
                needed="the same N (, H and W)",
                fix=f"bring the {place.truth_key} to the size of the {place.key}, and give one for each",
            )
    return shape


def check_labelled(before: bool | None, now: bool, *, place: Place, earlier: Place | None = None) -> None:
    """Refuse a level that has ground truth in some batches or files and none in others."""
    if before is not None and before != now:
        without = earlier if now else place
        missing = None if without is None else without.missing
        raise CalibrationError(
            f"{place.where}: {place.key} comes {'with' if now else 'without'} {place.truth_key}, unlike earlier ones",
            needed=f"{place.truth_key} everywhere or nowhere",
            fix=None if missing is None else f"add {missing}",
        )


BUDGET: Final = 32 << 20  # bytes of values and ground truth in a box; decoding takes as much again, and more
GROUPED: Final = 1 << 20  # values that small chunks are grouped to: reading a box costs a fraction of a millisecond

Shape = tuple[int, ...]
Box = tuple[slice, ...]


def is_chunked(array: Any) -> bool:
    """Whether an array is stored in chunks, which are decoded whole: one of Zarr or h5py."""
    return isinstance(getattr(array, "chunks", None), tuple)


class ChannelOf:
    """One entry of an axis of a stored array, read as an array without that axis."""

    def __init__(self, array: Any, axis: int, index: int) -> None:
        self._array, self._axis, self._index = array, axis, index
        self.dtype = array.dtype
        self.shape, self.chunks = ((*of[:axis], *of[axis + 1 :]) for of in (array.shape, array.chunks))

    def __getitem__(self, key: Any) -> Any:
        key = key if isinstance(key, tuple) else (key,)
        key = (*key, *[slice(None)] * (self._axis - len(key)))
        return self._array[(*key[: self._axis], self._index, *key[self._axis :])]


class StoredArray:
    """An array without its axes of length 1, by which values and ground truth may differ."""

    def __init__(self, array: Any) -> None:
        chunks = array.chunks if is_chunked(array) else (1,) * len(array.shape)
        lengths = [max(each) if isinstance(each, tuple) else each for each in chunks]
        axes = [(int(n), min(int(n), int(c))) for n, c in zip(array.shape, lengths, strict=True) if n != 1]
        self._array = array
        self.shape: Shape = tuple(n for n, _ in axes)
        self.chunk: Shape = tuple(max(1, c) for _, c in axes)  # 1 where any slice costs alike
        self.item = int(np.dtype(array.dtype).itemsize)
        self.is_large = math.prod(self.chunk) * self.item > BUDGET  # a chunk of it alone takes more than the budget
        self._held: tuple[Box, AnyArray] | None = None

    def index(self, box: Box) -> Box:
        """Return a box in the axes that the array has."""
        axes = iter(box)
        return tuple(slice(0, 1) if length == 1 else next(axes) for length in self._array.shape)

    def read(self, box: Box) -> AnyArray:
        """Return the elements of a box in the shape of the box."""
        shape = tuple(axis.stop - axis.start for axis in box)
        return np.ascontiguousarray(self._array[self.index(box)]).reshape(shape)

    def read_held(self, outer: Box, inner: Box) -> AnyArray:
        """Return the elements of an inner box; the outer one stays decoded until another one is asked for."""
        if self._held is None or self._held[0] != outer:
            self._held = None  # the one before goes first
            self._held = outer, self.read(outer)
        inside = tuple(slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True))
        return np.ascontiguousarray(self._held[1][inside])


def _stored(pair: Pair) -> tuple[list[StoredArray], StoredArray | None]:
    """Return the arrays of a level, and the one of two whose chunks alone exceed the budget."""
    stored = [StoredArray(array) for array in (pair.values, pair.truth) if array is not None]
    large = [each for each in stored if each.is_large]
    return stored, large[0] if len(stored) == 2 and len(large) == 1 else None


def boxes_of(pair: Pair) -> Iterator[tuple[Box, Box]]:
    """Yield every box in which a level is read, within the outer box that comes first: the same ones in every pass.

    A chunk that is larger than the budget is an outer box: it stays decoded while the other array is read piece by
    piece beside it. Inner boxes start at multiples of their steps, and where an outer box starts.
    """
    stored, held = _stored(pair)
    shape = stored[0].shape
    steps = _steps(shape, [each for each in stored if each is not held])
    for outer in _boxes(tuple(slice(0, length) for length in shape), shape if held is None else held.chunk):
        for inner in _boxes(outer, steps):
            yield outer, inner


def _boxes(box: Box, steps: Shape) -> Iterator[Box]:
    cuts = []
    for axis, length in zip(box, steps, strict=True):
        step = max(length, 1)
        starts = range(axis.start // step * step, axis.stop, step)
        cuts.append([slice(max(at, axis.start), min(at + step, axis.stop)) for at in starts])
    return product(*cuts)


def _steps(shape: Shape, stored: Sequence[StoredArray]) -> Shape:
    """Return the steps that decode least within the budget, small ones grouped."""
    if 0 in shape:
        return (1,) * len(shape)
    item = sum(each.item for each in stored)
    most = max(BUDGET, *(math.prod(each.chunk) * item for each in stored))
    chunks = [tuple(each.chunk[axis] for each in stored) for axis in range(len(shape))]
    choices = [sorted({*c, min(math.lcm(*c), n), n}) for c, n in zip(chunks, shape, strict=True)]
    fitting = [steps for steps in product(*choices) if math.prod(steps) * item <= most]
    best: Shape = min(fitting, key=lambda steps: (_decoded(shape, steps, stored), math.prod(steps)))
    grown = list(best)
    for axis in reversed(range(len(shape))):
        times = max(1, GROUPED // math.prod(grown))
        grown[axis] = min(shape[axis], grown[axis] * times)
        if grown[axis] < shape[axis]:
            break
    return tuple(grown)


def _decoded(shape: Shape, steps: Shape, stored: Sequence[StoredArray]) -> float:
    """Return how many bytes are decoded in a pass, for each element of the arrays."""

    def times(length: int, step: int, chunk: int) -> float:  # how often a chunk is met along an axis, on average
        starts = np.arange(0, length, step)
        ends = np.minimum(starts + step, length)
        return float((-(-ends // chunk) - starts // chunk).sum()) / -(-length // chunk)

    return sum(each.item * math.prod(map(times, shape, steps, each.chunk)) for each in stored)


def box_blocks(pair: Pair, *, run: tuple[int, int] | None = None) -> Iterator[Block]:
    """Yield the blocks of a pair of arrays box by box, or of a run of `boxes_of` alone."""
    stored, held = _stored(pair)
    for outer, inner in islice(boxes_of(pair), *(run or (0, None))):
        index = stored[0].index(inner)
        origin, box = tuple(axis.start for axis in index), tuple(axis.stop - axis.start for axis in index)
        place = replace(pair.place, origin=origin, box=box, within=pair.place)
        parts = [(each.read_held(outer, inner) if each is held else each.read(inner)).reshape(-1) for each in stored]
        for start in range(0, parts[0].size, BLOCK):
            values, truth = [*(part[start : start + BLOCK] for part in parts), None][:2]
            assert values is not None, "a level has values"
            yield Block(values, truth, place, start)
