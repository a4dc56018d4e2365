"""Steps that stand before a tail or behind it, each written once: they are emitted, and found again by their names.

Maps are [N, 1, H, W] here, or [N, H, W] where a rank of 3 is given; a number or vector of integers is int64.
"""

import math
from collections.abc import Sequence

import numpy as np

from graph_patterns.expr import (
    Const,
    Expr,
    FixedTensor,
    Ints,
    add,
    call,
    concat,
    is_nan,
    less,
    logical_and,
    mul,
    reduce_max,
    reduce_sum,
    reshape,
    select,
    shape_of,
    squeeze,
    sub,
    unsqueeze,
)


def gaussian_weights(sigma: float) -> tuple[float, ...]:
    """Return the weights of a sampled Gaussian of 2 int(4 sigma + 0.5) + 1 taps, which sum to 1, rounded to float32."""
    radius = gaussian_radius(sigma)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return tuple(float(weight) for weight in (weights / weights.sum()).astype(np.float32))


def gaussian_radius(sigma: float) -> int:
    """Return how many taps there are on either side of the middle one."""
    return int(4.0 * sigma + 0.5)


def smoothed(maps: Expr, *, sigma: float, rank: int, is_static: bool) -> Expr:
    """A map convolved with a Gaussian along both axes, reflected at its edges without repeating them.

    `sigma` is in pixels, `rank` 3 or 4. `is_static` says that the graph knows height and width, and both exceed the
    radius; else the reflection is computed when it runs, and is defined for maps of any size: it goes back and forth as
    often as it takes.
    """
    weights, radius = gaussian_weights(sigma), gaussian_radius(sigma)
    planes = _as_planes(maps, rank)
    if is_static:
        around = Ints((0, 0, radius, radius, 0, 0, radius, radius), "pads")
        planes = call("pad", planes, around, mode="reflect")
    else:
        for axis in (2, 3):
            planes = call("gather", planes, _reflected(_length(maps, axis - 4 + rank), radius), axis=axis)
    for shape in ((1, 1, len(weights), 1), (1, 1, 1, len(weights))):
        planes = call("conv", planes, table(weights, shape, "weights"))
    return planes if rank == 4 else squeeze(planes, axes=(1,))


def top_mean(maps: Expr, *, k: int, rank: int, is_static: bool) -> Expr:
    """Mean of the k highest values of each map, [N]; of all where a map has fewer and the graph does not know it."""
    height, width = (_length(maps, rank - axis, as_vector=True) for axis in (2, 1))
    area = mul(height, width)
    flat = reshape(maps, concat(_length(maps, 0, as_vector=True), area, axis=0))
    wanted: Expr = Ints((k,), "k")
    if not is_static:
        wanted = select(less(area, wanted), area, wanted)
    return call("reduce_mean", call("top_k", flat, wanted, axis=1), axes=(1,), keepdims=False)


def resized(maps: Expr, sizes: Expr, *, rank: int) -> Expr:
    """A map resized bilinearly, pixels taken as areas; `sizes` is a vector [height, width].

    A map that holds a NaN becomes NaN as a whole: one that is made smaller has pixels that no new one is made of.
    """
    planes = _as_planes(maps, rank)
    batch = call("gather", shape_of(planes), Ints((0, 1), "batch_axes"), axis=0)
    sized = call(
        "resize", planes, concat(batch, sizes, axis=0), mode="linear", coordinate_transformation_mode="half_pixel"
    )
    unknown = is_nan(reduce_sum(planes, axes=(1, 2, 3), keepdims=True))
    guarded = select(unknown, Const(math.nan, "nan"), sized)
    return guarded if rank == 4 else squeeze(guarded, axes=(1,))


def sizes_of(value: Expr, axes: tuple[int, ...]) -> Expr:
    """The sizes of some axes of a value, a vector."""
    return call("gather", shape_of(value), Ints(axes, "axes"), axis=0)


def above_thresholds(maps: Expr, thresholds: Expr, *, channels: int) -> Expr:
    """A map minus a constant that is broadcast to it; of several channels the highest, NaN where one is NaN."""
    distance = sub(maps, thresholds)
    if channels == 1:
        return distance
    highest = reduce_max(distance, axes=(1,), keepdims=True)
    unknown = is_nan(reduce_sum(distance, axes=(1,), keepdims=True))
    return select(unknown, Const(math.nan, "nan"), highest)


def one_channel(values: Expr, *, axis: int, index: int | None, dropped: tuple[int, ...]) -> Expr:
    """The values of one entry of an axis, without that axis and others of size 1; None where it has one entry only.

    Axes that do not have one entry then end in an error of the runtime: a Gather beyond the end gives zeros in some.
    """
    if index is not None:
        bounds = (Ints((bound,), name) for bound, name in ((index, "first"), (index + 1, "end"), (axis, "axis")))
        values = call("slice", values, *bounds)
    return squeeze(values, axes=dropped)


def gated(mask: Expr, label: Expr, *, rank: int, dtype: str) -> Expr:
    """A mask where its image's label holds, and nothing of it elsewhere; `label` is a boolean."""
    of_image = reshape(label, Ints((-1, *[1] * (rank - 1))))
    if dtype == "bool":
        return logical_and(mask, of_image)
    return select(of_image, mask, Const(0, "normal", dtype))


def table(values: Sequence[float], shape: tuple[int, ...], name: str) -> FixedTensor:
    """A fixed float32 tensor of these values."""
    return FixedTensor(np.asarray(values, "<f4").tobytes(), shape, name)


def _as_planes(maps: Expr, rank: int) -> Expr:
    return maps if rank == 4 else unsqueeze(maps, axes=(1,))


def _length(value: Expr, axis: int, *, as_vector: bool = False) -> Expr:
    index: Expr = Ints((axis,), "axis") if as_vector else Const(axis, "axis", "int64")
    return call("gather", shape_of(value), index, axis=0)


def _reflected(length: Expr, radius: int) -> Expr:
    """The indices -radius .. length + radius - 1, mirrored at 0 and at length - 1 until they lie between."""
    one = Const(1, "one", "int64")
    last = sub(length, one)
    places = call("range", Const(-radius, "first", "int64"), add(length, Const(radius, "beyond", "int64")), one)
    period = select(less(length, Const(2, "two", "int64")), one, add(last, last))
    folded = call("mod", call("abs", places), period)
    return sub(last, call("abs", sub(folded, last)))
