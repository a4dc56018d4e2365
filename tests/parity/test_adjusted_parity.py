"""`check_parity` on files that are adjusted at run time: proved at several values, missed where a fault is planted."""

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

from postproc_export import CalibrationStats, LevelStats
from postproc_export.check import check_parity
from postproc_export.check.attached_files import load_attached
from postproc_export.check.preserved_files import compare_files
from postproc_export.check.reference import Reference
from postproc_export.check.tail import CHUNK, check_exhaustively
from postproc_export.check.ways import whole_configurations

STATS = CalibrationStats(
    image=LevelStats(threshold=0.5, min=0.0, max=2.7), pixel=LevelStats(threshold=0.25, min=-1.0, max=1.3)
)
IMAGES = np.random.default_rng(7).integers(0, 256, (11, 3, 8, 8)).astype(np.float32) / 256
FEW = 200
FORMATS = pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sensitivity": ({}, {"adjustable": "sensitivity"}),
    "boundary": ({}, {"adjustable": "boundary"}),
    "boundary-gt": ({}, {"adjustable": "boundary", "comparison": "gt"}),
    "packed": ({}, {"adjustable": "sensitivity", "layout": "packed"}),
    "two-defaults": ({}, {"adjustable": "sensitivity", "image_sensitivity": 0.2, "pixel_sensitivity": 0.9}),
    "map-only": ({"score": None}, {"adjustable": "sensitivity"}),
    "scalar": ({"score": "", "map": "1,1,H,W"}, {"adjustable": "sensitivity"}),
    "float16": ({"dtype": "float16"}, {"adjustable": "boundary"}),
    "opset-9": ({"opset": 9, "ir_version": 4}, {"adjustable": "sensitivity"}),
    "one-level": ({}, {"adjustable": "sensitivity", "levels": "pixel"}),
    "raw-scores": ({}, {"adjustable": "boundary", "enable_normalization": False}),
}
IN_AN_IR = ("sensitivity", "boundary", "packed", "map-only", "two-defaults")

WAYS = whole_configurations(("onnxruntime", "openvino"))


@pytest.mark.parametrize(
    ("case", "ir"), [(case, ir) for case in CASES for ir in (False, True) if not ir or case in IN_AN_IR]
)
def test_it_is_proved_at_the_default_and_at_other_values(case: str, ir: bool, tmp_path: Path) -> None:
    """Every label, in every runtime that keeps the inputs, at the attached sensitivity, at four others and beyond."""
    host, options = CASES[case]
    _, path = attached(hosts.identity(**host), tmp_path, ir=ir, stats=STATS, **options)
    report = check_parity(path, count=FEW, threads=1)
    assert report, report.describe()
    adjusted = [check for check in report.checks if check.name.startswith("adjusted/")]
    values = {check.name.split("/")[1] for check in adjusted}
    assert values >= {"0", "0.3", "0.85", "1"}
    assert (values >= {"-0.5", "1.5", "nan"}) is (options["adjustable"] == "sensitivity")
    ways = {check.way for check in adjusted}
    assert ways == ({"openvino"} if ir else {"onnxruntime", "onnxruntime-unoptimised"})
    assert {check.name.split("/")[2] for check in adjusted} <= {"pred_label", "pred_mask"}
    assert any("makes constants of them" in sentence for sentence in report.not_checked) is not ir


def test_a_constant_tail_has_no_such_checks(tmp_path: Path) -> None:
    """Nothing is run where nothing can be adjusted."""
    _, path = attached(hosts.identity(), tmp_path, ir=False)
    names = [check.name for check in check_briefly(path).checks]
    assert not [name for name in names if name.startswith(("adjusted/", "input/"))]


@FORMATS
@pytest.mark.parametrize("parameters", [False, True], ids=["default", "parameters"])
def test_the_whole_file_passes_on_real_inputs(ir: bool, parameters: bool, tmp_path: Path) -> None:
    """On images alone: what has to be given besides gets what was attached."""
    options = {"as_parameters": True} if parameters and ir else {}
    raw, path = attached(hosts.score_and_map(), tmp_path, ir=ir, stats=STATS, adjustable="sensitivity", **options)
    report = check_parity(path, raw=raw, inputs={"input": IMAGES}, count=FEW, threads=1)
    assert report, report.describe()


@FORMATS
def test_it_can_be_swept(ir: bool, tmp_path: Path) -> None:
    """A million values around the boundary go through the tail at its defaults."""
    options: dict[str, Any] = {"as_parameters": True} if ir else {}
    _, path = attached(hosts.identity(), tmp_path, ir=ir, stats=STATS, adjustable="sensitivity", **options)
    start = int(np.float32(0.5).view(np.uint32)) - CHUNK // 2
    checks = list(check_exhaustively(Reference(load_attached(path)), WAYS, start=start, stop=start + CHUNK))
    assert checks
    assert all(checks), checks


