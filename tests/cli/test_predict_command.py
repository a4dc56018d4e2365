"""`postproc-export predict`: what it prints, its exit codes, and what it refuses."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import hosts
import pytest
from attached_files import detector, labelled, photo
from checks import there
from conftest import Invoke

from postproc_export.runtimes import Runner, open_runner


def test_it_prints_what_it_did(tmp_path: Path, invoke: Invoke) -> None:
    """A summary, and a row for each class of each level."""
    run = invoke("predict", detector(tmp_path), labelled(tmp_path / "images"), "-o", tmp_path / "out")
    assert run.exit_code == 0, run.stderr
    assert run.stdout.startswith(f"predicted 4 images with {tmp_path / 'raw.post.onnx'}, 2 of them anomalous\n")
    for text in ("decided, image level", "decided, pixel level", "1 of 2 anomalous found", "fed resized"):
        assert text in run.stdout
    assert (tmp_path / "out" / "predictions.csv").is_file()
    last = run.stdout.splitlines()[-1]
    assert last.startswith("next: postproc-export report ")
    words = shlex.split(last)[2:]
    assert invoke(*words[:-1], tmp_path / words[-1]).exit_code == 0


def test_json_and_quiet(tmp_path: Path, invoke: Invoke) -> None:
    """One object, with the metrics that the file has, too; with --quiet nothing."""
    model, images = detector(tmp_path), labelled(tmp_path / "images")
    run = invoke("predict", model, images, "-o", tmp_path / "out", "--json")
    found = json.loads(run.stdout)
    assert (found["images"], found["anomalous"], found["unusable"], run.stderr) == (4, 2, 0, "")
    assert found["output"] == str(tmp_path / "out")
    assert found["levels"]["pixel"]["threshold"] == 0.25
    assert found["metrics"]["levels"] == json.loads((tmp_path / "out" / "metrics.json").read_text())["levels"]
    quiet = invoke("predict", model, images, "-o", tmp_path / "out", "--quiet")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")


@pytest.mark.parametrize("asked", ["onnxruntime-node", "onnxruntime-web", "tract", "onnx.reference", "opencv"])
def test_every_runtime_decides_alike(
    asked: str, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metrics are those of ONNX Runtime; what is not installed is skipped, with what would bring it."""
    ran: list[str] = []

    def opened(*given: Any, **options: Any) -> Runner:
        runner = open_runner(*given, **options)
        ran.append(runner.name)
        return runner

    monkeypatch.setattr("postproc_export.prediction.attached.open_runner", opened)
    for_opencv = {"made_for": "opencv"} if asked == "opencv" else {}
    model, images = detector(tmp_path, **for_opencv), labelled(tmp_path / "images")
    found = []
    for runtime in ("onnxruntime", there(asked)):
        words = ("--runtime", runtime, "--save", "none", "--sheet", 0, "--json")
        run = invoke("predict", model, images, "-o", tmp_path / runtime, *words)
        assert run.exit_code == 0, run.stderr
        found.append(json.loads(run.stdout))
    assert [name.removesuffix("-cpu") for name in ran] == ["onnxruntime", asked]
    assert found[0]["anomalous"] == found[1]["anomalous"] == 2
    assert found[0]["metrics"]["levels"] == found[1]["metrics"]["levels"]


def test_an_image_that_cannot_be_used_is_exit_code_1(tmp_path: Path, invoke: Invoke) -> None:
    """It is named, also with --quiet."""
    photo(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "broken.png").touch()
    for options in ([], ["--quiet"]):
        run = invoke("predict", detector(tmp_path), tmp_path / "in", "-o", tmp_path / "out", *options)
        assert run.exit_code == 1
        assert "1 could not be used" in run.stdout
        assert "broken.png" in run.stdout


