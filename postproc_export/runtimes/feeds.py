"""What both runners check before a run, and how they tell of a failure."""

from collections.abc import Mapping, Sequence

import numpy as np

from postproc_export.errors import UnsupportedModelError, UsageError
from postproc_export.runtimes.protocol import Array, PortInfo

_MAX_REASON = 500


def checked_feeds(
    feeds: Mapping[str, Array], ports: Sequence[PortInfo], optional: Sequence[PortInfo] = ()
) -> dict[str, Array]:
    """Return the feeds by the name of their port, and refuse names, element types or static sizes that are not its own.

    Notes
    -----
    A feed may go by any name of its input's tensor. The element type is checked because OpenVINO converts silently: a
    float32 array fed to a float16 input loses digits.
    """
    ports = [*ports, *(port for port in optional if any(port.answers_to(name) for name in feeds))]
    found = {port.name: [name for name in feeds if port.answers_to(name)] for port in ports}
    if len(feeds) != len(ports) or any(len(names) != 1 for names in found.values()):
        raise UsageError("the model's inputs are others", found=str(sorted(feeds)), needed=str(list(found)))
    matched = {port: np.asarray(feeds[names[0]]) for port, names in found.items()}
    for port in ports:
        _check_feed(port, matched[port.name])
    return matched


def _check_feed(port: PortInfo, array: Array) -> None:
    found = f"{array.dtype.name} {list(array.shape)}"
    if array.dtype.name != port.dtype:
        raise UsageError(f"input '{port.name}' has another element type", found=found, needed=port.describe())
    fits = port.shape is None or (
        len(port.shape) == array.ndim
        and all(not isinstance(axis, int) or axis == size for axis, size in zip(port.shape, array.shape, strict=True))
    )
    if not fits:
        raise UsageError(f"input '{port.name}' has another shape", found=found, needed=port.describe())


def cannot_load(label: str, runtime: str, error: Exception) -> UnsupportedModelError:
    """Return the error for a model that a runtime does not load."""
    return UnsupportedModelError(f"{runtime} cannot load {label}", found=first_reason(error))


def cannot_run(label: str, runtime: str, error: Exception, feeds: Mapping[str, Array]) -> UnsupportedModelError:
    """Return the error for a run that failed, with the shapes that were fed."""
    fed = ", ".join(f"{name}: {array.dtype.name} {list(array.shape)}" for name, array in feeds.items())
    return UnsupportedModelError(f"{runtime} failed to run {label} on {fed}", found=first_reason(error))


def first_reason(error: Exception) -> str:
    """Return the first line of an error's text that says why, not where in the runtime's source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reasons = [line for line in lines if not _is_place(line)]
    text = (reasons or lines or [type(error).__name__])[0]
    return text if len(text) <= _MAX_REASON else text[: _MAX_REASON - 3] + "..."


def _is_place(line: str) -> bool:
    return line.startswith("Exception from ") or (line.startswith("Check '") and " failed at " in line)
