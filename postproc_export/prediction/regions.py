"""The regions of a mask on its image: how large they are, and where."""

import numpy as np
from numpy.typing import NDArray

from postproc_export.errors import require
from postproc_export.images.geometry import BoolArray, Line, Placement

Box = tuple[int, int, int, int]  # x, y, width and height, in pixels of the image, from its upper left corner


def find_regions(mask: BoolArray, placement: Placement) -> tuple[int, list[Box]]:
    """Return how many pixels of an image a mask at the map's size marks, and the box of each of its regions.

    Pixels of the image that touch, at a corner too, are of one region; the boxes are sorted by y, then x. They are
    found at the map's size: laying it on the image repeats or leaves out rows and columns, and nothing else.
    """
    (rows, tops), (columns, lefts) = _runs(placement.rows), _runs(placement.columns)
    kept = mask[np.ix_(rows, columns)]
    if not kept.any():
        return 0, []
    area = int(np.diff(tops) @ kept.astype(np.int64) @ np.diff(lefts))
    ndimage = require("scipy.ndimage", purpose="finding the regions of a mask", extra="predict")
    found, _ = ndimage.label(kept, structure=np.ones((3, 3)))
    ends = [(tops[y.start], tops[y.stop], lefts[x.start], lefts[x.stop]) for y, x in ndimage.find_objects(found)]
    boxes = sorted((int(top), int(left), int(right - left), int(bottom - top)) for top, bottom, left, right in ends)
    return area, [(x, y, width, height) for y, x, width, height in boxes]


def _runs(line: Line) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the indices of the map that lie on the image, and where the pixels of each begin; last, where all end."""
    first = np.flatnonzero(np.diff(line.under, prepend=-1))
    return line.under[first], np.append(first, len(line.under)) + line.seen.start
