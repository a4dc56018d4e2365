"""The decision boundary, the constants of the normalised score, and how far they may be off."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from raw_values import SPECIAL, adversarial, around

from postproc_export.errors import MetadataError, UsageError
from postproc_export.float32 import LARGEST, SMALLEST_NORMAL
from postproc_export.stats import (
    Comparison,
    LevelStats,
    check_comparison,
    check_sensitivity,
    choose_form,
    decision_boundary,
    error_bound,
    unit_constants,
    unit_scores,
)

INF = float("inf")
TINY = 2.0**-149
ULP = 2.0**-24

PADIM = LevelStats(threshold=5.344675064086914, min=3.2433979511260986, max=12.298707962036133)
SIMPLE = LevelStats(threshold=1.0, min=0.0, max=2.0)
LEVELS = {
    "padim": PADIM,
    "simple": SIMPLE,
    "negative": LevelStats(threshold=-3.25, min=-7.1, max=-0.2),
    "threshold-above": LevelStats(threshold=20.0, min=3.2, max=12.3),
    "threshold-below": LevelStats(threshold=-20.0, min=3.2, max=12.3),
    "zero-threshold": LevelStats(threshold=0.0, min=-0.1, max=0.3),
    "smallest-span": LevelStats(threshold=0.0, min=0.0, max=2.0**-75),
    "largest-span": LevelStats(threshold=1e37, min=-4e37, max=4e37),
    "at-the-top": LevelStats(threshold=3.4e38, min=3.0e38, max=3.3e38),
    "large-ratio": LevelStats(threshold=1000.0, min=1000.0, max=1000.5),
    "small": LevelStats(threshold=4.1e-3, min=1e-4, max=1e-2),
}
SENSITIVITIES = [0.0, 0.09, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0]

levels = pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
at_sensitivities = pytest.mark.parametrize("sensitivity", SENSITIVITIES)


def level_at(threshold: float, *, span: float = 2.0) -> LevelStats:
    """Return a level with this threshold and a range from 0."""
    return LevelStats(threshold=threshold, min=0.0, max=span)


def anomalib_label(raw: NDArray[np.float32], level: LevelStats, sensitivity: float) -> NDArray[np.bool_]:
    """Anomalib's decision as its code computes it, in torch, but for NaN."""
    threshold, low, high = (
        torch.tensor(value, dtype=torch.float32) for value in (level.threshold, level.min, level.max)
    )
    unit = (((torch.from_numpy(raw) - threshold) / (high - low)) + 0.5).clamp(min=0, max=1)
    cut = torch.tensor(1.0, dtype=torch.float32) - torch.tensor(sensitivity, dtype=torch.float32)
    return (unit > cut).numpy()


def exact_label(raw: float, level: LevelStats, sensitivity: float) -> bool:
    """Decide by the definition, in exact arithmetic."""
    if sensitivity == 1.0:
        return True
    if np.isinf(raw):
        return bool(raw > 0)
    assert level.threshold is not None
    a = Fraction(float(np.float32(sensitivity)))
    span = Fraction(level.max) - Fraction(level.min)
    return Fraction(raw) >= Fraction(level.threshold) + (Fraction(1, 2) - a) * span


# --- the exact rule


@levels
def test_default_boundary_is_the_threshold(level: LevelStats) -> None:
    """At sensitivity 0.5 the decision is `s >= threshold`, the very one that calibration optimised."""
    assert decision_boundary(level) == level.threshold
    assert decision_boundary(level, sensitivity=0.5, comparison="ge") == level.threshold


@at_sensitivities
@levels
def test_ge_is_the_definition(level: LevelStats, sensitivity: float) -> None:
    """`not (s < boundary)` is the exact decision at every neighbour of the boundary and every special value."""
    boundary = decision_boundary(level, sensitivity=sensitivity)
    raw = adversarial(level, boundary)
    raw = raw[~np.isnan(raw)]
    assert (~(raw < np.float32(boundary))).tolist() == [exact_label(float(s), level, sensitivity) for s in raw]


