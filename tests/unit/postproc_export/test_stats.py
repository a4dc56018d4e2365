"""Calibration statistics: what is legal, and the file they are kept in."""

import json
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from postproc_export.errors import FileError, MetadataError
from postproc_export.stats import MAX_SPAN, MIN_SPAN, CalibrationStats, LevelStats

LEVEL = LevelStats(
    threshold=5.344675, min=3.243398, max=12.298708, policy="f1", rule="f1", n_normal=60, n_anomalous=20, n_dropped=1
)
RANGE_ONLY = LevelStats(threshold=None, min=0.0, max=2.0)


def document(**changes: Any) -> dict[str, Any]:
    """Return a statistics document with a legal image level, changed as asked."""
    return {"schema_version": 1, "image": {"threshold": 1.5, "min": 0.0, "max": 2.0, **changes}, "pixel": None}


def write(path: Path, text: str) -> Path:
    """Write a text and return its path."""
    path.write_text(text, encoding="utf-8")
    return path


# --- one level


def test_numbers_are_rounded_to_float32() -> None:
    """Every number is the float32 that it rounds to, and -0.0 is 0.0."""
    level = LevelStats(threshold=0.1, min=-0.0, max=np.float64(0.7))
    assert (level.threshold, level.max) == (0.10000000149011612, 0.699999988079071)
    assert not np.signbit(level.min)
    assert level.span == level.max
    assert [type(value) for value in (level.threshold, level.min, level.max)] == [float] * 3


def test_span_is_rounded_to_float32() -> None:
    """The span is the float32 difference, not the exact one."""
    assert LevelStats(threshold=0.0, min=-1e-8, max=1.0).span == 1.0


@pytest.mark.parametrize(
    "level",
    [
        pytest.param({"threshold": 9.0, "min": 0.0, "max": 1.0}, id="threshold-above"),
        pytest.param({"threshold": -9.0, "min": 0.0, "max": 1.0}, id="threshold-below"),
        pytest.param({"threshold": 0, "min": np.int64(-2), "max": np.float16(1)}, id="other-number-types"),
        pytest.param({"threshold": 0.0, "min": 0.0, "max": MIN_SPAN}, id="smallest-span"),
        pytest.param({"threshold": 0.0, "min": 0.0, "max": MAX_SPAN}, id="largest-span"),
        pytest.param({"threshold": 3e38, "min": 3e38, "max": 3.3e38}, id="far-from-zero"),
    ],
)
def test_legal_levels(level: dict[str, Any]) -> None:
    """The threshold may lie anywhere; the span anywhere in [2^-75, 2^126]."""
    assert LevelStats(**level).is_calibrated


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"threshold": float("nan")}, "threshold is not a finite float32", id="nan"),
        pytest.param({"max": float("inf")}, "max is not a finite float32", id="inf"),
        pytest.param({"min": -1e39}, "min is not a finite float32", id="beyond-float32"),
        pytest.param({"max": 10**400}, "max is not a finite float32\n.*integer of 1329 bits", id="huge-integer"),
        pytest.param({"max": -(10**5000)}, "max is not a finite float32\n.*integer of", id="unprintable-integer"),
        pytest.param({"threshold": True}, "threshold is not a number\n.*True", id="bool"),
        pytest.param({"threshold": np.True_}, "threshold is not a number", id="numpy-bool"),
        pytest.param({"min": "0"}, "min is not a number\n.*'0'", id="text"),
        pytest.param({"min": None}, "min is not a number\n.*None", id="none"),
        pytest.param({"max": [1] * 99}, r"max is not a number\n.*\[1, 1, .*\.\.\.$", id="long-list"),
        pytest.param({"max": 0.0}, r"the range \[0\.0, 0\.0\] is empty", id="empty"),
        pytest.param({"max": -1.0}, "is empty\n.*min < max", id="swapped"),
        pytest.param({"min": 1.0, "max": 1.0 + 1e-12}, "is empty", id="empty-after-rounding"),
        pytest.param(
            {"max": float(np.nextafter(np.float32(MIN_SPAN), np.float32(0)))}, "the span", id="span-too-small"
        ),
        pytest.param(
            {"max": float(np.nextafter(np.float32(MAX_SPAN), np.float32(np.inf)))}, "the span", id="too-large"
        ),
        pytest.param({"min": -3e38, "max": 3e38}, "the span max - min is inf", id="span-overflows"),
        pytest.param({"policy": 3}, "policy is not a text", id="policy"),
        pytest.param({"rule": False}, "rule is not a text", id="rule"),
        pytest.param({"n_normal": -1}, "n_normal is not a count", id="negative-count"),
        pytest.param({"n_anomalous": 1.0}, "n_anomalous is not a count", id="float-count"),
        pytest.param({"n_dropped": True}, "n_dropped is not a count", id="bool-count"),
        pytest.param({"details": {"rule": 1, "max": 2}}, "name of a field\n.*'max', 'rule'", id="reserved-detail"),
    ],
)
def test_illegal_levels_are_refused(changes: dict[str, Any], message: str) -> None:
    """What the definition does not allow is refused when the level is made, with the reason."""
    with pytest.raises(MetadataError, match=message):
        LevelStats(**{"threshold": 0.5, "min": 0.0, "max": 1.0, **changes})


