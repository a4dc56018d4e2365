"""Which names and outputs of the raw file an attached one still has to have."""

from collections.abc import Collection, Iterable
from typing import Final, TypeVar

from postproc_export.graphs.metadata import TailRecord
from postproc_export.stats import LEVELS
from postproc_export.tail import OUTPUT_NAMES
from postproc_export.transforms.record import TRANSFORMED

Output = TypeVar("Output")

NO_RECORD: Final = "the outputs, their order, types and shapes: the record of what they were is gone from the file"


def remaining(record: TailRecord, outputs: Iterable[tuple[str, Output]]) -> list[Output]:
    """Return the raw outputs that are outputs of the attached file, in its order.

    Parameters
    ----------
    record
        What was attached.
    outputs
        The outputs of the raw file, each with its value as the record names raw values.

    Notes
    -----
    Those of levels that were left alone stand in their level's place, then come all that belong to no level, then the
    raw ones that ours took the place of, where they were kept.
    """
    by_value = dict(outputs)
    raw = {level: value for level, value in record.raw.items() if value in by_value}
    transformed = record.original.get(TRANSFORMED, ())  # what the file gives of these is not what the raw one gives
    kept = [level for level in LEVELS if level in raw and level not in transformed]
    left_alone = [raw[level] for level in kept if level not in record.levels]
    replaced = [raw[level] for level in kept if level in record.levels]
    others = [value for value in by_value if value not in raw.values()]
    return [by_value[value] for value in (*left_alone, *others, *(replaced if record.options.keep_raw else []))]


def assumed(raw: Collection[str], attached: Collection[str]) -> dict[str, str]:
    """Return the renamings that the names themselves tell where no record does: {in the raw file: in the attached}.

    Notes
    -----
    Attaching moves a value that bears the name of one of its outputs to ``<name>_raw``, or ``<name>_raw_1`` and so on.
    """
    new = sorted(name for name in attached if name not in raw)
    found = {}
    for name in OUTPUT_NAMES:
        moved = [item for item in new if item == f"{name}_raw" or item.startswith(f"{name}_raw_")]
        if name in raw and moved and name not in attached:
            found[name] = moved[0]
    return found