def _constant(name: str, number: float) -> Callable[[onnx.ModelProto], None]:
    def plant(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith(name))
        tensor.CopyFrom(numpy_helper.from_array(np.array(number, np.float32), tensor.name))

    return plant


def _crossed(model: onnx.ModelProto) -> None:
    names = {"image_sensitivity": "pixel_sensitivity", "pixel_sensitivity": "image_sensitivity"}
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)


def _frozen(model: onnx.ModelProto) -> None:
    for item in [item for item in model.graph.input if item.name == "image_sensitivity"]:
        model.graph.input.remove(item)


def _nan_counts_as_a_number(model: onnx.ModelProto) -> None:
    """Ask whether the sensitivity is at least 1, in place of whether it is below."""
    test = next(node for node in model.graph.node if node.op_type == "Less" and node.input[1].endswith("/one"))
    test.op_type = "GreaterOrEqual"
    choice = next(node for node in model.graph.node if node.op_type == "Where" and node.input[0] == test.output[0])
    choice.input[1], choice.input[2] = choice.input[2], choice.input[1]


def _other_way_round(model: onnx.ModelProto) -> None:
    """Take 0.5 from the sensitivity, in place of the sensitivity from 0.5."""
    node = next(node for node in model.graph.node if node.op_type == "Sub")
    node.input[0], node.input[1] = node.input[1], node.input[0]


FAULTS: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "default": (_constant("image_sensitivity", 0.50000006), "input/image_sensitivity"),
    "span": (_constant("pred_label/span", 2.8), "constants/pred_label"),
    "exact-boundary": (_constant("pred_mask/boundary", 0.25000003), "constants/pred_mask"),
    "crossed": (_crossed, "input/image_sensitivity"),
    "frozen": (_frozen, "input/image_sensitivity"),
    "nan": (_nan_counts_as_a_number, "adjusted/nan/pred_label/onnxruntime"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, tmp_path: Path) -> None:
    """A default or a constant one step off, inputs exchanged or gone, a NaN that counts as a number: a miss each."""
    _, path = attached(hosts.identity(), tmp_path, ir=False, stats=STATS, adjustable="sensitivity")
    plant, name = FAULTS[fault]
    model = onnx.load(path)
    plant(model)
    report = check_briefly(hosts.write(model, path))
    assert name in {check.name for check in report.failed}, report.describe()


def test_a_computed_boundary_far_off_is_found_by_running(tmp_path: Path) -> None:
    """A formula that is right at the default alone is caught at the other values."""
    _, path = attached(hosts.identity(), tmp_path, ir=False, stats=STATS, adjustable="sensitivity")
    model = onnx.load(path)
    _other_way_round(model)
    report = check_briefly(hosts.write(model, path))
    missed = {check.name for check in report.failed}
    assert any(name.startswith("adjusted/0.3/") for name in missed), report.describe()
    assert not any(name.startswith(("tail/", "adjusted/0.5/")) for name in missed)


@FORMATS
@pytest.mark.parametrize("form", ["sensitivity", "parameters", *FORMS])
def test_nothing_but_the_tail_is_added(form: str, ir: bool, tmp_path: Path) -> None:
    """The comparison with the raw file takes inputs, variables and a packed output for the tail's own."""
    adjusted: dict[str, dict[str, Any]] = {
        "sensitivity": {"adjustable": "sensitivity"},
        "parameters": {"adjustable": "boundary", "as_parameters": ir},
    }
    raw, path = attached(hosts.score_and_map(), tmp_path, ir=ir, stats=STATS, **{**FORMS, **adjusted}[form])
    found = compare_files(raw, path)
    assert found, found.changes


def test_an_input_that_the_record_does_not_have_is_no_part_of_the_tail(tmp_path: Path) -> None:
    """An input of one of the names is another change where nothing was made to be adjusted."""
    raw, path = attached(hosts.score_and_map(), tmp_path, ir=False, stats=STATS)
    model = onnx.load(path)
    model.graph.input.append(onnx.helper.make_tensor_value_info("image_boundary", 1, []))
    model.graph.initializer.append(onnx.helper.make_tensor("image_boundary", 1, [], [0.5]))
    found = compare_files(raw, hosts.write(model, path))
    assert not found
    assert "graph: input 'image_boundary' was added" in map(str, found.changes)
