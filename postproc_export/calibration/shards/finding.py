"""From what a user gives to shards: files, folders of them, stores, mappings, lists; nothing twice, nothing dropped."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from postproc_export.calibration.shards.access import cannot_read
from postproc_export.calibration.shards.csv_shard import CsvShard
from postproc_export.calibration.shards.kinds import NAMES, MemoryShard, NpyShard, NpzShard, Shard
from postproc_export.calibration.shards.zarr_store import ZarrShard, is_store
from postproc_export.errors import FileError, UsageError
from postproc_export.validation import check_file

Source = str | Path | Mapping[str, Any] | Sequence[str | Path | Mapping[str, Any]]

_KEY_AT_END: Final = re.compile(
    r"^(?P<stem>.*?)[-_.]?(?P<key>" + "|".join(name for names in NAMES.values() for name in names) + r")$"
)
_MEANING: Final = {name: key for key, names in NAMES.items() for name in names}


def find_shards(source: Source) -> list[Shard]:
    """Return the shards of a source, in the order of their names within a folder.

    Raises
    ------
    FileError
        If a path is not there, may not be read, is not of a known kind, or is given twice.
    UsageError
        If the source is of a type that cannot be read several times.
    """
    shards = _shards_of(source)
    seen: dict[tuple[int, int], Path] = {}
    for path in (path for shard in shards for path in shard.files):
        if not path.is_dir():
            check_file(path)
        before = _seen_before(path, seen)
        if before is not None:
            found = str(path) if path == before else f"{path} is the same file as {before}"
            raise FileError(f"{path} is given twice, and would count twice", found=found, fix="give it once")
    return shards


def _seen_before(path: Path, seen: dict[tuple[int, int], Path]) -> Path | None:
    try:
        status = path.stat()
    except OSError:
        return None  # reading it says why
    known = seen.setdefault((status.st_dev, status.st_ino), path) if status.st_ino else path
    return None if known is path else known


def _shards_of(source: Source) -> list[Shard]:
    if isinstance(source, Mapping):
        return [MemoryShard(source)]
    if isinstance(source, str | Path):
        if not str(source):
            raise UsageError("the source is an empty path", needed="a file or a folder of validation outputs")
        with _listing(Path(source)):
            return _shards_at(Path(source))
    if not isinstance(source, Sequence):
        needed = "a path, a list of paths, or a mapping of arrays"
        raise UsageError("the source cannot be read", found=type(source).__name__, needed=needed)
    npy = [Path(each) for each in source if isinstance(each, str | Path) and _is_npy(Path(each))]
    others = [each for each in source if not (isinstance(each, str | Path) and _is_npy(Path(each)))]
    return [shard for each in others for shard in _shards_of(each)] + _npy_shards(npy)


@contextmanager
def _listing(path: Path) -> Iterator[None]:
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise cannot_read(str(path), error) from error


def _is_npy(path: Path) -> bool:
    return path.suffix.lower() == ".npy"


def _shards_at(path: Path) -> list[Shard]:
    if path.is_dir():
        return [ZarrShard(path)] if is_store(path) else _shards_in(path)
    if not path.exists():
        raise FileError(f"{path} is not there", needed="a file or a folder of validation outputs", fix="check the path")
    shard = _file_shard(path)
    if shard is None:
        fix = "give both files of the pair, or the folder they are in" if _is_npy(path) else None
        raise FileError(f"{path} is not of a known kind", needed=".npz, .npy pairs, .csv or a Zarr group", fix=fix)
    return [shard]


def _file_shard(path: Path) -> Shard | None:
    if path.suffix.lower() == ".npz":
        return NpzShard(path)
    return CsvShard(path) if path.suffix.lower() == ".csv" else None


def _shards_in(folder: Path) -> list[Shard]:
    """Return the shards in a folder; what its name hides is none, such as the `._a.npz` that macOS leaves."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    shards: list[Shard] = []
    for entry in entries:
        if entry.is_dir() and is_store(entry):
            shards.append(ZarrShard(entry))
        elif not entry.is_dir() and (shard := _file_shard(entry)) is not None:
            shards.append(shard)
    shards += _npy_shards([entry for entry in entries if _is_npy(entry) and not entry.is_dir()])
    if not shards:
        found = ", ".join(entry.name for entry in entries[:5]) or "an empty folder"
        needed, fix = ".npz, .npy pairs, .csv or Zarr groups", "give the files, or the folder they are in"
        raise FileError(f"{folder} has no validation outputs", found=found, needed=needed, fix=fix)
    return shards


def _npy_shards(paths: Sequence[Path]) -> list[Shard]:
    groups: dict[tuple[Path, str], dict[str, Path]] = {}
    for path in paths:
        match = _KEY_AT_END.match(path.stem)
        if match is None:
            raise FileError(
                f"{path} does not say what it holds",
                needed="a name that ends in a key, such as a_maps.npy",
                fix=f"rename it, move it out of {path.parent}{os.sep}, or give the files that count in its place",
            )
        group = groups.setdefault((path.parent, match["stem"]), {})
        _refuse_second(path, match["key"], group)
        group[match["key"]] = path
    return [NpyShard(files, name=str(folder / (stem or "*.npy"))) for (folder, stem), files in groups.items()]


def _refuse_second(path: Path, key: str, group: Mapping[str, Path]) -> None:
    for other, before in group.items():
        if _MEANING[other] == _MEANING[key] and before != path:
            raise FileError(
                f"{path} and {before.name} hold the same of one shard",
                found=f"two files of {key}",
                needed="one file for each key and shard",
                fix="rename one of them, such as b_maps.npy with its b_masks.npy",
            )
