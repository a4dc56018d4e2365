"""Pictures of maps and masks: one color means one value, wherever it stands."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from postproc_export.images.pictures import COLORS, heatmap, overlay, reduced, save_png, sheet, thumbnail


def luminance(colors: np.ndarray) -> np.ndarray:
    """Return how bright colors look, WCAG's relative luminance."""
    linear = np.where(colors <= 10, colors / 255 / 12.92, ((colors / 255 + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def test_the_threshold_is_the_middle_of_the_scale() -> None:
    """0.5 is white, lower values are blue and higher ones red; beside the scale its ends count, and NaN as the top."""
    (drawn,) = heatmap(np.array([[0.5, 0.0, 1.0, -3.0, 7.0, np.nan, np.inf, -np.inf]], np.float32))
    middle, lowest, highest = COLORS[128].tolist(), COLORS[0].tolist(), COLORS[256].tolist()
    assert drawn.tolist() == [middle, lowest, highest, lowest, highest, highest, highest, lowest]
    assert (COLORS[:128, 2] > COLORS[:128, 0]).all()
    assert (COLORS[129:, 0] >= COLORS[129:, 2]).all()
    assert np.ptp(COLORS[128]) == 0


def test_the_scale_can_be_read_without_color() -> None:
    """Each half gets brighter towards the threshold, so that the distance from it shows to everybody."""
    bright = luminance(COLORS.astype(np.float64))
    assert (np.diff(bright[:129]) > 0).all()
    assert (np.diff(bright[128:]) < 0).all()


def test_an_overlay_draws_only_where_the_model_saw() -> None:
    """The image stays as it is beside that; without a map it does everywhere, and it is never written to."""
    image = np.full((6, 6, 3), 100, np.uint8)
    drawn = overlay(image, heatmap(np.ones((6, 6))), seen=(slice(1, 4), slice(2, 6)))
    changed = (drawn != 100).any(axis=2)
    expected = np.zeros((6, 6), bool)
    expected[1:4, 2:6] = True
    np.testing.assert_array_equal(changed, expected)
    np.testing.assert_array_equal(overlay(image, None), image)
    assert (image == 100).all()


def test_a_mask_has_a_black_line_inside_and_a_white_one_outside() -> None:
    """A square of 4 pixels, by hand; a mask without a pixel changes nothing."""
    image = np.full((8, 8, 3), 100, np.uint8)
    mask = np.zeros((8, 8), bool)
    np.testing.assert_array_equal(overlay(image, None, mask), image)
    mask[2:6, 2:6] = True
    drawn = overlay(image, None, mask)[..., 0]
    assert drawn[3].tolist() == [100, 255, 0, 100, 100, 0, 255, 100]
    assert drawn[1].tolist() == [100, 100, 255, 255, 255, 255, 100, 100]
    assert drawn[2].tolist() == [100, 255, 0, 0, 0, 0, 255, 100]


@pytest.mark.parametrize(("size", "shown"), [((400, 200), (50, 25)), ((50, 50), (50, 50)), ((10, 20), (20, 40))])
def test_a_thumbnail_fits_its_square(size: tuple[int, int], shown: tuple[int, int]) -> None:
    """A small image is repeated, a large one resized."""
    assert thumbnail(np.zeros((*size, 3), np.uint8), 50).shape == (*shown, 3)
    height, width, _ = np.asarray(reduced(Image.new("RGB", size[::-1]), 50)).shape
    assert max(height, width) == max(size) if max(size) < 100 else 50 <= max(height, width) < 100


def test_a_sheet_has_every_tile_and_its_lines(tmp_path: Path) -> None:
    """Seven tiles in rows of three; a name that no font has and one that is too long do no harm."""
    lines = ("\N{SNOWMAN}\udcff1" * 40, "x")
    tiles = [(np.full((20, 10, 3), index * 10, np.uint8), lines) for index in range(1, 8)]
    drawn = sheet(tiles, side=20, columns=3)
    assert drawn.shape[1] == 3 * 28 + 8
    found = {value for value in np.unique(drawn[..., 0]) if (drawn[..., 0] == value).sum() >= 200}
    assert found >= {index * 10 for index in range(1, 8)}
    save_png(tmp_path / "sheet.png", drawn)
    with Image.open(tmp_path / "sheet.png") as image:
        np.testing.assert_array_equal(np.asarray(image), drawn)
