"""Classes of one's own that cannot stand before a tail: each refused with a reason, and nothing written."""

import re
from pathlib import Path
from typing import Any

import hosts
import onnx
import own_tails
import pytest
import torch
from onnx import parser

from postproc_export import CalibrationStats, attach_postprocessing
from postproc_export.errors import UnsupportedModelError, UsageError
from postproc_export.formats.onnx import OnnxFormat
from postproc_export.record import TailSpec
from postproc_export.stats import LevelStats
from postproc_export.steps.user import eager_own
from postproc_export.steps.user_export import fragment_of, inlined, put_own

BUILDING = {
    "own_tails:Absent": r"there is no 'Absent'",
    "no_such_module_at_all:Class": r"cannot import no_such_module_at_all:Class",
    "own_tails:NoModule": r"gives no torch.nn.Module\n  found:   NoModule\n  needed:  package.module:Class",
    "own_tails:NOT_CALLABLE": r"cannot be called",
    "own_tails:NeedsArguments": r"missing 1 required positional argument: 'sigma'(.|\n)*fix:.*package.module:factory",
    "own_tails:OtherForward": r"takes other arguments\n  found:   forward\(predictions(.|\n)*pred_score, anomaly_map",
    "own_tails:Drawn": r"other weights each time",
}
RUNNING = {
    "Dropping": "another result each time",
    "InPlace": "changes its input in place",
    "Failing": r"does not run on pred_score: float32 \[2, 1\], anomaly_map(.|\n)*ValueError: no kernel here",
    "Numbers": r"a pred_score that is no tensor\n  found:   float",
    "Alone": r"something else than a score and a map\n  found:   Tensor",
    "Labelled": "gives 'pred_label'",
    "OtherRank": r"anomaly_map in another rank\n  found:   anomaly_map: float32 \[2, 96, 128\]",
    "OtherType": r"anomaly_map in another element type\n  found:   anomaly_map: bool",
    "OneForAll": r"pred_score in another shape\n  found:   pred_score: float32 \[1, 1\]",
    "Forgetful": "gives no pred_score, which the model has",
}


def put(name: str, *, opset: int) -> onnx.ModelProto:
    """Put a class of `own_tails` into a host."""
    model = hosts.score_and_map(opset=opset)
    put_own(OnnxFormat(), model, TailSpec(f"own_tails:{name}", {}), {"image_output": None, "pixel_output": None})
    return model


@pytest.mark.parametrize(("name", "message"), BUILDING.items(), ids=BUILDING)
def test_a_class_that_cannot_be_built_is_refused(name: str, message: str) -> None:
    """The reason says what was found at that name."""
    with pytest.raises(UsageError, match=message):
        eager_own(TailSpec(name, {}))


@pytest.mark.parametrize(("name", "message"), RUNNING.items(), ids=RUNNING)
def test_a_class_that_gives_something_else_is_refused(name: str, message: str) -> None:
    """The reason names the level, what was found and what is needed."""
    with pytest.raises(UnsupportedModelError, match=message):
        put(name, opset=14)


@pytest.mark.parametrize(
    ("name", "opset", "messages"),
    [
        pytest.param(
            "DataDependent",
            14,
            (r"by torch.export: .*data-dependent", r"by TorchScript: Converting a tensor .*own_tails.py:\d+\)"),
            id="branch-on-a-value",
        ),
        pytest.param(
            "Freezing",
            18,
            (
                r"by torch.export: .*static shape of 128",
                r"by TorchScript: .*not what the class is at .*\[1, 1, 160, 192\]",
            ),
            id="frozen-axis",
        ),
    ],
)
def test_what_an_export_would_freeze_is_refused(name: str, opset: int, messages: tuple[str, str]) -> None:
    """Neither exporter's graph is taken where a size or a branch became a constant; what each of them did is said."""
    with pytest.raises(UnsupportedModelError, match=f"cannot be exported at opset {opset}, that of the host") as caught:
        put(name, opset=opset)
    assert all(re.search(message, str(caught.value)) for message in messages)


