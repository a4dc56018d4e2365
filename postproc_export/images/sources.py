"""Images to run a model on, labelled or not: a folder, a list, a pattern or a CSV file."""

import glob
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np

from postproc_export.errors import CalibrationError, UsageError
from postproc_export.images.layouts import SUFFIXES, LayoutError, Sample, images_below, no_image, walk_samples

Images: TypeAlias = str | Path | Iterable[str | Path]


class ImageSource:
    """Images, with what is known of each; they are looked for again each time, so that they need not be kept.

    `base` is the folder that they lie in, `count` how many there are, and each of the `notes` a sentence.
    """

    def __init__(
        self, base: Path, count: int, walk: Callable[[], Iterator[Sample]], notes: tuple[str, ...] = ()
    ) -> None:
        self.base, self.count, self.notes, self._walk = base, count, notes, walk

    def __iter__(self) -> Iterator[Sample]:
        return self._walk()


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
    for each in given:
        _refuse_other(each)
    parents = [each.absolute() if each.is_dir() else each.absolute().parent for each in given]
    base = Path(os.path.commonpath(parents)) if given else Path()
    return _plain(base, partial(_of_list, given), f"a list of {len(given)} paths")


def _of_one(path: Path, split: str | None, anomalous_label: object) -> ImageSource:
    text = str(path)
    if glob.has_magic(text) and not path.exists():
        fixed = next(each for each in path.parents if not glob.has_magic(str(each)))
        # As texts, which take a third of the room of paths.
        found = sorted(str(each) for each in fixed.glob(str(path.relative_to(fixed))) if _is_image(each))
        return _plain(fixed, partial(map, Path, found), path)
    if path.suffix.lower() in SUFFIXES and not path.is_dir():
        return _plain(path.parent, partial(_of_list, [path]), path)
    base = path if path.is_dir() else path.parent
    walk = partial(walk_samples, path, labels=None, split=split, anomalous_label=anomalous_label)
    try:
        count = _count(lambda: (sample.image for sample in walk()), path)
    except LayoutError as error:
        if split is not None:
            raise
        note = f"nothing is known of the images: {error.what}; all below it are taken"
        return _plain(base, partial(images_below, path), path, notes=(note,))
    if not count:
        raise no_image(path)
    return ImageSource(base, count, walk)


def _of_list(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        yield from images_below(path) if path.is_dir() else [path]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def _refuse_other(path: Path) -> None:
    """Raise UsageError for what is neither an image by its name nor a folder."""
    if path.suffix.lower() not in SUFFIXES and not path.is_dir():
        needed = f"folders, and files ending in {', '.join(SUFFIXES)}"
        raise UsageError(f"{path} is no image", needed=needed, fix="take it out; give a CSV file alone")


def _plain(
    base: Path, paths: Callable[[], Iterable[Path]], where: object, *, notes: tuple[str, ...] = ()
) -> ImageSource:
    """Return images of which nothing is known."""
    count = _count(paths, where)
    if not count:
        raise no_image(where)
    return ImageSource(base, count, lambda: map(Sample, paths()), notes)


def _count(paths: Callable[[], Iterable[Path]], where: object) -> int:
    """Return how many images there are; raises CalibrationError for one that is named twice, and would count twice.

    Of each a number is kept, not its path: of two million 16 MB.
    """
    marks = array("q", (hash(os.path.normpath(each.absolute())) for each in paths()))
    ordered = np.sort(np.frombuffer(marks, np.int64)) if marks else np.empty(0, np.int64)
    alike = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    seen = set[str]()
    for path in paths() if alike else ():
        full = os.path.normpath(path.absolute())
        if full in seen:
            what = f"{where} names the image {path} a second time"
            raise CalibrationError(what, needed="every image once", fix="leave it out where it comes again")
        if hash(full) in alike:
            seen.add(full)
    return len(marks)
