"""A Zarr group on disk, read box by box once the files of its chunks have been checked."""

import asyncio
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

from postproc_export.calibration.arrays import Block
from postproc_export.calibration.boxes import box_blocks
from postproc_export.calibration.npy import cannot_read, damaged, readable
from postproc_export.calibration.shards import NAMES, ArrayShard, Pair
from postproc_export.calibration.statistics import CalibrationWarning
from postproc_export.errors import CalibrationError, FileError, PostprocError, require
from postproc_export.stats import Level
from postproc_export.validation import check_file

# --- The files of the chunks of a Zarr array: which are there, and whether each is as long as it says.

_BLOSC_HEADER: Final = 16  # bytes before the blocks of a Blosc frame
_FRAME: Final = slice(12, 16)  # its length, header included, little endian


@dataclass(frozen=True, slots=True)
class StoredChunks:
    """The chunks of an array, or its shards where it has them."""

    folder: Path  # where the array is, and the store as messages name it
    store: str
    counts: tuple[int, ...]  # number of chunks along every axis
    prefix: str  # what stands before the numbers in the name of a chunk, and between them
    separator: str
    is_blosc: bool  # whether each file is a Blosc frame
    fill_value: object  # what elements have that are not stored

    @classmethod
    def of(cls, folder: Path, *, store: str) -> "StoredChunks | None":
        """Return what the metadata of an array say; None where its chunks are laid out in a way that is not known."""
        try:
            if (folder / "zarr.json").is_file():
                return cls._of_v3(json.loads((folder / "zarr.json").read_text("utf-8")), folder, store)
            return cls._of_v2(json.loads((folder / ".zarray").read_text("utf-8")), folder, store)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, FileNotFoundError):
            return None  # Zarr itself has opened it: an extension, or a store kept elsewhere

    @classmethod
    def _of_v2(cls, meta: Mapping[str, Any], folder: Path, store: str) -> "StoredChunks":
        is_blosc = (meta["compressor"] or {}).get("id") == "blosc"
        counts, separator = _counts(meta["shape"], meta["chunks"]), meta.get("dimension_separator", ".")
        return cls(folder, store, counts, "", separator, is_blosc, meta["fill_value"])

    @classmethod
    def _of_v3(cls, meta: Mapping[str, Any], folder: Path, store: str) -> "StoredChunks":
        grid, key = meta["chunk_grid"], meta["chunk_key_encoding"]
        if grid["name"] != "regular" or key["name"] not in ("default", "v2"):
            raise ValueError(grid["name"], key["name"])
        is_default = key["name"] == "default"
        separator = key.get("configuration", {}).get("separator", "/" if is_default else ".")
        prefix, counts = "c" if is_default else "", _counts(meta["shape"], grid["configuration"]["chunk_shape"])
        is_blosc = meta["codecs"][-1]["name"] == "blosc"
        return cls(folder, store, counts, prefix, separator, is_blosc, meta["fill_value"])

    def __len__(self) -> int:
        return math.prod(self.counts)

    def check(self) -> int:
        """Return how many chunks are not stored."""
        missing = 0
        for name in self._names():
            try:
                if self.is_blosc:
                    self._check_frame(name)
                else:
                    (self.folder / name).stat()
            except FileNotFoundError:
                missing += 1
        return missing

    def _names(self) -> Iterator[str]:
        for numbers in product(*map(range, self.counts)):
            parts = [self.prefix] * bool(self.prefix) + [str(number) for number in numbers]
            yield self.separator.join(parts) or "0"  # what version 2 calls the chunk of an array without axes

    def _check_frame(self, name: str) -> None:
        path = self.folder / name
        with path.open("rb") as stream:
            header = stream.read(_BLOSC_HEADER)
            size = stream.seek(0, 2)
        promised = int.from_bytes(header[_FRAME], "little")
        if len(header) < _BLOSC_HEADER or promised != size:
            raise CalibrationError(
                f"{self.store}: chunk {name} of {self.folder.name} is damaged or truncated",
                found=f"{size} bytes",
                needed=f"{promised} bytes, as it says" if len(header) == _BLOSC_HEADER else "a whole Blosc frame",
                fix="write the store again",
            )


