"""OpenVINO forms of the canonical operators, and the emission of expressions as operators of a model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import numpy as np

from graph_patterns.expr import Call, Const, Expr, FixedTensor, Input, Ints, Names, Scalar, owners

# --- OpenVINO forms of the operators that stand before a tail; they are emitted and never matched.
#
# Each is a function of the opset module, the canonical call and its operands. Settings that OpenVINO takes as
# operands become constants without a name of their own here, so that emission names the operator alone.

Build = Callable[[Any, Call, list[Any]], Any]


def _conv(opset: Any, _: Call, operands: list[Any]) -> Any:
    return opset.convolution(*operands, [1, 1], [0, 0], [0, 0], [1, 1])


def _pad(opset: Any, expr: Call, operands: list[Any]) -> Any:
    pads = operands[1].get_node().get_data()
    half = len(pads) // 2
    begin, end = (opset.constant(np.array(part, np.int64)) for part in (pads[:half], pads[half:]))
    # A value is not used by a reflection; where none is given, one is made when the model is saved, without a name.
    return opset.pad(operands[0], begin, end, str(expr.param("mode")), opset.constant(np.float32(0)))


def _gather(opset: Any, expr: Call, operands: list[Any]) -> Any:
    return opset.gather(*operands, opset.constant(np.array(expr.param("axis"), np.int64)))


def _range(opset: Any, _: Call, operands: list[Any]) -> Any:
    return opset.range(*operands, "i64")


def _reduce_mean(opset: Any, expr: Call, operands: list[Any]) -> Any:
    return opset.reduce_mean(operands[0], _axes(opset, expr), bool(expr.param("keepdims")))


def _squeeze(opset: Any, expr: Call, operands: list[Any]) -> Any:
    return opset.squeeze(operands[0], _axes(opset, expr))


def _resize(opset: Any, _: Call, operands: list[Any]) -> Any:
    """Only the last two axes are resized: those before them are given out as they come in."""
    sizes = opset.gather(operands[1], opset.constant(np.array([2, 3])), opset.constant(np.array(0)))
    return opset.interpolate(
        operands[0],
        sizes,
        "linear_onnx",
        "sizes",
        coordinate_transformation_mode="half_pixel",
        axes=opset.constant(np.array([2, 3], np.int64)),
    )


def _top_k(opset: Any, expr: Call, operands: list[Any]) -> Any:
    count = opset.squeeze(operands[1], opset.constant(np.array([0], np.int64)))
    return opset.topk(operands[0], count, int(str(expr.param("axis"))), "max", "value")


def _axes(opset: Any, expr: Call) -> Any:
    return opset.constant(np.array(expr.param("axes"), np.int64))


EMITTED_ONLY: Final[Mapping[str, Build]] = {
    "abs": lambda opset, _, operands: opset.abs(*operands),
    "conv": _conv,
    "gather": _gather,
    "mod": lambda opset, _, operands: opset.mod(*operands),
    "pad": _pad,
    "range": _range,
    "reduce_mean": _reduce_mean,
    "resize": _resize,
    "squeeze": _squeeze,
    "top_k": _top_k,
}


@dataclass(frozen=True, slots=True)
class OpenVinoForm:
    """One operator of OpenVINO's opset.

    Parameters
    ----------
    type_name
        Operator type, as a graph shows it.
    factory
        Function of the opset that makes it.
    settings
        Names of the canonical settings, in the order in which the function takes them behind the operands.
    opset
        The oldest opset of OpenVINO that will do.
    """

    type_name: str
    factory: str
    settings: tuple[str, ...] = ()
    opset: str = "opset13"


_REDUCTION: Final = ("axes", "keepdims")
_VECTORS: Final = ("axes", "perm")  # settings that are operands

LOWERINGS: Final[Mapping[str, OpenVinoForm]] = {
    "add": OpenVinoForm("Add", "add"),
    "sub": OpenVinoForm("Subtract", "subtract"),
    "mul": OpenVinoForm("Multiply", "multiply"),
    "div": OpenVinoForm("Divide", "divide"),
    "less": OpenVinoForm("Less", "less"),
    "greater": OpenVinoForm("Greater", "greater"),
    "logical_not": OpenVinoForm("LogicalNot", "logical_not"),
    "logical_and": OpenVinoForm("LogicalAnd", "logical_and"),
    "logical_or": OpenVinoForm("LogicalOr", "logical_or"),
    "hard_sigmoid": OpenVinoForm("HardSigmoid", "hard_sigmoid"),
    "clip": OpenVinoForm("Clamp", "clamp"),
    "cast": OpenVinoForm("Convert", "convert", settings=("dtype",)),
    "reduce_max": OpenVinoForm("ReduceMax", "reduce_max", settings=_REDUCTION),
    "reduce_sum": OpenVinoForm("ReduceSum", "reduce_sum", settings=_REDUCTION),
    "reduce_l1": OpenVinoForm("ReduceL1", "reduce_l1", settings=_REDUCTION),
    "is_nan": OpenVinoForm("IsNaN", "is_nan"),
    "select": OpenVinoForm("Select", "select"),
    "shape_of": OpenVinoForm("ShapeOf", "shape_of"),
    "reshape": OpenVinoForm("Reshape", "reshape"),
    "concat": OpenVinoForm("Concat", "concat", settings=("axis",)),
    "transpose": OpenVinoForm("Transpose", "transpose", settings=("perm",)),
    "unsqueeze": OpenVinoForm("Unsqueeze", "unsqueeze", settings=("axes",)),
    "expand": OpenVinoForm("Broadcast", "broadcast"),
    # for a value of unknown rank, and in files of earlier versions; else see `copied`
    "identity": OpenVinoForm("Identity", "identity", opset="opset16"),
}

ELEMENT_TYPES: Final[Mapping[str, str]] = {"float32": "f32", "uint8": "u8", "bool": "boolean", "int64": "i64"}


def emit(
    outputs: Mapping[str, Expr], *, inputs: Mapping[str, Any], prefix: str, taken: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Build the operators that compute expressions from outputs of a host model's operators.

    Parameters
    ----------
    outputs
        Expression per output name, without unbound scalars; a subexpression that recurs is computed once.
    inputs
        The host's `openvino.Output` for each `Input`.
    prefix
        Put before the friendly name of every operator and constant.
    taken
        Friendly names that are in use in the host.

    Returns
    -------
    dict
        The `openvino.Output` of each expression; it bears the output's name as its tensor name.
    """
    builder = _OpenVinoBuilder(inputs, Names(prefix, taken), owners(outputs))
    return {name: builder.output(name, expr) for name, expr in outputs.items()}


