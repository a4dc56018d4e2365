"""Whether exported files give what the module gives, for the example, random inputs, real images, other sizes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from postproc_export.check.attached import AttachedModel
from postproc_export.check.findings import Check
from postproc_export.check.inputs import image_inputs
from postproc_export.check.reference import EagerTransform, Reference, image_size
from postproc_export.check.tail import CheckTally, compare_tail
from postproc_export.check.ways import Configuration
from postproc_export.comparison import Tolerance, compare_scores, observed
from postproc_export.errors import UnsupportedModelError
from postproc_export.export.anomalib import anomalib_outputs
from postproc_export.export.exporter import INPUT, Axes, RawModule, fixed_axis
from postproc_export.ports import RAW_NAMES
from postproc_export.record import TailSpec
from postproc_export.runtimes import Array, PortInfo, as_float32
from postproc_export.stats import CalibrationStats, Level

if TYPE_CHECKING:
    import torch

    from postproc_export.images.preprocessing import PreprocessingSource


RANDOM: Final = 2
IMAGES: Final = 16
_STEPS: Final = (32, 64)  # multiples of the strides that networks have, so that the module itself takes most of them


@dataclass(frozen=True, slots=True)
class Probe:
    """One input, and what the module itself makes of it in PyTorch."""

    label: str  # what it is
    images: Array
    raw: dict[Level, Array]  # float32
    axes: Axes = field(default_factory=dict)  # those whose size is another one than in the export


def usual_probes(raw: RawModule, example: "torch.Tensor", *, seed: int) -> Iterator[Probe]:
    """Yield the example and random inputs of its shape and range, one per seed."""
    yield _probe(raw, "the example", example.cpu().numpy())
    for number in range(seed, seed + RANDOM):
        yield _probe(raw, f"random numbers, seed {number}", random_like(example.cpu().numpy(), seed=number))


def image_probes(
    raw: RawModule,
    source: str | Path,
    example: Array,
    preprocessing: "PreprocessingSource | None",
    stats: CalibrationStats,
) -> Iterator[Probe]:
    """Yield the first images of a folder or CSV file, as many at once as the example holds.

    Raises FileError, UsageError, CalibrationError, UnsupportedModelError or MetadataError if there are no images, or
    they do not fit the example.
    """
    port = PortInfo("input", example.dtype.name, example.shape)
    inputs = image_inputs(source, [port], stats, preprocessing, limit=IMAGES)
    for batch in inputs.batches(len(example)):
        yield _probe(raw, f"images of {source}", batch.feeds[port.name])


def size_probes(raw: RawModule, example: "torch.Tensor", axes: Axes, *, seed: int) -> Iterator[Probe]:
    """Yield inputs of other sizes: of every axis alone, then of all at once.

    Raises UnsupportedModelError if the module itself runs at no other size of an axis, or not at all sizes at once.
    """
    values = example.cpu().numpy()
    sizes = list(values.shape)
    for name, index in axes.items():
        probes = list(_resized(raw, values, name, index, seed=seed))
        yield from probes
        sizes[index] = probes[-1].images.shape[index]
    if len(axes) > 1:
        label = " x ".join(f"{name} {sizes[index]}" for name, index in axes.items())
        yield replace(_probe(raw, label, random_like(values, seed=seed, shape=sizes)), axes=axes)


def other_sizes(name: str, size: int) -> list[int]:
    """Return sizes of an axis other than the exported one, likely ones first."""
    if name == "batch":
        return [1, size + 1]
    return [*(size + step for step in _STEPS), 2 * size, *([size // 2] if size > 1 else [])]


def random_like(example: Array, *, seed: int, shape: Sequence[int] | None = None) -> Array:
    """Return uniform random numbers of the example's type, over its range, or over [0, 1] where it is constant."""
    rng = np.random.default_rng(seed)
    shape = example.shape if shape is None else tuple(shape)
    low, high = example.min(), example.max()
    if np.issubdtype(example.dtype, np.integer):
        return rng.integers(low, high, size=shape, dtype=example.dtype, endpoint=True)
    low, high = (low, high) if low < high else (0.0, 1.0)
    return (low + (high - low) * rng.random(shape)).astype(example.dtype)


