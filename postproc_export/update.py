"""Change what a model with post-processing decides: threshold, sensitivity, rule, statistics."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from graph_patterns.match import Mismatch, Site
from postproc_export.attach import judge_of
from postproc_export.curve import choose_sensitivities, counts_at
from postproc_export.errors import UsageError
from postproc_export.files import default_target
from postproc_export.float32 import Half, to_float32
from postproc_export.formats.base import DetachResult, Format, Outputs, format_of
from postproc_export.options import FileOptions, TailOptions, UpdateOptions, as_typed, refuse_unused, with_decision
from postproc_export.outcome import Outcome, outcome_json
from postproc_export.policies import Policy
from postproc_export.ports import LEAVE_OUT
from postproc_export.reading.found import FoundTails, nothing_found, refuse_partial
from postproc_export.reading.report import SWITCHED_OFF, LevelReport, report_level, rule_of, shown, stats_of
from postproc_export.reading.tail import FoundTail
from postproc_export.record import TailRecord, level_json
from postproc_export.stats import (
    LEVELS,
    CalibrationStats,
    Level,
    LevelStats,
    as_stats,
    check_sensitivity,
    decision_boundary,
)
from postproc_export.tail import Tail
from postproc_export.validation import called_like

FED_AS_BEFORE: Final = "the statistics do not say how images are fed; what the file records of it stays"
_OF_THE_THRESHOLD: Final = ("at_threshold", "policies", "threshold_interval", "exact", "f1_gap", "sensitivities")


@dataclass(frozen=True, slots=True)
class State:
    """What a tail decides."""

    stats: CalibrationStats = field(default_factory=CalibrationStats)  # of the levels with a threshold and a range
    options: TailOptions = field(default_factory=TailOptions)
    narrow: Mapping[Level, Half] = field(default_factory=dict)  # see `TailRecord`

    def boundary(self, level: Level) -> float | None:
        """Return the raw value from which on a score is anomalous; None where the level does not decide."""
        stats = self.stats.level(level)
        if stats is None or not stats.is_calibrated or not self.options.enable_thresholding:
            return None
        return decision_boundary(
            stats,
            sensitivity=self.options.sensitivity(level),
            comparison=self.options.comparison,
            dtype=self.narrow.get(level, "float32"),
        )

    def to_json(self) -> dict[str, Any]:
        """Return each level as JSON; None for one whose numbers are not known."""
        return {level: self._level_json(level) for level in LEVELS}

    def _level_json(self, level: Level) -> dict[str, Any] | None:
        half = self.narrow.get(level)
        return level_json(level, self.stats.level(level), self.options, self.boundary(level), half)


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What an update changes; None for what stays."""

    stats: CalibrationStats | None = None
    image_threshold: float | None = None
    pixel_threshold: float | None = None
    normalized: bool = False  # the thresholds are not raw, but in units of the scores that the file gives now
    options: Mapping[str, Any] = field(default_factory=dict)  # the fields of `TailOptions` that change
    targets: Mapping[Level, Policy] = field(default_factory=dict)  # what sensitivities are to reach
    chosen: tuple[str, ...] = ()  # notes on these, and on what the statistics say of the decision

    def level_stats(self, level: Level) -> LevelStats | None:
        """Return the new statistics of a level."""
        return None if self.stats is None else self.stats.level(level)

    def threshold(self, level: Level) -> float | None:
        """Return the new threshold of a level as it was given."""
        return self.image_threshold if level == "image" else self.pixel_threshold

    def raw_threshold(self, level: Level, threshold: float | None, span: float | None) -> float | None:
        """Return the new threshold of a level, which is given, in raw units; None without the range of its scores."""
        given = self.threshold(level)
        assert given is not None, "asked for a threshold that changes"
        if not self.normalized:
            return to_float32(given)
        return None if threshold is None or span is None else to_float32(threshold + (given - 0.5) * span)

    def fed_as(self, state: State) -> "Changes":
        """Return the changes with the pre-processing of the file, where the new statistics do not say how it is fed."""
        recorded = state.stats.details.get("preprocessing")
        if self.stats is None or recorded is None or "preprocessing" in self.stats.details:
            return self
        stats = replace(self.stats, details={**self.stats.details, "preprocessing": recorded})
        return replace(self, stats=stats, chosen=(*self.chosen, FED_AS_BEFORE))

    def settled(self, state: State) -> "Changes":
        """Return the changes with the sensitivities that reach what they are to; see `choose_sensitivities`."""
        if not self.targets:
            return self
        wanted = self.apply(state)
        sensitivities, chosen = choose_sensitivities(self.targets, wanted.stats, wanted.options)
        return replace(self, options={**self.options, **sensitivities}, targets={}, chosen=(*self.chosen, *chosen))

    def changed(self, options: TailOptions) -> list[str]:
        """Return the names of the options that are other ones than those of the file."""
        return [name for name, value in self.options.items() if value != getattr(options, name)]

    def apply(self, state: State) -> State:
        """Return the changed state.

        Raises UsageError if a level has no range that a threshold could be in, or a given option would have no effect,
        and MetadataError if the new statistics or options are not legal.
        """
        stats = state.stats if self.stats is None else self.stats
        levels = {level: self._level(level, stats.level(level), state.stats.level(level)) for level in LEVELS}
        changed = replace(stats, image=levels["image"], pixel=levels["pixel"])
        options = replace(state.options, **self.options)
        others = self.changed(state.options)
        # what is given beside a switch is refused even where it is recorded: it had an effect so far
        refuse_unused(options, self.options if {"enable_thresholding", "layout"} & set(others) else others)
        return State(changed, options)

    def _level(self, level: Level, stats: LevelStats | None, current: LevelStats | None) -> LevelStats | None:
        if self.threshold(level) is None:
            return stats
        known = (None, None) if current is None else (current.threshold, current.span)
        raw = self.raw_threshold(level, *known)
        if stats is None or raw is None:
            raise no_range(level)
        if raw == stats.threshold:
            return stats
        details = {key: value for key, value in stats.details.items() if key not in _OF_THE_THRESHOLD}
        return replace(stats, threshold=raw, policy=None, rule="set_by_update", details=details)


