"""Inputs for adjusting at run time in an OpenVINO model: state variables with a default, or parameters."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from graph_patterns.graph import Value
from postproc_export.adjusting import AdjustableInput
from postproc_export.graphs.attached import name_is_taken
from postproc_export.graphs.openvino.names import name_operator
from postproc_export.tail import PREFIX


def add_adjustable(
    model: Any, inputs: Iterable[AdjustableInput], *, as_parameters: bool, used: set[str]
) -> dict[str, Any]:
    """Add the inputs of a tail, last, and return the `openvino.Output` of each by name; `used` are friendly names.

    Raises
    ------
    UnsupportedModelError
        If the model has a variable of that name.
    """
    add = _add_parameter if as_parameters else _add_variable
    return {item.name: add(model, item, used) for item in inputs}


def _add_parameter(model: Any, item: AdjustableInput, used: set[str]) -> Any:
    import openvino.opset13 as opset

    parameter = opset.parameter([], np.float32)
    name_operator(parameter, f"{PREFIX}{item.name}", used)
    parameter.output(0).set_names({item.name})
    model.add_parameters([parameter])
    return parameter.output(0)


def _add_variable(model: Any, item: AdjustableInput, used: set[str]) -> Any:
    import openvino
    import openvino.opset13 as opset
    from openvino.op import assign, read_value
    from openvino.op.util import Variable, VariableInfo

    if any(variable.info.variable_id == item.name for variable in model.get_variables()):
        raise name_is_taken(item.name, by="a variable")
    default = opset.constant(np.float32(item.default))
    name_operator(default, f"{PREFIX}{item.name}/default", used)
    info = VariableInfo()
    info.variable_id, info.data_type, info.data_shape = item.name, openvino.Type.f32, openvino.PartialShape([])
    variable = Variable(info)  # one for both: an opset's own functions make two, and the model is not valid then
    read = read_value(default, variable)
    name_operator(read, f"{PREFIX}{item.name}", used)
    written = assign(read, variable)
    name_operator(written, f"{PREFIX}{item.name}/assign", used)
    model.add_sinks([written])
    return read.output(0)


def remove_adjustable(model: Any, values: Iterable[Value]) -> None:
    """Remove the variables and parameters that give values, unless something that is left in the model reads them."""
    for value in values:
        node: Any = value.get_node()  # type: ignore[attr-defined]  # openvino ships no types for Output
        if _is_read(model, node):
            continue
        match node.get_type_name():
            case "ReadValue":
                _remove_variable(model, node.get_attributes()["variable_id"])
            case "Parameter":
                model.remove_parameter(node)


def _is_read(model: Any, node: Any) -> bool:
    left = {other.get_name() for other in model.get_ops() if other.get_type_name() != "Assign"}
    readers = (reader.get_node().get_name() for reader in node.output(0).get_target_inputs())
    return any(reader in left for reader in readers)


def _remove_variable(model: Any, name: str) -> None:
    for sink in [sink for sink in model.get_sinks() if sink.get_attributes().get("variable_id") == name]:
        model.remove_sink(sink)
    for variable in [variable for variable in model.get_variables() if variable.info.variable_id == name]:
        model.remove_variable(variable)
