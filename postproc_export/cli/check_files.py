"""The files that `postproc-export check` writes besides its result: refused before the check, written after it."""

from collections.abc import Sequence
from pathlib import Path

from postproc_export.calibration.models.files import model_files
from postproc_export.errors import FileError
from postproc_export.files.checking import check_folder, check_target, explained, refuse_inputs
from postproc_export.files.targets import FORMATS
from postproc_export.files.writing import append_text, folder_made_for, write_text
from postproc_export.images import find_samples
from postproc_export.parity import ParityReport
from postproc_export.parity.reports import formats


def check_before(
    read: Sequence[Path], images: Path | None, *, junit: Path | None, markdown: Path | None, save_failures: Path | None
) -> None:
    """Refuse reports that are read, and what cannot be written; nothing is made.

    Parameters
    ----------
    read
        The models, and files of inputs or images.
    images
        A folder or a CSV file of images.
    junit, markdown, save_failures
        What is written, if anything.

    Raises
    ------
    FileError
        If a report is read, or one of them cannot be written.
    """
    reports = [path for path in (junit, markdown) if path is not None]
    if reports:
        files = [each for path in read if not path.is_dir() for each in _files_of(path)]
        samples = [] if images is None else find_samples(images, labels=False)
        files += [path for sample in samples for path in (sample.image, sample.mask) if path is not None]
        _check_reports(junit, markdown, files)
    if save_failures is not None:
        check_folder(next(each for each in (save_failures, *save_failures.absolute().parents) if each.exists()))


def write_reports(report: ParityReport, *, junit: Path | None, markdown: Path | None) -> None:
    """Write the JUnit file, and append the summary; each whole or not at all, in a folder that is made if need be.

    Raises
    ------
    FileError
        If one of them cannot be written.
    """
    if junit is not None:
        with folder_made_for(junit):
            write_text(junit, formats.junit(report))
    if markdown is not None:
        with folder_made_for(markdown):
            append_text(markdown, formats.markdown(report))


def _check_reports(junit: Path | None, markdown: Path | None, files: Sequence[Path]) -> None:
    if junit is not None:
        check_target(junit, files) if junit.parent.is_dir() else _check_new(junit)
    if markdown is not None and (markdown.is_file() or not markdown.exists()):
        # It is appended to, so that a device such as /dev/stdout may stand there.
        refuse_inputs([markdown], files, fix="choose another path")
        with explained(markdown):
            _check_new(markdown) if not markdown.exists() else markdown.open("a").close()
    elif markdown is not None and markdown.is_dir():
        raise FileError(f"cannot write {markdown}", found="a folder", needed="the path of a file", fix="add a name")


def _check_new(path: Path) -> None:
    """Refuse a path whose folders cannot be made."""
    nearest = next(each for each in (path, *path.absolute().parents) if each.exists())
    if not nearest.is_dir():
        found, fix = f"the folder cannot be made: {nearest} is no folder", "choose another path"
        raise FileError(f"cannot write {path}", found=found, fix=fix)
    check_folder(nearest)


def _files_of(path: Path) -> list[Path]:
    return model_files(path) if path.suffix in FORMATS else [path]
