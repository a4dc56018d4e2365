"""What min and max of a level are, and the warning where the threshold lies near one of them."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from postproc_export.calibration import CalibrationWarning, Calibrator, calibrate
from postproc_export.errors import CalibrationError, UsageError
from postproc_export.policies import Range
from postproc_export.stats import LevelStats

TAIL = Path(__file__).parents[3] / "data" / "cases" / "tail.npz"
ILLEGAL = [
    "min",
    "quantile",
    "quantile=0.1",
    "quantile=0.1,0.2,0.3",
    "quantile=a,1",
    "quantile=1/2,1",
    "extremes=1",
    "",
]
OUTSIDE = ["quantile=0.5,0.5", "quantile=0.9,0.1", "quantile=-0.1,1", "quantile=0,1.001"]


def told(run: Any) -> list[str]:
    """Return the warnings of a calibration about its range."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CalibrationWarning)
        run()
    return [str(each.message) for each in caught if " of the range " in str(each.message)]


def image_stats(values: Any, truth: Any, **options: Any) -> LevelStats:
    """Return the statistics of the image level."""
    stats = calibrate({"pred_score": np.asarray(values, np.float32), "gt_label": truth}, resamples=0, **options).image
    assert stats is not None
    return stats


@pytest.mark.parametrize("text", ILLEGAL)
def test_other_texts_are_refused(text: str) -> None:
    """At either level, before anything is read; the message says what can be given."""
    for level in ("image", "pixel"):
        with pytest.raises(UsageError, match=r"is not known\n.*extremes, or quantile=A,B"):
            Calibrator(**{f"{level}_range": text})


@pytest.mark.parametrize("text", OUTSIDE)
def test_shares_that_leave_no_range_are_refused(text: str) -> None:
    """A lies below B, both within 0 and 1."""
    with pytest.raises(UsageError, match=r"out of range\n(.|\n)*0 <= A < B <= 1"):
        Calibrator(image_range=text)


def test_the_text_form_reads_back() -> None:
    """Spaces and capitals aside, the statistics record what was asked for; the shares are exact decimals."""
    assert Range.parse(" Quantile = 0.01 , 1e0 ").text == "quantile=0.01,1e0"
    assert Range.parse("quantile=0.01,1e0").left_out * 100 == 1
    assert Range.parse("EXTREMES").is_extremes
    assert not Range.parse("quantile=0,1").is_extremes


def test_equal_values_between_the_quantiles_are_no_range() -> None:
    """The extremes differ, the quantiles do not: the message names the option, as a share of labels does not."""
    with pytest.raises(CalibrationError, match=r"is empty by quantile=0.1,0.9\n(.|\n)*image_range with shares further"):
        image_stats([0.0, *[1.0] * 20, 2.0], [0] * 11 + [1] * 11, image_range="quantile=0.1,0.9")


def test_a_level_without_ground_truth_has_the_range_that_was_asked_for() -> None:
    """Min and max alone, and a threshold by `range=U` between them, or by a percentile of all values."""
    values = np.arange(101, dtype=np.float32)
    with pytest.warns(CalibrationWarning, match="no ground truth"):
        stats = calibrate({"pred_score": values}, image_range="quantile=0.1,0.9").image
    assert stats is not None
    assert (stats.min, stats.max, stats.threshold) == (10, 90, None)
    stats = calibrate({"pred_score": values}, image_range="quantile=0.1,0.9", image_policy="range=0.5").image
    assert stats is not None
    assert (stats.min, stats.max, stats.threshold) == (10, 90, 50)
    for policy, threshold in (("percentile=95", 95), ("percentile=95,factor=1.421", float(np.float32(134.995)))):
        stats = calibrate({"pred_score": values}, image_policy=policy).image
        assert stats is not None
        assert (stats.min, stats.max, stats.threshold, stats.policy) == (0, 100, threshold, policy)


