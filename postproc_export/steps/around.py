"""Put custom steps around the tail of a model in memory: before the threshold, and decisions behind it."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from postproc_export.errors import UsageError
from postproc_export.formats.base import Format, Outputs
from postproc_export.ports import LEAVE_OUT, RAW_NAMES, Selection
from postproc_export.record import TailSpec, recorded_tails
from postproc_export.runtimes import PortInfo
from postproc_export.stats import CalibrationStats, Level
from postproc_export.steps.decisions import decided_values, plan_decisions, point_values
from postproc_export.steps.transforms import plan_transform, resolve, resolve_all, select_raw, split
from postproc_export.tail import Tail


def put_before(
    form: Format,
    model: Any,
    before: Sequence[TailSpec],
    *,
    outputs: Outputs,
    stats: CalibrationStats | None = None,
    calibrated: Collection[Level] | None = None,
) -> tuple[Outputs, tuple[TailSpec, ...]]:
    """Put shipped steps, or one class of the user's, before the threshold.

    Returns which outputs are the raw ones then, and the steps with their parameters as they are recorded.
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
    return {**made, **_chosen(selection)}, record.tails


def _chosen(selection: Selection) -> Outputs:
    """Return the outputs that were selected, which keep their names behind a transform, and by which rule."""
    return {f"{level}_output": (port.name, selection.found.get(level)) for level, port in selection.raw.items()}


def refuse_other_tails(stats: CalibrationStats, tails: tuple[TailSpec, ...]) -> None:
    """Refuse statistics that were calibrated behind other steps than those that stand before the threshold."""
    calibrated = recorded_tails(stats)
    if len(calibrated) == len(tails) and all(map(is_same, calibrated, tails)):
        return
    flags = " ".join(f"--step {spec.text}" for spec in tails)
    wanted = " ".join(f"--step {spec.text}" for spec in calibrated)
    again = f"calibrate {f'with {flags}' if flags else 'without it'}"
    raise UsageError(
        "the statistics are not those behind this tail: a transform changes the range",
        found=f"calibrated {f'behind {wanted}' if wanted else 'on the raw outputs themselves'}",
        needed=f"statistics calibrated {f'behind {flags}' if flags else 'on the raw outputs themselves'}",
        fix=f"attach with {wanted}, or {again}" if wanted else f"leave it out here, or {again}",
    )


def is_same(one: TailSpec, other: TailSpec) -> bool:
    """Whether two mean the same: a table may be compressed otherwise on another machine, a number written otherwise."""
    if one.name != other.name or not one.is_shipped:
        return one == other
    if one.changes_values:
        return resolve(one) == resolve(other)
    return point_values(one.parameters) == point_values(other.parameters)


def put_behind(form: Format, model: Any, specs: Sequence[TailSpec], tail: Tail) -> None:
    """Put decisions behind a tail that was attached."""
    value = decided_values(form.view(model), tail.options)
    values = None if value is None else PortInfo(form.value_name(value), "float32", None)
    form.put(model, plan_decisions(specs, tail, values=values))
