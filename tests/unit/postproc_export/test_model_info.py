"""`attach --model-info`: what OpenVINO Model API reads, written from the recorded pre-processing, and taken away."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hosts
import onnx
import openvino
import pytest
from onnx import parser

from postproc_export import CalibrationStats, LevelStats, attach_postprocessing, inspect_model, update_postprocessing
from postproc_export.check.contracts import check_contract
from postproc_export.check.preserved_files import compare_files
from postproc_export.detach import detach_postprocessing
from postproc_export.errors import UnsupportedModelError, UsageError
from postproc_export.integrations.memory import attach_to_onnx

Invoke = Callable[..., Any]
FORMATS = pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def stats(**fed: Any) -> CalibrationStats:
    """Return statistics of a calibration on images that were fed so, by OpenCV's filter unless another is named."""
    return CalibrationStats(
        image=LevelStats(threshold=0.5, min=0.0, max=2.0),
        pixel=LevelStats(threshold=0.25, min=-1.0, max=1.0),
        details={"preprocessing": {"interpolation": "cv2-linear", "scale": 255.0, **fed}},
    )


def raw(folder: Path, *, ir: bool = False, size: tuple[int, int] = (8, 8), **options: Any) -> Path:
    """Return a raw model of a fixed size."""
    return hosts.raw_file(hosts.score_and_map(dynamic=False, size=size, **options), folder, ir=ir)


def attached(model: Path, of: CalibrationStats | None = None, **options: Any) -> Path:
    """Return a file with a tail and what Model API reads."""
    output = model.with_name(f"attached{model.suffix}")
    found = attach_postprocessing(model, of or stats(), output=output, **{"model_info": True, **options}).output
    assert found is not None
    return found


@FORMATS
def test_it_holds_what_the_record_says(ir: bool, tmp_path: Path) -> None:
    """Mean and scale in pixel units, by channel; thresholds in units of the scores; `inspect` shows all of it."""
    path = attached(raw(tmp_path, ir=ir), stats(**IMAGENET, channel_order="bgr"), image_sensitivity=0.75)
    found = inspect_model(path)
    assert found.to_json()["model_info"] == {
        "model_type": "AnomalyDetection",
        "task": "segmentation",
        "labels": "Normal Anomalous",
        "image_threshold": "0.25",
        "pixel_threshold": "0.5",
        "normalization_scale": "1.0",
        "resize_type": "standard",
        "interpolation_mode": "LINEAR",
        "pad_value": "0",
        "reverse_input_channels": "True",
        "mean_values": "123.675 116.28 103.53",
        "scale_values": "58.395 57.12 57.375",
    }
    (line,) = (line for line in found.summary().splitlines() if line.startswith("  info     for Model API: "))
    assert all(f"{key} {value}" in line for key, value in found.model_info.items())
    assert not [item for item in check_contract(path, "model-api") if item.holds is False]


@FORMATS
def test_without_the_option_there_is_nothing_of_it(ir: bool, tmp_path: Path) -> None:
    """A file says nothing to Model API unless that is asked for, and the contract misses it."""
    path = attached(raw(tmp_path, ir=ir), stats(resize="pad", pad_value=[114.0], **IMAGENET), model_info=False)
    assert inspect_model(path).model_info == {}
    assert "for Model API" not in inspect_model(path).summary()
    missed = {item.name: item for item in check_contract(path, "model-api") if item.holds is False}
    assert missed.keys() == {"input values", "input geometry"}
    assert missed["input geometry"].found == "resize_type standard, pad_value 0"
    assert missed["input geometry"].needed == "resize_type fit_to_window_letterbox, pad_value 114"


@FORMATS
@pytest.mark.parametrize("others", [{}, {"vendor": "x"}], ids=["alone", "beside-others"])
def test_detaching_takes_it_away(ir: bool, others: dict[str, str], tmp_path: Path) -> None:
    """The original is back: proto-equal, or with the same rt_info; what was there besides stays."""
    model = hosts.score_and_map(dynamic=False)
    for key, value in others.items():
        model.metadata_props.add(key=key, value=value)
    original = hosts.raw_file(model, tmp_path, ir=ir)
    path = attached(original)
    back = detach_postprocessing(path, output=tmp_path / f"back{path.suffix}")
    assert back.is_original
    assert inspect_model(tmp_path / f"back{path.suffix}").model_info == {}
    if not ir:
        assert onnx.load(back.output) == onnx.load(original)
        return
    before, after = (openvino.Core().read_model(each).get_rt_info() for each in (original, back.output))
    assert set(after) == set(before)


def test_a_converted_file_loses_it_too(tmp_path: Path) -> None:
    """What a conversion makes of the entries goes when the tail goes."""
    path = attached(raw(tmp_path))
    openvino.save_model(openvino.Core().read_model(path), tmp_path / "converted.xml", compress_to_fp16=False)
    assert "mean_values" in (tmp_path / "converted.xml").read_text()
    detach_postprocessing(tmp_path / "converted.xml", output=tmp_path / "back.xml")
    assert "mean_values" not in (tmp_path / "back.xml").read_text()


