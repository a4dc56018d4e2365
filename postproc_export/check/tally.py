"""What came of one way of running: a comparison of each output, added up over all runs, and the checks it makes."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from postproc_export.check.attached import AttachedModel, RawFeeds, boundary_of
from postproc_export.check.reference import Reference
from postproc_export.check.report import Check
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

LABELS: Final = ("pred_label", "pred_mask")
TRANSFORMED: Final = "the transform before the tail, in another float32 computation"


@dataclass(slots=True)
class CheckTally:
    """The comparison of each output in one way of running, added up over all runs."""

    name: str  # what the names of its checks begin with
    way: str  # how it was run, which the names end with
    judged: bool = True  # False where it is shown and decides nothing
    max_flips: int = 0  # labels per output that may flip all the same
    found: dict[str, Difference] = field(default_factory=dict)
    runtime: str | None = None
    precision: str | None = None

    def ran_on(self, runner: Runner) -> None:
        """Record what it ran on."""
        self.runtime, self.precision = f"{runner.name} {runner.version}", runner.inference_precision

    def add(self, found: Mapping[str, Difference]) -> None:
        """Add the comparisons of one run, by output."""
        for name, difference in found.items():
            self.found[name] = merged(self.found[name], difference) if name in self.found else difference

    def fail(self, names: Iterable[str], reason: str | Exception) -> None:
        """Record that a run was not possible, which fails every output."""
        self.add({name: unknown(name, " ".join(str(reason).split())) for name in names})

    @property
    def missed(self) -> int:
        """How many labels flipped outside the allowed band, and scores lie beyond the tolerance, so far."""
        return sum(
            found.flipped - found.near if isinstance(found, LabelDifference) else found.over
            for found in self.found.values()
        )

    def checks(self) -> Iterator[Check]:
        """Yield one check per output."""
        for name, found in self.found.items():
            passed = bool(found)
            if isinstance(found, LabelDifference) and found.reason is None and found.count:
                passed = found.flipped - found.near <= self.max_flips
            yield self.check(name, passed, found.describe(), brief=found.brief(), details=details_of(found))

    def check(self, name: str, passed: bool, message: str, **more: Any) -> Check:
        """Return a check that decides where this way is judged."""
        return Check(
            name=f"{self.name}/{name}/{self.way}",
            passed=passed or not self.judged,
            judged=self.judged,
            message=message,
            way=self.way,
            runtime=self.runtime,
            precision=self.precision,
            **more,
        )


def unknown(name: str, reason: str) -> Difference:
    """Return the comparison of an output that could not be compared."""
    return LabelDifference(reason=reason) if name.startswith(LABELS) else ScoreDifference(reason=reason)


def details_of(difference: Difference) -> dict[str, Any]:
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


# --- How the outputs of a tail are compared with the reference, or with another run of the file.


@dataclass(frozen=True, slots=True)
class TailComparison:
    """How far the outputs of a tail may lie from what they are compared with.

    `drift` is the entry of the tolerance table that says how far the raw values may have moved: flips so near to the
    boundary are shown and not judged. None where they are the very same values.
    """

    reference: Reference
    drift: str | None = None
    is_whole: bool = False  # not the tail alone: the rounding of raw values to a narrow type may be dropped

    @property
    def attached(self) -> AttachedModel:
        """The attached file."""
        return self.reference.attached

    def __call__(
        self,
        expected: Mapping[str, NDArray[Any]],
        actual: Mapping[str, NDArray[Any]],
        raw: RawFeeds,
        moved: Mapping[Level, float] | None = None,
    ) -> dict[str, Difference]:
        """Compare the outputs of one run; where `expected` is another run of the file, it may miss some itself.

        `moved` is how far a transform before the tail may have moved the raw values of a level besides, raw units.
        """
        found: dict[str, Difference] = {}
        tail = self.attached.tail
        if self.attached.guard == "none" and any(part.level == "image" for part in tail.parts) and "image" not in raw:
            expected = _without_nan_images(expected, actual, raw)
        for output in tail.parts:
            name, wanted = output.name, expected.get(output.name)
            values = self.reference.decided_on(output, raw)
            if wanted is None or wanted.size != values.size:
                what = "the output is missing" if wanted is None else f"the output has the shape {list(wanted.shape)}"
                found[name] = unknown(name, f"{what} for {values.size:,} raw values")
                continue
            band = self._band(output, moved or {})
            if name in LABELS:
                found[name] = compare_labels(
                    wanted,
                    actual.get(name),
                    raw=values,
                    boundary=boundary_of(self.attached, output.level),
                    excused=self.reference.excused(output, raw),
                    band=band.atol + self._half_ulp(output),
                    dtype=output.dtype,
                )
            else:
                found[name] = compare_scores(
                    self._saturated(wanted),
                    None if name not in actual else self._saturated(actual[name]),
                    tolerance=self._tolerance(output, raw, band),
                    nan="anomalous" if tail.options.enable_normalization else "same",
                    excused=self.reference.excused(output, raw),
                    dtype=output.dtype,
                )
        return found

    def _band(self, output: TailOutput, moved: Mapping[Level, float]) -> Tolerance:
        level: Level = output.level if output.level in self.attached.tail.raw else "pixel"
        band = EXACT if self.drift is None else TOLERANCES[self.drift](_stats(self.attached, output))
        return together(band, Tolerance(atol=moved.get(level, 0.0), reason=TRANSFORMED))

    def _half_ulp(self, output: TailOutput) -> float:
        """Return how much further a flip may lie: a value that moved may be rounded to the next of its narrow type.

        So may one that is compared with a boundary that was computed at run time, which is no constant for the type.
        """
        half = self.attached.tail.narrow.get(output.level)
        return 0.0 if self.drift is None or half is None else half_ulp(self.attached.tail.boundary(output.level), half)

    def _tolerance(self, output: TailOutput, raw: RawFeeds, band: Tolerance) -> Tolerance:
        """Add how far raw values may be from their rounding to a narrow type, as far as scores show it."""
        stats, is_normalised = _stats(self.attached, output), self.attached.tail.options.enable_normalization
        half = self.attached.tail.narrow.get(output.level)
        if half is not None and self.is_whole:
            values = as_float32(raw[output.level if output.level in raw else "pixel"])
            finite = np.max(np.abs(values), where=np.isfinite(values), initial=0.0)
            band = together(narrow(largest_shown(stats) if is_normalised else float(finite), half), band)
        if is_normalised:
            band = Tolerance(atol=band.atol / stats.span, reason=band.reason)
        return together(rounding_tolerance(self.attached, output), band)

    def _saturated(self, scores: NDArray[Any]) -> NDArray[Any]:
        """Return raw scores with infinities as the largest float32, as OpenVINO makes some."""
        if self.attached.tail.options.enable_normalization or scores.dtype != np.float32:
            return scores
        saturated: NDArray[Any] = np.clip(scores, np.float32(-LARGEST), np.float32(LARGEST))  # NumPy 1 widens a float
        return saturated


def rounding_tolerance(attached: AttachedModel, output: TailOutput) -> Tolerance:
    """Return how far a score may lie from the reference: not at all where it stays raw."""
    stats = _stats(attached, output)
    return TOLERANCES[choose_form(stats)](stats) if attached.tail.options.enable_normalization else EXACT


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
        wanted, found = defined.get(name), actual.get(name)
        if wanted is not None and found is not None and wanted.shape == found.shape and wanted.size == nan.size:
            defined[name] = np.where(nan.reshape(wanted.shape), found, wanted).astype(wanted.dtype)
    return defined
