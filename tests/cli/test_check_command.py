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


def test_a_good_file_exits_0_and_says_what_was_proven(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first line is the verdict, the last what to run next; every check, what ran and what was fed come with -v."""
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
    first, *_, last = output.splitlines()
    assert first.startswith(f"PASSED: {files / 'attached.xml'} decides as PyTorch does: the tail on ")
    assert f"the whole file on 3 images beside {files / 'raw.xml'}, in openvino-cpu" in first
    unchecked = "Not checked: the PyTorch model (--torch); INT8 (--int8); other devices than the CPU"
    more = "; another default precision than float32"  # on processors without one
    assert first.removesuffix(".").removesuffix(more).endswith(unchecked)
    assert last.startswith(f"next: nothing, {files / 'attached.xml'} can be deployed")
    assert "whole/raw" not in output
    assert errors == ""
    assert main([*map(str, arguments), "-v"]) == 0
    details = capsys.readouterr().out
    assert details.splitlines()[0] == first
    assert details.splitlines()[-1] == last
    for part in ("passed whole/raw/pred_mask (openvino)", "ran: openvino on openvino-cpu", "seed: 20240"):
        assert part in details
    assert "fed: 3 images, resized to 8x8" in details
    assert "BGR" in details, "the pre-processing that the statistics record is used by default"
    assert "not checked: INT8 (--int8): it was not asked for" in details


def test_no_word_is_broken_on_a_narrow_terminal(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At 80 columns lines end between words, and only a word of its own is longer; nothing is lost."""
    monkeypatch.chdir(files)
    arguments = ["check", "attached.xml", "--raw", "raw.xml", "--images", "images", "--threads", "1", "-v"]
    assert main(arguments) == 0
    whole = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "80")
    assert main(arguments) == 0
    wrapped = capsys.readouterr().out
    assert max(map(len, whole.splitlines())) > 80
    assert max(map(len, wrapped.splitlines())) <= 80
    assert [word for word in wrapped.split() if word != "\\"] == whole.split()


def test_json_goes_to_stdout_alone(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` prints one document with "passed" and "checks"; `--inputs` takes an .npz file."""
    arguments = ["check", str(files / "attached.xml"), "--inputs", str(files / "inputs.npz"), "--json", "--seed", "3"]
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["passed"] is True
    assert document["environment"]["seed"] == 3
    assert {check["name"] for check in document["checks"]} >= {"outputs", "tail/pred_label/openvino"}


def test_a_miss_exits_1_and_is_told_in_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fault in the file is a miss: exit code 1, and the first lines say which, and what mends it."""
    raw = hosts.write(hosts.identity(), tmp_path / "raw.onnx")
    path = attach_postprocessing(raw, STATS).output
    model = onnx.load(path)
    del model.graph.output[3]
    onnx.save(model, path)
    assert main(["check", str(path), "--threads", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"FAILED: {path} does not decide as its record says (")
    assert lines[1] == "  tail     output 'pred_mask' is missing"
    assert lines[2].startswith("  fix      attach to the original again")
    assert lines[-1] == f"next: postproc-export attach RAW --stats FILE -o {path}"
    assert len(lines) <= 5


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
        pytest.param(["attached.xml", "--inputs", "raw.xml"], "raw.xml is not an .npz file", id="no-npz"),
        pytest.param(["attached.xml", "--inputs", "/dev/null"], "cannot read the inputs /dev/null", id="empty-npz"),
        pytest.param(["attached.xml", "--images", "none"], "no such file or folder", id="no-images"),
        pytest.param(
            ["attached.xml", "--images", "images", "--inputs", "inputs.npz"],
            "--images and --inputs contradict each other",
            id="both",
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
    assert "Not checked: openvino (pip install openvino); " in capsys.readouterr().out


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    """`check --help` exits 0 and holds a command to copy."""
    assert main(["check", "--help"]) == 0
    assert "postproc-export check model.post.onnx --raw model.onnx" in " ".join(capsys.readouterr().out.split())


def test_options_for_images_are_refused_where_there_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    """An option that would decide nothing is an error, not a silence."""
    assert main(["check", "attached.onnx", "--mean", "0.5"]) == 2
    assert "--mean without images" in capsys.readouterr().err
