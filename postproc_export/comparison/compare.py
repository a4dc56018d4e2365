"""Compare what a runtime gave with what the reference gave; needs NumPy only.

Shape and dtype are compared before values. The results are objects with a truth value (`parity.difference`).
"""

from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from postproc_export.comparison.difference import SHOWN, Flip, LabelDifference, ScoreDifference
from postproc_export.comparison.tolerance import EXACT, Tolerance

AnyArray: TypeAlias = NDArray[Any]
NanRule: TypeAlias = Literal["anomalous", "same"]

_BUCKETS: Final = 1 << 15


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

    Parameters
    ----------
    expected
        bool, any shape: the reference's labels.
    actual
        The same shape, of type `dtype` where that is given; every element must be 0 or 1. None counts as missing.
    raw
        float32, the same number of elements: the raw values that the reference decided on, for the distances.
    boundary
        The decision boundary, raw units.
    excused
        bool, the same number of elements: where the label may be 1 though the reference says 0, and nothing else.
    band
        Distance from the boundary, raw units, up to which a flip is counted as near; needs `raw` and `boundary`.
    """
    reason = _incomparable(expected, actual, dtype)
    if reason is not None or actual is None:
        return LabelDifference(reason=reason)
    strange = ~np.isin(actual, (0, 1))
    if strange.any():
        return LabelDifference(
            reason=f"{int(strange.sum())} labels are neither 0 nor 1, the first is {actual[strange][0]}"
        )
    differs = expected.astype(bool) != actual.astype(bool)
    allowed = np.zeros_like(differs)
    if excused is not None:
        allowed = differs & excused.reshape(differs.shape) & actual.astype(bool)
        differs &= ~allowed
    indices = np.argwhere(differs)
    values = None if raw is None else raw.reshape(differs.shape)[differs].astype(np.float32)
    distances = None if values is None or boundary is None else _distances(values, boundary)
    wanted = expected[differs].astype(bool)
    known = np.zeros(0) if distances is None else distances[~np.isnan(distances)]
    return LabelDifference(
        count=expected.size,
        flipped=len(indices),
        near=int((distances <= band).sum()) if band > 0 and distances is not None else 0,
        excused=int(allowed.sum()),
        flips=tuple(
            _flip(tuple(map(int, indices[i])), bool(wanted[i]), None if values is None else float(values[i]), boundary)
            for i in range(min(SHOWN, len(indices)))
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
    """Compare scores or maps by their absolute difference.

    Parameters
    ----------
    expected
        Floating point, any shape: the reference's scores.
    actual
        The same shape, of type `dtype` where that is given. None counts as missing.
    tolerance
        The absolute difference that is allowed; exact unless given.
    nan
        ``"anomalous"``: a NaN may come out as NaN or 1.0 and never below 1.0 (docs/definition.md section 5).
        ``"same"``: a NaN must come out as NaN.
    excused
        bool, the same number of elements: where NaN or 1.0 may come out though the reference gives a number.
    """
    reason = _incomparable(expected, actual, dtype)
    if reason is not None or actual is None:
        return ScoreDifference(tolerance=tolerance, reason=reason)
    with np.errstate(invalid="ignore"):  # signalling NaN, and infinities subtracted
        wanted, found = expected.astype(np.float64).ravel(), actual.astype(np.float64).ravel()
        numbers = ~np.isnan(wanted) & ~np.isnan(found)
        error = np.where(wanted == found, 0.0, np.abs(wanted - found))
    highest = np.isnan(found) | (found >= 1.0) if nan == "anomalous" else np.isnan(found)
    wrong = np.where(numbers, ~(error <= tolerance.atol), ~(np.isnan(wanted) & highest))
    allowed = np.zeros_like(wrong) if excused is None else wrong & excused.ravel() & highest
    wrong &= ~allowed
    counted = np.where(numbers & ~allowed, error, 0.0)
    ranked = np.where(wrong, np.where(numbers, error, np.inf), -1.0) if wrong.any() else counted
    worst = int(np.argmax(ranked)) if ranked.size else 0
    return ScoreDifference(
        tolerance=tolerance,
        count=wanted.size,
        over=int(wrong.sum()),
        excused=int(allowed.sum()),
        numbers=int((numbers & ~allowed).sum()),
        largest=float(counted.max(initial=0.0)),
        total=float(counted.sum()),
        index=tuple(int(i) for i in np.unravel_index(worst, expected.shape)) if ranked.size else None,
        expected=float(wanted[worst]) if ranked.size else None,
        actual=float(found[worst]) if ranked.size else None,
        histogram=_histogram(error[numbers & ~allowed]),
    )


def ulps_between(value: float, reference: float) -> int | None:
    """Return how many float32 steps `value` lies above `reference`; None unless both are finite."""
    if not (np.isfinite(value) and np.isfinite(reference)):
        return None
    return _ordered(value) - _ordered(reference)


def _ordered(value: float) -> int:
    bits = int(np.float32(value).view(np.int32))
    return bits if bits >= 0 else -(bits & 0x7FFFFFFF)


def _distances(values: AnyArray, boundary: float) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # a signalling NaN, or both infinite
        return np.abs(values.astype(np.float64) - boundary)


def _flip(index: tuple[int, ...], expected: bool, raw: float | None, boundary: float | None) -> Flip:
    if raw is None or boundary is None:
        return Flip(index=index, expected=expected, raw=raw)
    return Flip(index=index, expected=expected, raw=raw, distance=raw - boundary, ulps=ulps_between(raw, boundary))


def _incomparable(expected: AnyArray, actual: AnyArray | None, dtype: str | None) -> str | None:
    if actual is None:
        return "the output is missing"
    if dtype is not None and str(actual.dtype) != dtype:
        return f"expected dtype {dtype}, found {actual.dtype}"
    if expected.shape != actual.shape:
        return f"expected shape {list(expected.shape)}, found {list(actual.shape)}"
    return None


def _histogram(error: AnyArray) -> NDArray[np.int64]:
    bits = np.ascontiguousarray(error.astype(np.float32)).view(np.uint32)
    return np.bincount(bits >> 16, minlength=_BUCKETS).astype(np.int64)
