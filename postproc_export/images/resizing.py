"""Pixels at another size, by Pillow's filters and by OpenCV's arithmetic.

OpenCV is no dependency: its two filters are computed here as its own portable code does. Of 8-bit images they give its
very bits. Of 16-bit ones they do, too, but where an OpenCV hands `cv2-linear` to Intel's IPP, which may be off by 1.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from postproc_export.errors import require

if TYPE_CHECKING:
    from PIL.Image import Image

Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos", "cv2-linear", "cv2-area"]
Pixels = NDArray[Any]  # uint8 or uint16, [H, W] or [H, W, C]

_FINEST: Final = 1e-3  # a smaller part of a pixel does not count in OpenCV


def resized(image: "Image", size: tuple[int, int], interpolation: Interpolation) -> Pixels:
    """Return the pixels of an image at another size (height, width): uint8 of mode L or RGB, uint16 of mode I.

    At its own size an image stays as it is, whatever the filter. Pillow's filters compute in 32-bit integers where the
    mode is I; what they overshoot by is clipped.
    """
    height, width = size
    is_there, of_opencv = image.size == (width, height), _OPENCV.get(interpolation)
    if not is_there and of_opencv is None:
        filters = require("PIL.Image", purpose="resizing images").Resampling
        image = image.resize((width, height), filters[interpolation.upper()])
    pixels: Pixels = np.asarray(image)
    if image.mode == "I":
        pixels = np.clip(pixels, 0, 65535).astype(np.uint16)
    if is_there or of_opencv is None:
        return pixels
    whole = of_opencv(pixels.reshape(*pixels.shape[:2], -1), height, width)
    return whole.reshape(height, width, *pixels.shape[2:])


def _linear(pixels: Pixels, height: int, width: int, *, grows: bool = False) -> Pixels:
    """Return what ``cv2.resize`` gives with INTER_LINEAR; if it `grows`, with INTER_AREA.

    8-bit pixels are weighed by multiples of 2^-11, and the sum is cut off in two places before it is rounded.
    """
    if not grows and pixels.shape[:2] == (2 * height, 2 * width):
        return _area(pixels, height, width)
    rows, down = _neighbors(pixels.shape[0], height, grows)
    columns, right = _neighbors(pixels.shape[1], width, grows)
    right = np.where(
        columns[0] == columns[1], [[np.float32(1)], [np.float32(0)]], right
    )  # beyond the outermost, though not so of rows
    is_byte = pixels.dtype == np.uint8
    if is_byte:
        down, right = (np.rint(each * 2048).astype(np.int32) for each in (down, right))

    def across(chosen: NDArray[np.intp]) -> NDArray[Any]:
        lines = pixels[chosen].astype(right.dtype)
        sums: NDArray[Any] = lines[:, columns[0]] * right[0, :, None] + lines[:, columns[1]] * right[1, :, None]
        return sums

    above, below = across(rows[0]), across(rows[1])
    upper, lower = down[..., None, None]
    if is_byte:
        total = (((above >> 4) * upper >> 16) + ((below >> 4) * lower >> 16) + 2) >> 2
    else:
        total = np.rint(above * upper + below * lower)
    return np.asarray(total, pixels.dtype)


@lru_cache(maxsize=64)
def _neighbors(source: int, target: int, grows: bool) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """Return the two source pixels of each target pixel, and their weights, both of shape (2, target)."""
    ratio = target / source
    step, at = 1 / ratio, np.arange(target)
    if grows:
        first = np.floor(at * step).astype(np.intp)
        share = ((at + 1) - (first + 1) * ratio).astype(np.float32)
        share = np.where(share <= 0, np.float32(0), share - np.floor(share))
    else:
        center = ((at + 0.5) * step - 0.5).astype(np.float32)
        first = np.floor(center).astype(np.intp)
        share = center - first.astype(np.float32)
    pixels = np.clip(np.stack([first, first + 1]), 0, source - 1)
    return pixels, np.stack([np.float32(1) - share, share])


def _area(pixels: Pixels, height: int, width: int) -> Pixels:
    """Return what ``cv2.resize`` gives with INTER_AREA: means over the area of each target pixel."""
    source_height, source_width, channels = pixels.shape
    if source_height < height or source_width < width:
        return _linear(pixels, height, width, grows=True)
    if source_height % height == 0 and source_width % width == 0:
        down, right = source_height // height, source_width // width
        sums = pixels.reshape(height, down, width, right, channels).sum(axis=(1, 3), dtype=np.int64)
        if down == right == 2:
            return np.asarray((sums + 2) >> 2, pixels.dtype)
        return np.asarray(np.rint(sums.astype(np.float32) * np.float32(1 / (down * right))), pixels.dtype)
    rows, columns = _overlaps(source_height, height), _overlaps(source_width, width)
    across = np.zeros((source_height, width, channels), np.float32)
    for taken, weights in zip(*columns, strict=True):
        across += pixels[:, taken] * weights[:, None]
    total = np.zeros((height, width, channels), np.float32)
    for taken, weights in zip(*rows, strict=True):
        total += across[taken] * weights[:, None, None]
    return np.rint(total).astype(pixels.dtype)


@lru_cache(maxsize=64)
def _overlaps(source: int, target: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return the source pixels that each target pixel covers, and their weights, both of shape (most, target)."""
    step = 1 / (target / source)
    begin = np.arange(target) * step
    end, size = begin + step, np.minimum(step, source - begin)
    last = np.minimum(np.floor(end), source - 1)
    first = np.minimum(np.ceil(begin), last)
    number = np.arange(int((last - first).max()) + 2)[:, None]
    weights = np.where((number > 0) & (number <= last - first), 1 / size, 0.0)
    weights[0] = np.where(first - begin > _FINEST, (first - begin) / size, 0.0)
    tail = np.where(end - last > _FINEST, np.minimum(np.minimum(end - last, 1.0), size) / size, 0.0)
    weights = np.where(number == last - first + 1, tail, weights)
    pixels = np.clip(first - 1 + number, 0, source - 1).astype(np.intp)
    return pixels, weights.astype(np.float32)


_OPENCV: Final[Mapping[str, Callable[[Pixels, int, int], Pixels]]] = {"cv2-linear": _linear, "cv2-area": _area}
