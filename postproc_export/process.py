"""The process that runs: what it keeps quiet, signals that end it in order, and its temporary folders with locks."""

import json
import os
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

from postproc_export.errors import FileError

if sys.platform != "win32":
    import fcntl

_of_command = False
_descriptors = [2]  # the last one leads to where stderr led at the start


@contextmanager
def natives_of_command() -> Iterator[None]:
    """Let `quiet_natives` do its work while the block runs: the process is a command's, and its stderr is ours."""
    global _of_command
    before, _of_command = _of_command, True
    try:
        yield
    finally:
        _of_command = before


@contextmanager
def quiet_natives() -> Iterator[None]:
    """Drop what C++ code writes to stderr by itself while the block runs, such as the log of each parser that failed.

    One message says what is wrong. In a program that is not ours nothing is dropped.
    """
    if not _of_command:
        yield
        return
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    _descriptors.append(kept)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        _descriptors.remove(kept)
        os.close(kept)


def tell(text: str) -> None:
    """Write to stderr at once, from anywhere, whoever is kept quiet."""
    os.write(_descriptors[-1], text.encode())


@contextmanager
def quiet_logger(name: str) -> Iterator[None]:
    """Let only errors of one logger through while the block runs."""
    import logging

    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence what `torch.onnx.export` says of itself and of sizes; what matters of it is read back from the file."""
    with quiet_logger("torch.onnx"), quiet_logger("onnxscript"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# A signal that ends the process takes back first what was begun, and finishes what must not be cut in two.
# No handler of this module raises anything: an exception out of a handler may strike inside an extension, which turns
# it into an error of its own or drops it.

ENDING: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # Windows has no SIGHUP
_SHOW_CURSOR: Final = "\r\x1b[K\x1b[?25h"  # a progress bar hides it
_begun: "list[Undoing]" = []


def end_on_signals() -> None:
    """Let SIGINT, SIGTERM and SIGHUP end this process with one line and code 128 + n; for the command line alone.

    A signal that somebody ignores or handles already, as `nohup` does, is left alone.
    """
    for number in ENDING:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _end_command)


class Undoing:
    """A block after which something is undone, however it ends; a signal that ends the process undoes it first.

    `undo` is called once or more, and must not raise.
    """

    def __init__(self, undo: Callable[[], None]) -> None:
        self._undo, self._process = undo, os.getpid()

    def __enter__(self) -> None:
        _begun.append(self)

    def __exit__(self, *_: object) -> None:
        with held_signals():
            self._undo()
            _begun.remove(self)

    def undo_here(self) -> None:
        """Undo it, unless it belongs to the process that this one was forked from."""
        if self._process == os.getpid():
            self._undo()


@contextmanager
def orderly_end() -> Iterator[None]:
    """Let a program that leaves SIGTERM and SIGHUP to the system undo what was begun in a block, and end by them.

    That is in the main thread only; a handler of the program's own is left alone.
    """
    with ExitStack() as handlers:
        for number in ENDING if _in_main_thread() else ():
            if signal.getsignal(number) is signal.SIG_DFL:
                handlers.callback(signal.signal, number, signal.SIG_DFL)
                signal.signal(number, _end_program)
        yield


@contextmanager
def held_signals() -> Iterator[None]:
    """Let no signal cut a block in two: those that arrive in the main thread are delivered when it ends."""
    seen: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        seen.append(number)

    try:
        with ExitStack() as handlers:
            for number in ENDING if _in_main_thread() else ():
                handler: Any = signal.getsignal(number)
                if handler not in (None, signal.SIG_IGN):
                    handlers.callback(signal.signal, number, handler)
                    signal.signal(number, note)
            yield
    finally:
        for number in dict.fromkeys(seen):
            signal.raise_signal(number)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _end_command(number: int, _: FrameType | None) -> NoReturn:
    _undo_everything()
    with suppress(OSError):
        tell(f"{_SHOW_CURSOR * os.isatty(2)}error: stopped by {signal.Signals(number).name}\n")
    os._exit(128 + number)


def _end_program(number: int, _: FrameType | None) -> None:
    _undo_everything()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def _undo_everything() -> None:
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    for each in reversed(_begun):
        each.undo_here()


# Temporary folders stand beside what is being written: locked while their run lives, else cleared away by the next run.
# A staging folder holds a lock (flock: it goes with its process, whatever ends that), the names of what its run
# writes, and before several files are replaced, a journal of their old and new bytes. The next run in the folder
# deletes what a killed run left, and puts a half-replaced set of files back from its backups. Not every file system
# has locks.

BACKUP_SUFFIX: Final = ".postproc-backup"
LOCK: Final = "lock"
_PATIENCE: Final = 1.0  # seconds to wait for the others that look at the same folder, each of which takes milliseconds


def locked(folder: Path) -> int | None:
    """Lock a folder by a file in it, and return what holds the lock open; None where there are no locks.

    Raises BlockingIOError if a process holds the lock.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    return descriptor if _flock(descriptor) else None


