"""float32 scalars as Python floats: rounding, order, neighbours, the shortest decimal, and two narrower types."""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from ctypes import c_float
from fractions import Fraction
from functools import lru_cache
from math import frexp
from typing import Final, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

Half: TypeAlias = Literal["float16", "bfloat16"]
HostDtype: TypeAlias = Half | Literal["float32"]
"""The type that a host rounds its raw values to, as far as the decision depends on it."""

HALVES: Final[tuple[Half, ...]] = get_args(Half)

SMALLEST_NORMAL: Final = 2.0**-126
LARGEST: Final = float(np.finfo(np.float32).max)

SIGNIFICAND: Final[dict[Half, int]] = {"float16": 11, "bfloat16": 8}
"""The bits of a narrower type's significand, the leading one included."""

LEAST_HALF_ULP: Final[dict[Half, float]] = {"float16": 2.0**-25, "bfloat16": 2.0**-134}
"""Half the distance of neighbours around 0, where it is smallest."""

_INFINITE_RANK: Final = 0x7F800000  # the bits of +inf; every finite value has fewer
_FINITE_RANKS: Final = range(1 - _INFINITE_RANK, _INFINITE_RANK)


def to_float32(value: float) -> float:
    """Round to the nearest float32 (ties to even), `-0.0` becoming `0.0`, and return it as a Python float."""
    return c_float(value).value + 0.0  # NumPy takes ten times as long where it is not to warn


def is_subnormal(value: float) -> bool:
    """Whether a float32 lies strictly between -2^-126 and 2^-126 and is not zero."""
    return 0.0 < abs(value) < SMALLEST_NORMAL


def shortest(value: float) -> float:
    """Return the float whose `repr` is the shortest decimal that reads back to the same float32."""
    text = float(str(np.float32(value)))
    assert to_float32(text) == value, f"{value!r} is not a float32"
    return text


def shortest_of(values: NDArray[np.float32]) -> list[float]:
    """Return `shortest` of each of many values."""
    return [float(str(value)) for value in values]


def json_number(value: float | None) -> float | str | None:
    """Return a float32 for JSON: the shortest decimal; an infinity as text, since JSON has none."""
    if value is None:
        return None
    return shortest(value) if np.isfinite(value) else str(value)


def next_up(value: float) -> float:
    """Return the smallest float32 above `value`; `inf` stays."""
    with np.errstate(over="ignore", under="ignore"):
        return float(np.nextafter(np.float32(value), np.float32(np.inf))) + 0.0


def ranked(rank: int) -> float:
    """Return the float32 at a place in the order of all: rank 0 is 0.0, rank 1 is 2^-149, rank -1 is -2^-149."""
    magnitude = float(np.uint32(abs(rank)).view(np.float32))
    return -magnitude if rank < 0 else magnitude


def rank_of(value: float) -> int:
    """Return the place of a float32 in the order of all: the inverse of `ranked`; both zeros have rank 0."""
    bits = int(np.float32(value).view(np.int32))
    return bits if bits >= 0 else -(bits & 0x7FFFFFFF)


def smallest_where(holds: Callable[[float], bool]) -> float:
    """Return the smallest finite float32 for which a condition holds; `inf` where it holds for none.

    The condition has to be monotone: where it holds for a value, it holds for every greater one. Bisection over the
    ranks, 32 calls. Both zeros have rank 0, so `-0.0` is never returned.
    """
    place = bisect_left(_FINITE_RANKS, True, key=lambda rank: holds(ranked(rank)))
    return ranked(_FINITE_RANKS[place]) if place < len(_FINITE_RANKS) else float("inf")


@lru_cache(maxsize=1024)  # a check asks again for every batch
def smallest_at_least(bound: Fraction) -> float:
    """Return the smallest finite float32 that is not below an exact rational; `inf` above the largest one."""
    if abs(bound) > LARGEST:
        return float("inf") if bound > 0 else -LARGEST
    near = rank_of(to_float32(float(bound)))  # rounded twice: at most one off
    return next((each for each in map(ranked, range(near - 1, near + 1)) if each >= bound), ranked(near + 1))


@lru_cache(maxsize=1024)  # a check asks again for every batch
def nearest(value: Fraction) -> float:
    """Return the float32 nearest to an exact rational (ties to even), rounded once, never to `-0.0`.

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


def as_bfloat16(values: ArrayLike) -> NDArray[np.float32]:
    """Round float32 values to the nearest bfloat16 (ties to even), as float32 values of the same shape; NaN stays."""
    exact = np.asarray(values, np.float32)
    bits = exact.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) & 0xFFFF0000
    return np.where(np.isnan(exact), np.float32(np.nan), rounded.astype(np.uint32).view(np.float32))


def rounded_to(value: float, dtype: Half) -> float:
    """Round a float32 to a narrower type (nearest, ties to even); beyond its largest value that is an infinity."""
    if dtype == "bfloat16":
        return float(as_bfloat16(value)) + 0.0
    with np.errstate(over="ignore", under="ignore"):
        return float(np.float16(value)) + 0.0


@lru_cache(maxsize=1024)  # a check asks again for every batch
def narrowed(boundary: float, dtype: HostDtype) -> float:
    """Return the constant that stands for a boundary, raw units, behind a host of a narrow type.

    Runtimes drop the rounding to the narrow type in front of the tail, so the constant is the smallest float32 that
    rounds to at least the boundary: rounding is monotone, so it decides alike on a value and on its rounding. At -inf
    that is -inf; above the largest narrow value it is the smallest float32 that rounds to infinity. Where it is
    subnormal, which runtimes flush to zero, it is the boundary itself: at 0 and 2^-126 in bfloat16.
    """
    if dtype == "float32" or boundary == float("-inf"):
        return boundary
    constant = smallest_where(lambda value: rounded_to(value, dtype) >= boundary)
    return boundary if is_subnormal(constant) else constant


def narrow_readings(constant: float) -> Iterator[tuple[Half, float]]:
    """Yield each narrow type for which a constant may stand, and the value of it that it stands for: see `narrowed`."""
    for half in HALVES:
        value = rounded_to(constant, half)
        if narrowed(value, half) == constant != value:
            yield half, value


def half_ulp(value: float, dtype: Half) -> float:
    """Return half the distance between the neighbours of a narrower type around a finite value."""
    least = LEAST_HALF_ULP[dtype]
    return max(2.0 ** (frexp(value)[1] - SIGNIFICAND[dtype] - 1), least) if value else least


def _exact(rank: int) -> Fraction:
    return Fraction(2) ** 128 if rank == _INFINITE_RANK else Fraction(ranked(rank))
