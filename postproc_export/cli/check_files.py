"""The files that `postproc-export check` writes besides its result: refused before the check, written after it."""

from collections.abc import Sequence
from pathlib import Path

from postproc_export.calibration.models.files import model_files
from postproc_export.errors import FileError
from postproc_export.files.checking import check_folder, check_target, explained, refuse_inputs
from postproc_export.files.targets import FORMATS
from postproc_export.files.writing import append_text, write_text
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
        check_folder(_nearest(save_failures))


def write_reports(report: ParityReport, *, junit: Path | None, markdown: Path | None) -> None:
    """Write the JUnit file, and append the summary; each whole or not at all, in a folder that is made if need be.

    Raises
    ------
    FileError
        If one of them cannot be written.
    """
    if junit is not None:
        _make_folder(junit)
        write_text(junit, formats.junit(report))
    if markdown is not None:
        _make_folder(markdown)
        append_text(markdown, formats.markdown(report))


def _make_folder(report: Path) -> None:
    try:
        report.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        found = f"the folder cannot be made: {error.strerror}"
        raise FileError(f"cannot write {report}", found=found, fix="choose another path") from error


def _check_reports(junit: Path | None, markdown: Path | None, files: Sequence[Path]) -> None:
    if junit is not None:
        check_target(junit, files) if junit.parent.exists() else check_folder(_nearest(junit))
    if markdown is not None and (markdown.is_file() or not markdown.exists()):
        # It is appended to, so that a device such as /dev/stdout may stand there.
        refuse_inputs([markdown], files, fix="choose another path")
        with explained(markdown):
            check_folder(_nearest(markdown)) if not markdown.exists() else markdown.open("a").close()
    elif markdown is not None and markdown.is_dir():
        raise FileError(f"cannot write {markdown}", found="a folder", needed="the path of a file", fix="add a name")


def _nearest(path: Path) -> Path:
    """Return what is there of a path: itself, or the folder in which the rest of it will be made."""
    return next(each for each in (path, *path.absolute().parents) if each.exists())


def _files_of(path: Path) -> list[Path]:
    return model_files(path) if path.suffix in FORMATS else [path]
