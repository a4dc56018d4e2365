"""Statistics on a model that they do not belong to: each mistake is exit code 2, and the message leads to the mend."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hosts
import image_files
import model_files
import numpy as np
import pytest

from postproc_export import CalibrationStats, attach_postprocessing

Invoke = Callable[..., Any]
BOTH = pytest.mark.parametrize("ir", [False, True], ids=["onnx", "openvino"])


def pictures(root: Path, size: int = 8) -> Path:
    """Write two dark normal images and two bright anomalous ones."""
    for name, value in (("good/0", 0), ("good/1", 8), ("spot/0", 128), ("spot/1", 192)):
        pixels = np.full((size, size, 3), value, np.uint8)
        pixels[0, 0] = value + 4
        image_files.save(root / "validation" / f"{name}.png", pixels)
    return root


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of labelled images."""
    return pictures(tmp_path / "bottle")


def calibrated(invoke: Invoke, model: Path, images: Path, *options: object) -> Path:
    """Return the statistics of a model that the command line calibrated."""
    target = model.with_suffix(".json")
    ran = invoke("calibrate", model, "--images", images, "--image-only", "--image-size", "8x8", *options, "-o", target)
    assert ran.exit_code == 0, ran.stderr
    return target


@BOTH
def test_statistics_of_another_model(ir: bool, invoke: Invoke, images: Path, tmp_path: Path) -> None:
    """The same architecture with other weights: refused, with both names and the number; its own are not."""
    one = hosts.raw_file(hosts.score_and_map(), tmp_path, "one", ir=ir)
    other = hosts.raw_file(model_files.other(), tmp_path, "other", ir=ir)
    stats, target = calibrated(invoke, one, images), tmp_path / f"out{one.suffix}"
    ran = invoke("attach", other, "--stats", stats, "-o", target)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert not target.exists()
    text = " ".join(ran.stderr.split())
    assert f"the statistics belong to another model than {other}" in text
    assert f"they are of {one.name} (digest" in text
    assert "% of the range off" in text
    assert f"postproc-export calibrate {other} --images FOLDER -o stats.json; or --other-model" in text
    ran = invoke("attach", other, "--stats", stats, "-o", target, "--other-model")
    assert ran.exit_code == 0
    assert "used all the same" in ran.stdout
    own = invoke("attach", other, "--stats", calibrated(invoke, other, images), "-o", tmp_path / f"own{one.suffix}")
    assert own.exit_code == 0
    assert "belong" not in own.stdout


@BOTH
def test_an_update_with_statistics_of_another_model(ir: bool, invoke: Invoke, images: Path, tmp_path: Path) -> None:
    """As with attach, and the way to statistics of this model leads over the raw one."""
    one = hosts.raw_file(hosts.score_and_map(), tmp_path, "one", ir=ir)
    stats = calibrated(invoke, one, images)
    foreign = calibrated(invoke, hosts.raw_file(model_files.other(), tmp_path, "other", ir=ir), images)
    attached = attach_postprocessing(one, stats).output
    target = tmp_path / f"out{one.suffix}"
    ran = invoke("update", attached, "--stats", foreign, "-o", target)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert not target.exists()
    assert f"postproc-export detach {attached} -o raw{one.suffix}, and calibrate on that" in ran.stderr
    assert invoke("update", attached, "--stats", foreign, "-o", target, "--other-model").exit_code == 0
    assert invoke("update", attached, "--stats", stats, "-o", target).exit_code == 0
    ran = invoke("update", attached, "--image-sensitivity", "0.4", "--other-model")
    assert ran.exit_code == 2
    assert "--other-model would have no effect" in ran.stderr


