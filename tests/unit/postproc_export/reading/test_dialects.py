"""Anomalib's post-processing, in the form of every exporter: what is read, and that the raw outputs come back."""

import json
from pathlib import Path

import numpy as np
import onnx
import openvino
import openvino.opset13 as opset
import pytest
from anomalib_files import EXPECTED, UNKNOWN, case_of, files, is_folded, tolerance

from graph_patterns.match import Mismatch
from graph_patterns.onnx.graph import OnnxView
from postproc_export.detach import detach_postprocessing
from postproc_export.inspect import inspect_model
from postproc_export.reading.found import find_anomalib_tail, sensitivity_of
from postproc_export.runtimes import open_runner
from postproc_export.stats import LEVELS

INPUTS = json.loads((Path(__file__).parents[3] / "data" / "anomalib_edge.json").read_text())["inputs"]


def feeds(path: Path) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Return special values and neighbours of the threshold for a file's inputs."""
    scores = np.float32(INPUTS["pred_score"])
    maps = np.broadcast_to(np.float32(INPUTS["anomaly_map"]).reshape(1, 1, 1, -1), (len(scores), 1, 1, 19)).copy()
    runner = open_runner(path)
    return {port.name: maps if port.rank == 4 else scores for port in runner.inputs}, scores, maps


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_every_export_is_read(path: Path) -> None:
    """Threshold, span and sensitivity are the calibrated ones, or the report says why they are not known."""
    report = inspect_model(path)
    for level, case in zip(LEVELS, EXPECTED[case_of(path)], strict=True):
        found = report.levels[level]
        assert found is not None
        assert found.tail == "anomalib"
        if case.sensitivity is None:
            assert found.sensitivity is None
        else:
            assert found.sensitivity == np.float32(case.sensitivity)
            assert found.comparison == "gt"
        if case_of(path) in UNKNOWN:
            assert (found.threshold, found.span) == (None, None)
            assert "the threshold and the range are not in the graph" in found.notes[0]
        elif case_of(path) == "zero_range" and is_folded(path):
            assert (found.threshold, found.span) == (None, 0.0)
            assert "the conversion lost the threshold" in found.notes[0]
        else:
            assert found.threshold == pytest.approx(case.threshold, rel=0, abs=tolerance(path, case))
            assert found.span == pytest.approx(case.span, rel=0, abs=1e-6 * (case.span or 0))
            assert found.certain == (not is_folded(path))
            assert [bool(found.readings), len(found.readings)] == ([True, 2] if is_folded(path) else [False, 0])


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_every_export_gives_the_raw_outputs_back(path: Path, tmp_path: Path) -> None:
    """After detaching the outputs are the inputs, bit for bit, and the file is a legal model."""
    target = tmp_path / f"raw{path.suffix}"
    result = detach_postprocessing(path, output=target)
    assert result
    assert any("constant factor and a constant" in note for note in result.notes) == (
        is_folded(path) and case_of(path) not in (*UNKNOWN, "zero_range")
    )
    if path.suffix == ".onnx":
        onnx.checker.check_model(str(target), full_check=True)
    inputs, scores, maps = feeds(target)
    outputs = open_runner(target).run(inputs)
    assert list(outputs) == ["pred_score", "anomaly_map"]
    assert outputs["pred_score"].tobytes() == scores.tobytes()
    assert outputs["anomaly_map"].tobytes() == maps.tobytes()


def test_min_and_max_are_read_where_the_exporter_left_them() -> None:
    """The TorchScript export of 2.7.0 tests min and max for NaN in the graph; elsewhere only their difference is."""
    folder = files()[0].parent
    image = inspect_model(folder / "270_default_legacy.onnx").levels["image"]
    assert image is not None
    assert (image.min, image.max) == (3.2433979511260986, 12.298707962036133)
    image = inspect_model(folder / "270_default_dynamo.onnx").levels["image"]
    assert image is not None
    assert (image.min, image.max) == (None, None)


def chain(body: str, *, outputs: str = "float[N] pred_score, bool[N] pred_label") -> OnnxView:
    """Return a view of a graph with the usual constants."""
    constants = "float t = {3.0}, float r = {4.0}, float h = {0.5}, float z = {0.0}, float o = {1.0}"
    graph = f"g (float[N] x, float[N] y) => ({outputs}) <{constants}> {{{body}}}"
    return OnnxView(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {graph}'))


GOOD = "s = Sub(x, t) d = Div(s, r) a = Add(d, h) pred_score = Clip(a, z, o) pred_label = Greater(pred_score, h)"


def test_the_chain_is_found() -> None:
    """The plain chain, as a twin for what follows."""
    tail = find_anomalib_tail(chain(GOOD), "image")
    assert not isinstance(tail, Mismatch)
    assert (tail.reading.threshold, tail.reading.span, tail.reading.sensitivity) == (3.0, 4.0, 0.5)
    assert tail.raw == "x"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        pytest.param("Clip(a, z, o)", "Relu(a)", "expected clip, found Relu at 'pred_score'", id="relu"),
        pytest.param("Clip(a, z, o)", "Clip(a, z, t)", "expected the constant 1.0, found the number 3", id="bound"),
        pytest.param("Add(d, h)", "Add(d, o)", "expected the constant 0.5, found the number 1", id="bias"),
        pytest.param("Div(s, r)", "Pow(s, r)", "expected div, found Pow", id="power"),
        pytest.param("Sub(x, t)", "Sub(x, y)", "expected the number 'threshold', found an input", id="no-number"),
        pytest.param("Greater(pred_score, h)", "Greater(y, h)", "the label is not of the score", id="other-label"),
    ],
)
def test_a_near_miss_explains_itself(old: str, new: str, reason: str) -> None:
    """What was expected, what was found, and where."""
    assert old in GOOD
    assert reason in str(find_anomalib_tail(chain(GOOD.replace(old, new)), "image"))


