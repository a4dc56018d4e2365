"""Attach, update and detach with custom steps around the tail: in memory, in both formats."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from graph_patterns.expr import GraphPatternError
from postproc_export.errors import MetadataError, PostprocError, UsageError
from postproc_export.formats import format_of
from postproc_export.formats.base import Attached, Detached, Format, Outputs, Plan
from postproc_export.formats.update import Changes, Updated, update_model
from postproc_export.options import TailOptions
from postproc_export.ports import LEAVE_OUT, RAW_NAMES, Selected, Selection
from postproc_export.record import TailSpec, recorded_tails
from postproc_export.runtimes import PortInfo
from postproc_export.stats import CalibrationStats, Level
from postproc_export.steps.decisions import decided_values, plan_decisions, point_values
from postproc_export.steps.transforms import plan_transform, resolve, resolve_all, select_raw, split
from postproc_export.tail import Tail, calibrated_levels

Result = TypeVar("Result")


def rewrite_file(
    source: Path,
    target: Path,
    edit: Callable[[Format, Any], Result],
    *,
    in_place: bool = False,
    link_weights: bool = False,
    is_checked: bool = True,
) -> Result:
    """Edit the model of a file in its format; see `Format.rewrite`."""
    form = format_of(source)
    return form.rewrite(
        source, target, partial(edit, form), in_place=in_place, link_weights=link_weights, is_checked=is_checked
    )


@dataclass(frozen=True, slots=True)
class Before:
    """What stands before the threshold now."""

    outputs: Outputs
    tails: tuple[TailSpec, ...]  # the custom steps, their parameters as they are recorded


def attach_around(
    form: Format,
    model: Any,
    stats: CalibrationStats,
    options: TailOptions,
    specs: Sequence[TailSpec],
    *,
    image_output: str | int | None = None,
    pixel_output: str | int | None = None,
) -> Attached:
    """Attach the tail to a model in memory, with custom steps before it and behind it.

    Raises UsageError if the statistics were calibrated behind other steps, or these contradict each other.
    """
    outputs: Outputs = {"image_output": image_output, "pixel_output": pixel_output}
    before, behind = split(specs)
    if before:
        levels = calibrated_levels(stats, options)
        outputs = put_before(form, model, before, stats=stats, outputs=outputs, calibrated=levels).outputs
    else:
        refuse_other_tails(stats, ())
    attached = form.attach(model, stats, options, outputs)
    if behind:
        form.put(model, _decisions(form, model, behind, attached.tail))
    return attached


def put_before(
    form: Format,
    model: Any,
    before: Sequence[TailSpec],
    *,
    outputs: Outputs,
    stats: CalibrationStats | None = None,
    calibrated: Collection[Level] | None = None,
) -> Before:
    """Put shipped steps, or one class of the user's, before the threshold.

    `stats` have to be those behind these steps; None where there are none yet. `calibrated` are their levels.
    """
    split(before)  # a class of one's own stands alone
    ports, images = form.outputs(model), form.inputs(model)
    transforms = resolve_all(before) if before[0].is_shipped else ()
    selection = select_raw(ports, transforms, calibrated, **outputs)
    if not transforms:
        if stats is not None:
            refuse_other_tails(stats, tuple(before))
        from postproc_export.steps.user_export import put_own

        record = put_own(form, model, before[0], {**outputs, **_chosen(selection)})
    else:
        plan = plan_transform(transforms, ports, images, **{**outputs, **_chosen(selection)})
        if stats is not None:
            refuse_other_tails(stats, plan.tails)
        record = form.put(model, plan)
    made = {
        f"{level}_output": name if name in record.made and outputs[f"{level}_output"] != LEAVE_OUT else LEAVE_OUT
        for level, name in RAW_NAMES.items()
    }
    if "map" in record.read:  # whoever asks for a step on the map says which output is the map
        selection = replace(selection, pixel_found="option")
    return Before({**made, **_chosen(selection)}, record.tails)


def _chosen(selection: Selection) -> Outputs:
    """Return the outputs that were selected, which keep their names behind a transform, and by which rule."""
    ports: dict[Level, PortInfo | None] = {"image": selection.image, "pixel": selection.pixel}
    return {
        f"{level}_output": Selected(port.name, selection.found.get(level))
        for level, port in ports.items()
        if port is not None
    }


def refuse_other_tails(stats: CalibrationStats, tails: tuple[TailSpec, ...]) -> None:
    """Refuse statistics that were calibrated behind other steps than those that stand before the threshold."""
    calibrated = recorded_tails(stats)
    if len(calibrated) == len(tails) and all(map(is_same, calibrated, tails)):
        return
    flags = " ".join(f"--tail {spec.text}" for spec in tails)
    wanted = " ".join(f"--tail {spec.text}" for spec in calibrated)
    raise UsageError(
        "the statistics are not those behind this tail: a transform changes the range",
        found=f"calibrated {f'behind {wanted}' if wanted else 'on the raw outputs themselves'}",
        needed=f"statistics calibrated {f'behind {flags}' if flags else 'on the raw outputs themselves'}",
        fix=f"postproc-export calibrate {flags} ..." if flags else f"attach with {wanted}, or calibrate without it",
    )


def is_same(one: TailSpec, other: TailSpec) -> bool:
    """Whether two mean the same: a table may be compressed otherwise on another machine, a number written otherwise."""
    if one.name != other.name or not one.is_shipped:
        return one == other
    if one.changes_values:
        return resolve(one) == resolve(other)
    return point_values(one.parameters) == point_values(other.parameters)


def detach_around(form: Format, model: Any, *, where: str) -> Detached:
    """Take the tail off a model in memory, with what stands around it; a falsy result's model is not to be written."""
    behind = form.take(model, "decision", where=where)
    detached = form.detach(model, where=where)
    if not detached:
        return detached
    before = form.take(model, "transform", where=where)
    own = [spec.text for record in (before, behind) if record is not None for spec in record.tails]
    return replace(detached, own=tuple(own))


