"""Records that lie: refused or said, by every command, and never acted on; nothing certain is told of them."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hosts
import onnx
import openvino
import pytest
from checks import runtime_of
from onnx import TensorProto, helper

from graph_patterns.expr import GraphPatternError
from postproc_export.attach import attach_postprocessing
from postproc_export.cli import main
from postproc_export.detach import detach_postprocessing
from postproc_export.errors import MetadataError, PostprocError
from postproc_export.inspect import inspect_model
from postproc_export.stats import CalibrationStats, LevelStats
from postproc_export.update import update_postprocessing

KEY = "postproc_export"
STATS = CalibrationStats(
    image=LevelStats(threshold=0.5, min=0.0, max=2.0), pixel=LevelStats(threshold=0.25, min=-1.0, max=1.0)
)
Lie = Callable[[dict[str, Any]], object]


def port(name: str, dtype: int = TensorProto.FLOAT, shape: Any = ("N", 1)) -> str:
    """Return an output as a record keeps it."""
    item = helper.make_tensor_value_info(name, dtype, None if shape is None else list(shape))
    return base64.b64encode(item.SerializeToString()).decode()


def nested(depth: int) -> Any:
    """Return lists within each other."""
    made: Any = "x"
    for _ in range(depth):
        made = [made]
    return made


def put(*path: str, value: Any) -> Lie:
    """Return a lie that puts a value into the record."""

    def lie(record: dict[str, Any]) -> None:
        for key in path[:-1]:
            record = record.setdefault(key, {})
        record[path[-1]] = value

    return lie


def drop(*path: str) -> Lie:
    """Return a lie that leaves something out of the record."""

    def lie(record: dict[str, Any]) -> None:
        for key in path[:-1]:
            record = record[key]
        del record[path[-1]]

    return lie


EITHER: dict[str, Lie] = {
    "renamed_onto_a_weight": put("original", "renamed", "pred_score", value="weight"),
    "renamed_what_nothing_took": put("original", "renamed", "input", value="input_raw"),
    "renamed_no_text": put("original", "renamed", "pred_score", value=["pred_score_raw"]),
    "renamed_a_list": put("original", "renamed", value=["pred_score"]),
    "renamed_two_to_one": put("original", "renamed", value={"pred": "pred_score_raw", "pred_score": "pred_score_raw"}),
    "renamed_in_a_circle": put(
        "original", "renamed", value={"pred_score": "pred_score_raw", "pred_score_raw": "pred_score_raw_raw"}
    ),
    "renamed_deeply": put("original", "renamed", value={"pred_score": nested(900)}),
    "raw_unknown_level": put("raw", "patch", value="weight"),
    "raw_no_text": put("raw", "image", value=3),
    "raw_none": put("raw", value={}),
    "options_switch_as_text": put("options", "keep_raw", value="no"),
    "options_switch_as_number": put("options", "nan_guard", value=1),
    "options_nan": put("options", "image_sensitivity", value=float("nan")),
    "options_sensitivity_as_text": put("options", "image_sensitivity", value="0.5"),
    "options_unknown_rule": put("options", "comparison", value="lt"),
    "options_no_labels": put("options", "enable_thresholding", value=False),
    "options_no_scores": put("options", "enable_normalization", value=False),
    "options_packed": put("options", "layout", value="packed"),
    "options_other_labels": put("options", "label_dtype", value="uint8"),
    "statistics_without_a_level": drop("statistics", "image"),
    "statistics_nan": put("statistics", "image", "threshold", value=float("nan")),
    "statistics_empty_range": put("statistics", "image", "max", value=0.0),
    "version_no_text": put("version", value=1),
    "version_of_the_record": put("record_version", value=2),
    "no_original": drop("original"),
    "deep": put("statistics", "note", value=nested(900)),
    "deeper": put("statistics", "note", value=nested(300)),
}
ONNX: dict[str, Lie] = {
    "outputs_none": put("original", "outputs", value=[]),
    "outputs_one_text": put("original", "outputs", value=port("pred_score")),
    "outputs_no_base64": put("original", "outputs", value=["%"]),
    "outputs_twice": put("original", "outputs", value=[port("pred_score"), port("pred_score")]),
    "outputs_unnamed": put("original", "outputs", value=[port("")]),
    "outputs_nothing_of_the_model": put("original", "outputs", value=[port("ghost")]),
    "outputs_only_a_weight": put("original", "outputs", value=[port("weight", shape=(1, 3, 1, 1))]),
    "outputs_only_the_input": put("original", "outputs", value=[port("input", shape=("N", 3, "H", "W"))]),
    "outputs_another_type": lambda record: record["original"]["outputs"].__setitem__(
        0, port("pred_score", TensorProto.DOUBLE)
    ),
    "outputs_no_float": lambda record: record["original"]["outputs"].__setitem__(
        0, port("pred_score", TensorProto.INT64)
    ),
    "outputs_another_rank": lambda record: record["original"]["outputs"].__setitem__(0, port("pred_score", shape=())),
    "outputs_another_size": lambda record: record["original"]["outputs"].__setitem__(
        0, port("pred_score", shape=("N", 7))
    ),
    "raw_is_an_input": put("raw", "image", value="input"),
    "raw_is_a_weight": put("raw", "image", value="weight"),
    "raw_is_of_the_other_level": put("raw", "image", value="anomaly_map_raw"),
    "raw_without_a_level": drop("raw", "image"),
    "raw_of_both_swapped": put("raw", value={"image": "anomaly_map_raw", "pixel": "pred_score_raw"}),
    "renamed_nothing": drop("original", "renamed"),
    "import_as_text": put("original", "added_opset_import", value="17"),
    "import_as_switch": put("original", "added_opset_import", value=True),
}
IR: dict[str, Lie] = {
    "results_none": put("original", "results", value=[]),
    "results_no_list": put("original", "results", value="pred_score"),
    "results_no_name": put("original", "results", value=[{"source": "pred_score", "port": 0}]),
    "results_twice": lambda record: record["original"]["results"].append(record["original"]["results"][0]),
    "results_of_the_tail": put(
        "original", "results", value=[{"name": "r", "source": "postproc/pred_score/hard_sigmoid", "port": 0}]
    ),
    "results_nothing_of_the_model": put("original", "results", value=[{"name": "r", "source": "ghost", "port": 0}]),
    "results_only_the_input": put("original", "results", value=[{"name": "r", "source": "input", "port": 0}]),
    "raw_is_an_input": put("raw", "image", value="input:0"),
    "raw_is_of_the_other_level": lambda record: record["raw"].update(image=record["raw"]["pixel"]),
    "raw_without_a_level": drop("raw", "image"),
}


def told(folder: Path, lie: Lie, *, suffix: str, host: onnx.ModelProto | None = None) -> Path:
    """Attach to a host, and let the record of the file lie."""
    host = hosts.score_and_map() if host is None else host
    source, target = folder / f"host{suffix}", folder / f"attached{suffix}"
    hosts.write(host, source)
    attach_postprocessing(source, STATS, output=target)
    if suffix == ".onnx":
        model = onnx.load(target)
        entry = next(item for item in model.metadata_props if item.key == KEY)
        record = json.loads(entry.value)
        lie(record)
        entry.value = json.dumps(record)
        onnx.save(model, target)
        return target
    read = openvino.Core().read_model(target)
    record = json.loads(read.get_rt_info([KEY]).astype(str))
    lie(record)
    read.set_rt_info(json.dumps(record), KEY)
    openvino.save_model(read, folder / "lying.xml", compress_to_fp16=False)
    return folder / "lying.xml"


CASES = [
    *(
        pytest.param(lie, suffix, id=f"{suffix[1:]}-{name}")
        for suffix in (".onnx", ".xml")
        for name, lie in EITHER.items()
    ),
    *(pytest.param(lie, ".onnx", id=f"onnx-{name}") for name, lie in ONNX.items()),
    *(pytest.param(lie, ".xml", id=f"xml-{name}") for name, lie in IR.items()),
]


@pytest.mark.parametrize(("lie", "suffix"), CASES)
def test_a_record_that_lies_is_not_acted_on(lie: Lie, suffix: str, tmp_path: Path) -> None:
    """Detaching and updating are refused, and nothing is written; a check fails; inspecting is certain of nothing."""
    path = told(tmp_path, lie, suffix=suffix)
    before = sorted(tmp_path.iterdir())
    for act in (detach_postprocessing, lambda *args, **kw: update_postprocessing(*args, image_sensitivity=0.3, **kw)):
        with pytest.raises((PostprocError, GraphPatternError)):
            act(path, output=tmp_path / f"out{suffix}")
    assert main(["check", str(path), "--runtime", runtime_of(path)]) != 0
    assert sorted(tmp_path.iterdir()) == before
    try:
        levels = inspect_model(path).levels
    except PostprocError:
        return
    assert not any(report.certain for report in levels.values() if report is not None)
    assert any("record" in note for report in levels.values() if report is not None for note in report.notes)


SAID: dict[str, tuple[Lie, str]] = {
    "import_that_is_needed": (put("original", "added_opset_import", value=17), "operator set 17"),
    "import_of_its_ir_version": (put("original", "added_opset_import", value=15), "operator set 15"),
    "import_of_no_version": (put("original", "added_opset_import", value=-1), "operator set -1"),
    "renamed_and_not_there": (
        put("original", "renamed", "pred_label", value="pred_label_raw"),
        "'pred_label_raw' is not in the model",
    ),
    "one_output_more": (
        lambda record: record["original"]["outputs"].append(port("ghost")),
        "the output 'ghost' of the original is not in the model",
    ),
    "the_input_as_one_output_more": (
        lambda record: record["original"]["outputs"].append(port("input", shape=("N", 3, "H", "W"))),
        "the output 'input' of the original is not in the model",
    ),
}


def test_a_model_with_two_records_is_refused(tmp_path: Path) -> None:
    """Readers differ in which one they take."""
    path = told(tmp_path, lambda _: None, suffix=".onnx")
    model = onnx.load(path)
    model.metadata_props.add(key=KEY, value=model.metadata_props[-1].value)
    onnx.save(model, path)
    for command in ("detach", "inspect", "check"):
        assert main([command, str(path)]) == 2


@pytest.mark.parametrize("kind", ["input", "output"])
def test_what_the_original_had_was_not_renamed(kind: str, tmp_path: Path) -> None:
    """An input never moves, and a new name is none that the original had; whoever says so lies."""
    host = hosts.score_and_map()
    heat = helper.make_node("Identity", ["input"], ["pred_mask_raw"])
    if kind == "output":
        host.graph.node.append(heat)
        host.graph.output.append(helper.make_tensor_value_info("pred_mask_raw", TensorProto.FLOAT, None))
    else:
        host.graph.input.append(helper.make_tensor_value_info("pred_mask_raw", TensorProto.FLOAT, [1]))
    path = told(tmp_path, put("original", "renamed", "pred_mask", value="pred_mask_raw"), suffix=".onnx", host=host)
    with pytest.raises(MetadataError, match="pred_mask_raw"):
        detach_postprocessing(path, output=tmp_path / "out.onnx")


@pytest.mark.parametrize(("lie", "text"), SAID.values(), ids=SAID)
def test_what_another_tool_may_have_taken_away_is_said(lie: Lie, text: str, tmp_path: Path) -> None:
    """Such a model is detached, nothing that is needed is removed, and nobody calls it the original."""
    path = told(tmp_path, lie, suffix=".onnx")
    result = detach_postprocessing(path, output=tmp_path / "out.onnx")
    assert not result.is_original
    assert any(text in note for note in result.notes)
    model = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert main(["check", str(path), "--runtime", runtime_of(path)]) == 1
    assert model == onnx.load(tmp_path / "host.onnx")
    levels = inspect_model(path).levels
    assert not any(report.certain for report in levels.values() if report is not None)


@pytest.mark.parametrize(("opset", "ir_version"), [(9, 4), (15, 8), (21, 10)])
def test_an_import_that_nodes_need_is_never_removed(opset: int, ir_version: int, tmp_path: Path) -> None:
    """Also where it is the one that attaching would have added."""
    host = hosts.score_and_map(opset=opset, ir_version=ir_version)
    path = told(tmp_path, put("original", "added_opset_import", value=opset), suffix=".onnx", host=host)
    result = detach_postprocessing(path, output=tmp_path / "out.onnx")
    assert result.notes == (f"the import of operator set {opset} stays: nodes of the model need it",)
    assert onnx.load(tmp_path / "out.onnx") == host
    assert not any(report.certain for report in inspect_model(path).levels.values() if report is not None)


IR_SAID: dict[str, tuple[Lie, str]] = {
    "renamed_and_not_there": (
        put("original", "renamed", "pred_label", value="pred_label_raw"),
        "'pred_label_raw' is not called 'pred_label' again",
    ),
    "one_output_more": (
        lambda record: record["original"]["results"].append({"name": "more", "source": "ghost", "port": 0}),
        "the output 'more' of the original is not in the model any more",
    ),
    "the_input_as_one_output_more": (
        lambda record: record["original"]["results"].append({"name": "more", "source": "input", "port": 0}),
        "the output 'more' of the original is not in the model any more",
    ),
}


@pytest.mark.parametrize(("lie", "text"), IR_SAID.values(), ids=IR_SAID)
def test_what_another_tool_may_have_taken_out_of_an_ir_is_said(lie: Lie, text: str, tmp_path: Path) -> None:
    """Such an IR is detached, and nobody calls it the original."""
    path = told(tmp_path, lie, suffix=".xml")
    result = detach_postprocessing(path, output=tmp_path / "out.xml")
    assert (result.is_original, result.notes) == (False, (text,))
    assert (tmp_path / "out.xml").read_bytes() == (tmp_path / "host.xml").read_bytes()
    assert not any(report.certain for report in inspect_model(path).levels.values() if report is not None)


def test_an_ir_whose_raw_values_are_not_there_is_rebuilt_from_its_tail(tmp_path: Path) -> None:
    """The record is left aside, which is said; inspecting is certain of nothing."""
    path = told(tmp_path, put("raw", "image", value="ghost:0"), suffix=".xml")
    result = detach_postprocessing(path, output=tmp_path / "out.xml")
    assert result.notes[0] == "the record was left aside: it names raw values that are not in the model: 'ghost:0'"
    report = inspect_model(path).levels["image"]
    assert report is not None
    assert not report.certain
    assert any("'ghost:0'" in note for note in report.notes)
