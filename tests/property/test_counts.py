"""One number for the validation samples that are called anomalous: of calibrate, update, inspect, and of NumPy."""

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import hosts
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from narrow_hosts import DTYPES

from postproc_export import CalibrationStats, Calibrator, attach_postprocessing, inspect_model, update_postprocessing
from postproc_export.curve import counts_at
from postproc_export.stats import decision_boundary

SCORES = st.lists(
    st.one_of(st.integers(0, 40).map(lambda number: number / 10), st.floats(-2, 5, width=32), st.floats(0, 4)),
    min_size=4,
    max_size=60,
)


def calibrated(values: np.ndarray, labels: np.ndarray) -> CalibrationStats | None:
    """Return statistics after a round through a file, where decimals stand for float32."""
    calibrator = Calibrator()
    calibrator.update(pred_score=values, gt_label=labels)
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        calibrator.compute().save(Path(folder) / "stats.json")
        return CalibrationStats.load(Path(folder) / "stats.json")


@given(scores=SCORES, seed=st.integers(0, 99), sensitivity=st.floats(0, 1), comparison=st.sampled_from(["ge", "gt"]))
def test_counts_are_those_of_float32(scores: list[float], seed: int, sensitivity: float, comparison: str) -> None:
    """At the threshold that is what calibration says, and at every other boundary what NumPy counts."""
    values = np.array(scores, np.float64)
    if np.ptp(values.astype(np.float32)) < 1e-3:
        return
    labels = np.random.default_rng(seed).integers(0, 2, len(values))
    labels[:2] = 0, 1
    stats = calibrated(values, labels)
    assert stats is not None
    level = stats.image
    assert level is not None
    assert level.threshold is not None
    seen = values.astype(np.float32)
    rates = level.details["at_threshold"]
    found = counts_at(level, level.threshold)
    assert found is not None
    assert (found.tp, found.fp) == ((rates["tp"],) * 2, (rates["fp"],) * 2)
    for boundary in (decision_boundary(level, sensitivity=sensitivity, comparison=comparison), *map(float, seen)):
        found = counts_at(level, boundary)
        called = seen >= np.float32(boundary)
        expected = int((called & (labels == 1)).sum()), int((called & (labels == 0)).sum())
        assert found is not None
        assert (found.tp, found.fp) == tuple((count, count) for count in expected)


@settings(max_examples=8)
@given(seed=st.integers(0, 2**16))
def test_every_command_tells_the_same_number(seed: int) -> None:
    """Scores with two decimals, of which most are no float64 of a float32: 40 of 40 stays 40 of 40."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], 40)
    values = np.round(rng.normal(0.4, 0.1, 80) + 0.5 * labels, 2)
    stats = calibrated(values, labels)
    assert stats is not None
    assert stats.image is not None
    rates = stats.image.details["at_threshold"]
    told = f"{rates['tp']} of 40 anomalous and {rates['fp']} of 40 normal ones"
    with TemporaryDirectory() as name:
        folder = Path(name)
        raw = hosts.write(hosts.score_only(), folder / "raw.onnx")
        path = attach_postprocessing(raw, stats, output=folder / "attached.onnx").output
        inspected = inspect_model(path)
        assert told in inspected.summary()
        assert inspected.to_json()["levels"]["image"]["validation"] == {
            "tp": rates["tp"],
            "fp": rates["fp"],
            "n_anomalous": 40,
            "n_normal": 40,
        }
        other = update_postprocessing(path, output=folder / "other.onnx", image_sensitivity=0.7)
        back = update_postprocessing(folder / "other.onnx", output=folder / "back.onnx", image_sensitivity=0.5)
        assert told in back.summary()
        assert f"(were {rates['tp'] + rates['fp']})" in other.summary()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_narrow_host_is_counted_at_its_threshold(dtype: str, tmp_path: Path) -> None:
    """Its boundary lies below the threshold, but none of its values does: the number stays that of calibration."""
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 2, 5_000)
    values = (rng.normal(size=5_000) + labels).astype(DTYPES[dtype]).astype(np.float32)
    stats = calibrated(values, labels)
    assert stats is not None
    assert stats.image is not None
    rates = stats.image.details["at_threshold"]
    raw = hosts.write(hosts.score_only(dtype=dtype), tmp_path / "raw.onnx")
    path = attach_postprocessing(raw, stats, output=tmp_path / "attached.onnx").output
    validation = inspect_model(path).to_json()["levels"]["image"]["validation"]
    assert (validation["tp"], validation["fp"]) == (rates["tp"], rates["fp"])
    other = update_postprocessing(path, output=tmp_path / "other.onnx", image_sensitivity=0.7)
    assert f"(were {rates['tp'] + rates['fp']})" in other.summary()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sensitivity_for_a_rate_holds_on_a_narrow_host(dtype: str, tmp_path: Path) -> None:
    """It is chosen in float32, and the constant for the host calls the very same values anomalous."""
    rng = np.random.default_rng(6)
    labels = rng.integers(0, 2, 900)
    values = (rng.normal(size=900) + labels).astype(DTYPES[dtype]).astype(np.float32)
    raw = hosts.write(hosts.score_only(dtype=dtype), tmp_path / "raw.onnx")
    attached = attach_postprocessing(
        raw, calibrated(values, labels), output=tmp_path / "attached.onnx", image_sensitivity_for="recall=0.9"
    )
    called = values >= np.float32(attached.boundary("image"))
    tp, fp = int((called & (labels == 1)).sum()), int((called & (labels == 0)).sum())
    assert tp == np.ceil(0.9 * labels.sum())
    assert f"{tp} of {labels.sum()} anomalous and {fp} of {900 - labels.sum()} normal ones" in attached.summary()
    validation = inspect_model(tmp_path / "attached.onnx").to_json()["levels"]["image"]["validation"]
    assert (validation["tp"], validation["fp"]) == (tp, fp)


def test_a_thinned_curve_gives_limits() -> None:
    """Between two of its thresholds no number is known, so none is told; at them it is."""
    rng = np.random.default_rng(5)
    values, labels = rng.normal(size=5_000).astype(np.float32), rng.integers(0, 2, 5_000)
    stats = calibrated(values, labels)
    assert stats is not None
    assert stats.image is not None
    thresholds = np.array(stats.image.details["curve"]["threshold"], np.float32)
    for boundary in (*rng.choice(values, 200), *rng.choice(thresholds, 200)):
        found = counts_at(stats.image, float(boundary))
        assert found is not None
        tp, fp = (int(((values >= boundary) & (labels == label)).sum()) for label in (1, 0))
        assert found.tp[0] <= tp <= found.tp[1]
        assert found.fp[0] <= fp <= found.fp[1]
        if boundary in thresholds:
            assert found.tp == (tp, tp)
            assert found.fp == (fp, fp)
            assert found.to_json()["tp"] == tp
        elif found.tp[0] != found.tp[1]:
            assert f"{found.tp[0]} to {found.tp[1]} of" in found.describe()
            assert found.to_json()["tp"] is None
