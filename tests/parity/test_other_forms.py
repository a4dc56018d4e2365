"""Files that another tool has been over: every form that is recognised is judged, with its record or without."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import onnx_graphsurgeon
import openvino
import pytest
from checks import check_briefly
from onnx import numpy_helper

from postproc_export.attach import attach_postprocessing
from postproc_export.check import ParityReport
from postproc_export.errors import MetadataError, UnsupportedModelError, UsageError
from postproc_export.formats.openvino import drop_record
from postproc_export.stats import CalibrationStats, LevelStats

TOOLS = Path(__file__).parents[1] / "data" / "other_tools"
STATS = CalibrationStats(
    image=LevelStats(threshold=0.2, min=-1.0, max=0.75), pixel=LevelStats(threshold=0.3, min=-0.25, max=0.625)
)
FOLDED = "the form of the tail is a folded one"
Change = Callable[[Path], Path]


def checked(path: Path, **options: Any) -> ParityReport:
    """Check with few raw values in every runtime."""
    return check_briefly(path, runtimes=(), **options)


def attached(folder: Path, model: onnx.ModelProto | None = None, **options: Any) -> Path:
    """Attach to a detector, as ONNX."""
    return hosts.attached(hosts.score_and_map() if model is None else model, folder, stats=STATS, **options)[1]


def stripped(path: Path) -> Path:
    """Write a copy without its record."""
    target = path.with_stem(f"{path.stem}-stripped")
    if path.suffix == ".onnx":
        model = onnx.load(path)
        del model.metadata_props[:]
        onnx.save(model, target)
    else:
        ir = openvino.Core().read_model(str(path))
        drop_record(ir)
        openvino.save_model(ir, str(target), compress_to_fp16=False)
    return target


def read_and_saved(path: Path) -> Path:
    """Make an IR of an ONNX file as `core.read_model` and `save_model` do."""
    openvino.save_model(openvino.Core().read_model(str(path)), str(path.with_suffix(".xml")), compress_to_fp16=False)
    return path.with_suffix(".xml")


def converted(path: Path) -> Path:
    """Make an IR of an ONNX file as `ovc` does, without compression."""
    openvino.save_model(openvino.convert_model(str(path)), str(path.with_suffix(".xml")), compress_to_fp16=False)
    return path.with_suffix(".xml")


def compressed(path: Path) -> Path:
    """Make an IR of an ONNX file as `ovc` does by default."""
    openvino.save_model(openvino.convert_model(str(path)), str(path.with_suffix(".xml")), compress_to_fp16=True)
    return path.with_suffix(".xml")


def at_opset_20(path: Path) -> Path:
    """Convert to another opset."""
    onnx.save(onnx.version_converter.convert_version(onnx.load(path), 20), path)
    return path


def through_graphsurgeon(path: Path) -> Path:
    """Import and export by onnx-graphsurgeon, names of nodes gone as some scripts make them."""
    model = onnx.load(path)
    graph = onnx_graphsurgeon.import_onnx(model)
    for number, node in enumerate(graph.nodes):
        node.name = f"node_{number}"
    made = onnx_graphsurgeon.export_onnx(graph.cleanup().toposort())
    del made.metadata_props[:]
    made.metadata_props.extend(model.metadata_props)
    onnx.save(made, path)
    return path


@pytest.mark.parametrize("path", sorted(TOOLS.glob("*.onnx")), ids=lambda path: path.stem)
def test_what_other_tools_made_passes_and_is_called_a_folded_form(path: Path) -> None:
    """Slimmed, simplified, optimised offline: constants to the bit, the tail, and the whole file at batch 1 and 3."""
    report = checked(path)
    assert report, report.describe()
    constants = [check for check in report.checks if check.name.startswith("constants/")]
    assert constants
    folded = [check for check in constants if check.details["folded"]]
    assert bool(folded) is (FOLDED in report.environment.get("file", ""))
    assert all("equal to the bit" in check.message for check in constants)
    assert {check.way for check in report.checks if check.subject == "synthetic/raw/pred_mask"} >= {"openvino"}


def test_the_slimmed_file_says_which_form_it_has() -> None:
    """The guard's Shape became a constant: the score and the label are of the folded form, the map is not."""
    report = check_briefly(TOOLS / "after_slim.onnx")
    folded = {check.name for check in report.checks if check.details.get("folded")}
    assert folded == {"constants/pred_score", "constants/pred_label"}
    assert FOLDED in report.environment["file"]
    assert "file" not in check_briefly(TOOLS / "before_slim.onnx").environment


