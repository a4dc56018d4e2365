"""The values of a one-shot stream, to be read again: in memory while they are few, then in an unlinked file."""

import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from postproc_export.calibration.arrays import AnyArray, Block, Place
from postproc_export.calibration.counting import Divide, Extremes, Part, is_wide, to_float32_array
from postproc_export.calibration.table import Flags
from postproc_export.calibration.tally import Chunk, Tally
from postproc_export.errors import FileError

BLOCK: Final = 1 << 18
IN_MEMORY: Final = 1 << 24  # bytes of values


class Spool:
    """Values and ground truth in the order they came; the file has no name, so it is gone when the process is.

    float32 values take 4.1 bytes each, wider types 8.1: they are kept as they came, since rounding to float32 may merge
    values.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._full: list[tuple[AnyArray, AnyArray]] = []
        self._kept = 0
        self._index: list[tuple[int, int, str]] = []
        self._end = 0
        self._file: IO[bytes] | None = None
        self._values: AnyArray = np.empty(0, dtype=np.float32)
        self._truth: Flags = np.empty(0, dtype=np.bool_)
        self._held = 0

    @property
    def on_disk(self) -> bool:
        """Whether some of the values are in the temporary file."""
        return self._file is not None

    def append(self, values: AnyArray, truth: Flags | None) -> None:
        """Keep a flat run of values, float32 or float64."""
        if values.dtype != self._values.dtype or not self._values.size:
            self._seal()
            self._values, self._truth = np.empty(BLOCK, dtype=values.dtype), np.empty(BLOCK, dtype=np.bool_)
        start = 0
        while start < values.size:
            size = min(values.size - start, BLOCK - self._held)
            self._values[self._held : self._held + size] = values[start : start + size]
            self._truth[self._held : self._held + size] = False if truth is None else truth[start : start + size]
            self._held += size
            start += size
            if self._held == BLOCK:
                self._seal()

    def _seal(self) -> None:
        if not self._held:
            return
        values, packed = self._values[: self._held], np.packbits(self._truth[: self._held])
        if self._kept + values.nbytes <= IN_MEMORY:
            self._full.append((values.copy(), packed))
            self._kept += values.nbytes
        else:
            self._write(values, packed)
        self._held = 0

    def _write(self, values: AnyArray, packed: AnyArray) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - lives as long as the spool
                weakref.finalize(self, self._file.close)
            written = 0
            for part in (values.data.cast("B"), packed.data.cast("B")):
                written += _write_all(self._file.fileno(), part, self._end + written)
        except OSError as error:
            raise FileError(
                f"the spool in {self._folder or tempfile.gettempdir()} cannot be written: {error.strerror}",
                found=f"{self._end} bytes written so far",
                needed="4.1 bytes per value (8.1 for float64)",
                fix="give a folder with more room (spool_dir=), calibrate from files, or use exact=False",
            ) from error
        self._index.append((self._end, values.size, values.dtype.str))
        self._end += written

    def blocks(self, *, labelled: bool) -> Iterator[Block]:
        """Yield everything that was appended; may be called again and again, and between appends."""
        place = Place("the calibrator", "values", "truth", (1,))
        for values, packed in self._full:
            yield Block(values, np.unpackbits(packed, count=values.size).view(np.bool_) if labelled else None, place, 0)
        for offset, size, dtype in self._index:
            values, packed = self._read(offset, size, np.dtype(dtype))
            yield Block(values, np.unpackbits(packed, count=size).view(np.bool_) if labelled else None, place, 0)
        if self._held:
            yield Block(self._values[: self._held], self._truth[: self._held] if labelled else None, place, 0)

    def _read(self, offset: int, size: int, dtype: "np.dtype[Any]") -> tuple[AnyArray, AnyArray]:
        assert self._file is not None, "the index is empty without a file"
        values_bytes, packed_bytes = size * dtype.itemsize, -(-size // 8)
        raw = np.empty(values_bytes + packed_bytes, dtype=np.uint8)
        done = 0
        while done < raw.size:
            step = os.preadv(self._file.fileno(), [raw.data[done:]], offset + done)
            if step == 0:
                raise FileError("the spool file of the calibrator was truncated", fix="calibrate again")
            done += step
        return raw[:values_bytes].view(dtype), raw[values_bytes:]

    def close(self) -> None:
        """Forget everything and give the disk space back."""
        if self._file is not None:
            self._file.close()
        self.__init__(self._folder)  # type: ignore[misc]


def _write_all(descriptor: int, part: memoryview, offset: int) -> int:
    done = 0
    while done < len(part):
        done += os.pwrite(descriptor, part[done:], offset + done)
    return done


class LevelState:
    """What a `Calibrator` has seen of one level: a tally, and the values to be read again."""

    def __init__(self, spool: Spool | None) -> None:
        self.tally = Tally()
        self.spool = spool
        self.is_broken = False

    def absorb(self, chunks: Iterable[Chunk]) -> None:
        """Count checked chunks and keep their values."""
        self.is_broken = True  # until all of it is kept: after a full disk the spool and the counts disagree
        for chunk in chunks:
            if self.spool is not None:
                self.spool.append(_storable(chunk), chunk.truth)
            self.tally.add(chunk)
        self.is_broken = False

    def merge(self, other: "LevelState") -> None:
        """Take over the values and counts of another level."""
        self.is_broken = True
        if self.spool is not None and other.spool is not None:
            for block in other.spool.blocks(labelled=True):
                self.spool.append(block.values, block.truth)
        self.tally.merge(other.tally)
        self.is_broken = False

    def ask(self, work: Divide | Extremes) -> Any:
        """Return the answer of a pass over every value."""
        assert self.spool is not None, "a level without a spool is not read again"
        return work.run(Part(self.spool.blocks(labelled=bool(self.tally.labelled))))


def _storable(chunk: Chunk) -> AnyArray:
    """Return the values to keep: as they came where float64 holds them, so that merged values can be noticed."""
    if not is_wide(chunk.original.dtype):
        return chunk.values
    wide: AnyArray = chunk.original.astype(np.float64)
    return wide if np.array_equal(to_float32_array(wide), chunk.values) else chunk.values
