"""`attach_postprocessing()` on files: what is written where, and what happens to a run that cannot finish."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graph_patterns.expr import ExplainedError, ModelFileError
from postproc_export import CalibrationStats, LevelStats, attach_postprocessing
from postproc_export.errors import FileError, UnsupportedModelError, UsageError
from postproc_export.runtimes import open_runner

STATS = CalibrationStats(
    image=LevelStats(threshold=0.5, min=0.0, max=2.0), pixel=LevelStats(threshold=0.25, min=-1.0, max=1.0)
)
NAMES = ("pred_score", "pred_label", "anomaly_map", "pred_mask")
IMAGES = np.arange(2 * 3 * 4 * 4, dtype=np.float32).reshape(2, 3, 4, 4) / 64 - 0.5


@pytest.fixture(params=["onnx", "openvino"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A raw model in a folder of its own, in either format."""
    folder = tmp_path / "raw"
    folder.mkdir()
    if request.param == "onnx":
        return hosts.write(hosts.score_and_map(), folder / "model.onnx")
    return hosts.to_ir(hosts.score_and_map(), folder / "model.xml")


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file in a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def run(path: Path) -> dict[str, Any]:
    """Run a model on the test images."""
    return open_runner(path, threads=1).run({"input": IMAGES})


def check_outputs(path: Path) -> None:
    """The file gives the four outputs of the host and the statistics."""
    raw, result = hosts.expected(IMAGES), run(path)
    assert tuple(result)[:4] == NAMES
    np.testing.assert_array_equal(result["pred_label"].astype(bool), raw["pred_score"] >= 0.5)
    np.testing.assert_array_equal(result["pred_mask"].astype(bool), raw["anomaly_map"] >= 0.25)


def test_the_default_output_stands_beside_the_input(model: Path) -> None:
    """`model.onnx` becomes `model.post.onnx`; the input is untouched and nothing else is left behind."""
    before = contents(model.parent)
    result = attach_postprocessing(model, STATS)
    assert result.output == model.with_suffix(f".post{model.suffix}")
    assert result.output_names == NAMES
    check_outputs(result.output)
    after = contents(model.parent)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {path.name for path in files_of(result.output)}


def files_of(path: Path) -> list[Path]:
    """Return the files that a model consists of."""
    return [path] if path.suffix == ".onnx" else [path, path.with_suffix(".bin")]


def test_statistics_may_be_a_file(model: Path, tmp_path: Path) -> None:
    """A path is as good as the object, and the summary shows what was decided."""
    STATS.save(tmp_path / "stats.json")
    result = attach_postprocessing(str(model), str(tmp_path / "stats.json"), output=tmp_path / f"out{model.suffix}")
    assert "pred_score and pred_label: anomalous from raw 0.5 on" in result.summary()
    check_outputs(tmp_path / f"out{model.suffix}")


