"""The tally of a level: exact counts, and what is wrong with the values; those of parts add up to that of the whole."""

import dataclasses
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from postproc_export.calibration.arrays import CHOOSE_LABEL, AnyArray, Block, Place, check_labelled
from postproc_export.calibration.counting import (
    CoarseHistogram,
    Divide,
    Part,
    Passes,
    Truth,
    Values,
    as_flags,
    is_wide,
    places_of,
    table_of_keys,
    to_float32_array,
)
from postproc_export.calibration.table import Flags, Floats, Table, key_of, merge_zeros, ordered_keys
from postproc_export.errors import CalibrationError, FileError, PostprocError
from postproc_export.run_options import Nonfinite


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

    Raises a CalibrationError of what is not finite or not 0/1 at the end of its array, with how many there are.
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
        rows = (f"{place.truth_key} is not 0/1", "0 (normal) or 1 (anomalous)", _advice(place, raw))
        faults.setdefault("truth", Fault(place, *rows, True)).note(block, np.flatnonzero((raw != 0) & (raw != 1)))
    low, high = float(values.min()), float(values.max())
    if np.isfinite(low) and np.isfinite(high):
        return Chunk(values, truth, low, high, 0, block.values)
    finite = np.isfinite(values)
    if nonfinite == "error":
        fix = "correct the model, or leave such values out with --nonfinite drop"
        rows = (f"{place.key} has values that are not finite as float32", "finite values", fix)
        faults.setdefault("values", Fault(place, *rows, False)).note(block, np.flatnonzero(~finite))
        return None
    kept, dropped = values[finite], int(values.size - finite.sum())
    low, high = (float(kept.min()), float(kept.max())) if kept.size else (np.inf, -np.inf)
    return Chunk(kept, None if truth is None else truth[finite], low, high, dropped, block.values[finite])


def _advice(place: Place, truth: AnyArray) -> str:
    """Return what makes 0/1 of ground truth that is something else; -1 and 1 are told by what they look like."""
    is_signed, is_missing = bool(np.isin(truth, (-1, 1)).all()), bool(np.any(truth != truth))
    if is_missing:
        return f"fill the gaps in {place.truth_key}, or leave these values out"
    if "label" not in place.truth_key:
        return "write 1 where -1 (or 1) is anomalous: masks == -1 (or 1)" if is_signed else "compare it with 0 first"
    if is_signed:
        return (
            "scikit-learn has -1 for outliers and 1 for what is normal: --anomalous-label -1; "
            "where 1 is the anomaly: --anomalous-label 1"
        )
    return CHOOSE_LABEL


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
    keys: Table | None = None  # one bin per distinct value, where the first pass counted these beside wider ones

    def passes(self, values: Values) -> Values:
        """Return the later passes over the values, which are answered from their counts where that can be."""
        keys = self.keys
        if keys is None:
            return values
        return lambda work: work.among(keys) if isinstance(work, Divide) else values(work)

    @property
    def seen(self) -> int:
        """All values that were counted."""
        return self.table.n_normal + self.table.n_anomalous


class Tally:
    """Exact counts of one level in constant memory, and what is wrong first; parts in order merge to the whole."""

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

    def count(self, blocks: Iterable[Block], *, nonfinite: Nonfinite) -> None:
        """Count raw blocks up to the first array that is not legal, or cannot be read; `counted` raises why."""
        try:
            for chunk in _examine(self._alike(blocks), self._faults, nonfinite=nonfinite):
                self.add(chunk, copy=False)
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

    def add(self, chunk: Chunk, *, copy: bool = True) -> None:
        """Count one checked chunk; as a copy where its arrays may be used again."""
        self.dropped += chunk.dropped
        self.is_wide |= is_wide(chunk.original.dtype)
        if self.labelled is None:
            self.labelled = chunk.truth is not None
        if chunk.values.size:
            self._take([(chunk.values, chunk.truth, chunk.low, chunk.high)], chunk.values.size, copy=copy)

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
            if other._number == self._number:  # another part of the same array
                self._error = other._error
                for kind, fault in other._faults.items():  # neither is changed, since tasks may run again
                    before = self._faults.get(kind)
                    if before is not None:
                        first = min(before, fault, key=lambda each: each.position)
                        fault = dataclasses.replace(first, count=before.count + fault.count)
                    self._faults[kind] = fault
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
        return table_of_keys(keys, keys[places_of(truth)], low=low, high=high)

    def counted(self) -> Counted:
        """Return the counts; raises the first thing that is wrong."""
        if self._error is not None:
            raise self._error
        if self._faults:
            raise _first_fault(self._faults)
        is_exact = self._histogram is None  # all values are here
        table, ends = self.table(exact=is_exact), {"low": key_of(self.low), "high": key_of(self.high)}
        keys = None if self._histogram is None else self._histogram.exact_table(**ends)
        return Counted(table, self.labelled, is_exact=is_exact, is_wide=self.is_wide, dropped=self.dropped, keys=keys)


