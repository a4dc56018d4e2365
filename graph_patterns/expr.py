"""Expressions: what a subgraph computes, written once and independent of any format; patterns, names and errors.

A step of a graph is a tree of named tuples. A backend emits it, the matcher recognises it. The operators are
canonical names such as ``"hard_sigmoid"``; each backend's lowering table says which operator of the format that is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

# The errors of `graph_patterns`:
#
# ExplainedError                  what and where / found / needed / fix, kept as data
# └── GraphPatternError           base of this package
#     ├── UnsupportedOpsetError   the graph's opset or IR version cannot express a step   (ValueError)
#     ├── ModelFileError          a model file that cannot be read or written as asked    (ValueError)
#     └── SharedValueError        a value to be removed has a reader outside the match    (ValueError)


class ExplainedError(Exception):
    """An error that says what is wrong and where, what was found, what is needed and how to fix it.

    Parameters
    ----------
    what
        One sentence that names the object and the place.
    found, needed, fix
        The three lines below it; each is left out where it would add nothing.
    """

    def __init__(
        self, what: str, *, found: str | None = None, needed: str | None = None, fix: str | None = None
    ) -> None:
        self.what = what
        self.found = found
        self.needed = needed
        self.fix = fix
        super().__init__(self.text)

    def __str__(self) -> str:  # the same of a class that is an OSError or ImportError, too
        return str(self.args[0])

    @property
    def text(self) -> str:
        """The message as it was raised; `args`, which `str` gives, may put it in other words."""
        return "\n".join([self.what, *(f"  {label + ':':<8} {text}" for label, text in self._rows())])

    @property
    def line(self) -> str:
        """The message in one line, for a place that has no more."""
        return "; ".join([self.what, *(f"{label}: {text}" for label, text in self._rows())])

    def _rows(self) -> list[tuple[str, str]]:
        rows = (("found", self.found), ("needed", self.needed), ("fix", self.fix))
        return [(label, text) for label, text in rows if text is not None]

    @property
    def texts(self) -> tuple[str | None, ...]:
        """The four texts in this order."""
        return self.what, self.found, self.needed, self.fix


class GraphPatternError(ExplainedError):
    """Base of every error that `graph_patterns` raises on purpose."""


class UnsupportedOpsetError(GraphPatternError, ValueError):
    """The graph's opset or IR version has no form of an operator that is asked for."""


class ModelFileError(GraphPatternError, ValueError):
    """A model file is damaged, too large, or refers to files that it must not refer to."""


class SharedValueError(GraphPatternError, ValueError):
    """A value that is to be removed is read by a node outside the match."""


def shared_value(value: str, reader: str) -> SharedValueError:
    """Explain that a value cannot be removed, and who reads it."""
    return SharedValueError(
        f"'{value}' has a reader outside what is to be removed",
        found=f"reader {reader}",
        needed="every value of it read only inside it",
        fix=f"remove {reader} first, or export the model again without it",
    )


Param: TypeAlias = str | bool | int | tuple[int, ...]

COMMUTATIVE: Final = frozenset({"add", "mul", "logical_and", "logical_or"})


class Input(NamedTuple):
    """A value of the host graph; the matcher binds it to what it finds there."""

    name: str


class Scalar(NamedTuple):
    """A float32 number that is chosen when the expression is emitted and read back when it is matched.

    It is emitted with `rank` axes of size 1, and matched with any.
    """

    name: str
    rank: int = 0


class Const(NamedTuple):
    """A fixed number; `name` is what the emitted constant is called, `rank` how many axes of size 1 it has then."""

    value: float
    name: str = "constant"
    dtype: str = "float32"
    rank: int = 0


class Ints(NamedTuple):
    """A fixed vector of integers, such as a shape; `name` is what the emitted constant is called."""

    values: tuple[int, ...]
    name: str = "shape"


class FixedTensor(NamedTuple):
    """A fixed float32 tensor, such as the weights of a filter; `content` is its little-endian bytes."""

    content: bytes
    shape: tuple[int, ...]
    name: str = "table"


class Call(NamedTuple):
    """One canonical operator applied to expressions; `params` are its fixed settings, sorted by name."""

    op: str
    args: tuple["Expr", ...]
    params: tuple[tuple[str, Param], ...] = ()

    def param(self, name: str) -> Param:
        """Return one setting."""
        return dict(self.params)[name]


Expr: TypeAlias = Input | Scalar | Const | Ints | FixedTensor | Call


def call(op: str, *args: Expr, **params: Param) -> Call:
    """Apply a canonical operator."""
    return Call(op, args, tuple(sorted(params.items())))


def bind(expr: Expr, scalars: Mapping[str, float]) -> Expr:
    """Replace each `Scalar` named in `scalars` by its number; the constant keeps the scalar's name."""
    match expr:
        case Scalar(name, rank) if name in scalars:
            return Const(scalars[name], name, rank=rank)
        case Call(op, args, params):
            return Call(op, tuple(bind(arg, scalars) for arg in args), params)
        case _:
            return expr


def substitute(expr: Expr, values: Mapping[str, Expr]) -> Expr:
    """Replace each `Input` named in `values` by an expression: one step behind another."""
    match expr:
        case Input(name) if name in values:
            return values[name]
        case Call(op, args, params):
            return Call(op, tuple(substitute(arg, values) for arg in args), params)
        case _:
            return expr


