"""What is run in a check: what a file gives to run, and runners around it that unpack outputs and fill inputs in."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from graph_patterns.match import Value
from postproc_export.errors import UnsupportedModelError, UsageError
from postproc_export.float32 import shortest
from postproc_export.formats.found import OUTSIDE, FoundTails, is_exported
from postproc_export.options import TailOptions
from postproc_export.reading.tail import FoundTail
from postproc_export.record import METADATA_KEY, TailRecord
from postproc_export.runtimes import PortInfo, Precision, Runner
from postproc_export.stats import LEVELS, CalibrationStats, Level
from postproc_export.tail import PACKED_OUTPUT, PARTS, TailOutput, place
from postproc_export.update import state_of

# --- What the check has to know of an attached file, whatever its format.

Format: TypeAlias = Literal["onnx", "openvino"]
FOLDED: Final = "another tool has been over it since it was attached: the form of the tail is a folded one"

Shapes: TypeAlias = Mapping[Level, tuple[int | None, ...]]


def no_record(path: Path, found: FoundTails) -> UnsupportedModelError:
    """Return the error for a file that attaching did not write, or that lost its record."""
    tails = found.tails.values()
    exported = [name for tail in tails if is_exported(tail) for name in tail.outputs]
    shown = f"no entry '{METADATA_KEY}' in its metadata, and no tail that is known"
    fix = "attach to the raw model with `postproc-export attach`, or use a copy whose metadata was not stripped"
    if exported:
        states = state_of(found.tails, None).stats
        stats = "" if all(states.level(level) is not None for level in found.tails) else " --stats FILE"
        shown = f"post-processing that was exported with the model, at {', '.join(exported)}"
        fix = f"let our tail take its place with `postproc-export update{stats}`, and check what that writes"
        fix = fix if found.is_whole else OUTSIDE
    elif tails:
        shown = f"no entry '{METADATA_KEY}' in its metadata"
        fix = "give the statistics that it was attached with (--stats), or use a copy whose metadata was not stripped"
    return UnsupportedModelError(
        f"{path} cannot be checked: it has no record of a tail",
        found=shown,
        needed="a file written by `postproc-export attach` or `postproc-export update`",
        fix=fix,
    )


def own_tails(tails: Mapping[Level, FoundTail]) -> dict[Level, FoundTail]:
    """Return the tails that are ours."""
    return {level: tail for level, tail in tails.items() if tail.is_ours}


def read_values(tails: Mapping[Level, FoundTail]) -> dict[Level, Value]:
    """Return the raw value of each level that tails read, the guard's map among them."""
    values: dict[Level, list[Value]] = {"image": [], "pixel": []}
    for level, tail in tails.items():
        values["pixel" if tail.from_map else level].append(tail.raw)
    values["pixel"] += [tail.guard_maps for tail in tails.values() if tail.guard_maps is not None]
    return {level: found[0] for level, found in values.items() if found}


def folded(tails: Mapping[Level, FoundTail]) -> list[str]:
    """Return a sentence where the tail is not in the form that attaching gives it."""
    return [] if all(tail.is_as_emitted for tail in tails.values()) else [FOLDED]


# --- What a file whose record is gone is judged by: statistics that are given, and options that are given or assumed.

