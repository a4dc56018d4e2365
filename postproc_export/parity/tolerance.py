"""Every tolerance of the project, each with its reason; what is not in this table is compared exactly."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

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


EXACT: Final = Tolerance(atol=0.0, reason="a comparison does not round, and a copy does not either")


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


TOLERANCES: Final[Mapping[str, Callable[[LevelStats], Tolerance]]] = {
    "fused": fused,
    "centred": centred,
    "recompiled": recompiled,
}
