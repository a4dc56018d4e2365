"""`check.findings`: many failed checks, one cause each, at the stage where the fault lies."""

import pytest

from postproc_export.check.findings import Cause, Check, failed
from postproc_export.check.report import ParityReport

WAYS = ("onnxruntime", "openvino")


def missed(subject: str, *ways: str, **details: object) -> list[Check]:
    """Return a check that failed in some ways of running."""
    counted = {"count": 9, **details}
    message = f"{subject} is wrong"
    return [Check(name=f"{subject}/{way}", way=way, passed=False, message=message, details=counted) for way in ways]


def causes(*groups: list[Check], is_original: bool | None = None, **given: str) -> tuple[Cause, ...]:
    """Return the causes of these failures, each of which has to be explained by one."""
    checks = tuple(check for group in groups for check in group)
    found = ParityReport(subject="model.onnx", checks=checks, given=given, is_original=is_original).causes
    assert sorted(name for cause in found for name in cause.checks) == sorted({check.name for check in checks})
    return found


FLIPS = {"flipped": 3, "flips": ()}
RAW = missed("whole/raw/raw_map", *WAYS, largest_error=0.5, allowed=1e-4) + missed(
    "whole/raw/pred_mask", *WAYS, **FLIPS
)


def test_a_wrong_raw_file_is_one_cause() -> None:
    """Its name, by how much values differ and what flips, and the mend: the right file."""
    (cause,) = causes(RAW, missed("synthetic/raw/pred_mask", *WAYS, **FLIPS), raw="other.onnx", images="some")
    assert cause.stage == "model"
    assert cause.title == "does not decide as other.onnx"
    assert cause.what.startswith("other.onnx is another model than the one in front of the tail: ")
    assert cause.what.endswith("raw values differ by up to 0.5, 3 of 9 mask pixels flip")
    assert cause.command == "postproc-export check model.onnx --raw RAW --images some"


def test_a_raw_file_that_differs_little_is_the_model_converted_since() -> None:
    """Below 1 % of the span it is no other model: the model is to be attached to again."""
    (cause,) = causes(missed("whole/raw/raw_map", *WAYS, largest_error=0.009, allowed=1e-4), raw="raw.onnx")
    assert "another model" not in cause.what
    assert cause.command == "postproc-export attach raw.onnx --stats FILE -o model.onnx"
    (alone,) = causes(missed("synthetic/raw/pred_mask", *WAYS, **FLIPS))
    assert alone.title == "does not decide as the same file without its tail"


@pytest.mark.parametrize("error", [0.001, 0.5])
def test_the_content_tells_the_original_whatever_the_difference(error: float) -> None:
    """Known to be the original, it is attached to again; known to be another file, the right one is asked for."""
    missed_values = missed("whole/raw/raw_map", *WAYS, largest_error=error, allowed=1e-4)
    (changed,) = causes(missed_values, raw="raw.onnx", is_original=True)
    (other,) = causes(missed_values, raw="raw.onnx", is_original=False)
    assert changed.command == "postproc-export attach raw.onnx --stats FILE -o model.onnx"
    assert other.command == "postproc-export check model.onnx --raw RAW"


def test_a_tail_explains_what_its_outputs_fail_beside_the_original() -> None:
    """Where the output is wrong on its own raw value, the raw file and the PyTorch model are not to blame for it."""
    constants = [failed("constants/pred_mask", "boundary is 1 in the file, 2 by the record", fix="write it anew")]
    tapped = missed("whole/tapped/pred_mask", *WAYS, **FLIPS)
    others = missed("whole/raw/pred_mask", *WAYS, **FLIPS) + missed("whole/torch/pred_mask", *WAYS, **FLIPS)
    (cause,) = causes(constants, missed("tail/pred_mask", *WAYS, **FLIPS), tapped, others, raw="raw.onnx")
    assert (cause.stage, cause.fix) == ("tail", "write it anew")
    assert cause.what == "pred_mask: boundary is 1 in the file, 2 by the record"
    assert cause.command == "postproc-export update model.onnx"
    both = causes(constants, tapped, others, missed("whole/raw/pred_label", "openvino", **FLIPS), raw="raw.onnx")
    assert [cause.stage for cause in both] == ["tail", "model"]


def test_what_fails_alike_in_several_outputs_is_told_once() -> None:
    """The first is told, the others are named."""
    checks = [failed(f"constants/{name}", f"alpha of {name}") for name in ("pred_score", "anomaly_map", "pred_mask")]
    (cause,) = causes(checks)
    assert cause.what == "pred_score: alpha of pred_score; the like in anomaly_map, pred_mask"


