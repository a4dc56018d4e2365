"""`Calibrator`: what it takes, what it refuses and with which words, and that it neither consumes nor forgets."""

import errno
import gc
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from postproc_export.calibration import CalibrationWarning, Calibrator, spool
from postproc_export.calibration.counting import tally
from postproc_export.errors import CalibrationError, FileError, UsageError
from postproc_export.stats import CalibrationStats

SCORES = np.array([0.1, 0.4, 0.35, 0.8], dtype=np.float32)
LABELS = np.array([0, 0, 1, 1])
MAPS = np.arange(32, dtype=np.float32).reshape(2, 1, 4, 4)
MASKS = (MAPS[:, 0] > 20).astype(np.uint8)


def open_files() -> int:
    """Return the number of open file descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def filled(**options: Any) -> Calibrator:
    """Return a calibrator that has seen four images and two maps."""
    calibrator = Calibrator(resamples=0, **options)
    calibrator.update(SCORES, LABELS)
    calibrator.update(anomaly_map=MAPS, gt_mask=MASKS)
    return calibrator


@pytest.fixture
def tiny_spool(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spool that goes to disk after 20 values."""
    monkeypatch.setattr(tally, "SMALL", 0)
    monkeypatch.setattr(spool, "_BLOCK", 10)
    monkeypatch.setattr(spool, "_IN_MEMORY", 2 * 10 * 4)


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


def test_values_that_float32_merges_at_the_threshold_are_warned_about(tiny_spool: None) -> None:
    """Two float64 scores that become one float32 can no longer be told apart."""
    scores = np.array([0.0, 0.5, 0.5 + 1e-12, 1.0])
    calibrator = Calibrator(resamples=0)
    calibrator.update(np.tile(scores, 12), np.tile([0, 0, 1, 1], 12))
    with pytest.warns(
        CalibrationWarning, match=r"merges different values \(0\.5 to 0\.500000000001\) at the threshold"
    ):
        calibrator.compute()


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


def test_the_spool_has_no_name_and_is_closed(tiny_spool: None, tmp_path: Path) -> None:
    """Nothing is left in the folder, even while the file is in use."""
    before = open_files()
    with filled(spool_dir=tmp_path) as calibrator:
        for _ in range(5):
            calibrator.update(SCORES, LABELS, None, None)
        assert list(tmp_path.iterdir()) == []
        assert open_files() > before
        calibrator.compute()
    gc.collect()
    assert open_files() == before


KILLED = """
import os, signal, sys
import numpy as np
from postproc_export.calibration import Calibrator, spool
spool._IN_MEMORY = 0
calibrator = Calibrator(spool_dir=sys.argv[1])
calibrator.update(np.arange(600_000.0), np.arange(600_000) % 2)
assert calibrator._levels["image"].spool.on_disk
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_no_spool(tmp_path: Path) -> None:
    """The temporary file has no name from the start, so nothing has to clean it up."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_clear_error(tiny_spool: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The message names the folder and the ways out; what is left is not computed on."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    calibrator = Calibrator(spool_dir=tmp_path)
    with pytest.raises(FileError, match=r"(?s)the spool in .* cannot be written: No space left.*exact=False"):
        calibrator.update(np.arange(100.0), np.arange(100) % 2)
    with pytest.raises(CalibrationError, match=r"no longer whole\n.*reset\(\) first"):
        calibrator.compute()
    calibrator.reset()
    calibrator.update(SCORES, LABELS)
    assert calibrator.compute().image is not None


LIMITED = """
import resource, sys
import numpy as np
from postproc_export.calibration import Calibrator, spool
from postproc_export.errors import FileError
spool._IN_MEMORY = 0
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
first, second = Calibrator(spool_dir=sys.argv[1]), Calibrator(spool_dir=sys.argv[1])
for calibrator in (first, second):
    calibrator.update(np.arange(520_000.0, dtype=np.float32), np.arange(520_000) % 2)
try:
    first.merge(second)
except FileError as error:
    print(error)
assert second.compute().image.n_normal == 260_000
first.reset()
first.update(np.arange(8.0), np.arange(8) % 2)
assert first.compute().image.n_normal == 4
"""


