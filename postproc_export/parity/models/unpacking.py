"""A runner of a packed tail that gives its four parts apart, as the reference does."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from postproc_export.errors import UnsupportedModelError
from postproc_export.packing import PACKED_OUTPUT, PARTS, place
from postproc_export.parity.models.wrapped_runner import WrappedRunner
from postproc_export.runtimes import PortInfo, Runner
from postproc_export.tail_steps import TailOutput


@dataclass(frozen=True, slots=True)
class UnpackedRunner(WrappedRunner):
    """A runner whose packed output is taken apart; what else the model gives is passed on.

    Parameters
    ----------
    parts
        The parts, with the ranks that they have apart.
    """

    parts: tuple[TailOutput, ...]

    @property
    def outputs(self) -> tuple[PortInfo, ...]:
        """The parts in place of the packed output, then the others; all as they are where it is not there."""
        if not any(port.answers_to(PACKED_OUTPUT) for port in self.inner.outputs):
            return self.inner.outputs
        parts = (PortInfo(part.name, part.dtype, part.shape) for part in self.parts)
        return (*parts, *(self._renamed(port) for port in self._others()))

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the model once and take its packed output apart.

        Raises
        ------
        UnsupportedModelError
            If the output is not [N, H, W, 4], or a score or label is not the same all over its image.
        """
        outputs = dict(self.inner.run(feeds))
        port = next((port for port in self.inner.outputs if port.answers_to(PACKED_OUTPUT)), None)
        if port is None:
            return outputs
        values = outputs[port.name]
        if values.ndim != 4 or values.shape[-1] != len(PARTS):
            raise UnsupportedModelError(
                f"the packed output has the shape {list(values.shape)}", needed=f"[N, H, W, {len(PARTS)}]"
            )
        others = {self._renamed(other).name: outputs[other.name] for other in self._others() if other.name in outputs}
        return {**{part.name: _part(part, values) for part in self.parts}, **others}

    def _others(self) -> Iterator[PortInfo]:
        return (port for port in self.inner.outputs if not port.answers_to(PACKED_OUTPUT))

    def _renamed(self, port: PortInfo) -> PortInfo:
        """Let a raw value that bears the name of a part, as its tensor in an IR may, go by another of its names."""
        taken = {part.name for part in self.parts}
        if port.name not in taken:
            return port
        free = tuple(name for name in port.aliases if name not in taken)
        return replace(port, name=free[0] if free else f"raw {port.name}", aliases=free)


def unpacked(runner: Runner, parts: tuple[TailOutput, ...]) -> Runner:
    """Return a runner that gives the parts of a packed output apart."""
    return UnpackedRunner(runner, parts)


def _part(part: TailOutput, values: NDArray[Any]) -> NDArray[Any]:
    """Return one part in the shape that it has apart; an image's value is taken where it is the same all over it."""
    plane = values[..., PARTS.index(part.name)]
    rank = None if part.shape is None else len(part.shape)
    if part.level == "pixel":
        return plane[:, None] if rank == 4 else plane
    flat = plane.reshape(len(plane), plane.shape[1] * plane.shape[2])  # an empty batch leaves nothing to infer
    if not np.array_equal(flat, np.repeat(flat[:, :1], flat.shape[1], axis=1), equal_nan=True):
        raise UnsupportedModelError(f"{place(part.name)} is not the same all over each image")
    column = flat[:, 0]
    return column.reshape(()) if rank == 0 and len(column) == 1 else column.reshape(-1, *[1] * (max(rank or 1, 1) - 1))
