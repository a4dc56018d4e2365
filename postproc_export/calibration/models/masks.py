"""The masks of labelled images: at the size of the maps, missing ones refused, empty ones told of."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from postproc_export.errors import CalibrationError
from postproc_export.images import Batch, Sample, fit_mask
from postproc_export.runtimes import Array


class EmptyMaskWarning(UserWarning):
    """Masks of anomalous images in which no pixel is anomalous."""


class EmptyMasks:
    """Counts the masks of anomalous images without an anomalous pixel, to tell of them once."""

    def __init__(self) -> None:
        self._found: list[Path] = []

    def look_at(self, batch: Batch) -> None:
        """Take note of such masks in a batch."""
        for sample, mask in zip(batch.samples, batch.masks, strict=True):
            if sample.label == 1 and sample.mask is not None and mask is not None and not mask.any():
                self._found.append(sample.mask)

    def warn(self) -> None:
        """Warn if there was one."""
        if self._found:
            message = (
                f"{len(self._found)} anomalous image(s) have a mask without an anomalous pixel, so all of their pixels "
                f"count as normal; the first mask is {self._found[0]}"
            )
            warnings.warn(EmptyMaskWarning(message), stacklevel=3)


def fitted_masks(batch: Batch, size: Sequence[int]) -> Array:
    """Return the masks of a batch at the height and width of its maps, stacked."""
    height, width = size
    return np.stack([fit_mask(mask, height=height, width=width) for mask in batch.masks if mask is not None])


def refuse_missing_masks(samples: Sequence[Sample]) -> None:
    """Refuse anomalous images without a mask.

    Raises
    ------
    CalibrationError
        If there is one.
    """
    missing = [sample.image for sample in samples if sample.label == 1 and sample.mask is None]
    if missing:
        raise CalibrationError(
            f"{len(missing)} anomalous image(s) have no mask; the first is {missing[0]}",
            needed="a mask for every anomalous image, to calibrate the pixel level",
            fix="add the masks, or leave the pixel level out with --image-only",
        )
