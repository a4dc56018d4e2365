"""An attached model as its checks see it: what its tail is, which values may be off, and the cases it is tried on."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from graph_patterns.catalog import GUARD_AXES, MapForm
from graph_patterns.match import GraphView, Mismatch, Value
from postproc_export.check.assumed import Assumed
from postproc_export.check.inputs import MODERATE, SPECIAL, FloatArray, RawValues, maps_of, raw_values
from postproc_export.errors import MetadataError, PostprocError, UnsupportedModelError
from postproc_export.formats import base
from postproc_export.formats.base import recorded_names
from postproc_export.options import TailOptions
from postproc_export.ports import Guard as MapGuard
from postproc_export.ports import Selection, is_channel_last
from postproc_export.reading.found import FoundTails
from postproc_export.reading.tail import FoundTail, find_own_tail, find_parts
from postproc_export.record import LayerRecord, TailRecord, Where
from postproc_export.runtimes import PortInfo, Runner
from postproc_export.stats import Level, LevelStats
from postproc_export.tail import PACKED_OUTPUT, PARTS, Tail, TailForm, TailOutput, build_tail, guard_of, place

PURPOSE: Final = "checking an OpenVINO IR"
_FOLDED: Final = "another tool has been over it since it was attached: the form of the tail is a folded one"

Format: TypeAlias = Literal["onnx", "openvino"]
RawFeeds: TypeAlias = Mapping[Level, NDArray[Any]]
Shapes: TypeAlias = Mapping[Level, tuple[int | None, ...]]

Guard: TypeAlias = Literal["l1", "sum", "arithmetic", "none"]
"""How the image level is guarded against a NaN in its map, and which maps may make an image anomalous though none of
their values does (docs/definition.md section 5). L1 is exact. With a sum these are maps with infinities of both signs,
or whose partial sums overflow both ways; with arithmetic those with one infinity, or whose partial sums overflow. With
no guard the image score of a map with a NaN is not defined."""

_LARGEST: Final = float(np.finfo(np.float32).max)


def excused_images(maps: FloatArray, guard: Guard) -> NDArray[np.bool_]:
    """Return per map, shape (n, ...), whether its image's score may count as NaN though no value of it is NaN.

    A partial sum, in any order, lies between the sum of the negative values and the sum of the positive ones. Half of
    the largest float32 leaves room for the roundings of a sum of up to 2^23 values.
    """
    if guard in ("l1", "none"):
        return np.zeros(len(maps), bool)
    with np.errstate(invalid="ignore"):  # a cast of a signalling NaN
        values, axes = maps.astype(np.float64), tuple(range(1, maps.ndim))
        rises = np.where(values > 0, values, 0.0).sum(axis=axes) > _LARGEST / 2
        falls = np.where(values < 0, values, 0.0).sum(axis=axes) < -_LARGEST / 2
    flagged = rises & falls if guard == "sum" else rises | falls
    excused: NDArray[np.bool_] = flagged & ~np.isnan(values).any(axis=axes)
    return excused


Arrays: TypeAlias = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptedRunner(Runner):
    """A runner that feeds some inputs of another one itself, and makes something else of its outputs."""

    inner: Runner
    fed: Arrays = field(default_factory=dict)
    change: Callable[[Arrays, dict[str, NDArray[Any]]], dict[str, NDArray[Any]]] | None = None
    bounds: dict[Level, float] = field(default_factory=dict)  # how far values may lie from those of another runner

    @classmethod
    def of(cls, inner: Runner, *, outputs: Iterable[PortInfo] | None = None, **more: Any) -> Self:
        """Return a runner whose inputs are those that are left to be fed; `more` as the class takes it."""

        def left(ports: tuple[PortInfo, ...]) -> tuple[PortInfo, ...]:
            return tuple(port for port in ports if not any(map(port.answers_to, more.get("fed", ()))))

        return cls(
            label=inner.name,
            name=inner.name,
            version=inner.version,
            precision=inner.precision,
            inference_precision=inner.inference_precision,
            inputs=left(inner.inputs),
            optional=left(inner.optional),
            outputs=inner.outputs if outputs is None else tuple(outputs),
            inner=inner,
            **more,
        )

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Run the model once."""
        outputs = self.inner.run({**feeds, **self.fed})
        return outputs if self.change is None else self.change(feeds, dict(outputs))

    def reset(self) -> None:
        """Forget what earlier runs left."""
        self.inner.reset()
        self.bounds.clear()


