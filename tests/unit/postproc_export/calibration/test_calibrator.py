"""`Calibrator`: what it takes, what it refuses and with which words, and that it neither consumes nor forgets."""

from pathlib import Path

import numpy as np
import pytest
import torch
from calibration_cases import LABELS, MAPS, MASKS, SCORES, filled

from postproc_export.calibration import CalibrationWarning, Calibrator
from postproc_export.errors import CalibrationError, UsageError
from postproc_export.stats import CalibrationStats


def test_both_levels_are_calibrated() -> None:
    """Threshold, range and class counts of both levels, in raw units."""
    stats = filled().compute()
    assert stats.image is not None
    assert stats.pixel is not None
    assert (stats.image.threshold, stats.image.min, stats.image.max) == tuple(map(float, np.float32([0.35, 0.1, 0.8])))
    assert (stats.pixel.threshold, stats.pixel.min, stats.pixel.max) == (21, 0, 31)
    assert (stats.pixel.n_normal, stats.pixel.n_anomalous, stats.image.rule) == (21, 11, "f1")


def test_statistics_survive_a_file(tmp_path: Path) -> None:
    """Everything that was recorded is JSON and reads back equal."""
    stats = filled(compare=("recall=1", "precision=0.5")).compute()
    stats.save(tmp_path / "stats.json")
    assert CalibrationStats.load(tmp_path / "stats.json").to_json() == stats.to_json()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_tensors_give_what_arrays_give(dtype: torch.dtype) -> None:
    """torch tensors of any type, with gradients and singleton axes, equal their float32 values as arrays."""
    scores = torch.tensor([0.125, 0.5, 0.25, 0.75], dtype=dtype, requires_grad=True)
    one, other = Calibrator(resamples=0), Calibrator(resamples=0)
    one.update(scores.reshape(4, 1), torch.tensor([0, 0, 1, 1]).bool())
    other.update(scores.detach().float().numpy(), LABELS)
    assert one.compute().to_json() == other.compute().to_json()


SHAPES = [
    pytest.param((2, 1, 4, 4), (2, 4, 4), id="channel-first"),
    pytest.param((2, 4, 4), (2, 1, 4, 4), id="mask-with-channel"),
    pytest.param((2, 4, 4, 1), (2, 4, 4), id="channel-last"),
]


@pytest.mark.parametrize(("map_shape", "mask_shape"), SHAPES)
def test_a_singleton_channel_does_not_matter(map_shape: tuple[int, ...], mask_shape: tuple[int, ...]) -> None:
    """Maps and masks may have a channel axis of length 1."""
    calibrator = Calibrator()
    calibrator.update(anomaly_map=MAPS.reshape(map_shape), gt_mask=MASKS.reshape(mask_shape))
    assert calibrator.compute().pixel == filled().compute().pixel


def test_arrays_of_any_memory_layout_count_alike() -> None:
    """Transposed, strided and big-endian arrays give the statistics of their C-ordered copies."""
    turned, strided = np.asfortranarray(MAPS), np.repeat(MASKS, 2, axis=-1)[..., ::2]
    calibrator = Calibrator()
    calibrator.update(anomaly_map=turned.astype(">f4"), gt_mask=strided)
    assert calibrator.compute().pixel == filled().compute().pixel


def with_value(array: np.ndarray, index: tuple[int, ...], value: float) -> np.ndarray:
    """Return a copy with one element replaced."""
    changed = array.astype(np.float64)
    changed[index] = value
    return changed


REFUSED = [
    pytest.param({}, "batch 0 has neither pred_score nor anomaly_map", id="nothing"),
    pytest.param(
        {"pred_score": with_value(SCORES, (2,), np.nan), "gt_label": LABELS},
        r"pred_score has values that are not finite.*\n.*1 of 4 values, the first is nan at batch 0: pred_score\[2\]",
        id="nan",
    ),
    pytest.param(
        {"anomaly_map": with_value(MAPS, (1, 0, 2, 3), 1e39), "gt_mask": MASKS},
        r"the first is 1e\+39 at batch 0: anomaly_map\[1, 0, 2, 3\]",
        id="infinite-as-float32",
    ),
    pytest.param(
        {"anomaly_map": MAPS, "gt_mask": MASKS * 255},
        r"gt_mask is not 0/1\n.*11 of 32 values, the first is 255 at batch 0: gt_mask\[1, 0, 1, 1\]",
        id="mask-255",
    ),
    pytest.param(
        {"pred_score": SCORES, "gt_label": LABELS[:3]}, r"do not agree\n.*\(4,\), gt_label \(3,\)", id="labels"
    ),
    pytest.param({"anomaly_map": MAPS, "gt_mask": MASKS[:, :3]}, "the shapes do not agree", id="mask-size"),
    pytest.param({"pred_score": SCORES, "anomaly_map": MAPS}, "4 scores, 2 maps", id="images"),
    pytest.param({"pred_score": np.ones((4, 2))}, "more than one value per image", id="two-scores"),
    pytest.param({"anomaly_map": np.ones((2, 3, 4, 4))}, "not a map of one channel", id="three-channels"),
    pytest.param({"pred_score": SCORES > 0}, "elements of type bool", id="boolean-scores"),
    pytest.param({"pred_score": np.array(["a"])}, "elements of type <U1", id="text"),
]