def no_range(level: Level) -> UsageError:
    """Return the error for a threshold on a level whose range is not known."""
    return UsageError(
        f"the threshold of the {level} level cannot be set: its range is not in the file",
        needed="a calibrated range: max above min",
        fix="give statistics with --stats, as `postproc-export calibrate` writes them",
    )


def state_of(tails: Mapping[Level, FoundTail], record: TailRecord | None) -> State:
    """Return what the tails of a file decide, from its record or read back from the graph."""
    if record is not None:
        return State(record.stats, record.options, record.narrow)
    stats: dict[Level, LevelStats | None] = {}
    narrow: dict[Level, Half] = {}
    options: dict[str, Any] = {}
    for level, tail in tails.items():
        report = report_level(level, tail, record=None, is_rounded=False)
        stats[level] = _stats(tail, report)
        options |= _options(level, tail, report)
        narrow |= {} if report.narrow is None else {level: report.narrow}
    if "image" in tails and tails["image"].is_ours:
        options["nan_guard"] = tails["image"].guard is not None or "pixel" not in tails
    calibrated = CalibrationStats(image=stats.get("image"), pixel=stats.get("pixel"))
    return State(calibrated, TailOptions(**options), narrow)


def _stats(tail: FoundTail, report: LevelReport) -> LevelStats | None:
    if not tail.is_ours:
        return stats_of(tail.reading)
    rule = rule_of(tail)
    if rule is not None or (tail.is_eager and tail.decides):
        return None if rule is None else rule.stats
    if report.threshold is None or report.span is None:
        return None
    details = {"range_is_relative": True}
    return LevelStats(threshold=report.threshold, min=0.0, max=report.span, rule="read_back", details=details)


