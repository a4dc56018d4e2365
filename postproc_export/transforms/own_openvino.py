"""Put an exported class of one's own before the tail of an OpenVINO model."""

from collections.abc import Mapping
from typing import Any, Final

from postproc_export.graphs.openvino.names import models_of
from postproc_export.outputs import OutputChoice
from postproc_export.runtimes.openvino import OpenVinoRunner, openvino_core, port_info
from postproc_export.runtimes.protocol import Runner
from postproc_export.transforms.openvino_layer import put_layer
from postproc_export.transforms.own import PURPOSE, eager_own
from postproc_export.transforms.own_export import export_own
from postproc_export.transforms.own_form import exported_names, own_form
from postproc_export.transforms.plan import Plan, select_raw
from postproc_export.transforms.record import LayerRecord
from postproc_export.transforms.spec import TailSpec

OPSET: Final = 18  # an IR has no ONNX opset: the one that torch's exporter has operators of its own for


def put_own(model: Any, spec: TailSpec, outputs: Mapping[str, OutputChoice]) -> LayerRecord:
    """Export a class of one's own, read it with OpenVINO and append it behind the raw outputs.

    Parameters
    ----------
    model
        The `openvino.Model`, changed in place.
    spec
        ``package.module:Class``.
    outputs
        ``image_output`` and ``pixel_output``: which outputs are the raw ones; see `select_outputs`.

    Raises
    ------
    UsageError, UnsupportedModelError
        If the class cannot be built, does not fit the model, or cannot be exported.
    MissingDependencyError
        If torch or its exporter is not installed.
    """
    ports = [port_info(port, f"output_{index}") for index, port in enumerate(model.outputs)]
    form = own_form(eager_own(spec), select_raw(ports, (), **outputs), outputs)
    exported = None
    if form.made:
        whose = "from which OpenVINO reads it"
        exported = export_own(form, opset=OPSET, open_runner=_open, whose=whose).SerializeToString()
    names, plan = form.output_names(), form.plan()

    def make(read: Mapping[str, Any]) -> Mapping[str, Any]:
        if exported is None:
            return {}
        made = _spliced(exported, read)
        return _anchored({names[name]: made[name] for name in exported_names(form.made)}, plan, read)

    record = put_layer(model, plan, make=make)
    model.validate_nodes_and_infer_types()  # what was spliced still has the shapes that it was read with
    return record


def _open(model: bytes) -> Runner:
    return OpenVinoRunner.load(model, precision="float32", threads=None)


def _spliced(exported: bytes, read: Mapping[str, Any]) -> dict[str, Any]:
    """Read the export, let its inputs be values of the host, and return its outputs by name."""
    fragment = openvino_core(purpose=PURPOSE).read_model(exported)
    outputs = {port_info(port, "").name: port.get_node().input_value(0) for port in fragment.outputs}
    parameters = {port_info(port, "").name: port.get_node().output(0) for port in fragment.inputs}
    for scope in models_of(fragment):
        for node in scope.get_ops():
            for output in node.outputs():
                output.set_names(set())  # names of the export mean nothing in the host, and might be taken there
    for name, parameter in parameters.items():
        parameter.replace(read[name])
    return outputs


def _anchored(outputs: Mapping[str, Any], plan: Plan, read: Mapping[str, Any]) -> dict[str, Any]:
    """Let every output reach the raw one that it replaces: an operator that no result reaches is gone from an IR."""
    reached = _nodes_above(outputs.values())
    sources = {port.name: read[name] for name, port in plan.inputs.items()}
    return {
        name: output if name not in sources or _key(sources[name]) in reached else _beside(output, sources[name])
        for name, output in outputs.items()
    }


def _beside(output: Any, source: Any) -> Any:
    """Reshape a value to its own shape, with that of another of the same rank times zero added."""
    import numpy as np
    import openvino.opset13 as opset

    nothing = opset.multiply(opset.shape_of(source), np.int64(0))
    return opset.reshape(output, opset.add(opset.shape_of(output), nothing), special_zero=False).output(0)


def _nodes_above(outputs: Any) -> set[str]:
    pending, seen = [output.get_node() for output in outputs], set[str]()
    while pending:
        node = pending.pop()
        key = str(node.get_name())
        if key not in seen:
            seen.add(key)
            pending += [node.input_value(index).get_node() for index in range(node.get_input_size())]
    return seen


def _key(output: Any) -> str:
    return str(output.get_node().get_name())
