"""Adversarial raw values: around every boundary, special values, and shapes that break reductions."""

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from postproc_export.float32 import as_bfloat16, rank_of
from postproc_export.stats import LevelStats

FloatArray: TypeAlias = NDArray[np.floating[Any]]

COUNT: Final = 100_000
SEED: Final = 20_240
NEIGHBOURS: Final = 64
MODERATE: Final = 1e30  # a map of values below this does not overflow when it is summed

_BITS: Final = {
    "quiet NaN": 0x7FC00000,
    "negative NaN": 0xFFC00000,
    "NaN with a payload": 0x7FC12345,
    "signalling NaN": 0x7F800001,
    "inf": 0x7F800000,
    "-inf": 0xFF800000,
    "largest": 0x7F7FFFFF,
    "-largest": 0xFF7FFFFF,
    "0": 0x00000000,
    "-0": 0x80000000,
    "smallest subnormal": 0x00000001,
    "-smallest subnormal": 0x80000001,
    "largest subnormal": 0x007FFFFF,
    "-largest subnormal": 0x807FFFFF,
    "smallest normal": 0x00800000,
    "-smallest normal": 0x80800000,
}
SPECIAL: Final = np.array(list(_BITS.values()), np.uint32).view(np.float32)
SPECIAL.flags.writeable = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RawValues:
    """Raw values of one level.

    Parameters
    ----------
    critical
        Around the boundary, the threshold, min, max and 0: up to 64 float32 steps to either side. Moderate values.
    ordinary
        A dense sample of the range and beyond, thousands of steps around the boundary, and all magnitudes below 1e30.
    rising, falling
        Magnitudes of 1e30 and above, of one sign each.
    special
        NaN, infinities, zeros, subnormals and the largest numbers: each belongs into a map of its own.

    Notes
    -----
    All are of the raw output's own type; float32 stands in for bfloat16, with values that bfloat16 can hold.
    """

    critical: FloatArray
    ordinary: FloatArray
    rising: FloatArray
    falling: FloatArray
    special: FloatArray

    @property
    def all(self) -> FloatArray:
        """Every value, the special ones first."""
        return np.concatenate([self.special, self.critical, self.ordinary, self.rising, self.falling])

    @property
    def few(self) -> FloatArray:
        """The special and the critical values."""
        return np.concatenate([self.special, self.critical])


def raw_values(
    level: LevelStats, boundary: float, *, dtype: str = "float32", count: int = COUNT, seed: int = SEED
) -> RawValues:
    """Return at least `count` raw values of a level that seek trouble.

    Parameters
    ----------
    level
        The statistics that the tail decides by, threshold included.
    boundary
        The decision boundary, raw units; infinities are legal.
    dtype
        ``"float16"``, ``"bfloat16"``, ``"float32"`` or ``"float64"``: the type of the raw output.
    """
    assert level.threshold is not None, "a level without a threshold has no tail"
    random = np.random.default_rng(seed)
    anchors = np.array([boundary, level.threshold, level.min, level.max, 0.0], np.float32)
    critical = np.concatenate([_around(anchor, np.arange(-NEIGHBOURS, NEIGHBOURS + 1)) for anchor in anchors])
    low, high = float(level.min) - level.span, float(level.max) + level.span
    largest = float(np.finfo(np.float32).max)
    drawn = np.concatenate(
        [
            np.linspace(max(low, -largest), min(high, largest), count // 2).astype(np.float32),
            _around(np.float32(boundary), random.integers(-(1 << 14), 1 << 14, count // 4)),
            _random_floats(random, count // 2),
        ]
    )
    if dtype == "float64":
        critical = np.concatenate([critical, _between(float(boundary))])
    critical, drawn = _as_raw(critical, dtype), _as_raw(drawn, dtype)
    rising = np.concatenate([group[group.astype(np.float64) >= MODERATE] for group in (critical, drawn)])
    falling = np.concatenate([group[group.astype(np.float64) <= -MODERATE] for group in (critical, drawn)])
    return RawValues(
        critical=critical[np.abs(critical.astype(np.float64)) < MODERATE],
        ordinary=drawn[np.abs(drawn.astype(np.float64)) < MODERATE],
        rising=rising,
        falling=falling,
        special=_as_raw(SPECIAL, dtype),
    )


def maps_of(values: RawValues, *, height: int, width: int, filler: float, few: bool = False) -> FloatArray:
    """Pack raw values into maps, shape (n, height, width); each special value stands alone in a map of `filler`.

    Notes
    -----
    The special values stand first, in the middle and last in their maps: a runtime's reduction may treat a NaN by its
    place. Huge values of both signs never share a map, so no partial sum overflows both ways.
    """
    size = height * width
    special = np.full((len(values.special), size), filler, values.special.dtype)
    special[np.arange(len(special)), np.arange(len(special)) % 3 * (size - 1) // 2] = values.special
    groups = [values.critical] if few else [values.critical, values.ordinary, values.rising, values.falling]
    packed = [special, *(_fill(group, size, filler) for group in groups if group.size)]
    return np.concatenate(packed).reshape(-1, height, width)


def _fill(values: FloatArray, size: int, filler: float) -> FloatArray:
    missing = -len(values) % size
    return np.concatenate([values, np.full(missing, filler, values.dtype)]).reshape(-1, size)


def _around(anchor: np.float32, steps: NDArray[np.int64]) -> NDArray[np.float32]:
    """Step through the finite float32 values near an anchor; steps beyond the largest stay there."""
    limit = 0x7F7FFFFF
    ordered = np.clip(rank_of(float(anchor)) + steps, -limit, limit)
    patterns = np.where(ordered >= 0, ordered, (-ordered) | 0x80000000)
    return patterns.astype(np.uint32).view(np.float32)


def _between(anchor: float) -> NDArray[np.float64]:
    """Return float64 values between a float32 and its neighbours: the cast decides on which side they fall."""
    if not np.isfinite(anchor):
        return np.zeros(0, np.float64)
    below, above = _around(np.float32(anchor), np.array([-1, 1])).astype(np.float64)
    parts = np.linspace(0.0, 1.0, 65)
    ties = np.array([(below + anchor) / 2, (above + anchor) / 2])
    near = np.concatenate([ties, np.nextafter(ties, -np.inf), np.nextafter(ties, np.inf)])
    return np.concatenate([below + (anchor - below) * parts, anchor + (above - anchor) * parts, near])


def _random_floats(random: np.random.Generator, count: int) -> NDArray[np.float32]:
    values = random.integers(0, 1 << 32, count, dtype=np.uint32).view(np.float32)
    return values[np.isfinite(values)]


def _as_raw(values: FloatArray, dtype: str) -> FloatArray:
    if dtype == "bfloat16":
        return as_bfloat16(values)
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(dtype)
