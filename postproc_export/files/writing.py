"""Files that appear whole or not at all: written in a temporary folder beside the target, then moved into place."""

import filecmp
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from postproc_export.errors import FileError
from postproc_export.files.checking import explained, refuse_inputs, refuse_unwritable
from postproc_export.files.copying import copy_file, link_file
from postproc_export.files.termination import termination_as_exception

BACKUP_SUFFIX: Final = ".postproc-backup"
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


class Publication:
    """Files on their way into one folder; `publishing` makes it and moves them into place.

    Parameters
    ----------
    targets
        The final paths of what is written, all in one folder.
    staging
        A temporary folder on the same file system.
    """

    def __init__(self, targets: Sequence[Path], staging: Path) -> None:
        self._targets = targets
        self._staging = staging
        self._brought: dict[Path, Path] = {}

    def temporary(self, target: Path) -> Path:
        """Return where to write what will be moved to a target; it has the target's own file name."""
        assert target in self._targets, f"{target} was not announced"
        return self._staging / target.name

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
            staged = self._staging / f"{len(self._brought)}.external-data"
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
                undo.callback(_restore, _backup(target), target)
                try:
                    _backup(target).hardlink_to(target)
                except OSError:  # a file system without hard links
                    shutil.copy2(target, _backup(target))

    def _move(self, target: Path, undo: ExitStack) -> None:
        staged = self.temporary(target)
        if target.exists():
            shutil.copymode(target, staged)
        else:
            undo.callback(_take_back, staged, target)
        staged.replace(target)

    def _remove_backups(self) -> None:
        for target in self._targets:
            _backup(target).unlink(missing_ok=True)


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
        If a target cannot be written, is an input without `in_place` or a name of the system, or a backup of a run that
        was killed is there.
    """
    with explained(targets[0]), ExitStack() as cleaning, termination_as_exception():
        if not in_place:
            refuse_inputs(targets, inputs, fix=_ANOTHER)
        for target in targets:
            refuse_unwritable(target)
        _refuse_backups(targets)
        staging = Path(tempfile.mkdtemp(prefix=".postproc-", suffix=".tmp", dir=targets[0].parent))
        cleaning.callback(shutil.rmtree, staging, ignore_errors=True)
        publication = Publication(targets, staging)
        yield publication
        publication.move_into_place()


def _refuse_occupied(final: Path) -> None:
    if os.path.lexists(final):
        raise FileError(
            f"cannot bring the weights along: {final} is there already and holds something else",
            fix="write into another folder, or move that file away",
        )


def _refuse_backups(targets: Sequence[Path]) -> None:
    backups = [_backup(target) for target in targets if os.path.lexists(_backup(target))]
    if backups:
        raise FileError(
            f"cannot write {targets[0]}: an earlier run was killed between replacing its files",
            found="the files as they were before that run, in " + " and ".join(map(str, backups)),
            fix=f"take '{BACKUP_SUFFIX}' off these names to go back, or delete them to keep what replaced them",
        )


def _backup(target: Path) -> Path:
    return target.with_name(target.name + BACKUP_SUFFIX)


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
