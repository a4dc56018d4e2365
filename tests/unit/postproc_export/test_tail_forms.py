"""Packed, undecided, raw and one-level tails: attached, inspected, updated and taken off again, record or not."""

from pathlib import Path
from typing import Any

import hosts
import numpy as np
import pytest
from tail_forms import DETECTORS, FORMS, STATS, attached, converted, stripped

from postproc_export import attach_postprocessing, detach_postprocessing, inspect_model, update_postprocessing
from postproc_export.errors import UnsupportedModelError, UsageError
from postproc_export.runtimes import open_runner

FORMATS = pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
IMAGES = np.random.default_rng(0).integers(-64, 64, (1, 3, 8, 8)).astype(np.float32) / 64


def run(path: Path) -> dict[str, Any]:
    """Run a file on an image that float16 holds exactly."""
    return open_runner(path, threads=1).run({"input": IMAGES})


def assert_same_outputs(found: Path, expected: Path) -> None:
    """Two files have the same outputs in the same order, of the same types, with the same values."""
    ours, theirs = open_runner(found, threads=1), open_runner(expected, threads=1)
    assert [port.dtype for port in ours.outputs] == [port.dtype for port in theirs.outputs]
    values, wanted = ours.run({"input": IMAGES}), theirs.run({"input": IMAGES})
    for port, other in zip(ours.outputs, theirs.outputs, strict=True):
        assert port.answers_to(other.name), f"{port} is not {other}"
        np.testing.assert_array_equal(values[port.name], wanted[other.name])


def test_raw_scores_are_the_raw_values_with_labels_beside_them(tmp_path: Path) -> None:
    """Without normalisation scores and maps are the model's own, in float32; the decisions are the same as with it."""
    for dtype in ("float", "float16"):
        raw, path = attached(hosts.score_and_map(dtype=dtype), tmp_path, ir=False, enable_normalization=False)
        expected, found = run(raw), run(path)
        assert list(found) == ["pred_score", "pred_label", "anomaly_map", "pred_mask"]
        assert found["pred_score"].dtype == found["anomaly_map"].dtype == np.float32
        for name, label, threshold in (("pred_score", "pred_label", 0.5), ("anomaly_map", "pred_mask", 0.25)):
            np.testing.assert_array_equal(found[name], expected[name].astype(np.float32))
            np.testing.assert_array_equal(found[label], found[name] >= threshold)


def test_without_labels_scores_alone_are_there(tmp_path: Path) -> None:
    """The normalised scores are those of the whole tail."""
    host = hosts.score_and_map()
    found = run(attached(host, tmp_path, ir=False, enable_thresholding=False)[1])
    expected = run(attached(host, tmp_path, ir=False)[1])
    assert list(found) == ["pred_score", "anomaly_map"]
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected[name])


@pytest.mark.parametrize(
    ("level", "names"),
    [("image", ["pred_score", "pred_label", "anomaly_map"]), ("pixel", ["pred_score", "anomaly_map", "pred_mask"])],
)
def test_one_level_leaves_the_other_as_it_is(level: str, names: list[str], tmp_path: Path) -> None:
    """The other level's output is the raw one, bit for bit, and the result says that it was left out."""
    raw = hosts.write(hosts.score_and_map(), tmp_path / "raw.onnx")
    result = attach_postprocessing(raw, STATS, levels=level)  # type: ignore[arg-type]
    other = {"image": "anomaly_map", "pixel": "pred_score"}[level]
    found = run(result.output)
    assert list(found) == names
    np.testing.assert_array_equal(found[other], run(raw)[other])
    left = {"image": "pixel", "pixel": "image"}[level]
    assert result.tail.notes == (f"{left} level left out: '{other}' stays as it is, with no label or mask",)


def test_a_level_that_the_model_lacks_leaves_nothing(tmp_path: Path) -> None:
    """One level alone, of a model that has only the other, is nothing to attach."""
    with pytest.raises(UsageError, match=r"nothing to attach.*\n.*in the model: image; wanted: pixel"):
        attached(hosts.score_only(), tmp_path, ir=False, levels="pixel")


@pytest.mark.parametrize("name", ["label_dtype", "mask_dtype", "image_sensitivity", "comparison"])
def test_what_concerns_labels_is_refused_without_labels(name: str, tmp_path: Path) -> None:
    """An option that would have no effect is refused by attaching, and by an update that gives it."""
    value = {"label_dtype": "uint8", "mask_dtype": "uint8", "image_sensitivity": 0.3, "comparison": "gt"}[name]
    options: dict[str, Any] = {name: value}
    message = f"{name}=.* would have no effect\n.*labels and masks are switched off"
    with pytest.raises(UsageError, match=message):
        attached(hosts.score_and_map(), tmp_path, ir=False, enable_thresholding=False, **options)
    _, path = attached(hosts.score_and_map(), tmp_path, ir=False, **options)
    with pytest.raises(UsageError, match=message):
        update_postprocessing(path, enable_thresholding=False, **options)
    assert update_postprocessing(path, enable_thresholding=False).output is not None


@FORMATS
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("host", DETECTORS)
def test_the_original_comes_back(host: str, form: str, ir: bool, tmp_path: Path) -> None:
    """By its record, byte for byte."""
    raw, path = attached(DETECTORS[host](), tmp_path, ir=ir, **FORMS[form])
    result = detach_postprocessing(path, output=tmp_path / f"back{path.suffix}")
    assert result.is_original, result.notes
    assert result.output is not None
    assert result.output.read_bytes() == raw.read_bytes()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("host", DETECTORS)
