"""Patterns of graphs: written once, emitted into ONNX and OpenVINO models and recognised there.

The formats are in `graph_patterns.onnx` and `graph_patterns.openvino`, imported only where they are used.
"""

from graph_patterns.errors import (
    ExplainedError,
    GraphPatternError,
    ModelFileError,
    SharedValueError,
    UnsupportedOpsetError,
)
from graph_patterns.expr import Call, Const, Expr, Input, Ints, Scalar, bind, call, substitute
from graph_patterns.graph import GraphView, NodeView, Number
from graph_patterns.match import Match, Mismatch, find
from graph_patterns.pattern import Pattern

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
