"""At which batch sizes a model is run, and on which samples."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from postproc_export.errors import PostprocError
from postproc_export.parity.fed.real_inputs import RealBatch, RealInputs
from postproc_export.runtimes import Runner

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
class Probe:
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
    attached: Probe, apart: Probe | None, inputs: RealInputs, *, allowed: tuple[int, ...] | None = None
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
