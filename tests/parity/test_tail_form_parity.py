"""`check_parity` on packed, undecided, raw and one-level tails: passed as attached, missed where a fault is planted."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import pytest
from checks import check_briefly
from onnx import numpy_helper
from tail_forms import FORMS, attached

from postproc_export.check import check_parity
from postproc_export.check.attached_files import load_attached
from postproc_export.check.reference import Reference
from postproc_export.check.tail import CHUNK, check_exhaustively
from postproc_export.check.ways import whole_configurations

FEW = 400
IMAGES = np.random.default_rng(7).integers(0, 256, (11, 3, 8, 8)).astype(np.float32) / 256
FORMATS = pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
HOSTS: dict[str, dict[str, Any]] = {
    "score-and-map": {},
    "flat": {"score": "N", "map": "N,H,W"},
    "map-only": {"score": None},
    "scalar": {"score": "", "map": "1,1,H,W"},
    "static": {"score": "3,1", "map": "3,1,6,5"},
    "float16": {"dtype": "float16"},
    "float64": {"dtype": "double"},
    "opset-8": {"opset": 8},
}
CASES = [
    *(("packed", host, False) for host in HOSTS),
    *(("packed", host, True) for host in ("score-and-map", "flat", "map-only")),
    *(("raw-scores", host, ir) for host in ("map-only", "float64") for ir in (False, True)),
    *((form, "score-and-map", ir) for form in FORMS if form != "packed" for ir in (False, True)),
]

WAYS = whole_configurations(("onnxruntime", "openvino"))


@pytest.mark.parametrize(("form", "host", "ir"), CASES)
def test_the_tail_of_every_form_passes(form: str, host: str, ir: bool, tmp_path: Path) -> None:
    """Each part decides and scores as the eager reference with the same switches, in every runtime."""
    _, path = attached(hosts.identity(**HOSTS[host]), tmp_path, ir=ir, **FORMS[form])
    report = check_parity(path, count=FEW, threads=1)
    assert report, report.describe()
    parts = {check.name.split("/")[1] for check in report.checks if check.name.startswith("tail/")}
    absent = {"no-labels": {"pred_label", "pred_mask"}, "image-level": {"anomaly_map", "pred_mask"}}
    absent["pixel-level"] = {"pred_score", "pred_label"}
    assert parts == {"pred_score", "pred_label", "anomaly_map", "pred_mask"} - absent.get(form, set())


@pytest.mark.parametrize(
    ("form", "ir"),
    [("packed", False), ("packed", True), ("raw-scores", True), ("no-labels", False), ("pixel-level", True)],
)
def test_the_whole_file_of_every_form_passes(form: str, ir: bool, tmp_path: Path) -> None:
    """On real inputs, tapped and beside the raw file, with every sample counted once."""
    raw, path = attached(hosts.score_and_map(), tmp_path, ir=ir, **FORMS[form])
    report = check_parity(path, raw=raw, inputs={"input": IMAGES}, count=FEW, threads=1)
    assert report, report.describe()
    counts = {check.details["count"] for check in report.checks if check.name.startswith("whole/")}
    assert counts <= {len(IMAGES), IMAGES[:, 0].size}
    assert counts


@FORMATS
@pytest.mark.parametrize("form", ["packed", "raw-scores", "no-labels", "pixel-level"])
def test_every_form_can_be_swept(form: str, ir: bool, tmp_path: Path) -> None:
    """A million values in a row go through what each level computes; a raw score is a copy and is left out."""
    _, path = attached(hosts.score_and_map(), tmp_path, ir=ir, **FORMS[form])
    start = int(np.float32(0.5).view(np.uint32)) - CHUNK // 2
    checks = list(check_exhaustively(Reference(load_attached(path)), WAYS, start=start, stop=start + CHUNK))
    assert all(checks), checks
    parts = {
        "packed": {"pred_score", "pred_label", "anomaly_map", "pred_mask"},
        "raw-scores": {"pred_label", "pred_mask"},
        "no-labels": {"pred_score", "anomaly_map"},
        "pixel-level": {"anomaly_map", "pred_mask"},
    }
    assert {check.name.split("/")[1] for check in checks} == parts[form]


def test_all_half_precision_values_of_a_packed_tail_agree(tmp_path: Path) -> None:
    """65,536 values go in as images and maps of their own."""
    _, path = attached(hosts.identity(dtype="float16"), tmp_path, ir=False, layout="packed")
    checks = list(check_exhaustively(Reference(load_attached(path)), WAYS))
    assert all(checks), checks
    assert {check.details["count"] for check in checks} == {1 << 16}


def _swap(op: str, first: int, second: int) -> Callable[[onnx.ModelProto], None]:
    def plant(model: onnx.ModelProto) -> None:
        node = [node for node in model.graph.node if node.op_type == op][-1]
        node.input[first], node.input[second] = node.input[second], node.input[first]

    return plant


def _higher_boundary(model: onnx.ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("boundary"))
    higher = np.nextafter(numpy_helper.to_array(tensor), np.float32(9))
    tensor.CopyFrom(numpy_helper.from_array(higher, tensor.name))


def _map_in_place_of_the_score(model: onnx.ModelProto) -> None:
    """Lay the map over the pair of the image's values: they differ from place to place then."""
    last = [node for node in model.graph.node if node.op_type == "Concat"][-1]
    expand = next(node for node in model.graph.node if node.op_type == "Expand")
    expand.input[0] = last.input[0]
    double = onnx.helper.make_node("Concat", [expand.output[0]] * 2, ["doubled"], name="doubled", axis=1)
    last.input[1] = "doubled"
    model.graph.node.insert(list(model.graph.node).index(last), double)


FAULTS = {
    "map-and-mask-exchanged": (_swap("Concat", 0, 2), r"pred_mask is|anomaly_map"),
    "boundary-one-ulp-higher": (_higher_boundary, r"boundary is 0.50000006 in the file, 0.5 by the record"),
    "map-in-place-of-the-score": (_map_in_place_of_the_score, r"is not the same all over each image"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_packing_is_found(fault: str, tmp_path: Path) -> None:
    """Parts in the wrong place, a constant one step off, or values of pixels in place of the image's: a miss each."""
    _, path = attached(hosts.identity(), tmp_path, ir=False, layout="packed")
    plant, message = FAULTS[fault]
    model = onnx.load(path)
    plant(model)
    hosts.write(model, path)
    report = check_briefly(path)
    assert not report
    assert re.search(message, report.describe()), report.describe()


def test_a_flag_that_the_record_does_not_have_is_found(tmp_path: Path) -> None:
    """A file with raw scores whose record promises normalised ones is missed."""
    _, path = attached(hosts.identity(), tmp_path, ir=False, enable_normalization=False)
    model = onnx.load(path)
    (record,) = model.metadata_props
    record.value = record.value.replace('"enable_normalization":false', '"enable_normalization":true')
    hosts.write(model, path)
    report = check_briefly(path)
    assert "constants/pred_score" in {check.name for check in report.failed}
    assert "tail/pred_score/onnxruntime" in {check.name for check in report.failed}
