"""Calibrations for all tests: a plain reference, adversarial distributions, and outputs spread over processes."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch

from postproc_export.calibration import COMPARED, Calibrator, search, tally


class Plain:
    """Thresholds and counts of one level by brute force over the distinct values."""

    def __init__(self, values: np.ndarray, truth: np.ndarray) -> None:
        self.values = (values.astype(np.float32).reshape(-1) + np.float32(0)).astype(np.float64)
        self.truth = truth.reshape(-1).astype(bool)
        self.distinct = sorted(set(self.values.tolist()))
        self.normal, self.anomalous = int((~self.truth).sum()), int(self.truth.sum())

    def counts(self, threshold: float) -> tuple[int, int]:
        """Return TP and FP of the decision ``s >= threshold``."""
        above = self.values >= threshold
        return int((above & self.truth).sum()), int((above & ~self.truth).sum())

    def best(self, score: Callable[[int, int], Fraction]) -> float:
        """Return the lowest of the thresholds with the highest score."""
        return max(self.distinct, key=lambda each: (score(*self.counts(each)), -each))

    def fbeta(self, beta: Fraction) -> float:
        """Return the threshold of the highest F-beta."""
        square = beta * beta

        def score(tp: int, fp: int) -> Fraction:
            return (1 + square) * tp / ((1 + square) * tp + square * (self.anomalous - tp) + fp)

        return self.best(score)

    def recall(self, wanted: Fraction) -> float:
        """Return the highest threshold with that recall."""
        return max(each for each in self.distinct if Fraction(self.counts(each)[0], self.anomalous) >= wanted)

    def precision(self, wanted: Fraction) -> float | None:
        """Return the lowest threshold with that precision, None where there is none."""
        reached = [each for each in self.distinct if Fraction(self.counts(each)[0], sum(self.counts(each))) >= wanted]
        return min(reached) if reached else None

    def fpr(self, allowed: Fraction) -> float:
        """Return the lowest threshold with at most that false-positive rate, or the float32 above every value."""
        kept = [each for each in self.distinct if Fraction(self.counts(each)[1], self.normal) <= allowed]
        return min(kept) if kept else float(np.nextafter(np.float32(self.distinct[-1]), np.float32(np.inf)))

    def quantile(self, share: Fraction) -> float:
        """Return the inverted-CDF quantile of the normal values."""
        return float(np.sort(self.values[~self.truth])[max(1, ceil(share * self.normal)) - 1])

    def auroc(self) -> Fraction:
        """Return the share of pairs in order, ties counting one half."""
        pairs = self.values[self.truth][:, None] - self.values[~self.truth][None, :]
        return Fraction(int((pairs > 0).sum()) * 2 + int((pairs == 0).sum()), 2 * self.normal * self.anomalous)

    def average_precision(self) -> Fraction:
        """Return the sum over thresholds of recall gained times precision."""
        area, before = Fraction(0), 0
        for threshold in reversed(self.distinct):
            tp, fp = self.counts(threshold)
            area += Fraction(tp - before, self.anomalous) * Fraction(tp, tp + fp)
            before = tp
        return area


KINDS = (
    "ties",
    "heavy",
    "one-bucket",
    "offset",
    "constant-f1",
    "alternating",
    "one-anomalous",
    "subnormal",
    "zeros",
    "two-bins",
)
ROUTES = ("sorted", "histogram", "eighths", "batches", "late-batches")


def values_of(kind: str, seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 values and ground truth with both classes, of one adversarial kind."""
    rng = np.random.default_rng(seed)
    truth = rng.random(size) < rng.choice([0.02, 0.3, 0.5])
    truth[0], truth[-1] = True, False
    raw: dict[str, Any] = {
        "ties": lambda: rng.integers(-3, 4, size) + truth,
        "heavy": lambda: rng.standard_cauchy(size) * 10.0 ** rng.integers(-20, 20) + truth,
        "one-bucket": lambda: 1 + (rng.integers(0, 200, size) + 9 * truth) * 2.0**-23,
        "offset": lambda: 1000 + rng.normal(size=size) + truth,
        "constant-f1": lambda: -np.arange(size),
        "alternating": lambda: np.arange(size) * 0.37 - size / 5,
        "one-anomalous": lambda: rng.gamma(2, size=size),
        "subnormal": lambda: (rng.integers(-300, 300, size) + 40 * truth) * 2.0**-149,
        "zeros": lambda: rng.choice([0.0, -0.0, 1e-45, -1e-45, 1.0], size),
        "two-bins": lambda: rng.choice([1.0, 1.0078125], size) + rng.integers(0, 3, size) * 2.0**-23,
    }
    values = raw[kind]().astype(np.float32)
    if kind == "constant-f1":  # 2k of (2k + fp + P) stays near one value: 1, then one normal for each further anomalous
        truth = np.arange(size) % 2 == 0
    if kind == "alternating":
        truth = np.arange(size) % 2 == 1
    if kind == "one-anomalous":
        truth = np.arange(size) == rng.integers(size)
    values[0] = values.min() - max(abs(float(values.min())), 1e-20)  # a legal range whatever the kind draws
    return values, truth


