"""Attach, update and detach, in any order and number, on random small graphs: always the original back."""

from typing import Any

import onnx
import openvino
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from strategies import comparisons, level_stats, sensitivities

from graph_patterns.errors import UnsupportedOpsetError
from postproc_export.errors import MetadataError, UnsupportedModelError, UsageError
from postproc_export.graphs.onnx.attach import attach_to_onnx_model
from postproc_export.graphs.onnx.detach import detach_from_onnx_model
from postproc_export.graphs.onnx.update import update_onnx_model
from postproc_export.graphs.openvino.attach import attach_to_openvino_model
from postproc_export.graphs.openvino.detach import detach_from_openvino_model
from postproc_export.graphs.openvino.update import update_openvino_model
from postproc_export.graphs.state import Changes
from postproc_export.stats import CalibrationStats
from postproc_export.tail_options import LABEL_DTYPES, TailOptions

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
LABELS = ("pred_label", "pred_mask")
OURS = (*LABELS, "pred_score", "anomaly_map", "output", "image_sensitivity")
OPSETS = ((7, 3), (8, 3), (9, 4), (11, 6), (13, 7), (17, 8), (18, 8), (21, 10))

FORMS: tuple[dict[str, Any], ...] = (
    {},
    {"layout": "packed", "keep_raw": False},
    {"enable_normalization": False},
    {"enable_thresholding": False},
    {"levels": "image"},
    {"levels": "pixel", "enable_normalization": False},
    {"adjustable": "sensitivity", "comparison": "ge"},
    {"adjustable": "boundary"},
)
settled = st.fixed_dictionaries(
    {
        "image_sensitivity": sensitivities,
        "pixel_sensitivity": sensitivities,
        "comparison": comparisons,
        "label_dtype": st.sampled_from(LABEL_DTYPES),
        "mask_dtype": st.sampled_from([*LABEL_DTYPES, None]),
        "keep_raw": st.booleans(),
        "nan_guard": st.booleans(),
    }
)
options = st.builds(lambda drawn, form: TailOptions(**{**drawn, **form}), settled, st.sampled_from(FORMS))
stats = st.builds(CalibrationStats, image=level_stats(), pixel=level_stats())
changes = st.builds(
    Changes,
    image_sensitivity=st.none() | sensitivities,
    comparison=st.none() | comparisons,
    keep_raw=st.none() | st.booleans(),
    label_dtype=st.sampled_from([*LABEL_DTYPES, None]),
    stats=st.none() | stats,
    layout=st.sampled_from([None, None, "separate", "packed"]),
    enable_normalization=st.none() | st.booleans(),
    enable_thresholding=st.none() | st.booleans(),
    adjustable=st.sampled_from([None, None, "nothing", "sensitivity", "boundary"]),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("attach"), stats, options),
        st.tuples(st.just("update"), changes),
        st.tuples(st.just("detach")),
    ),
    max_size=7,
)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Draw a chain of operators on a map, with names that clash with ours, a branch that captures one, more outputs."""
    opset, ir_version = draw(st.sampled_from(OPSETS))
    names = draw(st.permutations(NAMES))
    values, nodes = ["x"], []
    for name in names[: draw(st.integers(1, 5))]:
        op = draw(st.sampled_from(["Relu", "Neg", "Identity", "Abs"]))
        nodes.append(helper.make_node(op, [draw(st.sampled_from(values))], [name], name=f"{op}_of_{name}"))
        values.append(name)
    rest = [name for name in names if name not in values]
    score = next(name for name in rest if name not in LABELS)
    flat, inner = [name for name in rest if name != score][:2]
    if values[-1] in LABELS:  # an output of that name counts as post-processing
        nodes.append(helper.make_node("Relu", [values[-1]], ["d"], name="last"))
        values.append("d")
    anomaly_map = values[-1]
    nodes.append(helper.make_node("GlobalMaxPool", [draw(st.sampled_from(values))], [flat]))
    nodes.append(helper.make_node("Flatten", [flat], [score], axis=1))
    outputs = [_info(score, ["N", 1]), _info(anomaly_map, ["N", 1, "H", "W"])]
    free = [name for name in values[1:-1] if name not in OURS]
    if free and draw(st.booleans()):
        outputs.insert(draw(st.integers(0, 2)), _info(free[0], ["N", 1, "H", "W"]))
    if draw(st.booleans()):
        nodes += _branch(draw(st.sampled_from(values)), inner)
        outputs.append(_info("chosen", ["N", 1, "H", "W"]))
    graph = helper.make_graph(nodes, "random", [_info("x", ["N", 1, "H", "W"])], outputs, doc_string="a graph")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    model.metadata_props.add(key="vendor", value="kept")
    onnx.checker.check_model(model)
    return model, {"image_output": score, "pixel_output": anomaly_map}


def _info(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _branch(captured: str, inner: str) -> list[onnx.NodeProto]:
    body = helper.make_graph(
        [helper.make_node("Neg", [captured], [inner])], "branch", [], [_info(inner, ["N", 1, "H", "W"])]
    )
    condition = helper.make_tensor("", TensorProto.BOOL, [], [True])
    return [
        helper.make_node("Constant", [], ["condition"], value=condition),
        helper.make_node("If", ["condition"], ["chosen"], then_branch=body, else_branch=body),
    ]


class OnnxFormat:
    """The steps on an ONNX model in memory."""

    def attach(self, model: Any, *args: Any, **outputs: Any) -> None:
        """Attach."""
        attach_to_onnx_model(model, *args, **outputs)

    def update(self, model: Any, wanted: Changes) -> bool:
        """Update."""
        return bool(update_onnx_model(model, wanted, keep_dialect=False, where="m"))

    def detach(self, model: Any) -> Any:
        """Detach."""
        return detach_from_onnx_model(model)

    def described(self, model: Any) -> Any:
        """Return everything that a model is; it is legal."""
        onnx.checker.check_model(model)
        return model.SerializeToString(deterministic=True)

    def copy(self, model: Any) -> Any:
        """Return a copy."""
        return onnx.ModelProto.FromString(model.SerializeToString())


class OpenVinoFormat:
    """The steps on an OpenVINO model in memory."""

    def attach(self, model: Any, *args: Any, **outputs: Any) -> None:
        """Attach."""
        attach_to_openvino_model(model, *args, **outputs)

    def update(self, model: Any, wanted: Changes) -> bool:
        """Update."""
        return bool(update_openvino_model(model, wanted, keep_dialect=False, where="m"))

    def detach(self, model: Any) -> Any:
        """Detach."""
        return detach_from_openvino_model(model)

    def described(self, model: Any) -> Any:
        """Return every operator, its operands and names, and the results in order; it is legal."""
        model.validate_nodes_and_infer_types()
        rows = [
            (
                node.get_friendly_name(),
                node.get_type_name(),
                [node.input_value(i).get_node().get_friendly_name() for i in range(node.get_input_size())],
                [sorted(port.get_names()) for port in node.outputs()],
            )
            for node in model.get_ops()
        ]
        return sorted(rows), [result.get_friendly_name() for result in model.get_results()], list(model.rt_info.keys())

    def copy(self, model: Any) -> Any:
        """Return a copy."""
        return model.clone()


def play(form: Any, model: Any, outputs: dict[str, str], sequence: list[tuple[Any, ...]]) -> None:
    """Play the steps; whatever is legal at a step happens, whatever is not leaves the model as it was."""
    original = form.described(model)
    is_attached = False
    for step, *args in sequence:
        before = form.described(model)
        trial = form.copy(model)
        try:
            if step == "attach":
                form.attach(trial, *args, **outputs)
                is_attached = True
            elif step == "update":
                assert form.update(trial, *args) == is_attached
            else:
                assert bool(form.detach(trial)) == is_attached
                is_attached = False
                assert form.described(trial) == original
        except (UnsupportedModelError, MetadataError, UsageError, UnsupportedOpsetError) as error:
            refused: Exception | None = error
        else:
            refused, model = None, trial
        # Refused is a second tail, a boundary that is subnormal, options that contradict each other in an update, a
        # packed or an adjusted tail at an old opset, or a name that another output bears; the model stays as it was.
        legal = isinstance(refused, (MetadataError, UnsupportedOpsetError)) or "is taken" in str(refused)
        assert refused is None or is_attached or legal
        assert not isinstance(refused, UsageError) or step == "update"
        after = form.described(model)
        assert is_attached or after == original
        assert refused is None or after == before
    if is_attached:
        result = form.detach(model)
        assert result.is_original
    assert form.described(model) == original


def play_on_openvino(graph: tuple[onnx.ModelProto, dict[str, str]], sequence: list[tuple[Any, ...]]) -> None:
    """Play the steps on what OpenVINO makes of a graph."""
    proto, outputs = graph
    play(OpenVinoFormat(), openvino.Core().read_model(proto.SerializeToString()), outputs, sequence)


@settings(max_examples=60, deadline=None)
@given(graphs(), steps)
def test_onnx_models_survive_any_sequence(
    graph: tuple[onnx.ModelProto, dict[str, str]], sequence: list[tuple[Any, ...]]
) -> None:
    """Every model on the way is legal, and detaching gives a proto-equal original."""
    play(OnnxFormat(), *graph, sequence)


@settings(max_examples=25, deadline=None)
@given(graphs(), steps)
def test_openvino_models_survive_any_sequence(
    graph: tuple[onnx.ModelProto, dict[str, str]], sequence: list[tuple[Any, ...]]
) -> None:
    """Every model on the way is legal, and detaching gives the same operators, names, results and rt_info."""
    play_on_openvino(graph, sequence)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(graphs(), steps)
def test_onnx_models_survive_many_sequences(
    graph: tuple[onnx.ModelProto, dict[str, str]], sequence: list[tuple[Any, ...]]
) -> None:
    """The same with 1,500 graphs."""
    play(OnnxFormat(), *graph, sequence)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(graphs(), steps)
def test_openvino_models_survive_many_sequences(
    graph: tuple[onnx.ModelProto, dict[str, str]], sequence: list[tuple[Any, ...]]
) -> None:
    """The same with 1,500 graphs."""
    play_on_openvino(graph, sequence)
