"""`postproc-export calibrate`: sources, options, streams and exit codes."""

import json
from pathlib import Path

import hosts
import numpy as np
import pytest
from PIL import Image

from postproc_export.cli import main
from postproc_export.stats import CalibrationStats


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Scores of two normal and two anomalous images: F1 is best at 3."""
    path = tmp_path / "val.npz"
    np.savez(path, pred_score=np.array([1, 2, 3, 4], np.float32), gt_label=[0, 0, 1, 1])
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two dark normal images and two bright anomalous ones with masks."""
    root = tmp_path / "set"
    for name, value in (("good/0", 0), ("good/1", 8), ("spot/0", 128), ("spot/1", 192)):
        pixels = np.full((8, 8, 3), value, np.uint8)
        _save(root / "validation" / f"{name}.png", pixels)
        if name.startswith("spot"):
            _save(root / "ground_truth" / f"{name}_mask.png", np.full((8, 8), 255, np.uint8))
    return root


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_shards_give_statistics_and_a_table(shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file holds the statistics, stdout a table, stderr where the file is; the exit code is 0."""
    assert main(["calibrate", str(shard), "-o", str(tmp_path / "stats.json")]) == 0
    stats = CalibrationStats.load(tmp_path / "stats.json")
    assert stats.image is not None
    assert (stats.image.threshold, stats.image.min, stats.image.max) == (3, 1, 4)
    captured = capsys.readouterr()
    assert "threshold" in captured.out
    assert "F1" in captured.out
    assert captured.err == f"statistics written to {tmp_path / 'stats.json'}\n"


def test_several_shards_and_policies(shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files and folders may be mixed; `--compare` prints the other policies."""
    (tmp_path / "more").mkdir()
    np.savez(tmp_path / "more" / "a.npz", scores=np.array([2.5, 5], np.float32), labels=[0, 1])
    arguments = ["calibrate", str(shard), str(tmp_path / "more"), "-o", str(tmp_path / "s.json")]
    assert main([*arguments, "--image-policy", "recall=0.5", "--compare"]) == 0
    stats = CalibrationStats.load(tmp_path / "s.json")
    assert stats.image is not None
    assert (stats.image.policy, stats.image.threshold, stats.image.n_normal) == ("recall=0.5", 4, 3)
    out = capsys.readouterr().out
    assert "other policies, image level" in out
    assert "fpr=0.01" in out


def test_json_prints_the_statistics_file(shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` prints what the file holds, and nothing else on stdout."""
    assert main(["calibrate", str(shard), "-o", str(tmp_path / "s.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "s.json").read_text())


@pytest.mark.parametrize("suffix", ["onnx", "xml"])
def test_a_model_is_run_over_images(
    images: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Model and images give both levels; runtime, outputs and pre-processing are printed and recorded."""
    write = hosts.write if suffix == "onnx" else hosts.to_ir
    model = write(hosts.score_and_map(), tmp_path / f"model.{suffix}")
    options = ["--image-size", "8x8", "--scale", "256", "--mean", "0,0,0", "--batch-size", "3"]
    assert main(["calibrate", str(model), "--images", str(images), "-o", str(tmp_path / "s.json"), *options]) == 0
    stats = CalibrationStats.load(tmp_path / "s.json")
    assert stats.image is not None
    assert stats.pixel is not None
    bright = sum(hosts.CHANNEL_WEIGHTS) * 128 / 256 + hosts.BIAS
    assert (stats.image.threshold, stats.pixel.threshold) == (bright, bright)
    assert stats.details["preprocessing"]["scale"] == 256
    assert stats.details["preprocessing"]["mean"] == [0, 0, 0]
    counts = {"images": 4, "normal": 2, "anomalous": 2, "masks": 2, "batch_size": 3}
    assert stats.details["samples"] == {**counts, "classes": {"good": 2, "spot": 2}, "split": "validation"}
    err = capsys.readouterr().err
    for part in ("runtime: ", "outputs: image score: pred_score", "resized to 8x8", "divided by 256", "2 anomalous"):
        assert part in err


def test_a_model_that_leaves_the_size_open_asks_for_it(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One clear message without a traceback, exit code 2, no file."""
    model = hosts.write(hosts.score_and_map(), tmp_path / "model.onnx")
    assert main(["calibrate", str(model), "--images", str(images), "-o", str(tmp_path / "s.json")]) == 2
    captured = capsys.readouterr()
    assert "--image-size HEIGHTxWIDTH" in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert not (tmp_path / "s.json").exists()


def test_options_for_outputs_runtime_and_levels_reach_the_model(images: Path, tmp_path: Path) -> None:
    """What is recorded shows that outputs, levels, runtime and precision were taken from the command line."""
    model = hosts.write(hosts.score_and_map(names=("s", "m")), tmp_path / "model.onnx")
    options = ["--image-output", "none", "--pixel-output", "1", "--image-only", "--runtime", "openvino"]
    options += ["--precision", "default", "--threads", "1", "--workers", "2", "--image-size", "8"]
    assert main(["calibrate", str(model), "--images", str(images), "-o", str(tmp_path / "s.json"), *options]) == 0
    stats = CalibrationStats.load(tmp_path / "s.json")
    assert stats.pixel is None
    assert stats.details["model"]["outputs"] == {"image": None, "pixel": "m"}
    assert stats.details["runtime"]["name"] == "openvino-cpu"
    assert stats.details["runtime"]["precision"] == "default"


def test_warnings_go_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A one-class set calibrates, with one line of warning instead of Python's two."""
    np.savez(tmp_path / "val.npz", pred_score=np.array([1, 2], np.float32), gt_label=[0, 0])
    assert main(["calibrate", str(tmp_path / "val.npz"), "-o", str(tmp_path / "s.json")]) == 0
    warning = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warning) == 1
    assert "normal" in warning[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["absent.npz"], "absent.npz", id="missing-source"),
        pytest.param(["model.onnx"], "is a model", id="model-without-images"),
        pytest.param(["model.onnx", "val.npz", "--images", "set"], "2 source(s)", id="model-and-shard"),
        pytest.param(
            ["val.npz", "--images", "set"],
            "val.npz is a file of arrays, and no exported model",
            id="images-without-model",
        ),
        pytest.param(["val.npz", "--image-policy", "best"], "best", id="policy"),
        pytest.param(["model.onnx", "--images", "set", "--image-size", "8 by 8"], "HEIGHTxWIDTH", id="size"),
        pytest.param(["model.onnx", "--images", "set", "--mean", "a"], "--mean a", id="mean"),
        pytest.param(["model.onnx", "--images", "set", "--image-output", "x"], "no such output", id="output"),
    ],
)
def test_unusable_input_is_one_message_and_exit_code_2(
    shard: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    """Nothing is written, stdout is empty, and the message says what is wrong."""
    monkeypatch.chdir(tmp_path)
    hosts.write(hosts.score_and_map(), tmp_path / "model.onnx")
    assert main(["calibrate", *arguments, "-o", "s.json"]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert not (tmp_path / "s.json").exists()


def test_a_target_that_cannot_be_written_is_refused_first(
    shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not after an hour of running the model."""
    for target, message in ((tmp_path, "a folder"), (shard / "new" / "s.json", "is no folder")):
        assert main(["calibrate", str(shard), "-o", str(target)]) == 2
        assert message in capsys.readouterr().err


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` shows how the command is used."""
    assert main(["calibrate", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "postproc-export calibrate model.onnx --images" in out


@pytest.mark.parametrize(
    ("option", "value"), [("--image-size", "96"), ("--batch-size", "2"), ("--runtime", "openvino"), ("--mean", "0.5")]
)
def test_options_for_images_are_refused_where_there_are_none(
    option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An option that would decide nothing is an error, not a silence."""
    np.savez(tmp_path / "raw.npz", pred_score=np.float32([1, 2, 3]), gt_label=[0, 0, 1])
    arguments = ["calibrate", str(tmp_path / "raw.npz"), "-o", str(tmp_path / "s.json")]
    assert main([*arguments, option, value]) == 2
    assert f"{option} is for a model" in capsys.readouterr().err
    assert not (tmp_path / "s.json").exists()
    assert main(arguments) == 0
