"""Attach, update and detach with custom steps around the tail: in memory, in both formats."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from graph_patterns.expr import GraphPatternError
from postproc_export.errors import MetadataError, PostprocError, UsageError
from postproc_export.files import is_onnx
from postproc_export.formats.base import Attached, Detached, FoundTails, Plan
from postproc_export.formats.update import Changes, Edits, Updated, update_model
from postproc_export.options import TailOptions
from postproc_export.ports import LEAVE_OUT, RAW_NAMES, OutputChoice, Selected, Selection
from postproc_export.record import LayerRecord, TailSpec, Where, recorded_tails
from postproc_export.runtimes import PortInfo
from postproc_export.stats import CalibrationStats, Level
from postproc_export.steps.decisions import decided_values, plan_decisions, point_values
from postproc_export.steps.transforms import plan_transform, resolve, resolve_all, select_raw, split
from postproc_export.tail import PREFIX, Tail, calibrated_levels

if TYPE_CHECKING:
    import onnx


# --- What attaching around a tail needs of a format, and both formats.

Outputs = dict[str, OutputChoice]


class Format(Protocol):
    """What attaching around a tail needs of a format."""

    def ports(self, model: Any) -> tuple[list[PortInfo], list[PortInfo]]:
        """Return the outputs and the inputs of a model."""

    def put(self, model: Any, plan: Plan) -> LayerRecord:
        """Append a layer."""

    def put_own(self, model: Any, spec: TailSpec, outputs: Outputs) -> LayerRecord:
        """Append a class of one's own, exported."""

    def read(self, model: Any, layer: Where, *, where: str) -> LayerRecord | None:
        """Return the record of a layer; None where there is none."""

    def take(self, model: Any, layer: Where, *, where: str) -> LayerRecord | None:
        """Remove a layer."""

    def decided(self, model: Any, options: TailOptions) -> PortInfo | None:
        """Return what `pred_label` compares."""

    def attach(self, model: Any, stats: CalibrationStats, options: TailOptions, outputs: Outputs) -> Attached:
        """Append the tail."""

    def find(self, model: Any, *, where: str) -> FoundTails:
        """Find the tail."""

    def detach(self, model: Any, *, where: str) -> Detached:
        """Remove the tail."""

    def edit(self, model: Any, numbers: Edits) -> None:
        """Change numbers of the tail in place."""


class OnnxFormat:
    """ONNX models, or their skeletons."""

    def ports(self, model: "onnx.ModelProto") -> tuple[list[PortInfo], list[PortInfo]]:
        """Return the outputs and the inputs of a model."""
        from postproc_export.formats.onnx_file import input_ports, output_ports

        return output_ports(model), input_ports(model)

    def put(self, model: "onnx.ModelProto", plan: Plan) -> LayerRecord:
        """Append a layer."""
        from postproc_export.formats.onnx_layer import put_onnx_layer

        return put_onnx_layer(model, plan)

    def put_own(self, model: "onnx.ModelProto", spec: TailSpec, outputs: Outputs) -> LayerRecord:
        """Append a class of one's own, exported at the model's opset."""
        from postproc_export.steps.user_export import put_own_onnx

        return put_own_onnx(model, spec, outputs)

    def read(self, model: "onnx.ModelProto", layer: Where, *, where: str) -> LayerRecord | None:
        """Return the record of a layer; None where there is none."""
        from postproc_export.formats.onnx_layer import read_onnx_layer

        return read_onnx_layer(model, layer, where=where)

    def take(self, model: "onnx.ModelProto", layer: Where, *, where: str) -> LayerRecord | None:
        """Remove a layer."""
        from postproc_export.formats.onnx_layer import take_onnx_layer

        return take_onnx_layer(model, layer, where=where)

    def decided(self, model: "onnx.ModelProto", options: TailOptions) -> PortInfo | None:
        """Return what `pred_label` compares."""
        from graph_patterns.onnx.view import OnnxView

        value = decided_values(OnnxView(model), options)
        return None if value is None else PortInfo(str(value), "float32", None)

    def attach(
        self, model: "onnx.ModelProto", stats: CalibrationStats, options: TailOptions, outputs: Outputs
    ) -> Attached:
        """Append the tail."""
        from postproc_export.formats.onnx import attach_to_onnx_model

        return attach_to_onnx_model(model, stats, options, **outputs)

    def find(self, model: "onnx.ModelProto", *, where: str) -> FoundTails:
        """Find the tail."""
        from postproc_export.formats.onnx import find_in_onnx_model

        return find_in_onnx_model(model, where=where)

    def detach(self, model: "onnx.ModelProto", *, where: str) -> Detached:
        """Remove the tail."""
        from postproc_export.formats.onnx import detach_from_onnx_model

        return detach_from_onnx_model(model, where=where)

    def edit(self, model: "onnx.ModelProto", numbers: Edits) -> None:
        """Change numbers of the tail in place."""
        from graph_patterns.onnx.edit import set_numbers

        set_numbers(model, numbers, prefix=PREFIX)


