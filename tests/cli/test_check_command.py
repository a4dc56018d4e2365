"""`postproc-export check`: exit codes, the table, the JSON form, images without labels."""

import json
from pathlib import Path

import hosts
import numpy as np
import onnx
import pytest
from PIL import Image

from postproc_export.attach import attach_postprocessing
from postproc_export.cli import main
from postproc_export.stats import CalibrationStats, LevelStats

STATS = CalibrationStats(
    image=LevelStats(threshold=0.2, min=-1.0, max=0.75),
    pixel=LevelStats(threshold=0.3, min=-0.25, max=0.625),
    details={"preprocessing": {"size": [8, 8], "scale": 255.0, "channel_order": "bgr", "layout": "nchw"}},
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a raw file, the attached one, and images in it."""
    folder = tmp_path_factory.mktemp("check")
    raw = hosts.to_ir(hosts.score_and_map(), folder / "raw.xml")
    attach_postprocessing(raw, STATS, output=folder / "attached.xml")
    (folder / "images").mkdir()
    for index, pixels in enumerate(np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), np.uint8)):
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
    np.savez(folder / "inputs.npz", x=np.zeros((2, 3, 8, 8), np.float32), other=np.zeros(3))
    return folder


def test_a_good_file_exits_0_and_prints_a_table(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table, what ran, what it was fed, what was not checked, and the verdict stand on stdout."""
    arguments = [
        "check",
        files / "attached.xml",
        "--raw",
        files / "raw.xml",
        "--images",
        files / "images",
        "--threads",
        1,
    ]
    assert main(list(map(str, arguments))) == 0
    output, errors = capsys.readouterr()
    assert "whole/raw" in output
    assert max(map(len, output.splitlines()[1:3])) <= 80, "the table fits a terminal of 80 columns"
    assert "ran: openvino on openvino-cpu" in output
    assert "seed: 20240" in output
    assert "fed: 3 images, resized to 8x8" in output
    assert "BGR" in output, "the pre-processing that the statistics record is used by default"
    assert "not checked: ONNX Runtime: it does not read this format" in output
    assert "attached.xml: passed, " in output
    assert errors == ""


def test_json_goes_to_stdout_alone(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` prints one document with "passed" and "checks"; `--inputs` takes an .npz file."""
    arguments = ["check", str(files / "attached.xml"), "--inputs", str(files / "inputs.npz"), "--json", "--seed", "3"]
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["passed"] is True
    assert document["environment"]["seed"] == 3
    assert {check["name"] for check in document["checks"]} >= {"outputs", "tail/pred_label/openvino"}


def test_a_miss_exits_1_and_is_told_in_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fault in the file is a miss: exit code 1, with the finding below the table."""
    raw = hosts.write(hosts.identity(), tmp_path / "raw.onnx")
    path = attach_postprocessing(raw, STATS).output
    model = onnx.load(path)
    del model.graph.output[3]
    onnx.save(model, path)
    assert main(["check", str(path), "--threads", "1"]) == 1
    output = capsys.readouterr().out
    assert "FAILED outputs: output 'pred_mask' is missing" in output
    assert "checks failed: outputs" in output


@pytest.mark.parametrize(
    ("arguments", "finding"),
    [
        pytest.param(["none.xml"], "no such file", id="no-file"),
        pytest.param(["raw.xml"], "it has no record of a tail", id="no-record"),
        pytest.param(["attached.xml", "--raw", "none.xml", "--inputs", "inputs.npz"], "no such file", id="no-raw-file"),
        pytest.param(["attached.xml", "--raw", "none.xml"], "cannot read the raw model none.xml", id="raw-not-skipped"),
        pytest.param(["attached.xml", "--stats", "none.json"], "cannot read the statistics file", id="no-statistics"),
        pytest.param(
            ["attached.xml", "--comparison", "gt"], "comparison is ge by the record, gt as", id="another-rule"
        ),
        pytest.param(["raw.xml", "--pixel-sensitivity", "0.5"], "`postproc-export attach`", id="option-without-record"),
        pytest.param(["attached.xml", "--inputs", "raw.xml"], "cannot read the inputs raw.xml", id="no-npz"),
        pytest.param(["attached.xml", "--inputs", "/dev/null"], "cannot read the inputs /dev/null", id="empty-npz"),
        pytest.param(["attached.xml", "--images", "none"], "no such file or folder", id="no-images"),
        pytest.param(
            ["attached.xml", "--images", "images", "--inputs", "inputs.npz"], "both images and inputs", id="both"
        ),
    ],
)
def test_what_cannot_be_used_exits_2(
    arguments: list[str], finding: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One message on stderr, nothing on stdout, no traceback."""
    monkeypatch.chdir(files)
    assert main(["check", *arguments]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert finding in errors
    assert "Traceback" not in errors


def test_a_missing_runtime_is_an_error_where_none_is_left(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without any runtime for the format nothing can be checked: exit code 2, with the extra to install."""
    monkeypatch.setattr("postproc_export.check.installed_runtimes", lambda: ("onnxruntime",))
    assert main(["check", str(files / "attached.xml")]) == 2
    assert "no runtime for it is installed" in capsys.readouterr().err


def test_a_missing_runtime_is_said_where_another_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one of two runtimes the check runs, and says what it could not run."""
    monkeypatch.setattr("postproc_export.check.installed_runtimes", lambda: ("onnxruntime",))
    path = attach_postprocessing(hosts.write(hosts.identity(), tmp_path / "raw.onnx"), STATS).output
    assert main(["check", str(path), "--threads", "1"]) == 0
    assert "not checked: openvino: it is not installed (pip install openvino)" in capsys.readouterr().out


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    """`check --help` exits 0 and holds a command to copy."""
    assert main(["check", "--help"]) == 0
    assert "postproc-export check model.post.onnx --raw model.onnx" in " ".join(capsys.readouterr().out.split())


def test_options_for_images_are_refused_where_there_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    """An option that would decide nothing is an error, not a silence."""
    assert main(["check", "attached.onnx", "--mean", "0.5"]) == 2
    assert "--mean without images" in capsys.readouterr().err
