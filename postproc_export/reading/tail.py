"""Find our own tail in a graph, by its steps: also where its record is gone or another tool changed the file."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from graph_patterns import catalog
from graph_patterns.expr import Expr, Input, Pattern, cast, identity
from graph_patterns.match import Folded, GraphView, Match, Mismatch, Value, find
from postproc_export.decision import Comparison
from postproc_export.options import LABEL_DTYPES, Adjustable, LabelDtype, TailOptions
from postproc_export.ports import GuardForm
from postproc_export.reading.dialects import ANY_GUARD, EAGER_CHAIN, EAGER_GUARD, EAGER_SCORE, TORCH_AT_LEAST
from postproc_export.stats import Level
from postproc_export.tail import OUTPUT_NAMES, PACKED_OUTPUT, PARTS, PREFIX, Adjusted, input_name

# --- Where scores, labels, maps and masks stand in a graph: at outputs of their own, or in the packed one.

_PIECES: Final[Mapping[str, str]] = dict(zip(PARTS, ("maps", "score", "label", "mask"), strict=True))


@dataclass(frozen=True, slots=True)
class Places:
    """The value of each part that a graph has, by name.

    Parameters
    ----------
    values
        The value of each part.
    packing
        The steps that lay the parts into one output; None where each has its own.
    """

    values: Mapping[str, Value]
    packing: Match | None = None

    def at(self, part: str) -> Value | Mismatch:
        """Return the value of a part, or that it is missing."""
        return self.values[part] if part in self.values else Mismatch(f"no output {part!r}", part)

    def outputs(self, *parts: str) -> tuple[str, ...]:
        """Return the outputs that hold some parts."""
        return (PACKED_OUTPUT,) if self.packing else tuple(part for part in parts if part in self.values)


def find_places(view: GraphView, *, is_packed: bool | None = None) -> Places | Mismatch:
    """Find the parts of a tail.

    Parameters
    ----------
    view
        The graph.
    is_packed
        Whether there has to be a packed output; None where that is not known.
    """
    packing = Mismatch(f"no output {PACKED_OUTPUT!r}", PACKED_OUTPUT) if is_packed is False else find_packing(view)
    if isinstance(packing, Match):
        return Places({part: packing.inputs[piece] for part, piece in _PIECES.items()}, packing)
    if is_packed:
        return packing
    outputs = {name: view.output(name) for name in OUTPUT_NAMES}
    return Places({name: value for name, value in outputs.items() if value is not None})


def find_packing(view: GraphView) -> Match | Mismatch:
    """Find the steps that lay four parts into one output."""
    at = view.output(PACKED_OUTPUT)
    return Mismatch(f"no output {PACKED_OUTPUT!r}", PACKED_OUTPUT) if at is None else find(catalog.PACKED, view, at=at)


# --- Find the steps of a label: a comparison with a constant, or with a boundary that is given or computed at run
# time.

_SOURCE: Final = "docs/definition.md sections 4 and 6"


def _in_every_type(*steps: Expr) -> Iterator[Expr]:
    for step in steps:
        yield step
        yield from (cast(step, dtype=dtype) for dtype in LABEL_DTYPES)


_FIXED: Final = (*_in_every_type(catalog.at_least(Input("values"))), TORCH_AT_LEAST)
_ADJUSTED: Final = tuple(_in_every_type(*catalog.ADJUSTED_AT_LEAST))
_LABEL: Final = Pattern(name="label", body=_FIXED[0], spellings=_FIXED[1:], source=_SOURCE)
_ADJUSTED_LABEL: Final = Pattern(name="adjusted_label", body=_ADJUSTED[0], spellings=_ADJUSTED[1:], source=_SOURCE)


@dataclass(frozen=True, slots=True)
class LabelSteps:
    """The steps of a label.

    Parameters
    ----------
    match
        The steps.
    adjusted
        The value by which the decision is adjusted; None where it is a constant.
    what
        What that value is.
    default
        The number that it has where nobody gives another; None where it has none.
    is_frozen
        Whether it is a constant in this file, as conversions make of it.
    """

    match: Match
    adjusted: Value | None = None
    what: Adjusted | None = None
    default: float | None = None
    is_frozen: bool = False

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

    Notes
    -----
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


# --- Find our eager module where it was exported with a model: by torch, by Anomalib, or converted by OpenVINO.


@dataclass(frozen=True, slots=True)
class EagerParts:
    """The steps of a tail of ours: of the score, of the label where there is one, and the value that both are of."""

    score: tuple[Match, ...]
    decision: LabelSteps | None
    values: Value
    is_eager: bool = False

    @property
    def matches(self) -> tuple[Match, ...]:
        """The steps of the score and of the label."""
        return self.score if self.decision is None else (*self.score, self.decision.match)


@dataclass(frozen=True, slots=True)
class EagerSource:
    """What the eager module reads, what stands between, and the map that guards it, if one does."""

    raw: Value
    values: tuple[Value, ...] = ()
    maps: Value | None = None


def find_eager_parts(view: GraphView, level: Level, score: Value, label: Value | Mismatch) -> EagerParts | None:
    """Return the steps of our eager module; None where it is not there.

    Notes
    -----
    The score alone may as well be Anomalib's: without a label it is ours where the image score is guarded as ours is.
    """
    graph = Folded(view)
    decision = label if isinstance(label, Mismatch) else find_decision(graph, level, at=label)
    parts: EagerParts | None = None
    if isinstance(decision, LabelSteps):
        chain = find(EAGER_SCORE, graph, at=score, inputs={"raw": decision.values})
        is_raw = score == decision.values and decision.adjusted is None and not is_emitted(decision.match)
        if isinstance(chain, Match):
            parts = EagerParts((chain,), decision, decision.values, is_eager=True)
        elif is_raw:
            parts = EagerParts((), decision, score, is_eager=True)
    elif decision is label and _is_guarded(graph):
        chain = find(EAGER_SCORE if level == "image" else EAGER_CHAIN, graph, at=score)
        if isinstance(chain, Match):
            parts = EagerParts((chain,), None, chain.inputs["raw"], is_eager=True)
        elif level == "image":
            parts = EagerParts((), None, score, is_eager=True)
    return None if parts is not None and _has_other_guard(graph, parts.values) else parts


def _has_other_guard(graph: Folded, value: Value) -> bool:
    """Whether a value is NaN where something holds, in a form that is not known: it would stay behind."""
    behind = _uncast(graph, value)
    known = any(isinstance(find(guard, graph, at=behind), Match) for guard in (EAGER_GUARD, catalog.NAN_GUARD))
    return not known and isinstance(find(ANY_GUARD, graph, at=behind), Match)


def eager_source(view: GraphView, level: Level, value: Value) -> EagerSource:
    """Walk from the value that is scored down to the model's own.

    Notes
    -----
    A cast that nothing else reads goes by itself, and the one behind the guard is nobody else's. A maximum below may be
    the model's own as well as the module's: it stays, and is the raw score.
    """
    behind = _uncast(view, value)
    guard = find(EAGER_GUARD, Folded(view), at=behind) if level == "image" else None
    if not isinstance(guard, Match):
        return EagerSource(behind)
    values = (*(() if behind == value else (value,)), *guard.values)
    return EagerSource(_uncast(view, guard.inputs["values"]), values, _uncast(view, guard.inputs["maps"]))


def is_emitted(match: Match) -> bool:
    """Whether all nodes of a match bear the names that attaching gives."""
    return all(node.name.startswith(PREFIX) for node in match.nodes)


def _is_guarded(graph: Folded) -> bool:
    score = graph.output("pred_score")
    chain = None if score is None else find(EAGER_SCORE, graph, at=score)
    guarded = chain.inputs["raw"] if isinstance(chain, Match) else score
    return guarded is not None and eager_source(graph, "image", guarded).maps is not None


def _uncast(view: GraphView, value: Value) -> Value:
    """Return what a cast to float32 reads; any other value itself."""
    found = find(cast(Input("values"), dtype="float32"), view, at=value)
    return found.inputs["values"] if isinstance(found, Match) else value


# --- Find our own tail in a graph, by its steps: also where its record is gone or another tool has been over the
# file.

SCORE_OUTPUT: Final[Mapping[Level, str]] = {"image": "pred_score", "pixel": "anomaly_map"}
LABEL_OUTPUT: Final[Mapping[Level, str]] = {"image": "pred_label", "pixel": "pred_mask"}

_VALUES: Final = Input("values")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnLevelTail:
    """One level of our tail, as it stands in a graph.

    Parameters
    ----------
    level
        The level.
    outputs
        The outputs that hold its parts, score first.
    raw
        The raw value that the level reads: the host's score or map.
    from_map
        Whether the image score is the maximum of that map, taken in the tail.
    values
        What the nodes of the tail compute.
    scalars
        ``alpha``, ``beta`` and ``boundary`` as they stand in the graph, ``offset`` in the longer form; no boundary
        where there are no labels, nothing else where scores stay raw.
    label_dtype
        Element type of the label or mask.
    guard
        Over what a map is reduced so that a NaN in it reaches the score; None where none does.
    guarded_by
        How the graph names that map.
    guard_maps
        That map.
    decides
        Whether it has labels.
    is_as_emitted
        Whether the nodes bear the names and the forms that attaching gave them: no other tool changed them since.
    is_packed
        Whether both levels are in one output.
    is_eager
        Whether it is our eager module, exported with the model; its scalars are those of `EAGER_SCORE` then.
    comparison
        The rule of the eager module, where it takes both levels to tell it.
    adjusted
        The value by which the decision is adjusted at run time; None where it cannot be.
    adjustable
        What that value is.
    default
        The number that it has where nobody gives another; None where it has to be given.
    is_frozen
        Whether it is a constant in this file, as conversions make of it.
    """

    level: Level
    outputs: tuple[str, ...]
    raw: Value
    from_map: bool
    values: tuple[Value, ...]
    scalars: Mapping[str, float]
    label_dtype: LabelDtype
    guard: GuardForm | None
    guarded_by: str | None
    is_as_emitted: bool
    is_packed: bool = False
    is_eager: bool = False
    comparison: Comparison | None = None
    adjusted: Value | None = None
    adjustable: Adjustable = "nothing"
    default: float | None = None
    is_frozen: bool = False
    decides: bool = True
    guard_maps: Value | None = None

    @property
    def is_normalised(self) -> bool:
        """Whether its scores are normalised."""
        return bool(self.scalars.keys() - {"boundary"}) if self.is_eager else "alpha" in self.scalars


def find_own_tail(
    view: GraphView, level: Level, *, raw: Collection[Value] = (), options: TailOptions | None = None
) -> OwnLevelTail | Mismatch:
    """Find the tail of one level behind the outputs that bear our names.

    Parameters
    ----------
    view
        The graph.
    level
        The level.
    raw
        Raw values that are known from a record: what computes them is the host's.
    options
        The options of a record: a tail of another form is none.

    Returns
    -------
    OwnTail | Mismatch
        Without a record, a cast or a maximum in front of the tail counts as the tail's only where its name says so, and
        so does a normalised score without a label, which may be the model's own.
    """
    places = find_places(view, is_packed=None if options is None else options.is_packed)
    if isinstance(places, Mismatch):
        return places
    score, label = SCORE_OUTPUT[level], LABEL_OUTPUT[level]
    parts = _find_parts(view, level, places, options)
    if isinstance(parts, Mismatch):
        return parts
    steps = _Steps(view, raw, is_eager=parts.is_eager)
    source, from_map = steps.walk(parts.values, level)
    matches = (*parts.matches, *((places.packing,) if places.packing else ()))
    return OwnLevelTail(
        level=level,
        outputs=places.outputs(score, label),
        raw=source,
        from_map=from_map,
        values=tuple(dict.fromkeys([*(value for match in matches for value in match.values), *steps.values])),
        scalars=_scalars(parts),
        label_dtype="bool" if parts.decision is None else parts.decision.dtype,
        guard=steps.guard,
        guarded_by=steps.guarded_by,
        is_as_emitted=all(is_emitted(match) for match in matches) and steps.is_as_emitted,
        is_packed=places.packing is not None,
        is_eager=parts.is_eager,
        adjusted=None if parts.decision is None else parts.decision.adjusted,
        adjustable="nothing" if parts.decision is None else parts.decision.what or "nothing",
        default=None if parts.decision is None else parts.decision.default,
        is_frozen=parts.decision is not None and parts.decision.is_frozen,
        decides=parts.decision is not None,
        guard_maps=steps.maps,
    )


def _scalars(parts: EagerParts) -> dict[str, float]:
    scalars = {name: number for match in parts.matches for name, number in match.scalars.items()}
    if parts.is_eager and parts.score and not parts.score[0].scalars:
        scalars["shift"] = 0.0  # a clip alone: x / 1 + 0
    decision = parts.decision
    if decision is not None and decision.what == "boundary" and decision.default is not None:
        scalars["boundary"] = decision.default
    return scalars


def _find_parts(view: GraphView, level: Level, places: Places, options: TailOptions | None) -> EagerParts | Mismatch:
    score, label = places.at(SCORE_OUTPUT[level]), places.at(LABEL_OUTPUT[level])
    if isinstance(score, Mismatch):
        return score
    unit = find(catalog.UNIT_SCORE, view, at=score)
    decision = label if isinstance(label, Mismatch) else find_decision(view, level, at=label)
    eager = find_eager_parts(view, level, score, label) if isinstance(unit, Mismatch) and options is None else None
    if eager is not None:
        return eager
    if isinstance(unit, Mismatch):
        may_be_raw = options is None or not options.enable_normalization
        raw = _raw_parts(view, score, decision) if may_be_raw and isinstance(decision, LabelSteps) else None
        return raw or unit
    values = unit.inputs["values"]
    if isinstance(decision, Mismatch):  # a score without a label may be the model's own
        is_ours = is_emitted(unit) if options is None else not options.enable_thresholding
        return EagerParts((unit,), None, values) if is_ours and decision is label else decision
    if decision.values != values:
        return Mismatch(
            f"the score is of {view.describe(values)!r}, the decision of another value",
            view.describe(decision.values),
        )
    return EagerParts((unit,), decision, values)


def _raw_parts(view: GraphView, score: Value, decision: LabelSteps) -> EagerParts | None:
    """Return the steps of a score that stays raw and its label; None where the decision is on another value."""
    if score == decision.values:
        return EagerParts((), decision, score)
    copy = find(identity(_VALUES), view, at=score)
    is_copy = isinstance(copy, Match) and copy.inputs["values"] == decision.values
    return EagerParts((copy,), decision, decision.values) if isinstance(copy, Match) and is_copy else None


class _Steps:
    """The steps between a host's raw value and the value that is scored, walked from the bottom up."""

    def __init__(self, view: GraphView, raw: Collection[Value], *, is_eager: bool = False) -> None:
        self._view = view
        self._raw = raw
        self._is_eager = is_eager
        self.values: list[Value] = []
        self.guard: GuardForm | None = None
        self.guarded_by: str | None = None
        self.maps: Value | None = None
        self.is_as_emitted = True

    def walk(self, value: Value, level: Level) -> tuple[Value, bool]:
        from_map = False
        if self._is_eager:
            return self._through_eager(value, level), False
        if level == "image":
            value = self._through_guard(value)
            maximum = self._own(catalog.MAP_MAX, value)
            if maximum is not None:
                from_map, value = True, maximum.inputs["maps"]
        return self._through_cast(value), from_map

    def _through_guard(self, value: Value) -> Value:
        guard = None if value in self._raw else find(catalog.NAN_GUARD, self._view, at=value)
        if not isinstance(guard, Match):
            return value
        self.guard = catalog.EMITTED_GUARDS.get(guard.body, "image")
        self.is_as_emitted = guard.body in catalog.EMITTED_GUARDS
        self.values += guard.values
        self.maps = self._through_cast(guard.inputs["maps"])
        self.guarded_by = self._view.describe(self.maps)
        return guard.inputs["values"]

    def _through_eager(self, value: Value, level: Level) -> Value:
        source = eager_source(self._view, level, value)
        self.values += source.values
        if source.maps is None:
            return source.raw if level == "pixel" else self._through_guard(source.raw)
        self.guard = "image"
        self.guarded_by = self._view.describe(source.maps)
        return source.raw

    def _through_cast(self, value: Value) -> Value:
        found = self._own(cast(_VALUES, dtype="float32"), value)
        return value if found is None else found.inputs["values"]

    def _own(self, step: Pattern | Expr, value: Value) -> Match | None:
        """Find a step that a host may end in as well."""
        found = None if value in self._raw else find(step, self._view, at=value)
        if not isinstance(found, Match) or not (self._raw or found.nodes[0].name.startswith(PREFIX)):
            return None
        self.values += found.values
        return found
