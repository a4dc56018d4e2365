"""Pictures of what a model says: heatmaps, masks and overlays, and a sheet of many images."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from postproc_export.errors import require
from postproc_export.images.geometry import BoolArray

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = npt.NDArray[np.uint8]  # (H, W, 3), RGB
Part = tuple[slice, slice]  # of an image: rows and columns
WHOLE: Final[Part] = (slice(None), slice(None))
_PURPOSE: Final = "drawing pictures"

# ColorBrewer's RdBu, from blue over white to red, which color-blind people tell apart; white is the threshold, 0.5.
_ANCHORS: Final = (
    *("053061", "2166ac", "4393c3", "92c5de", "d1e5f0", "f7f7f7"),
    *("fddbc7", "f4a582", "d6604d", "b2182b", "67001f"),
)
_STEPS: Final = 256  # an even number, so that 0.5 is a step of its own


def _scale() -> Pixels:
    anchors = np.array([[int(color[at : at + 2], 16) for at in (0, 2, 4)] for color in _ANCHORS])
    places = np.linspace(0, len(anchors) - 1, _STEPS + 1)
    channels = [np.interp(places, np.arange(len(anchors)), anchors[:, channel]) for channel in range(3)]
    colors: Pixels = np.rint(np.stack(channels, axis=1)).astype(np.uint8)
    return colors


COLORS: Final = _scale()
"""The color of each normalised value k / 256, uint8, (257, 3): one fixed scale, with the threshold in the middle."""

_RUN_LENGTHS: Final = 3  # zlib's Z_RLE: on photos it finds what there is to find, faster than its own search
_OPACITY: Final = 115  # of 256, of a heatmap over an image
_INSIDE, _OUTSIDE = (0, 0, 0), (255, 255, 255)  # the two lines around a mask: one of them shows on any color


def heatmap(unit_map: npt.NDArray[Any]) -> Pixels:
    """Return the colors of normalised values, (H, W): below 0 as 0, above 1 and NaN as 1."""
    values = np.nan_to_num(np.asarray(unit_map, np.float32), nan=1.0, posinf=1.0, neginf=0.0)
    colors: Pixels = COLORS[np.rint(np.clip(values, 0.0, 1.0) * _STEPS).astype(np.intp)]
    return colors


def overlay(image: Pixels, colors: Pixels | None, mask: BoolArray | None = None, *, seen: Part = WHOLE) -> Pixels:
    """Return an image with a heatmap over it, and a line around what the mask marks, all of one size.

    `seen` is the part that the model saw; no color is drawn beside it.
    """
    drawn = image.copy()
    if colors is not None:
        mixed = np.multiply(image[seen], 256 - _OPACITY, dtype=np.uint16)
        mixed += np.multiply(colors[seen], _OPACITY, dtype=np.uint16)
        drawn[seen] = mixed >> 8
    if mask is not None and mask.any():
        drawn[_grown(mask) & ~mask] = _OUTSIDE
        drawn[mask & _grown(~mask)] = _INSIDE
    return drawn


def _grown(mask: BoolArray) -> BoolArray:
    """Return a mask with the pixels above, below and beside it."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def reduced(image: "Image", side: int) -> "Image":
    """Return an image with its longer side between 0.8 and 2 times `side`, quickly; a smaller one as it is.

    A large one fits into the square then, so that `thumbnail` has nothing left to do.
    """
    longest = max(image.size)
    factor = ceil(longest / side) if longest >= 4 * side else longest // side
    return image.reduce(factor) if factor > 1 else image


def thumbnail(pixels: Pixels, side: int) -> Pixels:
    """Return an image that fits into a square, smaller or a whole number of times larger."""
    times = side // max(pixels.shape[:2])
    if times > 1:
        return pixels.repeat(times, axis=0).repeat(times, axis=1)
    image = _image(pixels)
    image.thumbnail((side, side))
    return np.asarray(image)


def save_png(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    """Write an image, (H, W, 3) or gray (H, W), quickly rather than as small as can be."""
    _image(pixels).save(path, format="PNG", compress_level=1, compress_type=_RUN_LENGTHS)


def save_jpeg(path: Path, pixels: Pixels) -> None:
    """Write a picture to look at, not to measure: a tenth of a PNG's time and a quarter of its size."""
    _image(pixels).save(path, format="JPEG", quality=90, subsampling=0)


def _image(pixels: npt.NDArray[np.uint8]) -> "Image":
    found: Image = require("PIL.Image", purpose=_PURPOSE).fromarray(pixels)
    return found


Tile = tuple[Pixels, tuple[str, ...]]
"""One image of a sheet, and the lines of text below it."""

_GAP, _LINE = 8, 14
_PAPER, _INK = (255, 255, 255), (20, 20, 20)


def sheet(tiles: Sequence[Tile], *, side: int, columns: int) -> Pixels:
    """Return a sheet of images in rows, each in a square of `side` pixels, with lines of text below it."""
    draw_of, fonts = (require(f"PIL.{name}", purpose=_PURPOSE) for name in ("ImageDraw", "ImageFont"))
    columns, lines = min(columns, len(tiles)), max(len(texts) for _, texts in tiles)
    wide, high = side + _GAP, side + _GAP + lines * _LINE
    rows = -(-len(tiles) // columns)
    image = _image(np.full((rows * high + _GAP, columns * wide + _GAP, 3), _PAPER, np.uint8))
    draw, font = draw_of.Draw(image), fonts.load_default()
    for index, (pixels, texts) in enumerate(tiles):
        row, column = divmod(index, columns)
        left, top = _GAP + column * wide, _GAP + row * high
        height, width = pixels.shape[:2]
        image.paste(_image(pixels), (left + (side - width) // 2, top + (side - height) // 2))
        for number, line in enumerate(texts):
            text = _fitting(line.encode("ascii", "replace").decode(), font, side)
            draw.text((left, top + side + number * _LINE + 1), text, fill=_INK, font=font)
    return np.asarray(image)


def _fitting(text: str, font: Any, width: int) -> str:
    """Return a text, or its end where it is too long: of a path the end tells most."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"...{text}") > width:
        text = text[1:]
    return f"...{text}"