@pytest.mark.parametrize("constant", ["boundary", "alpha"])
def test_a_wrong_constant_in_a_folded_form_is_missed(constant: str, tmp_path: Path) -> None:
    """That other tools changed the form excuses nothing: one ulp at the boundary, a slope that is off."""
    model = onnx.load(TOOLS / "after_slim.onnx")
    if constant == "boundary":
        tensor = next(item for item in model.graph.initializer if item.name == "postproc/pred_label/boundary")
        values = np.nextafter(numpy_helper.to_array(tensor), np.float32(np.inf), dtype=np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    else:
        node = next(node for node in model.graph.node if "pred_score" in node.output)
        next(item for item in node.attribute if item.name == "alpha").f *= 1.001
    onnx.save(model, tmp_path / "wrong.onnx")
    report = check_briefly(tmp_path / "wrong.onnx")
    output = {"boundary": "pred_label", "alpha": "pred_score"}[constant]
    missed = {check.subject for check in report.failed}
    assert {f"constants/{output}", f"tail/{output}"} <= missed


def test_a_folded_tail_without_its_guard_is_missed(tmp_path: Path) -> None:
    """A tool that took the guard away leaves a tail that the record does not describe."""
    model = onnx.load(TOOLS / "after_slim.onnx")
    guard = next(node for node in model.graph.node if node.op_type == "Where")
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == guard.output[0]:
                node.input[index] = guard.input[2]
    onnx.save(model, tmp_path / "bare.onnx")
    missed = {check.subject for check in check_briefly(tmp_path / "bare.onnx").failed}
    assert {"constants/pred_score", "constants/pred_label", "tail/pred_label"} <= missed


OPTIONS: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "flat": ({"flat": True}, {}),
    "static": ({"dynamic": False}, {}),
    "opset-8": ({"opset": 8}, {}),
    "float64": ({"dtype": "double"}, {}),
    "gt": ({}, {"comparison": "gt"}),
    "raw-scores": ({}, {"enable_normalization": False}),
    "types": ({}, {"label_dtype": "uint8", "mask_dtype": "float32", "keep_raw": True}),
    "packed": ({}, {"layout": "packed"}),
    "sensitivity": ({}, {"adjustable": "sensitivity"}),
    "boundary": ({}, {"adjustable": "boundary"}),
    "no-guard": ({}, {"nan_guard": False}),
    "image-alone": ({}, {"levels": "image"}),
    "pixel-alone": ({}, {"levels": "pixel"}),
}


CHANGES: tuple[Change, ...] = (read_and_saved, at_opset_20, through_graphsurgeon)
BEHIND = [
    # each kind behind one conversion, and the plain one behind each; all others are slow
    pytest.param(
        change,
        options,
        id=f"{change.__name__}-{options}",
        marks=() if options == "plain" or place == index % 3 else pytest.mark.slow,
    )
    for index, options in enumerate(OPTIONS)
    for place, change in enumerate(CHANGES)
]


@pytest.mark.parametrize(("change", "options"), BEHIND)
def test_every_kind_of_tail_passes_behind_a_conversion(change: Change, options: str, tmp_path: Path) -> None:
    """With its record, and without it by the statistics: the same file, the same verdict."""
    host, tail = OPTIONS[options]
    if change is through_graphsurgeon and "adjustable" in tail:
        tail = {**tail, "adjustable": "nothing"}  # it makes constants of optional inputs: the test below
    path = change(attached(tmp_path, hosts.score_and_map(**host), **tail))
    report = checked(path) if options == "plain" else check_briefly(path)
    assert report, report.describe()
    rule = {key: value for key, value in tail.items() if key == "comparison"}
    bare = check_briefly(stripped(path), stats=STATS, **rule)
    assert bare, bare.describe()
    assert f"comparison {'gt (given)' if rule else 'ge (the default)'}" in bare.environment["file"]


