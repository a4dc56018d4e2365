"""Find an expression in a graph, at one value, and say why where it is not there."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from graph_patterns.expr import COMMUTATIVE, Call, Const, Expr, FixedTensor, Input, Ints, Param, Pattern, Scalar

# --- What a matcher may see of a graph, the same for every format.

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


Site: TypeAlias = tuple[Value, int]


@dataclass(frozen=True, slots=True)
class Match:
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
    sites: Mapping[str, tuple[Site, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Mismatch:
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


@dataclass(slots=True)
class _Bindings:
    inputs: dict[str, Value] = field(default_factory=dict)
    scalars: dict[str, float] = field(default_factory=dict)
    nodes: dict[Value, NodeView] = field(default_factory=dict)
    sites: dict[str, tuple[Site, ...]] = field(default_factory=dict)

    def copy(self) -> "_Bindings":
        return _Bindings(dict(self.inputs), dict(self.scalars), dict(self.nodes), dict(self.sites))

    def take(self, other: "_Bindings") -> None:
        self.inputs, self.scalars, self.nodes, self.sites = other.inputs, other.scalars, other.nodes, other.sites


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
    tries = [_try(body, graph, at, inputs or {}) for body in bodies]
    matches = [result for result in tries if isinstance(result, Match)]
    if matches:
        return max(matches, key=lambda result: len(result.nodes))
    return max((result for result in tries if isinstance(result, Mismatch)), key=lambda miss: miss.depth)


def _try(body: Expr, graph: GraphView, at: Value, inputs: Mapping[str, Value]) -> Match | Mismatch:
    bound = _Bindings(dict(inputs))
    miss = _fit(body, graph, at, bound)
    if miss is not None:
        return miss
    return Match(body, bound.inputs, bound.scalars, tuple(bound.nodes.values()), tuple(bound.nodes), bound.sites)


def _fit(expr: Expr, graph: GraphView, at: Value | Number, bound: _Bindings) -> Mismatch | None:
    match expr:
        case Input(name):
            known = bound.inputs.setdefault(name, at)
            return None if known == at else _miss(f"{name!r} is also {_shown(graph, known)}", graph, at, bound)
        case Scalar(name):
            number = _number(graph, at)
            if number is None:
                return _miss(f"expected the number {name!r}, found {_shown(graph, at)}", graph, at, bound)
            known_number = bound.scalars.setdefault(name, number)
            same = _equal(known_number, number)
            return None if same else _miss(f"{name!r} is {number:.9g} and {known_number:.9g}", graph, at, bound)
        case Const(value):
            number = _number(graph, at)
            if number is None or not _equal(number, value):
                return _miss(f"expected the constant {value}, found {_shown(graph, at)}", graph, at, bound)
            return None
        case Ints(values):
            found = None if isinstance(at, Number) else graph.integers(at)
            if found != values:
                shown = _shown(graph, at) if found is None else str(list(found))
                return _miss(f"expected the constant {list(values)}, found {shown}", graph, at, bound)
            return None
        case FixedTensor(name=name):
            return _miss(f"the table {name!r} is emitted and not matched", graph, at, bound)
        case Call():
            return _fit_call(expr, graph, at, bound)


def _fit_call(expr: Call, graph: GraphView, at: Value | Number, bound: _Bindings) -> Mismatch | None:
    node = None if isinstance(at, Number) else graph.producer(at)
    if node is None or node.op != expr.op:
        return _miss(f"expected {expr.op}, found {_shown(graph, at)}", graph, at, bound)
    for name, wanted in expr.params:
        if name in node.params and node.params[name] != wanted:
            return _miss(f"expected {name} {wanted}, found {node.params[name]}", graph, at, bound)
        if name not in node.params:
            return _miss(f"expected {name} {wanted}, found none that is fixed", graph, at, bound)
    if len(node.args) != len(expr.args):
        return _miss(f"expected {len(expr.args)} operands, found {len(node.args)}", graph, at, bound)
    bound.nodes[at] = node
    order = tuple(range(len(node.args)))
    miss = _fit_args(expr.args, node.args, order, graph, at, bound)
    if miss is not None and expr.op in COMMUTATIVE:
        return None if _fit_args(expr.args, node.args, order[::-1], graph, at, bound) is None else miss
    return miss


def _fit_args(
    wanted: tuple[Expr, ...],
    found: tuple[Value | Number, ...],
    order: tuple[int, ...],
    graph: GraphView,
    reader: Value,
    bound: _Bindings,
) -> Mismatch | None:
    """Fit the operands of one node, taken in an order; nothing is bound unless all fit."""
    trial = bound.copy()
    for expr, index in zip(wanted, order, strict=True):
        miss = _fit(expr, graph, found[index], trial)
        if miss is not None:
            return miss
        if isinstance(expr, Scalar):
            trial.sites[expr.name] = (*trial.sites.get(expr.name, ()), (reader, index))
    bound.take(trial)
    return None


def _equal(left: float, right: float) -> bool:
    return left == right or (left != left and right != right)  # NaN stands for NaN


def _number(graph: GraphView, at: Value | Number) -> float | None:
    return at.value if isinstance(at, Number) else graph.number(at)


def _miss(reason: str, graph: GraphView, at: Value | Number, bound: _Bindings) -> Mismatch:
    where = str(at.value) if isinstance(at, Number) else graph.describe(at)
    return Mismatch(reason, where, depth=len(bound.nodes))


def _shown(graph: GraphView, at: Value | Number) -> str:
    number = _number(graph, at)
    if number is not None:
        return f"the number {number:.9g}"
    node = None if isinstance(at, Number) else graph.producer(at)
    return node.op if node is not None else "an input of the graph"
