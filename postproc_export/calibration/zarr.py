"""A Zarr group on disk, read box by box once the files of its chunks have been checked."""

import asyncio
import json
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import product
from pathlib import Path
from typing import Any, Final

from postproc_export.calibration.arrays import Block, Pair, box_blocks
from postproc_export.calibration.shards import MEANING, FileShard, cannot_read, damaged, readable
from postproc_export.calibration.statistics import CalibrationWarning
from postproc_export.errors import CalibrationError, FileError, PostprocError, require
from postproc_export.stats import Level
from postproc_export.validation import check_file

_BLOSC_HEADER: Final = 16  # bytes before the blocks of a Blosc frame
_FRAME: Final = slice(12, 16)  # its length, header included, little endian


def _layout(folder: Path) -> dict[str, Any] | None:
    """Return how the metadata of an array say that its chunks (its shards, where it has them) are stored.

    Those are how many there are along every axis, how their files are named, whether each is a Blosc frame, and the
    value of elements that are not stored. None: they are laid out in a way that is not known.
    """
    try:
        if (folder / "zarr.json").is_file():
            meta = json.loads((folder / "zarr.json").read_text("utf-8"))
            grid, key = meta["chunk_grid"], meta["chunk_key_encoding"]
            if grid["name"] != "regular" or key["name"] not in ("default", "v2"):
                return None
            is_default = key["name"] == "default"
            separator = key.get("configuration", {}).get("separator", "/" if is_default else ".")
            prefix, chunks = "c" if is_default else "", grid["configuration"]["chunk_shape"]
            is_blosc = meta["codecs"][-1]["name"] == "blosc"
        else:
            meta = json.loads((folder / ".zarray").read_text("utf-8"))
            prefix, chunks, separator = "", meta["chunks"], meta.get("dimension_separator", ".")
            is_blosc = (meta["compressor"] or {}).get("id") == "blosc"
        counts = [-(-int(length) // int(chunk)) for length, chunk in zip(meta["shape"], chunks, strict=True)]
        naming = {"counts": counts, "prefix": prefix, "separator": separator}
        return {**naming, "is_blosc": is_blosc, "fill_value": meta["fill_value"]}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, FileNotFoundError):
        return None  # Zarr itself has opened it: an extension, or a store kept elsewhere


def _check_chunks(folder: Path, *, store: str) -> str | None:
    """Return which chunks of an array are not stored, in words, None where all are.

    Raises a CalibrationError where a Blosc frame is not as long as it says: decoding it may read beyond its end, which
    ends the process.
    """
    layout = _layout(folder)
    if layout is None:
        return None
    missing = 0
    for numbers in product(*map(range, layout["counts"])):
        parts = [layout["prefix"]] * bool(layout["prefix"]) + [str(number) for number in numbers]
        name = layout["separator"].join(parts) or "0"  # what version 2 calls the chunk of an array without axes
        try:
            if layout["is_blosc"]:
                _check_frame(folder, name, store)
            else:
                (folder / name).stat()
        except FileNotFoundError:
            missing += 1
    total, fill = math.prod(layout["counts"]), layout["fill_value"]
    if not missing:
        return None
    return f"{missing} of {total} chunks of {folder.name} are not stored and count as their fill value {fill}"


def _check_frame(folder: Path, name: str, store: str) -> None:
    with (folder / name).open("rb") as stream:
        header = stream.read(_BLOSC_HEADER)
        size = stream.seek(0, 2)
    promised = int.from_bytes(header[_FRAME], "little")
    if len(header) < _BLOSC_HEADER or promised != size:
        raise CalibrationError(
            f"{store}: chunk {name} of {folder.name} is damaged or truncated",
            found=f"{size} bytes",
            needed=f"{promised} bytes, as it says" if len(header) == _BLOSC_HEADER else "a whole Blosc frame",
            fix="write the store again",
        )


MARKS: Final = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")
_PICKLE: Final = re.compile(rb'"(numcodecs[./])?pickle"')
_LIMITS: Final = ("async.concurrency", "threading.max_workers")
_THREADS: Final = 2
_SETTLING: Final = 10.0  # seconds that reads under way get to end after one has failed


def is_store(folder: Path) -> bool:
    """Whether a folder is a Zarr group or array."""
    return any((folder / mark).exists() for mark in MARKS)


class ZarrShard(FileShard):
    """A Zarr group; all of it, or a run of the boxes in which a level is read."""

    run: tuple[int, int] | None = None

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
        zarr = require("zarr", purpose=f"reading the Zarr store {self.path}")
        self._refuse_pickles()
        try:
            group = zarr.open_group(str(self.path), mode="r")
            named = {name: group[name] for name in MEANING if name in group}
        except MemoryError:
            raise
        except Exception as error:  # whatever its parser stumbles over
            if isinstance(error, PermissionError):
                raise cannot_read(self.name, error) from error
            fix = "zarr.save_group(path, maps=maps, masks=masks)"
            rows = {"found": "an array", "needed": "a group", "fix": fix}
            if (self.path / ".zarray").exists() or type(error).__name__ == "ContainsArrayError":
                raise CalibrationError(f"{self.name} is not a Zarr group", **rows) from error
            rows = {"found": f"{type(error).__name__}: {error}", "fix": f"write it again: {fix}"}
            raise CalibrationError(f"{self.name} cannot be read as a Zarr group", **rows) from error
        for name, array in named.items():
            if not (hasattr(array, "shape") and hasattr(array, "dtype")):
                at, fix = f"{self.name}: {name}", "write it again"
                raise CalibrationError(f"{at} is not an array", found="a group", needed="an array", fix=fix)
        return named

    def _refuse_pickles(self) -> None:
        """Decoding a pickle runs what it says; some versions of Zarr have it among their codecs."""
        with readable(self.name):
            folders = [self.path, *(self.path / name for name in MEANING)]
            metadata = [folder / mark for folder in folders for mark in MARKS]
            found = [path for path in metadata if path.is_file() and _PICKLE.search(path.read_bytes())]
        if found:
            raise CalibrationError(
                f"{self.name} is encoded by pickle, which runs code when it is read",
                found=f"that codec in {found[0]}",
                needed="arrays of numbers",
                fix="zarr.save_group(path, maps=maps, masks=masks)",
            )

    def blocks(self, level: Level, *, verify: bool) -> Iterator[Block]:
        """Yield the blocks of a level; the first pass looks at the files of its chunks before any is decoded."""
        pair = self.pair(level, verify=verify)
        if pair is not None:
            if verify and self.run is None:
                self.check(pair)
            # few chunks at once: every thread that has decoded one keeps memory of that size; version 2 decodes in turn
            config = getattr(require("zarr", purpose="reading a Zarr store"), "config", None)
            limits = nullcontext() if config is None else config.set(dict.fromkeys(_LIMITS, _THREADS))
            with limits, _decodable(self.name):
                yield from box_blocks(pair, run=self.run)

    def check(self, pair: Pair) -> None:
        """Refuse truncated chunks of a level, and warn of values that are not stored.

        Zarr leaves out chunks that hold the fill value only, which is what most masks are; maps hardly ever.
        """
        with readable(self.name):
            missing = _check_chunks(self.path / pair.place.key, store=self.name)
            if pair.truth is not None:
                _check_chunks(self.path / pair.place.truth_key, store=self.name)
        if missing is not None:
            warnings.warn(CalibrationWarning(f"{self.name}: {missing}"), stacklevel=2)


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
