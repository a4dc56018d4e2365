"""The tally of a level: exact counts, and what is wrong with the values; those of parts add up to that of the whole."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from postproc_export.calibration.arrays import AnyArray, Block, Place, check_labelled
from postproc_export.calibration.counting import (
    CoarseHistogram,
    Part,
    Truth,
    as_flags,
    is_wide,
    table_of_keys,
    to_float32_array,
)
from postproc_export.calibration.table import Flags, Floats, Table, key_of, merge_zeros, ordered_keys
from postproc_export.errors import CalibrationError, PostprocError
from postproc_export.options import Nonfinite


@dataclass(slots=True)
class Chunk:
    """A flat run of checked values of one level."""

    values: Floats  # float32, shape (n,), contiguous, finite, any zero
    truth: Truth
    low: float  # the lowest and the highest value; (inf, -inf) where there is none
    high: float
    dropped: int  # values that were left out, since they were not finite
    original: AnyArray  # the values before rounding, which may merge different ones


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
    shown: object = None

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
            is_flag, self.place, self.first = elements.dtype.kind == "b", block.place, block.start + int(bad[at])
            self.shown = f"byte {elements.view(np.uint8)[bad[at]]}" if is_flag else elements[bad[at]].item()
        self.count += bad.size

    def error(self) -> CalibrationError:
        """Return the error that says how many there are, and which is the first."""
        total = "" if self.place.size is None else f" of {self.place.size}"
        at = self.place.at(self.first, truth=self.truth)
        found = f"{self.count}{total} values, the first is {self.shown} at {at}"
        return CalibrationError(f"{self.place.where}: {self.sentence}", found=found, needed=self.needed, fix=self.fix)


Faults = dict[str, Fault]


def _first_fault(faults: Faults) -> CalibrationError:
    """Return the error of the first illegal element of an array, in whatever order it was read."""
    return min(faults.values(), key=lambda fault: fault.position).error()


def clean(blocks: Iterable[Block], *, nonfinite: Nonfinite) -> Iterator[Chunk]:
    """Check and round the blocks of a first pass.

    Raises a CalibrationError where values are not finite after rounding (unless they are to be dropped) or ground truth
    is not 0/1: after the array with the first such element, with the number of them in that array.
    """
    faults: Faults = {}
    yield from _examine(blocks, faults, nonfinite=nonfinite)
    if faults:
        raise _first_fault(faults)


def _examine(blocks: Iterable[Block], faults: Faults, *, nonfinite: Nonfinite) -> Iterator[Chunk]:
    """Check and round blocks as `clean` does, but leave what is illegal in `faults` for the caller to judge."""
    at: Place | None = None
    for block in blocks:
        if faults and block.place.array is not at:
            break
        at = block.place.array
        chunk = _checked(block, nonfinite, faults) if block.values.size else None
        if chunk is not None and not faults:
            yield chunk


def _checked(block: Block, nonfinite: Nonfinite, faults: Faults) -> Chunk | None:
    values, place = to_float32_array(block.values), block.place
    truth = None if block.truth is None else as_flags(block.truth)
    if block.truth is not None and truth is None:
        # booleans by their bytes, since every byte but 0 compares as 1
        raw = block.truth.view(np.uint8) if block.truth.dtype.kind == "b" else block.truth
        rows = (f"{place.truth_key} is not 0/1", "0 (normal) or 1 (anomalous)", "compare it with 0 first")
        faults.setdefault("truth", Fault(place, *rows, True)).note(block, np.flatnonzero((raw != 0) & (raw != 1)))
    low, high = float(values.min()), float(values.max())
    if np.isfinite(low) and np.isfinite(high):
        return Chunk(values, truth, low, high, 0, block.values)
    finite = np.isfinite(values)
    if nonfinite == "error":
        fix = 'correct the model, or leave such values out with nonfinite="drop" (`--nonfinite drop`)'
        rows = (f"{place.key} has values that are not finite as float32", "finite values", fix)
        faults.setdefault("values", Fault(place, *rows, False)).note(block, np.flatnonzero(~finite))
        return None
    kept, dropped = values[finite], int(values.size - finite.sum())
    low, high = (float(kept.min()), float(kept.max())) if kept.size else (np.inf, -np.inf)
    return Chunk(kept, None if truth is None else truth[finite], low, high, dropped, block.values[finite])


_Run = tuple[Floats, Truth, float, float]  # values, their ground truth, the lowest and the highest of them
SMALL: Final = 1 << 20  # up to so many values are kept and sorted: no second pass
_PARTS: Final = 1024


@dataclass(frozen=True, slots=True)
class Counted:
    """What the first pass over all values of a level counted, wherever they were counted."""

    table: Table  # one bin per distinct value where `is_exact`, else bins 2^16 keys wide
    labelled: bool | None  # whether there was ground truth; None where the level was not met
    is_exact: bool  # whether the values were few enough to be sorted: `SMALL` at most
    is_wide: bool  # whether some came in a type that holds more than float32 does
    dropped: int  # values left out because they were not finite

    @property
    def seen(self) -> int:
        """All values that were counted."""
        return self.table.n_normal + self.table.n_anomalous


class Tally:
    """Exact counts of one level in constant memory, where ground truth was met first, and what is wrong first.

    An empty tally changes nothing; tallies of parts that follow each other merge to that of the whole, error included.
    """

    def __init__(self, *, number: int = 0, limit: int | None = None) -> None:
        self._kept: list[_Run] = []
        self._histogram: CoarseHistogram | None = None  # of all values, once they are more than the limit
        self._limit = limit
        self.seen = self.dropped = 0
        self.low, self.high = float("inf"), float("-inf")
        self.is_wide = False
        self.labelled: bool | None = None
        self.states: dict[int, object] = {}
        self._number = number  # of the array or the files that are counted, or of those with the trouble
        self._first: Place | None = None
        self._faults: Faults = {}
        self._error: PostprocError | None = None

    @property
    def is_exact(self) -> bool:
        """Whether all values are here."""
        return self._histogram is None

    def count(self, blocks: Iterable[Block], *, nonfinite: Nonfinite) -> None:
        """Count raw blocks up to the first array that is not legal, or cannot be read; `counted` raises why."""
        try:
            for chunk in _examine(self._alike(blocks), self._faults, nonfinite=nonfinite):
                self.add(chunk)
        except PostprocError as error:
            self._error = error.with_traceback(None)  # whose frames hold the values

    def _alike(self, blocks: Iterable[Block]) -> Iterator[Block]:
        for block in blocks:
            if not self._faults:
                self._check_labelled(block.truth is not None, block.place)
            yield block

    def _check_labelled(self, labelled: bool, place: Place) -> None:
        check_labelled(self.labelled, labelled, place=place, earlier=self._first)
        if self.labelled is None:
            self.labelled, self._first = labelled, place

    def add(self, chunk: Chunk) -> None:
        """Count one checked chunk."""
        self.dropped += chunk.dropped
        self.is_wide |= is_wide(chunk.original.dtype)
        if self.labelled is None:
            self.labelled = chunk.truth is not None
        if chunk.values.size:
            self._take([(chunk.values, chunk.truth, chunk.low, chunk.high)], chunk.values.size, copy=True)

    def merge(self, other: "Tally") -> None:
        """Add what another tally counted, which stays as it is, and what is wrong with it if all was well here."""
        self.dropped += other.dropped
        self.is_wide |= other.is_wide
        self.states |= other.states
        self._merge_trouble(other)
        if other._histogram is None:
            self._take(other._kept, other.seen)
        else:
            self._spill().merge(other._histogram)
            self.seen += other.seen
            self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def _merge_trouble(self, other: "Tally") -> None:
        if self._error is not None:
            return
        if self._faults:
            if other._number == self._number and (
                other._faults or other._error is not None
            ):  # another part of the same array
                self._error = other._error
                for kind, fault in other._faults.items():
                    self._faults[kind] = _merged(self._faults.get(kind), fault)
            return
        self._number, self._error = other._number, other._error
        self._faults = {kind: dataclasses.replace(fault) for kind, fault in other._faults.items()}
        if other._first is None or other.labelled is None:
            self.labelled = other.labelled if self.labelled is None else self.labelled
            return
        try:
            self._check_labelled(other.labelled, other._first)
        except CalibrationError as unlike:
            self._error = unlike.with_traceback(None)

    def _take(self, runs: Sequence[_Run], size: int, *, copy: bool = False) -> None:
        """Keep values while they are few, as copies where the caller may reuse its arrays; else count them."""
        limit = SMALL if self._limit is None else min(self._limit, SMALL)
        self.seen += size
        self.low = min([self.low, *(low + 0.0 for _, _, low, _ in runs)])
        self.high = max([self.high, *(high + 0.0 for _, _, _, high in runs)])
        if self._histogram is not None or self.seen > limit:
            _count_runs(self._spill(), runs)
            return
        for values, truth, low, high in runs:
            kept = (values.copy(), None if truth is None else truth.copy()) if copy else (values, truth)
            self._kept.append((*kept, low, high))
        if len(self._kept) > _PARTS:
            self._kept = [(*_joined(self._kept), self.low, self.high)]

    def _spill(self) -> CoarseHistogram:
        """Count what was kept, and return the histogram."""
        if self._histogram is None:
            self._histogram = CoarseHistogram()
            _count_runs(self._histogram, self._kept)
            self._kept = []
        return self._histogram

    def table(self, *, exact: bool) -> Table:
        """Return one bin per distinct value, where all of them are here, or bins 2^16 keys wide."""
        low, high = key_of(self.low), key_of(self.high)
        if not exact:
            histogram = self._histogram
            if histogram is None:
                histogram = CoarseHistogram()
                _count_runs(histogram, self._kept)
            return histogram.table(low=low, high=high)
        values, truth = _joined([(np.zeros(0, np.float32), None, 0.0, 0.0), *self._kept])
        keys = ordered_keys(merge_zeros(values))
        return table_of_keys(keys, keys[truth], low=low, high=high)

    def counted(self) -> Counted:
        """Return the counts; raises the first thing that is wrong."""
        if self._error is not None:
            raise self._error
        if self._faults:
            raise _first_fault(self._faults)
        table = self.table(exact=self.is_exact)
        return Counted(table, self.labelled, is_exact=self.is_exact, is_wide=self.is_wide, dropped=self.dropped)


def _joined(runs: Sequence[_Run]) -> tuple[Floats, Flags]:
    """Return all values and flags; what has no ground truth counts as normal."""
    truths = [np.zeros(values.size, np.bool_) if truth is None else truth for values, truth, *_ in runs]
    return np.concatenate([values for values, *_ in runs]), np.concatenate(truths)


def _count_runs(histogram: CoarseHistogram, runs: Sequence[_Run]) -> None:
    for values, truth, low, high in runs:
        histogram.add(values, truth, low=low, high=high)


def _merged(one: Fault | None, other: Fault) -> Fault:
    """Return the illegal elements of two parts of one array; neither is changed, since tasks may run again."""
    if one is None:
        return other
    first = min(one, other, key=lambda fault: fault.position)
    return dataclasses.replace(first, count=one.count + other.count)


@dataclass(frozen=True, slots=True)
class Count:
    """The first pass over a level."""

    nonfinite: Nonfinite  # what is done with values that are not finite
    carried: int | None = None  # up to so many values of a part travel as they are, so that a small whole needs no more

    def run(self, part: Part) -> Tally:
        """Return the tally of a part."""
        tally = Tally(number=part.number, limit=self.carried)
        tally.count(part.blocks, nonfinite=self.nonfinite)
        tally.states = part.states
        return tally

    def add(self, answers: Sequence[Tally]) -> Tally:
        """Return the tally of parts that follow each other."""
        total = Tally()
        for answer in answers:
            total.merge(answer)
        return total
