"""Every step of the catalogue: emitted, valid, found again, in both formats."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from graph_patterns import Expr, Input, Match, UnsupportedOpsetError, bind, find
from graph_patterns.catalog import (
    ADJUSTED_AT_LEAST,
    AT_LEAST,
    MAP_MAX,
    NAN_GUARD,
    PACKED,
    UNIT_SCORE,
    adjusted_boundary,
    at_least,
    centred_unit_score,
    fused_unit_score,
    map_max,
    nan_by_l1,
    nan_by_sum,
    nan_guard,
    nan_guard_arithmetic,
    packed,
)
from graph_patterns.expr import cast
from graph_patterns.onnx.graph import OnnxTarget, OnnxView, emit
from graph_patterns.openvino import OpenVinoView
from graph_patterns.openvino import emit as emit_openvino

TARGETS = [(7, 3), (8, 3), (9, 4), (10, 5), (11, 6), (12, 7), (13, 7), (14, 7), (17, 8), (18, 8), (19, 9), (21, 10)]
NAN_GUARDS = ("sum", "l1", "arithmetic")
MAPS = np.array([[[[1.0, 2.0], [3.0, np.nan]]], [[[1.0, 2.0], [3.0, 2.5]]]], dtype=np.float32)


def tail(rank: int, guard: str, *, dtype: str = "float32", centred: bool = False) -> dict[str, Expr]:
    """Return a whole tail over one map: its maximum, guarded, normalised and decided; the map likewise."""
    maps: Expr = Input("maps") if dtype == "float32" else cast(Input("maps"), dtype="float32")
    score: Expr = map_max(maps, rank=rank)
    if guard == "arithmetic":
        score = nan_guard_arithmetic(score, maps, rank=rank)
    elif guard:
        score = nan_guard(score, (nan_by_sum if guard == "sum" else nan_by_l1)(maps, rank=rank))
    unit = centred_unit_score if centred else fused_unit_score
    numbers = {"alpha": 0.25, "beta": 0.125, "offset": 1.5}
    return {
        "pred_score": bind(unit(score), numbers),
        "pred_label": bind(at_least(score), {"boundary": 3.0}),
        "anomaly_map": bind(unit(maps), numbers),
        "pred_mask": cast(bind(at_least(maps), {"boundary": 2.5}), dtype="uint8"),
    }


def onnx_model(outputs: Mapping[str, Expr], target: OnnxTarget, *, dtype: str = "float32", rank: int = 4) -> Any:
    """Return a model that is nothing but the emitted fragment."""
    fragment = emit(outputs, inputs={"maps": "raw"}, target=target, prefix="tail/")
    element_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    axes = ["N", 1, "H", "W"] if rank == 4 else ["N", "H", "W"]
    types = {
        "pred_score": (1, axes[:-2]),
        "pred_label": (9, axes[:-2]),
        "anomaly_map": (1, axes),
        "pred_mask": (2, axes),
    }
    graph = onnx.helper.make_graph(
        fragment.node,
        "g",
        [onnx.helper.make_tensor_value_info("raw", element_type, axes)],
        [onnx.helper.make_tensor_value_info(name, *types[name]) for name in outputs],
        fragment.initializer,
    )
    opsets = [onnx.helper.make_opsetid("", target.opset)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=target.ir_version)
    onnx.checker.check_model(model, full_check=True)
    return model


def check_results(results: list[Any]) -> None:
    """The first map holds a NaN; the second is [[1, 2], [3, 2.5]]."""
    score, label, unit, mask = (np.asarray(item) for item in results)
    assert label.reshape(-1).tolist() == [True, True]
    assert score.reshape(-1)[1] == np.float32(0.875)
    assert not score.reshape(-1)[0] < 1.0
    assert mask.reshape(-1).tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert unit.reshape(-1)[:3].tolist() == [0.375, 0.625, 0.875]


@pytest.mark.parametrize(("opset", "ir_version"), TARGETS)
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_the_onnx_tail_is_valid_and_right_at_every_opset(opset: int, ir_version: int, rank: int, dtype: str) -> None:
    """From opset 7 and IR version 3 on, ONNX's checker accepts the tail and ONNX Runtime computes it."""
    target = OnnxTarget(opset, ir_version)
    guard = "sum" if target.supports("is_nan") else "arithmetic"
    model = onnx_model(tail(rank, guard, dtype=dtype), target, dtype=dtype, rank=rank)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    maps = (MAPS if rank == 4 else MAPS[:, 0]).astype(dtype)
    check_results(session.run(None, {"raw": maps}))
    assert [item.shape[0] for item in session.run(None, {"raw": maps[:0]})] == [0, 0, 0, 0]


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_the_openvino_tail_is_right(rank: int, dtype: str) -> None:
    """OpenVINO computes the same tail, for an empty batch too."""
    import openvino
    import openvino.opset13 as opset

    shape = [-1, 1, -1, -1] if rank == 4 else [-1, -1, -1]
    raw = opset.parameter(shape, np.dtype(dtype), name="raw")
    outputs = emit_openvino(tail(rank, "l1", dtype=dtype), inputs={"maps": raw.output(0)}, prefix="tail/")
    model = openvino.Model([opset.result(item) for item in outputs.values()], [raw], "m")
    from postproc_export.runtimes.openvino import openvino_core

    compiled = openvino_core(purpose="the tests").compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    maps = (MAPS if rank == 4 else MAPS[:, 0]).astype(dtype)
    results = compiled([maps])
    check_results([results[name] for name in outputs])
    assert compiled([maps[:0]])["pred_label"].shape[0] == 0


