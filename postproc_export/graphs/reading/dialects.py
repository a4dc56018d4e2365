"""Anomalib's post-processing as patterns: how each exporter and converter writes one and the same branch.

With x the raw value, T the threshold, R = max - min and c = 1 - sensitivity, Anomalib computes

    score = clip((x - T) / R + 0.5, 0, 1);   label = score > c

and 2.7.0 guards it twice: where R is zero the score is 0, 0.5 or 1 by comparison with T, and without min and max it is
x itself. Exporters leave these guards in the graph as selects on constants, dead or alive.
"""

from collections.abc import Iterator
from typing import Final

from graph_patterns.expr import (
    Call,
    Const,
    Expr,
    Input,
    Scalar,
    add,
    clip,
    div,
    greater,
    identity,
    is_nan,
    less,
    logical_and,
    logical_not,
    mul,
    select,
    sub,
)
from graph_patterns.pattern import Pattern

RAW: Final = Input("raw")
_ZERO, _HALF, _ONE = Const(0.0, "zero"), Const(0.5, "half"), Const(1.0, "one")


def _clamped(value: Expr) -> Call:
    return clip(value, _ZERO, _ONE)


CHAINS: Final[tuple[Call, ...]] = (
    _clamped(add(div(sub(RAW, Scalar("threshold")), Scalar("span")), _HALF)),  # ONNX; ov.convert_model of the module
    _clamped(add(mul(sub(RAW, Scalar("threshold")), Scalar("scale")), _HALF)),  # IR: the divisor is a factor
    _clamped(add(mul(RAW, Scalar("scale")), Scalar("shift"))),  # IR: folded to one multiplication and one addition
    _clamped(add(sub(RAW, Scalar("threshold")), _HALF)),  # R = 1 is not divided by
)
UNIT_SPAN: Final = _clamped(add(RAW, Scalar("shift")))  # IR: folded, with R = 1
_SHORT: Final[tuple[Call, ...]] = (  # so short that only a guard that repeats the threshold makes them a branch
    UNIT_SPAN,
    _clamped(add(div(RAW, Scalar("span")), _HALF)),  # T = 0 is not subtracted
    _clamped(mul(RAW, Scalar("scale"))),  # IR: T = R / 2
)

_STEP: Final = select(
    greater(RAW, Scalar("step_threshold")), _ONE, select(less(RAW, Scalar("step_threshold_below")), _ZERO, _HALF)
)
_HAS_RANGE: Final = logical_and(logical_not(is_nan(Scalar("min"))), logical_not(is_nan(Scalar("max"))))


def _guarded(chain: Expr, *, steps: tuple[Expr, ...] = (_STEP, Input("unread"))) -> Iterator[Call]:
    """Yield a chain behind the guards of 2.7.0; what a constant switches off may be written in any way."""
    for step in steps:
        inner = select(Scalar("is_zero_range"), step, chain)
        yield inner
        yield select(Scalar("has_range"), inner, RAW)
        yield select(_HAS_RANGE, inner, RAW)


SCORE: Final = Pattern(
    name="anomalib_score",
    body=CHAINS[0],
    spellings=(
        *CHAINS[1:],
        *(spelling for chain in CHAINS for spelling in _guarded(chain)),
        *(spelling for chain in _SHORT for spelling in _guarded(chain, steps=(_STEP,))),
        *_guarded(Input("unread_chain")),
        select(Scalar("has_range"), Input("unread"), RAW),
        select(_HAS_RANGE, Input("unread"), RAW),
    ),
    source="anomalib 2.6.2 and 2.7.0 PostProcessor._normalize",
)

LABEL: Final = Pattern(
    name="anomalib_label",
    body=greater(Input("score"), Scalar("cut")),
    source="anomalib 2.6.2 and 2.7.0 PostProcessor._apply_threshold",
)

COPY: Final = Pattern(name="copy", body=identity(RAW), source="the dynamo exporter, for an output that is an input")