_GIVEN: Final = ("image_sensitivity", "pixel_sensitivity", "comparison")


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What is given beside a file; where the file has a record it has to agree with that.

    Parameters
    ----------
    stats
        The statistics that the tail was made from; None where none were given.
    path
        The file that they came from; None where they came from memory.
    image_sensitivity, pixel_sensitivity, comparison
        As the tail was attached with; None is the default of attaching.
    """

    stats: CalibrationStats | None = None
    path: str | Path | None = None
    image_sensitivity: float | None = None
    pixel_sensitivity: float | None = None
    comparison: Any = None

    @property
    def where(self) -> str:
        """Where the statistics came from, for people."""
        return "the statistics" if self.path is None else str(self.path)

    @property
    def options(self) -> dict[str, Any]:
        """The options that were given."""
        return {name: getattr(self, name) for name in _GIVEN if getattr(self, name) is not None}

    @property
    def arguments(self) -> tuple[str, ...]:
        """What gives the same on the command line; statistics in memory cannot be given there."""
        stats = [] if self.path is None else ["--stats", str(self.path)]
        options = (f"--{name.replace('_', '-')}={value}" for name, value in self.options.items())
        return (*stats, *options)

    def record(
        self, found: FoundTails, raw: Mapping[Level, str], original: Mapping[str, Any], *, where: Any
    ) -> TailRecord:
        """Return a record for a file that has none.

        Parameters
        ----------
        found
            What is in the graph.
        raw, original
            As a record of the format has them.
        where
            The file.

        Raises
        ------
        UnsupportedModelError
            If no statistics were given, or there is no tail that was attached.
        UsageError
            If they do not calibrate what the file decides.
        """
        tails = own_tails(found.tails)
        if self.stats is None or not tails or any(_was_exported(tail) for tail in found.tails.values()):
            raise no_record(where, found)
        options = state_of(tails, None).options
        default = TailOptions()
        options = replace(options, **{name: self.options.get(name, getattr(default, name)) for name in _GIVEN})
        if len(tails) < len(LEVELS):
            options = replace(options, levels=next(iter(tails)))
        stats, lacking = self.stats, [level for level in tails if not _is_calibrated(self.stats, level)]
        if lacking and all(_has_range(stats, level) for level in lacking):
            options, stats = replace(options, match_thresholds=True), stats.with_matched_thresholds()
            lacking = [level for level in tails if not _is_calibrated(stats, level)]
        if lacking:
            raise UsageError(
                f"{self.where} does not calibrate the {' and '.join(lacking)} level, which {where} decides by",
                needed="the statistics that the file was attached with",
            )
        return TailRecord(version="", stats=stats, options=options, raw=raw, original=original)

    def describe(self, record: TailRecord) -> str:
        """Return what was assumed of a file without a record, for people."""
        told = [_told(record.options, name, is_given=name in self.options) for name in _GIVEN if _matters(record, name)]
        return f"the file has no record '{METADATA_KEY}': judged by {self.where}, {', '.join(told)}"

    def refuse_contradiction(self, record: TailRecord, *, where: Any) -> None:
        """Refuse what is not as the record of a file has it.

        Raises
        ------
        UsageError
            If there is such.
        """
        given = replace(record.options, **self.options)
        wrong = [
            f"{item.name} is {_shown(record.options, item.name)} by the record, {_shown(given, item.name)} as given"
            for item in fields(TailOptions)
            if getattr(given, item.name) != getattr(record.options, item.name)
        ]
        wrong += self._other_statistics(record)
        if wrong:
            raise UsageError(
                f"{where} has a record that says otherwise than what is given",
                found="; ".join(wrong),
                needed="what the record says, or nothing: then the record is used",
                fix="leave the option out; or `postproc-export update` the file, if the record is what is wrong",
            )

    def _other_statistics(self, record: TailRecord) -> Iterator[str]:
        if self.stats is None:
            return
        stats = self.stats.with_matched_thresholds() if record.options.match_thresholds else self.stats
        for level in record.levels:
            ours, given = record.stats.level(level), stats.level(level)
            for name in ("threshold", "min", "max"):
                recorded, found = getattr(ours, name), getattr(given, name, None)
                if recorded != found:
                    yield f"{name} of the {level} level is {recorded} by the record, {found} in {self.where}"


def _told(options: TailOptions, name: str, *, is_given: bool) -> str:
    return f"{name.replace('_', ' ')} {_shown(options, name)} ({'given' if is_given else 'the default'})"


def _shown(options: TailOptions, name: str) -> str:
    value = getattr(options, name)
    return str(shortest(value)) if isinstance(value, float) else str(value)


def _matters(record: TailRecord, name: str) -> bool:
    """Whether an option has any effect on the file."""
    level = name.removesuffix("_sensitivity")
    return record.options.enable_thresholding and (name == "comparison" or level in record.levels)


def _was_exported(tail: FoundTail) -> bool:
    """Whether a tail was surely never attached: one with labels alone looks like the eager module's once converted."""
    return is_exported(tail) and not (tail.is_ours and tail.decides and not tail.is_normalised)


def _is_calibrated(stats: CalibrationStats, level: Level) -> bool:
    of_level = stats.level(level)
    return of_level is not None and of_level.is_calibrated


def _has_range(stats: CalibrationStats, level: Level) -> bool:
    return stats.level(level) is not None


# --- A runner around another one, to change some of what it takes or gives.