@BOTH
def test_statistics_of_another_size(ir: bool, invoke: Invoke, images: Path, tmp_path: Path) -> None:
    """The message says that the size is that of the model which the statistics are of."""
    stats = calibrated(invoke, hosts.raw_file(hosts.score_and_map(), tmp_path, "small", ir=ir), images)
    large = hosts.raw_file(hosts.score_and_map(dynamic=False, size=(16, 16)), tmp_path, "large", ir=ir)
    ran = invoke("attach", large, "--stats", stats, "-o", tmp_path / f"out{large.suffix}")
    assert (ran.exit_code, ran.stdout) == (2, "")
    text = " ".join(ran.stderr.split())
    assert f"another model than {large}, which takes images of another size" in text
    assert f"small{large.suffix} was calibrated on images of 3 x 8 x 8" in text


@BOTH
def test_a_check_on_images_with_statistics_of_another_size(
    ir: bool, invoke: Invoke, images: Path, tmp_path: Path
) -> None:
    """Forced onto a model they come up again: the message says whose size it is, not that an option is wrong."""
    stats = calibrated(invoke, hosts.raw_file(hosts.score_and_map(), tmp_path, "small", ir=ir), images)
    large = hosts.raw_file(hosts.score_and_map(dynamic=False, size=(16, 16)), tmp_path, "large", ir=ir)
    attached = tmp_path / f"out{large.suffix}"
    assert invoke("attach", large, "--stats", stats, "-o", attached, "--other-model").exit_code == 0
    ran = invoke("check", attached, "--images", images)
    assert (ran.exit_code, ran.stdout) == (2, "")
    text = " ".join(ran.stderr.split())
    assert "the statistics are of another model: this one does not take the images that they record" in text
    assert "images of 8x8 (height x width) do not fit the model's input" in text


def test_another_output_than_the_calibrated_one(invoke: Invoke, images: Path, tmp_path: Path) -> None:
    """The fix is the option that chooses the right one, and works as it stands."""
    model = hosts.raw_file(hosts.score_and_map(), tmp_path)
    stats = calibrated(invoke, model, images, "--image-output", "none")
    own = calibrated(invoke, hosts.raw_file(hosts.score_and_map(), tmp_path, "same"), images)
    target = tmp_path / "out.onnx"
    ran = invoke("attach", model, "--stats", own, "-o", target, "--image-output", "none")
    assert ran.exit_code == 2
    assert "--image-output pred_score; or --other-model" in ran.stderr
    assert invoke("attach", model, "--stats", own, "-o", target, "--image-output", "pred_score").exit_code == 0
    assert invoke("attach", model, "--stats", stats, "-o", target).exit_code == 0  # the score is the map's maximum


@pytest.mark.parametrize(
    "options",
    [{}, {"enable_thresholding": False}, {"layout": "packed"}, {"enable_normalization": False}],
    ids=["plain", "scores", "packed", "labels"],
)
@BOTH
def test_an_attached_file_is_no_model_to_calibrate(
    ir: bool, options: dict[str, Any], invoke: Invoke, images: Path, tmp_path: Path
) -> None:
    """Whatever was attached: its values are normalised or decided already. Detached it can be calibrated again."""
    stats = model_files.statistics(hosts.raw_file(hosts.score_and_map(), tmp_path, ir=ir))
    raw = hosts.raw_file(hosts.score_and_map(), tmp_path, ir=ir)
    attached = attach_postprocessing(raw, stats, **options).output
    target = tmp_path / "again.json"
    arguments = ("--images", images, "--image-only", "--image-size", "8x8", "-o", target)
    ran = invoke("calibrate", attached, *arguments)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert "the model is post-processed already" in ran.stderr
    assert "postproc-export detach" in ran.stderr
    assert not target.exists()
    assert invoke("detach", attached, "-o", tmp_path / f"back{raw.suffix}").exit_code == 0
    assert invoke("calibrate", tmp_path / f"back{raw.suffix}", *arguments).exit_code == 0


