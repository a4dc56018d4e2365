"""The ways to run a model: runtime, precision, optimisation, and what was done to its weights before."""

from dataclasses import dataclass
from typing import Any, Final, Literal, Self, TypeAlias

from postproc_export.runtimes import Precision, Runner, RuntimeName, open_runner

Weights: TypeAlias = Literal["stored", "fp16", "int8"]

_LABELS: Final[dict[Weights, str]] = {"fp16": "openvino-fp16-weights", "int8": "openvino-int8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One way to run a model.

    Parameters
    ----------
    runtime, precision, optimize
        As `runtimes.open_runner` takes them.
    weights
        ``"stored"``: as they stand in the file. ``"fp16"``: rounded to float16 as OpenVINO's converter does unless told
        otherwise. ``"int8"``: quantised by nncf. `parity.variants` makes such a model first.
    """

    runtime: RuntimeName
    precision: Precision = "float32"
    optimize: bool = True
    weights: Weights = "stored"

    @property
    def judged(self) -> bool:
        """Whether a difference is a miss; False for another precision, which is shown and decides nothing."""
        return self.precision == "float32" and self.weights == "stored"

    @property
    def label(self) -> str:
        """Return what tells it from the others, for the names of checks."""
        if self.weights != "stored":
            return _LABELS[self.weights]
        if self.runtime == "onnxruntime":
            return "onnxruntime" if self.optimize else "onnxruntime-unoptimised"
        return "openvino" if self.judged else "openvino-default"

    @property
    def exact(self) -> Self:
        """The same runtime at float32, with the weights of the file."""
        return type(self)(runtime=self.runtime)

    def open(self, model: Any, *, threads: int | None) -> Runner:
        """Load a model to run it this way."""
        return open_runner(
            model, runtime=self.runtime, precision=self.precision, optimize=self.optimize, threads=threads
        )