def _options(level: Level, tail: FoundTail, report: LevelReport) -> dict[str, Any]:
    name = "label_dtype" if level == "image" else "mask_dtype"
    sensitivity = report.sensitivity if tail.is_ours else tail.reading.sensitivity
    options: dict[str, Any] = {} if sensitivity is None else {f"{level}_sensitivity": sensitivity}
    if not tail.is_ours:
        return options | {name: "bool", "comparison": "gt"}
    options |= {"comparison": report.comparison} if tail.is_eager and report.comparison is not None else {}
    if tail.is_normalised or tail.decides:  # a guard alone decides nothing
        options |= {"enable_normalization": tail.is_normalised, "enable_thresholding": tail.decides}
    options |= {"layout": "packed"} if tail.is_packed else {name: tail.label_dtype}
    if tail.adjustable != "nothing":
        options |= {"adjustable": tail.adjustable, "as_parameters": tail.default is None}
    return options


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


def edits_of(tails: Mapping[Level, FoundTail], changes: Changes, *, is_known: bool = True) -> Edits:
    """Return the numbers of Anomalib's constants that change; `is_known` tells that our tail could take their place.

    Raises UsageError if a tail is not Anomalib's, or an option has no constant in it.
    """
    others = set(changes.options) - {"image_sensitivity", "pixel_sensitivity"}
    if others:
        raise UsageError(
            f"{', '.join(sorted(others))} cannot change while Anomalib's post-processing is kept",
            fix="leave out --keep-dialect, and give --stats where the threshold or the range is not in the file",
        )
    edits: Edits = {}
    for level, tail in tails.items():
        if tail.is_ours:
            raise UsageError(
                f"the {level} level has our tail: there is no other dialect to keep",
                fix="leave out --keep-dialect" if is_known else "leave out --keep-dialect, and give --stats",
            )
        edits |= _edits(level, tail, changes)
    return edits


def told_edits(tails: Mapping[Level, FoundTail], before: State, edits: Edits) -> Iterator[str]:
    """Yield what becomes of a level whose numbers are not in the file, so that there is no boundary to tell."""
    for level, tail in tails.items():
        if before.stats.level(level) is None and not tail.is_ours:
            for name, subject in _TOLD.items():
                new = next((edits[site] for site in tail.sites.get(name, ()) if site in edits), None)
                if new is not None:
                    yield f"{level} level: {subject} is now {shown(new)}, not {shown(tail.scalars[name])}"


def _edits(level: Level, tail: FoundTail, changes: Changes) -> Edits:
    wanted: dict[str, float] = {}
    sensitivity, threshold = changes.options.get(f"{level}_sensitivity"), changes.threshold(level)
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
    elif threshold is not None or changes.level_stats(level) is not None:
        wanted |= _constants(level, tail, changes)
    missing = sorted(name for name in wanted if name not in tail.sites)
    if missing:
        raise UsageError(
            f"the {level} level's post-processing has no constant for {', '.join(missing)}",
            fix="let ours take its place: leave out --keep-dialect",
        )
    changed = {name: number for name, number in wanted.items() if number != tail.scalars[name]}
    return {site: number for name, number in changed.items() for site in tail.sites[name]}


def _constants(level: Level, tail: FoundTail, changes: Changes) -> dict[str, float]:
    """Return every constant of the normalised score that the new threshold and span decide."""
    reading, stats = tail.reading, changes.level_stats(level)
    span = reading.span if stats is None else stats.span
    if changes.threshold(level) is None:
        threshold = reading.threshold if stats is None else stats.threshold
    else:
        threshold = changes.raw_threshold(level, reading.threshold, reading.span)
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


