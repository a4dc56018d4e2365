"""Batches of decoded images, made by worker threads ahead of the model."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np

from postproc_export.errors import CalibrationError, UsageError
from postproc_export.images.decoding import decode_rgb
from postproc_export.images.masks import BoolArray, read_mask
from postproc_export.images.preprocessing import Preprocessing
from postproc_export.images.samples import Sample
from postproc_export.runtimes.protocol import Array

_MAX_WORKERS: Final = 8
_Loaded = tuple[Array, BoolArray | None]


@dataclass(frozen=True, slots=True)
class Batch:
    """Some images as the model is fed them.

    Parameters
    ----------
    samples
        The samples of this batch.
    images
        (len(samples), C, H, W) or (len(samples), H, W, C), of the model's dtype.
    masks
        bool, (H, W) in the size of the image file; all False for a normal image, None where masks were not asked for.
    """

    samples: tuple[Sample, ...]
    images: Array
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

    Parameters
    ----------
    samples
        What `find_samples` found.
    preprocessing
        With its size resolved (`Preprocessing.for_input`).
    batch_size
        Images per batch.
    masks
        Whether masks are read too; every anomalous sample needs one then.
    workers
        Threads; by default one per core, at most 8. At most a batch more than there are threads is decoded ahead.

    Raises
    ------
    UsageError
        If there is not at least one worker.
    FileError
        If an image or mask cannot be read; the file is named.
    CalibrationError
        If a mask contradicts its image's size or label.
    """
    check_workers(workers)
    threads = workers or min(_MAX_WORKERS, os.cpu_count() or 1)
    loaded = _load_ahead(samples, preprocessing, masks=masks, threads=threads, ahead=threads + batch_size)
    remaining = iter(samples)
    while chosen := tuple(islice(remaining, batch_size)):
        images, truth = zip(*islice(loaded, len(chosen)), strict=True)
        yield Batch(chosen, np.stack(images), truth)


def check_workers(workers: int | None) -> None:
    """Refuse a number of decoding threads below 1; None leaves the choice.

    Raises
    ------
    UsageError
        If it is below 1.
    """
    if workers is not None and workers < 1:
        fix = "leave it out for one thread per core"
        raise UsageError(f"{workers} workers to decode images", needed="at least 1", fix=fix)


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
    mask = _mask(sample, (image.height, image.width)) if with_mask else None
    return preprocessing.array(image), mask


def _mask(sample: Sample, image_size: tuple[int, int]) -> BoolArray:
    if sample.mask is None:
        if sample.label == 0:
            return np.zeros(image_size, bool)
        fix = "add it, or leave the pixel level out with --image-only"
        raise CalibrationError(f"the anomalous image {sample.image} has no mask", fix=fix)
    mask = read_mask(sample.mask, image_size=image_size)
    if sample.label == 0 and mask.any():
        raise CalibrationError(
            f"the normal image {sample.image} has a mask with anomalous pixels",
            found=f"{int(mask.sum())} pixels above 0 in {sample.mask}",
            needed="label 1, or a mask of zeros",
        )
    return mask