def test_several_images_and_a_pattern(tmp_path: Path, invoke: Invoke) -> None:
    """As a shell gives them, and quoted."""
    paths = [photo(tmp_path / "in" / "a b.png"), photo(tmp_path / "in" / "c.png")]
    for images in (paths, [tmp_path / "in" / "*.png"]):
        run = invoke("predict", detector(tmp_path), *images, "-o", tmp_path / "out", "--save", "none", "--sheet", 0)
        assert run.exit_code == 0, run.stderr
        assert [each.name for each in (tmp_path / "out").iterdir()] == ["predictions.csv"]
        assert ("next: " in run.stdout) == (images is not paths), "a report takes one source of images"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["raw.onnx", "images", "-o", "out"], "attach raw.onnx --stats FILE"),
        (["raw.post.onnx", "nothing", "-o", "out"], "no such file or folder"),
        (["raw.post.onnx", "empty", "-o", "out"], "empty holds no image"),
        (["raw.post.onnx", "empty/*.png", "-o", "out"], "holds no image"),
        (["raw.post.onnx", "images", "-o", "out", "--scale", "1"], "go on all the same with --other-preprocessing"),
        (["raw.post.onnx", "images", "-o", "out", "--save", "maps"], "--save maps: unknown"),
        (["raw.post.onnx", "images", "-o", "images/out"], "which is read"),
        (["raw.post.onnx", "images", "-o", "raw.onnx"], "no folder"),
        (["raw.post.onnx", "images", "-o", "images"], "holds other files"),
        (["raw.post.onnx", "images", "raw.onnx", "-o", "out"], "raw.onnx is no image"),
        (["raw.post.onnx", "images"], "--output"),
        (["absent.onnx", "images", "-o", "out"], "no such file"),
        (["raw.post.onnx", "images", "-o", "out", "--batch-size", "0"], "at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_exit_code_2(
    tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    """One message with the way out, and nothing is written."""
    detector(tmp_path)
    labelled(tmp_path / "images")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    run = invoke("predict", *arguments)
    assert (run.exit_code, run.stdout) == (2, "")
    assert message in run.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_an_option_that_equals_the_record_is_accepted(tmp_path: Path, invoke: Invoke) -> None:
    """And another one with --other-preprocessing."""
    model, images = detector(tmp_path), labelled(tmp_path / "images")
    run = invoke("predict", model, images, "-o", tmp_path / "out", "--scale", 255)
    assert run.exit_code == 0, run.stderr
    other = invoke("predict", model, images, "-o", tmp_path / "out", "--scale", 510, "--other-preprocessing")
    assert other.exit_code == 0, other.stderr
    assert "divided by 510" in other.stdout


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path, invoke: Invoke) -> None:
    """It is refused, and says what to do."""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    run = invoke("predict", detector(tmp_path), labelled(tmp_path / "images"), "-o", locked / "out")
    assert run.exit_code == 2
    assert "choose a folder that you may write to" in run.stderr


def test_a_file_in_place_of_the_folder_above(tmp_path: Path, invoke: Invoke) -> None:
    """Nothing can be made below it, as in a folder that may not be written."""
    (tmp_path / "file").touch()
    run = invoke("predict", detector(tmp_path), labelled(tmp_path / "images"), "-o", tmp_path / "file" / "out")
    assert run.exit_code == 2
    assert "cannot write" in run.stderr


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("", [], "nothing stands behind postproc-export predict"),
        (None, ["--batch-size", 10**12], "--batch-size 1000000000000 does not fit"),
    ],
)
def test_slips_of_scripts_are_named(
    tmp_path: Path, invoke: Invoke, model: str | None, options: list[object], said: str
) -> None:
    """A variable that is empty, and a number with too many zeros."""
    given = detector(tmp_path) if model is None else model
    run = invoke("predict", given, labelled(tmp_path / "images"), "-o", tmp_path / "out", *options)
    assert (run.exit_code, said in run.stderr) == (2, True), run.stderr
    assert not (tmp_path / "out").exists()


def test_the_help_has_an_example_and_every_option(invoke: Invoke) -> None:
    """Of the folder, of the model and of the images."""
    run = invoke("predict", "--help")
    for text in (
        "Example: postproc-export predict",
        "--save",
        "--sheet",
        "--no-raw",
        "--other-preprocessing",
        "--mean",
    ):
        assert text in run.stdout


def test_an_ir(tmp_path: Path, invoke: Invoke) -> None:
    """A map alone, in OpenVINO."""
    run = invoke(
        "predict", detector(tmp_path, hosts.map_only(), ir=True), labelled(tmp_path / "in"), "-o", tmp_path / "out"
    )
    assert run.exit_code == 0, run.stderr
    assert "1 of 2 anomalous found" in run.stdout


def test_a_killed_run_leaves_nothing_that_looks_finished(tmp_path: Path, invoke: Invoke) -> None:
    """Its temporary folder alone, which the next run takes away."""
    model, images, out = detector(tmp_path), labelled(tmp_path / "images"), tmp_path / "out"
    code = (
        "import os, sys; from postproc_export.prediction import folder; save = folder.save_png\n"
        "def kill(path, pixels): os.kill(os.getpid(), 9) if path.name == '001.png' else save(path, pixels)\n"
        "folder.save_png = kill\n"
        "from postproc_export.cli import main; main(sys.argv[1:])"
    )
    killed = subprocess.run([sys.executable, "-c", code, "predict", model, images, "-o", out], check=False)
    assert killed.returncode == -9
    (left,) = (each.name for each in out.iterdir())
    assert left.startswith(".postproc-")
    again = invoke("predict", model, images, "-o", out, "--save", "none")
    assert again.exit_code == 0, again.stderr
    assert sorted(each.name for each in out.iterdir()) == ["contact_sheet.jpg", "metrics.json", "predictions.csv"]
