"""`postproc-export attach`, and what all commands have in common."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hosts
import onnx
import pytest

from postproc_export import CalibrationStats, LevelStats, __version__

Invoke = Callable[..., Any]
STATS = CalibrationStats(
    image=LevelStats(threshold=0.5, min=0.0, max=2.0), pixel=LevelStats(threshold=0.25, min=-1.0, max=1.0)
)
COMMANDS = ("demo", "calibrate", "attach", "export", "check", "inspect", "update", "detach")


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A raw ONNX model and a statistics file."""
    STATS.save(tmp_path / "stats.json")
    return hosts.write(hosts.score_and_map(), tmp_path / "model.onnx"), tmp_path / "stats.json"


def test_attach_writes_the_model_and_says_what_it_did(files: tuple[Path, Path], invoke: Invoke) -> None:
    """The summary goes to stdout: the file, the levels, the boundary."""
    model, stats = files
    result = invoke("attach", model, "--stats", stats, "-o", model.with_name("out.onnx"))
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"written  {model.with_name('out.onnx')}" in result.stdout
    assert "anomaly_map and pred_mask: anomalous from raw 0.25 on" in result.stdout
    assert [item.name for item in onnx.load(model.with_name("out.onnx")).graph.output][:2] == [
        "pred_score",
        "pred_label",
    ]


def test_every_option_reaches_the_file(files: tuple[Path, Path], invoke: Invoke) -> None:
    """Options of the command are the options of the function."""
    model, stats = files
    options = ["--image-sensitivity", "0", "--pixel-sensitivity", "1", "--comparison", "gt", "--keep-raw"]
    options += ["--label-dtype", "uint8", "--mask-dtype", "float32", "--no-nan-guard", "--image-output", "1"]
    renamed = hosts.write(hosts.score_and_map(names=("first", "second")), model)
    result = invoke("attach", renamed, "--stats", stats, "-o", model.with_name("out.onnx"), *options[:-2])
    assert result.exit_code == 0, result.stderr
    written = onnx.load(model.with_name("out.onnx"))
    types = {item.name: item.type.tensor_type.elem_type for item in written.graph.output}
    assert list(types) == ["pred_score", "pred_label", "anomaly_map", "pred_mask", "first", "second"]
    assert (types["pred_label"], types["pred_mask"]) == (onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT)
    assert "IsNaN" not in {node.op_type for node in written.graph.node}
    assert "sensitivity 0.0, rule gt" in result.stdout
    refused = invoke("attach", renamed, "--stats", stats, "-o", model.with_name("out.onnx"), *options)
    assert refused.exit_code == 2
    assert "'second' cannot be" in refused.stderr


@pytest.mark.parametrize(
    ("options", "outputs"),
    [
        (["--layout", "packed"], ["output"]),
        (["--no-normalize"], ["pred_score", "pred_label", "anomaly_map", "pred_mask"]),
        (["--no-threshold"], ["pred_score", "anomaly_map"]),
        (["--levels", "image"], ["pred_score", "pred_label", "anomaly_map"]),
        (["--levels", "pixel"], ["pred_score", "anomaly_map", "pred_mask"]),
    ],
)
def test_the_form_of_the_tail_is_an_option(
    options: list[str], outputs: list[str], files: tuple[Path, Path], invoke: Invoke
) -> None:
    """Layout, switches and levels reach the file, by `attach` and by `update` alike."""
    model, stats = files
    attached, updated = model.with_name("attached.onnx"), model.with_name("updated.onnx")
    assert invoke("attach", model, "--stats", stats, "-o", attached, *options).exit_code == 0
    assert [item.name for item in onnx.load(attached).graph.output] == outputs
    assert invoke("attach", model, "--stats", stats, "-o", model.with_name("plain.onnx")).exit_code == 0
    assert invoke("update", model.with_name("plain.onnx"), "-o", updated, *options).exit_code == 0
    assert [item.name for item in onnx.load(updated).graph.output] == outputs