class OpenVinoFormat:
    """OpenVINO models."""

    def ports(self, model: Any) -> tuple[list[PortInfo], list[PortInfo]]:
        """Return the outputs and the inputs of a model."""
        from postproc_export.runtimes.openvino import port_info

        outputs = [port_info(port, f"output_{index}") for index, port in enumerate(model.outputs)]
        return outputs, [port_info(port, f"input_{index}") for index, port in enumerate(model.inputs)]

    def put(self, model: Any, plan: Plan) -> LayerRecord:
        """Append a layer."""
        from postproc_export.formats.openvino_layer import put_openvino_layer

        return put_openvino_layer(model, plan)

    def put_own(self, model: Any, spec: TailSpec, outputs: Outputs) -> LayerRecord:
        """Append a class of one's own, exported and read by OpenVINO."""
        from postproc_export.steps.user_export import put_own_openvino

        return put_own_openvino(model, spec, outputs)

    def read(self, model: Any, layer: Where, *, where: str) -> LayerRecord | None:
        """Return the record of a layer; None where there is none."""
        from postproc_export.formats.openvino_layer import read_openvino_layer

        return read_openvino_layer(model, layer, where=where)

    def take(self, model: Any, layer: Where, *, where: str) -> LayerRecord | None:
        """Remove a layer."""
        from postproc_export.formats.openvino_layer import take_openvino_layer

        return take_openvino_layer(model, layer, where=where)

    def decided(self, model: Any, options: TailOptions) -> PortInfo | None:
        """Return what `pred_label` compares."""
        from graph_patterns.openvino.view import OpenVinoView
        from postproc_export.formats.openvino_names import value_name

        value = decided_values(OpenVinoView(model), options)
        return None if value is None else PortInfo(value_name(value), "float32", None)

    def attach(self, model: Any, stats: CalibrationStats, options: TailOptions, outputs: Outputs) -> Attached:
        """Append the tail."""
        from postproc_export.formats.openvino import attach_to_openvino_model

        return attach_to_openvino_model(model, stats, options, **outputs)

    def find(self, model: Any, *, where: str) -> FoundTails:
        """Find the tail."""
        from postproc_export.formats.openvino_names import find_in_openvino_model

        return find_in_openvino_model(model, where=where)

    def detach(self, model: Any, *, where: str) -> Detached:
        """Remove the tail."""
        from postproc_export.formats.openvino import detach_from_openvino_model

        return detach_from_openvino_model(model, where=where)

    def edit(self, model: Any, numbers: Edits) -> None:
        """Change numbers of the tail in place."""
        from graph_patterns.openvino.edit import set_numbers

        set_numbers(model, numbers, prefix=PREFIX)


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
    """Edit the model of a file in its format; see `rewrite_onnx_file` and `rewrite_openvino_file`."""
    if is_onnx(source):
        from postproc_export.formats.onnx_file import rewrite_onnx_file

        on_onnx = partial(edit, OnnxFormat())
        return rewrite_onnx_file(
            source, target, on_onnx, in_place=in_place, link_weights=link_weights, is_checked=is_checked
        )
    from postproc_export.formats.openvino_file import rewrite_openvino_file

    return rewrite_openvino_file(source, target, partial(edit, OpenVinoFormat()), in_place=in_place)


# --- Attach, update and detach with tails of one's own around the tail: in memory, in both formats.


@dataclass(frozen=True, slots=True)
class Before:
    """What stands before the threshold now.

    Parameters
    ----------
    outputs
        Which outputs are the raw ones, by the options that say so.
    tails
        The tails, their parameters as they are recorded.
    """

    outputs: Outputs
    tails: tuple[TailSpec, ...]


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
    """Attach the tail to a model in memory, with tails of one's own before it and behind it.

    Raises
    ------
    UsageError
        If the statistics were calibrated behind other tails, or these contradict each other.
    PostprocError, graph_patterns.GraphPatternError
        If the model does not allow it.
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
    """Put tails before the threshold.

    Parameters
    ----------
    form, model
        The model, changed in place.
    before
        Shipped tails, or one class of one's own.
    outputs
        Which outputs are the raw ones.
    stats
        Statistics that have to be those behind these tails; None where there are none yet.
    calibrated
        The levels that they calibrate.
    """
    split(before)  # a class of one's own stands alone
    ports, images = form.ports(model)
    transforms = resolve_all(before) if before[0].is_shipped else ()
    selection = select_raw(ports, transforms, calibrated, **outputs)
    if not transforms:
        if stats is not None:
            refuse_other_tails(stats, tuple(before))
        record = form.put_own(model, before[0], {**outputs, **_chosen(selection)})
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
    """Refuse statistics that were calibrated behind other tails than those that stand before the threshold.

    Raises
    ------
    UsageError
        If they were.
    """
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
    """Take the tail off a model in memory, with what stands around it.

    Returns
    -------
    Detached
        Falsy where there is no tail; the model is not to be written then.
    """
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

    Raises
    ------
    UsageError
        If new statistics were calibrated behind other tails than the model has, or the tails behind the decision do not
        go with the changes.
    PostprocError, graph_patterns.GraphPatternError
        If the model does not allow it.
    """
    before = form.read(model, "transform", where=where)
    if changes.stats is not None:
        refuse_other_tails(changes.stats, () if before is None else before.tails)
    behind = form.take(model, "decision", where=where)
    updated = update_model(
        form.find(model, where=where),
        changes,
        keep_dialect=keep_dialect,
        edit=partial(form.edit, model),
        detach=partial(form.detach, model, where=where),
        attach=partial(form.attach, model),
    )
    if behind is not None and updated.tail is not None:
        form.put(model, _decisions(form, model, behind.tails, updated.tail))
    return updated


def _decisions(form: Format, model: Any, behind: Sequence[TailSpec], tail: Tail) -> Plan:
    return plan_decisions(behind, tail, values=form.decided(model, tail.options))
