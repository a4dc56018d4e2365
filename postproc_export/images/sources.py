"""Images to run a model on, labelled or not: a folder, a list, a pattern or a CSV file."""

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from postproc_export.errors import UsageError
from postproc_export.images.layouts import SUFFIXES, LayoutError, Sample, find_samples, images_below, no_image

Images: TypeAlias = str | Path | Iterable[str | Path]


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Images, with what is known of each."""

    base: Path  # the folder that they lie in
    samples: Sequence[Sample]
    notes: tuple[str, ...] = ()  # a sentence each


def find_images(images: Images, *, split: str | None = None, anomalous_label: object = None) -> ImageSource:
    """Return the images of a folder, of a CSV file, of a pattern such as ``parts/**/*.png``, or of a list of all that.

    A folder or CSV file in a layout that `find_samples` knows gives labels, masks and classes, too; of any other folder
    all images are taken, those of the folders in it as well, except in folders of masks. No image is looked at.
    Raises an error where there is none.
    """
    if isinstance(images, str | Path):
        return _of_one(Path(images), split, anomalous_label)
    given = [Path(each) for each in images]
    if len(given) == 1:
        return _of_one(given[0], split, anomalous_label)
    if split is not None or anomalous_label is not None:
        option = "--split" if split is not None else "--anomalous-label"
        raise UsageError(f"{option} is for one folder or CSV file", found=f"{len(given)} paths", fix="leave it out")
    found = [path for each in given for path in (images_below(each) if each.is_dir() else [each])]
    if not found:
        raise no_image(f"a list of {len(given)} paths")
    return _plain(Path(os.path.commonpath([path.absolute().parent for path in found])), found)


def _of_one(path: Path, split: str | None, anomalous_label: object) -> ImageSource:
    pattern = str(path)
    if glob.has_magic(pattern) and not path.exists():
        fixed = next(each for each in path.parents if not glob.has_magic(str(each)))
        found = sorted(fixed.glob(str(path.relative_to(fixed))))
        return _plain(fixed, [each for each in found if each.suffix.lower() in SUFFIXES and not each.is_dir()], path)
    if path.suffix.lower() in SUFFIXES and not path.is_dir():
        return _plain(path.parent, [path], path)
    base = path if path.is_dir() else path.parent
    try:
        samples = find_samples(path, labels=None, split=split, anomalous_label=anomalous_label)
        return ImageSource(base, samples)
    except LayoutError as error:
        if split is not None:
            raise
        note = f"nothing is known of the images: {error.what}; all below it are taken"
        return _plain(base, list(images_below(path)), path, notes=(note,))


def _plain(
    base: Path, found: Sequence[Path], where: object = "the list", *, notes: tuple[str, ...] = ()
) -> ImageSource:
    if not found:
        raise no_image(where)
    return ImageSource(base, [Sample(path) for path in found], notes)
