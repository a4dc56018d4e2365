"""The matcher: what it finds, and how it explains what it does not."""

import re

import onnx
import pytest
from onnx import parser

from graph_patterns import Const, Input, Ints, Match, Mismatch, Pattern, Scalar, find
from graph_patterns.catalog import AT_LEAST, UNIT_SCORE, centred_unit_score, fused_unit_score
from graph_patterns.expr import add, clip, concat, logical_not, mul, reduce_max, reshape, sub, transpose, unsqueeze
from graph_patterns.onnx.graph import OnnxView

OPSETS = '<ir_version: 8, opset_import: ["": 17]>'


def view(body: str, *, opset: int = 17, constants: str = "") -> OnnxView:
    """Return a view of a graph from `x` to `y`."""
    header = f'<ir_version: 8, opset_import: ["": {opset}, "custom": 1]>'
    return OnnxView(parser.parse_model(f"{header} g (float[N] x) => (float[N] y) {constants} {{ {body} }}"))


def test_a_match_tells_inputs_scalars_and_nodes() -> None:
    """A match binds the graph's value, the numbers and the nodes, the bottom one first."""
    graph = view("n = Less(x, b) y = Not(n)", constants="<float b = {2.5}>")
    found = find(AT_LEAST, graph, at="y")
    assert isinstance(found, Match)
    assert found.inputs == {"values": "x"}
    assert found.scalars == {"boundary": 2.5}
    assert [node.op for node in found.nodes] == ["logical_not", "less"]


def test_the_longest_form_wins() -> None:
    """Where the short form fits too, the form with more nodes is taken: an input fits everything."""
    graph = view("d = Sub(x, t) y = HardSigmoid<alpha=2.0, beta=0.5>(d)", constants="<float t = {7.0}>")
    found = find(UNIT_SCORE, graph, at="y")
    assert isinstance(found, Match)
    assert found.body == centred_unit_score(Input("values"))
    assert found.scalars == {"alpha": 2.0, "offset": 7.0}
    assert found.inputs == {"values": "x"}


def test_a_subtraction_of_the_model_is_not_taken() -> None:
    """A Sub in front of a fused score whose beta is not 0.5 is the model's own."""
    graph = view("d = Sub(x, t) y = HardSigmoid<alpha=2.0, beta=0.25>(d)", constants="<float t = {7.0}>")
    found = find(UNIT_SCORE, graph, at="y")
    assert isinstance(found, Match)
    assert found.body == fused_unit_score(Input("values"))
    assert found.inputs == {"values": "d"}


def test_a_chain_can_be_anchored_at_a_value() -> None:
    """Where it could go on into the model's own operators, what is known of its end decides."""
    graph = view("own = Add(x, t) y = Add(own, t)", constants="<float t = {7.0}>")
    chain = Pattern(
        name="chain",
        body=add(add(Input("values"), Scalar("first")), Scalar("second")),
        spellings=(add(Input("values"), Scalar("second")),),
    )
    for inputs, at in ((None, "x"), ({"values": "own"}, "own")):
        found = find(chain, graph, at="y", inputs=inputs)
        assert isinstance(found, Match)
        assert found.inputs == {"values": at}
    assert "'values' is also" in str(find(chain, graph, at="y", inputs={"values": "t"}))


def test_axes_may_be_a_number_that_is_reshaped() -> None:
    """An exporter that does not fold writes the axes of a reduction so."""
    body = "axes = Reshape(one, shape) y = ReduceMax<keepdims = 0>(x, axes)"
    constants = "<int64 one = {1}, int64[1] shape = {-1}>"
    pattern = reduce_max(Input("values"), axes=(1,))
    assert find(pattern, view(body, opset=18, constants=constants), at="y")
    other = view(body, opset=18, constants=constants.replace("-1", "1"))
    assert "found none that is fixed" in str(find(pattern, other, at="y"))


def test_attributes_that_are_left_out_have_their_defaults() -> None:
    """HardSigmoid without attributes is alpha 0.2, beta 0.5."""
    found = find(fused_unit_score(Input("values")), view("y = HardSigmoid(x)"), at="y")
    assert isinstance(found, Match)
    assert found.scalars == {"alpha": 0.2, "beta": 0.5}


