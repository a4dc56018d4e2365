"""float32 scalars: rounding, order and neighbours."""

from fractions import Fraction

import numpy as np
import pytest

from postproc_export.float32 import (
    LARGEST,
    SMALLEST_NORMAL,
    is_subnormal,
    nearest,
    next_up,
    ranked,
    shortest,
    smallest_at_least,
    smallest_where,
    to_float32,
)

TINY = 2.0**-149
INF = float("inf")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(0.1, 0.10000000149011612, id="rounded"),
        pytest.param(1 + 2.0**-24, 1.0, id="tie-to-even-down"),
        pytest.param(1 + 3 * 2.0**-24, 1 + 2.0**-22, id="tie-to-even-up"),
        pytest.param(1e39, INF, id="overflow"),
        pytest.param(1e-60, 0.0, id="underflow"),
    ],
)
def test_to_float32_rounds_to_nearest_even(value: float, expected: float) -> None:
    """A double becomes the nearest float32, ties go to the even one, and nothing warns."""
    assert to_float32(value) == expected


@pytest.mark.parametrize("value", [-0.0, -1e-60])
def test_to_float32_has_one_zero(value: float) -> None:
    """What rounds to -0.0 becomes 0.0."""
    assert np.signbit(to_float32(value)) == np.False_


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, False),
        (TINY, True),
        (-TINY, True),
        (SMALLEST_NORMAL - TINY, True),
        (SMALLEST_NORMAL, False),
        (-SMALLEST_NORMAL, False),
        (1.0, False),
        (INF, False),
    ],
)
def test_is_subnormal(value: float, expected: bool) -> None:
    """Subnormal is strictly between the smallest normal numbers, zero left out."""
    assert is_subnormal(value) is expected
    assert float(np.finfo(np.float32).smallest_normal) == SMALLEST_NORMAL


def test_shortest_reads_back_to_the_same_bits() -> None:
    """The shortest decimal has no digits of the double, and reads back exactly."""
    assert repr(shortest(to_float32(0.1))) == "0.1"
    assert repr(shortest(5.344675064086914)) == "5.344675"
    assert to_float32(shortest(LARGEST)) == LARGEST


def test_shortest_takes_a_float32_only() -> None:
    """A double that is no float32 is a bug of the caller."""
    with pytest.raises(AssertionError, match=r"0\.1 is not a float32"):
        shortest(0.1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1.0, 1 + 2.0**-23), (0.0, TINY), (-TINY, 0.0), (LARGEST, INF), (INF, INF), (-INF, -LARGEST)],
)
def test_next_up(value: float, expected: float) -> None:
    """The next value is one step above, across zero and up to infinity, and never -0.0."""
    above = next_up(value)
    assert above == expected
    assert not (above == 0 and np.signbit(above))


def test_ranks_count_every_float32_in_order() -> None:
    """Rank 0 is zero, each next rank the next value, and ranks mirror at zero."""
    assert [ranked(rank) for rank in (-1, 0, 1, 2)] == [-TINY, 0.0, TINY, 2 * TINY]
    assert ranked(0x3F800000) == 1.0
    assert ranked(-0x3F800001) == -(1 + 2.0**-23)
    assert ranked(0x7F7FFFFF) == LARGEST
    assert not np.signbit(ranked(0))


@pytest.mark.parametrize("start", [-LARGEST, -1.5, -TINY, 0.0, TINY, 0.1, 7.0, LARGEST])
def test_smallest_where_finds_the_first_value(start: float) -> None:
    """The first float32 at which a monotone condition holds is found exactly."""
    start = to_float32(start)
    assert smallest_where(lambda value: value >= start) == start


def test_smallest_where_at_the_ends() -> None:
    """Always true gives the lowest finite value, never true gives infinity."""
    assert smallest_where(lambda _: True) == -LARGEST
    assert smallest_where(lambda _: False) == INF
    assert smallest_where(lambda value: value >= LARGEST) == LARGEST


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        pytest.param(Fraction(1), 1.0, id="exact"),
        pytest.param(Fraction(1) + Fraction(1, 10**30), 1 + 2.0**-23, id="a-hair-above"),
        pytest.param(Fraction(1) - Fraction(1, 10**30), 1.0, id="a-hair-below"),
        pytest.param(Fraction(1, 3), 0.3333333432674408, id="third"),
        pytest.param(Fraction(-1, 3), -0.3333333134651184, id="minus-third"),
        pytest.param(Fraction(1, 10**60), TINY, id="below-the-smallest"),
        pytest.param(Fraction(-1, 10**60), 0.0, id="above-minus-the-smallest"),
        pytest.param(Fraction(0), 0.0, id="zero"),
        pytest.param(Fraction(10) ** 400, INF, id="beyond-double"),
        pytest.param(-(Fraction(10) ** 400), -LARGEST, id="beyond-minus-double"),
        pytest.param(Fraction(LARGEST), LARGEST, id="largest"),
        pytest.param(Fraction(LARGEST) + Fraction(1, 10**60), INF, id="above-the-largest"),
        pytest.param(Fraction(-LARGEST) - 1, -LARGEST, id="below-the-lowest"),
    ],
)
def test_smallest_at_least(bound: Fraction, expected: float) -> None:
    """The smallest float32 not below a rational, exactly, and never -0.0."""
    found = smallest_at_least(bound)
    assert found == expected
    assert not (found == 0 and np.signbit(found))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(Fraction(0), 0.0, id="zero"),
        pytest.param(Fraction(3, 4), 0.75, id="exact"),
        pytest.param(1 + Fraction(1, 2**24), 1.0, id="tie-to-even-down"),
        pytest.param(1 + Fraction(3, 2**24), 1 + 2.0**-22, id="tie-to-even-up"),
        pytest.param(1 + Fraction(1, 2**24) + Fraction(1, 2**60), 1 + 2.0**-23, id="double-rounding-would-go-down"),
        pytest.param(1 + Fraction(3, 2**24) - Fraction(1, 2**60), 1 + 2.0**-23, id="double-rounding-would-go-up"),
        pytest.param(Fraction(1, 2**150), 0.0, id="tie-at-the-smallest"),
        pytest.param(Fraction(1, 2**150) + Fraction(1, 2**300), TINY, id="above-that-tie"),
        pytest.param(Fraction(2) ** 128 - Fraction(2) ** 103 - 1, LARGEST, id="below-the-overflow-tie"),
        pytest.param(Fraction(2) ** 128 - Fraction(2) ** 103, INF, id="the-overflow-tie"),
        pytest.param(Fraction(2) ** 200, INF, id="overflow"),
    ],
)
def test_nearest_rounds_once(value: Fraction, expected: float, sign: int) -> None:
    """A rational becomes the nearest float32, rounded once, ties to even, and never -0.0."""
    found = nearest(sign * value)
    assert found == sign * expected
    assert not (found == 0 and np.signbit(found))
