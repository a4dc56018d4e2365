"""`Calibrator`: statistics from batches as a model gives them, exact at any scale."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from postproc_export.calibration.arrays import (
    KEYS,
    Pair,
    Place,
    as_numpy,
    check_labelled,
    check_nonfinite,
)
from postproc_export.calibration.policies import Policy
from postproc_export.calibration.shards import level_pairs, pair_blocks
from postproc_export.calibration.spool import LevelState, Spool
from postproc_export.calibration.statistics import LevelOptions, level_stats
from postproc_export.calibration.tally import Chunk, clean
from postproc_export.errors import CalibrationError, FileError, UsageError
from postproc_export.keywords import method_like
from postproc_export.options import CalibrationOptions, CalibratorOptions, Nonfinite
from postproc_export.stats import LEVELS, CalibrationStats, Level, LevelStats

_KEPT: Final = 1 << 22  # values of a batch that are held as float32 beside it between checking and counting


def level_options(asked: CalibrationOptions, *, exact: bool = True) -> dict[Level, LevelOptions]:
    """Parse the policies of both levels and those to compare them with."""
    compared = tuple(Policy.parse(text) for text in asked.compare)
    policies: dict[Level, str] = {"image": asked.image_policy, "pixel": asked.pixel_policy}
    return {
        level: LevelOptions(Policy.parse(text), compare=compared, resamples=asked.resamples, exact=exact)
        for level, text in policies.items()
    }


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
        check_nonfinite(asked.nonfinite)
        self._options = level_options(asked, exact=asked.exact)
        self._nonfinite: Nonfinite = asked.nonfinite
        self._exact = asked.exact
        self._spool_dir = None if asked.spool_dir is None else Path(asked.spool_dir)
        if self._spool_dir is not None and not self._spool_dir.is_dir():
            raise FileError(
                f"there is no folder {self._spool_dir} for the spool", fix="make it, or leave spool_dir out"
            )
        self.reset()

    @property
    def policies(self) -> dict[Level, str]:
        """The operating point of each level."""
        return {level: options.policy.text for level, options in self._options.items()}

    def reset(self) -> None:
        """Forget everything that was seen; policies and options stay."""
        for state in getattr(self, "_levels", {}).values():
            if state.spool is not None:
                state.spool.close()
        self._levels = {level: LevelState(Spool(self._spool_dir) if self._exact else None) for level in LEVELS}
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

    def update(
        self, pred_score: Any = None, gt_label: Any = None, anomaly_map: Any = None, gt_mask: Any = None
    ) -> None:
        """Add a batch; a level without predictions in it is left alone.

        Parameters
        ----------
        pred_score
            Raw image scores, shape [N], [N, 1] or [], any real type; NumPy array or torch tensor.
        gt_label
            0/1 or bool, one per score; None for scores without ground truth (their level gets a range only).
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
        named = {key: as_numpy(array) for key, array in arrays.items() if array is not None}
        pairs = level_pairs(named, name=where)
        cleaned = {level: self._clean(level, pair) for level, pair in pairs.items() if pair.values.size}
        for level, chunks in cleaned.items():
            self._levels[level].absorb(chunks)
        self._batches += 1

    def _clean(self, level: Level, pair: Pair) -> Iterable[Chunk]:
        """Check all of a batch; what it is cleaned to is kept where that is little, else made again, block by block."""
        check_labelled(self._levels[level].tally.labelled, pair.truth is not None, place=pair.place)
        if pair.values.size <= _KEPT:
            return list(clean(pair_blocks(pair), nonfinite=self._nonfinite))
        for _ in clean(pair_blocks(pair), nonfinite=self._nonfinite):
            pass
        return clean(pair_blocks(pair), nonfinite=self._nonfinite)

    def merge(self, other: "Calibrator") -> None:
        """Add everything that another calibrator has seen; the other one stays as it is.

        Raises
        ------
        UsageError
            If it is the same calibrator, or keeps its values in another way.
        CalibrationError
            If one of them has ground truth on a level and the other has not.
        """
        self._check_whole()
        other._check_whole()
        if other is self:
            raise UsageError("a Calibrator cannot be merged with itself", fix="its samples would count twice")
        if other._exact != self._exact:
            raise UsageError("an exact Calibrator and one with exact=False cannot be merged", fix="make both alike")
        for level, state in other._levels.items():
            if state.tally.labelled is not None:
                place = Place("the other calibrator", *KEYS[level], None)
                check_labelled(self._levels[level].tally.labelled, state.tally.labelled, place=place)
        for level, state in other._levels.items():
            self._levels[level].merge(state)
        self._batches += other._batches

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
                return _whole(distributed_levels(self._levels, self._options, nonfinite=self._nonfinite, ranks=ranks))
        if group is not None:
            raise UsageError("a process group is given, but compute() was not asked to use it", fix="distributed=True")
        self._check_whole()
        levels = {
            level: level_stats(level, state.tally.counted(), self._options[level], values=state.ask)
            for level, state in self._levels.items()
        }
        return _whole(levels)

    def _check_whole(self) -> None:
        if any(state.is_broken for state in self._levels.values()):
            raise CalibrationError("a batch could not be kept, so the samples are no longer whole", fix="reset() first")


def _whole(levels: Mapping[Level, LevelStats | None]) -> CalibrationStats:
    if not any(levels.values()):
        raise CalibrationError("nothing to calibrate on: no sample was seen", needed="update() with a batch first")
    return CalibrationStats(image=levels.get("image"), pixel=levels.get("pixel"))