def test_commutative_operands_fit_in_either_order() -> None:
    """Add fits with its operands exchanged; Sub does not."""
    constants = "<float c = {3.0}>"
    assert find(add(Input("v"), Scalar("c")), view("y = Add(c, x)", constants=constants), at="y")
    assert not find(sub(Input("v"), Scalar("c")), view("y = Sub(c, x)", constants=constants), at="y")


@pytest.mark.parametrize(
    ("body", "reason", "at"),
    [
        pytest.param("n = Less(x, b) y = Relu(n)", "expected logical_not, found Relu", "y", id="other-operator"),
        pytest.param("n = Greater(x, b) y = Not(n)", "expected less, found greater", "n", id="other-comparison"),
        pytest.param(
            "n = Less(x, x) y = Not(n)",
            "expected the number 'boundary', found an input of the graph",
            "x",
            id="no-number",
        ),
        pytest.param("n = custom.Less(x, b) y = Not(n)", "expected less, found custom::Less", "n", id="other-domain"),
    ],
)
def test_a_mismatch_says_what_was_expected_and_found(body: str, reason: str, at: str) -> None:
    """The reason names the operator of the pattern and what stands there, and where."""
    found = find(AT_LEAST, view(body, constants="<float b = {2.5}>"), at="y")
    assert isinstance(found, Mismatch)
    assert not found
    assert (found.reason, found.at) == (reason, at)
    assert str(found) == f"{reason} at {at!r}"


def test_the_nearest_miss_is_reported() -> None:
    """Of several spellings that fail, the one that went deepest explains itself."""
    graph = view("d = Mul(x, c) y = Add(d, c)", constants="<float c = {3.0}>")
    pattern = Pattern(
        name="p",
        body=clip(Input("v"), Const(0.0), Const(1.0)),
        spellings=(add(sub(Input("v"), Scalar("a")), Scalar("b")),),
    )
    found = find(pattern, graph, at="y")
    assert str(found) == "expected sub, found mul at 'd'"


def test_one_name_stands_for_one_thing() -> None:
    """An input or a number that occurs twice in a pattern has to be the same in the graph."""
    constants = "<float c = {3.0}, float d = {4.0}>"
    twice = add(mul(Input("v"), Scalar("k")), Scalar("k"))
    assert find(twice, view("m = Mul(x, c) y = Add(m, c)", constants=constants), at="y")
    assert "'k' is 4 and 3" in str(find(twice, view("m = Mul(x, c) y = Add(m, d)", constants=constants), at="y"))
    both = add(mul(Input("v"), Const(3.0)), Input("v"))
    assert find(both, view("m = Mul(x, c) y = Add(m, x)", constants=constants), at="y")
    assert not find(both, view("r = Relu(x) m = Mul(x, c) y = Add(m, r)", constants=constants), at="y")


def test_an_overridable_initializer_is_not_a_number() -> None:
    """What a caller can override is no constant of the graph."""
    model = parser.parse_model(
        f"{OPSETS} g (float[N] x, float b = {{2.5}}) => (bool[N] y) {{ n = Less(x, b) y = Not(n) }}"
    )
    assert "expected the number 'boundary'" in str(find(AT_LEAST, OnnxView(model), at="y"))


@pytest.mark.parametrize("opset", [11, 18], ids=["axes-attribute", "axes-input"])
def test_axes_are_read_from_attribute_and_input(opset: int) -> None:
    """ReduceMax names its axes in an attribute up to opset 17 and in an input from 18."""
    step = reduce_max(Input("v"), axes=(1,))
    if opset == 18:
        graph = view("y = ReduceMax<keepdims=0>(x, a)", opset=18, constants="<int64[1] a = {1}>")
    else:
        graph = view("y = ReduceMax<keepdims=0, axes=[1]>(x)", opset=11)
    assert find(step, graph, at="y")
    assert "expected axes (2,), found (1,)" in str(find(reduce_max(Input("v"), axes=(2,)), graph, at="y"))


