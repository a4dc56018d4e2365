"""What a tail in a file decides, as statistics and options: what an update starts from, and what it changes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from postproc_export.boundary import Comparison, decision_boundary
from postproc_export.errors import UsageError
from postproc_export.float32 import Half, to_float32
from postproc_export.graphs.detached import FoundTail
from postproc_export.graphs.metadata import TailRecord
from postproc_export.graphs.reading.anomalib_tail import AnomalibTail
from postproc_export.graphs.reading.eager_reading import rule_of
from postproc_export.graphs.reading.levels import report_level, stats_of
from postproc_export.graphs.reading.own_tail import OwnTail
from postproc_export.stats import LEVELS, CalibrationStats, Level, LevelStats
from postproc_export.tail_options import Adjustable, LabelDtype, Layout, LevelChoice, TailOptions, refuse_unused

_OF_THE_THRESHOLD: Final = ("at_threshold", "policies", "threshold_interval", "exact", "f1_gap")


@dataclass(frozen=True, slots=True)
class State:
    """What a tail decides.

    Parameters
    ----------
    stats
        The statistics of the levels that have a threshold and a range.
    options
        Sensitivities, rule, element types.
    narrow
        The type in which the raw values of a level were declared, where its boundary is the constant for that type.
    """

    stats: CalibrationStats
    options: TailOptions
    narrow: Mapping[Level, Half] = field(default_factory=dict)

    def boundary(self, level: Level) -> float | None:
        """Return the raw value from which on a score is anomalous; None where the level does not decide."""
        stats = self.stats.level(level)
        if stats is None or not stats.is_calibrated or not self.options.enable_thresholding:
            return None
        return decision_boundary(
            stats,
            sensitivity=self.options.sensitivity(level),
            comparison=self.options.comparison,
            dtype=self.narrow.get(level, "float32"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What an update changes; None for what stays.

    Parameters
    ----------
    stats
        Statistics that take the place of those in the file.
    image_threshold, pixel_threshold
        New thresholds, raw.
    normalized
        Whether these are in normalised units instead, of the scores that the file gives now.
    image_sensitivity, pixel_sensitivity, comparison, label_dtype, mask_dtype, keep_raw, nan_guard, match_thresholds
        As in `TailOptions`.
    layout, levels, enable_normalization, enable_thresholding, adjustable, as_parameters
        As in `TailOptions`.
    """

    stats: CalibrationStats | None = None
    image_threshold: float | None = None
    pixel_threshold: float | None = None
    normalized: bool = False
    image_sensitivity: float | None = None
    pixel_sensitivity: float | None = None
    comparison: Comparison | None = None
    label_dtype: LabelDtype | None = None
    mask_dtype: LabelDtype | None = None
    keep_raw: bool | None = None
    nan_guard: bool | None = None
    match_thresholds: bool | None = None
    layout: Layout | None = None
    levels: LevelChoice | None = None
    enable_normalization: bool | None = None
    enable_thresholding: bool | None = None
    adjustable: Adjustable | None = None
    as_parameters: bool | None = None

    def threshold(self, level: Level) -> float | None:
        """Return the new threshold of a level as it was given."""
        return self.image_threshold if level == "image" else self.pixel_threshold

    def sensitivity(self, level: Level) -> float | None:
        """Return the new sensitivity of a level."""
        return self.image_sensitivity if level == "image" else self.pixel_sensitivity

    @property
    def options(self) -> dict[str, Any]:
        """The options that change."""
        given = {item.name: getattr(self, item.name) for item in fields(TailOptions)}
        return {name: value for name, value in given.items() if value is not None}

    def apply(self, state: State) -> State:
        """Return the changed state.

        Raises
        ------
        UsageError
            If a level has no range that a threshold could be in, or a given option would have no effect.
        MetadataError
            If the new statistics or options are not legal.
        """
        stats = state.stats if self.stats is None else self.stats
        levels = {level: self._level(level, stats.level(level), state.stats.level(level)) for level in LEVELS}
        changed = replace(stats, image=levels["image"], pixel=levels["pixel"])
        options = replace(state.options, **self.options)
        refuse_unused(options, self.options)
        return State(changed, options)

    def _level(self, level: Level, stats: LevelStats | None, current: LevelStats | None) -> LevelStats | None:
        given = self.threshold(level)
        if given is None:
            return stats
        if stats is None:
            raise no_range(level)
        raw = self._raw(level, given, current) if self.normalized else to_float32(given)
        if raw == stats.threshold:
            return stats
        details = {key: value for key, value in stats.details.items() if key not in _OF_THE_THRESHOLD}
        return replace(stats, threshold=raw, policy=None, rule="set_by_update", details=details)

    def _raw(self, level: Level, given: float, current: LevelStats | None) -> float:
        if current is None or current.threshold is None:
            raise no_range(level)
        return to_float32(current.threshold + (given - 0.5) * current.span)


def no_range(level: Level) -> UsageError:
    """Return the error for a threshold on a level whose range is not known."""
    return UsageError(
        f"the threshold of the {level} level cannot be set: its range is not in the file",
        needed="a calibrated range: max above min",
        fix="give statistics with --stats, as `postproc-export calibrate` writes them",
    )


def no_state() -> State:
    """Return the state of a model that decides nothing."""
    return State(CalibrationStats(), TailOptions())


def state_of(tails: Mapping[Level, FoundTail], record: TailRecord | None) -> State:
    """Return what the tails of a file decide, from its record or read back from the graph."""
    if record is not None:
        return State(record.stats, record.options, record.narrow)
    stats = {level: _stats(level, tail) for level, tail in tails.items()}
    reports = {level: report_level(level, tail, record=None, is_rounded=False) for level, tail in tails.items()}
    narrow = {level: report.narrow for level, report in reports.items() if report.narrow is not None}
    calibrated = CalibrationStats(image=stats.get("image"), pixel=stats.get("pixel"))
    return State(calibrated, TailOptions(**_options(tails)), narrow)


def _stats(level: Level, tail: FoundTail) -> LevelStats | None:
    if isinstance(tail, AnomalibTail):
        return stats_of(tail.reading)
    rule = rule_of(tail)
    if rule is not None or (tail.is_eager and tail.decides):
        return None if rule is None else rule.stats
    report = report_level(level, tail, record=None, is_rounded=False)
    if report.threshold is None or report.span is None:
        return None
    details = {"range_is_relative": True}
    return LevelStats(threshold=report.threshold, min=0.0, max=report.span, rule="read_back", details=details)


def _options(tails: Mapping[Level, FoundTail]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for level, tail in tails.items():
        name = "label_dtype" if level == "image" else "mask_dtype"
        if isinstance(tail, OwnTail):
            report = report_level(level, tail, record=None, is_rounded=False)
            sensitivity = report.sensitivity
            options |= {"comparison": report.comparison} if tail.is_eager and report.comparison is not None else {}
            if tail.is_normalised or tail.decides:  # a guard alone decides nothing
                options |= {"enable_normalization": tail.is_normalised, "enable_thresholding": tail.decides}
            options |= {"layout": "packed"} if tail.is_packed else {name: tail.label_dtype}
            if tail.adjustable != "nothing":
                options |= {"adjustable": tail.adjustable, "as_parameters": tail.default is None}
            if level == "image":
                options["nan_guard"] = tail.guard is not None or "pixel" not in tails
        else:
            sensitivity = tail.reading.sensitivity
            options |= {name: "bool", "comparison": "gt"}
        if sensitivity is not None:
            options[f"{level}_sensitivity"] = sensitivity
    return options
