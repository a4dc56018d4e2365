"""Find our own tail in a graph, by its steps: also where its record is gone or another tool changed the file."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from graph_patterns import catalog
from graph_patterns.expr import Expr, Input, Pattern, cast, identity
from graph_patterns.match import Folded, GraphView, Match, Mismatch, Site, Value, find
from postproc_export.decision import Comparison
from postproc_export.options import LABEL_DTYPES, Adjustable, LabelDtype, TailOptions
from postproc_export.ports import GuardForm
from postproc_export.reading.dialects import (
    ANY_GUARD,
    EAGER_CHAIN,
    EAGER_GUARD,
    EAGER_SCORE,
    TORCH_AT_LEAST,
    BranchReading,
    read_chain,
)
from postproc_export.stats import Level
from postproc_export.tail import OUTPUT_NAMES, PACKED_OUTPUT, PARTS, PREFIX, Adjusted, input_name

SCORE_OUTPUT: Final[Mapping[Level, str]] = {"image": "pred_score", "pixel": "anomaly_map"}
LABEL_OUTPUT: Final[Mapping[Level, str]] = {"image": "pred_label", "pixel": "pred_mask"}

_PIECES: Final[Mapping[str, str]] = dict(zip(PARTS, ("maps", "score", "label", "mask"), strict=True))


@dataclass(frozen=True, slots=True)
class Places:
    """The value of each part that a graph has, by name."""

    values: Mapping[str, Value]
    packing: Match | None = None  # the steps that lay the parts into one output; None where each has its own

    def at(self, part: str) -> Value | Mismatch:
        """Return the value of a part, or that it is missing."""
        return self.values[part] if part in self.values else Mismatch(f"no output {part!r}", part)

    def outputs(self, *parts: str) -> tuple[str, ...]:
        """Return the outputs that hold some parts."""
        return (PACKED_OUTPUT,) if self.packing else tuple(part for part in parts if part in self.values)


def find_places(view: GraphView, *, is_packed: bool | None = None) -> Places | Mismatch:
    """Find the parts of a tail: at outputs of their own, or in the packed one. None leaves open which it is."""
    at = None if is_packed is False else view.output(PACKED_OUTPUT)
    missing = Mismatch(f"no output {PACKED_OUTPUT!r}", PACKED_OUTPUT)
    packing = missing if at is None else find(catalog.PACKED, view, at=at)
    if isinstance(packing, Match):
        return Places({part: packing.inputs[piece] for part, piece in _PIECES.items()}, packing)
    if is_packed:
        return packing
    outputs = {name: view.output(name) for name in OUTPUT_NAMES}
    return Places({name: value for name, value in outputs.items() if value is not None})


_VALUES: Final = Input("values")
_CAST: Final = cast(_VALUES, dtype="float32")
_SOURCE: Final = "docs/definition.md sections 4 and 6"


def _in_every_type(*steps: Expr) -> Iterator[Expr]:
    for step in steps:
        yield step
        yield from (cast(step, dtype=dtype) for dtype in LABEL_DTYPES)


_FIXED: Final = (*_in_every_type(catalog.at_least(_VALUES)), TORCH_AT_LEAST)
_ADJUSTED: Final = tuple(_in_every_type(*catalog.ADJUSTED_AT_LEAST))
_LABEL: Final = Pattern(name="label", body=_FIXED[0], spellings=_FIXED[1:], source=_SOURCE)
_ADJUSTED_LABEL: Final = Pattern(name="adjusted_label", body=_ADJUSTED[0], spellings=_ADJUSTED[1:], source=_SOURCE)


@dataclass(frozen=True, slots=True)
class LabelSteps:
    """The steps of a label."""

    match: Match  # the steps
    adjusted: Value | None = None  # the value by which the decision is adjusted; None where it is a constant
    what: Adjusted | None = None  # what that value is
    default: float | None = None  # the number that it has where nobody gives another; None where it has none
    is_frozen: bool = False  # whether it is a constant in this file, as conversions make of it

    @property
    def values(self) -> Value:
        """The value that is decided on."""
        return self.match.inputs["values"]

    @property
    def dtype(self) -> LabelDtype:
        """Element type of the label."""
        dtype = dict(getattr(self.match.body, "params", ())).get("dtype", "bool")
        return "uint8" if dtype == "uint8" else "float32" if dtype == "float32" else "bool"


def find_decision(view: GraphView, level: Level, *, at: Value) -> LabelSteps | Mismatch:
    """Find the steps of a level's label.

    A comparison of two values is a decision of ours only where the second one is an input that bears our name.
    """
    fixed = find(_LABEL, view, at=at)
    if isinstance(fixed, Match):
        return LabelSteps(fixed)
    adjusted = find(_ADJUSTED_LABEL, view, at=at)
    if isinstance(adjusted, Mismatch):
        return max(fixed, adjusted, key=lambda miss: miss.depth)
    value = adjusted.inputs["adjusted"]
    what: Adjusted = "sensitivity" if "attached" in adjusted.scalars else "boundary"
    if what == "boundary" and view.describe(value).removeprefix(PREFIX) != input_name(level, what):
        return fixed
    return LabelSteps(adjusted, value, what, view.default(value), is_frozen=view.number(value) is not None)


# Our eager module may be in a file as well: exported with a model by torch or by Anomalib, or converted by OpenVINO.

Parts: TypeAlias = tuple[Match | None, LabelSteps | None, Value, bool]  # score, label, what both are of, is it eager?


def _eager_parts(view: GraphView, level: Level, score: Value, label: Value | Mismatch) -> Parts | None:
    """Return the steps of our eager module; None where it is not there.

    The score alone may as well be Anomalib's: without a label it is ours where the image score is guarded as ours is.
    """
    graph = Folded(view)
    decision = label if isinstance(label, Mismatch) else find_decision(graph, level, at=label)
    parts: Parts | None = None
    if isinstance(decision, LabelSteps):
        chain = find(EAGER_SCORE, graph, at=score, inputs={"raw": decision.values})
        is_raw = score == decision.values and decision.adjusted is None and not is_emitted(decision.match)
        if isinstance(chain, Match) or is_raw:
            parts = (chain if isinstance(chain, Match) else None, decision, decision.values, True)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundTail:
    """The post-processing of one level as it stands in a graph: attached by us, our eager module's, or Anomalib's."""

    kind: Literal["attached", "eager", "anomalib"]
    level: Level
    outputs: tuple[str, ...]  # that it computes, score first; without normalisation Anomalib's has a label alone
    raw: Value  # what it reads: the host's score or map
    from_map: bool = False  # whether the image score is the maximum of that map, taken in the tail
    values: tuple[Value, ...]  # what its nodes compute
    # The numbers as they stand in the graph. Attached: alpha and beta (offset in the longer form), none where scores
    # stay raw, and boundary where there are labels. Else those of the patterns in dialects.py.
    scalars: Mapping[str, float]
    reading: BranchReading  # what these numbers say
    sites: Mapping[str, tuple[Site, ...]] = field(default_factory=dict)  # where they stand; of Anomalib's alone
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


def find_own_tail(
    view: GraphView, level: Level, *, raw: Collection[Value] = (), options: TailOptions | None = None
) -> FoundTail | Mismatch:
    """Find the tail of one level behind the outputs that bear our names: also without a record, or changed by a tool.

    `raw` are raw values that are known from a record: what computes them is the host's. `options` are those of a
    record: a tail of another form is none. Without a record, a cast or a maximum in front of the tail counts as the
    tail's only where its name says so, and so does a normalised score without a label, which may be the model's own.
    """
    places = find_places(view, is_packed=None if options is None else options.is_packed)
    if isinstance(places, Mismatch):
        return places
    parts = _find_parts(view, level, places, options)
    if isinstance(parts, Mismatch):
        return parts
    chain, decision, scored, is_eager = parts
    steps = (chain, None if decision is None else decision.match, places.packing)
    matches = [match for match in steps if match is not None]
    scalars = {name: number for match in matches for name, number in match.scalars.items()}
    if is_eager and chain is not None and not chain.scalars:
        scalars["shift"] = 0.0  # a clip alone: x / 1 + 0
    reading = _reading(scalars, is_eager=is_eager)
    adjusting: dict[str, Any] = {}
    if decision is not None:
        adjusting = {
            "label_dtype": decision.dtype,
            "adjusted": decision.adjusted,
            "adjustable": decision.what or "nothing",
            "default": decision.default,
            "is_frozen": decision.is_frozen,
        }
        if decision.what == "boundary" and decision.default is not None:
            scalars["boundary"] = decision.default
    values, is_plain, below = _below(view, scored, level, raw, is_eager=is_eager)
    return FoundTail(
        kind="eager" if is_eager else "attached",
        level=level,
        outputs=places.outputs(SCORE_OUTPUT[level], LABEL_OUTPUT[level]),
        values=tuple(dict.fromkeys([*(value for match in matches for value in match.values), *values])),
        scalars=scalars,
        reading=reading,
        decides=decision is not None,
        is_as_emitted=all(is_emitted(match) for match in matches) and is_plain,
        is_packed=places.packing is not None,
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


def _find_parts(view: GraphView, level: Level, places: Places, options: TailOptions | None) -> Parts | Mismatch:
    score, label = places.at(SCORE_OUTPUT[level]), places.at(LABEL_OUTPUT[level])
    if isinstance(score, Mismatch):
        return score
    unit = find(catalog.UNIT_SCORE, view, at=score)
    decision = label if isinstance(label, Mismatch) else find_decision(view, level, at=label)
    if isinstance(unit, Mismatch):
        eager = _eager_parts(view, level, score, label) if options is None else None
        may_be_raw = options is None or not options.enable_normalization
        if eager is not None or isinstance(decision, Mismatch) or not may_be_raw:
            return eager or unit
        if score == decision.values:
            return None, decision, score, False
        copy = find(identity(_VALUES), view, at=score)
        is_copy = isinstance(copy, Match) and copy.inputs["values"] == decision.values
        return (copy, decision, decision.values, False) if isinstance(copy, Match) and is_copy else unit
    values = unit.inputs["values"]
    if isinstance(decision, Mismatch):  # a score without a label may be the model's own
        is_ours = is_emitted(unit) if options is None else not options.enable_thresholding
        return (unit, None, values, False) if is_ours and decision is label else decision
    if decision.values != values:
        why = f"the score is of {view.describe(values)!r}, the decision of another value"
        return Mismatch(why, view.describe(decision.values))
    return unit, decision, values, False


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
        is_plain, value = form is not None, guard.inputs["values"]
    if not is_eager:
        maximum = own(catalog.MAP_MAX, value) if level == "image" else None
        if maximum is not None:
            fields["from_map"], value = True, maximum.inputs["maps"]
        value = uncast(value)
    return values, is_plain, {"raw": value, **fields}
