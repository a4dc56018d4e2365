"""Exports of Keras and DRAEM by command line, and outputs of other forms: each goes through, or names what mends it."""

from pathlib import Path

import hosts
import numpy as np
import onnx
import pytest
from checks import runtime_of
from conftest import Invoke
from shipped_tails import labelled_images

from postproc_export import CalibrationStats
from postproc_export.runtimes import open_runner

FORMATS = pytest.mark.parametrize("suffix", [".onnx", ".xml"])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven labelled images."""
    return labelled_images(tmp_path_factory.mktemp("set"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@FORMATS
def test_an_export_of_keras_needs_no_option(suffix: str, dataset: Path, folder: Path, invoke: Invoke) -> None:
    """Layout and channel axis are read off the model; what was done is said, checked, and undone."""
    hosts.write(hosts.keras(), Path(f"m{suffix}"))
    found = invoke("calibrate", f"m{suffix}", "--images", dataset, "-o", "s.json")
    assert found.exit_code == 0, found.stderr
    assert ", NHWC, float32" in found.stderr
    details = CalibrationStats.load(folder / "s.json").details
    assert details["preprocessing"]["layout"] == "nhwc"
    assert "tail" not in details
    found = invoke("attach", f"m{suffix}", "--stats", "s.json", "-o", f"p{suffix}")
    assert found.exit_code == 0, found.stderr
    assert "with     channel:axis=last,level=pixel" in found.stdout
    arguments = ("--raw", f"m{suffix}", "--images", dataset, "--runtime", runtime_of(Path(f"m{suffix}")))
    assert invoke("check", f"p{suffix}", *arguments).exit_code == 0
    assert "before   channel:axis=last,level=pixel" in invoke("inspect", f"p{suffix}").stdout
    images = np.random.default_rng(1).random((2, 32, 32, 3)).astype(np.float32)
    outputs = open_runner(f"p{suffix}").run({"input_1": images})
    raw = open_runner(f"m{suffix}").run({"input_1": images})
    stats = CalibrationStats.load(folder / "s.json")
    for level, label, name in ((stats.image, "pred_label", "dense"), (stats.pixel, "pred_mask", "conv2d")):
        assert level is not None
        assert level.threshold is not None
        wanted = raw[name] >= np.float32(level.threshold)
        np.testing.assert_array_equal(outputs[label].astype(bool), wanted.reshape(outputs[label].shape))
    assert invoke("detach", f"p{suffix}", "-o", f"d{suffix}").exit_code == 0
    if suffix == ".onnx":
        assert onnx.load("d.onnx") == onnx.load("m.onnx")


@FORMATS
def test_an_export_of_draem_goes_through_by_one_step(suffix: str, dataset: Path, folder: Path, invoke: Invoke) -> None:
    """The step that the refusal names; statistics ask for the same one, and recorded ones for no other."""
    hosts.write(hosts.draem(), Path(f"m{suffix}"))
    calibrated = ("calibrate", f"m{suffix}", "--images", dataset, "-o", "s.json")
    for options, named in (
        ((), "'probabilities' as the anomaly map, choose one with --step channel:index=1"),
        (("--image-output", "score"), "it has 2 values per image"),
    ):
        found = invoke(*calibrated, *options)
        assert found.exit_code == 2
        assert named in found.stderr
        assert "--step channel:index=1" in found.stderr
    step = ("--step", "channel:index=1")
    assert invoke(*calibrated, *step).exit_code == 0
    for wrong in ((), ("--step", "channel:index=0")):
        found = invoke("attach", f"m{suffix}", "--stats", "s.json", *wrong)
        assert found.exit_code == 2
        assert "channel:index=1,level=image --step channel:index=1,axis=second,level=pixel" in found.stderr
    found = invoke("attach", f"m{suffix}", "--stats", "s.json", *step, "-o", f"p{suffix}")
    assert found.exit_code == 0, found.stderr
    assert invoke("check", f"p{suffix}", "--raw", f"m{suffix}", "--images", dataset, *step).exit_code == 0
    assert "--step channel:index=1,level=image" in invoke("check", f"p{suffix}", "--step", "channel:index=0").stderr


def test_statistics_of_files_belong_to_the_same_step(folder: Path, invoke: Invoke) -> None:
    """Raw outputs that were saved are calibrated behind the step, and attach to the model behind it."""
    hosts.write(hosts.draem(), Path("m.onnx"))
    images = np.random.default_rng(2).random((12, 3, 32, 32)).astype(np.float32)
    raw = open_runner("m.onnx").run({"input": images})
    np.savez("raw.npz", scores=raw["score"], labels=np.arange(12) % 2)
    found = invoke("calibrate", "raw.npz", "-o", "s.json")
    assert found.exit_code == 2
    assert "--step channel:index=1,level=image" in found.stderr
    step = ("--step", "channel:index=1,level=image")
    assert invoke("calibrate", "raw.npz", *step, "-o", "s.json").exit_code == 0
    outputs = ("--image-output", "score", "--pixel-output", "none")
    found = invoke("attach", "m.onnx", "--stats", "s.json", *step, *outputs, "-o", "p.onnx")
    assert found.exit_code == 0, found.stderr
    stats = CalibrationStats.load(folder / "s.json").image
    assert stats is not None
    assert stats.threshold is not None
    label = open_runner("p.onnx").run({"input": images})["pred_label"]
    np.testing.assert_array_equal(label, raw["score"][:, 1] >= np.float32(stats.threshold))


@pytest.mark.parametrize("names", ["n,h,w,c", "n,c,h,w", "batch,a,b,d"])
def test_a_map_of_open_axes_is_not_guessed(names: str, dataset: Path, folder: Path, invoke: Invoke) -> None:
    """What the axes are called is no evidence: attach asks; a calibration runs the model, and sees where they are."""
    axes = names.split(",")
    graph = f"""open ({f"float[{axes[0]},32,32,3]"} x) => (float[{names}] heat)
    <float[1,3,1,1] weight = {{0.5,0.25,0.125}}, int64[1] tail = {{-1}}, int64[1] head = {{0}}> {{
    planes = Transpose<perm = [0,3,1,2]>(x) maps = Conv(planes, weight) turned = Transpose<perm = [0,2,3,1]>(maps)
    shape = Shape(x) count = ReduceMax<keepdims = 1>(x) zero = Mul(count, count) whole = Cast<to = 7>(zero)
    some = Reshape(whole, tail) none = Mul(some, head) sizes = Shape(turned) same = Add(sizes, none)
    heat = Reshape(turned, same) }}"""
    hosts.write(hosts.parse(graph), Path("m.onnx"))
    found = invoke("calibrate", "m.onnx", "--images", dataset, "--pixel-output", "heat", "-o", "s.json")
    assert found.exit_code == 0, found.stderr
    attach = ("attach", "m.onnx", "--stats", "s.json", "--pixel-output", "heat", "-o", "p.onnx")
    found = invoke(*attach)
    assert found.exit_code == 2
    assert f"the channel axis of 'heat' is not known\n  found:   heat: float32 [{', '.join(axes)}]" in found.stderr
    assert not Path("p.onnx").exists()
    assert invoke(*attach, "--step", "channel:axis=last").exit_code == 0
    assert invoke("check", "p.onnx", "--raw", "m.onnx", "--images", dataset, "--runtime", "onnxruntime").exit_code == 0
