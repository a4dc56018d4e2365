"""What came of one configuration: differences and flips, added up over cases."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from postproc_export.check.attached import AttachedModel, RawFeeds, boundary_of
from postproc_export.check.reference import Reference
from postproc_export.check.report import Check
from postproc_export.check.ways import Configuration
from postproc_export.comparison import (
    EXACT,
    TOLERANCES,
    Difference,
    LabelDifference,
    ScoreDifference,
    Tolerance,
    compare_labels,
    compare_scores,
    largest_shown,
    merged,
    narrow,
    together,
)
from postproc_export.decision import choose_form
from postproc_export.float32 import LARGEST, half_ulp
from postproc_export.runtimes import Runner, as_float32
from postproc_export.stats import Level, LevelStats
from postproc_export.tail import TailOutput

# --- What came of one way to run a part of a file: a comparison per output, added up over all runs.


@dataclass(slots=True)
class Outcome:
    """What came of one way.

    Parameters
    ----------
    way
        How it was run.
    threads
        Threads inside an operator.
    found
        The comparison of each output; filled while it runs.
    runtime, precision
        What it ran on.
    """

    way: Configuration
    threads: int | None = None
    found: dict[str, Difference] = field(default_factory=dict)
    runtime: str | None = None
    precision: str | None = None

    def open(self, model: Any) -> Runner:
        """Load a model to run it this way."""
        runner = self.way.open(model, threads=self.threads)
        self.ran_on(runner)
        return runner

    def ran_on(self, runner: Runner) -> None:
        """Record what it ran on."""
        self.runtime, self.precision = f"{runner.name} {runner.version}", runner.inference_precision

    def add(self, name: str, difference: Difference) -> None:
        """Add one run's comparison of an output."""
        self.found[name] = merged(self.found[name], difference) if name in self.found else difference

    def checks(self, prefix: str) -> Iterator[Check]:
        """Yield one check per output."""
        for name, found in self.found.items():
            details = details_of(found)
            yield self.check(f"{prefix}/{name}", bool(found), found.describe(), brief=found.brief(), details=details)

    def check(self, subject: str, passed: bool, message: str, **more: Any) -> Check:
        """Return a check that decides where this way is judged."""
        return Check(
            name=f"{subject}/{self.way.label}",
            passed=passed or not self.way.judged,
            judged=self.way.judged,
            message=message,
            way=self.way.label,
            runtime=self.runtime,
            precision=self.precision,
            **more,
        )


# --- The comparison of one configuration's outputs with the reference, added up over all runs.

LABELS = ("pred_label", "pred_mask")
TRANSFORMED = "the transform before the tail, in another float32 computation"


