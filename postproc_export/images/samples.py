"""Validation samples decoded and in batches: image and mask of each."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from postproc_export.errors import CalibrationError, FileError, require
from postproc_export.images.geometry import BoolArray, on_input
from postproc_export.images.layouts import Sample
from postproc_export.images.preprocessing import Preprocessing
from postproc_export.runtimes import Array
from postproc_export.validation import check_file, kind_of_file

if TYPE_CHECKING:
    from PIL.Image import Image


# From a file to an image of 8 or 16 bits, with every case decided: converted as documented, or refused by name.
#
# | file | 8 bits | 16 bits |
# | --- | --- | --- |
# | 8 bits per channel: color | as it is | refused |
# | 8 bits per channel: grayscale, black and white, palette | converted to RGB | refused |
# | 16 bits, gray | refused | as it is |
# | alpha channel | dropped where fully opaque, else refused | refused |
# | EXIF orientation | applied | applied |
# | 16 bits and color, 32 bits, floating point, CMYK, LAB, HSV | refused | refused |
# | several frames or pages; damaged, truncated, no image, PostScript | refused | refused |

_MODES: Final = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX")
_DEEP_MODES: Final = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # gray; which of them Pillow gives depends on its version
_PURPOSE: Final = "reading images"
_DEPTH: Final = "bits_per_channel"
# The content says the format, not the name. Pillow hands PostScript to another program, which runs it: not listed. MPO
# is opened as JPEG; to ask for it by name raises a KeyError.
_FORMATS: Final = ("PNG", "JPEG", "BMP", "DIB", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000", "TGA")


def decode(path: Path, *, bits: int = 8) -> "Image":
    """Read an image file, upright: 8 bits as RGB, 16 bits as gray of mode I.

    A FileError names the file that has no one reading as such.
    """
    image = open_upright(path)
    depth = image.info.get(_DEPTH, 8)
    found = f"mode {image.mode}, {depth} bits per channel"
    if bits == 16:
        if image.mode not in _DEEP_MODES or depth != 16:
            fix = "leave out --bits 16 for 8-bit images; convert color to 16-bit gray the way the deployed system does"
            raise FileError(f"{path} is no 16-bit gray image", found=found, fix=fix)
        return image.convert("I")
    if image.mode in _DEEP_MODES and depth == 16:
        raise FileError(f"{path} is no 8-bit color or gray image", found=found, fix="give --bits 16")
    if image.mode not in _MODES or depth > 8:
        fix = "convert it to 8-bit RGB the way the deployed system does"
        raise FileError(f"{path} is no 8-bit color or gray image", found=found, fix=fix)
    has_alpha = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
    lowest = int(np.asarray(image.convert("RGBA"))[..., 3].min()) if has_alpha else 255
    if lowest < 255:
        raise FileError(
            f"{path} is transparent in places",
            found=f"alpha down to {lowest} of 255",
            fix="flatten it onto a background the way the deployed system does",
        )
    return image.convert("RGB")


def open_upright(path: Path, *, what: str = "the image") -> "Image":
    """Read and decode an image file in its own mode, with its EXIF orientation applied."""
    images = require("PIL.Image", purpose=_PURPOSE)
    operations = require("PIL.ImageOps", purpose=_PURPOSE)
    check_file(path, what=what)
    try:
        # Not by its name: Pillow 13 maps a file that it can name, and scrambles the rows of a rotated gray TIFF then.
        with path.open("rb") as stream, images.open(stream, formats=_FORMATS) as file:
            # Pillow reads 16-bit color files as 8-bit RGB without a word; only the name of the raw mode tells.
            is_deep = any(";16" in str(tile[3]) for tile in getattr(file, "tile", []))
            depth = 16 if is_deep else 32 if file.mode in ("I", "F") else 8
            frames = getattr(file, "n_frames", 1)
            file.load()
            image: Image = operations.exif_transpose(file)
    except Exception as error:  # Pillow's decoders raise whatever their format's parser raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, images.UnidentifiedImageError):
            reason = kind_of_file(path) or "no image of a format that is read"
        fix = "replace the file, or take it out"
        raise FileError(f"cannot read {what} {path}", found=reason, fix=fix) from error
    if frames != 1:
        raise FileError(f"{path} holds {frames} frames", needed="one image", fix="save each frame as a file of its own")
    image.info[_DEPTH] = depth
    return image


def read_mask(path: Path, *, image_size: tuple[int, int]) -> tuple[BoolArray, int]:
    """Read a mask file: bool, shape (H, W), True where any color channel is above 0.

    Any bit depth; alpha does not count, and of a palette the colors count. `image_size` is (H, W) of the image that it
    belongs to. The number is how many pixels are neither 0 nor the largest value of the mask, as its edges are where it
    was resized or saved as JPEG.
    """
    mask = open_upright(path, what="the mask")
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
    largest_of = values.reshape(*image_size, -1).max(axis=2)
    anomalous: BoolArray = largest_of > 0
    return anomalous, int(np.count_nonzero(anomalous & (largest_of != largest_of.max())))


_MAX_WORKERS: Final = 8


@dataclass(frozen=True, slots=True)
class Batch:
    """Some images as the model is fed them; their masks have the size of the model's input."""

    samples: tuple[Sample, ...]
    images: Array  # (len(samples), C, H, W) or (len(samples), H, W, C), of the model's dtype
    # bool, (H, W); all False for a normal image, None where masks were not asked for.
    masks: tuple[BoolArray | None, ...]
    shown: tuple[BoolArray | None, ...]  # bool, (H, W): True where there is no padding; None where there is none at all
    between: tuple[int, ...]  # how many pixels of each mask's file are neither 0 nor its largest value


