"""Where the threshold of a policy lies in a table, and the fewest passes over the source that find it."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from math import ceil, floor, isfinite
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from postproc_export.calibration.counting import Divide, Indices, Values
from postproc_export.calibration.table import Counts, Flags, Keys, Table, from_the_top, key_of, value_of
from postproc_export.errors import CalibrationError
from postproc_export.float32 import LARGEST, nearest, next_up
from postproc_export.policies import Policy, Range

# Where the threshold of a policy lies in a table: found, or which bins have to be looked into.
#
# A search is a pure function of a table. It returns `Found` when the bins that matter hold one value each, the indices
# of the bins to divide (the most promising first), or None where no threshold keeps to the policy. Floats only rule
# out; what is left is decided by Python integers.

MARGIN: Final = 2.0**-46  # above the worst error of `BestRatio.scores`, eight roundings of 2^-53
_INT64: Final = 2**62
_AT_ONCE: Final = 1 << 16  # Python integers take ten times the memory of an array's


@dataclass(frozen=True, slots=True)
class Found:
    """A threshold: its ordered key, and the true and false positives of the decision there."""

    key: int
    tp: int
    fp: int

    @classmethod
    def at(cls, table: Table, index: int) -> "Found":
        """Return the threshold at the lowest value of a bin."""
        return cls(int(table.starts[index]), int(table.tp[index]), int(table.fp[index]))

    @property
    def precision(self) -> float:
        """The share of true positives; there must be a positive."""
        return self.tp / (self.tp + self.fp)


Outcome = Found | Indices | None
Search = Callable[[Table], Outcome]


class BestRatio:
    """Finds the highest TP / (v (TP + FP) + u P), of equal ones the lowest threshold; P counts all anomalous values.

    u = v = 1 is F1, u/v = B^2 is F-beta, u = 0 is precision. The best is always at an anomalous value: from a normal
    one up to the next anomalous one TP stays and FP falls.
    """

    def __init__(self, u: int, v: int) -> None:
        self._u, self._v = u, v

    @classmethod
    def of(cls, policy: Policy) -> Self:
        """Return the search of `f1` or `fbeta=B`."""
        weight = policy.parameter * policy.parameter
        return cls(weight.numerator, weight.denominator)

    def scores(self, tp: Counts, fp: Counts, *, positives: int | Counts) -> NDArray[np.float64]:
        """Return the ratio times v, in float64, within 2^-46 of the exact one."""
        ratio = tp.astype(np.float64)
        ratio += fp
        ratio += float(Fraction(self._u, self._v)) * positives
        return np.divide(tp, ratio, out=ratio)

    def upper(self, table: Table) -> NDArray[np.float64]:
        """Return the best that each bin with an anomalous value could hold: all of these at its top."""
        bins = table.positives
        return self.scores(table.tp[bins], table.fp[bins] - table.normal[bins], positives=table.n_anomalous)

    def hopeful(self, table: Table, upper: NDArray[np.float64]) -> Flags:
        """Return which of them could reach the best of the thresholds whose counts are known: each bin's lowest."""
        bins = table.positives
        attained = float(self.scores(table.tp[bins], table.fp[bins], positives=table.n_anomalous).max())
        flags: Flags = upper >= attained * (1 - MARGIN)
        return flags

    def __call__(self, table: Table) -> Outcome:
        """Answer, or want the open bins that could reach the best attained."""
        upper = self.upper(table)
        hopeful = self.hopeful(table, upper)
        near, upper = table.positives[hopeful], upper[hopeful]
        is_open = table.widths[near] > 0
        if is_open.any():
            return near[is_open][np.argsort(-upper[is_open], kind="stable")]
        best = self.best(near, table.starts, table.tp, table.fp, positives=table.n_anomalous)
        assert best is not None, "the table has an anomalous value"
        return best

    def best(self, near: Indices, keys: Keys, tp: Counts, fp: Counts, *, positives: int) -> Found | None:
        """Return the exact best of some candidates, in ascending order of their keys."""
        best: Found | None = None
        for start in range(0, near.size, _AT_ONCE):
            part = near[start : start + _AT_ONCE]
            for key, true, false in zip(keys[part].tolist(), tp[part].tolist(), fp[part].tolist(), strict=True):
                candidate = Found(key, true, false)
                if best is None or self.comes_first(candidate, best, positives=positives):
                    best = candidate
        return best

    def comes_first(self, one: Found, other: Found, *, positives: int) -> bool:
        """Whether one candidate's ratio is above another's, by exact integers, or equal and its threshold lower."""
        below_one, below_other = (self._v * (each.tp + each.fp) + self._u * positives for each in (one, other))
        left, right = one.tp * below_other, other.tp * below_one
        return left > right or (left == right and one.key < other.key)


