"""Folders of images on the command line: which split is taken, what is said of it, and mistakes with folders."""

import json
import shutil
from pathlib import Path
from typing import Any

import hosts
import image_files
import numpy as np
import pytest
from conftest import Invoke

from postproc_export import CalibrationStats, LevelStats, attach_postprocessing
from postproc_export.calibration import CalibrationWarning
from postproc_export.calibration.model import ModelSource
from postproc_export.images import Preprocessing

VALUES = {"good": (0, 8), "crack": (128, 160, 200), "hole": (192,)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model whose score and map follow the brightness."""
    return hosts.write(hosts.score_and_map(), tmp_path / "model.onnx")


def write_split(root: Path, split: str, *, good_only: bool = False, masks: bool = True) -> Path:
    """Write two dark normal images, and four bright ones of two kinds with masks, as a split of MVTec AD's layout."""
    for group, values in VALUES.items():
        for index, value in enumerate(values if group == "good" or not good_only else ()):
            image_files.save(root / split / group / f"{index}.png", np.full((8, 8, 3), value, np.uint8))
            if masks and group != "good":
                mask = root / "ground_truth" / group / f"{index}_mask.png"
                image_files.save(mask, np.eye(8, dtype=np.uint8) * 255)
    return root


def calibrate(invoke: Invoke, model: Path, images: Path, *options: object) -> tuple[Any, dict[str, Any] | None]:
    """Calibrate, and return what came of it and the statistics file, if there is one."""
    target = model.parent / "s.json"
    result = invoke("calibrate", model, "--images", images, "--image-size", 8, "-o", target, *options)
    return result, json.loads(target.read_text("utf-8")) if target.is_file() else None


def test_the_validation_split_is_taken_and_recorded(model: Path, tmp_path: Path, invoke: Invoke) -> None:
    """Of train, validation and test; the summary and the statistics say which, and how many of each kind."""
    root = tmp_path / "bottle"
    write_split(root, "test")
    write_split(root, "train", good_only=True)
    write_split(root, "validation")
    result, stats = calibrate(invoke, model, root)
    assert result.exit_code == 0, result.stderr
    assert "images: 2 normal, 4 anomalous (crack 3, hole 1), 4 masks" in result.stderr
    assert "split: validation\n" in result.stderr
    assert "warning" not in result.stderr
    assert stats is not None
    assert stats["samples"]["split"] == "validation"
    assert stats["samples"]["classes"] == {"crack": 3, "good": 2, "hole": 1}


def test_the_test_split_is_never_taken_without_a_word(model: Path, tmp_path: Path, invoke: Invoke) -> None:
    """By default or by its path it draws a warning, whose fix says that it is meant; it is recorded all the same."""
    root = write_split(tmp_path / "bottle", "test")
    for images in (root, root / "test"):
        result, stats = calibrate(invoke, model, images)
        assert result.exit_code == 0, result.stderr
        warning = f"warning: the split 'test' of {images} is taken for calibration: what is measured on it later is no"
        assert warning in result.stderr
        assert result.stderr.count("warning") == 1
        assert "--split test if it is meant" in result.stderr
        result, again = calibrate(invoke, model, images, "--split", "test")
        assert result.exit_code == 0, result.stderr
        assert "split: test\n" in result.stderr
        assert "warning" not in result.stderr
        assert stats is not None
        assert again is not None
        assert stats["samples"] == again["samples"]
        assert stats["samples"]["split"] == "test"


def test_images_without_splits_draw_no_warning(model: Path, tmp_path: Path, invoke: Invoke) -> None:
    """Nothing says what they are, and nothing is said of it."""
    root = write_split(tmp_path, "parts")
    shutil.move(root / "ground_truth", root / "parts" / "ground_truth")
    result, stats = calibrate(invoke, model, root / "parts")
    assert result.exit_code == 0, result.stderr
    assert "split:" not in result.stderr
    assert "warning" not in result.stderr
    assert stats is not None
    assert stats["samples"]["split"] is None


def test_python_warns_of_a_split_as_well(model: Path, tmp_path: Path) -> None:
    """Of the test split, and of the training split, for its own reason."""
    root = tmp_path / "bottle"
    for split, reason in (("test", "no longer a test"), ("train", "the threshold is too low")):
        write_split(root, split)
        with pytest.warns(CalibrationWarning, match=f"'{split}' of .* is taken for calibration: .*{reason}"):
            ModelSource.open(model, root / split, preprocessing=Preprocessing(size=(8, 8)))
        ModelSource.open(model, root, split=split, preprocessing=Preprocessing(size=(8, 8)))


def test_the_training_split_alone_is_refused(model: Path, tmp_path: Path, invoke: Invoke) -> None:
    """With what is missing, and the option for those who mean it, which then hear that all images are normal."""
    root = write_split(tmp_path / "bottle", "train", good_only=True)
    result, stats = calibrate(invoke, model, root)
    assert (result.exit_code, stats) == (2, None)
    assert "bottle has no validation or test split" in result.stderr
    assert "images that the model was not trained on" in result.stderr
    result, stats = calibrate(invoke, model, root, "--split", "train")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("warning: ") == 2, "one per level"


def test_only_good_images_are_told_with_what_to_do(model: Path, tmp_path: Path, invoke: Invoke) -> None:
    """The fix works as it stands, and then there is nothing to warn of."""
    root = write_split(tmp_path / "bottle", "validation", good_only=True)
    result, _ = calibrate(invoke, model, root)
    assert result.exit_code == 0, result.stderr
    fixes = ("--image-policy quantile=0.995", "--pixel-policy quantile=0.9999")
    for level, fix in zip(("image", "pixel"), fixes, strict=True):
        assert f"warning: {level} level: only normal samples" in result.stderr
        assert f"fix: {fix}, or add anomalous ones" in result.stderr
    result, stats = calibrate(invoke, model, root, *" ".join(fixes).split())
    assert result.exit_code == 0, result.stderr
    assert "warning" not in result.stderr
    assert stats is not None
    assert (stats["image"]["rule"], stats["pixel"]["rule"]) == ("quantile=0.995", "quantile=0.9999")


def test_a_folder_of_an_unknown_layout_is_refused(model: Path, tmp_path: Path, invoke: Invoke) -> None:
    """What was found, what is known, and how else images can be given; no file is written."""
    root = tmp_path / "parts"
    for name in ("left", "right"):
        image_files.save(root / name / "0.png")
    result, stats = calibrate(invoke, model, root)
    assert (result.exit_code, stats) == (2, None)
    assert "Traceback" not in result.stderr
    for part in ("parts has no layout that is known", "the folders left, right", "good/", "VisA", "image,label,mask"):
        assert part in result.stderr


def test_missing_masks_are_told_with_where_they_belong(model: Path, tmp_path: Path, invoke: Invoke) -> None:
    """How many, the first image, the names that a mask may have, and how to do without."""
    root = write_split(tmp_path / "bottle", "validation", masks=False)
    result, stats = calibrate(invoke, model, root)
    assert (result.exit_code, stats) == (2, None)
    for part in ("4 anomalous image(s) have no mask", "ground_truth/<defect>/<stem>_mask.png", "--image-only"):
        assert part in result.stderr
    result, stats = calibrate(invoke, model, root, "--image-only")
    assert result.exit_code == 0, result.stderr
    assert stats is not None
    assert stats["pixel"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["calibrate", "val.npz", "--split", "val", "-o", "s.json"], "--split is for a model that is run on images"),
        (
            ["export", "m:f", "--input", "1,3,8,8", "--stats", "s.json", "--split", "val", "-o", "out"],
            "--split would have no effect",
        ),
    ],
    ids=["calibrate", "export"],
)
def test_a_split_of_no_images_is_refused(arguments: list[str], message: str, invoke: Invoke) -> None:
    """An option without an effect is an error."""
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_limit_of_a_check_takes_from_every_class(tmp_path: Path, invoke: Invoke) -> None:
    """The report says how many of each, and of how many; without a limit all are fed."""
    raw = hosts.write(hosts.score_and_map(), tmp_path / "raw.onnx")
    level = LevelStats(threshold=0.25, min=-1, max=1)
    attach_postprocessing(raw, CalibrationStats(image=level, pixel=level), output=tmp_path / "post.onnx")
    images = write_split(tmp_path / "bottle", "test") / "test"
    options = ("--images", images, "--image-size", 8, "--no-int8", "--json")
    for limit, shown in ((3, "3 of 6 images (crack 1, good 1, hole 1)"), (9, "6 images (crack 3, good 2, hole 1)")):
        result = invoke("check", tmp_path / "post.onnx", *options, "--limit", limit)
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["environment"]["inputs"].startswith(shown)
