"""Synthetic inputs: seeded values that look like images, at a batch size and at sizes of the axes that are open."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from postproc_export.errors import require
from postproc_export.parity.fed.real_inputs import RealBatch
from postproc_export.runtimes import PortInfo

Kind: TypeAlias = Literal["unit", "small", "bytes"]
Pair: TypeAlias = tuple[int, int] | None
"""Sizes of open axes but the last, and of that one; None: each as large as the batch."""

KINDS: Final[tuple[Kind, ...]] = ("unit", "small", "bytes")
"""Floats in [0, 1], [-2, 2], [0, 255]; integers below 256, 2, 256."""

PAIRS: Final[tuple[Pair, ...]] = ((64, 96), (128, 64), (224, 224), (256, 256), (32, 32), (512, 512), (16, 16), None)
CHANNELS: Final = (3, 1)
_FEW: Final = (1, 3, 4)
_BLOCK: Final = 8
_UNKNOWN: Final = (None, None, None, None)  # an input of unknown rank is taken for images


def unfit(port: PortInfo) -> bool:
    """Whether nobody can tell what an input of this element type is to be fed: strings, sequences and the like."""
    names = ("bool", "bfloat16", "float16", "float32", "float64", "int8", "int16", "int32", "int64")
    return port.dtype not in (*names, "uint8", "uint16", "uint32", "uint64")


def has_open_axes(ports: Sequence[PortInfo]) -> bool:
    """Whether some axis besides that of the batch is open."""
    firsts = _batch_symbols(ports)
    axes = [axis for port in ports for axis in (_UNKNOWN if port.shape is None else port.shape)[1:]]
    return any(not isinstance(axis, int) and axis not in firsts for axis in axes)


def has_open_channels(ports: Sequence[PortInfo]) -> bool:
    """Whether some input may have its channels on an open second axis."""
    return any(_is_channel(_UNKNOWN if port.shape is None else port.shape, 1) for port in ports)


@dataclass(frozen=True, slots=True)
class SyntheticInputs:
    """Samples that are made up; a `RealInputs`.

    Parameters
    ----------
    ports
        The inputs that have to be fed.
    pair, channels
        Sizes of open axes.
    kind, seed
        What the values are; another start or batch size gives other values.
    count
        How many samples there are.
    """

    ports: tuple[PortInfo, ...]
    pair: Pair
    channels: int = 3
    kind: Kind = "unit"
    seed: int = 0
    count: int = 4

    def describe(self) -> str:
        """Return one line."""
        return f"synthetic inputs, seed {self.seed}: {self.shapes(1)}"

    def sample_name(self, index: int) -> str | None:
        """Return None: what is made up has no name."""
        return None

    def batches(self, size: int, *, start: int = 0, stop: int | None = None) -> Iterator[RealBatch]:
        """Yield batches."""
        end = self.count if stop is None else stop
        for first in range(start, end, size):
            feeds = {
                port.name: _values(port, self._shape(port, size), self.kind, (self.seed, first, size, number))
                for number, port in enumerate(self.ports)
            }
            shared = frozenset(name for name, values in feeds.items() if values.shape[:1] != (size,))
            yield RealBatch(feeds, size, size, shared)

    def shapes(self, batch: int) -> str:
        """Return what is fed at a batch size, for people."""
        return ", ".join(f"{port.name} {list(self._shape(port, batch))}" for port in self.ports)

    def elements(self, batch: int) -> int:
        """Return how many numbers are fed at a batch size."""
        return sum(int(np.prod(self._shape(port, batch), dtype=np.float64)) for port in self.ports)

    def _shape(self, port: PortInfo, batch: int) -> tuple[int, ...]:
        firsts = _batch_symbols(self.ports)
        axes = _UNKNOWN if port.shape is None else port.shape
        last = max((index for index, axis in enumerate(axes) if not isinstance(axis, int)), default=0)
        shape = []
        for index, axis in enumerate(axes):
            if isinstance(axis, int):
                shape.append(axis)
            elif index and _is_channel(axes, index):
                shape.append(self.channels)
            elif index == 0 or axis in firsts or self.pair is None:
                shape.append(batch)
            else:
                shape.append(self.pair[index == last])
        return tuple(shape)


def _batch_symbols(ports: Sequence[PortInfo]) -> set[str]:
    return {port.shape[0] for port in ports if port.shape and isinstance(port.shape[0], str)}


def _is_channel(axes: Sequence[int | str | None], index: int) -> bool:
    """Whether an axis is the open channel axis of [N, C, H, W]; [N, H, W, 3] has its channels last."""
    is_open = len(axes) == 4 and index == 1 and not isinstance(axes[1], int)
    return is_open and axes[3] not in _FEW


def _values(port: PortInfo, shape: tuple[int, ...], kind: Kind, seed: tuple[int, ...]) -> NDArray[Any]:
    """Return blocks of 8 x 8 with noise on them, brighter or darker from sample to sample."""
    random = np.random.default_rng(seed)
    values = random.random(shape, np.float32)
    if len(shape) > 2:
        coarse = random.random((*shape[:-2], *(-(-size // _BLOCK) for size in shape[-2:])), np.float32)
        blocks = coarse.repeat(_BLOCK, axis=-2).repeat(_BLOCK, axis=-1)[..., : shape[-2], : shape[-1]]
        values = np.float32(0.75) * blocks + np.float32(0.25) * values
    if shape:
        bright = random.random((shape[0], *[1] * (len(shape) - 1)), np.float32)
        values = values * (np.float32(0.5) + np.float32(0.5) * bright)
    return _typed(values, port.dtype, kind)


def _typed(values: NDArray[np.float32], dtype: str, kind: Kind) -> NDArray[Any]:
    if dtype == "bool":
        return np.asarray(values > 0.375)
    if not dtype.startswith(("float", "bfloat")):
        top = 2 if kind == "small" else 128 if dtype == "int8" else 256
        return np.asarray(np.floor(values * np.float32(top)).astype(dtype))
    scaled = {"unit": values, "small": 4 * values - 2, "bytes": 255 * values}[kind]
    if dtype == "bfloat16":
        return np.asarray(scaled, require("ml_dtypes", extra="openvino", purpose="feeding bfloat16").bfloat16)
    return np.asarray(scaled, dtype)
