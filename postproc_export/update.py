"""Change what a model with post-processing decides: threshold, sensitivity, rule, statistics."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Final

from postproc_export.files import default_target
from postproc_export.float32 import Half, rounded_to, to_float32
from postproc_export.formats.found import nothing_found
from postproc_export.formats.update import Changes, State, Updated
from postproc_export.keywords import called_like
from postproc_export.options import TailOptions, UpdateOptions
from postproc_export.reading.report import shown
from postproc_export.stats import LEVELS, CalibrationStats, Level, LevelStats

# --- What a boundary means in numbers: how many validation samples it calls anomalous, counted in float32.

_SAMPLES: Final = {"image": "images", "pixel": "pixels"}
_COMPLETE: Final = 1_999
"""The curve of so many samples leaves none out; that of more is thinned."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Validation samples at or above a boundary.

    Parameters
    ----------
    tp, fp
        Fewest and most anomalous and normal ones: one number twice, but between two thresholds of a thinned curve.
    anomalous, normal
        All there are.
    """

    tp: tuple[int, int]
    fp: tuple[int, int]
    anomalous: int
    normal: int

    @property
    def called(self) -> str:
        """How many samples are called anomalous."""
        return _range((self.tp[0] + self.fp[0], self.tp[1] + self.fp[1]))

    def describe(self) -> str:
        """Return how many of each kind are called anomalous."""
        return f"{_range(self.tp)} of {self.anomalous} anomalous and {_range(self.fp)} of {self.normal} normal ones"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object; None where only limits are known, which stand beside it."""
        tp, fp = (found[0] if found[0] == found[1] else None for found in (self.tp, self.fp))
        limits = {} if tp is not None and fp is not None else {"tp_limits": list(self.tp), "fp_limits": list(self.fp)}
        return {"tp": tp, "fp": fp, "n_anomalous": self.anomalous, "n_normal": self.normal, **limits}


def counts_at(stats: LevelStats, boundary: float | None, half: Half | None = None) -> Counts | None:
    """Count the validation samples of a level from a boundary on; None where the statistics hold no curve.

    Parameters
    ----------
    stats
        As `calibrate` gives them: decimals of a file are read as float32, like the values that were counted.
    boundary
        Raw units; rounded to float32 as well.
    half
        The narrow type of the host, which has no value between the boundary and what that rounds to.
    """
    curve = _curve(stats.details.get("curve"))
    normal, anomalous = stats.n_normal, stats.n_anomalous
    if curve is None or normal is None or anomalous is None or boundary is None:
        return None
    thresholds, tp, fp = curve
    wanted = to_float32(boundary)
    place = bisect_left(thresholds, wanted)
    lowest = (tp[place], fp[place]) if place < len(thresholds) else (0, 0)
    same = {wanted, wanted if half is None else rounded_to(wanted, half)}
    is_listed = place < len(thresholds) and thresholds[place] in same
    is_complete = normal + anomalous <= _COMPLETE and stats.details.get("exact") is not False
    highest = lowest if is_listed or is_complete or place == 0 else (tp[place - 1], fp[place - 1])
    return Counts((lowest[0], highest[0]), (lowest[1], highest[1]), anomalous, normal)


def describe_counts(level: Level, stats: LevelStats, before: State, after: State) -> Iterator[str]:
    """Yield how many validation samples were and are called anomalous; nothing where the statistics hold no curve."""
    now, then = (counts_at(stats, state.boundary(level), state.narrow.get(level)) for state in (after, before))
    if now is not None:
        was = "" if then is None else f" (were {then.called})"
        total = f"{now.normal + now.anomalous} validation {_SAMPLES[level]}"
        yield f"of the {total} {now.called} are called anomalous{was}: {now.describe()}"


def _range(found: tuple[int, int]) -> str:
    return str(found[0]) if found[0] == found[1] else f"{found[0]} to {found[1]}"


def _curve(document: Any) -> tuple[list[float], list[int], list[int]] | None:
    """Return a curve as a statistics file holds it; None for anything that is not quite one."""
    if not isinstance(document, dict):
        return None
    rows: list[Any] = [document.get(name) for name in ("threshold", "tp", "fp")]
    if not all(isinstance(row, list) and row and all(type(item) in (int, float) for item in row) for row in rows):
        return None
    threshold, tp, fp = rows
    rounded = [to_float32(value) for value in threshold]
    if not len(rounded) == len(tp) == len(fp) or sorted(rounded) != rounded:
        return None
    return rounded, tp, fp


