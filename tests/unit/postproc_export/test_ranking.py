"""Areas under curves and quantiles in constant memory: against plain loops, torchmetrics, and nasty values."""

import tracemalloc
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from postproc_export.ranking import FPR_LIMIT, Ranking, aupro

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]
Regions = NDArray[np.int64]
AREAS: Final = ("auroc", "average_precision", "aupro")


def plain_areas(values: Sequence[float], truth: Sequence[bool], regions: Sequence[int]) -> dict[str, Fraction | None]:
    """Return the three areas by their definitions, threshold by threshold, in exact fractions."""
    pairs = [
        ((1, 0.0) if value != value else (0, float(value)), flag) for value, flag in zip(values, truth, strict=True)
    ]
    positives, negatives = [key for key, flag in pairs if flag], [key for key, flag in pairs if not flag]
    if not positives or not negatives:
        return dict.fromkeys(AREAS)
    halves = sum(2 * (p > n) + (p == n) for p in positives for n in negatives)
    thresholds = sorted({key for key, _ in pairs}, reverse=True)
    precision, before = Fraction(0), 0
    sizes = [regions.count(region) for region in range(max(regions, default=-1) + 1)]
    points = [(Fraction(0), Fraction(0))]
    for threshold in thresholds:
        tp, fp = (sum(key >= threshold for key in keys) for keys in (positives, negatives))
        precision += Fraction(tp - before, len(positives)) * Fraction(tp, tp + fp)
        before = tp
        found = [Fraction(1, sizes[region]) for key, region in zip(positives, regions, strict=True) if key >= threshold]
        points.append((Fraction(fp, len(negatives)), sum(found, Fraction(0)) / len(sizes)))
    return {
        "auroc": Fraction(halves, 2 * len(positives) * len(negatives)),
        "average_precision": precision,
        "aupro": trapezoid(points, Fraction(3, 10)) / Fraction(3, 10),
    }


def trapezoid(points: Sequence[tuple[Fraction, Fraction]], limit: Fraction) -> Fraction:
    """Return the area below a line through points, up to a limit of x, at which it is interpolated."""
    area = Fraction(0)
    for (x, y), (right, top) in pairwise(points):
        if right > limit and x < limit:
            right, top = limit, y + (top - y) * (limit - x) / (right - x)
        area += (right - x) * (y + top) / 2 if right <= limit else 0
    return area


def ranked(values: Floats, truth: Flags, regions: Regions, *, chunk: int, **sizes: int) -> Ranking:
    """Rank values that come in chunks; a region ends with its chunk."""
    ranking, done = Ranking(**sizes), 0
    for start in range(0, values.size, chunk):
        part = slice(start, start + chunk)
        count = int(truth[part].sum())
        ranking.add(values[part], truth[part], regions[done : done + count] - (regions[done] if count else 0))
        done += count
    return ranking


