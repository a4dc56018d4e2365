"""A graph in which what is computed from constants alone counts as a constant."""

import math
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from graph_patterns.match import GraphView, NodeView, Number, Value

DEEPEST: Final = 32  # operators between a value and the constants that it is folded from

_FOLDS: Final[Mapping[str, Callable[..., float | np.float32]]] = {
    "identity": lambda value: value,
    "cast": lambda value: np.float32(value),  # integers and truth values that are folded here are small
    "add": lambda left, right: np.float32(left) + np.float32(right),
    "sub": lambda left, right: np.float32(left) - np.float32(right),
    "mul": lambda left, right: np.float32(left) * np.float32(right),
    "div": lambda left, right: np.float32(left) / np.float32(right),
    "less": lambda left, right: float(left < right),
    "greater": lambda left, right: float(left > right),
    "is_nan": lambda value: float(math.isnan(value)),
    "logical_not": lambda value: float(value == 0.0),
    "logical_and": lambda left, right: float(left != 0.0 and right != 0.0),
    "logical_or": lambda left, right: float(left != 0.0 or right != 0.0),
    "select": lambda condition, then, otherwise: then if condition != 0.0 else otherwise,
}


class Folded:
    """A view with constants folded, one number at a time; the graph itself stays as it is.

    Parameters
    ----------
    view
        The view of a graph, of any format.

    Notes
    -----
    Arithmetic is rounded to float32, as a graph would do it. A number that takes more than 32 operators is not folded.
    """

    def __init__(self, view: GraphView) -> None:
        self._view = view
        self._known: dict[Value, float | None] = {}

    def output(self, name: str) -> Value | None:
        """Return the value that the graph gives out under a name."""
        return self._view.output(name)

    def producer(self, value: Value) -> NodeView | None:
        """Return the node that computes a value."""
        return self._view.producer(value)

    def number(self, value: Value) -> float | None:
        """Return the number that a value is, whatever constants it is computed from; None where it depends on more."""
        return self._folded(value, DEEPEST)

    def default(self, value: Value) -> float | None:
        """Return the number of a constant, or what an input is where nobody gives another."""
        number = self.number(value)
        return self._view.default(value) if number is None else number

    def integers(self, value: Value) -> tuple[int, ...] | None:
        """Return the numbers of a constant vector of integers; these are not computed."""
        return self._view.integers(value)

    def describe(self, value: Value) -> str:
        """Return how the graph names a value."""
        return self._view.describe(value)

    def _folded(self, value: Value, depth: int) -> float | None:
        if value not in self._known:
            number = self._view.number(value)
            self._known[value] = number if number is not None else self._computed(value, depth)
        return self._known[value]

    def _computed(self, value: Value, depth: int) -> float | None:
        node = self._view.producer(value) if depth else None
        fold = None if node is None else _FOLDS.get("cast" if node.op == "CastLike" else node.op)
        if node is None or fold is None:
            return None
        operands: list[float] = []
        for arg in node.args[:1] if node.op == "CastLike" else node.args:  # the other operand gives the type alone
            number = arg.value if isinstance(arg, Number) else self._folded(arg, depth - 1)
            if number is None:
                return None
            operands.append(number)
        with np.errstate(all="ignore"):
            return float(fold(*operands)) if len(operands) == fold.__code__.co_argcount else None
