"""Files that appear whole or not at all: targets, checks before writing, copies, publication."""

import codecs
import errno
import filecmp
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

from graph_patterns.onnx.wire import ChangedFileError, FileSource, kind_of, write_all
from postproc_export.errors import FileError, PostprocError, UsageError
from postproc_export.process import Staging, Undoing, backup_of, digest, held_signals, refuse_backups, staging_folder
from postproc_export.validation import check_file

if sys.platform == "linux":
    import fcntl

DEVICES: Final = Path("/dev")  # itself, and not folders such as /dev/shm
_SYSTEM: Final = (Path("/proc"), Path("/sys"))
_FIXES: Final = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose a folder that you may write to"),
    errno.ENAMETOOLONG: "choose a shorter name",
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room, or choose another disk"),
    errno.EFBIG: "raise the limit on the size of a file, or choose another disk",
}


def check_target(target: Path, inputs: Sequence[Path] = ()) -> None:
    """Raise FileError for a file that could not be written in the end, or that would destroy what is read.

    Nothing is written. A folder among the inputs stands for everything in it.
    """
    with explained(target):
        refuse_unwritable(target)
        refuse_inputs([target], inputs, fix="choose another path")
        with TemporaryFile(dir=nearest_folder(target)):
            pass


def nearest_folder(path: Path) -> Path:
    """Return the folder of a path, or of those above it the first that is there."""
    return next(each for each in path.absolute().parents if each.exists())


def check_folder(folder: Path) -> None:
    """Raise FileError for a folder in which no file can be made; nothing stays there."""
    with explained(folder):
        if not folder.is_dir():
            found = "a file" if folder.exists() else "no such folder"
            raise FileError(f"cannot write to {folder}", found=found, needed="a folder", fix="make the folder first")
        with TemporaryFile(dir=folder):
            pass


def refuse_inputs(targets: Sequence[Path], inputs: Sequence[Path], *, fix: str) -> None:
    """Raise FileError if a target is a file that is read, under whatever name, or lies in a folder that is read."""
    for target in targets:
        itself = _identity(target)
        places = {itself, *map(_identity, Path(os.path.realpath(target.parent), "x").parents)} - {None}
        for source in inputs:
            found = _identity(source)
            if found in places:
                what = "it is the file that is read" if found == itself else f"it lies in {source}, which is read"
                raise FileError(f"cannot write {target}: {what}", fix=fix)


def refuse_foreign(folder: Path, names: Sequence[str], *, start: str, noun: str, command: str) -> None:
    """Raise FileError for a folder that holds anything but files of these names, which a command wrote.

    The first of them tells: it begins with `start`. `noun` is what the command made.
    """
    if not folder.is_dir():
        if os.path.lexists(folder):
            needed, fix = "a folder", "choose another path"
            raise FileError(f"cannot write to {folder}", found="no folder", needed=needed, fix=fix)
        return
    try:
        there = sorted(each.name for each in folder.iterdir() if not each.name.startswith("."))
        first = folder / names[0]
        is_ours = first.is_file() and first.read_bytes()[:200].startswith(start.encode())
    except OSError as error:
        raise FileError(f"cannot read {folder}", found=error.strerror, fix="choose another folder") from error
    foreign = [name for name in there if name not in names]
    if foreign or (there and not is_ours):
        raise FileError(
            f"cannot write to {folder}: it holds other files than those of an earlier {noun}",
            found=", ".join((foreign or there)[:5]),
            needed=f"an empty folder, a new one, or one that {command} wrote",
            fix="choose another folder, or take these files away",
        )


def refuse_unwritable(target: Path) -> None:
    """Raise FileError for a target that no file can be moved to."""
    if not (nearest := nearest_folder(target)).is_dir():
        reason = f"{nearest} is no folder, so that none can be made in it"
        raise FileError(f"cannot write {target}", found=reason, fix="choose another path")
    folder = Path(os.path.realpath(nearest))
    found = None
    if target.is_dir():
        found = "a folder"
    elif target.exists() and not target.is_file():
        found = "a device or a pipe"
    # A link such as /dev/stdout may lead to a file, and would be replaced for every process of the machine.
    elif folder == DEVICES or any(folder.is_relative_to(each) for each in _SYSTEM):
        found = f"a name of the system, in {folder}"
    if found is not None:
        raise FileError(f"cannot write {target}", found=found, needed="the path of a file", fix="choose another path")


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


