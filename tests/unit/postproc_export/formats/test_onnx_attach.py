"""Attaching to an ONNX model in memory: what is added, what moves, and that nothing else changes."""

from collections.abc import Callable

import hosts
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, parser
from undo import record_of, undo

from graph_patterns.expr import UnsupportedOpsetError
from postproc_export.check.preserved_files import compare_models
from postproc_export.errors import UnsupportedModelError, UsageError
from postproc_export.formats.onnx import OnnxFormat
from postproc_export.options import TailOptions
from postproc_export.stats import CalibrationStats, LevelStats

IMAGE = LevelStats(threshold=0.5, min=0.0, max=2.0)
PIXEL = LevelStats(threshold=0.25, min=-1.0, max=1.0)
STATS = CalibrationStats(image=IMAGE, pixel=PIXEL)
NAMES = ["pred_score", "pred_label", "anomaly_map", "pred_mask"]


def attached(model: onnx.ModelProto, stats: CalibrationStats = STATS, **options: object) -> onnx.ModelProto:
    """Return a copy of the model with a tail; it is valid, and undoing it gives the original back."""
    outputs = {key: options.pop(key) for key in ("image_output", "pixel_output") if key in options}
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    OnnxFormat().attach(copy, stats, TailOptions(**options), outputs)  # type: ignore[arg-type]
    assert undo(copy).SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
    found = compare_models(model, copy)
    assert found, found.describe()
    return copy


def names(model: onnx.ModelProto) -> list[str]:
    """Return the names of the outputs, in order."""
    return [item.name for item in model.graph.output]


def axes(model: onnx.ModelProto, output: int) -> list[str | int]:
    """Return the declared axes of an output."""
    dims = model.graph.output[output].type.tensor_type.shape.dim
    return [dim.dim_param if dim.HasField("dim_param") else dim.dim_value for dim in dims]


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    """Run a model in ONNX Runtime."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip((item.name for item in session.get_outputs()), session.run(None, feeds), strict=True))


def test_the_four_outputs_have_their_names_order_types_and_axes() -> None:
    """Score, label, map, mask: float32 and bool, with the raw outputs' own axes."""
    model = attached(hosts.score_and_map())
    onnx.checker.check_model(model, full_check=True)
    assert names(model) == NAMES
    types = [item.type.tensor_type.elem_type for item in model.graph.output]
    assert types == [TensorProto.FLOAT, TensorProto.BOOL, TensorProto.FLOAT, TensorProto.BOOL]
    assert [axes(model, index) for index in range(4)] == [["N", 1], ["N", 1], ["N", 1, "H", "W"], ["N", 1, "H", "W"]]


def test_the_outputs_are_the_normalised_and_decided_raw_values() -> None:
    """Values, labels and masks follow from the raw outputs."""
    images = np.arange(2 * 3 * 4 * 4, dtype=np.float32).reshape(2, 3, 4, 4) / 64 - 0.5
    raw = hosts.expected(images)
    result = run(attached(hosts.score_and_map()), input=images)
    np.testing.assert_array_equal(result["pred_label"], raw["pred_score"] >= 0.5)
    np.testing.assert_array_equal(result["pred_mask"], raw["anomaly_map"] >= 0.25)
    np.testing.assert_allclose(result["pred_score"], np.clip((raw["pred_score"] - 0.5) / 2 + 0.5, 0, 1), atol=1e-6)
    np.testing.assert_allclose(result["anomaly_map"], np.clip((raw["anomaly_map"] - 0.25) / 2 + 0.5, 0, 1), atol=1e-6)


def test_a_map_alone_gives_the_image_score() -> None:
    """The score of a model with only a map is the maximum over the last two axes."""
    host = hosts.identity(score=None)
    model = attached(host)
    assert names(model) == NAMES
    assert axes(model, 0) == ["N", 1]
    maps = np.array([[[[0.0, 0.75], [0.5, -3.0]]], [[[0.25, 0.0], [0.0, 0.0]]]], dtype=np.float32)
    result = run(model, map=maps)
    assert result["pred_score"].tolist() == [[0.625], [0.375]]
    assert result["pred_label"].tolist() == [[True], [False]]


