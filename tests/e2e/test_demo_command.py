"""`postproc-export demo` as a user runs it, then again, and the commands that it prints."""

import shlex
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Invoke
from scripting import run_command

from postproc_export.demo.data import CROP_SIZE, MARKER
from postproc_export.demo.run import FILES
from postproc_export.stats import CalibrationStats

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return the content of every file of a folder by its relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_demo_writes_what_it_says(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """It exits 0, and every file that it lists is there, with nothing else beside them."""
    home, finished = demo
    assert finished.returncode == 0, finished.stdout + finished.stderr
    folder = home / "postproc-export-demo"
    listed = [name.rstrip("/") for name in FILES]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*listed, "raw.bin", "attached.bin", MARKER])
    assert all(name in finished.stdout for name in FILES)


def test_the_demo_prints_no_noise(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """stderr has the one line that asks for patience, and no warning or log of another package."""
    _, finished = demo
    assert finished.stderr.startswith("running the demo")
    assert finished.stderr.count("\n") == 1


def test_the_demo_is_honest_about_the_detector(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """It prints AUROC of the test crops on both levels, above 0.9, and that both files passed their check."""
    _, finished = demo
    (line,) = [line for line in finished.stdout.splitlines() if "AUROC" in line]
    values = [float(word.rstrip(",")) for word in line.split() if word[0] == "0"]
    assert "test crops" in line
    assert len(values) == 2
    assert all(0.9 < value < 1 for value in values)
    assert "PASSED: postproc-export-demo/attached.onnx decides as PyTorch does" in finished.stdout
    assert "PASSED: postproc-export-demo/attached.xml decides as PyTorch does" in finished.stdout


def test_the_files_of_the_demo_belong_together(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """The statistics cover both levels and record the crops' size; the attached model has the four outputs."""
    folder = demo[0] / "postproc-export-demo"
    stats = CalibrationStats.load(folder / "statistics.json")
    assert stats.image is not None
    assert stats.pixel is not None
    assert stats.details["preprocessing"]["size"] == [CROP_SIZE, CROP_SIZE]
    model = onnx.load(folder / "attached.onnx")
    assert [output.name for output in model.graph.output] == ["pred_score", "pred_label", "anomaly_map", "pred_mask"]


def test_the_raw_ir_is_not_compressed(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """No constant of raw.xml is float16: the IR computes what the ONNX file computes."""
    openvino = pytest.importorskip("openvino")
    model = openvino.Core().read_model(demo[0] / "postproc-export-demo" / "raw.xml")
    constants = [node for node in model.get_ops() if node.get_type_name() == "Constant"]
    assert constants
    assert not [node for node in constants if node.data.dtype == np.float16]


@pytest.mark.slow  # the README has the same commands, and tests/unit/postproc_export/test_demo.py those for one's own
def test_the_printed_commands_work_as_they_stand(
    demo: tuple[Path, subprocess.CompletedProcess[str]], invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands run in order on the demo's files, and give the same statistics and files again."""
    home, finished = demo
    folder = home / "postproc-export-demo"
    printed = finished.stdout.replace("\\\n", " ").splitlines()  # a long line goes on behind a backslash
    commands = [line.strip()[2:] for line in printed if line.strip().startswith("$ postproc-export ")]
    assert [command.split()[1] for command in commands] == ["calibrate", "attach", "check", "predict", "report"]
    before, stats = sorted(snapshot(folder)), CalibrationStats.load(folder / "statistics.json")
    monkeypatch.chdir(home)
    for command in commands:
        repeated = invoke(*shlex.split(command)[1:])
        assert repeated.exit_code == 0, f"{command}\n{repeated.stdout}\n{repeated.stderr}"
    again = CalibrationStats.load(folder / "statistics.json")
    assert sorted(snapshot(folder)) == before
    assert stats.image is not None
    assert again.image is not None
    # ONNX Runtime sums in an order that may change with the load of the machine.
    assert again.image.threshold == pytest.approx(stats.image.threshold, rel=1e-5)


@pytest.mark.slow  # tests/unit/postproc_export/test_demo.py has every rule of what is replaced
def test_a_second_run_replaces_its_own_files_only(demo_folder: Path, invoke: Invoke) -> None:
    """Running again in the same folder works, writes the same images, and spares what is not its own."""
    folder = demo_folder
    (folder / "mine.txt").write_text("keep me", encoding="utf-8")
    before = snapshot(folder)
    finished = invoke("demo", "--output", folder)
    assert finished.exit_code == 0, finished.stdout + finished.stderr
    after = snapshot(folder)
    assert list(after) == list(before)
    unchanged = [name for name in before if name.endswith(".png") or name in ("mine.txt", MARKER)]
    assert all(after[name] == before[name] for name in unchanged if name != "picture.png")


def test_a_folder_of_others_is_refused(tmp_path: Path) -> None:
    """A folder with other files is refused with exit code 2 and one message, and left as it is."""
    (tmp_path / "thesis.tex").write_text("x", encoding="utf-8")
    finished = run_command("demo", "--output", str(tmp_path), cwd=tmp_path)
    assert finished.returncode == 2
    assert "is not the demo's to write to" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
