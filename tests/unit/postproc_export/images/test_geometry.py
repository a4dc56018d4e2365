"""Where an anomaly map lies on its image."""

from itertools import product

import numpy as np
import pytest

from postproc_export.images import Preprocessing
from postproc_export.images.geometry import Placement, place_map


def placed(fed: Preprocessing, image: tuple[int, int], map_size: tuple[int, int]) -> Placement:
    """Return where a map lies on an image."""
    return place_map(image, fed.axes(image), map_crop=fed.map_crop, map_size=map_size)


def test_a_stretched_map_covers_the_image() -> None:
    """Each pixel of the image has the value of the map pixel under its center, by hand."""
    values = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    laid = placed(Preprocessing(size=(4, 6)), (4, 5), (2, 3)).on_image(values)
    assert laid.tolist() == [[1, 1, 2, 3, 3]] * 2 + [[4, 4, 5, 6, 6]] * 2


@pytest.mark.parametrize(
    ("fed", "rows", "columns"),
    [
        (Preprocessing(size=(8, 8), resize="pad"), (0, 16), (0, 32)),
        (Preprocessing(size=(8, 8), resize="shorter"), (0, 16), (8, 24)),
        (Preprocessing(size=(8, 8), precrop=True), (0, 16), (8, 24)),
        (Preprocessing(size=(8, 8), crop=(4, 4)), (4, 12), (8, 24)),
        (Preprocessing(size=(8, 8), map_crop=(4, 4)), (4, 12), (8, 24)),
        (Preprocessing(resize="none", crop=(8, 8)), (4, 12), (12, 20)),
        (Preprocessing(size=(8, 8), resize="pad", map_crop=(2, 8)), (4, 12), (0, 32)),
    ],
    ids=lambda value: value.describe() if isinstance(value, Preprocessing) else None,
)
def test_nothing_is_laid_where_the_model_saw_nothing(
    fed: Preprocessing, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    """Crops and padding are left out: which rows and columns of a 16x32 image are covered, by hand."""
    if fed.resize == "shorter":
        fed = Preprocessing(size=(8, 8), resize="shorter", crop=(8, 8))
    laid = placed(fed, (16, 32), (4, 4)).on_image(np.ones((4, 4), bool))
    expected = np.zeros((16, 32), bool)
    expected[slice(*rows), slice(*columns)] = True
    np.testing.assert_array_equal(laid, expected)


def test_what_is_laid_on_the_image_comes_back_to_the_map() -> None:
    """Of an image that is larger than the map: the map of what was laid is what it was, for all ways of resizing."""
    ways = [
        {"size": (12, 9)},
        {"size": (12, 9), "precrop": True},
        {"size": (12, 9), "crop": (10, 5)},
        {"size": (9, 9), "resize": "pad", "pad_at": "corner"},
        {"size": (9, 9), "resize": "shorter", "crop": (7, 8)},
        {"size": (12, 9), "map_crop": (6, 4)},
    ]
    values = np.random.default_rng(4).random((3, 4), np.float32) + 1
    for way, image in product(ways, [(64, 40), (33, 71), (50, 50)]):
        placement = placed(Preprocessing(**way), image, (3, 4))
        assert set(np.unique(placement.on_image(values))) - {0.0} <= set(np.unique(values))
        if way.get("resize") != "pad":  # in which a map pixel may lie on no pixel of the image
            assert set(np.unique(placement.on_image(values))) >= set(np.unique(values))
        assert (np.diff(placement.rows.under) >= 0).all()
        assert len(placement.rows.under) == placement.rows.seen.stop - placement.rows.seen.start


def test_the_same_image_smaller_and_larger() -> None:
    """The map lies on the same part of it; at its own size nothing changes."""
    placement = placed(Preprocessing(size=(8, 8), crop=(4, 4)), (16, 32), (4, 4))
    ones = np.ones((4, 4), bool)
    for size, rows, columns in (
        ((8, 16), (2, 6), (4, 12)),
        ((32, 64), (8, 24), (16, 48)),
        ((16, 32), (4, 12), (8, 24)),
    ):
        expected = np.zeros(size, bool)
        expected[slice(*rows), slice(*columns)] = True
        np.testing.assert_array_equal(placement.at_size(size).on_image(ones), expected)
    values = np.arange(16.0).reshape(4, 4)
    np.testing.assert_array_equal(placement.at_size((16, 32)).on_image(values), placement.on_image(values))