def test_a_score_alone_gives_score_and_label() -> None:
    """A model with only a score gets two outputs, though the statistics know pixels."""
    model = attached(hosts.score_only())
    assert names(model) == NAMES[:2]


@pytest.mark.parametrize(
    ("stats", "expected"),
    [
        pytest.param(CalibrationStats(image=IMAGE), ["pred_score", "pred_label", "anomaly_map"], id="image-only"),
        pytest.param(CalibrationStats(pixel=PIXEL), ["pred_score", "anomaly_map", "pred_mask"], id="pixel-only"),
        pytest.param(
            CalibrationStats(image=IMAGE, pixel=LevelStats(threshold=None, min=0, max=1)),
            ["pred_score", "pred_label", "anomaly_map"],
            id="no-threshold",
        ),
    ],
)
def test_a_level_without_statistics_stays_as_it_is(stats: CalibrationStats, expected: list[str]) -> None:
    """Its raw output keeps its name and place, without a label; the notes say so."""
    host = hosts.score_and_map()
    assert names(attached(host, stats)) == expected
    notes = OnnxFormat().attach(host, stats, TailOptions()).tail.notes
    assert any("not calibrated" in note and "stays as it is" in note for note in notes)


def test_thresholds_are_borrowed_only_when_asked_for() -> None:
    """`match_thresholds` gives a level with a range the other level's threshold."""
    stats = CalibrationStats(image=IMAGE, pixel=LevelStats(threshold=None, min=0, max=1))
    model = attached(hosts.score_and_map(), stats, match_thresholds=True)
    assert names(model) == NAMES
    assert record_of(model)["statistics"]["pixel"]["threshold"] == 0.5


def test_statistics_that_fit_no_level_are_refused() -> None:
    """A score cannot be decided with pixel statistics."""
    with pytest.raises(UsageError, match="nothing to attach"):
        attached(hosts.score_only(), CalibrationStats(pixel=PIXEL))


def test_other_outputs_follow_unchanged_and_raw_ones_on_request() -> None:
    """Any other output keeps its name behind ours; `keep_raw` adds the raw ones behind that."""
    host = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N,1] s, float[N,H,W] m, int64[K] f) '
        "=> (int64[K] features, float[N,1] pred_score, float[N,H,W] heat) "
        "{ features = Identity(f) pred_score = Identity(s) heat = Identity(m) }"
    )
    assert names(attached(host)) == [*NAMES, "features"]
    kept = attached(host, keep_raw=True)
    assert names(kept) == [*NAMES, "features", "pred_score_raw", "heat"]
    score, maps = np.float32([[3.0]]), np.zeros((1, 2, 2), np.float32)
    result = run(kept, s=score, m=maps, f=np.int64([7]))
    assert result["pred_score_raw"].tolist() == [[3.0]]
    assert result["features"].tolist() == [7]
    assert result["pred_mask"].shape == (1, 2, 2)


@pytest.mark.parametrize(("label", "mask"), [("uint8", "float32"), ("float32", "uint8"), ("bool", "bool")])
def test_labels_and_masks_have_the_types_asked_for(label: str, mask: str) -> None:
    """Labels and masks are 0 and 1 in every type."""
    model = attached(hosts.identity(), label_dtype=label, mask_dtype=mask)
    result = run(model, score=np.float32([[0.5], [0.0]]), map=np.float32([[[[0.25]]], [[[0.0]]]]))
    assert (result["pred_label"].dtype, result["pred_mask"].dtype) == (np.dtype(label), np.dtype(mask))
    assert result["pred_label"].reshape(-1).tolist() == [1, 0]
    assert result["pred_mask"].reshape(-1).tolist() == [1, 0]


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 18])
@pytest.mark.parametrize("score", ["", "N", "N,1"])
def test_a_nan_in_a_map_makes_its_image_anomalous(opset: int, score: str) -> None:
    """The guard reaches a score that the model itself gives, in every shape of a score; a batch of none works."""
    host = hosts.identity(score=score, opset=opset, ir_version=3 if opset < 9 else 8)
    model = attached(host)
    count = 1 if score == "" else 2
    scores = np.zeros((count, 1), np.float32).reshape(() if score == "" else (2,) if score == "N" else (2, 1))
    maps = np.zeros((count, 1, 2, 2), np.float32)
    maps[0, 0, 1, 1] = np.nan
    result = run(model, score=scores, map=maps)
    assert result["pred_label"].reshape(-1).tolist() == [True, False][:count]
    assert not result["pred_score"].reshape(-1)[0] < 1.0
    assert result["pred_mask"].reshape(count, -1)[0].tolist() == [False, False, False, True]
    if score:
        empty = run(model, score=scores[:0], map=maps[:0])
        assert [item.shape[0] for item in empty.values()] == [0, 0, 0, 0]


