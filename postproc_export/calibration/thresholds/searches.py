"""Where the threshold of a policy lies in a table: found, or which bins have to be looked into.

A search is a pure question to a table. It answers `Found` when the bins that matter hold one value each, `Wanted` with
the bins to divide (the most promising first), or `Unreachable`. Floats only rule out; what is left is decided by Python
integers.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from postproc_export.calibration.counting.locator import Indices
from postproc_export.calibration.counting.ordered import Counts, Flags, key_of, value_of
from postproc_export.calibration.counting.table import Table
from postproc_export.calibration.thresholds.policies import Class
from postproc_export.float32 import LARGEST, next_up

MARGIN: Final = 2.0**-46  # above the worst error of `BestRatio.scores`, eight roundings of 2^-53
_INT64: Final = 2**62
_AT_ONCE: Final = 1 << 16  # Python integers take ten times the memory of an array's


@dataclass(frozen=True, slots=True)
class Found:
    """A threshold: its ordered key, and the true and false positives of the decision there."""

    key: int
    tp: int
    fp: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """Indices of the bins that have to be divided, the most promising first."""

    bins: Indices


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No threshold keeps to the policy."""


Outcome = Found | Wanted | Unreachable


class Search(Protocol):
    """A question to a table."""

    def step(self, table: Table) -> Outcome:
        """Answer, or say which bins to divide."""
        ...


def found_at(table: Table, index: int) -> Found:
    """Return the threshold at the lowest value of a bin."""
    return Found(int(table.starts[index]), int(table.tp[index]), int(table.fp[index]))


def _only(table: Table, index: int) -> Outcome:
    if table.widths[index] > 0:
        return Wanted(np.array([index]))
    return found_at(table, index)


@dataclass(frozen=True, slots=True)
class BestRatio:
    """The highest TP / (v (TP + FP) + u P), of equal ones the lowest threshold; P is the number of anomalous values.

    Notes
    -----
    u = v = 1 is F1, u/v = B^2 is F-beta, u = 0 is precision. The best is always at an anomalous value: from a normal
    one up to the next anomalous one TP stays and FP falls.
    """

    u: int
    v: int

    def scores(self, tp: Counts, fp: Counts, *, positives: int) -> NDArray[np.float64]:
        """Return the ratio times v, in float64, within 2^-46 of the exact one."""
        ratio: NDArray[np.float64] = tp / (tp.astype(np.float64) + fp + float(Fraction(self.u, self.v)) * positives)
        return ratio

    def upper(self, table: Table) -> NDArray[np.float64]:
        """Return the best that each bin could hold: all its anomalous values at its top; 0 without any."""
        with np.errstate(invalid="ignore"):  # 0 of 0 above bins without anomalous values
            highest = self.scores(table.tp, np.maximum(table.fp_above, 0), positives=table.n_anomalous)
        highest[table.anomalous == 0] = 0.0
        return highest

    def attained(self, table: Table) -> float:
        """Return the best of the thresholds whose counts are known: the lowest value of each bin."""
        return float(self.scores(table.tp, table.fp, positives=table.n_anomalous).max())

    def step(self, table: Table) -> Outcome:
        """Answer, or want the open bins that could reach the best attained."""
        upper = self.upper(table)
        hopeful = upper >= self.attained(table) * (1 - MARGIN)
        undecided = np.flatnonzero(hopeful & table.is_open)
        if undecided.size:
            return Wanted(undecided[np.argsort(-upper[undecided], kind="stable")])
        near = np.flatnonzero(hopeful & (table.anomalous > 0))
        best = self.best(table.starts[near], table.tp[near], table.fp[near], positives=table.n_anomalous)
        assert best is not None, "the table has an anomalous value"
        return best

    def best(self, keys: NDArray[np.uint32], tp: Counts, fp: Counts, *, positives: int) -> Found | None:
        """Return the exact best of candidates in ascending order of their keys."""
        best: Found | None = None
        for at in range(0, keys.size, _AT_ONCE):
            part = slice(at, at + _AT_ONCE)
            for key, true, false in zip(keys[part].tolist(), tp[part].tolist(), fp[part].tolist(), strict=True):
                candidate = Found(key, true, false)
                if best is None or self.is_better(candidate, best, positives=positives):
                    best = candidate
        return best

    def is_better(self, one: Found, other: Found, *, positives: int) -> bool:
        """Whether one candidate's ratio is above another's, by exact integers."""
        return one.tp * self._below(other, positives) > other.tp * self._below(one, positives)

    def _below(self, found: Found, positives: int) -> int:
        return self.v * (found.tp + found.fp) + self.u * positives


