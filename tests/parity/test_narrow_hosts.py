"""Hosts that declare float16 or bfloat16: every value, from both ends of its rounding, in both runtimes."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import hosts
import narrow_hosts
import numpy as np
import onnx
import pytest
from checks import check_briefly
from narrow_hosts import DTYPES, HOSTS
from shipped_tails import stats_behind

from postproc_export import (
    CalibrationStats,
    LevelStats,
    attach_postprocessing,
    calibrate,
    check_parity,
    decision_boundary,
    inspect_model,
    update_postprocessing,
)
from postproc_export.errors import UsageError
from postproc_export.float32 import half_ulp
from postproc_export.record import parse_tail
from postproc_export.runtimes import as_float32, open_runner
from postproc_export.stats import LEVELS, Comparison
from postproc_export.tail import adjusted_error

DATA = Path(__file__).parents[1] / "data" / "cases"
SENSITIVITIES = (0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.75, 0.9, 1.0)
POINTS = "points:" + ",".join(f"at{index}={value}" for index, value in enumerate(SENSITIVITIES))
LEVEL = LevelStats(threshold=0.75, min=-2.25, max=3.75)
BOTH = CalibrationStats(image=LEVEL, pixel=LEVEL)
ONNX_RUNTIME = {"onnxruntime-unoptimised": ("onnxruntime", False), "onnxruntime": ("onnxruntime", True)}
OPENVINO = {"openvino-unoptimised": ("openvino", False), "openvino": ("openvino", True)}


def ways(host: str, dtype: str, *, ir: bool = False, quick: bool = False) -> dict[str, tuple[Any, bool]]:
    """Return the runtimes that run a host: ONNX Runtime's CPU provider has bfloat16 kernels for nothing but copies."""
    openvino = {"openvino": OPENVINO["openvino"]} if quick else OPENVINO
    reads_it = not ir and (dtype == "float16" or host == "pass-through")
    return {**(ONNX_RUNTIME if reads_it else {}), **openvino}


def anomalous(raw: Any, sensitivity: float, comparison: Comparison) -> Any:
    """Return what the rule says of raw values that a host gave, each rounded to its type: the definition."""
    boundary = decision_boundary(LEVEL, sensitivity=sensitivity, comparison=comparison)
    return ~(as_float32(raw) < np.float32(boundary))


def flips(
    folder: Path,
    host: str,
    dtype: str,
    *,
    opset: int,
    comparison: Comparison,
    ir: bool,
    quick: bool,
    step: str | None = None,
) -> Any:
    """Return how many labels and mask pixels are not the rule's at nine sensitivities, by way of running."""
    model = {**HOSTS, "columns": narrow_hosts.columns}[host](dtype, opset)
    raw = hosts.raw_file(model, folder, ir=ir)
    stats = BOTH if host == "conv" else CalibrationStats(image=LEVEL)
    stats = stats if step is None else replace(stats, details={"tail": [parse_tail(step).to_json()]})
    steps = [POINTS] if step is None else [step, POINTS]
    attached = attach_postprocessing(raw, stats, comparison=comparison, step=steps).output
    fed = {"x": narrow_hosts.inputs(host, dtype)}
    found = {}
    for name, (runtime, optimize) in ways(host, dtype, ir=ir, quick=quick).items():
        (given,) = open_runner(raw, runtime=runtime, optimize=optimize).run(fed).values()
        if not narrow_hosts.is_computed(host, fed["x"], given):
            pytest.skip(f"{runtime} computes {host} in {dtype} wrongly on this processor, without any tail")
        given = -given if step == "negate" else given if step is None else given[:, 1]
        outputs = open_runner(attached, runtime=runtime, optimize=optimize).run(fed)
        wanted = {f"pred_label_at{index}": value for index, value in enumerate(SENSITIVITIES)}
        wanted |= {name: 0.5 for name in ("pred_label", "pred_mask") if name in outputs}
        found[name] = {
            output: int((outputs[output].ravel().astype(bool) != anomalous(given, value, comparison).ravel()).sum())
            for output, value in wanted.items()
        }
    return found


