"""Updating: what was asked for changes, everything else stays, and it is told in numbers."""

from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import pytest
from anomalib_files import EXPECTED, FOLDER, UNKNOWN, Case, case_of, files, is_folded

from postproc_export.attach import attach_postprocessing
from postproc_export.detach import detach_postprocessing
from postproc_export.errors import FileError, MetadataError, UsageError
from postproc_export.inspect import inspect_model
from postproc_export.runtimes import open_runner
from postproc_export.stats import CalibrationStats, LevelStats, decision_boundary, unit_scores
from postproc_export.update import update_postprocessing

CURVE = {"threshold": [0.1, 0.2, 0.5, 0.7, 0.95], "tp": [2, 2, 2, 1, 1], "fp": [3, 2, 1, 0, 0]}
IMAGE = LevelStats(threshold=0.5, min=0.0, max=2.0, n_normal=3, n_anomalous=2, details={"curve": CURVE})
PIXEL = LevelStats(threshold=0.25, min=-1.0, max=1.0)
STATS = CalibrationStats(image=IMAGE, pixel=PIXEL)
SUFFIXES = pytest.mark.parametrize("suffix", [".onnx", ".xml"])


def attached(folder: Path, name: str = "attached", *, suffix: str = ".onnx", **options: Any) -> Path:
    """Attach to a host and return the file."""
    host, target = folder / f"host{suffix}", folder / f"{name}{suffix}"
    if not host.exists():  # a conversion numbers its operators anew each time
        hosts.write(hosts.score_and_map(), host)
    attach_postprocessing(host, options.pop("stats", STATS), output=target, **options)
    return target


@SUFFIXES
@pytest.mark.parametrize(
    "options",
    [
        {"image_sensitivity": 0.3},
        {"pixel_sensitivity": 0.0, "comparison": "gt"},
        {"label_dtype": "uint8", "mask_dtype": "float32"},
        {"keep_raw": True, "nan_guard": False},
    ],
    ids=lambda options: "-".join(options),
)
def test_an_update_is_what_attaching_with_the_new_options_gives(
    options: dict[str, Any], suffix: str, tmp_path: Path
) -> None:
    """Byte by byte: everything that was not asked for stays."""
    path = attached(tmp_path, suffix=suffix)
    expected = attached(tmp_path, "expected", suffix=suffix, **options)
    result = update_postprocessing(path, output=tmp_path / f"out{suffix}", **options)
    assert result.is_changed
    assert (tmp_path / f"out{suffix}").read_bytes() == expected.read_bytes()


@SUFFIXES
def test_an_update_that_changes_nothing_says_so(suffix: str, tmp_path: Path) -> None:
    """Nothing is written, and no folder for it is made."""
    path = attached(tmp_path, suffix=suffix, image_sensitivity=0.3)
    result = update_postprocessing(
        path, output=tmp_path / f"new/out{suffix}", image_sensitivity=0.3, image_threshold=0.5
    )
    assert (bool(result), result.is_changed, result.output) == (True, False, None)
    assert result.summary().startswith(f"nothing to change in {path}: it decides so already")
    assert not (tmp_path / "new").exists()


@SUFFIXES
def test_an_update_without_an_option_is_refused_where_it_has_nothing_to_do(suffix: str, tmp_path: Path) -> None:
    """Where the file is to go is no option of what it decides; what is not as recorded is mended without one."""
    path = attached(tmp_path, suffix=suffix)
    message = r"^nothing to change: give an option\n  found: .*\n  fix: .*update .*--image-sensitivity"
    for where in ({}, {"output": tmp_path / f"out{suffix}"}, {"in_place": True}):
        with pytest.raises(UsageError, match=message):
            update_postprocessing(path, **where)  # type: ignore[arg-type]
    assert not (tmp_path / f"out{suffix}").exists()


