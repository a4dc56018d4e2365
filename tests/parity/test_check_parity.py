"""`check_parity` passes on what `attach_postprocessing` writes: every host, format and option."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import pytest
from checks import check_briefly

from postproc_export.check import check_parity
from postproc_export.errors import FileError, MetadataError, UnsupportedModelError, UsageError
from postproc_export.stats import CalibrationStats, LevelStats

IMAGE = LevelStats(threshold=0.2, min=-1.0, max=0.75)
PIXEL = LevelStats(threshold=0.3, min=-0.25, max=0.625)
STATS = CalibrationStats(image=IMAGE, pixel=PIXEL)
LARGE_RATIO = CalibrationStats(
    image=LevelStats(threshold=1000.0, min=995.0, max=1003.0), pixel=LevelStats(threshold=-77.0, min=-78.0, max=-76.9)
)
FEW = 2_000
IMAGES = np.random.default_rng(7).integers(0, 256, (11, 3, 8, 8)).astype(np.float32) / 256


attached = partial(hosts.attached, stats=STATS)


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
@pytest.mark.parametrize(
    "host",
    [
        pytest.param({}, id="score-and-map"),
        pytest.param({"map": None}, id="score-only"),
        pytest.param({"score": None}, id="map-only"),
        pytest.param({"score": "N", "map": "N,H,W"}, id="flat"),
        pytest.param({"score": "", "map": "1,1,H,W"}, id="scalar-score"),
        pytest.param({"score": "3,1", "map": "3,1,6,5"}, id="static"),
        pytest.param({"dtype": "float16"}, id="float16"),
        pytest.param({"dtype": "bfloat16"}, id="bfloat16"),
        pytest.param({"dtype": "double"}, id="float64"),
    ],
)
def test_the_tail_of_every_host_passes(host: Mapping[str, Any], ir: bool, tmp_path: Path) -> None:
    """Whatever the raw outputs look like, their tail decides as the eager reference, in every runtime."""
    _, path = attached(hosts.identity(**host), tmp_path, ir=ir)
    report = check_parity(path, count=FEW, threads=1)
    assert report, report.describe()
    ways = {check.way for check in report.checks} - {None}
    expected = {"openvino", "openvino-default"}
    assert ways == (expected if ir else expected | {"onnxruntime", "onnxruntime-unoptimised"})


@pytest.mark.parametrize("opset", [7, 9, 18])
def test_the_tail_passes_at_every_opset(opset: int, tmp_path: Path) -> None:
    """Old opsets have another guard; what it may flag is excused and nothing else."""
    host = hosts.identity(opset=opset, ir_version=3 if opset == 7 else 8)
    report = check_parity(attached(host, tmp_path, ir=False)[1], count=FEW, threads=1)
    assert report, report.describe()
    excused = sum(check.details.get("excused", 0) for check in report.checks)
    assert (excused > 0) is (opset == 7)


@pytest.mark.parametrize(
    ("ir", "options"),
    [
        pytest.param(False, {"comparison": "gt", "image_sensitivity": 0.0, "pixel_sensitivity": 0.09}, id="gt"),
        pytest.param(True, {"image_sensitivity": 0.0, "pixel_sensitivity": 1.0}, id="extreme-sensitivities"),
        pytest.param(False, {"label_dtype": "float32", "mask_dtype": "uint8", "keep_raw": True}, id="dtypes-and-raw"),
        pytest.param(True, {"label_dtype": "uint8", "mask_dtype": "float32", "keep_raw": True}, id="ir-dtypes-and-raw"),
        pytest.param(False, {"nan_guard": False}, id="no-guard"),
        pytest.param(False, {"stats": LARGE_RATIO}, id="centred-form"),
        pytest.param(True, {"stats": LARGE_RATIO}, id="ir-centred-form"),
        pytest.param(True, {"stats": CalibrationStats(pixel=PIXEL)}, id="pixel-level-only"),
        pytest.param(
            True, {"stats": CalibrationStats(pixel=LevelStats(threshold=0.5, min=0.0, max=1.0))}, id="ir-beta-zero"
        ),
        pytest.param(False, {"stats": CalibrationStats(image=IMAGE)}, id="image-level-only"),
    ],
)
def test_the_tail_passes_with_every_option(ir: bool, options: dict[str, Any], tmp_path: Path) -> None:
    """The record carries the options, and the reference follows them."""
    report = check_parity(attached(hosts.identity(), tmp_path, ir=ir, **options)[1], count=FEW, threads=1)
    assert report, report.describe()


def test_a_guardless_map_maximum_says_what_is_not_defined(tmp_path: Path) -> None:
    """Without the guard the image score of a map with a NaN is left out, and the report says so."""
    _, path = attached(hosts.identity(score=None), tmp_path, ir=False, nan_guard=False)
    report = check_briefly(path)
    assert report, report.describe()
    assert any("the tail has no guard" in sentence for sentence in report.not_checked)


def test_at_least_100_000_values_decide_on_each_level(tmp_path: Path) -> None:
    """By default each label output is compared on 100,000 raw values and more, in each runtime."""
    report = check_parity(attached(hosts.identity(), tmp_path, ir=False)[1])
    assert report, report.describe()
    counts = {check.name: check.details["count"] for check in report.checks if check.name.startswith("tail/")}
    assert len(counts) == 16
    assert min(counts.values()) >= 100_000


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
@pytest.mark.parametrize(
    "host", [{}, {"flat": True}, {"dynamic": False, "batch": 2}], ids=["dynamic", "flat", "static"]
)
def test_the_whole_file_passes_on_real_inputs(host: dict[str, Any], ir: bool, tmp_path: Path) -> None:
    """Tapped and run apart, the labels equal the reference's; every sample counts once, whatever the batch size."""
    raw, path = attached(hosts.score_and_map(**host), tmp_path, ir=ir)
    report = check_parity(path, raw=raw, inputs={"input": IMAGES}, count=FEW, threads=1)
    assert report, report.describe()
    counts = {check.name: check.details["count"] for check in report.checks if check.name.startswith("whole/")}
    assert set(counts.values()) == {len(IMAGES), IMAGES[:, 0].size}
    assert {name.split("/")[1] for name in counts} == {"tapped", "raw", "float32"}
    flips = [check for check in report.checks if check.name.startswith("whole/raw") and check.details.get("flipped")]
    assert not flips


