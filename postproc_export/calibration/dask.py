"""Calibration on Dask: the counts of parts, added in a tree."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from postproc_export.calibration import tally
from postproc_export.calibration.arrays import Block, Place, check_labelled, check_seen
from postproc_export.calibration.counting import COARSE_WIDTH, Faults, Indices, Nonfinite, examine, first_fault
from postproc_export.calibration.dask_cluster import Cluster, Divide, Extremes, Part, Work, cluster_at
from postproc_export.calibration.dask_sources import ArraySource, ShardSource, ZarrSource
from postproc_export.calibration.shards import MemoryShard, NpyShard, Progress, Shard, States, changed
from postproc_export.calibration.statistics import LevelOptions, level_stats
from postproc_export.calibration.table import Table
from postproc_export.calibration.tally import Counted, empty_table, sum_tables
from postproc_export.calibration.zarr import ZarrShard
from postproc_export.errors import CalibrationError, PostprocError
from postproc_export.stats import Level, LevelStats

# --- The first pass over parts: counts, range, and what is wrong, exactly as one process would report it.

_HIGHEST_KEY: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class PartCount:
    """What the first pass over a part left; parts that follow each other add up."""

    table: Table  # bins 2^16 keys wide, or one per distinct value where `is_exact`; empty where there is no value
    is_exact: bool  # as in `tally.Counted`
    is_wide: bool
    dropped: int
    labelled: bool | None  # whether its first block has ground truth, and where that is; None where it has no block
    first: Place | None
    number: int  # the number of the part, or of the part with the trouble
    faults: Faults  # the trouble: elements that are not legal, by kind, or why a part could not be read
    error: PostprocError | None
    signatures: tuple[object, ...]  # the state of the files it was read from

    @property
    def seen(self) -> int:
        """All values that were counted."""
        return self.table.n_normal + self.table.n_anomalous

    @property
    def is_in_trouble(self) -> bool:
        """Whether something is wrong."""
        return self.error is not None or bool(self.faults)

    def trouble(self) -> PostprocError:
        """Return the error to raise: why the part cannot be read, or its first illegal element."""
        return self.error if self.error is not None else first_fault(self.faults).error()


@dataclass(frozen=True, slots=True)
class Count:
    """The first pass."""

    nonfinite: Nonfinite  # what is done with values that are not finite
    carried: int  # up to so many values of a part travel as they are, so that a small whole needs no second pass

    def run(self, part: Part) -> PartCount:
        """Return the counts of a part; what is wrong with it is returned, not raised, so that the first is found."""
        counts, faults, error, opening = tally.Tally(), Faults(), None, _Opening()
        try:
            for cleaned in examine(opening.over(part.blocks()), faults, nonfinite=self.nonfinite):
                counts.add(cleaned)
        except PostprocError as caught:
            error = caught.with_traceback(None)  # whose frames hold the values
        is_exact = counts.seen <= min(self.carried, tally.SMALL)
        return PartCount(
            table=_table(counts, is_exact=is_exact),
            is_exact=is_exact,
            is_wide=counts.is_wide,
            dropped=counts.dropped,
            labelled=opening.labelled,
            first=opening.place,
            number=part.number,
            faults=faults,
            error=error,
            signatures=tuple(part.signatures()),
        )

    def add(self, answers: Sequence[PartCount]) -> PartCount:
        """Return the counts of parts that follow each other."""
        exact = all(each.is_exact for each in answers) and sum(each.seen for each in answers) <= tally.SMALL
        tables = [each.table if exact else _coarse(each.table) for each in answers]
        low, high = min(table.low for table in tables), max(table.high for table in tables)
        found = reduce(_joined, answers)
        return dataclasses.replace(
            found,
            table=sum_tables(tables, low=low, high=high),
            is_exact=exact,
            is_wide=any(each.is_wide for each in answers),
            dropped=sum(each.dropped for each in answers),
            signatures=tuple(one for each in answers for one in each.signatures),
        )


class _Opening:
    """Where the first block is, and whether it has ground truth."""

    def __init__(self) -> None:
        self.place: Place | None = None
        self.labelled: bool | None = None

    def over(self, blocks: Iterator[Block]) -> Iterator[Block]:
        for block in blocks:
            if self.place is None:
                self.place, self.labelled = block.place, block.truth is not None
            yield block


def _table(counts: tally.Tally, *, is_exact: bool) -> Table:
    if not counts.seen:
        return empty_table(low=_HIGHEST_KEY, high=0)
    return counts.counted().table if is_exact else counts.coarse_table()


def _coarse(table: Table) -> Table:
    """Return the table in bins 2^16 keys wide; a bin may be there several times until it is summed."""
    starts = (table.starts >> np.uint32(COARSE_WIDTH)) << np.uint32(COARSE_WIDTH)
    return dataclasses.replace(table, starts=starts, widths=np.full(starts.size, COARSE_WIDTH, dtype=np.uint8))


def _joined(left: PartCount, right: PartCount) -> PartCount:
    """Return the left part with its trouble or else that of the right one, and with the first ground truth of both."""
    if left.is_in_trouble:
        same = right.is_in_trouble and right.number == left.number and left.error is None
        return dataclasses.replace(left, faults=_all_faults(left, right), error=right.error) if same else left
    first = left if left.labelled is not None else right
    error = right.error
    try:
        if right.first is not None and right.labelled is not None:
            check_labelled(left.labelled, right.labelled, place=right.first, earlier=left.first)
    except CalibrationError as unlike:
        error = unlike.with_traceback(None)
    return dataclasses.replace(right, labelled=first.labelled, first=first.first, error=error)


def _all_faults(left: PartCount, right: PartCount) -> Faults:
    faults = {kind: dataclasses.replace(fault) for kind, fault in left.faults.items()}  # tasks may run again
    for kind, fault in right.faults.items():
        if kind in faults:
            faults[kind].merge(fault)
        else:
            faults[kind] = fault
    return faults


# --- One level of a source whose parts Dask reads, pass after pass.

_CARRIED: Final = (
    1 << 16
)  # values that a part of a source of unknown size sends: no more bytes than its histogram may take
_GROUPS: Final = 32  # groups of shards for each thread, so that the last ones do not keep the others waiting


class TaskSource(Protocol):
    """A part of the source that makes tasks."""

    def size(self) -> int | None:
        """Return the number of values of the level; None where only reading tells."""
        ...

    def leaves(self, work: Any) -> list[Any]:
        """Return the tasks of a pass, in order."""
        ...

    def learn(self, signatures: Iterator[object]) -> None:
        """Take from the states of all files, in order, those of this source."""
        ...

    def settle(self) -> None:
        """Refuse what changed while a pass read it."""
        ...


class DaskLevel:
    """One level of some sources, counted where Dask runs."""

    def __init__(
        self,
        level: Level,
        sources: Sequence[TaskSource],
        cluster: Cluster,
        *,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._level, self._sources, self._cluster, self._progress = level, sources, cluster, progress
        self._number = 0
        self._total = None if progress is None else self._known_total()

    def stats(self, options: LevelOptions, *, nonfinite: Nonfinite) -> LevelStats | None:
        """Return the statistics of the level, None where no source has it."""
        count: PartCount | None = self._pass(Count(nonfinite, carried=self._carried()))
        if count is None:
            return None
        if count.is_in_trouble:
            raise count.trouble()
        if count.labelled is None:
            return None
        check_seen(self._level, count.seen, dropped=count.dropped)
        signatures = iter(count.signatures)
        for source in self._sources:
            source.learn(signatures)
        return level_stats(self._level, self._counted(count), options, labelled=count.labelled, values=self)

    def split(self, table: Table, chosen: Indices, *, bits: int) -> Table:
        """Return the chosen bins divided; one pass."""
        finer: Table = self._pass(Divide.of(table, chosen, bits=bits))
        return finer

    def collect(self, table: Table, chosen: Indices) -> Table:
        """Return the distinct values of the chosen bins; one pass."""
        finer: Table = self._pass(Divide.of(table, chosen, bits=0))
        return finer

    def extremes_at(self, threshold: np.float32) -> tuple[float, float]:
        """Return the lowest and highest wide value that rounds to the threshold; one pass."""
        extremes: tuple[float, float] = self._pass(Extremes(threshold))
        return extremes

    def _known_total(self) -> int | None:
        sizes = [source.size() for source in self._sources]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    def _carried(self) -> int:
        sizes = [source.size() for source in self._sources]
        known = [size for size in sizes if size is not None]
        if sum(known) > tally.SMALL:
            return 0
        return tally.SMALL if len(known) == len(sizes) else _CARRIED

    def _counted(self, count: PartCount) -> Counted:
        table, is_exact = count.table, count.is_exact
        if not is_exact and count.seen <= tally.SMALL:  # few values after all, which is known only now
            finer = self.collect(table, np.arange(len(table)))
            if (finer.n_normal, finer.n_anomalous) != (table.n_normal, table.n_anomalous):
                raise changed("the source")
            table, is_exact = finer, True
        return Counted(table, is_exact=is_exact, is_wide=count.is_wide, dropped=count.dropped)

    def _pass(self, work: Work) -> Any:
        self._number += 1
        report = None if self._progress is None else _Report(self._level, self._number, self._total, self._progress)
        answer = self._cluster.run(self._leaves, work, on_reply=report)
        for source in self._sources:
            source.settle()
        if report is not None:
            self._total = report.done
        return answer

    def _leaves(self, work: Any) -> list[Any]:
        return [leaf for source in self._sources for leaf in source.leaves(work)]


class _Report:
    """Tells how far a pass is."""

    def __init__(self, level: Level, number: int, total: int | None, progress: Callable[[Progress], None]) -> None:
        self._level, self._number, self._total, self._progress = level, number, total, progress
        self.done, self._parts = 0, 0

    def __call__(self, read: int) -> None:
        self.done, self._parts = self.done + read, self._parts + 1
        self._progress(Progress(self._level, self._number, self.done, self._total, f"part {self._parts}"))


@contextmanager
def dask_levels(
    shards: Sequence[Shard], dask: Any, *, progress: Callable[[Progress], None] | None
) -> Iterator[Callable[[Level], DaskLevel]]:
    """Connect to where Dask runs and yield a function that makes a level of the shards."""
    states = States()
    with cluster_at(dask) as cluster:

        def make(level: Level) -> DaskLevel:
            sources = shard_sources(level, shards, groups=_GROUPS * max(1, cluster.threads), states=states)
            return DaskLevel(level, sources, cluster, progress=progress)

        yield make


def shard_sources(level: Level, shards: Sequence[Shard], *, groups: int, states: States) -> list[TaskSource]:
    """Group the shards of a level to at most `groups` sources of tasks, in the order of the shards."""
    sources: list[TaskSource] = []
    number = first = 0
    for kind, found in groupby([_file_form(shard) for shard in shards], key=_kind):
        run = list(found)
        if kind == "files":
            sources.append(ShardSource(level, run, number=number, groups=groups, states=states, first=first))
            number += groups
        for shard in run:
            if isinstance(shard, ZarrShard):
                sources.append(ZarrSource(level, shard, number=number, parts=groups, states=states, index=first))
                number += 1
            elif isinstance(shard, MemoryShard):
                sources.append(ArraySource(level, shard, number=number))
                number += 1
            first += 1
    return sources


def _kind(shard: Shard) -> str:
    return "arrays" if isinstance(shard, ZarrShard | MemoryShard) else "files"


def _file_form(shard: Shard) -> Shard:
    """Return a mapping of nothing but paths as what it is: `.npy` files that belong together."""
    if isinstance(shard, MemoryShard) and all(isinstance(value, str | Path) for value in shard.given.values()):
        return NpyShard({key: Path(value) for key, value in shard.given.items()}, name=shard.name)
    return shard