@pytest.mark.parametrize("how", ["onnx-stripped", "ir-stripped", "converted"])
def test_without_its_record_the_tail_is_found_by_its_steps(how: str, host: str, form: str, tmp_path: Path) -> None:
    """Detaching gives the raw outputs back, under their names and in their order; attaching again is refused."""
    raw, path = attached(DETECTORS[host](), tmp_path, ir=how == "ir-stripped", **FORMS[form])
    changed = converted(path) if how == "converted" else stripped(path)
    with pytest.raises(UnsupportedModelError, match="has post-processing already"):
        attach_postprocessing(changed, STATS)
    result = detach_postprocessing(changed)
    assert result.output is not None
    assert not result.is_original
    assert_same_outputs(result.output, raw)


@FORMATS
@pytest.mark.parametrize("form", FORMS)
def test_inspection_shows_the_form(form: str, ir: bool, tmp_path: Path) -> None:
    """Where the parts stand, and what is switched off; the levels that are there are certain."""
    _, path = attached(hosts.score_and_map(), tmp_path, ir=ir, **FORMS[form])
    result = inspect_model(path)
    summary = result.summary()
    expected = {
        "packed": "tail at output[..., 1] and output[..., 2], read from the file",
        "raw-scores": "normalisation is switched off: the score is the raw value",
        "raw-scores-unguarded": "normalisation is switched off",
        "no-labels": "labels are switched off",
        "image-level": "  pixel    raw at anomaly_map",
        "pixel-level": "  image    raw at pred_score",
    }
    assert expected[form] in summary
    reports = [report for report in result.levels.values() if report is not None and report.tail != "none"]
    assert len(reports) == (1 if form.endswith("-level") else 2)
    assert all(report.certain for report in reports)
    assert all((report.boundary is None) is (form == "no-labels") for report in reports)
    assert {report.layout for report in reports} == {"packed" if form == "packed" else "separate"}


def test_inspection_of_a_stripped_file_says_what_is_known(tmp_path: Path) -> None:
    """Where scores stay raw, only the boundary is in the file; without labels only threshold and span."""
    path = stripped(attached(hosts.score_and_map(), tmp_path, ir=False, enable_normalization=False)[1])
    report = inspect_model(path).levels["image"]
    assert report is not None
    assert (report.boundary, report.threshold, report.span, report.certain) == (0.5, None, None, False)
    path = stripped(attached(hosts.score_and_map(), tmp_path, ir=False, enable_thresholding=False)[1])
    report = inspect_model(path).levels["image"]
    assert report is not None
    assert (report.boundary, report.comparison, report.threshold, report.span) == (None, None, 0.5, 2.0)


@FORMATS
@pytest.mark.parametrize("form", FORMS)
def test_an_update_gives_what_attaching_in_that_form_gives(form: str, ir: bool, tmp_path: Path) -> None:
    """From four outputs to every form and back: the files that attaching writes, byte for byte."""
    changes = dict(FORMS[form])
    raw, plain = attached(hosts.score_and_map(), tmp_path, ir=ir, label_dtype="bool")
    target = tmp_path / f"updated{plain.suffix}"
    result = update_postprocessing(plain, output=target, **changes)
    assert result.is_changed
    mask: dict[str, Any] = {} if form == "packed" else {"mask_dtype": "uint8" if ir else "bool"}
    if form == "no-labels":
        mask = {}
    attach_postprocessing(raw, STATS, output=tmp_path / f"fresh{plain.suffix}", **changes, **mask)
    assert_same_outputs(target, tmp_path / f"fresh{plain.suffix}")
    back = {
        "layout": "separate",
        "levels": "both",
        "enable_normalization": True,
        "enable_thresholding": True,
        "nan_guard": True,
    }
    update_postprocessing(target, output=tmp_path / f"again{plain.suffix}", stats=STATS, **back)
    assert_same_outputs(tmp_path / f"again{plain.suffix}", plain)
    detached = detach_postprocessing(tmp_path / f"again{plain.suffix}")
    assert detached.is_original


def test_an_update_within_a_form_keeps_it(tmp_path: Path) -> None:
    """A new sensitivity of a packed file is a packed file; the summary shows a change of form."""
    raw, path = attached(hosts.score_and_map(), tmp_path, ir=False, layout="packed")
    target = tmp_path / "stricter.onnx"
    result = update_postprocessing(path, output=target, image_sensitivity=0.25)
    assert "sensitivity 0.5 -> 0.25" in result.summary()
    fresh = attach_postprocessing(raw, STATS, layout="packed", image_sensitivity=0.25, output=tmp_path / "fresh.onnx")
    assert target.read_bytes() == fresh.output.read_bytes()
    assert "layout   packed -> separate" in update_postprocessing(path, layout="separate").summary()
    assert "labels   on -> off" in update_postprocessing(path, layout="separate", enable_thresholding=False).summary()


def test_a_damaged_packing_is_not_taken_off(tmp_path: Path) -> None:
    """Where the record promises a packed output and the steps are others, nothing is removed."""
    import onnx

    _, path = attached(hosts.score_and_map(), tmp_path, ir=False, layout="packed")
    model = onnx.load(path)
    next(node for node in model.graph.node if node.op_type == "Transpose").attribute[0].ints[:] = [0, 3, 2, 1]
    with pytest.raises(UnsupportedModelError, match=r"tail is not as it was attached\n.*expected perm \(0, 2, 3, 1\)"):
        detach_postprocessing(hosts.write(model, path))


def test_a_score_of_the_models_own_is_no_tail(tmp_path: Path) -> None:
    """A clipped and scaled output without a label is ours only by its names: a model may end so itself."""
    model = hosts.parse(
        "g (float[N,1] score) => (float[N,1] pred_score) { pred_score = HardSigmoid<alpha = 0.5, beta = 0.25>(score) }"
    )
    result = attach_postprocessing(hosts.write(model, tmp_path / "own.onnx"), STATS)
    assert result.output_names == ("pred_score", "pred_label")
