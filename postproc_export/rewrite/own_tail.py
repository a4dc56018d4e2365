"""Find our own tail in a graph, by its steps: also where its record is gone or another tool has been over the file."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from graph_patterns import catalog
from graph_patterns.expr import Expr, Input, cast
from graph_patterns.graph import GraphView, Value
from graph_patterns.match import Match, Mismatch, find
from graph_patterns.pattern import Pattern
from postproc_export.stats import Level
from postproc_export.tail import PREFIX, LabelDtype

SCORE_OUTPUT: Final[Mapping[Level, str]] = {"image": "pred_score", "pixel": "anomaly_map"}
LABEL_OUTPUT: Final[Mapping[Level, str]] = {"image": "pred_label", "pixel": "pred_mask"}

_VALUES: Final = Input("values")
_LABEL: Final = Pattern(
    name="label",
    body=catalog.at_least(_VALUES),
    spellings=(
        cast(catalog.at_least(_VALUES), dtype="uint8"),
        cast(catalog.at_least(_VALUES), dtype="float32"),
        cast(catalog.at_least(_VALUES), dtype="bool"),
    ),
    source="docs/definition.md section 6",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnTail:
    """One level of our tail, as it stands in a graph.

    Parameters
    ----------
    level
        The level.
    raw
        The raw value that the level reads: the host's score or map.
    from_map
        Whether the image score is the maximum of that map, taken in the tail.
    values
        What the nodes of the tail compute.
    scalars
        ``alpha``, ``beta`` and ``boundary`` as they stand in the graph, ``offset`` in the longer form.
    label_dtype
        Element type of the label or mask.
    is_guarded
        Whether a NaN in the map reaches the score.
    is_as_emitted
        Whether the nodes bear the names and the forms that attaching gave them: no other tool changed them since.
    """

    level: Level
    raw: Value
    from_map: bool
    values: tuple[Value, ...]
    scalars: Mapping[str, float]
    label_dtype: LabelDtype
    is_guarded: bool
    is_as_emitted: bool

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the level's outputs: score first."""
        return (SCORE_OUTPUT[self.level], LABEL_OUTPUT[self.level])


def find_own_tail(view: GraphView, level: Level, *, raw: Collection[Value] = ()) -> OwnTail | Mismatch:
    """Find the tail of one level behind the outputs that bear our names.

    Parameters
    ----------
    view
        The graph.
    level
        The level.
    raw
        Raw values that are known from a record: what computes them is the host's.

    Returns
    -------
    OwnTail | Mismatch
        Without a record, a cast or a maximum in front of the tail counts as the tail's only where its name says so.
    """
    score, label = (_at_output(view, name[level]) for name in (SCORE_OUTPUT, LABEL_OUTPUT))
    if isinstance(score, Mismatch):
        return score
    unit = find(catalog.UNIT_SCORE, view, at=score)
    if isinstance(unit, Mismatch):
        return unit
    if isinstance(label, Mismatch):
        return label
    decision = find(_LABEL, view, at=label)
    if isinstance(decision, Mismatch):
        return decision
    values = unit.inputs["values"]
    if decision.inputs["values"] != values:
        return Mismatch(
            f"the score is of {view.describe(values)!r}, the decision of another value",
            view.describe(decision.inputs["values"]),
        )
    steps = _Steps(view, raw)
    source, from_map = steps.walk(values, level)
    return OwnTail(
        level=level,
        raw=source,
        from_map=from_map,
        values=(*unit.values, *decision.values, *steps.values),
        scalars={**unit.scalars, **decision.scalars},
        label_dtype=_dtype_of(decision.body),
        is_guarded=steps.is_guarded,
        is_as_emitted=all(node.name.startswith(PREFIX) for found in (unit, decision) for node in found.nodes)
        and steps.is_as_emitted,
    )


class _Steps:
    """The steps between a host's raw value and the value that is scored, walked from the bottom up."""

    def __init__(self, view: GraphView, raw: Collection[Value]) -> None:
        self._view = view
        self._raw = raw
        self.values: list[Value] = []
        self.is_guarded = False
        self.is_as_emitted = True

    def walk(self, value: Value, level: Level) -> tuple[Value, bool]:
        from_map = False
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
        self.is_guarded = True
        self.is_as_emitted = guard.body in catalog.EMITTED_GUARDS
        self.values += guard.values
        self._through_cast(guard.inputs["maps"])
        return guard.inputs["values"]

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


def _at_output(view: GraphView, name: str) -> Value | Mismatch:
    value = view.output(name)
    return Mismatch(f"no output {name!r}", name) if value is None else value


def _dtype_of(body: Expr) -> LabelDtype:
    dtype = dict(getattr(body, "params", ())).get("dtype", "bool")
    return "uint8" if dtype == "uint8" else "float32" if dtype == "float32" else "bool"
