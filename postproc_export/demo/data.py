"""The demo's images and its folder: crops of real photos, with defects whose masks are exact to the pixel.

The photos are three texture images that scikit-image installs with itself; nothing is downloaded. A normal crop is a
piece of the gravel photo as it is. A defect is drawn into a crop, and its mask is the set of pixels it was drawn on.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from postproc_export.errors import FileError, require
from postproc_export.files import folder_made_for
from postproc_export.process import Undoing, claimed, orderly_end

Gray: TypeAlias = npt.NDArray[np.uint8]
Mask: TypeAlias = npt.NDArray[np.bool_]
Draw: TypeAlias = Callable[[Gray, Gray, np.random.Generator], tuple[Gray, Mask]]
"""From a clean crop, one of another texture and a generator to the crop with a defect and its mask.

A defect changes pixels of its mask and no other.
"""

_LOBES: Final = 5


def blur(clean: Gray, other: Gray, rng: np.random.Generator) -> tuple[Gray, Mask]:
    """Put an irregular spot out of focus."""
    mask = _spot(clean.shape, rng)
    return _paint(clean, _gaussian_blur(clean, sigma=rng.uniform(2.0, 3.0)), mask), mask


def patch(clean: Gray, other: Gray, rng: np.random.Generator) -> tuple[Gray, Mask]:
    """Replace an irregular spot by the same spot of another texture."""
    mask = _spot(clean.shape, rng)
    return np.where(mask, other, clean), mask


def scratch(clean: Gray, other: Gray, rng: np.random.Generator) -> tuple[Gray, Mask]:
    """Draw a bent line, two to four pixels wide, bright or dark."""
    return _tint(clean, _bent_line(clean.shape, rng), rng, tones=(10.0, 245.0), strengths=(0.6, 0.9))


def stain(clean: Gray, other: Gray, rng: np.random.Generator) -> tuple[Gray, Mask]:
    """Pull the grey levels of an irregular spot towards one dark or light tone."""
    return _tint(clean, _spot(clean.shape, rng), rng, tones=(20.0, 235.0), strengths=(0.4, 0.7))


DEFECTS: Final[Mapping[str, Draw]] = {"blur": blur, "patch": patch, "scratch": scratch, "stain": stain}


def _tint(
    clean: Gray, mask: Mask, rng: np.random.Generator, *, tones: Sequence[float], strengths: tuple[float, float]
) -> tuple[Gray, Mask]:
    tone, strength = rng.choice(tones), rng.uniform(*strengths)
    return _paint(clean, (1 - strength) * clean + strength * tone, mask), mask


def _paint(clean: Gray, changed: npt.NDArray[np.float64], mask: Mask) -> Gray:
    return np.where(mask, np.rint(changed).clip(0, 255).astype(np.uint8), clean)


def _spot(shape: tuple[int, ...], rng: np.random.Generator) -> Mask:
    """All pixels within a closed curve around a random centre, whose radius swings with the angle."""
    size = min(shape)
    radius = rng.uniform(0.10, 0.20) * size
    centre = rng.uniform(0.3 * size, 0.7 * size, size=2)
    waves = np.arange(1, _LOBES + 1)
    swing = rng.uniform(0.0, 0.35, size=_LOBES) / waves
    phase = rng.uniform(0.0, 2 * np.pi, size=_LOBES)
    down, right = np.indices(shape) - centre[:, None, None]
    angle = np.arctan2(down, right)[..., None]
    limit = radius * (1 + (swing * np.cos(waves * angle + phase)).sum(axis=-1))
    return np.asarray(np.hypot(down, right) <= limit, dtype=np.bool_)


def _bent_line(shape: tuple[int, ...], rng: np.random.Generator) -> Mask:
    """All pixels within half a width of a quadratic Bezier curve that is sampled finer than a pixel."""
    size = min(shape)
    start = np.array([rng.uniform(0.1, 0.9), rng.uniform(0.05, 0.3)]) * size
    end = np.array([rng.uniform(0.1, 0.9), rng.uniform(0.7, 0.95)]) * size
    control = (start + end) / 2 + rng.uniform(-0.25, 0.25, size=2) * size
    t = np.linspace(0.0, 1.0, 4 * size)[:, None]
    curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end
    if rng.random() < 0.5:
        curve = curve[:, ::-1]
    down, right = np.indices(shape)[..., None] - curve.T[:, None, None, :]
    nearest = (down * down + right * right).min(axis=-1)
    return np.asarray(nearest <= rng.uniform(1.0, 2.0) ** 2, dtype=np.bool_)


def _gaussian_blur(image: Gray, *, sigma: float) -> npt.NDArray[np.float64]:
    """Convolve with a Gaussian, one axis after the other; the border is mirrored."""
    reach = int(np.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    blurred = np.pad(image.astype(np.float64), reach, mode="reflect")
    for axis in (0, 1):
        blurred = np.lib.stride_tricks.sliding_window_view(blurred, kernel.size, axis=axis) @ kernel
    return blurred


Photos: TypeAlias = Mapping[str, Gray]
Split: TypeAlias = Literal["training", "validation", "test"]

CROP_SIZE: Final = 96
NORMAL_PHOTO: Final = "gravel"
OTHER_PHOTOS: Final = ("grass", "brick")
GOOD: Final = "good"
PURPOSE: Final = "the demo"


# Columns of the photos. Strips from top to bottom, because the photo was taken at a slant: each split sees the near and
# the far stones.
REGIONS: Final[Mapping[Split, range]] = {"training": range(192), "validation": range(192, 352), "test": range(352, 512)}


@dataclass(frozen=True, slots=True)
class Crop:
    """One image of the demo and what is known of it."""

    name: str  # its kind ("good" or the defect) and its number among that kind, such as "scratch/003"
    top: int  # where the crop lies in the photo, in pixels
    left: int
    image: Gray  # shape (96, 96)
    mask: Mask  # shape (96, 96), True on the pixels that the defect was drawn on

    @property
    def kind(self) -> str:
        """``"good"``, or the name of the defect."""
        return self.name.partition("/")[0]


def load_photos() -> Photos:
    """Read the texture photos out of the installed scikit-image package, each of shape (512, 512).

    Raises MissingDependencyError without scikit-image or Pillow, and FileError if scikit-image does not hold a photo.
    """
    spec = find_spec("skimage")
    package = spec.origin if spec else None
    data = Path(str(package or require("skimage", purpose=PURPOSE).__file__)).parent / "data"
    photos: dict[str, Gray] = {}
    for name in (NORMAL_PHOTO, *OTHER_PHOTOS):
        # By path and not with skimage.data.gravel(), which would go to the network for a file that is not there.
        path = data / f"{name}.png"
        if not path.is_file():
            raise FileError(
                f"the demo's photo '{name}' is not in the installed scikit-image",
                found=f"no file {path}",
                needed="a scikit-image with its texture images, as the wheels on PyPI have them",
                fix="pip install --force-reinstall scikit-image",
            )
        with require("PIL.Image", purpose=PURPOSE).open(path) as photo:
            photos[name] = np.asarray(photo.convert("L"), dtype=np.uint8)
    return photos


def make_crops(photos: Photos, split: Split, *, good: int, each_defect: int = 0, seed: int = 0) -> tuple[Crop, ...]:
    """Cut `good` normal crops and `each_defect` anomalous ones of every defect out of one region of the photo.

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
            crops.append(replace(clean, image=image, mask=mask))
    return tuple(crops)