@pytest.mark.parametrize(
    ("sensitivity", "expected"),
    [
        (0.0, 2.0),
        (0.25, 1.5),
        (0.5, 1.0),
        (0.75, 0.5),
        (1.0, -INF),
        (0.1, 1.8000000715255737),
        (0.9, 0.20000004768371582),
    ],
)
def test_ge_values(sensitivity: float, expected: float) -> None:
    """Threshold 1 and range [0, 2] give boundaries that can be checked by hand, with the float32 sensitivity."""
    assert decision_boundary(SIMPLE, sensitivity=sensitivity) == expected


def test_ge_takes_the_exact_difference_of_max_and_min() -> None:
    """The boundary follows from max - min itself, not from the rounded span."""
    level = LevelStats(threshold=0.0, min=-(2.0**-25), max=1.0)
    assert level.span == 1.0
    assert decision_boundary(level, sensitivity=0.0) == 0.5 + 2.0**-24
    assert decision_boundary(level, sensitivity=0.99999) < 0


def test_ge_beyond_float32() -> None:
    """A boundary above every float32 is inf; one below is the lowest float32, for -inf is below it still."""
    assert decision_boundary(LEVELS["at-the-top"], sensitivity=0.0) == INF
    bottom = LevelStats(threshold=-3.4e38, min=0.0, max=3e37)
    assert decision_boundary(bottom, sensitivity=0.9) == -LARGEST


def test_sensitivity_that_rounds_to_one_is_one() -> None:
    """The float32 sensitivity decides: what rounds to 1 makes everything anomalous."""
    assert decision_boundary(SIMPLE, sensitivity=1 - 1e-9) == -INF
    assert decision_boundary(SIMPLE, sensitivity=1 - 2.0**-24) == 2.0**-23


# --- Anomalib's rule


@at_sensitivities
@levels
def test_gt_is_anomalib_around_the_boundary(level: LevelStats, sensitivity: float) -> None:
    """`not (s < boundary)` is Anomalib's float32 decision, but for inf where no finite score is anomalous."""
    boundary = decision_boundary(level, sensitivity=sensitivity, comparison="gt")
    exact = decision_boundary(level, sensitivity=sensitivity)
    raw = np.concatenate([adversarial(level, boundary), around(max(exact, -LARGEST), steps=3000)])
    raw = raw[~np.isnan(raw)]
    ours = ~(raw < np.float32(boundary))
    theirs = anomalib_label(raw, level, sensitivity)
    agreed = np.isfinite(raw) | (boundary < INF)
    assert np.array_equal(ours[agreed], theirs[agreed])
    assert ours[raw == INF].all()


@at_sensitivities
@levels
def test_gt_is_anomalib_everywhere(level: LevelStats, sensitivity: float) -> None:
    """The same on random bit patterns and on a dense sample of the range."""
    rng = np.random.default_rng(7)
    bits = rng.integers(0, 2**32, 8_000, dtype=np.uint32).view(np.float32)
    with np.errstate(over="ignore"):
        dense = np.linspace(level.min - level.span, level.max + level.span, 8_000).astype(np.float32)
    raw = np.concatenate([bits, dense])
    raw = raw[np.isfinite(raw)]
    boundary = decision_boundary(level, sensitivity=sensitivity, comparison="gt")
    assert np.array_equal(~(raw < np.float32(boundary)), anomalib_label(raw, level, sensitivity))


@pytest.mark.parametrize("percent", range(101))
def test_gt_cuts_as_anomalib_does(percent: int) -> None:
    """The cut is float32(1) - float32(a), not 1 - a rounded once; decided at the boundary's neighbours."""
    sensitivity = percent / 100
    boundary = decision_boundary(SIMPLE, sensitivity=sensitivity, comparison="gt")
    raw = around(boundary)[:-1]
    raw = raw[np.isfinite(raw)]
    assert np.array_equal(~(raw < np.float32(boundary)), anomalib_label(raw, SIMPLE, sensitivity))