def test_axes_that_are_computed_are_not_fixed() -> None:
    """Axes that are an input of the graph match nothing."""
    header = '<ir_version: 8, opset_import: ["": 18]>'
    model = parser.parse_model(
        f"{header} g (float[N] x, int64[1] a) => (float[N] y) {{ y = ReduceMax<keepdims=0>(x, a) }}"
    )
    assert "expected axes (1,), found none that is fixed" in str(
        find(reduce_max(Input("v"), axes=(1,)), OnnxView(model), at="y")
    )


def test_constants_in_nodes_are_numbers() -> None:
    """Constant nodes, with a tensor or a float, count like initializers."""
    for constant in ("b = Constant<value = float {2.5}>()", "b = Constant<value_float = 2.5>()"):
        found = find(logical_not(Input("v")), view(f"{constant} n = Less(x, b) y = Not(n)"), at="y")
        assert found
        found = find(AT_LEAST, view(f"{constant} n = Less(x, b) y = Not(n)"), at="y")
        assert isinstance(found, Match)
        assert found.scalars == {"boundary": 2.5}


def test_an_output_that_is_not_there_has_no_value() -> None:
    """A view answers with None for a name that the graph does not give out."""
    graph = view("y = Relu(x)")
    assert graph.output("y") == "y"
    assert graph.output("x") is None


def test_a_view_never_reads_external_data() -> None:
    """A constant whose bytes are in another file is no number."""
    model = parser.parse_model(
        f"{OPSETS} g (float[N] x) => (bool[N] y) <float b = {{2.5}}> {{ n = Less(x, b) y = Not(n) }}"
    )
    tensor = model.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="nowhere.bin")
    assert not find(AT_LEAST, OnnxView(model), at="y")


@pytest.mark.parametrize(
    ("constant", "reason"),
    [
        ("int64[2] c = {1, -1}", None),
        ("int64[2] c = {-1, 1}", r"expected the constant \[1, -1\], found \[-1, 1\] at 'c'"),
        ("int64[1] c = {1}", r"expected the constant \[1, -1\], found \[1\]"),
        ("float[2] c = {1.0, -1.0}", r"expected the constant \[1, -1\], found an input of the graph"),
    ],
)
def test_a_vector_of_integers_has_to_be_the_same(constant: str, reason: str | None) -> None:
    """`Ints` is a constant such as a shape, compared element by element; what is no such vector is named."""
    found = find(reshape(Input("v"), Ints((1, -1))), view("y = Reshape(x, c)", constants=f"<{constant}>"), at="y")
    assert isinstance(found, Match) is (reason is None)
    assert reason is None or re.search(reason, str(found)), str(found)


def test_settings_of_axes_are_compared() -> None:
    """The axis of a Concat, the order of a Transpose and the axes of an Unsqueeze are part of the pattern."""
    body = "t = Transpose<perm = [1, 0]>(x) y = Concat<axis = 1>(t, t)"
    assert find(concat(Input("v"), Input("v"), axis=1), view(body), at="y")
    assert not find(concat(Input("v"), Input("v"), axis=0), view(body), at="y")
    assert not find(concat(Input("v"), axis=1), view(body), at="y")
    assert find(transpose(Input("v"), perm=(1, 0)), view(body), at="t")
    assert str(find(transpose(Input("v"), perm=(0, 1)), view(body), at="t")).startswith(
        "expected perm (0, 1), found (1, 0)"
    )
    assert not find(transpose(Input("v"), perm=(1, 0)), view("y = Transpose(x)"), at="y")
    for opset, graph in ((11, "y = Unsqueeze<axes = [1]>(x)"), (13, "y = Unsqueeze(x, c)")):
        constants = "" if opset == 11 else "<int64[1] c = {1}>"
        assert find(unsqueeze(Input("v"), axes=(1,)), view(graph, opset=opset, constants=constants), at="y")
        assert not find(unsqueeze(Input("v"), axes=(0,)), view(graph, opset=opset, constants=constants), at="y")
