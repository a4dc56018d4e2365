"""Decisions adjusted at run time: what the inputs are, what they decide, and how they come and go."""

from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_values import SPECIAL, around, level_stats
from tail_forms import DETECTORS, IMAGE, PIXEL, STATS, attached, converted, stripped

from graph_patterns.expr import UnsupportedOpsetError
from postproc_export import (
    CalibrationStats,
    LevelStats,
    attach_postprocessing,
    decision_boundary,
    detach_postprocessing,
    inspect_model,
    update_postprocessing,
)
from postproc_export.errors import MetadataError, UnsupportedModelError, UsageError
from postproc_export.formats.onnx import OnnxFormat
from postproc_export.formats.openvino import OpenVinoFormat
from postproc_export.options import TailOptions
from postproc_export.runtimes import Runner, open_runner
from postproc_export.runtimes.openvino import openvino_core
from postproc_export.tail import LARGEST_SUM, adjusted_error

FORMATS = pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
KINDS = pytest.mark.parametrize("adjustable", ["sensitivity", "boundary"])
VALUES = np.concatenate([np.linspace(-3, 5, 999, dtype=np.float32), np.float32(list(SPECIAL.values()))])
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "packed": {"layout": "packed"},
    "image-level": {"levels": "image"},
    "raw-scores": {"enable_normalization": False, "image_sensitivity": 0.3},
    "dtypes": {"label_dtype": "uint8", "mask_dtype": "float32"},
    "parameters": {"as_parameters": True},
}
FORMS = pytest.mark.parametrize(
    ("option", "ir"),
    [(option, ir) for option in OPTIONS for ir in (False, True) if ir or option != "parameters"],  # ONNX has none
)


def runner_of(stats: LevelStats, *, ir: bool, **options: Any) -> Runner:
    """Return a runner of a model that is nothing but a tail behind a score [N, 1]."""
    host, both = hosts.identity(map=None), CalibrationStats(image=stats)
    if not ir:
        OnnxFormat().attach(host, both, TailOptions(**options))
        return open_runner(host.SerializeToString(), threads=1)
    model = openvino_core(purpose="the tests").read_model(host.SerializeToString())
    OpenVinoFormat().attach(model, both, TailOptions(**options))
    return open_runner(model, threads=1)


def labels(runner: Runner, values: np.ndarray, **inputs: float) -> np.ndarray:
    """Return the labels of some scores."""
    scalars = {name: np.array(value, np.float32) for name, value in inputs.items()}
    found = runner.run({"score": values.reshape(-1, 1), **scalars})["pred_label"]
    return np.asarray(found).reshape(-1).astype(bool)


def expected(values: np.ndarray, boundary: float) -> np.ndarray:
    """Return the labels of the definition."""
    return ~(values < np.float32(boundary))


@FORMATS
@pytest.mark.parametrize("sensitivity", [0.0, 0.1, 0.5, 0.7, 1.0])
def test_the_attached_sensitivity_is_the_default_and_exact(sensitivity: float, ir: bool) -> None:
    """Given or not, the attached sensitivity decides as the constant does, on the boundary and beside it."""
    boundary = decision_boundary(IMAGE, sensitivity=sensitivity)
    values = np.concatenate([VALUES, around(boundary, steps=40)])
    runner = runner_of(IMAGE, ir=ir, adjustable="sensitivity", image_sensitivity=sensitivity)
    assert [port.name for port in runner.inputs] == ["score"]
    assert [port.name for port in runner.optional] == ["image_sensitivity"]
    np.testing.assert_array_equal(labels(runner, values), expected(values, boundary))
    np.testing.assert_array_equal(labels(runner, values, image_sensitivity=sensitivity), expected(values, boundary))


@FORMATS
def test_another_sensitivity_counts_for_one_run(ir: bool) -> None:
    """What was given before does not stay: without it the default counts again."""
    runner = runner_of(IMAGE, ir=ir, adjustable="sensitivity")
    high, low = (labels(runner, VALUES, image_sensitivity=given).sum() for given in (0.9, 0.1))
    assert low < labels(runner, VALUES).sum() < high
    np.testing.assert_array_equal(labels(runner, VALUES), expected(VALUES, 0.5))


@FORMATS
@pytest.mark.parametrize(
    ("value", "meant"), [(-0.25, 0.0), (float("-inf"), 0.0), (1.25, 1.0), (float("inf"), 1.0), (float("nan"), 1.0)]
)
def test_what_lies_outside_is_clamped_and_nan_is_everything(value: float, meant: float, ir: bool) -> None:
    """Below 0 counts as 0, above 1 as 1, and NaN makes everything anomalous, every special value included."""
    runner = runner_of(IMAGE, ir=ir, adjustable="sensitivity")
    boundary = decision_boundary(IMAGE, sensitivity=meant)
    found = labels(runner, VALUES, image_sensitivity=value)
    np.testing.assert_array_equal(found, expected(VALUES, boundary))
    assert bool(found.all()) is (meant == 1.0)