@pytest.mark.parametrize(
    ("sensitivity", "expected"),
    [(0.0, INF), (0.5, 1.0000001192092896), (1.0, 2.0**-25 + 2.0**-48), (0.25, 1.5000001192092896)],
)
def test_gt_values(sensitivity: float, expected: float) -> None:
    """Threshold 1 and range [0, 2]: the first float32 whose rounded unit score exceeds the cut."""
    assert decision_boundary(SIMPLE, sensitivity=sensitivity, comparison="gt") == expected


def test_gt_beyond_float32() -> None:
    """Where no finite score exceeds the cut the boundary is inf, where all do the lowest float32, never -inf."""
    assert decision_boundary(LEVELS["at-the-top"], sensitivity=0.1, comparison="gt") == INF
    bottom = LevelStats(threshold=-LARGEST, min=0.0, max=3e37)
    assert decision_boundary(bottom, sensitivity=0.9, comparison="gt") == -LARGEST


# --- what is refused


@pytest.mark.parametrize("threshold", [TINY, -TINY, SMALLEST_NORMAL - TINY, 1e-40])
def test_subnormal_boundaries_are_refused(threshold: float) -> None:
    """A boundary that some runtimes would flush to zero is refused, with the value and the reason."""
    with pytest.raises(MetadataError, match=r"subnormal float32 at sensitivity 0.5\n.*e-.*\n.*flush"):
        decision_boundary(level_at(threshold))


def test_subnormal_threshold_is_fine_where_the_boundary_is_not_one() -> None:
    """It is the boundary that must not be subnormal, not the threshold."""
    assert decision_boundary(level_at(1e-40), sensitivity=0.25) == 0.5000000596046448


@pytest.mark.parametrize("threshold", [0.0, -0.0, SMALLEST_NORMAL, -SMALLEST_NORMAL])
def test_boundaries_at_the_edge_of_the_subnormal(threshold: float) -> None:
    """Zero and the smallest normal numbers are boundaries like others; zero is never -0.0."""
    boundary = decision_boundary(level_at(threshold))
    assert boundary == threshold
    assert not (boundary == 0 and np.signbit(boundary))


def test_a_boundary_just_below_zero_is_zero() -> None:
    """A negative bound above the largest negative float32 gives 0.0, the smallest that satisfies it."""
    # 2^-99 - 2^-24 (2^-75 + 2^-140) = -2^-164
    level = LevelStats(threshold=2.0**-99, min=-(2.0**-140), max=2.0**-75)
    boundary = decision_boundary(level, sensitivity=0.5 + 2.0**-24)
    assert boundary == 0.0
    assert not np.signbit(boundary)


@pytest.mark.parametrize("comparison", ["ge", "gt"])
@pytest.mark.parametrize("sensitivity", [0.5, 1.0])
def test_a_level_without_threshold_has_no_boundary(comparison: Comparison, sensitivity: float) -> None:
    """A range alone decides nothing, at no sensitivity."""
    with pytest.raises(MetadataError, match=r"a range but no threshold\n.*other level's\n.*match thresholds"):
        decision_boundary(LevelStats(threshold=None, min=0.0, max=1.0), sensitivity=sensitivity, comparison=comparison)