_FICLONE: Final = 0x40049409  # Linux: share the blocks of another file until one of the two is written


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content to a new path: shared blocks where the file system can, else in chunks.

    Raises FileError if the source changed meanwhile, and OSError if it cannot be read or written.
    """
    with source.open("rb", buffering=0) as reading, target.open("xb", buffering=0) as writing:
        if sys.platform == "linux":
            with suppress(OSError):  # most file systems cannot
                fcntl.ioctl(writing.fileno(), _FICLONE, reading.fileno())
                return
        content = FileSource(reading)
        try:
            content.copy(0, content.size, writing)
            content.check_unchanged()
        except ChangedFileError:
            raise FileError(f"cannot copy {source}: it changed meanwhile", fix="run again") from None


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError as error:
        raise FileError(
            f"cannot make a hard link to {source}",
            found=error.strerror,
            needed="both folders on one file system that has hard links",
            fix="let the weights be copied: leave out --link-weights",
        ) from error


FORMATS: Final = {".onnx": "an ONNX model", ".xml": "an OpenVINO IR"}


_MODELS: Final = " or ".join(f"{suffix} ({what})" for suffix, what in FORMATS.items())
CHECKPOINTS: Final = (".pt", ".pth", ".ckpt", ".safetensors")
EXPORT_FIRST: Final = (
    "export it first: postproc-export export MODULE:FACTORY --input 1,3,256,256 --weights {} --stats FILE -o dist"
)
_ARRAYS: Final = (
    "a file of arrays",
    "give the model; postproc-export calibrate {} -o stats.json makes statistics of it",
)
_OTHERS: Final = {
    **dict.fromkeys(CHECKPOINTS, ("a PyTorch checkpoint", EXPORT_FIRST)),
    **dict.fromkeys((".npz", ".npy"), _ARRAYS),
    ".json": ("JSON, such as a statistics file", "give the model here, and statistics with --stats {}"),
    ".bin": ("a file of weights, such as an IR has", "give the .xml beside it"),
}


def check_suffix(source: Path) -> None:
    """Raise UsageError for a file that is no model by its suffix, and say what it is."""
    if source.suffix in FORMATS:
        return
    kind, fix = _OTHERS.get(source.suffix.lower(), (None, "give the file that the export wrote"))
    what = f"{source} is {kind}, and no exported model" if kind else f"{source} is not an exported model"
    found = None if kind else f"the suffix '{source.suffix}'" if source.suffix else "no suffix"
    raise UsageError(what, found=found, needed=_MODELS, fix=fix.format(source))


def check_model(path: Path, *, noun: str = "model") -> None:
    """Refuse what is no model file, before anything opens it, and say what it is; `noun` is what the user gives it as.

    Raises FileError if there is no file, and UsageError if it is another one than an ONNX model or an IR.
    """
    if path.is_dir():
        models = sorted(each for each in path.iterdir() if each.suffix in FORMATS and each.is_file())
        fix = f"give {models[0]}" if models else "give the model file"
        raise FileError(f"cannot read the {noun} {path}", found="a folder", needed=_MODELS, fix=fix)
    refuse_backups([path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path], verb="read")
    check_file(path, what=f"the {noun}")
    check_suffix(path)
    if path.suffix == ".xml":  # of an ONNX model its reader says what it is
        with path.open("rb") as stream:
            start = stream.read(64).removeprefix(codecs.BOM_UTF8).lstrip()
        kind = kind_of(start) or f"a file that begins with {start[:20]!r}"
        if not kind.startswith("XML"):
            found, needed = kind, "XML in UTF-8 with the element <net>, and its .bin beside it"
            fix = "convert the model to an IR again, with OpenVINO itself"
            raise UsageError(f"cannot read {path}: not an OpenVINO IR", found=found, needed=needed, fix=fix)


def usual_weights(model: Path) -> Path:
    """Return where the weights of a model usually are, beside it."""
    return model.with_suffix(".bin") if model.suffix.lower() == ".xml" else model.parent / f"{model.name}.data"


def model_files(model: Path) -> list[Path]:
    """Return the model file and those that hold its weights, as far as they are there.

    An ONNX model that cannot be read does not say where its weights are: the file of the usual name is taken.
    """
    usual = usual_weights(model)
    files = {model, *([usual] if usual.is_file() else [])}
    if model.suffix.lower() == ".onnx" and model.is_file():
        from graph_patterns.onnx.file import external_files, load_skeleton

        with suppress(PostprocError), load_skeleton(model) as file:  # whoever runs the model says what is wrong
            files |= set(external_files(file.model, model.parent).values())
    return sorted(files)


def model_digests(model: Path) -> dict[str, str | None]:
    """Return the SHA-256 of every file of a model that is there, by its path in the model's folder; of no pipe."""
    files = (path for path in model_files(model) if path.is_file())
    return {Path(os.path.relpath(path, model.parent)).as_posix(): digest(path) for path in files}


