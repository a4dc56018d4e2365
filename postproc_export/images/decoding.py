"""From a file to an RGB image, with every case decided: converted as documented, or refused by name.

| file | what is done |
| --- | --- |
| grayscale, black and white, palette | converted to RGB |
| alpha channel | dropped where fully opaque, else refused |
| EXIF orientation | applied |
| 16 or 32 bits per channel, floating point, CMYK, LAB, HSV | refused |
| several frames or pages | refused |
| damaged, truncated, no image, PostScript | refused |
"""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from postproc_export.errors import FileError, require
from postproc_export.validation import check_file

if TYPE_CHECKING:
    from PIL.Image import Image

_MODES: Final = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX")
_PURPOSE: Final = "reading images"
# The content says the format, not the name. Pillow hands PostScript to another program, which runs it: not listed.
_FORMATS: Final = ("PNG", "JPEG", "BMP", "DIB", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000", "MPO", "TGA")


def decode_rgb(path: Path) -> "Image":
    """Read an image file as 8-bit RGB, upright.

    Raises
    ------
    FileError
        If it cannot be read, or is of a kind that has no one reading as 8-bit RGB; the file is named.
    """
    image = open_upright(path)
    if image.mode not in _MODES or image.info.get(_DEPTH, 8) > 8:
        raise FileError(
            f"{path} is no 8-bit color or gray image",
            found=f"mode {image.mode}, {image.info.get(_DEPTH, 8)} bits per channel",
            fix="convert it to 8-bit RGB the way the deployed system does",
        )
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        _refuse_transparent(image, path)
    return image.convert("RGB")


def open_upright(path: Path) -> "Image":
    """Read and decode an image file in its own mode, with its EXIF orientation applied.

    Raises
    ------
    FileError
        If it cannot be read or holds several frames.
    """
    images = require("PIL.Image", extra="images", purpose=_PURPOSE)
    operations = require("PIL.ImageOps", extra="images", purpose=_PURPOSE)
    check_file(path, what="the image")
    try:
        with images.open(path, formats=_FORMATS) as file:
            frames, depth = getattr(file, "n_frames", 1), _bits(file)
            file.load()
            image: Image = operations.exif_transpose(file)
    except Exception as error:  # Pillow's decoders raise whatever their format's parser raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        fix = "replace the file, or take it out"
        raise FileError(f"cannot read the image {path}", found=reason, fix=fix) from error
    if frames != 1:
        raise FileError(f"{path} holds {frames} frames", needed="one image", fix="save each frame as a file of its own")
    image.info[_DEPTH] = depth
    return image


_DEPTH: Final = "bits_per_channel"


def _bits(image: "Image") -> int:
    # Pillow reads 16-bit color files as 8-bit RGB without a word; only the name of the raw mode tells.
    raw_modes = [str(tile[3]) for tile in getattr(image, "tile", [])]
    return 16 if any(";16" in mode for mode in raw_modes) else 32 if image.mode in ("I", "F") else 8


def _refuse_transparent(image: "Image", path: Path) -> None:
    lowest = int(np.asarray(image.convert("RGBA"))[..., 3].min())
    if lowest < 255:
        raise FileError(
            f"{path} is transparent in places",
            found=f"alpha down to {lowest} of 255",
            fix="flatten it onto a background the way the deployed system does",
        )
