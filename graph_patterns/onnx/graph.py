"""ONNX graphs: the form of every operator by opset, expressions emitted as nodes, and a graph as the matcher sees it.

Nodes are built as an onnx-graphsurgeon graph and exported from there. A view never loads payloads: only numbers of one
element are read.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper

from graph_patterns.expr import Builder, Call, Const, Expr, Ints, Names, Param, UnsupportedOpsetError, owners
from graph_patterns.match import NodeView, Number, Value

OLDEST_OPSET: Final = 7
OLDEST_IR_VERSION: Final = 3
INITIALIZERS_NEED_NO_INPUT_SINCE: Final = 4  # IR version; below it an initializer must be a graph input too
CONSTANTS_HOLD_INTEGERS_SINCE: Final = 9  # opset; below it a Constant node holds floats alone


class OnnxForm(NamedTuple):
    """One form of an operator of the default domain, which opsets from `since` on have."""

    op_type: str
    since: int
    attributes: tuple[str, ...] = ()  # names of the trailing operands that it holds as float attributes
    axes: Literal["attribute", "input"] | None = None  # where those of a reduction or those that are put in stand


LOWERINGS: Final[Mapping[str, tuple[OnnxForm, ...]]] = {
    "add": (OnnxForm("Add", since=7),),  # 7: the first with NumPy's broadcasting; so below
    "sub": (OnnxForm("Sub", since=7),),
    "mul": (OnnxForm("Mul", since=7),),
    "div": (OnnxForm("Div", since=7),),
    "less": (OnnxForm("Less", since=7),),  # float32 operands only, so 7 will do
    "greater": (OnnxForm("Greater", since=7),),
    "logical_not": (OnnxForm("Not", since=1),),
    "logical_and": (OnnxForm("And", since=7),),
    "logical_or": (OnnxForm("Or", since=7),),
    "hard_sigmoid": (OnnxForm("HardSigmoid", since=6, attributes=("alpha", "beta")),),
    "clip": (OnnxForm("Clip", since=6, attributes=("min", "max")), OnnxForm("Clip", since=11)),
    "cast": (OnnxForm("Cast", since=6),),
    "reduce_max": (OnnxForm("ReduceMax", since=1, axes="attribute"), OnnxForm("ReduceMax", since=18, axes="input")),
    "reduce_sum": (OnnxForm("ReduceSum", since=1, axes="attribute"), OnnxForm("ReduceSum", since=13, axes="input")),
    "reduce_l1": (OnnxForm("ReduceL1", since=1, axes="attribute"), OnnxForm("ReduceL1", since=18, axes="input")),
    "is_nan": (OnnxForm("IsNaN", since=9),),
    "select": (OnnxForm("Where", since=9),),
    "shape_of": (OnnxForm("Shape", since=1),),
    "reshape": (OnnxForm("Reshape", since=5),),  # a 0 in the shape copies the input's axis, which is 0 there too
    "concat": (OnnxForm("Concat", since=4),),
    "transpose": (OnnxForm("Transpose", since=1),),
    "squeeze": (OnnxForm("Squeeze", since=1, axes="attribute"), OnnxForm("Squeeze", since=13, axes="input")),
    "unsqueeze": (OnnxForm("Unsqueeze", since=1, axes="attribute"), OnnxForm("Unsqueeze", since=13, axes="input")),
    "expand": (OnnxForm("Expand", since=8),),
    "identity": (OnnxForm("Identity", since=1),),
}

# Operators of what stands before a tail. They are emitted and never matched, so the view of a graph does not read them.
EMITTED_ONLY: Final[Mapping[str, tuple[OnnxForm, ...]]] = {
    "abs": (OnnxForm("Abs", since=6),),
    "conv": (OnnxForm("Conv", since=1),),
    "gather": (OnnxForm("Gather", since=1),),
    "mod": (OnnxForm("Mod", since=10),),
    "negate": (OnnxForm("Neg", since=6),),
    "pad": (OnnxForm("Pad", since=11),),
    "range": (OnnxForm("Range", since=11),),
    "reduce_mean": (OnnxForm("ReduceMean", since=1, axes="attribute"), OnnxForm("ReduceMean", since=18, axes="input")),
    "resize": (OnnxForm("Resize", since=11),),
    "slice": (OnnxForm("Slice", since=10),),
    "top_k": (OnnxForm("TopK", since=10),),
}

_FORMS: Final = {**LOWERINGS, **EMITTED_ONLY}

ELEMENT_TYPES: Final[Mapping[str, int]] = {
    "float16": onnx.TensorProto.FLOAT16,
    "bfloat16": onnx.TensorProto.BFLOAT16,
    "float32": onnx.TensorProto.FLOAT,
    "float64": onnx.TensorProto.DOUBLE,
    "uint8": onnx.TensorProto.UINT8,
    "bool": onnx.TensorProto.BOOL,
    "int64": onnx.TensorProto.INT64,
}


@dataclass(frozen=True, slots=True)
class OnnxTarget:
    """The opset of the default domain and the IR version that emitted nodes have to fit.

    Raises UnsupportedOpsetError below opset 7 or IR version 3.
    """

    opset: int
    ir_version: int

    def __post_init__(self) -> None:
        if self.opset < OLDEST_OPSET or self.ir_version < OLDEST_IR_VERSION:
            raise UnsupportedOpsetError(
                "the model is too old to append to",
                found=f"opset {self.opset}, IR version {self.ir_version}",
                needed=f"opset {OLDEST_OPSET} and IR version {OLDEST_IR_VERSION} or later",
                fix="export the model again with a later opset",
            )

    def supports(self, op: str) -> bool:
        """Whether the opset has a form of a canonical operator."""
        return bool(_known_forms(op, self.opset))

    @property
    def has_integers(self) -> bool:
        """Whether a constant vector of integers has a form: from IR version 4 on, where it is no node, or opset 9."""
        return self.opset >= CONSTANTS_HOLD_INTEGERS_SINCE or self.ir_version >= INITIALIZERS_NEED_NO_INPUT_SINCE

    def check_integers(self) -> None:
        """Raise UnsupportedOpsetError if a constant vector of integers has no form."""
        if not self.has_integers:
            raise UnsupportedOpsetError(
                f"a constant shape cannot be expressed at opset {self.opset} and IR version {self.ir_version}",
                needed=f"opset {CONSTANTS_HOLD_INTEGERS_SINCE}, or IR version {INITIALIZERS_NEED_NO_INPUT_SINCE}",
                fix="export the model again with a later opset",
            )

    def form(self, op: str) -> OnnxForm:
        """Return the newest form that the opset knows; raises UnsupportedOpsetError if there is none."""
        known = _known_forms(op, self.opset)
        if not known:
            oldest = _FORMS[op][0]
            raise UnsupportedOpsetError(
                f"{oldest.op_type} cannot be expressed at opset {self.opset}",
                needed=f"opset {oldest.since} or later",
                fix="export the model again with a later opset",
            )
        return known[-1]


def _known_forms(op: str, opset: int) -> list[OnnxForm]:
    return [form for form in _FORMS[op] if form.since <= opset]


def emit(
    outputs: Mapping[str, Expr],
    *,
    inputs: Mapping[str, str],
    target: OnnxTarget,
    prefix: str,
    taken: Iterable[str] = (),
) -> onnx.GraphProto:
    """Build the nodes that compute expressions from values of a host graph, and the initializers that they read.

    `outputs` has an expression without unbound scalars per output name; a subexpression that recurs is computed once.
    `inputs` names the host's value for each `Input`. `prefix` is put before the name of every node, constant and inner
    value, `taken` are the names that are in use in the host. The nodes are in topological order.
    """
    builder = _OnnxBuilder(inputs, target, Names(prefix, taken), owners(outputs))
    for name, expr in outputs.items():
        builder.output(name, expr)
    return builder.export()


class _OnnxBuilder(Builder):
    def __init__(self, inputs: Mapping[str, str], target: OnnxTarget, names: Names, owned: Mapping[Expr, str]) -> None:
        variables = {name: gs.Variable(value, dtype=np.float32) for name, value in inputs.items()}
        super().__init__(variables, names, owned)
        self._variables = list(variables.values())
        self._target = target
        self._nodes: list[gs.Node] = []
        self._outputs: list[gs.Variable] = []

    def output(self, name: str, expr: Expr) -> None:
        self.names.scope = name
        is_own = isinstance(expr, Call) and self.owned[expr] == name
        self._outputs.append(self.value(expr) if is_own else self._emitted(Call("identity", (expr,)), name))

    def export(self) -> onnx.GraphProto:
        graph = gs.Graph(self._nodes, self._variables, self._outputs, opset=self._target.opset)
        proto = gs.export_onnx(graph, do_type_check=False, ir_version=self._target.ir_version).graph
        if self._target.ir_version >= INITIALIZERS_NEED_NO_INPUT_SINCE:
            return onnx.GraphProto(node=proto.node, initializer=proto.initializer)
        return onnx.GraphProto(node=[*constant_nodes(proto.initializer), *proto.node])

    def value(self, expr: Expr) -> Any:
        if isinstance(expr, Ints):
            self._target.check_integers()
        return super().value(expr)

    def constant(self, name: str, value: Any) -> gs.Constant:
        return gs.Constant(self.names.unique(name), value)

    def call(self, expr: Call) -> gs.Variable:
        return self._emitted(expr, self.owned.get(expr))

    def _emitted(self, expr: Call, name: str | None) -> gs.Variable:
        form = self._target.form(expr.op)
        count = len(expr.args) - len(form.attributes)
        operands = [self.value(arg) for arg in expr.args[:count]]
        attributes: dict[str, Any] = {}
        for attribute, arg in zip(form.attributes, expr.args[count:], strict=True):
            assert isinstance(arg, Const), f"{attribute} of {form.op_type} has to be a number"
            attributes[attribute] = float(arg.value)
        for key, setting in expr.params:
            if key == "dtype":
                attributes["to"] = ELEMENT_TYPES[str(setting)]
            elif key == "keepdims":
                attributes["keepdims"] = int(bool(setting))
            elif key == "axes" and form.axes == "input":
                operands.append(self.constant("axes", np.asarray(setting, dtype=np.int64)))
            else:
                attributes[key] = list(setting) if isinstance(setting, tuple) else setting
        node_name = self.names.unique(expr.op)
        results = [gs.Variable(name if name is not None else node_name)]
        if expr.op == "resize":  # region of interest and scales, of which sizes have the place
            unused = (
                gs.Variable.empty() if self._target.opset >= 13 else self.constant("empty", np.empty(0, np.float32))
            )
            operands = [operands[0], unused, unused, operands[1]]
        elif expr.op == "top_k":
            results.append(gs.Variable(self.names.unique("indices")))
        self._nodes.append(gs.Node(form.op_type, node_name, attributes, operands, results))
        return results[0]


def constant_nodes(tensors: Iterable[onnx.TensorProto]) -> Iterator[onnx.NodeProto]:
    """Yield a node for each constant: below IR version 4 an initializer would have to be an input."""
    for tensor in tensors:
        yield onnx.helper.make_node("Constant", [], [tensor.name], name=tensor.name, value=tensor)


_DEFAULT_DOMAINS: Final = ("", "ai.onnx")
_LARGEST_FLOAT: Final = 3.4028234663852886e38
_ATTRIBUTE_DEFAULTS: Final = {
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
    "Clip": {"min": -_LARGEST_FLOAT, "max": _LARGEST_FLOAT},
}
_LONGEST_COPY: Final = 8  # Identity nodes behind one constant
_DTYPES: Final = {element_type: name for name, element_type in ELEMENT_TYPES.items()}
_OPS_BY_TYPE: Final = {form.op_type: op for op, forms in LOWERINGS.items() for form in forms}


class OnnxView:
    """The top-level graph of a model or of its skeleton; values are named by strings."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._opset = default_opset(model)
        self._initializers_are_inputs = model.ir_version < INITIALIZERS_NEED_NO_INPUT_SINCE
        self._calls: dict[str, NodeView | None] = {}  # by the value: a matcher asks for each again and again

    @cached_property
    def _producers(self) -> Mapping[str, onnx.NodeProto]:
        return {name: node for node in self._graph.node for name in node.output if name}

    @cached_property
    def _initializers(self) -> Mapping[str, onnx.TensorProto]:
        return {tensor.name: tensor for tensor in self._graph.initializer}

    @cached_property
    def _overridable(self) -> frozenset[str]:
        # Every initializer had to be listed as an input once, and nobody overrides them.
        return frozenset() if self._initializers_are_inputs else self._inputs

    @cached_property
    def _inputs(self) -> frozenset[str]:
        return frozenset(item.name for item in self._graph.input)

    def output(self, name: str) -> Value | None:
        """Return the value of a graph output."""
        return name if any(item.name == name for item in self._graph.output) else None

    def node(self, value: Value) -> onnx.NodeProto | None:
        """Return the node that computes a value, as it stands in the file."""
        return self._producers.get(str(value))

    def producer(self, value: Value) -> NodeView | None:
        """Return the node that computes a value, read as a canonical call; None for inputs and constants."""
        name = str(value)
        if name not in self._calls:
            self._calls[name] = self._call(name)
        return self._calls[name]

    def _call(self, name: str) -> NodeView | None:
        node = self._producers.get(name)
        if node is None or node.op_type == "Constant":
            return None
        op = _OPS_BY_TYPE.get(node.op_type) if node.domain in _DEFAULT_DOMAINS else None
        forms = _known_forms(op, self._opset) if op is not None else []
        if op is None or not forms:
            integers = {item.name: int(item.i) for item in node.attribute if item.type == onnx.AttributeProto.INT}
            return NodeView(node.name, f"{node.domain}::{node.op_type}".removeprefix("::"), tuple(node.input), integers)
        return self._canonical(node, op, forms[-1])

    def number(self, value: Value) -> float | None:
        """Return the number of a constant of one element that nobody can override; else None."""
        tensor = self.tensor(value)
        return None if tensor is None else _single(tensor)

    def default(self, value: Value) -> float | None:
        """Return the number of a constant of one element, which a caller of the model may override; else None."""
        number = self.number(value)
        tensor = self._initializers.get(str(value)) if number is None else None
        return number if tensor is None else _single(tensor)

    def integers(self, value: Value) -> tuple[int, ...] | None:
        """Return the numbers of a constant vector of integers that nobody can override; else None.

        One number that is reshaped to a vector is one, as exporters write it that do not fold.
        """
        node = self._producers.get(str(value))
        if node is not None and node.op_type == "Reshape" and len(node.input) == 2:
            shape, tensor = self._vector(self.tensor(node.input[1])), self.tensor(node.input[0])
            return self._vector(tensor, ranks=(0, 1)) if shape == (-1,) else None
        return self._vector(self.tensor(value))

    def _vector(self, tensor: onnx.TensorProto | None, *, ranks: tuple[int, ...] = (1,)) -> tuple[int, ...] | None:
        values = None if tensor is None or tensor.external_data or len(tensor.dims) not in ranks else _values(tensor)
        return None if values is None or values.dtype.kind not in "iu" else tuple(int(item) for item in values)

    def has(self, value: Value) -> bool:
        """Whether the graph has a value of this name."""
        name = str(value)
        return name in self._producers or name in self._initializers or name in self._inputs

    def copies(self, value: Value, other: Value) -> bool:
        """Whether a value is another one, or a copy of it, be it of another element type."""
        return str(other) in self._copied(str(value), by=("Identity", "Cast"))

    def declared(self, output: str) -> onnx.ValueInfoProto | None:
        """Return the declaration of a graph output."""
        return next((item for item in self._graph.output if item.name == output), None)

    def is_constant(self, value: Value) -> bool:
        """Whether a value is an initializer or a Constant node itself, and not computed from or copied of one."""
        node = self._producers.get(str(value))
        return str(value) in self._initializers if node is None else node.op_type == "Constant"

    def describe(self, value: Value) -> str:
        """Return the name of the node that computes a value, or the value's own."""
        node = self._producers.get(str(value))
        return node.name or str(value) if node is not None else str(value)

    def tensor(self, value: Value) -> onnx.TensorProto | None:
        """Return the tensor of a constant that nobody can override, as it stands in the file; else None."""
        name = self._copied(str(value))[-1]  # an exporter that shares constants copies one to each of its names
        node = self._producers.get(name)
        if node is not None:
            return self._filled_tensor(node) if node.op_type == "ConstantOfShape" else _constant_tensor(node)
        return None if name in self._overridable else self._initializers.get(name)

    def _copied(self, name: str, *, by: Collection[str] = ("Identity",)) -> list[str]:
        """Return a value and those that it is a copy of, the one that was computed first last."""
        names = [name]
        for _ in range(_LONGEST_COPY):
            node = self._producers.get(names[-1])
            if node is None or node.op_type not in by or len(node.input) != 1:
                break
            names.append(node.input[0])
        return names

    def _filled_tensor(self, node: onnx.NodeProto) -> onnx.TensorProto | None:
        """Return the tensor that a ConstantOfShape gives where its shape is that of one number."""
        shape = self.tensor(node.input[0]) if len(node.input) == 1 else None
        if shape is None or list(shape.dims) != [0] or any(item.name != "value" for item in node.attribute):
            return None
        return node.attribute[0].t if node.attribute else onnx.helper.make_tensor("", onnx.TensorProto.FLOAT, [], [0.0])

    def _canonical(self, node: onnx.NodeProto, op: str, form: OnnxForm) -> NodeView:
        attributes = {item.name: _setting(item) for item in node.attribute}
        operands: list[Value | Number] = list(node.input)
        params: dict[str, Param] = {}
        defaults = _ATTRIBUTE_DEFAULTS.get(node.op_type, {})
        given = (attributes[name] if name in attributes else defaults[name] for name in form.attributes)
        operands += [Number(float(setting) if isinstance(setting, (float, int)) else math.nan) for setting in given]
        if form.axes is not None:
            params.update(self._axes(op, form, attributes, operands))
        for key in ("axis", "perm"):
            setting = attributes.get(key)
            if isinstance(setting, (int, list)):
                params[key] = tuple(setting) if isinstance(setting, list) else setting
        if op == "cast":
            wanted = attributes.get("to")
            params["dtype"] = _DTYPES.get(wanted, "another type") if isinstance(wanted, int) else "another type"
        return NodeView(node.name, op, tuple(operands), params)

    def _axes(
        self, op: str, form: OnnxForm, attributes: Mapping[str, Any], operands: list[Value | Number]
    ) -> Iterator[tuple[str, Param]]:
        if op.startswith("reduce_"):
            yield "keepdims", bool(attributes.get("keepdims", 1))
        if form.axes == "attribute" and isinstance(attributes.get("axes"), list):
            yield "axes", tuple(attributes["axes"])
        elif form.axes == "input" and len(operands) > 1:
            axes = self.integers(operands.pop())
            if axes is not None:
                yield "axes", axes


