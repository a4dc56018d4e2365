"""Files that appear whole or not at all: written in a temporary folder beside the target, then moved into place."""

import filecmp
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from graph_patterns.onnx.source import write_all
from postproc_export.errors import FileError
from postproc_export.files.checking import explained, refuse_inputs, refuse_unwritable
from postproc_export.files.copying import copy_file, link_file
from postproc_export.files.staging import Staging, digest, staging_folder
from postproc_export.files.termination import HeldSignals
from postproc_export.validation import backup_of, refuse_backups

_ANOTHER: Final = "choose another path, or replace the file with --in-place (in_place=True)"


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8; a file that was there is replaced in one step, or stays as it was.

    Raises
    ------
    FileError
        If the path cannot be written.
    """
    with publishing([path]) as publication:
        publication.temporary(path).write_text(text, encoding="utf-8")


def append_text(path: Path, text: str) -> None:
    """Append to a text file as UTF-8, all of the text or nothing; a device or a pipe takes what it takes.

    Raises
    ------
    FileError
        If the path cannot be written.
    """
    with explained(path):
        if path.exists() and not path.is_file():
            with os.fdopen(_opened(path), "wb", buffering=0) as file:
                write_all(file, text.encode())
            return
        with HeldSignals(), ExitStack() as undo:
            if not path.exists():
                undo.callback(path.unlink, missing_ok=True)
            with path.open("ab", buffering=0) as file:
                undo.callback(os.truncate, path, file.tell())
                write_all(file, text.encode())
            undo.pop_all()


def _opened(device: Path) -> int:
    """Open a device or a pipe for writing; a pipe that nobody reads is refused in place of waited for."""
    if os.name == "nt":
        return os.open(device, os.O_WRONLY)
    descriptor = os.open(device, os.O_WRONLY | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return descriptor


@contextmanager
def folder_made_for(path: Path) -> Iterator[None]:
    """Make the folder of a file where it is not there, and remove it again where the block fails.

    Raises
    ------
    FileError
        If it cannot be made.
    """
    with explained(path), ExitStack() as undo:
        for missing in reversed([each for each in path.parents if not each.exists()]):
            missing.mkdir()
            undo.callback(missing.rmdir)
        yield
        undo.pop_all()


class Publication:
    """Files on their way into one folder; `publishing` makes it and moves them into place.

    Parameters
    ----------
    targets
        The final paths of what is written, all in one folder.
    staging
        A temporary folder on the same file system.
    """

    def __init__(self, targets: Sequence[Path], staging: Staging) -> None:
        self._targets = targets
        self._staging = staging
        self._brought: dict[Path, Path] = {}

    def temporary(self, target: Path) -> Path:
        """Return where to write what will be moved to a target; it has the target's own file name."""
        assert target in self._targets, f"{target} was not announced"
        return self._staging.files / target.name

    def bring_along(self, files: Mapping[Path, Path], *, link: bool = False) -> None:
        """Put external data beside the targets, unless it is there already.

        Parameters
        ----------
        files
            {path relative to the target folder: file to bring there}, such as `external_files` gives.
        link
            Make hard links instead of copies.

        Raises
        ------
        FileError
            If a different file has that name already, or the file cannot be copied or linked.
        """
        for relative, file in files.items():
            final = self._folder / relative
            self._refuse_overwriting(relative, file)
            if final.exists() and (final.samefile(file) or filecmp.cmp(final, file, shallow=False)):
                continue
            _refuse_occupied(final)
            staged = self._staging.path / f"{len(self._brought)}.external-data"
            link_file(file, staged) if link else copy_file(file, staged)
            self._brought[staged] = final

    @property
    def _folder(self) -> Path:
        return self._targets[0].parent

    def _refuse_overwriting(self, relative: Path, file: Path) -> None:
        for target in self._targets:
            if relative == Path(target.name) or (target.exists() and target.samefile(file)):
                raise FileError(f"cannot write {target}: the model keeps its weights there", fix="choose another name")

    def move_into_place(self) -> None:
        """Move everything to its final path, data first, the first target last; undo it all if a step fails."""
        assert all(self.temporary(target).exists() for target in self._targets), "not every target was written"
        if len(self._targets) > 1:  # they cannot move at once
            both = {each.name: (digest(each), digest(self.temporary(each))) for each in self._targets}
            self._staging.log(both)
        with HeldSignals():
            self._move_all()

    def _move_all(self) -> None:
        undo = ExitStack()
        try:
            self._move_data(undo)
            self._back_up(undo)
            for target in reversed(self._targets):
                self._move(target, undo)
        finally:
            # The last move decides, whatever interrupts: before it nothing may stay, after it everything has to.
            if self.temporary(self._targets[0]).exists():
                undo.close()
            else:
                self._remove_backups()

    def _move_data(self, undo: ExitStack) -> None:
        for staged, final in self._brought.items():
            _make_folders(final.parent, self._folder, undo)
            _refuse_occupied(final)
            undo.callback(_take_back, staged, final)
            staged.rename(final)

    def _back_up(self, undo: ExitStack) -> None:
        """Keep what two or more moves will replace: they cannot happen at once."""
        for target in self._targets if len(self._targets) > 1 else ():
            if target.exists():
                undo.callback(_restore, backup_of(target), target)
                try:
                    backup_of(target).hardlink_to(target)
                except OSError:  # a file system without hard links
                    copy = self._staging.path / backup_of(target).name
                    shutil.copy2(target, copy)
                    copy.rename(backup_of(target))

    def _move(self, target: Path, undo: ExitStack) -> None:
        staged = self.temporary(target)
        if target.exists():
            shutil.copymode(target, staged)
        else:
            undo.callback(_take_back, staged, target)
        staged.replace(target)

    def _remove_backups(self) -> None:
        for target in self._targets:
            backup_of(target).unlink(missing_ok=True)


