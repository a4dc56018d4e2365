"""What a model decides, level by level: read from the graph, and from the record where the graph confirms it."""

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np

from graph_patterns.match import Mismatch
from postproc_export.errors import MetadataError
from postproc_export.float32 import SIGNIFICAND, Half, json_number, narrow_readings, next_up, rounded_to, to_float32
from postproc_export.options import Adjustable, Layout
from postproc_export.reading.tail import HALF_PRECISION, BranchReading, FoundTail
from postproc_export.record import TailRecord
from postproc_export.stats import Comparison, Form, Level, LevelStats, choose_form, decision_boundary, unit_constants
from postproc_export.tail import input_name, place

TailKind: TypeAlias = Literal["postproc_export", "anomalib", "none"]

_ORDER: Final = ("min", "threshold", "boundary", "max")


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelReport:
    """One level of a model: what is at its outputs, and what it decides; None for what the file does not say."""

    tail: TailKind  # whose post-processing it is
    outputs: tuple[str, ...] = ()  # the outputs that belong to the level, by name
    threshold: float | None = None  # float32, raw units
    span: float | None = None
    min: float | None = None
    max: float | None = None
    # Float32, raw units: from where on a score is anomalous (rule ge), or which it has to exceed
    boundary: float | None = None
    sensitivity: float | None = None  # float32 in [0, 1]
    comparison: Comparison | None = None  # the rule
    certain: bool = True  # whether threshold and span stand in the file as such, and were not inferred
    # Why the label that the level has is by a rule that is not known; None where it is, or there is no label
    other_rule: str | None = None
    layout: Layout = "separate"  # whether the level has outputs of its own, or both levels are packed into one
    # What can be adjusted at run time, and by which input or variable; the values told are its defaults
    adjustable: Adjustable = "nothing"
    adjusted_by: str | None = None
    # The type in which the model declared its raw values, where that is narrower than float32: the boundary is the
    # smallest float32 that decides in it as the rule does
    narrow: Half | None = None
    # The value in which a NaN makes the score NaN, as the graph names it
    guarded_by: str | None = field(default=None, compare=False)  # a name in a graph, and no part of what it decides
    notes: tuple[str, ...] = ()  # what is inferred or not known, and why
    # Where more than one reading of the same constants is possible, each with its assumption
    readings: tuple[Mapping[str, Any], ...] = ()

    def places(self, level: Level) -> tuple[str, ...]:
        """Return where the level's score and label stand: its outputs, or its parts of the packed one."""
        if self.layout == "separate":
            return self.outputs
        names = ("pred_score", "pred_label") if level == "image" else ("anomaly_map", "pred_mask")
        return tuple(place(name) for name in names)

    @property
    def raw_and_unit(self) -> dict[str, tuple[float, float | None]]:
        """Known values in raw and, unclamped, in normalised units, in rising order of their names in the table."""
        raw = {name: getattr(self, name) for name in _ORDER}
        return {name: (value, self._unit(value)) for name, value in raw.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object; floats as the shortest decimal of the float32, infinities as text."""
        return {
            "tail": self.tail,
            "threshold": json_number(self.threshold),
            "span": json_number(self.span),
            "sensitivity": json_number(self.sensitivity),
            "comparison": self.comparison,
            "certain": self.certain,
            "other_rule": self.other_rule,
            "min": json_number(self.min),
            "max": json_number(self.max),
            "boundary": json_number(self.boundary),
            "normalized": {name: json_number(unit) for name, (_, unit) in self.raw_and_unit.items()},
            "outputs": list(self.outputs),
            "layout": self.layout,
            "adjustable": None if self.adjustable == "nothing" else self.adjustable,
            "adjusted_by": self.adjusted_by,
            "host_dtype": self.narrow,
            "guarded_by": self.guarded_by,
            "notes": list(self.notes),
            "readings": [dict(reading) for reading in self.readings],
        }

    def _unit(self, value: float) -> float | None:
        if self.threshold is None or not self.span or not np.isfinite(value):
            return None
        return to_float32((value - self.threshold) / self.span + 0.5)


def shown(value: float | None) -> str:
    """Return a float32 for people: the shortest decimal."""
    return "unknown" if value is None else str(json_number(to_float32(value)))


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
    """What decides at a boundary."""

    stats: LevelStats  # with the threshold and the span, from which the boundary follows to the bit
    sensitivity: float  # the shortest decimal that gives it, as float32
    comparison: Comparison


def _eager(tail: FoundTail) -> LevelReport:
    """Return what a level of our exported eager module decides."""
    boundary = to_float32(tail.scalars["boundary"]) if tail.decides else None
    reading, rule = tail.reading, rule_of(tail)
    if not reading.is_normalised:
        notes: tuple[str, ...] = (_RAW,)
    elif boundary is None:
        notes = reading.notes
    elif rule is None:
        notes = (_NO_SENSITIVITY.format(boundary=shown(boundary)),)
    else:
        notes = (_ROUNDED if reading.is_folded else _BY_BOUNDARY,)
    return LevelReport(
        tail="postproc_export",
        outputs=tail.outputs,
        threshold=rule.stats.threshold if rule else reading.threshold,
        span=rule.stats.span if rule else reading.span,
        boundary=boundary,
        sensitivity=rule.sensitivity if rule else None,
        comparison=rule.comparison if rule else "ge" if tail.decides else None,
        certain=reading.is_normalised and reading.certain,
        notes=(_EXPORTED, *notes),
    )


def rule_of(tail: FoundTail) -> Rule | None:
    """Return the sensitivity and the rule behind the boundary of a tail without a record; None where none is known.

    Its statistics give the boundary to the bit, so that what is attached in its place decides alike.
    """
    reading, boundary = tail.reading, tail.scalars.get("boundary")
    if boundary is None or reading.threshold is None or not reading.span:
        return None
    is_exact = tail.is_eager and reading.certain and "scale" not in tail.scalars
    affine = [tail.scalars[name] for name in ("scale", "shift") if name in tail.scalars]
    # A constant that float16 holds may have been compressed: then the inferred threshold is as far off.
    relative = HALF_PRECISION if any(float(np.float16(number)) == number for number in affine) else 2.0**-22
    error = 0.0 if is_exact else relative * (abs(reading.threshold) + reading.span)
    rules = RULES if tail.comparison is None else (tail.comparison,)
    return read_rule(reading.threshold, reading.span, to_float32(boundary), error=error, rules=rules)


def settle(tails: Mapping[Level, FoundTail]) -> dict[Level, FoundTail]:
    """Return the tails of an eager module with the one rule that fits all levels, where each tells another."""
    eager = {level: tail for level, tail in tails.items() if tail.is_eager}
    told = {rule.comparison for rule in map(rule_of, eager.values()) if rule is not None}
    for comparison in RULES if len(told) > 1 else ():
        settled = {level: tail._replace(comparison=comparison) for level, tail in eager.items()}
        if all(map(rule_of, settled.values())):
            return settled
    return {}


def read_rule(
    threshold: float, span: float, boundary: float, *, error: float = 0.0, rules: tuple[Comparison, ...] = RULES
) -> Rule | None:
    """Return the sensitivity and the rule that give a boundary; None where none does.

    `error` is how far an inferred threshold may be off, in raw units: then rule ``ge`` is assumed. The span is
    float32(max - min), and rule ``ge`` uses max - min itself: a range within half an ulp of the span is
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
    threshold: float, span: float, boundary: float, sensitivity: float, *, error: float, rules: tuple[Comparison, ...]
) -> Rule | None:
    for start, width in _candidates(threshold, span, boundary, sensitivity, error=error):
        lows: list[tuple[Comparison, float]] = [("ge", 0.0), ("ge", _low(start, width, boundary, sensitivity))]
        for comparison, low in lows if error else [lows[0], ("gt", 0.0), lows[1]]:
            if comparison not in rules:
                continue
            try:
                stats = LevelStats(threshold=start, min=low, max=width, rule="read_back", details=_DETAILS)
                meant = decision_boundary(stats, sensitivity=sensitivity, comparison=comparison)
                fits = _is_constant(boundary, of=meant)
            except MetadataError:
                continue
            if fits and stats.span == width:
                return Rule(stats, to_float32(sensitivity), comparison)
    return None