_SHOWN_OPTIONS: Final = {
    "rule": "comparison",
    "layout": "layout",
    "levels": "levels",
    "scores": "enable_normalization",
    "labels": "enable_thresholding",
    "adjusted": "adjustable",
}


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """What was changed, and where the changed model was written; falsy where there was nothing to update.

    Parameters
    ----------
    source
        The model that was read; for an IR the .xml.
    output
        The model that was written; None where it has no post-processing, and so nothing was written.
    updated
        What it decided before and decides now.
    """

    source: Path
    output: Path | None
    updated: Updated

    def __bool__(self) -> bool:
        return bool(self.updated)

    @property
    def is_changed(self) -> bool:
        """Whether the model decides differently, or its outputs are others, than before."""
        return self.updated.is_changed

    @property
    def before(self) -> State:
        """What the source decides."""
        return self.updated.before

    @property
    def after(self) -> State:
        """What the output decides."""
        return self.updated.after

    def summary(self) -> str:
        """Return what was changed, one fact a line, in numbers."""
        if not self:
            return nothing_found(self.source, self.updated.misses, self.updated.outputs)
        if not self.is_changed:
            lines = [f"nothing changes in {self.source}: it decides so already"]
        else:
            lines = [f"updated post-processing of {self.source}"]
        lines += [f"  written  {self.output}", *self._lines()]
        return "\n".join(lines)

    def _lines(self) -> Iterator[str]:
        for level in LEVELS:
            yield from (f"  {level:<8} {line}" for line in self._level(level))
        for title, name in _SHOWN_OPTIONS.items():
            was, now = getattr(self.before.options, name), getattr(self.after.options, name)
            if was != now:
                yield f"  {title:<8} {_word(was)} -> {_word(now)}"
        guard = None if self.updated.tail is None else self.updated.tail.describe_guard()
        yield from (f"  guard    {text}" for text in (guard,) if text)
        yield from (f"  note     {note}" for note in self.updated.notes)

    def _level(self, level: Level) -> Iterator[str]:
        old, new = self.before.stats.level(level), self.after.stats.level(level)
        if new is None or not new.is_calibrated:
            return
        rows = (
            ("threshold", None if old is None else old.threshold, new.threshold),
            ("span", None if old is None else old.span, new.span),
            ("sensitivity", self.before.options.sensitivity(level), self.after.options.sensitivity(level)),
            ("boundary", self.before.boundary(level), self.after.boundary(level)),
        )
        for name, was, now in (row for row in rows if row[2] is not None):
            yield f"{name} {shown(now)}" if was == now else f"{name} {shown(was)} -> {shown(now)}"
        yield from describe_counts(level, new, self.before, self.after)


@called_like(UpdateOptions)
def update_postprocessing(**given: Any) -> UpdateResult:
    """Change what a model with post-processing decides; what is not given, or None, stays as it is in the file.

    Returns
    -------
    UpdateResult
        Falsy, and nothing is written, where the model has no post-processing that is known.

    Raises
    ------
    PostprocError, graph_patterns.GraphPatternError
        If the model, the changes or the files do not allow it; nothing is written then.

    Notes
    -----
    Anomalib's post-processing is replaced by ours with the same threshold, span, sensitivity and rule (``gt``), so that
    nothing changes but what was asked for. Where its numbers are not in the file, its constants are edited in place.
    """
    from postproc_export.steps.around import rewrite_file, update_around

    given = {name: value for name, value in given.items() if value is not None}
    asked = UpdateOptions(**given)
    source, stats = Path(asked.model_path), asked.stats
    changes = Changes(
        stats=CalibrationStats.load(stats) if isinstance(stats, (str, Path)) else stats,
        image_threshold=asked.image_threshold,
        pixel_threshold=asked.pixel_threshold,
        normalized=asked.normalized,
        options={item.name: getattr(asked, item.name) for item in fields(TailOptions) if item.name in given},
    )
    target = default_target(source, asked.output, in_place=asked.in_place, mark="updated", read=[stats])
    updated = rewrite_file(
        source,
        target,
        partial(update_around, changes=changes, keep_dialect=asked.keep_dialect, where=str(source)),
        in_place=asked.in_place,
        link_weights=asked.link_weights,
    )
    return UpdateResult(source, target if updated else None, updated)


def _word(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
