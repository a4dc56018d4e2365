"""Every raw value through the tail: a stretch of the 2^32, all of the half-precision ones, and planted faults."""

from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from postproc_export.check.attached_files import load_attached
from postproc_export.check.findings import Check
from postproc_export.check.reference import Reference
from postproc_export.check.tail import ALL, CHUNK, check_exhaustively
from postproc_export.check.ways import whole_configurations
from postproc_export.errors import UnsupportedModelError
from postproc_export.stats import CalibrationStats, LevelStats

STATS = CalibrationStats(
    image=LevelStats(threshold=1.5, min=-1.0, max=2.9), pixel=LevelStats(threshold=-1.25, min=-2.0, max=0.5)
)
BOTH = ("onnxruntime", "openvino")
WAYS = whole_configurations(BOTH)


def around(value: float) -> tuple[int, int]:
    """Return one chunk of bit patterns with a value in its middle."""
    bits = int(np.float32(value).view(np.uint32))
    return bits - CHUNK // 2, bits + CHUNK // 2


def sweep(path: Path, value: float, **host: Any) -> dict[str, Check]:
    """Return the checks of one chunk around a value, by name."""
    start, stop = around(value)
    return {
        check.name: check for check in check_exhaustively(Reference(load_attached(path)), WAYS, start=start, stop=stop)
    }


def attached(folder: Path, *, ir: bool = False, host: Any = None, **options: Any) -> Path:
    """Return a file with the tail of `STATS`."""
    model = hosts.identity() if host is None else host
    return hosts.attached(model, folder, stats=STATS, ir=ir, **options)[1]


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
def test_a_million_values_in_a_row_agree(ir: bool, tmp_path: Path) -> None:
    """Every float32 around the threshold has the reference's label, and a score within the bound."""
    checks = sweep(attached(tmp_path, ir=ir), 1.5)
    assert all(checks.values()), checks
    assert {name.split("/")[2] for name in checks} == ({"openvino"} if ir else set(BOTH))
    assert all(check.details["count"] == CHUNK for check in checks.values())
    assert checks["exhaustive/pred_score/openvino"].details["largest_error"] > 0


@pytest.mark.parametrize(
    "sensitivity", [0.09, *(pytest.param(each, marks=pytest.mark.slow) for each in (0.0, 0.5, 1.0))]
)
def test_the_rule_gt_equals_anomalibs_formula(sensitivity: float, tmp_path: Path) -> None:
    """For those who migrate, the reference's labels are those of Anomalib's formula written out in torch."""
    path = attached(tmp_path, comparison="gt", image_sensitivity=sensitivity, label_dtype="uint8")
    for value in (1.5 + (0.5 - sensitivity) * 4.0, np.finfo(np.float32).max):
        checks = sweep(path, value)
        assert all(checks.values()), checks
        assert checks["exhaustive/pred_label/anomalib-formula"].details["count"] > CHUNK // 3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
def test_all_half_precision_values_agree(dtype: str, ir: bool, tmp_path: Path) -> None:
    """A half-precision output has 65,536 values; all go in as they are, through the tail's own cast."""
    path = attached(tmp_path, ir=ir, host=hosts.identity(dtype=dtype))
    checks = list(check_exhaustively(Reference(load_attached(path)), WAYS))
    assert all(checks), checks
    assert {check.details["count"] for check in checks} == {1 << 16}


def test_nan_and_infinity_are_among_the_values(tmp_path: Path) -> None:
    """Around the largest numbers NaN comes up: anomalous everywhere, with a score of NaN or 1.0."""
    checks = sweep(attached(tmp_path), float("inf"))
    assert all(checks.values()), checks


def test_one_wrong_value_among_a_million_is_found(tmp_path: Path) -> None:
    """A boundary one ulp off flips one value, which is shown."""
    path = attached(tmp_path)
    model = onnx.load(path)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("pred_label/boundary"))
    higher = np.nextafter(numpy_helper.to_array(tensor), np.float32(9))
    tensor.CopyFrom(numpy_helper.from_array(higher, tensor.name))
    onnx.save(model, path)
    checks = sweep(path, 1.5)
    for runtime in BOTH:
        found = checks[f"exhaustive/pred_label/{runtime}"]
        assert not found
        assert found.details["flipped"] == 1
        assert found.details["flips"][0]["raw"] == 1.5


def test_a_tail_of_another_form_cannot_be_swept(tmp_path: Path) -> None:
    """Where score and label are not computed from one value, the way out is the check that names the fault."""
    path = attached(tmp_path)
    model = onnx.load(path)
    next(node for node in model.graph.node if node.op_type == "Less").op_type = "LessOrEqual"
    onnx.save(model, path)
    with pytest.raises(UnsupportedModelError, match="not computed from one value"):
        sweep(path, 1.5)


def test_the_chunks_cover_everything() -> None:
    """2^32 bit patterns, none left out and none twice."""
    assert ALL == 1 << 32
    assert ALL % CHUNK == 0