def packed_tail(rank: int) -> dict[str, Expr]:
    """Return the tail over one map, in one output."""
    exprs = tail(rank, "arithmetic")
    names = {"maps": "anomaly_map", "score": "pred_score", "label": "pred_label", "mask": "pred_mask"}
    parts = {piece: exprs[name] for piece, name in names.items()}
    parts |= {piece: cast(parts[piece], dtype="float32") for piece in ("label", "mask")}
    return {"output": packed(**parts, rank=rank)}


@pytest.mark.parametrize(("opset", "ir_version"), [(8, 4), *(target for target in TARGETS if target[0] >= 9)])
@pytest.mark.parametrize("rank", [3, 4])
def test_the_packed_onnx_tail_is_right_and_found_at_every_opset(opset: int, ir_version: int, rank: int) -> None:
    """From opset 8 on, ONNX's checker accepts it, ONNX Runtime computes it, and its parts are found again."""
    fragment = emit(packed_tail(rank), inputs={"maps": "raw"}, target=OnnxTarget(opset, ir_version), prefix="tail/")
    axes = ["N", 1, "H", "W"] if rank == 4 else ["N", "H", "W"]
    graph = onnx.helper.make_graph(
        fragment.node,
        "g",
        [onnx.helper.make_tensor_value_info("raw", 1, axes)],
        [onnx.helper.make_tensor_value_info("output", 1, ["N", "H", "W", 4])],
        fragment.initializer,
    )
    opsets = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    maps = MAPS if rank == 4 else MAPS[:, 0]
    (results,) = session.run(None, {"raw": maps})
    check_results([results[:, 0, 0, 1], results[:, 0, 0, 2], results[..., 0], results[..., 3]])
    assert session.run(None, {"raw": maps[:0]})[0].shape == (0, 2, 2, 4)
    assert_parts_are_found(OnnxView(model))


def test_packing_is_not_known_below_opset_8() -> None:
    """Expand does not exist there; at opset 8 a Constant node holds no shape, and IR version 3 has only those."""
    with pytest.raises(UnsupportedOpsetError, match="Expand cannot be expressed at opset 7"):
        emit(packed_tail(4), inputs={"maps": "raw"}, target=OnnxTarget(7, 4), prefix="tail/")
    with pytest.raises(UnsupportedOpsetError, match="a constant shape cannot be expressed at opset 8 and IR version 3"):
        emit(packed_tail(4), inputs={"maps": "raw"}, target=OnnxTarget(8, 3), prefix="tail/")


@pytest.mark.parametrize("rank", [3, 4])
def test_the_packed_openvino_tail_is_right_and_found(rank: int) -> None:
    """The same in OpenVINO."""
    import openvino
    import openvino.opset13 as opset

    from postproc_export.runtimes.openvino import openvino_core

    raw = opset.parameter([-1, 1, -1, -1] if rank == 4 else [-1, -1, -1], np.float32, name="raw")
    emitted = emit_openvino(packed_tail(rank), inputs={"maps": raw.output(0)}, prefix="tail/")
    model = openvino.Model([opset.result(emitted["output"])], [raw], "m")
    compiled = openvino_core(purpose="the tests").compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled([MAPS if rank == 4 else MAPS[:, 0]])["output"]
    check_results([results[:, 0, 0, 1], results[:, 0, 0, 2], results[..., 0], results[..., 3]])
    assert_parts_are_found(OpenVinoView(model))


