"""One level of a source whose parts Dask reads, pass after pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from postproc_export.calibration.counting import tally
from postproc_export.calibration.counting.checks import check_seen
from postproc_export.calibration.counting.cleaning import Nonfinite
from postproc_export.calibration.counting.locator import Indices
from postproc_export.calibration.counting.table import Table
from postproc_export.calibration.counting.tally import Counted
from postproc_export.calibration.dask.arrays import ArraySource
from postproc_export.calibration.dask.cluster import Cluster
from postproc_export.calibration.dask.connection import cluster_at
from postproc_export.calibration.dask.part_counts import Count, PartCount
from postproc_export.calibration.dask.parts import Divide, Extremes, Work
from postproc_export.calibration.dask.shards import ShardSource, ZarrSource
from postproc_export.calibration.shards.kinds import MemoryShard, NpyShard, Shard
from postproc_export.calibration.shards.reading import Progress, States, changed
from postproc_export.calibration.shards.zarr_store import ZarrShard
from postproc_export.calibration.statistics.level import LevelOptions, level_stats
from postproc_export.stats import Level, LevelStats

_CARRIED: Final = (
    1 << 16
)  # values that a part of a source of unknown size sends: no more bytes than its histogram may take
_GROUPS: Final = 32  # groups of shards for each thread, so that the last ones do not keep the others waiting


class Source(Protocol):
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
    """One level of some sources, counted where Dask runs.

    Parameters
    ----------
    level, sources
        What is counted.
    cluster
        Where.
    progress
        Called after every part that was read.
    """

    def __init__(
        self, level: Level, sources: Sequence[Source], cluster: Cluster, *, progress: Callable[[Progress], None] | None
    ) -> None:
        self._level, self._sources, self._cluster, self._progress = level, sources, cluster, progress
        self._number = 0
        self._total = None if progress is None else self._known_total()

    def stats(self, options: LevelOptions, *, nonfinite: Nonfinite) -> LevelStats | None:
        """Return the statistics of the level, None where no source has it.

        Raises
        ------
        CalibrationError
            If the sources are not what calibration needs, or a part cannot be computed.
        """
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
    """Connect to where Dask runs and yield a function that makes a level of the shards.

    Parameters
    ----------
    shards
        Files, stores and mappings.
    dask
        The address of a scheduler, a client, or None for what Dask uses by default.
    progress
        Called after every part that was read.

    Raises
    ------
    CalibrationError
        If there is no cluster at the address, or what is there is of no use.
    """
    states = States()
    with cluster_at(dask) as cluster:

        def make(level: Level) -> DaskLevel:
            sources = _sources(level, shards, groups=_GROUPS * max(1, cluster.threads), states=states)
            return DaskLevel(level, sources, cluster, progress=progress)

        yield make


def _sources(level: Level, shards: Sequence[Shard], *, groups: int, states: States) -> list[Source]:
    sources: list[Source] = []
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