@dataclass(frozen=True, slots=True)
class LowestPrecise:
    """The lowest observed threshold with precision >= a / b."""

    ratio: Fraction

    def keeps(self, tp: Counts, fp: Counts) -> Flags:
        """Whether TP / (TP + FP) >= a / b, exactly: TP (b - a) >= a FP."""
        gain, loss = self.ratio.denominator - self.ratio.numerator, self.ratio.numerator
        if max(int(tp.max(initial=1)) * gain, int(fp.max(initial=1)) * loss) < _INT64:
            flags: Flags = tp * gain >= fp * loss
            return flags
        return np.array(
            [true * gain >= false * loss for true, false in zip(tp.tolist(), fp.tolist(), strict=True)], dtype=np.bool_
        )

    def possible(self, table: Table) -> Flags:
        """Bins that may hold such a threshold; one without anomalous values has a false positive at least."""
        return self.keeps(table.tp, table.fp_above + (table.anomalous == 0))

    def step(self, table: Table) -> Outcome:
        """Answer, or want the open bins up to the lowest one whose lowest value keeps to it, lowest first."""
        attained = np.flatnonzero(self.keeps(table.tp, table.fp))
        last = int(attained[0]) if attained.size else len(table) - 1
        undecided = np.flatnonzero((self.possible(table) & table.is_open)[: last + 1])
        if undecided.size:
            return Wanted(undecided)
        return found_at(table, last) if attained.size else Unreachable()


@dataclass(frozen=True, slots=True)
class Ranked:
    """The k-th highest value of one class, k from 1; k = 0 is the highest value of all."""

    of: Class
    rank: int

    def step(self, table: Table) -> Outcome:
        """Answer, or want the one bin that holds it."""
        if self.rank == 0:
            return _only(table, len(table) - 1)
        return _only(table, _bin_of_rank(table.fp if self.of == "normal" else table.tp, self.rank))


@dataclass(frozen=True, slots=True)
class LowestWithFalsePositives:
    """The lowest observed threshold with at most so many false positives; above all values the next finite float32."""

    allowed: int

    def step(self, table: Table) -> Outcome:
        """Answer, or want the bin of the first normal value too many and the bin above it."""
        if self.allowed >= table.n_normal:
            return _only(table, 0)
        refused = _bin_of_rank(table.fp, self.allowed + 1)
        if table.widths[refused] > 0:
            both = np.arange(refused, min(refused + 2, len(table)))
            return Wanted(both[table.widths[both] > 0])
        if refused + 1 == len(table):
            above = next_up(value_of(table.high))
            return Found(key_of(above), 0, 0) if above <= LARGEST else Unreachable()
        return _only(table, refused + 1)


@dataclass(frozen=True, slots=True)
class CountsAt:
    """The counts at a given threshold, observed or not."""

    key: int

    def step(self, table: Table) -> Outcome:
        """Answer, or want the bin that the threshold divides."""
        if self.key > table.high:
            return Found(self.key, 0, 0)
        if self.key <= table.low:
            return Found(self.key, int(table.tp[0]), int(table.fp[0]))
        index = int(np.searchsorted(table.starts, self.key, side="right")) - 1
        if self.key != int(table.starts[index]) and self.key < int(table.ends[index]):
            return Wanted(np.array([index]))
        above = index if self.key == int(table.starts[index]) else index + 1
        if above == len(table):
            return Found(self.key, 0, 0)
        return Found(self.key, int(table.tp[above]), int(table.fp[above]))


@dataclass(frozen=True, slots=True)
class Nowhere:
    """A threshold that no finite float32 is."""

    def step(self, table: Table) -> Outcome:
        """Answer that it cannot be reached."""
        return Unreachable()


def _bin_of_rank(at_or_above: Counts, rank: int) -> int:
    """Return the highest bin at or above whose lowest value lie `rank` values of the class."""
    return int(np.flatnonzero(at_or_above >= rank)[-1])
