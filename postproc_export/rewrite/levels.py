"""What a model decides, level by level: read from the graph, and from the file's record where the graph confirms it."""

from dataclasses import replace
from typing import Any, Final

from graph_patterns.match import Mismatch
from postproc_export.boundary import Form, choose_form, decision_boundary, unit_constants
from postproc_export.errors import MetadataError
from postproc_export.float32 import next_up, to_float32
from postproc_export.rewrite.anomalib_reading import Reading
from postproc_export.rewrite.anomalib_tail import AnomalibTail
from postproc_export.rewrite.level_report import LevelReport, json_number, shown
from postproc_export.rewrite.metadata import TailRecord
from postproc_export.rewrite.own_tail import SCORE_OUTPUT, OwnTail
from postproc_export.stats import Level, LevelStats

_INFERRED: Final = "the record was stripped: read back from the tail's constants, the sensitivity assuming rule 'ge'"
_CONTRADICTED: Final = "the constants in the file are not those of its record: {which}"
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
        report = _own(tail) if record is None or stats is None else _recorded(tail, record, stats)
    else:
        return LevelReport(tail="none", outputs=(SCORE_OUTPUT[level],))
    return replace(report, certain=False, notes=(*report.notes, _ROUNDED)) if is_rounded else report


def report_miss(level: Level, output: str, miss: Mismatch) -> LevelReport:
    """Return a level without a tail that is known: how far a pattern came is told where something resembles one."""
    notes = (f"no post-processing: {miss}",)
    return LevelReport(tail="none", outputs=(output,), notes=notes)


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


def _recorded(tail: OwnTail, record: TailRecord, stats: LevelStats) -> LevelReport:
    sensitivity = record.options.sensitivity(tail.level)
    boundary = decision_boundary(stats, sensitivity=sensitivity, comparison=record.options.comparison)
    wrong = _contradictions(tail, stats, boundary)
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
        comparison=record.options.comparison,
    )
    if not wrong:
        return report
    notes = (_CONTRADICTED.format(which=", ".join(wrong)),)
    return replace(report, boundary=tail.scalars["boundary"], certain=False, notes=notes)


def _contradictions(tail: OwnTail, stats: LevelStats, boundary: float) -> list[str]:
    form: Form = "centred" if "offset" in tail.scalars else "fused"
    constants = unit_constants(stats, form)
    expected = {"alpha": constants.alpha, "boundary": boundary}
    expected |= {"beta": constants.beta} if form == "fused" else {"offset": constants.offset or 0.0}
    wrong = [name for name, value in expected.items() if to_float32(tail.scalars[name]) != value]
    return [f"{name} is {shown(tail.scalars[name])}, not {shown(expected[name])}" for name in wrong] + (
        [] if form == choose_form(stats) else ["the form of the normalised score"]
    )


def _own(tail: OwnTail) -> LevelReport:
    """Read our constants back: the boundary is exact, the threshold only in the longer form."""
    alpha, boundary = tail.scalars["alpha"], to_float32(tail.scalars["boundary"])
    span = to_float32(1.0 / alpha) if alpha else None
    threshold = tail.scalars.get("offset")
    if threshold is None:
        threshold = (0.5 - tail.scalars["beta"]) / alpha if alpha else None
    sensitivity = None
    if threshold is not None and span:
        error = 2.0**-22 * (abs(threshold) + span)
        if abs(boundary - threshold) <= error:
            sensitivity, threshold = 0.5, boundary
        else:
            sensitivity = _sensitivity(0.5 - (boundary - threshold) / span, error / span)
    return LevelReport(
        tail="postproc_export",
        outputs=tail.outputs,
        threshold=None if threshold is None else to_float32(threshold),
        span=span,
        boundary=boundary,
        sensitivity=sensitivity,
        comparison="ge",
        certain=False,
        notes=(_INFERRED,),
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