def _counts(shape: list[int], chunks: list[int]) -> tuple[int, ...]:
    return tuple(-(-int(length) // int(chunk)) for length, chunk in zip(shape, chunks, strict=True))


# --- A Zarr group on disk, read box by box.

MARKS: Final = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")
_PICKLE: Final = re.compile(rb'"(numcodecs[./])?pickle"')
_LIMITS: Final = ("async.concurrency", "threading.max_workers")
_THREADS: Final = 2
_SETTLING: Final = 10.0  # seconds that reads under way get to end after one has failed


def is_store(folder: Path) -> bool:
    """Whether a folder is a Zarr group or array."""
    return any((folder / mark).exists() for mark in MARKS)


class ZarrShard(ArrayShard):
    """A Zarr group; all of it, or a run of the boxes in which a level is read."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self.run: tuple[int, int] | None = None

    @property
    def files(self) -> list[Path]:
        """The folder of the store."""
        return [self.path]

    def signature(self) -> object:
        """Return the number, sizes and newest time of the files of the store; nothing of a part of it."""
        if self.run is not None:
            return None
        with readable(self.name):
            files = [path for path in sorted(self.path.rglob("*")) if not path.is_dir()]
            for path in files:
                check_file(path)
            status = [path.stat() for path in files]
        return len(status), sum(each.st_size for each in status), max((each.st_mtime_ns for each in status), default=0)

    def arrays(self, *, verify: bool) -> dict[str, Any]:
        """Return the arrays of the group with known names."""
        zarr = require("zarr", extra="zarr", purpose=f"reading the Zarr store {self.path}")
        self._refuse_pickles()
        try:
            group = zarr.open_group(str(self.path), mode="r")
            named = {name: group[name] for names in NAMES.values() for name in names if name in group}
        except MemoryError:
            raise
        except Exception as error:  # whatever its parser stumbles over
            raise self._no_group(error) from error
        for name, array in named.items():
            if not (hasattr(array, "shape") and hasattr(array, "dtype")):
                at, fix = f"{self.name}: {name}", "write it again"
                raise CalibrationError(f"{at} is not an array", found="a group", needed="an array", fix=fix)
        return named

    def _refuse_pickles(self) -> None:
        """Decoding a pickle runs what it says; some versions of Zarr have it among their codecs."""
        with readable(self.name):
            folders = [self.path, *(self.path / name for names in NAMES.values() for name in names)]
            metadata = [folder / mark for folder in folders for mark in MARKS]
            found = [path for path in metadata if path.is_file() and _PICKLE.search(path.read_bytes())]
        if found:
            raise CalibrationError(
                f"{self.name} is encoded by pickle, which runs code when it is read",
                found=f"that codec in {found[0]}",
                needed="arrays of numbers",
                fix="zarr.save_group(path, maps=maps, masks=masks)",
            )

    def _no_group(self, error: Exception) -> PostprocError:
        if isinstance(error, PermissionError):
            return cannot_read(self.name, error)
        fix = "zarr.save_group(path, maps=maps, masks=masks)"
        if (self.path / ".zarray").exists() or type(error).__name__ == "ContainsArrayError":
            return CalibrationError(f"{self.name} is not a Zarr group", found="an array", needed="a group", fix=fix)
        found = f"{type(error).__name__}: {error}"
        return CalibrationError(
            f"{self.name} cannot be read as a Zarr group", found=found, fix=f"write it again: {fix}"
        )

    def size(self, level: Level) -> int | None:
        """Return the values of a level."""
        pair = self.pair(level, verify=False)
        return 0 if pair is None else pair.place.size

    def blocks(self, level: Level, *, verify: bool) -> Iterator[Block]:
        """Yield the blocks of a level; the first pass looks at the files of its chunks before any is decoded."""
        pair = self.pair(level, verify=verify)
        if pair is not None:
            if verify and self.run is None:
                self.check(pair)
            with _few_threads(), _decodable(self.name):
                yield from box_blocks(pair.values, pair.truth, pair.place, run=self.run)

    def check(self, pair: Pair) -> None:
        """Refuse truncated chunks of a level, and warn of values that are not stored.

        Zarr leaves out chunks that hold the fill value only, which is what most masks are; maps hardly ever.
        """
        with readable(self.name):
            chunks = StoredChunks.of(self.path / pair.place.key, store=self.name)
            missing = 0 if chunks is None else chunks.check()
            if pair.truth is not None:
                truth = StoredChunks.of(self.path / pair.place.truth_key, store=self.name)
                _ = None if truth is None else truth.check()
        if chunks is not None and missing:
            message = (
                f"{self.name}: {missing} of {len(chunks)} chunks of {pair.place.key} are not stored and count as their "
                f"fill value {chunks.fill_value}"
            )
            warnings.warn(CalibrationWarning(message), stacklevel=2)


@contextmanager
def _few_threads() -> Iterator[None]:
    """Decode few chunks at once: every thread that has decoded one keeps memory of that size."""
    zarr = require("zarr", extra="zarr", purpose="reading a Zarr store")
    config = getattr(zarr, "config", None)  # version 2 has none, and decodes one chunk after the other
    with nullcontext() if config is None else config.set(dict.fromkeys(_LIMITS, _THREADS)):
        yield


@contextmanager
def _decodable(name: str) -> Iterator[None]:
    """Turn whatever decoding a damaged chunk raises into an error that names the store."""
    try:
        yield
    except (PostprocError, MemoryError):
        raise
    except Exception as error:
        _settle()
        if isinstance(error, FileNotFoundError):
            raise FileError(f"{name} is not there", found=str(error)) from error
        if isinstance(error, OSError) and error.errno is not None:
            raise cannot_read(name, error) from error
        raise damaged(name, error) from error


def _settle() -> None:
    """Let the reads end that Zarr began beside one that failed; asyncio complains of those it finds at exit.

    Their loop is no public name of Zarr: where it is not found, the complaints stay and nothing else changes.
    """
    with suppress(Exception):
        from zarr.core.sync import _get_loop

        asyncio.run_coroutine_threadsafe(_others(), _get_loop()).result(_SETTLING)


async def _others() -> None:
    here = asyncio.current_task()
    await asyncio.gather(*(task for task in asyncio.all_tasks() if task is not here), return_exceptions=True)
