"""From raw blocks to chunks that can be counted: rounded to float32, checked, or refused with where and how many."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from postproc_export.calibration.counting.arrays import AnyArray, Block, Place
from postproc_export.calibration.counting.locator import Chunk
from postproc_export.calibration.counting.ordered import Flags, Floats
from postproc_export.errors import CalibrationError

Nonfinite = Literal["error", "drop"]


@dataclass(slots=True)
class Clean:
    """A chunk with its range, the values before rounding, and how many were left out of both.

    Notes
    -----
    `is_wide` says that rounding may have merged different values.
    """

    chunk: Chunk
    low: float
    high: float
    dropped: int
    original: AnyArray

    @property
    def is_wide(self) -> bool:
        """Whether the type holds more than float32 does."""
        return is_wide(self.original.dtype)


@dataclass(slots=True)
class Fault:
    """One kind of illegal element in one array: how many, the first one and where."""

    place: Place
    sentence: str
    needed: str
    fix: str | None
    truth: bool
    count: int = 0
    first: int = 0
    shown: object = field(default=None)

    @property
    def position(self) -> tuple[int, bool]:
        """Where the first one stands in its array; ground truth goes before the value beside it."""
        return self.place.rank(self.first), not self.truth

    def note(self, block: Block, bad: NDArray[np.intp]) -> None:
        """Count the illegal elements of a block, wherever it stands among those noted before."""
        elements = block.truth if self.truth and block.truth is not None else block.values
        ranks = block.place.ranks(block.start + bad)
        at = int(np.argmin(ranks))
        if not self.count or int(ranks[at]) < self.position[0]:
            self.place, self.first, self.shown = block.place, block.start + int(bad[at]), _shown(elements, bad[at])
        self.count += bad.size

    def merge(self, other: "Fault") -> None:
        """Add the illegal elements of another part of the same array."""
        if other.position < self.position:
            self.place, self.first, self.shown = other.place, other.first, other.shown
        self.count += other.count

    def error(self) -> CalibrationError:
        """Return the error that says how many there are, and which is the first."""
        total = "" if self.place.size is None else f" of {self.place.size}"
        at = self.place.at(self.first, truth=self.truth)
        found = f"{self.count}{total} values, the first is {self.shown} at {at}"
        return CalibrationError(f"{self.place.where}: {self.sentence}", found=found, needed=self.needed, fix=self.fix)


Faults = dict[str, Fault]


def _shown(elements: AnyArray, at: Any) -> object:
    return f"byte {elements.view(np.uint8)[at]}" if elements.dtype.kind == "b" else elements[at].item()


def first_fault(faults: Faults) -> Fault:
    """Return the fault with the first illegal element of an array, in whatever order it was read."""
    return min(faults.values(), key=lambda fault: fault.position)


def to_float32_array(values: AnyArray) -> Floats:
    """Round to float32, to nearest even; what overflows becomes infinite."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return np.ascontiguousarray(values, dtype=np.float32)


def is_wide(dtype: np.dtype[Any]) -> bool:
    """Whether float32 cannot hold every value of a type."""
    return not np.can_cast(dtype, np.float32, casting="safe") and str(dtype) != "bfloat16"


def as_flags(truth: AnyArray) -> Flags | None:
    """Return 0/1 ground truth as booleans, or None where an element is neither."""
    if truth.dtype.kind in "bu" and truth.dtype.itemsize == 1:
        raw = np.ascontiguousarray(truth).view(np.uint8)
        return raw.view(np.bool_) if raw.size == 0 or raw.max() <= 1 else None
    flags = truth == 1
    return flags if bool(np.all(flags | (truth == 0))) else None


def clean(blocks: Iterable[Block], *, nonfinite: Nonfinite) -> Iterator[Clean]:
    """Check and round the blocks of a first pass.

    Raises
    ------
    CalibrationError
        If values are not finite after rounding (unless they are to be dropped) or ground truth is not 0/1: after the
        array with the first such element, with the number of them in that array.
    """
    faults: Faults = {}
    yield from examine(blocks, faults, nonfinite=nonfinite)
    if faults:
        raise first_fault(faults).error()


def examine(blocks: Iterable[Block], faults: Faults, *, nonfinite: Nonfinite) -> Iterator[Clean]:
    """Check and round blocks as `clean` does, but leave what is illegal in `faults` for the caller to judge."""
    at: Place | None = None
    for block in blocks:
        if faults and block.place.array is not at:
            break
        at = block.place.array
        cleaned = _clean(block, nonfinite, faults)
        if cleaned is not None and not faults:
            yield cleaned


def _clean(block: Block, nonfinite: Nonfinite, faults: Faults) -> Clean | None:
    values = to_float32_array(block.values)
    if not values.size:
        return None
    truth = None if block.truth is None else as_flags(block.truth)
    if block.truth is not None and truth is None:
        _truth_fault(block, faults).note(block, np.flatnonzero(_is_illegal(block.truth)))
    low, high = float(values.min()), float(values.max())
    if np.isfinite(low) and np.isfinite(high):
        return Clean(Chunk(values, truth), low, high, 0, block.values)
    finite = np.isfinite(values)
    if nonfinite == "error":
        _value_fault(block, faults).note(block, np.flatnonzero(~finite))
        return None
    kept, dropped = values[finite], int(values.size - finite.sum())
    low, high = (float(kept.min()), float(kept.max())) if kept.size else (np.inf, -np.inf)
    chunk = Chunk(kept, None if truth is None else truth[finite])
    return Clean(chunk, low, high, dropped, block.values[finite])


def _is_illegal(truth: AnyArray) -> NDArray[np.bool_]:
    """Return which elements are neither 0 nor 1; booleans by their bytes, since every other byte compares as 1."""
    raw = truth.view(np.uint8) if truth.dtype.kind == "b" else truth
    return np.asarray((raw != 0) & (raw != 1))


def _truth_fault(block: Block, faults: Faults) -> Fault:
    place = block.place
    sentence = f"{place.truth_key} is not 0/1"
    return faults.setdefault(
        "truth", Fault(place, sentence, "0 (normal) or 1 (anomalous)", "compare it with 0 first", True)
    )


def _value_fault(block: Block, faults: Faults) -> Fault:
    place = block.place
    sentence = f"{place.key} has values that are not finite as float32"
    fix = 'correct the model, or leave such values out with nonfinite="drop" (`--nonfinite drop`)'
    return faults.setdefault("values", Fault(place, sentence, "finite values", fix, False))


def counted_chunks(blocks: Iterable[Block]) -> Iterator[Chunk]:
    """Round the blocks of a later pass: values were checked in the first one, and no bin includes what it dropped."""
    for block in blocks:
        truth = None if block.truth is None else as_flags(block.truth)
        if block.truth is not None and truth is None:
            raise CalibrationError(
                f"{block.place.where} changed between two passes over it", found="ground truth not 0/1"
            )
        yield Chunk(to_float32_array(block.values), truth)
