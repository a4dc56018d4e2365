"""Random hosts: everything that a graph may hold, under names that clash with those of a tail."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

NAMES = (
    "pred_score",
    "pred_label",
    "anomaly_map",
    "pred_mask",
    "pred_score_raw",
    "anomaly_map_raw_1",
    "postproc/pred_score/less",
    "postproc/pred_label/boundary",
    "features",
    "a",
    "b",
    "c",
    "output",
    "image_sensitivity",
)
NODE_NAMES = (
    *NAMES,
    "postproc/pred_score/result",
    "postproc/anomaly_map/result",
    "postproc/pred_mask/less",
    "postproc/image_sensitivity",
    "postproc/transform/conv",
    "",
)
LABELS = ("pred_label", "pred_mask")
OURS = (*LABELS, "pred_score", "anomaly_map", "output", "image_sensitivity")
OPSETS = ((7, 3), (8, 3), (9, 4), (11, 6), (13, 7), (17, 8), (18, 8), (21, 10))
MAP = ["N", 1, "H", "W"]


@dataclass
class RandomHost:
    """A random model with the outputs that are its raw ones.

    Parameters
    ----------
    model
        The model.
    outputs
        The options that choose its raw outputs.
    """

    model: onnx.ModelProto
    outputs: dict[str, str]


@dataclass
class _Host:
    """A model in the making."""

    draw: st.DrawFn
    opset: int
    ir_version: int
    values: list[str]
    rest: list[str]
    graph: onnx.GraphProto = field(default_factory=onnx.GraphProto)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    domains: set[str] = field(default_factory=set)

    def add(self, op: str, inputs: list[str], output: str, **settings: Any) -> None:
        """Append a node; its name may be that of a value, of a tail's node, or missing."""
        name = self.draw(st.sampled_from([output, f"{op}_of_{output}", *NODE_NAMES]))
        self.graph.node.append(helper.make_node(op, inputs, [output], name=name, **settings))

    def flip(self) -> bool:
        """Draw whether to do something."""
        return self.draw(st.booleans())

    def one_of(self, items: Any) -> Any:
        """Draw one of some things."""
        return self.draw(st.sampled_from(sorted(items)))


@st.composite
def random_hosts(draw: st.DrawFn, *, is_for_openvino: bool = False) -> RandomHost:
    """Draw a chain of operators on a map under clashing names, and with it what else a model may hold."""
    opset, ir_version = draw(st.sampled_from(OPSETS))
    names = draw(st.permutations(NAMES))
    count = draw(st.integers(1, 5))
    host = _Host(draw, opset, ir_version, ["x"], list(names[count:]))
    for name in names[:count]:
        host.add(draw(st.sampled_from(["Relu", "Neg", "Identity", "Abs"])), [host.one_of(host.values)], name)
        host.values.append(name)
    if host.values[-1] in LABELS:  # an output of that name counts as post-processing
        host.add("Relu", [host.values[-1]], "d")
        host.values.append("d")
    anomaly_map = host.values[-1]
    score = next(name for name in host.rest if name not in LABELS)
    host.rest.remove(score)
    flat = host.rest.pop()
    host.add("GlobalMaxPool", [host.one_of(host.values)], flat)
    host.add("Flatten", [flat], score, axis=1)
    outputs = [_info(score, ["N", 1]), _info(anomaly_map, MAP)]
    free = [name for name in host.values[1:-1] if name not in OURS]
    if free and host.flip():
        outputs.insert(draw(st.integers(0, 2)), _info(free[0], MAP))
    if host.flip():
        _branch(host, outputs)
    _constants(host, outputs, is_for_openvino=is_for_openvino)
    if not is_for_openvino:
        _function(host)
        _annotations(host)
    model = _model(host, outputs)
    if not is_for_openvino:
        _training(host, model)
        _imports(host, model)
    return RandomHost(model, {"image_output": score, "pixel_output": anomaly_map})


