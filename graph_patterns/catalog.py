"""Every step of a normalise-threshold-clamp tail, each written once.

Axes count from the front, since negative axes are not known to ONNX below opset 11.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Final, Literal, TypeAlias, get_args

from graph_patterns.expr import (
    Call,
    Const,
    Expr,
    Input,
    Ints,
    Pattern,
    Scalar,
    add,
    concat,
    expand,
    greater,
    hard_sigmoid,
    is_nan,
    less,
    logical_not,
    logical_or,
    mul,
    reduce_l1,
    reduce_max,
    reduce_sum,
    reshape,
    select,
    shape_of,
    squeeze,
    sub,
    transpose,
    unsqueeze,
)

Reduced: TypeAlias = Literal["image", "all"]
"""Over what a map is reduced: each image's own map, or all there is."""

MapForm: TypeAlias = Literal["plain", "squeezed", "decided"]
"""How a map is kept out of blocked layouts; `"plain"`, not at all, is for small values and very old opsets.

A Conv may give its map in a layout of 16 channels, 15 of them padding, and what understands that layout computes all
16. ONNX Runtime takes HardSigmoid into it, but nothing behind a Reshape, even one that changes nothing. OpenVINO takes
every operator on two operands of equal rank, but for those that a constant of one axis more broadcasts to that rank;
it drops a Reshape that changes nothing. The axis in front is taken out again: where `"squeezed"`, of what is compared,
since ONNX Runtime copies a view that is an output; where `"decided"`, of the decision, which OpenVINO computes in one
go with the comparison.
"""

_FRONT: Final = (0,)


def viewed(values: Expr, *, rank: int) -> Call:
    """The values in their own shape, an empty batch too: a view, which has no blocked layout."""
    return reshape(values, Ints((-1, *(0,) * (rank - 1)), "same"))


def fused_unit_score(values: Expr) -> Call:
    """max(0, min(1, alpha * values + beta)): normalise and clamp in one operator."""
    return hard_sigmoid(values, alpha=Scalar("alpha"), beta=Scalar("beta"))


def centred_unit_score(values: Expr) -> Call:
    """max(0, min(1, alpha * (values - offset) + 0.5)): exact near the offset, one operator more.

    The subtraction keeps the HardSigmoid of a map out of blocked layouts by itself. An axis in front would not do:
    OpenVINO 2026.4 squeezes the operands of a subtraction in place of what it gives, and takes the batch for that axis.
    """
    return hard_sigmoid(sub(values, Scalar("offset")), alpha=Scalar("alpha"), beta=Const(0.5, "beta"))


def at_least(values: Expr, boundary: Expr | None = None) -> Call:
    """not (values < boundary): `>=` for numbers, true for NaN; without another boundary it is a number."""
    return logical_not(less(values, Scalar("boundary") if boundary is None else boundary))


def map_at_least(values: Expr, *, form: MapForm, rank: int) -> Call:
    """The decision on a map of this rank by a number, in a form of its own; the rank counts where it is emitted."""
    if form == "plain":
        return at_least(values)
    below = less(values, Scalar("boundary", rank + 1))
    if form == "squeezed":
        return logical_not(squeeze(below, axes=_FRONT))
    return squeeze(logical_not(below), axes=_FRONT)


def adjusted_boundary(sensitivity: Expr) -> Call:
    """threshold + (0.5 - a) span with a the sensitivity clamped to [0, 1]; -inf from 1 on, and for NaN.

    Where a is the one that was attached, the boundary is the exact constant. Selections in place of a clamp: what that
    makes of a NaN depends on the runtime, and converters write it in other ways.
    """
    zero = Const(0.0, "zero")
    at_least_zero = select(less(sensitivity, zero), zero, sensitivity)
    computed = add(Scalar("threshold"), mul(sub(Const(0.5, "half"), at_least_zero), Scalar("span")))
    is_another = logical_or(less(at_least_zero, Scalar("attached")), greater(at_least_zero, Scalar("attached")))
    below_one = select(is_another, computed, Scalar("boundary"))
    return select(less(sensitivity, Const(1.0, "one")), below_one, Const(-math.inf, "everything"))


def map_max(maps: Expr, *, rank: int) -> Call:
    """Maximum over the last two axes."""
    return reduce_max(maps, axes=(rank - 2, rank - 1))


Axes: TypeAlias = tuple[int, ...]
"""Axes of a map that it is reduced over where what remains has the shape of the values, so that none is asked for."""


def nan_guard(values: Expr, has_nan: Expr, *, over: Reduced | Axes = "image") -> Call:
    """NaN where `has_nan` holds, one element per value, or one for all of them; else the value."""
    return select(_placed(has_nan, values, over), Const(math.nan, "nan"), values)


def nan_by_sum(maps: Expr, *, rank: int, over: Reduced | Axes = "image") -> Call:
    """Whether a map's sum is NaN: also for infinities of both signs and sums that overflow both ways."""
    return is_nan(reduce_sum(maps, axes=_reduced(rank, over)))


def nan_by_l1(maps: Expr, *, rank: int, over: Reduced | Axes = "image") -> Call:
    """Whether a map's sum of absolute values is NaN: exactly where it holds a NaN."""
    return is_nan(reduce_l1(maps, axes=_reduced(rank, over)))


