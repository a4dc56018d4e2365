"""A runner that gives the inputs by which a tail is adjusted their values, so that others need not know of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from postproc_export.runtimes import PortInfo, Precision, Runner


@dataclass(frozen=True, slots=True)
class AdjustedRunner:
    """A runner with some scalar inputs fed.

    Parameters
    ----------
    inner
        The runner of the file, or of its tail alone.
    values
        The number for each input, which has to be fed or need not be.
    """

    inner: Runner
    values: Mapping[str, float]

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
        """The inputs that are left to be fed."""
        return tuple(port for port in self.inner.inputs if not self._is_given(port))

    @property
    def optional(self) -> tuple[PortInfo, ...]:
        """The inputs that are left and need not be fed."""
        return tuple(port for port in self.inner.optional if not self._is_given(port))

    @property
    def outputs(self) -> tuple[PortInfo, ...]:
        """The outputs."""
        return self.inner.outputs

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the model once, with the inputs that are given."""
        return self.inner.run({**feeds, **{name: np.array(value, np.float32) for name, value in self.values.items()}})

    def _is_given(self, port: PortInfo) -> bool:
        return any(port.answers_to(name) for name in self.values)
