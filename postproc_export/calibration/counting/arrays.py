"""Arrays as users have them (NumPy, torch, memory maps, Zarr), as flat blocks that know where they come from."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from postproc_export.errors import CalibrationError
from postproc_export.stats import Level

AnyArray = NDArray[Any]
Positions = NDArray[np.intp]

BLOCK: Final = 1 << 18  # values in a block: their int64 bucket numbers still fit a second-level cache
_SLAB: Final = 1 << 24  # values of stored chunks that are held at once, so that each of them is decoded once
KEYS: Final[dict[Level, tuple[str, str]]] = {"image": ("pred_score", "gt_label"), "pixel": ("anomaly_map", "gt_mask")}


class ArrayLike(Protocol):
    """What a calibration needs of an array: shape, dtype, and slices that NumPy can read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of every axis."""
        ...

    @property
    def dtype(self) -> Any:
        """Type of the elements."""
        ...

    def __getitem__(self, index: Any, /) -> Any:
        """Return a part that `numpy.asarray` takes."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where an array of raw values comes from, for messages; its elements are met in C order.

    Parameters
    ----------
    where
        The file or the batch, such as ``"shards/a.npz"`` or ``"batch 3"``.
    key, truth_key
        The names of the two arrays there.
    shape
        The shape that positions refer to; None where it is not known beforehand.
    missing
        The file that would hold its ground truth, where each array has a file of its own.
    """

    where: str
    key: str
    truth_key: str
    shape: tuple[int, ...] | None
    missing: str | None = None

    @property
    def size(self) -> int | None:
        """Values in the array; None where its shape is not known."""
        return None if self.shape is None else math.prod(self.shape)

    @property
    def array(self) -> "Place":
        """The place of the whole array: one object for all blocks of it."""
        return self

    def ranks(self, flat: Positions) -> Positions:
        """Return where flat indices stand in the C order of the whole array."""
        return flat

    def rank(self, flat: int) -> int:
        """Return where one flat index stands in the C order of the whole array."""
        return int(self.ranks(np.array([flat], dtype=np.intp))[0])

    def at(self, flat: int, *, truth: bool = False) -> str:
        """Return ``"a.npz: anomaly_map[3, 10, 12]"`` for a flat index."""
        rank = self.rank(flat)
        index = np.unravel_index(rank, self.shape) if self.shape else (rank,)
        return f"{self.where}: {self.truth_key if truth else self.key}[{', '.join(str(int(axis)) for axis in index)}]"


@dataclass(frozen=True, slots=True)
class Block:
    """A flat run of raw values of one level as the source gives them: unchecked, of any number type.

    Parameters
    ----------
    values
        Shape (n,), any real type.
    truth
        Shape (n,), 0 or 1 of any type; None where the source has no ground truth for the level.
    place, start
        The array it is a part of, and the flat index of its first value there.
    """

    values: AnyArray
    truth: AnyArray | None
    place: Place
    start: int


def as_numpy(array: Any, *, place: str = "an array") -> AnyArray:
    """Return a NumPy array; torch tensors are taken from any device, bfloat16 and gradients included.

    Raises
    ------
    CalibrationError
        If elements are masked, only those that are not zero are stored, or rows have different lengths.

    Notes
    -----
    torch is not imported: whatever has `detach` is treated as a tensor. bfloat16, which NumPy does not have, fits
    float32 exactly.
    """
    check_plain(array, place=place)
    if hasattr(array, "detach"):
        tensor = array.detach().cpu()
        tensor = tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor
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
    """Return the shape without singleton axes: `(N,)` for the image level, `(N, H, W)` for the pixel level.

    Raises
    ------
    CalibrationError
        If an image has more than one score, or a map more than one channel.
    """
    if level == "image":
        if all(length == 1 for length in shape[1:]):
            return (shape[0] if shape else 1,)
        raise CalibrationError(
            f"{place} has more than one value per image", found=f"shape {shape}", needed="[N] or [N, 1]"
        )
    if len(shape) in (2, 3):
        return (1, *shape)[-3:]
    if len(shape) == 4 and shape[1] == 1:
        return (shape[0], *shape[2:])
    if len(shape) == 4 and shape[3] == 1:
        return shape[:3]
    raise CalibrationError(
        f"{place} is not a map of one channel", found=f"shape {shape}", needed="[N, 1, H, W], [N, H, W] or [H, W]"
    )


def check_type(dtype: np.dtype[Any], *, place: str, truth: bool) -> None:
    """Refuse what is not a real number: objects, strings, complex numbers, and boolean scores."""
    legal = "biuf" if truth else "iuf"
    if dtype.kind not in legal and str(dtype) != "bfloat16":
        raise CalibrationError(
            f"{place} has elements of type {dtype}", needed="0/1 as bool, integer or float" if truth else "real numbers"
        )


def flat_chunks(array: ArrayLike) -> Iterator[AnyArray]:
    """Yield an array's elements in C order, in flat parts of at most about `BLOCK`, reading no more at a time."""
    if isinstance(array, np.ndarray) and array.flags.c_contiguous:
        flat = array.reshape(-1)
        for start in range(0, flat.size, BLOCK):
            yield flat[start : start + BLOCK]
        return
    if len(array.shape) == 0:
        yield np.asarray(array[()]).reshape(-1)
        return
    rows, row = stored_rows(array), int(np.prod(array.shape[1:], dtype=np.int64))
    if rows > 1 and BLOCK < rows * row <= _SLAB:
        for start in range(0, array.shape[0], rows):
            slab = np.ascontiguousarray(array[start : start + rows]).reshape(-1)
            yield from (slab[at : at + BLOCK] for at in range(0, slab.size, BLOCK))
        return
    yield from _leading_chunks(array, ())


def _leading_chunks(array: ArrayLike, prefix: tuple[int, ...]) -> Iterator[AnyArray]:
    axis = len(prefix)
    row = int(np.prod(array.shape[axis + 1 :], dtype=np.int64))
    if row > BLOCK:
        for index in range(array.shape[axis]):
            yield from _leading_chunks(array, (*prefix, index))
        return
    step = max(1, BLOCK // max(row, 1), 1 if prefix else stored_rows(array))
    for start in range(0, array.shape[axis], step):
        yield np.ascontiguousarray(array[(*prefix, slice(start, start + step))]).reshape(-1)


def stored_rows(array: ArrayLike) -> int:
    """Return the rows of a chunk of a chunked array, so that each chunk is read once, not once per slice."""
    stored = getattr(array, "chunks", None)
    if not stored:
        return 1
    return int(max(stored[0])) if isinstance(stored[0], tuple) else int(stored[0])


def paired(values: Iterator[AnyArray], truth: Iterator[AnyArray] | None) -> Iterator[tuple[AnyArray, AnyArray | None]]:
    """Pair two runs of flat parts of equal total length, whatever the lengths of their parts."""
    if truth is None:
        for part in values:
            yield part, None
        return
    left = np.zeros(0, dtype=np.bool_)
    for part in values:
        while part.size:
            if not left.size:
                left = next(truth)
            size = min(part.size, left.size)
            yield part[:size], left[:size]
            part, left = part[size:], left[size:]
    for left in truth:  # so that a stream reads to its end and its checksum is verified
        assert left.size == 0, "both arrays have the same shape"


def array_blocks(values: ArrayLike, truth: ArrayLike | None, place: Place) -> Iterator[Block]:
    """Yield the blocks of a pair of arrays of the same canonical shape."""
    start = 0
    for part, truth_part in paired(flat_chunks(values), None if truth is None else flat_chunks(truth)):
        yield Block(part, truth_part, place, start)
        start += part.size
