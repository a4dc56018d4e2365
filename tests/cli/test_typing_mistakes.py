"""What is typed wrongly is told in the form of every error, in the words that were typed, with what can be typed."""

import re
from pathlib import Path
from typing import Any, Final

import hosts
import numpy as np
import pytest
from conftest import Invoke

from postproc_export import CalibrationStats, LevelStats, PostprocError, attach_postprocessing, check_parity
from postproc_export.cli.commands import app

STATS: Final = CalibrationStats(
    image=LevelStats(threshold=0.5, min=0.0, max=2.0), pixel=LevelStats(threshold=0.25, min=-1.0, max=1.0)
)
ATTACH: Final = "attach raw.onnx --stats stats.json"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A raw model, an attached one and statistics in the commands' working folder."""
    monkeypatch.chdir(tmp_path)
    STATS.save("stats.json")
    hosts.write(hosts.score_and_map(), tmp_path / "raw.onnx")
    np.savez("raw.npz", pred_score=np.arange(4.0), gt_label=np.arange(4) // 2)
    attach_postprocessing("raw.onnx", STATS, output="post.onnx")
    return tmp_path


MISTAKES: Final = {
    "attach raw.onnx": "--stats is required\n  needed:  Statistics, .*\n  fix:     such as postproc-export attach .*",
    "calibrate raw.npz": "--output is required\n  needed:  Statistics file to write\n  fix:     such as .*calibrate .*",
    "export a.b:c": "--output is required\n  needed:  Folder to write, .*\n  fix:     such as .*export .*",
    "export a.b:c -o dist --stats stats.json": "--input is required\n  needed:  the shape .*\n  fix: .*export .*",
    "inspect": "MODEL is required\n  needed:  ONNX model .*\n  fix:     such as postproc-export inspect .*",
    "predict raw.onnx '' -o out": "nothing stands behind .* predict raw.onnx\n(.|\n)*variable of the shell.*",
    "predict raw.onnx images --split=": "nothing stands behind postproc-export .* --split=\n(.|\n)*",
    f"{ATTACH} -o": "-o needs a value\n  needed:  File to write; .*\n  fix:     such as .*",
    f"{ATTACH} -o --in-place": "-o needs a value\n(.|\n)*",
    f"{ATTACH} --imge-sensitivity 0.3": "unknown option --imge-sensitivity\n  fix:     --image-sensitivity",
    f"{ATTACH} --sensitivity=1": "unknown option --sensitivity\n  fix:     --pixel-sensitivity or --image-sensitivity",
    f"{ATTACH} --xyz": "unknown option --xyz\n  fix:     postproc-export attach --help lists them",
    f"{ATTACH} --comparison gte": "--comparison gte\n  needed:  ge or gt\n  fix:     --comparison gt",
    f"{ATTACH} --image-sensitivity half": "--image-sensitivity half\n  needed:  a number\n  fix: .*",
    f"{ATTACH} --image-sensitivity 50": "--image-sensitivity 50: use 0 to 1\n  fix:     a higher one .*",
    f"{ATTACH} --pixel-sensitivity nan": "--pixel-sensitivity nan: use 0 to 1\n  fix:     a higher one .*",
    f"{ATTACH} --keep-raw=yep": "--keep-raw yep: a switch takes no value\n  fix:     --keep-raw or --no-keep-raw",
    f"{ATTACH} more.onnx": "too many arguments: more.onnx\n  fix:     such as .*",
    "check post.onnx --limit 0": "--limit 0\n  needed:  a whole number of at least 1\n  fix:     --limit 1, .*",
    "check post.onnx --limit 1.5": "--limit 1.5\n  needed:  a whole number\n  fix:     --limit 1",
    "check post.onnx --seed -5": "--seed -5\n  needed:  a whole number of at least 0\n  fix:     --seed 0, .*",
    "check post.onnx --image-sensitivity 2 --stats stats.json": "--image-sensitivity 2: use 0 to 1\n  fix: .*",
    f"{ATTACH} --step gausian:sigma=4": "the step 'gausian:sigma=4' is not known\n.*\n  fix:     --step gaussian",
    f"{ATTACH} --step gaussian:sgma=4": "the step .* 'sgma'\n.*\n  fix:     --step gaussian:sigma=4",
    f"{ATTACH} --step gaussian:sigma=x": "the step 'gaussian': sigma is 'x'\n.*\n  fix:     such as .*",
    f"{ATTACH} --image-output no": "--image-output no: .*\n(.*\n)*  fix:     --image-output pred_score",
    "calibrate raw.npz -o s --image-policy f2": "unknown policy 'f2'\n.*\n  fix:     such as f1 .*",
    "calibrate raw.npz -o s --image-policy recall=2": "the number of .*\n(.*\n)*  fix:     such as recall=0.99",
    "check post.onnx --contract anomalb": "the contract 'anomalb' .*\n.*\n  fix:     --contract anomalib",
    "atach raw.onnx": "unknown command atach\n  needed:  demo, calibrate, .*\n  fix:     postproc-export attach",
    "nonsense": "unknown command nonsense\n  needed:  demo, .*\n  fix:     postproc-export --help .*",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_in_typing_is_told_as_it_was_typed(command: str, folder: Path, invoke: Invoke) -> None:
    """Where, needed and fix, exit code 2, nothing on stdout, nothing written."""
    before = {path: path.read_bytes() for path in folder.iterdir()}
    result = invoke(*(word.strip("'") for word in command.split()))
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.fullmatch(f"error: {MISTAKES[command]}\n", result.stderr)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", [name for name in app if not name.startswith("-")])
def test_a_required_option_that_is_left_out_is_called_required(name: str, invoke: Invoke) -> None:
    """Of every command that needs an argument, in the words of the help."""
    missing = [each for each in app[name].assemble_argument_collection() if each.required]
    result = invoke(name) if missing else invoke(name, "--no-such-option")
    assert result.exit_code == 2
    if missing:
        assert result.stderr.startswith(f"error: {missing[0].name} is required\n")
    else:
        assert result.stderr.startswith("error: unknown option --no-such-option\n")


IN_PYTHON: Final[dict[str, dict[str, object]]] = {
    "image_sensitivity 50: use 0 to 1": {"image_sensitivity": 50},
    "comparison='gt' would have no effect": {"comparison": "gt", "enable_thresholding": False},
    "leave out keep_raw=True, or layout='packed'": {"layout": "packed", "keep_raw": True},
    "leave out enable_normalization=False or enable_thresholding=False": {
        "enable_normalization": False,
        "enable_thresholding": False,
    },
    "add adjustable='sensitivity'": {"as_parameters": True},
    "replace the file with in_place=True": {"output": "raw.onnx"},
    "image_output nothing: the model has no such output": {"image_output": "nothing"},
}


@pytest.mark.parametrize("message", IN_PYTHON)
def test_python_is_told_its_own_names(message: str, invoke: Invoke) -> None:
    """The keyword in place of the flag, from the same message; the command line names the flag."""
    with pytest.raises(PostprocError) as refused:
        attach_postprocessing("raw.onnx", "stats.json", **IN_PYTHON[message])  # type: ignore[arg-type]
    assert message in str(refused.value)
    assert "--" not in str(refused.value)
    assert "--" in refused.value.text


def test_python_counts_as_the_command_line_does() -> None:
    """A count that is too small, or no whole number, is refused before anything is read."""
    for value in (0, 1.5, True):
        with pytest.raises(PostprocError, match=f"^limit(=| ){value}\n  needed:  a whole number of at least 1"):
            check_parity("not_there.onnx", limit=value)


def test_python_takes_one_name_for_a_list_of_one() -> None:
    """A text is a name and not its letters; what is no name is refused before anything is read."""
    path = Path("post.onnx")
    options: dict[str, Any] = {"count": 10, "threads": 1, "contracts": "anomalib"}
    alone, listed = (check_parity(path, runtimes=name, **options) for name in ("onnxruntime", ["onnxruntime"]))
    assert {check.way for check in alone.checks} == {check.way for check in listed.checks} == {None, "onnxruntime"}
    for value in (None, 3, ["onnxruntime", 3]):
        with pytest.raises(PostprocError, match=r"^runtimes(=| )"):
            check_parity("not_there.onnx", runtimes=value)  # type: ignore[arg-type]
