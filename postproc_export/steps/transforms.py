"""The shipped transforms: their parameters, raw values to raw values as expressions, how far runtimes may differ."""

import base64
import binascii
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from graph_patterns import transforms as steps
from graph_patterns.expr import Expr, FixedTensor, Ints, call, reshape, shape_of
from postproc_export.errors import FileError, UnsupportedModelError, UsageError
from postproc_export.ports import Axis, PortInfo, channel_axis, shape_problem
from postproc_export.record import TailSpec, parse_tails
from postproc_export.stats import LEVELS, Level
from postproc_export.validation import check_file, close_to

if TYPE_CHECKING:
    from postproc_export.steps.modules import TailTransform


ROUNDING: Final = 2.0**-24  # largest relative error of one rounding to float32


Values = Mapping[str, tuple[Expr, PortInfo]]
"""What a chain has at one point: float32 expressions of ``score`` and ``map``, the model's input as ``image`` for its
height and width alone, and what is declared of each."""


def _map_of(values: Values, name: str, *, channels: int = 1) -> tuple[Expr, PortInfo, int]:
    """Return the map, its port and its rank, or refuse a model without one, or with other channels."""
    expr, port = values.get("map", (None, None))
    if expr is None or port is None or port.rank is None:
        raise UnsupportedModelError(f"the step '{name}' needs an anomaly map", found="a model with a score only")
    if port.rank == 4 and port.size(1) not in (None, channels):
        needed = "a map of one channel" if channels == 1 else f"a map of {channels} channels"
        raise UnsupportedModelError(
            f"the step '{name}' does not fit the anomaly map", found=port.describe(), needed=needed
        )
    return expr, port, port.rank


RAW: Final[Mapping[str, Level]] = {"score": "image", "map": "pixel"}


class Transform(ABC):
    """A step before the threshold."""

    __slots__ = ()
    name: ClassVar[str]
    rounds: ClassVar[bool] = True
    """Whether values behind it may be others than the model's own: if not, they are of its element type still."""

    @property
    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """The parameters as JSON values."""

    @classmethod
    @abstractmethod
    def parse(cls, given: Mapping[str, Any]) -> Self:
        """Read parameters, as text of the command line or as JSON values."""

    def shown(self, port: PortInfo) -> PortInfo:
        """Return the raw output that it makes of one, as far as that decides which outputs can be raw ones."""
        return port

    def settled(self, raw: Mapping[Level, PortInfo]) -> "Iterator[Transform]":
        """Yield what it is for the raw outputs of one model, or refuse these."""
        yield self

    @abstractmethod
    def apply(self, values: Values) -> Values:
        """Return the values behind it, or refuse a model that it does not fit."""

    @abstractmethod
    def module(self) -> "TailTransform":
        """Return its eager twin."""

    @abstractmethod
    def bound(self, largest: float, size: tuple[int, int]) -> tuple[float, float]:
        """Return the largest magnitude behind it, and what two implementations in float32 may differ by more."""


class Exact(Transform):
    """A step that takes each value alone and rounds nothing: values in files can go through it as well as a model's."""

    __slots__ = ()
    rounds: ClassVar[bool] = False

    @abstractmethod
    def of_values(self, level: Level, values: NDArray[Any]) -> NDArray[Any]:
        """Return values of a level, of any shape and real type, behind it: of the same type, or float32."""


