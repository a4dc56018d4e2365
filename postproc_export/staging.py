"""Temporary folders beside what is being written: locked while their run lives, cleared away by the next one."""

import fcntl
import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from postproc_export.errors import FileError
from postproc_export.process import HeldSignals, OrderlyEnd, Undoing
from postproc_export.validation import BACKUP_SUFFIX, backup_of, refuse_backups

# --- Locks of folders, by flock: they go with their process, whatever ends it. Not every file system has them.

if sys.platform != "win32":
    import fcntl

LOCK: Final = "lock"
_PATIENCE: Final = 1.0  # seconds to wait for the others that look at the same folder, each of which takes milliseconds


def locked(folder: Path) -> int | None:
    """Lock a folder by a file in it, and return what holds the lock open; None where there are no locks.

    Raises
    ------
    BlockingIOError
        If a process holds the lock.
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


def is_lock_of(descriptor: int, folder: Path) -> bool:
    """Whether a lock is that of the folder that is there now, and not of one that was deleted meanwhile."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), (folder / LOCK).stat())
    return False


# --- Temporary folders beside what is being written: locked while their run lives, cleared away by the next run if
# not.
#
# A staging folder holds a lock (flock: it goes with its process, whatever ends that), the names of what its run
# writes, and before several files are replaced, a journal of their old and new bytes. The next run in the folder
# deletes what a killed run left, and puts a half-replaced set of files back from its backups.

_PREFIX, _SUFFIX = ".postproc-", ".tmp"
_mine: dict[Path, int] = {}  # the staging folders of this process, with the thread of each

Digests = Mapping[str, tuple[str | None, str | None]]
"""{name: SHA-256 of the file that was there and of the one that replaces it}; None stands for no file."""


class LeftoverWarning(UserWarning):
    """Something that a killed run left was put back, or has to be looked at by somebody."""


@dataclass(slots=True)
class Staging:
    """A temporary folder with a lock.

    Parameters
    ----------
    path
        Where it is.
    lock
        The descriptor that holds its lock; None where there are no locks.
    """

    path: Path
    lock: int | None
    files: Path = field(init=False)

    def __post_init__(self) -> None:
        self.files = self.path / "files"

    @classmethod
    def make(cls, folder: Path, names: Sequence[str]) -> "Staging":
        """Make one in a folder, for a run that writes files of these names there."""
        while True:
            path = Path(tempfile.mkdtemp(prefix=_PREFIX, suffix=_SUFFIX, dir=folder))
            try:
                lock = locked(path)
                if lock is None or is_lock_of(lock, path):
                    break
            except (BlockingIOError, FileNotFoundError):  # taken for a leftover before its lock was there
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
        draft.replace(_journal(self.path))

    def remove(self) -> None:
        """Delete it with everything in it, and give the lock up."""
        _delete(self.path)
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None
        _mine.pop(self.path, None)


@contextmanager
def staging_folder(folder: Path, names: Sequence[str] = ()) -> Iterator[Staging]:
    """Make a staging folder that is gone after the block, whatever ends it; first clear away what killed runs left.

    Parameters
    ----------
    folder
        Where the files go.
    names
        What they are called in it.

    Raises
    ------
    FileError
        If another run writes one of them, or was killed while it replaced them and they were changed since.
    OSError
        If no folder can be made there.
    """
    with OrderlyEnd(), ExitStack() as stack:
        with HeldSignals(), turn(folder):
            staging = Staging.make(folder, names)
            stack.enter_context(Undoing(staging.remove))
            remarks = _clear(folder, names)
        for remark in remarks:
            warnings.warn(LeftoverWarning(remark), stacklevel=4)
        yield staging


@contextmanager
def claimed(targets: Sequence[Path]) -> Iterator[None]:
    """Keep other runs from writing files of one folder while they are being made; nothing where none can be written.

    Raises
    ------
    FileError
        As `staging_folder` does.
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

    Raises
    ------
    FileError
        If one of them cannot be written: nobody asked for it by its name, so the place is told.
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


def digest(path: Path) -> str | None:
    """Return the SHA-256 of a file; None where there is none, and the reason where it cannot be read."""
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
        if _mine.get(left) == threading.get_ident() or not _is_ours(left):
            continue
        try:
            lock = locked(left)
        except BlockingIOError:
            _refuse_second(folder, left, names)
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


def _refuse_second(folder: Path, other: Path, names: Sequence[str]) -> None:
    both = [name for name in names if name in _read(other)]
    if both:
        raise FileError(
            f"cannot write {folder / both[0]}: another run is writing it",
            found=f"its temporary folder {other}, locked",
            fix="wait until it has ended, or choose another path",
        )


def _read(staging: Path) -> dict[str, tuple[str | None, str | None] | None]:
    if not _journal(staging).is_file():  # or a pipe, which nobody writes to
        return {}
    try:
        found = json.loads(_journal(staging).read_text(encoding="utf-8"))
        return {Path(name).name: None if both is None else (both[0], both[1]) for name, both in found.items()}
    except (OSError, ValueError, TypeError, AttributeError, LookupError):
        return {}  # it was killed before it had begun


def _journal(staging: Path) -> Path:
    return staging / "journal.json"


def _is_ours(path: Path) -> bool:
    with suppress(OSError):
        status = path.lstat()
        return stat.S_ISDIR(status.st_mode) and (sys.platform == "win32" or status.st_uid == os.geteuid())
    return False


def _delete(folder: Path) -> None:
    for _ in range(3):  # another run may have looked into it meanwhile
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
