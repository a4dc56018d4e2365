"""What a check feeds: adversarial raw values for a tail alone; real and synthetic inputs for a whole file."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from postproc_export.errors import FileError, PostprocError, UsageError, require
from postproc_export.float32 import as_bfloat16, rank_of
from postproc_export.images import find_samples, image_input, load_batches
from postproc_export.images.layouts import class_counts, described, spread
from postproc_export.images.preprocessing import PreprocessingSource, settled
from postproc_export.run_options import COUNT, SEED
from postproc_export.runtimes import PortInfo, Runner
from postproc_export.stats import CalibrationStats, LevelStats
from postproc_export.validation import check_file, kind_of_file, stated_twice

FloatArray: TypeAlias = NDArray[np.floating[Any]]

NEIGHBOURS: Final = 64
MODERATE: Final = 1e30  # a map of values below this does not overflow when it is summed

_NAN: Final = (0x7FC00000, 0xFFC00000, 0x7FC12345, 0x7F800001)  # quiet, negative, with a payload, signalling
_EXTREME: Final = (0x7F800000, 0x7F7FFFFF, 0x00000000, 0x00000001, 0x007FFFFF, 0x00800000)
# Infinity, the largest number, 0, the smallest and largest subnormal and the smallest normal, of either sign.
SPECIAL: Final = np.array([*_NAN, *(bits | sign for bits in _EXTREME for sign in (0, 0x80000000))], np.uint32).view(
    np.float32
)
SPECIAL.flags.writeable = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RawValues:
    """Raw values of one level, of the raw output's own type; float32 holds bfloat16, with values that bfloat16 has.

    Each special value belongs into a map of its own.
    """

    critical: FloatArray  # up to 64 float32 steps around the boundary, the threshold, min, max and 0; moderate values
    ordinary: FloatArray  # a dense sample of the range and beyond, and all magnitudes below 1e30
    rising: FloatArray  # magnitudes of 1e30 and above, of one sign each
    falling: FloatArray
    special: FloatArray  # NaN, infinities, zeros, subnormals and the largest numbers

    @property
    def all(self) -> FloatArray:
        """Every value, the special ones first."""
        return np.concatenate([self.special, self.critical, self.ordinary, self.rising, self.falling])

    @property
    def few(self) -> FloatArray:
        """The special and the critical values."""
        return np.concatenate([self.special, self.critical])


def raw_values(
    level: LevelStats, boundary: float, *, dtype: str = "float32", count: int = COUNT, seed: int = SEED
) -> RawValues:
    """Return at least `count` raw values of a level that a tail might decide wrongly.

    The boundary may be infinite; `dtype` is the type of the raw output, one of four floating-point types.
    """
    assert level.threshold is not None, "a level without a threshold has no tail"
    random = np.random.default_rng(seed)
    anchors = np.array([boundary, level.threshold, level.min, level.max, 0.0], np.float32)
    critical = np.concatenate([_around(anchor, np.arange(-NEIGHBOURS, NEIGHBOURS + 1)) for anchor in anchors])
    low, high = float(level.min) - level.span, float(level.max) + level.span
    largest = float(np.finfo(np.float32).max)
    near = _around(np.float32(boundary), random.integers(-(1 << 14), 1 << 14, count // 4))
    anything = random.integers(0, 1 << 32, count // 2, dtype=np.uint32).view(np.float32)
    drawn = np.concatenate(
        [
            np.linspace(max(low, -largest), min(high, largest), count // 2).astype(np.float32),
            near,
            anything[np.isfinite(anything)],
        ]
    )
    if dtype == "float64":
        critical = np.concatenate([critical, _between(float(boundary))])
    critical, drawn = _as_raw(critical, dtype), _as_raw(drawn, dtype)
    rising = np.concatenate([group[group.astype(np.float64) >= MODERATE] for group in (critical, drawn)])
    falling = np.concatenate([group[group.astype(np.float64) <= -MODERATE] for group in (critical, drawn)])
    return RawValues(
        critical=critical[np.abs(critical.astype(np.float64)) < MODERATE],
        ordinary=drawn[np.abs(drawn.astype(np.float64)) < MODERATE],
        rising=rising,
        falling=falling,
        special=_as_raw(SPECIAL, dtype),
    )


def maps_of(values: RawValues, *, height: int, width: int, filler: float, few: bool = False) -> FloatArray:
    """Pack raw values into maps, shape (n, height, width); each special value stands alone in a map of `filler`.

    It stands first, in the middle or last there: a runtime's reduction may treat a NaN by its place. Huge values of
    both signs never share a map, so no partial sum overflows both ways.
    """

    def fill(values: FloatArray) -> FloatArray:
        missing = np.full(-len(values) % size, filler, values.dtype)
        return np.concatenate([values, missing]).reshape(-1, size)

    size = height * width
    special = np.full((len(values.special), size), filler, values.special.dtype)
    special[np.arange(len(special)), np.arange(len(special)) % 3 * (size - 1) // 2] = values.special
    groups = [values.critical] if few else [values.critical, values.ordinary, values.rising, values.falling]
    packed = [special, *(fill(group) for group in groups if group.size)]
    return np.concatenate(packed).reshape(-1, height, width)


def _around(anchor: np.float32, steps: NDArray[np.int64]) -> NDArray[np.float32]:
    """Step through the finite float32 values near an anchor; steps beyond the largest stay there."""
    limit = 0x7F7FFFFF
    ordered = np.clip(rank_of(float(anchor)) + steps, -limit, limit)
    patterns = np.where(ordered >= 0, ordered, (-ordered) | 0x80000000)
    return patterns.astype(np.uint32).view(np.float32)


def _between(anchor: float) -> NDArray[np.float64]:
    """Return float64 values between a float32 and its neighbours: the cast decides on which side they fall."""
    if not np.isfinite(anchor):
        return np.zeros(0, np.float64)
    below, above = _around(np.float32(anchor), np.array([-1, 1])).astype(np.float64)
    parts = np.linspace(0.0, 1.0, 65)
    ties = np.array([(below + anchor) / 2, (above + anchor) / 2])
    near = np.concatenate([ties, np.nextafter(ties, -np.inf), np.nextafter(ties, np.inf)])
    return np.concatenate([below + (anchor - below) * parts, anchor + (above - anchor) * parts, near])


def _as_raw(values: FloatArray, dtype: str) -> FloatArray:
    if dtype == "bfloat16":
        return as_bfloat16(values)
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(dtype)


Feeds: TypeAlias = dict[str, NDArray[Any]]

_KNOWN_NAMES: Final = ("input", "images", "x")


@dataclass(frozen=True, slots=True)
class RealBatch:
    """What a model is fed at once: one array per input, filled up to a batch size that the model takes."""

    feeds: Feeds
    size: int
    valid: int  # how many of the samples are real
    shared: frozenset[str] = frozenset()  # inputs that have no entry per sample, and are fed as they are
    start: int = 0  # the number of the first sample

    def samples(self) -> Feeds:
        """Return what is fed without the filling."""
        return {name: array if name in self.shared else array[: self.valid] for name, array in self.feeds.items()}

    def run(self, runner: Runner) -> Feeds:
        """Run a model and leave out what came of the filling."""
        outputs = runner.run(self.feeds)
        if self.valid == self.size:
            return outputs
        return {
            name: values[: self.valid] if values.ndim and len(values) == self.size else values
            for name, values in outputs.items()
        }


@dataclass(frozen=True, slots=True)
class RealInputs:
    """Samples that a model is fed in batches of any size.

    `load` gives the arrays of the samples from one number to another, so many at a time.
    """

    count: int
    description: str  # one line: what they are, and what was done to them
    load: Callable[[int, int, int], Iterator[Feeds]]
    names: tuple[str, ...] = ()  # of the samples, where they have any
    shared: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def sample_name(self, index: int) -> str | None:
        """Return the name of a sample; None where it has none."""
        return self.names[index] if self.names else None

    def batches(self, size: int, *, start: int = 0, stop: int | None = None) -> Iterator[RealBatch]:
        """Yield batches of exactly `size` samples; the last one is filled up with its own last sample."""
        for number, feeds in enumerate(self.load(start, self.count if stop is None else min(stop, self.count), size)):
            valid = len(next(iter(feeds.values())))
            filled = feeds
            if valid < size:
                filled = {
                    name: np.concatenate([array, np.repeat(array[-1:], size - valid, axis=0)])
                    for name, array in feeds.items()
                }
            yield RealBatch({**filled, **self.shared}, size, valid, frozenset(self.shared), start + number * size)

    def at_sizes(self, sizes: Sequence[int]) -> Iterator[RealBatch]:
        """Yield every sample once: the first ones at the small sizes, the others at the largest."""
        start = 0
        for size in sizes[:-1]:
            yield from self.batches(size, start=start, stop=min(start + size, self.count))
            start += size
        if start < self.count:
            yield from self.batches(sizes[-1], start=start)


def image_inputs(
    images: str | Path,
    ports: Sequence[PortInfo],
    stats: CalibrationStats,
    preprocessing: PreprocessingSource | None,
    *,
    limit: int | None = None,
    other: bool | None = None,
) -> RealInputs:
    """Find images and settle their pre-processing as `settled` does.

    Errors are raised if there are no images, the model does not take them, or what is asked contradicts the statistics.
    """
    found = find_samples(images, labels=False)
    port = image_input(ports)
    wanted = settled(stats.details.get("preprocessing"), preprocessing, port, other=other)
    samples = spread(found, limit)

    def load(start: int, stop: int, size: int) -> Iterator[Feeds]:
        for batch in load_batches(samples[start:stop], wanted, batch_size=size):
            yield {port.name: batch.images}

    names = tuple(str(sample.image) for sample in samples)
    of_all = f" of {len(found)}" if len(samples) < len(found) else ""
    classes = described(class_counts(samples))
    count = f"{len(samples)}{of_all} images{f' ({classes})' if classes else ''}"
    return RealInputs(len(samples), f"{count}, {wanted.describe()}", load, names)


def array_inputs(
    source: str | Path | Mapping[str, NDArray[Any]], ports: Sequence[PortInfo], *, limit: int | None = None
) -> RealInputs:
    """Take arrays from an ``.npz`` file or a mapping, by the names of the model's inputs.

    For a model with one input the array may also be called ``input``, ``images`` or ``x``, or be the only one. An input
    that is declared ``[]``, or of a fixed length that is not the batch's, has no entry per sample: it is fed as it is.
    Raises FileError if the file cannot be read, UsageError if an input has no array or the arrays do not fit.
    """
    where = "the arrays" if isinstance(source, Mapping) else str(source)
    arrays = dict(source) if isinstance(source, Mapping) else _read(Path(source))
    chosen = {port.name: _of_type(_choose(arrays, port, ports, where), port, where) for port in ports}
    shared = {port.name: chosen.pop(port.name) for port in ports if _is_shared(port, chosen[port.name], ports)}
    if not chosen:
        raise UsageError(
            f"{where}: no input of the model has an entry per sample",
            found=", ".join(port.describe() for port in ports),
            needed="an input whose first axis is the batch",
        )
    lengths = {len(array) for array in chosen.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise UsageError(f"{where}: the inputs have {sorted(lengths)} samples", needed="as many of each, at least one")
    count = len(range(lengths.pop())[:limit])

    def load(start: int, stop: int, size: int) -> Iterator[Feeds]:
        for first in range(start, stop, size):
            yield {name: array[first : min(first + size, stop)] for name, array in chosen.items()}

    return RealInputs(count, f"{count} samples of {where}", load, shared=shared)


def _is_shared(port: PortInfo, array: NDArray[Any], ports: Sequence[PortInfo]) -> bool:
    """Whether an input has no axis of samples: it has none at all, or a fixed one that another input does not have."""
    size = port.size(0)
    is_fixed = size is not None and len(array) == size
    return port.rank == 0 or (is_fixed and any(other.rank != 0 and other.size(0) != size for other in ports))


def _read(path: Path) -> Feeds:
    check_file(path, what="the inputs", needed="an .npz file")
    fix = "write one with numpy.savez(path, NAME=array), an array for each input of the model"
    try:
        kind = kind_of_file(path) or "other bytes"
        if not kind.startswith("arrays"):
            raise FileError(f"{path} is not an .npz file", found=kind, needed="arrays of NumPy, by name", fix=fix)
        with path.open("rb") as stream:  # NumPy does not close a file that it cannot read
            file = np.load(stream, allow_pickle=False)
            if (twice := stated_twice(file.files)) is not None:
                raise FileError(f"{path} holds an array twice", found=twice, needed="one of each name", fix=fix)
            return {name: file[name] for name in file.files}
    except PostprocError:  # also an OSError, but says what is wrong already
        raise
    except (OSError, ValueError, AttributeError, EOFError, BadZipFile) as error:  # all that NumPy raises
        found = f"a damaged or cut off file: {error}"
        raise FileError(f"cannot read the inputs {path}", found=found, needed="an .npz file", fix=fix) from error


def _choose(arrays: Feeds, port: PortInfo, ports: Sequence[PortInfo], where: str) -> NDArray[Any]:
    names = [name for name in (port.name, *port.aliases) if name in arrays]
    if not names and len(ports) == 1:
        names = list(arrays) if len(arrays) == 1 else [name for name in _KNOWN_NAMES if name in arrays]
    if not names:
        raise UsageError(
            f"{where} has no array for the input {port.describe()}",
            found=", ".join(arrays) or "no array",
            needed=f"an array named '{port.name}'",
            fix=f"numpy.savez(path, {port.name}=array), or --images for a folder of images",
        )
    return arrays[names[0]]


def _of_type(array: NDArray[Any], port: PortInfo, where: str) -> NDArray[Any]:
    if array.ndim == 0 and port.rank != 0:
        raise UsageError(f"{where}: the array for '{port.name}' is a single number", needed=port.describe())
    found = f"{array.dtype.name} {list(array.shape)}"
    if port.rank == 0 and array.ndim:
        raise UsageError(
            f"{where}: the array for '{port.name}' has an entry per sample, and the input takes one number for all",
            found=found,
            needed=port.describe(),
            fix=f"np.savez(..., {port.name}=np.{port.dtype}(1))",
        )
    if array.dtype.name == port.dtype:
        return array
    if port.dtype == "bfloat16" and array.dtype == np.float32:
        import ml_dtypes

        return array.astype(ml_dtypes.bfloat16)
    what = f"{where}: the array for '{port.name}' has another element type"
    raise UsageError(what, found=found, needed=port.describe())


Kind: TypeAlias = Literal["unit", "small", "bytes"]

# Floats in [0, 1], [-2, 2], [0, 255]; integers below 256, 2, 256.
KINDS: Final[tuple[Kind, ...]] = ("unit", "small", "bytes")
# Sizes of open axes but the last, and of that one; None: each as large as the batch.
PAIRS: Final = ((64, 96), (128, 64), (224, 224), (256, 256), (32, 32), (512, 512), (16, 16), None)
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
    """Samples that are made up; another start or batch size gives other values."""

    ports: tuple[PortInfo, ...]  # the inputs that have to be fed
    pair: tuple[int, int] | None
    channels: int = 3
    kind: Kind = "unit"
    seed: int = 0
    count: int = 4

    def batches(self, size: int, *, start: int = 0, stop: int | None = None) -> Iterator[RealBatch]:
        """Yield batches."""
        end = self.count if stop is None else stop
        for first in range(start, end, size):
            feeds = {
                port.name: self._values(port, self._shape(port, size), (self.seed, first, size, number))
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

    def _values(self, port: PortInfo, shape: tuple[int, ...], seed: tuple[int, ...]) -> NDArray[Any]:
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
        if port.dtype == "bool":
            return np.asarray(values > 0.375)
        if not port.dtype.startswith(("float", "bfloat")):
            top = 2 if self.kind == "small" else 128 if port.dtype == "int8" else 256
            return np.asarray(np.floor(values * np.float32(top)).astype(port.dtype))
        scaled = {"unit": values, "small": 4 * values - 2, "bytes": 255 * values}[self.kind]
        if port.dtype == "bfloat16":
            return np.asarray(scaled, require("ml_dtypes", purpose="feeding bfloat16").bfloat16)
        return np.asarray(scaled, port.dtype)


def _batch_symbols(ports: Sequence[PortInfo]) -> set[str]:
    return {port.shape[0] for port in ports if port.shape and isinstance(port.shape[0], str)}


def _is_channel(axes: Sequence[int | str | None], index: int) -> bool:
    """Whether an axis is the open channel axis of [N, C, H, W]; [N, H, W, 3] has its channels last."""
    is_open = len(axes) == 4 and index == 1 and not isinstance(axes[1], int)
    return is_open and axes[3] not in _FEW