def assert_parts_are_found(graph: Any) -> None:
    """The four parts are bound to their own values."""
    found = find(PACKED, graph, at=graph.output("output"))
    assert isinstance(found, Match)
    producers = {name: graph.producer(value).op for name, value in found.inputs.items()}
    assert producers == {"maps": "hard_sigmoid", "score": "hard_sigmoid", "label": "cast", "mask": "cast"}
    assert found.inputs["maps"] != found.inputs["score"]


ADJUSTING = {"threshold": 1.5, "span": 4.0, "attached": 0.5, "boundary": 1.5}


@pytest.mark.parametrize(("opset", "ir_version"), [target for target in TARGETS if target[0] >= 9])
def test_an_adjusted_decision_is_right_and_found_at_every_opset(opset: int, ir_version: int) -> None:
    """The boundary is computed from an input with a default, which is found with its number, and its constants too."""
    label = bind(at_least(Input("score"), adjusted_boundary(Input("adjusted"))), ADJUSTING)
    fragment = emit(
        {"label": label}, inputs={"score": "s", "adjusted": "a"}, target=OnnxTarget(opset, ir_version), prefix="tail/"
    )
    infos = [onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in (("s", ["N"]), ("a", []))]
    default = onnx.helper.make_tensor("a", 1, [], [0.5])
    graph = onnx.helper.make_graph(
        fragment.node,
        "g",
        infos,
        [onnx.helper.make_tensor_value_info("label", onnx.TensorProto.BOOL, ["N"])],
        [*fragment.initializer, default],
    )
    opsets = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    scores = np.array([-9.0, -0.5, 0.49, 0.5, 1.49, 1.5, 2.5, 3.5, np.nan], np.float32)
    expected = {None: 1.5, 0.5: 1.5, 0.75: 0.5, 0.25: 2.5, 0.0: 3.5, -2.0: 3.5, 1.0: -np.inf, 3.0: -np.inf}
    for given, boundary in {**expected, np.nan: -np.inf}.items():
        feeds = {"s": scores} if given is None else {"s": scores, "a": np.array(given, np.float32)}
        np.testing.assert_array_equal(session.run(None, feeds)[0], ~(scores < boundary))
    view = OnnxView(model)
    found = find(ADJUSTED_AT_LEAST, view, at="label")
    assert isinstance(found, Match)
    assert (found.inputs, found.scalars) == ({"values": "s", "adjusted": "a"}, ADJUSTING)
    assert (view.number("a"), view.default("a"), view.default("s")) == (None, 0.5, None)


def test_a_variable_of_openvino_has_a_default_and_is_no_number() -> None:
    """What can be set from outside is not read as a constant; what it begins with is."""
    import openvino.opset13 as opset

    state = opset.read_value(opset.constant(np.float32(0.25)), "a")
    below = opset.less(opset.parameter([-1], np.float32), state)
    view = OpenVinoView(None)
    found = find(at_least(Input("values"), Input("adjusted")), view, at=opset.logical_not(below).output(0))
    assert isinstance(found, Match)
    value = found.inputs["adjusted"]
    assert (view.number(value), view.default(value), view.default(found.inputs["values"])) == (None, 0.25, None)


def test_a_value_of_two_outputs_is_computed_once() -> None:
    """An expression inside one output that is another output bears that output's name; a second name is a copy."""
    inner = cast(Input("maps"), dtype="float32")
    outputs = {"score": bind(fused_unit_score(inner), {"alpha": 1.0, "beta": 0.5}), "raw": inner, "copy": inner}
    fragment = emit(outputs, inputs={"maps": "host"}, target=OnnxTarget(17, 8), prefix="tail/")
    assert [(node.op_type, list(node.input), list(node.output)) for node in fragment.node] == [
        ("Cast", ["host"], ["raw"]),
        ("HardSigmoid", ["raw"], ["score"]),
        ("Identity", ["raw"], ["copy"]),
    ]


