"""Find Anomalib's post-processing in a graph and read its numbers back, as far as the graph still has them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from graph_patterns.expr import Call
from graph_patterns.match import Folded, GraphView, Match, Mismatch, Number, Site, Value, find
from postproc_export.float32 import to_float32
from postproc_export.reading.dialects import CHAINS, COPY, LABEL, SCORE, UNIT_SPAN
from postproc_export.reading.tail import LABEL_OUTPUT, SCORE_OUTPUT
from postproc_export.stats import Level

# --- What a branch of Anomalib's post-processing says: threshold, span and sensitivity, from its constants.

HALF_PRECISION: Final = 2.0**-10  # relative; twice what float16 rounds by

NOT_NORMALISED: Final = (
    "the raw score is compared with {cut:.6g}: normalisation was switched off or its range was never calibrated, "
    "so the threshold and the range are not in the graph"
)
ZERO_RANGE: Final = "the calibrated range is empty (max = min): a score is 0, 0.5 or 1 by comparison with the threshold"
LOST_THRESHOLD: Final = "the calibrated range is empty (max = min), and the conversion lost the threshold with it"
NOT_A_NUMBER: Final = "the threshold in the graph is not a number: the model was exported before it was calibrated"
FOLDED: Final = (
    "threshold and span are computed from one multiplication and one addition, into which the conversion may have "
    "folded the model's own last ones: then both are right for the value that the file still has, and a model's own "
    "score y = k x + c of it has the threshold k t + c and the span k r"
)
OTHER_RULE: Final = "the label is by another rule, which is not known: {why}"
NO_LABEL: Final = "the model gives no label: thresholding was switched off when it was exported"


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchReading:
    """What the graph says of one level; None for what it does not say.

    Parameters
    ----------
    threshold, span, min, max
        Raw units; float32 values.
    sensitivity
        The float32 that was subtracted from 1.
    certain
        Whether threshold and span stand in the graph as such.
    is_folded
        Whether they are inferred from one multiplication and one addition.
    is_normalised
        Whether the score is normalised at all.
    notes
        Why something is not known, and what to make of it.
    """

    threshold: float | None = None
    span: float | None = None
    min: float | None = None
    max: float | None = None
    sensitivity: float | None = None
    certain: bool = True
    is_folded: bool = False
    is_normalised: bool = True
    notes: tuple[str, ...] = ()


def read(found: Match) -> BranchReading | Mismatch:
    """Return the numbers of a score that was found, or why the pattern does not hold after all."""
    scalars = found.scalars
    low, high = (_number(scalars.get(name, math.nan)) for name in ("min", "max"))
    has_range = scalars.get("has_range", 1.0) != 0.0 and ("min" not in scalars or None not in (low, high))
    if not has_range:
        return BranchReading(is_normalised=False)
    if scalars.get("is_zero_range", 0.0) != 0.0:
        if "step_threshold" not in scalars:
            return Mismatch("expected a comparison with the threshold, found something else", "an empty range")
        threshold = _number(scalars["step_threshold"])
        return BranchReading(threshold=threshold, span=0.0, min=low, max=high, notes=(ZERO_RANGE,))
    if "unread_chain" in found.inputs:
        return Mismatch("expected clip((x - T) / R + 0.5, 0, 1), found something else", "the live branch of a select")
    chain = read_chain(scalars)
    return chain if isinstance(chain, Mismatch) else replace(chain, min=low, max=high)


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
        return BranchReading(threshold=_number(threshold), span=0.0, certain=not is_folded, notes=(lost,))
    if step is not None:
        threshold, is_folded = step, False
    notes = (NOT_A_NUMBER,) if math.isnan(threshold) else (FOLDED,) if is_folded else ()
    return BranchReading(
        threshold=_number(threshold),
        span=_number(span),
        certain=not is_folded,
        is_folded=is_folded,
        notes=notes,
    )


def _agree(left: float, right: float, *, span: float) -> bool:
    """Whether two readings of one threshold differ by no more than constants rounded to float16 explain."""
    if math.isnan(left) or math.isnan(right):
        return math.isnan(left) and math.isnan(right)
    return abs(left - right) <= HALF_PRECISION * (abs(left) + abs(right) + abs(span))


def _number(value: float) -> float | None:
    return to_float32(value) if math.isfinite(to_float32(value)) else None


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

    Notes
    -----
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
    reading: BranchReading
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
    reading: BranchReading,
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
        reading=with_decision(BranchReading(is_normalised=False), decision.scalars["cut"]),
        scalars=decision.scalars,
        sites=decision.sites,
    )
