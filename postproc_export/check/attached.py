"""An attached model as its checks see it: what its tail is, which values may be off, and the cases it is tried on."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from graph_patterns.match import Mismatch, Value
from postproc_export.check.assumed import Assumed
from postproc_export.check.attached_files import ModelFile, Shapes, open_file
from postproc_export.check.inputs import MODERATE, SPECIAL, FloatArray, RawValues, maps_of, raw_values
from postproc_export.errors import UnsupportedModelError
from postproc_export.options import TailOptions
from postproc_export.ports import Guard as MapGuard
from postproc_export.ports import Selection
from postproc_export.reading.tail import FoundTail, find_own_tail, find_parts
from postproc_export.runtimes import PortInfo, Runner
from postproc_export.stats import Level, LevelStats
from postproc_export.tail import PACKED_OUTPUT, PARTS, Tail, TailOutput, build_tail, guard_of, place

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
    with np.errstate(invalid="ignore"):  # a cast of a signalling NaN
        values, axes = maps.astype(np.float64), tuple(range(1, maps.ndim))
        rises = np.where(values > 0, values, 0.0).sum(axis=axes) > _LARGEST / 2
        falls = np.where(values < 0, values, 0.0).sum(axis=axes) < -_LARGEST / 2
    match guard:
        case "sum":
            flagged = rises & falls
        case "arithmetic":
            flagged = rises | falls
        case "l1" | "none":
            flagged = np.zeros(len(maps), bool)
    excused: NDArray[np.bool_] = flagged & ~np.isnan(values).any(axis=axes)
    return excused


Arrays: TypeAlias = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptedRunner(Runner):
    """A runner that feeds some inputs of another one itself, and makes something else of its outputs."""

    inner: Runner
    fed: Arrays = field(default_factory=dict)
    change: Callable[[Arrays, dict[str, NDArray[Any]]], dict[str, NDArray[Any]]] | None = None
    bounds: Mapping[Level, float] = field(default_factory=dict)  # how far values may lie from those of another runner

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
            other = replace(port, name=free[0] if free else f"raw {port.name}", aliases=free)
            others[port.name] = other if port.name in taken else port

    def change(_: Arrays, outputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        values = outputs[packed.name]
        if values.ndim != 4 or values.shape[-1] != len(PARTS):
            raise UnsupportedModelError(
                f"the packed output has the shape {list(values.shape)}", needed=f"[N, H, W, {len(PARTS)}]"
            )
        apart = {part.name: _part(part, values) for part in parts}
        return {**apart, **{port.name: outputs[name] for name, port in others.items() if name in outputs}}

    ports = (PortInfo(part.name, part.dtype, part.shape) for part in parts)
    return AdaptedRunner.of(runner, outputs=(*ports, *others.values()), change=change)


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


@dataclass(frozen=True, slots=True)
class AttachedModel:
    """An attached file, and the tail that its record says it has."""

    path: Path
    file: ModelFile  # what its format knows of it
    tail: Tail  # built anew from the statistics and options of the record
    places: Mapping[str, Value | Mismatch]  # the value of each part in the graph, or why it has none

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

    def parts_of(self, runner: Runner, values: Mapping[str, float] | None = None) -> Runner:
        """Return a runner of the file, or of its tail alone, that gives the parts apart; see `with_values`."""
        runner = self.with_values(runner, values)
        return unpacked(runner, self.tail.parts) if self.tail.options.is_packed else runner

    def with_values(self, runner: Runner, values: Mapping[str, float] | None = None) -> Runner:
        """Return a runner that feeds the inputs that adjust the tail, as far as it has them.

        By default those that have to be given get what was attached.
        """
        needed = {item.name: item.default for item in self.tail.adjustable}
        given = needed if values is None else values
        ports = runner.inputs if values is None else (*runner.inputs, *runner.optional)
        fed = {name: value for name, value in given.items() if any(port.answers_to(name) for port in ports)}
        if not fed:
            return runner
        return AdaptedRunner.of(runner, fed={name: np.array(value, np.float32) for name, value in fed.items()})

    def at_sensitivity(self, sensitivity: float) -> Self:
        """Return the same file as if both levels had been attached with a sensitivity."""
        options = replace(
            self.tail.options, image_sensitivity=sensitivity, pixel_sensitivity=sensitivity, adjustable="nothing"
        )
        return replace(self, tail=_built(self.file, options))

    def tail_alone(self, shapes: Shapes) -> Any:
        """Return a model of the tail alone, with raw inputs of these shapes; None is a dynamic axis."""
        ports = [PortInfo(port.name, port.dtype, shapes[level]) for level, port in self.file.raw.items()]
        return self.file.cut(self.output_names, ports)

    @property
    def host_levels(self) -> tuple[Level, ...]:
        """The levels that the model itself has a raw output for; a transform may have made others."""
        names = self.file.host_names
        ports = {level: self.file.original_output(level) for level in self.file.raw}
        return tuple(
            level for level, port in ports.items() if names is None or not names.isdisjoint((port.name, *port.aliases))
        )

    @property
    def taps(self) -> dict[str, PortInfo]:
        """The raw values that the tail reads, by the names of `TAPS`."""
        return {TAPS[level]: port for level, port in self.file.raw.items()}

    @property
    def is_as_emitted(self) -> bool:
        """Whether no other tool changed the form of the tail."""
        return all(tail.is_as_emitted for tail in self.file.tails.values())

    @property
    def guard(self) -> Guard:
        """How the tail guards the image level against a NaN in the map."""
        return "none" if self.tail.guard.form is None else self.file.nan_test


def load_attached(path: Path, assumed: Assumed | None = None) -> AttachedModel:
    """Read an attached file and build the tail anew that its record describes.

    `assumed` stands in for the record where that is gone, and has to agree with it where it is there. Raises
    `FileError` for a file that cannot be read, `MetadataError` for an illegal record, `UnsupportedModelError` where
    there is none and nothing in its place, `UsageError` where what is given contradicts it or does not calibrate what
    the file decides.
    """
    file = open_file(path, assumed)
    tail = _built(file, file.record.options)
    places, _ = find_parts(file.view, is_packed=tail.options.is_packed)
    return AttachedModel(path, file, tail, places)


def guard_rule(file: ModelFile, options: TailOptions) -> MapGuard:
    """Return how the image level of a file should be guarded, by the outputs that its original declared."""
    return guard_of(_selection(file), file.record.stats, options, may_refuse=False)


def _built(file: ModelFile, options: TailOptions) -> Tail:
    guard = guard_rule(file, options)
    found = find_own_tail(file.view, "image", options=options)
    if options.nan_guard and isinstance(found, FoundTail) and found.guard not in (None, guard.form):
        guard = MapGuard(found.guard)  # `check_record` says what is wrong with it
    return build_tail(
        file.record.stats,
        options,
        _selection(file),
        nan_test=file.nan_test,
        default_mask_dtype=file.form.mask_dtype,
        guard=guard,
    )


def _selection(file: ModelFile) -> Selection:
    is_by_rank = file.record.found.get("pixel") == "rank"
    return Selection(file.raw.get("image"), file.raw.get("pixel"), pixel_found="rank" if is_by_rank else None)


RawFeeds: TypeAlias = Mapping[Level, NDArray[Any]]

SIZES: Final = ((16, 16), (7, 5))
_SMALL: Final = 256  # pixels; smaller maps get the critical values only,
_SMALL_FIXED: Final = 4096  # and more so where a fixed batch size makes for many runs
_LARGE: Final = 1 << 22  # and so do larger ones, for their time
_MOST_ELEMENTS: Final = 1 << 24
_BATCH_ELEMENTS: Final = 1 << 22
_PLAIN: Final = LevelStats(threshold=0.5, min=0.0, max=1.0)


@dataclass(frozen=True, slots=True)
class Case:
    """Raw values for the tail alone."""

    name: str  # what is special about the shapes
    shapes: Shapes  # that the tail's inputs declare; None is a dynamic axis
    feeds: tuple[RawFeeds, ...]  # one mapping of raw values per run


def tail_cases(attached: AttachedModel, *, count: int, seed: int) -> Iterator[Case]:
    """Yield everything that the tail alone is fed.

    The first case has one value per image and per map, and a dynamic batch whatever the file declares, so that every
    value decides alone on both levels; a tail whose fixed shapes another tool made constants of takes no other batch.
    The second keeps to the declared shapes, with maps of many values.
    """
    values = {level: _values(attached, level, count=count, seed=seed) for level in attached.file.raw}
    axes = {level: axes_of(port) for level, port in attached.file.raw.items()}
    if attached.is_as_emitted or _batch(attached) is None:
        loose = {level: (None,) * max(1, len(of_level)) for level, of_level in axes.items()}
        yield Case("one value per map", loose, tuple(_apart(attached, _singly(attached, values))))
    yield Case("declared shapes", axes, tuple(_declared(attached, values)))
    if all(of_level[:1] == (None,) for of_level in axes.values()):
        ports = attached.file.raw
        size = _sizes(ports["pixel"])[0] if "pixel" in ports else (1, 1)
        empty = {level: np.zeros((0, *size) if level == "pixel" else 0) for level in ports}
        nothing = {level: _shaped(array, ports[level], size) for level, array in empty.items()}
        yield Case("empty batch", axes, (nothing,))


def boundary_of(attached: AttachedModel, level: Level) -> float | None:
    """Return the decision boundary of a level by the record, raw units; None where it is not post-processed."""
    return attached.tail.boundary(level) if attached.tail.names(level) else None


def _values(attached: AttachedModel, level: Level, *, count: int, seed: int) -> RawValues:
    """Return adversarial raw values; a map without a tail of its own is fed what troubles the image level."""
    source: Level = level if attached.tail.names(level) else "image"
    stats, boundary = attached.tail.stats.level(source), boundary_of(attached, source)
    dtype = attached.file.raw[level].dtype
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
        port = attached.file.raw[level]
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
    ports, fixed = attached.file.raw, _batch(attached)
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
    height, width = axes_of(port)[-2:]
    if height is not None and width is not None:
        return [(height, width)]
    return [(height or rows, width or columns) for rows, columns in SIZES]


def _batch(attached: AttachedModel) -> int | None:
    """Return the static batch size; 1 for a scalar score."""
    dims = [axes_of(port) for port in attached.file.raw.values()]
    return next((axes[0] if axes else 1 for axes in dims if not axes or axes[0] is not None), None)


def _shaped(values: NDArray[Any], port: PortInfo, size: tuple[int, int]) -> NDArray[Any]:
    """Give values of one image each, or maps, the axes that the port declares."""
    axes = len(axes_of(port))
    typed = values.astype(numpy_dtype(port))
    if axes >= 3:
        return typed.reshape(len(typed), *[1] * (axes - 3), *size)
    return typed.reshape(() if axes == 0 else (len(typed), *[1] * (axes - 1)))


def axes_of(port: PortInfo) -> tuple[int | None, ...]:
    """Return the declared axes; a score of unknown rank is taken as one per image."""
    if port.shape is None:
        return (None,)
    return tuple(axis if isinstance(axis, int) else None for axis in port.shape)


def numpy_dtype(port: PortInfo) -> np.dtype[Any]:
    """Return the NumPy type of a port's elements."""
    if port.dtype != "bfloat16":
        return np.dtype(port.dtype)
    import ml_dtypes

    bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return bfloat16
