"""Every canonical operator by itself: emitted, computed by the runtimes, and read back as what it was."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from graph_patterns import Expr, Input, UnsupportedOpsetError
from graph_patterns import expr as build
from graph_patterns.expr import Call, Const, Ints, Scalar
from graph_patterns.onnx.graph import LOWERINGS, OnnxForm, OnnxTarget, OnnxView, emit
from graph_patterns.openvino import LOWERINGS as OPENVINO_LOWERINGS
from graph_patterns.openvino import OpenVinoForm, OpenVinoView
from graph_patterns.openvino import emit as emit_openvino
from postproc_export.runtimes.openvino import openvino_core

Array = npt.NDArray[Any]

X = Input("x")
VALUES = np.array([[[-2.0, -0.5, 0.0], [0.5, 1.0, 3.0]], [[2.0, -4.0, 0.25], [8.0, -1.0, np.nan]]], np.float32)
NUMBERS = np.nan_to_num(VALUES, nan=5.0)
TARGETS = [(7, 4), (8, 4), (9, 4), (11, 6), (12, 7), (13, 7), (17, 8), (18, 8), (21, 10)]
PREFIX = "added/"


def number(value: float) -> Const:
    """Return a constant."""
    return Const(value, "number")


CASES: dict[str, tuple[Call, Callable[[Array], Array]]] = {
    "add": (build.add(X, number(1.25)), lambda x: x + np.float32(1.25)),
    "sub": (build.sub(X, number(1.25)), lambda x: x - np.float32(1.25)),
    "mul": (build.mul(X, number(1.5)), lambda x: x * np.float32(1.5)),
    "div": (build.div(number(3.0), X), lambda x: np.float32(3.0) / x),
    "less": (build.less(X, number(0.5)), lambda x: x < 0.5),
    "greater": (build.greater(X, number(0.5)), lambda x: x > 0.5),
    "logical_not": (build.logical_not(build.less(X, number(0.5))), lambda x: ~(x < 0.5)),
    "logical_and": (
        build.logical_and(build.less(X, number(1.0)), build.greater(X, number(-1.0))),
        lambda x: (x < 1.0) & (x > -1.0),
    ),
    "logical_or": (
        build.logical_or(build.less(X, number(-1.0)), build.greater(X, number(1.0))),
        lambda x: (x < -1.0) | (x > 1.0),
    ),
    "hard_sigmoid": (
        build.hard_sigmoid(X, alpha=Const(0.25, "alpha"), beta=Const(0.375, "beta")),
        lambda x: np.clip(x * np.float32(0.25) + np.float32(0.375), 0, 1),
    ),
    "clip": (build.clip(X, Const(-1.0, "low"), Const(2.0, "high")), lambda x: np.clip(x, -1, 2)),
    "cast": (build.cast(build.less(X, number(0.5)), dtype="uint8"), lambda x: (x < 0.5).astype(np.uint8)),
    "reduce_max": (build.reduce_max(X, axes=(1, 2)), lambda x: x.max(axis=(1, 2))),
    "reduce_sum": (build.reduce_sum(X, axes=(2,), keepdims=True), lambda x: x.sum(axis=2, keepdims=True)),
    "reduce_l1": (build.reduce_l1(X, axes=(0, 2)), lambda x: np.abs(x).sum(axis=(0, 2))),
    "is_nan": (build.is_nan(X), np.isnan),
    "select": (build.select(build.less(X, number(0.0)), X, number(7.0)), lambda x: np.where(x < 0, x, np.float32(7.0))),
    "shape_of": (build.shape_of(X), lambda x: np.array(x.shape)),
    "reshape": (build.reshape(X, Ints((2, 1, -1))), lambda x: x.reshape(2, 1, -1)),
    "concat": (build.concat(X, X, axis=1), lambda x: np.concatenate([x, x], axis=1)),
    "transpose": (build.transpose(X, perm=(1, 2, 0)), lambda x: x.transpose(1, 2, 0)),
    "unsqueeze": (build.unsqueeze(X, axes=(0, 3)), lambda x: x[None, :, :, None]),
    "squeeze": (build.squeeze(build.unsqueeze(X, axes=(0,)), axes=(0,)), lambda x: x),
    "expand": (build.expand(X, Ints((5, 1, 2, 1))), lambda x: np.broadcast_to(x, (5, 2, 2, 3))),
    "identity": (build.identity(X), lambda x: x),
}
LATER = {"is_nan": 9, "select": 9, "expand": 8}
"""First opsets of the operators that opset 7 does not have."""
WITH_NAN = frozenset({"is_nan", "less", "greater", "logical_not", "add", "select", "identity"})
WITH_NAN_IN_OPENVINO = WITH_NAN - {"greater"}
"""OpenVINO's Greater is false for NaN with AVX2 and true with AVX-512; Less is false with both."""


