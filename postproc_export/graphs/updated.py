"""What updating has in common in ONNX and OpenVINO: what is replaced, what is edited in place, the result."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from graph_patterns.match import Mismatch, Site
from postproc_export.boundary import check_sensitivity
from postproc_export.errors import UsageError
from postproc_export.float32 import to_float32
from postproc_export.graphs.detached import Found, FoundTail
from postproc_export.graphs.reading.anomalib_tail import AnomalibTail
from postproc_export.graphs.reading.level_report import shown
from postproc_export.graphs.reading.own_tail import OwnTail
from postproc_export.graphs.state import Changes, State, no_range, no_state
from postproc_export.stats import Level, LevelStats
from postproc_export.tail import Tail

REPLACED: Final = "Anomalib's post-processing was replaced by ours, which decides as it did but for what changes here"
REPLACED_EAGER: Final = (
    "our exported eager module was replaced by our tail, which decides as it did but for what changes here"
)
EDITED: Final = "the constants of Anomalib's post-processing were edited in place"
NOT_KNOWN: Final = (
    "its threshold or range is not in the file, so ours could not take its place: its constants were edited in place"
)
STRICT: Final = (
    "rule gt decides as Anomalib's code does, and misses the sample that set the threshold; --comparison ge finds it"
)

_TOLD: Final = {"threshold": "the threshold", "cut": "what the label compares with"}

Edits = dict[Site, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Updated:
    """What was done to a model in memory; falsy where it has no post-processing.

    Parameters
    ----------
    before, after
        What it decided and decides.
    is_changed
        Whether anything is different.
    misses
        Why no post-processing was found, by level.
    notes
        What a user should know.
    is_found
        Whether it has any.
    tail
        The tail that was attached anew; None where constants were edited in place.
    """

    before: State = field(default_factory=no_state)
    after: State = field(default_factory=no_state)
    is_changed: bool = True
    misses: Mapping[Level, Mismatch] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    is_found: bool = True
    tail: Tail | None = None

    def __bool__(self) -> bool:
        return self.is_found


def must_be_edited(tails: Mapping[Level, FoundTail], before: State, changes: Changes) -> bool:
    """Whether Anomalib's constants have to be edited in place, since what they decide is not in the file."""
    return any(
        isinstance(tail, AnomalibTail) and before.stats.level(level) is None and _new_stats(changes, level) is None
        for level, tail in tails.items()
    )


def refuse_unknown(found: Found, before: State, changes: Changes) -> None:
    """Refuse to attach anew what decides by numbers that are not in the file.

    Raises
    ------
    UsageError
        If a level has labels whose threshold and range are not known, and no new statistics are given for it.
    """
    for level in unknown_levels(found.tails, before, changes):
        if isinstance(tail := found.tails[level], OwnTail):
            raise UsageError(
                f"the {level} level cannot be changed: its threshold and range are not in the file",
                found="a boundary alone" if tail.decides else "neither normalised scores nor labels",
                needed="statistics, as `postproc-export calibrate` writes them",
                fix="give them with --stats, or take the post-processing off with `postproc-export detach`",
            )


def unknown_levels(tails: Mapping[Level, FoundTail], before: State, changes: Changes) -> list[Level]:
    """Return the levels whose threshold and range are neither in the file nor given."""
    return [level for level in tails if before.stats.level(level) is None and changes.stats is None]


def edits_of(tails: Mapping[Level, FoundTail], changes: Changes, *, is_known: bool = True) -> Edits:
    """Return the new numbers for Anomalib's constants: {where: number}.

    Parameters
    ----------
    tails, changes
        What is there, and what changes.
    is_known
        Whether what the tails decide could be attached anew.

    Raises
    ------
    UsageError
        If a tail is not Anomalib's, or an option has no constant in it.
    """
    others = set(changes.options) - {"image_sensitivity", "pixel_sensitivity"}
    if others:
        raise UsageError(
            f"{', '.join(sorted(others))} cannot change while Anomalib's post-processing is kept",
            fix="leave out --keep-dialect, and give --stats where the threshold or the range is not in the file",
        )
    edits: Edits = {}
    for level, tail in tails.items():
        if not isinstance(tail, AnomalibTail):
            raise UsageError(
                f"the {level} level has our tail: there is no other dialect to keep",
                fix="leave out --keep-dialect" if is_known else "leave out --keep-dialect, and give --stats",
            )
        edits |= _edits(level, tail, changes)
    return edits


