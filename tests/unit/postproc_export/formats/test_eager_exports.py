"""Our eager module, exported with a model by torch or OpenVINO: it is read, taken off whole, and changed."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import openvino
import pytest
import torch
from eager_exports import CASES, FORMS, IMAGES, OTHER_FORMS, PIXEL, STATS, Case, Model, write

from postproc_export.detach import detach_postprocessing
from postproc_export.errors import UsageError
from postproc_export.inspect import inspect_model
from postproc_export.reading.report import LevelReport, read_rule
from postproc_export.runtimes import open_runner
from postproc_export.stats import LEVELS, CalibrationStats, Level, LevelStats, decision_boundary
from postproc_export.update import update_postprocessing

STEPS = {"IsNaN", "Where", "Select", "Less", "Not", "LogicalNot", "Clip", "Clamp", "ReduceLogicalOr"}
OF_CONVERSIONS = ("default", "sensitivities", "guard_alone", "map_alone", "half")  # a conversion takes seconds
FURTHER = ("no_labels", "no_scores", "no_guard", "flat", "own_affine", "round_numbers")
FILES = [
    *(
        # the exporter without dynamo is given all cases
        pytest.param(
            form,
            case,
            id=f"{form}-{case}",
            marks=() if form == "torchscript.onnx" or case in OF_CONVERSIONS else pytest.mark.slow,
        )
        for form in FORMS
        for case in CASES
        if form.endswith(".onnx") or case in (*OF_CONVERSIONS, *FURTHER)
    ),
    *(pytest.param(form, case, id=f"{form}-{case}") for form in OTHER_FORMS for case in ("sensitivities", "map_alone")),
]


OTHER: Final[dict[Level, Level]] = {"image": "pixel", "pixel": "image"}


def assert_read(model: Model, level: Level, report: LevelReport | None) -> None:
    """Assert that a level is told as the module has it, as far as the graph says so."""
    module = model.post_processor
    boundary = float(module.get_buffer(f"{level}_boundary"))  # NaN where the level does not decide
    has_guard = level == "image" and module.nan_guard and "anomaly_map" in model.outputs()
    is_there = ("pred_score" if level == "image" else "anomaly_map") in model.outputs()
    has_outputs = module.enable_normalization or module.enable_thresholding or has_guard
    if np.isnan(boundary) or not is_there or not has_outputs:
        assert report is None or report.tail == "none"
        return
    assert report is not None
    assert report.tail == "postproc_export"
    if module.enable_thresholding:
        boundaries = [item for key, item in module.named_buffers() if key.startswith(f"{level}_boundary")]
        assert report.boundary in boundaries  # half-precision raw values may have one of their own
        assert report.boundary == pytest.approx(boundary, rel=2**-11)
    if module.enable_normalization:
        own, other = (float(module.get_buffer(f"{name}_threshold")) for name in (level, OTHER[level]))
        threshold = other if np.isnan(own) else own
        span = float(module.get_buffer(f"{level}_max") - module.get_buffer(f"{level}_min"))
        error = 0.0 if report.certain else 2.0**-22 * (abs(threshold) + span)
        assert report.threshold == pytest.approx(threshold, rel=0, abs=error)
        assert report.span == pytest.approx(span, rel=0, abs=error)
    else:
        assert (report.threshold, report.span, report.certain) == (None, None, False)
    if module.enable_normalization and module.enable_thresholding:
        assert report.sensitivity == np.float32(getattr(module, f"{level}_sensitivity"))
        if report.certain:
            assert report.comparison == module.comparison
    else:
        assert report.sensitivity is None


def raw_outputs(model: Model) -> dict[str, np.ndarray]:
    """Return the detector's outputs; the maximum of a map that the module takes is one of the graph's as well."""
    with torch.no_grad():
        score, maps = model.raw(IMAGES)
        score = maps.float().amax(dim=(-2, -1)) if score is None and maps is not None else score
    named = {"pred_score": score, "anomaly_map": maps}
    return {name: item.numpy() for name, item in named.items() if item is not None}


def operators(path: Path) -> set[str]:
    """Return the types of a file's operators."""
    if path.suffix == ".onnx":
        return {node.op_type for node in onnx.load(path).graph.node}
    return {node.get_type_name() for node in openvino.Core().read_model(path).get_ops()}


def outputs(path: Path) -> dict[str, np.ndarray]:
    """Run a file on the images."""
    runner = open_runner(path)
    return runner.run({runner.inputs[0].name: IMAGES.numpy()})


@pytest.mark.parametrize(("form", "name"), FILES)
def test_an_exported_module_is_read_and_taken_off_whole(form: str, name: str, tmp_path: Path) -> None:
    """Its numbers are the module's; after detaching the outputs are the raw ones, and no step of it is left."""
    model, path = write(CASES[name], form, tmp_path)
    report = inspect_model(path)
    for level in LEVELS:
        assert_read(model, level, report.levels.get(level))
    raw = tmp_path / f"raw{path.suffix}"
    result = detach_postprocessing(path, output=raw)
    assert result
    again = inspect_model(raw)
    assert all(found is None or found.tail == "none" for found in again.levels.values())
    assert not operators(raw) & STEPS
    expected, found = raw_outputs(model), outputs(raw)
    if path.suffix == ".onnx":
        onnx.checker.check_model(str(raw), full_check=True)
        assert list(found) == list(expected)
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        tolerance = 2e-3 if value.dtype == np.float16 else 1e-5  # the detector itself, by runtime
        np.testing.assert_allclose(found[key], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["sensitivities", "gt", "map_alone", "no_labels"])
