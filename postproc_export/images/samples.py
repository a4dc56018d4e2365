"""Validation samples decoded and in batches: image and mask of each."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from postproc_export.errors import CalibrationError, FileError, require
from postproc_export.images.layouts import Sample
from postproc_export.images.preprocessing import Preprocessing
from postproc_export.runtimes import Array
from postproc_export.validation import check_file

if TYPE_CHECKING:
    from PIL.Image import Image


# From a file to an RGB image, with every case decided: converted as documented, or refused by name.
#
# | file | what is done |
# | --- | --- |
# | grayscale, black and white, palette | converted to RGB |
# | alpha channel | dropped where fully opaque, else refused |
# | EXIF orientation | applied |
# | 16 or 32 bits per channel, floating point, CMYK, LAB, HSV | refused |
# | several frames or pages | refused |
# | damaged, truncated, no image, PostScript | refused |

_MODES: Final = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX")
_PURPOSE: Final = "reading images"
_DEPTH: Final = "bits_per_channel"
# The content says the format, not the name. Pillow hands PostScript to another program, which runs it: not listed.
_FORMATS: Final = ("PNG", "JPEG", "BMP", "DIB", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000", "MPO", "TGA")


def decode_rgb(path: Path) -> "Image":
    """Read an image file as 8-bit RGB, upright; a FileError names the file that has no one reading as such."""
    image = open_upright(path)
    if image.mode not in _MODES or image.info.get(_DEPTH, 8) > 8:
        raise FileError(
            f"{path} is no 8-bit color or gray image",
            found=f"mode {image.mode}, {image.info.get(_DEPTH, 8)} bits per channel",
            fix="convert it to 8-bit RGB the way the deployed system does",
        )
    has_alpha = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
    lowest = int(np.asarray(image.convert("RGBA"))[..., 3].min()) if has_alpha else 255
    if lowest < 255:
        raise FileError(
            f"{path} is transparent in places",
            found=f"alpha down to {lowest} of 255",
            fix="flatten it onto a background the way the deployed system does",
        )
    return image.convert("RGB")


def open_upright(path: Path) -> "Image":
    """Read and decode an image file in its own mode, with its EXIF orientation applied."""
    images = require("PIL.Image", purpose=_PURPOSE)
    operations = require("PIL.ImageOps", purpose=_PURPOSE)
    check_file(path, what="the image")
    try:
        with images.open(path, formats=_FORMATS) as file:
            # Pillow reads 16-bit color files as 8-bit RGB without a word; only the name of the raw mode tells.
            is_deep = any(";16" in str(tile[3]) for tile in getattr(file, "tile", []))
            depth = 16 if is_deep else 32 if file.mode in ("I", "F") else 8
            frames = getattr(file, "n_frames", 1)
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


BoolArray = npt.NDArray[np.bool_]


def read_mask(path: Path, *, image_size: tuple[int, int]) -> BoolArray:
    """Read a mask file: bool, shape (H, W), True where any color channel is above 0.

    Any bit depth; alpha does not count, and of a palette the colors count. `image_size` is (H, W) of the image that it
    belongs to.
    """
    mask = open_upright(path)
    if mask.mode in ("P", "PA", "LA", "RGBA"):
        mask = mask.convert("RGB")
    values: npt.NDArray[Any] = np.asarray(mask)
    if values.shape[:2] != image_size:
        raise CalibrationError(
            f"the mask {path} has another size than its image",
            found=f"{values.shape[0]}x{values.shape[1]}",
            needed=f"{image_size[0]}x{image_size[1]} (height x width)",
            fix="export the masks at the size of the images",
        )
    channels = values.reshape(*image_size, -1)
    anomalous: BoolArray = np.any(channels > 0, axis=2)
    return anomalous


def fit_mask(mask: BoolArray, *, height: int, width: int) -> BoolArray:
    """Return the mask at the size of the map: each map pixel takes the mask pixel under its center.

    The ground truth is judged at the map's size, so that the counts are those of the pixels that the deployed model
    labels. A defect thinner than a map pixel may vanish.
    """
    rows = (2 * np.arange(height) + 1) * mask.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * mask.shape[1] // (2 * width)
    fitted: BoolArray = mask[rows[:, None], columns[None, :]]
    return fitted


_MAX_WORKERS: Final = 8
_Loaded = tuple[Array, BoolArray | None]


@dataclass(frozen=True, slots=True)
class Batch:
    """Some images as the model is fed them."""

    samples: tuple[Sample, ...]
    images: Array  # (len(samples), C, H, W) or (len(samples), H, W, C), of the model's dtype
    # bool, (H, W) in the size of the image file; all False for a normal image, None where masks were not asked for.
    masks: tuple[BoolArray | None, ...]


def load_batches(
    samples: Sequence[Sample],
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    masks: bool = False,
    workers: int | None = None,
) -> Iterator[Batch]:
    """Decode and pre-process samples in worker threads and give them back in order, the last batch maybe smaller.

    The size of `preprocessing` has to be resolved (`Preprocessing.for_input`). With `masks`, every anomalous sample
    needs one. By default one thread per core, at most 8; at most a batch more than there are threads is decoded ahead.
    """
    threads = workers or min(_MAX_WORKERS, os.cpu_count() or 1)
    loaded = _load_ahead(samples, preprocessing, masks=masks, threads=threads, ahead=threads + batch_size)
    remaining = iter(samples)
    while chosen := tuple(islice(remaining, batch_size)):
        images, truth = zip(*islice(loaded, len(chosen)), strict=True)
        yield Batch(chosen, np.stack(images), truth)


def _load_ahead(
    samples: Sequence[Sample], preprocessing: Preprocessing, *, masks: bool, threads: int, ahead: int
) -> Iterator[_Loaded]:
    pending: deque[Future[_Loaded]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        for sample in samples:
            pending.append(pool.submit(_load, sample, preprocessing, masks))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _load(sample: Sample, preprocessing: Preprocessing, with_mask: bool) -> _Loaded:
    image = decode_rgb(sample.image)
    size, mask = (image.height, image.width), None
    if with_mask and sample.mask is not None:
        mask = read_mask(sample.mask, image_size=size)
        if sample.label == 0 and mask.any():
            raise CalibrationError(
                f"the normal image {sample.image} has a mask with anomalous pixels",
                found=f"{int(mask.sum())} pixels above 0 in {sample.mask}",
                needed="label 1, or a mask of zeros",
            )
    elif with_mask and sample.label == 0:
        mask = np.zeros(size, bool)
    elif with_mask:
        fix = "add it, or leave the pixel level out with --image-only"
        raise CalibrationError(f"the anomalous image {sample.image} has no mask", fix=fix)
    return preprocessing.array(image), mask