@pytest.mark.parametrize(("batch", "message"), REFUSED)
def test_what_cannot_be_calibrated_is_refused_and_not_counted(batch: dict[str, np.ndarray], message: str) -> None:
    """The message says where and how many, and the batch leaves no trace."""
    calibrator = Calibrator()
    with pytest.raises(CalibrationError, match=message):
        calibrator.update(**batch)
    with pytest.raises(CalibrationError, match="no sample was seen"):
        calibrator.compute()


def test_a_bad_level_keeps_the_other_one_out_too() -> None:
    """A batch counts on both levels or on none."""
    calibrator = filled()
    before = calibrator.compute()
    with pytest.raises(CalibrationError, match="gt_mask is not 0/1"):
        calibrator.update(SCORES[:2], LABELS[:2], MAPS, MASKS + 1)
    assert calibrator.compute() == before


def test_ground_truth_in_some_batches_only_is_refused() -> None:
    """Scores with labels after scores without them would give a threshold of a part."""
    calibrator = filled()
    with pytest.raises(CalibrationError, match="batch 2: pred_score comes without gt_label"):
        calibrator.update(SCORES)


def test_nonfinite_values_can_be_dropped_and_are_counted() -> None:
    """`nonfinite="drop"` leaves them out of both classes and of the range."""
    calibrator = Calibrator(nonfinite="drop", resamples=0)
    calibrator.update(np.append(SCORES, [np.nan, np.inf, -np.inf]), np.append(LABELS, [0, 1, 1]))
    stats, expected = calibrator.compute().image, filled().compute().image
    assert stats is not None
    assert expected is not None
    assert stats.n_dropped == 3
    assert (stats.threshold, stats.max, stats.n_anomalous) == (expected.threshold, expected.max, 2)


def test_only_dropped_values_are_no_sample() -> None:
    """A level of which nothing is left is refused with the number that was dropped."""
    calibrator = Calibrator(nonfinite="drop")
    calibrator.update(np.float32([np.nan, np.nan]), [0, 1])
    with pytest.raises(CalibrationError, match=r"image level: no sample at all\n.*2 values, none of them finite"):
        calibrator.compute()


def test_equal_values_are_refused() -> None:
    """A range of one point cannot normalise anything."""
    calibrator = Calibrator(resamples=0)
    calibrator.update(np.ones(4), LABELS)
    with pytest.raises(CalibrationError, match="the image level cannot be calibrated: the range"):
        calibrator.compute()


def test_a_level_without_ground_truth_gets_a_range_only() -> None:
    """No threshold is made up, and a fixed policy needs no labels."""
    calibrator, fixed = Calibrator(), Calibrator(image_policy="range=0.25")
    calibrator.update([1.0, 3.0])
    fixed.update([1.0, 3.0])
    with pytest.warns(CalibrationWarning, match="image level: no ground truth"):
        stats = calibrator.compute().image
    assert stats is not None
    assert (stats.threshold, stats.min, stats.max, stats.rule) == (None, 1, 3, "range_only")
    assert fixed.compute().image.threshold == 1.5  # type: ignore[union-attr]


def test_only_anomalous_samples_warn_and_take_the_lowest() -> None:
    """The lowest value is the threshold that finds them all."""
    calibrator = Calibrator(image_policy="fpr=0.1", resamples=0)
    calibrator.update(SCORES, np.ones(4))
    with pytest.warns(CalibrationWarning, match=r"only anomalous samples, so 'fpr=0\.1' is not defined"):
        stats = calibrator.compute().image
    assert stats is not None
    assert (stats.threshold, stats.rule) == (float(np.float32(0.1)), "only_anomalous")


