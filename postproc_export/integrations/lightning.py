"""Calibrate while Lightning validates: the callback, the batches it reads, and its checkpoints."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Final, Literal

from postproc_export.calibration import Calibrator, Policy
from postproc_export.calibration.ranks import Ranks, all_ranks
from postproc_export.calibration.shards import MEANING, NAMES
from postproc_export.checkpoint import CALLBACK, callback_statistics, load_checkpoint
from postproc_export.errors import FileError, UsageError, require
from postproc_export.stats import CalibrationStats, Level

Extract = Callable[[Any, Any], Mapping[str, Any]]
Package = Literal["lightning", "pytorch_lightning"]

MODULES: Final[dict[str, str]] = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}

_EXAMPLE: Final = 'extract=lambda outputs, batch: {"pred_score": outputs[0], "gt_label": batch["label"]}'


def find_arrays(outputs: Any, batch: Any) -> dict[str, Any]:
    """Return what is found of the four arrays by their first names: keys, or attributes; None counts as not there."""
    found: dict[str, Any] = {}
    for key, names in NAMES.items():
        for source, name in product((outputs, batch), names):
            value = source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
            if value is not None:
                found[key] = value
                break
    return found


def checked_arrays(
    arrays: Mapping[str, Any], outputs: Any, batch: Any, *, truth_needed: bool, asked: bool
) -> dict[str, Any]:
    """Return the arrays by their first names; refuses what cannot be calibrated on."""
    unknown = [str(key) for key in arrays if key not in MEANING]
    if unknown:
        raise UsageError("extract gives arrays with unknown keys", found=", ".join(unknown), needed=", ".join(NAMES))
    found = {MEANING[key]: value for key, value in arrays.items() if value is not None}
    missing = None
    if not {"pred_score", "anomaly_map"} & found.keys():
        missing = "predictions: pred_score or anomaly_map (or scores, maps)"
    elif truth_needed and not {"gt_label", "gt_mask"} & found.keys():
        missing = "ground truth: gt_label or gt_mask (or labels, masks)"
    if missing is not None:
        where = "what extract returned" if asked else "the validation step"
        shown = ", ".join(found) or "none of them"
        at_hand = f"{shown}; validation_step returned {_described(outputs)}, the batch is {_described(batch)}"
        raise UsageError(f"{where} has no {missing}", found=at_hand, needed=missing, fix=f"give {_EXAMPLE}")
    return found


def _described(source: Any) -> str:
    if source is None:
        return "nothing"
    if isinstance(source, Mapping):
        return f"a mapping with {', '.join(map(str, source)) or 'no keys'}"
    if isinstance(source, list | tuple):
        return f"a {type(source).__name__} of {len(source)}"
    return f"a {type(source).__name__}"


# Which samples of a validation batch another process has seen too: what a distributed sampler repeats to fill up.
#
# `DistributedSampler` puts all samples in one order, repeats some at its end so that every process gets equally many,
# and deals them out in turn. So the k-th sample of process r of R stands at position k R + r of that order, and is a
# repetition exactly when that is not below the number of samples. Of other samplers nothing can be told.


class SamplerPartition:
    """How one dataloader deals its samples out to the processes."""

    def __init__(self, sampler: Any, batch_size: int) -> None:
        self.rank, self.ranks = sampler.rank, sampler.num_replicas  # this process and how many there are, for it
        self._samples, self._own = len(sampler.dataset), len(sampler)  # of all processes, and of this one with repeats
        self._batch_size = batch_size
        self._order = (sampler.shuffle, sampler.seed, sampler.epoch if sampler.shuffle else 0)

    def shared(self) -> list[Any]:
        """Return what has to be the same in every process."""
        return [self.ranks, self._samples, *self._order]

    def counts(self, batch: int) -> tuple[int, int]:
        """Return how many samples a batch has, and how many of them, the first ones, no other process counts."""
        start = batch * self._batch_size
        size = min(self._batch_size, self._own - start)
        alone = -(-(self._samples - self.rank) // self.ranks)
        return size, min(max(alone - start, 0), size)


def _partition(loader: Any, *, package: str) -> SamplerPartition | str:
    """Return how a dataloader deals, or why it cannot be told."""
    data = require("torch.utils.data", purpose="calibrating in a Trainer")
    distributed = require(f"{MODULES[package]}.overrides.distributed", purpose="the callback")
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
    return SamplerPartition(sampler, 1 if batches is None else batches.batch_size)


def agreed_partitions(
    loaders: Sequence[Any], ranks: Ranks, *, package: str, no_duplicates: bool
) -> list[SamplerPartition | None]:
    """Return how every dataloader deals its samples out, None where nothing is repeated for all that is known."""
    found = [_partition(loader, package=package) for loader in loaders]
    mine = [each if isinstance(each, str) else [each.rank, each.shared()] for each in found]
    reports = ranks.gather_json(mine)
    for number in range(len(found)):
        reason = _untold([report[number] for report in reports], size=ranks.size)
        if reason is not None and not no_duplicates:
            raise UsageError(
                f"it cannot be told which samples of validation dataloader {number} reach several processes",
                found=reason,
                needed="a DistributedSampler over all processes, the same in each",
                fix="leave use_distributed_sampler=True on, or give no_duplicates=True once no sample reaches "
                "two processes",
            )
    return [None if isinstance(each, str) else each for each in found]


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


def unrepeated_part(arrays: Mapping[str, Any], partition: SamplerPartition, batch: int) -> dict[str, Any]:
    """Return the samples of a batch that no other process counts; nothing where there is none."""
    size, kept = partition.counts(batch)
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


def checkpoint_statistics(
    path: str | Path, *, image_policy: str | None = None, pixel_policy: str | None = None
) -> CalibrationStats:
    """Return the statistics that the callback left in a checkpoint; nothing in it is executed.

    Parameters
    ----------
    path
        The checkpoint.
    image_policy, pixel_policy
        Of several callbacks, the one with these policies; None: whatever it has.

    Raises
    ------
    FileError
        If the file cannot be read as plain data.
    UsageError
        If it has no such statistics, or those of several callbacks.
    """
    given: dict[Level, str | None] = {"image": image_policy, "pixel": pixel_policy}
    asked = {level: Policy.parse(text) for level, text in given.items() if text is not None}
    kept, states = callback_statistics(load_checkpoint(Path(path)))
    found = [document for key, document in kept.items() if _has(key, asked)]
    if len(found) != 1:
        policies = ", ".join(f"{level}_policy={policy.text!r}" for level, policy in asked.items())
        asking = f", with {policies}" if asked else ""
        raise UsageError(
            f"the checkpoint {path} does not have the statistics of one validation",
            found=f"{len(found)} of {', '.join(states) or 'no calibration callback'}{asking}",
            needed="one calibration callback, and a validation before the checkpoint",
            fix="say which with image_policy= and pixel_policy=" if len(kept) > 1 else None,
        )
    return CalibrationStats.from_json(found[0], where=str(path))


def _has(key: str, asked: Mapping[Level, Policy]) -> bool:
    """Whether a callback has the policies that are asked for, however they are spelt."""
    policies = {level: Policy.parse(text) for level, text in json.loads(key.removeprefix(CALLBACK)).items()}
    return all(policies[level] == one for level, one in asked.items())


FILE_NAME: Final = "calibration.json"


class CalibrationHooks:
    """What the callback does, whichever package it is built for; see `calibration_callback`."""

    package: Package

    def __init__(
        self, calibrator: Calibrator, extract: Extract | None, output: str | Path | None, no_duplicates: bool
    ) -> None:
        self.stats: CalibrationStats | None = None
        self._calibrator, self._extract, self._no_duplicates = calibrator, extract, no_duplicates
        self._output = None if output is None else Path(output)
        self._partitions: list[SamplerPartition | None] | None = None
        self._error: Exception | None = None

    @property
    def state_key(self) -> str:
        """The name of the state in a checkpoint; two callbacks may stand beside each other if their policies differ."""
        return f"{CALLBACK}{json.dumps(self._calibrator.policies)}"

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics as plain data."""
        return {"statistics": None if self.stats is None else json.loads(self.stats.dumps())}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the statistics over from a checkpoint."""
        document = state_dict["statistics"]
        self.stats = None if document is None else CalibrationStats.from_json(document, where="the checkpoint")

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse the Trainer of the other package, which would skip the callback at times, and a file written twice."""
        roots = {each.__module__.partition(".")[0] for each in type(trainer).__mro__}
        if self.package not in roots:
            other = next(iter(roots & MODULES.keys()), "another package")
            raise UsageError(
                f"the calibration callback was made for {self.package}",
                found=f"a Trainer of {other}",
                fix=f"calibration_callback(package='{other}')",
            )
        if stage in ("fit", "validate"):
            self._check_file(trainer)

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Forget earlier validations, and see which samples the processes share; in the sanity check already."""
        self._check_file(trainer)
        self._calibrator.reset()
        self._partitions = self._error = None
        if trainer.world_size > 1:
            with all_ranks(None) as ranks:
                loaders = _loaders(trainer, no_duplicates=self._no_duplicates)
                self._partitions = agreed_partitions(
                    loaders, ranks, package=self.package, no_duplicates=self._no_duplicates
                )

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count one batch; in the sanity check, look whether it could be."""
        if self._error is not None:
            return
        try:
            found = (self._extract or find_arrays)(outputs, batch)
            needed = not all(Policy.parse(text).is_fixed for text in self._calibrator.policies.values())
            is_asked = self._extract is not None
            kept = checked_arrays(found, outputs, batch, truth_needed=needed, asked=is_asked)
            partition = self._partitions[dataloader_idx] if self._partitions else None
            if not trainer.sanity_checking and partition is not None:
                kept = unrepeated_part(kept, partition, batch_idx)
            if kept and not trainer.sanity_checking:
                self._calibrator.update(**kept)
        except Exception as error:  # the user's function may raise anything
            if trainer.world_size == 1:
                raise
            self._error = error  # raised in all processes at the end: until then the others would wait for this one

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Compute the statistics, over all processes, and write the file; checkpoints are saved after that."""
        with _together(trainer):
            if self._error is not None:
                raise self._error
        if trainer.sanity_checking:
            return
        self.stats = self._calibrator.compute(distributed=trainer.world_size > 1)
        self._calibrator.reset()
        with _together(trainer):
            path = self._file(trainer)
            if path is None or not trainer.is_global_zero:
                return
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                found, fix = error.strerror or str(error), "calibration_callback(output=...)"
                raise FileError(f"cannot make the folder of {path}", found=found, fix=fix) from error
            self.stats.save(path)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give memory and disk space back: after an error there is no teardown."""
        self._calibrator.close()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Give memory and disk space back."""
        self._calibrator.close()

    def _check_file(self, trainer: Any) -> None:
        mine = self._place(trainer)
        others = [each for each in trainer.callbacks if isinstance(each, CalibrationHooks) and each is not self]
        if mine is not None and mine in [other._place(trainer) for other in others]:
            raise UsageError(
                "two calibration callbacks of one Trainer write the same file",
                found=mine,
                needed="a file for each",
                fix="calibration_callback(output='recall.json')",
            )

    def _place(self, trainer: Any) -> str | None:
        """Return the file in words: before the first validation the folder of the checkpoints may not be known."""
        path = self._file(trainer)
        if path is not None:
            return str(path.absolute())
        return None if trainer.checkpoint_callback is None else f"{FILE_NAME} in the folder of the checkpoints"

    def _file(self, trainer: Any) -> Path | None:
        if self._output is not None:
            return self._output
        folder = getattr(trainer.checkpoint_callback, "dirpath", None)
        if folder is not None and "://" in str(folder):
            raise UsageError(
                "the statistics file cannot be written beside the checkpoints",
                found=str(folder),
                needed="a folder of this machine",
                fix="calibration_callback(output='calibration.json'); the checkpoints have the statistics in any case",
            )
        return None if folder is None else Path(folder) / FILE_NAME


def _together(trainer: Any) -> AbstractContextManager[Any]:
    """Return where an error of one process is raised in all of them."""
    return all_ranks(None) if trainer.world_size > 1 else nullcontext()


def _loaders(trainer: Any, *, no_duplicates: bool) -> list[Any]:
    """Return the dataloaders of the validation that runs; `trainer.val_dataloaders` may be those of an earlier fit."""
    loop = trainer.validate_loop if trainer.state.fn == "validate" else trainer.fit_loop.epoch_loop.val_loop
    combined = loop._combined_loader
    if combined._mode == "sequential":
        return list(combined.flattened)
    if no_duplicates:
        return []
    raise UsageError(
        "it cannot be told which samples of the validation reach several processes",
        found=f"dataloaders that are combined by mode '{combined._mode}'",
        needed="dataloaders that run one after the other",
        fix="give no_duplicates=True if no sample reaches two processes",
    )


def calibration_callback(
    calibrator: Calibrator | None = None,
    *,
    package: Package | None = None,
    extract: Extract | None = None,
    output: str | Path | None = None,
    no_duplicates: bool = False,
) -> Any:
    """Return a callback that leaves the statistics of the last validation in its `stats`, a file and the checkpoints.

    Parameters
    ----------
    calibrator
        With the policies and options that are wanted; default `Calibrator()`.
    package
        The package of the Trainer; None: the one that the program has imported.
    extract
        Called with what `validation_step` returned and the batch; returns a mapping with `pred_score`, `gt_label`,
        `anomaly_map`, `gt_mask` or some of them. Default: keys or attributes of these names, or `scores`, `labels`,
        `maps`, `masks`, of what was returned, then of the batch.
    output
        The statistics file, written after each validation; of several callbacks in a Trainer each needs its own. None:
        `calibration.json` in the folder of the checkpoints, or none where the Trainer keeps no checkpoints.
    no_duplicates
        In several processes: vouches for a sampler, batch sampler or iterable dataset of your own, that no sample
        reaches two processes. What `DistributedSampler` repeats is left out in any case.

    Returns
    -------
    lightning.pytorch.Callback or pytorch_lightning.Callback
        With the attribute `stats`: `CalibrationStats`, or None before the first validation. With
        ``strategy="ddp_spawn"`` the processes that validate have it, and this one, which they were spawned from, has
        not: read the file.

    Raises
    ------
    UsageError
        If both packages are imported, or none, and `package` does not say which.
    MissingDependencyError
        If the package is not installed.
    """
    return callback_class(package or _imported())(calibrator or Calibrator(), extract, output, no_duplicates)


@cache
def callback_class(package: Package) -> Any:
    """Return the class for a package: a Trainer wants callbacks of its own package, and tells them apart by class."""
    if package not in MODULES:
        raise UsageError(f"package={package!r} is not known", needed="'lightning' or 'pytorch_lightning'")
    module = require(MODULES[package], purpose="the calibration callback")
    own = {"__doc__": CalibrationHooks.__doc__, "__reduce__": _reduced, "package": package}
    return type(CALLBACK, (CalibrationHooks, module.Callback), own)


def _reduced(callback: CalibrationHooks) -> tuple[Any, ...]:
    return _rebuilt, (callback.package,), callback.__dict__


def _rebuilt(package: Package) -> Any:
    made = callback_class(package)
    return made.__new__(made)


def _imported() -> Package:
    packages: tuple[Package, ...] = ("lightning", "pytorch_lightning")
    imported = [package for package in packages if package in sys.modules]
    if len(imported) == 1:
        return imported[0]
    found = "both are imported" if imported else "neither is imported yet"
    raise UsageError(
        "it is not clear whose Trainer the calibration callback is for",
        found=found,
        fix="calibration_callback(package='lightning') or package='pytorch_lightning'",
    )
