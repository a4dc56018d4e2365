"""The demo's images: crops of real photos, with defects whose masks are exact to the pixel.

The photos are three texture images that scikit-image installs with itself; nothing is downloaded. A normal crop is a
piece of the gravel photo as it is. A defect is drawn into a crop, and its mask is the set of pixels it was drawn on.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Final, Literal, TypeAlias

import numpy as np

from postproc_export.demo.defects import DEFECTS, Gray, Mask
from postproc_export.errors import FileError, require

Photos: TypeAlias = Mapping[str, Gray]
Split: TypeAlias = Literal["training", "validation", "test"]

CROP_SIZE: Final = 96
NORMAL_PHOTO: Final = "gravel"
OTHER_PHOTOS: Final = ("grass", "brick")
GOOD: Final = "good"
PURPOSE: Final = "the demo"


@dataclass(frozen=True, slots=True)
class Region:
    """A vertical strip of a photo: the columns `left` (included) to `right` (excluded), in pixels."""

    left: int
    right: int


# Strips from top to bottom, because the photo was taken at a slant: each split sees the near and the far stones.
REGIONS: Final[Mapping[Split, Region]] = {
    "training": Region(0, 192),
    "validation": Region(192, 352),
    "test": Region(352, 512),
}


@dataclass(frozen=True, slots=True)
class Crop:
    """One image of the demo and what is known of it.

    Parameters
    ----------
    name
        Its kind and its number among that kind, such as ``"scratch/003"``; the kind is ``"good"`` or the defect.
    top, left
        Where the crop lies in the photo, in pixels.
    image
        uint8, shape (96, 96), grey levels 0 to 255.
    mask
        bool, shape (96, 96), True on the pixels that the defect was drawn on.
    """

    name: str
    top: int
    left: int
    image: Gray
    mask: Mask

    @property
    def kind(self) -> str:
        """``"good"``, or the name of the defect."""
        return self.name.partition("/")[0]


def load_photos() -> Photos:
    """Read the texture photos out of the installed scikit-image package.

    Returns
    -------
    Photos
        By name, uint8, shape (512, 512), grey levels 0 to 255.

    Raises
    ------
    MissingDependencyError
        If scikit-image or Pillow is not installed.
    FileError
        If the installed scikit-image does not hold a photo.
    """
    return {name: _load_photo(name) for name in (NORMAL_PHOTO, *OTHER_PHOTOS)}


def _load_photo(name: str) -> Gray:
    # By path and not with skimage.data.gravel(), which would go to the network for a file that is not there.
    path = _installed_data() / f"{name}.png"
    if not path.is_file():
        raise FileError(
            f"the demo's photo '{name}' is not in the installed scikit-image",
            found=f"no file {path}",
            needed="a scikit-image with its texture images, as the wheels on PyPI have them",
            fix="pip install --force-reinstall scikit-image",
        )
    with require("PIL.Image", extra="demo", purpose=PURPOSE).open(path) as photo:
        return np.asarray(photo.convert("L"), dtype=np.uint8)


def _installed_data() -> Path:
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        return Path(str(require("skimage", extra="demo", purpose=PURPOSE).__file__)).parent / "data"
    return Path(spec.origin).parent / "data"


def make_crops(photos: Photos, split: Split, *, good: int, each_defect: int = 0, seed: int = 0) -> tuple[Crop, ...]:
    """Cut `good` normal crops and `each_defect` anomalous ones of every defect out of one region of the photo.

    Notes
    -----
    The same arguments give the same crops. Crops of one split may overlap each other, never those of another split. A
    patch of another texture comes out of the same strip of the other photo, so that this holds for patches too.
    """
    rng = np.random.default_rng([seed, tuple(REGIONS).index(split)])
    region = REGIONS[split]
    crops = [_cut(photos[NORMAL_PHOTO], region, rng, name=f"{GOOD}/{number:03}") for number in range(good)]
    for kind, draw in DEFECTS.items():
        for number in range(each_defect):
            clean = _cut(photos[NORMAL_PHOTO], region, rng, name=f"{kind}/{number:03}")
            other = _cut(photos[OTHER_PHOTOS[rng.integers(len(OTHER_PHOTOS))]], region, rng, name="other")
            image, mask = draw(clean.image, other.image, rng)
            crops.append(Crop(clean.name, clean.top, clean.left, image, mask))
    return tuple(crops)


def _cut(photo: Gray, region: Region, rng: np.random.Generator, *, name: str) -> Crop:
    top = int(rng.integers(photo.shape[0] - CROP_SIZE + 1))
    left = int(rng.integers(region.left, region.right - CROP_SIZE + 1))
    image = photo[top : top + CROP_SIZE, left : left + CROP_SIZE]
    return Crop(name, top, left, image, np.zeros(image.shape, dtype=np.bool_))


def image_files(crops: Iterable[Crop]) -> dict[PurePosixPath, Gray]:
    """Lay crops out as MVTec AD does: ``good/``, ``<defect>/`` and ``ground_truth/<defect>/<stem>_mask.png``.

    Returns
    -------
    dict[PurePosixPath, Gray]
        The content of each PNG file by its relative path: uint8, shape (96, 96); in masks 255 is anomalous, 0 normal.
    """
    files: dict[PurePosixPath, Gray] = {}
    for crop in crops:
        files[PurePosixPath(f"{crop.name}.png")] = crop.image
        if crop.kind != GOOD:
            files[PurePosixPath(f"ground_truth/{crop.name}_mask.png")] = np.where(crop.mask, 255, 0).astype(np.uint8)
    return files