def test_what_the_system_refuses_to_write_is_a_clear_error(tmp_path: Path) -> None:
    """A real limit, met in the middle of a merge: one is reset and goes on, the other is as it was, no file is left."""
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True)
    assert re.search(r"(?s)the spool in .* cannot be written: File too large.*bytes written so far", done.stdout)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_for_the_spool_has_to_be_there(tmp_path: Path) -> None:
    """It is missed at once, not after a million values."""
    with pytest.raises(FileError, match=r"there is no folder .*/no for the spool"):
        Calibrator(spool_dir=tmp_path / "no")


def test_pickling_works_until_there_is_a_spool(tiny_spool: None) -> None:
    """A small calibrator can be sent; one with a temporary file says what to do instead."""
    small = Calibrator(resamples=0)
    small.update(SCORES, LABELS)
    assert pickle.loads(pickle.dumps(small)).compute() == small.compute()
    with pytest.raises(UsageError, match=r"(?s)cannot be pickled.*calibrate from shards"):
        pickle.dumps(filled())


def test_merging_takes_over_the_other_values(tiny_spool: None) -> None:
    """Two halves merged are the whole, and the other one stays as it is."""
    one, other, whole = (Calibrator(resamples=0) for _ in range(3))
    for part, calibrator in ((SCORES, one), (SCORES * 3, other)):
        for _ in range(9):
            calibrator.update(part, LABELS)
            whole.update(part, LABELS)
    before = other.compute()
    one.merge(other)
    assert one.compute() == whole.compute()
    assert other.compute() == before


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


def test_one_pass_does_not_claim_counts_within_a_bucket(tiny_spool: None) -> None:
    """Without a spool the counts at a threshold inside a bucket are not known, only how far F1 can be off."""
    calibrator = Calibrator(image_policy="value=1.001", exact=False, resamples=0)
    calibrator.update(1 + np.arange(8) / 2048, np.arange(8) % 2)
    stats = calibrator.compute().image
    assert stats is not None
    assert (stats.details["at_threshold"], stats.details["exact"]) == (None, False)
    assert stats.details["f1_gap"] == 1.0  # all eight share a bucket: the best could be 1, and this one 0


@pytest.mark.parametrize("policy", ["value=-5", "value=99", "fpr=0", "recall=0.5", "quantile=0.5"])
def test_one_pass_knows_how_far_f1_can_be_off_whatever_the_policy(tiny_spool: None, policy: str) -> None:
    """The gap is there at every threshold, inside a bucket or not, and holds against the best of all thresholds."""
    values, truth = np.linspace(-1, 3, 301).astype(np.float32), np.arange(301) % 3 == 0
    calibrator = Calibrator(image_policy=policy, exact=False, resamples=0)
    calibrator.update(values, truth)
    stats = calibrator.compute().image
    assert stats is not None
    at = [*np.unique(values), np.float32(stats.threshold)]
    f1 = [2 * (truth & (values >= t)).sum() / ((values >= t).sum() + truth.sum()) for t in at]
    assert max(f1) - f1[-1] <= stats.details["f1_gap"] + 1e-12


def test_one_pass_does_not_call_out_of_reach_what_a_bucket_may_hold(tiny_spool: None) -> None:
    """Where only the edges of buckets keep below the precision asked for, one pass says what it does not know."""
    values, truth = np.array([-1, 1, 1.001, 1.002]), np.array([0, 0, 0, 1])
    calibrator = Calibrator(image_policy="precision=0.9", exact=False, resamples=0)
    calibrator.update(values, truth)
    with pytest.raises(CalibrationError, match=r"what one pass can tell\n.*at least 0.333(.|\n)*may be 1\n"):
        calibrator.compute()
    exact = Calibrator(image_policy="precision=0.9", resamples=0)
    exact.update(values, truth)
    assert exact.compute().image.threshold == np.float32(1.002)


def test_an_empty_batch_is_no_level() -> None:
    """A batch without images neither adds a level nor decides whether there is ground truth."""
    calibrator = filled()
    before = calibrator.compute()
    calibrator.update(np.empty(0), None, np.empty((0, 4, 4)))
    assert calibrator.compute() == before
