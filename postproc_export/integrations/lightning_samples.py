"""Which samples of a validation batch another process has seen too: what a distributed sampler repeats to fill up.

`DistributedSampler` puts all samples in one order, repeats some at its end so that every process gets equally many, and
deals them out in turn. So the k-th sample of process r of R stands at position k R + r of that order, and is a
repetition exactly when that is not below the number of samples. Of other samplers nothing can be told.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from postproc_export.calibration.processes.ranks import Ranks
from postproc_export.errors import UsageError, require

_FIX = "leave use_distributed_sampler=True on, or give unrepeated=True once no sample reaches two processes"


@dataclass(frozen=True, slots=True)
class Deal:
    """How one dataloader deals its samples out to the processes.

    Parameters
    ----------
    rank, ranks
        This process and how many there are, for the sampler.
    samples
        Samples of the whole dataset.
    own
        Samples that this process gets, repetitions included.
    batch_size
        Samples per batch.
    order
        What decides the order of the samples: whether they are shuffled, the seed, the epoch.
    """

    rank: int
    ranks: int
    samples: int
    own: int
    batch_size: int
    order: tuple[bool, int, int]

    @classmethod
    def of(cls, loader: Any, *, package: str) -> "Deal | str":
        """Return how a dataloader deals, or why it cannot be told."""
        data = require("torch.utils.data", extra="lightning", purpose="calibrating in a Trainer")
        distributed = require(f"{_root(package)}.overrides.distributed", extra="lightning", purpose="the callback")
        if not isinstance(loader, data.DataLoader):
            return f"the validation dataloader is a {type(loader).__name__}"
        if isinstance(loader.dataset, data.IterableDataset):
            return "the dataset is iterable, so each process reads what it wants"
        batches = loader.batch_sampler
        sampler: Any = loader.sampler if batches is None else getattr(batches, "sampler", None)
        if type(batches) not in (type(None), data.BatchSampler):
            return f"the batch sampler is a {type(batches).__name__}"
        if type(sampler) not in (data.DistributedSampler, distributed.UnrepeatedDistributedSampler):
            return f"the sampler is a {type(sampler).__name__}"
        if loader.num_workers and not getattr(loader, "in_order", True):
            return "the dataloader has in_order=False"
        size = 1 if batches is None else batches.batch_size
        order = (sampler.shuffle, sampler.seed, sampler.epoch if sampler.shuffle else 0)
        return cls(sampler.rank, sampler.num_replicas, len(sampler.dataset), len(sampler), size, order)

    def shared(self) -> list[Any]:
        """Return what has to be the same in every process."""
        return [self.ranks, self.samples, *self.order]

    def counts(self, batch: int) -> tuple[int, int]:
        """Return how many samples a batch has, and how many of them, the first ones, no other process counts."""
        start = batch * self.batch_size
        size = min(self.batch_size, self.own - start)
        unrepeated = -(-(self.samples - self.rank) // self.ranks)
        return size, min(max(unrepeated - start, 0), size)


def agreed_deals(loaders: Sequence[Any], ranks: Ranks, *, package: str, unrepeated: bool) -> list[Deal | None]:
    """Return how every dataloader deals, None where nothing is repeated for all that is known.

    Parameters
    ----------
    loaders
        The validation dataloaders as they run; empty where they are not read one after the other.
    ranks
        All processes; each of them calls this.
    package
        The package of the Trainer.
    unrepeated
        Whether the user vouches for what cannot be told.

    Raises
    ------
    UsageError
        In every process, if it cannot be told which samples are repeated.
    """
    found = [Deal.of(loader, package=package) for loader in loaders]
    mine = [each if isinstance(each, str) else [each.rank, each.shared()] for each in found]
    reports = ranks.gather_json(mine)
    for number in range(len(found)):
        reason = _untold([report[number] for report in reports], size=ranks.size)
        if reason is not None and not unrepeated:
            raise UsageError(
                f"it cannot be told which samples of validation dataloader {number} reach several processes",
                found=reason,
                needed="a DistributedSampler over all processes, the same in each",
                fix=_FIX,
            )
    return [each if isinstance(each, Deal) else None for each in found]


def _untold(reports: Sequence[Any], *, size: int) -> str | None:
    reason = next((report for report in reports if isinstance(report, str)), None)
    if reason is not None:
        return reason
    ranks, shared = [report[0] for report in reports], [report[1] for report in reports]
    if any(each != shared[0] for each in shared):
        return f"samplers that differ: {shared}"
    if sorted(ranks) != list(range(size)) or shared[0][0] != size:
        return f"samplers for the ranks {ranks} of {shared[0][0]} in {size} processes"
    return None


def unrepeated_part(arrays: Mapping[str, Any], deal: Deal, batch: int) -> dict[str, Any]:
    """Return the samples of a batch that no other process counts; nothing where there is none.

    Raises
    ------
    UsageError
        If some have to be left out of arrays that have not one entry per sample of the batch.
    """
    size, kept = deal.counts(batch)
    if kept == size:
        return dict(arrays)
    if kept == 0:
        return {}
    for key, array in arrays.items():
        shape = tuple(getattr(array, "shape", ()))
        if shape[:1] != (size,):
            raise UsageError(
                f"the sampler repeats {size - kept} samples of batch {batch}, but {key} does not say which",
                found=f"shape {list(shape)} for {size} samples",
                needed="one entry per sample, in their order",
                fix="make the number of validation samples a multiple of the number of processes",
            )
    return {key: array[:kept] for key, array in arrays.items()}


def _root(package: str) -> str:
    return "lightning.pytorch" if package == "lightning" else package
