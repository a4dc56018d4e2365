"""Real inputs for a whole file: images or arrays, in batches of the sizes that the model takes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from postproc_export.errors import FileError, PostprocError, UsageError
from postproc_export.images import Preprocessing, Sample, find_samples, image_input, load_batches
from postproc_export.runtimes import PortInfo, Runner
from postproc_export.stats import CalibrationStats
from postproc_export.validation import check_file, stated_twice

# --- Real inputs for the whole model: images of a folder, or arrays of a file, in batches that the model takes.

Feeds: TypeAlias = dict[str, NDArray[Any]]

KNOWN_NAMES: Final = ("input", "images", "x")


@dataclass(frozen=True, slots=True)
class RealBatch:
    """What a model is fed at once.

    Parameters
    ----------
    feeds
        One array per input, filled up to a batch size that the model takes.
    size, valid
        That size, and how many of the samples are real.
    shared
        The inputs that have no entry per sample, and are fed as they are.
    """

    feeds: Feeds
    size: int
    valid: int
    shared: frozenset[str] = frozenset()

    def samples(self) -> Feeds:
        """Return what is fed without the filling."""
        return {name: array if name in self.shared else array[: self.valid] for name, array in self.feeds.items()}

    def run(self, runner: Runner) -> Feeds:
        """Run a model and leave out what came of the filling."""
        outputs = runner.run(self.feeds)
        if self.valid == self.size:
            return outputs
        return {
            name: values[: self.valid] if values.ndim and len(values) == self.size else values
            for name, values in outputs.items()
        }


class RealInputs(Protocol):
    """Samples that a model is fed in batches of any size."""

    @property
    def count(self) -> int:
        """How many samples there are."""

    def describe(self) -> str:
        """Return one line: what they are, and what was done to them."""

    def sample_name(self, index: int) -> str | None:
        """Return the name of a sample; None where it has none."""

    def batches(self, size: int, *, start: int = 0, stop: int | None = None) -> Iterator[RealBatch]:
        """Yield batches of exactly `size` samples; the last one is filled up with its own last sample."""


@dataclass(frozen=True, slots=True)
class ImageInputs:
    """Images of a folder or a CSV file, pre-processed for the model's one input."""

    samples: tuple[Sample, ...]
    preprocessing: Preprocessing
    name: str

    @property
    def count(self) -> int:
        """How many images there are."""
        return len(self.samples)

    def describe(self) -> str:
        """Return one line."""
        return f"{self.count} images, {self.preprocessing.describe()}"

    def sample_name(self, index: int) -> str | None:
        """Return the path of an image."""
        return str(self.samples[index].image)

    def batches(self, size: int, *, start: int = 0, stop: int | None = None) -> Iterator[RealBatch]:
        """Yield batches."""
        for batch in load_batches(self.samples[start:stop], self.preprocessing, batch_size=size):
            yield RealBatch({self.name: _filled(batch.images, size)}, size, len(batch.images))