@settings(max_examples=25, deadline=None)
@given(level_stats(max_ratio=1e6), st.floats(0.0, 1.0, width=32), st.booleans())
def test_elsewhere_labels_differ_within_the_stated_distance_only(
    stats: LevelStats, sensitivity: float, ir: bool
) -> None:
    """2^-22 (|threshold| + span): no value farther from the boundary is decided otherwise; most statistics use less."""
    try:
        boundary = decision_boundary(stats, sensitivity=sensitivity)
        runner = runner_of(stats, ir=ir, adjustable="sensitivity")
    except MetadataError:  # subnormal, or so large that the graph could overflow
        return
    error = adjusted_error(stats)
    steps = np.concatenate([around(boundary, steps=200), np.float32([boundary - 4 * error, boundary + 4 * error])])
    values = np.concatenate([steps, np.linspace(stats.min, stats.max, 101, dtype=np.float32)])
    wrong = labels(runner, values, image_sensitivity=sensitivity) != expected(values, boundary)
    assert np.all(np.abs(values[wrong].astype(np.float64) - boundary) <= error)


def test_the_distance_is_used_to_a_fair_part() -> None:
    """The bound is no empty promise: over many sensitivities some decision differs, at up to a part of the distance."""
    stats = LevelStats(threshold=0.7, min=0.1, max=1.9)
    runner = runner_of(stats, ir=False, adjustable="sensitivity")
    used = []
    for sensitivity in np.random.default_rng(3).random(300).astype(np.float32):
        boundary = decision_boundary(stats, sensitivity=float(sensitivity))
        values = around(boundary, steps=40)
        wrong = labels(runner, values, image_sensitivity=float(sensitivity)) != expected(values, boundary)
        used += list(np.abs(values[wrong].astype(np.float64) - boundary) / adjusted_error(stats))
    assert 0.02 < max(used, default=0.0) <= 1.0


@FORMATS
@pytest.mark.parametrize("comparison", ["ge", "gt"])
def test_a_boundary_that_is_given_is_exact(comparison: Any, ir: bool) -> None:
    """Every value of `decision_boundary`, infinities included, decides as the constant does; NaN is everything."""
    runner = runner_of(IMAGE, ir=ir, adjustable="boundary", comparison=comparison)
    for sensitivity in (0.0, 0.09, 0.3, 0.5, 0.77, 1.0):
        boundary = decision_boundary(IMAGE, sensitivity=sensitivity, comparison=comparison)
        values = np.concatenate([VALUES, around(boundary if np.isfinite(boundary) else 0.0, steps=40)])
        np.testing.assert_array_equal(labels(runner, values, image_boundary=boundary), expected(values, boundary))
    default = decision_boundary(IMAGE, comparison=comparison)
    np.testing.assert_array_equal(labels(runner, VALUES), expected(VALUES, default))
    np.testing.assert_array_equal(labels(runner, VALUES, image_boundary=np.inf), expected(VALUES, np.inf))
    assert labels(runner, VALUES, image_boundary=np.nan).all()


@FORMATS
def test_each_level_has_an_input_of_its_own(ir: bool, tmp_path: Path) -> None:
    """One level's input leaves the other's decisions alone."""
    _, path = attached(hosts.identity(), tmp_path, ir=ir, adjustable="sensitivity")
    runner = open_runner(path, threads=1)
    assert [port.name for port in runner.optional] == ["image_sensitivity", "pixel_sensitivity"]
    feeds = {"score": VALUES[:64].reshape(-1, 1), "map": VALUES[:64].reshape(-1, 1, 1, 1)}
    plain = runner.run(feeds)
    image = runner.run({**feeds, "image_sensitivity": np.array(1.0, np.float32)})
    pixel = runner.run({**feeds, "pixel_sensitivity": np.array(1.0, np.float32)})
    for name in ("pred_label", "pred_mask"):
        changed, same = (image, pixel) if name == "pred_label" else (pixel, image)
        assert changed[name].all()
        np.testing.assert_array_equal(same[name], plain[name])
    for name in ("pred_score", "anomaly_map"):
        np.testing.assert_array_equal(image[name], plain[name])