def _cut(photo: Gray, region: range, rng: np.random.Generator, *, name: str) -> Crop:
    top = int(rng.integers(photo.shape[0] - CROP_SIZE + 1))
    left = int(rng.integers(region.start, region.stop - CROP_SIZE + 1))
    image = photo[top : top + CROP_SIZE, left : left + CROP_SIZE]
    return Crop(name, top, left, image, np.zeros(image.shape, dtype=np.bool_))


def image_files(crops: Iterable[Crop]) -> dict[PurePosixPath, Gray]:
    """Lay crops out as MVTec AD does: ``good/``, ``<defect>/`` and ``ground_truth/<defect>/<stem>_mask.png``.

    In the masks 255 is anomalous and 0 normal.
    """
    files: dict[PurePosixPath, Gray] = {}
    for crop in crops:
        files[PurePosixPath(f"{crop.name}.png")] = crop.image
        if crop.kind != GOOD:
            files[PurePosixPath(f"ground_truth/{crop.name}_mask.png")] = np.where(crop.mask, 255, 0).astype(np.uint8)
    return files


# The demo's folder: a run replaces what an earlier run wrote there and touches nothing else. A list of the demo's own
# files, kept in the folder, is what tells them from the user's.
MARKER: Final = ".postproc-export-demo"
_HEADER: Final = (
    "# Written by `postproc-export demo`: the files below are its own, and its next run here replaces them."
)
_ELSEWHERE: Final = "choose another folder with --output"