def test_limits_of_the_span() -> None:
    """The limits are powers of two: 2^-75, below which 1 / span overflows, and 2^126, above which it is subnormal."""
    assert (MIN_SPAN, MAX_SPAN) == (2.0**-75, 2.0**126)


def test_a_level_without_threshold_is_not_calibrated() -> None:
    """A range alone is legal, and not calibrated; a threshold of 0 is a threshold."""
    assert not RANGE_ONLY.is_calibrated
    assert LevelStats(threshold=0.0, min=0.0, max=2.0).is_calibrated


def test_statistics_cannot_be_changed() -> None:
    """What was validated stays as it was."""
    with pytest.raises(FrozenInstanceError):
        LEVEL.min = 9.0  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        CalibrationStats().image = LEVEL  # type: ignore[misc]


# --- thresholds that are borrowed


def test_matching_borrows_the_other_threshold() -> None:
    """A level with a range but no threshold takes the other level's, and says from where; nothing else changes."""
    matched = CalibrationStats(image=LEVEL, pixel=RANGE_ONLY, details={"runtime": "x"}).with_matched_thresholds()
    assert matched.image == LEVEL
    assert matched.pixel == LevelStats(threshold=LEVEL.threshold, min=0.0, max=2.0, rule="matched_image")
    assert matched.details == {"runtime": "x"}
    mirrored = CalibrationStats(image=RANGE_ONLY, pixel=LEVEL).with_matched_thresholds()
    assert mirrored.image == LevelStats(threshold=LEVEL.threshold, min=0.0, max=2.0, rule="matched_pixel")
    assert mirrored.pixel == LEVEL


@pytest.mark.parametrize(
    "stats",
    [
        pytest.param(CalibrationStats(), id="none"),
        pytest.param(CalibrationStats(image=LEVEL), id="image"),
        pytest.param(CalibrationStats(image=LEVEL, pixel=LevelStats(threshold=0.0, min=0.0, max=2.0)), id="both"),
    ],
)
def test_matching_leaves_thresholds_alone(stats: CalibrationStats) -> None:
    """A level with a threshold, 0 included, keeps it, and a level that is not there stays away."""
    assert stats.with_matched_thresholds() == stats


@pytest.mark.parametrize("other", [None, RANGE_ONLY], ids=["no-level", "no-threshold"])
def test_matching_needs_a_threshold_to_borrow(other: LevelStats | None) -> None:
    """Where the other level has none to lend, matching is refused, naming the level."""
    with pytest.raises(MetadataError, match="the image level has a range but no threshold"):
        CalibrationStats(image=RANGE_ONLY, pixel=other).with_matched_thresholds()


