"""Which maps may make an image anomalous though none of their values does (docs/definition.md section 5)."""

from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from postproc_export.parity.fed.inputs import FloatArray

Guard: TypeAlias = Literal["l1", "sum", "arithmetic", "none"]

GUARDS: Final[dict[Guard, str]] = {
    "l1": "exact: no map is excused",
    "sum": "may also flag maps with infinities of both signs, or whose partial sums overflow both ways",
    "arithmetic": "may also flag maps with an infinity, or whose partial sums overflow",
    "none": "no guard: what becomes of the image score of a map with a NaN is not defined",
}

_LARGEST: Final = float(np.finfo(np.float32).max)


def excused_images(maps: FloatArray, guard: Guard) -> NDArray[np.bool_]:
    """Return per map, shape (n, ...), whether its image's score may count as NaN though no value of it is NaN.

    Notes
    -----
    A partial sum, in any order, lies between the sum of the negative values and the sum of the positive ones. Half of
    the largest float32 leaves room for the roundings of a sum of up to 2^23 values.
    """
    with np.errstate(invalid="ignore"):  # a cast of a signalling NaN
        values, axes = maps.astype(np.float64), tuple(range(1, maps.ndim))
        rises = np.where(values > 0, values, 0.0).sum(axis=axes) > _LARGEST / 2
        falls = np.where(values < 0, values, 0.0).sum(axis=axes) < -_LARGEST / 2
    match guard:
        case "sum":
            flagged = rises & falls
        case "arithmetic":
            flagged = rises | falls
        case "l1" | "none":
            flagged = np.zeros(len(maps), bool)
    excused: NDArray[np.bool_] = flagged & ~np.isnan(values).any(axis=axes)
    return excused
