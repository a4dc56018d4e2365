"""Which validation samples a folder or a CSV file holds: image, label and mask of each."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from postproc_export.errors import CalibrationError, FileError, PostprocError, UsageError
from postproc_export.validation import check_file, stated_twice

SUFFIXES: Final = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
NORMAL_FOLDER: Final = "good"
MASK_FOLDER: Final = "ground_truth"


@dataclass(frozen=True, slots=True)
class Sample:
    """One validation image."""

    image: Path
    label: int | None = None  # 0 normal, 1 anomalous; None where it is not known
    mask: Path | None = None  # a normal image needs none


def find_samples(path: str | Path, *, labels: bool = True) -> list[Sample]:
    """Return the validation samples of a folder or a CSV file, in the order of their paths or lines.

    Taken are a folder in MVTec AD's layout (``good/``, ``<defect>/``, ``ground_truth/<defect>/<stem>_mask.png``; the
    class folders in it or in its ``test`` folder, ``ground_truth`` beside them or beside ``test``), a CSV file with
    the columns ``image,label,mask`` (paths relative to the file), or a flat folder of images without labels. Files
    whose name starts with a dot, and files of other types than the listed suffixes, are not images. The mask of a
    defect may be called ``<stem>_mask.png`` or ``<stem>.png``.
    """
    root = Path(path)
    if root.is_dir():
        samples = list(_from_folder(root))
    elif not root.exists():
        fix = "check the path"
        raise FileError(f"cannot read the images {root}", found="no such file or folder", fix=fix)
    else:
        check_file(root, what="the images", needed="a folder or a CSV file")
        samples = list(_from_csv(root))
    if not samples:
        needed = f"files ending in {', '.join(SUFFIXES)}"
        raise CalibrationError(f"{root} holds no image", needed=needed, fix="give the folder that holds them")
    unlabelled = [sample.image for sample in samples if sample.label is None]
    if labels and unlabelled:
        raise CalibrationError(
            f"{len(unlabelled)} of {len(samples)} images have no label; the first is {unlabelled[0]}",
            needed=f"folders {NORMAL_FOLDER}/ and one per defect, or a CSV file with image,label,mask",
        )
    return samples


def _from_folder(root: Path) -> Iterator[Sample]:
    base = root / "test" if (root / "test").is_dir() else root
    inside = [folder for folder in sorted(base.iterdir()) if folder.is_dir()]
    folders = [folder for folder in inside if folder.name != MASK_FOLDER and not folder.name.startswith(".")]
    direct = _images(base)
    if folders and (direct or not any(folder.name == NORMAL_FOLDER for folder in folders)):
        raise UsageError(
            f"{base} has not the layout of MVTec AD",
            found=f"{len(direct)} image(s) and the folders {', '.join(folder.name for folder in folders)}",
            needed=f"a folder {NORMAL_FOLDER}/ (it may be empty), a folder per defect, no images beside them",
            fix="or list the images in a CSV file with image,label,mask",
        )
    yield from map(Sample, direct)
    masks = base / MASK_FOLDER if (base / MASK_FOLDER).is_dir() else base.parent / MASK_FOLDER
    for folder in folders:
        for image in _images(folder):
            if folder.name == NORMAL_FOLDER:
                yield Sample(image, 0)
            else:
                named = [masks / folder.name / f"{image.stem}{ending}.png" for ending in ("_mask", "")]
                yield Sample(image, 1, next((mask for mask in named if mask.exists()), None))


def _images(folder: Path) -> list[Path]:
    files = (file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
    found = sorted(file for file in files if not file.is_dir())
    for file in found:
        check_file(file, what="the image")
    return found


def _from_csv(path: Path) -> Iterator[Sample]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            if "image" not in (reader.fieldnames or ()):
                found, fix = str(reader.fieldnames), "begin the file with the line image,label,mask"
                raise CalibrationError(f"{path} has no column 'image'", found=found, needed="image,label,mask", fix=fix)
            twice = stated_twice(reader.fieldnames or ())
            if twice is not None:
                fix = "delete one of them"
                raise CalibrationError(f"{path} has a column twice", found=twice, needed="image,label,mask", fix=fix)
            lines: dict[Path, int] = {}
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                sample = _row(row, path, where=where)
                first = lines.setdefault(sample.image.resolve(), reader.line_num)
                if first != reader.line_num:  # it would count twice
                    raise CalibrationError(
                        f"{where}: the image {sample.image} a second time",
                        found=f"the same file in line {first}",
                        needed="every image once",
                        fix="delete one of the two lines",
                    )
                yield sample
    except PostprocError:  # also an OSError, but says what is wrong already
        raise
    except (csv.Error, UnicodeDecodeError) as error:
        fix = "save it as CSV in UTF-8, or give a folder of images"
        raise CalibrationError(f"{path} is not a CSV file", found=str(error), fix=fix) from error
    except OSError as error:
        raise FileError(f"cannot read {path}", found=error.strerror or str(error), fix="make it readable") from error


def _row(row: dict[str, str], path: Path, *, where: str) -> Sample:
    label = (row.get("label") or "").strip()
    if label not in ("", "0", "1"):
        fix = "correct the line"
        raise CalibrationError(f"{where}: label {label!r}", needed="0 (normal) or 1 (anomalous)", fix=fix)
    image = _referenced(row.get("image"), path, where=f"{where}: image")
    if image is None:
        raise CalibrationError(f"{where}: no image is named", fix="delete the line, or name the image")
    mask = _referenced(row.get("mask"), path, where=f"{where}: mask")
    return Sample(image, int(label) if label else None, mask)


def _referenced(text: str | None, path: Path, *, where: str) -> Path | None:
    if not (text or "").strip():
        return None
    file = path.parent / str(text).strip()
    if not file.exists():
        needed = f"a path relative to {path.parent}"
        raise FileError(f"{where} {file} is not there", needed=needed, fix="correct the line")
    check_file(file, what=where)
    return file
