"""Inputs without an axis of samples: a number for all, or a vector of a fixed length, fed as they are."""

from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import pytest
from checks import check_briefly
from numpy.typing import NDArray

from postproc_export import CalibrationStats, attach_postprocessing
from postproc_export.check.inputs import array_inputs
from postproc_export.errors import UsageError
from postproc_export.runtimes import PortInfo
from postproc_export.stats import LevelStats

LEVEL = LevelStats(threshold=0.9, min=0.0, max=2.0)
STATS = CalibrationStats(image=LEVEL, pixel=LEVEL)
SHAPES = {"number": "", "vector": "3,1,1"}
IMAGES = np.random.default_rng(2).integers(0, 64, (11, 3, 8, 8)).astype(np.float32) / np.float32(64)
GAINS: dict[str, NDArray[np.float32]] = {
    "number": np.array(2.0, np.float32),
    "vector": np.full((3, 1, 1), 2, np.float32),
}


def host(shape: str) -> onnx.ModelProto:
    """A model of images that are multiplied by a second input."""
    return hosts.parse(
        f"""g (float[N,3,H,W] input, float[{shape}] gain) => (float[N,1] pred_score, float[N,1,H,W] anomaly_map)
        <float[1,3,1,1] w = {{0.5, 0.25, 0.125}}> {{
            louder = Mul(input, gain)
            anomaly_map = Conv(louder, w)
            flat = Flatten<axis = 1>(anomaly_map)
            pred_score = ReduceMax<axes = [1]>(flat)
        }}""".replace("float[] gain", "float gain")
    )


def made(folder: Path, kind: str, form: str) -> tuple[Path, Path]:
    """Return a raw file and the attached one."""
    model = host(SHAPES[form])
    raw = hosts.write(model, folder / f"raw.{kind}")
    return raw, attach_postprocessing(raw, STATS).output


def check(path: Path, **options: Any) -> Any:
    """Check on few values."""
    return check_briefly(path, count=300, **options)


@pytest.mark.parametrize("form", SHAPES)
@pytest.mark.parametrize("kind", ["onnx", "xml"])
def test_an_input_that_all_samples_share_can_be_fed(kind: str, form: str, tmp_path: Path) -> None:
    """From a file and as arrays, at every batch size that the model takes, INT8 and saved failures included."""
    raw, path = made(tmp_path, kind, form)
    np.savez(tmp_path / "inputs.npz", input=IMAGES, gain=GAINS[form])
    every: dict[str, Any] = {"runtimes": (), "int8": True} if kind == "onnx" and form == "number" else {}
    report = check(path, raw=raw, inputs=tmp_path / "inputs.npz", **every)
    assert report, report.describe()
    whole = [check for check in report.checks if check.subject == "whole/raw/pred_label"]
    assert whole
    assert all(check.details["count"] == len(IMAGES) for check in whole)
    assert not [sentence for sentence in report.not_checked if "batch size" in sentence]
    assert check(path, inputs={"input": IMAGES, "gain": GAINS[form]}, limit=3)


@pytest.mark.parametrize("form", SHAPES)
def test_what_is_saved_of_a_failure_can_be_fed_again(form: str, tmp_path: Path) -> None:
    """A file of samples, given or made up, and what they share as it was."""
    raw, path = made(tmp_path, "onnx", form)
    model = onnx.load(path)
    weights = next(item for item in model.graph.initializer if item.name == "w")
    weights.CopyFrom(onnx.numpy_helper.from_array(np.full((1, 3, 1, 1), 0.5, np.float32), "w"))
    onnx.save(model, path)
    given = {"input": IMAGES, "gain": GAINS[form]}
    report = check(path, raw=raw, inputs=given, save_failures=tmp_path / "failures")
    assert not report
    saved = [Path(item["file"]) for item in report.environment["failures"]]
    by_origin = {}
    for each in saved:
        with np.load(each) as arrays:
            assert arrays["gain"].shape == GAINS[form].shape
            by_origin[np.array_equal(arrays["gain"], GAINS[form])] = each
    assert by_origin.keys() == {True, False}
    for each in by_origin.values():
        assert not check(path, raw=raw, inputs=each)


@pytest.mark.parametrize(
    ("gain", "found"),
    [
        (np.full(11, 2, np.float32), r"'gain' has an entry per sample, and the input takes one number for all"),
        (np.full(1, 2, np.float32), r"found:   float32 \[1\]\n  needed:  gain: float32 \[\]"),
        (np.array(2.0), r"'gain' has another element type"),
    ],
    ids=["per-sample", "one", "float64"],
)
def test_another_array_for_a_number_is_refused(gain: NDArray[Any], found: str, tmp_path: Path) -> None:
    """Before anything runs, with what the input takes."""
    _, path = made(tmp_path, "onnx", "number")
    with pytest.raises(UsageError, match=found):
        check(path, inputs={"input": IMAGES, "gain": gain})


def test_inputs_without_any_samples_are_refused() -> None:
    """All inputs are numbers: nothing says how many samples there are."""
    ports = [PortInfo("gain", "float32", ()), PortInfo("offset", "float32", ())]
    with pytest.raises(UsageError, match="no input of the model has an entry per sample"):
        array_inputs({"gain": np.array(1, np.float32), "offset": np.array(1, np.float32)}, ports)
