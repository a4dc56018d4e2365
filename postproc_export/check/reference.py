"""What a file has to give for raw values: the eager steps, the eager tail, the eager decisions."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from postproc_export.check.attached import AttachedModel, RawFeeds, excused_images
from postproc_export.check.runners import ModelFile
from postproc_export.comparison import Tolerance, own, transformed
from postproc_export.errors import MetadataError, UsageError, require
from postproc_export.float32 import HALVES
from postproc_export.options import TailOptions
from postproc_export.record import BEFORE, BEHIND, LayerRecord, TailSpec
from postproc_export.runtimes import PortInfo, as_float32
from postproc_export.stats import CalibrationStats, Level
from postproc_export.steps.decisions import DECIDED, point_boundaries
from postproc_export.steps.transforms import Transform, resolve_all
from postproc_export.tail import Tail, TailOutput

if TYPE_CHECKING:
    import torch

    from postproc_export.eager import PostProcessor


# --- What a transform before the tail has to give: its eager twin, on the raw values of a model.

READS: Final[Mapping[str, Level]] = {"score": "image", "map": "pixel"}
READ_TAPS: Final[Mapping[str, str]] = {"score": "postproc-check/read_score", "map": "postproc-check/read_map"}

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class EagerTransform:
    """The eager twin of the transform in a file.

    Parameters
    ----------
    record
        The layer's.
    ports
        What it reads, by `READS` and ``"image"``, under the names in the file.
    values
        The value that it makes for each level, under the name that `ModelFile.cut` knows.
    module
        Raw score and map in, raw score and map out.
    steps
        The shipped transforms that it is made of; none for a class of one's own.
    size
        Height and width of the model's input, where they are fixed.
    """

    record: LayerRecord
    ports: Mapping[str, PortInfo]
    values: Mapping[Level, str]
    module: Any
    steps: tuple[Transform, ...]
    size: Size | None = None

    @classmethod
    def load(cls, attached: AttachedModel, named: Sequence[TailSpec] = ()) -> Self | None:
        """Return the twin of a file's transform; None where it has none, or a class that nobody but the file names.

        Parameters
        ----------
        attached
            The attached file.
        named
            What the caller names: code that a file alone names is not imported.

        Raises
        ------
        UsageError
            If a class of one's own cannot be imported, or a parameter in the record is not legal.
        MetadataError
            If the record names what cannot stand there.
        MissingDependencyError
            If torch is not installed.
        """
        record = attached.file.layer("transform")
        if record is None or unnamed_code(attached, named) is not None:
            return None
        made = attached.file.layer_values(record).values()
        levels = {level: port.name for level, port in attached.file.raw.items() if port.name in made}
        ports = attached.file.layer_inputs(record)
        if any(spec.is_code for spec in record.tails):
            from postproc_export.steps.user import eager_own

            return cls(record, ports, levels, eager_own(record.tails[0]), ())
        require("torch", extra="torch", purpose="the eager reference of the check")
        from postproc_export.steps.modules import Chain

        steps = resolve_all(record.tails)
        module = Chain([step.module() for step in steps]).eval()
        return cls(record, ports, levels, module, steps, _fixed_size(attached.file.inputs))

    @property
    def title(self) -> str:
        """The tails, for messages."""
        return " ".join(spec.text for spec in self.record.tails)

    @property
    def taps(self) -> dict[str, PortInfo]:
        """The raw values that it reads, by the names of `READ_TAPS`."""
        return {READ_TAPS[name]: port for name, port in self.ports.items() if name in READ_TAPS}

    def __call__(self, raw: RawFeeds, *, size: Size | None) -> dict[Level, NDArray[np.float32]]:
        """Return the score and the map behind it, as far as there are any.

        Parameters
        ----------
        raw
            Raw values of any floating-point type, in the model's shapes.
        size
            Height and width of the model's input, for a map that is resized to it.

        Raises
        ------
        UsageError
            If it resizes to the input's size, which is not known.
        UnsupportedModelError
            If a class of one's own fails on these values.
        """
        import torch

        if self.steps:
            self._set_size(size)
        tensors = {level: self._tensor(level, values) for level, values in raw.items()}
        with torch.inference_mode():
            made = self.module(tensors.get("image"), tensors.get("pixel"))
        levels: tuple[Level, ...] = ("image", "pixel")
        return {level: tensor.numpy() for level, tensor in zip(levels, made, strict=True) if tensor is not None}

    def tolerance(self, raw: RawFeeds, made: RawFeeds) -> Tolerance:
        """Return how far a runtime's values may lie from the twin's on the same raw values."""
        if not self.steps:
            low, high = _range(made)
            return own(low, high, (port.dtype for name, port in self.ports.items() if name in READS))
        sizes = [values.shape[-2:] for values in (raw.get("pixel"), made.get("pixel")) if values is not None]
        size = (max((each[0] for each in sizes), default=1), max((each[1] for each in sizes), default=1))
        largest, error = max(map(abs, _range(raw))), 0.0
        for step in self.steps:
            largest, added = step.bound(largest, size)
            error += added  # none of them widens a difference that comes in
        return transformed(error)

    def _set_size(self, size: Size | None) -> None:
        size = self.size or size
        if size is None and "image" in self.ports:
            raise UsageError(
                f"'{self.title}' resizes to the input's size", found="no input, or several, of images [N, C, H, W]"
            )
        if size is not None:
            self.module.set_size(size)

    def _tensor(self, level: Level, values: NDArray[Any]) -> "torch.Tensor":
        """Return the values in the element type in which the transform takes them."""
        import torch

        read = next((name for name, of in READS.items() if of == level), "")
        dtype = "float32" if self.steps or read not in self.ports else self.ports[read].dtype
        plain = values.astype(np.float32) if values.dtype.name == "bfloat16" else values
        tensor: torch.Tensor = torch.from_numpy(np.require(plain, requirements=["C", "W"]))
        return tensor.to(getattr(torch, dtype))


def unnamed_code(attached: AttachedModel, named: Sequence[TailSpec]) -> TailSpec | None:
    """Return the class before the threshold that the record of a file names and the caller does not; None otherwise.

    Raises
    ------
    MetadataError
        If the record names what cannot stand there.
    """
    record = attached.file.layer("transform")
    tails = () if record is None else record.tails
    known = [spec.is_code or (spec.is_shipped and spec.changes_values) for spec in tails]
    if not all(known) or (len(tails) > 1 and any(spec.is_code for spec in tails)):
        raise MetadataError(
            f"{attached.path}: the record names what cannot stand before a threshold",
            found=", ".join(spec.text for spec in tails),
            needed=f"{', '.join(BEFORE)}, or one class as package.module:Class",
        )
    return next((spec for spec in tails if spec.is_code and spec not in named), None)


def _fixed_size(inputs: Sequence[PortInfo]) -> Size | None:
    images = [port for port in inputs if port.rank == 4]
    height, width = (images[0].size(2), images[0].size(3)) if len(images) == 1 else (None, None)
    return None if height is None or width is None else (height, width)


def image_size(feeds: Mapping[str, NDArray[Any]]) -> Size | None:
    """Return height and width of the one input that is a batch of images; None where there is none, or several."""
    images = [array for array in feeds.values() if array.ndim == 4]
    return (images[0].shape[2], images[0].shape[3]) if len(images) == 1 else None


def _range(values: RawFeeds) -> tuple[float, float]:
    finite = [array[np.isfinite(array)] for array in values.values()]
    low = min((float(array.min()) for array in finite if array.size), default=0.0)
    return low, max((float(array.max()) for array in finite if array.size), default=0.0)


# --- What stands behind the decision has to give: a gated mask, and the labels of named operating points.

GATED: Final = "pred_mask"


@dataclass(frozen=True, slots=True)
class EagerDecisions:
    """The reference for the layer behind the decision.

    Parameters
    ----------
    record
        The layer's.
    ports
        What it reads: ``"mask"``, ``"label"`` and ``"values"``, under the names in the file.
    boundaries
        The boundary of each named operating point, by the name of its output; raw units.
    is_gated
        Whether the mask is gated.
    label
        The label of the tail.
    dtypes
        The element type of each output of the tail.
    """

    record: LayerRecord
    ports: Mapping[str, PortInfo]
    boundaries: Mapping[str, float]
    is_gated: bool
    label: PortInfo
    dtypes: Mapping[str, str]

    @classmethod
    def of(cls, file: ModelFile, record: LayerRecord, tail: Tail) -> Self:
        """Return the reference for a file's layer, from the record alone.

        Raises
        ------
        UsageError, MetadataError
            If an operating point in the record is not legal, or the record names something else.
        """
        if unknown := [spec.text for spec in record.tails if spec.name not in BEHIND]:
            raise MetadataError(
                "the record names what cannot stand behind a decision", found=unknown[0], needed=" or ".join(BEHIND)
            )
        points: dict[str, Any] = {}
        for spec in record.tails:
            points |= spec.parameters if spec.name == "points" else {}
        found = point_boundaries(points, tail) if points and tail.names("image") else {}
        parts = {part.name: part for part in tail.parts}
        label = PortInfo("pred_label", parts["pred_label"].dtype, parts["pred_label"].shape)
        ports = {key: _typed(key, port, parts, label) for key, port in file.layer_inputs(record).items()}
        return cls(
            record=record,
            ports=ports,
            boundaries={f"pred_label_{name}": boundary for name, boundary in found.items()},
            is_gated=any(spec.name == "gate" for spec in record.tails),
            label=label,
            dtypes={name: part.dtype for name, part in parts.items()},
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs that the layer gives."""
        return (*((GATED,) if self.is_gated else ()), *self.boundaries)

    def dtype(self, output: str) -> str:
        """Return the element type of an output: a point's label is of the label's."""
        return self.dtypes.get(output, self.label.dtype)

    def __call__(self, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.bool_]]:
        """Return what comes out, as booleans.

        Parameters
        ----------
        given
            The mask and the label, 0 or 1 of any type, and the raw values that the label compares.
        """
        made: dict[str, NDArray[np.bool_]] = {}
        if self.is_gated:
            mask, label = (given[name].astype(bool) for name in ("mask", "label"))
            made[GATED] = mask & label.reshape(-1, *[1] * (mask.ndim - 1))
        for name, boundary in self.boundaries.items():
            with np.errstate(invalid="ignore"):
                made[name] = np.logical_not(as_float32(given[DECIDED]) < np.float32(boundary))
        return made


