"""Ground-truth masks: any value above 0 is anomalous, and the mask takes the size of the map."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from postproc_export.errors import CalibrationError
from postproc_export.images.decoding import open_upright

BoolArray = npt.NDArray[np.bool_]


def read_mask(path: Path, *, image_size: tuple[int, int]) -> BoolArray:
    """Read a mask file: bool, shape (H, W), True where any color channel is above 0.

    Parameters
    ----------
    path
        An image file of any bit depth; alpha does not count, and of a palette the colors count.
    image_size
        Height and width of the image that it belongs to.

    Raises
    ------
    FileError
        If it cannot be read.
    CalibrationError
        If it has another size than its image.
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

    Notes
    -----
    The ground truth is judged at the map's size, so that the counts are those of the pixels that the deployed model
    labels. A defect thinner than a map pixel may vanish.
    """
    rows = (2 * np.arange(height) + 1) * mask.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * mask.shape[1] // (2 * width)
    fitted: BoolArray = mask[rows[:, None], columns[None, :]]
    return fitted
