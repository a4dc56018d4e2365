"""What the models of one way of running gave for one batch, each run once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray

from postproc_export.parity.fed.real_inputs import RealBatch
from postproc_export.runtimes import Runner

ModelName: TypeAlias = Literal["attached", "tapped", "apart", "exact", "exact tapped"]
"""The attached file; itself with taps; the raw file; the first two at float32."""


@dataclass(slots=True)
class BatchRuns:
    """One batch and the models that are run on it.

    Parameters
    ----------
    batch
        What is fed.
    start
        The number of its first sample among all.
    runners
        The models, each run when its outputs are first asked for.
    """

    batch: RealBatch
    start: int
    runners: Mapping[ModelName, Runner]
    _outputs: dict[int, dict[str, NDArray[Any]]] = field(default_factory=dict)

    def runner(self, model: ModelName) -> Runner:
        """Return a model."""
        return self.runners[model]

    def of(self, model: ModelName) -> dict[str, NDArray[Any]]:
        """Return the outputs of a model, without what came of filling up the batch."""
        runner = self.runners[model]
        if id(runner) not in self._outputs:  # one model may go by two names
            self._outputs[id(runner)] = self.batch.run(runner)
        return self._outputs[id(runner)]