def test_the_default_precision_is_shown_and_not_judged(tmp_path: Path) -> None:
    """OpenVINO's own precision is run, compared with float32 and named; it decides nothing."""
    raw, path = attached(hosts.score_and_map(), tmp_path, ir=True)
    report = check_parity(path, raw=raw, inputs={"input": IMAGES}, count=FEW, threads=1)
    shown = [check for check in report.checks if check.way == "openvino-default"]
    assert {check.subject for check in shown} >= {"tail/pred_mask", "whole/tapped/pred_mask", "whole/float32/pred_mask"}
    assert not any(check.judged for check in shown)
    assert all(check.precision for check in shown)


def test_another_raw_file_is_a_miss_in_every_runtime(tmp_path: Path) -> None:
    """Flips against a raw file with other weights lie outside the band, are shown with their distance, and fail."""
    _, path = attached(hosts.score_and_map(), tmp_path, ir=False)
    other = hosts.score_and_map()
    other.graph.initializer[0].float_data[:] = [0.5, 0.25, 0.25]
    report = check_parity(
        path, raw=hosts.write(other, tmp_path / "other.onnx"), inputs={"input": IMAGES}, count=FEW, threads=1
    )
    missed = {check.way: check for check in report.failed if check.subject == "whole/raw/pred_mask"}
    assert set(missed) == {"onnxruntime", "onnxruntime-unoptimised", "openvino"}
    flip = missed["openvino"].details["flips"][0]
    assert abs(flip["distance"]) > 0
    assert not [check for check in report.failed if not check.name.startswith(("whole/raw/", "synthetic/raw/"))]
    forgiven = check_briefly(path, raw=tmp_path / "other.onnx", inputs={"input": IMAGES}, max_flips=10**6)
    values = {"pred_score", "anomaly_map", "raw_score", "raw_map"}
    assert {check.subject.rpartition("/")[2] for check in forgiven.failed} == values


