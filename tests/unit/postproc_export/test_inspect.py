"""Inspecting: what a file is, what it decides, what is certain, and how a near miss explains itself."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import hosts
import model_files
import numpy as np
import onnx
import openvino
import pytest

from graph_patterns.expr import ModelFileError
from postproc_export.attach import attach_postprocessing
from postproc_export.errors import UsageError
from postproc_export.inspect import InspectResult, inspect_model
from postproc_export.reading.report import LevelReport
from postproc_export.stats import CalibrationStats, LevelStats

IMAGE = LevelStats(threshold=0.5, min=0.0, max=2.0)
PIXEL = LevelStats(threshold=0.25, min=-1.0, max=1.0)
STATS = CalibrationStats(image=IMAGE, pixel=PIXEL)
KEYS = {"tail", "threshold", "span", "sensitivity", "comparison", "certain"}


def attached(folder: Path, *, suffix: str = ".onnx", stats: CalibrationStats = STATS, **options: Any) -> Path:
    """Attach to a host and return the file."""
    host, target = folder / f"host{suffix}", folder / f"attached{suffix}"
    hosts.write(hosts.score_and_map(), host)
    attach_postprocessing(host, stats, output=target, **options)
    return target


def edited(path: Path, edit: Any) -> Path:
    """Edit an ONNX file and return its path."""
    model = onnx.load(path)
    edit(model)
    onnx.save(model, path)
    return path


def image(result: InspectResult) -> LevelReport:
    """Return the report of the image level."""
    report = result.levels["image"]
    assert report is not None
    return report


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_an_attached_model_tells_what_it_decides(suffix: str, tmp_path: Path) -> None:
    """Everything that was attached is read back, with the boundary in raw and normalised units."""
    result = inspect_model(attached(tmp_path, suffix=suffix, image_sensitivity=0.3, comparison="gt"))
    report = image(result)
    assert (report.tail, report.threshold, report.span, report.comparison, report.certain) == (
        "postproc_export",
        0.5,
        2.0,
        "gt",
        True,
    )
    assert report.sensitivity == np.float32(0.3)
    assert report.boundary == np.float32(0.90000004)
    assert report.raw_and_unit["min"] == (0.0, 0.25)
    assert report.raw_and_unit["threshold"] == (0.5, 0.5)
    assert [port.name for port in result.outputs] == ["pred_score", "pred_label", "anomaly_map", "pred_mask"]
    assert result.attached_by is not None


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_the_json_form_has_the_keys_that_others_read(suffix: str, tmp_path: Path) -> None:
    """docs/json.md; unknown values are null, and it is strict JSON."""
    path = attached(tmp_path, suffix=suffix, stats=CalibrationStats(image=IMAGE))
    document = json.loads(json.dumps(inspect_model(path).to_json(), allow_nan=False))
    assert document["format"] == {".onnx": "onnx", ".xml": "openvino"}[suffix]
    assert document["levels"].keys() == {"image", "pixel"}
    assert document["levels"]["image"].keys() >= KEYS
    assert document["levels"]["image"]["threshold"] == 0.5
    pixel = document["levels"]["pixel"]
    assert {key: pixel[key] for key in KEYS} == {
        "tail": "none",
        "threshold": None,
        "span": None,
        "sensitivity": None,
        "comparison": None,
        "certain": True,
    }


def test_a_level_that_is_not_there_is_null(tmp_path: Path) -> None:
    """A model without a map has no pixel level."""
    result = inspect_model(hosts.write(hosts.score_only(), tmp_path / "host.onnx"))
    assert result.to_json()["levels"]["pixel"] is None
    assert "pixel    not in the model" in result.summary()


def test_infinite_boundaries_are_legal_json(tmp_path: Path) -> None:
    """At sensitivity 1 everything is anomalous: the boundary is -inf, written as text."""
    document = inspect_model(attached(tmp_path, image_sensitivity=1.0)).to_json()
    assert document["levels"]["image"]["boundary"] == "-inf"
    json.dumps(document, allow_nan=False)


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize(("sensitivity", "threshold"), [(0.5, 0.7), (0.3, 0.7), (1.0, 0.7), (0.5, 300.0)])
def test_a_stripped_tail_is_read_from_its_constants(
    sensitivity: float, threshold: float, suffix: str, tmp_path: Path
) -> None:
    """Without the record threshold, span and sensitivity are inferred, and the report says so."""
    stats = CalibrationStats(image=LevelStats(threshold=threshold, min=0.1, max=2.3))
    path = attached(tmp_path, suffix=suffix, stats=stats, image_sensitivity=sensitivity)
    if suffix == ".onnx":
        edited(path, lambda model: model.ClearField("metadata_props"))
    else:
        model = openvino.Core().read_model(path)
        del model.get_rt_info()["postproc_export"]
        path = tmp_path / "stripped.xml"
        openvino.save_model(model, path, compress_to_fp16=False)
    report = image(inspect_model(path))
    assert (report.tail, report.comparison, report.certain) == ("postproc_export", "ge", False)
    assert report.threshold == pytest.approx(threshold, rel=1e-6)
    assert report.span == pytest.approx(2.2, rel=1e-6)
    assert report.sensitivity == np.float32(sensitivity)
    assert "the record was stripped" in report.notes[0]


def test_constants_that_contradict_the_record_are_told(tmp_path: Path) -> None:
    """The file decides by its constants; that the record says something else is not certain but told."""
    path = attached(tmp_path)

    def edit(model: onnx.ModelProto) -> None:
        tensor = next(item for item in model.graph.initializer if item.name == "postproc/pred_label/boundary")
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.float32(0.75), tensor.name))

    report = image(inspect_model(edited(path, edit)))
    assert (report.boundary, report.certain) == (0.75, False)
    assert "boundary is 0.75, not 0.5" in report.notes[0]


def test_constants_that_were_compressed_are_told(tmp_path: Path) -> None:
    """A conversion with compression rounds the tail as well: nothing read from it is certain."""
    stats = CalibrationStats(image=LevelStats(threshold=0.7001, min=0.1, max=2.3))
    path = attached(tmp_path, stats=stats)
    openvino.save_model(openvino.convert_model(str(path)), tmp_path / "c.xml", compress_to_fp16=True)
    report = image(inspect_model(tmp_path / "c.xml"))
    assert report.tail == "postproc_export"
    assert not report.certain
    assert "compressed to fewer bits" in report.notes[-1]


@pytest.mark.parametrize("has_record", [True, False])
def test_a_near_miss_explains_itself(has_record: bool, tmp_path: Path) -> None:
    """What was expected, what stands there, and where."""

    def edit(model: onnx.ModelProto) -> None:
        next(node for node in model.graph.node if node.name == "postproc/pred_score/hard_sigmoid").op_type = "Relu"
        if not has_record:
            model.ClearField("metadata_props")

    report = image(inspect_model(edited(attached(tmp_path), edit)))
    assert report.tail == "none"
    assert "found Relu at 'postproc/pred_score/hard_sigmoid'" in report.notes[0]


def test_weights_are_located_and_not_loaded(tmp_path: Path) -> None:
    """External data is listed with its size; a file that is missing does not hinder."""
    model = hosts.score_and_map()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    weights = inspect_model(tmp_path / "m.onnx").weights
    size = (tmp_path / "w.data").stat().st_size
    assert weights == {"location": "external", "size": size, "files": ["w.data"], "missing": []}
    (tmp_path / "w.data").unlink()
    result = inspect_model(tmp_path / "m.onnx")
    assert result.weights["missing"] == ["w.data"]
    assert "missing: w.data" in result.summary()


def test_small_weights_and_constants_in_nodes_count(tmp_path: Path) -> None:
    """The size in the file is that of all values, initializers or constants, however small, and not of text."""
    model = hosts.parse(
        "g (float[N,2] x) => (float[N,2] pred_score) <float[2] bias = {1, 2}> "
        '{ half = Constant <value = float16[3] {1, 2, 3}> () text = Constant <value = string[1] {"no number"}> () '
        "pred_score = Add(x, bias) }"
    )
    result = inspect_model(hosts.write(model, tmp_path / "m.onnx"))
    assert result.weights == {"location": "inline", "size": 2 * 4 + 3 * 2, "files": [], "missing": []}
    assert "weights  in the file, 14 bytes" in result.summary()


@pytest.mark.parametrize("location", ["../w.data", "/etc/hostname", "link.data"])
def test_external_data_outside_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    """By its text or by a link."""
    (tmp_path / "in").mkdir()
    (tmp_path / "w.data").write_bytes(bytes(64))
    (tmp_path / "in" / "link.data").symlink_to(tmp_path / "w.data")
    model = hosts.score_and_map()
    tensor = model.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (tmp_path / "in" / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match="refused"):
        inspect_model(tmp_path / "in" / "m.onnx")


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    """Only ONNX models and IRs are models."""
    (tmp_path / "model.tflite").touch()
    with pytest.raises(UsageError, match=r"found:   the suffix '.tflite'"):
        inspect_model(tmp_path / "model.tflite")


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_the_table_names_ports_weights_and_levels(suffix: str, tmp_path: Path) -> None:
    """One fact a line."""
    lines = inspect_model(attached(tmp_path, suffix=suffix)).summary().splitlines()
    assert any(line.startswith("  weights  ") for line in lines)
    assert "  image    postproc-export's tail at pred_score and pred_label, read from the file" in lines
    assert [line.split() for line in lines if line.startswith("    threshold")] == [
        ["threshold", "0.5", "0.5"],
        ["threshold", "0.25", "0.5"],
    ]


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "openvino"])
def test_what_the_statistics_are_of_is_shown(ir: bool, tmp_path: Path) -> None:
    """Model, digest, runtime, counts, split, policy and pre-processing of an attached file, in words and in JSON."""
    raw = hosts.raw_file(hosts.score_and_map(), tmp_path, ir=ir)
    stats = model_files.statistics(raw)
    runtime = {"name": "openvino-cpu", "version": "2026.4", "precision": "default", "inference_precision": "bfloat16"}
    samples = {"images": 5, "normal": 3, "anomalous": 2, "split": "validation"}
    level = replace(stats.image, policy="recall=0.9", rule="recall=0.9")
    stats = replace(stats, image=level, details={**stats.details, "runtime": runtime, "samples": samples})
    result = inspect_model(attach_postprocessing(raw, stats).output)
    shown = " ".join(result.summary().split())
    for fact in (
        f"digest {inspect_model(raw).digest}",
        f"stats calibrated on {raw.name} ({'openvino' if ir else 'onnx'}), which is this one",
        "stats run in openvino-cpu 2026.4, computing in bfloat16",
        "stats on 3 normal and 2 anomalous images, split validation",
        "images calibrated on: resized to 8x8",
        "policy recall=0.9",
    ):
        assert fact in shown
    document = json.loads(json.dumps(result.to_json()))
    assert document["digest"] == document["model"]["digest"] == stats.details["model"]["digest"]
    assert (document["runtime"], document["samples"]) == (runtime, samples)
    assert document["levels"]["image"]["policy"] == "recall=0.9"


def test_statistics_of_another_model_are_shown_to_be_so(tmp_path: Path) -> None:
    """Attached all the same, the file has one digest and its statistics the other."""
    stats = model_files.statistics(hosts.raw_file(hosts.score_and_map(), tmp_path, "calibrated"))
    attached = attach_postprocessing(hosts.raw_file(model_files.other(), tmp_path), stats, other_model=True).output
    result = inspect_model(attached)
    assert result.digest != stats.details["model"]["digest"]
    assert (
        f"calibrated on calibrated.onnx (onnx), whose digest is {stats.details['model']['digest']}" in result.summary()
    )


def test_a_file_without_such_a_record_shows_its_digest_alone(tmp_path: Path) -> None:
    """A raw model has no statistics, those made by hand name no model; of missing weights there is no digest."""
    raw = hosts.raw_file(hosts.score_and_map(), tmp_path)
    assert "stats " not in inspect_model(raw).summary()
    level = LevelStats(threshold=0.5, min=0.0, max=1.0)
    attached = attach_postprocessing(raw, CalibrationStats(image=level, pixel=level)).output
    assert "the statistics do not say which model they were calibrated on" in inspect_model(attached).summary()
    assert inspect_model(attached).to_json()["model"] is None
    onnx.save(hosts.rich_model(), tmp_path / "far.onnx", save_as_external_data=True, location="w", size_threshold=0)
    (tmp_path / "w").unlink()
    assert inspect_model(tmp_path / "far.onnx").digest is None
    assert "digest   not known: the weights cannot be read" in inspect_model(tmp_path / "far.onnx").summary()


@pytest.mark.parametrize(
    "details",
    [
        {"model": "padim"},
        {"model": {"digest": ["a"], "name": 3}},
        {"model": {"digest": "ab", "name": "a\nb", "format": None}},
        {"model": {"digest": "ab"}, "runtime": ["x"], "samples": {"normal": {}, "anomalous": 2}},
        {"samples": {"split": 3}, "preprocessing": 5},
    ],
    ids=str,
)
def test_a_record_of_anything_is_shown_without_a_traceback(details: dict[str, object], tmp_path: Path) -> None:
    """What is not legal is left out."""
    level = LevelStats(threshold=0.5, min=0.0, max=1.0)
    stats = CalibrationStats(image=level, pixel=level, details=details)
    attached = attach_postprocessing(hosts.raw_file(hosts.score_and_map(), tmp_path), stats).output
    result = inspect_model(attached)
    assert "\n  stats    " in result.summary()
    assert "a\nb" not in result.summary()
    json.dumps(result.to_json())
