"""Compare what a file gives with the reference: differences, flips, and the tolerances with their reasons."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from postproc_export.float32 import LEAST_HALF_ULP, SIGNIFICAND, Half, rank_of
from postproc_export.stats import LevelStats, error_bound
from postproc_export.tail import adjusted_error


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """An absolute difference that is allowed, in the unit of what is compared.

    Never a relative one, for ulps explode near 0. What has no tolerance in this file is compared exactly.
    """

    atol: float
    reason: str  # why it is not zero, and how it was derived


_PRECISIONS: Final = {"float32": 24, **{str(half): bits for half, bits in SIGNIFICAND.items()}}

EXACT: Final = Tolerance(atol=0.0, reason="a comparison does not round, and a copy does not either")


def together(*parts: Tolerance) -> Tolerance:
    """Return the sum of tolerances, with the reasons of those that allow anything."""
    allowed = [part for part in parts if part.atol]
    reason = "; ".join(part.reason for part in allowed)
    return Tolerance(atol=sum(part.atol for part in allowed), reason=reason) if allowed else EXACT


def fused(level: LevelStats) -> Tolerance:
    """Return the tolerance of max(0, min(1, alpha x + beta)): see `decision.error_bound`.

    alpha = 1/span and beta = 1/2 - threshold/span are rounded to float32 once each, the product and the sum once each,
    and the reference rounds three times; each rounding is at most half an ulp of a number of size up to r + 1, with r =
    |threshold| / span, wherever the result is not clamped. Summed: (3 r + 5) 2^-24.
    """
    return Tolerance(
        atol=error_bound(level, "fused"),
        reason="one multiply and one add with constants rounded to float32: (3 r + 5) 2^-24, r = |threshold| / span",
    )


def centred(level: LevelStats) -> Tolerance:
    """Return the tolerance of max(0, min(1, alpha (x - threshold) + 1/2)).

    The subtraction is the reference's own, rounded alike; what is left is the rounding of 1/span, of the product and of
    the sum, all of numbers of size up to 1, wherever the result is not clamped.
    """
    return Tolerance(
        atol=error_bound(level, "centred"),
        reason="subtraction first, as the reference does; then one multiply and one add of numbers of size up to 1",
    )


def recompiled(level: LevelStats) -> Tolerance:
    """Return how far a raw value may move when the same body is compiled twice at float32, raw units.

    A runtime picks kernels by the graph's end, so a body with a tail may sum in another order than without. The largest
    difference over 15 exported models between float32 runs was 1.4e-5 of the span; this allows seven times that. It
    bounds where a flip may lie, and never hides one.
    """
    return Tolerance(
        atol=1e-4 * level.span,
        reason="another order of summation in a body compiled apart, float32: 1e-4 of the span (1.4e-5 measured)",
    )


def exported(level: LevelStats) -> Tolerance:
    """Return how far a raw value of an export may lie from the PyTorch model's, both at float32, raw units.

    A runtime has kernels of its own for each operator, and PyTorch itself is not the same to the last bit from one
    process to the next. The largest difference over 15 exported models was 2.3e-5 of the span; this allows four times
    that. It bounds where a flip may lie, and never hides one.
    """
    return Tolerance(
        atol=1e-4 * level.span,
        reason="the same float32 operators in another implementation: 1e-4 of the span (2.3e-5 measured)",
    )


def observed(low: float, high: float) -> Tolerance:
    """Return how far a raw value of an export may lie from the PyTorch model's where there are no statistics yet.

    `low` and `high` are the lowest and highest value that the model gave, raw units. It tells a graph that computes
    something else from one that rounds otherwise, before a calibration is begun; decisions are held against `exported`
    afterwards. Beside the share of the range it allows 128 roundings of the largest value, for the values of a few
    inputs may be all but equal.
    """
    return Tolerance(
        atol=1e-4 * (high - low) + 2.0**-17 * max(abs(low), abs(high)),
        reason="another implementation of the operators: 1e-4 of the range seen, and 2^-17 of the largest value",
    )


def own(low: float, high: float, dtypes: Iterable[str] = ("float32",)) -> Tolerance:
    """Return how far a value behind a user's class may lie from its eager run on the same raw values.

    `low` and `high` are the extremes behind the class, raw units, `dtypes` the types in which it computes. Nothing is
    known of it but that its operators are the same: 1e-5 of the range, and 16 roundings in the coarsest type.
    """
    bits = min(_PRECISIONS.get(dtype, 24) for dtype in dtypes)
    return Tolerance(
        atol=1e-5 * (high - low) + 16 * 2.0**-bits * max(abs(low), abs(high)),
        reason=f"another implementation of the operators: 1e-5 of the range, and 2^-{bits - 4} of the largest value",
    )


def transformed(bound: float) -> Tolerance:
    """Return how far a value behind shipped transforms may lie from their eager twin on the same raw values.

    `bound` is the sum of what each of them may round, raw units; see `steps.transforms.Transform`. Sums of n products
    are off by at most n + 1 roundings of the largest value in each of two implementations, weights that sum to 1 hand
    on what came in; docs/tails.md lists the bound of each transform.
    """
    return Tolerance(atol=bound, reason="another order of summation in float32, as docs/steps.md bounds it")


def narrow(largest: float, dtype: Half) -> Tolerance:
    """Return how far a raw value may lie from its rounding to a narrow type, which a runtime may drop, raw units.

    `largest` is the largest magnitude that counts, raw units, `dtype` the type in which the model declares its raw
    values. Half the distance of two values of the type is at most 2^-p of them, p the bits of a significand, and h
    around 0. Where scores are clamped no value above (r + 1/2) span counts, with r = |threshold| / span: of a
    normalised score that is (r + 1/2) 2^-p + h / span.
    """
    return Tolerance(
        atol=largest * 2.0 ** -SIGNIFICAND[dtype] + LEAST_HALF_ULP[dtype],
        reason=f"a rounding to {dtype} that the runtime drops before the tail: half the distance of two such values",
    )


def largest_shown(level: LevelStats) -> float:
    """Return the largest magnitude of a raw value whose normalised score is not clamped: |threshold| + span / 2."""
    assert level.threshold is not None, "a level with a tail has a threshold"
    return abs(level.threshold) + level.span / 2


def adjusted(level: LevelStats) -> Tolerance:
    """Return how far from the boundary a label may differ where the graph computes the boundary at run time, raw units.

    threshold + (0.5 - a) span in float32, in either order in which a runtime takes the steps: docs/definition.md
    section 4 states 2^-22 (|threshold| + span). At the attached sensitivity the boundary is a constant: exact labels.
    """
    return Tolerance(
        atol=adjusted_error(level),
        reason="a boundary computed at run time in float32: 2^-22 (|threshold| + span), docs/definition.md section 4",
    )


TOLERANCES: Final[Mapping[str, Callable[[LevelStats], Tolerance]]] = {
    "adjusted": adjusted,
    "fused": fused,
    "centred": centred,
    "recompiled": recompiled,
    "exported": exported,
}


# What a comparison found: falsy where it failed, with a reason and the worst element.
#
# Parts of a stream merge. A comparison of nothing is a failure.

SHOWN: Final = 10
QUANTILE: Final = 0.999


class Distances:
    """How many values lie how far off; made of others, it counts them together.

    A bucket holds the distances that share the upper 16 bits of their float32, so its ends are less than 1 % apart.
    """

    def __init__(self, *parts: "Distances") -> None:
        counted = [part._counts for part in parts if part._counts is not None]
        self._counts: NDArray[np.int64] | None = np.sum(counted, axis=0) if counted else None
        self._waiting: list[NDArray[np.uint16]] = [each for part in parts for each in part._waiting]
        self._count_many()

    def add(self, distances: NDArray[np.float64]) -> None:
        """Count distances, zero and above, of any shape; those that are not finite in float32 are left out."""
        with np.errstate(over="ignore"):
            known = distances.astype(np.float32)
        self._waiting.append(_bucket(known[np.isfinite(known)]))
        self._count_many()

    def _count_many(self) -> None:
        """Count what waits where that is much: a few values need no long array of counts."""
        if sum(map(len, self._waiting)) > _BUCKETS or len(self._waiting) > _PARTS:
            self._counted()

    def _counted(self) -> NDArray[np.int64]:
        before = np.zeros(_BUCKETS, np.int64) if self._counts is None else self._counts
        values = np.concatenate([np.zeros(0, np.uint16), *self._waiting])
        self._counts, self._waiting = before + np.bincount(values, minlength=_BUCKETS), []
        return self._counts

    def within(self, distance: float) -> tuple[float, int]:
        """Return a distance, this one or up to 1 % more (0 stays 0), and how many values lie at most so far away."""
        if not distance:
            return 0.0, 0
        bucket = int(_bucket(np.array([distance], np.float32))[0])
        return _upper_end(bucket), int(self._counted()[: bucket + 1].sum())

    def quantile(self, rank: float) -> float:
        """Return a distance, or up to 1 % more, that this many values do not exceed; `inf` where fewer are finite."""
        bucket = int(np.searchsorted(np.cumsum(self._counted()), rank))
        if bucket == _BUCKETS:
            return float("inf")
        return _upper_end(bucket) if bucket else 0.0


_BUCKETS: Final = 1 << 15
_PARTS: Final = 256  # that wait to be counted together


def _bucket(distances: NDArray[np.float32]) -> NDArray[np.uint16]:
    return (np.ascontiguousarray(distances).view(np.uint32) >> 16).astype(np.uint16)


def _upper_end(bucket: int) -> float:
    return float(np.array(((bucket + 1) << 16) - 1, np.uint32).view(np.float32))


Flip: TypeAlias = dict[str, Any]
"""One label that came out differently, as a JSON report shows it.

