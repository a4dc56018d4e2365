"""The original file with raw outputs, run apart from the attached one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from numpy.typing import NDArray

from graph_patterns.errors import GraphPatternError
from postproc_export.errors import FileError, PostprocError, UnsupportedModelError
from postproc_export.files.targets import is_onnx
from postproc_export.graphs.detached import Detached
from postproc_export.parity.models.attached_model import AttachedModel
from postproc_export.parity.models.configuration import Configuration
from postproc_export.parity.originals.transformed_runner import TransformedRunner
from postproc_export.parity.reference.eager_transform import EagerTransform
from postproc_export.runtimes import PortInfo, Runner
from postproc_export.runtimes.openvino import openvino_core, port_info
from postproc_export.stats import Level
from postproc_export.validation import check_file


@dataclass(frozen=True, slots=True)
class RawFile:
    """The original of an attached file.

    Parameters
    ----------
    path
        The file with raw outputs.
    attached
        What was attached to it; its record says which outputs were the raw ones.
    transform
        What stands before the tail of the attached one; None where nothing does.
    model
        What is loaded in place of the file: the attached one without its tail, where that gave it.
    outputs
        The raw output of each level by name or by index, where that is known; else by the record.
    is_cut
        Whether it was cut off, since the tail cannot be taken off as `detach` does.
    """

    path: Path
    attached: AttachedModel
    transform: EagerTransform | None = None
    model: Any = None
    outputs: Mapping[Level, str | int] = field(default_factory=dict)
    is_cut: bool = False

    @property
    def level_names(self) -> tuple[str, ...]:
        """The names of the raw outputs in this file."""
        return tuple(self.attached.file.original_output(level).name for level in self.attached.file.raw)

    def describe(self) -> str:
        """Return what it is, for people."""
        if self.model is None:
            return f"the raw file {self.path}"
        return f"the file without its tail, {'cut off in front of it' if self.is_cut else 'as `detach` gives it'}"

    def bounds(self, runner: Runner) -> Mapping[Level, float]:
        """Return how far the values of a run may lie from the same transform in another float32, raw units."""
        return runner.bounds if isinstance(runner, TransformedRunner) else {}

    @classmethod
    def of(cls, path: Path, attached: AttachedModel, transform: EagerTransform | None) -> Self:
        """Return the original that was given.

        Raises
        ------
        FileError, UnsupportedModelError, UsageError
            If it cannot be read, or does not have the raw outputs of the record.
        """
        raw_file, ports = cls(path, attached, transform), _output_ports(path)
        for level in attached.host_levels:
            raw_file._port(level, ports)
        return raw_file

    def can_run(self, way: Configuration) -> bool:
        """Whether a runtime reads the format of the file."""
        return way.runtime == "openvino" or self.path.suffix.lower() == ".onnx"

    def open(self, way: Configuration, *, threads: int | None) -> Runner:
        """Load the file, with the transform of the attached one behind it where that has one.

        Raises
        ------
        FileError, UnsupportedModelError
            If it cannot be loaded, or its outputs are not those of the record.
        """
        if self.model is not None:
            return way.open(self.model, threads=threads)
        check_file(self.path, what="the raw model")
        return self.behind_transform(way.open(self.path, threads=threads))

    def behind_transform(self, runner: Runner) -> Runner:
        """Return a runner of the file, or of a variant of it, with the attached one's transform behind it."""
        names = {level: self._port(level, runner.outputs).name for level in self.attached.host_levels}
        if self.transform is None:
            return runner
        made = {
            level: names.get(level) or self.attached.file.original_output(level).name for level in self.transform.values
        }
        return TransformedRunner(runner, self.transform, names, made)

    def levels(self, outputs: Mapping[str, NDArray[Any]], runner: Runner) -> dict[Level, NDArray[Any]]:
        """Return the raw values of each level among the outputs of a run."""
        return {level: outputs[self._port(level, runner.outputs).name] for level in self.attached.file.raw}

    def others(self, runner: Runner) -> list[PortInfo]:
        """Return the outputs that attaching had to leave alone: those of no level that is post-processed."""
        taken = {
            self._port(level, runner.outputs).name for level in self.attached.levels if level in self.attached.file.raw
        }
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
        if known is not None:
            return next(port for port in ports if port.answers_to(known))
        wanted = self.attached.file.original_output(level)
        found = [port for port in ports if any(port.answers_to(name) for name in (wanted.name, *wanted.aliases))]
        if not found:
            raise UnsupportedModelError(
                f"{self.path} is not the original of {self.attached.path}",
                found="outputs " + ", ".join(port.describe() for port in ports),
                needed=f"an output '{wanted.name}', the raw {level} output by the record",
            )
        return found[0]


def _output_ports(path: Path) -> tuple[PortInfo, ...]:
    if is_onnx(path):
        from graph_patterns.onnx.container import load_skeleton
        from postproc_export.graphs.onnx.ports import output_ports

        with load_skeleton(path) as file:
            return tuple(output_ports(file.model))
    from postproc_export.rewrite.openvino_file import read_ir

    model = read_ir(openvino_core(purpose="reading an OpenVINO IR"), path)
    return tuple(port_info(port, f"output_{index}") for index, port in enumerate(model.outputs))


def without_tail(attached: AttachedModel, folder: Path) -> RawFile:
    """Return an attached file without its tail, as `detach` gives it; what stands before the tail stays.

    Parameters
    ----------
    attached
        The file.
    folder
        An empty folder; the weights of an ONNX file are linked into it where the file system can.

    Notes
    -----
    Where the tail cannot be taken off, the file is cut off in front of it.
    """
    try:
        detached, model = _detached(attached.path, folder)
    except (PostprocError, GraphPatternError):
        detached, model = Detached(), None
    if detached:
        return RawFile(attached.path, attached, model=model, outputs=detached.raw_outputs)
    indices: dict[Level, str | int] = {level: index for index, level in enumerate(attached.file.raw)}
    return RawFile(attached.path, attached, model=attached.file.host(folder), outputs=indices, is_cut=True)


def _detached(path: Path, folder: Path) -> tuple[Detached, Any]:
    if is_onnx(path):
        from postproc_export.graphs.onnx.detach import detach_from_onnx_model
        from postproc_export.rewrite.onnx_file import rewrite_onnx_file

        target = folder / "detached.onnx"

        def from_onnx(model: Any) -> Detached:
            return detach_from_onnx_model(model, where=str(path))

        try:
            return rewrite_onnx_file(path, target, from_onnx, link_weights=True), target
        except FileError:
            return rewrite_onnx_file(path, target, from_onnx), target
    from postproc_export.graphs.openvino.detach import detach_from_openvino_model
    from postproc_export.rewrite.openvino_file import read_ir

    model = read_ir(openvino_core(purpose="checking an OpenVINO IR"), path)
    return detach_from_openvino_model(model, where=str(path)), model


def named_output(name: str, outputs: Mapping[str, NDArray[Any]], runner: Runner) -> NDArray[Any] | None:
    """Return the output of a run whose tensor has a name, among others maybe; None where there is none."""
    return next((outputs[port.name] for port in runner.outputs if port.answers_to(name)), None)