@FORMATS
def test_an_update_keeps_it_in_step(ir: bool, tmp_path: Path) -> None:
    """Another sensitivity is written there too; --no-model-info takes it away, --model-info brings it."""
    path = attached(raw(tmp_path, ir=ir))

    def updated(path: Path, **changes: Any) -> Path:
        result = update_postprocessing(path, output=path.with_name(f"{len(path.stem)}_{path.name}"), **changes)
        assert result.output is not None
        return result.output

    stricter = updated(path, image_sensitivity=0.25)
    assert inspect_model(stricter).model_info == {**inspect_model(path).model_info, "image_threshold": "0.75"}
    without = updated(path, model_info=False)
    assert inspect_model(without).model_info == {}
    assert inspect_model(updated(without, model_info=True)).model_info == inspect_model(path).model_info


@FORMATS
def test_it_counts_as_the_tails(ir: bool, tmp_path: Path) -> None:
    """`check --preserved` finds nothing else changed, and finds an entry that is not the tail's."""
    original = raw(tmp_path, ir=ir)
    assert not compare_files(original, attached(original)).changes
    own = {"details": "x"}
    path = attached(original, model_info=False)
    if ir:
        read = openvino.Core().read_model(path)
        read.set_rt_info(own["details"], ["model_info", "model_type"])
        openvino.save_model(read, tmp_path / "own.xml", compress_to_fp16=False)
    else:
        model = onnx.load(path)
        model.metadata_props.add(key="model_info model_type", value=own["details"])
        onnx.save(model, tmp_path / "own.onnx")
    (change,) = compare_files(original, tmp_path / f"own{path.suffix}").changes
    assert "model_type" in change.where


@pytest.mark.parametrize(
    ("fed", "size", "expected"),
    [
        ({"resize": "pad", "pad_value": [114.0]}, (8, 6), ("fit_to_window_letterbox", "LINEAR", "114")),
        ({"resize": "pad", "pad_at": "corner"}, (8, 6), ("fit_to_window", "LINEAR", "0")),
        ({"precrop": True}, (8, 8), ("crop", "LINEAR", "0")),
        ({"interpolation": "nearest"}, (8, 6), ("standard", "NEAREST", "0")),
        ({"resize": "none"}, (8, 6), ("standard", "LINEAR", "0")),
    ],
)
def test_each_geometry_has_its_name(
    fed: dict[str, Any], size: tuple[int, int], expected: tuple[str, ...], tmp_path: Path
) -> None:
    """Letterbox in the centre and in the corner, cut to a square, nearest, none."""
    found = inspect_model(attached(raw(tmp_path, size=size), stats(**fed))).model_info
    assert (found["resize_type"], found["interpolation_mode"], found["pad_value"]) == expected