def test_what_ovc_made_is_judged(tmp_path: Path) -> None:
    """The record of the ONNX file is found where the conversion put it; constants that it rounded are a miss."""
    path = attached(tmp_path)
    report = check_briefly(converted(path))
    assert report, report.describe()
    assert "it was converted from ONNX" in report.environment["file"]
    rounded = check_briefly(compressed(path))
    subjects = {"constants/pred_score", "tail/pred_score", "synthetic/tapped/pred_score"}
    assert {check.subject for check in rounded.failed} == subjects
    (cause,) = rounded.causes
    assert "the conversion compressed constants of the tail to float16" in cause.what
    assert cause.fix.startswith("convert with compress_to_fp16=False, or ")


def test_an_input_that_a_tool_made_a_constant_of_is_missed_in_onnx(tmp_path: Path) -> None:
    """The record promises an input that ONNX can have and the file has lost; converting to IR always freezes it."""
    path = attached(tmp_path, adjustable="sensitivity")
    frozen = check_briefly(read_and_saved(path))
    assert frozen, frozen.describe()
    assert "what adjusts the decision is a constant in this file" in frozen.environment["file"]
    report = check_briefly(through_graphsurgeon(path))
    assert {check.subject for check in report.failed} >= {"input/image_sensitivity", "input/pixel_sensitivity"}


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
def test_statistics_judge_a_file_without_a_record(ir: bool, tmp_path: Path) -> None:
    """What was attached with is given or assumed, and said; other statistics are a miss."""
    path = attached(tmp_path, image_sensitivity=0.3)
    path = stripped(read_and_saved(path) if ir else path)
    with pytest.raises(UnsupportedModelError, match=r"no record of a tail[\s\S]*attached with \(stats\)"):
        check_briefly(path)
    given = check_briefly(path, stats=STATS, image_sensitivity=0.3)
    assert given, given.describe()
    told = "image sensitivity 0.3 (given), pixel sensitivity 0.5 (the default), comparison ge (the default)"
    assert told in given.environment["file"]
    assumed = check_briefly(path, stats=STATS)
    assert {check.subject for check in assumed.failed} >= {"constants/pred_label", "tail/pred_label"}
    other = CalibrationStats(image=STATS.image, pixel=LevelStats(threshold=0.25, min=-0.25, max=0.625))
    wrong = check_briefly(path, stats=other, image_sensitivity=0.3)
    assert {check.subject for check in wrong.failed} >= {"constants/pred_mask", "constants/anomaly_map"}
    assert "constants/pred_label" not in {check.subject for check in wrong.failed}


def test_statistics_that_do_not_calibrate_the_file_are_refused(tmp_path: Path) -> None:
    """A level that the file decides needs statistics; a threshold that was borrowed is borrowed again."""
    path = stripped(attached(tmp_path))
    with pytest.raises(UsageError, match="does not calibrate the pixel level"):
        check_briefly(path, stats=CalibrationStats(image=STATS.image))
    half = CalibrationStats(image=STATS.image, pixel=LevelStats(threshold=None, min=-0.25, max=0.625))
    raw = hosts.write(hosts.score_and_map(), tmp_path / "raw.onnx")
    borrowed = attach_postprocessing(raw, half, match_thresholds=True, output=tmp_path / "borrowed.onnx").output
    report = check_briefly(stripped(borrowed), stats=half)
    assert report, report.describe()


def test_what_contradicts_a_record_is_refused_and_what_equals_it_is_accepted(tmp_path: Path) -> None:
    """The record is what the file was attached with: who gives something else means another file."""
    path = attached(tmp_path, image_sensitivity=0.3)
    STATS.save(tmp_path / "stats.json")
    assert check_briefly(
        path, stats=tmp_path / "stats.json", image_sensitivity=0.3, pixel_sensitivity=0.5, comparison="ge"
    )
    other = CalibrationStats(image=LevelStats(threshold=0.21, min=-1.0, max=0.75), pixel=STATS.pixel)
    for options, found in (
        ({"stats": other}, "threshold of the image level is 0.2"),
        ({"image_sensitivity": 0.5}, "image_sensitivity is 0.3 by the record, 0.5 as given"),
        ({"stats": STATS, "comparison": "gt"}, "comparison is ge by the record, gt as given"),
    ):
        with pytest.raises(UsageError, match=found):
            check_briefly(path, **options)
    with pytest.raises(MetadataError, match=r"image_sensitivity 1\.5: use 0 to 1"):
        check_briefly(path, stats=STATS, image_sensitivity=1.5)
