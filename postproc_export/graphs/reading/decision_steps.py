"""Find the steps of a label: a comparison with a constant, or with a boundary that is given or computed at run time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from graph_patterns import catalog
from graph_patterns.expr import Expr, Input, cast
from graph_patterns.graph import GraphView, Value
from graph_patterns.match import Match, Mismatch, find
from graph_patterns.pattern import Pattern
from postproc_export.adjusting import Adjusted, input_name
from postproc_export.graphs.reading.dialects import TORCH_AT_LEAST
from postproc_export.stats import Level
from postproc_export.tail import PREFIX
from postproc_export.tail_options import LABEL_DTYPES, LabelDtype

_SOURCE: Final = "docs/definition.md sections 4 and 6"


def _in_every_type(*steps: Expr) -> Iterator[Expr]:
    for step in steps:
        yield step
        yield from (cast(step, dtype=dtype) for dtype in LABEL_DTYPES)


_FIXED: Final = (*_in_every_type(catalog.at_least(Input("values"))), TORCH_AT_LEAST)
_ADJUSTED: Final = tuple(_in_every_type(*catalog.ADJUSTED_AT_LEAST))
_LABEL: Final = Pattern(name="label", body=_FIXED[0], spellings=_FIXED[1:], source=_SOURCE)
_ADJUSTED_LABEL: Final = Pattern(name="adjusted_label", body=_ADJUSTED[0], spellings=_ADJUSTED[1:], source=_SOURCE)


@dataclass(frozen=True, slots=True)
class Decision:
    """The steps of a label.

    Parameters
    ----------
    match
        The steps.
    adjusted
        The value by which the decision is adjusted; None where it is a constant.
    what
        What that value is.
    default
        The number that it has where nobody gives another; None where it has none.
    is_frozen
        Whether it is a constant in this file, as conversions make of it.
    """

    match: Match
    adjusted: Value | None = None
    what: Adjusted | None = None
    default: float | None = None
    is_frozen: bool = False

    @property
    def values(self) -> Value:
        """The value that is decided on."""
        return self.match.inputs["values"]

    @property
    def dtype(self) -> LabelDtype:
        """Element type of the label."""
        dtype = dict(getattr(self.match.body, "params", ())).get("dtype", "bool")
        return "uint8" if dtype == "uint8" else "float32" if dtype == "float32" else "bool"


def find_decision(view: GraphView, level: Level, *, at: Value) -> Decision | Mismatch:
    """Find the steps of a level's label.

    Notes
    -----
    A comparison of two values is a decision of ours only where the second one is an input that bears our name.
    """
    fixed = find(_LABEL, view, at=at)
    if isinstance(fixed, Match):
        return Decision(fixed)
    adjusted = find(_ADJUSTED_LABEL, view, at=at)
    if isinstance(adjusted, Mismatch):
        return max(fixed, adjusted, key=lambda miss: miss.depth)
    value = adjusted.inputs["adjusted"]
    what: Adjusted = "sensitivity" if "attached" in adjusted.scalars else "boundary"
    if what == "boundary" and view.describe(value).removeprefix(PREFIX) != input_name(level, what):
        return fixed
    return Decision(adjusted, value, what, view.default(value), is_frozen=view.number(value) is not None)
