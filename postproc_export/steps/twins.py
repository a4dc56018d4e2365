"""The shipped transforms in NumPy, as `modules.py` has them in PyTorch: arrays to arrays, float32."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from graph_patterns.transforms import gaussian_radius, gaussian_weights
from postproc_export.errors import UsageError
from postproc_export.stats import Level
from postproc_export.steps.transforms import AXES, Channel, Gaussian, Negate, Resize, Thresholds, TopK, Transform

Array: TypeAlias = NDArray[Any]
Raw: TypeAlias = tuple[Array | None, Array | None]


def behind(steps: Sequence[Transform], score: Array | None, maps: Array | None, *, size: tuple[int, int] | None) -> Raw:
    """Return raw score and map behind a chain of steps, in the forms that their PyTorch modules give; None for None.

    `size` is height and width of the model's input, for a map that is resized to it. Raises IndexError or ValueError
    where the values do not fit a step.
    """
    with np.errstate(all="ignore"):
        for step in steps:
            score, maps = _behind_one(step, score, maps, size)
    return score, maps


def _behind_one(step: Transform, score: Array | None, maps: Array | None, size: tuple[int, int] | None) -> Raw:
    match step:
        case Negate():
            return _of_level(step, "image", score), _of_level(step, "pixel", maps)
        case Channel(level="image"):
            return None if score is None else _one(score.reshape(len(score), -1), step.index, 1), maps
        case Channel():
            return score, None if maps is None else _one(maps, step.index, AXES[step.axis or "second"])
        case Gaussian() if maps is None:
            return score, None
    assert maps is not None, "refused where there is no map"
    match step:
        case Gaussian():
            return score, _smoothed(maps, step.sigma)
        case TopK():
            mean = _top_mean(maps, step.k)
            return mean if score is None else mean.reshape(score.shape), maps
        case Resize():
            wanted = size if step.height is None or step.width is None else (step.height, step.width)
            assert wanted is not None, "refused where the size is not known"
            return score, _resized(maps, wanted)
        case Thresholds():
            distance = maps - step.values
            return score, distance.max(axis=1, keepdims=True) if maps.ndim == 4 else distance
    raise UsageError(f"the step '{step.name}' has no form in NumPy", fix="pip install torch, and --reference torch")


def _of_level(step: Negate, level: Level, values: Array | None) -> Array | None:
    return None if values is None else step.of_values(level, values)


def _one(values: Array, index: int | None, axis: int) -> Array:
    return values.squeeze(axis) if index is None else values.take(index, axis)


def _smoothed(maps: Array, sigma: float) -> Array:
    """Return maps behind the kernel along either axis, mirrored at their edges as often as it takes."""
    radius, weights = gaussian_radius(sigma), np.array(gaussian_weights(sigma), np.float32)
    for axis in (-2, -1):
        length = maps.shape[axis]
        places = np.abs(np.arange(-radius, length + radius)) % max(1, 2 * (length - 1))
        wide = np.moveaxis(maps.take((length - 1) - np.abs(places - (length - 1)), axis), axis, 0)
        total = sum(weight * wide[start : start + length] for start, weight in enumerate(weights))
        maps = np.moveaxis(np.asarray(total), 0, axis)
    return maps


def _top_mean(maps: Array, k: int) -> Array:
    """Return the mean of the k highest values of each map, [N]; of all of fewer. NaN counts as the highest."""
    flat = maps.reshape(len(maps), -1)
    most = min(k, flat.shape[1])
    mean: Array = np.partition(flat, -most, axis=1)[:, -most:].mean(axis=1, dtype=np.float32)
    return mean


def _resized(maps: Array, size: tuple[int, int]) -> Array:
    """Return maps resized bilinearly, pixels taken as areas; one that holds a NaN becomes NaN as a whole."""
    unknown = np.isnan(maps).any(axis=(-2, -1), keepdims=True)
    for axis, length in zip((-2, -1), size, strict=True):
        count = maps.shape[axis]
        places = np.maximum((np.arange(length) + 0.5) * (count / length) - 0.5, 0.0)
        low = places.astype(np.int64)
        share = (places - low).astype(np.float32).reshape(-1, *[1] * (-axis - 1))
        next_one = low + (count != length)  # as PyTorch does, which tells for an infinity times 0
        upper = maps.take(np.minimum(next_one, count - 1), axis)
        maps = maps.take(low, axis) * (np.float32(1) - share) + upper * share
    return np.where(unknown, np.float32(np.nan), maps)
