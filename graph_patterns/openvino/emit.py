"""OpenVINO forms of the canonical operators, and the emission of expressions as operators of a model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import numpy as np

from graph_patterns.expr import Builder, Call, Const, Expr, Names, owners

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
    """One operator of OpenVINO's opset."""

    type_name: str  # as a graph shows it
    factory: str  # the function of the opset that makes it
    settings: tuple[str, ...] = ()  # the canonical ones, in the order in which the function takes them
    opset: str = "opset13"  # the oldest that will do


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

ELEMENT_TYPES: Final[Mapping[str, str]] = {
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "float64": "f64",
    "bool": "boolean",
    **{f"int{bits}": f"i{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"u{bits}" for bits in (8, 16, 32, 64)},
}


def emit(
    outputs: Mapping[str, Expr], *, inputs: Mapping[str, Any], prefix: str, taken: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Build the operators that compute expressions, and return the `openvino.Output` of each under its output name.

    `outputs` has an expression without unbound scalars per output name; a subexpression that recurs is computed once.
    `inputs` has the host's `openvino.Output` for each `Input`. `prefix` is put before the friendly name of every
    operator and constant, `taken` are those in use in the host. Each output bears its name as its tensor name.
    """
    builder = _OpenVinoBuilder(inputs, Names(prefix, taken), owners(outputs))
    return {name: builder.output(name, expr) for name, expr in outputs.items()}


def copied(value: Any, *, axes: str) -> Any:
    """Return an operator that gives a value as it is, to the last bit, where one is needed for a name of its own.

    `axes` is the friendly name of the constant beside it. A Reshape that takes every axis as it is; of an unknown rank
    Identity, which the CPU plugin of 2025.0 to 2025.3 does not run. A Convert to the same type gives stale data between
    an input and a result (2026.4.1).
    """
    rank = value.get_partial_shape().rank
    if rank.is_dynamic:
        return import_module(f"openvino.{LOWERINGS['identity'].opset}").identity(value)
    import openvino.opset13 as opset

    constant = opset.constant(np.zeros(rank.get_length(), np.int64))
    constant.set_friendly_name(axes)
    return opset.reshape(value, constant, True)


class _OpenVinoBuilder(Builder):
    def __init__(self, inputs: Mapping[str, Any], names: Names, owned: Mapping[Expr, str]) -> None:
        import openvino.opset13 as opset

        super().__init__(inputs, names, owned)
        self._opset = opset

    def output(self, name: str, expr: Expr) -> Any:
        self.names.scope = name
        assert isinstance(expr, Call), f"{name} is a value of the host itself"
        assert self.owned[expr] == name, f"{name} is also computed for another output"
        result = self.value(expr)
        result.set_names({name})
        return result

    def constant(self, name: str, value: np.ndarray[Any, Any]) -> Any:
        node = self._opset.constant(value)
        node.set_friendly_name(self.names.unique(name))
        return node.output(0)

    def call(self, expr: Call) -> Any:
        operands = [self.value(arg) for arg in expr.args]
        if expr.op in EMITTED_ONLY:
            return self._named(expr, EMITTED_ONLY[expr.op](self._opset, expr, operands))
        form = LOWERINGS[expr.op]
        if expr.op == "clip":
            return self._named(expr, self._opset.clamp(operands[0], *(_number(arg) for arg in expr.args[1:])))
        if expr.op == "identity":
            return self._named(expr, copied(operands[0], axes=self.names.unique("same")))
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
            return self.constant(name, np.asarray(setting, dtype=np.int64))
        return ELEMENT_TYPES[str(setting)] if name == "dtype" else setting

    def _named(self, expr: Call, node: Any) -> Any:
        node.set_friendly_name(self.names.unique(expr.op))
        return node.output(0)


def _number(expr: Expr) -> float:
    assert isinstance(expr, Const), "the bounds of a clamp have to be numbers"
    return expr.value
