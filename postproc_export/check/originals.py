"""What the attached file was made from, run apart: the raw file and the PyTorch model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from graph_patterns.expr import GraphPatternError
from postproc_export.check.attached import AttachedModel
from postproc_export.check.inputs import RealBatch
from postproc_export.check.reference import READS, EagerTransform, image_size
from postproc_export.check.runners import WrappedRunner
from postproc_export.check.ways import Configuration
from postproc_export.comparison import narrow
from postproc_export.errors import FileError, PostprocError, UnsupportedModelError, UsageError
from postproc_export.files import is_onnx
from postproc_export.float32 import HALVES
from postproc_export.formats.base import Detached
from postproc_export.ports import LEAVE_OUT, Selection
from postproc_export.runtimes import PortInfo, Runner, as_float32
from postproc_export.runtimes.openvino import openvino_core, port_info
from postproc_export.stats import LEVELS, Level
from postproc_export.torch_modules import (
    LoadedModule,
    identify_outputs,
    load_module,
    named_tensors,
    raw_tensors,
    reason_of,
)
from postproc_export.validation import check_file

if TYPE_CHECKING:
    import torch


# --- The original file with raw outputs, run apart from the attached one.


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
        from graph_patterns.onnx.file import load_skeleton
        from postproc_export.formats.onnx_file import output_ports

        with load_skeleton(path) as file:
            return tuple(output_ports(file.model))
    from postproc_export.formats.openvino_file import read_ir

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
        from postproc_export.formats.onnx import detach_from_onnx_model
        from postproc_export.formats.onnx_file import rewrite_onnx_file

        target = folder / "detached.onnx"

        def from_onnx(model: Any) -> Detached:
            return detach_from_onnx_model(model, where=str(path))

        try:
            return rewrite_onnx_file(path, target, from_onnx, link_weights=True), target
        except FileError:
            return rewrite_onnx_file(path, target, from_onnx), target
    from postproc_export.formats.openvino import detach_from_openvino_model
    from postproc_export.formats.openvino_file import read_ir

    model = read_ir(openvino_core(purpose="checking an OpenVINO IR"), path)
    return detach_from_openvino_model(model, where=str(path)), model


def named_output(name: str, outputs: Mapping[str, NDArray[Any]], runner: Runner) -> NDArray[Any] | None:
    """Return the output of a run whose tensor has a name, among others maybe; None where there is none."""
    return next((outputs[port.name] for port in runner.outputs if port.answers_to(name)), None)


# --- A runner of the raw file that gives what the transform of the attached one makes of its outputs, eagerly.


@dataclass(frozen=True, slots=True)
class TransformedRunner(WrappedRunner):
    """A runner with the raw outputs transformed.

    Parameters
    ----------
    transform
        The twin.
    names
        The raw output of each level that the model itself has, by its name there.
    made
        The name for each level behind the transform.
    bounds
        How far another float32 computation of the transform may lie from it, raw units; filled while it runs. Behind a
        host of a narrow type it may be of values that were not rounded to it, which no transform drives further apart.
    """

    transform: EagerTransform
    names: Mapping[Level, str]
    made: Mapping[Level, str]
    bounds: dict[Level, float] = field(default_factory=dict)

    @property
    def outputs(self) -> tuple[PortInfo, ...]:
        """The outputs, and a score that the transform makes of a map."""
        own = {port.name for port in self.inner.outputs}
        added = (PortInfo(name, "float32", None) for name in self.made.values() if name not in own)
        return (*self.inner.outputs, *added)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the model once, and the transform on its raw outputs."""
        outputs = self.inner.run(feeds)
        raw = {level: outputs[name] for level, name in self.names.items()}
        made = self.transform(raw, size=image_size(feeds))
        read = [raw[level] for name, level in READS.items() if name in self.transform.ports and level in raw]
        error = self.transform.tolerance(raw, made).atol + max(map(_dropped, read), default=0.0)
        for level in self.transform.values:
            self.bounds[level] = max(self.bounds.get(level, 0.0), error)
            outputs[self.made[level]] = made[level]
        return outputs


def _dropped(values: NDArray[Any]) -> float:
    """Return how far raw values may lie from what they were before they were rounded to a narrow type."""
    largest = np.max(np.abs(as_float32(values)), where=np.isfinite(values), initial=0.0)
    return next((narrow(float(largest), half).atol for half in HALVES if values.dtype.name == half), 0.0)


# --- The PyTorch model on the same inputs as the exported one: its raw values, which later stages are compared with.

_NOUNS: dict[Level, str] = {"image": "score", "pixel": "map"}


