"""Anomalib's post-processing as patterns: how each exporter and converter writes one and the same branch.

With x the raw value, T the threshold, R = max - min and c = 1 - sensitivity, Anomalib computes

    score = clip((x - T) / R + 0.5, 0, 1);   label = score > c

and 2.7.0 guards it twice: where R is zero the score is 0, 0.5 or 1 by comparison with T, and without min and max it is
x itself. Exporters leave these guards in the graph as selects on constants, dead or alive.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from graph_patterns.expr import (
    Call,
    Const,
    Expr,
    Input,
    Pattern,
    Scalar,
    add,
    call,
    cast,
    clip,
    div,
    greater,
    identity,
    is_nan,
    less,
    logical_and,
    logical_not,
    mul,
    reduce_max,
    reduce_sum,
    reshape,
    select,
    sub,
)
from graph_patterns.match import Mismatch
from postproc_export.float32 import to_float32

RAW: Final = Input("raw")
_ZERO, _HALF, _ONE = Const(0.0, "zero"), Const(0.5, "half"), Const(1.0, "one")


def _clamped(value: Expr) -> Call:
    return clip(value, _ZERO, _ONE)


_NEGATED: Final = add(RAW, Scalar("minus_threshold"))

CHAINS: Final[tuple[Call, ...]] = (
    _clamped(add(div(sub(RAW, Scalar("threshold")), Scalar("span")), _HALF)),  # ONNX; ov.convert_model of the module
    _clamped(add(mul(sub(RAW, Scalar("threshold")), Scalar("scale")), _HALF)),  # IR: the divisor is a factor
    _clamped(add(mul(RAW, Scalar("scale")), Scalar("shift"))),  # IR: folded to one multiplication and one addition
    _clamped(add(sub(RAW, Scalar("threshold")), _HALF)),  # R = 1 is not divided by
    _clamped(add(div(_NEGATED, Scalar("span")), _HALF)),  # ov.convert_model of a module with constant statistics
    _clamped(add(_NEGATED, _HALF)),
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

EAGER_SCORE: Final = Pattern(
    name="eager_score",
    body=CHAINS[0],
    spellings=(*CHAINS[1:], *_SHORT, _clamped(RAW)),  # T = 1/2 and R = 1 leave nothing else in an IR
    source="postproc_export.eager.PostProcessor._unit; short forms are safe where the label says what x is",
)


EAGER_CHAIN: Final = Pattern(name="eager_chain", body=CHAINS[0], spellings=CHAINS[1:], source=EAGER_SCORE.source)


def _any_nan(maps: Expr) -> Iterator[Expr]:
    """Yield how exporters and converters write ``isnan(maps).flatten(1).any(dim=1)``."""
    for flat in (call("Flatten", is_nan(maps), axis=1), reshape(is_nan(maps), Input("flat"))):
        for counted in (cast(flat, dtype="int64"), cast(cast(flat, dtype="bool"), dtype="int64")):
            yield greater(reduce_sum(counted, axes=(1,)), _ZERO)
            yield cast(reduce_max(counted, axes=(1,)), dtype="bool")
        yield call("ReduceLogicalOr", flat, _ONE)


def _eager_guards() -> Iterator[Expr]:
    for any_nan in _any_nan(Input("maps")):
        for shaped in (reshape(any_nan, Input("shape")), any_nan):
            for condition in (cast(shaped, dtype="bool"), shaped):
                yield select(condition, Const(math.nan, "nan"), Input("values"))


_EAGER_GUARDS: Final = tuple(_eager_guards())

EAGER_GUARD: Final = Pattern(
    name="eager_guard",
    body=_EAGER_GUARDS[0],
    spellings=_EAGER_GUARDS[1:],
    source="postproc_export.eager.PostProcessor._image_score",
)

ANY_GUARD: Final = select(Input("condition"), Const(math.nan, "nan"), Input("values"))  # NaN where something holds

TORCH_AT_LEAST: Final = logical_not(cast(less(Input("values"), Scalar("boundary")), dtype="bool"))  # TorchScript


# What the numbers of a branch say: threshold and span.

HALF_PRECISION: Final = 2.0**-10  # relative; twice what float16 rounds by

ZERO_RANGE: Final = "the calibrated range is empty (max = min): a score is 0, 0.5 or 1 by comparison with the threshold"
LOST_THRESHOLD: Final = "the calibrated range is empty (max = min), and the conversion lost the threshold with it"
NOT_A_NUMBER: Final = "the threshold in the graph is not a number: the model was exported before it was calibrated"
FOLDED: Final = (
    "threshold and span are computed from one multiplication and one addition, into which the conversion may have "
    "folded the model's own last ones: then both are right for the value that the file still has, and a model's own "
    "score y = k x + c of it has the threshold k t + c and the span k r"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchReading:
    """What the graph says of one level; None for what it does not say."""

    threshold: float | None = None  # raw units; float32 values
    span: float | None = None
    min: float | None = None
    max: float | None = None
    sensitivity: float | None = None  # the float32 that was subtracted from 1
    certain: bool = True  # whether threshold and span stand in the graph as such
    is_folded: bool = False  # whether they are inferred from one multiplication and one addition
    is_normalised: bool = True  # whether the score is normalised at all
    notes: tuple[str, ...] = ()  # why something is not known, and what to make of it


def read_chain(scalars: Mapping[str, float]) -> BranchReading | Mismatch:
    """Return threshold and span of a chain of operators, whatever form it has."""
    if "minus_threshold" in scalars:
        scalars = {"threshold": -scalars["minus_threshold"], **scalars}
    scale = scalars.get("scale", 1.0)
    with np.errstate(all="ignore"):
        span = scalars.get("span", float(np.float64(1.0) / np.float64(scale)))
        shift = scalars.get("shift", 0.0 if "scale" in scalars else 0.5)
        inferred = float((np.float64(0.5) - np.float64(shift)) / np.float64(scale))
    is_folded = "shift" in scalars or ("scale" in scalars and "threshold" not in scalars)
    threshold = scalars.get("threshold", inferred)
    step = scalars.get("step_threshold")
    if step is not None and not _agree(step, threshold, span=span):
        return Mismatch(f"the threshold is {step:.9g} in one place and {threshold:.9g} in another", "two constants")
    if span == 0.0:
        lost = LOST_THRESHOLD if math.isnan(threshold) else ZERO_RANGE
        return BranchReading(threshold=known(threshold), span=0.0, certain=not is_folded, notes=(lost,))
    if step is not None:
        threshold, is_folded = step, False
    notes = (NOT_A_NUMBER,) if math.isnan(threshold) else (FOLDED,) if is_folded else ()
    return BranchReading(
        threshold=known(threshold),
        span=known(span),
        certain=not is_folded,
        is_folded=is_folded,
        notes=notes,
    )


def _agree(left: float, right: float, *, span: float) -> bool:
    """Whether two readings of one threshold differ by no more than constants rounded to float16 explain."""
    if math.isnan(left) or math.isnan(right):
        return math.isnan(left) and math.isnan(right)
    return abs(left - right) <= HALF_PRECISION * (abs(left) + abs(right) + abs(span))


def known(value: float) -> float | None:
    """Return a number as float32; None where it is not finite."""
    return to_float32(value) if math.isfinite(to_float32(value)) else None