@dataclass(frozen=True, slots=True)
class WrappedRunner:
    """All of a runner but `run`, as another one has it.

    Parameters
    ----------
    inner
        The runner of a file, or of a tail alone.
    """

    inner: Runner

    @property
    def name(self) -> str:
        """Runtime and device."""
        return self.inner.name

    @property
    def version(self) -> str:
        """Version of the runtime."""
        return self.inner.version

    @property
    def precision(self) -> Precision:
        """The precision that was asked for."""
        return self.inner.precision

    @property
    def inference_precision(self) -> str:
        """What the runtime says it computes in."""
        return self.inner.inference_precision

    @property
    def inputs(self) -> tuple[PortInfo, ...]:
        """The inputs that have to be fed."""
        return self.inner.inputs

    @property
    def optional(self) -> tuple[PortInfo, ...]:
        """The inputs that need not be fed."""
        return self.inner.optional

    @property
    def outputs(self) -> tuple[PortInfo, ...]:
        """The outputs."""
        return self.inner.outputs


# --- A runner of a packed tail that gives its four parts apart, as the reference does.


@dataclass(frozen=True, slots=True)
class UnpackedRunner(WrappedRunner):
    """A runner whose packed output is taken apart; what else the model gives is passed on.

    Parameters
    ----------
    parts
        The parts, with the ranks that they have apart.
    """

    parts: tuple[TailOutput, ...]

    @property
    def outputs(self) -> tuple[PortInfo, ...]:
        """The parts in place of the packed output, then the others; all as they are where it is not there."""
        if not any(port.answers_to(PACKED_OUTPUT) for port in self.inner.outputs):
            return self.inner.outputs
        parts = (PortInfo(part.name, part.dtype, part.shape) for part in self.parts)
        return (*parts, *(self._renamed(port) for port in self._others()))

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the model once and take its packed output apart.

        Raises
        ------
        UnsupportedModelError
            If the output is not [N, H, W, 4], or a score or label is not the same all over its image.
        """
        outputs = dict(self.inner.run(feeds))
        port = next((port for port in self.inner.outputs if port.answers_to(PACKED_OUTPUT)), None)
        if port is None:
            return outputs
        values = outputs[port.name]
        if values.ndim != 4 or values.shape[-1] != len(PARTS):
            raise UnsupportedModelError(
                f"the packed output has the shape {list(values.shape)}", needed=f"[N, H, W, {len(PARTS)}]"
            )
        others = {self._renamed(other).name: outputs[other.name] for other in self._others() if other.name in outputs}
        return {**{part.name: _part(part, values) for part in self.parts}, **others}

    def _others(self) -> Iterator[PortInfo]:
        return (port for port in self.inner.outputs if not port.answers_to(PACKED_OUTPUT))

    def _renamed(self, port: PortInfo) -> PortInfo:
        """Let a raw value that bears the name of a part, as its tensor in an IR may, go by another of its names."""
        taken = {part.name for part in self.parts}
        if port.name not in taken:
            return port
        free = tuple(name for name in port.aliases if name not in taken)
        return replace(port, name=free[0] if free else f"raw {port.name}", aliases=free)


def unpacked(runner: Runner, parts: tuple[TailOutput, ...]) -> Runner:
    """Return a runner that gives the parts of a packed output apart."""
    return UnpackedRunner(runner, parts)


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


# --- A runner that gives the inputs by which a tail is adjusted their values, so that others need not know of them.


@dataclass(frozen=True, slots=True)
class AdjustedRunner(WrappedRunner):
    """A runner with some scalar inputs fed.

    Parameters
    ----------
    values
        The number for each input, which has to be fed or need not be.
    """

    values: Mapping[str, float]

    @property
    def inputs(self) -> tuple[PortInfo, ...]:
        """The inputs that are left to be fed."""
        return tuple(port for port in self.inner.inputs if not self._is_given(port))

    @property
    def optional(self) -> tuple[PortInfo, ...]:
        """The inputs that are left and need not be fed."""
        return tuple(port for port in self.inner.optional if not self._is_given(port))

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the model once, with the inputs that are given."""
        return self.inner.run({**feeds, **{name: np.array(value, np.float32) for name, value in self.values.items()}})

    def _is_given(self, port: PortInfo) -> bool:
        return any(port.answers_to(name) for name in self.values)
