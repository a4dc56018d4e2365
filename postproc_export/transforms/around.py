"""Attach and detach with tails of one's own around the tail: in memory, in both formats."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from postproc_export.errors import UsageError
from postproc_export.rewrite.attached import Attached
from postproc_export.rewrite.detached import Detached
from postproc_export.rewrite.outputs import LEAVE_OUT
from postproc_export.runtimes.protocol import PortInfo
from postproc_export.stats import CalibrationStats
from postproc_export.tail_options import TailOptions
from postproc_export.transforms.decisions import decided_values, plan_decisions
from postproc_export.transforms.plan import Plan, plan_transform, resolve_all, select_raw, split
from postproc_export.transforms.record import LayerRecord, Where, recorded_tails
from postproc_export.transforms.spec import TailSpec

if TYPE_CHECKING:
    import onnx

Outputs = dict[str, str | int | None]


class Format(Protocol):
    """What attaching around a tail needs of a format."""

    def ports(self, model: Any) -> tuple[list[PortInfo], list[PortInfo]]:
        """Return the outputs and the inputs of a model."""

    def put(self, model: Any, plan: Plan) -> LayerRecord:
        """Append a layer."""

    def put_own(self, model: Any, spec: TailSpec, outputs: Outputs) -> LayerRecord:
        """Append a class of one's own, exported."""

    def take(self, model: Any, layer: Where, *, where: str) -> LayerRecord | None:
        """Remove a layer."""

    def decided(self, model: Any, options: TailOptions) -> PortInfo | None:
        """Return what `pred_label` compares."""

    def attach(self, model: Any, stats: CalibrationStats, options: TailOptions, outputs: Outputs) -> Attached:
        """Append the tail."""

    def detach(self, model: Any, *, where: str) -> Detached:
        """Remove the tail."""


class OnnxFormat:
    """ONNX models, or their skeletons."""

    def ports(self, model: "onnx.ModelProto") -> tuple[list[PortInfo], list[PortInfo]]:
        """Return the outputs and the inputs of a model."""
        from postproc_export.rewrite.onnx_ports import input_ports, output_ports

        return output_ports(model), input_ports(model)

    def put(self, model: "onnx.ModelProto", plan: Plan) -> LayerRecord:
        """Append a layer."""
        from postproc_export.transforms.onnx_layer import put_layer

        return put_layer(model, plan)

    def put_own(self, model: "onnx.ModelProto", spec: TailSpec, outputs: Outputs) -> LayerRecord:
        """Append a class of one's own, exported at the model's opset."""
        from postproc_export.transforms.own_onnx import put_own

        return put_own(model, spec, outputs)

    def take(self, model: "onnx.ModelProto", layer: Where, *, where: str) -> LayerRecord | None:
        """Remove a layer."""
        from postproc_export.transforms.onnx_layer import take_layer

        return take_layer(model, layer, where=where)

    def decided(self, model: "onnx.ModelProto", options: TailOptions) -> PortInfo | None:
        """Return what `pred_label` compares."""
        from graph_patterns.onnx.view import OnnxView

        value = decided_values(OnnxView(model), options)
        return None if value is None else PortInfo(str(value), "float32", None)

    def attach(
        self, model: "onnx.ModelProto", stats: CalibrationStats, options: TailOptions, outputs: Outputs
    ) -> Attached:
        """Append the tail."""
        from postproc_export.rewrite.onnx_attach import attach_to_onnx_model

        return attach_to_onnx_model(model, stats, options, **outputs)

    def detach(self, model: "onnx.ModelProto", *, where: str) -> Detached:
        """Remove the tail."""
        from postproc_export.rewrite.onnx_detach import detach_from_onnx_model

        return detach_from_onnx_model(model, where=where)


