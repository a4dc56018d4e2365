"""An attached file as the check sees it: record, raw values, tail alone, and itself with the raw values as outputs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from graph_patterns.graph import Value
from graph_patterns.match import Mismatch
from postproc_export.errors import UsageError
from postproc_export.graphs.reading.own_tail import OwnTail, find_own_tail
from postproc_export.graphs.reading.tail_places import Places, find_places
from postproc_export.guarding import Guard as MapGuard
from postproc_export.outputs import Selection
from postproc_export.parity.fed.excuses import Guard
from postproc_export.parity.models.adjusted_runner import AdjustedRunner
from postproc_export.parity.models.assumed import Assumed
from postproc_export.parity.models.model_file import ModelFile, Shapes
from postproc_export.parity.models.unpacking import unpacked
from postproc_export.runtimes.protocol import PortInfo, Runner
from postproc_export.stats import Level
from postproc_export.tail import Tail, build_tail, guard_of
from postproc_export.tail_options import TailOptions
from postproc_export.validation import check_file

TAPS: Final[Mapping[Level, str]] = {"image": "postproc-check/raw_score", "pixel": "postproc-check/raw_map"}


@dataclass(frozen=True, slots=True)
class AttachedModel:
    """An attached file, and the tail that its record says it has.

    Parameters
    ----------
    path
        The file.
    file
        What its format knows of it.
    tail
        The tail that the record describes, built anew from statistics and options.
    places
        Where its parts stand in the graph; why they do not, where the packed output is not as the record says.
    """

    path: Path
    file: ModelFile
    tail: Tail
    places: Places | Mismatch

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

    def value_at(self, part: str) -> Value | Mismatch:
        """Return the value of a part in the graph, or why it has none."""
        return self.places if isinstance(self.places, Mismatch) else self.places.at(part)

    def parts_of(self, runner: Runner, values: Mapping[str, float] | None = None) -> Runner:
        """Return a runner of the file, or of its tail alone, that gives the parts apart.

        Parameters
        ----------
        runner
            The runner.
        values
            What is given for the inputs that adjust the tail; by default those that have to be given get what was
            attached.
        """
        runner = self.with_values(runner, values)
        return unpacked(runner, self.tail.parts) if self.tail.options.is_packed else runner

    def with_values(self, runner: Runner, values: Mapping[str, float] | None = None) -> Runner:
        """Return a runner that feeds the inputs that adjust the tail, as far as it has them."""
        needed = {item.name: item.default for item in self.tail.adjustable}
        given = needed if values is None else values
        ports = runner.inputs if values is None else (*runner.inputs, *runner.optional)
        fed = {name: value for name, value in given.items() if any(port.answers_to(name) for port in ports)}
        return AdjustedRunner(runner, fed) if fed else runner

    def at_sensitivity(self, sensitivity: float) -> Self:
        """Return the same file as if both levels had been attached with a sensitivity."""
        options = replace(
            self.tail.options, image_sensitivity=sensitivity, pixel_sensitivity=sensitivity, adjustable="nothing"
        )
        return replace(self, tail=_built(self.file, options))

    def tail_alone(self, shapes: Shapes) -> Any:
        """Return a model of the tail alone: bytes of ONNX, or an `openvino.Model`.

        Parameters
        ----------
        shapes
            The shape of each raw input; None is a dynamic axis.
        """
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

    Parameters
    ----------
    path
        The file.
    assumed
        What stands in for the record where that is gone, and has to agree with it where it is there.

    Raises
    ------
    FileError
        If the file cannot be read.
    MetadataError
        If the record is not legal.
    UnsupportedModelError
        If there is no record, and nothing in its place.
    UsageError
        If what is given contradicts the record, or does not calibrate what the file decides.
    """
    file = open_file(path, assumed)
    tail = _built(file, file.record.options)
    return AttachedModel(path, file, tail, find_places(file.view, is_packed=tail.options.is_packed))


def guard_rule(file: ModelFile, options: TailOptions) -> MapGuard:
    """Return how the image level of a file should be guarded, by the outputs that its original declared."""
    return guard_of(_selection(file), file.record.stats, options, may_refuse=False)


def _built(file: ModelFile, options: TailOptions) -> Tail:
    guard = guard_rule(file, options)
    found = find_own_tail(file.view, "image", options=options)
    if options.nan_guard and isinstance(found, OwnTail) and found.guard not in (None, guard.form):
        guard = MapGuard(found.guard)  # `check_record` says what is wrong with it
    return build_tail(
        file.record.stats,
        options,
        _selection(file),
        nan_test=file.nan_test,
        default_mask_dtype="bool" if file.format == "onnx" else "uint8",
        guard=guard,
    )


def _selection(file: ModelFile) -> Selection:
    is_by_rank = file.record.found.get("pixel") == "rank"
    return Selection(file.raw.get("image"), file.raw.get("pixel"), pixel_found="rank" if is_by_rank else None)


def open_file(path: Path, assumed: Assumed | None = None) -> ModelFile:
    """Read an attached file of either format.

    Raises
    ------
    UsageError, FileError, MetadataError, UnsupportedModelError
        As `load_attached` does.
    """
    check_file(path, what="the model")
    match path.suffix.lower():
        case ".onnx":
            from postproc_export.parity.models.onnx_attached import OnnxAttached

            return OnnxAttached.load(path, assumed or Assumed())
        case ".xml":
            from postproc_export.parity.models.openvino_attached import OpenVinoAttached

            return OpenVinoAttached.load(path, assumed or Assumed())
        case suffix:
            raise UsageError(f"{path} is no model file", found=f"suffix '{suffix}'", needed=".onnx or .xml")
