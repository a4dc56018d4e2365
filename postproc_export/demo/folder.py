"""The demo's folder: a run replaces what an earlier run wrote there and touches nothing else.

A list of the demo's own files, kept in the folder, is what tells them from the user's.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Final

from postproc_export.errors import FileError
from postproc_export.files.staging import claimed
from postproc_export.files.termination import OrderlyEnd, Undoing

MARKER: Final = ".postproc-export-demo"
_HEADER: Final = (
    "# Written by `postproc-export demo`: the files below are its own, and its next run here replaces them."
)


def claim(folder: Path, files: Iterable[PurePosixPath]) -> None:
    """Make `folder` ready for these files: remove what an earlier demo wrote there, make the folders, write the list.

    Parameters
    ----------
    folder
        A folder that is not there yet, is empty, or was written by an earlier run.
    files
        What is going to be written, relative to it.

    Raises
    ------
    FileError
        If the folder holds files of others, and either no demo was ever there or one of them is in the way; nothing was
        removed then.
    """
    new = sorted(files)
    old = own_files(folder)
    with _explained(folder):
        _refuse_foreign(folder, [file for file in new if file not in old])
        for file in old:
            (folder / file).unlink(missing_ok=True)
        for parent in {(folder / file).parent for file in new}:
            parent.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).write_text("\n".join([_HEADER, *map(str, new)]) + "\n", encoding="utf-8")


def own_files(folder: Path) -> frozenset[PurePosixPath]:
    """Return what an earlier demo wrote to `folder`, relative to it; nothing for a new or empty folder.

    Raises
    ------
    FileError
        If the folder holds files and no demo was ever there, or its list leads out of the folder.
    """
    with _explained(folder):
        if not (folder / MARKER).is_file():
            _refuse_foreign_folder(folder)
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
    was_there, is_whole = folder.exists(), False

    def undo() -> None:
        if not is_whole:
            with suppress(OSError):
                _empty(folder)
                if not was_there:
                    folder.rmdir()

    with claimed([folder]), OrderlyEnd(), Undoing(undo):
        yield
        is_whole = True


def _empty(folder: Path) -> None:
    """Delete the demo's own files, the list last, and the folders that are empty then."""
    files = own_files(folder)
    for file in files:
        (folder / file).unlink(missing_ok=True)
    for parent in sorted({parent for file in files for parent in file.parents} - {PurePosixPath()}, reverse=True):
        with suppress(OSError):  # the user has put something there
            (folder / parent).rmdir()
    (folder / MARKER).unlink(missing_ok=True)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn what the file system refuses into an error that says what to do."""
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise FileError(
            f"cannot write the demo to {folder}", found=error.strerror, fix="choose another folder with --output"
        ) from error


def _refuse_foreign_folder(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileError(
            f"{folder} is not the demo's to write to",
            found="files that no demo wrote" if folder.is_dir() else "a file",
            needed="a new or empty folder, or one that an earlier demo wrote",
            fix="choose another folder with --output",
        )


def _refuse_foreign(folder: Path, files: Iterable[PurePosixPath]) -> None:
    for file in files:
        if (folder / file).exists():
            raise FileError(
                f"{folder / file} is in the demo's way, and no demo wrote it",
                fix="move it, or choose another folder with --output",
            )