def take_route(route: str, patch: pytest.MonkeyPatch) -> None:
    """Values sorted; bins divided at once or by 8 bits; no room in the table at once or later."""
    if route != "sorted":
        patch.setattr(tally, "SMALL", 0)
    if route in ("eighths", "late-batches"):
        patch.setattr(search, "FULL_BINS", 0)
    if route in ("batches", "late-batches"):
        patch.setattr(search, "MAX_BINS", 0 if route == "batches" else 60)
        patch.setattr(search, "COLLECTED", 40)
        patch.setattr(search, "CELLS", 1 << 9)


Batch = Mapping[str, Any]

_DATA: Final = Path(__file__).parent / "data" / "calibration"


@dataclass(frozen=True, slots=True)
class Sharded:
    """Batches of every process, the options of their calibrators, and the way through the engine."""

    shards: tuple[tuple[Batch, ...], ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    route: str = "sorted"

    @property
    def whole(self) -> tuple[Batch, ...]:
        """The batches of all processes."""
        return tuple(batch for shard in self.shards for batch in shard)


def computed(case: Sharded, batches: tuple[Batch, ...], **compute: Any) -> dict[str, Any]:
    """Return what one process gets: the statistics as JSON, and what it was warned about."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        take_route(case.route, patch)
        patch.setattr(tally, "SPOOLED", 50)
        patch.setattr(tally, "IN_MEMORY", 2 * 50 * 4)
        with Calibrator(**{"resamples": 20, **case.options}) as calibrator:
            for batch in batches:
                calibrator.update(**batch)
            stats = calibrator.compute(**compute).to_json()
    return {"stats": stats, "warnings": [str(each.message) for each in caught]}


def _anomalib(name: str) -> Batch:
    keys = {"scores": "pred_score", "labels": "gt_label", "maps": "anomaly_map", "masks": "gt_mask"}
    with np.load(_DATA / f"{name}.npz") as file:
        return {keys[key]: file[key] for key in file if key != "masks" or "maps" in file}


def _part(batch: Batch, start: int, stop: int) -> Batch:
    return {key: array[start:stop] for key, array in batch.items()}


def _adversarial(kind: str, seed: int) -> tuple[tuple[Batch, ...], ...]:
    values, truth = values_of(kind, seed, 110)
    scores = {"pred_score": values, "gt_label": truth}
    return (_part(scores, 0, 37),), (_part(scores, 37, 101), _part(scores, 101, 110))


def _scores(values: Any, truth: Any = None) -> Batch:
    return {"pred_score": np.asarray(values), "gt_label": truth if truth is None else np.asarray(truth)}


def sharded_cases() -> dict[str, Sharded]:
    """Return every case by its name."""
    padim, dfkde = _anomalib("padim"), _anomalib("dfkde")
    uneven = ((_part(padim, 0, 11), _part(padim, 11, 13)), (_part(padim, 13, 80),))
    cases = {
        "padim": Sharded(uneven, {"compare": COMPARED}),
        "padim-histogram": Sharded(uneven, {"compare": COMPARED}, "histogram"),
        "ranges": Sharded(uneven, {"image_range": "quantile=0.05,0.9", "pixel_range": "quantile=0,0.999"}, "histogram"),
        "dfkde": Sharded(((_part(dfkde, 0, 79),), (_part(dfkde, 79, 80),))),
        "one-pass": Sharded(uneven, {"exact": False}, "histogram"),
        "first-empty": Sharded(((), (padim,)), {"compare": COMPARED}, "histogram"),
        "last-empty": Sharded(((padim,), ()), {"compare": COMPARED}, "eighths"),
        "a-level-each": Sharded(((_part_of(padim, "image"),), (_part_of(padim, "pixel"),)), {}, "histogram"),
        "dropped": Sharded(
            ((_scores([1.0, np.nan, 3.0], [0, 1, 1]),), (_scores([np.inf], [0]), _scores([2.0, 5.0], [0, 1]))),
            {"nonfinite": "drop"},
        ),
        "only-dropped-in-one": Sharded(
            ((_scores([np.nan], [1]),), (_scores([2.0, 5.0], [0, 1]),)), {"nonfinite": "drop"}
        ),
        "convention": Sharded(
            ((_scores([-1.0, -2.0], ["good", "ok"]),), (_scores([-3.0, -0.5], ["bad", "good"]),)),
            {"step": "negate:level=image", "anomalous_label": "bad"},
            "histogram",
        ),
        "only-normal": Sharded(((_scores([1.0, 2.0], [0, 0]),), (_scores([4.0], [0]),))),
        "unlabelled": Sharded(((_scores([1.0, 2.0]),), (_scores([4.0]),))),
        "merged-across": Sharded(
            ((_scores([1.0, 2.0], [0, 1]),), (_scores([0.5, 2.0 + 1e-9], [0, 1]),)), {}, "histogram"
        ),
        "merged-in-one": Sharded(
            ((_scores(np.float32([1.0]), [0]),), (_scores([0.5, 2.0, 2.0 + 1e-9], [0, 1, 1]),)), {}, "histogram"
        ),
        "negative-zero": Sharded(((_scores(np.float32([-0.0, 1.0]), [0, 1]),), (_scores(np.float32([0.0]), [1]),))),
    }
    for seed, kind in enumerate(KINDS):
        for route in ("histogram", "eighths", "late-batches"):
            cases[f"{kind}-{route}"] = Sharded(_adversarial(kind, seed), {"compare": COMPARED, "resamples": 0}, route)
    return cases


def three_shards(route: str) -> Sharded:
    """Return many samples for rank 0, none for rank 1, a few in two batches for rank 2."""
    rng = np.random.default_rng(8)
    values = rng.gamma(2, size=120).astype(np.float32).round(2)
    whole = _scores(values, rng.random(120) < values / 9)
    last = (_part(whole, 90, 93), _part(whole, 93, 120))
    return Sharded(((_part(whole, 0, 90),), (), last), {"compare": COMPARED}, route)


def _part_of(batch: Batch, level: str) -> Batch:
    keys = ("pred_score", "gt_label") if level == "image" else ("anomaly_map", "gt_mask")
    return {key: batch[key] for key in keys}


SCORES = np.array([0.1, 0.4, 0.35, 0.8], dtype=np.float32)
LABELS = np.array([0, 0, 1, 1])
MAPS = np.arange(32, dtype=np.float32).reshape(2, 1, 4, 4)
MASKS = (MAPS[:, 0] > 20).astype(np.uint8)


def filled(**options: Any) -> Calibrator:
    """Return a calibrator that has seen four images and two maps."""
    calibrator = Calibrator(resamples=0, **options)
    calibrator.update(SCORES, LABELS)
    calibrator.update(anomaly_map=MAPS, gt_mask=MASKS)
    return calibrator


def sample(index: int) -> dict[str, torch.Tensor]:
    """Return a map of shape [1, 6, 5], its mask and its label; no two samples are alike."""
    rng = np.random.default_rng(index)
    mask = rng.random((6, 5)) < 0.1 * (index % 3)
    image = torch.from_numpy((rng.normal(index, 1, (1, 6, 5)) + 3 * mask).astype(np.float32))
    return {"image": image, "gt_mask": torch.from_numpy(mask), "gt_label": torch.tensor(bool(mask.any()))}


def statistics_of(indices: Iterable[int], *, factor: int = 1, maps_only: bool = False) -> dict[str, Any]:
    """Return the statistics of some samples, each seen once, from maps times a factor; in one process."""
    with Calibrator(resamples=20) as calibrator:
        for index in indices:
            one = sample(index)
            maps = one["image"] * factor
            image = {} if maps_only else {"pred_score": maps.max(), "gt_label": one["gt_label"]}
            calibrator.update(**image, anomaly_map=maps, gt_mask=one["gt_mask"])
        return calibrator.compute().to_json()
