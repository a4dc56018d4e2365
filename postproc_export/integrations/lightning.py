"""A Lightning callback that calibrates during validation, for `lightning` and for `pytorch_lightning`.

The two packages hold two copies of one class, and a Trainer wants a callback of its own; so the class is built for the
package that is in use.
"""

import sys
from functools import cache
from pathlib import Path
from typing import Any

from postproc_export.calibration import Calibrator
from postproc_export.errors import UsageError, require
from postproc_export.integrations.lightning_batches import Extract
from postproc_export.integrations.lightning_checkpoints import NAME, checkpoint_statistics
from postproc_export.integrations.lightning_hooks import MODULES, CalibrationHooks, Package

__all__ = ["Package", "calibration_callback", "checkpoint_statistics"]


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
        The statistics file, written after each validation; of several callbacks in a Trainer each needs its own. None:
        `calibration.json` in the folder of the checkpoints, or none where the Trainer keeps no checkpoints.
    unrepeated
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
    return _callback_class(package or _imported())(calibrator or Calibrator(), extract, output, unrepeated)


@cache
def _callback_class(package: Package) -> Any:
    """Return the class for a package; one per package, as Lightning tells callbacks apart by their class."""
    if package not in MODULES:
        raise UsageError(f"package={package!r} is not known", needed="'lightning' or 'pytorch_lightning'")
    module = require(MODULES[package], extra="lightning", purpose="the calibration callback")
    own = {"__doc__": CalibrationHooks.__doc__, "__reduce__": _reduced, "package": package}
    return type(NAME, (CalibrationHooks, module.Callback), own)


def _reduced(callback: CalibrationHooks) -> tuple[Any, ...]:
    return _rebuilt, (callback.package,), callback.__dict__


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