@pytest.mark.parametrize("value", ["le", "", None, 1, "x" * 99])
def test_unknown_comparisons_are_refused(value: Any) -> None:
    """Only the two rules of the definition are known; a long text is cut."""
    with pytest.raises(UsageError, match=r"unknown comparison\n.*found: .{1,62}\n.*'ge' or 'gt'"):
        decision_boundary(SIMPLE, comparison=value)
    assert [check_comparison(known) for known in ("ge", "gt")] == ["ge", "gt"]


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(-1e-60, id="negative"),
        pytest.param(1.0 + 2.0**-52, id="above"),
        pytest.param(float("nan"), id="nan"),
        pytest.param(INF, id="inf"),
        pytest.param(True, id="bool"),
        pytest.param(np.True_, id="numpy-bool"),
        pytest.param("0.5", id="text"),
        pytest.param(None, id="none"),
        pytest.param(0.5j, id="complex"),
        pytest.param("x" * 99, id="long-text"),
    ],
)
def test_illegal_sensitivities_are_refused(value: Any) -> None:
    """Only numbers in [0, 1] are sensitivities, before rounding; the message says which one was meant."""
    with pytest.raises(MetadataError, match=r"^tau .{1,62}: use 0 to 1\n"):
        check_sensitivity(value, name="tau")
    with pytest.raises(MetadataError, match=r"^sensitivity .*: use 0 to 1"):
        decision_boundary(SIMPLE, sensitivity=value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0.0),
        (0.0, 0.0),
        (-0.0, 0.0),
        (1, 1.0),
        (0.1, 0.10000000149011612),
        (np.float64(0.5), 0.5),
        (np.int8(1), 1.0),
    ],
)
def test_sensitivities_are_rounded_to_float32(value: Any, expected: float) -> None:
    """Every kind of number is taken, both ends and zero included, and rounded once."""
    found = check_sensitivity(value)
    assert (found, type(found)) == (expected, float)
    assert not np.signbit(found)


# --- the normalised score


@levels
def test_unit_scores_have_the_bits_of_torch(level: LevelStats) -> None:
    """The NumPy formula rounds as torch does, for special values, neighbours and a dense sample; NaN stays NaN."""
    with np.errstate(over="ignore"):
        dense = np.linspace(level.min - level.span, level.max + level.span, 10_000).astype(np.float32)
    raw = np.concatenate([adversarial(level), dense])
    threshold, low, high = (
        torch.tensor(value, dtype=torch.float32) for value in (level.threshold, level.min, level.max)
    )
    expected = (((torch.from_numpy(raw) - threshold) / (high - low)) + 0.5).clamp(min=0, max=1).numpy()
    found = unit_scores(raw, level)
    assert found.dtype == np.float32
    assert np.array_equal(found, expected, equal_nan=True)


def test_unit_scores_at_the_marks() -> None:
    """The threshold is exactly one half, and half a span to either side are the ends of the scale."""
    raw = [[1.0, 0.0, 2.0, 0.5], [-1e30, 1e30, np.inf, -np.inf]]
    assert unit_scores(raw, SIMPLE).tolist() == [[0.5, 0.0, 1.0, 0.25], [0.0, 1.0, 1.0, 0.0]]
    assert np.isnan(unit_scores(np.nan, SIMPLE))


def test_unit_scores_cast_to_float32_first() -> None:
    """A float64 value counts as the float32 that it rounds to, without a warning where that overflows."""
    assert unit_scores(np.float64([1 + 1e-12, 1e300]), SIMPLE).tolist() == [0.5, 1.0]
    assert isinstance(unit_scores(1.0, SIMPLE), np.ndarray)
    assert unit_scores(1.0, SIMPLE).shape == ()


def test_unit_scores_leave_their_input_alone() -> None:
    """The raw values are read only."""
    raw = np.float32([1.0, 5.0])
    raw.flags.writeable = False
    unit_scores(raw, SIMPLE)
    assert raw.tolist() == [1.0, 5.0]


# --- the exported forms


def test_constants_by_hand() -> None:
    """alpha = 1/span, beta = 1/2 - threshold/span, or the threshold as offset and beta = 1/2."""
    level = LevelStats(threshold=3.0, min=1.0, max=5.0)
    assert unit_constants(level, "fused") == (0.25, -0.25, 0.0)
    assert unit_constants(level, "centred") == (0.25, 0.5, 3.0)


