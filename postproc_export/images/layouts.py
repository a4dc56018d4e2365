"""Which images a folder or a CSV file holds: image, label, mask, class and split of each.

| layout | normal | anomalous | masks |
| --- | --- | --- | --- |
| MVTec AD | ``good/`` | ``<defect>/`` | ``ground_truth/<defect>/<stem>_mask.png`` |
| BTAD | ``ok/`` | ``ko/`` | ``ground_truth/ko/<stem>.png`` |
| Anomalib's Folder | ``normal/``, ``good/`` | ``abnormal/``, others | ``mask/<stem>.png``, ``mask/<defect>/...`` |
| VisA | ``Data/Images/Normal/`` | ``Data/Images/Anomaly/`` | ``Data/Masks/Anomaly/<stem>.png`` |

The folders of a layout may lie in others that are splits: ``train/``, ``validation/``, ``test/``.
"""

import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from postproc_export.errors import CalibrationError, FileError, PostprocError, UsageError
from postproc_export.validation import check_file, close_to, is_label, kind_of_file, stated_twice

SUFFIXES: Final = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
NORMAL: Final = ("good", "normal", "ok")
ANOMALOUS: Final = ("abnormal", "anomalous", "anomaly", "bad", "defect", "defective", "ko", "ng", "nok")
_MASKS: Final = ("ground_truth", "mask", "masks")
_KNOWN: Final = (
    "good/, normal/ or ok/ and a folder per kind of defect, no images beside them (MVTec AD, BTAD, Anomalib's Folder); "
    "Data/Images/Normal and Data/Images/Anomaly (VisA); train/, validation/ or test/ around such folders"
)
_CSV: Final = "list the images in a CSV file with image,label,mask"


@dataclass(frozen=True, slots=True)
class Sample:
    """One validation image."""

    image: Path
    label: int | None = None  # 0 normal, 1 anomalous; None where it is not known
    mask: Path | None = None  # a normal image needs none
    group: str | None = None  # its class: the name of its folder, or its label in a CSV file
    split: str | None = None  # as the folder or the CSV file calls it; None where nothing says


class LayoutError(UsageError):
    """A folder of images whose layout is not known."""


def find_samples(
    path: str | Path, *, labels: bool = True, split: str | None = None, anomalous_label: object = None
) -> list[Sample]:
    """Return the validation samples of a folder or a CSV file, in the order of their paths or lines.

    Taken are the layouts above, a CSV file with the columns ``image,label,mask`` (paths relative to the file; a column
    ``split`` chooses among them, labels may be words such as ``good``), or a flat folder of images without labels.
    Files whose name starts with a dot, and files of other types than the listed suffixes, are not images. The mask of a
    defect may be called ``<stem>_mask`` or ``<stem>``, with any of the suffixes.

    Of several splits the one called `split` is taken. By default that is the validation split, else the test split,
    and the training split only where no labels are needed. Raises a UsageError if that leaves none or several, a
    LayoutError if the folder has no layout that is known. `anomalous_label` is the label in a CSV file that says
    anomalous, all others are normal then; raises a CalibrationError if no image has it, and a UsageError for a folder,
    whose names say.
    """
    root = _named(Path(path))
    samples = list(walk_samples(root, labels=labels, split=split, anomalous_label=anomalous_label))
    for sample in samples:
        for file, what in ((sample.image, "the image"), (sample.mask, "the mask")):
            if file is not None:
                check_file(file, what=what)
    if anomalous_label is not None and not any(sample.label for sample in samples):
        others = ", ".join(list(dict.fromkeys(str(sample.group) for sample in samples))[:5])
        fix = "give the label that says anomalous as it is written"
        raise CalibrationError(f"{root}: no image has --anomalous-label {anomalous_label}", found=others, fix=fix)
    if not samples:
        raise no_image(root)
    unlabelled = [sample.image for sample in samples if sample.label is None]
    if labels and unlabelled:
        is_class = root.is_dir() and root.name.casefold() in (*NORMAL, *ANOMALOUS)
        raise CalibrationError(
            f"{len(unlabelled)} of {len(samples)} images have no label; the first is {unlabelled[0]}",
            needed="folders good/ and one per kind of defect, or a CSV file with image,label,mask",
            fix=f"give the folder around it: {root.parent}" if is_class else None,
        )
    return samples


