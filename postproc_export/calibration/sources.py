"""From what a user gives to a calibration: files, folders of them, stores, mappings, lists."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from postproc_export.calibration.arrays import Block, check_nonfinite
from postproc_export.calibration.calibrator import level_options
from postproc_export.calibration.counting import Divide, Extremes, Part
from postproc_export.calibration.dask import dask_levels, has_dask
from postproc_export.calibration.shards import (
    MEANING,
    CsvShard,
    FileShard,
    MemoryShard,
    NpyShard,
    NpzShard,
    Progress,
    Shard,
    States,
    cannot_read,
    read_shards,
)
from postproc_export.calibration.statistics import level_stats
from postproc_export.calibration.tally import Count, Counted
from postproc_export.calibration.zarr import ZarrShard, is_store
from postproc_export.errors import CalibrationError, FileError, PostprocError, UsageError
from postproc_export.keywords import called_like
from postproc_export.options import ShardOptions
from postproc_export.stats import LEVELS, CalibrationStats, Level
from postproc_export.validation import check_file

Source = str | Path | Mapping[str, Any] | Sequence[str | Path | Mapping[str, Any]]

_KEY_AT_END: Final = re.compile(r"^(?P<stem>.*?)[-_.]?(?P<key>" + "|".join(MEANING) + r")$")


def find_shards(source: Source) -> list[Shard]:
    """Return the shards of a source, in the order of their names within a folder; a file given twice is refused."""
    shards = _shards_of(source)
    seen: dict[tuple[int, int], Path] = {}
    for path in (path for shard in shards for path in shard.files):
        if not path.is_dir():
            check_file(path)
        try:
            status = path.stat()
        except OSError:
            continue  # reading it says why
        before = seen.setdefault((status.st_dev, status.st_ino), path) if status.st_ino else path
        if before is not path:
            found = str(path) if path == before else f"{path} is the same file as {before}"
            raise FileError(f"{path} is given twice, and would count twice", found=found, fix="give it once")
    return shards


def _shards_of(source: Source) -> list[Shard]:
    if isinstance(source, Mapping):
        return [MemoryShard(source)]
    if isinstance(source, str | Path):
        if not str(source):
            raise UsageError("the source is an empty path", needed="a file or a folder of validation outputs")
        try:
            return _shards_at(Path(source))
        except FileError:
            raise
        except OSError as error:
            raise cannot_read(str(Path(source)), error) from error
    if not isinstance(source, Sequence):
        needed = "a path, a list of paths, or a mapping of arrays"
        raise UsageError("the source cannot be read", found=type(source).__name__, needed=needed)
    npy = [Path(each) for each in source if isinstance(each, str | Path) and _is_npy(Path(each))]
    others = [each for each in source if not (isinstance(each, str | Path) and _is_npy(Path(each)))]
    return [shard for each in others for shard in _shards_of(each)] + _npy_shards(npy)


def _is_npy(path: Path) -> bool:
    return path.suffix.lower() == ".npy"


_KINDS: Final[Mapping[str, type[FileShard]]] = {".npz": NpzShard, ".csv": CsvShard}


def _shards_at(path: Path) -> list[Shard]:
    if path.is_dir():
        return [ZarrShard(path)] if is_store(path) else _shards_in(path)
    if not path.exists():
        raise FileError(f"{path} is not there", needed="a file or a folder of validation outputs", fix="check the path")
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        fix = "give both files of the pair, or the folder they are in" if _is_npy(path) else None
        raise FileError(f"{path} is not of a known kind", needed=".npz, .npy pairs, .csv or a Zarr group", fix=fix)
    return [kind(path)]


def _shards_in(folder: Path) -> list[Shard]:
    """Return the shards in a folder; what its name hides is none, such as the `._a.npz` that macOS leaves."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    shards: list[Shard] = []
    for entry in entries:
        if entry.is_dir() and is_store(entry):
            shards.append(ZarrShard(entry))
        elif not entry.is_dir() and entry.suffix.lower() in _KINDS:
            shards.append(_KINDS[entry.suffix.lower()](entry))
    shards += _npy_shards([entry for entry in entries if _is_npy(entry) and not entry.is_dir()])
    if not shards:
        found = ", ".join(entry.name for entry in entries[:5]) or "an empty folder"
        needed, fix = ".npz, .npy pairs, .csv or Zarr groups", "give the files, or the folder they are in"
        raise FileError(f"{folder} has no validation outputs", found=found, needed=needed, fix=fix)
    return shards


