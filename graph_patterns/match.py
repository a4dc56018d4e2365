"""Find an expression at one value of a graph, and say why where it is not there; fold constants on the way."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias

from graph_patterns.expr import COMMUTATIVE, Call, Const, Expr, FixedTensor, Input, Ints, Param, Pattern, Scalar

_NONE: Final[Mapping[str, Any]] = {}  # a view that nobody can write to could not be pickled, nor copied

Value: TypeAlias = Hashable  # how a view names one tensor of its graph: opaque to the matcher


class Number(NamedTuple):
    """An operand that is a number inside the node itself, such as an attribute of ONNX."""

    value: float


class NodeView(NamedTuple):
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
    params: Mapping[str, Param] = _NONE


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


Site: TypeAlias = tuple[Value, int]


class Match(NamedTuple):
    """A pattern that was found.

    Parameters
    ----------
    body
        The expression of the pattern that fits.
    inputs
        The graph's value for each `Input`.
    scalars
        The number found for each `Scalar`.
    nodes
        The nodes of the match, the one at the bottom first.
    values
        What each of these nodes computes: what `remove` of a format takes out.
    sites
        Where the number of each `Scalar` is read: the value that the reading node computes, and which operand it is.
    """

    body: Expr
    inputs: Mapping[str, Value]
    scalars: Mapping[str, float]
    nodes: tuple[NodeView, ...]
    values: tuple[Value, ...]
    sites: Mapping[str, tuple[Site, ...]] = _NONE

    @property
    def depth(self) -> int:
        """How many nodes fitted, as of a mismatch."""
        return len(self.nodes)


class Mismatch(NamedTuple):
    """Why a pattern is not there; falsy.

    Parameters
    ----------
    reason
        What was expected and what was found.
    at
        The place, as the graph names it.
    depth
        How many nodes fitted before: the nearest miss has the most.
    """

    reason: str
    at: str
    depth: int = 0

    def __bool__(self) -> Literal[False]:
        return False

    def __str__(self) -> str:
        return f"{self.reason} at {self.at!r}"


def find(
    pattern: Pattern | Expr, graph: GraphView, *, at: Value, inputs: Mapping[str, Value] | None = None
) -> Match | Mismatch:
    """Match a pattern at a value, its body and its spellings alike.

    Parameters
    ----------
    pattern, graph, at
        What is looked for, and where.
    inputs
        The values that some of its `Input` have to be: where a chain ends, if its own operators do not say so.

    Returns
    -------
    Match | Mismatch
        Of the forms that fit the one with the most nodes, since an `Input` fits everything and a short form fits where
        a long one does. Where none fits, the nearest miss: the one that went deepest.
    """
    bodies = pattern if isinstance(pattern, Pattern) else (pattern,)
    tries = [_Trial(graph, inputs or {}).match(body, at) for body in bodies]
    matches = [result for result in tries if isinstance(result, Match)]
    if matches:
        return max(matches, key=lambda result: result.depth)
    depth, reason, place = max((result for result in tries if not isinstance(result, Match)), key=lambda miss: miss[0])
    return Mismatch(reason(), str(place.value) if isinstance(place, Number) else graph.describe(place), depth)


_Miss: TypeAlias = tuple[int, Callable[[], str], Value | Number]
"""How many nodes fitted, what to say, and where. Most forms are tried in vain, and one miss alone is put in words."""


class _Trial:
    """One expression held against one graph, and what was bound on the way."""

    def __init__(self, graph: GraphView, inputs: Mapping[str, Value]) -> None:
        self._graph = graph
        self._inputs = dict(inputs)
        self._scalars: dict[str, float] = {}
        self._nodes: dict[Value, NodeView] = {}
        self._sites: dict[str, tuple[Site, ...]] = {}

    def match(self, body: Expr, at: Value) -> Match | _Miss:
        miss = self._fit(body, at)
        if miss is not None:
            return miss
        nodes = self._nodes
        return Match(body, self._inputs, self._scalars, tuple(nodes.values()), tuple(nodes), self._sites)

    def _fit(self, expr: Expr, at: Value | Number) -> _Miss | None:
        if isinstance(expr, Call):  # what is asked most
            return self._fit_call(expr, at)
        match expr:
            case Input(name):
                known = self._inputs.setdefault(name, at)
                return None if known == at else self._miss(at, lambda: f"{name!r} is also {self._shown(known)}")
            case Scalar(name):
                number = self._number(at)
                if number is None:
                    return self._miss(at, lambda: f"expected the number {name!r}, found {self._shown(at)}")
                first = self._scalars.setdefault(name, number)
                if _equal(first, number):
                    return None
                return self._miss(at, lambda: f"{name!r} is {number:.9g} and {first:.9g}")
            case Const(value):
                number = self._number(at)
                if number is None or not _equal(number, value):
                    return self._miss(at, lambda: f"expected the constant {value}, found {self._shown(at)}")
                return None
            case Ints(values):
                found = None if isinstance(at, Number) else self._graph.integers(at)
                if found != values:
                    shown = self._shown(at) if found is None else str(list(found))
                    return self._miss(at, lambda: f"expected the constant {list(values)}, found {shown}")
                return None
            case FixedTensor(name=name):
                return self._miss(at, lambda: f"the table {name!r} is emitted and not matched")

    def _fit_call(self, expr: Call, at: Value | Number) -> _Miss | None:
        node = None if isinstance(at, Number) else self._graph.producer(at)
        if node is None or node.op != expr.op:
            return self._miss(at, lambda: f"expected {expr.op}, found {self._shown(at)}")
        given = {name: node.params.get(name, "none that is fixed") for name, _ in expr.params}
        off = [(name, wanted) for name, wanted in expr.params if given[name] != wanted]
        if off:
            return self._miss(at, lambda: f"expected {off[0][0]} {off[0][1]}, found {given[off[0][0]]}")
        if len(node.args) != len(expr.args):
            return self._miss(at, lambda: f"expected {len(expr.args)} operands, found {len(node.args)}")
        self._nodes[at] = node
        order = range(len(node.args))
        if expr.op not in COMMUTATIVE:
            return self._fit_args(expr, node, order, at)
        before = dict(self._inputs), dict(self._scalars), dict(self._nodes), dict(self._sites)
        miss = self._fit_args(expr, node, order, at)
        if miss is None:
            return None
        self._inputs, self._scalars, self._nodes, self._sites = before
        return None if self._fit_args(expr, node, order[::-1], at) is None else miss

    def _fit_args(self, expr: Call, node: NodeView, order: Sequence[int], reader: Value) -> _Miss | None:
        """Fit the operands of one node, taken in an order."""
        for wanted, index in zip(expr.args, order, strict=True):
            miss = self._fit(wanted, node.args[index])
            if miss is not None:
                return miss
            if isinstance(wanted, Scalar):
                self._sites[wanted.name] = (*self._sites.get(wanted.name, ()), (reader, index))
        return None

    def _number(self, at: Value | Number) -> float | None:
        return at.value if isinstance(at, Number) else self._graph.number(at)

    def _miss(self, at: Value | Number, reason: Callable[[], str]) -> _Miss:
        return len(self._nodes), reason, at

    def _shown(self, at: Value | Number) -> str:
        number = self._number(at)
        if number is not None:
            return f"the number {number:.9g}"
        node = None if isinstance(at, Number) else self._graph.producer(at)
        return node.op if node is not None else "an input of the graph"


def _equal(left: float, right: float) -> bool:
    return left == right or (left != left and right != right)  # NaN stands for NaN


_DEEPEST: Final = 32  # operators between a value and the constants that it is folded from

_FOLDS: Final[Mapping[str, Callable[..., float]]] = {
    "identity": lambda value: value,
    "cast": lambda value: value,  # integers and truth values that are folded here are small
    "add": lambda left, right: left + right,
    "sub": lambda left, right: left - right,
    "mul": lambda left, right: left * right,
    "div": lambda left, right: left / right,
    "less": lambda left, right: left < right,
    "greater": lambda left, right: left > right,
    "is_nan": lambda value: value != value,
    "logical_not": lambda value: value == 0.0,
    "logical_and": lambda left, right: left != 0.0 and right != 0.0,
    "logical_or": lambda left, right: left != 0.0 or right != 0.0,
    "select": lambda condition, then, otherwise: then if condition != 0.0 else otherwise,
}
_ROUNDED: Final = {"cast", "add", "sub", "mul", "div"}


class Folded:
    """A view in which what is computed from constants alone is a number; the graph itself stays as it is.

    Arithmetic is rounded to float32, as a graph would do it. A number that takes more than 32 operators is not folded.
    """

    def __init__(self, view: GraphView) -> None:
        self._view = view
        self._known: dict[Value, float | None] = {}
        self.output = view.output
        self.producer = view.producer
        self.integers = view.integers  # these are not computed
        self.describe = view.describe

    def number(self, value: Value) -> float | None:
        """Return the number that a value is, whatever constants it is computed from; None where it depends on more."""
        return self._folded(value, _DEEPEST)

    def default(self, value: Value) -> float | None:
        """Return the number of a constant, or what an input is where nobody gives another."""
        number = self.number(value)
        return self._view.default(value) if number is None else number

    def _folded(self, value: Value, depth: int) -> float | None:
        if value not in self._known:
            number = self._view.number(value)
            self._known[value] = number if number is not None else self._computed(value, depth)
        return self._known[value]

    def _computed(self, value: Value, depth: int) -> float | None:
        import numpy as np

        node = self._view.producer(value) if depth else None
        op, args = ("", ()) if node is None else (node.op, node.args)
        if op == "CastLike":  # the other operand gives the type alone
            op, args = "cast", args[:1]
        if op not in _FOLDS or len(args) != _FOLDS[op].__code__.co_argcount:
            return None
        operands: list[float] = []
        for arg in args:
            number = arg.value if isinstance(arg, Number) else self._folded(arg, depth - 1)
            if number is None:
                return None
            operands.append(number)
        with np.errstate(all="ignore"):
            return float(_FOLDS[op](*(map(np.float32, operands) if op in _ROUNDED else operands)))
