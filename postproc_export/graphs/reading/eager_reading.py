"""What our eager module, exported with a model, says: its numbers, and the sensitivity and rule behind a boundary."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from postproc_export.boundary import Comparison, decision_boundary
from postproc_export.errors import MetadataError
from postproc_export.float32 import next_up, to_float32
from postproc_export.graphs.reading.anomalib_reading import HALF_PRECISION, Reading, read_chain
from postproc_export.graphs.reading.level_report import LevelReport, shown
from postproc_export.graphs.reading.own_tail import OwnTail
from postproc_export.stats import Level, LevelStats

RULES: Final[tuple[Comparison, ...]] = ("ge", "gt")
_DIGITS: Final = range(1, 10)  # nine decimals tell every float32 from its neighbours
_EXPORTED: Final = "our eager module, exported with the model: there is no record of it"
_BY_BOUNDARY: Final = "sensitivity and rule are those from which the boundary in the file follows"
_ROUNDED: Final = (
    "threshold and span are computed from one multiplication and one addition, as a conversion leaves them, and are as "
    "exact as these; the boundary is exact; the sensitivity assumes rule 'ge'"
)
_NO_SENSITIVITY: Final = "no sensitivity gives the boundary {boundary}: the label is raw >= {boundary}"
_RAW: Final = "threshold and span are not in the file: normalisation is switched off"
_DETAILS: Final = {"range_is_relative": True}


class Rule(NamedTuple):
    """What decides at a boundary.

    Parameters
    ----------
    stats
        Statistics with the threshold and the span, from which the boundary follows to the bit.
    sensitivity
        The shortest decimal that gives it, as float32.
    comparison
        The rule.
    """

    stats: LevelStats
    sensitivity: float
    comparison: Comparison


def report_eager(tail: OwnTail) -> LevelReport:
    """Return what a level of our exported eager module decides."""
    boundary = to_float32(tail.scalars["boundary"]) if tail.decides else None
    reading, rule = _read(tail), rule_of(tail)
    notes = [_EXPORTED]
    if reading is None:
        notes.append(_RAW)
    elif boundary is None:
        notes += reading.notes
    elif rule is None:
        notes.append(_NO_SENSITIVITY.format(boundary=shown(boundary)))
    else:
        notes.append(_ROUNDED if reading.is_folded else _BY_BOUNDARY)
    return LevelReport(
        tail="postproc_export",
        outputs=tail.outputs,
        threshold=rule.stats.threshold if rule else None if reading is None else reading.threshold,
        span=rule.stats.span if rule else None if reading is None else reading.span,
        boundary=boundary,
        sensitivity=rule.sensitivity if rule else None,
        comparison=rule.comparison if rule else "ge" if tail.decides else None,
        certain=reading is not None and reading.certain,
        notes=tuple(notes),
    )


def rule_of(tail: OwnTail) -> Rule | None:
    """Return the sensitivity and the rule behind the boundary of a tail without a record; None where none is known.

    Notes
    -----
    Its statistics give the boundary to the bit, so that what is attached in its place decides alike.
    """
    reading = _read(tail)
    boundary = tail.scalars.get("boundary")
    if reading is None or boundary is None or reading.threshold is None or not reading.span:
        return None
    is_exact = tail.is_eager and reading.certain and "scale" not in tail.scalars
    error = 0.0 if is_exact else _relative_error(tail.scalars) * (abs(reading.threshold) + reading.span)
    rules = RULES if tail.comparison is None else (tail.comparison,)
    return read_rule(reading.threshold, reading.span, to_float32(boundary), error=error, rules=rules)


def _relative_error(scalars: Mapping[str, float]) -> float:
    """Return how far an inferred threshold may be off: a constant that float16 holds may have been compressed."""
    affine = [scalars[name] for name in ("scale", "shift") if name in scalars]
    return HALF_PRECISION if any(float(np.float16(number)) == number for number in affine) else 2.0**-22


def settle(tails: Mapping[Level, object]) -> dict[Level, OwnTail]:
    """Return the tails of an eager module with the one rule that fits all levels, where each tells another."""
    eager = {level: tail for level, tail in tails.items() if isinstance(tail, OwnTail) and tail.is_eager}
    told = {rule.comparison for rule in map(rule_of, eager.values()) if rule is not None}
    for comparison in RULES if len(told) > 1 else ():
        settled = {level: replace(tail, comparison=comparison) for level, tail in eager.items()}
        if all(map(rule_of, settled.values())):
            return settled
    return {}


def _read(tail: OwnTail) -> Reading | None:
    """Return threshold and span as they stand in the graph; None where scores are not normalised."""
    scalars = dict(tail.scalars)
    if not tail.is_normalised:
        return None
    if not tail.is_eager:
        offset = {"threshold": scalars["offset"]} if "offset" in scalars else {"shift": scalars["beta"]}
        scalars = {"scale": scalars["alpha"], **offset}
    reading = read_chain(scalars)
    return reading if isinstance(reading, Reading) else None


def read_rule(
    threshold: float, span: float, boundary: float, *, error: float = 0.0, rules: tuple[Comparison, ...] = RULES
) -> Rule | None:
    """Return the sensitivity and the rule that give a boundary; None where none does.

    Parameters
    ----------
    threshold, span, boundary
        As they stand in the file, in raw units.
    error
        How far the threshold may be off where it is inferred, in raw units: then rule ``ge`` is assumed.
    rules
        Those that it may be.

    Notes
    -----
    The span is float32(max - min), and rule ``ge`` uses max - min itself: a range within half an ulp of the span is
    taken that gives the boundary. Rule ``gt`` goes before where ``ge`` needs such a range; else ``ge`` goes before.
    """
    if boundary == float("-inf"):
        return _fitting(threshold, span, boundary, 1.0, error=error, rules=rules)
    estimate = 0.0 if boundary == float("inf") else 0.5 - (boundary - threshold) / span
    if not -0.01 <= estimate <= 1.01:
        return None
    for digits in _DIGITS:
        sensitivity = min(max(round(estimate, digits), 0.0), 1.0)
        is_near = abs(sensitivity - estimate) * span <= error  # else a narrow type alone explains the boundary
        found = _fitting(
            threshold, span, boundary, sensitivity, error=error if is_near else 0.0, rules=("ge",) if error else rules
        )
        if found is not None:
            return found
    return None


def _fitting(
    threshold: float,
    span: float,
    boundary: float,
    sensitivity: float,
    *,
    error: float,
    rules: tuple[Comparison, ...],
) -> Rule | None:
    for start, width in _candidates(threshold, span, boundary, sensitivity, error=error):
        lows: list[tuple[Comparison, float]] = [("ge", 0.0), ("ge", _low(start, width, boundary, sensitivity))]
        for comparison, low in lows if error else [lows[0], ("gt", 0.0), lows[1]]:
            if comparison not in rules:
                continue
            try:
                stats = LevelStats(threshold=start, min=low, max=width, rule="read_back", details=_DETAILS)
                fits = _is_constant(
                    boundary, of=decision_boundary(stats, sensitivity=sensitivity, comparison=comparison)
                )
            except MetadataError:
                continue
            if fits and stats.span == width:
                return Rule(stats, to_float32(sensitivity), comparison)
    return None


def _is_constant(boundary: float, *, of: float) -> bool:
    """Whether a constant stands for a boundary: it is the boundary, or the smallest float32 that rounds to reach it."""
    return boundary == of or any(round_to(-next_up(-boundary)) < of <= round_to(boundary) for round_to in _NARROW)


def _to_float16(value: float) -> float:
    with np.errstate(over="ignore", under="ignore"):
        return float(np.float16(np.float32(value)))


def _to_bfloat16(value: float) -> float:
    bits = np.float32(value).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> np.uint64(16) & 1)) & 0xFFFF0000
    return float(rounded.astype(np.uint32).view(np.float32))


_NARROW: Final = (_to_float16, _to_bfloat16)


def _low(threshold: float, span: float, boundary: float, sensitivity: float) -> float:
    """Return the lower end of a range up to `span` with that float32 span, whose exact width gives the boundary.

    0 is tried before, so that it needs no answer here.
    """
    share = 0.5 - to_float32(sensitivity)
    if not share or math.isinf(boundary):
        return 0.0
    ends = sorted((edge - threshold) / share for edge in (-next_up(-boundary), boundary))
    least, most = max(ends[0], (span - next_up(-span)) / 2), min(ends[1], (span + next_up(span)) / 2)
    return to_float32(span - (least + most) / 2)


def _candidates(
    threshold: float, span: float, boundary: float, sensitivity: float, *, error: float
) -> Iterator[tuple[float, float]]:
    """Yield the threshold and the span, and where they are inferred those near them from which the boundary follows."""
    yield threshold, span
    if not error or math.isinf(boundary):
        return
    for near in (span, next_up(span), -next_up(-span)):
        nearest = to_float32(boundary - (0.5 - to_float32(sensitivity)) * near)
        yield from ((start, near) for start in (nearest, next_up(nearest), -next_up(-nearest)))