def test_our_tail_takes_its_place_with_the_same_boundaries(form: str, name: str, tmp_path: Path) -> None:
    """An update that changes nothing else decides by the same bits, and what it wrote has a record."""
    _, path = write(CASES[name], form, tmp_path)
    target = tmp_path / f"updated{path.suffix}"
    result = update_postprocessing(path, output=target)
    assert "our exported eager module was replaced by our tail" in result.summary()
    before, after = inspect_model(path), inspect_model(target)
    assert after.attached_by is not None
    for level in LEVELS:
        old, new = before.levels[level], after.levels[level]
        assert old is not None
        assert new is not None
        assert (new.boundary, new.comparison, new.certain) == (old.boundary, old.comparison, True)
    was, now = outputs(path), outputs(target)
    for old, new in zip(was.values(), now.values(), strict=True):
        np.testing.assert_allclose(np.float32(new), np.float32(old), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["no_scores", "guard_alone"])
def test_what_is_not_in_the_file_is_asked_for(name: str, tmp_path: Path) -> None:
    """Without the threshold and the range nothing can be changed until statistics are given; then it can."""
    _, path = write(CASES[name], "torchscript.onnx", tmp_path)
    with pytest.raises(UsageError, match=r"not in the file(.|\n)*give them with stats"):
        update_postprocessing(path, output=tmp_path / "out.onnx", image_sensitivity=0.3)
    assert not (tmp_path / "out.onnx").exists()
    update_postprocessing(path, output=tmp_path / "out.onnx", stats=STATS, image_sensitivity=0.3)
    report = inspect_model(tmp_path / "out.onnx").levels["image"]
    assert report is not None
    assert report.sensitivity == np.float32(0.3)


def test_a_guard_of_another_form_is_not_left_behind(tmp_path: Path) -> None:
    """Where something else makes the score NaN, no part is taken for the whole."""
    body = """
        c = Greater(m, t) any = ReduceMax<axes = [1, 2, 3], keepdims = 0>(f) big = Greater(any, t) x = Where(big, n, s)
        a = Sub(x, t) d = Div(a, r) e = Add(d, h) pred_score = Clip(e, z, o) l = Less(x, t) pred_label = Not(l)
    """.replace("c = Greater(m, t)", "f = Identity(m)")
    constants = "float t = {3.0}, float r = {4.0}, float h = {0.5}, float z = {0.0}, float o = {1.0}, float n = {nan}"
    graph = f"g (float[N] s, float[N, 1, 4, 4] m) => (float[N] pred_score, bool[N] pred_label) <{constants}> {{{body}}}"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {graph}')
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="'pred_label' is by another rule"):
        detach_postprocessing(tmp_path / "m.onnx", output=tmp_path / "raw.onnx")
    assert not (tmp_path / "raw.onnx").exists()


@pytest.mark.parametrize("comparison", ["ge", "gt"])
@pytest.mark.parametrize("sensitivity", [0.0, 0.1, 0.25, 0.5, 0.875, 0.99, 1.0])
def test_a_rule_is_read_from_a_boundary(comparison: Any, sensitivity: float) -> None:
    """From threshold and span alone: the sensitivity as it was written, and statistics that give the same bits."""
    generator = np.random.default_rng(int(sensitivity * 1000))
    for _ in range(40):
        low = float(np.float32(generator.normal()))
        stats = LevelStats(
            threshold=float(np.float32(generator.normal())), min=low, max=low + 2.0 ** generator.normal()
        )
        assert stats.threshold is not None
        boundary = decision_boundary(stats, sensitivity=sensitivity, comparison=comparison)
        found = read_rule(stats.threshold, stats.span, boundary)
        assert found is not None
        assert found.sensitivity == np.float32(sensitivity)
        assert (found.stats.threshold, found.stats.span) == (stats.threshold, stats.span)
        again = decision_boundary(found.stats, sensitivity=found.sensitivity, comparison=found.comparison)
        assert again == boundary


@pytest.mark.parametrize("digits", [11, 8], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("sensitivity", [0.0, 0.3, 0.5, 0.85])
def test_a_constant_for_a_narrow_type_is_that_of_the_rule(digits: int, sensitivity: float) -> None:
    """The smallest float32 that rounds to at least the boundary says the same sensitivity, and not a crooked one."""
    stats = LevelStats(threshold=162.4, min=12.5, max=212.3)
    assert stats.threshold is not None
    boundary = decision_boundary(stats, sensitivity=sensitivity)
    step = 2.0 ** (np.frexp(boundary)[1] - digits)  # between neighbours of the type
    reached = np.ceil(boundary / step)
    tie = np.float32((reached - 0.5) * step)
    constant = tie if reached % 2 == 0 else np.nextafter(tie, np.float32(np.inf))  # ties go to even
    found = read_rule(stats.threshold, stats.span, float(constant))
    assert found is not None
    assert found.sensitivity == np.float32(sensitivity)


def test_a_boundary_of_no_rule_is_told_and_kept(tmp_path: Path) -> None:
    """A constant that no sensitivity gives is reported as it stands, and never replaced by a near one."""
    _, path = write(Case(stats=CalibrationStats(pixel=PIXEL)), "torchscript.onnx", tmp_path)
    model = onnx.load(path)
    less = next(node for node in model.graph.node if node.op_type == "Less")
    constant = next(node for node in model.graph.node if node.output[0] == less.input[1])
    constant.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(np.float32(17.5)))
    onnx.save(model, path)
    report = inspect_model(path).levels["pixel"]
    assert report is not None
    assert (report.boundary, report.sensitivity, report.threshold) == (17.5, None, 0.25)
    assert any("no sensitivity gives the boundary 17.5" in note for note in report.notes)
    with pytest.raises(UsageError, match="give them with stats"):
        update_postprocessing(path, output=tmp_path / "out.onnx", pixel_threshold=0.3)
