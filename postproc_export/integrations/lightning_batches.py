"""Where the four arrays of a validation step are: by the names that validation outputs have everywhere."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from postproc_export.calibration.shards.kinds import NAMES
from postproc_export.errors import UsageError

Extract = Callable[[Any, Any], Mapping[str, Any]]

_EXAMPLE: Final = 'extract=lambda outputs, batch: {"pred_score": outputs[0], "gt_label": batch["label"]}'


def find_arrays(outputs: Any, batch: Any) -> dict[str, Any]:
    """Return what is found of the four arrays, by their first names.

    Parameters
    ----------
    outputs
        What `validation_step` returned; looked into first.
    batch
        The batch that it was given.

    Notes
    -----
    Keys of mappings and attributes of anything else, under either name of docs/definition.md section 9; None counts as
    not there.
    """
    found: dict[str, Any] = {}
    for key, names in NAMES.items():
        values = (_look(source, name) for source in (outputs, batch) for name in names)
        value = next((value for value in values if value is not None), None)
        if value is not None:
            found[key] = value
    return found


def checked_arrays(
    arrays: Mapping[str, Any], outputs: Any, batch: Any, *, truth_needed: bool, asked: bool
) -> dict[str, Any]:
    """Return the arrays by their first names; refuses what cannot be calibrated on.

    Parameters
    ----------
    arrays
        From `find_arrays` or from the user's function.
    outputs, batch
        For the message.
    truth_needed
        Whether some policy needs ground truth.
    asked
        Whether the user's own function said where they are.

    Raises
    ------
    UsageError
        If there is a key that is not known, no prediction, or no ground truth where it is needed.
    """
    first = {name: key for key, names in NAMES.items() for name in names}
    unknown = [str(key) for key in arrays if key not in first]
    if unknown:
        raise UsageError("extract gives arrays with unknown keys", found=", ".join(unknown), needed=", ".join(NAMES))
    found = {first[key]: value for key, value in arrays.items() if value is not None}
    missing = _missing(found, truth_needed=truth_needed)
    if missing is not None:
        where = "what extract returned" if asked else "the validation step"
        shown = ", ".join(found) or "none of them"
        at_hand = f"{shown}; validation_step returned {_described(outputs)}, the batch is {_described(batch)}"
        raise UsageError(f"{where} has no {missing}", found=at_hand, needed=missing, fix=f"give {_EXAMPLE}")
    return found


def _missing(found: Mapping[str, Any], *, truth_needed: bool) -> str | None:
    if not {"pred_score", "anomaly_map"} & found.keys():
        return "predictions: pred_score or anomaly_map (or scores, maps)"
    if truth_needed and not {"gt_label", "gt_mask"} & found.keys():
        return "ground truth: gt_label or gt_mask (or labels, masks)"
    return None


def _look(source: Any, name: str) -> Any:
    return source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)


def _described(source: Any) -> str:
    if source is None:
        return "nothing"
    if isinstance(source, Mapping):
        return f"a mapping with {', '.join(map(str, source)) or 'no keys'}"
    if isinstance(source, list | tuple):
        return f"a {type(source).__name__} of {len(source)}"
    return f"a {type(source).__name__}"
