"""OpenVINO forms of the operators that stand before a tail; they are emitted and never matched.

Each is a function of the opset module, the canonical call and its operands. Settings that OpenVINO takes as operands
become constants without a name of their own here, so that emission names the operator alone.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from graph_patterns.expr import Call

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