def _is_constant(boundary: float, *, of: float) -> bool:
    """Whether a constant stands for a boundary: it is the boundary, or the smallest float32 that rounds to reach it."""
    below, exact = -next_up(-boundary), float(np.float32(boundary))
    return boundary == of or any(rounded_to(below, half) < of <= rounded_to(exact, half) for half in SIGNIFICAND)


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


_INFERRED: Final = "the record was stripped: read back from the tail's constants, the sensitivity assuming rule 'ge'"
_CONTRADICTED: Final = "the constants in the file are not those of its record: {which}"
_NOT_NORMALISED: Final = "normalisation is switched off: the score is the raw value"
_NO_LABELS: Final = "labels are switched off"
SWITCHED_OFF: Final = frozenset({_NOT_NORMALISED, _NO_LABELS})
"""Notes on what the options leave out."""

_READ: Final = "the record was stripped: read back from the tail's constants"
_UNKNOWN: Final = "threshold and span are not in the file: normalisation is switched off, and the record was stripped"
_FROZEN: Final = "made to be adjusted at run time by {name}; that is a constant in this file, as conversions make of it"
_COMPRESSED: Final = "constants of the tail were compressed to fewer bits: what is read back is rounded as they are"


def report_level(level: Level, tail: FoundTail, *, record: TailRecord | None, is_rounded: bool) -> LevelReport:
    """Return what one level decides; `is_rounded` says whether constants of the tail were compressed."""
    stats = None if record is None else record.stats.level(level)
    if not tail.is_ours:
        report = _anomalib(tail)
    elif tail.is_eager:
        report = _eager(tail)
    else:
        report = _stripped(tail) if record is None or stats is None else _recorded(tail, record, stats)
    notes = [*report.notes]
    if tail.is_ours:
        notes += [] if tail.is_normalised else [_NOT_NORMALISED]
        notes += [] if tail.decides else [_NO_LABELS]
        recorded = "nothing" if record is None or not tail.decides else record.options.adjustable
        what = recorded if tail.adjustable == "nothing" else tail.adjustable
        is_live = tail.adjusted is not None and tail.adjustable != "nothing" and not tail.is_frozen
        if what != "nothing" and not is_live:
            notes.append(_FROZEN.format(name=input_name(level, what)))
        report = replace(
            report,
            layout="packed" if tail.is_packed else "separate",
            adjustable=tail.adjustable if is_live else "nothing",
            adjusted_by=input_name(level, what) if is_live and what != "nothing" else None,
            guarded_by=tail.guarded_by,
        )
    notes += [_COMPRESSED] if is_rounded else []
    return replace(report, certain=report.certain and not is_rounded, notes=tuple(notes))