def claim(folder: Path, files: Iterable[PurePosixPath]) -> None:
    """Make `folder` ready for these files: remove what an earlier demo wrote there, make the folders, write the list.

    Raises FileError if the folder holds files of others, and either no demo was ever there or one of them is in the
    way; nothing was removed then.
    """
    new = sorted(files)
    old = own_files(folder)
    with _explained(folder):
        for file in new:
            if file not in old and (folder / file).exists():
                raise FileError(
                    f"{folder / file} is in the demo's way, and no demo wrote it", fix=f"move it, or {_ELSEWHERE}"
                )
        _remove(folder, old)
        for parent in {(folder / file).parent for file in new}:
            parent.mkdir(parents=True, exist_ok=True)
        _list(folder, new)


def claim_written(folder: Path, name: str) -> None:
    """Take a file, or all files of a folder, for the demo's: something else wrote them for it, into its folder."""
    with _explained(folder):
        paths = [folder / name, *(folder / name).rglob("*")]
        written = {PurePosixPath(path.relative_to(folder)) for path in paths if path.is_file()}
        _list(folder, own_files(folder) | written)


def _list(folder: Path, files: Iterable[PurePosixPath]) -> None:
    (folder / MARKER).write_text("\n".join([_HEADER, *sorted(map(str, files))]) + "\n", encoding="utf-8")


def _remove(folder: Path, files: Collection[PurePosixPath]) -> None:
    """Remove files, and the folders that are empty then."""
    for file in files:
        (folder / file).unlink(missing_ok=True)
    for parent in sorted({parent for file in files for parent in file.parents} - {PurePosixPath()}, reverse=True):
        with suppress(OSError):  # the user has put something there
            (folder / parent).rmdir()


def own_files(folder: Path) -> frozenset[PurePosixPath]:
    """Return what an earlier demo wrote to `folder`, relative to it; nothing for a new or empty folder.

    Raises FileError if the folder holds files and no demo was ever there, or its list leads out of the folder.
    """
    with _explained(folder):
        if not (folder / MARKER).is_file():
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise FileError(
                    f"{folder} is not the demo's to write to",
                    found="files that no demo wrote" if folder.is_dir() else "a file",
                    needed="a new or empty folder, or one that an earlier demo wrote",
                    fix=_ELSEWHERE,
                )
            return frozenset()
        lines = (folder / MARKER).read_text(encoding="utf-8").splitlines()
    files = frozenset(PurePosixPath(line) for line in lines if line and not line.startswith("#"))
    # The list decides what is deleted, so it must not lead out of the folder, whoever edited it.
    if any(file.is_absolute() or ".." in file.parts for file in files):
        raise FileError(f"{folder / MARKER} names files outside its folder", fix="delete the folder")
    return files


@contextmanager
def whole_or_nothing(folder: Path) -> Iterator[None]:
    """Take everything that the demo has in the folder away again where the block fails, or a signal ends it."""
    is_whole = False

    def undo() -> None:
        if is_whole:
            return
        with suppress(OSError):
            _remove(folder, own_files(folder))
            (folder / MARKER).unlink(missing_ok=True)  # the list goes last

    with folder_made_for(folder / MARKER), claimed([folder]), orderly_end(), Undoing(undo):
        yield
        is_whole = True


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn what the file system refuses into an error that says what to do."""
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"cannot write the demo to {folder}", found=error.strerror, fix=_ELSEWHERE) from error
