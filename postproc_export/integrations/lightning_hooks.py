"""What the calibration callback does in the steps of a Trainer."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final, Literal

from postproc_export.calibration import Calibrator, Policy
from postproc_export.calibration.processes.ranks import all_ranks
from postproc_export.errors import FileError, UsageError
from postproc_export.integrations.lightning_batches import Extract, checked_arrays, find_arrays
from postproc_export.integrations.lightning_checkpoints import state_key
from postproc_export.integrations.lightning_samples import Deal, agreed_deals, unrepeated_part
from postproc_export.stats import CalibrationStats

Package = Literal["lightning", "pytorch_lightning"]

FILE_NAME: Final = "calibration.json"
MODULES: Final[dict[str, str]] = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}


class CalibrationHooks:
    """What the callback does, whichever package it is built for; see `calibration_callback`."""

    package: Package

    def __init__(
        self, calibrator: Calibrator, extract: Extract | None, output: str | Path | None, unrepeated: bool
    ) -> None:
        self.stats: CalibrationStats | None = None
        self._calibrator, self._extract, self._unrepeated = calibrator, extract, unrepeated
        self._output = None if output is None else Path(output)
        self._deals: list[Deal | None] | None = None
        self._error: Exception | None = None

    @property
    def state_key(self) -> str:
        """The name of the state in a checkpoint; two callbacks may stand beside each other if their policies differ."""
        return state_key(self._calibrator.policies)

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics as plain data."""
        return {"statistics": None if self.stats is None else json.loads(self.stats.dumps())}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the statistics over from a checkpoint."""
        document = state_dict["statistics"]
        self.stats = None if document is None else CalibrationStats.from_json(document, where="the checkpoint")

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse the Trainer of the other package, which would leave the callback out of some of its steps.

        So is another callback that writes the same file.
        """
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
        self._deals = self._error = None
        if trainer.world_size > 1:
            with all_ranks(None) as ranks:
                loaders = _loaders(trainer, unrepeated=self._unrepeated)
                self._deals = agreed_deals(loaders, ranks, package=self.package, unrepeated=self._unrepeated)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count one batch; in the sanity check, look whether it could be."""
        if self._error is not None:
            return
        try:
            found = self._found(outputs, batch)
            if not trainer.sanity_checking:
                self._count(found, self._deals[dataloader_idx] if self._deals else None, batch_idx)
        except Exception as error:  # the user's function may raise anything
            if trainer.world_size == 1:
                raise
            self._error = error  # raised in all processes at the end: until then the others would wait for this one

    def _found(self, outputs: Any, batch: Any) -> dict[str, Any]:
        arrays = (self._extract or find_arrays)(outputs, batch)
        needed = not all(Policy.parse(text).is_fixed for text in self._calibrator.policies.values())
        return checked_arrays(arrays, outputs, batch, truth_needed=needed, asked=self._extract is not None)

    def _count(self, found: Mapping[str, Any], deal: Deal | None, batch_idx: int) -> None:
        kept = found if deal is None else unrepeated_part(found, deal, batch_idx)
        if kept:
            self._calibrator.update(**kept)

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
            if path is not None and trainer.is_global_zero:
                _save(self.stats, path)

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


def _save(stats: CalibrationStats, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        found, fix = error.strerror or str(error), "calibration_callback(output=...)"
        raise FileError(f"cannot make the folder of {path}", found=found, fix=fix) from error
    stats.save(path)


def _loaders(trainer: Any, *, unrepeated: bool) -> list[Any]:
    """Return the dataloaders of the validation that runs; `trainer.val_dataloaders` may be those of an earlier fit."""
    loop = trainer.validate_loop if trainer.state.fn == "validate" else trainer.fit_loop.epoch_loop.val_loop
    combined = loop._combined_loader
    if combined._mode == "sequential":
        return list(combined.flattened)
    if unrepeated:
        return []
    raise UsageError(
        "it cannot be told which samples of the validation reach several processes",
        found=f"dataloaders that are combined by mode '{combined._mode}'",
        needed="dataloaders that run one after the other",
        fix="give unrepeated=True if no sample reaches two processes",
    )