def test_in_onnx_it_is_an_input_with_a_default_and_comes_last(tmp_path: Path) -> None:
    """A float32 scalar among the inputs, behind all others, with an initializer of its name: legal ONNX."""
    _, path = attached(hosts.identity(), tmp_path, ir=False, adjustable="boundary", pixel_sensitivity=0.25)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [item.name for item in model.graph.input] == ["score", "map", "image_boundary", "pixel_boundary"]
    assert all(not item.type.tensor_type.shape.dim for item in model.graph.input[2:])
    defaults = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert defaults["image_boundary"] == np.float32(0.5)
    assert defaults["pixel_boundary"] == np.float32(decision_boundary(PIXEL, sensitivity=0.25))


def test_in_an_ir_it_is_a_variable_or_on_request_a_parameter(tmp_path: Path) -> None:
    """A state variable with a default; a parameter has to be given."""
    _, path = attached(hosts.identity(), tmp_path, ir=True, adjustable="sensitivity", image_sensitivity=0.25)
    model = openvino_core(purpose="the tests").read_model(path)
    assert {variable.info.variable_id for variable in model.get_variables()} == {
        "image_sensitivity",
        "pixel_sensitivity",
    }
    _, path = attached(hosts.identity(), tmp_path, ir=True, adjustable="sensitivity", as_parameters=True)
    runner = open_runner(path)
    assert [port.describe() for port in runner.inputs[2:]] == [
        "image_sensitivity: float32 []",
        "pixel_sensitivity: float32 []",
    ]
    assert runner.optional == ()
    with pytest.raises(UsageError, match="the model's inputs are others"):
        runner.run({"score": np.zeros((1, 1), np.float32), "map": np.zeros((1, 1, 2, 2), np.float32)})