def _flock(descriptor: int) -> bool:
    """Lock an open file or folder, or close it: whether this file system has locks."""
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            os.close(descriptor)
            raise
        except OSError:
            pass
    os.close(descriptor)
    return False


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Look at a folder one run after the other, so that of two that begin together only one is refused."""
    descriptor = None
    end = time.monotonic() + _PATIENCE
    while sys.platform != "win32":
        try:
            opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            descriptor = opened if _flock(opened) else None
            break
        except BlockingIOError:
            if time.monotonic() > end:
                break
            time.sleep(0.005)
        except OSError:  # a folder that may be written and not read
            break
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


_PREFIX, _SUFFIX, _JOURNAL = ".postproc-", ".tmp", "journal.json"
_mine: dict[Path, int] = {}  # the staging folders of this process, with the thread of each

Digests = Mapping[str, tuple[str | None, str | None]]
"""{name: SHA-256 of the file that was there and of the one that replaces it}; None stands for no file."""


class LeftoverWarning(UserWarning):
    """Something that a killed run left was put back, or has to be looked at by somebody."""


class Staging:
    """A temporary folder with a lock, if there are locks; what is written goes into the folder `files` in it."""

    def __init__(self, path: Path, lock: int | None) -> None:
        self.path = path
        self.files = path / "files"
        self._lock = lock

    @classmethod
    def make(cls, folder: Path, names: Sequence[str]) -> "Staging":
        """Make one in a folder, for a run that writes files of these names there."""
        while True:
            path = Path(tempfile.mkdtemp(prefix=_PREFIX, suffix=_SUFFIX, dir=folder))
            try:
                lock = locked(path)
                # what was taken for a leftover before its lock was there has been deleted, or has another lock
                if lock is None or os.path.samestat(os.fstat(lock), (path / LOCK).stat()):
                    break
            except (BlockingIOError, FileNotFoundError):
                continue
        staging = cls(path, lock)
        try:
            staging.files.mkdir()
            staging.log(dict.fromkeys(names))
        except BaseException:
            staging.remove()
            raise
        _mine[path] = threading.get_ident()
        return staging

    def log(self, targets: Mapping[str, tuple[str | None, str | None] | None]) -> None:
        """Write down what is written, with the bytes of each if they are known."""
        draft = self.path / "journal.new"
        draft.write_bytes(json.dumps(targets).encode())
        draft.replace(self.path / _JOURNAL)

    def remove(self) -> None:
        """Delete it with everything in it, and give the lock up."""
        _delete(self.path)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        _mine.pop(self.path, None)


@contextmanager
def staging_folder(folder: Path, names: Sequence[str] = ()) -> Iterator[Staging]:
    """Make a staging folder that is gone after the block, whatever ends it; first clear away what killed runs left.

    Raises FileError if another run writes files of these names in the folder, or was killed while it replaced them and
    they were changed since; OSError if no folder can be made there.
    """
    with orderly_end(), ExitStack() as stack:
        with held_signals(), turn(folder):
            staging = Staging.make(folder, names)
            stack.enter_context(Undoing(staging.remove))
            remarks = _clear(folder, names)
        for remark in remarks:
            warnings.warn(LeftoverWarning(remark), stacklevel=4)
        yield staging


@contextmanager
def claimed(targets: Sequence[Path]) -> Iterator[None]:
    """Keep other runs from writing files of one folder while they are being made; nothing where none can be written.

    Raises FileError as `staging_folder` does.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(staging_folder(targets[0].parent, [target.name for target in targets]))
        except FileError:
            raise
        except OSError:  # whoever writes there says what is wrong
            pass
        yield


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder for intermediate files in the system's place for them, gone after the block, whatever ends it.

    Raises FileError if one of them cannot be written: nobody asked for it by its name, so the place is told.
    """
    place = Path(tempfile.gettempdir())
    with staging_folder(place) as staging:
        try:
            yield staging.files
        except FileError as error:
            if str(staging.files) not in error.what:
                raise
            fix = "free space there, or name another place in the environment variable TMPDIR"
            raise FileError(f"cannot write temporary files in {place}", found=error.found, fix=fix) from error


def backup_of(target: Path) -> Path:
    """Return where a file is kept while the set that it belongs to is replaced."""
    return target.with_name(target.name + BACKUP_SUFFIX)


def refuse_backups(targets: Sequence[Path], *, verb: str = "write") -> None:
    """Refuse files that are being replaced, or of which a killed run left backups that nothing tells how to put back.

    Raises FileError if there is a backup.
    """
    backups = [backup_of(target) for target in targets if os.path.lexists(backup_of(target))]
    if backups:
        raise FileError(
            f"cannot {verb} {targets[0]}: another run was killed between replacing its files, or does it now",
            found="the files as they were before that run, in " + " and ".join(map(str, backups)),
            fix=("run the killed command again, which puts them back; or " if verb == "read" else "")
            + f"take '{BACKUP_SUFFIX}' off these names to go back, or delete them to keep what replaced them",
        )


def digest(path: Path) -> str | None:
    """Return the SHA-256 of a file; None where there is none, and the reason where it cannot be read."""
    import hashlib

    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return None
    except OSError as error:
        return str(error)


def _clear(folder: Path, names: Sequence[str]) -> list[str]:
    """Delete what killed runs left in a folder, put their targets back, and return what has to be said of it."""
    remarks = []
    for left in sorted(folder.glob(f"{_PREFIX}*{_SUFFIX}")):
        if _mine.get(left) == threading.get_ident():
            continue
        try:
            status = left.lstat()
            if not stat.S_ISDIR(status.st_mode) or (sys.platform != "win32" and status.st_uid != os.geteuid()):
                continue  # not a folder of ours
            lock = locked(left)
        except BlockingIOError:
            if both := [name for name in names if name in _read(left)]:
                raise FileError(
                    f"cannot write {folder / both[0]}: another run is writing it",
                    found=f"its temporary folder {left}, locked",
                    fix="wait until it has ended, or choose another path",
                ) from None
            continue
        except OSError:
            continue
        if lock is None:
            remarks.append(f"{left} may be left of a run that was killed: delete it if no other run is at work")
            continue
        try:
            remarks += _cleared(folder, left, names)
        finally:
            os.close(lock)
    return remarks


def _cleared(folder: Path, left: Path, names: Sequence[str]) -> Iterator[str]:
    moved = {name: digests for name, digests in _read(left).items() if digests is not None}
    if not _can_be_put_back(folder, moved):
        targets = [folder / name for name in moved]
        if set(moved) & set(names):
            refuse_backups(targets)
        if any(backup_of(target).exists() for target in targets):
            yield f"a run was killed between replacing {targets[0]} and what belongs to it: see {BACKUP_SUFFIX} there"
            return
    elif _put_back(folder, moved):
        yield f"put back as before a run that was killed: {', '.join(str(folder / name) for name in moved)}"
    _delete(left)


def _can_be_put_back(folder: Path, moved: Digests) -> bool:
    """Whether every target is the journal's old or new one, and every old one that is gone has its backup."""
    for name, (old, new) in moved.items():
        found = digest(folder / name)
        if found not in (old, new) or (found != old is not None and digest(backup_of(folder / name)) != old):
            return False
    return True


def _put_back(folder: Path, moved: Digests) -> bool:
    """Put back what was replaced, and say whether anything was."""
    changed = False
    for name, (old, _) in moved.items():
        target, backup = folder / name, backup_of(folder / name)
        if digest(target) != old:
            changed = True
            backup.replace(target) if old is not None else target.unlink()
        backup.unlink(missing_ok=True)  # the same file under a second name, or what was copied of it
    return changed


def _read(staging: Path) -> dict[str, tuple[str | None, str | None] | None]:
    journal = staging / _JOURNAL
    if not journal.is_file():  # or a pipe, which nobody writes to
        return {}
    try:
        found = json.loads(journal.read_text(encoding="utf-8"))
        return {Path(name).name: None if both is None else (both[0], both[1]) for name, both in found.items()}
    except (OSError, ValueError, TypeError, AttributeError, LookupError):
        return {}  # it was killed before it had begun


def _delete(folder: Path) -> None:
    for _ in range(3):  # another run may have looked into it meanwhile
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
