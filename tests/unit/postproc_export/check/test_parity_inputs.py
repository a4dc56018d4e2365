"""`check.inputs` and `check.attached`: adversarial raw values, maps that hold them, maps that are excused."""

import numpy as np
import pytest

from postproc_export.check.attached import Guard, excused_images
from postproc_export.check.inputs import MODERATE, SPECIAL, maps_of, raw_values
from postproc_export.stats import LevelStats

LEVEL = LevelStats(threshold=2.5, min=-1.0, max=7.0)
BOUNDARY = 3.0
NAN, INF = float("nan"), float("inf")
HUGE = 3e38
DTYPES = ("float16", "bfloat16", "float32", "float64")


@pytest.mark.parametrize("dtype", DTYPES)
def test_there_are_at_least_100_000_values_of_the_raw_type(dtype: str) -> None:
    """Every raw type gets at least 100,000 values, in that type; bfloat16 in float32 that bfloat16 can hold."""
    values = raw_values(LEVEL, BOUNDARY, dtype=dtype).all
    assert values.size >= 100_000
    assert values.dtype == ("float32" if dtype == "bfloat16" else dtype)
    if dtype == "bfloat16":
        assert not np.any(values[np.isfinite(values)].view(np.uint32) & 0xFFFF)


@pytest.mark.parametrize("anchor", [BOUNDARY, LEVEL.threshold, LEVEL.min, LEVEL.max, 0.0])
def test_every_anchor_has_its_neighbours(anchor: float) -> None:
    """Boundary, threshold, min, max and 0 are there, and every float32 up to 8 steps (64, in fact) to either side."""
    present = set(raw_values(LEVEL, BOUNDARY).few.tolist())
    for direction in (-np.inf, np.inf):
        value = np.float32(anchor)
        for _ in range(64):
            assert float(value) in present
            value = np.nextafter(value, np.float32(direction))


def test_the_special_values_are_there_by_their_bits() -> None:
    """NaN of several bit patterns, infinities, both zeros, subnormals and the largest numbers are fed as they are."""
    values = raw_values(LEVEL, BOUNDARY)
    assert np.array_equal(values.special.view(np.uint32), SPECIAL.view(np.uint32))
    assert {0x7FC00000, 0xFFC00000, 0x7F800000, 0xFF800000, 0, 0x80000000, 1, 0x807FFFFF, 0x7F7FFFFF} <= set(
        SPECIAL.view(np.uint32).tolist()
    )


def test_the_range_is_sampled_densely_and_all_magnitudes_occur() -> None:
    """No gap above a thousandth of the span within the range; tiny and huge values of both signs; no NaN among them."""
    values = raw_values(LEVEL, BOUNDARY)
    inside = np.sort(values.ordinary[(values.ordinary >= LEVEL.min) & (values.ordinary <= LEVEL.max)])
    assert np.diff(inside).max() < LEVEL.span / 1000
    assert np.abs(values.ordinary[values.ordinary != 0]).min() < 1e-37
    assert values.rising.min() >= MODERATE
    assert values.falling.max() <= -MODERATE
    assert np.isfinite(values.ordinary).all()


def test_a_seed_gives_the_same_values_again() -> None:
    """Two calls agree to the bit; another seed gives others."""
    first, second, other = (raw_values(LEVEL, BOUNDARY, seed=seed).ordinary for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("boundary", [INF, -INF, 0.0, 2.0**-126, -3.0e38])
def test_extreme_boundaries_have_neighbours_too(boundary: float) -> None:
    """A boundary at infinity, zero, the smallest normal or near the largest number gives finite critical values."""
    values = raw_values(LEVEL, boundary)
    assert values.all.size >= 100_000
    assert np.isfinite(values.critical).all()


def test_float64_values_fall_between_float32_ones() -> None:
    """For a float64 output some values lie between the boundary and its neighbours, so that the cast decides."""
    critical = raw_values(LEVEL, BOUNDARY, dtype="float64").critical
    between = critical[critical != critical.astype(np.float32)]
    assert np.any(between < BOUNDARY)
    assert np.any(between.astype(np.float32)[between < BOUNDARY] == BOUNDARY)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (16, 16)])
def test_each_special_value_stands_in_a_map_of_its_own(height: int, width: int) -> None:
    """The first maps hold one special value each and the filler elsewhere; values of all kinds are in the maps."""
    values = raw_values(LEVEL, BOUNDARY)
    maps = maps_of(values, height=height, width=width, filler=LEVEL.min)
    special = maps[: len(values.special)].reshape(len(values.special), -1)
    others = special.view(np.uint32) != np.float32(LEVEL.min).view(np.uint32)
    assert others.sum(axis=1).tolist() == [1] * len(values.special)
    assert np.array_equal(special[others].view(np.uint32), values.special.view(np.uint32))
    assert np.isin(values.all[~np.isnan(values.all)], maps).all()


@pytest.mark.parametrize("guard", ["l1", "sum"])
def test_no_packed_map_needs_an_excuse(guard: Guard) -> None:
    """Huge values of both signs never share a map, so the guards by L1 norm and by sum have nothing to excuse."""
    maps = maps_of(raw_values(LEVEL, BOUNDARY), height=16, width=16, filler=LEVEL.min)
    assert not excused_images(maps, guard).any()


@pytest.mark.parametrize(
    ("values", "by_sum", "arithmetic"),
    [
        pytest.param([1.0, 2.0], False, False, id="ordinary"),
        pytest.param([INF, -INF], True, True, id="infinities-of-both-signs"),
        pytest.param([INF, 1.0], False, True, id="one-infinity"),
        pytest.param([HUGE, HUGE, -HUGE, -HUGE], True, True, id="overflow-both-ways"),
        pytest.param([HUGE, HUGE, 0.0], False, True, id="overflow-one-way"),
        pytest.param([HUGE, HUGE, -INF], True, True, id="overflow-and-infinity"),
        pytest.param([NAN, INF, -INF], False, False, id="nan-is-no-excuse"),
    ],
)
def test_exactly_the_named_maps_are_excused(values: list[float], by_sum: bool, arithmetic: bool) -> None:
    """docs/definition.md section 5 to the letter; a map with a NaN is anomalous by itself and needs no excuse."""
    maps = np.float32([values])
    assert excused_images(maps, "sum").tolist() == [by_sum]
    assert excused_images(maps, "arithmetic").tolist() == [arithmetic]
    assert excused_images(maps, "l1").tolist() == excused_images(maps, "none").tolist() == [False]