@contextmanager
def publishing(
    targets: Sequence[Path], *, inputs: Sequence[Path] = (), in_place: bool = False
) -> Iterator[Publication]:
    """Write one or several files of one folder so that they appear whole or not at all.

    Parameters
    ----------
    targets
        The final paths. A symbolic link there is replaced, what it points to stays. Several targets that exist are
        kept as `*.postproc-backup` until all are replaced.
    inputs
        The files that are being read.
    in_place
        Allows a target to be an input.

    Raises
    ------
    FileError
        If a target cannot be written, is written by another run, is an input without `in_place` or a name of the
        system, or a backup of a run that was killed is there and cannot be put back.

    Notes
    -----
    Everything is moved when the block ends: what has to hold of the written files is checked at its end.
    """
    with explained(targets[0]):
        if not in_place:
            refuse_inputs(targets, inputs, fix=_ANOTHER)
        for target in targets:
            refuse_unwritable(target)
        with staging_folder(targets[0].parent, [target.name for target in targets]) as staging:
            refuse_backups(targets)
            publication = Publication(targets, staging)
            yield publication
            publication.move_into_place()


def _refuse_occupied(final: Path) -> None:
    if os.path.lexists(final):
        raise FileError(
            f"cannot bring the weights along: {final} is there already and holds something else",
            fix="write into another folder, or move that file away",
        )


def _restore(backup: Path, target: Path) -> None:
    if backup.exists():
        backup.replace(target)
        backup.unlink(missing_ok=True)  # moving one of two names of a file onto the other leaves both


def _take_back(staged: Path, final: Path) -> None:
    if not staged.exists():  # it was moved
        final.unlink(missing_ok=True)


def _make_folders(folder: Path, root: Path, undo: ExitStack) -> None:
    """Make the sub-folders of a location below the target folder, and nowhere else."""
    if not folder.resolve().is_relative_to(root.resolve()):
        fix = "write into another folder, or remove the link"
        raise FileError(f"cannot bring the weights along to {folder}: it is a link out of {root}", fix=fix)
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        missing.mkdir()
        undo.callback(missing.rmdir)
