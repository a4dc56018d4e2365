"""The forms that keep a map out of blocked layouts: written, read, checked, updated and taken off, as earlier ones are.

`tests/data/earlier` has files whose maps are in the plain form, as every version wrote them before.
"""

from pathlib import Path

import hosts
import numpy as np
import onnx
import openvino
import pytest
from checks import check_briefly
from onnx.reference import ReferenceEvaluator
from tail_forms import STATS, stripped

from postproc_export.attach import attach_postprocessing
from postproc_export.check import check_parity
from postproc_export.detach import detach_postprocessing
from postproc_export.inspect import inspect_model
from postproc_export.stats import CalibrationStats, LevelStats, choose_form
from postproc_export.update import update_postprocessing

EARLIER = Path(__file__).parents[1] / "data" / "earlier"
FILES = sorted(path.name for path in EARLIER.iterdir() if path.suffix in (".onnx", ".xml"))
VIEW = """g (float[N,3,H,W] input) => (float[N,1] pred_score, float[N,1,H,W] anomaly_map)
  <float[1,3,1,1] weights = {0.5, 0.25, 0.125}, int64[4] shape = {-1, 0, 0, 0}> {
  mixed = Conv(input, weights) pred_score = ReduceMax<axes = [2, 3], keepdims = 0>(mixed)
  anomaly_map = Reshape(mixed, shape) }"""  # which ends as a tail begins


VIEWS = """g (float[N,3,H,W] input) => (float[N,1] pred_score, float[N,1,H,W] anomaly_map)
  <float[1,3,1,1] weights = {0.5, 0.25, 0.125}, int64[4] planes = {0, -1, 0, 0}> {
  mixed = Conv(input, weights) shape = Shape(mixed) flat = Reshape(mixed, planes)
  anomaly_map = Reshape(flat, shape) pred_score = ReduceMax<axes = [2, 3], keepdims = 0>(anomaly_map) }"""


def operators(path: Path) -> list[str]:
    """Return the operators of the map's part of a tail, in order."""
    if path.suffix == ".xml":
        nodes = [(op.get_friendly_name(), op.get_type_name()) for op in openvino.Core().read_model(path).get_ops()]
    else:
        nodes = [(node.name, node.op_type) for node in onnx.load(path).graph.node]
    heads = ("postproc/anomaly_map", "postproc/pred_mask", "pred_mask", "anomaly_map")
    return [kind for name, kind in nodes if name.startswith(heads) and kind not in ("Constant", "Result", "Convert")]


def attached(folder: Path, *, ir: bool = False, **options: object) -> Path:
    """Attach to a detector whose map is a view."""
    return attach_postprocessing(hosts.raw_file(hosts.parse(VIEW), folder, ir=ir), STATS, **options).output


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
@pytest.mark.parametrize("threshold", [0.0, 0.5], ids=["fused", "centred"])
def test_no_axis_of_the_map_is_lost(threshold: float, ir: bool, tmp_path: Path) -> None:
    """OpenVINO moves views through operators: a batch of 3 comes out as one, in each form of the score."""
    level = LevelStats(threshold=threshold, min=threshold - 0.5, max=threshold + 0.5)
    assert choose_form(level) == ("fused" if threshold == 0.0 else "centred")
    host = hosts.raw_file(hosts.parse(VIEWS), tmp_path, ir=ir)
    result = attach_postprocessing(
        host, CalibrationStats(image=level, pixel=level), output=tmp_path / f"a{host.suffix}"
    )
    assert check_parity(result.output, count=300, threads=1)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_an_earlier_version_is_read_checked_updated_and_taken_off(name: str, tmp_path: Path) -> None:
    """Its tail is judged by its record and without it; an update writes it in today's form."""
    path = EARLIER / name
    assert check_briefly(path), "the file as it was written"
    updated = update_postprocessing(path, output=tmp_path / f"updated{path.suffix}", pixel_threshold=0.5).output
    assert check_briefly(updated)
    before, after = (detach_postprocessing(item, output=tmp_path / f"{item.stem}_raw{item.suffix}").output
                     for item in (path, updated))  # fmt: skip
    assert before.read_bytes() == after.read_bytes()
    assert operators(before) == [op for op in operators(before) if op not in ("HardSigmoid", "Less")]


@pytest.mark.parametrize("name", [name for name in FILES if "view" not in name and "no_labels" not in name])
def test_an_earlier_tail_is_known_without_its_record(name: str, tmp_path: Path) -> None:
    """The numbers are read from the graph itself."""
    path = tmp_path / name
    for part in EARLIER.glob(f"{path.stem}.*"):
        (tmp_path / part.name).write_bytes(part.read_bytes())
    levels = inspect_model(stripped(path)).to_json()["levels"]
    assert {level["tail"] for level in levels.values()} == {"postproc_export"}


def test_a_view_of_the_host_is_not_the_tails(tmp_path: Path) -> None:
    """A host that ends in the view that a tail begins with keeps it, with labels and without, in either form."""
    raw = hosts.parse(VIEW).graph.node
    for options in ({}, {"enable_thresholding": False}):
        path = attached(tmp_path, output=tmp_path / f"{len(options)}.onnx", **options)
        assert check_parity(path, count=300, threads=1)
        for file in (path, stripped(path), EARLIER / ("no_labels.onnx" if options else "ends_in_a_view.onnx")):
            back = detach_postprocessing(file, output=tmp_path / f"{len(options)}_{file.stem}_back.onnx").output
            assert [node.op_type for node in onnx.load(back).graph.node] == [node.op_type for node in raw], file


def test_the_forms_of_both_formats(tmp_path: Path) -> None:
    """What is written for a map, and that nothing asks for a shape to guard a score whose batch is the map's."""
    path = attached(tmp_path, output=tmp_path / "a.onnx")
    assert operators(path) == ["Reshape", "HardSigmoid", "Less", "Squeeze", "Not"]
    assert "Shape" not in [node.op_type for node in onnx.load(path).graph.node]
    ir = operators(attached(tmp_path, ir=True, output=tmp_path / "a.xml"))
    assert sorted(ir) == ["HardSigmoid", "Less", "LogicalNot", "Reshape", "Squeeze"], "the Reshape is the host's"


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("images", [0, 1, 3])
def test_empty_batches_and_channels_that_are_left_open(channels: int, images: int, tmp_path: Path) -> None:
    """The views take any number of images and channels, in ONNX's reference implementation and in OpenVINO."""
    host = hosts.parse("g (float[N,C,H,W] x) => (float[N,C,H,W] anomaly_map) { anomaly_map = Relu(x) }")
    path = attach_postprocessing(hosts.raw_file(host, tmp_path), STATS, levels="pixel").output
    maps = np.random.default_rng(0).normal(0.25, 1.0, (images, channels, 3, 5)).astype(np.float32)
    expected = np.maximum(maps, 0) >= np.float32(0.25)
    unit, mask = ReferenceEvaluator(str(path)).run(None, {"x": maps})
    assert unit.shape == maps.shape
    np.testing.assert_array_equal(mask, expected)
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_array_equal(compiled([maps])["pred_mask"], expected)
