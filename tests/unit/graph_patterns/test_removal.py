"""Removal, editing and folding: what goes, what stays, and what is refused."""

import numpy as np
import onnx
import openvino
import openvino.opset13 as opset
import pytest
from onnx import helper, parser

from graph_patterns import Const, Input, Match, Scalar, SharedValueError, find
from graph_patterns.expr import add, clip, is_nan, mul, select
from graph_patterns.match import Folded
from graph_patterns.onnx import edit
from graph_patterns.onnx.graph import OnnxView
from graph_patterns.openvino import OpenVinoView, remove

SCALED = clip(add(mul(Input("x"), Scalar("s")), Scalar("o")), Const(0.0), Const(1.0))
CONSTANTS = "float s = {4.0}, float o = {-0.25}, float z = {0.0}, float one = {1.0}"


def model(
    body: str, *, outputs: str = "float[N] y", ir_version: int = 8, inputs: str = "float[N] i"
) -> onnx.ModelProto:
    """Return a model with the usual constants."""
    text = f"g ({inputs}) => ({outputs}) <{CONSTANTS}> {{ x = Neg(i) {body} }}"
    return parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["": 17]> {text}')


TAIL = "m = Mul(x, s) a = Add(m, o) y = Clip(a, z, one)"


def matched(proto: onnx.ModelProto, *, at: str = "y") -> Match:
    """Return the match of the scaled clip."""
    found = find(SCALED, OnnxView(proto), at=at)
    assert isinstance(found, Match)
    return found


def names(proto: onnx.ModelProto) -> tuple[list[str], list[str]]:
    """Return the values of nodes and the initializers."""
    return [node.output[0] for node in proto.graph.node], [item.name for item in proto.graph.initializer]


def test_constants_with_other_readers_stay() -> None:
    """Only what nobody reads any more goes."""
    proto = model(f"{TAIL} w = Add(x, o)", outputs="float[N] y, float[N] w")
    found = matched(proto)
    edit.remove(proto, found.values, outputs=["y"], keep=found.inputs.values())
    assert names(proto) == (["x", "w"], ["o"])


def test_what_nobody_read_before_stays() -> None:
    """Dead ends of the model are the model's own business."""
    proto = model(f"{TAIL} dead = Abs(x)")
    found = matched(proto)
    edit.remove(proto, found.values, outputs=["y"], keep=found.inputs.values())
    assert names(proto)[0] == ["x", "dead"]


def test_a_value_that_is_not_kept_goes_with_its_last_reader() -> None:
    """Without `keep` the nodes that were only there for the removed ones go as well."""
    proto = model(TAIL)
    edit.remove(proto, matched(proto).values, outputs=["y"])
    assert names(proto) == ([], [])


def test_what_leads_to_the_removed_alone_goes_too() -> None:
    """A shape that is computed from a value that goes is no reader of it, unless something else needs the shape."""
    proto = model("m = Mul(x, s) l = Shape(m) r = Reshape(x, l) a = Add(r, m) y = Relu(a)")
    found = find(add(Input("reshaped"), mul(Input("x"), Scalar("s"))), OnnxView(proto), at="a")
    assert isinstance(found, Match)
    other = onnx.ModelProto.FromString(proto.SerializeToString())
    edit.remove(proto, [*found.values, "y", "r"], outputs=["y"], keep=["x"])
    assert names(proto)[0] == ["x"]
    other.graph.output.append(onnx.helper.make_tensor_value_info("l", onnx.TensorProto.INT64, [1]))
    with pytest.raises(SharedValueError, match="'m' has a reader outside"):
        edit.remove(other, [*found.values, "y", "r"], outputs=["y"], keep=["x"])


def test_what_leads_to_the_removed_alone_goes_too_in_openvino() -> None:
    """The same promise in the other format."""
    raw = opset.parameter([-1], name="x")
    inner = opset.multiply(raw, opset.constant(np.float32([4.0])))
    shaped = opset.reshape(raw, opset.shape_of(inner), False)
    bottom = opset.add(shaped, inner)
    kept, gone = opset.result(opset.relu(raw)), opset.result(bottom)
    graph = openvino.Model([kept, gone], [raw], "g")
    remove(graph, [bottom.output(0), shaped.output(0), inner.output(0)], results=[gone])
    assert sorted(node.get_type_name() for node in graph.get_ops()) == ["Parameter", "Relu", "Result"]


def test_an_output_that_stays_blocks_the_removal() -> None:
    """An inner value that the graph gives out is read from outside; the model is left as it was."""
    proto = model(TAIL, outputs="float[N] y, float[N] a")
    before = proto.SerializeToString()
    with pytest.raises(SharedValueError, match=r"'a' has a reader outside(.|\n)*reader the output 'a'"):
        edit.remove(proto, matched(proto).values, outputs=["y"])
    assert proto.SerializeToString() == before


