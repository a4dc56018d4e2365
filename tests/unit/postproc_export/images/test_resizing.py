"""Images at another size: Pillow's own filters, and OpenCV's results without OpenCV."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from postproc_export.images.resizing import resized

Pixels = npt.NDArray[np.unsignedinteger]
RNG = np.random.default_rng(1)


def as_image(pixels: Pixels) -> Image.Image:
    """Return pixels as a decoder gives them: 16 bits in mode I."""
    return Image.fromarray(pixels.astype(np.int32) if pixels.dtype == np.uint16 else pixels)


@pytest.mark.parametrize("name", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
def test_pillows_filters_are_pillows(name: str) -> None:
    """Of 8 bits to the bit; of 16 bits within two roundings of what Pillow gives in floating point."""
    filter_ = Image.Resampling[name.upper()]
    image = Image.fromarray(RNG.integers(0, 256, (40, 30, 3), np.uint8))
    for size in ((20, 45), (40, 31), (7, 9)):
        np.testing.assert_array_equal(resized(image, size, name), np.asarray(image.resize(size[::-1], filter_)))
        deep = RNG.integers(0, 65536, (40, 30), np.uint16)
        exact = np.asarray(Image.fromarray(deep.astype(np.float32)).resize(size[::-1], filter_))
        found = resized(as_image(deep), size, name)
        assert found.dtype == np.uint16
        np.testing.assert_allclose(found, np.clip(exact, 0, 65535), atol=1.5)


def sizes(count: int) -> list[tuple[int, int, int, int]]:
    """Return heights and widths of sources and targets: ratios of all kinds, and single pixels."""
    rng = np.random.default_rng(7)
    drawn = [tuple(int(each) for each in rng.integers(1, 90, 4)) for _ in range(count)]
    whole = [(h * down, w * right, h, w) for h, w, down, right in rng.integers(1, 9, (count // 2, 4)).tolist()]
    return [*drawn, *whole, (90, 120, 45, 60), (1, 1, 5, 5), (5, 5, 1, 1), (1, 8, 3, 8)]


@pytest.mark.parametrize("name", ["cv2-linear", "cv2-area"])
@pytest.mark.parametrize("channels", [1, 3])
def test_opencvs_filters_give_its_bits(name: str, channels: int) -> None:
    """Of 8-bit images, growing, shrinking or both, gray and color."""
    opencv = pytest.importorskip("cv2")
    flag = {"cv2-linear": opencv.INTER_LINEAR, "cv2-area": opencv.INTER_AREA}[name]
    for height, width, to_height, to_width in sizes(80):
        pixels = RNG.integers(0, 256, (height, width, channels)[: 2 if channels == 1 else 3], np.uint8)
        expected = opencv.resize(pixels, (to_width, to_height), interpolation=flag)
        found = resized(as_image(pixels), (to_height, to_width), name)
        np.testing.assert_array_equal(found, expected.reshape(found.shape), err_msg=f"{pixels.shape} to {found.shape}")


@pytest.mark.parametrize("name", ["cv2-linear", "cv2-area"])
def test_opencvs_filters_on_sixteen_bits(name: str) -> None:
    """Within 2 of 65,535, since IPP, where OpenCV has it, rounds cv2-linear otherwise; cv2-area to the bit."""
    opencv = pytest.importorskip("cv2")
    flag = {"cv2-linear": opencv.INTER_LINEAR, "cv2-area": opencv.INTER_AREA}[name]
    for height, width, to_height, to_width in sizes(40):
        if (height < to_height or width < to_width) and name == "cv2-area":
            continue  # which is cv2-linear then
        pixels = RNG.integers(0, 65536, (height, width), np.uint16)
        expected = opencv.resize(pixels, (to_width, to_height), interpolation=flag).astype(int)
        found = resized(as_image(pixels), (to_height, to_width), name).astype(int)
        np.testing.assert_allclose(found, expected.reshape(found.shape), atol=2 if name == "cv2-linear" else 0)


def test_opencvs_results_hold_without_opencv() -> None:
    """Kept results of OpenCV 4.14, so that the promise is tested where OpenCV is not installed."""
    kept = json.loads((Path(__file__).parents[3] / "data" / "opencv_resized.json").read_text())
    pixels = np.array(kept["pixels"], np.uint8)
    for case in kept["cases"]:
        np.testing.assert_array_equal(resized(as_image(pixels), tuple(case["size"]), case["filter"]), case["pixels"])


def test_an_image_of_that_size_stays_as_it_is() -> None:
    """Whatever the filter: there is nothing to resize."""
    pixels = RNG.integers(0, 256, (6, 5, 3), np.uint8)
    for name in ("bilinear", "bicubic", "cv2-linear", "cv2-area"):
        np.testing.assert_array_equal(resized(as_image(pixels), (6, 5), name), pixels)
        assert not np.array_equal(resized(as_image(pixels), (5, 6), name), pixels.transpose(1, 0, 2))
