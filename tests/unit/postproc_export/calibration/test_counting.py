"""Later passes: the values that lie in chosen bins, whichever way these are found, and what is kept for the next."""

import numpy as np
import pytest

from postproc_export.calibration import counting
from postproc_export.calibration.arrays import Block, Place
from postproc_export.calibration.counting import Divide, Part, Passes, places_of, table_of_keys
from postproc_export.calibration.table import Table, key_of, ordered_keys

EXTREMES = np.array([0.0, -0.0, 1e-45, -1e-45, 3.4028235e38, -3.4028235e38, 1000.0, -1000.0, 1.0, -1.0], np.float32)
COLUMNS = ("starts", "widths", "normal", "anomalous")


def values_around(first: float) -> tuple[np.ndarray, np.ndarray]:
    """Return finite values, many of them near to one, and their ground truth."""
    rng = np.random.default_rng(0)
    values = np.concatenate([EXTREMES, rng.integers(0, 2**32, 40_000, dtype=np.uint32).view(np.float32)])
    values = np.concatenate([values, first + rng.normal(0, abs(first) / 1e3 + 1e-3, 10_000).astype(np.float32)])
    values = np.ascontiguousarray(values[np.isfinite(values)], dtype=np.float32)
    return values, rng.random(values.size) < 0.3


def part_of(values: np.ndarray, truth: np.ndarray | None) -> Part:
    """Return values in two blocks."""
    place, half = Place("here", "values", "truth", values.shape), values.size // 2
    runs = (slice(0, half), slice(half, None))
    return Part([Block(values[run], None if truth is None else truth[run], place, 0) for run in runs])


def plain(divide: Divide, values: np.ndarray, truth: np.ndarray) -> Table:
    """Return the finer bins of values by looking each of them up."""
    keys = ordered_keys(values + np.float32(0))
    chosen = np.isin(keys >> np.uint32(divide.width), divide.starts >> np.uint32(divide.width))
    shift = np.uint32(divide.width - divide.bits if divide.bits else 0)
    cells = keys[chosen] >> shift << shift
    found = table_of_keys(cells, cells[truth[chosen]], low=divide.low, high=divide.high)
    widths = np.full(len(found), shift, np.uint8)
    return Table(starts=found.starts, widths=widths, normal=found.normal, anomalous=found.anomalous, low=0, high=0)


@pytest.mark.parametrize("bits", [0, 8, 16])
@pytest.mark.parametrize("first", [1e-38, 1.0, 1000.0, 3.3e38, 0.0, -1.0])
@pytest.mark.parametrize(("count", "is_run", "is_top"), [(1, True, False), (4, True, True), (4, False, False)])
def test_a_pass_counts_every_value_of_its_bins_and_no_other(
    bits: int, first: float, count: int, is_run: bool, is_top: bool
) -> None:
    """By arithmetic where bins follow each other and by tables else, with and without the values far above."""
    start = key_of(first) >> 16 << 16
    apart = 1 if is_run else 3
    starts = start + (np.arange(count, dtype=np.int64) * apart << 16)
    starts = np.unique(np.minimum(starts, key_of(3.4028235e38) >> 16 << 16)).astype(np.uint32)
    divide = Divide(starts=starts, width=16, bits=bits, low=0, high=0, is_top=is_top)
    values, truth = values_around(first)
    found, expected = divide.run(part_of(values, truth)), plain(divide, values, truth)
    assert len(found)
    keys = ordered_keys(values + np.float32(0))
    exact = divide.among(table_of_keys(keys, keys[truth], low=0, high=0))
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        np.testing.assert_array_equal(getattr(exact, name), getattr(expected, name))


@pytest.mark.parametrize("kept", [1 << 22, 100])
def test_a_pass_within_the_last_one_reads_no_source(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where little was picked out it is kept; where much was, and beyond its ends, the values are read again."""
    monkeypatch.setattr(counting, "KEPT", kept)
    values, truth = values_around(1.0)
    reads = 0

    def read() -> Part:
        nonlocal reads
        reads += 1
        return part_of(values, truth)

    passes, start = Passes(read), key_of(1.0) >> 16 << 16
    wide = Divide(starts=np.array([start], np.uint32), width=16, bits=8, low=0, high=0)
    inner = Divide(starts=np.array([start + 512], np.uint32), width=8, bits=0, low=0, high=0)
    outer = Divide(starts=np.array([start - 65536], np.uint32), width=16, bits=0, low=0, high=0)
    for divide, expected in ((wide, 1), (inner, 1 if kept > 100 else 2), (outer, 2 if kept > 100 else 3)):
        found, looked_up = passes(divide), plain(divide, values, truth)
        assert reads == expected
        for name in COLUMNS:
            np.testing.assert_array_equal(getattr(found, name), getattr(looked_up, name))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.03, 0.032, 0.07, 0.0999, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("size", [0, 1, 7, 1000, 100_003])
def test_places_are_those_of_the_set_flags(share: float, size: int) -> None:
    """Whatever share of them is set."""
    flags = np.random.default_rng(0).random(size) < share
    np.testing.assert_array_equal(places_of(flags), np.flatnonzero(flags))