def test_it_costs_nothing_where_it_is_not_asked_for(tmp_path: Path) -> None:
    """By default the decision is one comparison with a constant: no input, no variable, two operators a label."""
    _, path = attached(hosts.identity(), tmp_path, ir=False)
    model = onnx.load(path)
    assert [item.name for item in model.graph.input] == ["score", "map"]
    assert [node.op_type for node in model.graph.node].count("Less") == 2
    assert not {"Or", "Greater"} & {node.op_type for node in model.graph.node}


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = {
    "gt": ({}, {"adjustable": "sensitivity", "comparison": "gt"}, UsageError, r"with the rule gt\n(.|\n)*bisection"),
    "no-labels": (
        {},
        {"adjustable": "sensitivity", "enable_thresholding": False},
        UsageError,
        "adjustable='sensitivity' would have no effect",
    ),
    "parameters-in-onnx": ({}, {"adjustable": "boundary", "as_parameters": True}, UsageError, "is for an IR"),
    "parameters-of-nothing": ({}, {"as_parameters": True}, UsageError, "as_parameters=True would have no effect"),
    "ir-version-3": (
        {"opset": 8, "ir_version": 3},
        {"adjustable": "boundary"},
        UnsupportedOpsetError,
        r"an input with a default cannot be expressed\n.*IR version 3",
    ),
    "opset-8": (
        {"opset": 8, "ir_version": 4},
        {"adjustable": "sensitivity", "nan_guard": False},
        UnsupportedOpsetError,
        "Where cannot be expressed at opset 8",
    ),
    "unknown": ({}, {"adjustable": "threshold"}, UsageError, "adjustable 'threshold' is not known"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_adjusted_is_refused_with_the_reason(case: str, tmp_path: Path) -> None:
    """Nothing is written."""
    host, options, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        attached(hosts.identity(**host), tmp_path, ir=False, **options)
    assert {path.stem for path in tmp_path.iterdir()} == {"raw"}


def test_a_boundary_can_be_given_where_a_sensitivity_cannot(tmp_path: Path) -> None:
    """At opset 8 with IR version 4, and with the rule gt: the boundary needs no formula."""
    for options in ({"comparison": "gt"}, {}):
        host = hosts.identity(opset=8, ir_version=4)
        assert attached(host, tmp_path, ir=False, adjustable="boundary", **options)[1].exists()


def test_a_sum_that_could_overflow_is_refused() -> None:
    """|threshold| + span has to stay below 2^127; one step below it is accepted."""
    for threshold, is_legal in ((LARGEST_SUM / 2, False), (float(np.nextafter(LARGEST_SUM / 2, 0.0)), True)):
        stats = LevelStats(threshold=float(np.float32(threshold * (1 - 2**-20 * is_legal))), min=0.0, max=2.0**126)
        if is_legal:
            runner = runner_of(stats, ir=False, adjustable="sensitivity")
            boundary = decision_boundary(stats, sensitivity=0.0)
            values = np.float32([boundary - 2 * adjusted_error(stats), boundary + 2 * adjusted_error(stats)])
            assert labels(runner, values, image_sensitivity=0.0).tolist() == [False, True]
        else:
            with pytest.raises(MetadataError, match=r"boundary could overflow(.|\n)*--runtime-boundary"):
                runner_of(stats, ir=False, adjustable="sensitivity")


@FORMATS
@KINDS
def test_a_name_that_is_taken_moves_or_is_refused(adjustable: Any, ir: bool, tmp_path: Path) -> None:
    """A value inside the model gives the name up; an input or another output of that name is refused."""
    name = f"image_{adjustable}"
    inner = f"g (float[N,1] x) => (float[N,1] pred_score) {{ {name} = Neg(x) pred_score = Neg({name}) }}"
    raw, path = attached(hosts.parse(inner), tmp_path, ir=ir, adjustable=adjustable)
    assert detach_postprocessing(path, output=tmp_path / f"back{path.suffix}").is_original
    assert (tmp_path / f"back{path.suffix}").read_bytes() == raw.read_bytes()
    as_input = f"g (float[N,1] {name}) => (float[N,1] pred_score) {{ pred_score = Neg({name}) }}"
    with pytest.raises(UnsupportedModelError, match=f"'{name}' is taken\n.*an input"):
        attached(hosts.parse(as_input), tmp_path, ir=ir, adjustable=adjustable)
    as_output = (
        f"g (float[N,1] x) => (float[N,1] pred_score, float[N,7] {name}) "
        f"<int64[2] r = {{1, 7}}> {{ pred_score = Neg(x) {name} = Tile(x, r) }}"
    )
    with pytest.raises(UnsupportedModelError, match=f"'{name}' is taken\n.*another output"):
        attached(hosts.parse(as_output), tmp_path, ir=ir, adjustable=adjustable)


def test_a_variable_of_that_name_is_refused(tmp_path: Path) -> None:
    """A host with a state of its own keeps it; one whose state bears our name is refused, and nothing is written."""
    import openvino
    import openvino.opset13 as opset

    for name, is_legal in (("hidden", True), ("image_boundary", False)):
        score = opset.parameter([-1, 1], np.float32, name="score")
        state = opset.read_value(np.zeros((1, 1), np.float32), name)
        total = opset.add(score, state)
        total.output(0).set_names({"pred_score"})
        model = openvino.Model([opset.result(total)], [opset.assign(state, name)], [score], "host")
        openvino.save_model(model, tmp_path / f"{name}.xml", compress_to_fp16=False)
        if is_legal:
            path = attach_postprocessing(tmp_path / f"{name}.xml", STATS, adjustable="boundary").output
            assert "image_boundary" in {port.name for port in open_runner(path).optional}
            back = detach_postprocessing(path)
            assert back.output is not None
            assert back.output.read_bytes() == (tmp_path / f"{name}.xml").read_bytes()
        else:
            with pytest.raises(UnsupportedModelError, match=r"'image_boundary' is taken\n.*a variable"):
                attach_postprocessing(tmp_path / f"{name}.xml", STATS, adjustable="boundary")
    assert not (tmp_path / "image_boundary.post.xml").exists()


@KINDS
@pytest.mark.parametrize(
    ("host", "option", "ir"),
    [
        # every form in the first detector, and the plain one in all; the rest is slow
        pytest.param(host, option, ir, marks=() if place == 0 or option == "plain" else pytest.mark.slow)
        for place, host in enumerate(DETECTORS)
        for option in OPTIONS
        for ir in (False, True)
        if ir or option != "parameters"
    ],
)
def test_it_comes_and_goes(host: str, option: str, adjustable: Any, ir: bool, tmp_path: Path) -> None:
    """Shown by inspection, and gone with the tail: the original is back byte for byte, inputs and variables too."""
    options = {**OPTIONS[option], "adjustable": adjustable}
    raw, path = attached(DETECTORS[host](), tmp_path, ir=ir, **options)
    reports = [report for report in inspect_model(path).levels.values() if report and report.tail != "none"]
    assert reports
    assert all(report.adjustable == adjustable for report in reports)
    assert all(report.certain for report in reports)
    assert "at run time; the values above are those without it" in inspect_model(path).summary()
    result = detach_postprocessing(path, output=tmp_path / f"back{path.suffix}")
    assert result.is_original
    assert (tmp_path / f"back{path.suffix}").read_bytes() == raw.read_bytes()


@FORMS
@KINDS
def test_a_stripped_file_is_understood(option: str, adjustable: Any, ir: bool, tmp_path: Path) -> None:
    """Without its record the inputs are found and go with the tail; an update makes the same file again."""
    _, path = attached(hosts.score_and_map(), tmp_path, ir=ir, **{**OPTIONS[option], "adjustable": adjustable})
    bare = stripped(path)
    report = inspect_model(bare).levels["image"]
    assert report is not None
    assert (report.adjustable, report.adjusted_by) == (adjustable, f"image_{adjustable}")
    if adjustable == "sensitivity":
        given = np.float32(OPTIONS[option].get("image_sensitivity", 0.5))
        assert (report.threshold, report.span, report.sensitivity) == (0.5, 2.0, given)
    result = detach_postprocessing(bare)
    assert result.output is not None
    runner = open_runner(result.output)
    assert [port.name for port in (*runner.inputs, *runner.optional)] == ["input"]


@KINDS
def test_a_conversion_freezes_it_and_inspection_says_so(adjustable: Any, tmp_path: Path) -> None:
    """OpenVINO makes a constant of the input; an update on the converted file makes a variable of it again."""
    _, path = attached(hosts.score_and_map(), tmp_path, ir=False, adjustable=adjustable)
    frozen = converted(path)
    assert open_runner(frozen).optional == ()
    report = inspect_model(frozen).levels["pixel"]
    assert report is not None
    assert (report.adjustable, report.adjusted_by) == ("nothing", None)
    assert any(f"adjusted at run time by pixel_{adjustable}; that is a constant" in note for note in report.notes)
    updated = update_postprocessing(frozen)
    assert updated.output is not None
    names = {port.name for port in open_runner(updated.output).optional}
    assert names == {f"image_{adjustable}", f"pixel_{adjustable}"}


UPDATES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "constant-to-sensitivity": ({}, {"adjustable": "sensitivity"}),
    "sensitivity-to-boundary": ({"adjustable": "sensitivity"}, {"adjustable": "boundary"}),
    "boundary-to-constant": ({"adjustable": "boundary"}, {"adjustable": "nothing"}),
    "another-default": ({"adjustable": "sensitivity"}, {"image_sensitivity": 0.75}),
    "another-boundary": ({"adjustable": "boundary"}, {"image_sensitivity": 0.75, "comparison": "gt"}),
}


@FORMATS
@pytest.mark.parametrize("name", UPDATES)
def test_an_update_gives_what_attaching_gives(name: str, ir: bool, tmp_path: Path) -> None:
    """From a constant to an input, between them and back: byte for byte the file that attaching writes."""
    before, changes = UPDATES[name]
    mask = "uint8" if ir else "bool"
    raw, path = attached(hosts.score_and_map(), tmp_path, ir=ir, mask_dtype=mask, **before)
    target = tmp_path / f"updated{path.suffix}"
    update_postprocessing(path, output=target, **changes)
    fresh = attach_postprocessing(
        raw, STATS, output=tmp_path / f"fresh{path.suffix}", mask_dtype=mask, **{**before, **changes}
    )
    assert target.read_bytes() == fresh.output.read_bytes()


def test_an_update_to_gt_is_refused_while_the_sensitivity_is_adjustable(tmp_path: Path) -> None:
    """The contradiction is the same as in attaching; with a constant at once it is none."""
    _, path = attached(hosts.score_and_map(), tmp_path, ir=False, adjustable="sensitivity")
    with pytest.raises(UsageError, match="with the rule gt"):
        update_postprocessing(path, comparison="gt")
    assert update_postprocessing(path, comparison="gt", adjustable="nothing").is_changed


def test_an_input_that_something_else_reads_stays(tmp_path: Path) -> None:
    """A node that another tool put behind the input keeps it; the tail goes all the same."""
    _, path = attached(hosts.score_and_map(), tmp_path, ir=False, adjustable="sensitivity")
    model = onnx.load(path)
    model.graph.node.append(onnx.helper.make_node("Neg", ["image_sensitivity"], ["shown"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("shown", 1, []))
    result = detach_postprocessing(hosts.write(model, path))
    assert result.output is not None
    assert not result.is_original
    left = onnx.load(result.output)
    assert [item.name for item in left.graph.input] == ["input", "image_sensitivity"]
    onnx.checker.check_model(left)


def test_a_comparison_of_the_models_own_is_no_decision_of_ours(tmp_path: Path) -> None:
    """A label that compares two values of the model is left alone, whatever it is called."""
    model = hosts.parse(
        "g (float[N,1] x, float limit) => (float[N,1] pred_score, bool[N,1] pred_label) "
        "{ pred_score = Neg(x) below = Less(pred_score, limit) pred_label = Not(below) }"
    )
    assert not detach_postprocessing(hosts.write(model, tmp_path / "own.onnx"))
