"""The levels of a model, each with what it decides: the same for every format."""

from collections.abc import Iterable
from dataclasses import replace

from postproc_export.errors import PostprocError
from postproc_export.graphs.detached import Found
from postproc_export.graphs.reading.level_report import LevelReport
from postproc_export.graphs.reading.levels import report_level, report_miss
from postproc_export.graphs.reading.own_tail import LABEL_OUTPUT
from postproc_export.outputs import select_outputs
from postproc_export.runtimes.protocol import PortInfo
from postproc_export.stats import LEVELS, Level


def report_levels(
    found: Found, outputs: Iterable[PortInfo], *, rounded: frozenset[Level] = frozenset()
) -> dict[Level, LevelReport | None]:
    """Return what each level decides; None for a level that the model does not have.

    Parameters
    ----------
    found
        The tails and the record.
    outputs
        All outputs of the model.
    rounded
        The levels whose constants were compressed.
    """
    raw = _raw_outputs(tuple(outputs))
    recorded = frozenset[Level]() if found.record is None else found.record.levels
    gone = tuple(
        f"it tells of a tail at the {level} level" for level in LEVELS if level in recorded & found.misses.keys()
    )
    reports: dict[Level, LevelReport | None] = {}
    for level in LEVELS:
        if level in found.tails:
            report = report_level(level, found.tails[level], record=found.record, is_rounded=level in rounded)
            reports[level] = _doubted(report, (*found.misfits, *found.doubts, *gone))
        else:
            label = LABEL_OUTPUT[level] if LABEL_OUTPUT[level] in found.outputs else None
            miss = found.misses[level]
            reports[level] = _doubted(report_miss(level, raw[level], miss, label=label), gone) if level in raw else None
    return reports


def _doubted(report: LevelReport, misfits: tuple[str, ...]) -> LevelReport:
    """Take nothing for certain in a file whose record does not fit it."""
    notes = (f"the record does not fit the model: {misfit}" for misfit in misfits)
    return replace(report, certain=False, notes=(*report.notes, *notes)) if misfits else report


def _raw_outputs(outputs: tuple[PortInfo, ...]) -> dict[Level, str]:
    """Return the outputs that would be taken for the raw ones."""
    try:
        selection = select_outputs(outputs)
    except PostprocError:
        return {}  # none, or several that could be it: then the list of outputs has to do
    found: dict[Level, PortInfo | None] = {"image": selection.image, "pixel": selection.pixel}
    return {level: port.name for level, port in found.items() if port is not None}