def _model(host: _Host, outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
    host.graph.name, host.graph.doc_string = "random", "a graph"
    host.graph.input.insert(0, _info("x", MAP))
    host.graph.output.extend(outputs)
    imports = [helper.make_opsetid("", host.opset), *(helper.make_opsetid(name, 1) for name in sorted(host.domains))]
    model = helper.make_model(host.graph, opset_imports=imports, ir_version=host.ir_version, functions=host.functions)
    model.metadata_props.add(key="vendor", value="pred_score")
    onnx.checker.check_model(model)
    return model


def _info(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _branch(host: _Host, outputs: list[onnx.ValueInfoProto]) -> None:
    """Add an If whose branches capture a value, define one under a clashing name, and may nest another If."""
    inner = host.rest.pop()
    body = _body(host.one_of(host.values), inner)
    if host.flip():
        deeper = helper.make_node("If", ["condition"], ["deep"], then_branch=body, else_branch=body)
        body = helper.make_graph([deeper], "outer", [], [_info("deep", MAP)])
    if host.flip():
        body.value_info.append(_info(inner, MAP))
    condition = helper.make_tensor("", TensorProto.BOOL, [], [True])
    host.graph.node.append(helper.make_node("Constant", [], ["condition"], value=condition))
    host.add("If", ["condition"], "chosen", then_branch=body, else_branch=body)
    outputs.append(_info("chosen", MAP))


def _body(captured: str, inner: str) -> onnx.GraphProto:
    return helper.make_graph(
        [helper.make_node("Neg", [captured], [inner], name=captured)], "b", [], [_info(inner, MAP)]
    )


def _constants(host: _Host, outputs: list[onnx.ValueInfoProto], *, is_for_openvino: bool) -> None:
    """Add weights under clashing names: initializers, ones that are inputs too, sparse ones."""
    if host.ir_version < 4:
        return
    if host.flip():
        weight = host.rest.pop()
        host.graph.initializer.append(numpy_helper.from_array(np.float32([0.5]), weight))
        host.add("Add", [host.values[-1], weight], "weighted")
        outputs.append(_info("weighted", MAP))
        if host.flip():
            host.graph.input.append(_info(weight, [1]))
    if host.flip() and host.opset >= 11 and not is_for_openvino:
        name = host.rest.pop()
        values, at = numpy_helper.from_array(np.float32([2.0]), name), numpy_helper.from_array(np.array([0]), "at")
        host.graph.sparse_initializer.append(helper.make_sparse_tensor(values, at, [1]))
        host.add("Mul", [host.values[-1], name], "scaled")
        outputs.append(_info("scaled", MAP))


def _function(host: _Host) -> None:
    """Call a function that uses clashing names inside, or an operator of a domain that nobody knows."""
    if host.ir_version >= 8 and host.flip():
        host.domains.add("own")
        body = [helper.make_node("Neg", ["pred_score"], ["pred_mask"]), helper.make_node("Abs", ["pred_mask"], ["y"])]
        imports = [helper.make_opsetid("", host.opset)]
        host.functions.append(helper.make_function("own", "Call", ["pred_score"], ["y"], body, imports))
        host.add("Call", [host.one_of(host.values)], "called", domain="own")
    if host.flip():
        host.domains.add("foreign")
        host.add("Unheard", [host.one_of(host.values)], "unheard", domain="foreign")


def _annotations(host: _Host) -> None:
    """Declare and annotate values, also some that the graph does not have."""
    defined = {name for node in host.graph.node for name in node.output} | {
        item.name for item in host.graph.initializer
    }
    maps = [name for name in NAMES if name in host.values or name not in defined]
    for name in host.draw(st.lists(st.sampled_from(maps), max_size=3, unique=True)):
        host.graph.value_info.append(_info(name, MAP))
    for name in host.draw(st.lists(st.sampled_from(NAMES), max_size=3, unique=True)):
        annotation = host.graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=host.one_of(NAMES))


def _training(host: _Host, model: onnx.ModelProto) -> None:
    """Add a step of training that reads values of the model, and has its own under clashing names."""
    if not host.flip():
        return
    own = host.one_of(NAMES)
    step = helper.make_node("Neg", [host.one_of(host.values)], [own], name=host.one_of(NODE_NAMES))
    after = helper.make_node("Abs", [own], ["updated"])
    info = model.training_info.add()
    info.algorithm.CopyFrom(helper.make_graph([step, after], "step", [], [_info("updated", MAP)]))
    info.update_binding.add(key=host.one_of(host.values), value="updated")
    if host.flip():
        first = helper.make_node("Neg", [host.one_of(host.values)], [host.one_of(NAMES)])
        info.initialization.CopyFrom(helper.make_graph([first], "first", [], [_info(first.output[0], MAP)]))
        info.initialization_binding.add(key=host.one_of(NAMES), value=first.output[0])


def _imports(host: _Host, model: onnx.ModelProto) -> None:
    """Take imports away: of every domain but the default one, or the default one; then onnx.checker complains."""
    kind = host.draw(st.sampled_from(["all", "all", "no_default", "only_default"]))
    if kind == "all":
        return
    kept = [(item.domain, item.version) for item in model.opset_import if (item.domain == "") == (kind != "no_default")]
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*item) for item in kept or [("other", 1)])