def test_an_export_with_statistics_of_another_model(invoke: Invoke, tmp_path: Path) -> None:
    """The module's graph is compared as a file's is: nothing is written, and the folder is not made."""
    stats = model_files.statistics(hosts.raw_file(hosts.score_and_map(), tmp_path))
    stats.save(tmp_path / "stats.json")
    command = ("export", "export_modules:detector", "--input", "1,3,8,8", "-o", tmp_path / "dist")
    ran = invoke(*command, "--stats", tmp_path / "stats.json")
    assert (ran.exit_code, ran.stdout) == (2, "")
    text = " ".join(ran.stderr.split())
    assert "the statistics belong to another model than the exported model.onnx" in text
    assert "--calibrate FOLDER in place of --stats; or --other-model" in text
    assert not (tmp_path / "dist").exists()
    ran = invoke(*command, "--stats", tmp_path / "stats.json", "--other-model")
    assert ran.exit_code == 0, ran.stderr
    assert "used all the same" in ran.stdout
    assert CalibrationStats.load(tmp_path / "dist/statistics.json").details["model"]["name"] == "raw.onnx"
    ran = invoke(*command, "--calibrate", pictures(tmp_path / "set"), "--image-only", "--other-model")
    assert ran.exit_code == 2
    assert "--other-model would have no effect" in ran.stderr


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Raw scores in a file."""
    np.savez(tmp_path / "val.npz", pred_score=np.array([0, 0.1, 0.5, 0.6], np.float32), gt_label=[0, 0, 1, 1])
    return tmp_path / "val.npz"


def test_values_in_files_with_the_model_that_gave_them(shard: Path, invoke: Invoke, tmp_path: Path) -> None:
    """`--model` names it, and `attach` tells it from another; without it there is a note."""
    one = hosts.raw_file(hosts.score_and_map(), tmp_path, "one")
    other = hosts.raw_file(model_files.other(), tmp_path, "other")
    stats, target = tmp_path / "stats.json", tmp_path / "out.onnx"
    ran = invoke("calibrate", shard, "--model", one, "--image-size", "8x8", "--preset", "imagenet", "-o", stats)
    assert ran.exit_code == 0, ran.stderr
    assert f"attach {one} --stats {stats}" in ran.stdout + ran.stderr
    assert CalibrationStats.load(stats).details["preprocessing"]["std"] == [0.229, 0.224, 0.225]
    assert invoke("attach", other, "--stats", stats, "-o", target).exit_code == 2
    assert invoke("attach", one, "--stats", stats, "-o", target).exit_code == 0
    assert invoke("calibrate", shard, "-o", stats).exit_code == 0
    assert (
        "do not say which model they were calibrated on"
        in invoke("attach", other, "--stats", stats, "-o", target).stdout
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "nowhere.onnx"], "nowhere.onnx"),
        (["--model", "{shard}"], "{shard}"),
        (["--image-output", "pred_score"], "or name the model that gave the values with --model"),
        (["--preset", "imagenet"], "or name the model that gave the values with --model"),
        (["--model", "{model}", "--precision", "default"], "--precision is for a model that is run on images"),
        (["--model", "{model}", "-o", "{model}"], "it is the file that is read"),
        (["--model", "{model}", "--image-output", "third"], "the model has no such output"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_model_of_values_that_cannot_be_named(
    options: list[str], message: str, shard: Path, invoke: Invoke, tmp_path: Path
) -> None:
    """One message that names what was typed; nothing is written."""
    model, stats = hosts.raw_file(hosts.score_and_map(), tmp_path), tmp_path / "stats.json"
    before = model.read_bytes()
    known = {"model": model, "shard": shard}
    target = [] if "-o" in options else ["-o", stats]
    ran = invoke("calibrate", shard, *(text.format(**known) for text in options), *target)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert message.format(**known) in ran.stderr
    assert model.read_bytes() == before
    assert not stats.exists()


def test_a_model_that_is_run_is_not_named_again(invoke: Invoke, images: Path, tmp_path: Path) -> None:
    """`--model` is for values in files."""
    model = hosts.raw_file(hosts.score_and_map(), tmp_path)
    ran = invoke("calibrate", model, "--images", images, "--model", model, "-o", tmp_path / "stats.json")
    assert ran.exit_code == 2
    assert "--model is for raw outputs in files" in ran.stderr