def none(found: Any) -> bool:
    """Whether something ran, and nothing flipped."""
    return bool(found) and not any(count for counts in found.values() for count in counts.values())


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_narrow_value_decides_as_the_rule_does(dtype: str, host: str, ir: bool, tmp_path: Path) -> None:
    """A label is the rule's on the value that the host gives, whether a runtime rounds in front of the tail or not."""
    comparison: Comparison = "gt" if ir else "ge"
    found = flips(tmp_path, host, dtype, opset=17, comparison=comparison, ir=ir, quick=True)
    assert none(found), found


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_narrow_value_decides_as_the_rule_does_behind_negate(
    dtype: str, host: str, ir: bool, tmp_path: Path
) -> None:
    """The step rounds nothing, so the type of the host holds behind it: no label differs in any runtime."""
    comparison: Comparison = "ge" if ir else "gt"
    options: dict[str, Any] = {"opset": 17, "comparison": comparison, "ir": ir, "quick": True, "step": "negate"}
    found = flips(tmp_path, host, dtype, **options)
    assert none(found), found


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_narrow_value_decides_as_the_rule_does_behind_a_channel(dtype: str, ir: bool, tmp_path: Path) -> None:
    """One of two columns: it rounds nothing either."""
    step = "channel:index=1,level=image"
    found = flips(tmp_path, "columns", dtype, opset=17, comparison="ge", ir=ir, quick=True, step=step)
    assert none(found), found


RECORDED: list[tuple[list[str], dict[str, str]]] = [
    (["negate"], {"image": "float16", "pixel": "float16"}),
    (["negate:level=pixel"], {"image": "float16", "pixel": "float16"}),
    (["gaussian:sigma=1", "negate"], {"image": "float16"}),
    (["gaussian:sigma=1", "top-k:k=3", "negate"], {}),
]


@pytest.mark.parametrize(
    ("ir", "steps", "narrow"),
    [
        # each in one format; in the other it is slow
        pytest.param(ir, *case, marks=() if place % 2 == ir else pytest.mark.slow)
        for place, case in enumerate(RECORDED)
        for ir in (False, True)
    ],
)
def test_the_type_is_recorded_where_no_step_rounds(
    ir: bool, steps: list[str], narrow: dict[str, str], tmp_path: Path
) -> None:
    """Per level: a step that rounds ends the type of what it changes; `check` and `update` go by the record."""
    raw = hosts.raw_file(hosts.score_and_map(dtype="float16", opset=14), tmp_path, ir=ir)
    attached = attach_postprocessing(raw, stats_behind(steps), step=steps)
    assert attached.record.narrow == narrow
    updated = update_postprocessing(attached.output, image_sensitivity=0.3, output=tmp_path / f"u{raw.suffix}")
    found = inspect_model(updated.output).to_json()["levels"]
    assert {level: found[level]["host_dtype"] for level in LEVELS} == {**dict.fromkeys(LEVELS), **narrow}
    for path in (attached.output, updated.output):
        report = check_briefly(path, raw=raw)
        assert report, report.describe()


def test_an_older_constant_behind_negate_fails(tmp_path: Path) -> None:
    """The plain boundary is found behind the step as well, and `update` mends it."""
    raw = hosts.write(hosts.identity(dtype="float16"), tmp_path / "raw.onnx")
    stats = replace(BOTH, details={"tail": [{"name": "negate"}]})
    attached = attach_postprocessing(raw, stats, step="negate").output
    fresh = onnx.load(attached)
    report = check_briefly(older(attached))
    assert report.next_step() == f"postproc-export update {attached}"
    assert onnx.load(update_postprocessing(attached).output) == fresh


def test_the_rounding_is_dropped(tmp_path: Path) -> None:
    """With the plain boundary the same test finds flips in both runtimes: it can fail."""
    raw = hosts.write(HOSTS["matmul"]("float16", 17), tmp_path / "raw.onnx")
    attached = older(attach_postprocessing(raw, CalibrationStats(image=LEVEL)).output)
    fed = {"x": narrow_hosts.inputs("matmul", "float16")}
    for runtime, optimize in ways("matmul", "float16").values():
        (given,) = open_runner(raw, runtime=runtime, optimize=optimize).run(fed).values()
        outputs = open_runner(attached, runtime=runtime, optimize=optimize).run(fed)
        assert (outputs["pred_label"] != anomalous(given, 0.5, "ge")).any(), (runtime, optimize)