def test_what_is_adjusted_at_run_time_is_an_option(files: tuple[Path, Path], invoke: Invoke) -> None:
    """Inputs come by `attach`, change and go by `update`, and are shown by `inspect`."""
    model, stats = files
    attached, updated = model.with_name("attached.onnx"), model.with_name("updated.onnx")
    result = invoke("attach", model, "--stats", stats, "-o", attached, "--runtime-sensitivity")
    assert "adjusted at run time by image_sensitivity (default 0.5)" in result.stdout
    assert "adjusted by  pixel_sensitivity, at run time" in invoke("inspect", attached).stdout
    for option, inputs in (("--runtime-boundary", ["image_boundary", "pixel_boundary"]), ("--runtime-constant", [])):
        assert invoke("update", attached, "-o", updated, option).exit_code == 0
        assert [item.name for item in onnx.load(updated).graph.input] == ["input", *inputs]
    assert invoke("update", attached, "-o", updated, "--image-sensitivity", "0.25").exit_code == 0
    assert [item.name for item in onnx.load(updated).graph.input][1:] == ["image_sensitivity", "pixel_sensitivity"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["attach", "{model}", "--stats", "{stats}", "--layout", "packed", "--keep-raw"],
            "the packed layout cannot be had: the raw outputs are to be kept beside it",
        ),
        (["attach", "{model}", "--stats", "{stats}", "--no-normalize", "--no-threshold"], "nothing to attach"),
        (
            ["attach", "{model}", "--stats", "{stats}", "--runtime-sensitivity", "--runtime-boundary"],
            "--runtime-sensitivity and --runtime-boundary contradict each other",
        ),
        (
            ["attach", "{model}", "--stats", "{stats}", "--runtime-parameters"],
            "--runtime-parameters would have no effect",
        ),
        (["attach", "nowhere.onnx", "--stats", "{stats}"], "cannot read the model nowhere.onnx"),
        (["attach", "{model}", "--stats", "nowhere.json"], "cannot read the statistics file nowhere.json"),
        (["attach", "{model}", "--stats", "{model}"], "model.onnx is not JSON"),
        (
            ["attach", "{model}", "--stats", "{stats}", "--image-sensitivity", "1.5"],
            "--image-sensitivity 1.5: use 0 to 1",
        ),
        (
            ["attach", "{model}", "--stats", "{stats}", "--image-output", "9"],
            "--image-output 9: the model has no such output",
        ),
        (["attach", "{model}", "--stats", "{stats}", "-o", "{model}"], "--in-place"),
        (["attach", "{model}"], "--stats"),
        (["attach", "{model}", "--stats", "{stats}", "--comparison", "lt"], "lt"),
        (["nonsense"], "nonsense"),
    ],
)
def test_unusable_input_is_one_message_and_exit_code_2(
    arguments: list[str], message: str, files: tuple[Path, Path], invoke: Invoke
) -> None:
    """Wrong usage and unusable files: a message on stderr, nothing on stdout, nothing written, the input untouched."""
    model, stats = files
    before = {path: path.read_bytes() for path in model.parent.iterdir()}
    result = invoke(*(argument.format(model=model, stats=stats) for argument in arguments))
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert {path: path.read_bytes() for path in model.parent.iterdir()} == before


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, invoke: Invoke) -> None:
    """`--help` says what the command does and shows it in use."""
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert f"Example: postproc-export {command}" in result.stdout


def test_the_version_is_printed(invoke: Invoke) -> None:
    """`--version` prints one line."""
    assert invoke("--version").stdout == f"postproc-export {__version__}\n"


def test_an_onnx_attach_imports_no_runtime(files: tuple[Path, Path]) -> None:
    """Attaching to an ONNX model needs neither torch nor a runtime."""
    model, stats = files
    code = (
        "import sys; from postproc_export.cli import main; "
        f"assert main(['attach', {str(model)!r}, '--stats', {str(stats)!r}]) == 0; "
        "print([name for name in ('torch', 'openvino', 'onnxruntime', 'scipy') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_the_module_is_the_command_line(tmp_path: Path) -> None:
    """`python -m postproc_export` has the same commands and exit codes, and no traceback."""
    run = subprocess.run(
        [sys.executable, "-m", "postproc_export", "attach", "x.onnx", "--stats", "y.json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert run.returncode == 2
    assert run.stderr.startswith("error: cannot read")
    assert "Traceback" not in run.stderr


def test_statistics_are_not_overwritten(files: tuple[Path, Path], tmp_path: Path, invoke: Invoke) -> None:
    """Neither by the model nor by the weights of an IR, which go beside it."""
    model, stats = files
    ir = hosts.to_ir(hosts.score_and_map(), tmp_path / "model.xml")
    for source, name, output in ((model, "s.onnx", "s.onnx"), (ir, "s.bin", "s.xml")):
        named = tmp_path / name
        named.write_bytes(stats.read_bytes())
        result = invoke("attach", source, "--stats", named, "-o", tmp_path / output)
        assert result.exit_code == 2
        assert f"cannot write {named}: it is the file that is read" in result.stderr
        assert named.read_bytes() == stats.read_bytes()
    assert not (tmp_path / "s.xml").exists()
