"""All that decides what a `PostProcessor` returns, checked as a whole, without torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from postproc_export.boundary import Comparison, check_comparison, check_sensitivity
from postproc_export.boundary import decision_boundary as boundary_of
from postproc_export.errors import MetadataError, UsageError
from postproc_export.stats import LEVELS, CalibrationStats, Level, LevelStats

STATISTICS: Final = ("threshold", "min", "max")
SENSITIVITIES: Final = tuple(f"{level}_sensitivity" for level in LEVELS)
NUMBERS: Final = tuple(f"{level}_{name}" for level in LEVELS for name in (*STATISTICS, "sensitivity"))
SWITCHES: Final = ("enable_normalization", "enable_thresholding", "enable_threshold_matching", "nan_guard")
_OTHER: Final[Mapping[Level, Level]] = {"image": "pixel", "pixel": "image"}


@dataclass(frozen=True, slots=True)
class Decision:
    """How a calibrated level decides.

    Parameters
    ----------
    boundary
        float32, raw units: a score is anomalous unless it is below.
    threshold_of
        The level whose threshold counts; the other one where it was borrowed.
    """

    boundary: float
    threshold_of: Level


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Statistics, sensitivities, rule and switches; the parameters are those of `PostProcessor`.

    Raises
    ------
    MetadataError
        If a sensitivity or a boundary is not legal, or a threshold is to be borrowed and there is none.
    UsageError
        If the comparison is not known, or a switch is not a bool.
    """

    stats: CalibrationStats
    image_sensitivity: float
    pixel_sensitivity: float
    comparison: Comparison
    enable_normalization: bool
    enable_thresholding: bool
    enable_threshold_matching: bool
    nan_guard: bool
    decisions: Mapping[Level, Decision] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in SENSITIVITIES:
            object.__setattr__(self, name, check_sensitivity(getattr(self, name), name=name))
        check_comparison(self.comparison)
        for name in SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} is not a bool", found=repr(getattr(self, name))[:60], needed="True or False")
        object.__setattr__(self, "decisions", self._decisions())

    def _decisions(self) -> dict[Level, Decision]:
        stats = self.stats.with_matched_thresholds() if self.enable_threshold_matching else self.stats
        decisions: dict[Level, Decision] = {}
        for level in LEVELS:
            own, effective = self.stats.level(level), stats.level(level)
            if own is None or effective is None or not effective.is_calibrated:
                continue
            boundary = boundary_of(
                effective, sensitivity=getattr(self, f"{level}_sensitivity"), comparison=self.comparison
            )
            decisions[level] = Decision(boundary, level if own.is_calibrated else _OTHER[level])
        return decisions

    @property
    def numbers(self) -> dict[str, float]:
        """Every number by name, as float32 values; NaN where a level has none."""
        numbers: dict[str, float] = {}
        for level in LEVELS:
            for name in STATISTICS:
                value = getattr(self.stats.level(level), name, None)
                numbers[f"{level}_{name}"] = math.nan if value is None else value
            numbers[f"{level}_sensitivity"] = getattr(self, f"{level}_sensitivity")
        return numbers

    @property
    def flags(self) -> list[int]:
        """The options as 0 or 1: whether the comparison is ``"gt"``, then the switches in the order of `SWITCHES`."""
        return [int(self.comparison == "gt"), *(int(getattr(self, name)) for name in SWITCHES)]

    def describe(self) -> str:
        """Return one line per calibrated level, and one with the options."""
        levels = [
            f"{level}: threshold {self.numbers[f'{decision.threshold_of}_threshold']:.6g}, "
            f"boundary {decision.boundary:.6g}"
            for level, decision in self.decisions.items()
        ]
        options = ", ".join(f"{name}={getattr(self, name)!r}" for name in ("comparison", *SWITCHES))
        return "\n".join([*(levels or ["not calibrated"]), options])

    @classmethod
    def from_state(cls, numbers: Mapping[str, Any], flags: Sequence[int]) -> Self:
        """Return the settings that have these `numbers` and `flags`: the reverse of these two.

        Raises
        ------
        MetadataError
            If what the constructor refuses, or a level has some of threshold, min and max but no range.
        """
        is_gt, *switches = flags
        return cls(
            stats=CalibrationStats(image=_level("image", numbers), pixel=_level("pixel", numbers)),
            image_sensitivity=numbers["image_sensitivity"],
            pixel_sensitivity=numbers["pixel_sensitivity"],
            comparison="gt" if is_gt else "ge",
            **dict(zip(SWITCHES, map(bool, switches), strict=True)),
        )


def as_stats(stats: object) -> CalibrationStats:
    """Return statistics from what a user may give: themselves, the path of a file, or None for none.

    Raises
    ------
    FileError, MetadataError
        If the file cannot be read or is not legal.
    UsageError
        If it is something else.
    """
    if stats is None:
        return CalibrationStats()
    if isinstance(stats, (str, Path)):
        return CalibrationStats.load(stats)
    if isinstance(stats, CalibrationStats):
        return stats
    raise UsageError(
        "statistics are expected",
        found=type(stats).__name__,
        needed="CalibrationStats or the path of a statistics file",
    )


def _level(level: Level, numbers: Mapping[str, Any]) -> LevelStats | None:
    values = {name: numbers[f"{level}_{name}"] for name in STATISTICS}
    given = {name: value for name, value in values.items() if value is not None and value == value}  # NaN is not itself
    if not given:
        return None
    if not {"min", "max"} <= set(given):
        raise MetadataError(
            f"the {level} level has no range",
            found=", ".join(f"{name} {value}" for name, value in given.items()),
            needed="min and max beside it, or none of the three",
        )
    try:
        return LevelStats(**{"threshold": None, **given})
    except MetadataError as error:
        what = f"the {level} level: {error.what}"
        raise MetadataError(what, found=error.found, needed=error.needed, fix=error.fix) from error