@SUFFIXES
@pytest.mark.parametrize(("given", "normalized", "raw"), [(0.9, False, 0.9), (0.7, True, 0.9)])
def test_a_threshold_is_raw_or_normalised(
    given: float, normalized: bool, raw: float, suffix: str, tmp_path: Path
) -> None:
    """A normalised one is a score that the file gives now; the range stays."""
    path = attached(tmp_path, suffix=suffix)
    result = update_postprocessing(path, output=tmp_path / f"out{suffix}", image_threshold=given, normalized=normalized)
    report = inspect_model(tmp_path / f"out{suffix}").levels["image"]
    assert report is not None
    assert report.threshold == pytest.approx(raw, rel=1e-6)
    assert (report.min, report.max, report.boundary) == (0.0, 2.0, report.threshold)
    assert "threshold 0.5 -> 0.9" in result.summary()
    assert detach_postprocessing(tmp_path / f"out{suffix}", output=tmp_path / f"raw{suffix}").is_original
    assert (tmp_path / f"raw{suffix}").read_bytes() == (tmp_path / f"host{suffix}").read_bytes()


def test_the_summary_counts_validation_samples(tmp_path: Path) -> None:
    """Where the statistics hold a curve, the summary tells how many samples change sides."""
    path = attached(tmp_path)
    summary = update_postprocessing(path, output=tmp_path / "out.onnx", image_threshold=0.6).summary()
    assert "of the 5 validation images 1 are called anomalous (were 3): 1 of 2 anomalous and 0 of 3 normal" in summary


def test_new_statistics_take_the_place_of_the_old(tmp_path: Path) -> None:
    """A level that they do not calibrate goes back to its raw output, and that is noted."""
    new = CalibrationStats(image=LevelStats(threshold=1.5, min=1.0, max=3.0))
    new.save(tmp_path / "new.json")
    result = update_postprocessing(attached(tmp_path), output=tmp_path / "out.onnx", stats=tmp_path / "new.json")
    expected = attached(tmp_path, "expected", stats=new, mask_dtype="bool")
    assert (tmp_path / "out.onnx").read_bytes() == expected.read_bytes()
    assert "pixel level not calibrated" in result.summary()


@SUFFIXES
def test_a_model_without_a_tail_is_left_alone(suffix: str, tmp_path: Path) -> None:
    """The result is falsy and nothing is written."""
    attached(tmp_path, suffix=suffix)
    result = update_postprocessing(tmp_path / f"host{suffix}", output=tmp_path / f"o{suffix}", image_threshold=1.0)
    assert not result
    assert result.summary().startswith(f"host{suffix} has no post-processing; found: raw outputs ")
    assert not (tmp_path / f"o{suffix}").exists()


@SUFFIXES
def test_in_place_has_to_be_asked_for(suffix: str, tmp_path: Path) -> None:
    """As for every command that writes."""
    path = attached(tmp_path, suffix=suffix)
    with pytest.raises(FileError, match="in_place=True"):
        update_postprocessing(path, output=path, image_sensitivity=0.25)
    update_postprocessing(path, in_place=True, image_sensitivity=0.25)
    report = inspect_model(path).levels["image"]
    assert report is not None
    assert report.sensitivity == 0.25


def test_a_threshold_without_a_range_is_refused(tmp_path: Path) -> None:
    """A level that was never calibrated has no range that a threshold could be in."""
    path = attached(tmp_path, stats=CalibrationStats(image=IMAGE))
    with pytest.raises(UsageError, match="pixel level cannot be set: its range is not in the file"):
        update_postprocessing(path, output=tmp_path / "out.onnx", pixel_threshold=1.0)


def test_illegal_changes_are_refused(tmp_path: Path) -> None:
    """What attaching refuses, updating does; nothing is written."""
    path = attached(tmp_path)
    with pytest.raises(MetadataError, match=r"image_sensitivity 1\.5: use 0 to 1"):
        update_postprocessing(path, output=tmp_path / "out.onnx", image_sensitivity=1.5)
    with pytest.raises(UsageError, match=r"image_threshold.nan: use a finite number"):
        update_postprocessing(path, output=tmp_path / "out.onnx", image_threshold=float("nan"))
    with pytest.raises(UsageError, match="there is no other dialect to keep"):
        update_postprocessing(path, output=tmp_path / "out.onnx", keep_dialect=True, image_threshold=1.0)
    assert not (tmp_path / "out.onnx").exists()