def test_a_span_of_one_is_read_where_nothing_is_divided() -> None:
    """Exporters drop a division by 1, and a conversion folds what is left to one addition."""
    constant = "q = Constant<value = float {0.25}>()"
    body = f"{constant} a = Add(x, q) pred_score = Clip(a, z, o) pred_label = Greater(pred_score, h)"
    tail = find_anomalib_tail(chain(body), "image")
    assert not isinstance(tail, Mismatch)
    assert (tail.reading.threshold, tail.reading.span, tail.reading.certain) == (0.25, 1.0, False)
    own = body.replace("Add(x, q)", "Add(m, q)").replace("a =", "m = Mul(y, r) a =")
    tail = find_anomalib_tail(chain(own), "image")
    assert not isinstance(tail, Mismatch)
    assert (tail.raw, tail.reading.span) == ("y", 0.25)


def test_a_guard_that_is_not_known_is_no_raw_score() -> None:
    """A select that no pattern explains is a near miss; only a plain score is compared as it is."""
    body = "w = Less(x, t) pred_score = Where(w, x, y) pred_label = Greater(pred_score, h)"
    assert "found less at 'w'" in str(find_anomalib_tail(chain(body), "image"))
    plain = "pred_score = Relu(x) pred_label = Greater(pred_score, h)"
    tail = find_anomalib_tail(chain(plain), "image")
    assert not isinstance(tail, Mismatch)
    assert (tail.outputs, tail.reading.is_normalised) == (("pred_label",), False)


def test_a_branch_that_a_constant_switches_off_is_not_read() -> None:
    """A select on a constant is followed to its live branch; a dead one may hold anything."""
    constants = "f = Constant<value = bool {0}>() yes = Constant<value = bool {1}>()"
    body = GOOD.replace(
        "pred_score = Clip(a, z, o)", "c = Clip(a, z, o) w = Where(f, y, c) pred_score = Where(yes, w, x)"
    )
    tail = find_anomalib_tail(chain(f"{constants} {body}"), "image")
    assert not isinstance(tail, Mismatch)
    assert tail.reading.threshold == 3.0
    swapped = body.replace("Where(f, y, c)", "Where(yes, y, c)")
    assert not find_anomalib_tail(chain(f"{constants} {swapped}"), "image")


def test_a_clipped_scaled_score_without_a_label_is_left_alone(tmp_path: Path) -> None:
    """Models end like that themselves: without a label nothing says that it is post-processing."""
    body = "m = Mul(x, r) a = Add(m, h) pred_score = Clip(a, z, o)"
    constants = "float r = {4.0}, float h = {-0.25}, float z = {0.0}, float o = {1.0}"
    text = f"g (float[N] x) => (float[N] pred_score) <{constants}> {{{body}}}"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}'), tmp_path / "own.onnx")
    result = detach_postprocessing(tmp_path / "own.onnx", output=tmp_path / "raw.onnx")
    assert not result
    assert "may be the model's own" in result.summary()


def test_sensitivities_are_the_decimals_that_people_write() -> None:
    """1 - c in float32 has several float32 sensitivities; the shortest is taken, for all of 0.00 to 1.00."""
    for percent in range(101):
        cut = float(np.float32(1) - np.float32(percent / 100))
        assert sensitivity_of(cut) == np.float32(percent / 100)
    assert sensitivity_of(4.9) is None


def unnamed_module(*, threshold: float = 3.0, span: float = 4.0) -> openvino.Model:
    """Return what `openvino.convert_model` makes of Anomalib's torch module: live guards, outputs without names."""

    def number(value: float) -> openvino.Node:
        return opset.constant(np.float32(value))

    results, raws = [], []
    for shape in ([-1], [-1, 1, 4, 4]):
        raw = opset.parameter(shape, np.float32)
        t = number(threshold)
        t = opset.select(opset.is_nan(t), number(7.0), t)
        r = opset.select(opset.constant(np.bool_(False)), number(1.0), number(span))
        unit = opset.clamp(opset.add(opset.divide(opset.subtract(raw, t), r), number(0.5)), 0.0, 1.0)
        step = opset.select(opset.less(raw, t), number(0.0), number(0.5))
        step = opset.select(opset.greater(raw, t), number(1.0), step)
        guarded = opset.select(opset.constant(np.bool_(False)), step, unit)
        limits = [opset.bitwise_not(opset.is_nan(number(limit))) for limit in (1.0, 1.0 + span)]
        score = opset.select(opset.bitwise_and(*limits), guarded, raw)
        results += [opset.result(score), opset.result(opset.greater(score, number(0.25)))]
        raws.append(raw)
    return openvino.Model(results, raws, "module")


def test_a_converted_torch_module_has_outputs_without_names(tmp_path: Path) -> None:
    """They are taken in Anomalib's order, and detaching names what is left."""
    openvino.save_model(unnamed_module(), tmp_path / "m.xml", compress_to_fp16=False)
    report = inspect_model(tmp_path / "m.xml")
    assert not any(port.name.startswith("pred") for port in report.outputs)
    for level in LEVELS:
        found = report.levels[level]
        assert found is not None
        assert (found.tail, found.threshold, found.span, found.sensitivity, found.certain) == (
            "anomalib",
            3.0,
            4.0,
            0.75,
            True,
        )
    assert detach_postprocessing(tmp_path / "m.xml", output=tmp_path / "raw.xml")
    raw = openvino.Core().read_model(tmp_path / "raw.xml")
    assert [sorted(port.get_names()) for port in raw.outputs] == [["pred_score"], ["anomaly_map"]]