class LowestPrecise:
    """Finds the lowest observed threshold with precision >= a / b."""

    def __init__(self, ratio: Fraction) -> None:
        self._gain, self._loss = ratio.denominator - ratio.numerator, ratio.numerator

    def keeps(self, tp: Counts, fp: Counts) -> Flags:
        """Whether TP / (TP + FP) >= a / b, exactly: TP (b - a) >= a FP."""
        gain, loss = self._gain, self._loss
        if max(int(tp.max(initial=1)) * gain, int(fp.max(initial=1)) * loss) < _INT64:
            flags: Flags = tp * gain >= fp * loss
            return flags
        return np.array(
            [true * gain >= false * loss for true, false in zip(tp.tolist(), fp.tolist(), strict=True)], dtype=np.bool_
        )

    def __call__(self, table: Table) -> Outcome:
        """Answer, or want the open bins up to the lowest one whose lowest value keeps to it, lowest first."""
        attained = np.flatnonzero(self.keeps(table.tp, table.fp))
        last = int(attained[0]) if attained.size else len(table) - 1
        # a bin without anomalous values has a false positive at least
        possible = self.keeps(table.tp, table.fp_above + (table.anomalous == 0))
        undecided = np.flatnonzero((possible & (table.widths > 0))[: last + 1])
        if undecided.size:
            return undecided
        return Found.at(table, last) if attained.size else None


def ranked(table: Table, *, counts: str, rank: int) -> Outcome:
    """Find the value of one class, `tp` or `fp`, with that rank from the top, from 1; 0 is the highest value of all."""
    return _only(table, _bin_of_rank(rank, getattr(table, counts)) if rank else len(table) - 1)


def lowest_with_false_positives(table: Table, *, allowed: int) -> Outcome:
    """Find the lowest observed threshold with at most so many false positives; above all values the next float32."""
    if allowed >= table.n_normal:
        return _only(table, 0)
    refused = _bin_of_rank(allowed + 1, table.fp)
    if table.widths[refused] > 0:  # want the bin of the first normal value too many and the bin above it
        both = np.arange(refused, min(refused + 2, len(table)))
        return both[table.widths[both] > 0]
    if refused + 1 == len(table):
        above = next_up(value_of(table.high))
        return Found(key_of(above), 0, 0) if above <= LARGEST else None
    return _only(table, refused + 1)


def counts_at(table: Table, *, key: int) -> Outcome:
    """Find the counts at a given threshold, observed or not; want the bin that it divides."""
    if key > table.high:
        return Found(key, 0, 0)
    if key <= table.low:
        return Found(key, int(table.tp[0]), int(table.fp[0]))
    index = int(np.searchsorted(table.starts, key, side="right")) - 1
    start = int(table.starts[index])
    if start < key < start + (1 << int(table.widths[index])):
        return np.array([index])
    above = index if key == start else index + 1
    if above == len(table):
        return Found(key, 0, 0)
    return Found(key, int(table.tp[above]), int(table.fp[above]))


def quantile_of_all(table: Table, *, share: Fraction) -> Outcome:
    """Find the inverted-CDF quantile of all values; the lowest and the highest are known without a look into bins."""
    total = table.n_normal + table.n_anomalous
    rank = max(1, ceil(share * total))
    index = _bin_of_rank(total + 1 - rank, table.tp, table.fp)
    known = {total: table.high, 1: table.low}
    if rank not in known and table.widths[index] > 0:
        return np.array([index])
    found = Found.at(table, index)
    return replace(found, key=known.get(rank, max(found.key, table.low)))


