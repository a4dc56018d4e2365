"""A runner that asks whether a graph allows the shapes that it is about to be fed, where the runtime itself does not.

OpenVINO's CPU plugin does not compare sizes at run time: a Reshape to a fixed shape that does not fit its input reads
and writes beyond its buffers, which gives random numbers or ends the process. Its shape inference on static shapes does
compare them, so that is asked first, once for each set of shapes. Exports whose batch axis is declared dynamic and is
not are common.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from postproc_export.errors import UnsupportedModelError
from postproc_export.runtimes.feeds import first_reason
from postproc_export.runtimes.openvino import openvino_core
from postproc_export.runtimes.protocol import Array, PortInfo, Precision, Runner

_Shapes: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(slots=True)
class ShapeCheckedRunner:
    """An OpenVINO runner that refuses shapes that the graph does not allow.

    Parameters
    ----------
    runner
        The runner itself.
    model
        What it was loaded from: a path, the bytes of an ONNX model, or an `openvino.Model`.
    """

    runner: Runner
    model: Any
    _problems: dict[_Shapes, str | None] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Runtime and device."""
        return self.runner.name

    @property
    def version(self) -> str:
        """Version of the runtime."""
        return self.runner.version

    @property
    def precision(self) -> Precision:
        """The precision that was asked for."""
        return self.runner.precision

    @property
    def inference_precision(self) -> str:
        """The precision that the runtime says it computes in."""
        return self.runner.inference_precision

    @property
    def inputs(self) -> tuple[PortInfo, ...]:
        """The inputs that have to be fed."""
        return self.runner.inputs

    @property
    def outputs(self) -> tuple[PortInfo, ...]:
        """The outputs, in the model's order."""
        return self.runner.outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once, as `Runner` says."""
        shapes = tuple((name, array.shape) for name, array in feeds.items())
        if shapes not in self._problems:
            self._problems[shapes] = _shape_problem(self.model, dict(shapes))
        problem = self._problems[shapes]
        if problem is not None:
            fed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes)
            raise UnsupportedModelError(f"the graph does not allow {fed}", found=problem)
        return self.runner.run(feeds)


def _shape_problem(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    is_model = hasattr(model, "clone")
    source = model if is_model or isinstance(model, bytes) else str(model)
    reshaped = model.clone() if is_model else openvino_core(purpose="checking shapes").read_model(source)
    wanted = {port: list(shapes[name]) for port in reshaped.inputs for name in port.get_names() if name in shapes}
    try:
        reshaped.reshape(wanted)
    except RuntimeError as error:
        return first_reason(error)
    return None
