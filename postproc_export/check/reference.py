"""What an attached file is compared with: the eager tail and layers, the raw file and the PyTorch model run apart."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from postproc_export.check.attached import AdaptedRunner, AttachedModel, Decider, RawFeeds, excused_images, numpy_dtype
from postproc_export.check.ways import Configuration
from postproc_export.comparison import Tolerance, narrow, own, transformed
from postproc_export.errors import (
    MetadataError,
    MissingDependencyError,
    PostprocError,
    UnsupportedModelError,
    UsageError,
    install,
    require,
)
from postproc_export.files import check_model
from postproc_export.float32 import HALVES
from postproc_export.formats.base import DetachResult, format_of
from postproc_export.options import TailOptions
from postproc_export.ports import is_channel_last
from postproc_export.record import BEFORE, BEHIND, MODEL_KEY, LayerRecord, TailSpec
from postproc_export.run_options import Arithmetic
from postproc_export.runtimes import PortInfo, Runner, as_float32, runner_class
from postproc_export.stats import LEVELS, CalibrationStats, Level
from postproc_export.steps.decisions import DECIDED, point_boundaries
from postproc_export.steps.transforms import Transform, resolve_all
from postproc_export.steps.twins import behind
from postproc_export.tail import Tail, TailOutput
from postproc_export.twin import NumpyPostProcessor

Size: TypeAlias = tuple[int, int]  # height and width
Raw: TypeAlias = tuple[NDArray[Any] | None, ...]  # score and map
EagerTail: TypeAlias = Callable[[NDArray[Any] | None, NDArray[Any] | None], Mapping[str, NDArray[Any]]]

_PURPOSE: Final = "the eager reference of the check"


class EagerSteps(Protocol):
    """Custom steps before the threshold, on arrays."""

    def __call__(self, score: NDArray[Any] | None, maps: NDArray[Any] | None, /, *, size: Size | None) -> Raw:
        """Return raw score and map behind them, for an input of a size."""


def named_output(name: str, outputs: Mapping[str, NDArray[Any]], runner: Runner) -> NDArray[Any] | None:
    """Return the output of a run whose tensor has a name, among others maybe; None where there is none."""
    return next((outputs[port.name] for port in runner.outputs if port.answers_to(name)), None)


def image_size(feeds: Mapping[str, NDArray[Any]]) -> Size | None:
    """Return height and width of the one input that is a batch of images; None where there is none, or several."""
    images = [array for array in feeds.values() if array.ndim == 4]
    return (images[0].shape[2], images[0].shape[3]) if len(images) == 1 else None


def usable_arithmetic(asked: Arithmetic | None) -> Arithmetic:
    """Return what computes the reference: what was asked for, else PyTorch where it is installed."""
    has_torch = find_spec("torch") is not None
    if asked == "torch" and not has_torch:
        raise MissingDependencyError(
            "--reference torch needs the package 'torch', which is not installed",
            fix=f"{install('torch')}, or leave it out: NumPy gives the same bits",
        )
    return asked or ("torch" if has_torch else "numpy")


class TailReference:
    """What the outputs of a tail have to be, by its statistics and options."""

    def __init__(self, decider: Decider, arithmetic: Arithmetic = "torch") -> None:
        self.decider, self.arithmetic = decider, arithmetic
        self._tail = _eager_tail(decider.tail.stats, decider.tail.options, arithmetic)
        self._excused: tuple[NDArray[Any] | None, NDArray[np.bool_]] = (None, np.zeros(0, bool))  # maps, and of which

    def outputs(self, raw: RawFeeds) -> dict[str, NDArray[Any]]:
        """Return float32 scores and boolean labels for the raw values, of any float type, of each level there is."""
        if self.decider.tail.guard.form == "image" or len(raw) == 1:
            named = self._outputs(raw)
        else:  # no image has a map of its own
            image, pixel = raw["image"], raw["pixel"]
            if self.decider.tail.guard.form == "all" and np.isnan(as_float32(pixel)).any():
                image = np.full_like(image, np.nan)
            named = {**self._outputs({"pixel": pixel}), **self._outputs({"image": image})}
        return {name: named[name] for name in self.decider.names}

    def _outputs(self, raw: RawFeeds) -> dict[str, NDArray[Any]]:
        values = dict(raw)
        for level, port in self.decider.tail.raw.items():
            if level in values and is_channel_last(port):  # it guards the score, and nothing else reads it
                values[level] = values[level].squeeze(-1)
            if level in values and port.dtype in HALVES:  # tapped values come as float32
                values[level] = values[level].astype(numpy_dtype(port))
        made = self._tail(values.get("image"), values.get("pixel"))
        return {name: made[name] for name in self.decider.names if name in made}

    def decided_on(self, output: TailOutput, raw: RawFeeds) -> NDArray[np.float32]:
        """Return the float32 raw values that an output is computed from; a map's maximum where there is no score."""
        values = raw.get(output.level)
        if values is not None:
            return as_float32(values)
        highest: NDArray[np.float32] = as_float32(raw["pixel"]).max(axis=(-2, -1))
        return highest

    def excused(self, output: TailOutput, raw: RawFeeds) -> NDArray[np.bool_] | None:
        """Return where an output may be anomalous though the reference says normal; None where nowhere."""
        is_unguarded = "image" in raw and self.decider.tail.guard.form is None
        if output.level == "pixel" or "pixel" not in raw or is_unguarded:
            return None
        if self._excused[0] is not raw["pixel"]:  # every way of running is fed the same
            maps, guard = as_float32(raw["pixel"]), self.decider.guard
            if self.decider.tail.guard.form == "all":
                of_maps = np.full(np.shape(raw["image"]), excused_images(maps[np.newaxis], guard)[0])
            else:
                of_maps = excused_images(maps, guard)
            self._excused = (raw["pixel"], of_maps)
        return self._excused[1]


