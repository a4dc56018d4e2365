"""Find our eager module where it was exported with a model: by torch, by Anomalib, or converted by OpenVINO."""

from dataclasses import dataclass

from graph_patterns import catalog
from graph_patterns.expr import Input, cast
from graph_patterns.folding import Folded
from graph_patterns.graph import GraphView, Value
from graph_patterns.match import Match, Mismatch, find
from postproc_export.graphs.reading.decision_steps import Decision, find_decision
from postproc_export.graphs.reading.dialects import ANY_GUARD, EAGER_CHAIN, EAGER_GUARD, EAGER_SCORE
from postproc_export.stats import Level
from postproc_export.tail import PREFIX


@dataclass(frozen=True, slots=True)
class Parts:
    """The steps of a tail of ours: of the score, of the label where there is one, and the value that both are of."""

    score: tuple[Match, ...]
    decision: Decision | None
    values: Value
    is_eager: bool = False

    @property
    def matches(self) -> tuple[Match, ...]:
        """The steps of the score and of the label."""
        return self.score if self.decision is None else (*self.score, self.decision.match)


@dataclass(frozen=True, slots=True)
class Source:
    """What the eager module reads, what stands between, and the map that guards it, if one does."""

    raw: Value
    values: tuple[Value, ...] = ()
    maps: Value | None = None


def find_eager_parts(view: GraphView, level: Level, score: Value, label: Value | Mismatch) -> Parts | None:
    """Return the steps of our eager module; None where it is not there.

    Notes
    -----
    The score alone may as well be Anomalib's: without a label it is ours where the image score is guarded as ours is.
    """
    graph = Folded(view)
    decision = label if isinstance(label, Mismatch) else find_decision(graph, level, at=label)
    parts: Parts | None = None
    if isinstance(decision, Decision):
        chain = find(EAGER_SCORE, graph, at=score, inputs={"raw": decision.values})
        is_raw = score == decision.values and decision.adjusted is None and not is_emitted(decision.match)
        if isinstance(chain, Match):
            parts = Parts((chain,), decision, decision.values, is_eager=True)
        elif is_raw:
            parts = Parts((), decision, score, is_eager=True)
    elif decision is label and _is_guarded(graph):
        chain = find(EAGER_SCORE if level == "image" else EAGER_CHAIN, graph, at=score)
        if isinstance(chain, Match):
            parts = Parts((chain,), None, chain.inputs["raw"], is_eager=True)
        elif level == "image":
            parts = Parts((), None, score, is_eager=True)
    return None if parts is not None and _has_other_guard(graph, parts.values) else parts


def _has_other_guard(graph: Folded, value: Value) -> bool:
    """Whether a value is NaN where something holds, in a form that is not known: it would stay behind."""
    behind = _uncast(graph, value)
    known = any(isinstance(find(guard, graph, at=behind), Match) for guard in (EAGER_GUARD, catalog.NAN_GUARD))
    return not known and isinstance(find(ANY_GUARD, graph, at=behind), Match)


def eager_source(view: GraphView, level: Level, value: Value) -> Source:
    """Walk from the value that is scored down to the model's own.

    Notes
    -----
    A cast that nothing else reads goes by itself, and the one behind the guard is nobody else's. A maximum below may be
    the model's own as well as the module's: it stays, and is the raw score.
    """
    behind = _uncast(view, value)
    guard = find(EAGER_GUARD, Folded(view), at=behind) if level == "image" else None
    if not isinstance(guard, Match):
        return Source(behind)
    values = (*(() if behind == value else (value,)), *guard.values)
    return Source(_uncast(view, guard.inputs["values"]), values, _uncast(view, guard.inputs["maps"]))


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
