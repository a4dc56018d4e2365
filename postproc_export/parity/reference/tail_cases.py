"""What the tail alone is fed: every value in a map of its own, maps of the declared size, and nothing at all."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from postproc_export.parity.fed.inputs import MODERATE, SPECIAL, FloatArray, RawValues, maps_of, raw_values
from postproc_export.parity.models.attached_model import AttachedModel
from postproc_export.parity.models.model_file import Shapes
from postproc_export.runtimes.protocol import PortInfo
from postproc_export.stats import Level, LevelStats

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
    """Raw values for the tail alone.

    Parameters
    ----------
    name
        What is special about the shapes.
    shapes
        The shapes that the tail's inputs declare; None is a dynamic axis.
    feeds
        One mapping of raw values per run.
    """

    name: str
    shapes: Shapes
    feeds: tuple[RawFeeds, ...]


def tail_cases(attached: AttachedModel, *, count: int, seed: int) -> Iterator[Case]:
    """Yield everything that the tail alone is fed.

    Notes
    -----
    The first case has one value per image and per map, and a dynamic batch whatever the file declares, so that every
    value decides alone on both levels; a tail whose fixed shapes another tool made constants of takes no other batch.
    The second keeps to the declared shapes, with maps of many values.
    """
    values = {level: _values(attached, level, count=count, seed=seed) for level in attached.file.raw}
    if attached.is_as_emitted or _batch(attached) is None:
        yield Case("one value per map", _loose_shapes(attached), tuple(_apart(attached, _singly(attached, values))))
    yield Case("declared shapes", _declared_shapes(attached), tuple(_declared(attached, values)))
    if all(axes_of(port)[:1] == (None,) for port in attached.file.raw.values()):
        yield Case("empty batch", _declared_shapes(attached), (_nothing(attached),))


def boundary_of(attached: AttachedModel, level: Level) -> float | None:
    """Return the decision boundary of a level by the record, raw units; None where it is not post-processed."""
    return attached.tail.boundary(level) if attached.tail.names(level) else None


def _values(attached: AttachedModel, level: Level, *, count: int, seed: int) -> RawValues:
    """Return raw values that seek trouble; a map without a tail of its own is fed what troubles the image level."""
    source: Level = level if attached.tail.names(level) else "image"
    stats, boundary = attached.tail.stats.level(source), boundary_of(attached, source)
    dtype = attached.file.raw[level].dtype
    if stats is None or boundary is None:
        return raw_values(_PLAIN, 0.5, dtype=dtype, count=count, seed=seed)
    return raw_values(stats, boundary, dtype=dtype, count=count, seed=seed + (level == "pixel"))


def _singly(attached: AttachedModel, values: Mapping[Level, RawValues]) -> RawFeeds:
    """One value per image and per map; where one level's value is special, the other's is an ordinary one."""
    extra = len(SPECIAL)
    length = max(len(of_level.all) for of_level in values.values()) + extra
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
    port = attached.file.raw.get("pixel")
    if port is None:
        yield from _declared_scores(attached.file.raw["image"], values["image"].few)
        return
    for size in _sizes(port):
        fixed = _batch(attached)
        few = not _small(fixed) <= size[0] * size[1] <= _LARGE
        maps = _packed(values["pixel"], size, filler=_filler(attached), few=few)
        per_run = fixed or max(1, _BATCH_ELEMENTS // (size[0] * size[1]))
        scores = np.resize(values["image"].few, len(maps)) if "image" in values else None
        for start in range(0, len(maps), per_run):
            chunk = np.arange(start, start + per_run if fixed else min(start + per_run, len(maps))) % len(maps)
            feeds: dict[Level, NDArray[Any]] = {"pixel": _shaped(maps[chunk], port, size)}
            if scores is not None:
                feeds["image"] = _shaped(scores[chunk], attached.file.raw["image"], size)
            yield feeds


def _declared_scores(port: PortInfo, few: FloatArray) -> Iterator[RawFeeds]:
    dims = axes_of(port)
    fixed = 1 if not dims else dims[0]
    per_run = fixed or len(few)
    for start in range(0, len(few), per_run):
        yield {"image": _shaped(few[np.arange(start, start + per_run) % len(few)], port, (1, 1))}


def _nothing(attached: AttachedModel) -> RawFeeds:
    ports = attached.file.raw
    size = _sizes(ports["pixel"])[0] if "pixel" in ports else (1, 1)
    return {
        level: _shaped(np.zeros((0, *size) if level == "pixel" else 0), port, size) for level, port in ports.items()
    }


def _packed(values: RawValues, size: tuple[int, int], *, filler: float, few: bool) -> FloatArray:
    """Pack the values into maps; of the special ones only as many as large maps leave room for, NaN first."""
    elements = size[0] * size[1]
    room = max(2, _MOST_ELEMENTS // elements)
    kept = RawValues(
        critical=values.critical,
        ordinary=values.ordinary,
        rising=values.rising,
        falling=values.falling,
        special=values.special[:room],
    )
    return maps_of(kept, height=size[0], width=size[1], filler=filler, few=few)


def _small(fixed_batch: int | None) -> int:
    return _SMALL if fixed_batch is None else _SMALL_FIXED


def _filler(attached: AttachedModel) -> float:
    """A raw value that both levels call normal if any, so that what a special value does to an image shows."""
    levels = (attached.tail.stats.level(level) for level in attached.levels)
    return min((stats.min for stats in levels if stats is not None), default=0.0)


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


def _loose_shapes(attached: AttachedModel) -> Shapes:
    return {level: (None,) * max(1, len(axes_of(port))) for level, port in attached.file.raw.items()}


def _declared_shapes(attached: AttachedModel) -> Shapes:
    return {level: axes_of(port) for level, port in attached.file.raw.items()}


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