def _unary(op: str) -> Callable[[Expr], Call]:
    return lambda value: call(op, value)


def _binary(op: str) -> Callable[[Expr, Expr], Call]:
    return lambda left, right: call(op, left, right)


class Reduction(Protocol):
    """A reduction over axes, which stay with size 1 or go."""

    def __call__(self, value: Expr, *, axes: tuple[int, ...], keepdims: bool = False) -> Call:
        """Return the call."""


def _reduction(op: str) -> Reduction:
    def reduced(value: Expr, *, axes: tuple[int, ...], keepdims: bool = False) -> Call:
        return call(op, value, axes=axes, keepdims=keepdims)

    return reduced


add, sub, mul, div = _binary("add"), _binary("sub"), _binary("mul"), _binary("div")
less, greater = _binary("less"), _binary("greater")  # false where either is NaN
logical_not, logical_and, logical_or = _unary("logical_not"), _binary("logical_and"), _binary("logical_or")
is_nan = _unary("is_nan")
identity = _unary("identity")  # the value itself under another name
shape_of = _unary("shape_of")  # int64
reshape = _binary("reshape")  # the same elements in another shape
expand = _binary("expand")  # the value broadcast against a shape, in both directions
reduce_max = _reduction("reduce_max")  # what becomes of a NaN depends on the runtime
reduce_sum = _reduction("reduce_sum")
reduce_l1 = _reduction("reduce_l1")  # the sum of absolute values


def clip(value: Expr, low: Expr, high: Expr) -> Call:
    """min(max(value, low), high)."""
    return call("clip", value, low, high)


def hard_sigmoid(value: Expr, *, alpha: Expr, beta: Expr) -> Call:
    """max(0, min(1, alpha * value + beta))."""
    return call("hard_sigmoid", value, alpha, beta)


def cast(value: Expr, *, dtype: str) -> Call:
    """Conversion to another element type."""
    return call("cast", value, dtype=dtype)


def select(condition: Expr, then: Expr, otherwise: Expr) -> Call:
    """Elementwise choice: `then` where the condition holds."""
    return call("select", condition, then, otherwise)


def concat(*values: Expr, axis: int) -> Call:
    """Values one behind the other along an axis."""
    return call("concat", *values, axis=axis)


def transpose(value: Expr, *, perm: tuple[int, ...]) -> Call:
    """The axes in another order: axis `i` of the result is axis ``perm[i]``."""
    return call("transpose", value, perm=perm)


def unsqueeze(value: Expr, *, axes: tuple[int, ...]) -> Call:
    """Axes of size 1 put in; they count in the result."""
    return call("unsqueeze", value, axes=axes)


def squeeze(value: Expr, *, axes: tuple[int, ...]) -> Call:
    """Axes of size 1 taken out."""
    return call("squeeze", value, axes=axes)


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


def owners(outputs: Mapping[str, Expr]) -> dict[Expr, str]:
    """Return the output that bears the value of each expression; of several with the same one the first."""
    return {expr: name for name, expr in reversed(list(outputs.items()))}


def free_name(base: str, taken: set[str]) -> str:
    """Return the first of ``base``, ``base_1``, ``base_2`` ... that is not taken, and add it to `taken`."""
    name, count = base, 1
    while name in taken:
        name, count = f"{base}_{count}", count + 1
    taken.add(name)
    return name


class Names:
    """Names for what is added: prefix, then the output that it was first needed for, then what it is.

    `taken` are names that are in use already.
    """

    def __init__(self, prefix: str, taken: Iterable[str] = ()) -> None:
        self.scope = ""
        self._prefix = prefix
        self._taken = set(taken)

    def unique(self, what: str) -> str:
        """Return a name that was not given before, and remember it."""
        return free_name(f"{self._prefix}{self.scope}/{what}", self._taken)


class Builder(ABC):
    """What emits expressions in one format: each subexpression once, into what the format calls a value.

    `inputs` has the host's value for each `Input`, `owned` the output that bears the value of an expression.
    """

    def __init__(self, inputs: Mapping[str, Any], names: Names, owned: Mapping[Expr, str]) -> None:
        self.names, self.owned = names, owned
        self._inputs = inputs
        self._done: dict[Call, Any] = {}

    @abstractmethod
    def constant(self, name: str, value: Any) -> Any:
        """Return a constant that holds an array, under an unused form of the name."""

    @abstractmethod
    def call(self, expr: Call) -> Any:
        """Return the result of the format's operator for a call."""

    def value(self, expr: Expr) -> Any:
        """Return the value of an expression, emitted where it is not there yet."""
        import numpy as np

        match expr:
            case Input(name):
                return self._inputs[name]
            case Const(value, name, dtype, rank):
                return self.constant(name, np.full((1,) * rank, value, dtype=dtype))
            case Ints(values, name):
                return self.constant(name, np.asarray(values, dtype=np.int64))
            case FixedTensor(content, shape, name):
                return self.constant(name, np.frombuffer(content, "<f4").reshape(shape))
            case Call():
                if expr not in self._done:
                    self._done[expr] = self.call(expr)
                return self._done[expr]
            case Scalar(name):
                raise AssertionError(f"the scalar {name!r} was not bound")