def test_the_nan_guard_can_be_left_out() -> None:
    """Without it, a NaN in the map does not reach a score of the model's own."""
    model = attached(hosts.identity(), nan_guard=False)
    result = run(model, score=np.float32([[0.0]]), map=np.full((1, 1, 2, 2), np.nan, np.float32))
    assert result["pred_label"].tolist() == [[False]]
    assert "IsNaN" not in {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("dtype", ["float16", "double", "bfloat16"])
def test_raw_outputs_of_other_float_types_are_cast_first(dtype: str) -> None:
    """The tail computes in float32 whatever the model does."""
    model = attached(hosts.score_and_map(dtype=dtype))
    result = run(model, input=np.zeros((1, 3, 2, 2), np.float32))
    assert result["pred_score"].dtype == np.float32
    assert result["pred_label"].tolist() == [[False]]


def test_bfloat16_below_opset_13_is_refused() -> None:
    """No older opset converts bfloat16 to float32."""
    host = hosts.score_and_map(dtype="bfloat16")
    host.opset_import[0].version = 12
    with pytest.raises(UnsupportedModelError, match="'pred_score' is bfloat16, which opset 12 cannot convert"):
        OnnxFormat().attach(host, STATS, TailOptions())


def test_an_old_opset_is_refused() -> None:
    """Opset 6 has no broadcasting: the message says what was found and what is needed."""
    host = hosts.score_and_map()
    host.opset_import[0].version = 6
    with pytest.raises(UnsupportedOpsetError, match="opset 6"):
        OnnxFormat().attach(host, STATS, TailOptions())


def test_a_model_without_the_default_domain_gets_it() -> None:
    """The import that is added is recorded, and belongs to the model's IR version."""
    host = helper.make_model(
        helper.make_graph(
            [helper.make_node("Score", ["x"], ["pred_score"], domain="vendor")],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
            [helper.make_tensor_value_info("pred_score", TensorProto.FLOAT, ["N"])],
        ),
        opset_imports=[helper.make_opsetid("vendor", 3)],
        ir_version=6,
    )
    model = attached(host)
    assert {(item.domain, item.version) for item in model.opset_import} == {("vendor", 3), ("", 11)}
    assert record_of(model)["original"]["added_opset_import"] == 11


def with_tail(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return an attached model."""
    return attached(model)


def with_label_output(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model that has an output `pred_label` of its own."""
    model.graph.node.append(helper.make_node("Identity", ["pred_score"], ["pred_label"]))
    model.graph.output.append(helper.make_tensor_value_info("pred_label", TensorProto.FLOAT, ["N", 1]))
    return model


@pytest.mark.parametrize("change", [with_tail, with_label_output])
def test_a_tail_is_never_doubled(change: Callable[[onnx.ModelProto], onnx.ModelProto]) -> None:
    """A model with our tail, or with outputs named as a tail's, is refused with a hint."""
    model = change(hosts.score_and_map())
    before = model.SerializeToString()
    with pytest.raises(UnsupportedModelError, match=r"has post-processing already(.|\n)*update(.|\n)*detach"):
        OnnxFormat().attach(model, STATS, TailOptions())
    assert model.SerializeToString() == before


def test_an_input_that_bears_our_name_is_refused() -> None:
    """A graph input cannot move: its name is the model's interface."""
    host = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N] anomaly_map) => (float[N] s, float[N,2,2] m) '
        "<float[1,2,2] c = {1,2,3,4}> { s = Identity(anomaly_map) m = Identity(c) }"
    )
    with pytest.raises(UnsupportedModelError, match="'anomaly_map' is taken\n  found:   an input of that name"):
        attached(host)


