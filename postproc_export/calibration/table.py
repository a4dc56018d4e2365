"""The table of a calibration: exact counts of both classes in disjoint ranges of ordered float32 values."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint32]
Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]
Counts = NDArray[np.int64]

_SIGN = np.uint32(0x8000_0000)
_NEGATIVE_ZERO = np.int32(-(2**31))


def ordered_keys(values: Floats) -> Keys:
    """Return uint32 keys that compare as float32 values do, which must be finite and without -0.0 (see `merge_zeros`).

    Positive values get their sign bit set, negative ones all bits flipped.
    """
    keys: Keys = (values.view(np.int32) >> np.int32(31)).view(np.uint32)
    keys |= _SIGN
    keys ^= values.view(np.uint32)
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


@dataclass(frozen=True, kw_only=True)
class Table:
    """Counts per bin; the bins are disjoint, ascending, and every value seen lies in one of them."""

    starts: Keys  # uint32, shape (n,), ascending: the lowest ordered key of each bin
    widths: NDArray[np.uint8]  # uint8, shape (n,): a bin covers 2^width keys; at 0 it is one float32 value
    normal: Counts  # int64, shape (n,): values of each class in the bin, at least one together
    anomalous: Counts
    low: int  # ordered keys of the lowest and the highest value seen
    high: int

    def __len__(self) -> int:
        return len(self.starts)

    @cached_property
    def tp(self) -> Counts:
        """Anomalous values at or above each bin's lowest value: the true positives of a threshold there."""
        return from_the_top(self.anomalous)

    @cached_property
    def fp(self) -> Counts:
        """Normal values at or above each bin's lowest value: the false positives of a threshold there."""
        return from_the_top(self.normal)

    @cached_property
    def positives(self) -> NDArray[np.intp]:
        """The bins with an anomalous value."""
        return np.flatnonzero(self.anomalous != 0)

    @property
    def tp_above(self) -> Counts:
        """Anomalous values above the whole bin."""
        above: Counts = self.tp - self.anomalous
        return above

    @property
    def fp_above(self) -> Counts:
        """Normal values above the whole bin."""
        above: Counts = self.fp - self.normal
        return above

    @cached_property
    def n_normal(self) -> int:
        """All normal values."""
        return int(self.normal.sum())

    @cached_property
    def n_anomalous(self) -> int:
        """All anomalous values."""
        return int(self.anomalous.sum())

    @property
    def ends(self) -> NDArray[np.uint64]:
        """The first key after each bin, uint64 since the last may be 2^32."""
        return self.starts.astype(np.uint64) + (np.uint64(1) << self.widths.astype(np.uint64))

    def replace(self, chosen: NDArray[np.intp], finer: Self) -> "Table":
        """Return a table in which the chosen bins give way to the finer bins that they were split into."""
        kept = np.ones(len(self), dtype=np.bool_)
        kept[chosen] = False
        starts = np.concatenate((self.starts[kept], finer.starts))
        order = np.argsort(starts, kind="stable")
        return Table(
            starts=starts[order],
            widths=np.concatenate((self.widths[kept], finer.widths))[order],
            normal=np.concatenate((self.normal[kept], finer.normal))[order],
            anomalous=np.concatenate((self.anomalous[kept], finer.anomalous))[order],
            low=self.low,
            high=self.high,
        )


def from_the_top(counts: Counts) -> Counts:
    """Return the sum of each count and all that follow it along the last axis."""
    total: Counts = np.cumsum(counts[..., ::-1], axis=-1)[..., ::-1]
    return total
