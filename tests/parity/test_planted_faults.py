"""Planted faults: each is caught by `check_parity`, and the check that it misses names it."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import planted_ir
import planted_onnx
import pytest
from checks import check_briefly
from planted_onnx import Fault

from postproc_export.attach import attach_postprocessing
from postproc_export.check import ParityReport
from postproc_export.stats import CalibrationStats, LevelStats

STATS = CalibrationStats(
    image=LevelStats(threshold=0.2, min=-1.0, max=0.75), pixel=LevelStats(threshold=0.3, min=-0.25, max=0.625)
)
IN_EVERY_RUNTIME = {"onnxruntime", "onnxruntime-unoptimised", "openvino"}


def check_with(fault: Fault, folder: Path, **options: Any) -> ParityReport:
    """Attach, plant the fault into the ONNX file, and check."""
    raw = hosts.write(hosts.identity(), folder / "raw.onnx")
    path = attach_postprocessing(raw, STATS).output
    model = onnx.load(path)
    fault(model)
    onnx.save(model, path)
    return check_briefly(path, count=2_000, **options)


@pytest.fixture(scope="module")
def report_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Fault], ParityReport]:
    """Return the report of a fault; several tests look at the same one."""
    return cache(lambda fault: check_with(fault, tmp_path_factory.mktemp("fault"), runtimes=()))


def missed(report: ParityReport, subject: str) -> set[str | None]:
    """Return the ways in which a subject was missed."""
    return {check.way for check in report.failed if check.subject == subject}


def message(report: ParityReport, name: str) -> str:
    """Return what a check says."""
    return next(check.message for check in report.checks if check.name == name)


TAIL_FAULTS = [
    pytest.param(
        planted_onnx.one_ulp_off,
        "pred_label",
        "boundary is 0.200000018 in the file, 0.200000003 by the record",
        id="ulp",
    ),
    pytest.param(
        planted_onnx.half_precision_boundary, "pred_mask", "boundary is 0.300048828 in the file", id="float16-boundary"
    ),
    pytest.param(
        planted_onnx.half_precision_slope, "anomaly_map", "alpha is 1.14257812 in the file", id="float16-alpha"
    ),
    pytest.param(planted_onnx.greater, "pred_label", "expected less, found LessOrEqual", id="greater"),
    pytest.param(planted_onnx.swapped_range, "anomaly_map", "alpha is -1.14285719 in the file", id="min-and-max"),
    pytest.param(planted_onnx.nan_as_normal, "pred_mask", "expected logical_not, found identity", id="nan-as-normal"),
    pytest.param(planted_onnx.no_guard, "pred_label", "expected select", id="no-guard"),
]


@pytest.mark.parametrize(("fault", "output", "finding"), TAIL_FAULTS)
def test_a_fault_in_the_tail_is_caught_twice(
    fault: Fault, output: str, finding: str, report_of: Callable[[Fault], ParityReport]
) -> None:
    """The record does not fit the graph, which is said, and the numbers differ in every runtime."""
    report = report_of(fault)
    assert not report
    assert finding in message(report, f"constants/{output}")
    assert missed(report, f"tail/{output}") == IN_EVERY_RUNTIME


def test_a_guard_with_a_frozen_shape_is_caught_by_what_it_gives(report_of: Callable[[Fault], ParityReport]) -> None:
    """Tools that fold constants leave this form too, which is right for one size alone."""
    report = report_of(planted_onnx.frozen_guard)
    assert "the form is a folded one" in message(report, "constants/pred_score")
    assert missed(report, "tail/pred_score") == IN_EVERY_RUNTIME


def test_a_tail_in_bfloat16_is_caught(tmp_path: Path) -> None:
    """A detour through bfloat16 is named by the graph, and flips labels wherever the runtime does not remove it."""
    report = check_with(planted_onnx.bfloat16, tmp_path, runtimes=())
    assert "in place of the raw value 'anomaly_map_raw'" in message(report, "constants/pred_mask")
    assert missed(report, "tail/pred_mask") >= {"onnxruntime", "onnxruntime-unoptimised"}


def test_a_boundary_one_ulp_off_flips_exactly_the_value_between(report_of: Callable[[Fault], ParityReport]) -> None:
    """The flip is shown with its raw value and its distance of 0 from the boundary by the record."""
    report = report_of(planted_onnx.one_ulp_off)
    flips = [check.details["flips"][0] for check in report.failed if check.subject == "tail/pred_label"]
    assert {(flip["expected"], flip["ulps"]) for flip in flips} == {(True, 0)}


def test_a_nan_called_normal_is_shown_as_nan(report_of: Callable[[Fault], ParityReport]) -> None:
    """Where NaN alone is decided wrongly, every flip that is shown is a NaN."""
    report = report_of(planted_onnx.nan_as_normal)
    flips = [flip for check in report.failed if check.subject == "tail/pred_mask" for flip in check.details["flips"]]
    assert flips
    assert all(np.isnan(flip["raw"]) for flip in flips)


def test_a_tail_that_reads_something_else_is_caught(tmp_path: Path) -> None:
    """An output that is not computed from the raw values alone cannot be cut out, and the stranger is named."""
    report = check_with(planted_onnx.other_input, tmp_path)
    assert "it reads 'map'" in message(report, "tail")
    assert "in place of the raw value" in message(report, "constants/pred_mask")


@pytest.mark.parametrize(
    ("fault", "finding"),
    [
        pytest.param(planted_onnx.swapped_order, "the outputs are in the order pred_label, pred_score", id="order"),
        pytest.param(
            planted_onnx.frozen_batch,
            "axis 0 of output 'pred_label' is frozen to 1; in the raw output it is N",
            id="frozen",
        ),
        pytest.param(planted_onnx.missing_mask, "output 'pred_mask' is missing", id="missing"),
        pytest.param(planted_onnx.other_dtype, "output 'pred_mask' is uint8, not bool", id="dtype"),
    ],
)
def test_a_fault_of_the_outputs_is_named(fault: Fault, finding: str, tmp_path: Path) -> None:
    """Names, order, types and shapes of the outputs are compared with the raw ones and the record."""
    report = check_with(fault, tmp_path)
    assert not report
    assert finding in message(report, "outputs")


def with_embedding() -> onnx.ModelProto:
    """Return a host with an output that no level takes."""
    return hosts.parse(
        """host (float[N,1] score, float[N,1,H,W] map)
        => (float[N,1] pred_score, float[N,1,H,W] anomaly_map, float[N,5] e) {
            pred_score = Identity(score)
            anomaly_map = Identity(map)
            shape = Constant<value = int64[2] {1, 5}>()
            e = Expand(score, shape)
        }"""
    )


@pytest.mark.parametrize("lost", ["e", "pred_score_raw"])
@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
def test_an_output_that_attaching_had_to_leave_is_missed(lost: str, ir: bool, tmp_path: Path) -> None:
    """Other outputs of the original follow ours, and raw ones where they were to be kept; one that is gone is named."""
    host = with_embedding()
    raw = hosts.raw_file(host, tmp_path, ir=ir)
    path = attach_postprocessing(raw, STATS, keep_raw=True).output
    assert check_briefly(path)
    if ir:
        import openvino

        model = openvino.Core().read_model(path)
        model.remove_result(next(item for item in model.get_results() if lost in item.input_value(0).get_names()))
        path = tmp_path / "faulty.xml"
        openvino.save_model(model, path, compress_to_fp16=False)
    else:
        proto = onnx.load(path)
        proto.graph.output.remove(next(item for item in proto.graph.output if item.name == lost))
        onnx.save(proto, path)
    original = lost.removesuffix("_raw")
    assert f"output '{original}' of the original is gone" in message(check_briefly(path), "outputs")


def test_outputs_under_each_others_names_are_caught(tmp_path: Path) -> None:
    """Score and map swapped: their constants are not the record's, and their values differ in every runtime."""
    report = check_with(planted_onnx.swapped_names, tmp_path, runtimes=())
    assert missed(report, "constants/pred_score") == {None}
    assert missed(report, "tail/anomaly_map") == IN_EVERY_RUNTIME