@dataclass(slots=True)
class CheckTally:
    """What came of one configuration.

    Parameters
    ----------
    attached, configuration
        What ran, and how.
    runtime, precision
        The runtime's name and version, and the precision that it says it computes in.
    drift
        The entry of the tolerance table that says how far the raw values may have moved; flips so near to the boundary
        are then shown and not judged. None where there is no tolerance.
    max_flips
        Labels per output that may flip all the same.
    is_whole
        Whether the whole file ran and not its tail alone: the rounding of raw values to a narrow type may be dropped.
    moved
        How far a transform before the tail may have moved the raw values of a level besides, raw units.
    """

    attached: AttachedModel
    configuration: Configuration
    runtime: str | None = None
    precision: str | None = None
    drift: str | None = None
    max_flips: int = 0
    is_whole: bool = False
    moved: Mapping[Level, float] = field(default_factory=dict)
    labels: dict[str, LabelDifference] = field(default_factory=dict)
    scores: dict[str, ScoreDifference] = field(default_factory=dict)

    def ran_on(self, runner: Runner) -> None:
        """Record what it ran on."""
        self.runtime, self.precision = f"{runner.name} {runner.version}", runner.inference_precision

    def add(
        self, expected: Mapping[str, NDArray[Any]], actual: Mapping[str, NDArray[Any]], raw: RawFeeds, by: Reference
    ) -> None:
        """Compare the outputs of one run; where `expected` is another run of the file, it may miss some itself."""
        for output in self.attached.tail.parts:
            wanted, values = expected.get(output.name), by.decided_on(output, raw)
            if wanted is None or wanted.size != values.size:
                found = "the output is missing" if wanted is None else f"the output has the shape {list(wanted.shape)}"
                self._reject(output, f"{found} for {values.size:,} raw values")
                continue
            excused = by.excused(output, raw)
            if self.attached.guard == "none" and output.level == "image" and "image" not in raw:
                expected = _without_nan_images(expected, actual, raw)
            if output.name in LABELS:
                self._merge_labels(
                    output.name,
                    compare_labels(
                        expected[output.name],
                        actual.get(output.name),
                        raw=values,
                        boundary=boundary_of(self.attached, output.level),
                        excused=excused,
                        band=self._flip_band(output),
                        dtype=output.dtype,
                    ),
                )
            else:
                self._merge_scores(
                    output.name,
                    compare_scores(
                        _saturated(expected[output.name], self.attached),
                        None if output.name not in actual else _saturated(actual[output.name], self.attached),
                        tolerance=self._tolerance(output, raw),
                        nan="anomalous" if self.attached.tail.options.enable_normalization else "same",
                        excused=excused,
                        dtype=output.dtype,
                    ),
                )

    def fail(self, reason: str) -> None:
        """Record that a run was not possible, which fails every output."""
        for output in self.attached.tail.parts:
            self._reject(output, reason)

    @property
    def missed(self) -> int:
        """How many labels flipped outside the allowed band, and scores lie beyond the tolerance, so far."""
        labels = sum(difference.flipped - difference.near for difference in self.labels.values())
        return labels + sum(difference.over for difference in self.scores.values())

    def checks(self, prefix: str) -> Iterator[Check]:
        """Yield one check per output."""
        for output in self.attached.tail.parts:
            difference = self.labels[output.name] if output.name in self.labels else self.scores[output.name]
            yield Check(
                name=f"{prefix}/{output.name}/{self.configuration.label}",
                passed=self._passes(difference) or not self.configuration.judged,
                judged=self.configuration.judged,
                message=difference.describe(),
                brief=difference.brief(),
                way=self.configuration.label,
                runtime=self.runtime,
                precision=self.precision,
                details=details_of(difference),
            )

    def _passes(self, difference: LabelDifference | ScoreDifference) -> bool:
        if isinstance(difference, LabelDifference) and difference.reason is None and difference.count:
            return difference.flipped - difference.near <= self.max_flips
        return bool(difference)

    def _band(self, output: TailOutput) -> Tolerance:
        level: Level = output.level if output.level in self.attached.tail.raw else "pixel"
        band = EXACT if self.drift is None else TOLERANCES[self.drift](_stats(self.attached, output))
        return together(band, Tolerance(atol=self.moved.get(level, 0.0), reason=TRANSFORMED))

    def _flip_band(self, output: TailOutput) -> float:
        """Return how far from the boundary a flip may lie: a value that moved may be rounded to the next of its type.

        So may one that is compared with a boundary that was computed at run time, which is no constant for the type.
        """
        half = self.attached.tail.narrow.get(output.level)
        if self.drift is None or half is None:
            return self._band(output).atol
        return self._band(output).atol + half_ulp(self.attached.tail.boundary(output.level), half)

    def _tolerance(self, output: TailOutput, raw: RawFeeds) -> Tolerance:
        moved = together(self._dropped(output, raw), self._band(output))
        if self.attached.tail.options.enable_normalization:
            moved = Tolerance(atol=moved.atol / _stats(self.attached, output).span, reason=moved.reason)
        return together(rounding_tolerance(self.attached, output), moved)

    def _dropped(self, output: TailOutput, raw: RawFeeds) -> Tolerance:
        """Return how far raw values may be from their rounding to a narrow type, as far as scores show it."""
        half = self.attached.tail.narrow.get(output.level)
        if half is None or not self.is_whole:
            return EXACT
        if self.attached.tail.options.enable_normalization:
            return narrow(largest_shown(_stats(self.attached, output)), half)
        values = as_float32(raw[output.level if output.level in raw else "pixel"])
        return narrow(float(np.max(np.abs(values), where=np.isfinite(values), initial=0.0)), half)

    def _reject(self, output: TailOutput, reason: str) -> None:
        if output.name in LABELS:
            self._merge_labels(output.name, LabelDifference(reason=reason))
        else:
            self._merge_scores(output.name, ScoreDifference(reason=reason))

    def _merge_labels(self, name: str, difference: LabelDifference) -> None:
        self.labels[name] = self.labels[name].merge(difference) if name in self.labels else difference

    def _merge_scores(self, name: str, difference: ScoreDifference) -> None:
        self.scores[name] = self.scores[name].merge(difference) if name in self.scores else difference


def rounding_tolerance(attached: AttachedModel, output: TailOutput) -> Tolerance:
    """Return how far a score may lie from the reference: not at all where it stays raw."""
    stats = _stats(attached, output)
    if not attached.tail.options.enable_normalization:
        return EXACT
    return TOLERANCES[choose_form(stats)](stats)


def _saturated(scores: NDArray[Any], attached: AttachedModel) -> NDArray[Any]:
    """Return raw scores with infinities as the largest float32, as OpenVINO makes some."""
    if attached.tail.options.enable_normalization or scores.dtype != np.float32:
        return scores
    saturated: NDArray[Any] = np.clip(scores, np.float32(-LARGEST), np.float32(LARGEST))  # NumPy 1 widens for a float
    return saturated


def details_of(difference: LabelDifference | ScoreDifference) -> dict[str, Any]:
    """Return the numbers of a comparison for the JSON report."""
    if isinstance(difference, LabelDifference):
        shown = asdict(difference)
        return {key: value for key, value in shown.items() if key != "parts" and value is not None}
    return {
        "count": difference.count,
        "over": difference.over,
        "excused": difference.excused,
        "largest_error": difference.largest,
        "mean_error": difference.mean,
        "error_999": difference.quantile,
        "index": difference.index,
        "expected": difference.expected,
        "actual": difference.actual,
        "allowed": difference.tolerance.atol,
        "reason_for_tolerance": difference.tolerance.reason,
    }


def _stats(attached: AttachedModel, output: TailOutput) -> LevelStats:
    stats = attached.tail.stats.level(output.level)
    assert stats is not None, f"{output.name} is there, so its level is calibrated"
    return stats


def _without_nan_images(
    expected: Mapping[str, NDArray[Any]], actual: Mapping[str, NDArray[Any]], raw: RawFeeds
) -> Mapping[str, NDArray[Any]]:
    """Without a guard the image of a map with a NaN is not defined: what came out counts as expected there."""
    maps = as_float32(raw["pixel"])
    nan = np.isnan(maps).any(axis=tuple(range(1, maps.ndim)))
    defined = dict(expected)
    for name in ("pred_score", "pred_label"):
        if name in defined and name in actual and actual[name].shape == defined[name].shape:
            undefined = nan.reshape(defined[name].shape)
            defined[name] = np.where(undefined, actual[name], defined[name]).astype(defined[name].dtype)
    return defined
