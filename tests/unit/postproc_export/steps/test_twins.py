"""The shipped transforms in NumPy beside their PyTorch modules."""

from typing import Any

import numpy as np
import pytest

from postproc_export.eager import on_arrays
from postproc_export.record import parse_tails
from postproc_export.runtimes import Array
from postproc_export.steps.modules import Chain
from postproc_export.steps.transforms import Exact, Resize, Thresholds, Transform, resolve, resolve_all
from postproc_export.steps.twins import behind

SIZE = (20, 31)
MAPS = ((3, 17, 23), (3, 1, 17, 23), (2, 40, 9), (2, 5, 1), (2, 1, 1, 1))
FORMS = (
    *("gaussian:sigma=4", "gaussian:sigma=0.6", "top-k:k=5", "top-k:k=1", "top-k:k=100000"),
    *("resize", "resize:height=5,width=7", "resize:height=17,width=23", "negate", "negate:level=pixel"),
)


def maps_of(shape: tuple[int, ...], seed: int = 3) -> Array:
    """Draw maps of both signs."""
    return np.random.default_rng(seed).normal(0.2, 2.0, shape).astype(np.float32)


def both(step: Transform, score: Array | None, maps: Array | None) -> list[tuple[Array, Array]]:
    """Return what the twin and the module make of raw values, side by side; there is the same of both."""
    chain = Chain([step.module()])
    chain.set_size(SIZE)
    found, wanted = behind([step], score, maps, size=SIZE), on_arrays(chain, score, maps)
    assert [each is None for each in found] == [each is None for each in wanted]
    return [(one, other) for one, other in zip(found, wanted, strict=True) if one is not None and other is not None]


def assert_within(step: Transform, score: Array | None, maps: Array) -> None:
    """Hold the twin to half of what two implementations may differ by, NaN to NaN."""
    largest = float(np.nanmax(np.abs(maps)))
    size = (max(maps.shape[-2], SIZE[0]), max(maps.shape[-1], SIZE[1]))
    allowed = step.bound(largest, size)[1] / 2
    for found, wanted in both(step, score, maps):
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        assert np.array_equal(np.isnan(found), np.isnan(wanted))
        assert np.nanmax(np.abs(found - wanted), initial=0.0) <= allowed


@pytest.mark.parametrize("shape", MAPS, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_each_transform_gives_what_its_module_gives(form: str, shape: tuple[int, ...]) -> None:
    """Within half the bound that the check allows a runtime, in the same forms, with a score and without."""
    (step,) = resolve_all(parse_tails([form]))
    score = np.arange(shape[0], dtype=np.float32).reshape(shape[0], *[1] * (len(shape) == 4))
    for given in (score, None):
        assert_within(step, given, maps_of(shape))
        if isinstance(step, Exact):
            assert all(np.array_equal(*pair) for pair in both(step, given, maps_of(shape)))


@pytest.mark.parametrize("form", FORMS)
def test_nan_goes_where_the_module_lets_it_go(form: str) -> None:
    """A NaN in one map, and an infinity in another."""
    (step,) = resolve_all(parse_tails([form]))
    maps = maps_of((3, 1, 17, 23))
    maps[1, 0, 4, 5] = np.nan
    assert_within(step, None, maps)
    maps[2, 0, 0, 0] = np.inf
    for found, wanted in both(step, None, maps):
        assert np.array_equal(np.isnan(found), np.isnan(wanted))
        assert np.array_equal(np.isposinf(found), np.isposinf(wanted))


@pytest.mark.parametrize("shape", [(17, 23), (1, 1, 1), (4,), (4, 17, 23), (1, 17, 1)], ids=str)
def test_thresholds(shape: tuple[int, ...]) -> None:
    """One per pixel, row, channel or map; of several channels the highest distance counts."""
    step = Thresholds.of(maps_of(shape, seed=8))
    channels = step.channels
    for form in ((2, channels, 17, 23), *([(2, 17, 23)] if channels == 1 and len(step.shape) == 2 else [])):
        assert all(np.array_equal(*pair) for pair in both(step, None, maps_of(form)))


@pytest.mark.parametrize(
    ("text", "score", "maps"),
    [
        ("channel:index=1,level=image", (3, 2), (3, 4, 5)),
        ("channel:index=1,axis=second,level=pixel", (3,), (3, 2, 4, 5)),
        ("channel:index=2,axis=last,level=pixel", (3,), (3, 4, 5, 3)),
        ("channel:axis=last,level=pixel", (3,), (3, 4, 5, 1)),
    ],
)
def test_channels(text: str, score: tuple[int, ...], maps: tuple[int, ...]) -> None:
    """One of several values or channels, or the only one along an axis."""
    step = resolve(parse_tails([text])[0])
    assert all(np.array_equal(*pair) for pair in both(step, maps_of(score), maps_of(maps)))


def test_a_chain_is_one_step_behind_the_other() -> None:
    """What the first gives is what the second takes."""
    steps = resolve_all(parse_tails(["gaussian:sigma=1", "top-k:k=3"]))
    maps = maps_of((3, 17, 23))
    smoothed = behind(steps[:1], None, maps, size=None)[1]
    assert smoothed is not None
    found, untouched = behind(steps, None, maps, size=None)
    assert found is not None
    assert np.allclose(found, np.sort(smoothed.reshape(3, -1))[:, -3:].mean(axis=1))
    assert untouched is not None
    assert np.array_equal(untouched, smoothed)


def test_values_that_do_not_fit_are_an_error() -> None:
    """A step of other sizes than its file's map: the check tells of it."""
    given: Any = maps_of((2, 9, 9))
    with pytest.raises(ValueError, match="broadcast"):
        behind([Thresholds.of(maps_of((17, 23)))], None, given, size=None)
    with pytest.raises(AssertionError, match="size"):
        behind([Resize()], None, given, size=None)