def _typed(key: str, port: PortInfo, parts: Mapping[str, TailOutput], label: PortInfo) -> PortInfo:
    """Return what is read with the type of the tail's own output, and raw values with the shape of their label."""
    if key == DECIDED:
        return PortInfo(port.name, port.dtype, label.shape)
    part = parts[f"pred_{key}"]
    return PortInfo(port.name, part.dtype, part.shape)


# --- The eager reference of one level alone, for values by the billion; and Anomalib's rule written out.


class LevelReference:
    """Scores and labels of flat raw values.

    Parameters
    ----------
    attached
        The attached file; statistics and options come from its record.
    level
        The level; the other one is left out.
    """

    def __init__(self, attached: AttachedModel, level: Level) -> None:
        stats = attached.tail.stats.level(level)
        assert stats is not None, f"the {level} level is post-processed, so it is calibrated"
        self._stats = stats
        self._level = level
        self._options = attached.tail.options
        alone = CalibrationStats(image=stats) if level == "image" else CalibrationStats(pixel=stats)
        both = replace(self._options, enable_normalization=True, enable_thresholding=True)
        self._module = eager_module(alone, both)

    def __call__(self, raw: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return float32 scores and boolean labels of float32 values, shape (n,)."""
        import torch

        values = torch.from_numpy(raw)
        with torch.inference_mode():
            if self._level == "image":
                result = self._module(pred_score=values)
                return result.pred_score.numpy(), result.pred_label.numpy()
            result = self._module(anomaly_map=values.reshape(-1, 1, 1))
            return result.anomaly_map.numpy().reshape(-1), result.pred_mask.numpy().reshape(-1)

    def anomalib(self, raw: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Return Anomalib's labels, and where ours have to equal them; None unless the rule is ``"gt"``.

        Notes
        -----
        Source: anomalib 2.7.0 PostProcessor._normalize and _apply_threshold, every step in float32.
        """
        if self._options.comparison != "gt":
            return None
        import torch

        number = {
            name: torch.tensor(getattr(self._stats, name), dtype=torch.float32) for name in ("threshold", "min", "max")
        }
        cut = 1 - torch.tensor(self._options.sensitivity(self._level), dtype=torch.float32)
        values = torch.from_numpy(raw)
        unit = ((values - number["threshold"]) / (number["max"] - number["min"]) + 0.5).clamp(0, 1)
        known = ~np.isnan(raw)
        if cut == 1:
            known &= raw != np.inf
        return (unit > cut).numpy(), known


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in the calling threads alone, each on its own."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- The reference: `PostProcessor` on raw values, and the raw values that it decides on.


class Reference:
    """What the outputs have to be.

    Parameters
    ----------
    attached
        The attached file; statistics and options come from its record.
    """

    def __init__(self, attached: AttachedModel) -> None:
        self.attached = attached
        self._module = eager_module(attached.tail.stats, attached.tail.options)

    def outputs(self, raw: Mapping[Level, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs of the tail: float32 scores, boolean labels.

        Parameters
        ----------
        raw
            The raw values of each level that the model has, of any float type.
        """
        if self.attached.tail.guard.form == "image" or len(raw) == 1:
            named = self._outputs(raw)
        else:  # no image has a map of its own
            image, pixel = raw["image"], raw["pixel"]
            if self.attached.tail.guard.form == "all" and np.isnan(as_float32(_readable(pixel))).any():
                image = np.full_like(image, np.nan)
            named = {**self._outputs({"pixel": pixel}), **self._outputs({"image": image})}
        return {name: named[name] for name in self.attached.names}

    def _outputs(self, raw: Mapping[Level, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        import torch

        tensors = {
            level: torch.from_numpy(np.require(_readable(values), requirements="C")) for level, values in raw.items()
        }
        for level, port in self.attached.tail.raw.items():
            if level in tensors and port.dtype in HALVES:  # tapped values and bfloat16 come as float32
                tensors[level] = tensors[level].to(getattr(torch, port.dtype))
        with torch.inference_mode():
            result = self._module(pred_score=tensors.get("image"), anomaly_map=tensors.get("pixel"))
        decided = self.attached.names  # a level without statistics stays as it is, in a type that NumPy may not have
        named = result._asdict()
        return {name: named[name].numpy() for name in decided if named[name] is not None}

    def decided_on(self, output: TailOutput, raw: Mapping[Level, NDArray[Any]]) -> NDArray[np.float32]:
        """Return the float32 raw values that an output is computed from; a map's maximum where there is no score."""
        values = raw.get(output.level)
        if values is not None:
            return as_float32(_readable(values))
        highest: NDArray[np.float32] = as_float32(_readable(raw["pixel"])).max(axis=(-2, -1))
        return highest

    def excused(self, output: TailOutput, raw: Mapping[Level, NDArray[Any]]) -> NDArray[np.bool_] | None:
        """Return where an output may be anomalous though the reference says normal; None where nowhere."""
        is_unguarded = "image" in raw and self.attached.tail.guard.form is None
        if output.level == "pixel" or "pixel" not in raw or is_unguarded:
            return None
        maps, guard = as_float32(_readable(raw["pixel"])), self.attached.guard
        if self.attached.tail.guard.form != "all":
            return excused_images(maps, guard)
        return np.full(np.shape(raw["image"]), excused_images(maps[np.newaxis], guard)[0])


def _readable(values: NDArray[Any]) -> NDArray[Any]:
    """Return bfloat16, which torch does not take from NumPy, as float32."""
    return values.astype(np.float32) if values.dtype.name == "bfloat16" else values


def eager_module(stats: CalibrationStats, options: TailOptions) -> "PostProcessor":
    """Return the eager reference for statistics and options of a tail.

    Raises
    ------
    MissingDependencyError
        If torch is not installed.
    """
    require("torch", extra="torch", purpose="the eager reference of the check")
    from postproc_export.eager import PostProcessor

    return PostProcessor(
        stats,
        image_sensitivity=options.image_sensitivity,
        pixel_sensitivity=options.pixel_sensitivity,
        comparison=options.comparison,
        nan_guard=options.nan_guard,
        enable_normalization=options.enable_normalization,
        enable_thresholding=options.enable_thresholding,
    )
