"""Driving the searches: the fewest passes over the source in bounded memory.

All searches share one table. A pass divides the bins that they want: fully where they are few, else by 8 bits. Where
the table would outgrow its limit (scores that all reach nearly the same ratio), what is left is settled in batches by
descending bound: memory stays bounded, the number of passes does not.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from postproc_export.calibration.counting.locator import Indices
from postproc_export.calibration.counting.ordered import Counts, Flags
from postproc_export.calibration.counting.table import Table
from postproc_export.calibration.counting.values import Values
from postproc_export.calibration.thresholds.searches import (
    MARGIN,
    BestRatio,
    Found,
    LowestPrecise,
    Outcome,
    Search,
    Unreachable,
    Wanted,
)
from postproc_export.errors import CalibrationError

MAX_BINS: Final = 1 << 19
_FULL_BINS: Final = 16
_CELLS: Final = 1 << 20
_COLLECTED: Final = 1 << 20
_SHARPENED: Final = 1 << 23  # values for which a pass that only sharpens the areas costs little


def answer(searches: Sequence[Search], table: Table, *, values: Values) -> tuple[list[Outcome], Table]:
    """Answer every search, dividing bins pass by pass; the table as it stands at the end comes back too.

    Parameters
    ----------
    searches
        The questions.
    table
        The coarse table of the first pass.
    values
        All values of the level, to be counted again.

    Raises
    ------
    CalibrationError
        If the source gives other values than in the first pass.
    """
    while True:
        outcomes = [search.step(table) for search in searches]
        wanted = [outcome.bins for outcome in outcomes if isinstance(outcome, Wanted)]
        if not wanted:
            return outcomes, table
        plan = _plan(table, wanted)
        if plan is None:
            settled = zip(searches, outcomes, strict=True)
            return [_settle(search, outcome, table, values=values) for search, outcome in settled], table
        chosen, bits = plan
        finer = values.split(table, chosen, bits=bits) if bits else values.collect(table, chosen)
        _check_unchanged(table, chosen, finer)
        table = table.replace(chosen, finer)


def sharpen(table: Table, *, values: Values) -> Table:
    """Resolve the bins that blur the areas under the curves where one more pass can hold them all.

    Notes
    -----
    Where it cannot but the data is small, the bins are divided by 8 bits at least. Bins scattered among most of a large
    data set stay as they are: looking for their few values would cost as much as all passes before.
    """
    total = table.n_normal + table.n_anomalous
    for width in (16, 8):
        blurred = np.flatnonzero((table.anomalous > 0) & (table.widths == width))
        held = _held(table, blurred)
        between = _held(table, np.arange(blurred[0], blurred[-1] + 1)) if blurred.size else 0
        is_cheap = total <= _SHARPENED or between <= total // 4
        if blurred.size and is_cheap and held <= min(_COLLECTED, MAX_BINS - len(table)):
            finer = values.collect(table, blurred)
            _check_unchanged(table, blurred, finer)
            table = table.replace(blurred, finer)
    blurred = np.flatnonzero((table.anomalous > 0) & (table.widths == 16))
    if blurred.size and total <= _SHARPENED and blurred.size <= _CELLS >> 8 and _fits(table, blurred, cells=1 << 8):
        finer = values.split(table, blurred, bits=8)
        _check_unchanged(table, blurred, finer)
        table = table.replace(blurred, finer)
    return table


def _held(table: Table, bins: Indices) -> int:
    return int(table.normal[bins].sum()) + int(table.anomalous[bins].sum())


def _plan(table: Table, wanted: Sequence[Indices]) -> tuple[Indices, int] | None:
    """Return which bins of one width to divide in the next pass, ascending, and by how many bits.

    Notes
    -----
    0 bits: collect and sort, where few values are left. None: the table has no room for what is wanted.
    """
    order = np.concatenate(wanted)
    order = order[np.sort(np.unique(order, return_index=True)[1])]
    coarse = order[table.widths[order] == 16]
    same = coarse if coarse.size else order
    if _held(table, same) <= min(_COLLECTED, MAX_BINS - len(table)):
        return np.sort(same), 0
    if 0 < coarse.size <= _FULL_BINS and _fits(table, coarse, cells=1 << 16):
        return np.sort(coarse), 16
    chosen = same[: _CELLS >> 8]
    return (np.sort(chosen), 8) if _fits(table, chosen, cells=1 << 8) else None


def _fits(table: Table, chosen: Indices, *, cells: int) -> bool:
    values = np.minimum(table.normal[chosen], cells) + np.minimum(table.anomalous[chosen], cells)
    return len(table) + int(np.minimum(values, cells).sum()) <= MAX_BINS


def _check_unchanged(table: Table, chosen: Indices, finer: Table) -> None:
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


def _settle(search: Search, outcome: Outcome, table: Table, *, values: Values) -> Outcome:
    if not isinstance(outcome, Wanted):
        return outcome
    if isinstance(search, BestRatio):
        return _settle_best(search, outcome.bins, table, values=values)
    if isinstance(search, LowestPrecise):
        return _settle_precise(search, outcome.bins, table, values=values)
    while isinstance(outcome, Wanted):  # the others want one or two bins at a time
        finer, _, _ = _resolve(table, outcome.bins[:1], values=values)
        table = table.replace(outcome.bins[:1], finer)
        outcome = search.step(table)
    return outcome


def _settle_best(search: BestRatio, bins: Indices, table: Table, *, values: Values) -> Outcome:
    positives, upper = table.n_anomalous, search.upper(table)
    hopeful = upper >= search.attained(table) * (1 - MARGIN)
    decided = np.flatnonzero(hopeful & (table.widths == 0) & (table.anomalous > 0))
    best = search.best(table.starts[decided], table.tp[decided], table.fp[decided], positives=positives)
    while bins.size:
        batch, bins = _batch(table, bins)
        new = _best_of_batch(search, batch, table, values=values)
        if new is not None and (best is None or _comes_first(search, new, best, positives)):
            best = new
        if best is not None:
            reached = float(search.scores(np.array([best.tp]), np.array([best.fp]), positives=positives)[0])
            bins = bins[upper[bins] >= reached * (1 - MARGIN)]
    assert best is not None, "a bin that could hold the best holds an anomalous value"
    return best


def _best_of_batch(search: BestRatio, batch: Indices, table: Table, *, values: Values) -> Found | None:
    """Return the best of some bins; a function of its own, so that one batch is forgotten before the next is read."""
    finer, tp, fp = _resolve(table, batch, values=values)
    near = np.flatnonzero(_near_best(search, finer, tp, fp, table.n_anomalous))
    return search.best(finer.starts[near], tp[near], fp[near], positives=table.n_anomalous)


def _near_best(search: BestRatio, finer: Table, tp: Counts, fp: Counts, positives: int) -> Flags:
    scores = search.scores(tp, fp, positives=positives)
    near: Flags = (finer.anomalous > 0) & (scores >= scores.max(initial=0.0) * (1 - MARGIN))
    return near


def _comes_first(search: BestRatio, new: Found, best: Found, positives: int) -> bool:
    if search.is_better(new, best, positives=positives):
        return True
    return new.key < best.key and not search.is_better(best, new, positives=positives)


def _settle_precise(search: LowestPrecise, bins: Indices, table: Table, *, values: Values) -> Outcome:
    while bins.size:
        batch, bins = _batch(table, bins)
        finer, tp, fp = _resolve(table, batch, values=values)
        reached = np.flatnonzero(search.keeps(tp, fp))
        if reached.size:
            first = int(reached[0])
            return Found(int(finer.starts[first]), int(tp[first]), int(fp[first]))
    attained = np.flatnonzero(search.keeps(table.tp, table.fp) & (table.widths == 0))
    if not attained.size:
        return Unreachable()
    first = int(attained[0])
    return Found(int(table.starts[first]), int(table.tp[first]), int(table.fp[first]))


def _batch(table: Table, bins: Indices) -> tuple[Indices, Indices]:
    """Take the first bins of one width that one pass can resolve, and return the rest too."""
    width = int(table.widths[bins[0]])
    same = int(np.argmax(table.widths[bins] != width)) or bins.size
    held = np.cumsum(table.normal[bins[:same]] + table.anomalous[bins[:same]])
    size = max(int(np.searchsorted(held, _COLLECTED, side="right")), min(same, _CELLS >> width), 1)
    return bins[:size], bins[size:]


def _resolve(table: Table, batch: Indices, *, values: Values) -> tuple[Table, Counts, Counts]:
    """Return every distinct value of the batch's bins, with true and false positives of a threshold there."""
    chosen = np.sort(batch)
    if _held(table, chosen) <= _COLLECTED:
        finer = values.collect(table, chosen)
    else:
        finer = values.split(table, chosen, bits=int(table.widths[chosen[0]]))
    _check_unchanged(table, chosen, finer)
    parents = chosen[np.searchsorted(table.starts[chosen], finer.starts, side="right") - 1]
    after = np.searchsorted(finer.starts, table.ends[parents])
    tp = table.tp_above[parents] + finer.tp - np.append(finer.tp, 0)[after]
    fp = table.fp_above[parents] + finer.fp - np.append(finer.fp, 0)[after]
    return finer, tp, fp
