"""The target folder: what an export writes is made beside it and moved into it as a whole."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from graph_patterns.errors import ExplainedError
from postproc_export.errors import FileError, UsageError
from postproc_export.export.result import SUFFIXES, Format
from postproc_export.files.checking import explained, refuse_inputs
from postproc_export.files.staging import staging_folder
from postproc_export.files.termination import Undoing
from postproc_export.files.writing import publishing

STATISTICS: Final = "statistics.json"
REPORT: Final = "parity.json"


def check_target(folder: Path, name: str) -> None:
    """Refuse a target before anything is computed for it.

    Raises
    ------
    FileError, UsageError
        If the folder is a file, lies in a folder that is not there, or the name is no plain file name.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise UsageError(
            f"--name {name!r} is no name for the files", needed="a file name without a folder and a suffix"
        )
    if folder.exists() and not folder.is_dir():
        raise FileError(f"cannot write to {folder}", found="a file", needed="a folder, which may be new")
    if not folder.absolute().parent.is_dir():
        raise FileError(f"cannot make the folder {folder}", found=f"no folder {folder.absolute().parent}")


def refuse_read(folder: Path, name: str, formats: Sequence[Format], read: Sequence[Path]) -> None:
    """Refuse to replace a file that is read, before anything is computed; statistics may stay where they are.

    Raises
    ------
    FileError
        If one of the targets is read.
    """
    refuse_inputs(_targets(folder, name, formats), read, fix="choose another folder or another name")


def _targets(folder: Path, name: str, formats: Sequence[Format]) -> list[Path]:
    """Return what is always replaced; statistics may be read from where they are written."""
    suffixes = [*(SUFFIXES[each] for each in formats), *([".bin"] if "openvino" in formats else [])]
    return [folder / REPORT, *(folder / f"{name}{suffix}" for suffix in suffixes)]


@contextmanager
def workshop(folder: Path, name: str, formats: Sequence[Format]) -> Iterator[Path]:
    """Yield a temporary folder on the target's file system; it is gone after the block, whatever ends it.

    Raises
    ------
    FileError
        If no file can be written there, or another export writes the same ones.
    """
    where, names = folder, [path.name for path in _targets(folder, name, formats)]
    if not folder.is_dir():
        where, names = folder.absolute().parent, [folder.name]
    with explained(folder), staging_folder(where, names) as staging:
        try:
            yield staging.files
        except ExplainedError as error:  # nobody knows the files by their temporary names
            if str(staging.files) not in str(error):
                raise
            texts = [text and text.replace(f"{staging.files}{os.sep}", f"{folder}{os.sep}") for text in error.texts]
            raise type(error)(texts[0] or "", found=texts[1], needed=texts[2], fix=texts[3]) from error


def deliver(
    made: Path, folder: Path, *, name: str, formats: Sequence[Format], inputs: Sequence[Path]
) -> tuple[Path, ...]:
    """Move everything in the folder `made` into the target folder, whole or not at all, and return the paths.

    Parameters
    ----------
    made
        A folder on the same file system, with nothing in it but what is to be delivered.
    folder
        The target; made where it is not there. Files of these names that are there are replaced.
    name, formats
        Which of the files are the models: they are moved last.
    inputs
        Files that were read, which are not replaced. Statistics that were read from their own target stay as they are.

    Raises
    ------
    FileError
        If a target cannot be written; nothing is changed then.
    """
    models = [f"{name}{SUFFIXES[each]}" for each in formats]
    others = sorted(path.name for path in made.iterdir() if path.name not in models)
    targets = [folder / each for each in (*models, *others)]
    if _is_one_of(folder / STATISTICS, inputs):
        targets.remove(folder / STATISTICS)
    with _folder(folder), publishing(targets, inputs=inputs) as publication:
        for target in targets:
            (made / target.name).rename(publication.temporary(target))
    return tuple(targets)


@contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Make the folder where it is not there, and remove it again where nothing was put into it."""
    if folder.exists():
        yield
        return

    def remove() -> None:
        with suppress(OSError):  # it holds what was delivered
            folder.rmdir()

    with Undoing(remove):
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise FileError(f"cannot make the folder {folder}", found=error.strerror) from error
        yield


def _is_one_of(path: Path, files: Sequence[Path]) -> bool:
    return path.exists() and any(file.exists() and path.samefile(file) for file in files)