class Reference(TailReference):
    """What the outputs of an attached file have to be, by its record."""

    def __init__(self, attached: AttachedModel, arithmetic: Arithmetic = "torch") -> None:
        super().__init__(attached, arithmetic)
        self.attached = attached

    def of(self, attached: AttachedModel) -> "Reference":
        """Return the reference for another file, in the same arithmetic."""
        return Reference(attached, self.arithmetic)


class LevelReference:
    """Scores and labels of one level alone, for flat raw values by the billion."""

    def __init__(self, attached: AttachedModel, level: Level, arithmetic: Arithmetic) -> None:
        stats = attached.tail.stats.level(level)
        assert stats is not None, f"the {level} level is post-processed, so it is calibrated"
        self._stats, self._level, self._options = stats, level, attached.tail.options
        alone = CalibrationStats(image=stats) if level == "image" else CalibrationStats(pixel=stats)
        options = replace(self._options, enable_normalization=True, enable_thresholding=True)
        self._tail = _eager_tail(alone, options, arithmetic)

    def __call__(self, raw: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return float32 scores and boolean labels of float32 values, shape (n,)."""
        if self._level == "image":
            made = self._tail(raw, None)
            return made["pred_score"], made["pred_label"]
        made = self._tail(None, raw.reshape(-1, 1, 1))
        return made["anomaly_map"].reshape(-1), made["pred_mask"].reshape(-1)

    def anomalib(self, raw: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Return Anomalib's labels, and where ours have to equal them; None unless the rule is ``"gt"``.

        Source: anomalib 2.7.0 PostProcessor._normalize and _apply_threshold, every step in float32.
        """
        if self._options.comparison != "gt":
            return None
        stats = self._stats
        threshold, low, high = (np.float32(number) for number in (stats.threshold, stats.min, stats.max))
        cut = np.float32(1) - np.float32(self._options.sensitivity(self._level))
        with np.errstate(all="ignore"):
            unit = np.clip((raw - threshold) / (high - low) + np.float32(0.5), np.float32(0), np.float32(1))
        known = ~np.isnan(raw)
        if cut == 1:
            known &= raw != np.inf
        return unit > cut, known


def _eager_tail(stats: CalibrationStats, options: TailOptions, arithmetic: Arithmetic) -> EagerTail:
    """Return the eager tail on arrays: raw score and map in, outputs by name."""
    settings: dict[str, Any] = {
        name: getattr(options, name)
        for name in (
            *("image_sensitivity", "pixel_sensitivity", "comparison"),
            *("nan_guard", "enable_normalization", "enable_thresholding"),
        )
    }
    if arithmetic == "numpy":
        return NumpyPostProcessor(stats=stats, **settings)
    require("torch", purpose=_PURPOSE)
    from postproc_export.eager import PostProcessed, PostProcessor, on_arrays

    module = PostProcessor(stats, **settings)

    def run(score: NDArray[Any] | None, maps: NDArray[Any] | None) -> dict[str, NDArray[Any]]:
        made = zip(PostProcessed._fields, on_arrays(module, score, maps), strict=True)
        return {name: values for name, values in made if values is not None}

    return run


READS: Final[Mapping[str, Level]] = {"score": "image", "map": "pixel"}
READ_TAPS: Final[Mapping[str, str]] = {"score": "postproc-check/read_score", "map": "postproc-check/read_map"}


@dataclass(frozen=True, slots=True)
class EagerTransform:
    """The eager twin of the transform in a file."""

    record: LayerRecord
    ports: Mapping[str, PortInfo]  # what it reads, by `READS` and "image", under the names in the file
    values: Mapping[Level, str]  # what it makes for each level, under the names that `AttachedModel.cut` knows
    run: EagerSteps  # raw score and map in, raw score and map out
    steps: tuple[Transform, ...]  # the shipped transforms that it is made of; none for a class of the user's
    size: Size | None = None  # of the model's input, where it is fixed

    @classmethod
    def load(
        cls, attached: AttachedModel, named: Sequence[TailSpec] = (), arithmetic: Arithmetic = "torch"
    ) -> Self | None:
        """Return the twin of a file's transform; None where it has none, or a class that the caller does not name.

        Code that a file alone names is not imported. Raises `UsageError` where a class cannot be imported or a
        parameter in the record is not legal, `MetadataError` where the record names what cannot stand there, and
        `UsageError` or `MissingDependencyError` for a class without PyTorch.
        """
        record = attached.layer("transform")
        if record is None or unnamed_code(attached, named) is not None:
            return None
        made = attached.layer_values(record).values()
        levels = {level: port.name for level, port in attached.raw.items() if port.name in made}
        ports = attached.layer_inputs(record)
        if any(spec.is_code for spec in record.tails):
            return cls(record, ports, levels, _own_steps(record.tails[0], arithmetic), ())
        steps = resolve_all(record.tails)
        images = [port for port in attached.inputs if port.rank == 4]
        height, width = (images[0].size(2), images[0].size(3)) if len(images) == 1 else (None, None)
        size = None if height is None or width is None else (height, width)
        run = partial(behind, steps) if arithmetic == "numpy" else _steps_in_torch(steps)
        return cls(record, ports, levels, run, steps, size)

    @property
    def taps(self) -> dict[str, PortInfo]:
        """The raw values that it reads, by the names of `READ_TAPS`."""
        return {READ_TAPS[name]: port for name, port in self.ports.items() if name in READ_TAPS}

    def __call__(self, raw: RawFeeds, *, size: Size | None) -> dict[Level, NDArray[np.float32]]:
        """Return score and map behind it, as far as there are any, for raw values of any floating-point type.

        `size` is that of the model's input, for a map that is resized to it: `UsageError` where it is not known.
        A class of the user's that fails on these values raises `UnsupportedModelError`.
        """
        known = self.size or size
        if self.steps and known is None and "image" in self.ports:
            title = " ".join(spec.text for spec in self.record.tails)
            found = "no input, or several, of images [N, C, H, W]"
            raise UsageError(f"'{title}' resizes to the input's size", found=found)
        given: dict[Level, NDArray[Any]] = {}
        for level, values in raw.items():
            read = next((name for name, of in READS.items() if of == level), "")
            is_own = not self.steps and read in self.ports
            given[level] = values.astype(numpy_dtype(self.ports[read]) if is_own else np.float32, copy=False)
        try:
            made = self.run(given.get("image"), given.get("pixel"), size=known)
        except PostprocError:
            raise
        except (IndexError, RuntimeError, ValueError) as error:  # parameters of a shipped step that do not fit
            shapes = ", ".join(f"{level} {list(values.shape)}" for level, values in raw.items())
            found = " ".join(str(error).split())
            raise UnsupportedModelError(f"the recorded steps do not run on raw values {shapes}", found=found) from error
        return {level: values for level, values in zip(LEVELS, made, strict=True) if values is not None}

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


def _steps_in_torch(steps: Sequence[Transform]) -> EagerSteps:
    require("torch", purpose=_PURPOSE)
    from postproc_export.eager import on_arrays
    from postproc_export.steps.modules import Chain

    chain = Chain([step.module() for step in steps]).eval()

    def run(score: NDArray[Any] | None, maps: NDArray[Any] | None, *, size: Size | None) -> Raw:
        if size is not None:
            chain.set_size(size)
        return on_arrays(chain, score, maps)

    return run


def _own_steps(spec: TailSpec, arithmetic: Arithmetic) -> EagerSteps:
    """Return a class of the user's on arrays; it is one of PyTorch, and so refused where that does not compute."""
    if find_spec("torch") is None:
        what = f"the step '{spec.name}' is a class of PyTorch, which is not installed"
        raise MissingDependencyError(what, needed="torch, for this step alone", fix=install("torch"))
    if arithmetic == "numpy":
        what = f"the step '{spec.name}' is a class of PyTorch, and has no form in NumPy"
        raise UsageError(what, needed="--reference torch", fix="give --reference torch, or leave --reference out")
    from postproc_export.eager import on_arrays
    from postproc_export.steps.user import eager_own

    step = eager_own(spec)
    return lambda score, maps, *, size: on_arrays(step, score, maps)


def unnamed_code(attached: AttachedModel, named: Sequence[TailSpec]) -> TailSpec | None:
    """Return the class before the threshold that the record of a file names and the caller does not; None otherwise.

    Raises `MetadataError` if the record names what cannot stand there.
    """
    record = attached.layer("transform")
    tails = () if record is None else record.tails
    known = [spec.is_code or (spec.is_shipped and spec.changes_values) for spec in tails]
    if not all(known) or (len(tails) > 1 and any(spec.is_code for spec in tails)):
        raise MetadataError(
            f"{attached.path}: the record names what cannot stand before a threshold",
            found=", ".join(spec.text for spec in tails),
            needed=f"{', '.join(BEFORE)}, or one class as package.module:Class",
        )
    return next((spec for spec in tails if spec.is_code and spec not in named), None)


def _range(values: RawFeeds) -> tuple[float, float]:
    finite = [array[np.isfinite(array)] for array in values.values()]
    low = min((float(array.min()) for array in finite if array.size), default=0.0)
    return low, max((float(array.max()) for array in finite if array.size), default=0.0)


GATED: Final = "pred_mask"


class EagerDecisions:
    """The reference for the layer behind the decision, from the record of a file alone.

    `ports` are what it reads: ``"mask"``, ``"label"`` and the values that the label compares, under the names in the
    file, with types and shapes of the tail's own outputs. `boundaries` are those of the operating points, raw units, by
    output. `UsageError` or `MetadataError` where the record names what cannot stand there.
    """

    def __init__(self, attached: AttachedModel, tail: Tail) -> None:
        record = attached.layer("decision")
        assert record is not None, "something stands behind the decision"
        if unknown := [spec.text for spec in record.tails if spec.name not in BEHIND]:
            raise MetadataError(
                "the record names what cannot stand behind a decision", found=unknown[0], needed=" or ".join(BEHIND)
            )
        points: dict[str, Any] = {}
        for spec in record.tails:
            points |= spec.parameters if spec.name == "points" else {}
        found = point_boundaries(points, tail) if points and tail.names("image") else {}
        self.boundaries = {f"pred_label_{name}": boundary for name, boundary in found.items()}
        self.is_gated = any(spec.name == "gate" for spec in record.tails)
        parts = {part.name: part for part in tail.parts}
        self.label = PortInfo("pred_label", parts["pred_label"].dtype, parts["pred_label"].shape)
        self._dtypes = {name: part.dtype for name, part in parts.items()}
        self.ports: dict[str, PortInfo] = {}
        for key, port in attached.layer_inputs(record).items():
            part = self.label if key == DECIDED else parts[f"pred_{key}"]
            self.ports[key] = PortInfo(port.name, port.dtype if key == DECIDED else part.dtype, part.shape)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs that the layer gives."""
        return (*((GATED,) if self.is_gated else ()), *self.boundaries)

    def dtype(self, output: str) -> str:
        """Return the element type of an output: a point's label is of the label's."""
        return self._dtypes.get(output, self.label.dtype)

    def __call__(self, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.bool_]]:
        """Return the outputs for mask and label, 0 or 1 of any type, and the raw values that the label compares."""
        made: dict[str, NDArray[np.bool_]] = {}
        if self.is_gated:
            mask, label = (given[name].astype(bool) for name in ("mask", "label"))
            made[GATED] = mask & label.reshape(-1, *[1] * (mask.ndim - 1))
        for name, boundary in self.boundaries.items():
            with np.errstate(invalid="ignore"):
                made[name] = np.logical_not(as_float32(given[DECIDED]) < np.float32(boundary))
        return made


@dataclass(frozen=True, slots=True)
class RawFile:
    """The original of an attached file, whose record says which outputs were the raw ones."""

    path: Path
    attached: AttachedModel
    transform: EagerTransform | None = None  # what stands before the tail of the attached file
    model: Any = None  # what is loaded in place of the file: the attached one without its tail, where that gave it
    outputs: Mapping[Level, str | int] = field(default_factory=dict)  # by name or index, where not by the record
    is_cut: bool = False  # whether it was cut off, since the tail cannot be taken off as `detach` does

    def is_original(self) -> bool | None:
        """Whether this is by its content what a tail was attached to; None where nothing tells.

        Where the model in front of the tail has another content, the model that the statistics are of tells which of
        the two is the original.
        """
        form, record = self.attached.form, self.attached.record
        if format_of(self.path).name != form.name:
            return None
        here, in_front = form.digest(self.path), form.digest(self.attached.path, inputs=record.inputs)
        calibrated = record.stats.details.get(MODEL_KEY)
        if here == in_front:
            return True
        return {here: True, in_front: False}.get(calibrated.get("digest") if isinstance(calibrated, Mapping) else None)

    @property
    def level_names(self) -> tuple[str, ...]:
        """The names of the raw outputs in this file."""
        return tuple(self.attached.original_output(level).name for level in self.attached.raw)

    def describe(self) -> str:
        """Return what it is, for people."""
        if self.model is None:
            return f"the raw file {self.path}"
        return f"the file without its tail, {'cut off in front of it' if self.is_cut else 'as `detach` gives it'}"

    def bounds(self, runner: Runner) -> Mapping[Level, float]:
        """Return how far the values of a run may lie from the same transform in another float32, raw units."""
        return runner.bounds if isinstance(runner, AdaptedRunner) else {}

    @classmethod
    def of(cls, path: Path, attached: AttachedModel, transform: EagerTransform | None) -> Self:
        """Return the original that was given.

        Raises `FileError`, `UnsupportedModelError` or `UsageError` where it cannot be read, is an attached file itself
        or does not have the raw outputs of the record.
        """
        raw_file, form = cls(path, attached, transform), format_of(path)
        model = form.load(path, purpose="reading an OpenVINO IR")
        if form.recorded(model, "tail", where=str(path)) is not None:
            raise UsageError(
                f"{path} has post-processing, and is no raw file",
                needed="the original, with raw outputs",
                fix=f"give the file that {attached.path} was made of with --raw, or leave --raw out",
            )
        for port, ours in zip(form.inputs(model), attached.inputs, strict=False):
            if path.suffix.lower() == attached.path.suffix.lower() and not _may_become(port, ours):
                raise raw_file._other(f"input {port.describe()}", f"input {ours.describe()}")
        ports = tuple(form.outputs(model))
        for level in attached.host_levels:
            raw_file._port(level, ports)
        return raw_file

    def can_run(self, way: Configuration) -> bool:
        """Whether a runtime reads the format of the file."""
        return format_of(self.path).name in runner_class(way.runtime).formats

    def open(self, way: Configuration, *, threads: int | None) -> Runner:
        """Load the file, with the transform of the attached one behind it where that has one."""
        if self.model is not None:
            return way.open(self.model, threads=threads)
        check_model(self.path, noun="raw model")
        return self.behind_transform(way.open(self.path, threads=threads))

    def behind_transform(self, runner: Runner) -> Runner:
        """Return a runner of the file, or of a variant of it, with the attached one's transform behind it."""
        names = {level: self._port(level, runner.outputs).name for level in self.attached.host_levels}
        if self.transform is None:
            return runner
        transform, made, bounds = self.transform, dict[Level, str](), dict[Level, float]()
        for level in transform.values:
            made[level] = names.get(level) or self.attached.original_output(level).name

        def change(feeds: Mapping[str, NDArray[Any]], outputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            raw = {level: outputs[name] for level, name in names.items()}
            values = transform(raw, size=image_size(feeds))
            read = [raw[level] for name, level in READS.items() if name in transform.ports and level in raw]
            # Behind a host of a narrow type the runtime's transform may be of values that were not rounded to it, which
            # no transform drives further apart.
            error = transform.tolerance(raw, values).atol + max(map(_dropped, read), default=0.0)
            for level, name in made.items():
                bounds[level] = max(bounds.get(level, 0.0), error)
                outputs[name] = values[level]
            return outputs

        known = {port.name for port in runner.outputs}
        added = (PortInfo(name, "float32", None) for name in made.values() if name not in known)
        return AdaptedRunner.of(runner, outputs=(*runner.outputs, *added), change=change, bounds=bounds)

    def levels(self, outputs: Mapping[str, NDArray[Any]], runner: Runner) -> dict[Level, NDArray[Any]]:
        """Return the raw values of each level among the outputs of a run."""
        return {level: outputs[self._port(level, runner.outputs).name] for level in self.attached.raw}

    def others(self, runner: Runner) -> list[PortInfo]:
        """Return the outputs that attaching had to leave alone: those of no level that is post-processed."""
        levels = (level for level in self.attached.levels if level in self.attached.raw)
        taken = {self._port(level, runner.outputs).name for level in levels}
        return [port for port in runner.outputs if port.name not in taken]

    def frozen_axes(self, runner: Runner, attached: Runner) -> Iterator[str]:
        """Yield each axis of an input that is open in this file, run by `runner`, and of one size in the attached one.

        A file in another format was converted, maybe to one size, before anything was attached.
        """
        if self.path.suffix.lower() != self.attached.path.suffix.lower():
            return
        for port in attached.inputs:
            original = next((other for other in runner.inputs if other.answers_to(port.name)), None)
            if original is None or original.shape is None or port.shape is None:
                continue
            for axis, (size, open_size) in enumerate(zip(port.shape, original.shape, strict=False)):
                if isinstance(size, int) and not isinstance(open_size, int):
                    yield f"axis {axis} of input '{port.name}' is frozen to {size}; in the raw file it is dynamic"

    def _port(self, level: Level, ports: tuple[PortInfo, ...]) -> PortInfo:
        known = self.outputs.get(level)
        if isinstance(known, int):
            return ports[known]
        wanted = self.attached.original_output(level)
        names = (wanted.name, *wanted.aliases) if known is None else (known,)
        found = next((port for port in ports if any(port.answers_to(name) for name in names)), None)
        if found is None:
            outputs = "outputs " + ", ".join(port.describe() for port in ports)
            raise self._other(outputs, f"an output '{wanted.name}', the raw {level} output by the record")
        return found

    def _other(self, found: str, needed: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{self.path} is not the original of {self.attached.path}",
            found=found,
            needed=needed,
            fix=f"give the file that {self.attached.path} was made of with --raw, or leave --raw out",
        )


def _may_become(port: PortInfo, ours: PortInfo) -> bool:
    """Whether an input may have become another one since a tail was attached: an axis may be fixed, and none opened."""
    if port.shape is None or ours.shape is None:
        return port.dtype == ours.dtype
    axes = zip(port.shape, ours.shape, strict=False)
    is_wider = len(port.shape) == len(ours.shape) and all(axis == now for axis, now in axes if isinstance(axis, int))
    return is_wider and port.dtype == ours.dtype


def _dropped(values: NDArray[Any]) -> float:
    """Return how far raw values may lie from what they were before they were rounded to a narrow type."""
    largest = np.max(np.abs(as_float32(values)), where=np.isfinite(values), initial=0.0)
    return next((narrow(float(largest), half).atol for half in HALVES if values.dtype.name == half), 0.0)


def without_tail(attached: AttachedModel, folder: Path) -> RawFile:
    """Return an attached file without its tail, as `detach` gives it; what stands before the tail stays.

    Where the tail cannot be taken off, the file is cut off in front of it. The weights of an ONNX file are linked into
    the folder, which is empty, where the file system can.
    """
    form, model = format_of(attached.path), None
    (folder / "detached").mkdir()
    try:
        detached, model = form.edited(
            attached.path,
            folder / "detached",
            lambda model: form.take(model, "tail", where=str(attached.path)),
            purpose="checking an OpenVINO IR",
        )
    except PostprocError:
        detached = DetachResult()
    if detached:
        return RawFile(attached.path, attached, model=model, outputs=detached.raw_outputs)
    indices: dict[Level, str | int] = {level: index for index, level in enumerate(attached.raw)}
    return RawFile(attached.path, attached, model=attached.host(folder), outputs=indices, is_cut=True)
