"""No command imports, opens or runs code that only a file names, watched by an audit hook in a process of its own."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import pytest
import torch
from checks import runtime_of
from PIL import Image
from scripting import run_script

from postproc_export import CalibrationStats, attach_postprocessing, detach_postprocessing
from postproc_export.stats import LevelStats
from postproc_export.steps import user_export

pytestmark = pytest.mark.e2e

CASE = Path(__file__).parents[1] / "data" / "cases" / "names_code.onnx"
MODULE = "innocent_looking"
NAMES = (f"{MODULE}:C", f"{MODULE}.inner:build", "os:abort")
LEVEL = LevelStats(threshold=0.5, min=0.0, max=1.0)
SOURCE = """
from pathlib import Path
import torch
Path(__file__).with_name("imported").touch()
class C(torch.nn.Module):
    def forward(self, pred_score, anomaly_map):
        return pred_score, None if anomaly_map is None else anomaly_map * 2
def host():
    class Host(torch.nn.Module):
        def forward(self, image):
            return {"pred_score": image.amax((1, 2, 3))}
    return Host()
"""


class Runs:
    """Something that runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch imported",)


def run(folder: Path, commands: list[list[str]]) -> list[dict[str, Any]]:
    """Run commands in a folder that holds the module, and return what was seen of each."""
    (folder / f"{MODULE}.py").write_text(SOURCE)
    (folder / "commands.json").write_text(json.dumps({"watched": [MODULE], "commands": commands}))
    run_script("watched_commands.py", folder)
    return list(json.loads((folder / "seen.json").read_text()))