def _updated(form: Format, model: Any, found: FoundTails, changes: Changes, *, asked: UpdateOptions) -> "UpdateResult":
    """Change what the tails of a model decide."""
    where = Path(asked.model_path)
    tails = found.tails
    if not tails and found.record is None:
        return UpdateResult(source=where, misses=found.misses, outputs=found.outputs, is_found=False)
    refuse_partial(found)
    before = state_of(tails, found.record)
    changes = changes.fed_as(before).settled(before)
    is_foreign = any(not tail.is_ours for tail in tails.values())
    unknown = [level for level in tails if before.stats.level(level) is None and changes.stats is None]
    must_edit = any(
        not tail.is_ours and before.stats.level(level) is None and changes.level_stats(level) is None
        for level, tail in tails.items()
    )  # what its constants decide is not in the file
    judge = judge_of(
        changes.stats,
        asked,
        form=form,
        source=where,
        where=str(where),
        remedy=f"postproc-export detach {where} -o raw{where.suffix}, and calibrate on that",
        attached=True,
        inputs=frozenset() if found.record is None else found.record.inputs,
    )
    if asked.keep_dialect or must_edit:
        same = set(changes.options) - set(changes.changed(before.options))
        other = {name: value for name, value in changes.options.items() if name not in same}
        edits = edits_of(tails, replace(changes, options=other), is_known=not unknown)
        notes = (EDITED if asked.keep_dialect else NOT_KNOWN, *told_edits(tails, before, edits), *judge(model, {}))
        notes = notes if edits else ()
        form.edit(model, edits)
        notes = (*changes.chosen, *notes)
        return UpdateResult(
            source=where, before=before, after=_after_editing(before, changes), is_changed=bool(edits), notes=notes
        )
    _refuse_unknown(tails, unknown)
    wanted = changes.apply(before)
    detached, given = form.take(model, "tail", where=str(where)), changes.changed(before.options)
    outputs = _outputs(found, detached)
    attached = form.attach(model, wanted.stats, wanted.options, outputs, given=given, judge=judge)
    tail = attached.tail
    after = State(tail.stats, tail.resolved_options, tail.narrow)
    notes = (*changes.chosen, *attached.notes, *_narrowed(found, after))
    if is_foreign:
        notes = (*notes, REPLACED, *((STRICT,) if after.options.comparison == "gt" else ()))
    is_eager = any(tail.is_eager for tail in tails.values())
    if is_eager:
        notes = (*notes, REPLACED_EAGER)
    rewritten = (*_rewritten(found), *_other_guard(found, tail, changes))
    differs = before.stats != after.stats or before.options != after.options
    differs = differs or (after.options.enable_thresholding and before.narrow != after.narrow)
    return UpdateResult(
        source=where,
        before=before,
        after=after,
        is_changed=is_foreign or is_eager or bool(rewritten) or differs,
        notes=(*notes, *rewritten),
        tail=tail,
    )


def _refuse_unknown(tails: Mapping[Level, FoundTail], unknown: Sequence[Level]) -> None:
    """Refuse to attach anew what decides by numbers that are neither in the file nor given."""
    for level in unknown:
        if (tail := tails[level]).is_ours:
            raise UsageError(
                f"the {level} level cannot be changed: its threshold and range are not in the file",
                found="a boundary alone" if tail.decides else "neither normalised scores nor labels",
                needed="statistics, as `postproc-export calibrate` writes them",
                fix="give them with --stats, or take the post-processing off with `postproc-export detach`",
            )


def _after_editing(before: State, changes: Changes) -> State:
    """Return the changed state; a level without a range has no statistics, though its constant was edited."""
    stats = before.stats if changes.stats is None else changes.stats
    image = changes.image_threshold if stats.image is not None else None
    pixel = changes.pixel_threshold if stats.pixel is not None else None
    return replace(changes, image_threshold=image, pixel_threshold=pixel).apply(before)


def _outputs(found: FoundTails, detached: DetachResult) -> Outputs:
    """Say which outputs are the raw ones; a level that was left out of the tail stays out."""
    outputs: Outputs = {}
    for level in LEVELS:
        tail = found.tails.get(level)
        if level in detached.raw_outputs:
            found_by = None if found.record is None else found.record.found.get(level)
            outputs[f"{level}_output"] = (detached.raw_outputs[level], found_by)
        elif found.record is not None or (tail is not None and tail.from_map):
            outputs[f"{level}_output"] = LEAVE_OUT
    return outputs