@pytest.mark.slow
@pytest.mark.parametrize("comparison", ["ge", "gt"])
@pytest.mark.parametrize("opset", range(11, 22))
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_host_opset_and_rule(dtype: str, host: str, opset: int, comparison: Comparison, tmp_path: Path) -> None:
    """The same at every opset, by both rules, optimised and not, and as an IR."""
    if dtype == "bfloat16" and opset < 13:
        pytest.skip("opset 12 cannot convert bfloat16 to float32: attach refuses it")
    for ir in (False, True):
        found = flips(tmp_path, host, dtype, opset=opset, comparison=comparison, ir=ir, quick=False)
        assert none(found), found


def masks(folder: Path, dtype: str, comparison: Comparison, sensitivity: float, **options: Any) -> Iterator[str]:
    """Yield where a mask, or its part of the packed output, is not the rule's: all values stand in one map."""
    raw = hosts.write(HOSTS["conv"](dtype, 17), folder / "raw.onnx")
    sensitivities = {"image_sensitivity": sensitivity, "pixel_sensitivity": sensitivity}
    attached = attach_postprocessing(raw, BOTH, comparison=comparison, **sensitivities, **options).output
    values = narrow_hosts.inputs("conv", dtype)
    fed = {"x": np.ascontiguousarray(values.reshape(1, -1, 1024, 3).transpose(0, 3, 1, 2))}
    for name, (runtime, optimize) in ways("conv", dtype, quick=True).items():
        (given,) = open_runner(raw, runtime=runtime, optimize=optimize).run(fed).values()
        outputs = open_runner(attached, runtime=runtime, optimize=optimize).run(fed)
        mask = outputs["output"][..., 3] if options else outputs["pred_mask"]
        count = int((mask.ravel().astype(bool) != anomalous(given, sensitivity, comparison).ravel()).sum())
        if count:
            yield f"{name}: {count} of {mask.size}"


@pytest.mark.parametrize(  # the slow test below has all of both
    ("dtype", "sensitivity"), [*zip(cycle(DTYPES), SENSITIVITIES)]
)
def test_the_packed_layout_decides_alike(dtype: str, sensitivity: float, tmp_path: Path) -> None:
    """The mask in a packed output is the rule's for every value of a narrow map."""
    comparison: Comparison = "gt" if dtype == "float16" else "ge"
    assert not list(masks(tmp_path, dtype, comparison, sensitivity, layout="packed"))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["separate", "packed"])
@pytest.mark.parametrize("comparison", ["ge", "gt"])
@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layout_rule_and_sensitivity(
    dtype: str, sensitivity: float, comparison: Comparison, layout: str, tmp_path: Path
) -> None:
    """The same by both rules and in both layouts."""
    options = {"layout": layout} if layout == "packed" else {}
    assert not list(masks(tmp_path, dtype, comparison, sensitivity, **options))


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
@pytest.mark.parametrize("host", ["h16", "h16_map"])
def test_no_sample_at_the_threshold_is_lost(host: str, ir: bool, tmp_path: Path) -> None:
    """The detectors of the bug report: every decision is that of the float16 value, the ones at the threshold too."""
    model = onnx.load(DATA / f"{host}.onnx")
    raw = hosts.raw_file(model, tmp_path, ir=ir)
    random = np.random.default_rng(13)
    if host == "h16":
        stats = calibrate(DATA / "h16.npz")
        fed = {"x": (random.normal(size=(4000, 64)) * 0.5 + 0.5).astype(np.float16)}
    else:
        level = LevelStats(threshold=7.0, min=0.0, max=16.0)
        stats = CalibrationStats(image=level, pixel=level)
        fed = {"x": random.normal(size=(8, 3, 60, 50)).astype(np.float16)}
    attached = attach_postprocessing(raw, stats).output
    label, level = ("pred_label", stats.image) if host == "h16" else ("pred_mask", stats.pixel)
    for runtime, optimize in ways("", "float16", ir=ir).values():
        (given,) = open_runner(raw, runtime=runtime, optimize=optimize).run(fed).values()
        values = given.astype(np.float32)
        outputs = open_runner(attached, runtime=runtime, optimize=optimize).run(fed)
        assert (values == level.threshold).sum() > 5
        assert np.array_equal(outputs[label].astype(bool), values >= np.float32(level.threshold)), (runtime, optimize)


