"""The shipped transforms: their parameters, raw values to raw values as expressions, how far runtimes may differ."""

import base64
import binascii
import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from graph_patterns import transforms as steps
from graph_patterns.expr import Call, Expr, FixedTensor, Input, Ints, call, cast, identity, reshape, shape_of
from postproc_export.errors import FileError, UnsupportedModelError, UsageError
from postproc_export.float32 import HALVES
from postproc_export.formats.base import LayerOutput, Plan
from postproc_export.ports import OutputChoice, Selection, select_outputs
from postproc_export.record import TailSpec, parse_tails
from postproc_export.runtimes import Axis, PortInfo
from postproc_export.stats import LEVELS, Level
from postproc_export.validation import check_file

if TYPE_CHECKING:
    from postproc_export.steps.modules import TailTransform


ROUNDING: Final = 2.0**-24  # largest relative error of one rounding to float32


Values = Mapping[str, tuple[Expr, PortInfo]]
"""What a chain has at one point: float32 expressions of ``score`` and ``map``, the model's input as ``image`` for its
height and width alone, and what is declared of each."""


def _map_of(values: Values, name: str) -> tuple[Expr, PortInfo, int]:
    """Return the map, its port and its rank, or refuse a model without one."""
    expr, port = values.get("map", (None, None))
    if expr is None or port is None or port.rank is None:
        raise UnsupportedModelError(f"the tail '{name}' needs an anomaly map", found="a model with a score only")
    return expr, port, port.rank


class Transform(Protocol):
    """A step before the threshold."""

    name: ClassVar[str]

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters as JSON values."""

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Self:
        """Read parameters, as text of the command line or as JSON values."""

    def apply(self, values: Values) -> Values:
        """Return the values behind it, or refuse a model that it does not fit."""

    def module(self) -> "TailTransform":
        """Return its eager twin."""

    def bound(self, largest: float, size: tuple[int, int]) -> tuple[float, float]:
        """Return the largest magnitude behind it, and what two implementations in float32 may differ by more."""


@runtime_checkable
class Exact(Transform, Protocol):
    """A step that takes each value alone and rounds nothing.

    Values in files can go through it as well as a model's, and behind it they are of the model's element type still.
    """

    def of_values(self, level: Level, values: NDArray[Any]) -> NDArray[Any]:
        """Return values of a level, of any shape and real type, behind it: of the same type, or float32."""


def refuse_unknown(name: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Refuse parameters that a transform does not have."""
    unknown = [key for key in given if key not in known]
    if unknown:
        raise UsageError(f"the tail '{name}' has no parameter '{unknown[0]}'", needed=", ".join(known) or "none")