@dataclass(frozen=True, slots=True)
class ArrayInputs:
    """Arrays, one per input, with as many entries along the first axis, but for inputs that all samples share."""

    arrays: Mapping[str, NDArray[Any]]
    where: str
    shared: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many samples there are."""
        return min(len(array) for array in self.arrays.values())

    def describe(self) -> str:
        """Return one line."""
        return f"{self.count} samples of {self.where}"

    def sample_name(self, index: int) -> str | None:
        """Return None: arrays have no names for their entries."""
        return None

    def batches(self, size: int, *, start: int = 0, stop: int | None = None) -> Iterator[RealBatch]:
        """Yield batches."""
        end = self.count if stop is None else min(stop, self.count)
        for first in range(start, end, size):
            valid = min(size, end - first)
            feeds = {name: _filled(array[first : first + valid], size) for name, array in self.arrays.items()}
            yield RealBatch({**feeds, **self.shared}, size, valid, frozenset(self.shared))


def image_inputs(
    images: str | Path,
    ports: Sequence[PortInfo],
    stats: CalibrationStats,
    preprocessing: Preprocessing | None,
    *,
    limit: int | None = None,
) -> ImageInputs:
    """Find images and settle their pre-processing: as asked, else as the statistics record it, else the defaults.

    Raises
    ------
    FileError, UsageError, CalibrationError, UnsupportedModelError, MetadataError
        If there are no images, or the model does not take them.
    """
    port = image_input(ports)
    recorded = stats.details.get("preprocessing")
    wanted = preprocessing or (Preprocessing() if recorded is None else Preprocessing.from_json(recorded))
    samples = tuple(islice(find_samples(images, labels=False), limit))
    return ImageInputs(samples, wanted.for_input(port), port.name)


def array_inputs(
    source: str | Path | Mapping[str, NDArray[Any]], ports: Sequence[PortInfo], *, limit: int | None = None
) -> ArrayInputs:
    """Take arrays from an ``.npz`` file or a mapping, by the names of the model's inputs.

    Raises
    ------
    FileError
        If the file cannot be read.
    UsageError
        If an input has no array, or the arrays do not agree in length or type.

    Notes
    -----
    For a model with one input the array may also be called ``input``, ``images`` or ``x``, or be the only one. An input
    that is declared ``[]``, or of a fixed length that is not the batch's, has no entry per sample: it is fed as it is.
    """
    where = "the arrays" if isinstance(source, Mapping) else str(source)
    arrays = dict(source) if isinstance(source, Mapping) else _read(Path(source))
    chosen = {port.name: _typed(_choose(arrays, port, ports, where), port, where) for port in ports}
    shared = {port.name: chosen.pop(port.name) for port in ports if _is_shared(port, chosen[port.name], ports)}
    if not chosen:
        raise UsageError(
            f"{where}: no input of the model has an entry per sample",
            found=", ".join(port.describe() for port in ports),
            needed="an input whose first axis is the batch",
        )
    lengths = {len(array) for array in chosen.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise UsageError(f"{where}: the inputs have {sorted(lengths)} samples", needed="as many of each, at least one")
    return ArrayInputs({name: array[:limit] for name, array in chosen.items()}, where, shared)


def _is_shared(port: PortInfo, array: NDArray[Any], ports: Sequence[PortInfo]) -> bool:
    """Whether an input has no axis of samples: it has none at all, or a fixed one that another input does not have."""
    size = port.size(0)
    is_fixed = size is not None and len(array) == size
    return port.rank == 0 or (is_fixed and any(other.rank != 0 and other.size(0) != size for other in ports))


def _read(path: Path) -> dict[str, NDArray[Any]]:
    check_file(path, what="the inputs", needed="an .npz file")
    try:
        with np.load(path, allow_pickle=False) as file:
            _refuse_twice(file.files, path)
            return {name: file[name] for name in file.files}
    except PostprocError:  # also an OSError, but says what is wrong already
        raise
    except (OSError, ValueError, AttributeError, EOFError, BadZipFile) as error:  # all that NumPy raises
        raise FileError(f"cannot read the inputs {path}", found=str(error), needed="an .npz file") from error


def _refuse_twice(names: Sequence[str], path: Path) -> None:
    twice = stated_twice(names)
    if twice is not None:
        fix = "write it again with numpy.savez"
        raise FileError(f"{path} holds an array twice", found=twice, needed="one of each name", fix=fix)


def _choose(arrays: Mapping[str, NDArray[Any]], port: PortInfo, ports: Sequence[PortInfo], where: str) -> NDArray[Any]:
    names = [name for name in (port.name, *port.aliases) if name in arrays]
    if not names and len(ports) == 1:
        names = list(arrays) if len(arrays) == 1 else [name for name in KNOWN_NAMES if name in arrays]
    if not names:
        raise UsageError(
            f"{where} has no array for the input {port.describe()}",
            found=", ".join(arrays) or "no array",
            needed=f"an array named '{port.name}'",
        )
    return arrays[names[0]]


def _typed(array: NDArray[Any], port: PortInfo, where: str) -> NDArray[Any]:
    if array.ndim == 0 and port.rank != 0:
        raise UsageError(f"{where}: the array for '{port.name}' is a single number", needed=port.describe())
    if port.rank == 0 and array.ndim:
        raise UsageError(
            f"{where}: the array for '{port.name}' has an entry per sample, and the input takes one number for all",
            found=f"{array.dtype.name} {list(array.shape)}",
            needed=port.describe(),
            fix=f"np.savez(..., {port.name}=np.{port.dtype}(1))",
        )
    if array.dtype.name == port.dtype:
        return array
    if port.dtype == "bfloat16" and array.dtype == np.float32:
        import ml_dtypes

        return array.astype(ml_dtypes.bfloat16)
    raise UsageError(
        f"{where}: the array for '{port.name}' has another element type",
        found=f"{array.dtype.name} {list(array.shape)}",
        needed=port.describe(),
    )


def _filled(array: NDArray[Any], size: int) -> NDArray[Any]:
    if len(array) == size:
        return array
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])


# --- At which batch sizes a model is run, and on which samples.

BATCH: Final = 8
_PROBES: Final = (1, 2)  # exporters trace at one of these, and some graphs then run at nothing else


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """The batch sizes that a file takes.

    Parameters
    ----------
    sizes
        Sizes at which it runs; empty where it runs at none.
    misses
        Sizes at which only the raw file runs, with the reason.
    refusals
        Sizes at which it does not run, and no raw file shows that it should, with the reason.
    possible
        Sizes that the model itself can run at, as far as is known: all but the refused ones.
    """

    sizes: tuple[int, ...]
    misses: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    possible: tuple[int, ...] = ()

    def batches(self, inputs: RealInputs) -> Iterator[RealBatch]:
        """Yield every sample once: the first ones at the small sizes, the others at the largest."""
        start = 0
        for size in self.sizes[:-1]:
            yield from inputs.batches(size, start=start, stop=min(start + size, inputs.count))
            start += size
        if start < inputs.count:
            yield from inputs.batches(self.sizes[-1], start=start)


@dataclass(frozen=True, slots=True)
class BatchTrial:
    """A model to be tried at a batch size.

    Parameters
    ----------
    runner
        The model.
    outputs
        Names of its outputs that have one entry per sample.
    """

    runner: Runner
    outputs: tuple[str, ...]

    def failure(self, batch: RealBatch) -> str | None:
        """Return why the model does not run on a batch; None where it does."""
        try:
            outputs = self.runner.run(batch.feeds)
        except PostprocError as error:
            return " ".join(str(error).split())
        for port in self.runner.outputs:
            values = outputs[port.name]
            if values.ndim and len(values) != batch.size and any(port.answers_to(name) for name in self.outputs):
                return f"output '{port.name}' has {len(values)} results for {batch.size} samples"
        return None


def plan_batches(
    attached: BatchTrial, apart: BatchTrial | None, inputs: RealInputs, *, allowed: tuple[int, ...] | None = None
) -> BatchPlan:
    """Try sizes 1, 2 and 8, or the one that the file declares.

    Parameters
    ----------
    attached
        The attached file.
    apart
        The raw file in the same configuration: a size at which it runs is one at which the attached file has to run.
    inputs
        Samples to try with.
    allowed
        Sizes to keep to, where another runtime found out which ones the model can run at.
    """
    shared = next(iter(inputs.batches(1, stop=1))).shared
    batched = (port for port in attached.runner.inputs if port.rank and not any(map(port.answers_to, shared)))
    static = next((size for port in batched if (size := port.size(0)) is not None), None)
    candidates = (static,) if static is not None else allowed or (*_PROBES, BATCH)
    sizes, misses, refusals, refused = [], [], [], []
    for size in candidates:
        batch = next(iter(inputs.batches(size, stop=1)))
        problem = attached.failure(batch)
        if problem is None:
            sizes.append(size)
        elif static is not None or (apart is not None and apart.failure(batch) is None):
            misses.append(f"it does not run at batch size {size}: {problem}")
        else:
            refusals.append(f"batch size {size}: {problem}")
            refused.append(size)
    possible = tuple(size for size in candidates if size not in refused)
    return BatchPlan(tuple(sizes), tuple(misses), tuple(refusals), possible)
