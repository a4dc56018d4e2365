"""A runner of the raw file that gives what the transform of the attached one makes of its outputs, eagerly."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from postproc_export.comparison.tolerance import narrow
from postproc_export.float32 import HALVES
from postproc_export.parity.models.wrapped_runner import WrappedRunner
from postproc_export.parity.reference.eager_transform import READS, EagerTransform, image_size
from postproc_export.runtimes import PortInfo, as_float32
from postproc_export.stats import Level


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
