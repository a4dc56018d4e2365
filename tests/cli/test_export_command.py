"""`postproc-export export`: from MODULE:FACTORY to checked files, on models that nobody here wrote."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import export_modules
import image_files
import numpy as np
import onnx
import pytest
import torch

from postproc_export import CalibrationStats, LevelStats
from postproc_export.runtimes import open_runner

Invoke = Callable[..., Any]

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
NAMES = ["pred_score", "pred_label", "anomaly_map", "pred_mask"]
STATS = CalibrationStats(
    image=LevelStats(threshold=1.5, min=0.0, max=3.0), pixel=LevelStats(threshold=0.5, min=-1.0, max=2.5)
)


@pytest.fixture
def stats(tmp_path: Path) -> Path:
    """A statistics file."""
    STATS.save(tmp_path / "stats.json")
    return tmp_path / "stats.json"


@pytest.mark.parametrize(
    ("factory", "formats", "dynamic", "axes"),
    [
        ("resnet", "onnx", "batch,height,width", ["batch", 3, "height", "width"]),
        pytest.param("convnext", "onnx", "batch,height,width", ["batch", 3, "height", "width"], marks=pytest.mark.slow),
        pytest.param("vit", "openvino", "batch", [None, 3, 64, 64], marks=pytest.mark.slow),
    ],
)
def test_models_of_transformers_are_exported_in_one_command(
    factory: str,
    formats: str,
    dynamic: str,
    axes: list[Any],
    stats: Path,
    tmp_path: Path,
    invoke: Invoke,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ResNet and ConvNeXt at any size, a vision transformer at its own: exported, checked, and nothing missed."""
    monkeypatch.syspath_prepend(EXAMPLES)
    result = invoke(
        "export", f"feature_distance:{factory}", "--input", "1,3,64,64", "--dynamic", dynamic, "--stats", stats,
        "--to", formats, "-o", tmp_path / "dist",
    )  # fmt: skip
    assert result.exit_code == 0, result.stdout + result.stderr
    assert f"exported feature_distance:{factory}" in result.stdout
    suffixes = {"onnx": ".onnx", "openvino": ".xml"}
    for each in formats.split(","):
        runner = open_runner(tmp_path / f"dist/model{suffixes[each]}")
        assert [port.name for port in runner.outputs] == NAMES
        shape = axes if each == "onnx" else [axis if isinstance(axis, int) else None for axis in axes]
        assert list(runner.inputs[0].shape or ()) == shape
        images = np.random.default_rng(1).random([3, 3, *(64 if axis == 64 else 72 for axis in axes[2:])], np.float32)
        assert runner.run({"input": images})["pred_mask"].shape == (3, 1, *images.shape[2:])


