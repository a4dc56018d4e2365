"""Put custom steps around the tail of a model in memory: before the threshold, and decisions behind it."""

from collections.abc import Collection, Sequence
from typing import Any, Final

from postproc_export.errors import UnsupportedModelError, UsageError
from postproc_export.formats.base import Format, Outputs
from postproc_export.model_info import refuse_other_outputs
from postproc_export.ports import LEAVE_OUT, RAW_NAMES, PortInfo, Selection, is_plain
from postproc_export.record import TailSpec, recorded_tails
from postproc_export.stats import CalibrationStats, Level
from postproc_export.steps.decisions import decided_values, plan_decisions, point_values
from postproc_export.steps.plan import plan_transform, select_raw
from postproc_export.steps.transforms import Channel, resolve, resolve_all, split
from postproc_export.tail import Tail

_WHICH_AXIS: Final = (
    "--step channel:axis=last for [N, H, W, 1], --step channel:axis=second for [N, 1, H, W]; to choose one of several "
    "channels, add its number: channel:index=1,axis=last"
)


def with_channel(
    ports: Sequence[PortInfo],
    before: Sequence[TailSpec],
    outputs: Outputs,
    calibrated: Collection[Level] | None = None,
    *,
    is_read: bool = True,
) -> tuple[TailSpec, ...]:
    """Return the steps before the threshold with what takes the channel of a map [N, H, W, 1], where one is read.

    `calibrated` are the levels that statistics calibrate, None where there are none yet; `is_read` says that the map
    itself is post-processed. Raises UnsupportedModelError where the option names a map whose sizes do not tell which
    axis is that of its channels, and no step does.
    """
    own = [spec for spec in before if not spec.is_shipped]
    transforms = resolve_all(before)
    selection = select_raw(ports, transforms, calibrated, **outputs)
    port = selection.pixel
    if port is None or is_plain(port) or not (is_read or before or selection.image is None):
        return tuple(before)
    settled = [each for transform in transforms for each in transform.settled(selection.raw)]
    if any(isinstance(each, Channel) and each.level == "pixel" for each in settled):
        return tuple(before)
    is_last = port.size(3) == 1 and port.size(1) != 1
    if is_last and not own:
        return (TailSpec("channel", {"axis": "last", "level": "pixel"}), *before)
    if is_last or (port.size(1) is None and isinstance(outputs["pixel_output"], (str, int))):
        raise UnsupportedModelError(
            f"the channel axis of '{port.name}' is {'the last one' if is_last else 'not known'}",
            found=port.describe(),
            needed="[N, 1, H, W] for a class of your own" if own else "the axis that holds the channels",
            fix="re-export the model with this shape" if own else _WHICH_AXIS,
        )
    return tuple(before)


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
    transforms = resolve_all(before)
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
    if "map" in record.read and not all(spec.keeps_values for spec in before):
        # whoever asks for a step on the map says which output is the map
        selection = selection._replace(pixel_found="option")
    return {**made, **_chosen(selection)}, record.tails


def _chosen(selection: Selection) -> Outputs:
    """Return the outputs that were selected, which keep their names behind a transform, and by which rule."""
    return {f"{level}_output": (port.name, selection.found.get(level)) for level, port in selection.raw.items()}


def refuse_other_tails(stats: CalibrationStats, tails: tuple[TailSpec, ...]) -> None:
    """Refuse statistics that were calibrated behind other steps than those that stand before the threshold."""
    calibrated, tails = (
        tuple(spec for spec in specs if not spec.keeps_values) for specs in (recorded_tails(stats), tails)
    )
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


def is_asked(spec: TailSpec, recorded: TailSpec) -> bool:
    """Whether a recorded step is what a step that a caller names became for its model."""
    if spec.name == recorded.name == Channel.name:
        return Channel.parse(spec.parameters).is_settled_as(Channel.parse(recorded.parameters))
    return is_same(spec, recorded)


def put_behind(form: Format, model: Any, specs: Sequence[TailSpec], tail: Tail) -> None:
    """Put decisions behind a tail that was attached."""
    value = decided_values(form.view(model), tail.options)
    values = None if value is None else PortInfo(form.value_name(value), "float32", None)
    form.put(model, plan_decisions(specs, tail, values=values))
    if tail.options.model_info:
        refuse_other_outputs([port.name for port in form.outputs(model)])