def test_another_opset_is_refused_with_both_opsets_named() -> None:
    """The host is not converted: an operator since opset 18 stays out of a host at 14, and goes into one at 18."""
    with pytest.raises(UnsupportedModelError, match="cannot be exported at opset 14") as caught:
        put("SinceOpset18", opset=14)
    assert "by torch.export: what came out has opset 18" in str(caught.value)
    assert "by TorchScript: UnsupportedOperatorError" in str(caught.value)
    assert "Resize" in {node.op_type for node in put("SinceOpset18", opset=18).graph.node}


def test_the_other_exporter_is_tried() -> None:
    """An operator of another domain, as one exporter writes it, is not spliced where the other has one of ONNX."""
    model = put("Foreign", opset=14)
    assert {node.domain for node in model.graph.node} == {""}
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 14)]


def test_a_mode_that_a_constructor_sets_is_evaluation() -> None:
    """A layer that was built in training mode computes as in evaluation, in the reference and in the export."""
    tail = eager_own(TailSpec("own_tails:TrainedFurther", {}))
    assert not any(part.training for part in tail.module.modules())
    score, anomaly_map = tail(torch.zeros(1, 1), torch.ones(1, 1, 2, 2))
    assert score is not None
    assert anomaly_map is not None
    assert anomaly_map.tolist() == [[[[2.0, 2.0], [2.0, 2.0]]]]
    assert "Dropout" not in {node.op_type for node in put("TrainedFurther", opset=14).graph.node}


def test_functions_are_spliced_as_nodes() -> None:
    """The body of a function stands where it was called, its own names included."""
    text = """<ir_version: 8, opset_import: ["" : 18, "own" : 1]>
        graph (float[N] score) => (float[N] made_score) { made_score = own.twice(score) }
        <domain: "own", opset_import: ["" : 18]> twice (x) => (y) { y = Add(x, x) }"""
    model = parser.parse_model(text)
    plain = inlined(model)
    assert not plain.functions
    fragment = fragment_of(plain.graph, {"score": "raw", "made_score": "new"}, taken={"raw"}, ir_version=8)
    assert [(node.op_type, node.domain, list(node.input), list(node.output)) for node in fragment.node] == [
        ("Add", "", ["raw", "raw"], ["new"])
    ]


def test_a_constant_output_is_computed_by_a_node() -> None:
    """An output that is a constant of the export bears no name of the host: it would stay when the layer is removed."""
    text = """<ir_version: 8, opset_import: ["" : 18]>
        graph (float[1] score) => (float[1] made_score) <float[1] made_score = {1.0}> { }"""
    fragment = fragment_of(
        parser.parse_model(text).graph, {"score": "raw", "made_score": "new"}, taken=(), ir_version=8
    )
    assert [tensor.name for tensor in fragment.initializer] == ["postproc/transform/made_score_constant"]
    assert [list(node.output) for node in fragment.node] == [["new"]]


@pytest.mark.parametrize("name", ["NeedsArguments", "DataDependent"])
def test_the_command_line_says_so_in_one_message(name: str, invoke: Any, tmp_path: Path) -> None:
    """Exit code 2, no traceback, no output of an exporter, no file."""
    level = LevelStats(threshold=0.5, min=0.0, max=1.0)
    stats = CalibrationStats(image=level, pixel=level, details={"tail": [TailSpec(f"own_tails:{name}", {}).to_json()]})
    stats.save(tmp_path / "stats.json")
    model = hosts.write(hosts.score_and_map(opset=18), tmp_path / "m.onnx")
    target = tmp_path / "o.onnx"
    result = invoke("attach", model, "--stats", tmp_path / "stats.json", "-o", target, "--step", f"own_tails:{name}")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert f"own_tails:{name}" in result.stderr
    assert "Traceback" not in result.stderr
    assert "graph(" not in result.stderr
    assert not target.exists()


def test_statistics_of_the_raw_outputs_are_refused(tmp_path: Path) -> None:
    """A class changes the range, so its statistics are those behind it."""
    level = LevelStats(threshold=0.5, min=0.0, max=1.0)
    model = hosts.write(hosts.score_and_map(opset=14), tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="not those behind this tail") as caught:
        attach_postprocessing(model, CalibrationStats(image=level, pixel=level), tail="own_tails:Halved")
    assert "own_tails:Halved" in str(caught.value)
    assert issubclass(own_tails.Halved, torch.nn.Module)