def unpacked(runner: Runner, parts: tuple[TailOutput, ...]) -> Runner:
    """Return a runner that gives the parts of a packed output apart, as the reference does, and all else as it is.

    It raises UnsupportedModelError if the output is not [N, H, W, 4], or a score or label is not the same all over its
    image.
    """
    packed = next((port for port in runner.outputs if port.answers_to(PACKED_OUTPUT)), None)
    if packed is None:
        return runner
    # A raw value that bears the name of a part, as its tensor in an IR may, goes by another of its names.
    taken, others = {part.name for part in parts}, dict[str, PortInfo]()
    for port in runner.outputs:
        free = tuple(name for name in port.aliases if name not in taken)
        if not port.answers_to(PACKED_OUTPUT):
            other = port._replace(name=free[0] if free else f"raw {port.name}", aliases=free)
            others[port.name] = other if port.name in taken else port

    def change(_: Arrays, outputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        apart = parts_of(outputs[packed.name], parts)
        return {**apart, **{port.name: outputs[name] for name, port in others.items() if name in outputs}}

    ports = (PortInfo(part.name, part.dtype, part.shape) for part in parts)
    return AdaptedRunner.of(runner, outputs=(*ports, *others.values()), change=change)


def parts_of(values: NDArray[Any], parts: Iterable[TailOutput]) -> dict[str, NDArray[Any]]:
    """Return the parts of a packed output apart; errors are raised as `unpacked` says."""
    if values.ndim != 4 or values.shape[-1] != len(PARTS):
        raise UnsupportedModelError(
            f"the packed output has the shape {list(values.shape)}", needed=f"[N, H, W, {len(PARTS)}]"
        )
    return {part.name: _part(part, values) for part in parts}


def packed_of(parts: Arrays) -> NDArray[np.float32]:
    """Return the packed output [N, H, W, 4] of its parts, an image's values laid over its map."""
    maps = parts["anomaly_map"]
    shape = (maps.shape[0], *maps.shape[-2:])
    planes = [parts[name].reshape(shape if name in ("anomaly_map", "pred_mask") else (-1, 1, 1)) for name in PARTS]
    made = np.stack([np.broadcast_to(plane, shape) for plane in planes], axis=-1)
    return np.ascontiguousarray(made, np.float32)


def _part(part: TailOutput, values: NDArray[Any]) -> NDArray[Any]:
    """Return one part in the shape that it has apart; an image's value is taken where it is the same all over it."""
    plane = values[..., PARTS.index(part.name)]
    rank = None if part.shape is None else len(part.shape)
    if part.level == "pixel":
        return plane[:, None] if rank == 4 else plane
    flat = plane.reshape(len(plane), plane.shape[1] * plane.shape[2])  # an empty batch leaves nothing to infer
    if not np.array_equal(flat, np.repeat(flat[:, :1], flat.shape[1], axis=1), equal_nan=True):
        raise UnsupportedModelError(f"{place(part.name)} is not the same all over each image")
    column = flat[:, 0]
    return column.reshape(()) if rank == 0 and len(column) == 1 else column.reshape(-1, *[1] * (max(rank or 1, 1) - 1))


TAPS: Final[Mapping[Level, str]] = {"image": "postproc-check/raw_score", "pixel": "postproc-check/raw_map"}


class Decider:
    """What decides, in a file or in a kit that was made of it: a tail, built anew from its statistics and options."""

    tail: Tail

    def __init__(self, tail: Tail) -> None:
        self.tail = tail

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels that the tail post-processes."""
        return tuple(level for level in ("image", "pixel") if self.tail.names(level))

    @property
    def names(self) -> tuple[str, ...]:
        """The parts of the tail, in order: its outputs, or what the packed one holds."""
        return tuple(part.name for part in self.tail.parts)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The outputs of the tail, in order."""
        return tuple(output.name for output in self.tail.outputs)

    @property
    def guard(self) -> Guard:
        """How the tail guards the image level against a NaN in the map."""
        return "none" if self.tail.guard.form is None else self.tail.form.nan_test

    def boundary(self, level: Level) -> float | None:
        """Return the decision boundary of a level by the record, raw units; None where it is not post-processed."""
        return self.tail.boundary(level) if self.tail.names(level) else None

    def at(self, sensitivity: float) -> "Decider":
        """Return what decides as if both levels had been attached with a sensitivity."""
        return Decider(tail_at(self.tail, sensitivity))


def tail_at(tail: Tail, sensitivity: float) -> Tail:
    """Return a tail as it is where both levels are attached with a sensitivity, which nothing adjusts."""
    given = replace(tail.resolved_options, image_sensitivity=sensitivity, pixel_sensitivity=sensitivity)
    options = replace(given, match_thresholds=False, adjustable="nothing", as_parameters=False)
    return build_tail(
        tail.stats,
        options,
        tail.selection,
        form=tail.form,
        default_mask_dtype="bool",  # never taken: the options name one where there are masks
        guard=tail.guard,
    )


class AttachedModel(Decider, ABC):
    """An attached file of either format, what the format has to know of it, and the tail by its record."""

    format: ClassVar[Format]
    form: ClassVar[base.Format]
    path: Path
    record: TailRecord  # that attaching left, or that is assumed
    raw: Mapping[Level, PortInfo]  # the raw outputs as the original declared them, under the names of their values here
    inputs: tuple[PortInfo, ...]  # that this file declares, in order
    outputs: tuple[PortInfo, ...]
    tails: Mapping[Level, FoundTail]  # that were found in the graph, in whatever form
    remarks: tuple[str, ...]  # what became of the file since it was attached, and what was assumed; a sentence each
    view: GraphView  # the graph, for the matcher
    places: Mapping[str, Value | Mismatch]  # the value of each part in the graph, or why it has none

    def __init__(self, path: Path, assumed: Assumed | None) -> None:
        self.path, self._where = path, str(path)
        self._model: Any = self.form.load(path, purpose=PURPOSE)
        record = self.form.record(self._model, where=self._where)
        is_converted = self.form.was_converted(self._model, "tail")
        if is_converted or record is None:
            self._refuse_converted_layers()
        found = self.form.find(self._model, where=self._where)
        self.tails = {level: tail for level, tail in found.tails.items() if tail.is_ours}
        self.view, is_assumed = self.form.view(self._model), record is None
        remarks = [] if all(tail.is_as_emitted for tail in self.tails.values()) else [_FOLDED]
        if record is None:
            assumed = assumed or Assumed()
            record = self._assumed_record(found, assumed)
            remarks.append(assumed.describe(record))
        else:
            if assumed is not None:
                assumed.refuse_contradiction(record, where=path)
            recorded_names(record.original, where=self._where)
        self.record = record
        remarks = self._settle_record(remarks, is_assumed=is_assumed, is_converted=is_converted)
        self.inputs = tuple(self.form.inputs(self._model))
        self.outputs = tuple(self.form.outputs(self._model))
        self.remarks = tuple(remarks)
        self.tail = self._built(TailForm(self.nan_test), self._found_guard(), self.record.options)
        self.places, _ = find_parts(self.view, is_packed=self.tail.options.is_packed)

    def _refuse_converted_layers(self) -> None:
        """Refuse a converted file with custom steps around the tail: their records are those of the ONNX file."""
        layers: tuple[Where, ...] = ("transform", "decision")
        for layer in layers:
            record = self.layer(layer)
            if record is not None and self.form.was_converted(self._model, layer):
                raise UnsupportedModelError(
                    f"{self.path} was converted to OpenVINO with custom steps: they cannot be told from the rest",
                    found=", ".join(spec.text for spec in record.tails),
                    fix="check the ONNX file, or attach to the converted raw model",
                )

    @abstractmethod
    def _assumed_record(self, found: FoundTails, assumed: Assumed) -> TailRecord:
        """Return a record for a file that has none: its raw outputs are what the tails read."""

    @abstractmethod
    def _settle_record(self, remarks: list[str], *, is_assumed: bool, is_converted: bool) -> list[str]:
        """Take the raw outputs from the record, which becomes that of this very file; return the remarks to keep."""

    @property
    def misfits(self) -> tuple[str, ...]:
        """What the records say that does not fit the file.

        What another tool may have taken away is a misfit unless one has been over the file.
        """
        form, where = self.form, self._where
        model = form.load(self.path, purpose=PURPOSE)
        try:
            form.take(model, "decision", where=where)
            found = form.find(model, where=where)
            if not found.misfits and found.tails and form.read(model, "transform", where=where) is not None:
                form.take(model, "tail", where=where)
                form.take(model, "transform", where=where)
        except MetadataError as error:
            return (f"{error.what.removeprefix(f'{where}: ')}: {error.found}",)
        except PostprocError:
            return ()  # the tail is not as it was attached, which other checks tell
        is_touched = self.format == "onnx" and bool(self.remarks)
        return (*found.misfits, *(() if is_touched else found.doubts))

    def layer(self, layer: Where) -> LayerRecord | None:
        """Return the record of what stands before the tail or behind it; None where nothing does."""
        return self.form.read(self._model, layer, where=self._where)

    @property
    @abstractmethod
    def nan_test(self) -> Literal["sum", "l1", "arithmetic"]:
        """How a tail in this format, at this opset, finds out that a map holds a NaN."""

    @abstractmethod
    def names_in(self, original: Mapping[str, Any]) -> list[tuple[str, ...]]:
        """Return the names of each output that a record keeps of an original; a tensor of an IR may have none."""

    @abstractmethod
    def original_output(self, level: Level) -> PortInfo:
        """Return a raw output under the names that it had in the original."""

    @abstractmethod
    def is_raw(self, level: Level, value: Value) -> bool:
        """Whether a value of the graph is the raw value of a level."""

    def is_rounded(self, value: Value) -> bool:
        """Whether a node of the graph reads a constant that was compressed to fewer bits; no ONNX converter does so."""
        return False

    @abstractmethod
    def cut(self, names: tuple[str, ...], inputs: Sequence[PortInfo]) -> Any:
        """Return a model that computes outputs from some values alone: bytes of ONNX, or an `openvino.Model`.

        Names are outputs of the tail, or values inside it as `form.value_name` gives them, which are float32 then.
        Inputs give name, element type and shape of each value that becomes one; one that is not read is left out.
        Raises `UnsupportedModelError` if an output depends on more than these.
        """

    @abstractmethod
    def tapped(self, folder: Path, taps: Mapping[str, PortInfo]) -> Any:
        """Return this model with some values, by the names of their outputs, as additional float32 outputs.

        Files go into the folder, which is empty.
        """

    @abstractmethod
    def host(self, folder: Path) -> Any:
        """Return this model cut off in front of its tail: the raw values alone, in the order of `raw`, as outputs."""

    @abstractmethod
    def layer_inputs(self, record: LayerRecord) -> Mapping[str, PortInfo]:
        """Return what a layer reads, by its own names, each under the name that `cut` and `tapped` know."""

    def layer_values(self, record: LayerRecord) -> Mapping[str, str]:
        """Return what a layer makes, by output, each under the name that `cut` and the record of the tail know."""
        return record.made

    def parts_of(self, runner: Runner, values: Mapping[str, float] | None = None) -> Runner:
        """Return a runner of the file, or of its tail alone, that gives the parts apart; see `with_values`."""
        runner = self.with_values(runner, values)
        return unpacked(runner, self.tail.parts) if self.tail.options.is_packed else runner

    def with_values(self, runner: Runner, values: Mapping[str, float] | None = None) -> Runner:
        """Return a runner that feeds the inputs that adjust the tail, as far as it has them.

        By default those that have to be given get what was attached.
        """
        needed = self.tail.defaults
        given = needed if values is None else values
        ports = runner.inputs if values is None else (*runner.inputs, *runner.optional)
        fed = {name: value for name, value in given.items() if any(port.answers_to(name) for port in ports)}
        if not fed:
            return runner
        return AdaptedRunner.of(runner, fed={name: np.array(value, np.float32) for name, value in fed.items()})

    def at_sensitivity(self, sensitivity: float) -> Self:
        """Return the same file as if both levels had been attached with a sensitivity."""
        made = copy(self)
        made.tail = tail_at(self.tail, sensitivity)
        return made

    def tail_alone(self, shapes: Shapes) -> Any:
        """Return a model of the tail alone, with raw inputs of these shapes; None is a dynamic axis."""
        ports = [PortInfo(port.name, port.dtype, shapes[level]) for level, port in self.raw.items()]
        return self.cut(self.output_names, ports)

    @abstractmethod
    def save_tail(self, folder: Path, shapes: Shapes) -> tuple[str, ...]:
        """Write a model of the tail alone, ``model.onnx`` or ``model.xml``, and return what its inputs are called.

        The same tail gives the same bytes. Those that adjust it come last.
        """

    @property
    def host_levels(self) -> tuple[Level, ...]:
        """The levels that the model itself has a raw output for; a transform may have made others."""
        record = self.layer("transform")
        if record is None:
            return tuple(self.raw)
        rows = enumerate(self.names_in(record.original))
        known = {name for index, names in rows for name in names or (f"output_{index}",)}
        ports = {level: self.original_output(level) for level in self.raw}
        return tuple(level for level, port in ports.items() if not known.isdisjoint((port.name, *port.aliases)))

    @property
    def taps(self) -> dict[str, PortInfo]:
        """The raw values that the tail reads, by the names of `TAPS`."""
        return {TAPS[level]: port for level, port in self.raw.items()}

    @property
    def is_as_emitted(self) -> bool:
        """Whether no other tool changed the form of the tail."""
        return all(tail.is_as_emitted for tail in self.tails.values())

    @property
    def wanted_guard(self) -> MapGuard:
        """How the image level should be guarded, by the outputs that the original declared."""
        return guard_of(self._selection, self.record.stats, self.record.options, may_refuse=False)

    @property
    def _selection(self) -> Selection:
        is_by_rank = self.record.found.get("pixel") == "rank"
        return Selection(self.raw.get("image"), self.raw.get("pixel"), pixel_found="rank" if is_by_rank else None)

    def in_every_form(self) -> Iterator[tuple[TailOutput, ...]]:
        """Yield each part of the tail in the forms that it may have in a file."""
        pixel = self.raw.get("pixel")
        own = () if pixel is None or pixel.rank is None else GUARD_AXES.get(pixel.rank, ())
        forms = [TailForm(self.nan_test, maps) for maps in get_args(MapForm)]
        forms += [TailForm(self.nan_test, "squeezed", axes) for axes in own]
        tails = (self._built(form, self.tail.guard, self.tail.options) for form in forms)
        yield from zip(*(tail.parts for tail in tails), strict=True)

    def _found_guard(self) -> MapGuard:
        """Return the guard of the file; where it is not as it should be, `check_record` says so."""
        options = self.record.options
        wanted, found = self.wanted_guard, find_own_tail(self.view, "image", options=options)
        if options.nan_guard and isinstance(found, FoundTail) and found.guard not in (None, wanted.form):
            return MapGuard(found.guard)
        return wanted

    def _built(self, form: TailForm, guard: MapGuard, options: TailOptions) -> Tail:
        return build_tail(
            self.record.stats, options, self._selection, form=form, default_mask_dtype=self.form.mask_dtype, guard=guard
        )


SIZES: Final = ((16, 16), (7, 5))
_SMALL: Final = 256  # pixels; smaller maps get the critical values only,
_SMALL_FIXED: Final = 4096  # and more so where a fixed batch size makes for many runs
_LARGE: Final = 1 << 22  # and so do larger ones, for their time
_MOST_ELEMENTS: Final = 1 << 24
_BATCH_ELEMENTS: Final = 1 << 22
_PLAIN: Final = LevelStats(threshold=0.5, min=0.0, max=1.0)


def tail_cases(attached: AttachedModel, *, count: int, seed: int) -> Iterator[tuple[str, Shapes, tuple[RawFeeds, ...]]]:
    """Yield what the tail alone is fed: a name, the shapes that its inputs declare, and raw values run by run.

    The first case has one value per image and per map, and a dynamic batch whatever the file declares, so that every
    value decides alone on both levels; a tail whose fixed shapes another tool made constants of takes no other batch.
    The second keeps to the declared shapes, with maps of many values.
    """
    values = {level: _values(attached, level, count=count, seed=seed) for level in attached.raw}
    axes = {level: axes_of(port) for level, port in attached.raw.items()}
    if attached.is_as_emitted or _batch(attached) is None:
        loose = {level: (None,) * max(1, len(of_level)) for level, of_level in axes.items()}
        yield "one value per map", loose, tuple(_apart(attached, _singly(attached, values)))
    yield "declared shapes", axes, tuple(_declared(attached, values))
    if all(of_level[:1] == (None,) for of_level in axes.values()):
        ports = attached.raw
        size = _sizes(ports["pixel"])[0] if "pixel" in ports else (1, 1)
        empty = {level: np.zeros((0, *size) if level == "pixel" else 0) for level in ports}
        nothing = {level: _shaped(array, ports[level], size) for level, array in empty.items()}
        yield "empty batch", axes, (nothing,)


def _values(attached: AttachedModel, level: Level, *, count: int, seed: int) -> RawValues:
    """Return adversarial raw values; a map without a tail of its own is fed what troubles the image level."""
    source: Level = level if attached.tail.names(level) else "image"
    stats, boundary = attached.tail.stats.level(source), attached.boundary(source)
    dtype = attached.raw[level].dtype
    if stats is None or boundary is None:
        return raw_values(_PLAIN, 0.5, dtype=dtype, count=count, seed=seed)
    return raw_values(stats, boundary, dtype=dtype, count=count, seed=seed + (level == "pixel"))


def _singly(attached: AttachedModel, values: Mapping[Level, RawValues]) -> RawFeeds:
    """One value per image and per map; where one level's value is special, the other's is an ordinary one."""
    length = max(len(of_level.all) for of_level in values.values()) + len(SPECIAL)
    feeds: dict[Level, NDArray[Any]] = {}
    for level, of_level in values.items():
        fill = np.resize(of_level.critical, length - len(of_level.all))
        column = np.concatenate([of_level.all, fill])
        column = column[::-1] if level == "pixel" else column
        port = attached.raw[level]
        feeds[level] = column.reshape(-1, *[1] * (max(1, len(axes_of(port))) - 1)).astype(numpy_dtype(port))
    return feeds


def _apart(attached: AttachedModel, feeds: RawFeeds) -> Iterator[RawFeeds]:
    """Yield the runs of what is fed: a guard that reduces over all maps sees each special value in a run of its own."""
    if attached.tail.guard.form != "all":
        yield feeds
        return
    with np.errstate(invalid="ignore"):  # a cast of a signalling NaN
        maps = feeds["pixel"].astype(np.float64).ravel()
    kinds = np.select([~np.isfinite(maps), maps >= MODERATE, maps <= -MODERATE], [3, 2, 1])
    groups = [np.flatnonzero(kinds == kind) for kind in range(3)] + list(np.flatnonzero(kinds == 3)[:, np.newaxis])
    for group in groups:
        if group.size:
            run = group if group.size > 1 else np.repeat(group, 2)  # one alone might lose its axis on the way
            yield {level: values[run] for level, values in feeds.items()}


def _declared(attached: AttachedModel, values: Mapping[Level, RawValues]) -> Iterator[RawFeeds]:
    ports, fixed = attached.raw, _batch(attached)
    if "pixel" not in ports:
        few = values["image"].few
        per_run = fixed or len(few)
        for start in range(0, len(few), per_run):
            chunk = np.arange(start, start + per_run) % len(few)
            yield {"image": _shaped(few[chunk], ports["image"], (1, 1))}
        return
    for size in _sizes(ports["pixel"]):
        elements = size[0] * size[1]
        few_only = not (_SMALL if fixed is None else _SMALL_FIXED) <= elements <= _LARGE
        maps = _packed(attached, values["pixel"], size, few=few_only)
        per_run = fixed or max(1, _BATCH_ELEMENTS // elements)
        scores = np.resize(values["image"].few, len(maps)) if "image" in values else None
        for start in range(0, len(maps), per_run):
            chunk = np.arange(start, start + per_run if fixed else min(start + per_run, len(maps))) % len(maps)
            feeds: dict[Level, NDArray[Any]] = {"pixel": _shaped(maps[chunk], ports["pixel"], size)}
            if scores is not None:
                feeds["image"] = _shaped(scores[chunk], ports["image"], size)
            yield feeds


def _packed(attached: AttachedModel, values: RawValues, size: tuple[int, int], *, few: bool) -> FloatArray:
    """Pack the values into maps; of the special ones only as many as large maps leave room for, NaN first.

    They are filled up with a value that both levels call normal if any, so that what a special one does to an image
    shows.
    """
    room = max(2, _MOST_ELEMENTS // (size[0] * size[1]))
    levels = (attached.tail.stats.level(level) for level in attached.levels)
    filler = min((stats.min for stats in levels if stats is not None), default=0.0)
    kept = replace(values, special=values.special[:room])
    return maps_of(kept, height=size[0], width=size[1], filler=filler, few=few)


def _sizes(port: PortInfo) -> list[tuple[int, int]]:
    height, width = axes_of(port)[1:3] if is_channel_last(port) else axes_of(port)[-2:]
    if height is not None and width is not None:
        return [(height, width)]
    return [(height or rows, width or columns) for rows, columns in SIZES]


def _batch(attached: AttachedModel) -> int | None:
    """Return the static batch size; 1 for a scalar score."""
    dims = [axes_of(port) for port in attached.raw.values()]
    return next((axes[0] if axes else 1 for axes in dims if not axes or axes[0] is not None), None)


def _shaped(values: NDArray[Any], port: PortInfo, size: tuple[int, int]) -> NDArray[Any]:
    """Give values of one image each, or maps, the axes that the port declares."""
    axes = len(axes_of(port))
    typed = values.astype(numpy_dtype(port))
    if values.ndim > 1 and is_channel_last(port):
        return typed[..., np.newaxis]
    if values.ndim > 1:
        return typed.reshape(len(typed), *[1] * (axes - 3), *size)
    return typed.reshape(() if axes == 0 else (len(typed), *[1] * (axes - 1)))


def axes_of(port: PortInfo) -> tuple[int | None, ...]:
    """Return the declared axes; a score of unknown rank is taken as one per image."""
    if port.shape is None:
        return (None,)
    return tuple(axis if isinstance(axis, int) else None for axis in port.shape)


def fits(raw: RawFeeds, shapes: Shapes) -> bool:
    """Whether raw values can be fed to a model that declares these shapes."""

    def is_of(size: tuple[int, ...], axes: tuple[int | None, ...]) -> bool:
        return len(axes) == len(size) and all(axis in (None, number) for axis, number in zip(axes, size, strict=True))

    return all(is_of(values.shape, shapes[level]) for level, values in raw.items())


def numpy_dtype(port: PortInfo) -> np.dtype[Any]:
    """Return the NumPy type of a port's elements."""
    if port.dtype != "bfloat16":
        return np.dtype(port.dtype)
    import ml_dtypes

    bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return bfloat16
