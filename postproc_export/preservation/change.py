"""One thing that differs between two files, and all of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

LONGEST: Final = 80  # characters of a value in a message
SHOWN: Final = 5  # changes in the one-line message; a machine gets all


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is not as it was.

    Parameters
    ----------
    where
        What it is, from the outside in: ``"node 'Conv_0': attribute 'pads'"``.
    raw, attached
        What stands there in either file; None where it is not there, or in both where it is too long to be told.
    """

    where: str
    raw: str | None
    attached: str | None

    def __str__(self) -> str:
        if self.raw is None and self.attached is None:
            return f"{self.where} differ"
        if self.attached is None:
            return f"{self.where} is gone"
        if self.raw is None:
            return f"{self.where} was added"
        return f"{self.where} was {self.raw}, is {self.attached}"

    def to_json(self) -> dict[str, str | None]:
        """Return the JSON object."""
        return {"where": self.where, "raw": self.raw, "attached": self.attached}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preservation:
    """What a comparison of an attached file with the raw one found; truthy where nothing but the tail was added.

    Parameters
    ----------
    compared
        How many parts of the raw file were compared, by kind, such as ``{"node": 12}``.
    tail
        How many nodes or operators of the attached file are the tail's.
    changes
        What else differs.
    not_judged
        What could not be judged, one sentence each.
    """

    compared: Mapping[str, int]
    tail: int
    changes: tuple[Change, ...]
    not_judged: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.changes

    def describe(self) -> str:
        """Return one line: what is the same, or the first changes."""
        if self.changes:
            shown = "; ".join(str(change) for change in self.changes[:SHOWN])
            rest = len(self.changes) - SHOWN
            return f"{len(self.changes)} changed: {shown}" + (f"; and {rest} more" if rest > 0 else "")
        parts = ", ".join(
            f"{count} {kind}{'' if count == 1 else 's'}" for kind, count in self.compared.items() if count
        )
        return f"nothing but the tail of {self.tail} operators was added: {parts} as in the raw file"

    def to_json(self) -> dict[str, Any]:
        """Return the details of the JSON report."""
        return {
            "changes": [change.to_json() for change in self.changes],
            "compared": dict(self.compared),
            "tail_operators": self.tail,
            "not_judged": list(self.not_judged),
        }


def shown(value: object) -> str:
    """Return a value for a message, cut where it is long."""
    text = f"{len(value):,} bytes" if isinstance(value, bytes) else repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
