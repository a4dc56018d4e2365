"""Areas and boxes of masks on their images."""

import numpy as np
import pytest
from scipy import ndimage

from postproc_export.images import Preprocessing
from postproc_export.images.geometry import Placement, place_map
from postproc_export.prediction.regions import find_regions


def placed(fed: Preprocessing, image: tuple[int, int], map_size: tuple[int, int]) -> Placement:
    """Return where a map lies on an image."""
    return place_map(image, fed.axes(image), map_crop=fed.map_crop, map_size=map_size)


def test_boxes_and_areas_by_hand() -> None:
    """Two pixels that touch at a corner are one region; all in pixels of an image twice as large."""
    mask = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], bool)
    found = find_regions(mask, placed(Preprocessing(size=(3, 4)), (6, 8), (3, 4)))
    assert found == (12, [(0, 0, 4, 4), (6, 4, 2, 2)])


def test_no_region() -> None:
    """A mask without a pixel, and one that marks padding alone."""
    empty = find_regions(np.zeros((3, 4), bool), placed(Preprocessing(size=(3, 4)), (6, 8), (3, 4)))
    assert empty == (0, [])
    mask = np.zeros((8, 8), bool)
    mask[0] = True
    padded = Preprocessing(size=(8, 8), resize="pad")
    assert find_regions(mask, placed(padded, (16, 32), (8, 8))) == (0, [])


@pytest.mark.parametrize("image", [(40, 60), (11, 7), (64, 16)])
@pytest.mark.parametrize(
    "fed",
    [
        Preprocessing(size=(16, 24)),
        Preprocessing(size=(16, 16), resize="pad"),
        Preprocessing(size=(12, 12), precrop=True),
        Preprocessing(size=(16, 16), resize="shorter", crop=(10, 12)),
        Preprocessing(size=(16, 24), map_crop=(12, 14)),
    ],
    ids=lambda fed: fed.describe(),
)
def test_they_are_those_of_the_mask_laid_on_the_image(fed: Preprocessing, image: tuple[int, int]) -> None:
    """Also where the image is smaller than the map: as scipy finds them at the image's size."""
    random = np.random.default_rng(6)
    placement = placed(fed, image, (13, 17))
    for _ in range(20):
        mask = random.random((13, 17)) < random.choice([0.02, 0.2, 0.6])
        laid = placement.on_image(mask)
        labels, _ = ndimage.label(laid, structure=np.ones((3, 3)))
        boxes = {(x.start, y.start, x.stop - x.start, y.stop - y.start) for y, x in ndimage.find_objects(labels)}
        area, found = find_regions(mask, placement)
        assert area == laid.sum()
        assert set(found) == boxes
        assert len(found) == labels.max()