def test_each_level_has_a_range_of_its_own() -> None:
    """What is asked of the pixel level leaves the image level as it is."""
    maps = np.arange(100, dtype=np.float32).reshape(4, 1, 5, 5)
    arrays = {"pred_score": maps[:, 0, 0, 0], "gt_label": [0, 0, 1, 1], "anomaly_map": maps, "gt_mask": maps > 49}
    stats = calibrate(arrays, pixel_range="quantile=0.1,0.9", resamples=0)
    assert stats.image is not None
    assert stats.pixel is not None
    assert (stats.image.min, stats.image.max, stats.image.details["range"]) == (0, 75, "extremes")
    assert (stats.pixel.min, stats.pixel.max, stats.pixel.details["range"]) == (9, 89, "quantile=0.1,0.9")


def test_every_source_has_the_same_range(tmp_path: Path) -> None:
    """Arrays, a file, batches and arrays of Dask."""
    da = pytest.importorskip("dask.array")
    arrays = dict(np.load(TAIL))
    asked: dict[str, Any] = {"image_range": "quantile=0.05,0.98", "resamples": 0}
    with Calibrator(**asked) as calibrator:
        for part in (slice(0, 7), slice(7, None)):
            calibrator.update(**{key: array[part] for key, array in arrays.items()})
        stats = [calibrator.compute()]
    sources = (arrays, TAIL, {key: da.from_array(array, chunks=9) for key, array in arrays.items()})
    stats += [calibrate(source, **asked) for source in sources]
    assert all(each.image == stats[0].image for each in stats)
    assert stats[0].image is not None
    assert (stats[0].image.min, stats[0].image.max) == tuple(np.sort(arrays["pred_score"])[[3, 78]])


def test_a_heavy_tail_is_warned_of_with_a_range_that_helps() -> None:
    """One score of 60 puts the threshold of 1.14 at 0.4 % of the range; what is advised is not warned of."""
    (message,) = told(lambda: calibrate(TAIL, resamples=0))
    assert "image level: the threshold 1.1359138 lies at 0.427 % of the range 0.8837485 to 60," in message
    advised = message.partition("--image-range ")[2].split()[0]
    assert advised == "quantile=0,0.98"
    assert told(lambda: calibrate(TAIL, resamples=0, image_range=advised)) == []


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("exact", [True, False])
def test_what_is_advised_helps(seed: int, exact: bool, tiny_spool: None) -> None:
    """Tails on either side, few and many anomalies, sorted, divided and in one pass."""
    rng = np.random.default_rng(seed)
    truth = rng.random(500) < (0.01, 0.1, 0.5)[seed % 3]
    truth[:2] = False, True
    values = (truth * 3 + rng.normal(0, 0.5, 500)).astype(np.float32)
    values[2:5] = (-1) ** seed * 10.0 ** rng.integers(2, 6, 3)

    def run(**options: Any) -> None:
        calibrator = Calibrator(resamples=0, exact=exact, **options)
        calibrator.update(values, truth)
        calibrator.compute()

    (message,) = told(run)
    advised = message.partition("--image-range ")[2].split()[0]
    assert told(lambda: run(image_range=advised)) == []


def test_where_no_range_helps_it_is_said() -> None:
    """A threshold at which nearly all values lie; one that the policy itself puts near the end."""
    values, truth = [0.0, *[1.0] * 998, 2.0], [0] * 500 + [1] * 500
    (message,) = told(lambda: image_stats(values, truth, image_policy="value=-3"))
    assert message.endswith("no range of quantiles would leave more than 2 % on both sides")
    (message,) = told(lambda: image_stats(values, truth, image_policy="range=0.01"))
    assert message.endswith("'range=0.01' asks for that")


@pytest.mark.parametrize(("threshold", "warned"), [(2, True), (2.5, False), (97.5, False), (98, True), (120, True)])
def test_two_percent_are_near(threshold: float, warned: bool) -> None:
    """From either end, and beyond it."""
    values, truth = np.arange(101), np.arange(101) > 50
    assert bool(told(lambda: image_stats(values, truth, image_policy=f"value={threshold}"))) is warned


@pytest.mark.parametrize("label", [0, 1])
def test_a_set_of_one_class_is_not_warned_of(label: int) -> None:
    """Its threshold lies at an end by definition."""
    assert told(lambda: image_stats(np.arange(50), np.full(50, label), image_policy="f1")) == []
    assert told(lambda: image_stats(np.arange(50), np.full(50, label), image_policy="value=0.5")) == []