@dataclass(slots=True)
class TorchRunner:
    """A PyTorch module beside an attached file.

    Parameters
    ----------
    loaded
        The module.
    attached
        The attached file: its record says which levels the exported model has, and what its raw outputs are called.
    image_output, pixel_output
        Which of the module's outputs are the raw ones, where that is not plain.
    threads
        Threads inside an operator; None is PyTorch's choice.
    transform
        What stands before the tail of the attached file; None where nothing does.
    """

    loaded: LoadedModule
    attached: AttachedModel
    image_output: str | int | None = None
    pixel_output: str | int | None = None
    threads: int | None = None
    transform: EagerTransform | None = None
    _selection: Selection | None = None

    @classmethod
    def load(cls, spec: "str | torch.nn.Module", attached: AttachedModel, **options: Any) -> "TorchRunner":
        """Load ``MODULE:FACTORY``, or take a module; options are those of the class.

        Raises
        ------
        UsageError
            If there is no such module, or it cannot be had.
        """
        return cls(load_module(spec), attached, **options)

    def describe(self) -> dict[str, Any]:
        """Return what is needed to run it again; JSON values."""
        import torch

        found = {} if self._selection is None else {"outputs": self._selection.describe()}
        threads = torch.get_num_threads() if self.threads is None else self.threads
        remarks = {"remarks": list(self.loaded.remarks)} if self.loaded.remarks else {}
        return {"module": self.loaded.spec, "threads": threads, **found, **remarks}

    def raw(self, batch: RealBatch) -> dict[Level, NDArray[np.float32]]:
        """Run the module on a batch and return its raw values, float32, without what came of the filling.

        Raises
        ------
        UsageError
            If it fails on the inputs of the exported model, or gives other outputs.
        """
        outputs = self._call(batch.feeds)
        try:
            if self._selection is None:
                self._selection = self._identify(outputs)
            found = raw_tensors(outputs, self._selection)
        except UnsupportedModelError as error:  # which would be a miss, were it the exported model's
            what = f"{self.loaded.spec}: {error.what}"
            raise UsageError(what, found=error.found, needed=error.needed, fix=error.fix) from error
        for level, values in found.items():
            if values.ndim and len(values) != batch.size:
                raise UsageError(
                    f"{self.loaded.spec} gives a {_NOUNS[level]} with {len(values)} entries for {batch.size} samples",
                    found=f"shape {list(values.shape)}",
                )
        arrays = {level: values.float().numpy() for level, values in found.items()}
        if self.transform is not None:
            arrays = self.transform(arrays, size=image_size(batch.feeds))
        return {level: values[: batch.valid] if values.ndim else values for level, values in arrays.items()}

    def _identify(self, outputs: Any) -> Selection:
        names = named_tensors(outputs)
        given = {"image": self.image_output, "pixel": self.pixel_output}
        chosen: dict[str, str | int | None] = {}
        for level in LEVELS:
            if level not in self.attached.host_levels:
                chosen[level] = LEAVE_OUT
                continue
            original = self.attached.file.original_output(level)
            same = next((name for name in (original.name, *original.aliases) if name in names), None)
            chosen[level] = same if given[level] is None else given[level]
        selection = identify_outputs(outputs, image_output=chosen["image"], pixel_output=chosen["pixel"])
        for level, port in (("image", selection.image), ("pixel", selection.pixel)):
            if port is None and level in self.attached.host_levels:
                raise UsageError(
                    f"{self.loaded.spec} has no output that is the raw {level} output of the exported model",
                    found=", ".join(f"{name} {list(tensor.shape)}" for name, tensor in names.items()),
                    needed=self.attached.file.original_output(level).describe(),
                    fix=f"name it with --{level}-output",
                )
        return selection

    def _call(self, feeds: Mapping[str, NDArray[Any]]) -> Any:
        import torch

        tensors = [_tensor(array) for array in feeds.values()]
        with _threads(self.threads), torch.no_grad():
            try:
                return self.loaded.module(*tensors)
            except Exception as error:
                fed = ", ".join(f"{name}: {array.dtype.name} {list(array.shape)}" for name, array in feeds.items())
                raise UsageError(
                    f"{self.loaded.spec} failed on the inputs of the exported model, {fed}",
                    found=reason_of(error),
                    needed="a module that takes the same inputs, in the same order",
                ) from error


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)


def _tensor(array: NDArray[Any]) -> "torch.Tensor":
    import torch

    contiguous = np.require(array, requirements=["C", "W"])
    if array.dtype.name == "bfloat16":  # a type that torch does not take from NumPy
        return torch.from_numpy(contiguous.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(contiguous)