def is_onnx(source: Path) -> bool:
    """Whether a model file is an ONNX model, else an OpenVINO IR; raises UsageError if its suffix is neither's."""
    check_model(source)
    return source.suffix == ".onnx"


def default_target(
    source: Path, output: str | Path | None, *, in_place: bool, mark: str, read: Sequence[object] = ()
) -> Path:
    """Return the file to write: what was asked for, the source itself, or ``<name>.<mark>.<suffix>`` beside it.

    `read` is what is read besides the source, paths and anything else; it must not be written, in place or not, or
    FileError is raised. Raises UsageError if the source is no model file, or the output is of the other format.
    """
    check_model(source)
    usual = source.with_suffix(f".{mark}{source.suffix}")
    target = Path(output) if output is not None else source if in_place else usual
    if target.suffix != source.suffix or target.is_dir():
        found, fix = "a folder", f"--output {target / usual.name}"
        if not target.is_dir():
            found = f"the suffix '{target.suffix}'" if target.suffix else "no suffix"
            fix = f"--output {target.with_suffix(source.suffix)}; convert that file afterwards, if need be"
        what, needed = f"cannot write {FORMATS[source.suffix]} to {target}", f"a file with the suffix '{source.suffix}'"
        raise UsageError(what, found=found, needed=needed, fix=fix)
    written = [target] if target.suffix == ".onnx" else [target, target.with_suffix(".bin")]
    files = [Path(each) for each in read if isinstance(each, str | Path)]
    refuse_inputs(written, files, fix="choose another path")
    if in_place and _identity(target) != _identity(source):
        found = f"--output {target}, another file than {source}"
        raise UsageError("--in-place would have no effect", found=found, fix="leave out one of them")
    return target


