"""Every tolerance of the project, each with its reason; what is not in this table is compared exactly."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from postproc_export.float32 import LEAST_HALF_ULP, SIGNIFICAND, Half
from postproc_export.stats import LevelStats


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """An absolute difference that is allowed.

    Parameters
    ----------
    atol
        Largest absolute difference, in the unit of what is compared; never relative, for ulps explode near 0.
    reason
        Why it is not zero, and how it was derived.
    """

    atol: float
    reason: str


_PRECISIONS: Final = {"float32": 24, **{str(half): bits for half, bits in SIGNIFICAND.items()}}

EXACT: Final = Tolerance(atol=0.0, reason="a comparison does not round, and a copy does not either")


def together(*parts: Tolerance) -> Tolerance:
    """Return the sum of tolerances, with the reasons of those that allow anything."""
    allowed = [part for part in parts if part.atol]
    reason = "; ".join(part.reason for part in allowed)
    return Tolerance(atol=sum(part.atol for part in allowed), reason=reason) if allowed else EXACT


def fused(level: LevelStats) -> Tolerance:
    """Return the tolerance of max(0, min(1, alpha x + beta)).

    Notes
    -----
    alpha = 1/span and beta = 1/2 - threshold/span are rounded to float32 once each, the product and the sum once each,
    and the reference rounds three times; each rounding is at most half an ulp of a number of size up to r + 1, with
    r = |threshold| / span, wherever the result is not clamped. Summed: (3 r + 5) 2^-24.
    """
    from postproc_export.boundary import error_bound

    return Tolerance(
        atol=error_bound(level, "fused"),
        reason="one multiply and one add with constants rounded to float32: (3 r + 5) 2^-24, r = |threshold| / span",
    )


def centred(level: LevelStats) -> Tolerance:
    """Return the tolerance of max(0, min(1, alpha (x - threshold) + 1/2)).

    Notes
    -----
    The subtraction is the reference's own, rounded alike; what is left is the rounding of 1/span, of the product and
    of the sum, all of numbers of size up to 1, wherever the result is not clamped.
    """
    from postproc_export.boundary import error_bound

    return Tolerance(
        atol=error_bound(level, "centred"),
        reason="subtraction first, as the reference does; then one multiply and one add of numbers of size up to 1",
    )


def recompiled(level: LevelStats) -> Tolerance:
    """Return how far a raw value may move when the same body is compiled twice at float32, raw units.

    Notes
    -----
    A runtime picks kernels by the graph's end, so a body with a tail may sum in another order than without. The
    largest difference over 15 exported models between float32 runs was 1.4e-5 of the span; this allows seven times
    that. It bounds where a flip may lie, and never hides one.
    """
    return Tolerance(
        atol=1e-4 * level.span,
        reason="another order of summation in a body compiled apart, float32: 1e-4 of the span (1.4e-5 measured)",
    )


def exported(level: LevelStats) -> Tolerance:
    """Return how far a raw value of an export may lie from the PyTorch model's, both at float32, raw units.

    Notes
    -----
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

    Parameters
    ----------
    low, high
        The lowest and highest value that the model gave, raw units.

    Notes
    -----
    It tells a graph that computes something else from one that rounds otherwise, before a calibration is begun;
    decisions are held against `exported` afterwards. Beside the share of the range it allows 128 roundings of the
    largest value, for the values of a few inputs may be all but equal.
    """
    return Tolerance(
        atol=1e-4 * (high - low) + 2.0**-17 * max(abs(low), abs(high)),
        reason="another implementation of the operators: 1e-4 of the range seen, and 2^-17 of the largest value",
    )


def own(low: float, high: float, dtypes: Iterable[str] = ("float32",)) -> Tolerance:
    """Return how far a value behind a class of one's own may lie from its eager run on the same raw values.

    Parameters
    ----------
    low, high
        The lowest and highest value behind the class, raw units.
    dtypes
        The element types of what it is given, in which it computes.

    Notes
    -----
    Nothing is known of such a class but that its operators are the same: 1e-5 of the range, and 16 roundings of the
    largest value in the coarsest of the types.
    """
    bits = min(_PRECISIONS.get(dtype, 24) for dtype in dtypes)
    return Tolerance(
        atol=1e-5 * (high - low) + 16 * 2.0**-bits * max(abs(low), abs(high)),
        reason=f"another implementation of the operators: 1e-5 of the range, and 2^-{bits - 4} of the largest value",
    )


def transformed(bound: float) -> Tolerance:
    """Return how far a value behind shipped transforms may lie from their eager twin on the same raw values.

    Parameters
    ----------
    bound
        The sum of what each of them may round, raw units; see `transforms.step.Transform`.

    Notes
    -----
    Sums of n products are off by at most n + 1 roundings of the largest value in each of two implementations, weights
    that sum to 1 hand on what came in; docs/tails.md lists the bound of each transform.
    """
    return Tolerance(atol=bound, reason="another order of summation in float32, as docs/tails.md bounds it")


def narrow(largest: float, dtype: Half) -> Tolerance:
    """Return how far a raw value may lie from its rounding to a narrow type, which a runtime may drop, raw units.

    Parameters
    ----------
    largest
        The largest magnitude that counts, raw units.
    dtype
        The type in which the model declares its raw values.

    Notes
    -----
    Half the distance of two values of the type is at most 2^-p of them, p the bits of a significand, and h around 0.
    Where scores are clamped no value above (r + 1/2) span counts, with r = |threshold| / span: of a normalised score
    that is (r + 1/2) 2^-p + h / span.
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

    Notes
    -----
    threshold + (0.5 - a) span in float32, in either order in which a runtime takes the steps: docs/definition.md
    section 4 states 2^-22 (|threshold| + span). At the attached sensitivity the boundary is a constant: exact labels.
    """
    from postproc_export.adjusting import adjusted_error

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
