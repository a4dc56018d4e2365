"""Find Anomalib's post-processing in a graph and read its numbers back, as far as the graph still has them."""

import math
from dataclasses import replace
from typing import Final

import numpy as np

from graph_patterns.expr import Call
from graph_patterns.match import Folded, GraphView, Match, Mismatch, Number, Value, find
from postproc_export.float32 import to_float32
from postproc_export.reading.dialects import (
    CHAINS,
    COPY,
    LABEL,
    SCORE,
    UNIT_SPAN,
    ZERO_RANGE,
    BranchReading,
    known,
    read_chain,
)
from postproc_export.reading.tail import LABEL_OUTPUT, SCORE_OUTPUT, FoundTail
from postproc_export.stats import Level

NOT_NORMALISED: Final = (
    "the raw score is compared with {cut:.6g}: normalisation was switched off or its range was never calibrated, "
    "so the threshold and the range are not in the graph"
)
OTHER_RULE: Final = "the label is by another rule, which is not known: {why}"
NO_LABEL: Final = "the model gives no label: thresholding was switched off when it was exported"


def read(found: Match) -> BranchReading | Mismatch:
    """Return the numbers of a score that was found, or why the pattern does not hold after all."""
    scalars = found.scalars
    low, high = (known(scalars.get(name, math.nan)) for name in ("min", "max"))
    has_range = scalars.get("has_range", 1.0) != 0.0 and ("min" not in scalars or None not in (low, high))
    if not has_range:
        return BranchReading(is_normalised=False)
    if scalars.get("is_zero_range", 0.0) != 0.0:
        if "step_threshold" not in scalars:
            return Mismatch("expected a comparison with the threshold, found something else", "an empty range")
        threshold = known(scalars["step_threshold"])
        return BranchReading(threshold=threshold, span=0.0, min=low, max=high, notes=(ZERO_RANGE,))
    if "unread_chain" in found.inputs:
        return Mismatch("expected clip((x - T) / R + 0.5, 0, 1), found something else", "the live branch of a select")
    chain = read_chain(scalars)
    return chain if isinstance(chain, Mismatch) else replace(chain, min=low, max=high)


def with_decision(reading: BranchReading, cut: float | None, *, other_rule: Mismatch | None = None) -> BranchReading:
    """Return a reading with the sensitivity that the decision compares with, and what that means."""
    notes = reading.notes
    if other_rule is not None:
        return replace(reading, notes=(*notes, OTHER_RULE.format(why=other_rule)))
    if not reading.is_normalised and cut is not None:
        notes = (*notes, NOT_NORMALISED.format(cut=cut))
    if cut is None:
        return replace(reading, notes=(*notes, NO_LABEL))
    return replace(reading, notes=notes, sensitivity=sensitivity_of(cut))


def sensitivity_of(cut: float) -> float | None:
    """Return the sensitivity in [0, 1] with ``float32(1) - float32(sensitivity) == cut``, the shortest decimal.

    Several float32 give the same difference; the shortest decimal is what a person wrote.
    """
    if not 0.0 <= cut <= 1.0:
        return None
    for digits in range(1, 10):
        candidate = round(1.0 - cut, digits)
        if float(np.float32(1.0) - np.float32(candidate)) == cut:
            return to_float32(candidate)
    return to_float32(1.0 - cut)


_AFFINE: Final = ("add", "sub", "mul", "div")
NEAR: Final = 2  # operators that fit before one does not: a clip alone may well be a model's own


def find_anomalib_tail(view: GraphView, level: Level) -> FoundTail | Mismatch:
    """Find Anomalib's post-processing of one level behind the outputs that bear its names."""
    graph = Folded(view)
    score, label = graph.output(SCORE_OUTPUT[level]), graph.output(LABEL_OUTPUT[level])
    if score is None:
        return Mismatch(f"no output {SCORE_OUTPUT[level]!r}", SCORE_OUTPUT[level])
    missing = Mismatch(f"no output {LABEL_OUTPUT[level]!r}", LABEL_OUTPUT[level])
    decision = missing if label is None else find(LABEL, graph, at=label)
    found = _find_score(graph, score)
    if isinstance(found, Match):
        reading = read(found)
        if isinstance(reading, Mismatch):
            return reading
        if isinstance(decision, Match) and decision.inputs["score"] != score:
            return Mismatch(f"the label is not of the score {graph.describe(score)!r}", graph.describe(score))
    elif isinstance(decision, Match):
        copy = find(COPY, graph, at=score)
        below = copy.inputs["raw"] if isinstance(copy, Match) else score
        if found.depth >= NEAR or _ends_in_chain(graph, score) or decision.inputs["score"] not in (score, below):
            return found
        reading = BranchReading(is_normalised=False)
    else:
        return found if found.depth >= decision.depth else decision
    steps = {SCORE_OUTPUT[level]: found, LABEL_OUTPUT[level]: decision}
    matches = {name: match for name, match in steps.items() if isinstance(match, Match)}
    scalars = {name: number for match in matches.values() for name, number in match.scalars.items()}
    # A node of a score that computes a constant may be shared, and goes by itself when nobody reads it any more.
    values = [*(value for value in found.values if graph.number(value) is None)] if isinstance(found, Match) else []
    values += decision.values if isinstance(decision, Match) else ()
    other = decision if isinstance(decision, Mismatch) and label is not None else None
    return FoundTail(
        kind="anomalib",
        level=level,
        raw=found.inputs["raw"] if isinstance(found, Match) else score,
        outputs=tuple(matches),
        values=tuple(values),
        reading=with_decision(reading, scalars.get("cut"), other_rule=other),
        scalars=scalars,
        sites={name: places for match in matches.values() for name, places in match.sites.items()},
        other_rule=other,
    )


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
