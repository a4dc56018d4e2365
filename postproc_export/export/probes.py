"""What the exported files and the module are both fed: the example, random inputs, real images, other sizes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from postproc_export.errors import UnsupportedModelError
from postproc_export.export.axes import DynamicAxis, other_sizes
from postproc_export.export.raw_module import RawModule
from postproc_export.parity.fed.real_inputs import image_inputs
from postproc_export.runtimes.protocol import Array, PortInfo
from postproc_export.stats import CalibrationStats, Level

if TYPE_CHECKING:
    import torch

    from postproc_export.images import Preprocessing

RANDOM: Final = 2
IMAGES: Final = 16


@dataclass(frozen=True, slots=True)
class Probe:
    """One input, and what the module itself makes of it.

    Parameters
    ----------
    label
        What it is.
    images
        The input.
    raw
        float32 raw values of each level, as the module gives them in PyTorch.
    axes
        The axes whose size is another one than in the export; none for an input of the example's shape.
    """

    label: str
    images: Array
    raw: dict[Level, Array]
    axes: tuple[DynamicAxis, ...] = ()


def usual_probes(raw: RawModule, example: "torch.Tensor", *, seed: int) -> Iterator[Probe]:
    """Yield the example and random inputs of its shape and range, one per seed."""
    yield _probe(raw, "the example", example.cpu().numpy())
    for number in range(seed, seed + RANDOM):
        yield _probe(raw, f"random numbers, seed {number}", random_like(example.cpu().numpy(), seed=number))


def image_probes(
    raw: RawModule, source: str | Path, example: Array, preprocessing: "Preprocessing | None", stats: CalibrationStats
) -> Iterator[Probe]:
    """Yield the first images of a folder or CSV file, as many at once as the example holds.

    Raises
    ------
    FileError, UsageError, CalibrationError, UnsupportedModelError, MetadataError
        If there are no images, or they do not fit the example.
    """
    port = PortInfo("input", example.dtype.name, example.shape)
    inputs = image_inputs(source, [port], stats, preprocessing, limit=IMAGES)
    for batch in inputs.batches(len(example)):
        yield _probe(raw, f"images of {source}", batch.feeds[port.name])


def size_probes(raw: RawModule, example: "torch.Tensor", axes: Sequence[DynamicAxis], *, seed: int) -> Iterator[Probe]:
    """Yield inputs of other sizes: of every axis alone, then of all at once.

    Raises
    ------
    UnsupportedModelError
        If the module itself runs at no other size of an axis, or not at all sizes at once.
    """
    values = example.cpu().numpy()
    sizes = list(values.shape)
    for axis in axes:
        probes = list(_resized(raw, values, axis, seed=seed))
        yield from probes
        sizes[axis.index] = probes[-1].images.shape[axis.index]
    if len(axes) > 1:
        label = " x ".join(f"{axis.name} {sizes[axis.index]}" for axis in axes)
        probe = _probe(raw, label, random_like(values, seed=seed, shape=sizes))
        yield replace(probe, axes=tuple(axes))


def random_like(example: Array, *, seed: int, shape: Sequence[int] | None = None) -> Array:
    """Return uniform random numbers of the example's type, over its range, or over [0, 1] where it is constant."""
    rng = np.random.default_rng(seed)
    shape = example.shape if shape is None else tuple(shape)
    low, high = example.min(), example.max()
    if np.issubdtype(example.dtype, np.integer):
        return rng.integers(low, high, size=shape, dtype=example.dtype, endpoint=True)
    low, high = (low, high) if low < high else (0.0, 1.0)
    return (low + (high - low) * rng.random(shape)).astype(example.dtype)


def _resized(raw: RawModule, example: Array, axis: DynamicAxis, *, seed: int) -> Iterator[Probe]:
    """Yield the first other size that the module takes; of a batch every one."""
    problem: UnsupportedModelError | None = None
    found = False
    for size in other_sizes(axis, example.shape[axis.index]):
        shape = [*example.shape[: axis.index], size, *example.shape[axis.index + 1 :]]
        try:
            probe = _probe(raw, f"{axis.name} {size}", random_like(example, seed=seed, shape=shape))
        except UnsupportedModelError as error:
            problem = problem or error
            continue
        found = True
        yield replace(probe, axes=(axis,))
        if axis.name != "batch":
            return
    if not found:
        assert problem is not None, "there are other sizes of every axis"
        raise UnsupportedModelError(
            f"{axis.describe()} was to be dynamic, and the module itself takes no other size of it",
            found=f"{problem.what}: {problem.found}",
            fix=f"leave {axis.name} out of --dynamic",
        ) from problem


def _probe(raw: RawModule, label: str, images: Array) -> Probe:
    import torch

    return Probe(label, images, raw.run(torch.from_numpy(np.ascontiguousarray(images))))