def test_two_runs_give_the_same_bytes(model: Path, tmp_path: Path) -> None:
    """Attaching is deterministic."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        attach_postprocessing(model, STATS, output=tmp_path / name / f"out{model.suffix}")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_writing_onto_the_input_has_to_be_asked_for(model: Path) -> None:
    """Without `in_place` the input's path is refused; with it, the input becomes the output."""
    before = contents(model.parent)
    with pytest.raises(FileError, match="in_place=True"):
        attach_postprocessing(model, STATS, output=model)
    assert contents(model.parent) == before
    attach_postprocessing(model, STATS, in_place=True)
    check_outputs(model)
    assert set(contents(model.parent)) == set(before)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("model.pt", None, r"model.pt is a PyTorch checkpoint, and no exported model\n"),
        ("model.tflite", None, r"is not an exported model\n.*'.tflite'"),
        ("model.onnx", "out.xml", "cannot write an ONNX model to out.xml"),
        ("model.xml", "out.onnx", "cannot write an OpenVINO IR to out.onnx"),
    ],
)
def test_a_wrong_suffix_is_refused(
    source: str, target: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only .onnx and .xml can be rewritten, each to its own kind."""
    monkeypatch.chdir(tmp_path)
    Path(source).write_text("<net>")
    with pytest.raises(UsageError, match=message):
        attach_postprocessing(source, STATS, output=target)


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize("content", [None, b"", b"no model at all", b"\x00" * 100, b"<?xml version='1.0'?><net/>"])
def test_a_file_that_is_no_model_is_refused(suffix: str, content: bytes | None, tmp_path: Path) -> None:
    """A missing, empty, foreign or damaged file gives a clear error, and nothing is written."""
    path = tmp_path / f"model{suffix}"
    if content is not None:
        path.write_bytes(content)
        path.with_suffix(".bin").touch()
    before = contents(tmp_path)
    with pytest.raises(ExplainedError, match=path.name):
        attach_postprocessing(path, STATS)
    assert contents(tmp_path) == before


def test_an_ir_without_its_weights_is_refused(tmp_path: Path) -> None:
    """The message names the .bin that is missing."""
    path = hosts.to_ir(hosts.score_only(), tmp_path / "model.xml")
    path.with_suffix(".bin").unlink()
    with pytest.raises(FileError, match=r"cannot read .*model\.bin"):
        attach_postprocessing(path, STATS)


def test_a_refused_model_leaves_no_file(model: Path) -> None:
    """An error in the middle leaves the folder as it was."""
    attach_postprocessing(model, STATS, in_place=True)
    before = contents(model.parent)
    with pytest.raises(UnsupportedModelError, match="has post-processing already"):
        attach_postprocessing(model, STATS, output=model.with_name(f"again{model.suffix}"))
    assert contents(model.parent) == before


def with_external_data(folder: Path, location: str = "weights.bin") -> Path:
    """Write a model whose bias is in another file."""
    (folder / location).parent.mkdir(parents=True, exist_ok=True)
    bias = numpy_helper.from_array(np.full(1024, 0.25, np.float32), "bias")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "bias"], ["pred_score"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1024])],
        [helper.make_tensor_value_info("pred_score", TensorProto.FLOAT, [1024])],
        [bias],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=0)
    return path


@pytest.mark.parametrize("location", ["weights.bin", "deep/weights.bin"])
@pytest.mark.parametrize("link", [False, True])
def test_external_data_comes_along(location: str, link: bool, tmp_path: Path) -> None:
    """Weights in another file stay there: copied, or linked on request, beside the output."""
    (tmp_path / "raw").mkdir()
    path = with_external_data(tmp_path / "raw", location)
    (tmp_path / "out").mkdir()
    result = attach_postprocessing(path, STATS, output=tmp_path / "out" / "model.onnx", link_weights=link)
    brought = tmp_path / "out" / location
    assert brought.read_bytes() == (tmp_path / "raw" / location).read_bytes()
    assert brought.samefile(tmp_path / "raw" / location) == link
    scores = open_runner(result.output).run({"x": np.full(1024, 0.25, np.float32)})
    assert scores["pred_label"].all()


def test_another_file_of_the_same_name_is_never_overwritten(tmp_path: Path) -> None:
    """A different weights file in the target folder stops the run before anything is written."""
    (tmp_path / "raw").mkdir()
    path = with_external_data(tmp_path / "raw")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weights.bin").write_bytes(b"somebody's work")
    before = contents(tmp_path / "out")
    with pytest.raises(FileError, match=r"weights\.bin"):
        attach_postprocessing(path, STATS, output=tmp_path / "out" / "model.onnx")
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname"])
def test_external_data_outside_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    """A model may refer to files of its own folder only."""
    (tmp_path / "raw").mkdir()
    path = with_external_data(tmp_path / "raw")
    (tmp_path / "secret.bin").write_bytes(b"\0" * 4096)
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match="'bias'"):
        attach_postprocessing(path, STATS)


KILLED = """
import sys, time
from pathlib import Path
from postproc_export import CalibrationStats, attach_postprocessing
from postproc_export import files as files

def stop(self):
    print("written", flush=True)
    time.sleep(60)

files.Publication.move_into_place = stop
model, stats, target = sys.argv[1:]
attach_postprocessing(model, CalibrationStats.load(stats), output=target, in_place=model == target)
"""


@pytest.mark.parametrize("in_place", [False, True])
def test_a_killed_run_leaves_the_input_whole_and_no_output(model: Path, in_place: bool, tmp_path: Path) -> None:
    """Killed after everything was written and before it was moved: the input is as it was, the output is not there."""
    stats = tmp_path / "stats.json"
    STATS.save(stats)
    before = contents(model.parent)
    target = model if in_place else model.with_name(f"out{model.suffix}")
    arguments = [sys.executable, "-c", KILLED, str(model), str(stats), str(target)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    left = {path.name: path.read_bytes() for path in model.parent.iterdir() if path.is_file()}
    assert left == before
    assert all(path.name.startswith(".postproc-") for path in model.parent.iterdir() if path.is_dir())
    attach_postprocessing(model, STATS, output=target, in_place=in_place)
    check_outputs(target)


def test_the_folder_of_the_output_is_made(model: Path, tmp_path: Path) -> None:
    """However deep; where nothing is written none is there, and where it fails on the way none is left."""
    target = tmp_path / "new" / "deep" / f"out{model.suffix}"
    attach_postprocessing(model, STATS, output=target)
    check_outputs(target)
    with pytest.raises(UsageError, match="no such output"):
        attach_postprocessing(model, STATS, output=tmp_path / "new" / "other" / target.name, image_output="nothing")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["deep"]


def test_a_folder_that_cannot_be_made_is_named(model: Path, tmp_path: Path) -> None:
    """A target below a file gives a clear error."""
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=r"cannot write .*\n  found:   .*file is no folder, so that none can be made"):
        attach_postprocessing(model, STATS, output=tmp_path / "file" / "new" / f"out{model.suffix}")