class Loaded(NamedTuple):
    """One image as a model is fed it; the fields are those of a `Batch`, and the image itself, upright."""

    array: Array
    mask: BoolArray | None
    shown: BoolArray | None
    between: int
    image: "Image"


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

    def load(sample: Sample) -> tuple[Array, BoolArray | None, BoolArray | None, int]:
        array, mask, shown, between, _ = load_image(sample, preprocessing, with_mask=masks)
        return array, mask, shown, between

    loaded, remaining = load_ahead(samples, load, workers=workers, batch_size=batch_size), iter(samples)
    while chosen := tuple(islice(remaining, batch_size)):
        images, truth, shown, between = zip(*islice(loaded, len(chosen)), strict=True)
        yield Batch(chosen, np.stack(images), truth, shown, between)


Given = TypeVar("Given")
Made = TypeVar("Made")


def load_ahead(
    given: Iterable[Given], load: Callable[[Given], Made], *, workers: int | None, batch_size: int
) -> Generator[Made, None, None]:
    """Yield what `load` makes of each item, in order, made in worker threads as `load_batches` has them.

    Once it is closed nothing is made any more.
    """
    threads = workers or min(_MAX_WORKERS, os.cpu_count() or 1)
    pending: deque[Future[Made]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        for each in given:
            pending.append(pool.submit(load, each))
            if len(pending) > threads + batch_size:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def load_image(sample: Sample, preprocessing: Preprocessing, *, with_mask: bool) -> Loaded:
    """Decode and pre-process one image, and its mask, which an anomalous one needs then.

    Raises FileError, CalibrationError or UsageError, which name the file that cannot be used.
    """
    image = decode(sample.image, bits=preprocessing.bits)
    size, where, between = (image.height, image.width), str(sample.image), 0
    rows, columns = preprocessing.axes(size, where=where)
    mask = shown = None
    if with_mask and sample.mask is not None:
        marked, between = read_mask(sample.mask, image_size=size)
        if sample.label == 0 and marked.any():
            raise CalibrationError(
                f"the normal image {sample.image} has a mask with anomalous pixels",
                found=f"{int(marked.sum())} pixels above 0 in {sample.mask}",
                needed="label 1, or a mask of zeros",
            )
        mask = on_input(marked, rows, columns)
    elif with_mask and sample.label == 0:
        mask = np.zeros((rows.size, columns.size), bool)
    elif with_mask:
        fix = "add it, or leave the pixel level out with --image-only"
        raise CalibrationError(f"the anomalous image {sample.image} has no mask", fix=fix)
    if preprocessing.resize == "pad":
        shown = on_input(np.ones(size, bool), rows, columns)
    return Loaded(preprocessing.array(image, where=where), mask, shown, between, image)