def test_the_report_says_what_was_not_checked(tmp_path: Path) -> None:
    """Without inputs and raw file the report passes on what there is and lists what is missing."""
    raw, path = attached(hosts.score_and_map(), tmp_path, ir=True)
    report = check_parity(path, count=FEW, threads=1)
    always = ["the PyTorch model (--torch)", "INT8 (--int8)", "other devices than the CPU"]
    unchecked = [sentence.partition(": ")[0] for sentence in report.not_checked]
    assert unchecked[:5] == ["real images (--images)", "the raw file (--raw)", *always]
    assert report.headline().endswith(f". Not checked: {'; '.join(unchecked)}.")
    with_raw = check_parity(path, raw=raw, inputs={"input": IMAGES}, count=FEW, threads=1)
    assert [sentence.partition(": ")[0] for sentence in with_raw.not_checked][:3] == always


def test_an_uncalibrated_level_is_named(tmp_path: Path) -> None:
    """A level without statistics keeps its raw output, which must be unchanged, and the report says so."""
    raw, path = attached(hosts.score_and_map(), tmp_path, ir=False, stats=CalibrationStats(image=IMAGE))
    report = check_briefly(path, raw=raw, inputs={"input": IMAGES})
    assert report, report.describe()
    assert any("pixel level: it is not calibrated" in sentence for sentence in report.not_checked)
    untouched = [check for check in report.checks if check.subject == "whole/raw/anomaly_map"]
    assert all(check.details["largest_error"] == 0 for check in untouched)
    assert untouched


def test_the_report_is_json_and_can_be_run_again(tmp_path: Path) -> None:
    """The JSON form has "passed" and "checks" with name and verdict, and what is needed to repeat the run."""
    _, path = attached(hosts.identity(), tmp_path, ir=False)
    document = json.loads(json.dumps(check_briefly(path, seed=5).to_json(), allow_nan=False))
    assert document["passed"] is True
    assert all(isinstance(check["passed"], bool) and check["name"] for check in document["checks"])
    assert document["environment"]["seed"] == 5
    assert document["environment"]["threads"] == 1
    assert {"onnxruntime", "openvino", "torch"} <= set(document["environment"]["packages"])


def test_a_raw_model_cannot_be_checked(tmp_path: Path) -> None:
    """A file without a record is refused, with the way to get one."""
    for ir, name in ((False, "a"), (True, "b")):
        (tmp_path / name).mkdir()
        raw, _ = attached(hosts.identity(), tmp_path / name, ir=ir)
        with pytest.raises(UnsupportedModelError, match="cannot be checked: it has no record of a tail"):
            check_parity(raw)


def test_unusable_arguments_are_refused(tmp_path: Path) -> None:
    """Missing files, other suffixes, and both kinds of inputs at once are errors, not misses."""
    _, path = attached(hosts.score_and_map(), tmp_path, ir=False)
    with pytest.raises(FileError, match="no such file"):
        check_parity(tmp_path / "none.onnx")
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(UsageError, match="no exported model"):
        check_parity(tmp_path / "model.bin")
    with pytest.raises(UsageError, match="images and inputs contradict each other"):
        check_parity(path, images=tmp_path, inputs={})
    with pytest.raises(UsageError, match="has no array for the input input: float32"):
        check_parity(path, inputs={"other": IMAGES, "another": IMAGES})
    with pytest.raises(UsageError, match="another element type"):
        check_parity(path, inputs={"input": IMAGES.astype(np.float64)})
    with pytest.raises(FileError, match="cannot read the raw model"):
        check_parity(path, raw=tmp_path / "none.onnx", inputs={"input": IMAGES}, count=FEW, threads=1)


def test_a_record_that_is_not_legal_is_refused(tmp_path: Path) -> None:
    """A record in which min and max are swapped cannot be checked against."""
    import onnx

    _, path = attached(hosts.identity(), tmp_path, ir=False)
    model = onnx.load(path)
    entry = next(item for item in model.metadata_props if item.key == "postproc_export")
    document = json.loads(entry.value)
    levels = document["statistics"]["image"]
    levels["min"], levels["max"] = levels["max"], levels["min"]
    entry.value = json.dumps(document)
    onnx.save(model, path)
    with pytest.raises(MetadataError, match="is empty"):
        check_parity(path)
