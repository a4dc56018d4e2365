"""`Calibrator` and `calibrate`: statistics from batches as a model gives them, or from files, exact at any scale."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from postproc_export.belonging import origin_details
from postproc_export.calibration.arrays import KEYS, Block, Pair, Place, as_numpy, check_labelled
from postproc_export.calibration.convention import Convention
from postproc_export.calibration.counting import Part, Passes
from postproc_export.calibration.dask import DaskLevel, cluster_at, has_dask
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
    level_pairs,
    pair_blocks,
    read_shards,
)
from postproc_export.calibration.statistics import level_stats
from postproc_export.calibration.tally import Chunk, Count, Counted, LevelState, Room, Spool, clean
from postproc_export.calibration.zarr import ZarrShard, is_store
from postproc_export.errors import CalibrationError, FileError, PostprocError, UsageError
from postproc_export.files import CHECKPOINTS, EXPORT_FIRST
from postproc_export.policies import Policy, Range
from postproc_export.record import MODEL_KEY
from postproc_export.run_options import CalibrationOptions, CalibratorOptions, ShardOptions
from postproc_export.stats import LEVELS, CalibrationStats, Level, LevelStats
from postproc_export.validation import called_like, check_file, method_like, spelling

_KEPT: Final = 1 << 22  # values of a batch that are held as float32 beside it between checking and counting


def level_policies(asked: CalibrationOptions) -> dict[Level, list[Policy]]:
    """Parse the policy of each level, and behind it those to compare it with."""
    if asked.nonfinite not in ("error", "drop"):
        raise UsageError(f"nonfinite={asked.nonfinite!r} is not known", needed="'error' or 'drop'")
    compared = [Policy.parse(text) for text in asked.compare]
    return {
        "image": [Policy.parse(asked.image_policy), *compared],
        "pixel": [Policy.parse(asked.pixel_policy), *compared],
    }


def level_ranges(asked: CalibrationOptions) -> dict[Level, Range]:
    """Parse which values of each level its range ends at."""
    return {"image": Range.parse(asked.image_range), "pixel": Range.parse(asked.pixel_range)}


class Calibrator:
    """Gathers raw validation outputs batch by batch and computes the statistics of both levels.

    Notes
    -----
    Memory does not grow with the data. The order of the batches does not matter. `compute` consumes nothing.
    Source: docs/definition.md section 2.
    """

    @method_like(CalibratorOptions)
    def __init__(self, **given: Any) -> None:
        asked = CalibratorOptions(**given)
        self._asked, self._policies, self._ranges = asked, level_policies(asked), level_ranges(asked)
        self._convention, self._origin = Convention(asked), origin_details(asked)
        self._spool_dir = None if asked.spool_dir is None else Path(asked.spool_dir)
        if self._spool_dir is not None and not self._spool_dir.is_dir():
            raise FileError(
                f"there is no folder {self._spool_dir} for the spool", fix="make it, or leave spool_dir out"
            )
        self.reset()

    @property
    def policies(self) -> dict[Level, str]:
        """The operating point of each level."""
        return {level: policies[0].text for level, policies in self._policies.items()}

    def reset(self) -> None:
        """Forget everything that was seen; policies and options stay."""
        for state in getattr(self, "_levels", {}).values():
            if state.spool is not None:
                state.spool.close()
        room = Room()
        spools = {level: Spool(self._spool_dir, room) if self._asked.exact else None for level in LEVELS}
        self._levels = {level: LevelState(spool) for level, spool in spools.items()}
        self._batches = 0

    def close(self) -> None:
        """Give memory and disk space back; the same as `reset`."""
        self.reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        if any(state.spool is not None and state.spool.on_disk for state in self._levels.values()):
            raise UsageError(
                "a Calibrator whose values are in a temporary file cannot be pickled",
                fix="compute() where the values are and send the statistics, calibrate from shards, or use exact=False",
            )
        return self.__dict__

    @spelling(CalibratorOptions)
    def update(
        self, pred_score: Any = None, gt_label: Any = None, anomaly_map: Any = None, gt_mask: Any = None
    ) -> None:
        """Add a batch; a level without predictions in it is left alone.

        Parameters
        ----------
        pred_score
            Raw image scores, shape [N], [N, 1] or [], any real type; NumPy array or torch tensor.
        gt_label
            0/1 or bool, one per score, or labels of which `anomalous_label` is one; None for scores without ground
            truth (their level gets a range only).
        anomaly_map
            Raw maps, shape [N, 1, H, W], [N, H, W] or [H, W].
        gt_mask
            0/1 or bool, the shape of the maps but for the singleton axis.

        Raises
        ------
        CalibrationError
            If shapes disagree, ground truth is not 0/1 or values are not finite; nothing of the batch is counted then.
        FileError
            If the spool cannot be written; the calibrator has to be reset then.
        """
        self._check_whole()
        arrays = {"pred_score": pred_score, "gt_label": gt_label, "anomaly_map": anomaly_map, "gt_mask": gt_mask}
        where = f"batch {self._batches}"
        if pred_score is None and anomaly_map is None:
            raise CalibrationError(f"{where} has neither pred_score nor anomaly_map", needed="one of them at least")
        named = {key: as_numpy(array, place=f"{where}: {key}") for key, array in arrays.items() if array is not None}
        pairs = level_pairs(named, name=where, convention=self._convention)
        cleaned = {level: self._clean(level, pair) for level, pair in pairs.items() if pair.values.size}
        for level, chunks in cleaned.items():
            self._levels[level].absorb(chunks)
        self._batches += 1

    def _clean(self, level: Level, pair: Pair) -> Iterable[Chunk]:
        """Check all of a batch; what it is cleaned to is kept where that is little, else made again, block by block."""
        check_labelled(self._levels[level].tally.labelled, pair.truth is not None, place=pair.place)
        first, again = (
            clean(self._convention.blocks(level, pair_blocks(pair)), nonfinite=self._asked.nonfinite) for _ in range(2)
        )
        if pair.values.size <= _KEPT:
            return list(first)
        for _ in first:
            pass
        return again

    def merge(self, other: "Calibrator") -> None:
        """Add everything that another calibrator has seen; the other one stays as it is.

        Raises
        ------
        UsageError
            If it is the same calibrator, keeps its values in another way, or means something else by them.
        CalibrationError
            If one of them has ground truth on a level and the other has not.
        """
        self._check_whole()
        other._check_whole()
        if other is self:
            raise UsageError("a Calibrator cannot be merged with itself", fix="its samples would count twice")
        if other._asked.exact != self._asked.exact:
            raise UsageError("an exact Calibrator and one with exact=False cannot be merged", fix="make both alike")
        self._convention.merge(other._convention)
        digests = [each._origin.get(MODEL_KEY, {}).get("digest") for each in (self, other)]
        if digests[0] != digests[1]:
            raise UsageError("Calibrators of two models cannot be merged", fix="give both the same model, or none")
        for level, state in other._levels.items():
            if state.tally.labelled is not None:
                place = Place("the other calibrator", *KEYS[level], None)
                check_labelled(self._levels[level].tally.labelled, state.tally.labelled, place=place)
        for level, state in other._levels.items():
            self._levels[level].merge(state)
        self._batches += other._batches

    @spelling(CalibratorOptions)
    def compute(self, *, distributed: bool = False, group: Any = None) -> CalibrationStats:
        """Return the statistics of everything seen so far, by this process or by all of a process group.

        Parameters
        ----------
        distributed
            True: of what the Calibrators of all processes have seen, exactly as if one had seen it all. Every process
            of the group has to call it, also one that has seen nothing, and gets the same statistics.
        group
            The group of `torch.distributed`; None is the default one.

        Raises
        ------
        UsageError
            If there is no process group, or a group is given without `distributed`.
        CalibrationError
            If nothing was seen, a policy cannot be reached or the range of a level is not legal. With `distributed` in
            every process, naming the rank, if one of them fails, has other options or has no ground truth where another
            one has.
        """
        if distributed:
            from postproc_export.calibration.ranks import all_ranks, distributed_levels

            with all_ranks(group) as ranks:
                self._check_whole()
                return self._whole(distributed_levels(self._levels, self._policies, self._ranges, self._asked, ranks))
        if group is not None:
            raise UsageError("a process group is given, but compute() was not asked to use it", fix="distributed=True")
        self._check_whole()
        levels = {
            level: level_stats(
                level,
                state.tally.counted(),
                self._policies[level],
                self._ranges[level],
                values=state.passes(),
                resamples=self._asked.resamples,
                exact=self._asked.exact,
            )
            for level, state in self._levels.items()
        }
        return self._whole(levels)

    def _whole(self, levels: Mapping[Level, LevelStats | None]) -> CalibrationStats:
        if not any(levels.values()):
            raise CalibrationError("nothing to calibrate on: no sample was seen", needed="update() with a batch first")
        self._convention.check(levels.get("image"))
        details = {**self._convention.details, **self._origin}
        return CalibrationStats(image=levels.get("image"), pixel=levels.get("pixel"), details=details)

    def _check_whole(self) -> None:
        if any(state.is_broken for state in self._levels.values()):
            raise CalibrationError("a batch could not be kept, so the samples are no longer whole", fix="reset() first")


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
        given = MemoryShard(source)
        only_paths = given.paths and len(given.paths) == len(given.given)
        return [NpyShard(given.paths, name=given.name) if only_paths else given]
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
        what, fix = "not of a known kind", "save them with numpy.savez(path, pred_score=..., gt_label=...)"
        if _is_npy(path):
            fix = "give both files of the pair, or the folder they are in"
        elif path.suffix.lower() in CHECKPOINTS:
            what, fix = "a PyTorch checkpoint, and no raw outputs", EXPORT_FIRST.format(path)
        raise FileError(f"{path} is {what}", needed=".npz, .npy pairs, .csv or a Zarr group", fix=fix)
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
    policies, ranges, convention = level_policies(asked), level_ranges(asked), Convention(asked)
    origin = origin_details(asked)
    shards = find_shards(asked.source)
    for shard in shards:
        shard.convention = convention
    on_dask = asked.dask is not None or any(has_dask(shard) for shard in shards)
    states: States = {}
    levels = {}
    with cluster_at(asked.dask) if on_dask else nullcontext() as cluster:
        for level in LEVELS:
            values: DaskLevel | _ReadLevel = (
                _ReadLevel(level, shards, states, asked.progress)
                if cluster is None
                else DaskLevel(level, shards, cluster, states=states, progress=asked.progress)
            )
            counted = values.first_pass(Count(asked.nonfinite))
            levels[level] = level_stats(
                level, counted, policies[level], ranges[level], values=values, resamples=asked.resamples
            )
    names = [shard.name for shard in shards]
    if len(names) > 10:
        names[9:] = [f"... {len(names) - 9} more"]
    if not any(levels.values()):
        raise CalibrationError(
            "nothing to calibrate on: no sample at all in the scores and maps",
            found=", ".join(names),
            needed="one image at least",
            fix="give files with arrays that have elements",
        )
    convention.check(levels["image"])
    asked.refuse_idle([level for level, found in levels.items() if found is not None])
    details = {"source": names, **convention.details, **origin}
    return CalibrationStats(image=levels["image"], pixel=levels["pixel"], details=details)


class _ReadLevel(Passes):
    """One level of the shards, pass after pass, in this process."""

    def __init__(
        self, level: Level, shards: Sequence[Shard], states: States, progress: Callable[[Progress], None] | None
    ) -> None:
        super().__init__(lambda: Part(self._blocks()))
        self._level, self._shards, self._states, self._progress = level, shards, states, progress
        self._number = 0
        self._total = None if progress is None else _total(level, shards)

    def first_pass(self, count: Count) -> Counted:
        return count.run(Part(self._blocks())).counted()

    def _blocks(self) -> Iterator[Block]:
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
