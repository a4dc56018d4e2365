"""What a transform alone is fed: maps of several kinds and sizes, and maps that hold a NaN."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from postproc_export.parity.reference.eager_transform import READS, Size
from postproc_export.parity.reference.tail_cases import RawFeeds, axes_of, numpy_dtype
from postproc_export.runtimes.protocol import PortInfo

Feeds: TypeAlias = Mapping[str, NDArray[Any]]
"""Arrays for a transform by the names of what it reads: ``"score"``, ``"map"``, ``"image"``."""

SIZES: Final = ((33, 40), (7, 5), (1, 1))
"""Sizes of a dynamic map: larger than a common kernel, smaller than most, and the smallest there is."""

_BATCH: Final = 3


def transform_feeds(ports: Mapping[str, PortInfo], span: tuple[float, float], seed: int) -> Iterator[Feeds]:
    """Yield a random map, a constant one and one of a single peak, at every size that the ports leave open.

    Parameters
    ----------
    ports
        What the transform reads, and what the tail behind it reads besides.
    span
        Lowest and highest value, raw units.
    seed
        Of the random values.
    """
    random = np.random.default_rng(seed)
    fixed = next((axes[0] for port in ports.values() if (axes := axes_of(port))), None)
    for size in _sizes(ports.get("map")):
        for maps in _maps(random, size, span):
            scores = random.uniform(*span, fixed or _BATCH)
            values = {"score": scores, "map": np.stack([np.roll(maps, step, axis=1) for step in range(len(scores))])}
            yield {name: _shaped(port, values.get(name), len(scores), size) for name, port in ports.items()}


def spoilt(feeds: Feeds) -> Feeds:
    """Return the same with a NaN in every map, at the first pixel, in the middle and at the last; else in scores."""
    name = "map" if "map" in feeds else "score"
    rows = feeds[name].copy().reshape(len(np.atleast_1d(feeds[name])), -1)
    rows[np.arange(len(rows)), np.arange(len(rows)) % 3 * (rows.shape[1] - 1) // 2] = np.nan
    return {**feeds, name: rows.reshape(feeds[name].shape)}


def raw_of(feeds: Feeds) -> RawFeeds:
    """Return the raw values, by level."""
    return {level: feeds[name] for name, level in READS.items() if name in feeds}


def size_of(feeds: Feeds) -> Size | None:
    """Return height and width of the model's input; None where the transform does not look at it."""
    return (feeds["image"].shape[2], feeds["image"].shape[3]) if "image" in feeds else None


def _sizes(port: PortInfo | None) -> list[Size]:
    if port is None:
        return [(1, 1)]
    height, width = axes_of(port)[-2:]
    return list(dict.fromkeys((height or rows, width or columns) for rows, columns in SIZES))


def _maps(random: np.random.Generator, size: Size, span: tuple[float, float]) -> Iterator[NDArray[np.float64]]:
    low, high = span
    peak = np.full(size, low)
    peak[size[0] // 2, size[1] // 3] = high
    yield from (random.uniform(low, high, size), np.full(size, (low + high) / 2), peak)


def _shaped(port: PortInfo, values: NDArray[np.float64] | None, count: int, size: Size) -> NDArray[Any]:
    axes = axes_of(port)
    if values is None:  # of the input nothing is read but its size
        height, width = size
        return np.zeros((count, axes[1] or 3, axes[2] or 2 * height + 1, axes[3] or width + 3), numpy_dtype(port))
    if values.ndim == 1:
        return values.reshape((count, *[1] * (len(axes) - 1)) if axes else ()).astype(numpy_dtype(port))
    channels = tuple(axis or 1 for axis in axes[1:-2])
    wide = np.broadcast_to(values.reshape(count, *[1] * len(channels), *size), (count, *channels, *size))
    return wide.astype(numpy_dtype(port))