def _resized(raw: RawModule, example: Array, name: str, index: int, *, seed: int) -> Iterator[Probe]:
    """Yield the first other size that the module takes; of a batch every one."""
    problems: list[UnsupportedModelError] = []
    sizes = other_sizes(name, example.shape[index])
    for size in sizes:
        shape = [*example.shape[:index], size, *example.shape[index + 1 :]]
        try:
            probe = _probe(raw, f"{name} {size}", random_like(example, seed=seed, shape=shape))
        except UnsupportedModelError as error:
            problems.append(error)
            continue
        yield replace(probe, axes={name: index})
        if name != "batch":
            return
    if len(problems) == len(sizes):
        raise UnsupportedModelError(
            f"'{name}' (axis {index} of the input) was to be dynamic, and the module itself takes no other size of it",
            found=f"{problems[0].what}: {problems[0].found}",
            fix=f"leave {name} out of --dynamic",
        ) from problems[0]


def _probe(raw: RawModule, label: str, images: Array) -> Probe:
    import torch

    return Probe(label, images, raw.run(torch.from_numpy(np.ascontiguousarray(images))))


def raw_checks(path: Path, way: Configuration, probes: Sequence[Probe]) -> list[Check]:
    """Run a raw file on all probes and compare its raw values with the module's; one check per level.

    The tolerances follow from the values that the module gave. Raises UnsupportedModelError, which names the axis, if
    the file fails at another size than the example's, or gives something else than the module there.
    """
    runner = way.open(path, threads=None)
    tolerances: dict[Level, Tolerance] = {}
    for level in probes[0].raw:
        finite = np.concatenate([probe.raw[level][np.isfinite(probe.raw[level])] for probe in probes])
        tolerances[level] = observed(float(finite.min()), float(finite.max())) if finite.size else observed(0.0, 0.0)
    tally = CheckTally("module/raw", way.label, way.judged)
    tally.ran_on(runner)
    for probe in probes:
        where = f"at {probe.label}, {list(probe.images.shape)}, {way.label}"
        try:
            outputs = runner.run({INPUT: probe.images})
        except UnsupportedModelError as error:
            if not probe.axes:
                raise
            reason = " ".join(f"{error.what} {error.found or ''}".split())
            raise fixed_axis(*next(iter(probe.axes.items())), f"{where}: {reason}") from error
        for level, expected in probe.raw.items():
            name = RAW_NAMES[level]
            values = as_float32(outputs[name]) if name in outputs else None
            difference = compare_scores(expected, values, tolerance=tolerances[level], nan="same")
            if probe.axes and not difference:
                raise fixed_axis(*next(iter(probe.axes.items())), f"{where}: {name}: {difference.describe()}")
            tally.add({name: difference})
    return list(tally.checks())


def decision_checks(
    attached: AttachedModel,
    way: Configuration,
    probes: Sequence[Probe],
    named: Sequence[TailSpec] = (),
    *,
    anomalib: Any = None,
) -> Iterator[Check]:
    """Compare an attached file's outputs with `PostProcessor` on the module's own raw values; one check per output.

    With the post-processor of a model of Anomalib they are compared with what that makes of these values, too.

    The module computes in PyTorch and the file in a runtime, so raw values may move as by another compilation; flips of
    raw values beside the boundary are shown and not judged (`comparison.exported`).
    """
    reference, runner = Reference(attached), attached.parts_of(way.open(attached.path, threads=None))
    tally = CheckTally("module", way.label, way.judged)
    theirs = CheckTally("anomalib", way.label, way.judged)
    tally.ran_on(runner)
    theirs.ran_on(runner)
    transform = EagerTransform.load(attached, named)
    for probe in probes:
        raw = probe.raw if transform is None else transform(probe.raw, size=image_size({INPUT: probe.images}))
        outputs = runner.run({INPUT: probe.images})
        expected = reference.outputs(raw)
        tally.add(compare_tail(reference, expected, outputs, raw, allowance="exported", is_whole=True))
        if anomalib is not None and transform is None:
            made = anomalib_outputs(anomalib, attached.tail, probe.raw)
            found = compare_tail(reference, {**expected, **made}, outputs, raw, allowance="exported", is_whole=True)
            theirs.add({name: difference for name, difference in found.items() if name in made})
    yield from tally.checks()
    yield from theirs.checks()
