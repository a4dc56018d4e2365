"""Find Anomalib's post-processing in a graph and read its numbers back, as far as the graph still has them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from graph_patterns.expr import Call
from graph_patterns.folding import Folded
from graph_patterns.graph import GraphView, Number, Value
from graph_patterns.match import Match, Mismatch, Site, find
from postproc_export.graphs.reading.anomalib_reading import Reading, read, with_decision
from postproc_export.graphs.reading.dialects import CHAINS, COPY, LABEL, SCORE, UNIT_SPAN
from postproc_export.graphs.reading.own_tail import LABEL_OUTPUT, SCORE_OUTPUT
from postproc_export.stats import Level

_AFFINE: Final = ("add", "sub", "mul", "div")
NEAR: Final = 2  # operators that fit before one does not: a clip alone may well be a model's own


@dataclass(frozen=True, slots=True, kw_only=True)
class AnomalibTail:
    """One level of Anomalib's post-processing, as it stands in a graph.

    Parameters
    ----------
    level
        The level.
    raw
        The raw value that the level reads.
    outputs
        The outputs that the tail computes; without normalisation the score is not among them.
    values
        What the nodes of the tail compute.
    reading
        Its numbers.
    scalars, sites
        The numbers as they stand in the graph, and where.
    other_rule
        Why its label is not Anomalib's, where it has one all the same.
    """

    level: Level
    raw: Value
    outputs: tuple[str, ...]
    values: tuple[Value, ...]
    reading: Reading
    scalars: Mapping[str, float]
    sites: Mapping[str, tuple[Site, ...]]
    from_map: bool = False
    other_rule: Mismatch | None = None


def find_anomalib_tail(view: GraphView, level: Level) -> AnomalibTail | Mismatch:
    """Find Anomalib's post-processing of one level behind the outputs that bear its names."""
    graph = Folded(view)
    score = graph.output(SCORE_OUTPUT[level])
    if score is None:
        return Mismatch(f"no output {SCORE_OUTPUT[level]!r}", SCORE_OUTPUT[level])
    decision = _decision(graph, level)
    found = _find_score(graph, score)
    if isinstance(found, Match):
        reading = read(found)
        if isinstance(reading, Mismatch):
            return reading
        if isinstance(decision, Match) and decision.inputs["score"] != score:
            return Mismatch(f"the label is not of the score {graph.describe(score)!r}", graph.describe(score))
        # A node that computes a constant may be shared, and goes by itself when nobody reads it any more.
        values = tuple(value for value in found.values if graph.number(value) is None)
        return _tail(graph, level, found, values, decision, reading)
    if not isinstance(decision, Match):
        return found if found.depth >= decision.depth else decision
    if found.depth >= NEAR or _ends_in_chain(graph, score):
        return found
    return _unnormalised(graph, level, score, decision, found)


def _find_score(graph: Folded, score: Value) -> Match | Mismatch:
    found = find(SCORE, graph, at=score)
    short = found if isinstance(found, Match) else find(UNIT_SPAN, graph, at=score)
    if not isinstance(short, Match) or short is found:
        return found
    node = graph.producer(short.inputs["raw"])
    operands = () if node is None or node.op not in _AFFINE else node.args
    # A conversion that folds would have taken a constant below along; and T = 0 with R = 1 says nothing at all.
    is_own = any(not isinstance(operand, Number) and graph.number(operand) is not None for operand in operands)
    return found if is_own or short.scalars["shift"] == 0.5 else short


def _decision(graph: Folded, level: Level) -> Match | Mismatch:
    label = graph.output(LABEL_OUTPUT[level])
    if label is None:
        return Mismatch(f"no output {LABEL_OUTPUT[level]!r}", LABEL_OUTPUT[level])
    return find(LABEL, graph, at=label)


def _ends_in_chain(graph: Folded, score: Value) -> bool:
    """Whether a score is a normalised one behind another operator than a clip: a near miss, and not a raw one."""
    node = graph.producer(score)
    operands = () if node is None else node.args
    if node is not None and node.op == "select":
        return True  # the guards of 2.7.0, in a form that is not known
    return any(
        bool(find(chain.args[0], graph, at=operand))
        for operand in operands
        if not isinstance(operand, Number)
        for chain in CHAINS
        if isinstance(chain.args[0], Call) and chain.args[0].op == "add"
    )


def _tail(
    graph: Folded,
    level: Level,
    found: Match,
    values: tuple[Value, ...],
    decision: Match | Mismatch,
    reading: Reading,
) -> AnomalibTail:
    names, sites, scalars = [SCORE_OUTPUT[level]], dict(found.sites), dict(found.scalars)
    other = decision if isinstance(decision, Mismatch) and graph.output(LABEL_OUTPUT[level]) is not None else None
    if isinstance(decision, Match):
        names.append(LABEL_OUTPUT[level])
        values = (*values, *decision.values)
        sites |= decision.sites
        scalars |= decision.scalars
    return AnomalibTail(
        level=level,
        raw=found.inputs["raw"],
        outputs=tuple(names),
        values=values,
        reading=with_decision(reading, scalars.get("cut"), other_rule=other),
        scalars=scalars,
        sites=sites,
        other_rule=other,
    )


def _unnormalised(
    graph: Folded, level: Level, score: Value, decision: Match, miss: Mismatch
) -> AnomalibTail | Mismatch:
    copy = find(COPY, graph, at=score)
    if decision.inputs["score"] not in (score, copy.inputs["raw"] if isinstance(copy, Match) else score):
        return miss
    return AnomalibTail(
        level=level,
        raw=score,
        outputs=(LABEL_OUTPUT[level],),
        values=decision.values,
        reading=with_decision(Reading(is_normalised=False), decision.scalars["cut"]),
        scalars=decision.scalars,
        sites=decision.sites,
    )
