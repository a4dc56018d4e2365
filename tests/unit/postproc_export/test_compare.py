"""`comparison`: what differs, by how much, where, and how far from the boundary."""

import subprocess
import sys

import numpy as np
import pytest

from postproc_export.comparison import EXACT, Tolerance, compare_labels, compare_scores, ulps_between

LOOSE = Tolerance(atol=1e-3, reason="for these tests")
NAN = float("nan")
INF = float("inf")


def test_equal_labels_pass_and_say_how_many() -> None:
    """Equal labels are truthy, and the count is in the sentence."""
    difference = compare_labels(np.array([True, False]), np.array([1, 0], np.uint8))
    assert difference
    assert difference.describe() == "2 labels equal"


def test_a_flip_carries_its_index_and_its_distance_from_the_boundary() -> None:
    """One flipped label is enough to fail, and it is shown with index, raw value and distance in raw units and ulps."""
    below = np.nextafter(np.float32(2.0), np.float32(0.0))
    raw = np.float32([[1.0, below], [2.0, 3.0]])
    expected = raw >= 2.0
    actual = expected.copy()
    actual[0, 1] = True
    difference = compare_labels(expected, actual, raw=raw, boundary=2.0)
    assert not difference
    (flip,) = difference.flips
    assert (flip["index"], flip["expected"], flip["ulps"]) == ((0, 1), False, -1)
    assert flip["distance"] == float(below) - 2.0
    assert difference.nearest == difference.farthest == abs(flip["distance"])
    assert "1 of 4 labels flipped" in difference.describe()
    assert "normal became anomalous at [0, 1]: raw 1.99999988, -1.19e-07 from the boundary (-1 ulp)" in str(
        difference.describe()
    )


@pytest.mark.parametrize(
    ("actual", "dtype", "reason"),
    [
        pytest.param(np.zeros((2, 1), bool), None, r"expected shape \[2\], found \[2, 1\]", id="shape"),
        pytest.param(np.zeros(2, np.uint8), "bool", "expected dtype bool, found uint8", id="dtype"),
        pytest.param(np.array([0, 2], np.uint8), "uint8", "1 labels are neither 0 nor 1, the first is 2", id="values"),
        pytest.param(np.array([0.0, NAN], np.float32), "float32", "neither 0 nor 1, the first is nan", id="nan"),
        pytest.param(None, "bool", "the output is missing", id="missing"),
    ],
)
def test_labels_that_cannot_be_compared_fail_with_a_reason(actual: np.ndarray, dtype: str, reason: str) -> None:
    """Shape, dtype and values that are no labels come before the comparison, and fail."""
    difference = compare_labels(np.zeros(2, bool), actual, dtype=dtype)
    assert not difference
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(difference.describe())


def test_a_comparison_of_nothing_fails() -> None:
    """No element in common is a failure, not a pass."""
    assert not compare_labels(np.zeros((0, 1), bool), np.zeros((0, 1), bool))
    assert not compare_scores(np.zeros(0, np.float32), np.zeros(0, np.float32))
    assert compare_scores(np.zeros(0, np.float32), np.zeros(0, np.float32)).describe() == "nothing to compare"


def test_an_excused_label_may_be_anomalous_but_never_normal() -> None:
    """An excuse allows 1 for 0; 0 for 1 stays a flip."""
    excused = np.array([True, True])
    allowed = compare_labels(np.array([False, False]), np.array([True, False]), excused=excused)
    assert allowed
    assert allowed.excused == 1
    assert not compare_labels(np.array([True, False]), np.array([False, False]), excused=excused)


@pytest.mark.parametrize(
    ("expected", "actual", "passes"),
    [
        pytest.param(0.25, 0.25, True, id="equal"),
        pytest.param(0.25, 0.2505, True, id="within"),
        pytest.param(0.25, 0.252, False, id="beyond"),
        pytest.param(NAN, NAN, True, id="nan-nan"),
        pytest.param(NAN, 1.0, True, id="nan-one"),
        pytest.param(NAN, 0.0, False, id="nan-normal"),
        pytest.param(NAN, 0.9999, False, id="nan-below-one"),
        pytest.param(0.25, NAN, False, id="number-nan"),
        pytest.param(0.25, INF, False, id="number-inf"),
    ],
)
def test_scores_within_the_tolerance_pass(expected: float, actual: float, passes: bool) -> None:
    """Numbers may differ by the tolerance; a NaN may become 1.0 and nothing below; a number never becomes NaN."""
    difference = compare_scores(np.float32([0.5, expected]), np.float32([0.5, actual]), tolerance=LOOSE)
    assert bool(difference) is passes
    assert passes or difference.index == (1,)