def misfits_around(form: Format, model: Any, *, where: str, is_touched: bool = False) -> tuple[str, ...]:
    """Return what the records of a model say that does not fit it; the model is of no use any more then.

    What another tool may have taken away is a misfit unless one has been over the file.
    """
    try:
        form.take(model, "decision", where=where)
        found = form.find(model, where=where)
        if not found.misfits and found.tails and form.read(model, "transform", where=where) is not None:
            form.detach(model, where=where)
            form.take(model, "transform", where=where)
    except MetadataError as error:
        return (f"{error.what.removeprefix(f'{where}: ')}: {error.found}",)
    except (PostprocError, GraphPatternError):
        return ()  # the tail is not as it was attached, which other checks tell
    return (*found.misfits, *(() if is_touched else found.doubts))


def update_around(form: Format, model: Any, changes: Changes, *, keep_dialect: bool, where: str) -> Updated:
    """Change what the tail of a model in memory decides, between what stands around it.

    Raises UsageError if new statistics were calibrated behind other steps than the model has, or the decisions behind
    the tail do not go with the changes.
    """
    before = form.read(model, "transform", where=where)
    if changes.stats is not None:
        refuse_other_tails(changes.stats, () if before is None else before.tails)
    behind = form.take(model, "decision", where=where)
    found = form.find(model, where=where)
    updated = update_model(form, model, found, changes, keep_dialect=keep_dialect, where=where)
    if behind is not None and updated.tail is not None:
        form.put(model, _decisions(form, model, behind.tails, updated.tail))
    return updated


def _decisions(form: Format, model: Any, behind: Sequence[TailSpec], tail: Tail) -> Plan:
    value = decided_values(form.view(model), tail.options)
    values = None if value is None else PortInfo(form.value_name(value), "float32", None)
    return plan_decisions(behind, tail, values=values)