def _joined(runs: Sequence[_Run]) -> tuple[Floats, Flags]:
    """Return all values and flags; what has no ground truth counts as normal."""
    truths = [np.zeros(values.size, np.bool_) if truth is None else truth for values, truth, *_ in runs]
    return np.concatenate([values for values, *_ in runs]), np.concatenate(truths)


def _count_runs(histogram: CoarseHistogram, runs: Sequence[_Run]) -> None:
    for values, truth, low, high in runs:
        histogram.add(values, truth, low=low, high=high)


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


SPOOLED: Final = 1 << 18  # values that are kept together at most
_WHOLE: Final = 4  # runs of this part of them at least are kept as they come
IN_MEMORY: Final = 1 << 26  # bytes of values that stay in memory, of both levels together
_PAGE: Final = 1 << 12


class Room:
    """The memory of the spools of a calibrator, which costs a quarter of what a file does.

    It is one piece, which the system gives by large pages as it is filled: by small ones it would cost as much.
    """

    def __init__(self, size: int | None = None) -> None:
        self._free = np.empty(IN_MEMORY if size is None else size, dtype=np.uint8)

    def __reduce__(self) -> tuple[type[Self], tuple[int]]:
        return type(self), (self._free.size,)

    def copy(self, values: AnyArray) -> AnyArray | None:
        """Return a copy of a flat run of values; None where there is no room for it."""
        if values.nbytes > self._free.size:
            return None
        held: AnyArray = self._free[: values.nbytes].view(values.dtype)
        held[:] = values
        self._free = self._free[-(-values.nbytes // 8) * 8 :]  # where a value of any type may start
        return held


class Spool:
    """Values and ground truth in the order they came; the file has no name, so it is gone when the process is.

    float32 values take 4.1 bytes each, wider types 8.1: they are kept as they came, since rounding to float32 may merge
    values.
    """

    def __init__(self, folder: Path | None, room: Room) -> None:
        self._folder, self._room = folder, room
        self._full: list[tuple[AnyArray, AnyArray]] = []
        self._index: list[tuple[int, int, str]] = []
        self._end = 0
        self._file: IO[bytes] | None = None
        self._values: AnyArray = np.empty(0, dtype=np.float32)  # of small runs, until they are many
        self._truth: Flags = np.empty(0, dtype=np.bool_)
        self._held = 0

    @property
    def on_disk(self) -> bool:
        """Whether some of the values are in the temporary file."""
        return self._file is not None

    def append(self, values: AnyArray, truth: Flags | None) -> None:
        """Keep a flat run of values, float32 or float64."""
        truth = np.zeros(values.size, dtype=np.bool_) if truth is None else truth
        for start in range(0, values.size, SPOOLED):
            self._append(values[start : start + SPOOLED], truth[start : start + SPOOLED])

    def _append(self, values: AnyArray, truth: Flags) -> None:
        end, is_whole = self._held + values.size, values.size * _WHOLE >= SPOOLED
        if is_whole or end > SPOOLED or values.dtype != self._values.dtype:
            self._seal()
            end = values.size
        if is_whole:
            self._keep(values, truth)
            return
        if values.dtype != self._values.dtype or not self._values.size:
            self._values, self._truth = np.empty(SPOOLED, dtype=values.dtype), np.empty(SPOOLED, dtype=np.bool_)
        self._values[self._held : end], self._truth[self._held : end] = values, truth
        self._held = end

    def _seal(self) -> None:
        if self._held:
            self._keep(self._values[: self._held], self._truth[: self._held])
            self._held = 0

    def _keep(self, values: AnyArray, truth: Flags) -> None:
        packed = np.packbits(truth)
        copy = None if self.on_disk else self._room.copy(values)  # what comes later stands behind
        if copy is None:
            self._write(values, packed)
        else:
            self._full.append((copy, packed))

    def _write(self, values: AnyArray, packed: AnyArray) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - lives as long as the spool
                weakref.finalize(self, self._file.close)
            start = end = -(-self._end // _PAGE) * _PAGE  # whole pages are written faster
            for part in (values.data.cast("B"), packed.data.cast("B")):
                done = 0
                while done < len(part):
                    done += os.pwrite(self._file.fileno(), part[done:], end + done)
                end += done
        except OSError as error:
            raise FileError(
                f"the spool in {self._folder or tempfile.gettempdir()} cannot be written: {error.strerror}",
                found=f"{self._end} bytes written so far",
                needed="4.1 bytes per value (8.1 for float64)",
                fix="give a folder with more room (spool_dir=), calibrate from files, or use exact=False",
            ) from error
        self._index.append((start, values.size, values.dtype.str))
        self._end = end

    def blocks(self, *, labelled: bool) -> Iterator[Block]:
        """Yield everything that was appended; may be called again and again, and between appends."""
        place = Place("the calibrator", "values", "truth", (1,))
        on_disk = (self._read(offset, size, np.dtype(dtype)) for offset, size, dtype in self._index)
        for values, packed in chain(self._full, on_disk):
            yield Block(values, np.unpackbits(packed, count=values.size).view(np.bool_) if labelled else None, place, 0)
        if self._held:
            yield Block(self._values[: self._held], self._truth[: self._held] if labelled else None, place, 0)

    def _read(self, offset: int, size: int, dtype: "np.dtype[Any]") -> tuple[AnyArray, AnyArray]:
        assert self._file is not None, "the index is empty without a file"
        values_bytes, packed_bytes = size * dtype.itemsize, -(-size // 8)
        raw = np.empty(values_bytes + packed_bytes, dtype=np.uint8)
        done = 0
        while done < raw.size:
            step = os.preadv(self._file.fileno(), [raw.data[done:]], offset + done)
            if step == 0:
                raise FileError("the spool file of the calibrator was truncated", fix="calibrate again")
            done += step
        return raw[:values_bytes].view(dtype), raw[values_bytes:]

    def close(self) -> None:
        """Forget everything and give the disk space back."""
        if self._file is not None:
            self._file.close()
        self.__init__(self._folder, self._room)  # type: ignore[misc]


class LevelState:
    """What a `Calibrator` has seen of one level: a tally, and the values to be read again."""

    def __init__(self, spool: Spool | None) -> None:
        self.tally = Tally()
        self.spool = spool
        self.is_broken = False

    def absorb(self, chunks: Iterable[Chunk]) -> None:
        """Count checked chunks and keep their values."""
        self.is_broken = True  # until all of it is kept: after a full disk the spool and the counts disagree
        for chunk in chunks:
            if self.spool is not None:
                values: AnyArray = chunk.values
                if is_wide(chunk.original.dtype):  # as they came, so that merged values can be noticed
                    wide = chunk.original.astype(np.float64)
                    values = wide if np.array_equal(to_float32_array(wide), chunk.values) else values
                self.spool.append(values, chunk.truth)
            self.tally.add(chunk)
        self.is_broken = False

    def merge(self, other: "LevelState") -> None:
        """Take over the values and counts of another level."""
        self.is_broken = True
        if self.spool is not None and other.spool is not None:
            for block in other.spool.blocks(labelled=True):
                self.spool.append(block.values, block.truth)
        self.tally.merge(other.tally)
        self.is_broken = False

    def passes(self) -> Passes:
        """Return the later passes over every value seen so far."""
        return Passes(self._read)

    def _read(self) -> Part:
        assert self.spool is not None, "a level without a spool is not read again"
        return Part(self.spool.blocks(labelled=bool(self.tally.labelled)))