`index` leads into the array compared, or into the part of a stream that `part` counts. `expected` is the reference's
label and `raw` what it decided on; `distance` is raw - boundary, in raw units, and `ulps` the same in steps of float32.
These three are None where they are not known, `ulps` also where either is not finite.
"""


def describe_flip(flip: Flip) -> str:
    """Return one line: where, which way, and how far from the boundary."""
    way = "anomalous became normal" if flip["expected"] else "normal became anomalous"
    where = f"[{', '.join(map(str, flip['index']))}]" + (f" of part {flip['part']}" if flip.get("part") else "")
    if flip["raw"] is None or flip["distance"] is None:
        return f"{way} at {where}"
    steps = "" if flip["ulps"] is None else f" ({flip['ulps']:+d} ulp)"
    return f"{way} at {where}: raw {flip['raw']:.9g}, {flip['distance']:+.3g} from the boundary{steps}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelDifference:
    """Labels of one output against the reference; truthy where there was something to compare and none flipped.

    Flips within the band around the boundary that was allowed do not count.
    """

    count: int = 0
    flipped: int = 0
    near: int = 0  # of the flipped ones, those whose raw value lies within the allowed band around the boundary
    excused: int = 0  # that may differ by docs/definition.md section 5 and do
    flips: tuple[Flip, ...] = ()  # the first ones
    nearest: float | None = None  # the smallest and the largest distance of a flipped raw value, raw units
    farthest: float | None = None
    reason: str | None = None  # why nothing could be compared
    parts: int = 1

    def __bool__(self) -> bool:
        return self.reason is None and self.count > 0 and self.flipped == self.near

    def merge(self, other: Self) -> Self:
        """Return the comparison of both parts, this one first."""
        later = ({**flip, "part": flip["part"] + self.parts} for flip in other.flips)
        return replace(
            self,
            count=self.count + other.count,
            flipped=self.flipped + other.flipped,
            near=self.near + other.near,
            excused=self.excused + other.excused,
            flips=(*self.flips, *later)[:SHOWN],
            nearest=min((part.nearest for part in (self, other) if part.nearest is not None), default=None),
            farthest=max((part.farthest for part in (self, other) if part.farthest is not None), default=None),
            reason=self.reason or other.reason,
            parts=self.parts + other.parts,
        )

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
        return f"{self.flipped:,} of {self.count:,} labels flipped{near}{excused}; {describe_flip(self.flips[0])}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreDifference:
    """Scores of one output against the reference; truthy where there was something to compare and all are close.

    `index`, `expected` and `actual` are those of the worst score: one beyond the tolerance if there is any.
    """

    tolerance: Tolerance = EXACT
    count: int = 0
    over: int = 0  # beyond the tolerance
    excused: int = 0  # by docs/definition.md section 5
    numbers: int = 0  # that are numbers on both sides; the errors below are theirs
    largest: float = 0.0
    total: float = 0.0
    index: tuple[int, ...] | None = None
    expected: float | None = None
    actual: float | None = None
    reason: str | None = None  # why nothing could be compared
    errors: "Distances | None" = field(default=None, repr=False, compare=False)

    def __bool__(self) -> bool:
        return self.reason is None and self.count > 0 and self.over == 0

    @property
    def mean(self) -> float:
        """Mean absolute error."""
        return self.total / self.numbers if self.numbers else 0.0

    @property
    def quantile(self) -> float:
        """99.9th percentile of the absolute error, rounded up by less than 1 %."""
        if self.errors is None or not self.numbers:
            return 0.0
        return min(self.errors.quantile(QUANTILE * self.numbers), self.largest)

    def merge(self, other: Self) -> Self:
        """Return the comparison of both parts, this one first."""
        worse = (other.over > 0, other.largest) > (self.over > 0, self.largest)
        worst = other if worse or self.index is None else self
        errors = [part.errors for part in (self, other) if part.errors is not None]
        return replace(
            worst,
            count=self.count + other.count,
            over=self.over + other.over,
            excused=self.excused + other.excused,
            numbers=self.numbers + other.numbers,
            largest=max(self.largest, other.largest),
            total=self.total + other.total,
            reason=self.reason or other.reason,
            errors=Distances(*errors) if errors else None,
        )

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


AnyArray: TypeAlias = NDArray[Any]
NanRule: TypeAlias = Literal["anomalous", "same"]


def compare_labels(
    expected: AnyArray,
    actual: AnyArray | None,
    *,
    raw: AnyArray | None = None,
    boundary: float | None = None,
    excused: AnyArray | None = None,
    band: float = 0.0,
    dtype: str | None = None,
) -> LabelDifference:
    """Compare labels or masks exactly.

    `expected` are the reference's labels, bool. `actual` has the same shape and the type `dtype` where that is given;
    every element must be 0 or 1, and None counts as missing. `raw` are the values that the reference decided on,
    float32, as many elements, for the distances from `boundary`; up to `band` from it a flip is counted as near.
    `excused` is bool, as many elements: where the label may be 1 though the reference says 0, and nothing else.
    """
    reason = _incomparable(expected, actual, dtype)
    if reason is not None or actual is None:
        return LabelDifference(reason=reason)
    strange = np.zeros(0) if actual.dtype == bool else actual[(actual != 0) & (actual != 1)]
    if strange.size:
        return LabelDifference(reason=f"{strange.size} labels are neither 0 nor 1, the first is {strange[0]}")
    given = actual.astype(bool, copy=False)
    differs = expected.astype(bool, copy=False) != given
    count = 0
    if excused is not None:
        allowed = differs & excused.reshape(differs.shape) & given
        differs &= ~allowed
        count = int(allowed.sum())
    indices = np.argwhere(differs)
    values = None if raw is None else raw.reshape(differs.shape)[differs].astype(np.float32)
    distances = None
    if values is not None and boundary is not None:
        with np.errstate(invalid="ignore"):  # a signalling NaN, or both infinite
            distances = np.abs(values.astype(np.float64) - boundary)
    wanted = expected[differs].astype(bool)
    known = np.zeros(0) if distances is None else distances[~np.isnan(distances)]
    return LabelDifference(
        count=expected.size,
        flipped=len(indices),
        near=int((distances <= band).sum()) if band > 0 and distances is not None else 0,
        excused=count,
        flips=tuple(
            _flip_at(index, bool(wanted[i]), None if values is None else float(values[i]), boundary)
            for i, index in enumerate(indices[:SHOWN])
        ),
        nearest=float(known.min()) if known.size else None,
        farthest=float(known.max()) if known.size else None,
    )


def compare_scores(
    expected: AnyArray,
    actual: AnyArray | None,
    *,
    tolerance: Tolerance = EXACT,
    nan: NanRule = "anomalous",
    excused: AnyArray | None = None,
    dtype: str | None = "float32",
) -> ScoreDifference:
    """Compare scores or maps by their absolute difference, which has to be exact unless a tolerance is given.

    `actual` has the shape of `expected` and the type `dtype` where that is given; None counts as missing. With ``nan``
    as ``"anomalous"`` a NaN may come out as NaN or 1.0 and never below 1.0 (docs/definition.md section 5), with
    ``"same"`` it must come out as NaN. `excused` is bool, as many elements: where NaN or 1.0 may come out though the
    reference gives a number.
    """
    reason = _incomparable(expected, actual, dtype)
    if reason is not None or actual is None:
        return ScoreDifference(tolerance=tolerance, reason=reason)
    with np.errstate(invalid="ignore"):  # signalling NaN, and infinities subtracted
        wanted, found = expected.ravel(), actual.ravel()
        error = np.subtract(wanted, found, dtype=np.float64)
    np.abs(error, out=error)
    strange = np.flatnonzero(np.isnan(error))  # few, so that the rest is gone through as seldom as can be
    is_same = wanted[strange] == found[strange]
    error[strange[is_same]] = 0.0  # both infinite
    wrong, odd = ~(error <= tolerance.atol), strange[~is_same]  # a NaN on one side or on both
    wrong[odd] = ~(np.isnan(wanted[odd]) & _is_highest(found[odd], nan))
    allowed = np.zeros(0, np.intp)
    if excused is not None:
        allowed = np.flatnonzero(wrong)
        allowed = allowed[excused.ravel()[allowed] & _is_highest(found[allowed], nan)]
        wrong[allowed] = False
    no_numbers = np.union1d(odd, allowed)
    over = int(np.count_nonzero(wrong))
    error[no_numbers] = 0.0
    ranked = np.where(wrong, error, -1.0) if over else error
    if over:
        ranked[odd[wrong[odd]]] = np.inf
    worst = int(np.argmax(ranked)) if ranked.size else 0
    errors = Distances()
    errors.add(np.delete(error, no_numbers) if no_numbers.size else error)
    return ScoreDifference(
        tolerance=tolerance,
        count=wanted.size,
        over=over,
        excused=allowed.size,
        numbers=wanted.size - no_numbers.size,
        largest=float(error.max(initial=0.0)),
        total=float(error.sum()),
        index=tuple(int(i) for i in np.unravel_index(worst, expected.shape)) if ranked.size else None,
        expected=float(wanted[worst]) if ranked.size else None,
        actual=float(found[worst]) if ranked.size else None,
        errors=errors,
    )


def _is_highest(found: AnyArray, nan: NanRule) -> NDArray[np.bool_]:
    """Return where scores are as a NaN may come out."""
    return np.isnan(found) | (found >= 1.0) if nan == "anomalous" else np.isnan(found)


def ulps_between(value: float, reference: float) -> int | None:
    """Return how many float32 steps `value` lies above `reference`; None unless both are finite."""
    if not (np.isfinite(value) and np.isfinite(reference)):
        return None
    return rank_of(value) - rank_of(reference)


def _flip_at(index: Iterable[int], expected: bool, raw: float | None, boundary: float | None) -> Flip:
    flip: Flip = {"index": tuple(map(int, index)), "expected": expected, "raw": raw, "distance": None, "ulps": None}
    if raw is not None and boundary is not None:
        flip |= {"distance": raw - boundary, "ulps": ulps_between(raw, boundary)}
    return {**flip, "part": 0}


def _incomparable(expected: AnyArray, actual: AnyArray | None, dtype: str | None) -> str | None:
    if actual is None:
        return "the output is missing"
    if dtype is not None and str(actual.dtype) != dtype:
        return f"expected dtype {dtype}, found {actual.dtype}"
    if expected.shape != actual.shape:
        return f"expected shape {list(expected.shape)}, found {list(actual.shape)}"
    return None


SAME_MODEL: Final = 0.01
"""How much of its range a raw value of one model may move from export to export, on the probe of `belonging`.

Measured: up to 3e-6 between exports, 7e-4 with weights in float16, 3e-3 in bfloat16; from 0.019 on between models that
differ in their seed, in what they were trained on, or in the samples that a memory kept (`benchmarks/belonging.py`).
"""
CONSTANT: Final = 1e-5
"""A probe on which a model's values lie closer together than that part of the range tells nothing."""
