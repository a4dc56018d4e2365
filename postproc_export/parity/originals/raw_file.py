"""The original file with raw outputs, run apart from the attached one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from postproc_export.errors import UnsupportedModelError
from postproc_export.parity.models.attached_model import AttachedModel
from postproc_export.parity.models.configuration import Configuration
from postproc_export.parity.originals.transformed_runner import TransformedRunner
from postproc_export.parity.reference.eager_transform import EagerTransform
from postproc_export.runtimes import PortInfo, Runner
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
    """

    path: Path
    attached: AttachedModel
    transform: EagerTransform | None = None

    @property
    def level_names(self) -> tuple[str, ...]:
        """The names of the raw outputs in this file."""
        return tuple(self.attached.file.original_output(level).name for level in self.attached.file.raw)

    def bounds(self, runner: Runner) -> Mapping[Level, float]:
        """Return how far the values of a run may lie from the same transform in another float32, raw units."""
        return runner.bounds if isinstance(runner, TransformedRunner) else {}

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
        wanted = self.attached.file.original_output(level)
        found = [port for port in ports if any(port.answers_to(name) for name in (wanted.name, *wanted.aliases))]
        if not found:
            raise UnsupportedModelError(
                f"{self.path} is not the original of {self.attached.path}",
                found="outputs " + ", ".join(port.describe() for port in ports),
                needed=f"an output '{wanted.name}', the raw {level} output by the record",
            )
        return found[0]


def named_output(name: str, outputs: Mapping[str, NDArray[Any]], runner: Runner) -> NDArray[Any] | None:
    """Return the output of a run whose tensor has a name, among others maybe; None where there is none."""
    return next((outputs[port.name] for port in runner.outputs if port.answers_to(name)), None)
