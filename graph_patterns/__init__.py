"""Patterns of graphs: written once, emitted into ONNX and OpenVINO models and recognised there.

The formats are in `graph_patterns.onnx` and `graph_patterns.openvino`, imported only where they are used.
"""

from graph_patterns.expr import (
    Call,
    Const,
    ExplainedError,
    Expr,
    GraphPatternError,
    Input,
    Ints,
    ModelFileError,
    Pattern,
    Scalar,
    SharedValueError,
    UnsupportedOpsetError,
    bind,
    call,
    substitute,
)
from graph_patterns.match import GraphView, Match, Mismatch, NodeView, Number, find

__all__ = [
    "Call",
    "Const",
    "ExplainedError",
    "Expr",
    "GraphPatternError",
    "GraphView",
    "Input",
    "Ints",
    "Match",
    "Mismatch",
    "ModelFileError",
    "NodeView",
    "Number",
    "Pattern",
    "Scalar",
    "SharedValueError",
    "UnsupportedOpsetError",
    "bind",
    "call",
    "find",
    "substitute",
]
