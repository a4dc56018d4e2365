"""The numbers of a decision: the boundary, the constants of the normalised score, and how far they may be off.

Everything here is pure arithmetic on the float32 statistics: docs/definition.md sections 3 and 4.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from postproc_export.errors import MetadataError, UsageError
from postproc_export.float32 import (
    HALVES,
    HostDtype,
    is_subnormal,
    narrowed,
    nearest,
    smallest_at_least,
    smallest_where,
    to_float32,
)
from postproc_export.stats import LevelStats

Comparison = Literal["ge", "gt"]
Form = Literal["fused", "centred"]

DEFAULT_SENSITIVITY: Final = 0.5
FUSED_LIMIT: Final = 1e-5
"""The largest error of the normalised score for which the one-operator form is taken."""

_HALF: Final = Fraction(1, 2)
_UNIT_ROUNDOFF: Final = 2.0**-24


@dataclass(frozen=True, slots=True)
class UnitConstants:
    """The constants of the exported normalised score ``max(0, min(1, alpha * x + beta))``, all float32.

    alpha is in 1 / raw unit, beta in unit scores. The offset, raw units, is subtracted first (``x = raw - offset``);
    where there is none, ``x`` is the raw value itself.
    """

    alpha: float
    beta: float
    offset: float | None = None


def decision_boundary(
    level: LevelStats,
    *,
    sensitivity: float = DEFAULT_SENSITIVITY,
    comparison: Comparison = "ge",
    dtype: object = "float32",
) -> float:
    """Return the raw value from which on a score is anomalous: ``label(s) = not (s < boundary)``.

    Parameters
    ----------
    level
        Statistics of the level, with a threshold.
    sensitivity
        In [0, 1], rounded to float32; higher finds more anomalies.
    comparison
        ``"ge"``: the exact rule ``s >= threshold + (1/2 - sensitivity) (max - min)``.
        ``"gt"``: Anomalib's float32 rule ``unit(s) > 1 - sensitivity``, for those who migrate.
    dtype
        The declared type of the raw output: ``"float16"`` or ``"bfloat16"``, by name or as NumPy and torch have it,
        gives the constant that decides alike on a value and on its rounding to that type; see `narrowed`.

    Returns
    -------
    float
        A float32 in raw units, never subnormal, never -0.0. ``-inf``: every score is anomalous (``"ge"`` at sensitivity
        1); ``inf``: no finite score is. With a narrow `dtype` the value that rounds to infinity stands for ``inf``.

    Raises
    ------
    MetadataError
        If the level has no threshold, the sensitivity is not in [0, 1], or the boundary would be subnormal.
    UsageError
        If the comparison is neither ``"ge"`` nor ``"gt"``, or the type is none of raw outputs.

    Notes
    -----
    Source: docs/definition.md section 4; ``"gt"`` agrees with anomalib 2.7.0 PostProcessor on every float32 but ``inf``
    at sensitivity 0, where Anomalib calls nothing anomalous.
    """
    boundary = _RULES[check_comparison(comparison)](level, check_sensitivity(sensitivity))
    if is_subnormal(boundary):
        raise MetadataError(
            f"the decision boundary is a subnormal float32 at sensitivity {sensitivity}",
            found=f"{boundary!r}",
            needed="0, or a magnitude of at least 2^-126: some runtimes flush smaller constants to zero",
            fix="choose another threshold or sensitivity, or rescale the raw outputs of the model",
        )
    return narrowed(boundary, check_dtype(dtype))


def unit_scores(raw: ArrayLike, level: LevelStats) -> NDArray[np.float32]:
    """Return ``clamp((raw - threshold) / (max - min) + 0.5, 0, 1)``, every step rounded to float32.

    Raw scores may have any shape, and are cast to float32 first; NaN stays NaN, and the threshold gives exactly 0.5.
    Source: docs/definition.md section 3; the same bits as anomalib 2.7.0 PostProcessor on a CPU.
    """
    with np.errstate(over="ignore", under="ignore"):
        scores = np.asarray(raw).astype(np.float32)
        centred = scores - np.float32(_threshold(level))
        unclamped = centred / np.float32(level.span) + np.float32(0.5)
    return np.asarray(np.clip(unclamped, np.float32(0.0), np.float32(1.0)))


def unit_constants(level: LevelStats, form: Form) -> UnitConstants:
    """Return the constants of the normalised score in one form, each rounded once from the exact rational.

    ``"fused"``: ``hard_sigmoid(raw; 1/span, 1/2 - threshold/span)``.
    ``"centred"``: ``hard_sigmoid(raw - threshold; 1/span, 1/2)``.
    """
    threshold, span = Fraction(_threshold(level)), Fraction(level.span)
    if form == "centred":
        return UnitConstants(alpha=nearest(1 / span), beta=0.5, offset=float(threshold))
    return UnitConstants(alpha=nearest(1 / span), beta=nearest(_HALF - threshold / span))


def error_bound(level: LevelStats, form: Form) -> float:
    """Return how far the exported normalised score may lie from the float32 reference, in unit scores.

    With u = 2^-24 and r = |threshold| / span, wherever the clamp does not act: |raw - threshold| <= span / 2 and |raw|
    <= (r + 1/2) span. The reference rounds three times: the difference (u/2), the quotient (u/4), the sum (u/2). The
    fused form rounds alpha, its product with raw, and beta, each of them at most r + 1/2 and so by at most (r + 1/2) u,
    and the sum (u/2). Together (3 r + 3.25) u; the promise is (3 r + 5) u. The centred form shares the reference's
    difference and rounds alpha (u/2), the product (u/4) and the sum (u/2): together with the reference's quotient and
    sum 2 u; the promise is 2.5 u. A fused multiply-add rounds once less. Where the clamp acts, both are monotone and
    the bound at the edge holds beyond it.
    """
    if form == "centred":
        return 2.5 * _UNIT_ROUNDOFF
    ratio = abs(_threshold(level)) / level.span
    return (3.0 * ratio + 5.0) * _UNIT_ROUNDOFF


def choose_form(level: LevelStats) -> Form:
    """Return the one-operator form, unless its error bound exceeds 1e-5 (|threshold| / span above about 54).

    Nor where beta would be 0: OpenVINO's CPU plugin (2026.4.1) computes a HardSigmoid of beta 0 as one of 0.5.
    """
    if unit_constants(level, "fused").beta == 0.0:
        return "centred"
    return "fused" if error_bound(level, "fused") <= FUSED_LIMIT else "centred"


def check_sensitivity(value: object, *, name: str = "sensitivity") -> float:
    """Return a sensitivity rounded to float32; raises MetadataError unless it is a number (no bool) in [0, 1]."""
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= 1:  # type: ignore[operator]
        raise MetadataError(f"{name} is not a number in [0, 1]", found=repr(value)[:60], needed="0 <= sensitivity <= 1")
    return to_float32(float(value))  # type: ignore[arg-type]


def check_comparison(value: object) -> Comparison:
    """Return the name of a rule that is known; raises UsageError unless it is ``"ge"`` or ``"gt"``."""
    if value == "ge":
        return "ge"
    if value == "gt":
        return "gt"
    raise UsageError("unknown comparison", found=repr(value)[:60], needed="'ge' or 'gt'")


def check_dtype(value: object) -> HostDtype:
    """Return which type of raw output decisions depend on: float32 stands for float64, which is cast to it.

    Raises UsageError unless it is, or names, ``float16``, ``bfloat16``, ``float32`` or ``float64``.
    """
    name = str(getattr(value, "__name__", value)).rpartition(".")[2]
    if name in ("float32", "float64"):
        return "float32"
    for half in HALVES:
        if name == half:
            return half
    raise UsageError(
        "no raw output has this type", found=repr(value)[:60], needed="'float16', 'bfloat16', 'float32' or 'float64'"
    )


def _boundary_ge(level: LevelStats, sensitivity: float) -> float:
    threshold = Fraction(_threshold(level))
    if sensitivity == 1.0:
        return float("-inf")
    # max - min as rationals: the float32 span belongs to the normalised score alone
    return smallest_at_least(threshold + (_HALF - Fraction(sensitivity)) * (Fraction(level.max) - Fraction(level.min)))


def _boundary_gt(level: LevelStats, sensitivity: float) -> float:
    cut = np.float32(1.0) - np.float32(sensitivity)
    # -inf never has it: its unit score is 0, and the cut is never below 0
    return smallest_where(lambda value: bool(unit_scores(value, level) > cut))


def _threshold(level: LevelStats) -> float:
    if level.threshold is None:
        raise MetadataError(
            "the level has a range but no threshold",
            needed="a threshold of its own, or the other level's",
            fix="calibrate the level with labels, or borrow the other level's threshold (match thresholds)",
        )
    return level.threshold


_RULES: Final[dict[Comparison, Callable[[LevelStats, float], float]]] = {"ge": _boundary_ge, "gt": _boundary_gt}