def refuse_unknown(name: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Refuse parameters that a transform does not have."""
    unknown = [key for key in given if key not in known]
    if unknown:
        near = close_to(unknown[0], known)
        fix = f"--step {name}:{near[0]}={given[unknown[0]]}" if near else "leave it out"
        raise UsageError(
            f"the step '{name}' has no parameter '{unknown[0]}'", needed=", ".join(known) or "none", fix=fix
        )


def number(name: str, key: str, value: Any, *, low: float, high: float) -> float:
    """Return a parameter that is a number in a range."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = float("nan")
    if not low <= found <= high:
        needed, fix = f"a number in [{low:g}, {high:g}]", f"such as --step {name}:{key}={high:g}"
        raise UsageError(f"the step '{name}': {key} is {value!r}", needed=needed, fix=fix)
    return found


def whole(name: str, key: str, value: Any) -> int:
    """Return a parameter that is a whole number of at least 1."""
    text = str(value)
    if not text.isdecimal() or not 1 <= int(text) <= 2**31 - 1:
        fix = f"such as --step {name}:{key}=20"
        raise UsageError(f"the step '{name}': {key} is {value!r}", needed="a whole number of at least 1", fix=fix)
    return int(text)


_LARGEST_TABLE: Final = 1 << 22  # elements


@dataclass(frozen=True, slots=True)
class Thresholds(Transform):
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
            raise UsageError(f"the step '{cls.name}' has no file", needed="thresholds:file=thresholds.npy")
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
                f"the step '{cls.name}' cannot use these values",
                found=f"{found.dtype} {list(found.shape)}",
                needed=f"numbers [H, W], [C] or [C, H, W], at most {_LARGEST_TABLE:,}",
            )
        values = found.astype("<f4")
        values = values.reshape(-1, 1, 1) if values.ndim == 1 else values
        if not np.isfinite(values).all():
            raise UsageError(f"the step '{cls.name}' has a threshold that is not finite")
        return cls(values.shape, values.tobytes())

    @classmethod
    def _unpacked(cls, given: Mapping[str, Any]) -> Self:
        refuse_unknown(cls.name, given, ("shape", "zlib"))
        try:
            shape = tuple(int(size) for size in given["shape"])
            content = zlib.decompressobj().decompress(base64.b64decode(given["zlib"]), 4 * _LARGEST_TABLE)
            return cls.of(np.frombuffer(content, "<f4").reshape(shape))
        except (KeyError, TypeError, ValueError, zlib.error, binascii.Error) as error:
            raise UsageError(f"the step '{cls.name}' is damaged", found=str(error)) from error

    def shown(self, port: PortInfo) -> PortInfo:
        """Return a map that has as many channels as one of a single channel."""
        if port.shape is None or port.rank != 4 or port.size(1) != self.channels:
            return port
        return port._replace(shape=(port.shape[0], 1, *port.shape[2:]))

    def apply(self, values: Values) -> Values:
        """Subtract the thresholds; several channels need a map that has as many."""
        maps, port, rank = _map_of(values, self.name, channels=self.channels)
        fits = (rank == 4 or self.channels == 1) and all(
            size in (1, found) or found is None
            for size, found in zip(self.shape[-2:], (port.size(-2), port.size(-1)), strict=True)
        )
        if not fits:
            raise UnsupportedModelError(
                f"the thresholds {list(self.shape)} do not fit the map", found=port.describe(), needed="the same sizes"
            )
        table = FixedTensor(self.content, self.shape[-2:] if rank == 3 else self.shape, "thresholds")
        expr = steps.above_thresholds(maps, table, channels=self.channels)
        assert port.shape is not None, "a map of unknown rank is refused when it is selected"
        made = PortInfo(port.name, port.dtype, (port.shape[0], 1, *port.shape[2:]) if rank == 4 else port.shape)
        return {**values, "map": (expr, made)}

    def module(self) -> "TailTransform":
        """Return `AboveThresholds`."""
        from postproc_export.steps.modules import AboveThresholds

        return AboveThresholds(self.values)

    def bound(self, largest: float, size: tuple[int, int]) -> tuple[float, float]:
        """A subtraction; two roundings where a runtime folds it into what stands before it."""
        largest += float(np.abs(self.values).max())
        return largest, 2 * ROUNDING * largest


class _Numbers(Transform):
    """A transform whose parameters are attributes of the same names: numbers, None for one that is not set."""

    __slots__ = ()
    keys: ClassVar[tuple[str, ...]]

    @property
    def parameters(self) -> dict[str, Any]:
        """The numbers that are set."""
        return {key: getattr(self, key) for key in self.keys if getattr(self, key) is not None}

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Self:
        """Read parameters; one that the transform does not have is refused."""
        refuse_unknown(cls.name, given, cls.keys)
        return cls._read(given)

    @classmethod
    @abstractmethod
    def _read(cls, given: Mapping[str, Any]) -> Self:
        """Read the parameters that are there."""


