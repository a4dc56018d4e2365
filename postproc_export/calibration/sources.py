"""`calibrate`: statistics from files, folders and arrays, read as often as needed instead of kept."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from postproc_export.calibration.calibrator import level_options
from postproc_export.calibration.counting.arrays import Block
from postproc_export.calibration.counting.checks import check_nonfinite, check_seen
from postproc_export.calibration.counting.cleaning import Nonfinite, clean
from postproc_export.calibration.counting.tally import Tally
from postproc_export.calibration.counting.values import ReadValues
from postproc_export.calibration.dask.arrays import has_dask
from postproc_export.calibration.shards.finding import Source, find_shards
from postproc_export.calibration.shards.kinds import Shard
from postproc_export.calibration.shards.reading import Progress, ShardReader, States
from postproc_export.calibration.statistics.level import LevelOptions, level_stats
from postproc_export.errors import CalibrationError, PostprocError
from postproc_export.stats import LEVELS, CalibrationStats, Level, LevelStats


def calibrate(
    source: Source,
    *,
    image_policy: str = "f1",
    pixel_policy: str = "f1",
    nonfinite: Nonfinite = "error",
    compare: Sequence[str] = (),
    resamples: int = 1000,
    progress: Callable[[Progress], None] | None = None,
    dask: Any = None,
) -> CalibrationStats:
    """Return the statistics of validation outputs that can be read several times.

    Parameters
    ----------
    source
        A `.npz` file, a folder of shards (`.npz`; `.npy` files named by key, such as `a_maps.npy` and `a_masks.npy`;
        `.csv`; Zarr groups), a Zarr group, a CSV with the columns score and label, a mapping of arrays (Dask arrays
        among them) or `.npy` paths, or a list of these.
    image_policy, pixel_policy
        The operating points; see `postproc_export.calibration.thresholds.policies`.
    nonfinite
        ``"error"`` refuses NaN and infinite values, ``"drop"`` leaves them out and counts them.
    compare
        Further policies to record beside it (`details["policies"]` of each level).
    resamples
        How many bootstrap resamples the interval of the image threshold rests on; 0 leaves it out.
    progress
        Called after every block that was read, or every part where Dask reads.
    dask
        The address of a Dask scheduler, or a `distributed.Client`, whose workers open the shards themselves. Dask
        arrays need none: they are computed where Dask computes by default.

    Raises
    ------
    CalibrationError
        If the source is damaged, its arrays do not fit, it holds no sample, or it changed between two passes.
    FileError
        If a path is not there or not of a kind that can be read.

    Notes
    -----
    The keys are `pred_score`, `gt_label`, `anomaly_map`, `gt_mask`, or `scores`, `labels`, `maps`, `masks`; others are
    ignored. Memory does not grow with the data. The order of shards and images does not matter. Source:
    docs/definition.md sections 2 and 9.
    """
    check_nonfinite(nonfinite)
    options = level_options({"image": image_policy, "pixel": pixel_policy}, compare=compare, resamples=resamples)
    shards = find_shards(source)
    with _readers(shards, dask, progress=progress) as reader:
        levels = {level: reader(level).stats(options[level], nonfinite=nonfinite) for level in LEVELS}
    if not any(levels.values()):
        raise CalibrationError(
            "nothing to calibrate on: no sample at all in the scores and maps",
            found=", ".join(_shown([shard.name for shard in shards])),
            needed="one image at least",
            fix="give files with arrays that have elements",
        )
    names = [shard.name for shard in shards]
    return CalibrationStats(image=levels["image"], pixel=levels["pixel"], details={"source": _shown(names)})


@contextmanager
def _readers(
    shards: Sequence[Shard], dask: Any, *, progress: Callable[[Progress], None] | None
) -> Iterator[Callable[[Level], "_LevelReader"]]:
    """Yield a function that makes the reader of a level: in this process, or where Dask runs."""
    if dask is None and not any(has_dask(shard) for shard in shards):
        states = States()
        yield lambda level: _Reader(level, shards, states=states, progress=progress)
        return
    from postproc_export.calibration.dask.level import dask_levels

    with dask_levels(shards, dask, progress=progress) as reader:
        yield reader


class _LevelReader(Protocol):
    def stats(self, options: LevelOptions, *, nonfinite: Nonfinite) -> LevelStats | None: ...


def _shown(names: Sequence[str]) -> list[str]:
    return list(names) if len(names) <= 10 else [*names[:9], f"... {len(names) - 9} more"]


class _Reader:
    """One level of the shards, pass after pass, in this process."""

    def __init__(
        self,
        level: Level,
        shards: Sequence[Shard],
        *,
        states: States,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._level, self._progress = level, progress
        self._reader = ShardReader(level, shards, states=states)
        self._number = 0
        self._total = None if progress is None else _total(level, shards)

    def stats(self, options: LevelOptions, *, nonfinite: Nonfinite) -> LevelStats | None:
        tally = Tally()
        for cleaned in clean(self.read(), nonfinite=nonfinite):
            tally.add(cleaned)
        labelled = self._reader.labelled
        if labelled is None:
            return None
        check_seen(self._level, tally.seen, dropped=tally.dropped)
        return level_stats(self._level, tally.counted(), options, labelled=labelled, values=ReadValues(self.read))

    def read(self) -> Iterator[Block]:
        self._number += 1
        done = 0
        for block in self._reader.read():
            yield block
            done += block.values.size
            if self._progress is not None:
                self._progress(Progress(self._level, self._number, done, self._total, block.place.where))
        self._total = done


def _total(level: Level, shards: Sequence[Shard]) -> int | None:
    """Return how many values a pass meets, where the headers of all shards tell."""
    total = 0
    for shard in shards:
        try:
            size = shard.size(level)
        except PostprocError:
            return None  # reading says what is wrong, with the first shard that is
        if size is None:
            return None
        total += size
    return total


def source_files(source: Source) -> list[Path]:
    """Return every file that a source reads, and the folder of every Zarr store in it.

    Raises
    ------
    FileError
        If a path is not there, may not be read, is not of a known kind, or is given twice.
    """
    return [path for shard in find_shards(source) for path in shard.files]