class OpenVinoFormat:
    """OpenVINO models."""

    def ports(self, model: Any) -> tuple[list[PortInfo], list[PortInfo]]:
        """Return the outputs and the inputs of a model."""
        from postproc_export.runtimes.openvino import port_info

        outputs = [port_info(port, f"output_{index}") for index, port in enumerate(model.outputs)]
        return outputs, [port_info(port, f"input_{index}") for index, port in enumerate(model.inputs)]

    def put(self, model: Any, plan: Plan) -> LayerRecord:
        """Append a layer."""
        from postproc_export.transforms.openvino_layer import put_layer

        return put_layer(model, plan)

    def put_own(self, model: Any, spec: TailSpec, outputs: Outputs) -> LayerRecord:
        """Append a class of one's own, exported and read by OpenVINO."""
        from postproc_export.transforms.own_openvino import put_own

        return put_own(model, spec, outputs)

    def take(self, model: Any, layer: Where, *, where: str) -> LayerRecord | None:
        """Remove a layer."""
        from postproc_export.transforms.openvino_layer import take_layer

        return take_layer(model, layer, where=where)

    def decided(self, model: Any, options: TailOptions) -> PortInfo | None:
        """Return what `pred_label` compares."""
        from graph_patterns.openvino.view import OpenVinoView
        from postproc_export.transforms.openvino_layer import value_name

        value = decided_values(OpenVinoView(model), options)
        return None if value is None else PortInfo(value_name(value), "float32", None)

    def attach(self, model: Any, stats: CalibrationStats, options: TailOptions, outputs: Outputs) -> Attached:
        """Append the tail."""
        from postproc_export.rewrite.openvino_attach import attach_to_openvino_model

        return attach_to_openvino_model(model, stats, options, **outputs)

    def detach(self, model: Any, *, where: str) -> Detached:
        """Remove the tail."""
        from postproc_export.rewrite.openvino_detach import detach_from_openvino_model

        return detach_from_openvino_model(model, where=where)


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
        outputs = put_before(form, model, before, stats=stats, outputs=outputs)
    else:
        refuse_other_tails(stats, ())
    attached = form.attach(model, stats, options, outputs)
    if behind:
        plan = plan_decisions(behind, attached.tail, values=form.decided(model, options))
        form.put(model, plan)
    return attached


def put_before(
    form: Format,
    model: Any,
    before: Sequence[TailSpec],
    *,
    outputs: Outputs,
    stats: CalibrationStats | None = None,
) -> Outputs:
    """Put tails before the threshold, and return which outputs are the raw ones now.

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
    """
    ports, images = form.ports(model)
    if not before[0].is_shipped:
        if stats is not None:
            refuse_other_tails(stats, tuple(before))
        selection = select_raw(ports, (), **outputs)
        record = form.put_own(model, before[0], outputs)
    else:
        transforms = resolve_all(before)
        plan = plan_transform(transforms, ports, images, **outputs)
        if stats is not None:
            refuse_other_tails(stats, plan.tails)
        selection = select_raw(ports, transforms, **outputs)
        record = form.put(model, plan)
    return {
        f"{level}_output": _now(port, given, "pred_score" if level == "image" else "anomaly_map", record)
        for level, port, given in (
            ("image", selection.image, outputs["image_output"]),
            ("pixel", selection.pixel, outputs["pixel_output"]),
        )
    }


def refuse_other_tails(stats: CalibrationStats, tails: tuple[TailSpec, ...]) -> None:
    """Refuse statistics that were calibrated behind other tails than those that stand before the threshold.

    Raises
    ------
    UsageError
        If they were.
    """
    calibrated = recorded_tails(stats)
    if calibrated == tails:
        return
    flags = " ".join(f"--tail {spec.text}" for spec in tails)
    wanted = " ".join(f"--tail {spec.text}" for spec in calibrated)
    raise UsageError(
        "the statistics are not those behind this tail: a transform changes the range",
        found=f"calibrated {f'behind {wanted}' if wanted else 'on the raw outputs themselves'}",
        needed=f"statistics calibrated {f'behind {flags}' if flags else 'on the raw outputs themselves'}",
        fix=f"postproc-export calibrate {flags} ..." if flags else f"attach with {wanted}, or calibrate without it",
    )


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


def _now(port: PortInfo | None, given: str | int | None, name: str, record: LayerRecord) -> str | int | None:
    """Return the output that a level reads now: the layer's where it gives one, else the one that was selected."""
    if port is not None:
        return port.name
    return name if name in record.made and given != LEAVE_OUT else LEAVE_OUT