@dataclass(frozen=True, slots=True)
class Gaussian(_Numbers):
    """Smoothing of the map with Anomalib's kernel."""

    sigma: float  # pixels
    name: ClassVar[str] = "gaussian"
    keys: ClassVar[tuple[str, ...]] = ("sigma",)

    @classmethod
    def _read(cls, given: Mapping[str, Any]) -> Self:
        """Read ``sigma``, pixels, in (0, 100]; default 4, Anomalib's."""
        return cls(number(cls.name, "sigma", given.get("sigma", 4.0), low=0.05, high=100.0))

    def apply(self, values: Values) -> Values:
        """Smooth the map; a static one has to exceed the kernel's radius in both directions."""
        maps, port, rank = _map_of(values, self.name)
        radius = steps.gaussian_radius(self.sigma)
        sizes = port.size(-2), port.size(-1)
        if any(size is not None and size <= radius for size in sizes):
            raise UnsupportedModelError(
                f"the step '{self.name}' mirrors {radius} pixels at each edge, and the map does not have them",
                found=port.describe(),
                needed=f"height and width of {radius + 1} or more",
                fix=f"a smaller sigma than {self.sigma:g}",
            )
        is_static = None not in sizes
        return {**values, "map": (steps.smoothed(maps, sigma=self.sigma, rank=rank, is_static=is_static), port)}

    def module(self) -> "TailTransform":
        """Return `GaussianSmoothing`."""
        from postproc_export.steps.modules import GaussianSmoothing

        return GaussianSmoothing(self.sigma)

    def bound(self, largest: float, size: tuple[int, int]) -> tuple[float, float]:
        """Two passes of n products and sums in each implementation, with weights that sum to 1."""
        taps = 2 * steps.gaussian_radius(self.sigma) + 1
        return largest, 4 * (taps + 1) * ROUNDING * largest


@dataclass(frozen=True, slots=True)
class TopK(_Numbers):
    """The score as the mean of the highest pixels."""

    k: int  # pixels
    name: ClassVar[str] = "top-k"
    keys: ClassVar[tuple[str, ...]] = ("k",)

    @classmethod
    def _read(cls, given: Mapping[str, Any]) -> Self:
        """Read ``k``, a number of pixels of at least 1."""
        return cls(whole(cls.name, "k", given.get("k")))

    def apply(self, values: Values) -> Values:
        """Put the mean in the place of the score, in its shape; a static map has to have `k` pixels."""
        maps, port, rank = _map_of(values, self.name)
        height, width = port.size(-2), port.size(-1)
        is_static = height is not None and width is not None
        if height is not None and width is not None and self.k > height * width:
            raise UnsupportedModelError(
                f"the step '{self.name}' takes {self.k} pixels, and the map has fewer",
                found=port.describe(),
                needed=f"k of at most {height * width}",
            )
        mean = steps.top_mean(maps, k=self.k, rank=rank, is_static=is_static)
        if "score" in values:
            score, declared = values["score"]
            return {**values, "score": (reshape(mean, shape_of(score)), declared)}
        shape = None if port.shape is None else port.shape[:1]
        return {**values, "score": (mean, PortInfo("pred_score", "float32", shape))}

    def module(self) -> "TailTransform":
        """Return `TopKMean`."""
        from postproc_export.steps.modules import TopKMean

        return TopKMean(self.k)

    def bound(self, largest: float, size: tuple[int, int]) -> tuple[float, float]:
        """Sums of k values in each implementation, and a division."""
        return largest, 2 * (min(self.k, size[0] * size[1]) + 1) * ROUNDING * largest


