"""`calibrate`: statistics from files, folders and arrays, read as often as needed instead of kept."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from postproc_export.calibration.calibrator import level_options
from postproc_export.calibration.counting.arrays import Block
from postproc_export.calibration.counting.checks import check_nonfinite, check_seen
from postproc_export.calibration.counting.cleaning import Nonfinite, clean
from postproc_export.calibration.counting.tally import Tally
from postproc_export.calibration.counting.values import ReadValues
from postproc_export.calibration.dask.arrays import has_dask
from postproc_export.calibration.shards.csv_shard import CsvShard
from postproc_export.calibration.shards.kinds import NAMES, MemoryShard, NpyShard, NpzShard, Shard, ZarrShard
from postproc_export.calibration.shards.reading import Progress, ShardReader
from postproc_export.calibration.statistics.level import LevelOptions, level_stats
from postproc_export.errors import CalibrationError, FileError, UsageError
from postproc_export.stats import LEVELS, CalibrationStats, Level, LevelStats

Source = str | Path | Mapping[str, Any] | Sequence[str | Path | Mapping[str, Any]]

_KEY_AT_END: Final = re.compile(
    r"^(?P<stem>.*?)[-_.]?(?P<key>" + "|".join(name for names in NAMES.values() for name in names) + r")$"
)
_ZARR_MARKS: Final = ("zarr.json", ".zgroup", ".zattrs", ".zmetadata")


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
        raise CalibrationError("nothing to calibrate on: no sample at all in the scores and maps")
    names = [shard.name for shard in shards]
    return CalibrationStats(image=levels["image"], pixel=levels["pixel"], details={"source": _shown(names)})


@contextmanager
def _readers(
    shards: Sequence[Shard], dask: Any, *, progress: Callable[[Progress], None] | None
) -> Iterator[Callable[[Level], "_LevelReader"]]:
    """Yield a function that makes the reader of a level: in this process, or where Dask runs."""
    if dask is None and not any(has_dask(shard) for shard in shards):
        yield lambda level: _Reader(level, shards, progress=progress)
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

    def __init__(self, level: Level, shards: Sequence[Shard], *, progress: Callable[[Progress], None] | None) -> None:
        self._level, self._progress = level, progress
        self._reader = ShardReader(level, shards)
        self._number, self._total = 0, 0

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
            self._report(done, block.place.where)
        if self._number == 1:
            self._total = done

    def _report(self, done: int, shard: str) -> None:
        if self._progress is not None:
            total = None if self._number == 1 else self._total
            self._progress(Progress(self._level, self._number, done, total, shard))


def find_shards(source: Source) -> list[Shard]:
    """Return the shards of a source, in the order of their names within a folder.

    Raises
    ------
    FileError
        If a path is not there or not of a known kind.
    """
    if isinstance(source, Mapping):
        return [MemoryShard(source)]
    if isinstance(source, str | Path):
        return _shards_at(Path(source))
    if not isinstance(source, Sequence):
        needed = "a path, a list of paths, or a mapping of arrays"
        raise UsageError("the source cannot be read", found=type(source).__name__, needed=needed)
    npy = [Path(each) for each in source if isinstance(each, str | Path) and str(each).endswith(".npy")]
    others = [each for each in source if not (isinstance(each, str | Path) and str(each).endswith(".npy"))]
    return [shard for each in others for shard in find_shards(each)] + _npy_shards(npy)


def _shards_at(path: Path) -> list[Shard]:
    if path.is_dir():
        if any((path / mark).exists() for mark in _ZARR_MARKS):
            return [ZarrShard(path)]
        return _shards_in(path)
    if not path.exists():
        raise FileError(f"{path} is not there", needed="a file or a folder of validation outputs")
    shard = _file_shard(path)
    if shard is None:
        fix = "give both files of the pair, or the folder they are in" if path.suffix == ".npy" else None
        raise FileError(f"{path} is not of a known kind", needed=".npz, .npy pairs, .csv or a Zarr group", fix=fix)
    return [shard]


def _file_shard(path: Path) -> Shard | None:
    if path.suffix == ".npz":
        return NpzShard(path)
    return CsvShard(path) if path.suffix == ".csv" else None


def _shards_in(folder: Path) -> list[Shard]:
    entries = sorted(folder.iterdir())
    shards: list[Shard] = []
    for entry in entries:
        if entry.is_dir() and any((entry / mark).exists() for mark in _ZARR_MARKS):
            shards.append(ZarrShard(entry))
        elif entry.is_file() and (shard := _file_shard(entry)) is not None:
            shards.append(shard)
    shards += _npy_shards([entry for entry in entries if entry.suffix == ".npy"])
    if not shards:
        found = ", ".join(entry.name for entry in entries[:5]) or "an empty folder"
        raise FileError(
            f"{folder} has no validation outputs", found=found, needed=".npz, .npy pairs, .csv or Zarr groups"
        )
    return shards


def _npy_shards(paths: Sequence[Path]) -> list[Shard]:
    groups: dict[tuple[Path, str], dict[str, Path]] = {}
    for path in paths:
        match = _KEY_AT_END.match(path.stem)
        if match is None:
            raise FileError(
                f"{path} does not say what it holds", needed="a name that ends in a key, such as a_maps.npy"
            )
        groups.setdefault((path.parent, match["stem"]), {})[match["key"]] = path
    return [NpyShard(files, name=str(folder / (stem or "*.npy"))) for (folder, stem), files in groups.items()]


def source_files(source: Source) -> list[Path]:
    """Return the files that a source is read from; of a Zarr group its folder.

    Raises
    ------
    FileError
        If a path is not there or not of a known kind.
    """
    files: list[Path] = []
    for shard in find_shards(source):
        if isinstance(shard, NpyShard):
            files += shard.files.values()
        elif isinstance(shard, MemoryShard):
            files += [Path(value) for value in shard.given.values() if isinstance(value, str | Path)]
        elif isinstance(shard, NpzShard | CsvShard | ZarrShard):
            files.append(shard.path)
    return files