def told_edits(tails: Mapping[Level, FoundTail], before: State, edits: Edits) -> Iterator[str]:
    """Yield what becomes of a level whose numbers are not in the file, so that there is no boundary to tell."""
    for level, tail in tails.items():
        if before.stats.level(level) is None and isinstance(tail, AnomalibTail):
            for name, subject in _TOLD.items():
                new = next((edits[site] for site in tail.sites.get(name, ()) if site in edits), None)
                if new is not None:
                    yield f"{level} level: {subject} is now {shown(new)}, not {shown(tail.scalars[name])}"


def _edits(level: Level, tail: AnomalibTail, changes: Changes) -> Edits:
    wanted: dict[str, float] = {}
    sensitivity, threshold = changes.sensitivity(level), changes.threshold(level)
    if threshold is not None and not math.isfinite(to_float32(threshold)):
        raise UsageError(f"the threshold of the {level} level is not finite", found=str(threshold))
    if not tail.reading.is_normalised and threshold is not None and (changes.normalized or sensitivity is not None):
        raise UsageError(
            f"the {level} level compares its raw score with one number, which a threshold in raw units replaces",
            found="--normalized" if changes.normalized else "a sensitivity beside the threshold",
            fix="give the threshold alone, in raw units, or statistics with --stats",
        )
    if sensitivity is not None:
        # Anomalib subtracts in float32, from float32 values.
        wanted["cut"] = to_float32(1.0 - check_sensitivity(sensitivity, name=f"{level}_sensitivity"))
    if not tail.reading.is_normalised and threshold is not None:
        wanted["cut"] = to_float32(threshold)  # the raw score itself is compared with it
    elif threshold is not None or _new_stats(changes, level) is not None:
        wanted |= _constants(level, tail, changes)
    missing = sorted(name for name in wanted if name not in tail.sites)
    if missing:
        raise UsageError(
            f"the {level} level's post-processing has no constant for {', '.join(missing)}",
            fix="let ours take its place: leave out --keep-dialect",
        )
    return {site: number for name, number in wanted.items() for site in tail.sites[name]}


def _constants(level: Level, tail: AnomalibTail, changes: Changes) -> dict[str, float]:
    """Return every constant of the normalised score that the new threshold and span decide."""
    reading, stats = tail.reading, _new_stats(changes, level)
    span = reading.span if stats is None else stats.span
    threshold = _threshold(level, tail, changes, stats)
    if threshold is None or span is None:
        raise no_range(level)
    names = [name for name in ("threshold", "step_threshold", "step_threshold_below") if name in tail.sites]
    wanted = dict.fromkeys(names, threshold)
    if "minus_threshold" in tail.sites:
        wanted["minus_threshold"] = -threshold
    if "shift" in tail.sites:
        if not span:
            raise no_range(level)
        wanted["shift"] = to_float32(0.5 - threshold / span)
    if stats is not None:
        wanted |= {"scale": to_float32(1.0 / span)} if "scale" in tail.sites else {"span": span}
        wanted |= {name: getattr(stats, name) for name in ("min", "max") if name in tail.sites}
    return wanted or {"threshold": threshold}


def _threshold(level: Level, tail: AnomalibTail, changes: Changes, stats: LevelStats | None) -> float | None:
    given, reading = changes.threshold(level), tail.reading
    if given is None:
        return reading.threshold if stats is None else stats.threshold
    if not changes.normalized:
        return to_float32(given)
    if reading.threshold is None or reading.span is None:
        return None
    return to_float32(reading.threshold + (given - 0.5) * reading.span)


def _new_stats(changes: Changes, level: Level) -> LevelStats | None:
    return None if changes.stats is None else changes.stats.level(level)