def number(name: str, key: str, value: Any, *, low: float, high: float) -> float:
    """Return a parameter that is a number in a range."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = float("nan")
    if not low <= found <= high:
        raise UsageError(f"the tail '{name}': {key} is {value!r}", needed=f"a number in [{low:g}, {high:g}]")
    return found


def whole(name: str, key: str, value: Any) -> int:
    """Return a parameter that is a whole number of at least 1."""
    text = str(value)
    if not text.isdecimal() or not 1 <= int(text) <= 2**31 - 1:
        raise UsageError(f"the tail '{name}': {key} is {value!r}", needed="a whole number of at least 1")
    return int(text)


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
        maps, port, rank = _map_of(values, self.name)
        fits = (rank == 4 or self.channels == 1) and all(
            size in (1, found) or found is None
            for size, found in zip(self.shape[-2:], (port.size(-2), port.size(-1)), strict=True)
        )
        declared = port.size(1) if rank == 4 else 1
        if not fits or declared not in (None, self.channels):
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


class _Numbers(ABC):
    """A transform whose parameters are attributes of the same names: numbers, None for one that is not set."""

    __slots__ = ()
    name: ClassVar[str]
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
                f"the tail '{self.name}' mirrors {radius} pixels at each edge, and the map does not have them",
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
                f"the tail '{self.name}' takes {self.k} pixels, and the map has fewer",
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
            raise UsageError(f"the tail '{cls.name}' has one of height and width", needed="both, or neither")
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
                f"the tail '{self.name}' needs one input of images [N, C, H, W]",
                found="no such input, or several",
                fix="give the size: resize:height=256,width=256",
            )
        if port.size(3) in (1, 3, 4) and port.size(1) not in (1, 3, 4):
            raise UnsupportedModelError(
                f"the tail '{self.name}': the input '{port.name}' has its channels last",
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
class Negate(_Numbers):
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
                f"the tail '{cls.name}': level is {given['level']!r}",
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
                f"the tail '{self.name}:level={self.level}' changes what the model does not have",
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


RAW: Final[Mapping[str, Level]] = {"score": "image", "map": "pixel"}
_SHIPPED: Final = (Gaussian, TopK, Resize, Thresholds, Negate)
TRANSFORMS: Final[Mapping[str, type[Transform]]] = {item.name: item for item in _SHIPPED}


def resolve(spec: TailSpec) -> Transform:
    """Return the shipped transform of a name, its parameters checked."""
    return TRANSFORMS[spec.name].parse(spec.parameters)


def plan_transform(
    transforms: Sequence[Transform],
    ports: Sequence[PortInfo],
    images: Sequence[PortInfo],
    *,
    image_output: OutputChoice = None,
    pixel_output: OutputChoice = None,
) -> Plan:
    """Write down a chain of shipped transforms for one model: its outputs are `ports`, its inputs `images`."""
    selection = select_raw(ports, transforms, image_output=image_output, pixel_output=pixel_output)
    batches = [port for port in images if port.rank == 4]  # an input that may be images, its axes taken as N, C, H, W
    read = {"score": selection.image, "map": selection.pixel, "image": batches[0] if len(batches) == 1 else None}
    before: dict[str, tuple[Expr, PortInfo]] = {}
    for name, port in read.items():
        if port is not None:
            is_plain = name == "image" or port.dtype == "float32"
            before[name] = (Input(name) if is_plain else cast(Input(name), dtype="float32"), port)
    values: Values = before
    rounded: set[str] = set()
    for transform in transforms:
        behind = transform.apply(values)
        if not isinstance(transform, Exact):
            rounded |= {kind for kind in behind if behind[kind] is not values.get(kind)}
        values = behind
    outputs = []
    for kind in ("score", "map"):
        if kind in values and values[kind] != before.get(kind):
            expr, made = values[kind]
            old = read[kind]
            name = made.name if old is None else old.name
            expr = expr if isinstance(expr, Call) else identity(expr)
            # Values that nothing has rounded are of the model's narrow type still, and decide as such.
            dtype = next((half for half in HALVES if made.dtype == half and kind not in rounded), None)
            expr = expr if dtype is None else cast(expr, dtype=dtype)
            outputs.append(LayerOutput(name, expr, dtype or "float32", made.shape, None if old is None else name))
    used = {name for output in outputs if output.expr is not None for name in inputs_of(output.expr)}
    return Plan(
        where="transform",
        tails=tuple(TailSpec(transform.name, transform.parameters) for transform in transforms),
        outputs=tuple(outputs),
        inputs={name: port for name, port in read.items() if port is not None and name in used},
    )


def select_raw(
    ports: Sequence[PortInfo],
    transforms: Sequence[Transform] = (),
    calibrated: Collection[Level] | None = None,
    /,
    *,
    image_output: OutputChoice = None,
    pixel_output: OutputChoice = None,
) -> Selection:
    """Select the raw outputs, a map of several channels among them where thresholds make one of it."""
    first = transforms[0] if transforms else None
    channels = first.channels if isinstance(first, Thresholds) else 1
    shown = []
    for port in ports:
        is_map = port.shape is not None and port.rank == 4 and port.shape[1] == channels
        shape = (port.shape[0], 1, *port.shape[2:]) if is_map and port.shape is not None else port.shape
        shown.append(replace(port, shape=shape))
    selection = select_outputs(shown, image_output=image_output, pixel_output=pixel_output, calibrated=calibrated)
    own = {port.name: port for port in ports}
    image, pixel = (port and own[port.name] for port in (selection.image, selection.pixel))
    return replace(selection, image=image, pixel=pixel)


def inputs_of(expr: Expr) -> set[str]:
    """Return the names of the inputs that an expression reads."""
    found: set[str] = set()
    pending, seen = [expr], set[int]()
    while pending:
        current = pending.pop()
        if isinstance(current, Input):
            found.add(current.name)
        elif isinstance(current, Call) and id(current) not in seen:
            seen.add(id(current))
            pending += current.args
    return found


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
    """Return shipped transforms, their parameters checked."""
    return tuple(resolve(spec) for spec in specs)


def before_threshold(specs: Sequence[TailSpec]) -> Sequence[TailSpec]:
    """Return steps that a calibration is behind; raises UsageError for one that stands behind the decision."""
    behind = [spec for spec in specs if not spec.changes_values]
    if behind:
        raise UsageError(
            f"the tail '{behind[0].name}' stands behind the decision: it changes no raw value",
            fix="leave it out here, and give it when attaching",
        )
    return specs


def exact_steps(texts: Sequence[str]) -> tuple[Exact, ...]:
    """Return the steps that values go through without their model; raises UsageError for any that is not exact."""
    found = []
    for spec in before_threshold(parse_tails(texts)):
        step = resolve(spec) if spec.is_shipped else None
        if step is None or not isinstance(step, Exact):
            raise UsageError(
                f"--step {spec.text} takes whole maps, and values without their model go through it one by one",
                found="raw outputs in files or arrays",
                needed="negate",
                fix="calibrate the model itself: postproc-export calibrate model.onnx --images FOLDER "
                f"--step {spec.text} -o stats.json",
            )
        found.append(step)
    return tuple(found)
