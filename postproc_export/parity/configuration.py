"""The ways to run a model: runtime, precision, optimisation."""

from dataclasses import dataclass
from typing import Any

from postproc_export.runtimes import Precision, Runner, RuntimeName, open_runner


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One way to run a model.

    Parameters
    ----------
    runtime, precision, optimize
        As `runtimes.open_runner` takes them.
    judged
        False for the machine's default precision, which is shown and decides nothing.
    """

    runtime: RuntimeName
    precision: Precision = "float32"
    optimize: bool = True

    @property
    def judged(self) -> bool:
        """Whether a difference is a miss."""
        return self.precision == "float32"

    @property
    def label(self) -> str:
        """Return what tells it from the others, for the names of checks."""
        if self.runtime == "onnxruntime":
            return "onnxruntime" if self.optimize else "onnxruntime-unoptimised"
        return "openvino" if self.judged else "openvino-default"

    def open(self, model: Any, *, threads: int | None) -> Runner:
        """Load a model to run it this way."""
        return open_runner(
            model, runtime=self.runtime, precision=self.precision, optimize=self.optimize, threads=threads
        )