def fixed(table: Table, *, policy: Policy, shares: Sequence[Fraction]) -> Outcome:
    """Find the counts at a threshold that quantiles of all values tell; want the bins that these divide, then its own.

    It is nowhere where it is no finite float32.
    """
    ends = [quantile_of_all(table, share=share) for share in shares]
    wanted = [end for end in ends if isinstance(end, np.ndarray)]
    if wanted:
        return np.concatenate(wanted)
    threshold = fixed_threshold(policy, [value_of(end.key) for end in ends if isinstance(end, Found)])
    return counts_at(table, key=key_of(threshold)) if isfinite(threshold) else None


def _only(table: Table, index: int) -> Outcome:
    return np.array([index]) if table.widths[index] > 0 else Found.at(table, index)


def _bin_of_rank(rank: int, *at_or_above: Counts) -> int:
    """Return the highest bin at or above whose lowest value lie `rank` values of one class, or of both."""
    bins = range(at_or_above[0].size)
    return bisect_left(bins, True, key=lambda index: sum(int(counts[index]) for counts in at_or_above) < rank) - 1


def ends_of(spread: Range) -> list[Search]:
    """Return the searches for the lower and the upper end of a range."""
    return [partial(quantile_of_all, share=share) for share in spread.shares]


def search_for(policy: Policy, table: Table, spread: Range) -> tuple[Search, str]:
    """Return the search for a policy's threshold, and the rule it follows: the policy's text, or a one-class rule.

    Where a class that the policy needs is missing, the one-class rule decides: the highest value of only normal
    samples, the lowest of only anomalous ones. `fpr` and `quantile` need normal samples only, `recall` anomalous ones
    only.
    """
    counts = {"normal": table.n_normal, "anomalous": table.n_anomalous}
    if not all(counts[needed] for needed in policy.needs):
        if not table.n_anomalous:
            return partial(counts_at, key=table.high), "only_normal"
        return partial(counts_at, key=table.low), "only_anomalous"
    return _search(policy, table, spread), policy.text


def _search(policy: Policy, table: Table, spread: Range) -> Search:
    number = policy.parameter
    match policy.kind:
        case "f1" | "fbeta":
            return BestRatio.of(policy)
        case "recall":
            return partial(ranked, counts="tp", rank=ceil(number * table.n_anomalous))
        case "precision":
            return LowestPrecise(number)
        case "fpr":
            return partial(lowest_with_false_positives, allowed=floor(number * table.n_normal))
        case "quantile":
            return partial(ranked, counts="fp", rank=table.n_normal + 1 - max(1, ceil(number * table.n_normal)))
        case "value" | "range" | "percentile":
            return partial(fixed, policy=policy, shares=shares_of(policy, spread))


def shares_of(policy: Policy, spread: Range) -> tuple[Fraction, ...]:
    """Return the quantiles of all values from which the threshold of a policy follows that looks at no truth."""
    return {"range": spread.shares, "percentile": (policy.parameter,)}.get(policy.kind, ())


def fixed_threshold(policy: Policy, quantiles: Sequence[float]) -> float:
    """Return the threshold of `value=T`, `range=U` or `percentile=Q` for its quantiles, rounded once to float32.

    It is infinite where it is beyond the largest float32.
    """
    exact, ends = policy.parameter, [*map(Fraction, quantiles)]
    if policy.kind == "range":
        exact = ends[0] + policy.parameter * (ends[1] - ends[0])
    elif policy.kind == "percentile":
        exact = ends[0] * policy.factor
    return nearest(exact)


# Driving the searches: the fewest passes over the source in bounded memory.
#
# All searches share one table. A pass divides the bins that they want: fully where they are few, else by 8 bits.
# Where the table would outgrow its limit (scores that all reach nearly the same ratio), what is left is settled in
# batches by descending bound: memory stays bounded, the number of passes does not.

