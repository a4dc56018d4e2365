"""Post-processing as patterns: Anomalib's, and our own, which is found though its record is gone.

With x the raw value, T the threshold, R = max - min and c = 1 - sensitivity, Anomalib computes

    score = clip((x - T) / R + 0.5, 0, 1);   label = score > c

and Anomalib 2.7.0 guards it twice: where R is zero the score is 0, 0.5 or 1 by comparison with T, and without min and
max it is x itself. Exporters leave these guards in the graph as selects on constants, dead or alive. Our eager
module's scores are written in the same forms; an attached tail has those of `graph_patterns.catalog`.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple, Self, TypeAlias

import numpy as np

from graph_patterns import catalog
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
from graph_patterns.match import Folded, GraphView, Match, Mismatch, Site, Value, find
from postproc_export.float32 import to_float32
from postproc_export.options import LABEL_DTYPES, Adjustable, LabelDtype, TailOptions
from postproc_export.ports import GuardForm
from postproc_export.stats import Comparison, Level
from postproc_export.tail import OUTPUT_NAMES, PACKED_OUTPUT, PARTS, PREFIX, input_name

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
    source="anomalib 2.0 to 2.7 PostProcessor._normalize",
)

LABEL: Final = Pattern(
    name="anomalib_label",
    body=greater(Input("score"), Scalar("cut")),
    source="anomalib 2.0 to 2.7 PostProcessor._apply_threshold",
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


_EAGER_GUARDS: Final = tuple(
    select(condition, Const(math.nan, "nan"), Input("values"))
    for any_nan in _any_nan(Input("maps"))
    for shaped in (reshape(any_nan, Input("shape")), any_nan)
    for condition in (cast(shaped, dtype="bool"), shaped)
)

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


class BranchReading(NamedTuple):
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
        threshold=known(threshold), span=known(span), certain=not is_folded, is_folded=is_folded, notes=notes
    )


def _agree(left: float, right: float, *, span: float) -> bool:
    """Whether two readings of one threshold differ by no more than constants rounded to float16 explain."""
    if math.isnan(left) or math.isnan(right):
        return math.isnan(left) and math.isnan(right)
    return abs(left - right) <= HALF_PRECISION * (abs(left) + abs(right) + abs(span))


def known(value: float) -> float | None:
    """Return a number as float32; None where it is not finite."""
    return to_float32(value) if math.isfinite(to_float32(value)) else None


SCORE_OUTPUT: Final[Mapping[Level, str]] = {"image": "pred_score", "pixel": "anomaly_map"}
LABEL_OUTPUT: Final[Mapping[Level, str]] = {"image": "pred_label", "pixel": "pred_mask"}

_PIECES: Final[Mapping[str, str]] = dict(zip(PARTS, ("maps", "score", "label", "mask"), strict=True))


def find_parts(
    view: GraphView, *, is_packed: bool | None = None
) -> tuple[dict[str, Value | Mismatch], Match | Mismatch]:
    """Find the value of each part of a tail, or why it is missing, and the steps that pack them into one output.

    Each part has an output of its own, or all are in the packed one; None leaves open which it is.
    """
    at = None if is_packed is False else view.output(PACKED_OUTPUT)
    missing = Mismatch(f"no output {PACKED_OUTPUT!r}", PACKED_OUTPUT)
    packing = missing if at is None else find(catalog.PACKED, view, at=at)
    if isinstance(packing, Match):
        return {part: packing.inputs[piece] for part, piece in _PIECES.items()}, packing
    if is_packed:
        return dict.fromkeys(OUTPUT_NAMES, packing), packing
    outputs = {name: view.output(name) for name in OUTPUT_NAMES}
    missing_parts = {name: Mismatch(f"no output {name!r}", name) for name in OUTPUT_NAMES}
    return {name: missing_parts[name] if value is None else value for name, value in outputs.items()}, packing


_VALUES: Final = Input("values")
_CAST: Final = cast(_VALUES, dtype="float32")
_SOURCE: Final = "docs/definition.md sections 4 and 6"


def _in_every_type(*steps: Expr) -> Iterator[Expr]:
    for step in steps:
        yield step
        yield from (cast(step, dtype=dtype) for dtype in LABEL_DTYPES)


_PLAIN: Final = tuple(_in_every_type(catalog.AT_LEAST.body))
_FIXED: Final = (*_in_every_type(*catalog.AT_LEAST), TORCH_AT_LEAST)
_ADJUSTED: Final = tuple(_in_every_type(*catalog.ADJUSTED_AT_LEAST))
_LABEL: Final = Pattern(name="label", body=_FIXED[0], spellings=_FIXED[1:], source=_SOURCE)
_ADJUSTED_LABEL: Final = Pattern(name="adjusted_label", body=_ADJUSTED[0], spellings=_ADJUSTED[1:], source=_SOURCE)


def find_decision(view: GraphView, level: Level, *, at: Value) -> Match | Mismatch:
    """Find the steps of a level's label: of the input `values`, and `adjusted` where that decides at run time.

    A comparison of two values is a decision of ours only where the second one is an input that bears our name.
    """
    fixed = find(_LABEL, view, at=at)
    if isinstance(fixed, Match):
        return fixed
    adjusted = find(_ADJUSTED_LABEL, view, at=at)
    if isinstance(adjusted, Mismatch):
        return max(fixed, adjusted, key=lambda miss: miss.depth)
    name = view.describe(adjusted.inputs["adjusted"]).removeprefix(PREFIX)
    is_ours = "attached" in adjusted.scalars or name == input_name(level, "boundary")
    return adjusted if is_ours else fixed


def find_unit(view: GraphView, decision: Match | Mismatch, *, at: Value) -> Match | Mismatch:
    """Find the step of a normalised score: of what is decided, where it is; else a tail's own, where its names say so.

    A host may end as one form of the step begins, so that the longest that fits takes of it.
    """
    decided = decision.inputs if isinstance(decision, Match) else {}
    known = {"values": decided["values"]} if "values" in decided else {}
    tries = [find(form, view, at=at, inputs=known) for form in catalog.UNIT_SCORE]
    matches = [found for found in tries if isinstance(found, Match)]
    if matches:
        return max(matches, key=lambda found: (is_emitted(found), found.depth))
    return find(catalog.UNIT_SCORE, view, at=at)


def _decision_fields(view: GraphView, decision: Match) -> dict[str, Any]:
    """Return the fields of `FoundTail` that say how a label is made."""
    dtype = dict(getattr(decision.body, "params", ())).get("dtype")
    fields: dict[str, Any] = {"label_dtype": dtype if dtype in ("uint8", "float32") else "bool"}
    if (value := decision.inputs.get("adjusted")) is not None:
        fields |= {
            "adjusted": value,
            "adjustable": "sensitivity" if "attached" in decision.scalars else "boundary",
            "default": view.default(value),
            "is_frozen": view.number(value) is not None,
        }
    return fields


# Our eager module may be in a file as well: exported with a model by torch or by Anomalib, or converted by OpenVINO.

Parts: TypeAlias = tuple[Match | None, Match | None, Value, bool]  # score, label, what both are of, is it eager?


def _eager_parts(view: GraphView, level: Level, score: Value, label: Value | Mismatch) -> Parts | None:
    """Return the steps of our eager module; None where it is not there.

    The score alone may as well be Anomalib's: without a label it is ours where the image score is guarded as ours is.
    """
    graph = Folded(view)
    decision = label if isinstance(label, Mismatch) else find_decision(graph, level, at=label)
    parts: Parts | None = None
    if isinstance(decision, Match):
        decided = decision.inputs["values"]
        chain = find(EAGER_SCORE, graph, at=score, inputs={"raw": decided})
        is_raw = score == decided and "adjusted" not in decision.inputs and not is_emitted(decision)
        if isinstance(chain, Match) or is_raw:
            parts = (chain if isinstance(chain, Match) else None, decision, decided, True)
    elif decision is label and _is_guarded(graph):
        chain = find(EAGER_SCORE if level == "image" else EAGER_CHAIN, graph, at=score)
        if isinstance(chain, Match):
            parts = (chain, None, chain.inputs["raw"], True)
        elif level == "image":
            parts = (None, None, score, True)
    return None if parts is not None and _has_other_guard(graph, parts[2]) else parts


def _has_other_guard(graph: Folded, value: Value) -> bool:
    """Whether a value is NaN where something holds, in a form that is not known: it would stay behind."""
    behind = _uncast(graph, value)
    known = any(isinstance(find(guard, graph, at=behind), Match) for guard in (EAGER_GUARD, catalog.NAN_GUARD))
    return not known and isinstance(find(ANY_GUARD, graph, at=behind), Match)


def _is_guarded(graph: Folded) -> bool:
    score = graph.output("pred_score")
    chain = None if score is None else find(EAGER_SCORE, graph, at=score)
    guarded = chain.inputs["raw"] if isinstance(chain, Match) else score
    return guarded is not None and _eager_source(graph, "image", guarded)[2] is not None


def _eager_source(view: GraphView, level: Level, value: Value) -> tuple[Value, tuple[Value, ...], Value | None]:
    """Return what the eager module reads, what stands between, and the map that guards it, if one does.

    A cast that nothing else reads goes by itself, and the one behind the guard is nobody else's. A maximum below may be
    the model's own as well as the module's: it stays, and is the raw score.
    """
    behind = _uncast(view, value)
    guard = find(EAGER_GUARD, Folded(view), at=behind) if level == "image" else None
    if not isinstance(guard, Match):
        return behind, (), None
    values = (*(() if behind == value else (value,)), *guard.values)
    return _uncast(view, guard.inputs["values"]), values, _uncast(view, guard.inputs["maps"])


def _uncast(view: GraphView, value: Value) -> Value:
    """Return what a cast to float32 reads; any other value itself."""
    found = find(_CAST, view, at=value)
    return found.inputs["values"] if isinstance(found, Match) else value


def is_emitted(match: Match) -> bool:
    """Whether all nodes of a match bear the names that attaching gives."""
    return all(node.name.startswith(PREFIX) for node in match.nodes)


class FoundTail(NamedTuple):
    """The post-processing of one level as it stands in a graph: attached by us, our eager module's, or Anomalib's."""

    kind: Literal["attached", "eager", "anomalib"]
    level: Level
    outputs: tuple[str, ...]  # that it computes, score first; without normalisation Anomalib's has a label alone
    raw: Value  # what it reads: the host's score or map
    values: tuple[Value, ...]  # what its nodes compute
    # The numbers as they stand in the graph. Attached: alpha and beta (offset in the longer form), none where scores
    # stay raw, and boundary where there are labels. Else those of the patterns at the top.
    scalars: Mapping[str, float]
    reading: BranchReading  # what these numbers say
    from_map: bool = False  # whether the image score is the maximum of that map, taken in the tail
    sites: Mapping[str, tuple[Site, ...]] = {}  # where they stand; of Anomalib's alone
    other_rule: Mismatch | None = None  # why its label is not Anomalib's, where it has one all the same
    comparison: Comparison | None = None  # the rule of the eager module, where it takes both levels to tell it
    label_dtype: LabelDtype = "bool"
    decides: bool = True  # whether it has labels
    guard: GuardForm | None = None  # over what a map is reduced so that a NaN in it reaches the score
    guarded_by: str | None = None  # how the graph names that map
    guard_maps: Value | None = None  # that map, of an attached tail
    is_as_emitted: bool = False  # whether names and forms are those of attaching: no other tool changed them
    is_packed: bool = False  # whether both levels are in one output
    adjusted: Value | None = None  # the value by which the decision is adjusted at run time, if it can be
    adjustable: Adjustable = "nothing"  # what that value is
    default: float | None = None  # the number that it has where nobody gives another; None where it has to be given
    is_frozen: bool = False  # whether it is a constant in this file, as conversions make of it

    @property
    def is_ours(self) -> bool:
        """Whether it is by this package, attached or exported."""
        return self.kind != "anomalib"

    @property
    def is_eager(self) -> bool:
        """Whether it is our eager module, exported with the model."""
        return self.kind == "eager"

    @property
    def is_normalised(self) -> bool:
        """Whether its scores are normalised."""
        return self.reading.is_normalised

    def apart(self) -> Self:
        """Return it with numbers for values of the graph, which an IR keeps with its weights and cannot be pickled."""
        numbers: dict[Value, int] = {}

        def numbered(value: Value) -> int | None:
            return None if value is None else numbers.setdefault(value, len(numbers))

        return self._replace(
            raw=numbered(self.raw),
            values=tuple(map(numbered, self.values)),
            sites={},
            guard_maps=numbered(self.guard_maps),
            adjusted=numbered(self.adjusted),
        )


def find_own_tail(
    view: GraphView, level: Level, *, raw: Collection[Value] = (), options: TailOptions | None = None
) -> FoundTail | Mismatch:
    """Find the tail of one level behind the outputs that bear our names: also without a record, or changed by a tool.

    `raw` are raw values that are known from a record: what computes them is the host's. `options` are those of a
    record: a tail of another form is none. Without a record, a cast or a maximum in front of the tail counts as the
    tail's only where its name says so, and so does a normalised score without a label, which may be the model's own.
    """
    places, packing = find_parts(view, is_packed=None if options is None else options.is_packed)
    score, label = places[SCORE_OUTPUT[level]], places[LABEL_OUTPUT[level]]
    parts = score if isinstance(score, Mismatch) else _steps_of_tail(view, level, score, label, options)
    if isinstance(parts, Mismatch):
        return parts
    chain, decision, scored, is_eager = parts
    matches = [match for match in (chain, decision, packing) if isinstance(match, Match)]
    names = (SCORE_OUTPUT[level], LABEL_OUTPUT[level])
    scalars = {name: number for match in matches for name, number in match.scalars.items()}
    if is_eager and chain is not None and not chain.scalars:
        scalars["shift"] = 0.0  # a clip alone: x / 1 + 0
    reading = _reading(scalars, is_eager=is_eager)
    adjusting = {} if decision is None else _decision_fields(Folded(view) if is_eager else view, decision)
    if adjusting.get("adjustable") == "boundary" and adjusting["default"] is not None:
        scalars["boundary"] = adjusting["default"]
    values, is_plain, below = _below(view, scored, level, raw, is_eager=is_eager)
    return FoundTail(
        kind="eager" if is_eager else "attached",
        level=level,
        outputs=(PACKED_OUTPUT,)
        if isinstance(packing, Match)
        else tuple(name for name in names if not isinstance(places[name], Mismatch)),
        values=tuple(dict.fromkeys([*(value for match in matches for value in match.values), *values])),
        scalars=scalars,
        reading=reading,
        decides=decision is not None,
        is_as_emitted=all(is_emitted(match) for match in matches) and is_plain,
        is_packed=isinstance(packing, Match),
        **adjusting,
        **below,
    )


def _reading(scalars: Mapping[str, float], *, is_eager: bool) -> BranchReading:
    """Return threshold and span as they stand in the graph."""
    if not (scalars.keys() - {"boundary"} if is_eager else "alpha" in scalars):
        return BranchReading(is_normalised=False)
    if not is_eager:
        offset = {"threshold": scalars["offset"]} if "offset" in scalars else {"shift": scalars["beta"]}
        scalars = {"scale": scalars["alpha"], **offset}
    reading = read_chain(scalars)
    assert isinstance(reading, BranchReading), "only a guard that repeats the threshold can contradict it"
    return reading


def _steps_of_tail(
    view: GraphView, level: Level, score: Value, label: Value | Mismatch, options: TailOptions | None
) -> Parts | Mismatch:
    decision = label if isinstance(label, Mismatch) else find_decision(view, level, at=label)
    unit = find_unit(view, decision, at=score)
    if isinstance(unit, Mismatch):
        eager = _eager_parts(view, level, score, label) if options is None else None
        may_be_raw = options is None or not options.enable_normalization
        if eager is not None or isinstance(decision, Mismatch) or not may_be_raw:
            return eager or unit
        decided = decision.inputs["values"]
        if score == decided:
            return None, decision, score, False
        copy = find(identity(_VALUES), view, at=score)
        is_copy = isinstance(copy, Match) and copy.inputs["values"] == decided
        return (copy, decision, decided, False) if isinstance(copy, Match) and is_copy else unit
    values = unit.inputs["values"]
    if isinstance(decision, Mismatch):  # a score without a label may be the model's own
        is_ours = is_emitted(unit) if options is None else not options.enable_thresholding
        return (unit, None, values, False) if is_ours and decision is label else decision
    if decision.inputs["values"] != values:
        why = f"the score is of {view.describe(values)!r}, the decision of another value"
        return Mismatch(why, view.describe(decision.inputs["values"]))
    return unit, decision, values, False


def _lost_its_shape(view: GraphView, guard: Match) -> bool:
    """Whether a tool took out what shapes a guard: none was written without that beside a mask of the plain form."""
    mask = view.output("pred_mask")
    is_shaped = any(node.op == "reshape" for node in guard.nodes) or catalog.EMITTED_GUARDS.get(guard.body) == "all"
    return not is_shaped and mask is not None and any(find(plain, view, at=mask) for plain in _PLAIN)


def _below(
    view: GraphView, value: Value, level: Level, raw: Collection[Value], *, is_eager: bool
) -> tuple[list[Value], bool, dict[str, Any]]:
    """Walk from the value that is scored down to the host's raw one.

    Return what is computed between, whether its forms are those of attaching, and the fields of `FoundTail` that say
    what is there.
    """
    values: list[Value] = []

    def own(step: Pattern | Expr, at: Value) -> Match | None:
        """Find a step that a host may end in as well."""
        found = None if at in raw else find(step, view, at=at)
        if not isinstance(found, Match) or not (raw or found.nodes[0].name.startswith(PREFIX)):
            return None
        values.extend(found.values)
        return found

    def uncast(at: Value) -> Value:
        found = own(_CAST, at)
        return at if found is None else found.inputs["values"]

    fields: dict[str, Any] = {}
    is_plain, eager_map = True, None
    if is_eager:
        value, between, eager_map = _eager_source(view, level, value)
        values += between
    if eager_map is not None:
        fields = {"guard": "image", "guarded_by": view.describe(eager_map)}
    elif level == "image" and value not in raw and isinstance(guard := find(catalog.NAN_GUARD, view, at=value), Match):
        values += guard.values
        maps = uncast(guard.inputs["maps"])
        form = catalog.EMITTED_GUARDS.get(guard.body)
        fields = {"guard": form or "image", "guarded_by": view.describe(maps), "guard_maps": maps}
        is_plain, value = form is not None and not _lost_its_shape(view, guard), guard.inputs["values"]
    if not is_eager:
        maximum = own(catalog.MAP_MAX, value) if level == "image" else None
        if maximum is not None:
            fields["from_map"], value = True, maximum.inputs["maps"]
        value = uncast(value)
    return values, is_plain, {"raw": value, **fields}
