"""What attaching has in common in ONNX and OpenVINO: the order of the outputs, names that are taken, the result."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from postproc_export.errors import UnsupportedModelError
from postproc_export.graphs.detached import OUTSIDE, UNDO, Found
from postproc_export.graphs.metadata import TailRecord
from postproc_export.graphs.reading.own_tail import OwnTail
from postproc_export.outputs import RESULT_NAMES
from postproc_export.stats import LEVELS
from postproc_export.tail import OUTPUT_NAMES, Tail
from postproc_export.tail_steps import TailOutput


@dataclass(frozen=True, slots=True)
class Attached:
    """What was done to a model in memory: the tail, the record in it, and the new names of values that had to move."""

    tail: Tail
    record: TailRecord
    renamed: Mapping[str, str]


def new_names(tail: Tail) -> list[str]:
    """Return the names that the tail brings along: of its outputs, and of the inputs that adjust it."""
    return [*(output.name for output in tail.outputs), *(item.name for item in tail.adjustable)]


def replaced_outputs(tail: Tail) -> list[str]:
    """Return the raw outputs that the tail's outputs take the place of."""
    return [port.name for level, port in tail.raw.items() if tail.names(level)]


def final_order(tail: Tail, outputs: Iterable[str]) -> list[TailOutput | str]:
    """Return the final outputs: ours, and the model's own ones under the names that they had.

    Notes
    -----
    Each level's outputs come first, the raw one in its level's place where that is not calibrated; then every other
    output of the model; then the raw ones that were replaced, where they are kept.
    """
    replaced = replaced_outputs(tail)
    order: list[TailOutput | str] = []
    for level in LEVELS:
        order += [output for output in tail.outputs if output.level == level]  # a packed one counts as the map's
        if level in tail.raw and tail.raw[level].name not in replaced:
            order.append(tail.raw[level].name)
    order += [name for name in outputs if name not in order and name not in replaced]
    return order + (replaced if tail.options.keep_raw else [])


def new_name(name: str, used: set[str]) -> str:
    """Return a name for a value that has to give its own up, unused in every scope, and add it to `used`."""
    base = f"{name}_raw"
    candidate, count = base, 1
    while candidate in used or candidate in OUTPUT_NAMES:
        candidate, count = f"{base}_{count}", count + 1
    used.add(candidate)
    return candidate


def refuse_attached(found: Found, *, entry: str | None) -> None:
    """Refuse a model that has post-processing: a tail of ours, labels or masks, or a record.

    Parameters
    ----------
    found
        What the model has.
    entry
        Where the record stands; None where the model has none.

    Raises
    ------
    UnsupportedModelError
        If it has, with a fix that works on this very file.
    """
    labels = [name for name in RESULT_NAMES if name in found.outputs]
    own = [name for tail in found.tails.values() if isinstance(tail, OwnTail) for name in tail.outputs]
    if entry is None and not labels and not own:
        return
    shown = f"outputs {', '.join(labels)}" if labels else f"a tail at {' and '.join(own)}" if own else entry
    known = "change it with `postproc-export update`, or remove it first with `postproc-export detach`"
    without = f"attach to the original again, or remove {entry}: it describes no tail that is there"
    raise UnsupportedModelError(
        "the model has post-processing already",
        found=shown if found.is_whole else f"{shown}; `update` and `detach` do not know it as a whole",
        needed="a model with raw outputs",
        fix=known if found.is_whole else OUTSIDE if labels else UNDO if found.record is not None else without,
    )


def name_is_taken(name: str, *, by: str) -> UnsupportedModelError:
    """Return the error for a name of ours that cannot be freed."""
    fixes = {
        "another output": "say with --image-output or --pixel-output that this output is the raw one, or rename it",
        "an input": "rename the input: its name is part of the model's interface",
        "an overridable initializer": "rename the initializer: its name is part of the model's interface",
        "a variable": "rename the variable: its name is part of the model's interface",
    }
    return UnsupportedModelError(f"the name '{name}' is taken", found=f"{by} of that name", fix=fixes[by])
