"""What attaching around a tail needs of a format, and both formats."""

from typing import TYPE_CHECKING, Any, Protocol

from postproc_export.graphs.attached import Attached
from postproc_export.graphs.detached import Detached, Found
from postproc_export.graphs.state import Changes
from postproc_export.graphs.updated import Updated
from postproc_export.outputs import OutputChoice
from postproc_export.runtimes.protocol import PortInfo
from postproc_export.stats import CalibrationStats
from postproc_export.tail_options import TailOptions
from postproc_export.transforms.decisions import decided_values
from postproc_export.transforms.plan import Plan
from postproc_export.transforms.record import LayerRecord, Where
from postproc_export.transforms.spec import TailSpec

if TYPE_CHECKING:
    import onnx

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

    def find(self, model: Any, *, where: str) -> Found:
        """Find the tail."""

    def detach(self, model: Any, *, where: str) -> Detached:
        """Remove the tail."""

    def update(self, model: Any, changes: Changes, *, keep_dialect: bool, where: str) -> Updated:
        """Change what the tail decides."""


class OnnxFormat:
    """ONNX models, or their skeletons."""

    def ports(self, model: "onnx.ModelProto") -> tuple[list[PortInfo], list[PortInfo]]:
        """Return the outputs and the inputs of a model."""
        from postproc_export.graphs.onnx.ports import input_ports, output_ports

        return output_ports(model), input_ports(model)

    def put(self, model: "onnx.ModelProto", plan: Plan) -> LayerRecord:
        """Append a layer."""
        from postproc_export.transforms.onnx_layer import put_layer

        return put_layer(model, plan)

    def put_own(self, model: "onnx.ModelProto", spec: TailSpec, outputs: Outputs) -> LayerRecord:
        """Append a class of one's own, exported at the model's opset."""
        from postproc_export.transforms.own_onnx import put_own

        return put_own(model, spec, outputs)

    def read(self, model: "onnx.ModelProto", layer: Where, *, where: str) -> LayerRecord | None:
        """Return the record of a layer; None where there is none."""
        from postproc_export.transforms.onnx_layer import read_layer

        return read_layer(model, layer, where=where)

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
        from postproc_export.graphs.onnx.attach import attach_to_onnx_model

        return attach_to_onnx_model(model, stats, options, **outputs)

    def find(self, model: "onnx.ModelProto", *, where: str) -> Found:
        """Find the tail."""
        from postproc_export.graphs.onnx.find import find_in_onnx_model

        return find_in_onnx_model(model, where=where)

    def detach(self, model: "onnx.ModelProto", *, where: str) -> Detached:
        """Remove the tail."""
        from postproc_export.graphs.onnx.detach import detach_from_onnx_model

        return detach_from_onnx_model(model, where=where)

    def update(self, model: "onnx.ModelProto", changes: Changes, *, keep_dialect: bool, where: str) -> Updated:
        """Change what the tail decides."""
        from postproc_export.graphs.onnx.update import update_onnx_model

        return update_onnx_model(model, changes, keep_dialect=keep_dialect, where=where)


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

    def read(self, model: Any, layer: Where, *, where: str) -> LayerRecord | None:
        """Return the record of a layer; None where there is none."""
        from postproc_export.transforms.openvino_layer import read_layer

        return read_layer(model, layer, where=where)

    def take(self, model: Any, layer: Where, *, where: str) -> LayerRecord | None:
        """Remove a layer."""
        from postproc_export.transforms.openvino_layer import take_layer

        return take_layer(model, layer, where=where)

    def decided(self, model: Any, options: TailOptions) -> PortInfo | None:
        """Return what `pred_label` compares."""
        from graph_patterns.openvino.view import OpenVinoView
        from postproc_export.graphs.openvino.names import value_name

        value = decided_values(OpenVinoView(model), options)
        return None if value is None else PortInfo(value_name(value), "float32", None)

    def attach(self, model: Any, stats: CalibrationStats, options: TailOptions, outputs: Outputs) -> Attached:
        """Append the tail."""
        from postproc_export.graphs.openvino.attach import attach_to_openvino_model

        return attach_to_openvino_model(model, stats, options, **outputs)

    def find(self, model: Any, *, where: str) -> Found:
        """Find the tail."""
        from postproc_export.graphs.openvino.find import find_in_openvino_model

        return find_in_openvino_model(model, where=where)

    def detach(self, model: Any, *, where: str) -> Detached:
        """Remove the tail."""
        from postproc_export.graphs.openvino.detach import detach_from_openvino_model

        return detach_from_openvino_model(model, where=where)

    def update(self, model: Any, changes: Changes, *, keep_dialect: bool, where: str) -> Updated:
        """Change what the tail decides."""
        from postproc_export.graphs.openvino.update import update_openvino_model

        return update_openvino_model(model, changes, keep_dialect=keep_dialect, where=where)