def _other_guard(found: FoundTails, tail: Tail, changes: Changes) -> tuple[str, ...]:
    """Return a note where the guard was not the one that the outputs ask for, and is now."""
    image = found.tails.get("image")
    is_same = image is None or not image.is_ours or image.guard == tail.guard.form
    if is_same or not tail.names("image") or "nan_guard" in changes.options or changes.stats is not None:
        return ()
    return (f"the NaN guard was another one and was written anew: {tail.describe_guard() or 'no output guards now'}",)


def _narrowed(found: FoundTails, after: State) -> Iterator[str]:
    """Yield notes on boundaries that were attached before there were constants for narrow hosts."""
    if found.record is None or not after.options.enable_thresholding:
        return
    for level, dtype in after.narrow.items():
        if found.record.narrow.get(level) != dtype:
            yield f"the {level} boundary is now the one for a host of {dtype}, whose rounding runtimes drop"


def _rewritten(found: FoundTails) -> tuple[str, ...]:
    """Return notes on constants that were not those of the record, and are now."""
    if found.record is None:
        return ()
    reports = [report_level(level, tail, record=found.record, is_rounded=False) for level, tail in found.tails.items()]
    notes = (note for report in reports for note in report.notes if note not in SWITCHED_OFF)
    return tuple(f"{note}; they were written anew" for note in notes)


def describe_counts(level: Level, stats: LevelStats, before: State, after: State) -> Iterator[str]:
    """Yield how many validation samples were and are called anomalous; nothing where the statistics hold no curve."""
    now, then = (counts_at(stats, state.boundary(level), state.narrow.get(level)) for state in (after, before))
    if now is not None:
        was = "" if then is None else f" (were {then.called})"
        yield now.sentence(level, was)