MAX_BINS: Final = 1 << 19
FULL_BINS: Final = 16
CELLS: Final = 1 << 20
COLLECTED: Final = 1 << 20
_SHARPENED: Final = 1 << 23  # values for which a pass that only sharpens the areas costs little


def answer(searches: Sequence[Search], table: Table, *, values: Values) -> tuple[list[Outcome], Table]:
    """Answer every search, dividing bins of the first pass' table; it comes back, too, as it stands at the end."""
    while True:
        outcomes = [search(table) for search in searches]
        wanted = [outcome for outcome in outcomes if isinstance(outcome, np.ndarray)]
        if not wanted:
            return outcomes, table
        plan = _plan(table, wanted)
        if plan is None:
            settled = zip(searches, outcomes, strict=True)
            return [_settle(search, outcome, table, values=values) for search, outcome in settled], table
        chosen, bits = plan
        table = table.replace(chosen, _divided(table, chosen, bits, values=values))


def sharpen(table: Table, *, values: Values) -> Table:
    """Resolve the bins that blur the areas under the curves where one more pass can hold them all.

    Where it cannot but the data is small, the bins are divided by 8 bits at least. Bins scattered among most of a large
    data set stay as they are: looking for their few values would cost as much as all passes before.
    """
    total = table.n_normal + table.n_anomalous
    for width in (16, 8):
        blurred = np.flatnonzero((table.anomalous > 0) & (table.widths == width))
        held = _held(table, blurred)
        between = _held(table, np.arange(blurred[0], blurred[-1] + 1)) if blurred.size else 0
        is_cheap = total <= _SHARPENED or between <= total // 4
        if blurred.size and is_cheap and held <= min(COLLECTED, MAX_BINS - len(table)):
            table = table.replace(blurred, _divided(table, blurred, 0, values=values))
    blurred = np.flatnonzero((table.anomalous > 0) & (table.widths == 16))
    if blurred.size and total <= _SHARPENED and blurred.size <= CELLS >> 8 and _fits(table, blurred, cells=1 << 8):
        table = table.replace(blurred, _divided(table, blurred, 8, values=values))
    return table


def _held(table: Table, bins: Indices) -> int:
    return int(table.normal[bins].sum()) + int(table.anomalous[bins].sum())


def _plan(table: Table, wanted: Sequence[Indices]) -> tuple[Indices, int] | None:
    """Return which bins of one width to divide in the next pass, ascending, and by how many bits.

    0 bits: collect and sort, where few values are left. None: the table has no room for what is wanted.
    """
    order = np.concatenate(wanted)
    order = order[np.sort(np.unique(order, return_index=True)[1])]
    coarse = order[table.widths[order] == 16]
    same = coarse if coarse.size else order
    if _held(table, same) <= min(COLLECTED, MAX_BINS - len(table)):
        return np.sort(same), 0
    if 0 < coarse.size <= FULL_BINS and _fits(table, coarse, cells=1 << 16):
        return np.sort(coarse), 16
    chosen = same[: CELLS >> 8]
    return (np.sort(chosen), 8) if _fits(table, chosen, cells=1 << 8) else None


def _fits(table: Table, chosen: Indices, *, cells: int) -> bool:
    values = np.minimum(table.normal[chosen], cells) + np.minimum(table.anomalous[chosen], cells)
    return len(table) + int(np.minimum(values, cells).sum()) <= MAX_BINS


def _divided(table: Table, chosen: Indices, bits: int, *, values: Values) -> Table:
    """Return the finer bins of some of a table's; refuses a source that gives other values than in the first pass."""
    finer: Table = values(Divide.of(table, chosen, bits=bits))
    parents = np.searchsorted(table.starts[chosen], finer.starts, side="right") - 1
    for before, after in ((table.normal, finer.normal), (table.anomalous, finer.anomalous)):
        found = np.zeros(chosen.size, dtype=np.int64)
        np.add.at(found, parents, after)
        if not np.array_equal(found, before[chosen]):
            raise CalibrationError(
                "the source changed between two passes over it",
                found=f"{int(found.sum())} values where the first pass counted {int(before[chosen].sum())}",
                needed="the same values in every pass",
                fix="calibrate again when nothing writes to the source any more",
            )
    return finer


