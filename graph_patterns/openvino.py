"""OpenVINO models: forms of the canonical operators, emission, the view for the matcher, and edits.

A value is an `openvino.Output`, which is hashable.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import numpy as np

from graph_patterns.expr import Builder, Call, Const, Expr, Names, Param, free_name, owners, shared_value
from graph_patterns.match import NodeView, Number, Site, Value

# OpenVINO forms of the operators that stand before a tail; they are emitted and never matched.
#
# Each is a function of the opset module, the canonical call and its operands. Settings that OpenVINO takes as
# operands become constants without a name of their own here, so that emission names the operator alone.

Build = Callable[[Any, Call, list[Any]], Any]


def _pad(opset: Any, expr: Call, operands: list[Any]) -> Any:
    pads = operands[1].get_node().get_data()
    half = len(pads) // 2
    begin, end = (_integers(opset, part) for part in (pads[:half], pads[half:]))
    # A value is not used by a reflection; where none is given, one is made when the model is saved, without a name.
    return opset.pad(operands[0], begin, end, str(expr.param("mode")), opset.constant(np.float32(0)))


def _resize(opset: Any, _: Call, operands: list[Any]) -> Any:
    """Only the last two axes are resized: those before them are given out as they come in."""
    sizes = opset.gather(operands[1], opset.constant(np.array([2, 3])), opset.constant(np.array(0)))
    axes = _integers(opset, [2, 3])
    return opset.interpolate(
        operands[0], sizes, "linear_onnx", "sizes", coordinate_transformation_mode="half_pixel", axes=axes
    )


def _top_k(opset: Any, expr: Call, operands: list[Any]) -> Any:
    count = opset.squeeze(operands[1], _integers(opset, [0]))
    return opset.topk(operands[0], count, int(str(expr.param("axis"))), "max", "value")


def _integers(opset: Any, values: Any) -> Any:
    return opset.constant(np.array(values, np.int64))


EMITTED_ONLY: Final[Mapping[str, Build]] = {
    "abs": lambda opset, _, operands: opset.abs(*operands),
    "conv": lambda opset, _, operands: opset.convolution(*operands, [1, 1], [0, 0], [0, 0], [1, 1]),
    "gather": lambda opset, expr, operands: opset.gather(*operands, _integers(opset, expr.param("axis"))),
    "mod": lambda opset, _, operands: opset.mod(*operands),
    "negate": lambda opset, _, operands: opset.negative(*operands),
    "pad": _pad,
    "range": lambda opset, _, operands: opset.range(*operands, "i64"),
    "reduce_mean": lambda opset, expr, operands: opset.reduce_mean(
        operands[0], _integers(opset, expr.param("axes")), bool(expr.param("keepdims"))
    ),
    "resize": _resize,
    "slice": lambda opset, _, operands: opset.slice(*operands[:3], _integers(opset, [1]), operands[3]),
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
    "squeeze": OpenVinoForm("Squeeze", "squeeze", settings=("axes",)),
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
        node = self._made(expr)
        node.set_friendly_name(self.names.unique(expr.op))
        return node.output(0)

    def _made(self, expr: Call) -> Any:
        operands = [self.value(arg) for arg in expr.args]
        if expr.op in EMITTED_ONLY:
            return EMITTED_ONLY[expr.op](self._opset, expr, operands)
        form = LOWERINGS[expr.op]
        if expr.op == "clip":
            bounds = [arg.value for arg in expr.args[1:] if isinstance(arg, Const)]
            assert len(bounds) == 2, "the bounds of a clamp have to be numbers"
            return self._opset.clamp(operands[0], *bounds)
        if expr.op == "identity":
            return copied(operands[0], axes=self.names.unique("same"))
        settings = [self._setting(name, expr) for name in form.settings]
        match expr.op:
            case "reshape":
                settings = [False]  # an axis of length 0 is one, not a wildcard
            case "expand":
                settings = [None, "BIDIRECTIONAL"]
            case "concat":
                operands = [operands]
        factory: Callable[..., Any] = getattr(import_module(f"openvino.{form.opset}"), form.factory)
        return factory(*operands, *settings)

    def _setting(self, name: str, expr: Call) -> Any:
        setting = expr.param(name)
        if name in _VECTORS:
            return self.constant(name, np.asarray(setting, dtype=np.int64))
        return ELEMENT_TYPES[str(setting)] if name == "dtype" else setting


_OPS_BY_TYPE: Final = {form.type_name: op for op, form in LOWERINGS.items()}
_ON_BOOLEANS: Final = {"BitwiseNot": "logical_not", "BitwiseAnd": "logical_and", "BitwiseOr": "logical_or"}
_LAST_OPERANDS: Final = {
    "transpose": "perm",
    "unsqueeze": "axes",
    "squeeze": "axes",
}  # the setting that is the last operand
_DTYPES: Final = {element_type: name for name, element_type in ELEMENT_TYPES.items()}


class OpenVinoView:
    """The main graph of an `openvino.Model`, as it is when it is asked: after an edit make another view."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._calls: dict[Value, NodeView | None] = {}  # a matcher asks for each again and again

    def output(self, name: str) -> Value | None:
        """Return what feeds the result that bears a name; a tensor may have several names."""
        for result in self._model.get_results():
            source: Any = result.input_value(0)
            if name in source.get_names() or name in result.output(0).get_names():
                value: Value = source
                return value
        return None

    def producer(self, value: Value) -> NodeView | None:
        """Return the operator that computes a value, read as a canonical call; None for inputs and constants."""
        if value not in self._calls:
            self._calls[value] = self._call(_node(value))
        return self._calls[value]

    def _call(self, node: Any) -> NodeView | None:
        type_name = node.get_type_name()
        if type_name in ("Parameter", "Constant"):
            return None
        op = _OPS_BY_TYPE.get(type_name)
        if type_name in _ON_BOOLEANS and node.get_output_element_type(0).get_type_name() == "boolean":
            op = _ON_BOOLEANS[type_name]  # how a torch module's operators on booleans are converted
        operands: list[Value | Number] = [node.input_value(i) for i in range(node.get_input_size())]
        if op is None:
            return NodeView(node.get_friendly_name(), type_name, tuple(operands))
        if op == "reshape" and _is_copy(node):
            return NodeView(node.get_friendly_name(), "identity", tuple(operands[:1]))
        if op == "clip":
            attributes = node.get_attributes()
            operands += [Number(float(attributes[bound])) for bound in ("min", "max")]
        if op == "expand" and node.get_attributes()["mode"] != "bidirectional":
            op = type_name
        params = dict(self._params(op, node, operands))
        return NodeView(node.get_friendly_name(), op, tuple(operands), params)

    def number(self, value: Value) -> float | None:
        """Return the number of a constant of one element, also behind the Convert of a compressed one; else None."""
        node = _node(value)
        if node.get_type_name() == "Convert":
            node = node.input_value(0).get_node()
        if node.get_type_name() != "Constant" or any(size != 1 for size in node.get_output_shape(0)):
            return None
        return float(node.get_data().reshape(()))

    def default(self, value: Value) -> float | None:
        """Return the number of a constant of one element, or the one that a variable begins with; else None."""
        node = _node(value)
        if node.get_type_name() == "ReadValue" and node.get_input_size():
            return self.number(node.input_value(0))
        return self.number(value)

    def integers(self, value: Value) -> tuple[int, ...] | None:
        """Return the numbers of a constant vector of integers; else None."""
        node = _node(value)
        if node.get_type_name() != "Constant" or len(node.get_output_shape(0)) != 1:
            return None
        values = node.get_data()
        return tuple(int(item) for item in values) if values.dtype.kind in "iu" else None

    def is_rounded(self, value: Value) -> bool:
        """Whether the node that computes a value reads a constant that was compressed to fewer bits."""
        node = _node(value)
        sources = [node.input_value(index).get_node() for index in range(node.get_input_size())]
        return any(
            source.get_type_name() == "Convert" and source.input_value(0).get_node().get_type_name() == "Constant"
            for source in sources
        )

    def describe(self, value: Value) -> str:
        """Return the friendly name of the operator that computes a value."""
        return str(_node(value).get_friendly_name())

    def _params(self, op: str, node: Any, operands: list[Value | Number]) -> Iterator[tuple[str, Param]]:
        if op == "cast":
            yield "dtype", _DTYPES.get(node.get_output_element_type(0).get_type_name(), "another type")
        elif op == "concat":
            yield "axis", int(node.get_attributes()["axis"])
        elif op in _LAST_OPERANDS:
            vector = self.integers(operands.pop())
            if vector is not None:
                yield _LAST_OPERANDS[op], vector
        elif op.startswith("reduce_"):
            yield "keepdims", bool(node.get_attributes()["keep_dims"])
            axes = _node(operands.pop())
            if axes.get_type_name() == "Constant":
                yield "axes", tuple(int(axis) for axis in axes.get_data().reshape(-1))