@dataclass(frozen=True, slots=True)
class Resize(_Numbers):
    """The map in the size of the model's input, or in a fixed one."""

    height: int | None = None  # neither of the two where it is the input's
    width: int | None = None
    name: ClassVar[str] = "resize"
    keys: ClassVar[tuple[str, ...]] = ("height", "width")

    @classmethod
    def _read(cls, given: Mapping[str, Any]) -> Self:
        """Read ``height`` and ``width``, pixels; neither for the size of the model's input."""
        if len(given) == 1:
            raise UsageError(f"the step '{cls.name}' has one of height and width", needed="both, or neither")
        return cls(*(whole(cls.name, key, given[key]) for key in cls.keys)) if given else cls()

    def apply(self, values: Values) -> Values:
        """Resize the map."""
        maps, port, rank = _map_of(values, self.name)
        sizes, axes = self._sizes(values)
        assert port.shape is not None, "a map of unknown rank is refused when it is selected"
        made = PortInfo(port.name, port.dtype, (*port.shape[:-2], *axes))
        return {**values, "map": (steps.resized(maps, sizes, rank=rank), made)}

    def _sizes(self, values: Values) -> tuple[Expr, tuple[Axis, Axis]]:
        if self.height is not None and self.width is not None:
            return Ints((self.height, self.width), "size"), (self.height, self.width)
        image, port = values.get("image", (None, None))
        if image is None or port is None or port.shape is None:
            raise UnsupportedModelError(
                f"the step '{self.name}' needs one input of images [N, C, H, W]",
                found="no such input, or several",
                fix="give the size: resize:height=256,width=256",
            )
        if port.size(3) in (1, 3, 4) and port.size(1) not in (1, 3, 4):
            raise UnsupportedModelError(
                f"the step '{self.name}': the input '{port.name}' has its channels last",
                found=port.describe(),
                needed="[N, C, H, W]",
                fix="give the size: resize:height=256,width=256",
            )
        height, width = port.shape[2], port.shape[3]
        if isinstance(height, int) and isinstance(width, int):
            return Ints((height, width), "size"), (height, width)
        return steps.sizes_of(image, (2, 3)), (height, width)

    def module(self) -> "TailTransform":
        """Return `Resized`; without a fixed size it is to be set before it is called."""
        from postproc_export.steps.modules import Resized

        return Resized(None if self.height is None or self.width is None else (self.height, self.width))

    def bound(self, largest: float, size: tuple[int, int]) -> tuple[float, float]:
        """A place on either axis is off by some roundings of the axis' length, times the steepest slope there is."""
        return largest, (16 + 8 * sum(size)) * ROUNDING * largest


@dataclass(frozen=True, slots=True)
class Negate(_Numbers, Exact):
    """Raw values times -1, for a model of which lower ones are more anomalous."""

    level: Level | None = None  # None: every level that the model has
    name: ClassVar[str] = "negate"
    keys: ClassVar[tuple[str, ...]] = ("level",)

    @classmethod
    def _read(cls, given: Mapping[str, Any]) -> Self:
        """Read ``level``, ``image`` or ``pixel``; both by default."""
        found = next((level for level in LEVELS if given.get("level") == level), None)
        if found is None and "level" in given:
            raise UsageError(
                f"the step '{cls.name}': level is {given['level']!r}",
                needed=" or ".join(LEVELS),
                fix="leave it out for both levels",
            )
        return cls(found)

    @property
    def levels(self) -> Sequence[Level]:
        """The levels whose values it turns round."""
        return LEVELS if self.level is None else (self.level,)

    def apply(self, values: Values) -> Values:
        """Negate what there is of its levels; where it names one, a model without that is refused."""
        there = {kind: values[kind] for kind, level in RAW.items() if kind in values and level in self.levels}
        if self.level is not None and not there:
            raise UnsupportedModelError(
                f"the step '{self.name}:level={self.level}' changes what the model does not have",
                found=f"no {'score' if self.level == 'image' else 'anomaly map'} of its own",
                fix="--step negate turns round what the model has",
            )
        return {**values, **{kind: (call("negate", expr), port) for kind, (expr, port) in there.items()}}

    def of_values(self, level: Level, values: NDArray[Any]) -> NDArray[Any]:
        """Negate what is of its levels; integers as float32, since an unsigned one has no negative."""
        if level not in self.levels:
            return values
        return -(values if values.dtype.kind == "f" else values.astype(np.float32))

    def module(self) -> "TailTransform":
        """Return `Negated`."""
        from postproc_export.steps.modules import Negated

        return Negated(self.levels)

    def bound(self, largest: float, size: tuple[int, int]) -> tuple[float, float]:
        """Nothing is rounded."""
        return largest, 0.0


AXES: Final[Mapping[str, int]] = {"second": 1, "last": 3}
"""Where the channels of a map may be: [N, C, H, W] and [N, H, W, C]."""


