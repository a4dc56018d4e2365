"""Boxes of chunked arrays: values and ground truth read so that no chunk is decoded twice where memory allows it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Any, Final

import numpy as np

from postproc_export.calibration.arrays import BLOCK, AnyArray, Block, Pair

BUDGET: Final = 32 << 20  # bytes of values and ground truth in a box; decoding takes as much again, and more
GROUPED: Final = 1 << 20  # values that small chunks are grouped to: reading a box costs a fraction of a millisecond

Shape = tuple[int, ...]
Box = tuple[slice, ...]


def is_chunked(array: Any) -> bool:
    """Whether an array is stored in chunks, which are decoded whole: one of Zarr or h5py."""
    return isinstance(getattr(array, "chunks", None), tuple)


@dataclass(frozen=True, slots=True)
class StoredArray:
    """An array without its axes of length 1, by which values and ground truth may differ."""

    array: Any  # what is sliced
    shape: Shape  # lengths of the axes that are left, and of a chunk along them (1 where any slice costs alike)
    chunk: Shape

    @classmethod
    def of(cls, array: Any) -> "StoredArray":
        """Return an array with what is known of its chunks."""
        chunks = array.chunks if is_chunked(array) else (1,) * len(array.shape)
        lengths = [max(each) if isinstance(each, tuple) else each for each in chunks]
        axes = [(int(n), min(int(n), int(c))) for n, c in zip(array.shape, lengths, strict=True) if n != 1]
        return cls(array, tuple(n for n, _ in axes), tuple(max(1, c) for _, c in axes))

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return int(np.dtype(self.array.dtype).itemsize)

    @property
    def is_large(self) -> bool:
        """Whether a chunk of it alone takes more than the budget."""
        return math.prod(self.chunk) * self.item > BUDGET

    def index(self, box: Box) -> Box:
        """Return a box in the axes that the array has."""
        axes = iter(box)
        return tuple(slice(0, 1) if length == 1 else next(axes) for length in self.array.shape)

    def read(self, box: Box) -> AnyArray:
        """Return the elements of a box in the shape of the box."""
        shape = tuple(axis.stop - axis.start for axis in box)
        return np.ascontiguousarray(self.array[self.index(box)]).reshape(shape)


@dataclass(frozen=True, slots=True)
class Grid:
    """How an array is cut: into boxes of `outer` steps, and each of them into boxes of `inner` steps.

    Inner boxes start at multiples of their steps and where an outer box starts, so they are the same in every pass.
    """

    shape: Shape
    outer: Shape
    inner: Shape

    def __len__(self) -> int:
        return math.prod(
            sum(1 for part in _cut(slice(0, n), o) for _ in _cut(part, i))
            for n, o, i in zip(self.shape, self.outer, self.inner, strict=True)
        )

    def boxes(self) -> Iterator[tuple[Box, Box]]:
        """Yield every inner box with the outer one it lies in."""
        whole = tuple(slice(0, length) for length in self.shape)
        for outer in _boxes(whole, self.outer):
            for inner in _boxes(outer, self.inner):
                yield outer, inner


def _boxes(box: Box, steps: Shape) -> Iterator[Box]:
    if not box:
        yield ()
        return
    for first in _cut(box[0], steps[0]):
        for rest in _boxes(box[1:], steps[1:]):
            yield (first, *rest)


def _cut(axis: slice, step: int) -> Iterator[slice]:
    start = axis.start
    while start < axis.stop:
        stop = min((start // step + 1) * step, axis.stop)
        yield slice(start, stop)
        start = stop


def grid_of(pair: Pair) -> Grid:
    """Return the boxes in which a level is read.

    A chunk that is larger than the budget stays decoded while the other array is read piece by piece beside it.
    """
    stored = [StoredArray.of(array) for array in (pair.values, pair.truth) if array is not None]
    shape, held = stored[0].shape, _held(stored)
    if held is None:
        return Grid(shape, shape, _steps(shape, stored))
    return Grid(shape, held.chunk, _steps(shape, [each for each in stored if each is not held]))


def _held(stored: Sequence[StoredArray]) -> StoredArray | None:
    """Return the one of two arrays whose chunks alone exceed the budget."""
    large = [each for each in stored if each.is_large]
    return large[0] if len(stored) == 2 and len(large) == 1 else None


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
    return sum(
        each.item * math.prod(_times(*axis) for axis in zip(shape, steps, each.chunk, strict=True)) for each in stored
    )


def _times(length: int, step: int, chunk: int) -> float:
    """Return how often a chunk is met along an axis, on average."""
    starts = np.arange(0, length, step)
    ends = np.minimum(starts + step, length)
    return float((-(-ends // chunk) - starts // chunk).sum()) / -(-length // chunk)


class _BoxReader:
    """An array whose outer box stays decoded while inner ones are taken from it, where it is large."""

    def __init__(self, stored: StoredArray, *, is_held: bool) -> None:
        self._stored, self._is_held = stored, is_held
        self._box: Box | None = None
        self._part: AnyArray = np.empty(0)

    def read(self, outer: Box, inner: Box) -> AnyArray:
        if not self._is_held:
            return self._stored.read(inner).reshape(-1)
        if self._box != outer:
            self._part = np.empty(0)  # the one before goes first
            self._box, self._part = outer, self._stored.read(outer)
        inside = tuple(slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True))
        return np.ascontiguousarray(self._part[inside]).reshape(-1)


def box_blocks(pair: Pair, *, run: tuple[int, int] | None = None) -> Iterator[Block]:
    """Yield the blocks of a pair of arrays box by box, or of a run of the boxes of `grid_of` alone."""
    stored = [StoredArray.of(array) for array in (pair.values, pair.truth) if array is not None]
    held = _held(stored)
    readers = [_BoxReader(each, is_held=each is held) for each in stored]
    for outer, inner in islice(grid_of(pair).boxes(), *(run or (0, None))):
        index = stored[0].index(inner)
        origin, box = tuple(axis.start for axis in index), tuple(axis.stop - axis.start for axis in index)
        place = replace(pair.place, origin=origin, box=box, within=pair.place)
        part, truth_part = (*(reader.read(outer, inner) for reader in readers), None)[:2]
        assert part is not None, "a level has values"
        for start in range(0, part.size, BLOCK):
            piece = slice(start, start + BLOCK)
            yield Block(part[piece], None if truth_part is None else truth_part[piece], place, start)
