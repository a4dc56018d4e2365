"""What a file must not be written to: found before the work that makes its content, not after it."""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

from postproc_export.errors import FileError, PostprocError

_DEVICES: Final = Path("/dev")  # itself, and not folders such as /dev/shm
_SYSTEM: Final = (Path("/proc"), Path("/sys"))
_FIXES: Final = {
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOSPC: "make room, or choose another disk",
    errno.EDQUOT: "make room, or choose another disk",
    errno.EFBIG: "raise the limit on the size of a file, or choose another disk",
}


def check_target(target: Path, inputs: Sequence[Path] = ()) -> None:
    """Refuse a file that could not be written in the end, or that would destroy what is read; nothing is written.

    Parameters
    ----------
    target
        The file to be written, new or replaced.
    inputs
        The files that are read; a folder stands for everything in it.

    Raises
    ------
    FileError
        If the target is an input or lies in one, is a folder, a device, a pipe or of the system, or its folder is not
        there or cannot be written.
    """
    with explained(target):
        refuse_unwritable(target)
        refuse_inputs([target], inputs, fix="choose another path")
        with TemporaryFile(dir=target.parent):
            pass


def check_folder(folder: Path) -> None:
    """Refuse a folder in which no file can be made; nothing stays there.

    Raises
    ------
    FileError
        If it is not there, is no folder, or cannot be written.
    """
    with explained(folder):
        if not folder.is_dir():
            found = "a file" if folder.exists() else "no such folder"
            raise FileError(f"cannot write to {folder}", found=found, needed="a folder", fix="make the folder first")
        with TemporaryFile(dir=folder):
            pass


def refuse_inputs(targets: Sequence[Path], inputs: Sequence[Path], *, fix: str) -> None:
    """Refuse targets that are a file that is read, under whatever name, or lie in a folder that is read.

    Raises
    ------
    FileError
        If one of them is or does.
    """
    for target in targets:
        itself = _identity(target)
        places = {itself, *map(_identity, Path(os.path.realpath(target.parent), "x").parents)} - {None}
        for source in inputs:
            found = _identity(source)
            if found in places:
                what = "it is the file that is read" if found == itself else f"it lies in {source}, which is read"
                raise FileError(f"cannot write {target}: {what}", fix=fix)


def refuse_unwritable(target: Path) -> None:
    """Refuse what no file can be moved to: a missing folder, a folder, a device, a pipe, a path of the system.

    Raises
    ------
    FileError
        If the target is one of these.
    """
    if not target.parent.is_dir():
        raise FileError(f"cannot write {target}", found=f"no folder {target.parent}", fix="make the folder first")
    if target.is_dir():
        raise _not_a_file(target, "a folder")
    if target.exists() and not target.is_file():
        raise _not_a_file(target, "a device or a pipe")
    folder = Path(os.path.realpath(target.parent))
    # A link such as /dev/stdout may lead to a file, and would be replaced for every process of the machine.
    if folder == _DEVICES or any(folder.is_relative_to(each) for each in _SYSTEM):
        raise _not_a_file(target, f"a name of the system, in {folder}")


def _not_a_file(target: Path, found: str) -> FileError:
    fix = "choose another path"
    return FileError(f"cannot write {target}", found=found, needed="the path of a file", fix=fix)


@contextmanager
def explained(target: Path) -> Iterator[None]:
    """Turn what the file system refuses into an error that names the target and says what to do."""
    try:
        yield
    except PostprocError:
        raise
    except OSError as error:
        fix = _FIXES.get(error.errno or 0, "choose another path")
        raise FileError(f"cannot write {target}", found=error.strerror or str(error), fix=fix) from error


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from all others, through links; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