def given_at_run_time(folder: Path, what: Any, *, ir: bool) -> tuple[Path, Path, dict[str, Any]]:
    """Return a float16 host, the file whose decision is adjusted at run time, and inputs."""
    model = HOSTS["matmul"]("float16", 17)
    raw = hosts.raw_file(model, folder, ir=ir)
    stats = CalibrationStats(image=LEVEL)
    attached = attach_postprocessing(raw, stats, adjustable=what, as_parameters=ir).output
    return raw, attached, {"x": narrow_hosts.inputs("matmul", "float16")}


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
def test_a_sensitivity_at_run_time_is_exact_where_that_is_promised(ir: bool, tmp_path: Path) -> None:
    """Exact as attached, from 1 on and for NaN; else a label may differ within half a float16 ulp of the boundary."""
    raw, attached, fed = given_at_run_time(tmp_path, "sensitivity", ir=ir)
    runtime, optimize = OPENVINO["openvino"] if ir else ONNX_RUNTIME["onnxruntime"]
    (given,) = open_runner(raw, runtime=runtime, optimize=optimize).run(fed).values()
    runner = open_runner(attached, runtime=runtime, optimize=optimize)
    differed = 0
    for sensitivity, meant in (*((value, value) for value in SENSITIVITIES), (1.5, 1.0), (float("nan"), 1.0)):
        found = runner.run({**fed, "image_sensitivity": np.array(sensitivity, np.float32)})["pred_label"]
        wrong = found.astype(bool) != anomalous(given, meant, "ge")
        if meant in (0.5, 1.0):
            assert not wrong.any(), sensitivity
        else:
            boundary = decision_boundary(LEVEL, sensitivity=meant)
            allowed = adjusted_error(LEVEL) + half_ulp(boundary, "float16")
            assert np.all(np.abs(given[wrong].astype(np.float64) - boundary) <= allowed), sensitivity
            differed += int(wrong.sum())
    assert differed, "the boundary that is computed is no constant for float16"


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
def test_a_boundary_at_run_time_is_exact_where_it_is_the_one_for_the_type(ir: bool, tmp_path: Path) -> None:
    """It is compared as it is given: `decision_boundary` with the type of the host decides as the rule does."""
    raw, attached, fed = given_at_run_time(tmp_path, "boundary", ir=ir)
    runtime, optimize = OPENVINO["openvino"] if ir else ONNX_RUNTIME["onnxruntime"]
    (given,) = open_runner(raw, runtime=runtime, optimize=optimize).run(fed).values()
    runner = open_runner(attached, runtime=runtime, optimize=optimize)
    rules: tuple[Comparison, ...] = ("ge", "gt")
    for comparison in rules:
        for sensitivity in SENSITIVITIES:
            boundary = decision_boundary(LEVEL, sensitivity=sensitivity, comparison=comparison, dtype="float16")
            found = runner.run({**fed, "image_boundary": np.array(boundary, np.float32)})["pred_label"]
            assert np.array_equal(found.astype(bool), anomalous(given, sensitivity, comparison)), sensitivity


def older(path: Path) -> Path:
    """Make a file as an earlier version attached it: with the plain boundary, and no type in the record."""
    import json

    from onnx import numpy_helper

    model = onnx.load(path)
    (entry,) = [item for item in model.metadata_props if item.key == "postproc_export"]
    record = json.loads(entry.value)
    del record["narrow"]
    entry.value = json.dumps(record)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("boundary"):
            plain = np.float32(LEVEL.threshold).reshape(numpy_helper.to_array(tensor).shape)
            tensor.CopyFrom(numpy_helper.from_array(plain, tensor.name))
    return hosts.write(model, path)


