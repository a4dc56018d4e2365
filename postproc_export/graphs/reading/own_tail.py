"""Find our own tail in a graph, by its steps: also where its record is gone or another tool has been over the file."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from graph_patterns import catalog
from graph_patterns.expr import Expr, Input, cast, identity
from graph_patterns.graph import GraphView, Value
from graph_patterns.match import Match, Mismatch, find
from graph_patterns.pattern import Pattern
from postproc_export.boundary import Comparison
from postproc_export.graphs.reading.decision_steps import Decision, find_decision
from postproc_export.graphs.reading.eager_tail import Parts, eager_source, find_eager_parts, is_emitted
from postproc_export.graphs.reading.tail_places import Places, find_places
from postproc_export.guarding import GuardForm
from postproc_export.stats import Level
from postproc_export.tail import PREFIX
from postproc_export.tail_options import Adjustable, LabelDtype, TailOptions

SCORE_OUTPUT: Final[Mapping[Level, str]] = {"image": "pred_score", "pixel": "anomaly_map"}
LABEL_OUTPUT: Final[Mapping[Level, str]] = {"image": "pred_label", "pixel": "pred_mask"}

_VALUES: Final = Input("values")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnTail:
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
) -> OwnTail | Mismatch:
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
    return OwnTail(
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


def _scalars(parts: Parts) -> dict[str, float]:
    scalars = {name: number for match in parts.matches for name, number in match.scalars.items()}
    if parts.is_eager and parts.score and not parts.score[0].scalars:
        scalars["shift"] = 0.0  # a clip alone: x / 1 + 0
    decision = parts.decision
    if decision is not None and decision.what == "boundary" and decision.default is not None:
        scalars["boundary"] = decision.default
    return scalars


def _find_parts(view: GraphView, level: Level, places: Places, options: TailOptions | None) -> Parts | Mismatch:
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
        raw = _raw_parts(view, score, decision) if may_be_raw and isinstance(decision, Decision) else None
        return raw or unit
    values = unit.inputs["values"]
    if isinstance(decision, Mismatch):  # a score without a label may be the model's own
        is_ours = is_emitted(unit) if options is None else not options.enable_thresholding
        return Parts((unit,), None, values) if is_ours and decision is label else decision
    if decision.values != values:
        return Mismatch(
            f"the score is of {view.describe(values)!r}, the decision of another value",
            view.describe(decision.values),
        )
    return Parts((unit,), decision, values)


def _raw_parts(view: GraphView, score: Value, decision: Decision) -> Parts | None:
    """Return the steps of a score that stays raw and its label; None where the decision is on another value."""
    if score == decision.values:
        return Parts((), decision, score)
    copy = find(identity(_VALUES), view, at=score)
    is_copy = isinstance(copy, Match) and copy.inputs["values"] == decision.values
    return Parts((copy,), decision, decision.values) if isinstance(copy, Match) and is_copy else None


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