def test_a_tolerance_that_is_no_number_allows_nothing() -> None:
    """Whatever a bound was computed from: not even equal scores pass by it."""
    none = Tolerance(atol=float("nan"), reason="what it was computed from is not finite, so that it bounds nothing")
    difference = compare_scores(np.float32([0.5, 0.25]), np.float32([0.5, 0.75]), tolerance=none)
    assert (difference.over, bool(difference)) == (2, False)


def test_raw_values_keep_their_nan_and_their_infinities() -> None:
    """With nan="same" a NaN stays NaN; equal infinities have no error, opposite ones an infinite one."""
    raw = np.float32([NAN, INF, -INF, 1.0])
    assert compare_scores(raw, raw.copy(), nan="same")
    assert not compare_scores(raw, np.float32([1.0, INF, -INF, 1.0]), nan="same")
    assert not compare_scores(raw, np.float32([NAN, -INF, -INF, 1.0]), nan="same")


def test_an_excused_score_may_be_nan_or_one() -> None:
    """An excuse allows NaN and 1.0 for a number, and no other number."""
    expected, excused = np.float32([0.25]), np.array([True])
    assert compare_scores(expected, np.float32([NAN]), excused=excused).excused == 1
    assert compare_scores(expected, np.float32([1.0]), excused=excused)
    assert not compare_scores(expected, np.float32([0.75]), excused=excused)


def test_the_errors_are_summed_up() -> None:
    """Largest and mean error, the 99.9th percentile to 1 %, and the index of the worst."""
    random = np.random.default_rng(3)
    error = random.random(100_000)
    difference = compare_scores(np.zeros(100_000), error, tolerance=LOOSE, dtype=None)
    assert difference.largest == error.max()
    assert difference.index == (int(error.argmax()),)
    assert difference.mean == pytest.approx(error.mean())
    assert difference.quantile == pytest.approx(np.quantile(error, 0.999), rel=0.01)
    assert difference.over == int((error > LOOSE.atol).sum())


def test_the_worst_score_is_named_with_what_was_allowed() -> None:
    """A failed comparison prints how many, the worst with its index and both values, and the tolerance."""
    difference = compare_scores(np.float32([[0.0, 0.5]]), np.float32([[0.0, 0.25]]))
    assert difference.describe() == ("1 of 2 scores differ, worst 0.25 at [0, 1] (expected 0.5, found 0.25), allowed 0")
    assert difference.tolerance is EXACT


@pytest.mark.parametrize("cut", [1, 500, 999])
def test_parts_of_a_stream_merge_to_the_whole(cut: int) -> None:
    """Comparing in two parts gives the counts and errors of comparing at once; the second part's flips say so."""
    random = np.random.default_rng(5)
    expected, actual = random.random(1000), random.random(1000)
    whole = compare_scores(expected, actual, tolerance=LOOSE, dtype=None)
    parts = [
        compare_scores(expected[s], actual[s], tolerance=LOOSE, dtype=None) for s in (slice(cut), slice(cut, None))
    ]
    merged = parts[0].merge(parts[1])
    assert (merged.count, merged.over, merged.largest) == (whole.count, whole.over, whole.largest)
    assert (merged.mean, merged.quantile) == pytest.approx((whole.mean, whole.quantile))
    labels = [compare_labels(expected[s] > 0.5, actual[s] > 0.5) for s in (slice(cut), slice(cut, None))]
    assert labels[0].merge(labels[1]).flipped == compare_labels(expected > 0.5, actual > 0.5).flipped
    assert {flip["part"] for flip in compare_labels(expected[:1] > 2, actual[:1] > 2).merge(labels[1]).flips} <= {1}


@pytest.mark.parametrize(
    ("value", "reference", "steps"),
    [
        pytest.param(1.0, 1.0, 0, id="same"),
        pytest.param(float(np.float32(1e-45)), -0.0, 1, id="above-zero"),
        pytest.param(float(np.float32(-1e-45)), float(np.float32(1e-45)), -2, id="across-zero"),
        pytest.param(NAN, 1.0, None, id="nan"),
        pytest.param(INF, 1.0, None, id="inf"),
    ],
)
def test_distance_in_steps_of_float32(value: float, reference: float, steps: int | None) -> None:
    """Steps count through zero, whose two signs are one value; there are none to NaN and infinity."""
    assert ulps_between(value, reference) == steps


def test_comparing_needs_numpy_only() -> None:
    """Importing the comparison, and the whole check with it, loads no runtime, no torch and no onnx."""
    code = "import sys, postproc_export.comparison; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "onnx", "onnxruntime", "openvino", "PIL", "rich"} & set(run.stdout.split())