@dataclass(frozen=True, slots=True)
class Channel(_Numbers):
    """One channel of a map, or one value of a score that has several for each image; its axis goes."""

    index: int | None = None  # from 0; None for the only channel that a map has
    axis: str | None = None  # of a map, one of `AXES`; None where its sizes tell
    level: Level | None = None  # None for each that has several
    name: ClassVar[str] = "channel"
    keys: ClassVar[tuple[str, ...]] = ("index", "axis", "level")
    rounds: ClassVar[bool] = False

    @classmethod
    def _read(cls, given: Mapping[str, Any]) -> Self:
        """Read ``index``, from 0, ``axis``, ``second`` or ``last``, and ``level``, ``image`` or ``pixel``."""
        index, axis = given.get("index"), given.get("axis")
        level = next((level for level in LEVELS if level == given.get("level")), None)
        if index is not None and not (str(index).isdecimal() and int(index) < 2**31):
            raise UsageError(f"the step '{cls.name}': index is {index!r}", needed="a whole number of at least 0")
        for key, known in (("axis", tuple(AXES)), ("level", LEVELS)):
            if given.get(key) not in (None, *known):
                raise UsageError(f"the step '{cls.name}': {key} is {given[key]!r}", needed=" or ".join(known))
        if index is None and (axis is None or level == "image"):
            needed = "channel:index=1; or channel:axis=last or channel:axis=second for the only channel of a map"
            raise UsageError(f"the step '{cls.name}' does not say which one", needed=needed)
        return cls(None if index is None else int(index), axis, level)

    @property
    def text(self) -> str:
        """How the command line takes it."""
        return TailSpec(self.name, self.parameters).text

    def shown(self, port: PortInfo) -> PortInfo:
        """Return an output of several values for each image as a score, and a map of several channels as one of one."""
        is_map = port.rank == 4 and self.level != "image" and shape_problem("pixel", port.shape) is None
        level: Level = "image" if not is_map and self.axis_of("image", port) is not None else "pixel"
        return self._made(level, port) if self.level in (None, level) else port

    def settled(self, raw: Mapping[Level, PortInfo]) -> Iterator[Transform]:
        """Yield one with its level, and its axis, for each raw output that has several.

        Raises UnsupportedModelError if one has too few, or there is none.
        """
        made: list[Channel] = []
        for level, port in raw.items():
            place, is_asked = self.axis_of(level, port), self.level is not None or (self.axis and level == "pixel")
            size = None if place is None else port.size(place)
            index = None if size == 1 and self.index == 0 and level == "pixel" else self.index
            if place is None or self.level not in (None, level) or (level == "image" and index is None):
                continue
            if size == 1 and not is_asked and (place == 1 or index is not None):
                continue  # it has one only, where that belongs
            if size is not None and (size != 1 if index is None else index >= size):
                what = f"'{port.name}' has {size} {'values per image' if level == 'image' else 'channels'}"
                raise UnsupportedModelError(
                    f"--step {self.text}: {what}", found=port.describe(), needed=f"an index from 0 to {size - 1}"
                )
            axis = next(axis for axis, at in AXES.items() if at == place) if level == "pixel" else None
            made.append(Channel(index, axis, level))
        if not made:
            unclear = any(port.rank == 4 and self.axis_of("pixel", port) is None for port in raw.values())
            raise UnsupportedModelError(
                f"--step {self.text}: there is nothing to choose from",
                found="; ".join(port.describe() for port in raw.values()),
                needed="a score [N, C], or a map [N, C, H, W] or [N, H, W, C]",
                fix="say where the channels are: add axis=second or axis=last" if unclear else "leave it out",
            )
        yield from made

    def is_settled_as(self, other: "Channel") -> bool:
        """Whether another one can be what `settled` made of this one."""
        is_axis = other.level == "image" or self.axis in (None, other.axis)
        return (self.index or 0) == (other.index or 0) and is_axis and self.level in (None, other.level)

    def apply(self, values: Values) -> Values:
        """Take one of each image's values, or of each pixel's."""
        kind, level = next((kind, level) for kind, level in RAW.items() if level == self.level)
        expr, port = values[kind]
        place, made = self.axis_of(level, port), self._made(level, port)
        if place is None:
            raise UnsupportedModelError(
                f"--step {self.text}: there is nothing left to choose from", found=port.describe()
            )
        dropped = tuple(range(1, port.rank or 0)) if level == "image" else (place,)
        return {**values, kind: (steps.one_channel(expr, axis=place, index=self.index, dropped=dropped), made)}

    def module(self) -> "TailTransform":
        """Return `OneChannel`; UsageError for what was never settled."""
        from postproc_export.steps.modules import OneChannel

        if self.level is None or (self.level == "pixel" and self.axis is None):
            raise UsageError(f"--step {self.text} does not say of what", needed="the level, and the axis of a map")
        return OneChannel(self.index, level=self.level, axis=AXES[self.axis or "second"])

    def bound(self, largest: float, size: tuple[int, int]) -> tuple[float, float]:
        """Nothing is rounded."""
        return largest, 0.0

    def axis_of(self, level: Level, port: PortInfo) -> int | None:
        """Return the axis that it takes one entry of; None where there is none, or several could be it."""
        axes = port.shape or ()
        if level == "image":
            several = [at for at, size in enumerate(axes) if at and size != 1]
            return several[0] if len(several) == 1 else None
        return None if len(axes) != 4 else channel_axis(axes) if self.axis is None else AXES[self.axis]

    def _made(self, level: Level, port: PortInfo) -> PortInfo:
        """Return a port without the axis, of a score without all but the first."""
        place, axes = self.axis_of(level, port), port.shape or ()
        if place is None:
            return port
        return port._replace(shape=axes[:1] if level == "image" else (*axes[:place], *axes[place + 1 :]))