@pytest.mark.parametrize(
    ("path", "value", "subject"),
    [
        pytest.param(("statistics", "image", "threshold"), 0.25, "constants/pred_label", id="threshold"),
        pytest.param(("statistics", "pixel", "max"), 0.626, "constants/anomaly_map", id="max"),
        pytest.param(("options", "pixel_sensitivity"), 0.51, "constants/pred_mask", id="sensitivity"),
        pytest.param(("options", "comparison"), "gt", "constants/pred_mask", id="comparison"),
        pytest.param(("options", "nan_guard"), False, "constants/pred_label", id="guard"),
    ],
)
def test_a_record_that_does_not_reproduce_the_constants_is_caught(
    path: tuple[str, ...], value: Any, subject: str, tmp_path: Path
) -> None:
    """Every number and rule of the record is needed to get the constants of the file again."""

    def edit(document: dict[str, Any]) -> None:
        holder = document
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = value

    report = check_with(planted_onnx.edited_record(edit), tmp_path)
    assert missed(report, subject) == {None}


def check_ir_with(fault: Callable[[Any], None], folder: Path) -> ParityReport:
    """Attach to an IR, plant the fault, and check."""
    import openvino

    raw = hosts.to_ir(hosts.identity(), folder / "raw.xml")
    path = attach_postprocessing(raw, STATS).output
    model = openvino.Core().read_model(path)
    fault(model)
    faulty = folder / "faulty.xml"
    openvino.save_model(model, faulty, compress_to_fp16=False)
    return check_briefly(faulty, count=2_000)