def _settle(search: Search, outcome: Outcome, table: Table, *, values: Values) -> Outcome:
    if isinstance(search, BestRatio) and isinstance(outcome, np.ndarray):
        return _settle_best(search, outcome, table, values=values)
    if isinstance(search, LowestPrecise) and isinstance(outcome, np.ndarray):
        return _settle_precise(search, outcome, table, values=values)
    while isinstance(outcome, np.ndarray):  # the others want one or two bins at a time
        finer, _, _ = _resolve(table, outcome[:1], values=values)
        table = table.replace(outcome[:1], finer)
        outcome = search(table)
    return outcome


def _settle_best(search: BestRatio, bins: Indices, table: Table, *, values: Values) -> Outcome:
    positives, upper = table.n_anomalous, search.upper(table)
    decided = table.positives[search.hopeful(table, upper)]
    decided = decided[table.widths[decided] == 0]
    best = search.best(decided, table.starts, table.tp, table.fp, positives=positives)
    while bins.size:
        batch, bins = _batch(table, bins)
        new = _best_of_batch(search, batch, table, values=values)
        if new is not None and (best is None or search.comes_first(new, best, positives=positives)):
            best = new
        if best is not None:
            reached = float(search.scores(np.array([best.tp]), np.array([best.fp]), positives=positives)[0])
            bins = bins[upper[np.searchsorted(table.positives, bins)] >= reached * (1 - MARGIN)]
    assert best is not None, "a bin that could hold the best holds an anomalous value"
    return best


def _best_of_batch(search: BestRatio, batch: Indices, table: Table, *, values: Values) -> Found | None:
    """Return the best of some bins; a function of its own, so that one batch is forgotten before the next is read."""
    finer, tp, fp = _resolve(table, batch, values=values)
    scores = search.scores(tp, fp, positives=table.n_anomalous)
    near = np.flatnonzero((finer.anomalous > 0) & (scores >= scores.max(initial=0.0) * (1 - MARGIN)))
    return search.best(near, finer.starts, tp, fp, positives=table.n_anomalous)


def _settle_precise(search: LowestPrecise, bins: Indices, table: Table, *, values: Values) -> Outcome:
    while bins.size:
        batch, bins = _batch(table, bins)
        finer, tp, fp = _resolve(table, batch, values=values)
        reached = np.flatnonzero(search.keeps(tp, fp))
        if reached.size:
            first = int(reached[0])
            return Found(int(finer.starts[first]), int(tp[first]), int(fp[first]))
    attained = np.flatnonzero(search.keeps(table.tp, table.fp) & (table.widths == 0))
    return Found.at(table, int(attained[0])) if attained.size else None


def _batch(table: Table, bins: Indices) -> tuple[Indices, Indices]:
    """Take the first bins of one width that one pass can resolve, and return the rest too."""
    width = int(table.widths[bins[0]])
    same = int(np.argmax(table.widths[bins] != width)) or bins.size
    held = np.cumsum(table.normal[bins[:same]] + table.anomalous[bins[:same]])
    size = max(int(np.searchsorted(held, COLLECTED, side="right")), min(same, CELLS >> width), 1)
    return bins[:size], bins[size:]


def _resolve(table: Table, batch: Indices, *, values: Values) -> tuple[Table, Counts, Counts]:
    """Return every distinct value of the batch's bins, with true and false positives of a threshold there."""
    chosen = np.sort(batch)
    bits = 0 if _held(table, chosen) <= COLLECTED else int(table.widths[chosen[0]])
    finer = _divided(table, chosen, bits, values=values)
    first = np.searchsorted(finer.starts, table.starts[chosen])  # of the values of each bin, which has one at least
    held = np.diff(first, append=len(finer))
    tp, fp = from_the_top(finer.anomalous), from_the_top(finer.normal)
    for counts, before in ((tp, table.tp), (fp, table.fp)):  # what lies above a bin in the table, but not in `finer`
        counts += np.repeat(before[chosen] - counts[first], held)
    return finer, tp, fp