@pytest.mark.parametrize(
    ("fed", "reason"),
    [
        ({"size": [10, 10], "crop": [8, 6]}, "a crop after resizing"),
        ({"resize": "shorter", "size": [8, 8], "crop": [8, 6]}, "the shorter side"),
        ({"bits": 16}, "images of 16 bits"),
        ({"resize": "pad", "pad_value": [1.0, 2.0, 3.0]}, "one whole number"),
        ({"resize": "pad", "pad_value": [0.5]}, "one whole number"),
        ({"precrop": True}, "no square"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(fed: dict[str, Any], reason: str, tmp_path: Path) -> None:
    """The message names each of it; no file is written."""
    with pytest.raises(UsageError, match=reason):
        attached(raw(tmp_path, size=(8, 6)), stats(**fed))
    assert not (tmp_path / "attached.onnx").exists()


def test_a_dynamic_size_is_fed_as_it_comes(tmp_path: Path) -> None:
    """Resizing is refused there, since Model API does none; images that are not resized are fed alike."""
    model = hosts.raw_file(hosts.score_and_map(), tmp_path)
    with pytest.raises(UsageError, match="dynamic height and width"):
        attached(model, stats(size=[8, 8]))
    assert inspect_model(attached(model, stats(size=[8, 8], resize="none"))).model_info["scale_values"] == "255.0"


@pytest.mark.parametrize(
    ("options", "typed"),
    [
        ({"enable_normalization": False}, "enable_normalization=False"),
        ({"label_dtype": "uint8"}, "label_dtype='uint8'"),
        ({"adjustable": "sensitivity", "as_parameters": True}, "as_parameters=True"),
    ],
)
def test_options_that_it_cannot_read_are_refused(options: dict[str, Any], typed: str, tmp_path: Path) -> None:
    """The message names the option as it was given; variables, which need not be given, are read."""
    with pytest.raises(UsageError, match=f"with {typed}"):
        attached(raw(tmp_path, ir=True), **options)
    assert attached(raw(tmp_path, ir=True), adjustable="sensitivity").exists()


@pytest.mark.parametrize(
    "options", [{"keep_raw": True}, {"layout": "packed"}, {"levels": "image"}, {"enable_thresholding": False}]
)
def test_other_outputs_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    """The four are needed, and no other; what was found is named."""
    with pytest.raises(UnsupportedModelError, match="does not take the outputs of this file"):
        attached(raw(tmp_path), **options)


def test_outputs_of_other_layers_count(tmp_path: Path) -> None:
    """A level that is not calibrated lacks, and a decision behind may add; one that takes the place of ours fits."""
    with pytest.raises(UnsupportedModelError, match="outputs of this file"):
        attached(raw(tmp_path), CalibrationStats(image=stats().image, details=stats().details))
    assert attached(raw(tmp_path), step="gate").exists()
    with pytest.raises(UnsupportedModelError, match="outputs of this file"):
        attached(raw(tmp_path), step="points:strict=0.3")


@FORMATS
def test_a_model_with_settings_of_its_own_is_refused(ir: bool, tmp_path: Path) -> None:
    """They are never mixed, and the model in memory is as it was."""
    path = raw(tmp_path, ir=ir)
    if ir:
        read = openvino.Core().read_model(path)
        read.set_rt_info("crop", ["model_info", "resize_type"])
        openvino.save_model(read, tmp_path / "own.xml", compress_to_fp16=False)
        path = tmp_path / "own.xml"
    else:
        model = onnx.load(path)
        model.metadata_props.add(key="model_info resize_type", value="crop")
        onnx.save(model, path)
        before = model.SerializeToString()
        with pytest.raises(UnsupportedModelError, match="resize_type=crop"):
            attach_to_onnx(model, stats(), model_info=True)
        assert model.SerializeToString() == before
    with pytest.raises(UnsupportedModelError, match="resize_type=crop"):
        attached(path)
    assert attached(path, model_info=False).exists()


def test_another_filter_is_measured(tmp_path: Path) -> None:
    """The note says which filters there are and how far pixels are apart; OpenCV's own needs none."""
    model = raw(tmp_path)
    told = {
        name: [note for note in attach_postprocessing(
            model, stats(interpolation=name), output=tmp_path / f"{name}.onnx", model_info=True
        ).notes if "pixels differ" in note]
        for name in ("cv2-linear", "bilinear", "cv2-area", "nearest")
    }  # fmt: skip
    assert told["cv2-linear"] == []
    for name in ("bilinear", "cv2-area", "nearest"):
        (note,) = told[name]
        assert f"the calibration by {name}:" in note
        assert 1 < float(note.partition("differ by ")[2].split()[0]) < 40


def test_the_command_says_it_and_refuses_what_is_not_known(tmp_path: Path, invoke: Invoke) -> None:
    """The summary tells what Model API reads; statistics of arrays end in exit code 2, with the fix."""
    model = raw(tmp_path)
    stats().save(tmp_path / "stats.json")
    output = tmp_path / "out.onnx"
    result = invoke("attach", model, "--stats", tmp_path / "stats.json", "--model-info", "-o", output)
    assert result.exit_code == 0, result.stderr
    assert "note     Model API reads resize_type standard" in result.stdout
    shown = json.loads(invoke("inspect", output, "--json").stdout)
    assert shown["model_info"]["scale_values"] == "255.0"
    CalibrationStats(image=stats().image, pixel=stats().pixel).save(tmp_path / "arrays.json")
    result = invoke("attach", model, "--stats", tmp_path / "arrays.json", "--model-info", "-o", tmp_path / "no.onnx")
    assert result.exit_code == 2
    assert "the statistics record no pre-processing" in result.stderr
    assert "postproc-export calibrate MODEL --images FOLDER" in " ".join(result.stderr.split())
    assert not (tmp_path / "no.onnx").exists()


def test_gray_and_other_types_are_refused(tmp_path: Path) -> None:
    """One channel, and an input that is no float32."""
    for declared, fed, reason in (
        ("float[1,1,8,8]", {"channel_order": "gray"}, "gray images"),
        ("float16[1,3,8,8]", {}, "an input of float16"),
    ):
        text = f"""<ir_version: 8, opset_import: ["": 17]>
        g ({declared} input) => (float[1,1] pred_score, float[1,1,8,8] anomaly_map)
        {{ as_float = Cast <to = 1> (input)
           anomaly_map = ReduceMean <axes = [1], keepdims = 1> (as_float)
           whole = ReduceMax <axes = [2, 3], keepdims = 0> (anomaly_map)
           pred_score = Identity (whole) }}"""
        path = hosts.write(parser.parse_model(text), tmp_path / "raw.onnx")
        with pytest.raises(UsageError, match=reason):
            attached(path, stats(**fed))
