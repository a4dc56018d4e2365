"""float32 values as unsigned integers of the same order, and the coarse buckets that are their upper 16 bits."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint32]
Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]
Counts = NDArray[np.int64]

BUCKETS: Final = 1 << 16
NEGATIVE_ZERO_BUCKET: Final = 1 << 15  # of the raw bits
_SIGN = np.uint32(0x8000_0000)
_NEGATIVE_ZERO = np.int32(-(2**31))


def ordered_keys(values: Floats) -> Keys:
    """Return uint32 keys that compare as the values do.

    Parameters
    ----------
    values
        float32, any shape, finite, without -0.0 (see `merge_zeros`).

    Notes
    -----
    Positive values get their sign bit set, negative ones all bits flipped.
    """
    bits = values.view(np.uint32)
    fill = (values.view(np.int32) >> np.int32(31)).view(np.uint32)
    keys: Keys = bits ^ (fill | _SIGN)
    return keys


def float_values(keys: Keys) -> Floats:
    """Return the float32 values of ordered keys: the inverse of `ordered_keys`."""
    keys = np.ascontiguousarray(keys, dtype=np.uint32)
    fill = ~(keys.view(np.int32) >> np.int32(31)).view(np.uint32)
    return (keys ^ (fill | _SIGN)).view(np.float32)


def key_of(value: float) -> int:
    """Return the ordered key of one float32 value; `-0.0` counts as `0.0`."""
    return int(ordered_keys(np.array([value + 0.0], dtype=np.float32))[0])


def value_of(key: int) -> float:
    """Return the float32 value of one ordered key."""
    return float(float_values(np.array([key], dtype=np.uint32))[0])


def is_negative_zero(values: Floats) -> Flags:
    """Return where a value is -0.0."""
    found: Flags = values.view(np.int32) == _NEGATIVE_ZERO
    return found


def merge_zeros(values: Floats) -> Floats:
    """Return the values with `-0.0` replaced by `0.0`; the input itself where there is none."""
    negative = is_negative_zero(values)
    if not negative.any():
        return values
    merged = values.copy()
    merged[negative] = 0.0
    return merged


def raw_buckets(values: Floats) -> NDArray[np.uint16]:
    """Return the upper 16 bits of each value's raw float32 pattern; a strided view, not a copy.

    Parameters
    ----------
    values
        float32, shape (n,), contiguous, in the byte order of the machine (little-endian).
    """
    return values.view(np.uint16)[1::2]


def to_ordered_buckets(raw_counts: NDArray[Any]) -> NDArray[Any]:
    """Reorder a table over raw upper halves so that it ascends with the value; shape (65536,)."""
    half = BUCKETS // 2
    return np.concatenate((raw_counts[half:][::-1], raw_counts[:half]))


def raw_numbers(ordered: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return where buckets stand in a table over raw upper halves, from their numbers in the order of the values."""
    half = BUCKETS // 2
    return np.where(ordered < half, BUCKETS - 1 - ordered, ordered - half)
