"""Options that cannot apply to a file or beside others are refused, never skipped; what is so already is accepted."""

from pathlib import Path
from typing import Final

import hosts
import numpy as np
import pytest
from conftest import Invoke

from postproc_export import CalibrationStats, LevelStats, attach_postprocessing
from postproc_export.cli.commands import app

STATS: Final = CalibrationStats(
    image=LevelStats(threshold=0.5, min=0.0, max=2.0), pixel=LevelStats(threshold=0.25, min=-1.0, max=1.0)
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Raw and attached models of both formats, of both levels and of one, with statistics and raw outputs."""
    monkeypatch.chdir(tmp_path)
    STATS.save("stats.json")
    CalibrationStats(image=STATS.image).save("image.json")
    for model, name in ((hosts.score_and_map(), "raw"), (hosts.score_only(), "score")):
        for suffix in (".onnx", ".xml"):
            hosts.write(model, tmp_path / f"{name}{suffix}")
            attach_postprocessing(f"{name}{suffix}", STATS, output=f"{name}.post{suffix}")
    attach_postprocessing("raw.onnx", STATS, output="bare.onnx", enable_thresholding=False)
    np.savez("scores.npz", pred_score=np.arange(40.0), gt_label=np.arange(40) // 20)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return every file below a folder with its bytes, and every folder."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


REFUSED: Final = {
    "attach raw.onnx -s image.json --pixel-sensitivity 0.3": "--pixel-sensitivity 0.3 would have no effect",
    "attach raw.onnx -s stats.json --levels pixel --label-dtype uint8": "--label-dtype uint8 would have no effect",
    "attach score.xml -s stats.json --mask-dtype float32": "--mask-dtype float32 would have no effect",
    "attach raw.onnx -s stats.json --no-threshold --comparison gt": "--comparison gt would have no effect",
    "attach raw.onnx -s stats.json --runtime-parameters": "--runtime-parameters would have no effect",
    "attach raw.onnx -s stats.json -o new/o.onnx --in-place": "--in-place would have no effect",
    "attach raw.xml -s stats.json --link-weights": "--link-weights is for external data of an ONNX model",
    "detach raw.post.xml --link-weights": "--link-weights is for external data of an ONNX model",
    "detach raw.post.onnx --in-place -o new/o.onnx": "--in-place would have no effect",
    "update raw.post.xml --link-weights --image-sensitivity 0.3": "--link-weights is for external data",
    "calibrate scores.npz --pixel-policy fpr=0.1 -o new/s.json": "--pixel-policy fpr=0.1 would have no effect",
    "calibrate scores.npz --pixel-range quantile=0,0.9 -o new/s.json": "--pixel-range quantile=0,0.9 would have no",
    "calibrate raw.onnx --images . --image-only --pixel-policy f1 -o new/s.json": "--pixel-policy would have no effect",
    "check raw.post.onnx --image-output x": "--image-output x would have no effect",
    "check raw.post.onnx --images . --inputs scores.npz": "--images and --inputs contradict each other",
    "check raw.post.onnx --torch a:b": "--torch without images or inputs to feed it",
    "update raw.post.onnx": "nothing to change: give an option",
    "update raw.post.xml -o new/o.xml": "nothing to change: give an option",
    "update raw.post.onnx --in-place": "nothing to change: give an option",
    "update raw.post.onnx --normalized --image-sensitivity 0.3": "--normalized would have no effect",
    "update raw.post.onnx --image-threshold inf": "--image-threshold inf: use a finite number",
    "update score.post.onnx --pixel-sensitivity 0.3": "--pixel-sensitivity 0.3 would have no effect",
    "update bare.onnx --image-sensitivity 0.3": "--image-sensitivity 0.3 would have no effect",
    "update raw.post.onnx --no-threshold --image-sensitivity 0.5": "--image-sensitivity 0.5 would have no effect",
    "update raw.post.onnx --keep-dialect --image-sensitivity 0.3": "there is no other dialect to keep",
}


@pytest.mark.parametrize("command", REFUSED)
def test_what_cannot_apply_is_refused(command: str, folder: Path, invoke: Invoke) -> None:
    """Exit code 2 with the option as it was typed and a fix, nothing written, no folder made."""
    before = contents(folder)
    result = invoke(*command.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert REFUSED[command] in result.stderr.splitlines()[0]
    assert "\n  fix: " in result.stderr
    assert contents(folder) == before


ACCEPTED: Final = (
    "update raw.post.onnx --image-sensitivity 0.5",
    "update raw.post.xml --image-sensitivity 0.5 --comparison ge -o new/o.xml",
    "update raw.post.onnx --stats stats.json --in-place",
    "update raw.post.onnx --image-threshold 0.5 --mask-dtype bool",
    "update score.post.onnx --pixel-sensitivity 0.5",
    "update bare.onnx --image-sensitivity 0.5 --no-threshold",
)


@pytest.mark.parametrize("command", ACCEPTED)
def test_what_is_recorded_already_is_accepted_and_writes_nothing(command: str, folder: Path, invoke: Invoke) -> None:
    """Exit code 0, told on stdout; neither the output nor its folder is made, and in place nothing is replaced."""
    before, model = contents(folder), folder / command.split()[1]
    inode = model.stat().st_ino
    result = invoke(*command.split())
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"nothing to change in {command.split()[1]}: it decides so already\n")
    assert "written" not in result.stdout
    assert (contents(folder), model.stat().st_ino) == (before, inode)


DEFAULTS: Final = (
    "calibrate scores.npz --pixel-policy f1 --pixel-range extremes -o new/s.json",
    "attach raw.onnx -s image.json --pixel-sensitivity 0.5 --label-dtype bool",
    "attach score.xml -s stats.json --mask-dtype uint8",
    "attach score.onnx -s stats.json --mask-dtype bool",
    "attach raw.xml -s stats.json --in-place",
    "detach raw.post.onnx -o raw.post.onnx --in-place",
)


@pytest.mark.parametrize("command", DEFAULTS)
def test_a_default_that_is_given_is_accepted(command: str, invoke: Invoke) -> None:
    """An option that says what holds without it contradicts nothing."""
    assert invoke(*command.split()).exit_code == 0


WRITING: Final = {
    "attach raw.onnx -s stats.json -o new/deep/o.onnx": "attach raw.onnx -s stats.json --image-output no -o new/o.onnx",
    "attach raw.xml -s stats.json -o new/deep/o.xml": "attach raw.xml -s stats.json --image-output no -o new/o.xml",
    "update raw.post.onnx --image-sensitivity 0.3 -o new/deep/o.onnx": "update raw.post.onnx --stats no -o new/o.onnx",
    "detach raw.post.xml -o new/deep/o.xml": "detach raw.xml -o new/o.xml",
    "calibrate scores.npz -o new/deep/o.json": "calibrate scores.npz --image-policy precision=2 -o new/o.json",
    "check raw.post.onnx --threads 1 --junit new/deep/o": "check raw.onnx --junit new/o",
    "check raw.post.onnx --threads 1 --markdown new/deep/o": "check raw.onnx --markdown new/o",
}


@pytest.mark.parametrize("command", WRITING)
def test_the_folder_of_an_output_is_made(command: str, folder: Path, invoke: Invoke) -> None:
    """However deep, and taken away again where the command writes nothing."""
    before = contents(folder)
    assert invoke(*WRITING[command].split()).exit_code in (1, 2)
    assert contents(folder) == before
    assert invoke(*command.split()).exit_code == 0
    assert (folder / command.split()[-1]).is_file()


def test_every_help_of_a_sensitivity_says_which_way_it_goes(invoke: Invoke) -> None:
    """0.3 finds fewer: in the help of every command that has such an option, and in the name of update's example."""
    names = [name for name in app if not name.startswith("-") and "-sensitivity FLOAT" in invoke(name, "--help").stdout]
    assert names == ["attach", "export", "check", "update"]
    for name in names:
        for level, samples in (("image", "images"), ("pixel", "pixels")):
            _, _, text = invoke(name, "--help").stdout.partition(f"--{level}-sensitivity FLOAT\n")
            text = " ".join(text.partition("\n  --")[0].split())
            assert f"0.3 finds fewer anomalous {samples}" in text or "0.3 finds fewer anomalous ones" in text, name
    assert "-o fewer.onnx --image-sensitivity 0.3" in " ".join(invoke("update", "--help").stdout.split())
