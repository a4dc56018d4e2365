"""Every step of a normalise-threshold-clamp tail, each written once.

Axes count from the front, since negative axes are not known to ONNX below opset 11.
"""

import math
from collections.abc import Iterator
from typing import Final

from graph_patterns.expr import (
    Call,
    Const,
    Expr,
    Input,
    Scalar,
    add,
    hard_sigmoid,
    is_nan,
    less,
    logical_not,
    reduce_l1,
    reduce_max,
    reduce_sum,
    reshape,
    select,
    shape_of,
    sub,
)
from graph_patterns.pattern import Pattern


def fused_unit_score(values: Expr) -> Call:
    """max(0, min(1, alpha * values + beta)): normalise and clamp in one operator."""
    return hard_sigmoid(values, alpha=Scalar("alpha"), beta=Scalar("beta"))


def centred_unit_score(values: Expr) -> Call:
    """max(0, min(1, alpha * (values - offset) + 0.5)): exact near the offset, one operator more."""
    return hard_sigmoid(sub(values, Scalar("offset")), alpha=Scalar("alpha"), beta=Const(0.5, "beta"))


def at_least(values: Expr) -> Call:
    """not (values < boundary): `>=` for numbers, true for NaN."""
    return logical_not(less(values, Scalar("boundary")))


def map_max(maps: Expr, *, rank: int) -> Call:
    """Maximum over the last two axes."""
    return reduce_max(maps, axes=(rank - 2, rank - 1))


def nan_guard(values: Expr, has_nan: Expr) -> Call:
    """NaN where `has_nan`, one element per value, holds; else the value."""
    return select(reshape(has_nan, shape_of(values)), Const(math.nan, "nan"), values)


def nan_by_sum(maps: Expr, *, rank: int) -> Call:
    """Whether a map's sum is NaN: also for infinities of both signs and sums that overflow both ways."""
    return is_nan(reduce_sum(maps, axes=tuple(range(1, rank))))


def nan_by_l1(maps: Expr, *, rank: int) -> Call:
    """Whether a map's sum of absolute values is NaN: exactly where it holds a NaN."""
    return is_nan(reduce_l1(maps, axes=tuple(range(1, rank))))


def nan_guard_arithmetic(values: Expr, maps: Expr, *, rank: int) -> Call:
    """values + (q - q) with q the map's sum: NaN also where the sum overflows; needs no IsNaN and no Where."""
    total = reduce_sum(maps, axes=tuple(range(1, rank)))
    return add(values, reshape(sub(total, total), shape_of(values)))


def _folded_guards() -> Iterator[Call]:
    """Yield what other tools make of the guard: a static shape becomes a constant, a reshape to the same shape goes."""
    values, maps = Input("values"), Input("maps")
    for rank in (4, 3):
        for has_nan in (nan_by_sum(maps, rank=rank), nan_by_l1(maps, rank=rank)):
            yield select(reshape(has_nan, Input("shape")), Const(math.nan, "nan"), values)
            yield select(has_nan, Const(math.nan, "nan"), values)
        total = reduce_sum(maps, axes=tuple(range(1, rank)))
        yield add(values, reshape(sub(total, total), Input("shape")))


_SOURCE: Final = "docs/definition.md"

UNIT_SCORE: Final = Pattern(
    name="unit_score",
    body=fused_unit_score(Input("values")),
    spellings=(centred_unit_score(Input("values")),),
    source=f"{_SOURCE} section 3",
)

AT_LEAST: Final = Pattern(name="at_least", body=at_least(Input("values")), source=f"{_SOURCE} section 4")

MAP_MAX: Final = Pattern(
    name="map_max",
    body=map_max(Input("maps"), rank=4),
    spellings=(map_max(Input("maps"), rank=3),),
    source=f"{_SOURCE} section 1",
)

EMITTED_GUARDS: Final = tuple(
    guard
    for rank in (4, 3)
    for guard in (
        nan_guard(Input("values"), nan_by_sum(Input("maps"), rank=rank)),
        nan_guard(Input("values"), nan_by_l1(Input("maps"), rank=rank)),
        nan_guard_arithmetic(Input("values"), Input("maps"), rank=rank),
    )
)

NAN_GUARD: Final = Pattern(
    name="nan_guard",
    body=EMITTED_GUARDS[0],
    spellings=(*EMITTED_GUARDS[1:], *_folded_guards()),
    source=f"{_SOURCE} section 5",
)