def regions_by_chunk(truth: Flags, *, chunk: int, size: int = 5) -> Regions:
    """Return region numbers of the anomalous values: `size` of a chunk each, and what is left."""
    found: list[int] = []
    for start in range(0, truth.size, chunk):
        count, first = int(truth[start : start + chunk].sum()), found[-1] + 1 if found else 0
        found += [first + number // size for number in range(count)]
    return np.array(found, np.int64)


SPECIAL: Final = (0.0, -0.0, 1.0, float("inf"), float("-inf"), float("nan"), 1e-45, -3e38, 0.5)
CHUNK: Final = 7


@st.composite
def samples(draw: Any) -> tuple[Floats, Flags, Regions]:
    """Draw values with ties and special ones, flags, and regions."""
    number = st.one_of(st.sampled_from(SPECIAL), st.floats(width=32), st.integers(0, 6).map(float))
    pairs = draw(st.lists(st.tuples(number, st.booleans()), min_size=1, max_size=60))
    truth = np.array([flag for _, flag in pairs], np.bool_)
    return np.array([value for value, _ in pairs], np.float32), truth, regions_by_chunk(truth, chunk=CHUNK, size=3)


@given(samples(), st.sampled_from([1, 20, 1 << 10]))
def test_areas_of_few_values_are_exact(drawn: tuple[Floats, Flags, Regions], waiting: int) -> None:
    """Any values, NaN and infinities too, in any order: what plain loops over all thresholds give, in fractions."""
    values, truth, regions = drawn
    expected = plain_areas(values.tolist(), truth.tolist(), regions.tolist())
    for name, found in ranked(values, truth, regions, chunk=CHUNK, waiting=waiting).areas().items():
        exact = expected[name]
        assert (found is None) == (exact is None)
        if found is not None and exact is not None:
            assert found["low"] == found["high"] == pytest.approx(float(exact), abs=1e-14)


@given(samples(), st.integers(2, 24), st.integers(1, 20))
def test_the_truth_lies_between_the_limits(drawn: tuple[Floats, Flags, Regions], kept: int, waiting: int) -> None:
    """However little is kept, and in whatever order: the limits hold the exact figure, and no count is lost."""
    values, truth, regions = drawn
    expected = plain_areas(values.tolist(), truth.tolist(), regions.tolist())
    ranking = ranked(values, truth, regions, chunk=CHUNK, kept=kept, waiting=waiting)
    for name, found in ranking.areas().items():
        exact = expected[name]
        if found is not None and exact is not None:
            assert found["low"] - 1e-12 <= exact <= found["high"] + 1e-12
    ranges = ranking.ranges()
    assert (ranges.normal.sum(), ranges.anomalous.sum()) == (truth.size - truth.sum(), truth.sum())
    assert ranges.weights.sum() == pytest.approx(ranking.n_regions)


def nasty(count: int) -> Iterator[tuple[str, Floats, Flags]]:
    """Give values that are hard to divide: by name."""
    rng = np.random.default_rng(7)
    truth = rng.random(count) < 0.05
    bulk = rng.gamma(2, 1, count).astype(np.float32)
    yield "one bucket", (1 + rng.random(count) * 2.0**-7).astype(np.float32), truth
    yield "heavy tails", np.exp(rng.normal(0, 8, count)).astype(np.float32), truth
    yield "ties", np.where(rng.random(count) < 0.5, np.float32(0), bulk), truth
    yield "both signs", rng.normal(0, 1, count).astype(np.float32) + truth, truth
    yield "ascending", np.sort(bulk), truth
    yield "one class first", bulk, np.sort(truth)[::-1].copy()
    centers = np.repeat(rng.random(64).astype(np.float32) * 8, count // 64)
    yield "clusters, one after the other", centers + bulk[: centers.size] * np.float32(1e-6), truth[: centers.size]
    yield "few first, then one spot", np.where(np.arange(count) < count // 20, bulk, 1 + bulk * np.float32(1e-5)), truth


def areas_by_sorting(values: Floats, truth: Flags, regions: Regions) -> dict[str, float]:
    """Return the three areas of many values, by sorting all of them."""
    _, places = np.unique(values, return_inverse=True)
    size = int(places.max()) + 1
    normal, anomalous = (np.bincount(places[flags], minlength=size) for flags in (~truth, truth))
    weights = np.bincount(places[truth], weights=1 / np.bincount(regions)[regions], minlength=size)
    below = np.cumsum(normal) - normal / 2
    tp, fp = np.cumsum(anomalous[::-1]), np.cumsum(normal[::-1])
    overlap = aupro(normal, weights)
    assert overlap is not None
    return {
        "auroc": float(anomalous @ below) / (int(normal.sum()) * int(anomalous.sum())),
        "average_precision": float(anomalous[::-1] @ (tp / (tp + fp))) / int(anomalous.sum()),
        "aupro": overlap,
    }


def check_bound(values: Floats, truth: Flags, *, chunk: int, bound: float, wider: float = 1, **sizes: int) -> None:
    """Hold that the exact figures lie between the limits, near their middle, and that these are near each other."""
    regions = regions_by_chunk(truth, chunk=chunk)
    ranking = ranked(values, truth, regions, chunk=chunk, **sizes)
    areas, expected = ranking.areas(), areas_by_sorting(values, truth, regions)
    for name, exact in expected.items():
        found = areas[name]
        assert found is not None
        assert found["low"] - 1e-11 <= exact <= found["high"] + 1e-11
        assert found["high"] - found["low"] <= 2 * bound * wider * (3 if name == "average_precision" else 1)
        assert abs(found["value"] - exact) <= bound


@pytest.mark.parametrize(("name", "values", "truth"), [pytest.param(*each, id=each[0]) for each in nasty(1 << 17)])
def test_limits_are_near_each_other(name: str, values: Floats, truth: Flags) -> None:
    """With a 128th of what is kept as a rule the bound is 128 times as wide, for any distribution and order."""
    check_bound(values, truth, chunk=1 << 11, bound=128e-6, kept=1 << 14, waiting=1 << 15)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, *_ in nasty(64)])
def test_figures_of_many_values_are_off_by_less_than_a_millionth(name: str) -> None:
    """Of 12 million values, six times what is kept."""
    values, truth = next((values, truth) for each, values, truth in nasty(12 << 20) if each == name)
    check_bound(values, truth, chunk=1 << 16, bound=1e-6)


def test_drifting_values_widen_the_limits_and_not_the_error() -> None:
    """Later images have up to five times the values of earlier ones: the truth is in the limits, near their middle."""
    rng, count, chunk = np.random.default_rng(1), 1 << 18, 1 << 11
    truth = rng.random(count) < 0.03
    values = (rng.normal(1, 0.4, count) + 0.3 * truth) * np.linspace(1, 5, count)
    check_bound(values.astype(np.float32), truth, chunk=chunk, bound=128e-6, wider=5, kept=1 << 14, waiting=1 << 15)


def test_memory_does_not_grow_with_the_values() -> None:
    """Four times as many values take no more memory."""
    peaks = []
    for rounds in (16, 64):
        rng, ranking = np.random.default_rng(3), Ranking(kept=1 << 12, waiting=1 << 13)
        tracemalloc.start()
        for _ in range(rounds):
            values = rng.normal(0, 1, 4096).astype(np.float32)
            ranking.add(values, values > 2, np.zeros(int((values > 2).sum()), np.int64))
        ranking.areas()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize("ties", [False, True])
def test_areas_agree_with_torchmetrics(ties: bool) -> None:
    """AUROC and average precision are those of torchmetrics, to 1e-6."""
    torch = pytest.importorskip("torch", reason="torchmetrics computes with torch")
    metrics = pytest.importorskip("torchmetrics.classification", reason="this compares with torchmetrics")
    rng = np.random.default_rng(11)
    truth = rng.random(5000) < 0.1
    values = np.clip(rng.normal(0.4, 0.2, 5000) + 0.2 * truth, 0, 1).astype(
        np.float32
    )  # beyond 0 to 1 it squashes them
    values = np.round(values, 2) if ties else values
    ranking = Ranking()
    ranking.add(values, truth)
    areas = ranking.areas()
    for name, metric in (("auroc", metrics.BinaryAUROC()), ("average_precision", metrics.BinaryAveragePrecision())):
        expected = float(metric(torch.from_numpy(values), torch.from_numpy(truth.astype(np.int64))))
        found = areas[name]
        assert found is not None
        assert found["value"] == pytest.approx(expected, abs=1e-6)


def test_the_overlap_of_known_maps() -> None:
    """A small region that is found counts as much as a large one that is missed; pixels alone would say otherwise."""
    values = np.array([9, 9, 5, 5, 5, 5, 5, 5, 1, 1, 1, 1], np.float32)
    truth = np.array([1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1], np.bool_)
    ranking = Ranking()
    ranking.add(values, truth, np.array([0, 0, 1, 1, 1, 1]))
    found = ranking.areas()["aupro"]
    assert found is not None
    assert found["value"] == pytest.approx(0.5)
    one_region = Ranking()
    one_region.add(values, truth, np.zeros(6, np.int64))
    found = one_region.areas()["aupro"]
    assert found is not None
    assert found["value"] == pytest.approx(1 / 3)


def test_the_overlap_is_interpolated_at_the_limit() -> None:
    """All values tie: the line goes from (0, 0) to (1, 1), and up to 0.3 the area is 0.045, which is 0.15 of 0.3."""
    assert aupro(np.array([10]), np.array([3.0])) == pytest.approx(0.15)
    assert aupro(np.array([10]), np.array([3.0]), limit=1.0) == pytest.approx(0.5)
    assert FPR_LIMIT == 0.3


@pytest.mark.parametrize(("normal", "weights"), [([3, 1], [0.0, 0.0]), ([0, 0], [1.0, 1.0]), ([], [])])
def test_without_a_class_there_is_no_overlap(normal: list[int], weights: list[float]) -> None:
    """None, and no number that looks like a figure."""
    assert aupro(np.array(normal, np.int64), np.array(weights)) is None


def test_quantiles_are_values_that_were_seen() -> None:
    """The inverted CDF of all values, exact while they are few; None without any."""
    ranking = Ranking()
    assert ranking.quantile(0.5) is None
    ranking.add(np.arange(1, 101, dtype=np.float32)[::-1])
    assert [ranking.quantile(share) for share in (0.0, 0.5, 0.95, 1.0)] == [1, 50, 95, 100]


def test_what_is_given_stays_as_it_is() -> None:
    """The caller may reuse its arrays at once, and they are not changed."""
    values, truth = np.array([np.nan, -0.0, 2.0, 1.0], np.float32), np.array([True, False, True, False])
    before = values.tobytes()
    ranking = Ranking()
    ranking.add(values, truth)
    assert values.tobytes() == before
    values[:], truth[:] = 0.0, False
    found = ranking.areas()["auroc"]
    assert found is not None
    assert found["value"] == 1.0