_SHOWN_OPTIONS: Final = {
    "rule": "comparison",
    "layout": "layout",
    "levels": "levels",
    "scores": "enable_normalization",
    "labels": "enable_thresholding",
    "adjusted": "adjustable",
    "settings": "model_info",
}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class UpdateResult(Outcome):
    """What was changed, and where the changed model was written; falsy where there was nothing to update.

    Parameters
    ----------
    source
        The model that was read; for an IR the .xml.
    output
        The model that was written; None where nothing was: it has no post-processing, or decides so already.
    before, after
        What the source decides, and what the output decides.
    is_changed
        Whether the model decides differently, or its outputs are others, than before.
    notes
        What a user should know.
    tail
        The tail that was attached anew; None where constants were edited in place.
    is_found, misses, outputs
        Whether it has post-processing; why none was found, by level, and the names of its outputs.
    """

    source: Path
    output: Path | None = None
    before: State = field(default_factory=State)
    after: State = field(default_factory=State)
    is_changed: bool = True
    notes: tuple[str, ...] = ()
    tail: Tail | None = None
    is_found: bool = True
    misses: Mapping[Level, Mismatch] = field(default_factory=dict)
    outputs: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return self.is_found

    def headline(self) -> str:
        """Return which model it is, and whether it decides differently now."""
        if not self:
            return nothing_found(self.source, self.misses, self.outputs).line
        if not self.is_changed:
            return f"nothing to change in {self.source}: it decides so already"
        return f"updated post-processing of {self.source}"

    def facts(self) -> Iterator[tuple[str, str]]:
        """Yield what was written and what was changed, in numbers."""
        if not self:
            return
        if self.output is not None:
            yield "written", str(self.output)
        for level in LEVELS:
            yield from ((level, line) for line in self._level(level))
        for title, name in _SHOWN_OPTIONS.items():
            was, now = getattr(self.before.options, name), getattr(self.after.options, name)
            if was != now:
                yield title, f"{_word(was)} -> {_word(now)}"
        guard = None if self.tail is None else self.tail.describe_guard()
        yield from (("guard", text) for text in (guard,) if text)
        yield from (("note", note) for note in self.notes)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``update --json``: docs/json.md. The levels are what the output decides."""
        notes = self.notes if self else (self.headline(),)
        more = {"found": self.is_found, "changed": self.is_found and self.is_changed, "before": self.before.to_json()}
        return outcome_json(self.source, self.output, self.after.to_json(), notes, **more)

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
        Falsy where the model has no post-processing that is known. Nothing is written then, nor where it decides so
        already.

    Raises
    ------
    PostprocError
        If the model, the changes or the files do not allow it; nothing is written then.

    Notes
    -----
    Anomalib's post-processing is replaced by ours with the same threshold, span, sensitivity and rule (``gt``), so that
    nothing changes but what was asked for. Where its numbers are not in the file, its constants are edited in place.
    """
    given = {name: value for name, value in given.items() if value is not None}
    asked = UpdateOptions(**given)
    source, stats, told = Path(asked.model_path), asked.stats, tuple[str, ...]()
    _refuse_idle(asked, given)
    found = None if stats is None else as_stats(stats)
    if found is not None:
        found, given, told = with_decision(found, given)
        asked = UpdateOptions(**given)
    changes = Changes(
        stats=found,
        image_threshold=asked.image_threshold,
        pixel_threshold=asked.pixel_threshold,
        normalized=asked.normalized,
        options={item.name: getattr(asked, item.name) for item in fields(TailOptions) if item.name in given},
        targets=asked.targets(given),
        chosen=told,
    )
    target = default_target(source, asked.output, in_place=asked.in_place, mark="updated", read=[stats])
    form = format_of(source)
    results: list[UpdateResult] = []

    def edit(model: Any) -> bool:
        results.append(update_model(form, model, changes, asked=asked))
        return bool(results[0]) and results[0].is_changed

    is_written, updated = form.rewrite(source, target, edit, asked), results[0]
    if updated and not is_written and not given.keys() - _OF_FILES:
        there, fix = f"{source}, and no option", f"such as postproc-export update {source} --image-sensitivity 0.7"
        raise UsageError("nothing to change: give an option", found=there, fix=fix)
    return replace(updated, output=target if is_written else None)


_OF_FILES: Final = {item.name for item in fields(FileOptions)} | {"model_path"}


def _refuse_idle(asked: UpdateOptions, given: Mapping[str, Any]) -> None:
    """Refuse thresholds that are none, and units of thresholds or leave for statistics that are not given."""
    thresholds = [name for name in ("image_threshold", "pixel_threshold") if name in given]
    for name in thresholds:
        if not math.isfinite(to_float32(getattr(asked, name))):
            fix = f"`postproc-export inspect {asked.model_path}` shows the one of now"
            raise UsageError(f"{as_typed(asked, name)}: use a finite number", needed="a float32", fix=fix)
    if asked.normalized and not thresholds:
        fix = "leave it out, or give --image-threshold or --pixel-threshold"
        raise UsageError("--normalized would have no effect", found="no threshold", fix=fix)
    if asked.other_model and asked.stats is None:
        found = "no statistics to belong to a model"
        raise UsageError("--other-model would have no effect", found=found, fix="leave it out, or give --stats")


def update_model(form: Format, model: Any, changes: Changes, *, asked: UpdateOptions) -> UpdateResult:
    """Change what the tail of a model in memory decides, between what stands around it."""
    where = asked.model_path
    before = form.read(model, "transform", where=str(where))
    if changes.stats is not None:
        from postproc_export.steps.around import refuse_other_tails

        refuse_other_tails(changes.stats, () if before is None else before.tails)
    behind = form.take(model, "decision", where=str(where))
    found = form.find(model, where=str(where))
    updated = _updated(form, model, found, changes, asked=asked)
    if behind.record is not None and updated.tail is not None:
        from postproc_export.steps.around import put_behind

        put_behind(form, model, behind.record.tails, updated.tail)
    return updated


def _word(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
