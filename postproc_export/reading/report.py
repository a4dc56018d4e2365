"""What a model decides, level by level: read from the graph, and from the record where the graph confirms it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np

from graph_patterns.match import Mismatch
from postproc_export.decision import Comparison, Form, choose_form, decision_boundary, unit_constants
from postproc_export.errors import MetadataError
from postproc_export.float32 import SIGNIFICAND, Half, narrow_readings, next_up, rounded_to, shortest, to_float32
from postproc_export.options import Adjustable, Layout
from postproc_export.reading.anomalib import HALF_PRECISION, AnomalibTail, BranchReading, read_chain
from postproc_export.reading.tail import SCORE_OUTPUT, OwnLevelTail
from postproc_export.record import TailRecord
from postproc_export.stats import Level, LevelStats
from postproc_export.tail import input_name, place

# --- What is told of one level of a model: its tail, its numbers in raw and normalised units, and how sure they are.

TailKind: TypeAlias = Literal["postproc_export", "anomalib", "none"]

_ORDER: Final = ("min", "threshold", "boundary", "max")


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelReport:
    """One level of a model: what is at its outputs, and what it decides; None for what the file does not say.

    Parameters
    ----------
    tail
        Whose post-processing it is.
    outputs
        The outputs that belong to the level, by name.
    threshold, span, min, max
        float32, raw units.
    boundary
        float32, raw units: from where on a score is anomalous (rule ``ge``), or which it has to exceed.
    sensitivity
        float32 in [0, 1].
    comparison
        The rule.
    certain
        Whether threshold and span stand in the file as such, and were not inferred.
    other_rule
        Why the label that the level has is by a rule that is not known; None where it is, or there is no label.
    layout
        Whether the level has outputs of its own, or both levels are packed into one.
    adjustable, adjusted_by
        What can be adjusted at run time, and by which input or variable; the values told are its defaults.
    narrow
        The type in which the model declared its raw values, where that is narrower than float32: the boundary is the
        smallest float32 that decides in it as the rule does.
    guarded_by
        The value in which a NaN makes the score NaN, as the graph names it.
    notes
        What is inferred or not known, and why.
    readings
        Where more than one reading of the same constants is possible, each with its assumption.
    """

    tail: TailKind
    outputs: tuple[str, ...] = ()
    threshold: float | None = None
    span: float | None = None
    min: float | None = None
    max: float | None = None
    boundary: float | None = None
    sensitivity: float | None = None
    comparison: Comparison | None = None
    certain: bool = True
    other_rule: str | None = None
    layout: Layout = "separate"
    adjustable: Adjustable = "nothing"
    adjusted_by: str | None = None
    narrow: Half | None = None
    guarded_by: str | None = field(default=None, compare=False)  # a name inside a graph, and no part of what it decides
    notes: tuple[str, ...] = ()
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


def json_number(value: float | None) -> float | str | None:
    """Return a float32 for JSON: the shortest decimal; an infinity as text, since JSON has none."""
    if value is None:
        return None
    return shortest(value) if np.isfinite(value) else str(value)


def shown(value: float | None) -> str:
    """Return a float32 for people: the shortest decimal."""
    return "unknown" if value is None else str(json_number(to_float32(value)))


# --- What our eager module, exported with a model, says: its numbers, and the sensitivity and rule behind a boundary.

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


def report_eager(tail: OwnLevelTail) -> LevelReport:
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


def rule_of(tail: OwnLevelTail) -> Rule | None:
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


def settle(tails: Mapping[Level, object]) -> dict[Level, OwnLevelTail]:
    """Return the tails of an eager module with the one rule that fits all levels, where each tells another."""
    eager = {level: tail for level, tail in tails.items() if isinstance(tail, OwnLevelTail) and tail.is_eager}
    told = {rule.comparison for rule in map(rule_of, eager.values()) if rule is not None}
    for comparison in RULES if len(told) > 1 else ():
        settled = {level: replace(tail, comparison=comparison) for level, tail in eager.items()}
        if all(map(rule_of, settled.values())):
            return settled
    return {}


def _read(tail: OwnLevelTail) -> BranchReading | None:
    """Return threshold and span as they stand in the graph; None where scores are not normalised."""
    scalars = dict(tail.scalars)
    if not tail.is_normalised:
        return None
    if not tail.is_eager:
        offset = {"threshold": scalars["offset"]} if "offset" in scalars else {"shift": scalars["beta"]}
        scalars = {"scale": scalars["alpha"], **offset}
    reading = read_chain(scalars)
    return reading if isinstance(reading, BranchReading) else None


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


# --- What a model decides, level by level: read from the graph, and from the file's record where the graph confirms
# it.

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


def report_level(
    level: Level, tail: OwnLevelTail | AnomalibTail | None, *, record: TailRecord | None, is_rounded: bool
) -> LevelReport:
    """Return what one level decides.

    Parameters
    ----------
    level
        The level.
    tail
        What was found in the graph; None where nothing was.
    record
        What the file says of itself.
    is_rounded
        Whether constants of the tail were compressed.
    """
    if isinstance(tail, AnomalibTail):
        report = _anomalib(tail)
    elif isinstance(tail, OwnLevelTail):
        stats = None if record is None else record.stats.level(level)
        if tail.is_eager:
            report = report_eager(tail)
        else:
            report = _own(tail) if record is None or stats is None else _recorded(tail, record, stats)
        by = _adjusted_by(tail)
        report = replace(
            report,
            layout="packed" if tail.is_packed else "separate",
            adjustable=tail.adjustable if by else "nothing",
            adjusted_by=by,
            guarded_by=tail.guarded_by,
            notes=(*report.notes, *_switches(tail), *_frozen(tail, record)),
        )
    else:
        return LevelReport(tail="none", outputs=(SCORE_OUTPUT[level],))
    return replace(report, certain=False, notes=(*report.notes, _COMPRESSED)) if is_rounded else report


def report_miss(level: Level, output: str, miss: Mismatch, *, label: str | None) -> LevelReport:
    """Return a level without a tail that is known: how far a pattern came is told where something resembles one."""
    if label is None:
        return LevelReport(tail="none", outputs=(output,), notes=(f"no post-processing: {miss}",))
    notes = (f"none that is known: {miss}",)
    return LevelReport(tail="none", outputs=(output, label), certain=False, other_rule=str(miss), notes=notes)


def _anomalib(tail: AnomalibTail) -> LevelReport:
    reading = tail.reading
    return LevelReport(
        tail="anomalib",
        outputs=tail.outputs,
        threshold=reading.threshold,
        span=reading.span,
        min=reading.min,
        max=reading.max,
        boundary=_anomalib_boundary(reading) if reading.is_normalised else next_up(tail.scalars["cut"]),
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


def _anomalib_boundary(reading: BranchReading) -> float | None:
    stats = stats_of(reading)
    if stats is None or reading.sensitivity is None:
        return None
    try:
        return decision_boundary(stats, sensitivity=reading.sensitivity, comparison="gt")
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


def _switches(tail: OwnLevelTail) -> tuple[str, ...]:
    """Return what is switched off."""
    return (*(() if tail.is_normalised else (_NOT_NORMALISED,)), *(() if tail.decides else (_NO_LABELS,)))


def _adjusted_by(tail: OwnLevelTail) -> str | None:
    """Return what adjusts the decision: its name, and what it is in the format; None where it is a constant."""
    if tail.adjusted is None or tail.adjustable == "nothing" or tail.is_frozen:
        return None
    return input_name(tail.level, tail.adjustable)


def _frozen(tail: OwnLevelTail, record: TailRecord | None) -> tuple[str, ...]:
    recorded = "nothing" if record is None or not tail.decides else record.options.adjustable
    what = tail.adjustable if tail.adjustable != "nothing" else recorded
    if what == "nothing" or _adjusted_by(tail) is not None:
        return ()
    return (_FROZEN.format(name=input_name(tail.level, what)),)


def _recorded(tail: OwnLevelTail, record: TailRecord, stats: LevelStats) -> LevelReport:
    options = record.options
    sensitivity = options.sensitivity(tail.level) if tail.decides else None
    boundary = _boundary(tail, stats, record)
    wrong = _contradictions(tail, stats, boundary, sensitivity)
    is_relative = bool(stats.details.get("range_is_relative"))
    report = LevelReport(
        tail="postproc_export",
        outputs=tail.outputs,
        threshold=stats.threshold,
        span=stats.span,
        min=None if is_relative else stats.min,
        max=None if is_relative else stats.max,
        boundary=boundary,
        sensitivity=sensitivity,
        comparison=options.comparison if tail.decides else None,
        narrow=record.narrow.get(tail.level),
    )
    if not wrong:
        return report
    notes = (_CONTRADICTED.format(which=", ".join(wrong)),)
    return replace(report, boundary=tail.scalars.get("boundary"), certain=False, notes=notes)


def _boundary(tail: OwnLevelTail, stats: LevelStats, record: TailRecord) -> float | None:
    if not tail.decides:
        return None
    sensitivity = record.options.sensitivity(tail.level)
    dtype = record.narrow.get(tail.level, "float32")
    return decision_boundary(stats, sensitivity=sensitivity, comparison=record.options.comparison, dtype=dtype)


def _contradictions(
    tail: OwnLevelTail, stats: LevelStats, boundary: float | None, sensitivity: float | None
) -> list[str]:
    form: Form = "centred" if "offset" in tail.scalars else "fused"
    constants = unit_constants(stats, form)
    expected = {} if boundary is None or "boundary" not in tail.scalars else {"boundary": boundary}
    if tail.adjustable == "sensitivity":
        expected |= {"threshold": stats.threshold or 0.0, "span": stats.span, "attached": sensitivity or 0.0}
    if tail.is_normalised:
        expected["alpha"] = constants.alpha
        expected |= {"beta": constants.beta} if form == "fused" else {"offset": constants.offset or 0.0}
    wrong = [name for name, value in expected.items() if to_float32(tail.scalars[name]) != value]
    return [f"{name} is {shown(tail.scalars[name])}, not {shown(expected[name])}" for name in wrong] + (
        [] if form == choose_form(stats) or not tail.is_normalised else ["the form of the normalised score"]
    )


def _own(tail: OwnLevelTail) -> LevelReport:
    """Read our constants back: the boundary is exact, the threshold only in the longer form."""
    boundary = to_float32(tail.scalars["boundary"]) if "boundary" in tail.scalars else None
    if tail.adjustable == "sensitivity":
        names = {"threshold": "threshold", "span": "span", "attached": "sensitivity"}
        known = {names[name]: to_float32(tail.scalars[name]) for name in names}
        readings = () if boundary is None else narrow_readings(boundary)
        narrow = next((half for half, value in readings if value == known["threshold"]), None)
        return _read_back(tail, boundary=boundary, notes=(_READ,), narrow=narrow, **known)
    if not tail.is_normalised:
        return _read_back(tail, boundary=boundary, notes=(_UNKNOWN,))
    alpha = tail.scalars["alpha"]
    span = to_float32(1.0 / alpha) if alpha else None
    threshold = tail.scalars.get("offset")
    if threshold is None:
        threshold = (0.5 - tail.scalars["beta"]) / alpha if alpha else None
    sensitivity, narrow = None, None
    if threshold is not None and span and boundary is not None:
        error = 2.0**-22 * (abs(threshold) + span)
        narrow, at = next(
            (row for row in narrow_readings(boundary) if abs(row[1] - threshold) <= error), (None, boundary)
        )
        if abs(at - threshold) <= error:
            sensitivity, threshold = 0.5, at
        else:
            sensitivity = _sensitivity(0.5 - (boundary - threshold) / span, error / span)
    threshold = None if threshold is None else to_float32(threshold)
    return _read_back(
        tail,
        threshold=threshold,
        span=span,
        boundary=boundary,
        sensitivity=sensitivity,
        narrow=narrow,
        notes=(_INFERRED,),
    )


def _read_back(tail: OwnLevelTail, *, boundary: float | None, **known: Any) -> LevelReport:
    return LevelReport(
        tail="postproc_export",
        outputs=tail.outputs,
        boundary=boundary,
        comparison="ge" if tail.decides else None,
        certain=False,
        **known,
    )


def _sensitivity(value: float, error: float) -> float | None:
    """Return the roundest number within an error; -inf as a boundary is sensitivity 1."""
    if value == float("inf"):
        return 1.0
    if not -error <= value <= 1.0 + error:
        return None
    clamped = min(max(value, 0.0), 1.0)
    return next(
        (
            to_float32(round(clamped, digits))
            for digits in range(1, 8)
            if abs(round(clamped, digits) - clamped) <= error
        ),
        to_float32(clamped),
    )