def named(folder: Path, kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Path]:
    """Return a file that names code in its record, its raw file, and statistics that name it, too."""
    if kind == "onnx":
        model = onnx.load(CASE)
        for entry in model.metadata_props:
            entry.value = entry.value.replace(f"{MODULE}:C", name)
        attached = hosts.write(model, folder / "attached.onnx")
    else:
        monkeypatch.setattr(user_export, "OPSET", 14)  # by the exporter that takes milliseconds
        own = "own_tails:Weighted"
        stats = CalibrationStats(image=LEVEL, pixel=LEVEL, details={"tail": [{"name": own, "parameters": {}}]})
        host = hosts.to_ir(hosts.score_and_map(), folder / "host.xml")
        attached = attach_postprocessing(host, stats, tail=own, output=folder / "attached.xml").output
        attached.write_text(attached.read_text().replace(own, name))
    raw = detach_postprocessing(attached, output=folder / f"raw.{kind}").output
    stats = CalibrationStats(image=LEVEL, pixel=LEVEL, details={"tail": [{"name": name, "parameters": {}}]})
    stats.save(folder / "stats.json")
    np.savez(folder / "inputs.npz", input=np.random.default_rng(0).random((3, 3, 20, 24), np.float32))
    assert raw is not None
    return attached, raw, folder / "stats.json"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("onnx", NAMES[0]),
        ("xml", NAMES[1]),
        *(pytest.param(kind, name, marks=pytest.mark.slow) for kind in ("onnx", "xml") for name in NAMES),
    ],
)
def test_no_command_imports_what_a_file_names(
    kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Model and statistics name it, it lies in the working directory, and each command gives its usual result.

    `check --step` may name it: that comes last.
    """
    attached, raw, stats = (str(path) for path in named(tmp_path, kind, name, monkeypatch))
    alone = ["--runtime", runtime_of(Path(attached))]
    fed = ["--inputs", "inputs.npz", "--raw", raw, "--preserved", raw, "--save-failures", "failures", *alone]
    commands = {
        ("inspect", attached): 0,
        ("inspect", attached, "--json"): 0,
        ("check", attached, *alone): 0,
        **({("check", attached, *fed): 0} if name == NAMES[0] else {}),  # it takes longer than all the others
        ("update", attached, "-o", f"a.{kind}", "--image-sensitivity", "0.4"): 0,
        ("update", attached, "-o", f"b.{kind}", "--stats", stats): 0,
        ("check", f"a.{kind}", *alone): 0,
        ("detach", attached, "-o", f"c.{kind}"): 0,
        ("attach", raw, "--stats", stats, "-o", f"d.{kind}"): 2,
        ("attach", raw, "--stats", stats, "--step", "gaussian:sigma=1", "-o", f"e.{kind}"): 2,
        ("check", attached, "--step", "gaussian:sigma=1"): 2,
        ("check", attached, "--step", "somewhere:Else"): 2,
    }
    may_name_it = [["check", attached, "--step", NAMES[0]]] if name == NAMES[0] else []
    seen = run(tmp_path, [*map(list, commands), *may_name_it])
    before, last = seen[: len(commands)], seen[len(commands) :]
    for command, expected, result in zip(commands, commands.values(), before, strict=True):
        assert result["code"] == expected, (command, result)
        assert result["events"] == [], command
    assert f"the class '{name}' before the threshold" in seen[2]["out"]
    # The hook sees an import where there is one: the option names the class, and is what imports it.
    for _, result in zip(may_name_it, last, strict=True):
        assert {f"{event} {MODULE}" for event in ("import", "open", "exec")} == set(result["events"])
        assert result["code"] == (0 if kind == "onnx" else 1), "the IR holds another class than the module"
    assert (tmp_path / "imported").exists() is bool(may_name_it)


def test_export_imports_its_own_argument_alone(tmp_path: Path) -> None:
    """Statistics that name a class do not fit an export without one; what they name stays where it is."""
    stats = CalibrationStats(image=LEVEL, details={"tail": [{"name": NAMES[0], "parameters": {}}]})
    stats.save(tmp_path / "stats.json")
    (tmp_path / "mine.py").write_text(SOURCE.replace('"imported"', '"mine"'))
    command = ["export", "mine:host", "--input", "1,3,16,16", "--stats", "stats.json", "-o", "dist"]
    (result,) = run(tmp_path, [command])
    assert result["code"] == 2
    assert "the statistics are not those behind this tail" in result["err"]
    assert not [event for event in result["events"] if MODULE in event]
    assert (tmp_path / "mine").exists()
    assert not (tmp_path / "imported").exists()


def pickled_zarr(folder: Path) -> str:
    """A group whose scores are 'encoded' by pickle."""
    scores = folder / "scores.zarr" / "pred_score"
    scores.mkdir(parents=True)
    (scores.parent / ".zgroup").write_text('{"zarr_format": 2}')
    meta = {"zarr_format": 2, "shape": [4], "chunks": [4], "dtype": "<f4", "fill_value": 0, "order": "C"}
    (scores / ".zarray").write_text(
        json.dumps({**meta, "compressor": {"id": "pickle", "protocol": 4}, "filters": None})
    )
    (scores / "0").write_bytes(pickle.dumps(Runs()))
    return "scores.zarr"


def test_content_that_would_run_is_refused(tmp_path: Path) -> None:
    """Pickles in .npz, .npy, Zarr and checkpoints, and PostScript that is called .png: exit 2, and nothing has run."""
    raw = str(hosts.write(hosts.score_and_map(), tmp_path / "raw.onnx"))
    attach_postprocessing(raw, CalibrationStats(image=LEVEL, pixel=LEVEL), output=tmp_path / "attached.onnx")
    CalibrationStats(image=LEVEL, pixel=LEVEL).save(tmp_path / "stats.json")
    objects = np.array([Runs()] * 2, dtype=object)
    np.savez(tmp_path / "scores.npz", pred_score=objects, gt_label=np.array([0, 1]))  # type: ignore[arg-type]
    np.savez(tmp_path / "inputs.npz", input=objects)  # type: ignore[arg-type]
    np.save(tmp_path / "pred_score.npy", objects, allow_pickle=True)
    np.save(tmp_path / "gt_label.npy", np.array([0, 1]))
    torch.save({"weight": Runs()}, tmp_path / "weights.pt")
    for index, folder in enumerate(("good", "bad")):
        (tmp_path / "images" / folder).mkdir(parents=True)
        Image.new("RGB", (16, 16), (index * 200, 0, 0)).save(tmp_path / "image.eps")
        shutil.move(tmp_path / "image.eps", tmp_path / "images" / folder / "0.png")
    (tmp_path / "mine.py").write_text(SOURCE.replace('"imported"', '"mine"'))
    export = ["export", "mine:host", "--input", "1,3,16,16", "--stats", "stats.json", "-o", "dist"]
    commands = [
        ["calibrate", "scores.npz", "-o", "out.json"],
        ["calibrate", "pred_score.npy", "gt_label.npy", "-o", "out.json"],
        ["calibrate", pickled_zarr(tmp_path), "-o", "out.json"],
        ["calibrate", raw, "--images", "images", "--image-only", "-o", "out.json"],
        ["check", "attached.onnx", "--inputs", "inputs.npz"],
        ["check", "attached.onnx", "--images", "images", "--image-size", "16x16"],
        ["attach", raw, "--stats", "stats.json", "--step", "thresholds:file=pred_score.npy", "-o", "out.onnx"],
        [*export, "--weights", "weights.pt"],
    ]
    for command, result in zip(commands, run(tmp_path, commands), strict=True):
        assert result["code"] == 2, (command, result)
        assert result["events"] == [], command
        assert "Traceback" not in result["err"]
    assert not (tmp_path / "imported").exists()
    assert not list(tmp_path.glob("out.*"))
