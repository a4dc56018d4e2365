"""One calibration over the ranks of a process group: the counts of all, the same statistics on each, bit for bit.

What moves: a short report of every rank; 1 MB per level in one all-reduce (or, for a million values or fewer, the
distinct ones); then per pass an all-reduce of up to 16 MB, or the few values that are left, 12 bytes each. What follows
from the sums is computed by every rank for itself, so all of them ask for the same passes, those without values too.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from postproc_export.calibration.counting import tally
from postproc_export.calibration.counting.checks import check_seen
from postproc_export.calibration.counting.locator import Indices
from postproc_export.calibration.counting.ordered import key_of
from postproc_export.calibration.counting.table import Table
from postproc_export.calibration.counting.tables import COARSE_GRID, Grid, empty_table, sum_tables
from postproc_export.calibration.counting.tally import Counted
from postproc_export.calibration.counting.values import ReadValues, Values
from postproc_export.calibration.processes.ranks import Ranks
from postproc_export.calibration.state import LevelState
from postproc_export.calibration.statistics.level import LevelOptions, level_stats
from postproc_export.errors import CalibrationError, UsageError
from postproc_export.stats import LEVELS, Level, LevelStats
from postproc_export.version import __version__


def distributed_levels(
    states: Mapping[Level, LevelState], options: Mapping[Level, LevelOptions], *, nonfinite: str, ranks: Ranks
) -> dict[Level, LevelStats]:
    """Return the statistics of what all ranks have seen; every rank takes part in the same exchanges.

    Raises
    ------
    UsageError
        If the ranks have other options than each other.
    CalibrationError
        If a level has ground truth on some ranks only, or whatever stops a calibration in one process.
    """
    own = {level: _Share.of(states[level]).to_json() for level in LEVELS}
    reports = ranks.gather_json({"options": _described(options, nonfinite), "levels": own})
    _check_alike([report["options"] for report in reports], ranks)
    shares = {level: [_Share(**report["levels"][level]) for report in reports] for level in LEVELS}
    labelled = {level: _labelled(level, shares[level], ranks) for level in LEVELS}
    return {
        level: _stats(level, states[level], shares[level], options[level], labelled=flag, ranks=ranks)
        for level, flag in labelled.items()
        if flag is not None
    }


@dataclass(frozen=True, slots=True)
class _Share:
    """What the first pass of one rank found on a level."""

    labelled: bool | None
    seen: int
    dropped: int
    is_wide: bool
    low: float
    high: float

    @classmethod
    def of(cls, state: LevelState) -> Self:
        low, high = state.tally.range
        return cls(state.labelled, state.tally.seen, state.tally.dropped, state.tally.is_wide, low, high)

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def _described(options: Mapping[Level, LevelOptions], nonfinite: str) -> dict[str, Any]:
    levels = {f"{level}_policy": each.policy.text for level, each in options.items()}
    one = options["image"]
    compare = [policy.text for policy in one.compare]
    rest = {"nonfinite": nonfinite, "exact": one.exact, "compare": compare, "resamples": one.resamples}
    return {**levels, **rest, "version": __version__}


def _check_alike(described: Sequence[Mapping[str, Any]], ranks: Ranks) -> None:
    for rank, each in enumerate(described):
        different = [name for name in each if each[name] != described[0][name]]
        if different:
            name = different[0]
            found = f"{name} {described[0][name]!r} on {ranks.name(0)}, {each[name]!r} on {ranks.name(rank)}"
            raise UsageError("the ranks calibrate with different options", found=found, needed="the same everywhere")


def _labelled(level: Level, shares: Sequence[_Share], ranks: Ranks) -> bool | None:
    """Return whether a level has ground truth; None where no rank has seen it."""
    flags = {share.labelled: rank for rank, share in reversed(list(enumerate(shares))) if share.labelled is not None}
    if len(flags) > 1:
        raise CalibrationError(
            f"{level} level: some ranks have ground truth and others have not",
            found=f"{ranks.name(flags[True])} with, {ranks.name(flags[False])} without",
            needed="ground truth everywhere or nowhere",
        )
    return next(iter(flags), None)


def _stats(
    level: Level, state: LevelState, shares: Sequence[_Share], options: LevelOptions, *, labelled: bool, ranks: Ranks
) -> LevelStats:
    check_seen(level, sum(share.seen for share in shares), dropped=sum(share.dropped for share in shares))
    counted = _counted(state, shares, ranks)
    return level_stats(level, counted, options, labelled=labelled, values=RankValues(ReadValues(state.read), ranks))


def _counted(state: LevelState, shares: Sequence[_Share], ranks: Ranks) -> Counted:
    """Return what the first pass counted on all ranks: what one process would have, so sorted values up to `SMALL`."""
    low, high = key_of(min(share.low for share in shares)), key_of(max(share.high for share in shares))
    is_exact = sum(share.seen for share in shares) <= tally.SMALL
    own = empty_table(low=low, high=high)
    if state.tally.seen:
        mine = state.tally.counted().table if is_exact else state.tally.coarse_table()
        own = dataclasses.replace(mine, low=low, high=high)
    table = _gathered(own, ranks) if is_exact else _added(own, COARSE_GRID, ranks)
    return Counted(
        table,
        is_exact=is_exact,
        is_wide=any(share.is_wide for share in shares),
        dropped=sum(share.dropped for share in shares),
    )


class RankValues:
    """The values of all ranks, each of which counts its own.

    Parameters
    ----------
    own
        The values of this rank.
    ranks
        All of them.
    """

    def __init__(self, own: Values, ranks: Ranks) -> None:
        self._own, self._ranks = own, ranks

    def split(self, table: Table, chosen: Indices, *, bits: int) -> Table:
        """Return the chosen bins divided: dense counts, added."""
        return _added(self._own.split(table, chosen, bits=bits), Grid.of(table, chosen, bits=bits), self._ranks)

    def collect(self, table: Table, chosen: Indices) -> Table:
        """Return the distinct values of the chosen bins, from every rank."""
        return _gathered(self._own.collect(table, chosen), self._ranks)

    def extremes_at(self, threshold: np.float32) -> tuple[float, float]:
        """Return the extremes of all ranks."""
        ends = self._ranks.gather(np.array(self._own.extremes_at(threshold), dtype=np.float64))
        return min(float(low) for low, _ in ends), max(float(high) for _, high in ends)


def _added(own: Table, grid: Grid, ranks: Ranks) -> Table:
    return grid.table(ranks.add(grid.dense(own)), low=own.low, high=own.high)


def _gathered(own: Table, ranks: Ranks) -> Table:
    """Return the sum of tables of few values: keys and counts of every rank as int32, which such counts fit."""
    rows = np.concatenate([own.starts.view(np.int32), own.normal.astype(np.int32), own.anomalous.astype(np.int32)])
    parts = [_from_rows(each, own) for each in ranks.gather(rows)]
    return sum_tables(parts, low=own.low, high=own.high)


def _from_rows(rows: "np.ndarray[Any, np.dtype[np.int32]]", like: Table) -> Table:
    keys, normal, anomalous = rows.reshape(3, -1)
    return Table(
        starts=keys.view(np.uint32),
        widths=np.zeros(keys.size, dtype=np.uint8),
        normal=normal.astype(np.int64),
        anomalous=anomalous.astype(np.int64),
        low=like.low,
        high=like.high,
    )
