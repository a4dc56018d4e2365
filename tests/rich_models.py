"""An ONNX model with one of everything that a file may hold, to see that attaching keeps it."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LARGE = 4000  # float32 values; a payload of this size is not in a skeleton


def rich_model() -> onnx.ModelProto:
    """Return a detector whose outputs bear the tail's names, so that attaching has to rename, inside a branch too."""
    nodes = [
        helper.make_node("Scale", ["input"], ["scaled"], name="scale", domain="own"),
        helper.make_node("Mul", ["scaled", "large"], ["weighted"], name="weigh"),
        helper.make_node("Constant", [], ["zero"], name="zero", value=_tensor("", [0.0])),
        helper.make_node("Add", ["weighted", "zero"], ["anomaly_map"], name="add", doc_string="adds nothing"),
        helper.make_node("ReduceMax", ["anomaly_map"], ["pooled"], name="pool", axes=[2, 3], keepdims=0),
        helper.make_node("Add", ["pooled", "sparse"], ["shifted"], name="shift"),
        helper.make_node("If", ["condition"], ["chosen"], name="choose", then_branch=_branch(), else_branch=_branch()),
        helper.make_node("Identity", ["shifted"], ["pred_score"], name="score"),
    ]
    nodes[3].metadata_props.add(key="namespace", value="head")
    graph = helper.make_graph(
        nodes,
        "rich",
        [_info("input", ["N", 1, 8, LARGE // 8])],
        [_info("anomaly_map", ["N", 1, 8, LARGE // 8]), _info("chosen", None), _info("pred_score", ["N", 1])],
        doc_string="a graph",
        initializer=[
            numpy_helper.from_array(np.linspace(0, 1, LARGE, dtype=np.float32).reshape(1, 1, 8, -1), "large"),
            helper.make_tensor("condition", TensorProto.BOOL, [], [True]),
        ],
        value_info=[_info("weighted", ["N", 1, 8, LARGE // 8]), _info("anomaly_map", None)],
        sparse_initializer=[
            helper.make_sparse_tensor(_tensor("sparse", [0.25]), numpy_helper.from_array(np.array([0]), "at"), [1])
        ],
    )
    annotation = graph.quantization_annotation.add(tensor_name="anomaly_map")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="pred_score")
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=imports, functions=[_scale()], ir_version=10)
    model.producer_name, model.model_version, model.doc_string = "somebody", 7, "a model"
    model.metadata_props.add(key="vendor", value="pred_score")
    training = model.training_info.add()
    training.algorithm.CopyFrom(
        helper.make_graph([helper.make_node("Neg", ["pred_score"], ["loss"])], "step", [], [_info("loss", None)])
    )
    training.update_binding.add(key="anomaly_map", value="loss")
    return model


def _scale() -> onnx.FunctionProto:
    body = helper.make_node("Mul", ["pred_score", "pred_score"], ["y"])
    return helper.make_function("own", "Scale", ["pred_score"], ["y"], [body], [helper.make_opsetid("", 17)])


def _branch() -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Neg", ["anomaly_map"], ["inside"])], "b", [], [_info("inside", None)])


def _tensor(name: str, values: list[float]) -> onnx.TensorProto:
    tensor: onnx.TensorProto = numpy_helper.from_array(np.array(values, np.float32), name)
    return tensor


def _info(name: str, shape: list[int | str] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
