"""What the rest of the package may know of a runtime: named, typed ports and one call."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Axis = int | str | None
Precision = Literal["float32", "default"]
RuntimeName = Literal["onnxruntime", "openvino"]

RUNTIMES: Final[tuple[RuntimeName, ...]] = ("onnxruntime", "openvino")
PRECISIONS: Final[tuple[Precision, ...]] = ("float32", "default")


@dataclass(frozen=True, slots=True)
class PortInfo:
    """One input or output of a model: its name, element type and declared shape.

    Parameters
    ----------
    name
        The name that runners use for it; where a tensor has several, the best known one.
    dtype
        ``"float32"``, ``"float16"``, ``"bfloat16"``, ``"float64"``, ``"bool"``, ``"uint8"``, ...
    shape
        One entry per axis: its size, the name of a dynamic axis, or None for an unnamed dynamic axis. None where not
        even the rank is known.
    aliases
        All names of the tensor, sorted; empty where `name` is the only one or was made up for a tensor without a name.
    """

    name: str
    dtype: str
    shape: tuple[Axis, ...] | None
    aliases: tuple[str, ...] = ()

    @property
    def rank(self) -> int | None:
        """The number of axes; None where it is not known."""
        return None if self.shape is None else len(self.shape)

    def size(self, axis: int) -> int | None:
        """Return the static size of an axis; None where it is dynamic, absent or not known."""
        if self.shape is None or not -len(self.shape) <= axis < len(self.shape):
            return None
        size = self.shape[axis]
        return size if isinstance(size, int) else None

    def answers_to(self, name: str) -> bool:
        """Whether `name` is one of the tensor's names."""
        return name == self.name or name in self.aliases

    def describe(self) -> str:
        """Return name, element type and shape as people write them: ``pred_score: float32 [N, 1]``."""
        if self.shape is None:
            return f"{self.name}: {self.dtype}, rank unknown"
        axes = ", ".join("?" if axis is None else str(axis) for axis in self.shape)
        return f"{self.name}: {self.dtype} [{axes}]"


class Runner(Protocol):
    """A model that is loaded and ready to run on one runtime, in one precision."""

    @property
    def name(self) -> str:
        """Runtime and device: ``"onnxruntime-cpu"`` or ``"openvino-cpu"``."""

    @property
    def version(self) -> str:
        """Version of the runtime."""

    @property
    def precision(self) -> Precision:
        """The precision that was asked for: ``"float32"``, or ``"default"`` for the machine's own."""

    @property
    def inference_precision(self) -> str:
        """What the runtime says it computes float32 operators in, such as ``"float32"`` or ``"bfloat16"``."""

    @property
    def inputs(self) -> tuple[PortInfo, ...]:
        """The inputs that have to be fed, in the model's order."""

    @property
    def optional(self) -> tuple[PortInfo, ...]:
        """The inputs that need not be fed: with a default in ONNX, state variables of an IR."""

    @property
    def outputs(self) -> tuple[PortInfo, ...]:
        """The outputs, in the model's order."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once and return its outputs by name, in the model's order.

        Parameters
        ----------
        feeds
            One array per input name, of the input's dtype and shape; an input that need not be fed may be left out.

        Returns
        -------
        dict
            Arrays in the output's own dtype; bfloat16 as `ml_dtypes.bfloat16`. They are copies that the caller owns.

        Raises
        ------
        UnsupportedModelError
            If the runtime fails on these inputs.
        UsageError
            If an input is missing or unknown.
        """


def as_float32(array: Array) -> npt.NDArray[np.float32]:
    """Return a float array rounded to float32, whatever its element type; without a copy where it is float32."""
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)