def walk_samples(
    path: str | Path, *, labels: bool | None, split: str | None = None, anomalous_label: object = None
) -> Iterator[Sample]:
    """Yield the samples one by one; see `find_samples`.

    With `labels` None they are taken where they are known, no file is looked at, and an image may come twice.
    """
    root = _named(Path(path))
    if root.is_dir():
        listing = root.parent / "split_csv" / "1cls.csv"
        is_listed = _images_of_visa(root).is_dir() and listing.is_file()
        if anomalous_label is not None:
            what = f"--anomalous-label {anomalous_label}: the names of folders say what is anomalous in {root}"
            raise UsageError(what, needed="a CSV file with the columns image,label", fix="leave it out")
        if is_listed:
            return _from_csv(listing, labels, split, root.name)
        return _from_folder(root, labels, split)
    if not root.exists():
        fix = "check the path"
        raise FileError(f"cannot read the images {root}", found="no such file or folder", fix=fix)
    check_file(root, what="the images", needed="a folder or a CSV file")
    return _from_csv(root, labels, split, anomalous_label=anomalous_label)


def _named(root: Path) -> Path:
    """Return a path with its last name: it may be that of a split, and masks may lie beside it."""
    return root.resolve() if root.name in ("", "..") else root


def no_image(place: object) -> CalibrationError:
    """Return the error for a place without images."""
    needed = f"files ending in {', '.join(SUFFIXES)}"
    return CalibrationError(f"{place} holds no image", needed=needed, fix="give the folder that holds them")


def images_below(folder: Path) -> Iterator[Path]:
    """Yield the images of a folder and of all folders in it, but those of masks, sorted folder by folder.

    A link to a folder that it lies in is not followed: it would lead round for ever.
    """
    yield from _images(folder)
    for inner in _folders(folder):
        is_loop = inner.is_symlink() and folder.resolve().is_relative_to(inner.resolve())
        if not is_loop and inner.name.casefold() not in _MASKS:
            yield from images_below(inner)


def spread(samples: Sequence[Sample], limit: int | None) -> tuple[Sample, ...]:
    """Return at most `limit` samples, from every class in turn, in the order that they had."""
    met: Counter[str | None] = Counter()
    turns = []
    for index, sample in enumerate(samples):
        turns.append((met[sample.group], index))
        met[sample.group] += 1
    return tuple(samples[index] for index in sorted(index for _, index in sorted(turns)[:limit]))


def class_counts(samples: Iterable[Sample]) -> dict[str, int]:
    """Return how many samples of each class there are, by name; those without a class are left out."""
    return dict(sorted(Counter(sample.group for sample in samples if sample.group is not None).items()))


_SHOWN: Final = 8


def described(counts: Mapping[str, int]) -> str:
    """Return such counts for people, as ``crack 3, hole 2``; of many classes the largest ones."""
    largest = sorted(counts, key=lambda name: -counts[name])[:_SHOWN]
    rest = [f"{len(counts) - _SHOWN} more kinds"] if len(counts) > _SHOWN else []
    return ", ".join([*(f"{name} {count}" for name, count in counts.items() if name in largest), *rest])


_KINDS: Final = {
    **dict.fromkeys(("validation", "valid", "val"), "validation"),
    "test": "test",
    **dict.fromkeys(("train", "training"), "train"),
}


def split_kind(name: str | None) -> str | None:
    """Return what a split is by the first word of its name, ``test`` for ``test_public``; None for other names."""
    first = re.match(r"[a-z]*", (name or "").casefold())
    return _KINDS.get(first[0]) if first else None


def _choose(names: Sequence[str], asked: str | None, labels: bool | None, where: Path) -> str:
    """Return the split to take, of some that are there."""
    there = ", ".join(names) or "no splits"
    if asked is not None:
        found = [asked] if asked in names else [each for each in names if split_kind(each) == _KINDS.get(asked, "")]
        if not found:
            near = close_to(asked, names) or names
            fix = f"--split {near[0]}" if near else "leave --split out"
            raise UsageError(f"--split {asked}: {where} has no such split", found=there, fix=fix)
    else:
        order = ("validation", "test") if labels else ("validation", "test", "train")
        kinds = [[each for each in names if split_kind(each) == kind] for kind in order]
        found = next(filter(None, kinds), [])
        if not found:
            raise UsageError(
                f"{where} has no validation or test split",
                found=there,
                needed="images that the model was not trained on",
                fix=f"give the folder of such images, or --split {names[0]} if these are meant",
            )
    if len(found) > 1 and labels:
        fix = f"choose one: --split {found[0]}"
        raise UsageError(f"{where} has several {split_kind(found[0])} splits", found=", ".join(found), fix=fix)
    return found[0]


def _own_split(path: Path, name: str, asked: str | None, labels: bool | None) -> str | None:
    """Return the split that the name of a folder or file without splits in it says that it is."""
    own = name if split_kind(name) else None
    return own if asked is None else _choose([] if own is None else [own], asked, labels, path)


def _images_of_visa(root: Path) -> Path:
    return root / "Data" / "Images"


