"""A path that is not there is an error wherever one can be given: the options are those of the parser itself."""

from pathlib import Path
from typing import Any, Final, get_args

import hosts
import numpy as np
import pytest
from conftest import Invoke
from image_files import save

from postproc_export import CalibrationStats, LevelStats, attach_postprocessing, write_vectors
from postproc_export.cli.commands import app

STATS: Final = CalibrationStats(
    image=LevelStats(threshold=0.5, min=0.0, max=2.0), pixel=LevelStats(threshold=0.25, min=-1.0, max=1.0)
)
WRITTEN: Final = ("--output", "--junit", "--markdown", "--save-failures", "--png")
"""What a command writes: the folder of it is made; every other path is read, or has to be there."""

_EXPORT: Final = "export export_modules:detector --input 1,3,16,16 -o dist"
_MODEL: Final = "calibrate raw.onnx --images images -o new.json"
COMMANDS: Final = {
    "demo": "demo",
    "calibrate": "calibrate raw.npz -o new.json",
    "attach": "attach raw.onnx --stats stats.json",
    "export": f"{_EXPORT} --stats stats.json",
    "check": "check post.onnx --threads 1",
    "predict": "predict post.onnx images -o predicted --image-size 8",
    "report": "report stats.json -o report.html",
    "inspect": "inspect post.onnx",
    "stats": "stats convert stats.json -o new.json",
    "update": "update post.onnx --image-sensitivity 0.3",
    "detach": "detach post.onnx",
    "vectors": "vectors post.onnx -o kit.new",
    "judge": "judge kit kit.outputs",
}
BESIDE: Final = {
    "calibrate --images": "calibrate raw.onnx -o new.json",
    "calibrate --preprocessing": _MODEL,
    "calibrate --spool-dir": _MODEL,
    "export --calibrate": _EXPORT,
    "export --stats": _EXPORT,
    "export --preprocessing": f"{_EXPORT} --calibrate images",
    "check --preprocessing": "check post.onnx --threads 1 --images images",
    "vectors --preprocessing": "vectors post.onnx --images images -o kit.new",
    "report --images": "report stats.json --model post.onnx -o report.html",
    "report --check": "report stats.json --model post.onnx -o report.html",
    "report --preprocessing": "report stats.json --model post.onnx --images images -o report.html",
}
"""Commands in which an option applies, where it does not in the usual one."""


def takes_a_path(hint: Any) -> bool:
    """Whether an argument is a path, or several."""
    return hint is Path or Path in get_args(hint)


def places() -> list[tuple[str, str]]:
    """Return every argument of every command that is a path, by command and name."""
    commands = [name for name in app if not name.startswith("-")]
    return [
        (name, argument.name)
        for name in commands
        for argument in app[name].assemble_argument_collection()
        if takes_a_path(argument.hint)
    ]


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small kit of the attached model."""
    folder = tmp_path_factory.mktemp("kit")
    attached = folder / "post.onnx"
    attach_postprocessing(hosts.write(hosts.score_and_map(), folder / "raw.onnx"), STATS, output=attached)
    write_vectors(attached, output=folder / "kit", count=100)
    return folder / "kit"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, kit: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the commands read, in their working folder."""
    monkeypatch.chdir(tmp_path)
    STATS.save("stats.json")
    attach_postprocessing(hosts.write(hosts.score_and_map(), tmp_path / "raw.onnx"), STATS, output="post.onnx")
    np.savez("raw.npz", pred_score=np.arange(40.0), gt_label=np.arange(40) // 20)
    save(tmp_path / "images" / "good" / "0.png", np.zeros((8, 8, 3), np.uint8))
    Path("kit").symlink_to(kit)
    Path("kit.outputs").mkdir()
    return tmp_path


def typed(command: str, name: str, path: str) -> list[str]:
    """Return a command with a path for one of its arguments."""
    words = BESIDE.get(f"{command} {name}", COMMANDS[command]).split()
    if not name.startswith("-"):
        at = 2 if command == "stats" else 1  # behind what it is to do
        return [*words[:at], path, *words[at + 1 :]]
    for other in (name, "-o" if name == "--output" else name):
        if other in words:
            at = words.index(other)
            words[at : at + 2] = []
    return [*words, name, path]


def test_the_walk_meets_the_paths_that_are_known() -> None:
    """It goes through all commands; what is known to be read and written is among its places."""
    found = places()
    assert {command for command, _ in found} == COMMANDS.keys()
    known = {"--raw", "--images", "--inputs", "--preserved", "--stats", "--weights", "--calibrate", "--spool-dir"}
    assert known | set(WRITTEN) <= {name for _, name in found}


@pytest.mark.parametrize(("command", "name"), [place for place in places() if place[1] not in WRITTEN])
def test_a_path_that_is_not_there_is_named(command: str, name: str, folder: Path, invoke: Invoke) -> None:
    """Exit code 2 with one message, nothing on stdout, nothing written: it is never left out of what is done."""
    before = sorted(folder.rglob("*"))
    suffix = {"SOURCE": ".npz", "MODEL": ".onnx", "MODEL_PATH": ".onnx", "ATTACHED": ".onnx", "STATS": ".json"}.get(
        name, ""
    )
    result = invoke(*typed(command, name, f"nowhere{suffix}"))
    assert (result.exit_code, result.stdout) == (2, "")
    (message,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert f"nowhere{suffix}" in message
    assert "\n  fix: " in result.stderr
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(("command", "name"), [place for place in places() if place[1] in WRITTEN])
def test_a_path_that_cannot_be_made_is_named(command: str, name: str, folder: Path, invoke: Invoke) -> None:
    """What is to be written below a file is refused before anything is computed for it."""
    before = sorted(folder.rglob("*"))
    result = invoke(*typed(command, name, "stats.json/new/out.onnx"))
    assert (result.exit_code, result.stdout) == (2, "")
    (message,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "stats.json" in message
    assert "\n  fix: " in result.stderr
    assert sorted(folder.rglob("*")) == before