def report_miss(level: Level, output: str, miss: Mismatch, *, label: str | None) -> LevelReport:
    """Return a level without a tail that is known: how far a pattern came is told where something resembles one."""
    if label is None:
        return LevelReport(tail="none", outputs=(output,), notes=(f"no post-processing: {miss}",))
    notes = (f"none that is known: {miss}",)
    return LevelReport(tail="none", outputs=(output, label), certain=False, other_rule=str(miss), notes=notes)


def _anomalib(tail: FoundTail) -> LevelReport:
    reading, boundary = tail.reading, None
    stats = stats_of(reading)
    if stats is not None and reading.sensitivity is not None:
        with suppress(MetadataError):  # a boundary that is not legal is not told
            boundary = decision_boundary(stats, sensitivity=reading.sensitivity, comparison="gt")
    return LevelReport(
        tail="anomalib",
        outputs=tail.outputs,
        threshold=reading.threshold,
        span=reading.span,
        min=reading.min,
        max=reading.max,
        boundary=boundary if reading.is_normalised else next_up(tail.scalars["cut"]),
        sensitivity=reading.sensitivity,
        comparison="gt" if "cut" in tail.scalars else None,
        certain=reading.certain,
        other_rule=None if tail.other_rule is None else str(tail.other_rule),
        notes=reading.notes,
        readings=_readings(reading) if reading.is_folded else (),
    )


def stats_of(reading: BranchReading) -> LevelStats | None:
    """Return statistics that decide as a reading does; the range begins at 0 where only its span is known."""
    if reading.threshold is None or not reading.span:
        return None
    low, high = (0.0, reading.span) if reading.min is None or reading.max is None else (reading.min, reading.max)
    details = {} if reading.min is not None else {"range_is_relative": True}
    try:
        return LevelStats(threshold=reading.threshold, min=low, max=high, rule="read_back", details=details)
    except MetadataError:
        return None


def _readings(reading: BranchReading) -> tuple[dict[str, Any], ...]:
    """Return both readings of an affine fold."""
    return (
        {
            "threshold": json_number(reading.threshold),
            "span": json_number(reading.span),
            "assumes": "the model's own score is the value that the tail reads in this file",
        },
        {
            "threshold": None,
            "span": None,
            "assumes": "the conversion folded a last y = k x + c of the model into the tail: the threshold of y is "
            f"{shown(reading.threshold)} k + c and its span {shown(reading.span)} k, with k and c gone from the file",
        },
    )


