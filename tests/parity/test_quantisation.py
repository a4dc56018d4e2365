"""Quantising by nncf: docs/quantisation.md runs as it stands, and its scope is what keeps the tail float32."""

import logging
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
from image_files import save
from onnx import TensorProto, helper, numpy_helper

from postproc_export import CalibrationStats, LevelStats, attach_postprocessing, check_parity
from postproc_export.check.attached_files import load_attached
from postproc_export.check.inputs import array_inputs
from postproc_export.check.preserved_files import compare_files
from postproc_export.check.ways import tail_patterns, with_int8
from postproc_export.cli import main
from postproc_export.runtimes import PortInfo
from postproc_export.runtimes.openvino import without_telemetry

with without_telemetry():
    import nncf

PAGE = (Path(__file__).parents[2] / "docs" / "quantisation.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", PAGE, re.DOTALL)
SCOPE = "postproc/.*"
nncf.set_log_level(logging.ERROR)
FAR = CalibrationStats(  # so far from zero that the tail subtracts first
    image=LevelStats(threshold=100.3, min=99.9, max=100.7), pixel=LevelStats(threshold=100.2, min=99.9, max=100.7)
)


def network(folder: Path) -> Path:
    """Write a small convolutional network with a score and a map as an IR."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (1, 8, 1, 1)}
    weights = [
        numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(np.float32), name) for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["c1"], pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1] * 4),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Conv", ["r2", "w3"], ["anomaly_map"]),
        helper.make_node("ReduceMax", ["anomaly_map"], ["pred_score"], axes=[2, 3], keepdims=0),
    ]
    info = helper.make_tensor_value_info
    outputs = [info("pred_score", TensorProto.FLOAT, [1, 1]), info("anomaly_map", TensorProto.FLOAT, [1, 1, 32, 32])]
    graph = helper.make_graph(nodes, "net", [info("input", TensorProto.FLOAT, [1, 3, 32, 32])], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "raw.onnx")
    openvino.save_model(openvino.Core().read_model(folder / "raw.onnx"), folder / "raw.xml", compress_to_fp16=False)
    return folder / "raw.xml"


def images(folder: Path) -> None:
    """Write normal images, and darker ones with a bright patch and its mask, in MVTec AD's layout."""
    rng = np.random.default_rng(1)
    for index in range(6):
        pixels = rng.integers(80, 160, (32, 32, 3), np.uint8)
        save(folder / "validation" / "good" / f"{index}.png", pixels)
        mask = np.zeros((32, 32), np.uint8)
        mask[8:20, 8:20] = 255
        pixels[mask > 0] = 255
        save(folder / "validation" / "patch" / f"{index}.png", pixels)
        save(folder / "validation" / "ground_truth" / "patch" / f"{index}_mask.png", mask)


def fake_quantised(model: Any) -> set[str]:
    """Return the operators that read a quantised value."""
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() == "FakeQuantize"]
    return {
        reader.get_node().get_friendly_name()
        for node in nodes
        for output in node.outputs()
        for reader in output.get_target_inputs()
    }


def test_the_page_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Both ways end in files that check passes; the INT8 model has thresholds of its own."""
    network(tmp_path)
    images(tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    assert [language for language, _ in BLOCKS].count("python") == 2
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text, "docs/quantisation.md", "exec"), names)
            continue
        for line in text.strip().splitlines():
            program, *arguments = shlex.split(line)
            assert program == "postproc-export"
            code = main(arguments)
            assert code == 0, f"{line}\n{capfd.readouterr()}"
    before, after = (CalibrationStats.load(tmp_path / name) for name in ("stats.json", "int8-stats.json"))
    assert before.pixel is not None
    assert after.pixel is not None
    assert before.pixel.threshold != after.pixel.threshold
    assert CalibrationStats.load(tmp_path / "int8-again.json").pixel is not None
    core = openvino.Core()
    for name in ("int8.post.xml", "attached.int8.new.xml"):
        model = core.read_model(tmp_path / name)
        assert len(fake_quantised(model)) == 3
        assert not [reader for reader in fake_quantised(model) if reader.startswith("postproc/")]
    assert compare_files(tmp_path / "int8.xml", tmp_path / "int8.post.xml")


@pytest.mark.parametrize("scope", [True, False], ids=["with-the-scope", "without-it"])
def test_the_scope_keeps_the_tail_float32(scope: bool, tmp_path: Path) -> None:
    """Without it the longer form's decision is made on a quantised value, and check finds the tail changed."""
    attached = attach_postprocessing(network(tmp_path), FAR, output=tmp_path / "attached.xml").output
    samples = np.random.default_rng(2).random((8, 1, 3, 32, 32)).astype(np.float32)
    ignored = {"ignored_scope": nncf.IgnoredScope(patterns=[SCOPE])} if scope else {}
    model = nncf.quantize(openvino.Core().read_model(attached), nncf.Dataset(samples), subset_size=8, **ignored)
    readers = fake_quantised(model)
    assert len(readers) >= 3, "the model itself is quantised"
    assert any(reader.startswith("postproc/") for reader in readers) != scope
    openvino.save_model(model, tmp_path / "int8.xml", compress_to_fp16=False)
    report = check_parity(tmp_path / "int8.xml", count=2_000, threads=1)
    assert bool(report) == scope, report.describe()


@pytest.mark.parametrize("options", [{}, {"layout": "packed"}, {"levels": "image"}], ids=["all", "packed", "one-level"])
@pytest.mark.parametrize("suffix", ["onnx", "xml"])
def test_check_quantises_all_of_the_model_and_nothing_of_its_tail(
    suffix: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """The model's last convolution is quantised whatever its name has become, and no operator of the tail is."""
    raw = network(tmp_path).with_suffix(f".{suffix}")
    path = attach_postprocessing(raw, FAR, output=tmp_path / f"attached.{suffix}", **options).output
    attached = load_attached(path)
    samples = np.random.default_rng(2).random((8, 3, 32, 32)).astype(np.float32)
    inputs = array_inputs({"input": samples}, (PortInfo("input", "float32", (1, 3, 32, 32)),))
    model = with_int8(attached.tapped(tmp_path, attached.taps), inputs, 1, given={}, ignored=tail_patterns(attached))
    readers = {node.get_friendly_name(): node.get_type_name() for node in model.get_ordered_ops()}
    assert sorted(readers[name] for name in fake_quantised(model)) == ["Convolution"] * 3