def test_inputs_of_old_models_go_with_their_initializers() -> None:
    """Below IR version 4 every initializer is listed as an input too; later that makes it overridable."""
    inputs = "float[N] i, float s, float o, float z, float one"
    proto = model(TAIL, ir_version=3, inputs=inputs)
    found = matched(proto)
    edit.remove(proto, found.values, outputs=["y"], keep=found.inputs.values())
    assert [item.name for item in proto.graph.input] == ["i"]
    assert not find(SCALED, OnnxView(model(TAIL, inputs=inputs)), at="y")


def test_a_shared_constant_is_cloned_and_its_own_is_not() -> None:
    """Two readers of one constant: the other one keeps its number."""
    proto = model(f"{TAIL} w = Add(x, o)", outputs="float[N] y, float[N] w")
    sites = matched(proto).sites
    edit.set_numbers(proto, {sites["o"][0]: 0.5, sites["s"][0]: 2.0}, prefix="new/")
    assert matched(proto).scalars == {"s": 2.0, "o": 0.5}
    assert names(proto)[1] == ["s", "o", "z", "one", "new/o_1"]


def test_a_clone_gets_a_name_that_nothing_has() -> None:
    """Neither a value nor a node, such as an earlier clone of the same constant."""
    proto = model(f"{TAIL} w = Add(x, o) v = Neg(w)", outputs="float[N] y, float[N] w, float[N] v")
    proto.graph.node[-1].name = "new/o_1"
    edit.set_numbers(proto, {matched(proto).sites["o"][0]: 0.5}, prefix="new/")
    assert "new/o_2" in names(proto)[1]


def test_what_a_nested_graph_calls_the_same_is_no_reader() -> None:
    """Nor what a graph of training does: each hides the value of that name outside of it."""
    proto = model(f"{TAIL} w = Neg(x)", outputs="float[N] y, float[N] w")
    body = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Abs", ["y"], ["z2"])]
    result = [helper.make_tensor_value_info("z2", 1, None)]
    branch = helper.make_graph(body, "b", [], result)
    proto.graph.node.append(helper.make_node("If", ["w"], ["chosen"], then_branch=branch, else_branch=branch))
    proto.training_info.add().algorithm.CopyFrom(branch)
    found = matched(proto)
    edit.remove(proto, found.values, outputs=["y"], keep=found.inputs.values())
    assert "y" not in {name for node in proto.graph.node for name in node.output}


def test_attributes_are_changed_in_place() -> None:
    """A number inside a node is an operand like any other."""
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 9]> g (float[N] x) => (float[N] y) { y = Clip<min=0.0, max=1.0>(x) }'
    )
    pattern = clip(Input("x"), Scalar("low"), Scalar("high"))
    found = find(pattern, OnnxView(proto), at="y")
    assert isinstance(found, Match)
    edit.set_numbers(proto, {found.sites["high"][0]: 6.0}, prefix="new/")
    found = find(pattern, OnnxView(proto), at="y")
    assert isinstance(found, Match)
    assert found.scalars == {"low": 0.0, "high": 6.0}


def test_what_is_computed_from_constants_is_a_number() -> None:
    """A select on whether a constant is NaN is followed; a pattern may still match its operators."""
    proto = model("n = IsNaN(o) w = Where(n, s, o) q = Mul(w, s) y = Add(x, q)")
    found = find(add(Input("x"), Scalar("q")), Folded(OnnxView(proto)), at="y")
    assert isinstance(found, Match)
    assert found.scalars == {"q": -1.0}
    assert not find(add(Input("x"), Scalar("q")), OnnxView(proto), at="y")
    assert find(select(is_nan(Scalar("o")), Input("a"), Input("b")), Folded(OnnxView(proto)), at="w")


def test_an_operator_outside_blocks_the_removal_in_openvino() -> None:
    """The same promise in the other format."""
    raw = opset.parameter([-1], name="x")
    inner = opset.multiply(raw, opset.constant(np.float32([4.0])))
    low = opset.clamp(opset.add(inner, opset.constant(np.float32([-0.25]))), 0.0, 1.0)
    other = opset.relu(inner)
    other.set_friendly_name("head/Relu_7")
    results = [opset.result(low), opset.result(other)]
    graph = openvino.Model(results, [raw], "g")
    found = find(SCALED, OpenVinoView(graph), at=low.output(0))
    assert isinstance(found, Match)
    with pytest.raises(SharedValueError, match="reader head/Relu_7"):
        remove(graph, found.values, results=results[:1])


def test_matching_looks_at_nothing_but_the_nodes_near_the_outputs() -> None:
    """In a chain of 50,000 nodes a match asks for a handful of them."""
    proto = model(TAIL)
    chain = [onnx.helper.make_node("Neg", ["i" if n == 0 else f"c{n - 1}"], [f"c{n}"]) for n in range(50_000)]
    proto.graph.node[0].input[0] = chain[-1].output[0]
    nodes = [*chain, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    asked = []

    class Counting(OnnxView):
        def producer(self, value: object) -> object:  # type: ignore[override]
            asked.append(value)
            return super().producer(value)

    assert find(SCALED, Counting(proto), at="y")
    assert not find(SCALED, Counting(proto), at="c49999")
    assert len(asked) < 20