@pytest.mark.parametrize(
    ("fault", "output", "finding"),
    [
        pytest.param(
            planted_ir.one_ulp_off,
            "pred_label",
            "boundary is 0.200000018 in the file, 0.200000003 by the record",
            id="ulp",
        ),
        pytest.param(planted_ir.greater, "pred_label", "expected less, found LessEqual", id="greater"),
        pytest.param(
            planted_ir.nan_as_normal, "pred_mask", "expected logical_not, found LessEqual", id="nan-as-normal"
        ),
        pytest.param(planted_ir.half_precision_boundary, "pred_mask", "boundary is 0.300048828", id="float16-boundary"),
        pytest.param(planted_ir.swapped_range, "anomaly_map", "alpha is -1.14285719", id="min-and-max"),
    ],
)
def test_a_fault_in_an_ir_is_caught_twice(
    fault: Callable[[Any], None], output: str, finding: str, tmp_path: Path
) -> None:
    """In an IR as in ONNX: the record does not fit, and the numbers differ."""
    report = check_ir_with(fault, tmp_path)
    assert finding in message(report, f"constants/{output}")
    assert missed(report, f"tail/{output}") == {"openvino"}


def test_compressed_weights_that_round_the_constants_are_caught(tmp_path: Path) -> None:
    """An IR saved again with constants in float16 decides elsewhere, and the constants say so."""

    def compress(model: Any) -> None:
        import openvino.opset13 as opset

        for node in model.get_ops():
            if node.get_type_name() == "Constant" and node.get_output_element_type(0).get_type_name() == "f32":
                rounded = node.get_data().astype(np.float16).astype(np.float32)
                node.output(0).replace(opset.constant(rounded).output(0))

    report = check_ir_with(compress, tmp_path)
    assert missed(report, "constants/pred_mask") == {None}
    assert missed(report, "tail/pred_mask") == {"openvino"}
