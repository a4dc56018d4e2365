"""What a matcher may see of a graph, the same for every format."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from graph_patterns.expr import Param

Value: TypeAlias = Hashable  # how a view names one tensor of its graph: opaque to the matcher


@dataclass(frozen=True, slots=True)
class Number:
    """An operand that is a number inside the node itself, such as an attribute of ONNX."""

    value: float


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node, read as a call of a canonical operator.

    Parameters
    ----------
    name
        The node's own name, for messages.
    op
        The canonical operator, or the format's own operator type where the lowering table has none.
    args
        Operands in canonical order: values, or numbers that the node itself holds.
    params
        The operator's fixed settings; a setting that is not known at all is left out.
    """

    name: str
    op: str
    args: tuple[Value | Number, ...]
    params: Mapping[str, Param] = field(default_factory=dict)


class GraphView(Protocol):
    """A graph as the matcher sees it; finding a producer takes constant time."""

    def output(self, name: str) -> Value | None:
        """Return the value that the graph gives out under a name."""

    def producer(self, value: Value) -> NodeView | None:
        """Return the node that computes a value; None for inputs and constants."""

    def number(self, value: Value) -> float | None:
        """Return the number that a constant of one element holds; None for everything else."""

    def default(self, value: Value) -> float | None:
        """Return the number of a constant, or what an input is where nobody gives another; None for everything else."""

    def integers(self, value: Value) -> tuple[int, ...] | None:
        """Return the numbers of a constant vector of integers; None for everything else."""

    def describe(self, value: Value) -> str:
        """Return how the graph names a value, for messages."""