def _setting(attribute: onnx.AttributeProto) -> float | int | list[int] | None:
    """Return the value of an attribute of a kind that lowerings use; None for every other, as in a damaged file."""
    match attribute.type:
        case onnx.AttributeProto.FLOAT:
            return float(attribute.f)
        case onnx.AttributeProto.INT:
            return int(attribute.i)
        case onnx.AttributeProto.INTS:
            return list(attribute.ints)
        case _:
            return None


def _single(tensor: onnx.TensorProto) -> float | None:
    """Return the number of a tensor of one element; None for every other, and for one that is not in the file."""
    if any(size != 1 for size in tensor.dims) or tensor.external_data:
        return None
    if tensor.data_type in (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED):
        return None
    values = _values(tensor)
    return float(values[0]) if values is not None and len(values) == 1 else None


def _values(tensor: onnx.TensorProto) -> npt.NDArray[Any] | None:
    """Return the values of a small constant; None where the tensor is damaged or its payload was left in the file."""
    try:
        values = numpy_helper.to_array(tensor).reshape(-1)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None
    if values.dtype.kind in "biuf":
        return values
    return values.astype(np.float32) if tensor.data_type == onnx.TensorProto.BFLOAT16 else None


def default_opset(model: onnx.ModelProto) -> int:
    """Return the version of the default domain that a model imports; 0 where it imports none."""
    return max((item.version for item in model.opset_import if item.domain in _DEFAULT_DOMAINS), default=0)


def _constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    if node.op_type != "Constant" or node.domain not in _DEFAULT_DOMAINS or len(node.attribute) != 1:
        return None
    attribute: onnx.AttributeProto = node.attribute[0]
    if attribute.name == "value":
        tensor: onnx.TensorProto = attribute.t
        return tensor
    if attribute.name == "value_ints":
        return onnx.helper.make_tensor("", onnx.TensorProto.INT64, [len(attribute.ints)], attribute.ints)
    if attribute.name == "value_float":
        return onnx.helper.make_tensor("", onnx.TensorProto.FLOAT, [], [attribute.f])
    return None
