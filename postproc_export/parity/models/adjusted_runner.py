"""A runner that gives the inputs by which a tail is adjusted their values, so that others need not know of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from postproc_export.parity.models.wrapped_runner import WrappedRunner
from postproc_export.runtimes import PortInfo


@dataclass(frozen=True, slots=True)
class AdjustedRunner(WrappedRunner):
    """A runner with some scalar inputs fed.

    Parameters
    ----------
    values
        The number for each input, which has to be fed or need not be.
    """

    values: Mapping[str, float]

    @property
    def inputs(self) -> tuple[PortInfo, ...]:
        """The inputs that are left to be fed."""
        return tuple(port for port in self.inner.inputs if not self._is_given(port))

    @property
    def optional(self) -> tuple[PortInfo, ...]:
        """The inputs that are left and need not be fed."""
        return tuple(port for port in self.inner.optional if not self._is_given(port))

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the model once, with the inputs that are given."""
        return self.inner.run({**feeds, **{name: np.array(value, np.float32) for name, value in self.values.items()}})

    def _is_given(self, port: PortInfo) -> bool:
        return any(port.answers_to(name) for name in self.values)
