"""The course of an update, the same for every format: edit in place, or take the tail off and attach it anew."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

from postproc_export.graphs.attached import Attached
from postproc_export.graphs.detached import Detached, Found, refuse_partial
from postproc_export.graphs.reading.anomalib_tail import AnomalibTail
from postproc_export.graphs.reading.levels import SWITCHED_OFF, report_level
from postproc_export.graphs.reading.own_tail import OwnTail
from postproc_export.graphs.state import Changes, State, state_of
from postproc_export.graphs.updated import (
    EDITED,
    NOT_KNOWN,
    REPLACED,
    REPLACED_EAGER,
    STRICT,
    Edits,
    Updated,
    edits_of,
    must_be_edited,
    refuse_unknown,
    told_edits,
    unknown_levels,
)
from postproc_export.outputs import LEAVE_OUT, Selected
from postproc_export.stats import LEVELS, CalibrationStats
from postproc_export.tail import Tail
from postproc_export.tail_options import TailOptions

Attach = Callable[[CalibrationStats, TailOptions, Mapping[str, Any]], Attached]


def update_model(
    found: Found,
    changes: Changes,
    *,
    keep_dialect: bool,
    edit: Callable[[Edits], None],
    detach: Callable[[], Detached],
    attach: Attach,
) -> Updated:
    """Change what the tails of a model decide.

    Parameters
    ----------
    found
        The tails.
    changes
        What changes.
    keep_dialect
        Edit Anomalib's constants instead of putting our tail there.
    edit, detach, attach
        What the format does.
    """
    if not found.tails and found.record is None:
        return Updated(misses=found.misses, is_found=False)
    refuse_partial(found)
    before = state_of(found.tails, found.record)
    is_foreign = any(isinstance(tail, AnomalibTail) for tail in found.tails.values())
    unknown = is_foreign and must_be_edited(found.tails, before, changes)
    if keep_dialect or unknown:
        return _edited(found, before, changes, edit, notes=(EDITED if keep_dialect else NOT_KNOWN,))
    refuse_unknown(found, before, changes)
    after = changes.apply(before)
    detached = detach()
    attached = attach(after.stats, after.options, _outputs(found, detached))
    after = State(attached.tail.stats, attached.tail.resolved_options, attached.tail.narrow)
    notes = (*attached.tail.notes, *_narrowed(found, after))
    if is_foreign:
        notes = (*notes, REPLACED, *((STRICT,) if after.options.comparison == "gt" else ()))
    is_eager = any(isinstance(tail, OwnTail) and tail.is_eager for tail in found.tails.values())
    if is_eager:
        notes = (*notes, REPLACED_EAGER)
    rewritten = (*_rewritten(found), *_other_guard(found, attached.tail, changes))
    return Updated(
        before=before,
        after=after,
        is_changed=is_foreign or is_eager or bool(rewritten) or _differ(before, after),
        notes=(*notes, *rewritten),
        tail=attached.tail,
    )


def _edited(
    found: Found, before: State, changes: Changes, edit: Callable[[Edits], None], *, notes: tuple[str, ...]
) -> Updated:
    edits = edits_of(found.tails, changes, is_known=not unknown_levels(found.tails, before, changes))
    numbers = {
        site: tail.scalars[name]
        for tail in found.tails.values()
        if isinstance(tail, AnomalibTail)
        for name, sites in tail.sites.items()
        for site in sites
    }
    edits = {site: number for site, number in edits.items() if numbers[site] != number}
    edit(edits)
    after = _after_editing(before, changes)
    notes = (*notes, *told_edits(found.tails, before, edits)) if edits else ()
    return Updated(before=before, after=after, is_changed=bool(edits), notes=notes)


def _after_editing(before: State, changes: Changes) -> State:
    """Return the changed state; a level without a range has no statistics, though its constant was edited."""
    stats = before.stats if changes.stats is None else changes.stats
    image = changes.image_threshold if stats.image is not None else None
    pixel = changes.pixel_threshold if stats.pixel is not None else None
    return replace(changes, image_threshold=image, pixel_threshold=pixel).apply(before)


def _outputs(found: Found, detached: Detached) -> dict[str, Any]:
    """Say which outputs are the raw ones; a level that was left out of the tail stays out."""
    outputs: dict[str, Any] = {}
    for level in LEVELS:
        tail = found.tails.get(level)
        if level in detached.raw_outputs:
            found_by = None if found.record is None else found.record.found.get(level)
            outputs[f"{level}_output"] = Selected(detached.raw_outputs[level], found_by)
        elif found.record is not None or (tail is not None and tail.from_map):
            outputs[f"{level}_output"] = LEAVE_OUT
    return outputs


def _other_guard(found: Found, tail: Tail, changes: Changes) -> tuple[str, ...]:
    """Return a note where the guard was not the one that the outputs ask for, and is now."""
    image = found.tails.get("image")
    is_same = not isinstance(image, OwnTail) or image.guard == tail.guard.form
    if is_same or not tail.names("image") or changes.nan_guard is not None or changes.stats is not None:
        return ()
    return (f"the NaN guard was another one and was written anew: {tail.describe_guard() or 'no output guards now'}",)


def _differ(before: State, after: State) -> bool:
    if before.stats != after.stats or (after.options.enable_thresholding and before.narrow != after.narrow):
        return True
    return any(getattr(before.options, item.name) != getattr(after.options, item.name) for item in fields(TailOptions))


def _narrowed(found: Found, after: State) -> Iterator[str]:
    """Yield notes on boundaries that were attached before there were constants for narrow hosts."""
    if found.record is None or not after.options.enable_thresholding:
        return
    for level, dtype in after.narrow.items():
        if found.record.narrow.get(level) != dtype:
            yield f"the {level} boundary is now the one for a host of {dtype}, whose rounding runtimes drop"


def _rewritten(found: Found) -> tuple[str, ...]:
    """Return notes on constants that were not those of the record, and are now."""
    if found.record is None:
        return ()
    reports = [report_level(level, tail, record=found.record, is_rounded=False) for level, tail in found.tails.items()]
    notes = (note for report in reports for note in report.notes if note not in SWITCHED_OFF)
    return tuple(f"{note}; they were written anew" for note in notes)
