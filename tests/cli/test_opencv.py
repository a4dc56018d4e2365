"""OpenCV's module dnn as a runtime: what it loads is judged like anywhere, and what it does not is told."""

import sys
from pathlib import Path

import hosts
import numpy as np
import onnx
import planted_onnx
import pytest
from conftest import Invoke
from shipped_tails import stats_behind

from postproc_export.attach import attach_postprocessing
from postproc_export.check import check_parity
from postproc_export.errors import UnsupportedModelError
from postproc_export.runtimes import open_runner

pytestmark = pytest.mark.skipif("not __import__('importlib.util').util.find_spec('cv2')", reason="needs OpenCV")

UNGUARDED = {"nan_guard": False, "label_dtype": "float32", "mask_dtype": "float32"}


def attached(folder: Path, **options: object) -> Path:
    """Write a detector with a tail of these options, and its original beside it."""
    raw = hosts.write(hosts.score_and_map(), folder / "raw.onnx")
    return attach_postprocessing(raw, stats_behind(()), output=folder / "attached.onnx", **options).output


def test_a_file_without_isnan_is_judged(tmp_path: Path) -> None:
    """Its tail and the whole file pass; that OpenCV runs on no empty batch is said; `>` for `>=` is seen."""
    path = attached(tmp_path, **UNGUARDED)
    report = check_parity(path, raw=tmp_path / "raw.onnx", runtimes=["opencv"], threads=1, count=200)
    assert report, report.describe()
    assert "a batch of no images in opencv, which takes none" in report.not_checked
    model = onnx.load(path)
    planted_onnx.greater(model)
    onnx.save(model, path)
    assert not check_parity(path, runtimes=["opencv"], threads=1, count=200)


def test_what_opencv_does_not_know_is_told(tmp_path: Path, invoke: Invoke) -> None:
    """The guard of a default file asks for IsNaN: the report names it, and nothing of OpenCV's own is printed."""
    ran = invoke("check", attached(tmp_path), "--runtime", "opencv")
    assert ran.exit_code == 1
    assert "IsNaN" in ran.stdout
    assert "onnx_importer" not in ran.stderr


def test_an_image_that_does_not_fit_is_told(tmp_path: Path) -> None:
    """With OpenCV's innermost reason; the next one runs."""
    model = hosts.parse("m (float[N,4] x) => (float[N,2] y) <float[4,2] w = {1,1,1,1,1,1,1,1}> { y = MatMul(x, w) }")
    runner = open_runner(hosts.write(model, tmp_path / "m.onnx"), runtime="opencv")
    with pytest.raises(UnsupportedModelError, match=r"OpenCV failed to run m.onnx on x: float32 \[0, 4\]"):
        runner.run({"x": np.zeros((0, 4), np.float32)})
    np.testing.assert_array_equal(runner.run({"x": np.ones((3, 4), np.float32)})["y"], np.full((3, 2), 4, np.float32))


def test_opencv_that_is_not_installed_is_named(tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the package that brings it."""
    path = attached(tmp_path)
    monkeypatch.setitem(sys.modules, "cv2", None)
    ran = invoke("check", path, "--runtime", "opencv")
    assert ran.exit_code == 2
    assert "pip install opencv-python-headless" in ran.stderr