def test_matching_names_the_pixel_level() -> None:
    """The level that lacks a threshold is named, whichever it is."""
    with pytest.raises(MetadataError, match="the pixel level has a range but no threshold"):
        CalibrationStats(pixel=RANGE_ONLY).with_matched_thresholds()


# --- the file


def test_json_round_trip() -> None:
    """Writing and reading gives equal statistics: numbers to the bit, counts, and what else was recorded."""
    stats = CalibrationStats(
        image=LEVEL,
        pixel=LevelStats(threshold=None, min=-1e-30, max=1 / 3, details={"curve": [1, 2]}),
        details={"preprocessing": {"size": [8, 8]}, "note": "\u00e9"},
    )
    assert CalibrationStats.from_json(json.loads(stats.dumps())) == stats


def test_json_form() -> None:
    """The document has the definition's keys, floats as shortest decimals, and no key for what is unknown."""
    stats = CalibrationStats(image=LevelStats(threshold=0.1, min=0.0, max=0.7, details={"x": 1}), details={"y": 2})
    assert stats.to_json() == {
        "schema_version": 1,
        "image": {"threshold": 0.1, "min": 0.0, "max": 0.7, "n_dropped": 0, "x": 1},
        "pixel": None,
        "y": 2,
    }
    assert stats.dumps().startswith('{\n  "schema_version": 1,\n')
    assert stats.dumps().endswith("}\n")
    assert LEVEL.to_json()["policy"] == LEVEL.to_json()["rule"] == "f1"


def test_unknown_keys_are_kept() -> None:
    """A reader keeps what it does not know, at both places, and takes null counts for unknown ones."""
    stats = CalibrationStats.from_json({**document(extra=1, n_normal=None, n_dropped=None), "more": 2})
    assert stats.image is not None
    assert (stats.image.details, stats.details) == ({"extra": 1}, {"more": 2})
    assert (stats.image.n_normal, stats.image.n_dropped) == (None, 0)


THRESHOLDS = {"image_threshold": 1.5, "pixel_threshold": 0.25}
SCORES = {"pred_scores.min": 0.5, "pred_scores.max": 3.0}


@pytest.mark.parametrize(
    ("numbers", "image", "pixel"),
    [
        ({**THRESHOLDS, "min": 0.0, "max": 2.0}, (1.5, 0.0, 2.0), (0.25, 0.0, 2.0)),
        ({**THRESHOLDS, **SCORES, "anomaly_maps.min": 0.0, "anomaly_maps.max": 1.0}, (1.5, 0.5, 3.0), (0.25, 0.0, 1.0)),
        ({**THRESHOLDS, **SCORES}, (1.5, 0.5, 3.0), None),
        ({"image_threshold": 1.5, "min": 0.0, "max": 2.0}, (1.5, 0.0, 2.0), None),
    ],
    ids=["one-range", "a-range-each", "scores-alone", "image-alone"],
)
def test_the_metadata_of_anomalib_1_is_read(numbers: Any, image: Any, pixel: Any) -> None:
    """Its thresholds and ranges, in raw units; a level that lacks one of its numbers is not calibrated."""
    stats = CalibrationStats.from_json({"task": "segmentation", "transform": {}, **numbers})
    for level, expected in ((stats.image, image), (stats.pixel, pixel)):
        assert (level and (level.threshold, level.min, level.max)) == expected


@pytest.mark.parametrize("level", ["image", "pixel"])
def test_level_by_name(level: Any) -> None:
    """A level can be had by its name."""
    assert CalibrationStats(**{level: LEVEL}).level(level) == LEVEL
    assert CalibrationStats(**{level: LEVEL}).level("pixel" if level == "image" else "image") is None