_SHIPPED: Final = (Gaussian, TopK, Resize, Thresholds, Negate, Channel)
TRANSFORMS: Final[Mapping[str, type[Transform]]] = {item.name: item for item in _SHIPPED}


def resolve(spec: TailSpec) -> Transform:
    """Return the shipped transform of a name, its parameters checked."""
    return TRANSFORMS[spec.name].parse(spec.parameters)


def split(specs: Sequence[TailSpec]) -> tuple[tuple[TailSpec, ...], tuple[TailSpec, ...]]:
    """Return what stands before the tail and what stands behind it; a class of the user's stands alone before it."""
    before = tuple(spec for spec in specs if spec.changes_values)
    own = [spec for spec in before if not spec.is_shipped]
    if own and len(before) > 1:
        raise UsageError(
            f"'{own[0].name}' cannot stand beside another tail before the threshold",
            found=", ".join(spec.name for spec in before),
            fix="let its forward call the others: postproc_export.steps.modules has them",
        )
    return before, tuple(spec for spec in specs if not spec.changes_values)


def resolve_all(specs: Sequence[TailSpec]) -> tuple[Transform, ...]:
    """Return the shipped transforms among the steps before a threshold, their parameters checked."""
    return tuple(resolve(spec) for spec in specs if spec.is_shipped)


def before_threshold(specs: Sequence[TailSpec]) -> Sequence[TailSpec]:
    """Return steps that a calibration is behind; raises UsageError for one that stands behind the decision."""
    behind = [spec for spec in specs if not spec.changes_values]
    if behind:
        raise UsageError(
            f"the step '{behind[0].name}' stands behind the decision: it changes no raw value",
            fix="leave it out here, and give it when attaching",
        )
    return specs


def exact_steps(texts: Sequence[str]) -> tuple[Exact | Channel, ...]:
    """Return the steps that values go through without their model; raises UsageError for any other."""
    found: list[Exact | Channel] = []
    for spec in before_threshold(parse_tails(texts)):
        step = resolve(spec) if spec.is_shipped else None
        if isinstance(step, Channel) and (step.level is None or (step.level == "pixel" and step.axis is None)):
            index = f"index={step.index or 0}"
            raise UsageError(
                f"--step {spec.text} does not say of what, and values in files or arrays do not tell",
                fix=f"--step channel:{index},level=image for scores [N, C], "
                f"--step channel:{index},axis=second,level=pixel for maps [N, C, H, W]",
            )
        if not isinstance(step, Exact | Channel):
            raise UsageError(
                f"--step {spec.text} takes whole maps, and values without their model go through it one by one",
                found="raw outputs in files or arrays",
                needed="negate, channel",
                fix="calibrate the model itself: postproc-export calibrate model.onnx --images FOLDER "
                f"--step {spec.text} -o stats.json",
            )
        found.append(step)
    return tuple(found)
