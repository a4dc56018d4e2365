"""The statistics that calibration callbacks leave in the checkpoints of Lightning."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from postproc_export.calibration import Policy
from postproc_export.errors import FileError, UsageError, require
from postproc_export.stats import CalibrationStats, Level

NAME: Final = "CalibrationCallback"


def state_key(policies: Mapping[Level, str]) -> str:
    """Return under which key a callback with these policies keeps its state in a checkpoint."""
    return f"{NAME}{json.dumps(policies)}"


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
    states = _states(path)
    kept = {key: state["statistics"] for key, state in states.items() if state["statistics"] is not None}
    found = [document for key, document in kept.items() if _has(key, asked)]
    if len(found) != 1:
        asking = (
            f", with {', '.join(f'{level}_policy={policy.text!r}' for level, policy in asked.items())}" if asked else ""
        )
        raise UsageError(
            f"the checkpoint {path} does not have the statistics of one validation",
            found=f"{len(found)} of {', '.join(states) or 'no calibration callback'}{asking}",
            needed="one calibration callback, and a validation before the checkpoint",
            fix="say which with image_policy= and pixel_policy=" if len(kept) > 1 else None,
        )
    return CalibrationStats.from_json(found[0], where=str(path))


def _states(path: str | Path) -> dict[str, Any]:
    """Return the states of calibration callbacks, by their keys."""
    torch = require("torch", extra="lightning", purpose="reading a checkpoint")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        fix = f"if you trust it, torch.load(..., weights_only=False)['callbacks'] has them under '{NAME}...'"
        raise FileError(
            f"the checkpoint {path} cannot be read", found=str(error).partition("\n")[0], fix=fix
        ) from error
    return {key: state for key, state in checkpoint.get("callbacks", {}).items() if key.startswith(NAME)}


def _has(key: str, asked: Mapping[Level, Policy]) -> bool:
    """Whether a callback has the policies that are asked for, however they are spelt."""
    policies = {level: Policy.parse(text) for level, text in json.loads(key.removeprefix(NAME)).items()}
    return all(
        (policies[level].kind, policies[level].parameter) == (one.kind, one.parameter) for level, one in asked.items()
    )
