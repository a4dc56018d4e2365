"""The whole model by stage: a fault is put down to the stage that brought it in, and each way gets its verdict."""

import json
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import pytest
import torch
import torch_hosts
from checks import check_briefly
from numpy.typing import NDArray
from onnx import numpy_helper

from postproc_export.attach import attach_postprocessing
from postproc_export.check import ParityReport, check_parity, ways, whole
from postproc_export.check.attached_files import load_attached
from postproc_export.check.chain import LevelTrace, Reader, WayResult
from postproc_export.check.findings import PREVENTED_BY, advice, verdict
from postproc_export.check.reference import Reference
from postproc_export.check.ways import Configuration
from postproc_export.comparison import EXACT, Distances, LabelDifference
from postproc_export.record import parse_tail
from postproc_export.runtimes import open_runner
from postproc_export.stats import CalibrationStats, LevelStats

STATS = CalibrationStats(
    image=LevelStats(threshold=0.2, min=-1.0, max=0.75), pixel=LevelStats(threshold=0.3, min=-0.25, max=0.625)
)
IMAGES = np.random.default_rng(7).integers(0, 256, (11, 3, 8, 8)).astype(np.float32) / 256
JUDGED = ["onnxruntime-unoptimised", "onnxruntime", "openvino"]
SHOWN = ["openvino-default", "openvino-fp16-weights"]
FEW = 500


def set_weights(model: onnx.ModelProto, weights: tuple[float, ...]) -> onnx.ModelProto:
    """Give the convolution of a host other weights."""
    tensor = next(item for item in model.graph.initializer if item.name == "weight")
    tensor.CopyFrom(numpy_helper.from_array(np.array(weights, np.float32)[None, :, None, None], "weight"))
    return model


attach = partial(hosts.attached, stats=STATS)


def check(attached: Path, raw: Path | None, **options: Any) -> ParityReport:
    """Check on the images, quickly."""
    given = {"inputs": {"input": IMAGES}, "count": FEW, "threads": 1, **options}
    return check_parity(attached, raw=raw, **given)


def check_alone(attached: Path, raw: Path | None, **options: Any) -> ParityReport:
    """Check on the images, in the runtime of the format alone."""
    return check_briefly(attached, raw=raw, **{"inputs": {"input": IMAGES}, **options})


def outcome(report: ParityReport, way: str, level: str = "pixel") -> LevelTrace:
    """Return what became of a level in one way."""
    result = next(result for result in report.whole if result.way.label == way)
    return next(outcome for outcome in result.outcomes if outcome.level == level)


def stages_of(report: ParityReport, way: str) -> list[str]:
    """Return the stages of a way, in order."""
    result = next(result for result in report.whole if result.way.label == way)
    return list(dict.fromkeys(stage for stage, _ in result.stages))


@pytest.fixture(scope="module")
def swapped(tmp_path_factory: pytest.TempPathFactory) -> ParityReport:
    """Return the report on a raw export that takes BGR for RGB."""
    model = set_weights(hosts.score_and_map(), hosts.CHANNEL_WEIGHTS[::-1])
    raw, path = attach(model, tmp_path_factory.mktemp("swapped"))
    return check(path, raw, torch="torch_hosts:detector")


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
def test_a_faithful_export_decides_as_pytorch(ir: bool, tmp_path: Path) -> None:
    """Where all is well every way says so in one sentence, with what lies near a boundary, and lists its stages."""
    raw, path = attach(hosts.score_and_map(), tmp_path, ir=ir)
    report = check(path, raw, torch="torch_hosts:detector")
    assert report, report.describe()
    assert [result.way.label for result in report.whole] == ([] if ir else JUDGED[:2]) + ["openvino", *SHOWN]
    assert all(": decides as PyTorch; " in verdict(result) for result in report.whole)
    assert stages_of(report, "openvino") == ["torch -> raw", "raw -> attached", "tail"]
    assert stages_of(report, "openvino-fp16-weights")[1] == "f32 -> fp16 weights"
    assert report.environment["torch"]["threads"] == 1
    subjects = {check.subject for check in report.checks if check.judged}
    assert {"whole/torch/pred_mask", "whole/torch/raw_map", "whole/torch/raw_score"} <= subjects