@levels
def test_constants_are_rounded_once(level: LevelStats) -> None:
    """No other float32 is nearer to the exact rational."""
    assert level.threshold is not None
    span = Fraction(level.span)
    alpha, beta, _ = unit_constants(level, "fused")
    exact_beta = Fraction(1, 2) - Fraction(level.threshold) / span
    for found, exact in ((alpha, 1 / span), (beta, exact_beta)):
        below, value, above = (Fraction(float(near)) for near in around(found, steps=1))
        assert abs(value - exact) <= min(abs(below - exact), abs(above - exact))
    assert unit_constants(level, "centred") == (alpha, 0.5, level.threshold)


@pytest.mark.parametrize("form", ["fused", "centred"])
def test_constants_need_a_threshold(form: Any) -> None:
    """A range alone has no normalised score."""
    with pytest.raises(MetadataError, match="a range but no threshold"):
        unit_constants(LevelStats(threshold=None, min=0.0, max=1.0), form)


@pytest.mark.parametrize(("threshold", "expected"), [(0.0, 5), (2.0, 8), (-2.0, 8), (20.0, 35)])
def test_error_bound_of_the_fused_form(threshold: float, expected: int) -> None:
    """(3 r + 5) 2^-24 with r = |threshold| / span."""
    assert error_bound(level_at(threshold), "fused") == expected * ULP


@pytest.mark.parametrize("threshold", [0.0, 2e6])
def test_error_bound_of_the_centred_form(threshold: float) -> None:
    """2.5 * 2^-24, whatever the statistics."""
    assert error_bound(level_at(threshold), "centred") == 2.5 * ULP


@pytest.mark.parametrize(
    ("ratio", "form"), [(0.0, "fused"), (54.25, "fused"), (-54.25, "fused"), (54.27, "centred"), (-54.27, "centred")]
)
def test_form_changes_where_the_bound_exceeds_1e_5(ratio: float, form: str) -> None:
    """The one-operator form is taken up to |threshold| / span of about 54.26, where its bound is 1e-5."""
    assert choose_form(level_at(2 * ratio)) == form


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.3, 0.5, 1.0, 3.0, 20.0, 54.0, 300.0, 10_000.0])
@pytest.mark.parametrize("form", ["fused", "centred"])
def test_error_stays_within_its_bound(form: Any, ratio: float) -> None:
    """Both forms, in two roundings or with a fused multiply-add, stay within the bound; and use a fair part of it."""
    rng = np.random.default_rng(3)
    shares = []
    for _ in range(30):
        span = float(10 ** rng.uniform(-6, 6))
        level = LevelStats(threshold=ratio * span * rng.choice([-1, 1]), min=-0.3 * span, max=0.7 * span)
        offsets = rng.uniform(-0.6, 0.6, 3000).astype(np.float32)
        raw = np.float32(level.threshold) + offsets * np.float32(level.span)
        reference = unit_scores(raw, level).astype(np.float64)
        alpha, beta, offset = unit_constants(level, form)
        values = raw - np.float32(offset)
        stepwise = np.float32(alpha) * values + np.float32(beta)
        fma = (values.astype(np.float64) * alpha + beta).astype(np.float32)
        errors = [np.abs(np.clip(form_, 0, 1) - reference).max() for form_ in (stepwise, fma)]
        shares.append(max(errors) / error_bound(level, form))
    assert 0.15 <= max(shares) <= 1.0


def test_the_adversarial_values_have_every_kind_of_value() -> None:
    """The table that the other tests rely on holds what it promises."""
    values = np.float32(list(SPECIAL.values()))
    assert np.isnan(values).sum() == 1
    assert np.isinf(values).sum() == 2
    assert around(0.0, steps=1).tolist() == [-TINY, 0.0, TINY]
    assert around(1.0, steps=1).tolist() == [1 - 2.0**-24, 1.0, 1 + 2.0**-23]
    assert around(-1.0, steps=1).tolist() == [-1 - 2.0**-23, -1.0, -1 + 2.0**-24]
    assert around(INF, steps=1).tolist() == [LARGEST, INF, INF]
    assert {5.344675064086914, 3.2433979511260986, 12.298707962036133, 9.5} <= set(adversarial(PADIM, 9.5).tolist())