def test_an_unreachable_precision_says_what_can_be_reached() -> None:
    """The highest precision and its threshold are in the message."""
    calibrator = Calibrator(image_policy="precision=0.9", resamples=0)
    calibrator.update([1.0, 2.0, 3.0], [1, 1, 0])
    with pytest.raises(
        CalibrationError, match=r"cannot reach precision=0\.9\n.*at most 0\.666666667 \(2 of 3\), at 1\.0"
    ):
        calibrator.compute()


def test_compute_does_not_consume(tiny_spool: None) -> None:
    """Updates after `compute` go on, and computing twice gives the same."""
    calibrator, whole = filled(), filled()
    assert calibrator.compute() == calibrator.compute()
    for each in (calibrator, whole):
        each.update(SCORES + 1, LABELS)
    assert calibrator.compute() == whole.compute()


def test_reset_forgets_samples_and_keeps_options(tiny_spool: None) -> None:
    """Statistics of an earlier epoch never reach a later one."""
    calibrator = filled(image_policy="recall=1")
    calibrator.update(SCORES * 100, 1 - LABELS)
    calibrator.reset()
    calibrator.update(SCORES, LABELS)
    stats = calibrator.compute()
    assert stats.pixel is None
    assert stats.image == filled(image_policy="recall=1").compute().image


def test_merging_what_does_not_fit_is_refused() -> None:
    """A calibrator neither counts itself twice nor mixes exact data with counts."""
    calibrator = filled()
    with pytest.raises(UsageError, match="merged with itself"):
        calibrator.merge(calibrator)
    with pytest.raises(UsageError, match="one with exact=False cannot be merged"):
        calibrator.merge(filled(exact=False))


def test_unknown_options_are_refused() -> None:
    """An option that is misspelt is no default."""
    with pytest.raises(UsageError, match="nonfinite='skip' is not known"):
        Calibrator(nonfinite="skip")  # type: ignore[arg-type]


def test_the_bootstrap_interval_holds_the_threshold_and_can_be_left_out() -> None:
    """Image thresholds come with an interval, pixel thresholds do not."""
    rng = np.random.default_rng(3)
    labels = rng.random(60) < 0.4
    calibrator = Calibrator(resamples=50)
    calibrator.update(
        rng.normal(size=60) + 2 * labels, labels, np.tile(MAPS, (30, 1, 1, 1)), np.tile(MASKS, (30, 1, 1))
    )
    stats = calibrator.compute()
    assert stats.image is not None
    assert stats.pixel is not None
    interval = stats.image.details["threshold_interval"]
    assert interval["low"] <= stats.image.threshold <= interval["high"]  # type: ignore[operator]
    assert interval["resamples"] == 50
    assert "threshold_interval" not in stats.pixel.details
    assert "threshold_interval" not in filled().compute().image.details  # type: ignore[union-attr]


def test_the_curve_is_compact_and_holds_the_threshold() -> None:
    """At most 2,000 points whatever the number of values, from the lowest value to the highest, with exact counts."""
    rng = np.random.default_rng(4)
    values, truth = rng.normal(size=30_000).astype(np.float32), rng.random(30_000) < 0.01
    calibrator = Calibrator()
    calibrator.update(anomaly_map=values.reshape(3, 100, 100), gt_mask=truth.reshape(3, 100, 100))
    stats = calibrator.compute().pixel
    assert stats is not None
    curve = {key: np.array(column) for key, column in stats.details["curve"].items()}
    assert 1000 < curve["tp"].size <= 2000
    assert np.float32(stats.threshold) in curve["threshold"].astype(np.float32)
    assert (curve["tp"][0], curve["fp"][0]) == (truth.sum(), (~truth).sum())
    at = curve["threshold"].astype(np.float32)[:, None]
    assert np.array_equal(curve["tp"], (values[truth] >= at).sum(axis=1))
    assert np.array_equal(curve["fp"], (values[~truth] >= at).sum(axis=1))


def test_an_empty_batch_is_no_level() -> None:
    """A batch without images neither adds a level nor decides whether there is ground truth."""
    calibrator = filled()
    before = calibrator.compute()
    calibrator.update(np.empty(0), None, np.empty((0, 4, 4)))
    assert calibrator.compute() == before