def fed(op: str, *, with_nan: frozenset[str] = WITH_NAN) -> Array:
    """Return what an operator is fed: a NaN only where the runtime has to keep it."""
    return VALUES if op in with_nan else NUMBERS


def onnx_model(fragment: onnx.GraphProto, target: OnnxTarget, result: Array) -> onnx.ModelProto:
    """Return a checked model that is nothing but a fragment."""
    info, code = onnx.helper.make_tensor_value_info, onnx.helper.np_dtype_to_tensor_dtype(result.dtype)
    outputs = [info("y", code, [f"Y{axis}" for axis in range(result.ndim)])]
    graph = onnx.helper.make_graph(fragment.node, "g", [info("x", 1, ["A", "B", "C"])], outputs, fragment.initializer)
    opsets = [onnx.helper.make_opsetid("", target.opset)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=target.ir_version)
    onnx.checker.check_model(model)
    return model


def test_every_operator_has_its_case() -> None:
    """No operator of either table is left out here."""
    assert set(CASES) == set(LOWERINGS) == set(OPENVINO_LOWERINGS)


@pytest.mark.parametrize("op", CASES)
def test_forms_of_onnx_begin_where_onnx_says(op: str) -> None:
    """A form begins with a version of the operator, and only what opset 7 lacks is not to be had there."""
    versions: dict[str, set[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if not schema.domain:
            versions.setdefault(schema.name, set()).add(schema.since_version)
    assert all(form.since in versions[form.op_type] for form in LOWERINGS[op])
    supported = [opset for opset in range(7, 25) if OnnxTarget(opset, 8).supports(op)]
    assert supported == list(range(LATER.get(op, 7), 25))


@pytest.mark.parametrize(("dtype", "expected"), [("bool", bool), ("uint8", np.uint8), ("float32", np.float32)])
def test_every_element_type_can_be_had(dtype: str, expected: type) -> None:
    """A cast gives each type that a label, mask or score may have, and is read back as that."""
    import openvino
    import openvino.opset13 as opset

    numbers = np.array([[[0.0, 1.0, 1.0]]], np.float32)
    expr = build.cast(X, dtype=dtype)
    target = OnnxTarget(17, 8)
    model = onnx_model(
        emit({"y": expr}, inputs={"x": "x"}, target=target, prefix=PREFIX), target, numbers.astype(expected)
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    raw = opset.parameter([-1, -1, -1], np.float32, name="x")
    result = emit_openvino({"y": expr}, inputs={"x": raw.output(0)}, prefix=PREFIX)["y"]
    ir = openvino.Model([opset.result(result)], [raw], "m")
    for found in (
        session.run(None, {"x": numbers})[0],
        openvino_core(purpose="the tests").compile_model(ir)(numbers)[0],
    ):
        assert found.dtype == expected
        np.testing.assert_array_equal(found, numbers.astype(expected))
    for node in (OnnxView(model).producer("y"), OpenVinoView(ir).producer(result)):
        assert node is not None
        assert node.params["dtype"] == dtype


def test_an_axis_of_length_0_is_no_wildcard_in_openvino() -> None:
    """A shape is meant as it stands, so that an empty batch stays one."""
    import openvino
    import openvino.opset13 as opset

    raw = opset.parameter([0, 2, 3], np.float32)
    result = emit_openvino({"y": build.reshape(X, Ints((3, 0)))}, inputs={"x": raw.output(0)}, prefix=PREFIX)["y"]
    assert tuple(openvino.Model([opset.result(result)], [raw], "m").output(0).get_shape()) == (3, 0)


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("op", CASES)
def test_onnx_computes_what_the_operator_means(op: str) -> None:
    """At every opset that has it ONNX Runtime gives NumPy's values, all names bear the prefix, and it is read back."""
    expr, meaning = CASES[op]
    expected, ran = np.asarray(meaning(fed(op))), []
    for opset, ir_version in TARGETS:
        target = OnnxTarget(opset, ir_version)
        if not target.supports(op):
            with pytest.raises(UnsupportedOpsetError, match=f"cannot be expressed at opset {opset}"):
                target.form(op)
            continue
        fragment = emit({"y": expr}, inputs={"x": "x"}, target=target, prefix=PREFIX)
        model = onnx_model(fragment, target, expected)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        np.testing.assert_array_equal(session.run(None, {"x": fed(op)})[0], expected)
        names = [*(node.name for node in fragment.node), *(tensor.name for tensor in fragment.initializer)]
        assert len(set(names)) == len(names)
        assert all(name.startswith(f"{PREFIX}y/") for name in names)
        found = OnnxView(model).producer("y")
        assert found is not None
        assert (found.op, dict(found.params)) == (op, dict(expr.params))
        ran.append(opset)
    assert ran[-1] == TARGETS[-1][0]


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("op", CASES)
def test_openvino_computes_what_the_operator_means(op: str) -> None:
    """OpenVINO gives NumPy's values, every operator and constant has a friendly name, and it is read back."""
    import openvino
    import openvino.opset13 as opset

    expr, meaning = CASES[op]
    values = fed(op, with_nan=WITH_NAN_IN_OPENVINO)
    expected = np.asarray(meaning(values))
    raw = opset.parameter([-1, -1, -1], np.float32, name="x")
    result = emit_openvino({"y": expr}, inputs={"x": raw.output(0)}, prefix=PREFIX)["y"]
    model = openvino.Model([opset.result(result)], [raw], "m")
    compiled = openvino_core(purpose="the tests").compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled([values])["y"]
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    names = [
        node.get_friendly_name() for node in model.get_ops() if node.get_type_name() not in ("Parameter", "Result")
    ]
    assert len(set(names)) == len(names)
    assert all(name.startswith(f"{PREFIX}y/") for name in names), names
    producer = OpenVinoView(model).producer(result)
    assert producer is not None
    assert (producer.op, dict(producer.params)) == (op, dict(expr.params))


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("op", ["reduce_max", "reduce_sum", "reduce_l1"])
def test_a_reduction_keeps_its_axes_where_that_is_asked_for(op: str, keepdims: bool) -> None:
    """Both forms, as attribute and as input, in both formats."""
    import openvino
    import openvino.opset13 as opset

    expr = build.call(op, X, axes=(1, 2), keepdims=keepdims)
    shape = (2, 1, 1) if keepdims else (2,)
    result = np.zeros(shape, np.float32)
    for version, ir_version in ((7, 3), (18, 8)):
        target = OnnxTarget(version, ir_version)
        fragment = emit({"y": expr}, inputs={"x": "x"}, target=target, prefix=PREFIX)
        model = onnx_model(fragment, target, result)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        assert session.run(None, {"x": NUMBERS})[0].shape == shape
    raw = opset.parameter([2, 2, 3], np.float32)
    emitted = emit_openvino({"y": expr}, inputs={"x": raw.output(0)}, prefix=PREFIX)["y"]
    assert tuple(openvino.Model([opset.result(emitted)], [raw], "m").output(0).get_shape()) == shape


def test_openvino_shares_what_recurs_and_keeps_names_apart() -> None:
    """A step that two outputs need is one operator, and a name that is in use gets a number."""
    import openvino.opset13 as opset

    raw = opset.parameter([-1, -1, -1], np.float32)
    shared = build.add(X, number(1.0))
    outputs: dict[str, Expr] = {"a": build.mul(shared, number(2.0)), "b": build.sub(shared, number(3.0))}
    taken = frozenset({f"{PREFIX}a/add"})
    emitted = emit_openvino(outputs, inputs={"x": raw.output(0)}, prefix=PREFIX, taken=taken)
    first, second = (emitted[name].get_node().input_value(0).get_node() for name in "ab")
    assert first.get_friendly_name() == second.get_friendly_name() == f"{PREFIX}a/add_1"
    assert emitted["b"].get_node().get_friendly_name() == f"{PREFIX}b/sub"
    assert [emitted[name].get_names() for name in "ab"] == [{"a"}, {"b"}]


def test_what_openvino_is_never_asked_for_is_a_bug() -> None:
    """A value of the host, a second name for one value, an open scalar, bounds of a clip that are computed."""
    import openvino.opset13 as opset

    inputs = {"x": opset.parameter([-1], np.float32).output(0)}
    double = build.add(X, X)
    wrong: list[tuple[dict[str, Expr], str]] = [
        ({"y": X}, "^y is a value of the host itself$"),
        ({"y": double, "z": double}, "^z is also computed for another output$"),
        ({"y": build.add(X, Scalar("t"))}, "^the scalar 't' was not bound$"),
        ({"y": build.clip(X, X, number(1.0))}, "^the bounds of a clamp have to be numbers$"),
    ]
    for outputs, text in wrong:
        with pytest.raises(AssertionError, match=text):
            emit_openvino(outputs, inputs=inputs, prefix=PREFIX)


def test_what_onnx_is_never_asked_for_is_a_bug() -> None:
    """Attributes have to be numbers, and scalars bound."""
    for expr, text in (
        (build.hard_sigmoid(X, alpha=X, beta=number(0.5)), "^alpha of HardSigmoid has to be a number$"),
        (build.add(X, Scalar("t")), "^the scalar 't' was not bound$"),
    ):
        with pytest.raises(AssertionError, match=text):
            emit({"y": expr}, inputs={"x": "x"}, target=OnnxTarget(17, 8), prefix=PREFIX)


def test_a_value_of_the_host_is_copied_under_the_output_name() -> None:
    """In ONNX an output that is a value of the host is a copy of it."""
    fragment = emit({"y": X}, inputs={"x": "host"}, target=OnnxTarget(17, 8), prefix=PREFIX)
    assert [(node.op_type, *node.input, *node.output) for node in fragment.node] == [("Identity", "host", "y")]


def test_a_constant_below_ir_version_4_is_a_named_node() -> None:
    """It holds the number, and its name is that of its value."""
    fragment = emit({"y": CASES["add"][0]}, inputs={"x": "x"}, target=OnnxTarget(8, 3), prefix=PREFIX)
    node = fragment.node[0]
    assert (node.op_type, node.name, *node.output) == ("Constant", f"{PREFIX}y/number", f"{PREFIX}y/number")
    assert onnx.numpy_helper.to_array(node.attribute[0].t) == np.float32(1.25)


@pytest.mark.parametrize("form", [OnnxForm("Add", 7), OpenVinoForm("Add", "add"), OnnxTarget(17, 8)], ids=type)
def test_forms_and_targets_do_not_change(form: Any) -> None:
    """Tables are shared by all that emit and match."""
    name = next(iter(type(form).__annotations__))
    with pytest.raises(AttributeError):
        setattr(form, name, "another")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        pytest.param(
            lambda: OnnxTarget(6, 3),
            "the model is too old to append to\n"
            "  found:   opset 6, IR version 3\n"
            "  needed:  opset 7 and IR version 3 or later\n"
            "  fix:     export the model again with a later opset",
            id="target",
        ),
        pytest.param(
            lambda: OnnxTarget(8, 3).form("is_nan"),
            "IsNaN cannot be expressed at opset 8\n"
            "  needed:  opset 9 or later\n"
            "  fix:     export the model again with a later opset",
            id="form",
        ),
        pytest.param(
            lambda: OnnxTarget(8, 3).check_integers(),
            "a constant shape cannot be expressed at opset 8 and IR version 3\n"
            "  needed:  opset 9, or IR version 4\n"
            "  fix:     export the model again with a later opset",
            id="integers",
        ),
    ],
)
def test_a_target_that_is_too_old_is_told_in_full(call: Callable[[], Any], text: str) -> None:
    """What cannot be expressed, what is needed, and what to do."""
    with pytest.raises(UnsupportedOpsetError) as caught:
        call()
    assert str(caught.value) == text


@pytest.mark.parametrize(("opset", "ir_version"), [(9, 3), (8, 4), (7, 4)])
def test_a_constant_shape_needs_an_initializer_or_a_node_of_integers(opset: int, ir_version: int) -> None:
    """From opset 9 on a Constant node holds integers; from IR version 4 on no node is needed."""
    OnnxTarget(opset, ir_version).check_integers()
