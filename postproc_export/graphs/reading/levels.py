"""What a model decides, level by level: read from the graph, and from the file's record where the graph confirms it."""

from dataclasses import replace
from typing import Any, Final

from graph_patterns.match import Mismatch
from postproc_export.adjusting import input_name
from postproc_export.boundary import Form, choose_form, decision_boundary, unit_constants
from postproc_export.errors import MetadataError
from postproc_export.float32 import narrow_readings, next_up, to_float32
from postproc_export.graphs.metadata import TailRecord
from postproc_export.graphs.reading.anomalib_reading import Reading
from postproc_export.graphs.reading.anomalib_tail import AnomalibTail
from postproc_export.graphs.reading.eager_reading import report_eager
from postproc_export.graphs.reading.level_report import LevelReport, json_number, shown
from postproc_export.graphs.reading.own_tail import SCORE_OUTPUT, OwnTail
from postproc_export.stats import Level, LevelStats

_INFERRED: Final = "the record was stripped: read back from the tail's constants, the sensitivity assuming rule 'ge'"
_CONTRADICTED: Final = "the constants in the file are not those of its record: {which}"
_RAW: Final = "normalisation is switched off: the score is the raw value"
_NO_LABELS: Final = "labels are switched off"
SWITCHED_OFF: Final = frozenset({_RAW, _NO_LABELS})
"""Notes on what the options leave out."""

_READ: Final = "the record was stripped: read back from the tail's constants"
_UNKNOWN: Final = "threshold and span are not in the file: normalisation is switched off, and the record was stripped"
_FROZEN: Final = "made to be adjusted at run time by {name}; that is a constant in this file, as conversions make of it"
_ROUNDED: Final = "constants of the tail were compressed to fewer bits: what is read back is rounded as they are"


def report_level(
    level: Level, tail: OwnTail | AnomalibTail | None, *, record: TailRecord | None, is_rounded: bool
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
    elif isinstance(tail, OwnTail):
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
    return replace(report, certain=False, notes=(*report.notes, _ROUNDED)) if is_rounded else report


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


def stats_of(reading: Reading) -> LevelStats | None:
    """Return statistics that decide as a reading does; the range begins at 0 where only its span is known."""
    if reading.threshold is None or not reading.span:
        return None
    low, high = (0.0, reading.span) if reading.min is None or reading.max is None else (reading.min, reading.max)
    details = {} if reading.min is not None else {"range_is_relative": True}
    try:
        return LevelStats(threshold=reading.threshold, min=low, max=high, rule="read_back", details=details)
    except MetadataError:
        return None


def _anomalib_boundary(reading: Reading) -> float | None:
    stats = stats_of(reading)
    if stats is None or reading.sensitivity is None:
        return None
    try:
        return decision_boundary(stats, sensitivity=reading.sensitivity, comparison="gt")
    except MetadataError:
        return None


def _readings(reading: Reading) -> tuple[dict[str, Any], ...]:
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


def _switches(tail: OwnTail) -> tuple[str, ...]:
    """Return what is switched off."""
    return (*(() if tail.is_normalised else (_RAW,)), *(() if tail.decides else (_NO_LABELS,)))


def _adjusted_by(tail: OwnTail) -> str | None:
    """Return what adjusts the decision: its name, and what it is in the format; None where it is a constant."""
    if tail.adjusted is None or tail.adjustable == "nothing" or tail.is_frozen:
        return None
    return input_name(tail.level, tail.adjustable)


def _frozen(tail: OwnTail, record: TailRecord | None) -> tuple[str, ...]:
    recorded = "nothing" if record is None or not tail.decides else record.options.adjustable
    what = tail.adjustable if tail.adjustable != "nothing" else recorded
    if what == "nothing" or _adjusted_by(tail) is not None:
        return ()
    return (_FROZEN.format(name=input_name(tail.level, what)),)


def _recorded(tail: OwnTail, record: TailRecord, stats: LevelStats) -> LevelReport:
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


def _boundary(tail: OwnTail, stats: LevelStats, record: TailRecord) -> float | None:
    if not tail.decides:
        return None
    sensitivity = record.options.sensitivity(tail.level)
    dtype = record.narrow.get(tail.level, "float32")
    return decision_boundary(stats, sensitivity=sensitivity, comparison=record.options.comparison, dtype=dtype)


def _contradictions(tail: OwnTail, stats: LevelStats, boundary: float | None, sensitivity: float | None) -> list[str]:
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


def _own(tail: OwnTail) -> LevelReport:
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


def _read_back(tail: OwnTail, *, boundary: float | None, **known: Any) -> LevelReport:
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