def _npy_shards(paths: Sequence[Path]) -> list[Shard]:
    groups: dict[tuple[Path, str], dict[str, Path]] = {}
    for path in paths:
        match = _KEY_AT_END.match(path.stem)
        if match is None:
            raise FileError(
                f"{path} does not say what it holds",
                needed="a name that ends in a key, such as a_maps.npy",
                fix=f"rename it, move it out of {path.parent}{os.sep}, or give the files that count in its place",
            )
        group = groups.setdefault((path.parent, match["stem"]), {})
        for other, before in group.items():
            if MEANING[other] == MEANING[match["key"]] and before != path:
                raise FileError(
                    f"{path} and {before.name} hold the same of one shard",
                    found=f"two files of {match['key']}",
                    needed="one file for each key and shard",
                    fix="rename one of them, such as b_maps.npy with its b_masks.npy",
                )
        group[match["key"]] = path
    return [NpyShard(files, name=str(folder / (stem or "*.npy"))) for (folder, stem), files in groups.items()]


@called_like(ShardOptions)
def calibrate(**given: Any) -> CalibrationStats:
    """Return the statistics of validation outputs that can be read several times.

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
    asked = ShardOptions(**given)
    check_nonfinite(asked.nonfinite)
    options = level_options(asked)
    shards = find_shards(asked.source)
    with _readers(shards, asked.dask, progress=asked.progress) as reader:
        levels = {}
        for level in LEVELS:
            values = reader(level)
            counted = values.first_pass(Count(asked.nonfinite))
            levels[level] = level_stats(level, counted, options[level], values=values)
    names = _shown([shard.name for shard in shards])
    if not any(levels.values()):
        raise CalibrationError(
            "nothing to calibrate on: no sample at all in the scores and maps",
            found=", ".join(names),
            needed="one image at least",
            fix="give files with arrays that have elements",
        )
    return CalibrationStats(image=levels["image"], pixel=levels["pixel"], details={"source": names})


class LevelValues(Protocol):
    """All values of one level, wherever they are."""

    def first_pass(self, count: Count) -> Counted:
        """Return what the first pass counts; raises what is wrong with the values, or with reading them."""
        ...

    def __call__(self, work: Divide | Extremes) -> Any:
        """Return the answer of a later pass."""
        ...


@contextmanager
def _readers(
    shards: Sequence[Shard], dask: Any, *, progress: Callable[[Progress], None] | None
) -> Iterator[Callable[[Level], LevelValues]]:
    """Yield a function that gives the values of a level: read in this process, or where Dask runs."""
    if dask is None and not any(has_dask(shard) for shard in shards):
        states: States = {}
        yield lambda level: _ReadLevel(level, shards, states, progress)
        return
    with dask_levels(shards, dask, progress=progress) as reader:
        yield reader


def _shown(names: Sequence[str]) -> list[str]:
    return list(names) if len(names) <= 10 else [*names[:9], f"... {len(names) - 9} more"]


class _ReadLevel:
    """One level of the shards, pass after pass, in this process."""

    def __init__(
        self, level: Level, shards: Sequence[Shard], states: States, progress: Callable[[Progress], None] | None
    ) -> None:
        self._level, self._shards, self._states, self._progress = level, shards, states, progress
        self._number = 0
        self._total = None if progress is None else _total(level, shards)

    def first_pass(self, count: Count) -> Counted:
        return count.run(Part(self._read())).counted()

    def __call__(self, work: Divide | Extremes) -> Any:
        return work.run(Part(self._read()))

    def _read(self) -> Iterator[Block]:
        self._number += 1
        done = 0
        for block in read_shards(self._level, self._shards, self._states, verify=self._number == 1):
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
    """Return every file that a source reads, and the folder of every Zarr store in it."""
    return [path for shard in find_shards(source) for path in shard.files]