def test_a_calibration_in_the_same_run(tmp_path: Path, invoke: Invoke) -> None:
    """`--calibrate` runs the exported graph on labelled images, records how, and the check takes these images, too."""
    images = image_files.mvtec(tmp_path / "bottle")
    for number, path in enumerate(sorted((images / "test").rglob("*.png"))):
        image_files.save(path, image_files.PIXELS // (number + 1))
    torch.save(export_modules.detector().state_dict(), tmp_path / "weights.pt")
    result = invoke(
        "export", "export_modules:training", "--weights", tmp_path / "weights.pt", "--input", "1,3,16,16",
        "--calibrate", images, "--split", "test", "--pixel-policy", "recall=0.9", "--pixel-sensitivity", 0.4,
        "-o", tmp_path / "dist", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stdout + result.stderr
    document = json.loads(result.stdout)
    assert document["passed"] is True
    assert (document["input"], document["output"]) == ("export_modules:training", str(tmp_path / "dist"))
    assert document["sensitivities"] == {"image": 0.5, "pixel": 0.4}
    assert document["levels"]["pixel"]["outputs"] == ["anomaly_map", "pred_mask"]
    assert str(tmp_path / "dist/model.onnx") in document["written"]
    assert any("evaluation mode" in note for note in document["notes"])
    assert f"calibrating on {images} (split test)" in result.stderr
    assert f"images of {images}" in document["files"][0]["environment"]["inputs"]
    written = CalibrationStats.load(tmp_path / "dist/statistics.json")
    assert written.pixel is not None
    assert written.pixel.policy == "recall=0.9"
    assert (written.pixel.n_normal or 0) + (written.pixel.n_anomalous or 0) == 4 * 16 * 16
    assert written.details["preprocessing"]["size"] == [16, 16]
    assert written.details["samples"]["split"] == "test"
    record = {item.key: item.value for item in onnx.load(tmp_path / "dist/model.onnx").metadata_props}
    assert json.loads(record["postproc_export"])["options"]["pixel_sensitivity"] == 0.4


def test_the_next_command_checks_the_file_beside_the_module(tmp_path: Path, invoke: Invoke) -> None:
    """On the images that it was calibrated on; typed as it stands, it passes. `-v` prints every check before."""
    images = image_files.mvtec(tmp_path / "bottle")
    for number, path in enumerate(sorted((images / "test").rglob("*.png"))):
        image_files.save(path, image_files.PIXELS // (number + 1))
    arguments = (
        "export_modules:detector",
        "--input",
        "1,3,16,16",
        "--calibrate",
        images / "test",
        "--to",
        "onnx",
        "-v",
    )
    result = invoke("export", *arguments, "-o", tmp_path / "dist")
    assert result.exit_code == 0, result.stderr
    assert "module/raw/anomaly_map" in result.stdout
    last = result.stdout.splitlines()[-1]
    assert last.startswith(
        f"next: postproc-export check {tmp_path / 'dist/model.onnx'} --torch export_modules:detector"
    )
    checked = invoke(*shlex.split(last)[2:])
    assert checked.exit_code == 0, checked.stdout + checked.stderr


def test_a_missed_check_is_exit_code_1(tmp_path: Path, stats: Path, invoke: Invoke) -> None:
    """What was missed stands on stdout, one line for the cause; nothing is written, and the folder is not made."""
    arguments = ("export", "export_modules:Undecided", "--input", "1,3,16,16", "--stats", stats)
    result = invoke(*arguments, "-o", tmp_path / "dist")
    assert result.exit_code == 1
    assert "nothing was written" in result.stdout
    assert f"  check    FAILED: {tmp_path / 'dist/model.onnx'} does not decide as the PyTorch model" in result.stdout
    assert result.stdout.count("  export   ") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["stats.json"]


FACTORY, SHAPE = "export_modules:detector", ["--input", "1,3,16,16"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param([FACTORY, "--stats", "{stats}"], "--input", id="no-shape"),
        pytest.param([FACTORY, "--input", "3,x", "--stats", "{stats}"], "'3,x' is no shape", id="shape"),
        pytest.param([FACTORY, *SHAPE], "statistics are needed", id="no-statistics"),
        pytest.param(["export_modules", *SHAPE, "--stats", "{stats}"], "MODULE:FACTORY", id="factory"),
        pytest.param(["nowhere:build", *SHAPE, "--stats", "{stats}"], "no module 'nowhere'", id="module"),
        pytest.param([FACTORY, *SHAPE, "--stats", "{stats}", "--weights", "none.pt"], "none.pt", id="weights"),
        pytest.param([FACTORY, *SHAPE, "--stats", "{stats}", "--mean", "0.5"], "--mean would have no", id="images"),
        pytest.param([FACTORY, *SHAPE, "--stats", "{stats}", "--image-only"], "--image-only would", id="calibration"),
        pytest.param(
            [FACTORY, *SHAPE, "--stats", "{stats}", "--image-sensitivity", "7"],
            "--image-sensitivity 7: use 0 to 1",
            id="attach",
        ),
        pytest.param(["export_modules:Ambiguous", *SHAPE, "--stats", "{stats}"], "--pixel-output NAME", id="two-maps"),
        pytest.param(
            ["export_modules:SquareOnly", *SHAPE, "--stats", "{stats}", "--dynamic", "height"],
            "'height' (axis 2 of the input)",
            id="axis",
        ),
    ],
)
def test_what_cannot_be_used_is_one_message_and_exit_code_2(
    arguments: list[str], message: str, stats: Path, tmp_path: Path, invoke: Invoke
) -> None:
    """A message on stderr, nothing on stdout, nothing written."""
    result = invoke("export", *(each.format(stats=stats) for each in arguments), "-o", tmp_path / "dist")
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["stats.json"]


ITS_OWN = ("--stats", "--output", "--in-place", "--link-weights")  # or with another meaning


def test_every_option_of_attach_is_one_of_export(invoke: Invoke) -> None:
    """Both commands take the class `TailOptions`: what `attach` gets, `export` gets."""
    shown = {
        name: re.findall("^  (--[a-z0-9-]+)", invoke(name, "--help").stdout, re.M) for name in ("attach", "export")
    }
    assert {"--image-sensitivity", "--keep-raw", "--runtime-boundary"} <= set(shown["attach"])
    assert set(shown["attach"]) - set(shown["export"]) - set(ITS_OWN) == set()
