"""Where scores, labels, maps and masks stand in a graph: at outputs of their own, or in the packed one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from graph_patterns import catalog
from graph_patterns.graph import GraphView, Value
from graph_patterns.match import Match, Mismatch, find
from postproc_export.packing import PACKED_OUTPUT, PARTS
from postproc_export.tail import OUTPUT_NAMES

_PIECES: Final[Mapping[str, str]] = dict(zip(PARTS, ("maps", "score", "label", "mask"), strict=True))


@dataclass(frozen=True, slots=True)
class Places:
    """The value of each part that a graph has, by name.

    Parameters
    ----------
    values
        The value of each part.
    packing
        The steps that lay the parts into one output; None where each has its own.
    """

    values: Mapping[str, Value]
    packing: Match | None = None

    def at(self, part: str) -> Value | Mismatch:
        """Return the value of a part, or that it is missing."""
        return self.values[part] if part in self.values else Mismatch(f"no output {part!r}", part)

    def outputs(self, *parts: str) -> tuple[str, ...]:
        """Return the outputs that hold some parts."""
        return (PACKED_OUTPUT,) if self.packing else tuple(part for part in parts if part in self.values)


def find_places(view: GraphView, *, is_packed: bool | None = None) -> Places | Mismatch:
    """Find the parts of a tail.

    Parameters
    ----------
    view
        The graph.
    is_packed
        Whether there has to be a packed output; None where that is not known.
    """
    packing = Mismatch(f"no output {PACKED_OUTPUT!r}", PACKED_OUTPUT) if is_packed is False else find_packing(view)
    if isinstance(packing, Match):
        return Places({part: packing.inputs[piece] for part, piece in _PIECES.items()}, packing)
    if is_packed:
        return packing
    outputs = {name: view.output(name) for name in OUTPUT_NAMES}
    return Places({name: value for name, value in outputs.items() if value is not None})


def find_packing(view: GraphView) -> Match | Mismatch:
    """Find the steps that lay four parts into one output."""
    at = view.output(PACKED_OUTPUT)
    return Mismatch(f"no output {PACKED_OUTPUT!r}", PACKED_OUTPUT) if at is None else find(catalog.PACKED, view, at=at)
