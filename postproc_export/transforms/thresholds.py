"""A threshold per pixel, region or channel: a broadcast constant, kept in the record of a file itself."""

import base64
import binascii
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from graph_patterns import transforms as steps
from graph_patterns.expr import Table
from postproc_export.errors import FileError, UnsupportedModelError, UsageError
from postproc_export.runtimes.protocol import PortInfo
from postproc_export.transforms.step import ROUNDING, Values, refuse_unknown
from postproc_export.validation import check_file

if TYPE_CHECKING:
    from postproc_export.transforms.modules import TailTransform

_LARGEST_TABLE: Final = 1 << 22  # elements


@dataclass(frozen=True, slots=True)
class Thresholds:
    """A threshold per pixel, region or channel: the map becomes its distance from it."""

    shape: tuple[int, ...]
    content: bytes
    name: ClassVar[str] = "thresholds"

    @property
    def values(self) -> NDArray[np.float32]:
        """The thresholds, float32, raw units."""
        return np.frombuffer(self.content, "<f4").reshape(self.shape)

    @property
    def channels(self) -> int:
        """How many channels a map has to have."""
        return self.shape[0] if len(self.shape) == 3 else 1

    @property
    def parameters(self) -> dict[str, Any]:
        """Shape and values, so that a record needs no other file."""
        packed = base64.b64encode(zlib.compress(self.content, 9)).decode("ascii")
        return {"shape": list(self.shape), "zlib": packed}

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Self:
        """Read ``file``, a .npy of floats [H, W], [C] or [C, H, W] with axes of size 1 where it repeats."""
        if "zlib" in given:
            return cls._unpacked(given)
        refuse_unknown(cls.name, given, ("file",))
        if "file" not in given:
            raise UsageError(f"the tail '{cls.name}' has no file", needed="thresholds:file=thresholds.npy")
        path = Path(str(given["file"]))
        check_file(path, what="the thresholds", needed="a .npy file")
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise FileError(f"cannot read the thresholds {path}", found=str(error), needed="a .npy file") from error
        return cls.of(array)

    @classmethod
    def of(cls, array: Any) -> Self:
        """Take an array; one of a single axis has a threshold per channel."""
        found = np.asarray(array)
        if found.dtype.kind not in "fiu" or not 1 <= found.ndim <= 3 or not 0 < found.size <= _LARGEST_TABLE:
            raise UsageError(
                f"the tail '{cls.name}' cannot use these values",
                found=f"{found.dtype} {list(found.shape)}",
                needed=f"numbers [H, W], [C] or [C, H, W], at most {_LARGEST_TABLE:,}",
            )
        values = found.astype("<f4")
        values = values.reshape(-1, 1, 1) if values.ndim == 1 else values
        if not np.isfinite(values).all():
            raise UsageError(f"the tail '{cls.name}' has a threshold that is not finite")
        return cls(values.shape, values.tobytes())

    @classmethod
    def _unpacked(cls, given: Mapping[str, Any]) -> Self:
        refuse_unknown(cls.name, given, ("shape", "zlib"))
        try:
            shape = tuple(int(size) for size in given["shape"])
            content = zlib.decompressobj().decompress(base64.b64decode(given["zlib"]), 4 * _LARGEST_TABLE)
            return cls.of(np.frombuffer(content, "<f4").reshape(shape))
        except (KeyError, TypeError, ValueError, zlib.error, binascii.Error) as error:
            raise UsageError(f"the tail '{cls.name}' is damaged", found=str(error)) from error

    def apply(self, values: Values) -> Values:
        """Subtract the thresholds; several channels need a map that has as many."""
        maps, port, rank = values.need_map(self.name)
        fits = (rank == 4 or self.channels == 1) and all(
            size in (1, found) or found is None
            for size, found in zip(self.shape[-2:], (port.size(-2), port.size(-1)), strict=True)
        )
        declared = port.size(1) if rank == 4 else 1
        if not fits or declared not in (None, self.channels):
            raise UnsupportedModelError(
                f"the thresholds {list(self.shape)} do not fit the map", found=port.describe(), needed="the same sizes"
            )
        table = Table(self.content, self.shape[-2:] if rank == 3 else self.shape, "thresholds")
        expr = steps.above_thresholds(maps, table, channels=self.channels)
        assert port.shape is not None, "a map of unknown rank is refused when it is selected"
        made = PortInfo(port.name, port.dtype, (port.shape[0], 1, *port.shape[2:]) if rank == 4 else port.shape)
        return replace(values, map=expr, map_port=made)

    def module(self) -> "TailTransform":
        """Return `AboveThresholds`."""
        from postproc_export.transforms.modules import AboveThresholds

        return AboveThresholds(self.values)

    def bound(self, largest: float, size: tuple[int, int]) -> tuple[float, float]:
        """A subtraction; two roundings where a runtime folds it into what stands before it."""
        largest += float(np.abs(self.values).max())
        return largest, 2 * ROUNDING * largest