def test_an_overridable_initializer_that_bears_our_name_is_refused() -> None:
    """An initializer that a caller can override is interface too."""
    host = hosts.score_only(name="score")
    host.graph.initializer.append(helper.make_tensor("pred_label", TensorProto.FLOAT, [1], [1.0]))
    host.graph.input.append(helper.make_tensor_value_info("pred_label", TensorProto.FLOAT, [1]))
    with pytest.raises(UnsupportedModelError, match="found:   an overridable initializer of that name"):
        attached(host)


def test_another_output_that_bears_our_name_is_refused() -> None:
    """An output that is not post-processed keeps its name, so ours cannot have it."""
    host = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (float[N] pred_score, float[N] other) '
        "{ pred_score = Identity(x) other = Neg(x) }"
    )
    with pytest.raises(UnsupportedModelError, match="'pred_score' is taken\n  found:   another output of that name"):
        attached(host, image_output="other")


CAPTURING = """
<ir_version: 8, opset_import: ["": 17, "local": 1, "vendor": 9], producer_name: "p", doc_string: "model doc">
detector (float[N,1] x, bool c, float[1] bias = {0.5}) => (float[N,1] pred_score, float[N,1] twin)
<float[1] pred_mask = {1.0}, float[N,1] doubled> {
  pred_score = local.scale(x)
  doubled = Add(pred_score, pred_mask)
  shifted = Add(doubled, bias)
  twin = If(c) <
    then_branch = yes () => (float[N,1] t) { t = Add(pred_score, shifted) },
    else_branch = no () => (float[N,1] pred_label) { pred_label = Neg(pred_score) }
  >
}
<domain: "local", opset_import: ["": 17]> scale (pred_score) => (anomaly_map) {
  anomaly_map = Mul(pred_score, pred_score)
}
"""


def everything() -> onnx.ModelProto:
    """Return a model with all that a file can carry besides nodes, and names of ours in every scope."""
    model = parser.parse_model(CAPTURING)
    graph = model.graph
    model.metadata_props.add(key="origin", value="line 3")
    model.domain, model.model_version = "example.org", 12
    graph.doc_string = "graph doc"
    graph.metadata_props.add(key="graph", value="meta")
    graph.node[1].doc_string = "node doc"
    graph.node[1].metadata_props.add(key="node", value="meta")
    model.functions[0].metadata_props.add(key="function", value="meta")
    graph.output[0].doc_string = "the raw score"
    graph.output[0].type.denotation = "TENSOR"
    graph.value_info.append(helper.make_tensor_value_info("pred_mask", TensorProto.FLOAT, [1]))
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [1], [2.0])
    indices = helper.make_tensor("sparse_indices", TensorProto.INT64, [1], [0])
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    annotation = graph.quantization_annotation.add(tensor_name="pred_score")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="pred_mask")
    training = model.training_info.add()
    training.update_binding.add(key="pred_mask", value="updated")
    training.algorithm.name = "step"
    training.algorithm.node.append(helper.make_node("Neg", ["pred_mask"], ["updated"]))
    training.algorithm.node.append(helper.make_node("Neg", ["updated"], ["pred_label"]))
    training.algorithm.output.append(helper.make_tensor_value_info("updated", TensorProto.FLOAT, [1]))
    return model


def test_attaching_changes_nothing_but_the_tail() -> None:
    """Undoing gives a proto-equal model: metadata, doc strings, functions, sparse tensors, training, all of it."""
    model = attached(everything())
    record = record_of(model)["original"]
    assert record["renamed"] == {"pred_score": "pred_score_raw", "pred_label": "pred_label_raw"}
    assert names(model) == ["pred_score", "pred_label", "twin"]


