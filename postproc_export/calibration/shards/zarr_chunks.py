"""The files of the chunks of a Zarr array: which are there, and whether each is as long as it says."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

from postproc_export.errors import CalibrationError

_BLOSC_HEADER: Final = 16  # bytes before the blocks of a Blosc frame
_FRAME: Final = slice(12, 16)  # its length, header included, little endian


@dataclass(frozen=True, slots=True)
class StoredChunks:
    """The chunks of an array, or its shards where it has them.

    Parameters
    ----------
    folder, store
        Where the array is, and the store as messages name it.
    counts
        Number of chunks along every axis.
    prefix, separator
        What stands before the numbers in the name of a chunk, and between them.
    is_blosc
        Whether each file is a Blosc frame.
    fill_value
        What elements have that are not stored.
    """

    folder: Path
    store: str
    counts: tuple[int, ...]
    prefix: str
    separator: str
    is_blosc: bool
    fill_value: object

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
        """Return how many chunks are not stored.

        Raises
        ------
        CalibrationError
            If a Blosc frame is not as long as it says: decoding it may read beyond its end, which ends the process.
        """
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