def test_an_export_is_told_from_a_raw_file() -> None:
    """Where PyTorch and the attached file agree, the raw file is another one; else the export is wrong."""
    raw_values = missed("whole/torch/raw_map", *WAYS, largest_error=0.5, allowed=1e-4)
    decisions = missed("whole/torch/pred_mask", *WAYS, **FLIPS)
    (export,) = causes(raw_values, decisions, torch="nets:build", raw="raw.onnx")
    assert (export.stage, export.title) == ("export", "does not decide as nets:build")
    assert export.what.startswith("raw.onnx is not what nets:build computes: raw values differ by up to 0.5")
    assert "channel order" in export.fix
    (model,) = causes(raw_values, RAW, torch="nets:build", raw="other.onnx")
    assert model.stage == "model"
    (body,) = causes(decisions, RAW, torch="nets:build", raw="other.onnx")
    assert (body.stage, body.command) == ("model", "postproc-export attach other.onnx --stats FILE -o model.onnx")
    assert "another model" not in body.what
    two = causes(raw_values, decisions, RAW, torch="nets:build", raw="other.onnx")
    assert [cause.stage for cause in two] == ["model", "export"]


def test_a_file_that_does_not_run_at_some_size_is_a_cause_of_its_own() -> None:
    """Unless outputs or the tail alone show why: a frozen axis, or a tail that runs as little."""
    batch = missed("synthetic/batch", *WAYS) + missed("whole/batch", "openvino")
    (cause,) = causes(batch, raw="raw.onnx")
    assert (cause.stage, cause.title) == ("runtime", "does not run where its original does")
    assert cause.what == "batch in onnxruntime: synthetic/batch is wrong"
    assert [each.stage for each in causes(batch, [failed("outputs", "axis 0 is frozen")])] == ["tail"]
    assert [each.stage for each in causes(batch, missed("tail/pred_label", *WAYS, count=0))] == ["tail"]
    two = causes(batch, missed("tail/pred_label", *WAYS))
    assert [each.stage for each in two] == ["tail", "runtime"]


def test_a_custom_step_explains_what_stands_behind_it() -> None:
    """What is compared with the original goes through the step."""
    (cause,) = causes(missed("transform/anomaly_map", *WAYS), RAW)
    assert cause.stage == "step"
    (behind,) = causes(missed("decision/pred_mask", *WAYS))
    assert behind.stage == "step"


def test_a_record_that_is_gone_is_mended_by_the_statistics() -> None:
    """What nothing can be judged by is asked for."""
    (cause,) = causes([failed("record", "no entry", options={"stats": "FILE"})], raw="raw.onnx")
    assert cause.title == "has no record to be judged by"
    assert cause.command == "postproc-export check model.onnx --stats FILE"


def test_what_the_file_was_attached_with_is_asked_for_where_it_shows() -> None:
    """Options that the constants tell are named, of both levels; where they tell none, the statistics are wrong."""
    label = [failed("constants/pred_label", "boundary", options={"image_sensitivity": 0.7})]
    mask = [failed("constants/pred_mask", "boundary", options={"pixel_sensitivity": 0.4, "comparison": "gt"})]
    (cause,) = causes(label, mask, stats="stats.json")
    told = "--image-sensitivity 0.7 --pixel-sensitivity 0.4 --comparison gt"
    assert cause.fix == f"say what it was attached with: {told}"
    assert cause.command == f"postproc-export check model.onnx --stats stats.json {told}"
    (other,) = causes([failed("constants/pred_score", "alpha", options={})], stats="stats.json")
    assert other.fix == "give the statistics that it was attached with, or attach to the original with stats.json"


def test_every_requirement_of_a_program_is_a_cause_of_its_own() -> None:
    """Each has another mend, which is its own; no command mends it."""
    checks = [
        failed(f"anomalib/{name}", "found 1; needed 2", fix=f"mend the {name}", program="Anomalib")
        for name in ("inputs", "outputs")
    ]
    found = causes(checks)
    assert [(cause.stage, cause.title) for cause in found] == [("program", "does not fit Anomalib")] * 2
    assert [(cause.fix, cause.command) for cause in found] == [("mend the inputs", None), ("mend the outputs", None)]


@pytest.mark.parametrize("with_raw", [True, False], ids=["and-values", "alone"])
def test_what_changed_besides_the_tail_is_told_with_the_values(with_raw: bool) -> None:
    """The list of changes leads, and what they do to the raw values stands behind it."""
    changed = [failed("preserved", "1 changed: weight: values differ")]
    (cause,) = causes(changed, RAW if with_raw else [], preserved="raw.onnx")
    assert cause.what.startswith("1 changed: weight: values differ")
    assert ("raw values differ by up to 0.5" in cause.what) == with_raw
    assert cause.title == ("does not decide as raw.onnx" if with_raw else "is not raw.onnx with a tail")
    assert cause.command == "postproc-export attach raw.onnx --stats FILE -o model.onnx"