def test_renaming_reaches_every_scope_that_sees_the_value() -> None:
    """Nodes, captures in branches, value_info, quantisation and training bindings follow; functions do not."""
    stats = CalibrationStats(image=IMAGE, pixel=PIXEL)
    host = everything()
    host.graph.output.append(helper.make_tensor_value_info("m", TensorProto.FLOAT, ["N", 1, 1]))
    host.graph.node.append(helper.make_node("Identity", ["mm"], ["m"]))
    host.graph.initializer.append(helper.make_tensor("mm", TensorProto.FLOAT, [1, 1, 1], [1.0]))
    model = attached(host, stats)
    graph = model.graph
    assert list(graph.node[1].input) == ["pred_score_raw", "pred_mask_raw"]
    branches = {item.name: item.g for item in graph.node[3].attribute}
    assert list(branches["then_branch"].node[0].input) == ["pred_score_raw", "shifted"]
    assert list(branches["else_branch"].node[0].input) == ["pred_score_raw"]
    assert list(branches["else_branch"].node[0].output) == ["pred_label_raw"]
    assert branches["else_branch"].output[0].name == "pred_label_raw"
    assert "pred_mask_raw" in {item.name for item in graph.initializer}
    assert "pred_mask_raw" in {item.name for item in graph.value_info}
    annotation = graph.quantization_annotation[0]
    assert annotation.tensor_name == "pred_score_raw"
    assert annotation.quant_parameter_tensor_names[0].value == "pred_mask_raw"
    training = model.training_info[0]
    assert training.update_binding[0].key == "pred_mask_raw"
    assert list(training.algorithm.node[0].input) == ["pred_mask_raw"]
    assert list(training.algorithm.node[1].output) == ["pred_label"], "a value of the training graph's own"
    assert list(model.functions[0].node[0].input) == ["pred_score", "pred_score"]
    assert list(model.functions[0].output) == ["anomaly_map"]


def test_a_renamed_model_still_computes_the_same() -> None:
    """A branch that captures a renamed value reads that value, not our output of its old name."""
    host = everything()
    del host.training_info[:]
    del host.graph.sparse_initializer[:]
    del host.graph.quantization_annotation[:]
    del host.opset_import[2]
    feeds = {"x": np.float32([[0.25], [2.0]]), "c": np.array(True)}
    raw, result = run(host, **feeds), run(attached(host, keep_raw=True), **feeds)
    np.testing.assert_array_equal(raw["twin"], result["twin"])
    np.testing.assert_array_equal(raw["pred_score"], result["pred_score_raw"])
    feeds["c"] = np.array(False)
    np.testing.assert_array_equal(run(host, **feeds)["twin"], run(attached(host), **feeds)["twin"])


def test_a_taken_new_name_is_avoided() -> None:
    """The new name of a value is unused in every scope."""
    host = hosts.score_only()
    host.graph.node.append(helper.make_node("Identity", ["pred_score"], ["pred_score_raw"]))
    assert record_of(attached(host))["original"]["renamed"] == {"pred_score": "pred_score_raw_1"}


def test_the_tail_avoids_names_of_the_model() -> None:
    """A model that uses our prefix already keeps its names; ours get a number."""
    host = hosts.score_only()
    host.graph.node.append(helper.make_node("Neg", ["pred_score"], ["postproc/pred_label/less"]))
    model = onnx.ModelProto.FromString(host.SerializeToString())
    OnnxFormat().attach(model, STATS, TailOptions())
    onnx.checker.check_model(model, full_check=True)
    outputs = [name for node in model.graph.node for name in node.output]
    assert len(set(outputs)) == len(outputs)


def test_an_infinite_boundary_is_a_constant_like_any_other() -> None:
    """At sensitivity 1 every score is anomalous, -inf too."""
    model = attached(hosts.identity(map=None), image_sensitivity=1.0)
    result = run(model, score=np.float32([[-np.inf], [0.0], [np.nan]]))
    assert result["pred_label"].reshape(-1).tolist() == [True, True, True]


def test_the_record_says_what_was_attached() -> None:
    """Statistics, options and names stand in the metadata, floats as the shortest decimal of the float32."""
    stats = CalibrationStats(image=LevelStats(threshold=np.float32(0.1), min=0.0, max=1.0))
    record = record_of(attached(hosts.score_and_map(), stats, image_sensitivity=0.3, comparison="gt"))
    assert record["statistics"]["image"]["threshold"] == 0.1
    assert record["options"]["image_sensitivity"] == 0.3
    assert record["options"]["comparison"] == "gt"
    assert record["raw"] == {"image": "pred_score_raw", "pixel": "anomaly_map"}