@pytest.mark.parametrize(
    ("kind", "steps"),
    [("xml", ()), *(pytest.param("onnx", steps, marks=pytest.mark.slow) for steps in ((), ("top-k:k=5",)))],
)
def test_every_model_is_loaded_once_for_each_way(
    kind: str, steps: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file and the raw one for their ports, synthetic inputs and real ones; a large one is judged alike."""
    stats = replace(STATS, details={"tail": [parse_tail(step).to_json() for step in steps]})
    raw, path = hosts.attached(hosts.score_and_map(), tmp_path, stats=stats, ir=kind == "xml", step=steps)
    loads, loaded = Counter[Any](), []

    def counted(model: Any, **way: Any) -> Any:
        loaded.append(model)  # no other takes its address
        loads[model if isinstance(model, Path) else id(model), way["runtime"], way["precision"], way["optimize"]] += 1
        return open_runner(model, **way)

    monkeypatch.setattr(ways, "open_runner", counted)
    report = check(path, raw)
    assert set(loads.values()) == {1}
    for file in (path, raw):
        assert sum(key[0] == file for key in loads) == (4 if kind == "onnx" else 2)
    monkeypatch.setattr(whole, "LARGE", 0)
    loads.clear()
    assert [(each.name, each.passed) for each in check(path, raw).checks] == [
        (each.name, each.passed) for each in report.checks
    ]
    assert max(loads.values()) <= 3


def test_swapped_channels_are_put_down_to_the_export(swapped: ParityReport) -> None:
    """A raw export that takes BGR for RGB is missed in every runtime, and its flips came in between torch and raw."""
    missed = {check.name: check for check in swapped.failed}
    for way in JUDGED:
        found = outcome(swapped, way)
        assert found.decided.flipped
        assert dict(found.brought_in) == {"torch -> raw": found.decided.flipped}
        assert f"brought in by torch -> raw {found.decided.flipped}" in missed[f"whole/torch/pred_mask/{way}"].message
        assert "channel order" in missed[f"whole/torch/raw_map/{way}"].message
    assert not [name for name in missed if not name.startswith("whole/torch/")]
    assert "decides otherwise than PyTorch: " in "\n".join(swapped.verdicts())


def test_a_shifted_mean_that_flips_nothing_is_a_miss_all_the_same(tmp_path: Path) -> None:
    """An export that computes something else is not excused by images on which no decision moves."""
    stats = CalibrationStats(pixel=LevelStats(threshold=50.0, min=0.0, max=100.0))
    raw = hosts.write(hosts.map_only(), tmp_path / "raw.onnx")
    path = attach_postprocessing(raw, stats).output
    module = torch_hosts.Detector(lambda score, anomaly_map: anomaly_map + 0.5)
    report = check_alone(path, raw, torch=module)
    assert {check.subject for check in report.failed} == {"whole/torch/raw_map", "whole/torch/anomaly_map"}
    assert "decides as PyTorch" in verdict(report.whole[0])


def test_a_moved_body_is_put_down_to_the_attached_file(tmp_path: Path) -> None:
    """A body that changed after attaching brings its flips in between raw and attached."""
    raw, path = attach(hosts.score_and_map(), tmp_path)
    onnx.save(set_weights(onnx.load(path), (0.5, 0.25, 0.25)), path)
    report = check_alone(path, raw, torch="torch_hosts:detector")
    found = outcome(report, "onnxruntime")
    assert dict(found.brought_in) == {"raw -> attached": found.decided.flipped}
    missed = {check.subject.rpartition("/")[0] for check in report.failed}
    assert missed == {"whole/raw", "whole/torch", "synthetic/raw"}
    without_raw = check_alone(path, None, torch="torch_hosts:detector")
    assert stages_of(without_raw, "onnxruntime") == ["torch -> attached", "tail"]
    assert dict(outcome(without_raw, "onnxruntime").brought_in) == {"torch -> attached": found.decided.flipped}


def test_a_moved_boundary_is_put_down_to_the_tail(tmp_path: Path) -> None:
    """A tail that decides at another boundary brings its flips in by itself."""
    raw, path = attach(hosts.score_and_map(), tmp_path)
    model = onnx.load(path)
    boundary = next(item for item in model.graph.initializer if item.name == "postproc/pred_mask/boundary")
    boundary.CopyFrom(numpy_helper.from_array(np.array(0.28, np.float32), boundary.name))
    onnx.save(model, path)
    found = outcome(check_alone(path, raw, torch="torch_hosts:detector"), "onnxruntime")
    assert found.decided.flipped
    assert dict(found.brought_in) == {"tail": found.decided.flipped}


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
def test_rounded_weights_are_put_down_to_the_rounding(ir: bool, tmp_path: Path) -> None:
    """Flips that float16 weights cause are shown, decide nothing, and come with what prevents them."""
    weights = (0.1, 0.7, 0.3)
    raw, path = attach(set_weights(hosts.score_and_map(), weights), tmp_path, ir=ir)
    report = check(path, raw, torch=torch_hosts.Detector(torch_hosts.FORMS["tuple"], weights), inputs=near(weights))
    assert report, report.describe()
    found = outcome(report, "openvino-fp16-weights")
    assert found.decided.flipped
    assert dict(found.brought_in) == {"f32 -> fp16 weights": found.decided.flipped}
    assert any("to prevent it: convert and save with compress_to_fp16=False" in line for line in report.verdicts())
    assert not outcome(report, "openvino").decided.flipped


def test_the_default_precision_names_what_prevents_it(tmp_path: Path, bfloat16_by_default: None) -> None:
    """Where the default precision moves decisions the report says which, by which stage, and the property to set."""
    raw, path = attach(hosts.score_and_map(), tmp_path)
    report = check(path, raw, inputs=near(hosts.CHANNEL_WEIGHTS), torch="torch_hosts:detector")
    assert report, report.describe()
    found = outcome(report, "openvino-default")
    assert found.decided.flipped
    assert dict(found.brought_in) == {"f32 -> bfloat16": found.decided.flipped}
    result = next(result for result in report.whole if result.way.label == "openvino-default")
    assert verdict(result).startswith("openvino-default at bfloat16, the default here: decides otherwise than")
    assert verdict(result).endswith("; shown, not judged")
    assert PREVENTED_BY in str(advice(result))
    (cause,) = report.causes
    assert cause.stage == "precision"
    assert cause.what.startswith("openvino-default at bfloat16, the default here: ")
    assert cause.what.endswith(
        f"{found.decided.flipped} of {found.decided.count:,} mask pixels flip; shown, not judged"
    )
    assert PREVENTED_BY in report.summary()


def test_flips_of_the_export_need_no_advice_on_precision(swapped: ParityReport) -> None:
    """Flips that the export itself brought in are not blamed on precision or weights, and no advice follows."""
    for result in swapped.whole:
        assert result.flipped
        assert advice(result) is None or result.moved


def test_flips_beside_the_boundary_are_listed_and_forgiven(tmp_path: Path) -> None:
    """A flip within the stated band passes, and the verdict counts it and says how near it is; beyond, none passes."""
    raw, path = attach(hosts.score_and_map(), tmp_path, ir=True)
    images = np.zeros((2, 3, 8, 8), np.float32)
    images[0, 0, 0, 0] = 1.1  # raw 0.3, the boundary
    report = check_alone(path, raw, torch=shifted(-1e-6), inputs={"input": images})
    assert report, report.describe()
    found = outcome(report, "openvino")
    assert (found.decided.flipped, found.decided.near) == (1, 1)
    assert found.flips[0]["index"] == (0, 0, 0)
    assert "but for 1 of 128 mask pixels" in verdict(report.whole[0])
    far = check_alone(path, raw, torch=shifted(-1e-3), inputs={"input": images})
    assert "whole/torch/pred_mask/openvino" in {check.name for check in far.failed}
    assert not [check for check in far.failed if check.name.startswith("whole/raw")]
    forgiven = check_alone(path, raw, torch=shifted(-1e-3), inputs={"input": images}, max_flips=1)
    assert "whole/torch/pred_mask/openvino" not in {check.name for check in forgiven.failed}


def test_the_command_takes_a_budget_of_flips(tmp_path: Path, invoke: Any) -> None:
    """One bit in the raw file's bias flips the label beside the boundary: a miss by default, and one flip of budget."""
    _, path = attach(hosts.score_and_map(), tmp_path)
    other = hosts.score_and_map()
    bias = next(item for item in other.graph.initializer if item.name == "bias")
    lower = np.nextafter(numpy_helper.to_array(bias), np.float32(-1))
    bias.CopyFrom(numpy_helper.from_array(lower, bias.name))
    images = np.zeros((2, 3, 8, 8), np.float32)
    images[0, 0, 0, 0] = 1.1  # raw 0.3, the boundary
    np.savez(tmp_path / "images.npz", input=images)
    fed = ("--inputs", tmp_path / "images.npz", "--threads", 1, "--runtime", "onnxruntime", "--json")
    raw = hosts.write(other, tmp_path / "other.onnx")
    result = invoke("check", path, "--raw", raw, *fed)
    assert result.exit_code == 1
    missed = {check["name"] for check in json.loads(result.stdout)["checks"] if not check["passed"]}
    assert missed == {"whole/raw/pred_mask/onnxruntime"}
    assert invoke("check", path, "--raw", raw, *fed, "--max-flips", 1).exit_code == 0


def test_every_number_is_in_the_json(swapped: ParityReport) -> None:
    """The JSON holds every way, stage, level and flip with its numbers, in raw units and of the span."""
    document = json.loads(json.dumps(swapped.to_json(), allow_nan=False))
    ways = {way["way"]: way for way in document["whole_model"]}
    way = ways["onnxruntime"]
    assert {"runtime", "precision", "weights", "judged", "baseline", "verdict", "advice", "flipped"} <= set(way)
    assert (way["baseline"], way["judged"], ways["openvino-default"]["judged"]) == ("torch", True, False)
    stage = next(stage for stage in way["stages"] if (stage["stage"], stage["level"]) == ("torch -> raw", "pixel"))
    assert set(stage["error"]) == {"largest", "mean", "p999"}
    assert stage["error_of_span"]["largest"] == pytest.approx(stage["error"]["largest"] / 0.875)
    level = next(level for level in way["levels"] if level["level"] == "pixel")
    assert level["count"] == IMAGES[:, 0].size
    assert level["flipped"] == stage["flipped"] == level["brought_in"]["torch -> raw"]
    distances = [abs(flip["distance"]) for flip in level["flips"]]
    assert distances == sorted(distances, reverse=True)
    assert {"index", "expected", "raw", "raw_at_the_end", "distance", "ulps", "stage", "sample"} == set(
        level["flips"][0]
    )
    assert document["environment"]["torch"]["module"] == "torch_hosts:detector"


def test_the_numbers_are_those_of_numpy(swapped: ParityReport) -> None:
    """Largest and mean error, flips and distances equal what NumPy computes from the two models' raw values."""
    first, last = (hosts.expected(images)["anomaly_map"].ravel() for images in (IMAGES, IMAGES[:, ::-1]))
    boundary = np.float32(0.3)
    flipped = (first < boundary) != (last < boundary)
    found = outcome(swapped, "onnxruntime")
    assert found.decided.flipped == flipped.sum()
    assert found.decided.farthest == pytest.approx(np.abs(first[flipped].astype(float) - boundary).max())
    errors = swapped.whole[1].levels["pixel"].errors["torch -> raw"]
    error = np.abs(first.astype(float) - last)
    assert errors.largest == error.max()
    assert errors.mean == pytest.approx(error.mean())
    exact = np.quantile(error, 0.999, method="inverted_cdf")
    assert exact <= errors.quantile <= exact * 1.01
    near = np.abs(first.astype(float) - boundary)
    assert (near <= found.largest).sum() <= found.at_risk[1] <= (near <= found.largest * 1.01).sum()


FORMS: list[dict[str, Any]] = [
    {"layout": "packed"},
    {"levels": "pixel"},
    {"enable_normalization": False},
    {"adjustable": "sensitivity"},
    {"adjustable": "boundary", "layout": "packed"},
]


@pytest.mark.parametrize(
    ("ir", "options"),
    [
        # each form in one format; in the other it is slow
        pytest.param(
            ir,
            options,
            id=f"{'ir' if ir else 'onnx'}-{'-'.join(map(str, options.values()))}",
            marks=() if place % 2 == ir else pytest.mark.slow,
        )
        for place, options in enumerate(FORMS)
        for ir in (False, True)
    ],
)
def test_every_form_of_tail_has_its_stages(ir: bool, options: dict[str, Any], tmp_path: Path) -> None:
    """Packed outputs, one level, inputs that adjust it, raw values for scores: followed stage by stage, too."""
    raw, path = attach(hosts.score_and_map(), tmp_path, ir=ir, **options)
    report = check_alone(path, raw, torch="torch_hosts:detector")
    assert report, report.describe()
    assert "decides as PyTorch" in verdict(report.whole[0])


def test_a_tail_without_labels_decides_nothing(tmp_path: Path) -> None:
    """Without labels the errors are there, and the verdict says that there is nothing to decide."""
    raw, path = attach(hosts.score_and_map(), tmp_path, enable_thresholding=False)
    report = check_alone(path, raw, torch="torch_hosts:detector")
    assert report, report.describe()
    assert "it gives no labels" in verdict(report.whole[0])
    assert stages_of(report, "onnxruntime") == ["torch -> raw", "raw -> attached", "tail"]


def test_a_map_alone_is_followed_on_both_levels(tmp_path: Path) -> None:
    """A score that the tail takes from the map is compared, too, and a scalar score of one image."""
    raw, path = attach(hosts.map_only(), tmp_path)
    report = check_alone(path, raw, torch="torch_hosts:map_alone")
    assert report, report.describe()
    assert {trace.level for _, trace in report.whole[0].stages} == {"image", "pixel"}


@pytest.mark.parametrize("ir", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["onnx", "ir"])
def test_int8_is_quantised_in_front_of_the_tail(ir: bool, tmp_path: Path) -> None:
    """With nncf the quantised file is run, its flips are put down to INT8, and its tail stays exact."""
    pytest.importorskip("nncf")
    raw, path = attach(set_weights(hosts.score_and_map(), (0.1, 0.7, 0.3)), tmp_path, ir=ir)
    report = check(path, raw, int8=True)
    assert report, report.describe()
    assert stages_of(report, "openvino-int8") == ["f32 -> int8", "tail"]
    found = outcome(report, "openvino-int8")
    assert found.largest > 0
    assert set(found.brought_in) <= {"f32 -> int8"}
    tail = [trace for stage, trace in report.whole[-1].stages if stage == "tail"]
    assert all(trace.errors["tail"].largest < 1e-6 for trace in tail)


@pytest.mark.parametrize(
    ("ir", "options"),
    [
        # quantising takes seconds
        pytest.param(True, {"adjustable": "sensitivity", "layout": "packed"}, id="state-packed-ir"),
        pytest.param(
            True, {"adjustable": "sensitivity", "as_parameters": True}, id="parameters-ir", marks=pytest.mark.slow
        ),
        pytest.param(
            False, {"adjustable": "boundary", "layout": "packed"}, id="default-packed-onnx", marks=pytest.mark.slow
        ),
    ],
)
def test_an_adjustable_or_packed_file_is_followed_in_every_way(
    ir: bool, options: dict[str, Any], tmp_path: Path
) -> None:
    """Inputs that adjust the tail get what was attached, also while nncf quantises, and INT8 leaves the tail exact."""
    pytest.importorskip("nncf")
    raw, path = attach(hosts.score_and_map(), tmp_path, ir=ir, **options)
    report = check(path, raw, int8=True)
    assert report, report.describe()
    ways = [*([] if ir else JUDGED[:2]), "openvino", *SHOWN, "openvino-int8"]
    assert [result.way.label for result in report.whole] == ways
    assert stages_of(report, "openvino-int8") == ["f32 -> int8", "tail"]
    tail = [trace for stage, trace in report.whole[-1].stages if stage == "tail"]
    assert all(trace.errors["tail"].largest < 1e-6 for trace in tail)
    assert not any(trace.labels["tail"].flipped for trace in tail if trace.labels)


def test_the_table_fits_a_terminal_of_80_columns(swapped: ParityReport) -> None:
    """No cell is cut and no line is longer than 80 characters, also with hundreds of thousands of flipped pixels."""
    from postproc_export.check.report import stage_table

    many = LabelDifference(count=645_120, flipped=610_943)
    worst = []
    for result in swapped.whole:
        levels = {
            name: replace(trace, labels=dict.fromkeys(trace.labels, many)) for name, trace in result.levels.items()
        }
        worst.append(replace(result, levels=levels))
    lines = list(stage_table(worst))[:-1]
    assert max(map(len, lines)) <= 80
    assert any("610,943 / 645,120" in line and "f32 -> fp16 weights" in line for line in lines)
    assert {result.way.label for result in worst} <= {line.strip() for line in lines}


def test_what_a_tap_moves_is_not_put_down_to_the_tail(tmp_path: Path) -> None:
    """Where a value moves because it is tapped, the tail is judged beside the taps, and the body bears the rest."""
    attached = load_attached(attach(hosts.score_and_map(), tmp_path)[1])
    reader = Reader(Reference(attached))
    raw = {"image": np.float32([[0.1], [0.3]]), "pixel": np.float32([[[[0.1]]], [[[0.4]]]])}
    beside = reader.reference.outputs(raw)
    outputs = {**beside, "pred_mask": ~beside["pred_mask"]}
    body, given = reader.tapped(raw, beside, beside, outputs)
    assert np.array_equal(body.labels["pixel"], given.labels["pixel"])
    body, _ = reader.tapped(raw, beside, outputs, outputs)
    assert np.array_equal(body.labels["pixel"].ravel(), beside["pred_mask"].ravel())
    assert (
        reader.misfit(raw, {**beside, "pred_mask": beside["pred_mask"][:1]})
        == "'pred_mask' has shape [1, 1, 1, 1] for 2 raw values"
    )


@pytest.mark.parametrize("options", [{}, {"enable_normalization": False}, {"image_sensitivity": 0.0}], ids=str)
def test_the_values_of_a_body_are_those_that_its_flips_come_from(options: dict[str, Any], tmp_path: Path) -> None:
    """What a file without taps reads shows in its scores and labels: raw value and label of a body never contradict."""
    attached = load_attached(attach(hosts.score_and_map(), tmp_path, **options)[1])
    reader = Reader(Reference(attached))
    rng = np.random.default_rng(11)
    maps = rng.normal(0.3, 0.4, (40, 1, 6, 5)).astype(np.float32)
    maps[:4, 0, 0, 0] = np.nan, np.inf, -np.inf, 0.3
    numbers = np.isfinite(maps).all(axis=(1, 2, 3))[:, None]
    raw = {"image": maps.max(axis=(2, 3)), "pixel": maps}
    beside = reader.reference.outputs(raw)
    for moved in (maps, maps + rng.normal(0, 0.02, maps.shape).astype(np.float32), torch.from_numpy(maps).bfloat16()):
        read = np.asarray(moved.float()) if isinstance(moved, torch.Tensor) else moved
        outputs = reader.reference.outputs({"image": read.max(axis=(2, 3)), "pixel": read})
        body, _ = reader.tapped(raw, beside, beside, outputs)
        for level, values in body.raw.items():
            boundary = attached.boundary(level)
            assert boundary is not None
            known = np.isfinite(values) & numbers
            assert np.array_equal(body.labels[level][known], ~(values < boundary)[known])
            if moved is maps:
                assert values.tobytes() == raw[level].reshape(values.shape).tobytes(), "the very values"
            elif level == "pixel":
                alone = outputs["anomaly_map"].reshape(values.shape)
                inside = known & (beside["anomaly_map"] > 0).reshape(values.shape) & (alone > 0) & (alone < 1)
                off = values[inside] - read.reshape(values.shape)[inside]
                assert np.median(np.abs(off)) < 1e-6, "the values that were read, where the score is not clamped"


def test_no_stage_flips_decisions_without_an_error(tmp_path: Path, taps_that_move: None) -> None:
    """Neither column of a row denies the other, in a way of running in which a tap moves what it taps."""
    raw, path = attach(hosts.score_and_map(), tmp_path)
    report = check(path, raw, inputs=near(hosts.CHANNEL_WEIGHTS))
    found = outcome(report, "openvino-default")
    labels, errors = found.labels["raw -> attached"], found.errors["raw -> attached"]
    assert labels.flipped > 0
    assert labels.farthest is not None
    assert errors.largest >= labels.farthest * (1 - 1e-6) > 0
    assert all((flip["raw_at_the_end"] >= found.boundary) is not flip["expected"] for flip in found.flips)
    assert found.labels["tail"].flipped == 0


def near(weights: tuple[float, ...]) -> dict[str, NDArray[np.float32]]:
    """Return inputs whose raw maps lie all around the boundary of the pixel level, as near as 1e-5."""
    rng = np.random.default_rng(3)
    images = rng.random((8, 3, 16, 16), np.float32)
    rest = 0.3 + rng.uniform(-1e-3, 1e-3, images[:, 1].shape) - hosts.BIAS
    images[:, 1] = (rest - weights[0] * images[:, 0] - weights[2] * images[:, 2]) / weights[1]
    return {"input": images}


def shifted(by: float) -> torch.nn.Module:
    """Return the twin with raw values that lie a little lower or higher."""
    return torch_hosts.Detector(torch_hosts.FORMS["tuple"], bias=hosts.BIAS + by)


class _Rounding:
    """A runner whose inputs are rounded to bfloat16 first: what a lower precision does, on a machine that has none."""

    inference_precision = "bfloat16"

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        rounded = {name: torch.from_numpy(values).bfloat16().float().numpy() for name, values in feeds.items()}
        return self._runner.run(rounded)


class _Scaling(_Rounding):
    """A runner whose inputs are a little larger, which no rounding that the machine does itself hides."""

    def run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return self._runner.run({name: values * np.float32(1.03125) for name, values in feeds.items()})


@pytest.fixture
def bfloat16_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let OpenVINO's default precision be bfloat16 in effect."""
    plain = Configuration.open

    def open_rounding(self: Configuration, model: Any, *, threads: int | None) -> Any:
        runner = plain(self, model, threads=threads)
        return _Rounding(runner) if self.precision == "default" and self.weights == "stored" else runner

    monkeypatch.setattr(Configuration, "open", open_rounding)


@pytest.fixture
def taps_that_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a file without taps compute other values by OpenVINO's default precision, as it does at bfloat16."""
    plain = Configuration.open

    def open_rounding(self: Configuration, model: Any, *, threads: int | None) -> Any:
        runner = plain(self, model, threads=threads)
        is_attached = isinstance(model, Path) and model.name == "raw.post.onnx"
        is_default = self.precision == "default" and self.weights == "stored"
        return _Scaling(runner) if is_default and is_attached else runner

    monkeypatch.setattr(Configuration, "open", open_rounding)


def distances(values: list[float]) -> Distances:
    """Count distances from a boundary."""
    counted = Distances()
    counted.add(np.array(values))
    return counted


def test_a_result_without_flips_is_at_risk_by_its_error() -> None:
    """The sentence counts the values that lie nearer to the boundary than the largest error, or says that none does."""
    near_one = LevelTrace(
        level="pixel",
        boundary=0.5,
        span=1.0,
        band=EXACT,
        decided=LabelDifference(count=131072),
        largest=1e-6,
        distances=distances([0.0, 0.0, 1e-6, 1e-3]),
    )
    result = WayResult(
        way=Configuration(runtime="openvino"),
        runtime="openvino-cpu 2026",
        precision="float32",
        baseline="torch",
        names=["tail"],
        levels={"pixel": near_one},
    )
    text = "openvino at float32: decides as PyTorch; "
    assert verdict(result) == f"{text}3 of 131,072 mask pixels lie within 1.0e-06 of the boundary"
    alone = replace(result, levels={"pixel": replace(near_one, distances=distances([1e-3]))})
    assert verdict(alone) == f"{text}no mask pixel within 1.0e-06 of the boundary, the largest error"
    exact = replace(result, levels={"pixel": replace(near_one, largest=0.0)})
    assert verdict(exact) == f"{text}the raw values are equal to the bit"
