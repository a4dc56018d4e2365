"""Properties of the decision boundary and the normalised score, over every kind of legal statistics."""

import json
from fractions import Fraction

import numpy as np
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from raw_values import adversarial, any32, around, comparisons, finite32, level_stats, sensitivities, stats

from postproc_export.eager import PostProcessor
from postproc_export.errors import MetadataError
from postproc_export.float32 import nearest, ranked, smallest_at_least
from postproc_export.stats import (
    CalibrationStats,
    Comparison,
    LevelStats,
    choose_form,
    decision_boundary,
    error_bound,
    unit_constants,
    unit_scores,
)

RANKS = st.integers(-0x7F7FFFFE, 0x7F7FFFFF)  # of every finite float32 that has a finite one below
RAW = st.lists(any32, max_size=20)


def boundary_of(level: LevelStats, sensitivity: float, comparison: Comparison = "ge") -> float:
    """Return the boundary; statistics with a subnormal one are not of interest here."""
    try:
        return decision_boundary(level, sensitivity=sensitivity, comparison=comparison)
    except MetadataError as error:
        if "subnormal" not in error.what:
            raise
        reject()


@given(RANKS, st.fractions(0, 1))
def test_smallest_at_least_is_exact(rank: int, share: Fraction) -> None:
    """Between two neighbours the upper one is found, at the lower one itself the lower."""
    low, high = Fraction(ranked(rank - 1)), Fraction(ranked(rank))
    bound = low + share * (high - low)
    assert smallest_at_least(bound) == float(low if share == 0 else high)


@given(RANKS, st.fractions(0, 1))
def test_nearest_is_exact(rank: int, share: Fraction) -> None:
    """Between two neighbours the nearer one is found, halfway the one with the even last bit."""
    low, high = Fraction(ranked(rank - 1)), Fraction(ranked(rank))
    expected = high if share > Fraction(1, 2) or (share == Fraction(1, 2) and rank % 2 == 0) else low
    assert nearest(low + share * (high - low)) == expected


@given(level_stats(), sensitivities, st.lists(finite32, max_size=20))
def test_ge_is_the_exact_decision(level: LevelStats, sensitivity: float, raw: list[float]) -> None:
    """`not (s < boundary)` says what exact rational arithmetic says, for every finite score."""
    boundary = boundary_of(level, sensitivity)
    a = Fraction(float(np.float32(sensitivity)))
    assert level.threshold is not None
    bound = Fraction(level.threshold) + (Fraction(1, 2) - a) * (Fraction(level.max) - Fraction(level.min))
    scores = np.concatenate([np.float32(raw), adversarial(level, boundary)])
    for score in scores[np.isfinite(scores)]:
        assert (not score < np.float32(boundary)) == (a == 1 or Fraction(float(score)) >= bound)


@given(level_stats(), sensitivities, RAW)
def test_gt_is_the_float32_rule(level: LevelStats, sensitivity: float, raw: list[float]) -> None:
    """`not (s < boundary)` is `unit(s) > float32(1) - float32(a)`, for every score but NaN and an unreachable inf."""
    boundary = boundary_of(level, sensitivity, "gt")
    scores = np.concatenate([np.float32(raw), adversarial(level, boundary), around(boundary, steps=300)])
    scores = scores[~np.isnan(scores) & ((scores < np.inf) | (boundary < np.inf))]
    expected = unit_scores(scores, level) > np.float32(1) - np.float32(sensitivity)
    assert np.array_equal(~(scores < np.float32(boundary)), expected)


@given(level_stats(), comparisons, st.lists(sensitivities, min_size=2, max_size=6))
def test_higher_sensitivity_never_raises_the_boundary(
    level: LevelStats, comparison: Comparison, values: list[float]
) -> None:
    """More sensitive means that no anomaly is lost."""
    boundaries = [boundary_of(level, value, comparison) for value in sorted(values)]
    assert boundaries == sorted(boundaries, reverse=True)


