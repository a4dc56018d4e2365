"""float32 scalars as Python floats: rounding, order, neighbours, and the shortest decimal that reads back."""

from bisect import bisect_left
from collections.abc import Callable
from fractions import Fraction
from typing import Final

import numpy as np

SMALLEST_NORMAL: Final = 2.0**-126
LARGEST: Final = float(np.finfo(np.float32).max)

_INFINITE_RANK: Final = 0x7F800000  # the bits of +inf; every finite value has fewer
_FINITE_RANKS: Final = range(1 - _INFINITE_RANK, _INFINITE_RANK)


def to_float32(value: float) -> float:
    """Round to the nearest float32 (ties to even), `-0.0` becoming `0.0`, and return it as a Python float."""
    with np.errstate(over="ignore", under="ignore"):
        return float(np.float32(value)) + 0.0


def is_subnormal(value: float) -> bool:
    """Whether a float32 lies strictly between -2^-126 and 2^-126 and is not zero."""
    return 0.0 < abs(value) < SMALLEST_NORMAL


def shortest(value: float) -> float:
    """Return the float whose `repr` is the shortest decimal that reads back to the same float32."""
    text = float(str(np.float32(value)))
    assert to_float32(text) == value, f"{value!r} is not a float32"
    return text


def next_up(value: float) -> float:
    """Return the smallest float32 above `value`; `inf` stays."""
    with np.errstate(over="ignore", under="ignore"):
        return float(np.nextafter(np.float32(value), np.float32(np.inf))) + 0.0


def ranked(rank: int) -> float:
    """Return the float32 at a place in the order of all: rank 0 is 0.0, rank 1 is 2^-149, rank -1 is -2^-149."""
    magnitude = float(np.uint32(abs(rank)).view(np.float32))
    return -magnitude if rank < 0 else magnitude


def smallest_where(holds: Callable[[float], bool]) -> float:
    """Return the smallest finite float32 for which a condition holds; `inf` where it holds for none.

    Notes
    -----
    The condition has to be monotone: where it holds for a value, it holds for every greater one. Bisection over the
    ranks, 32 calls. Both zeros have rank 0, so `-0.0` is never returned.
    """
    place = bisect_left(_FINITE_RANKS, True, key=lambda rank: holds(ranked(rank)))
    return ranked(_FINITE_RANKS[place]) if place < len(_FINITE_RANKS) else float("inf")


def smallest_at_least(bound: Fraction) -> float:
    """Return the smallest finite float32 that is not below an exact rational; `inf` above the largest one."""
    return smallest_where(lambda value: Fraction(value) >= bound)


def nearest(value: Fraction) -> float:
    """Return the float32 nearest to an exact rational (ties to even), rounded once, never to `-0.0`.

    Notes
    -----
    `float32(float(value))` would round twice and can be 1 ulp off. Beyond the largest float32 the next value counts as
    2^128, as IEEE 754 has it.
    """
    if value < 0:
        return 0.0 - nearest(-value)
    above = bisect_left(range(_INFINITE_RANK), value, key=_exact)
    if above == 0:
        return 0.0
    below = above - 1
    excess = (_exact(below) + _exact(above)) / 2 - value
    upwards = excess < 0 or (excess == 0 and above % 2 == 0)
    return ranked(above if upwards else below)


def _exact(rank: int) -> Fraction:
    return Fraction(2) ** 128 if rank == _INFINITE_RANK else Fraction(ranked(rank))
