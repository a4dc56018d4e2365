"""A Lightning callback that calibrates during validation, for `lightning` and for `pytorch_lightning`.

The two packages hold two copies of one class, and a Trainer wants a callback of its own; so the class is built for the
package that is in use.
"""

import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from postproc_export.calibration import Calibrator, Policy
from postproc_export.calibration.processes.ranks import all_ranks
from postproc_export.errors import FileError, PostprocError, UsageError, require
from postproc_export.integrations.lightning_batches import Extract, checked_arrays, find_arrays
from postproc_export.integrations.lightning_samples import Deal, agreed_deals, unrepeated_part
from postproc_export.stats import CalibrationStats

Package = Literal["lightning", "pytorch_lightning"]

FILE_NAME: Final = "calibration.json"
_MODULES: Final[dict[str, str]] = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}
_NAME: Final = "CalibrationCallback"


def calibration_callback(
    calibrator: Calibrator | None = None,
    *,
    package: Package | None = None,
    extract: Extract | None = None,
    output: str | Path | None = None,
    unrepeated: bool = False,
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
        The statistics file, written after each validation. None: `calibration.json` in the folder of the checkpoints,
        or none where the Trainer keeps no checkpoints.
    unrepeated
        In several processes: vouches for a sampler, batch sampler or iterable dataset of your own, that no sample
        reaches two processes. What `DistributedSampler` repeats is left out in any case.

    Returns
    -------
    lightning.pytorch.Callback or pytorch_lightning.Callback
        With the attribute `stats`: `CalibrationStats`, or None before the first validation.

    Raises
    ------
    UsageError
        If both packages are imported, or none, and `package` does not say which.
    MissingDependencyError
        If the package is not installed.
    """
    return _callback_class(package or _imported())(calibrator or Calibrator(), extract, output, unrepeated)


def checkpoint_statistics(path: str | Path) -> CalibrationStats:
    """Return the statistics that the callback left in a checkpoint; nothing in it is executed.

    Raises
    ------
    FileError
        If the file cannot be read as plain data.
    UsageError
        If it has no statistics, or those of several callbacks.
    """
    torch = require("torch", extra="lightning", purpose="reading a checkpoint")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        fix = f"if you trust it, torch.load(..., weights_only=False)['callbacks'] has them under '{_NAME}...'"
        raise FileError(
            f"the checkpoint {path} cannot be read", found=str(error).partition("\n")[0], fix=fix
        ) from error
    states = {key: state for key, state in checkpoint.get("callbacks", {}).items() if key.startswith(_NAME)}
    found = [state["statistics"] for state in states.values() if state["statistics"] is not None]
    if len(found) != 1:
        raise UsageError(
            f"the checkpoint {path} does not have the statistics of one validation",
            found=f"{len(found)} of {', '.join(states) or 'no calibration callback'}",
            needed="one calibration callback, and a validation before the checkpoint",
        )
    return CalibrationStats.from_json(found[0], where=str(path))


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
        self._error: PostprocError | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.package,), self.__dict__

    @property
    def state_key(self) -> str:
        """The name of the state in a checkpoint; two callbacks may stand beside each other if their policies differ."""
        return f"{_NAME}{json.dumps(self._calibrator.policies)}"

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics as plain data."""
        return {"statistics": None if self.stats is None else json.loads(self.stats.dumps())}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the statistics over from a checkpoint."""
        document = state_dict["statistics"]
        self.stats = None if document is None else CalibrationStats.from_json(document, where="the checkpoint")

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse the Trainer of the other package, which would leave the callback out of some of its steps."""
        roots = {each.__module__.partition(".")[0] for each in type(trainer).__mro__}
        if self.package not in roots:
            other = next(iter(roots & _MODULES.keys()), "another package")
            raise UsageError(
                f"the calibration callback was made for {self.package}",
                found=f"a Trainer of {other}",
                fix=f"calibration_callback(package='{other}')",
            )

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Forget earlier validations, and see which samples the processes share."""
        self._file(trainer)  # refused in the sanity check already, not after an epoch
        if trainer.sanity_checking:
            return
        self._calibrator.reset()
        self._deals = self._error = None
        if trainer.world_size > 1:
            with all_ranks(None) as ranks:
                loaders = _loaders(trainer, unrepeated=self._unrepeated)
                self._deals = agreed_deals(loaders, ranks, package=self.package, unrepeated=self._unrepeated)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count one batch."""
        if trainer.sanity_checking:
            return
        arrays = (self._extract or find_arrays)(outputs, batch)
        needed = not all(Policy.parse(text).is_fixed for text in self._calibrator.policies.values())
        found = checked_arrays(arrays, outputs, batch, truth_needed=needed, asked=self._extract is not None)
        deal = self._deals[dataloader_idx] if self._deals else None
        try:
            if self._error is None:
                self._count(found, deal, batch_idx)
        except PostprocError as error:
            if trainer.world_size == 1:
                raise
            self._error = error  # raised in all processes at the end: until then the others would wait for this one

    def _count(self, found: Mapping[str, Any], deal: Deal | None, batch_idx: int) -> None:
        kept = found if deal is None else unrepeated_part(found, deal, batch_idx)
        if kept:
            self._calibrator.update(**kept)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Compute the statistics, over all processes, and write the file; checkpoints are saved after that."""
        if trainer.sanity_checking:
            return
        if trainer.world_size > 1:
            with all_ranks(None):
                if self._error is not None:
                    raise self._error
        self.stats = self._calibrator.compute(distributed=trainer.world_size > 1)
        self._calibrator.reset()
        path = self._file(trainer)
        if path is not None and trainer.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.stats.save(path)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Give memory and disk space back, after an error too."""
        self._calibrator.close()

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


@cache
def _callback_class(package: Package) -> Any:
    """Return the class for a package; one per package, as Lightning tells callbacks apart by their class."""
    if package not in _MODULES:
        raise UsageError(f"package={package!r} is not known", needed="'lightning' or 'pytorch_lightning'")
    module = require(_MODULES[package], extra="lightning", purpose="the calibration callback")
    return type(_NAME, (CalibrationHooks, module.Callback), {"__doc__": CalibrationHooks.__doc__, "package": package})


def _rebuilt(package: Package) -> Any:
    made = _callback_class(package)
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