@pytest.mark.parametrize("guard", NAN_GUARDS)
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("centred", [False, True], ids=["fused", "centred"])
@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_what_is_emitted_is_found(backend: str, guard: str, rank: int, centred: bool) -> None:
    """Each step of an emitted tail is recognised by its pattern, with the numbers that were put in."""
    outputs = tail(rank, guard, centred=centred)
    graph = view_of(backend, outputs, rank)
    unit, label = (
        find(UNIT_SCORE, graph, at=graph.output("pred_score")),
        find(AT_LEAST, graph, at=graph.output("pred_label")),
    )
    assert isinstance(unit, Match)
    assert isinstance(label, Match)
    assert unit.scalars == ({"alpha": 0.25, "offset": 1.5} if centred else {"alpha": 0.25, "beta": 0.125})
    assert label.scalars == {"boundary": 3.0}
    assert unit.inputs == label.inputs
    guarded = find(NAN_GUARD, graph, at=unit.inputs["values"])
    assert isinstance(guarded, Match)
    maximum = find(MAP_MAX, graph, at=guarded.inputs["values"])
    assert isinstance(maximum, Match)
    assert maximum.inputs["maps"] == guarded.inputs["maps"]
    assert graph.producer(maximum.inputs["maps"]) is None


def view_of(backend: str, outputs: Mapping[str, Expr], rank: int) -> Any:
    """Return the view of a model that is nothing but a tail."""
    if backend == "onnx":
        return OnnxView(onnx_model(outputs, OnnxTarget(18, 8), rank=rank))
    import openvino
    import openvino.opset13 as opset

    raw = opset.parameter([-1, 1, -1, -1] if rank == 4 else [-1, -1, -1], np.float32, name="raw")
    emitted = emit_openvino(outputs, inputs={"maps": raw.output(0)}, prefix="tail/")
    return OpenVinoView(openvino.Model([opset.result(item) for item in emitted.values()], [raw], "m"))


def test_a_shared_step_is_emitted_once() -> None:
    """The cast, the maximum and the guard serve the score and the label alike."""
    model = onnx_model(tail(4, "sum", dtype="float64"), OnnxTarget(17, 8), dtype="float64")
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("ReduceMax") == kinds.count("IsNaN") == kinds.count("Where") == 1
    assert kinds.count("Cast") == 2, "one to float32, one of the mask to uint8"


def test_names_carry_the_prefix_and_avoid_what_is_taken() -> None:
    """Nodes, inner values and constants begin with the prefix; a name that is in use gets a number."""
    outputs = {"pred_label": bind(at_least(Input("maps")), {"boundary": 3.0})}
    taken = ["tail/pred_label/less", "tail/pred_label/boundary"]
    fragment = emit(outputs, inputs={"maps": "raw"}, target=OnnxTarget(17, 8), prefix="tail/", taken=taken)
    assert [node.name for node in fragment.node] == ["tail/pred_label/less_1", "tail/pred_label/logical_not"]
    assert [tensor.name for tensor in fragment.initializer] == ["tail/pred_label/boundary_1"]
    assert [node.output[0] for node in fragment.node] == ["tail/pred_label/less_1", "pred_label"]


def test_below_ir_version_4_constants_are_nodes() -> None:
    """IR version 3 makes every initializer an input, so constants are Constant nodes there."""
    outputs = {"pred_label": bind(at_least(Input("maps")), {"boundary": 3.0})}
    fragment = emit(outputs, inputs={"maps": "raw"}, target=OnnxTarget(8, 3), prefix="tail/")
    assert not fragment.initializer
    assert [node.op_type for node in fragment.node] == ["Constant", "Less", "Not"]


@pytest.mark.parametrize(("opset", "ir_version"), [(6, 3), (7, 2)])
def test_an_older_model_is_refused(opset: int, ir_version: int) -> None:
    """Below opset 7 or IR version 3 the message says what was found and what is needed."""
    with pytest.raises(
        UnsupportedOpsetError, match=rf"found:   opset {opset}, IR version {ir_version}\n.*opset 7 and IR version 3"
    ):
        OnnxTarget(opset, ir_version)


def test_an_operator_that_the_opset_does_not_know_is_refused() -> None:
    """IsNaN does not exist below opset 9."""
    with pytest.raises(UnsupportedOpsetError, match="IsNaN cannot be expressed at opset 8"):
        OnnxTarget(8, 3).form("is_nan")


def test_a_scalar_that_was_not_bound_is_a_bug() -> None:
    """An expression with an open scalar is never emitted."""
    with pytest.raises(AssertionError, match="'boundary' was not bound"):
        emit({"y": at_least(Input("maps"))}, inputs={"maps": "raw"}, target=OnnxTarget(17, 8), prefix="tail/")