def test_details_cannot_replace_a_level() -> None:
    """A detail that bears the name of a level is refused: it would overwrite it in the file."""
    with pytest.raises(MetadataError, match=r"name of a field\n.*'image', 'schema_version'"):
        CalibrationStats(details={"image": 1, "schema_version": 2})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("[]", "not a JSON object", id="list"),
        pytest.param(
            '{"image": null}', "no statistics that are known\n.*image(.*\n)*.*schema_version", id="no-version"
        ),
        pytest.param("{}", r"no statistics that are known\n.*the keys \(none\)", id="empty-object"),
        pytest.param('{"image_threshold": 1}', "no statistics that are known", id="anomalib-without-range"),
        pytest.param('{"image_threshold": 1, "min": 2, "max": 2}', "image: the range .* is empty", id="anomalib-range"),
        pytest.param('{"schema_version": 2}', "unknown schema_version\n.*2", id="newer-version"),
        pytest.param('{"schema_version": true}', "unknown schema_version\n.*True", id="bool-version"),
        pytest.param('{"schema_version": 1, "image": null}', "no level is calibrated", id="no-level"),
        pytest.param('{"schema_version": 1, "image": []}', "image is not a JSON object", id="level-list"),
        pytest.param(
            '{"schema_version": 1, "pixel": {"min": 1}}', "pixel has no 'threshold', 'max'", id="keys-missing"
        ),
        pytest.param(json.dumps(document(max=-1)), "image: the range .* is empty", id="illegal-level"),
        pytest.param(json.dumps(document(threshold=True)), "image: threshold is not a number", id="bool"),
        pytest.param(json.dumps(document(n_normal="5")), "image: n_normal is not a count", id="count"),
        pytest.param(json.dumps(document(max=float("nan"))), "is not JSON\n.*NaN is not a JSON number", id="nan"),
        pytest.param(json.dumps(document(max=float("-inf"))), "is not JSON\n.*-Infinity", id="infinity"),
        pytest.param(json.dumps(document()).replace("1.5", "1e999"), "a number is beyond float64: 1e999", id="1e999"),
        pytest.param(json.dumps(document(max=10**400)), "beyond float64: 1(0){19}\\.\\.\\.", id="huge-integer"),
        pytest.param(json.dumps(document(a=-1)).replace("-1", "-1e999"), "beyond float64: -1e999", id="detail"),
        pytest.param(json.dumps(document(a={"b": 10**400})), "beyond float64", id="huge-detail"),
        pytest.param(json.dumps(document()).replace("1.5", "1" * 9999), "beyond float64", id="unreadable-integer"),
        pytest.param('{"schema_version": 1, "image": 1, "image": 2}', "'image' stands twice", id="duplicate-key"),
        pytest.param('{"a": ' * 100_000 + "1" + "}" * 100_000, "nested too deeply", id="deep"),
        pytest.param("{", "is not JSON", id="truncated"),
        pytest.param("", "is not JSON", id="empty"),
    ],
)
def test_illegal_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    """A file that is not legal is refused with its name and the reason, never half read."""
    path = write(tmp_path / "stats.json", text)
    with pytest.raises(MetadataError, match=message) as caught:
        CalibrationStats.load(path)
    assert str(path) in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """A binary file is refused as what it is."""
    path = tmp_path / "stats.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MetadataError, match="is not JSON"):
        CalibrationStats.load(path)


def test_a_missing_file_is_a_file_error(tmp_path: Path) -> None:
    """A file that is not there is named."""
    with pytest.raises(FileError, match=r"cannot read the statistics file .*gone\.json\n.*no such file"):
        CalibrationStats.load(tmp_path / "gone.json")


def test_save_and_load(tmp_path: Path) -> None:
    """A saved file reads back to equal statistics, from a text path too."""
    stats = CalibrationStats(image=LEVEL)
    stats.save(tmp_path / "stats.json")
    assert CalibrationStats.load(str(tmp_path / "stats.json")) == stats


@pytest.mark.parametrize("detail", [float("nan"), {1, 2}], ids=["nan", "set"])
def test_details_without_json_form_are_refused(detail: object) -> None:
    """What JSON cannot hold is refused when the file is written."""
    with pytest.raises(MetadataError, match="have no JSON form"):
        CalibrationStats(details={"odd": detail}).dumps()
