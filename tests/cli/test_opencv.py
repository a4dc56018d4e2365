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

from postproc_export import attach_postprocessing, detach_postprocessing, update_postprocessing
from postproc_export.check import check_parity
from postproc_export.errors import UnsupportedModelError, UsageError
from postproc_export.runtimes import open_runner

pytestmark = pytest.mark.skipif("not __import__('importlib.util').util.find_spec('cv2')", reason="needs OpenCV")


def attached(folder: Path, host: onnx.ModelProto, **options: object) -> Path:
    """Write a model with a tail of these options, and its original beside it."""
    raw = hosts.write(host, folder / "raw.onnx")
    return attach_postprocessing(raw, stats_behind(()), output=folder / "attached.onnx", **options).output


HOSTS = {
    "score and map": hosts.score_and_map(),
    "fixed axes": hosts.score_and_map(dynamic=False, batch=2),
    "score": hosts.score_only(),
    "map": hosts.map_only(),
}


@pytest.mark.parametrize("kind", HOSTS)
def test_a_file_for_opencv_decides_there_as_anywhere(kind: str, tmp_path: Path) -> None:
    """Its tail and the whole file pass; that OpenCV runs on no empty batch is said; `>` for `>=` is seen."""
    path = attached(tmp_path, HOSTS[kind], made_for="opencv")
    report = check_parity(path, raw=tmp_path / "raw.onnx", runtimes=["opencv", "onnxruntime"], threads=1, count=200)
    assert report, report.describe()
    assert "a batch of no images in opencv, which takes none" in report.not_checked
    model = onnx.load(path)
    planted_onnx.greater(model)
    onnx.save(model, path)
    assert not check_parity(path, runtimes=["opencv"], threads=1, count=200)


def test_a_nan_in_a_map_is_found_without_isnan(tmp_path: Path) -> None:
    """It makes its image anomalous in OpenCV, and no other."""
    path = attached(tmp_path, hosts.identity(), made_for="opencv")
    maps = np.zeros((3, 1, 2, 2), np.float32)
    maps[1, 0, 1, 0] = np.nan
    runner = open_runner(path, runtime="opencv")
    runner.run({"score": np.zeros((3, 1), np.float32), "map": maps[:, :, :1, :1]})  # after it OpenCV reduces no map
    found = runner.run({"score": np.zeros((3, 1), np.float32), "map": maps})
    np.testing.assert_array_equal(found["pred_label"], np.array([[0], [1], [0]], np.float32), strict=True)
    np.testing.assert_array_equal(found["pred_mask"], np.isnan(maps).astype(np.float32), strict=True)
    assert found["pred_score"][1] == 1


def test_every_command_knows_the_form(tmp_path: Path, invoke: Invoke) -> None:
    """Updated with another number it stays, `--for any` gives the usual guard back, and detaching the original."""
    path = attached(tmp_path, hosts.score_and_map(), made_for="opencv")
    assert "certain" in invoke("inspect", path, "--json").stdout
    updated = update_postprocessing(path, image_sensitivity=0.3, output=tmp_path / "updated.onnx").output
    usual = update_postprocessing(path, made_for="any", output=tmp_path / "usual.onnx").output
    kinds = [{node.op_type for node in onnx.load(each).graph.node} for each in (path, updated, usual)]
    assert ["IsNaN" in each for each in kinds] == [False, False, True]
    assert check_parity(updated, runtimes=["opencv"], threads=1, count=200)
    detached = detach_postprocessing(updated, output=tmp_path / "detached.onnx").output
    assert detached.read_bytes() == (tmp_path / "raw.onnx").read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"label_dtype": "uint8"}, "label_dtype='uint8' would have no effect"),
        ({"mask_dtype": "float32"}, "mask_dtype='float32' would have no effect"),
        ({"layout": "packed"}, "the packed layout cannot be had"),
    ],
)
def test_options_that_do_not_fit_opencv_are_refused(options: dict[str, str], said: str, tmp_path: Path) -> None:
    """With what to leave out."""
    with pytest.raises(UsageError, match=said):
        attached(tmp_path, hosts.score_and_map(), made_for="opencv", **options)


def test_an_ir_for_opencv_is_refused(tmp_path: Path) -> None:
    """OpenCV is given ONNX files."""
    raw = hosts.to_ir(hosts.score_and_map(), tmp_path / "raw.xml")
    with pytest.raises(UsageError, match="made_for='opencv' is for an ONNX model"):
        attach_postprocessing(raw, stats_behind(()), made_for="opencv")


def test_what_opencv_does_not_know_is_told(tmp_path: Path, invoke: Invoke) -> None:
    """The guard of a default file asks for IsNaN: the report names it, and nothing of OpenCV's own is printed."""
    ran = invoke("check", attached(tmp_path, hosts.score_and_map()), "--runtime", "opencv")
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
    path = attached(tmp_path, hosts.score_and_map())
    monkeypatch.setitem(sys.modules, "cv2", None)
    ran = invoke("check", path, "--runtime", "opencv")
    assert ran.exit_code == 2
    assert "pip install opencv-python-headless" in ran.stderr