@pytest.mark.parametrize("adjustable", ["nothing", "sensitivity", "boundary"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_older_file_is_found_and_mended(dtype: str, adjustable: Any, tmp_path: Path) -> None:
    """`check` fails a file with the plain boundary and says how to mend it; `update` alone mends it, once."""
    raw = hosts.write(hosts.identity(dtype=dtype), tmp_path / "raw.onnx")
    attached = attach_postprocessing(raw, BOTH, adjustable=adjustable).output
    fresh = attached.read_bytes()
    report = check_briefly(older(attached))
    assert not report
    told = [check for check in report.failed if "an earlier version attached it" in check.message]
    assert [check.name for check in told] == [check.name for check in report.failed]
    assert len(told) == 2
    assert report.next_step() == f"postproc-export update {attached}"
    mended = update_postprocessing(attached)
    assert mended.is_changed
    assert f"the image boundary is now the one for a host of {dtype}" in mended.summary()
    assert mended.output is not None
    assert check_briefly(mended.output)
    assert onnx.load_from_string(fresh) == onnx.load(mended.output)
    with pytest.raises(UsageError, match="nothing to change"):
        update_postprocessing(mended.output)


def test_an_older_file_without_labels_needs_no_mending(tmp_path: Path) -> None:
    """Where nothing is decided there is no constant to be wrong: the check passes, and an update changes nothing."""
    raw = hosts.write(hosts.identity(dtype="float16"), tmp_path / "raw.onnx")
    attached = older(attach_postprocessing(raw, BOTH, enable_thresholding=False).output)
    assert check_briefly(attached)
    with pytest.raises(UsageError, match="nothing to change"):
        update_postprocessing(attached)


def test_an_older_ir_is_mended_too(tmp_path: Path) -> None:
    """What an earlier version attached is converted, found and mended in an IR as well."""
    raw = hosts.write(hosts.identity(dtype="float16"), tmp_path / "raw.onnx")
    older(attached := attach_postprocessing(raw, BOTH).output)
    converted = hosts.to_ir(onnx.load(attached), tmp_path / "old.xml")
    mended = update_postprocessing(converted)
    assert mended.is_changed
    assert mended.output is not None
    assert check_briefly(mended.output)


def test_the_check_of_a_narrow_file_behind_a_custom_step_passes(tmp_path: Path) -> None:
    """The step has values that were not rounded, and the raw file gives rounded ones: that much is allowed for."""
    shutil.copy(DATA / "h16_map.onnx", tmp_path)
    level = LevelStats(threshold=4.0, min=0.0, max=10.0)
    stats = replace(stats_behind(["gaussian:sigma=1"]), image=level, pixel=level)
    attached = attach_postprocessing(tmp_path / "h16_map.onnx", stats, tail="gaussian:sigma=1").output
    fed = {"x": np.random.default_rng(4).normal(size=(4, 3, 40, 40)).astype(np.float16)}
    report = check_parity(attached, raw=tmp_path / "h16_map.onnx", inputs=fed, int8=False, count=2000)
    assert report, report.describe()
    allowed = [check.details["allowed"] for check in report.checks if check.name.startswith("whole/raw/anomaly_map")]
    assert all(2.0**-13 < each < 2.0**-10 for each in allowed)  # half an ulp of values up to 12, of a span of 10


def test_the_check_of_a_whole_narrow_file_passes(tmp_path: Path) -> None:
    """Scores may differ by the rounding that is dropped, labels not at all; also where scores stay raw."""
    shutil.copy(DATA / "h16.onnx", tmp_path)
    stats = calibrate(DATA / "h16.npz")
    fed = {"x": (np.random.default_rng(3).normal(size=(300, 64)) * 0.5 + 0.5).astype(np.float16)}
    for options in ({}, {"enable_normalization": False}):
        attached = attach_postprocessing(tmp_path / "h16.onnx", stats, output=tmp_path / "a.onnx", **options).output
        report = check_parity(attached, raw=tmp_path / "h16.onnx", inputs=fed, int8=False, count=2000)
        assert report, report.describe()
        score = next(check for check in report.checks if check.name == "whole/raw/pred_score/onnxruntime")
        assert 0 < score.details["largest_error"] <= score.details["allowed"]


@pytest.mark.parametrize("stats", [CalibrationStats(image=LEVEL), CalibrationStats(pixel=LEVEL)], ids=LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_check_with_one_level_left_raw_passes(dtype: str, stats: CalibrationStats, tmp_path: Path) -> None:
    """The level that was not calibrated keeps its narrow type, which NumPy may not have; the other one is judged."""
    raw = hosts.write(hosts.identity(dtype=dtype), tmp_path / "raw.onnx")
    report = check_parity(attach_postprocessing(raw, stats).output, raw=raw, int8=False, count=500)
    assert report, report.describe()
    assert any(check.name.startswith("tail/pred_") for check in report.checks)
