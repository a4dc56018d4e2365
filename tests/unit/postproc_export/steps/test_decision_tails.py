"""Tails behind the decision: a mask gated by the label, and several named operating points in one file."""

from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import pytest

from postproc_export import CalibrationStats, detach_postprocessing
from postproc_export.errors import UnsupportedModelError, UsageError
from postproc_export.runtimes import open_runner
from postproc_export.stats import LevelStats, decision_boundary

POLICIES = [{"policy": "recall=0.99", "threshold": -0.5}, {"policy": "fpr=0", "threshold": None}]
IMAGE = LevelStats(threshold=0.25, min=-2.0, max=2.0, details={"policies": POLICIES})
STATS = CalibrationStats(image=IMAGE, pixel=LevelStats(threshold=0.75, min=-2.0, max=2.0))
SCORES = np.array([[-1.0], [0.0], [0.25], [1.0], [np.nan]], np.float32)
MAPS = np.where(np.arange(20).reshape(5, 1, 2, 2) % 2, np.float32(0.75), np.float32(0.5))
POINTS = "points:strict=0.3,loose=recall=0.99"


def attached(folder: Path, tail: Any, *, ir: bool = False, **options: Any) -> Path:
    """Attach with a tail to a host that gives back what it is fed."""
    return hosts.attached(hosts.identity(), folder, stats=STATS, ir=ir, tail=tail, **options)[1]


@pytest.mark.parametrize("dtype", ["bool", "uint8", "float32"])
@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
def test_a_gated_mask_is_empty_on_a_normal_image(ir: bool, dtype: Any, tmp_path: Path) -> None:
    """The mask is the pixel decision where the label holds, NaN scores among them, and nothing elsewhere."""
    path = attached(tmp_path, "gate", ir=ir, mask_dtype=dtype, label_dtype=dtype)
    found = open_runner(path).run({"score": SCORES, "map": MAPS})
    label = ~(SCORES < 0.25)
    assert np.array_equal(found["pred_label"].astype(bool), label)
    assert np.array_equal(found["pred_mask"], ((MAPS >= 0.75) & label.reshape(5, 1, 1, 1)).astype(dtype))
    assert found["pred_mask"].dtype == np.dtype(dtype)


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
def test_every_operating_point_has_a_label(ir: bool, tmp_path: Path) -> None:
    """A sensitivity decides at its boundary and a policy at its threshold; the outputs come last, in order."""
    path = attached(tmp_path, POINTS, ir=ir)
    runner = open_runner(path)
    assert [port.name for port in runner.outputs][4:] == ["pred_label_strict", "pred_label_loose"]
    found = runner.run({"score": SCORES, "map": MAPS})
    strict = decision_boundary(IMAGE, sensitivity=0.3)
    assert np.array_equal(found["pred_label_strict"].astype(bool), ~(np.float32(strict) > SCORES))
    assert np.array_equal(found["pred_label_loose"].astype(bool), ~(np.float32(-0.5) > SCORES))
    assert np.array_equal(found["pred_label"].astype(bool), ~(np.float32(0.25) > SCORES))


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
def test_both_come_off_again(ir: bool, tmp_path: Path) -> None:
    """Detaching takes what stands behind the decision away with it and says so."""
    path = attached(tmp_path, ["gate", POINTS], ir=ir)
    result = detach_postprocessing(path, output=tmp_path / f"restored{path.suffix}")
    assert result
    assert "gate" in result.summary()
    assert "points" in result.summary()
    if not ir:
        assert onnx.load(result.output) == onnx.load(tmp_path / "raw.onnx")


@pytest.mark.parametrize(
    ("tail", "options", "error", "message"),
    [
        ("gate", {"levels": "image"}, UnsupportedModelError, "no 'pred_mask'"),
        ("gate", {"layout": "packed"}, UsageError, "packed into one output"),
        ("gate", {"enable_thresholding": False}, UsageError, "switched off"),
        ("gate:hard=1", {}, UsageError, "has no parameters"),
        ("points", {}, UsageError, "names no operating point"),
        ("points:strict=2", {}, UsageError, "operating point 'strict'"),
        ("points:a-b=0.5", {}, UsageError, "cannot name an output"),
        ("points:a=recall=0.5", {}, UsageError, "no threshold for 'recall=0.5'"),
        ("points:a=fpr=0", {}, UsageError, "no threshold for 'fpr=0'"),
        ("points:a=0.5", {"levels": "pixel"}, UnsupportedModelError, "image label"),
        (["gate", "gate"], {}, UsageError, "given twice"),
    ],
)
def test_what_a_file_does_not_have_is_refused(
    tail: Any, options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    """What a tail needs and the file has not is one message, and nothing is written."""
    with pytest.raises(error, match=message):
        attached(tmp_path, tail, **options)
    assert not (tmp_path / "raw.post.onnx").exists()