_ANOTHER: Final = "choose another path, or replace the file with --in-place"


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8; a file that was there is replaced in one step, or stays as it was."""
    with publishing([path]) as publication:
        publication.temporary(path).write_text(text, encoding="utf-8")


def append_text(path: Path, text: str) -> None:
    """Append to a text file as UTF-8, all of the text or nothing; a device or a pipe takes what it takes."""
    with explained(path):
        if path.exists() and not path.is_file():
            # a pipe that nobody reads is refused in place of waited for
            descriptor = os.open(path, os.O_WRONLY | (0 if os.name == "nt" else os.O_NONBLOCK))
            if os.name != "nt":
                os.set_blocking(descriptor, True)
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                write_all(file, text.encode())
            return
        with folder_made_for(path), held_signals(), ExitStack() as undo:
            if not path.exists():
                undo.callback(path.unlink, missing_ok=True)
            with path.open("ab", buffering=0) as file:
                undo.callback(os.truncate, path, file.tell())
                write_all(file, text.encode())
            undo.pop_all()


@contextmanager
def folder_made_for(path: Path) -> Iterator[None]:
    """Make the folder of a file where it is not there, and remove it again where nothing is in it after the block."""
    with explained(path), ExitStack() as stack:
        for missing in reversed([each for each in path.parents if not each.exists()]):
            stack.enter_context(Undoing(partial(_remove_empty, missing)))
            missing.mkdir(exist_ok=True)
        yield


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # it holds what was written
        folder.rmdir()


class Publication:
    """Files on their way from a staging folder into the folder of the targets; `publishing` makes it and moves them."""

    def __init__(self, targets: Sequence[Path], staging: Staging) -> None:
        self._targets, self._staging = targets, staging
        self._brought: dict[Path, Path] = {}

    def temporary(self, target: Path) -> Path:
        """Return where to write what will be moved to a target; it has the target's own file name."""
        assert target in self._targets, f"{target} was not announced"
        return self._staging.files / target.name

    def bring_along(self, files: Mapping[Path, Path], *, link: bool = False) -> None:
        """Put external data, {path relative to the target folder: file}, beside the targets, as copies or hard links.

        A file that is there already stays. Raises FileError if a different one is, or it cannot be copied or linked.
        """
        for relative, file in files.items():
            final = self._targets[0].parent / relative
            for target in self._targets:
                if relative == Path(target.name) or (target.exists() and target.samefile(file)):
                    what = f"cannot write {target}: the model keeps its weights there"
                    raise FileError(what, fix="choose another name")
            if final.exists() and (final.samefile(file) or filecmp.cmp(final, file, shallow=False)):
                continue
            _refuse_occupied(final)
            staged = self._staging.path / f"{len(self._brought)}.external-data"
            _link(file, staged) if link else copy_file(file, staged)
            self._brought[staged] = final

    def move_into_place(self) -> None:
        """Move everything to its final path, data first, the first target last; undo it all if a step fails."""
        assert all(self.temporary(target).exists() for target in self._targets), "not every target was written"
        if len(self._targets) > 1:  # they cannot move at once
            both = {each.name: (digest(each), digest(self.temporary(each))) for each in self._targets}
            self._staging.log(both)
        undo = ExitStack()
        with held_signals(), self._all_or_nothing(undo):
            for staged, final in self._brought.items():
                _make_folders(final.parent, self._targets[0].parent, undo)
                _refuse_occupied(final)
                undo.callback(_take_back, staged, final)
                staged.rename(final)
            self._back_up(undo)
            for target in reversed(self._targets):
                staged = self.temporary(target)
                if target.exists():
                    shutil.copymode(target, staged)
                else:
                    undo.callback(_take_back, staged, target)
                staged.replace(target)

    @contextmanager
    def _all_or_nothing(self, undo: ExitStack) -> Iterator[None]:
        try:
            yield
        finally:
            # The last move decides, whatever interrupts: before it nothing may stay, after it everything has to.
            if self.temporary(self._targets[0]).exists():
                undo.close()
            else:
                for target in self._targets:
                    backup_of(target).unlink(missing_ok=True)

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


@contextmanager
def publishing(
    targets: Sequence[Path], *, inputs: Sequence[Path] = (), in_place: bool = False
) -> Iterator[Publication]:
    """Write one or several files of one folder so that they appear whole or not at all, moved when the block ends.

    The folder is made where it is not there, and removed again if nothing is written. A symbolic link at a target is
    replaced, what it points to stays. Several targets that exist are kept as `*.postproc-backup` until all are
    replaced. `in_place` allows a target to be among the `inputs`. Raises FileError if a target cannot be written, is
    written by another run, or a killed run left a backup that cannot be put back.
    """
    with explained(targets[0]):
        if not in_place:
            refuse_inputs(targets, inputs, fix=_ANOTHER)
        for target in targets:
            refuse_unwritable(target)
        names = [target.name for target in targets]
        with folder_made_for(targets[0]), staging_folder(targets[0].parent, names) as staging:
            refuse_backups(targets)
            publication = Publication(targets, staging)
            yield publication
            publication.move_into_place()


@contextmanager
def publishing_into(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield a folder for files and folders of these names, which appear in `folder` together when the block ends.

    Each takes the place of what is there under its name, and a name that was not written leaves nothing there. The
    first name is that of the file which says that all is there: it goes first and comes last. The folder is made where
    it is not there, and removed again if nothing is written. Raises FileError as `publishing` does.
    """
    with explained(folder), folder_made_for(folder / names[0]), staging_folder(folder, names) as staging:
        yield staging.files
        replaced = staging.path / "replaced"
        replaced.mkdir()
        with held_signals(), ExitStack() as undo:
            for name in names:
                if os.path.lexists(folder / name):
                    (folder / name).rename(replaced / name)
                    undo.callback((replaced / name).rename, folder / name)
            for name in reversed(names):
                if (staging.files / name).exists():
                    (staging.files / name).rename(folder / name)
                    undo.callback((folder / name).rename, staging.files / name)
            undo.pop_all()


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