def copied(value: Any, *, axes: str) -> Any:
    """Return an operator that gives a value as it is, to the last bit, where one is needed for a name of its own.

    Parameters
    ----------
    value
        An `openvino.Output`.
    axes
        Friendly name of the constant beside it.

    Notes
    -----
    A Reshape that takes every axis as it is; of an unknown rank Identity, which the CPU plugin of 2025.0 to 2025.3 does
    not run. A Convert to the same type gives stale data between an input and a result (2026.4.1).
    """
    rank = value.get_partial_shape().rank
    if rank.is_dynamic:
        return import_module(f"openvino.{LOWERINGS['identity'].opset}").identity(value)
    import openvino.opset13 as opset

    constant = opset.constant(np.zeros(rank.get_length(), np.int64))
    constant.set_friendly_name(axes)
    return opset.reshape(value, constant, True)


class _OpenVinoBuilder:
    def __init__(self, inputs: Mapping[str, Any], names: Names, owned: Mapping[Expr, str]) -> None:
        import openvino.opset13 as opset

        self._opset = opset
        self._inputs = inputs
        self._names = names
        self._owned = owned
        self._done: dict[Call, Any] = {}

    def output(self, name: str, expr: Expr) -> Any:
        self._names.scope = name
        assert isinstance(expr, Call), f"{name} is a value of the host itself"
        assert self._owned[expr] == name, f"{name} is also computed for another output"
        result = self._value(expr)
        result.set_names({name})
        return result

    def _value(self, expr: Expr) -> Any:
        match expr:
            case Input(name):
                return self._inputs[name]
            case Const(value, name, dtype):
                return self._constant(name, np.asarray(value, dtype=dtype))
            case Ints(values, name):
                return self._constant(name, np.asarray(values, dtype=np.int64))
            case FixedTensor(content, shape, name):
                return self._constant(name, np.frombuffer(content, "<f4").reshape(shape))
            case Call():
                if expr not in self._done:
                    self._done[expr] = self._call(expr)
                return self._done[expr]
            case Scalar(name):
                raise AssertionError(f"the scalar {name!r} was not bound")

    def _constant(self, name: str, value: np.ndarray[Any, Any]) -> Any:
        node = self._opset.constant(value)
        node.set_friendly_name(self._names.unique(name))
        return node.output(0)

    def _call(self, expr: Call) -> Any:
        operands = [self._value(arg) for arg in expr.args]
        if expr.op in EMITTED_ONLY:
            return self._named(expr, EMITTED_ONLY[expr.op](self._opset, expr, operands))
        form = LOWERINGS[expr.op]
        if expr.op == "clip":
            return self._named(expr, self._opset.clamp(operands[0], *(_number(arg) for arg in expr.args[1:])))
        if expr.op == "identity":
            return self._named(expr, copied(operands[0], axes=self._names.unique("same")))
        settings = [self._setting(name, expr) for name in form.settings]
        match expr.op:
            case "reshape":
                settings = [False]  # an axis of length 0 is one, not a wildcard
            case "expand":
                settings = [None, "BIDIRECTIONAL"]
            case "concat":
                operands = [operands]
        factory: Callable[..., Any] = getattr(import_module(f"openvino.{form.opset}"), form.factory)
        return self._named(expr, factory(*operands, *settings))

    def _setting(self, name: str, expr: Call) -> Any:
        setting = expr.param(name)
        if name in _VECTORS:
            return self._constant(name, np.asarray(setting, dtype=np.int64))
        return ELEMENT_TYPES[str(setting)] if name == "dtype" else setting

    def _named(self, expr: Call, node: Any) -> Any:
        node.set_friendly_name(self._names.unique(expr.op))
        return node.output(0)


def _number(expr: Expr) -> float:
    assert isinstance(expr, Const), "the bounds of a clamp have to be numbers"
    return expr.value