def nan_guard_arithmetic(values: Expr, maps: Expr, *, rank: int, over: Reduced | Axes = "image") -> Call:
    """values + (q - q) with q the map's sum: NaN also where the sum overflows; needs no IsNaN and no Where."""
    total = reduce_sum(maps, axes=_reduced(rank, over))
    return add(values, _placed(sub(total, total), values, over))


def _reduced(rank: int, over: Reduced | Axes) -> Axes:
    return over if isinstance(over, tuple) else tuple(range(1 if over == "image" else 0, rank))


def _placed(reduced: Expr, values: Expr, over: Reduced | Axes) -> Expr:
    """Return what was reduced per image in the shape of the values; one element for all of them broadcasts."""
    return reshape(reduced, shape_of(values)) if over == "image" else reduced


def packed(*, maps: Expr, score: Expr, label: Expr, mask: Expr, rank: int, shape: Expr | None = None) -> Call:
    """One tensor [N, H, W, 4]: the map, the score and the label of its image at every place, the mask.

    The planes lie one behind the other first: runtimes transpose faster than they interleave.
    """
    maps, mask = (value if rank == 4 else unsqueeze(value, axes=(1,)) for value in (maps, mask))
    of_image = Ints((-1, 1, 1, 1))
    pair = concat(reshape(score, of_image), reshape(label, of_image), axis=1)
    planes = concat(maps, expand(pair, shape_of(maps) if shape is None else shape), mask, axis=1)
    return transpose(planes, perm=(0, 2, 3, 1))


def _packed(rank: int, *, shape: Expr | None = None) -> Call:
    return packed(
        maps=Input("maps"), score=Input("score"), label=Input("label"), mask=Input("mask"), rank=rank, shape=shape
    )


def _folded_guards() -> Iterator[Call]:
    """Yield what other tools make of the guard: a static shape becomes a constant, a reshape to the same shape goes."""
    values, maps = Input("values"), Input("maps")
    for rank in (4, 3):
        for has_nan in (nan_by_sum(maps, rank=rank), nan_by_l1(maps, rank=rank)):
            yield select(reshape(has_nan, Input("shape")), Const(math.nan, "nan"), values)
        total = reduce_sum(maps, axes=tuple(range(1, rank)))
        yield add(values, reshape(sub(total, total), Input("shape")))


_SOURCE: Final = "docs/definition.md"

MAP_RANKS: Final = (4, 3)

UNIT_SCORE: Final = Pattern(
    name="unit_score",
    body=fused_unit_score(Input("values")),
    spellings=(
        *(fused_unit_score(viewed(Input("values"), rank=rank)) for rank in MAP_RANKS),
        centred_unit_score(Input("values")),
    ),
    source=f"{_SOURCE} section 3",
)


AT_LEAST: Final = Pattern(
    name="at_least",
    body=at_least(Input("values")),
    spellings=tuple(map_at_least(Input("values"), form=form, rank=0) for form in ("squeezed", "decided")),
    source=f"{_SOURCE} section 4",
)

ADJUSTED_AT_LEAST: Final = Pattern(
    name="adjusted_at_least",
    body=at_least(Input("values"), adjusted_boundary(Input("adjusted"))),
    spellings=(at_least(Input("values"), Input("adjusted")),),
    source=f"{_SOURCE} section 4",
)

MAP_MAX: Final = Pattern(
    name="map_max",
    body=map_max(Input("maps"), rank=4),
    spellings=(map_max(Input("maps"), rank=3),),
    source=f"{_SOURCE} section 1",
)

GUARD_AXES: Final[Mapping[int, tuple[Axes, ...]]] = {4: ((2, 3), (1, 2, 3)), 3: ((1, 2),)}
"""By the rank of a map the axes without which it has the shape [N, 1] or [N]."""


def _emitted_guards() -> Iterator[tuple[Expr, Reduced]]:
    values, maps = Input("values"), Input("maps")
    for rank, own in GUARD_AXES.items():
        for over in (*get_args(Reduced), *own):
            form: Reduced = "image" if isinstance(over, tuple) else over
            yield nan_guard(values, nan_by_sum(maps, rank=rank, over=over), over=over), form
            yield nan_guard(values, nan_by_l1(maps, rank=rank, over=over), over=over), form
            yield nan_guard_arithmetic(values, maps, rank=rank, over=over), form


EMITTED_GUARDS: Final[Mapping[Expr, Reduced]] = dict(_emitted_guards())
"""Every form of the guard that is emitted, and over what it reduces; other forms reduce each image's own map."""

NAN_GUARD: Final = Pattern(
    name="nan_guard",
    body=next(iter(EMITTED_GUARDS)),
    spellings=(*EMITTED_GUARDS, *_folded_guards()),
    source=f"{_SOURCE} section 5",
)

PACKED: Final = Pattern(
    name="packed",
    body=_packed(4),
    spellings=(_packed(3), _packed(4, shape=Input("shape")), _packed(3, shape=Input("shape"))),
    source=f"{_SOURCE} section 8",
)
