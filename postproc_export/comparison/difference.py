"""What a comparison found: result objects that are falsy where it failed, with a reason and the worst element.

Parts of a stream merge. A comparison of nothing is a failure.
"""

from dataclasses import dataclass, field, replace
from typing import Final, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from postproc_export.comparison.tolerance import EXACT, Tolerance

SHOWN: Final = 10
QUANTILE: Final = 0.999


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """One label that came out differently.

    Parameters
    ----------
    index
        Where: the index into the array compared, or into the part of a stream that `part` counts.
    expected
        The reference's label.
    raw
        The raw value that the reference decided on, raw units; None where it is not known.
    distance
        raw - boundary, raw units.
    ulps
        The same in steps of float32; None where either is not finite.
    """

    index: tuple[int, ...]
    expected: bool
    raw: float | None = None
    distance: float | None = None
    ulps: int | None = None
    part: int = 0

    def describe(self) -> str:
        """Return one line: where, which way, and how far from the boundary."""
        way = "anomalous became normal" if self.expected else "normal became anomalous"
        where = f"[{', '.join(map(str, self.index))}]" + (f" of part {self.part}" if self.part else "")
        if self.raw is None or self.distance is None:
            return f"{way} at {where}"
        steps = "" if self.ulps is None else f" ({self.ulps:+d} ulp)"
        return f"{way} at {where}: raw {self.raw:.9g}, {self.distance:+.3g} from the boundary{steps}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelDifference:
    """Labels of one output against the reference; truthy where there was something to compare and none flipped.

    Flips within the band around the boundary that was allowed do not count.

    Parameters
    ----------
    count, flipped, excused
        Labels compared, labels that differ, and labels that may differ by docs/definition.md section 5 and do.
    near
        Of the flipped ones, those whose raw value lies within the band around the boundary that was allowed.
    flips
        The first flips.
    nearest, farthest
        The smallest and largest distance of a flipped raw value from the boundary, raw units.
    reason
        Why nothing could be compared.
    """

    count: int = 0
    flipped: int = 0
    near: int = 0
    excused: int = 0
    flips: tuple[Flip, ...] = ()
    nearest: float | None = None
    farthest: float | None = None
    reason: str | None = None
    parts: int = 1

    def __bool__(self) -> bool:
        return self.reason is None and self.count > 0 and self.flipped == self.near

    def merge(self, other: Self) -> Self:
        """Return the comparison of both parts, this one first."""
        later = tuple(replace(flip, part=flip.part + self.parts) for flip in other.flips)
        return replace(
            self,
            count=self.count + other.count,
            flipped=self.flipped + other.flipped,
            near=self.near + other.near,
            excused=self.excused + other.excused,
            flips=(*self.flips, *later)[:SHOWN],
            nearest=_least(self.nearest, other.nearest),
            farthest=_most(self.farthest, other.farthest),
            reason=self.reason or other.reason,
            parts=self.parts + other.parts,
        )

    def brief(self) -> str:
        """Return the numbers alone."""
        if self.reason is not None:
            return "not comparable"
        return f"{self.flipped:,} / {self.count:,}" if self.flipped else f"{self.count:,}"

    def describe(self) -> str:
        """Return one sentence."""
        if self.reason is not None:
            return self.reason
        if self.count == 0:
            return "nothing to compare"
        excused = f", {self.excused} excused" if self.excused else ""
        if not self.flipped:
            return f"{self.count:,} labels equal{excused}"
        near = f" ({self.near:,} within the allowed band)" if self.near else ""
        return f"{self.flipped:,} of {self.count:,} labels flipped{near}{excused}; {self.flips[0].describe()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreDifference:
    """Scores of one output against the reference; truthy where there was something to compare and all are close.

    Parameters
    ----------
    count, over, excused
        Scores compared, scores beyond the tolerance, and scores excused by docs/definition.md section 5.
    largest, mean
        Absolute error over the scores that are numbers on both sides.
    index, expected, actual
        The worst score: one beyond the tolerance if there is any.
    tolerance
        What was allowed, and why.
    reason
        Why nothing could be compared.
    """

    tolerance: Tolerance = EXACT
    count: int = 0
    over: int = 0
    excused: int = 0
    numbers: int = 0
    largest: float = 0.0
    total: float = 0.0
    index: tuple[int, ...] | None = None
    expected: float | None = None
    actual: float | None = None
    reason: str | None = None
    histogram: NDArray[np.int64] | None = field(default=None, repr=False, compare=False)

    def __bool__(self) -> bool:
        return self.reason is None and self.count > 0 and self.over == 0

    @property
    def mean(self) -> float:
        """Mean absolute error."""
        return self.total / self.numbers if self.numbers else 0.0

    @property
    def quantile(self) -> float:
        """99.9th percentile of the absolute error, rounded up by less than 1 %."""
        if self.histogram is None or not self.numbers:
            return 0.0
        bucket = int(np.searchsorted(np.cumsum(self.histogram), QUANTILE * self.numbers))
        upper = np.array(((bucket + 1) << 16) - 1 if bucket else 0, np.uint32).view(np.float32)
        return min(float(upper), self.largest)

    def merge(self, other: Self) -> Self:
        """Return the comparison of both parts, this one first."""
        worse = (other.over > 0, other.largest) > (self.over > 0, self.largest)
        worst = other if worse or self.index is None else self
        histograms = [part.histogram for part in (self, other) if part.histogram is not None]
        return replace(
            worst,
            count=self.count + other.count,
            over=self.over + other.over,
            excused=self.excused + other.excused,
            numbers=self.numbers + other.numbers,
            largest=max(self.largest, other.largest),
            total=self.total + other.total,
            reason=self.reason or other.reason,
            histogram=np.sum(histograms, axis=0) if histograms else None,
        )

    def brief(self) -> str:
        """Return the numbers alone."""
        return "not comparable" if self.reason is not None else f"{self.largest:.1e}"

    def describe(self) -> str:
        """Return one sentence."""
        if self.reason is not None:
            return self.reason
        if self.count == 0:
            return "nothing to compare"
        allowed = f"allowed {self.tolerance.atol:.2g}"
        if not self.over:
            return f"{self.count:,} scores, largest error {self.largest:.2g}, {allowed}"
        where = ", ".join(map(str, self.index or ()))
        worst = f"at [{where}] (expected {self.expected!r}, found {self.actual!r})"
        return f"{self.over:,} of {self.count:,} scores differ, worst {self.largest:.2g} {worst}, {allowed}"


Difference: TypeAlias = LabelDifference | ScoreDifference


def merged(first: Difference, second: Difference) -> Difference:
    """Return the comparison of two parts of one stream."""
    if isinstance(first, LabelDifference):
        assert isinstance(second, LabelDifference), "an output has labels or scores, not both"
        return first.merge(second)
    assert isinstance(second, ScoreDifference), "an output has labels or scores, not both"
    return first.merge(second)


def _least(*values: float | None) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _most(*values: float | None) -> float | None:
    return max((value for value in values if value is not None), default=None)