def _is_copy(reshape: Any) -> bool:
    """Whether a Reshape takes every axis as it is."""
    axes, rank = reshape.input_value(1).get_node(), reshape.input_value(0).get_partial_shape().rank
    return (
        rank.is_static
        and axes.get_type_name() == "Constant"
        and bool(reshape.get_attributes()["special_zero"])
        and axes.get_data().size == rank.get_length()
        and not axes.get_data().any()
    )


def _node(value: Any) -> Any:
    return value.get_node()


_SINKS: Final = ("Result", "Assign")


def remove(model: Any, values: Iterable[Value], *, results: Iterable[Any] = (), instead: Iterable[Any] = ()) -> None:
    """Remove the operators that compute values, such as those of a `Match`, and results; changes the model in place.

    An operator that no result reaches is gone. `instead` are results to add first: a model without any drops all its
    operators. Raises SharedValueError, with nothing changed, if an operator or a result that stays reads one of the
    values. What was removed before may still be there, as a reader out of the model's reach: it does not count.
    """
    gone: list[Any] = list(values)
    results = list(results)
    going = {_key(value.get_node()) for value in gone} | {_key(result) for result in results}
    there = {_key(node) for node in model.get_ops()}
    for value in gone:
        for output in value.get_node().outputs():
            for reader in output.get_target_inputs():
                if _is_live(reader.get_node(), going, there):
                    names = (node.get_friendly_name() for node in (value.get_node(), reader.get_node()))
                    raise shared_value(*names)
    model.add_results(list(instead))
    for result in results:
        model.remove_result(result)