@given(st.lists(any32, min_size=2), level_stats())
def test_unit_score_keeps_order(scores: list[float], level: LevelStats) -> None:
    """A higher raw score never gets a lower unit score, the threshold maps to exactly one half, NaN to NaN."""
    raw = np.sort(np.float32(scores))
    unit = unit_scores(raw, level)
    assert np.array_equal(np.isnan(unit), np.isnan(raw))
    assert np.all(np.diff(unit[~np.isnan(unit)]) >= 0)
    assert unit_scores(level.threshold, level) == 0.5


@given(level_stats(max_ratio=1e6), st.lists(st.floats(-1.0, 1.0, width=32), min_size=1), RAW)
def test_exported_score_stays_within_its_bound(level: LevelStats, offsets: list[float], raw: list[float]) -> None:
    """The form that is chosen is within its bound of the reference, everywhere, and that bound within 1e-5."""
    form = choose_form(level)
    alpha, beta, offset = unit_constants(level, form)
    with np.errstate(all="ignore"):
        inside = np.float32(level.threshold) + np.float32(offsets) * np.float32(level.span)
        scores = np.concatenate([inside, np.float32(raw), adversarial(level)])
        exported = np.clip(np.float32(alpha) * (scores - np.float32(offset)) + np.float32(beta), 0, 1)
    error = np.abs(exported.astype(np.float64) - unit_scores(scores, level))
    assert np.array_equal(np.isnan(error), np.isnan(scores))
    assert np.nanmax(error) <= error_bound(level, form) <= 1e-5


@given(stats(), sensitivities, comparisons, RAW)
@settings(deadline=None)
def test_eager_decides_by_the_boundary(
    statistics: CalibrationStats, sensitivity: float, comparison: Comparison, raw: list[float]
) -> None:
    """The module's labels and scores are those of the boundary and of the NumPy formula, on both levels; NaN is 1."""
    levels = {name: statistics.level(name) for name in ("image", "pixel")}  # type: ignore[arg-type]
    boundaries = {name: boundary_of(level, sensitivity, comparison) for name, level in levels.items() if level}
    module = PostProcessor(
        statistics, image_sensitivity=sensitivity, pixel_sensitivity=sensitivity, comparison=comparison, nan_guard=False
    )
    marks = [adversarial(level, boundaries[name]) for name, level in levels.items() if level]
    scores = np.concatenate([np.float32(raw), *marks])
    output = module(torch.from_numpy(scores), torch.from_numpy(scores.reshape(-1, 1, 1, 1)))
    found = {"image": output[:2], "pixel": output[2:]}
    for name, level in levels.items():
        if level is not None:
            score, label = (tensor.numpy().ravel() for tensor in found[name])
            assert np.array_equal(score, unit_scores(scores, level), equal_nan=True)
            assert np.array_equal(label, ~(scores < np.float32(boundaries[name])))
            assert label[np.isnan(scores)].all()


@given(stats(), stats(), sensitivities, comparisons)
@settings(deadline=None)
def test_state_dict_carries_everything(
    before: CalibrationStats, after: CalibrationStats, sensitivity: float, comparison: Comparison
) -> None:
    """A module that loads another one's state decides as that one does."""
    for statistics in (before, after):
        for level in (statistics.image, statistics.pixel):
            if level is not None:
                boundary_of(level, sensitivity, comparison)
                boundary_of(level, 0.5)
    source = PostProcessor(
        before, image_sensitivity=sensitivity, pixel_sensitivity=sensitivity, comparison=comparison, nan_guard=False
    )
    target = PostProcessor(after)
    target.load_state_dict(source.state_dict())
    assert target.extra_repr() == source.extra_repr()
    assert target.stats == source.stats == before
    for name, buffer in source.named_buffers():
        assert torch.equal(buffer.isnan(), target.get_buffer(name).isnan())
        assert torch.equal(buffer.nan_to_num(), target.get_buffer(name).nan_to_num())


@given(stats())
def test_statistics_survive_their_file(statistics: CalibrationStats) -> None:
    """Statistics that went through JSON are equal, to the bit."""
    assert CalibrationStats.from_json(json.loads(statistics.dumps())) == statistics
