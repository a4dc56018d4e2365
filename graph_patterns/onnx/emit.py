"""ONNX forms of the canonical operators, by opset, and the emission of expressions as nodes.

The nodes are built as an onnx-graphsurgeon graph and exported from there.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graph_patterns.expr import Builder, Call, Const, Expr, Ints, Names, UnsupportedOpsetError, owners

OLDEST_OPSET: Final = 7
OLDEST_IR_VERSION: Final = 3
INITIALIZERS_NEED_NO_INPUT_SINCE: Final = 4  # IR version; below it an initializer must be a graph input too
CONSTANTS_HOLD_INTEGERS_SINCE: Final = 9  # opset; below it a Constant node holds floats alone


@dataclass(frozen=True, slots=True)
class OnnxForm:
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
    "pad": (OnnxForm("Pad", since=11),),
    "range": (OnnxForm("Range", since=11),),
    "reduce_mean": (OnnxForm("ReduceMean", since=1, axes="attribute"), OnnxForm("ReduceMean", since=18, axes="input")),
    "resize": (OnnxForm("Resize", since=11),),
    "squeeze": (OnnxForm("Squeeze", since=1, axes="attribute"), OnnxForm("Squeeze", since=13, axes="input")),
    "top_k": (OnnxForm("TopK", since=10),),
}

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
        return any(form.since <= self.opset for form in _forms(op))

    def check_integers(self) -> None:
        """Raise UnsupportedOpsetError if a constant vector of integers has no form.

        That is below IR version 4, where constants are nodes, and below opset 9.
        """
        if self.opset < CONSTANTS_HOLD_INTEGERS_SINCE and self.ir_version < INITIALIZERS_NEED_NO_INPUT_SINCE:
            raise UnsupportedOpsetError(
                f"a constant shape cannot be expressed at opset {self.opset} and IR version {self.ir_version}",
                needed=f"opset {CONSTANTS_HOLD_INTEGERS_SINCE}, or IR version {INITIALIZERS_NEED_NO_INPUT_SINCE}",
                fix="export the model again with a later opset",
            )

    def form(self, op: str) -> OnnxForm:
        """Return the newest form that the opset knows; raises UnsupportedOpsetError if there is none."""
        known = [form for form in _forms(op) if form.since <= self.opset]
        if not known:
            raise UnsupportedOpsetError(
                f"{_forms(op)[0].op_type} cannot be expressed at opset {self.opset}",
                needed=f"opset {_forms(op)[0].since} or later",
                fix="export the model again with a later opset",
            )
        return known[-1]


def _forms(op: str) -> tuple[OnnxForm, ...]:
    return LOWERINGS[op] if op in LOWERINGS else EMITTED_ONLY[op]


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
