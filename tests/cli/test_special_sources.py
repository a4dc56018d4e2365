"""What no command reads: a pipe, whose opening waits for a writer, a device, a socket; files that hold things twice."""

import io
import os
import signal
import socket
import zipfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import pytest
from image_files import save
from onnx import numpy_helper

from postproc_export import CalibrationStats, LevelStats, attach_postprocessing
from postproc_export.runtimes.openvino import import_openvino

Invoke = Callable[..., Any]
STATS = CalibrationStats(
    image=LevelStats(threshold=0.5, min=0.0, max=2.0), pixel=LevelStats(threshold=0.25, min=-1.0, max=1.0)
)


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A command that waits for a pipe fails its test."""

    def too_late(*_: object) -> None:
        pytest.fail("the command hangs")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A raw and an attached model, statistics, images, and the commands' working folder."""
    monkeypatch.chdir(tmp_path)
    STATS.save("stats.json")
    hosts.write(hosts.score_and_map(dynamic=False), tmp_path / "raw.onnx")
    attach_postprocessing("raw.onnx", STATS, output="post.onnx")
    openvino = import_openvino(purpose="the tests")
    openvino.save_model(openvino.Core().read_model("raw.onnx"), "raw.xml", compress_to_fp16=False)
    for kind in ("good", "bad"):
        Path("images", kind).mkdir(parents=True)
        save(Path("images", kind, "a.png"), np.zeros((8, 8, 3), np.uint8))
    Path("list.csv").write_text("image,label,mask\nimages/good/a.png,0,\nimages/bad/a.png,1,special.png\n")
    return tmp_path


PLACES = {
    "model": ("special.onnx", "attach special.onnx --stats stats.json"),
    "ir": ("special.xml", "detach special.xml"),
    "weights_of_an_ir": ("raw.bin", "attach raw.xml --stats stats.json"),
    "weights_of_an_ir_that_runs": ("raw.bin", "calibrate raw.xml --images images --image-only -o s.json"),
    "statistics": ("special.json", "attach raw.onnx --stats special.json"),
    "new_statistics": ("special.json", "update post.onnx --stats special.json"),
    "inspected": ("special.onnx", "inspect special.onnx"),
    "npz": ("special.npz", "calibrate special.npz -o s.json"),
    "csv": ("special.csv", "calibrate special.csv -o s.json"),
    "npy": ("a_scores.npy", "calibrate a_scores.npy -o s.json"),
    "shard_in_a_folder": ("images/special.npz", "calibrate images -o s.json"),
    "image": ("images/good/b.png", "calibrate raw.onnx --images images --image-only -o s.json"),
    "mask": ("special.png", "calibrate raw.onnx --images list.csv -o s.json"),
    "list_of_images": ("special.csv", "calibrate raw.onnx --images special.csv -o s.json"),
    "model_to_run": ("special.onnx", "calibrate special.onnx --images images --image-only -o s.json"),
    "checked": ("special.onnx", "check special.onnx"),
    "raw": ("special.onnx", "check post.onnx --raw special.onnx --images images"),
    "inputs": ("special.npz", "check post.onnx --raw raw.onnx --inputs special.npz"),
    "preserved": ("special.onnx", "check post.onnx --preserved special.onnx"),
    "thresholds": ("special.npy", "attach raw.onnx --stats stats.json --step thresholds:file=special.npy"),
}


@pytest.mark.parametrize(("name", "command"), PLACES.values(), ids=PLACES.keys())
def test_a_pipe_is_refused_before_it_is_opened(name: str, command: str, folder: Path, invoke: Invoke) -> None:
    """One message names it and says that it is a pipe, exit code 2, and nothing is written."""
    Path(name).unlink(missing_ok=True)
    os.mkfifo(name)
    before = sorted(folder.rglob("*"))
    result = invoke(*command.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert Path(name).name in result.stderr.splitlines()[0]
    assert "  found:   a pipe\n" in result.stderr
    assert sorted(folder.rglob("*")) == before


def test_a_device_and_a_socket_are_told_apart(folder: Path, invoke: Invoke) -> None:
    """Through a link, too."""
    Path("zero.npz").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.npz")
        for name, kind in (("zero.npz", "a device"), ("socket.npz", "a socket")):
            result = invoke("calibrate", name, "-o", "s.json")
            assert result.exit_code == 2
            assert f"cannot read {name}\n  found:   {kind}\n" in result.stderr


@pytest.mark.parametrize("command", ["attach {} --stats stats.json", "calibrate {} --images images --image-only -o s"])
def test_external_data_in_a_pipe_is_refused(command: str, folder: Path, invoke: Invoke) -> None:
    """Neither we nor a runtime opens it."""
    model = onnx.load("raw.onnx")
    for tensor in model.graph.initializer:  # what is external is raw
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    onnx.save_model(model, "big.onnx", save_as_external_data=True, location="big.data", size_threshold=0)
    Path("big.data").unlink()
    os.mkfifo("big.data")
    result = invoke(*command.format("big.onnx").split())
    assert result.exit_code == 2
    assert "big.data" in result.stderr


def twice(path: str, name: str, array: np.ndarray, suffix: str) -> None:
    """Write an .npz file that holds an array twice, as zipfile lets one."""
    content = io.BytesIO()
    np.save(content, array)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.npy", content.getvalue())
        with pytest.warns(UserWarning, match="Duplicate name") if suffix else nullcontext():
            archive.writestr(f"{name}{suffix}", content.getvalue())


@pytest.mark.parametrize("suffix", [".npy", ""])
def test_an_array_that_is_there_twice_is_refused_by_name(suffix: str, folder: Path, invoke: Invoke) -> None:
    """NumPy would take one of the two, with the suffix or without: in shards and in inputs."""
    twice("scores.npz", "pred_score", np.arange(4.0), suffix)
    twice("inputs.npz", "input", np.zeros((1, 3, 8, 8), np.float32), suffix)
    commands = ("calibrate scores.npz -o s.json", "check post.onnx --raw raw.onnx --inputs inputs.npz")
    for command, array in zip(commands, ("pred_score", "input"), strict=True):
        result = invoke(*command.split())
        assert result.exit_code == 2
        assert f"holds an array twice\n  found:   '{array}'\n" in result.stderr


def test_one_thing_under_two_names_is_refused(folder: Path, invoke: Invoke) -> None:
    """`scores` beside `pred_score` in a shard, and a column of a list of images that stands twice."""
    np.savez("both.npz", scores=np.arange(4.0), pred_score=np.arange(4.0), labels=[0, 0, 1, 1])
    result = invoke("calibrate", "both.npz", "-o", "s.json")
    assert result.exit_code == 2
    assert "holds one thing twice\n  found:   pred_score, scores\n" in result.stderr
    Path("list.csv").write_text("image,label,label\nimages/good/a.png,0,1\nimages/bad/a.png,1,1\n")
    result = invoke("calibrate", "raw.onnx", "--images", "list.csv", "--image-only", "-o", "s.json")
    assert result.exit_code == 2
    assert "has a column twice\n  found:   'label'\n" in result.stderr