def _is_live(node: Any, going: set[str], there: set[str]) -> bool:
    """Whether anything that is there and stays needs an operator: not where it leads to operators alone that go."""
    pending, seen = [node], set(going)
    while pending:
        current = pending.pop()
        if _key(current) in seen or _key(current) not in there:
            continue
        seen.add(_key(current))
        readers = [reader.get_node() for output in current.outputs() for reader in output.get_target_inputs()]
        if current.get_type_name() in _SINKS or not readers:
            return True
        pending += readers
    return False


def _key(node: Any) -> str:
    return str(node.get_name())  # unique in a model, unlike the friendly name, and not kept in files


def set_numbers(model: Any, numbers: Mapping[Site, float], *, prefix: str) -> None:
    """Set numbers at sites of a `Match`, in place; `prefix` is put before the name of a constant with other readers.

    A constant cannot change, so each operand gets a new one of its element type and shape; a compressed one becomes a
    constant of the full type.
    """
    import openvino.opset13 as opset

    taken = {node.get_friendly_name() for node in model.get_ops()}
    for (value, index), number in numbers.items():
        operand = _node(value).input(index)
        source = operand.get_source_output()
        dtype = source.get_element_type().to_dtype()
        shape = list(source.get_shape())
        constant = opset.constant(np.full(shape, number, dtype=dtype))
        old = source.get_node().get_friendly_name()
        is_own = len(source.get_target_inputs()) == 1
        operand.replace_source_output(constant.output(0))
        constant.set_friendly_name(old if is_own else free_name(f"{prefix}{old}", taken))
