"""What can be wrong with a crop: each defect changes pixels of its mask and no other."""

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

Gray: TypeAlias = npt.NDArray[np.uint8]
Mask: TypeAlias = npt.NDArray[np.bool_]
Draw: TypeAlias = Callable[[Gray, Gray, np.random.Generator], tuple[Gray, Mask]]

_LOBES: Final = 5


def blur(clean: Gray, other: Gray, rng: np.random.Generator) -> tuple[Gray, Mask]:
    """Put an irregular spot out of focus."""
    mask = _spot(clean.shape, rng)
    return _paint(clean, _gaussian_blur(clean, sigma=rng.uniform(2.0, 3.0)), mask), mask


def patch(clean: Gray, other: Gray, rng: np.random.Generator) -> tuple[Gray, Mask]:
    """Replace an irregular spot by the same spot of another texture."""
    mask = _spot(clean.shape, rng)
    return np.where(mask, other, clean), mask


def scratch(clean: Gray, other: Gray, rng: np.random.Generator) -> tuple[Gray, Mask]:
    """Draw a bent line, two to four pixels wide, bright or dark."""
    mask = _bent_line(clean.shape, rng)
    tone, strength = rng.choice([10.0, 245.0]), rng.uniform(0.6, 0.9)
    return _paint(clean, (1 - strength) * clean + strength * tone, mask), mask


def stain(clean: Gray, other: Gray, rng: np.random.Generator) -> tuple[Gray, Mask]:
    """Pull the grey levels of an irregular spot towards one dark or light tone."""
    mask = _spot(clean.shape, rng)
    tone, strength = rng.choice([20.0, 235.0]), rng.uniform(0.4, 0.7)
    return _paint(clean, (1 - strength) * clean + strength * tone, mask), mask


DEFECTS: Final[Mapping[str, Draw]] = {"blur": blur, "patch": patch, "scratch": scratch, "stain": stain}


def _paint(clean: Gray, changed: npt.NDArray[np.float64], mask: Mask) -> Gray:
    return np.where(mask, np.rint(changed).clip(0, 255).astype(np.uint8), clean)


def _spot(shape: tuple[int, ...], rng: np.random.Generator) -> Mask:
    """All pixels within a closed curve around a random centre, whose radius swings with the angle."""
    size = min(shape)
    radius = rng.uniform(0.10, 0.20) * size
    centre = rng.uniform(0.3 * size, 0.7 * size, size=2)
    waves = np.arange(1, _LOBES + 1)
    swing = rng.uniform(0.0, 0.35, size=_LOBES) / waves
    phase = rng.uniform(0.0, 2 * np.pi, size=_LOBES)
    down, right = np.indices(shape) - centre[:, None, None]
    angle = np.arctan2(down, right)[..., None]
    limit = radius * (1 + (swing * np.cos(waves * angle + phase)).sum(axis=-1))
    return np.asarray(np.hypot(down, right) <= limit, dtype=np.bool_)


def _bent_line(shape: tuple[int, ...], rng: np.random.Generator) -> Mask:
    """All pixels within half a width of a quadratic Bezier curve that is sampled finer than a pixel."""
    size = min(shape)
    start = np.array([rng.uniform(0.1, 0.9), rng.uniform(0.05, 0.3)]) * size
    end = np.array([rng.uniform(0.1, 0.9), rng.uniform(0.7, 0.95)]) * size
    control = (start + end) / 2 + rng.uniform(-0.25, 0.25, size=2) * size
    t = np.linspace(0.0, 1.0, 4 * size)[:, None]
    curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end
    if rng.random() < 0.5:
        curve = curve[:, ::-1]
    down, right = np.indices(shape)[..., None] - curve.T[:, None, None, :]
    nearest = (down * down + right * right).min(axis=-1)
    return np.asarray(nearest <= rng.uniform(1.0, 2.0) ** 2, dtype=np.bool_)


def _gaussian_blur(image: Gray, *, sigma: float) -> npt.NDArray[np.float64]:
    """Convolve with a Gaussian, one axis after the other; the border is mirrored."""
    reach = int(np.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    blurred = np.pad(image.astype(np.float64), reach, mode="reflect")
    for axis in (0, 1):
        blurred = np.lib.stride_tricks.sliding_window_view(blurred, kernel.size, axis=axis) @ kernel
    return blurred
