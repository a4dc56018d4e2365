"""A pattern: the expression that we emit, and the foreign spellings of the same step that we recognise."""

from collections.abc import Iterator
from dataclasses import dataclass

from graph_patterns.expr import Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """A named step of a graph.

    Parameters
    ----------
    name
        What the step computes.
    body
        The expression that a backend emits and the matcher tries first.
    spellings
        Further expressions of the same step, tried in order.
    source
        Where the step is defined.
    """

    name: str
    body: Expr
    spellings: tuple[Expr, ...] = ()
    source: str = ""

    def __iter__(self) -> Iterator[Expr]:
        """Iterate over the body and the spellings."""
        return iter((self.body, *self.spellings))