def _from_folder(root: Path, labels: bool | None, asked: str | None) -> Iterator[Sample]:
    names = [folder.name for folder in _folders(root)]
    splits = [name for name in names if split_kind(name)]
    if splits and not any(map(_sounds_normal, names)):
        split: str | None = _choose(splits, asked, labels, root)
        base = root / str(split)
    else:
        split = _own_split(root, root.name, asked, labels)
        base = _images_of_visa(root) if _images_of_visa(root).is_dir() else root
    direct = _images(base)
    folders = [folder for folder in _folders(base) if folder.name.casefold() not in _MASKS]
    _refuse_unknown(base, direct, folders)
    yield from (Sample(image, split=split) for image in direct)
    defects = [folder for folder in folders if not _sounds_normal(folder.name)]
    for folder in folders:
        images = _images(folder)
        if not images and (inside := _folders(folder)):
            found = f"the folders {', '.join(each.name for each in inside)}"
            raise LayoutError(f"{folder} holds no image", found=found, fix=f"move the images there, or {_CSV}")
        if folder in defects:
            masks = _masks(base, folder.name, is_only=len(defects) == 1)
            yield from (Sample(image, 1, _mask_of(image, masks), folder.name, split) for image in images)
        else:
            yield from (Sample(image, 0, None, folder.name, split) for image in images)


def _sounds_normal(name: str) -> bool:
    """Whether a folder is that of normal images, or one such as ``normal_test`` that must not pass for a defect."""
    return re.match(rf"({'|'.join(NORMAL)})(?![a-z])", name.casefold()) is not None


def _refuse_unknown(base: Path, direct: Sequence[Path], folders: Sequence[Path]) -> None:
    names = [folder.name.casefold() for folder in folders]
    normal = [name for name in names if _sounds_normal(name)]
    is_known = (len(normal) == 1 and normal[0] in NORMAL) or (not normal and all(name in ANOMALOUS for name in names))
    if not folders or (is_known and not direct and not any(map(split_kind, names))):
        return
    inner = next((folder for folder in folders if _has_layout(folder)), None)
    raise LayoutError(
        f"{base} has no layout that is known",
        found=f"{len(direct)} image(s) and the folders {', '.join(folder.name for folder in folders)}",
        needed=_KNOWN,
        fix=f"give one of its folders, such as {inner}" if inner and not direct else _CSV,
    )


def _has_layout(folder: Path) -> bool:
    names = [each.name.casefold() for each in _folders(folder)]
    return _images_of_visa(folder).is_dir() or any(name in NORMAL or split_kind(name) for name in names)


Masks: TypeAlias = dict[str, list[Path]]


def _masks(base: Path, group: str, *, is_only: bool) -> Masks:
    """Return the mask files for a class by their stems.

    They lie beside the class folders or beside the split, there maybe in a folder of the split. Those of the only class
    of defects need no folder of its name.
    """
    for folder in (base, base.parent):
        if not os.access(folder, os.R_OK):  # the parent of what can be read
            continue
        there = [each for each in _folders(folder) if each.name.casefold() in _MASKS]
        if len(there) > 1:
            found = " and ".join(map(str, there))
            raise UsageError(f"masks may be in {len(there)} folders", found=found, needed="one of them", fix=_CSV)
        if there:
            of_split = there[0] / base.name
            masks = of_split if folder == base.parent and of_split.is_dir() else there[0]
            inner = masks / group
            files: Masks = {}
            for file in _images(inner if inner.is_dir() or not is_only else masks):
                files.setdefault(file.stem, []).append(file)
            return files
    return {}


def _mask_of(image: Path, masks: Masks) -> Path | None:
    found = masks.get(f"{image.stem}_mask") or masks.get(image.stem) or []
    if len(found) > 1:
        there, fix = ", ".join(map(str, found)), "take the others away"
        raise CalibrationError(f"the image {image} has {len(found)} masks", found=there, needed="one", fix=fix)
    return found[0] if found else None


class Listing(Sequence[Path]):
    """Files or folders of a folder, sorted, hidden ones left out; of millions the names alone are kept."""

    def __init__(self, folder: Path, is_wanted: Callable[["os.DirEntry[str]"], bool]) -> None:
        self._folder = folder
        try:
            with os.scandir(folder) as there:
                names = (each.name for each in there if not each.name.startswith(".") and is_wanted(each))
                self._names = sorted(names)
        except OSError as error:
            raise FileError(f"cannot read the folder {folder}", found=error.strerror, fix="make it readable") from error

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: Any) -> Any:
        return self._folder / self._names[index]


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a folder; a link to itself, which cannot be followed, is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _folders(folder: Path) -> Listing:
    return Listing(folder, _is_folder)


def _images(folder: Path) -> Sequence[Path]:
    if not folder.is_dir():
        return []
    return Listing(folder, lambda each: each.name.lower().endswith(SUFFIXES) and not _is_folder(each))