def run_edge(path: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Run a post-processor on raw scores around its threshold and over its range."""
    scores = np.concatenate([np.linspace(-5, 25, 301), np.float32(5.344675) + np.arange(-9, 10) * 2.0**-21])
    scores = scores.astype(np.float32)
    runner = open_runner(path)
    maps = scores[:, None, None, None].repeat(19, axis=3)
    feeds = {port.name: maps if port.rank == 4 else scores for port in runner.inputs}
    return runner.run(feeds), scores


def level_of(case: Case) -> LevelStats:
    """Return statistics that decide as a case does."""
    assert case.span is not None
    return LevelStats(threshold=case.threshold, min=0.0, max=case.span)


@pytest.mark.parametrize(
    "path", [path for path in files() if case_of(path) not in (*UNKNOWN, "zero_range")], ids=lambda path: path.name
)
def test_anomalibs_tail_is_replaced_by_ours_with_the_same_rule(path: Path, tmp_path: Path) -> None:
    """Sensitivities 0.3 and 0.7 decide as Anomalib's eager code would with them: rule gt on the same statistics."""
    target = tmp_path / f"out{path.suffix}"
    result = update_postprocessing(path, output=target, image_sensitivity=0.3, pixel_sensitivity=0.7)
    assert "was replaced by ours" in result.summary()
    outputs, scores = run_edge(target)
    image, pixel = (level_of(case) for case in EXPECTED[case_of(path)])
    exact = not is_folded(path)
    for name, values, level, sensitivity in (
        ("pred_label", scores, image, 0.3),
        ("pred_mask", scores[:, None, None, None].repeat(19, axis=3), pixel, 0.7),
    ):
        expected = values >= np.float32(decision_boundary(level, sensitivity=sensitivity, comparison="gt"))
        assert (outputs[name] != expected).sum() == 0 if exact else (outputs[name] != expected).mean() < 0.02
    np.testing.assert_allclose(outputs["pred_score"], unit_scores(scores, image), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "path", [path for path in files() if case_of(path) not in (*UNKNOWN, "no_thr")], ids=lambda path: path.name
)
def test_anomalibs_constants_are_edited_in_place(path: Path, tmp_path: Path) -> None:
    """`keep_dialect` changes sensitivity and threshold, and inspecting the file finds them."""
    target = tmp_path / f"out{path.suffix}"
    changes: dict[str, Any] = {"image_sensitivity": 0.3, "pixel_sensitivity": 0.7}
    if case_of(path) != "zero_range":
        changes["image_threshold"] = 4.9
    result = update_postprocessing(path, output=target, keep_dialect=True, **changes)
    assert result.is_changed
    if path.suffix == ".onnx":
        onnx.checker.check_model(str(target), full_check=True)
        kept = {item.name for item in onnx.load(path).graph.node} - {item.name for item in onnx.load(target).graph.node}
        assert all(name.startswith(("/p/IsNaN", "/p/Where", "/p/ConstantOfShape", "Identity")) for name in kept)
    before, after = inspect_model(path), inspect_model(target)
    for level, sensitivity in (("image", 0.3), ("pixel", 0.7)):
        old, new = before.levels[level], after.levels[level]  # type: ignore[index]
        assert old is not None
        assert new is not None
        assert new.tail == "anomalib"
        assert new.sensitivity == np.float32(sensitivity)
        assert new.span == old.span
        wanted = 4.9 if level == "image" and "image_threshold" in changes else old.threshold
        assert new.threshold == wanted or new.threshold == pytest.approx(wanted, abs=2e-6)
    open_runner(target)


@pytest.mark.parametrize("name", ["270_no_norm_dynamo.onnx", "262_no_minmax_legacy.xml"])
def test_a_raw_comparison_is_edited_where_the_range_is_not_known(name: str, tmp_path: Path) -> None:
    """Ours cannot take the place of a tail whose range is unknown: its one constant is set, and that is said."""
    target = tmp_path / f"out{Path(name).suffix}"
    result = update_postprocessing(FOLDER / name, output=target, image_threshold=4.9)
    assert "its constants were edited in place" in result.summary()
    assert "image level: what the label compares with is now 4.9, not 0.5" in result.summary()
    outputs, scores = run_edge(target)
    np.testing.assert_array_equal(outputs["pred_label"], scores > np.float32(4.9))
    stats = CalibrationStats(image=IMAGE, pixel=PIXEL)
    replaced = update_postprocessing(FOLDER / name, output=target, stats=stats)
    assert replaced.is_changed
    report = inspect_model(target).levels["image"]
    assert report is not None
    assert (report.tail, report.threshold) == ("postproc_export", 0.5)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("262_no_norm_legacy.onnx", {"image_threshold": float("nan")}, "^image_threshold.*: use a finite number"),
        ("262_no_minmax_legacy.xml", {"pixel_threshold": 1e39}, "^pixel_threshold.*: use a finite number"),
        ("262_zero_range_legacy.onnx", {"image_threshold": float("-inf")}, "^image_threshold.*: use a finite number"),
        ("262_no_norm_legacy.onnx", {"image_threshold": 4.9, "image_sensitivity": 0.3}, "a sensitivity beside"),
        ("270_no_norm_dynamo.xml", {"image_threshold": 0.4, "normalized": True}, "normalized=True"),
    ],
)
def test_what_one_constant_cannot_say_is_refused(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """A threshold that nothing reaches or exceeds is never written, and no option is skipped beside another."""
    target = tmp_path / f"out{Path(name).suffix}"
    with pytest.raises(UsageError, match=message):
        update_postprocessing(FOLDER / name, output=target, **changes)
    assert not target.exists()


def test_the_summary_says_nothing_that_its_numbers_contradict(tmp_path: Path) -> None:
    """What replaces Anomalib's tail under other statistics is not said to have its threshold and span."""
    stats = CalibrationStats(image=IMAGE, pixel=PIXEL)
    text = update_postprocessing(FOLDER / "262_default_legacy.onnx", output=tmp_path / "o.onnx", stats=stats).summary()
    assert "threshold 5.344675 -> 0.5" in text
    assert "with its threshold" not in text


def test_a_shared_constant_is_cloned(tmp_path: Path) -> None:
    """The one 0.5 of a 2.7.0 export is bias, degenerate value and cut at once: only the cut changes."""
    target = tmp_path / "out.onnx"
    update_postprocessing(FOLDER / "270_default_dynamo.onnx", output=target, keep_dialect=True, image_sensitivity=0.25)
    before, after = onnx.load(FOLDER / "270_default_dynamo.onnx"), onnx.load(target)
    assert [node.name for node in before.graph.node] == [node.name for node in after.graph.node]
    changed = [
        (old.name, list(new.input)) for old, new in zip(before.graph.node, after.graph.node, strict=True) if old != new
    ]
    assert changed == [("node_gt_2", ["pred_score", "postproc/sub_26_1"])]
    assert list(before.graph.initializer) == list(after.graph.initializer)[:-1]


def test_options_without_a_constant_are_refused_in_a_kept_dialect(tmp_path: Path) -> None:
    """Anomalib's rule and types have no constant that could be edited."""
    path = FOLDER / "270_default_dynamo.onnx"
    with pytest.raises(UsageError, match="comparison cannot change while Anomalib's post-processing is kept"):
        update_postprocessing(path, output=tmp_path / "out.onnx", keep_dialect=True, comparison="ge")
    with pytest.raises(UsageError, match="has no constant for cut"):
        update_postprocessing(
            FOLDER / "270_no_thr_dynamo.onnx", output=tmp_path / "out.onnx", keep_dialect=True, image_sensitivity=0.3
        )