def _recorded(tail: FoundTail, record: TailRecord, stats: LevelStats) -> LevelReport:
    """Return what the record says, where the constants in the graph confirm it."""
    comparison, narrow = record.options.comparison, record.narrow.get(tail.level)
    sensitivity, boundary = None, None
    if tail.decides:
        sensitivity = record.options.sensitivity(tail.level)
        boundary = decision_boundary(stats, sensitivity=sensitivity, comparison=comparison, dtype=narrow or "float32")
    wrong = _contradictions(tail, stats, boundary, sensitivity)
    is_relative = bool(stats.details.get("range_is_relative"))
    return LevelReport(
        tail="postproc_export",
        outputs=tail.outputs,
        threshold=stats.threshold,
        span=stats.span,
        min=None if is_relative else stats.min,
        max=None if is_relative else stats.max,
        boundary=tail.scalars.get("boundary") if wrong else boundary,
        sensitivity=sensitivity,
        comparison=comparison if tail.decides else None,
        narrow=narrow,
        certain=not wrong,
        notes=(_CONTRADICTED.format(which=", ".join(wrong)),) if wrong else (),
    )


def _contradictions(tail: FoundTail, stats: LevelStats, boundary: float | None, sensitivity: float | None) -> list[str]:
    form: Form = "centred" if "offset" in tail.scalars else "fused"
    alpha, beta, offset = unit_constants(stats, form)
    expected = {} if boundary is None or "boundary" not in tail.scalars else {"boundary": boundary}
    if tail.adjustable == "sensitivity":
        expected |= {"threshold": stats.threshold or 0.0, "span": stats.span, "attached": sensitivity or 0.0}
    if tail.is_normalised:
        expected |= {"alpha": alpha, **({"beta": beta} if form == "fused" else {"offset": offset})}
    told = [
        f"{name} is {shown(tail.scalars[name])}, not {shown(value)}"
        for name, value in expected.items()
        if to_float32(tail.scalars[name]) != value
    ]
    return told + (["the form of the normalised score"] if tail.is_normalised and form != choose_form(stats) else [])


def _stripped(tail: FoundTail) -> LevelReport:
    """Read our constants back: the boundary is exact, the threshold only in the longer form."""
    scalars = tail.scalars
    boundary = to_float32(scalars["boundary"]) if "boundary" in scalars else None
    threshold: float | None = None
    span: float | None = None
    sensitivity: float | None = None
    narrow: Half | None = None
    note = _UNKNOWN
    if tail.adjustable == "sensitivity":
        note = _READ
        threshold, span, sensitivity = (to_float32(scalars[name]) for name in ("threshold", "span", "attached"))
        halves = () if boundary is None else narrow_readings(boundary)
        narrow = next((half for half, value in halves if value == threshold), None)
    elif tail.is_normalised:
        note, alpha = _INFERRED, scalars["alpha"]
        span = to_float32(1.0 / alpha) if alpha else None
        inferred = (0.5 - scalars["beta"]) / alpha if alpha and "offset" not in scalars else None
        threshold = scalars.get("offset", inferred)
        if threshold is not None and span and boundary is not None:
            error = 2.0**-22 * (abs(threshold) + span)
            near = (row for row in narrow_readings(boundary) if abs(row[1] - threshold) <= error)
            narrow, at = next(near, (None, boundary))
            if abs(at - threshold) <= error:
                sensitivity, threshold = 0.5, at
            else:
                sensitivity = _sensitivity(0.5 - (boundary - threshold) / span, error / span)
        threshold = None if threshold is None else to_float32(threshold)
    return LevelReport(
        tail="postproc_export",
        outputs=tail.outputs,
        threshold=threshold,
        span=span,
        boundary=boundary,
        sensitivity=sensitivity,
        comparison="ge" if tail.decides else None,
        narrow=narrow,
        certain=False,
        notes=(note,),
    )


def _sensitivity(value: float, error: float) -> float | None:
    """Return the roundest number within an error; -inf as a boundary is sensitivity 1."""
    if value == float("inf"):
        return 1.0
    if not -error <= value <= 1.0 + error:
        return None
    clamped = min(max(value, 0.0), 1.0)
    rounded = (round(clamped, digits) for digits in range(1, 8))
    return to_float32(next((number for number in rounded if abs(number - clamped) <= error), clamped))