_OTHER_NAMES: Final = {"image_path": "image", "mask_path": "mask"}  # of Anomalib's CSV files
_COLUMNS: Final = "image,label,mask"
Row: TypeAlias = tuple[int, dict[str, str]]  # the number of its line, and its cells by column


def _from_csv(
    path: Path, labels: bool | None, asked: str | None, thing: str | None = None, *, anomalous_label: object = None
) -> Iterator[Sample]:
    """Yield the samples of a CSV file: those of one split, and of VisA's lists those of one object (`thing`)."""
    of_visa = path.parent.name == "split_csv" or path.name == "image_anno.csv"  # with paths from VisA's own folder
    base = path.parent.parent if of_visa else path.parent
    objects, names = dict[str, None](), dict[str, None]()
    for _, cells in _rows(path):
        if of_visa and cells.get("object"):
            objects[cells["object"]] = None
        if cells.get("split") and thing in (None, cells.get("object")):
            names[cells["split"]] = None
    if thing is None and labels and len(objects) > 1:
        found, fix = ", ".join(objects), f"give the folder of one, such as {base / next(iter(objects))}"
        raise UsageError(f"{path} lists {len(objects)} objects", found=found, needed="images of one object", fix=fix)
    split = _choose([*names], asked, labels, path) if names else _own_split(path, path.stem, asked, labels)
    lines: dict[Path, int] = {}
    is_checked = labels is not None
    for number, cells in _rows(path):
        if thing not in (None, cells.get("object")) or (names and cells.get("split") != split):
            continue
        where = f"{path}, line {number}"
        image = _referenced(cells.get("image"), base, where=f"{where}: image", is_checked=is_checked)
        if image is None:
            raise CalibrationError(f"{where}: no image is named", fix="delete the line, or name the image")
        first = lines.setdefault(image.resolve(), number) if is_checked else number
        if first != number:  # it would count twice
            raise CalibrationError(
                f"{where}: the image {image} a second time",
                found=f"the same file in line {first}",
                needed="every image once",
                fix="delete one of the two lines",
            )
        text = cells.get("label") or ""
        if labels is False or not text:
            label = None
        elif anomalous_label is None:
            label = _label(text, where=where, names_defects=path.name == "image_anno.csv")
        else:
            label = int(is_label(text, anomalous_label))
        usual = {"0": "normal", "1": "anomalous"} if anomalous_label is None else {}
        group = usual.get(text, text) or None
        mask = _referenced(cells.get("mask"), base, where=f"{where}: mask", is_checked=is_checked)
        yield Sample(image, label, mask, group, split)


def _rows(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            names = [_OTHER_NAMES.get(name, name) for name in reader.fieldnames or ()]
            if "image" not in names:
                found, fix = str(reader.fieldnames), f"begin the file with the line {_COLUMNS}"
                raise CalibrationError(f"{path} has no column 'image'", found=found, needed=_COLUMNS, fix=fix)
            twice = stated_twice(names)
            if twice is not None:
                fix = "delete one of them"
                raise CalibrationError(f"{path} has a column twice", found=twice, needed=_COLUMNS, fix=fix)
            reader.fieldnames = names
            for row in reader:
                yield reader.line_num, {name: (row[name] or "").strip() for name in names}
    except PostprocError:  # also an OSError, but says what is wrong already
        raise
    except (csv.Error, UnicodeDecodeError) as error:
        fix = "save it as CSV in UTF-8, or give a folder of images"
        found = kind_of_file(path) or f"bytes that are no text: {error}"
        raise CalibrationError(f"{path} is not a CSV file", found=found, fix=fix) from error
    except OSError as error:
        raise FileError(f"cannot read {path}", found=error.strerror or str(error), fix="make it readable") from error


def _label(text: str, *, where: str, names_defects: bool) -> int:
    """Return 0 for normal, 1 for anomalous; `names_defects`: any word but those for normal is that of a defect."""
    word = text.casefold()
    if word in ("0", *NORMAL):
        return 0
    if word in ("1", *ANOMALOUS) or names_defects:
        return 1
    needed = f"0, {', '.join(NORMAL)} (normal), or 1, {', '.join(ANOMALOUS)} (anomalous)"
    fix = "correct the line, or say which label is anomalous: --anomalous-label VALUE"
    raise CalibrationError(f"{where}: label {text!r}", needed=needed, fix=fix)


def _referenced(text: str | None, base: Path, *, where: str, is_checked: bool) -> Path | None:
    if not text:
        return None
    file = base / text
    if not is_checked:
        return file
    if not file.exists():
        needed = f"a path relative to {base}"
        raise FileError(f"{where} {file} is not there", needed=needed, fix="correct the line")
    check_file(file, what=where)
    return file
