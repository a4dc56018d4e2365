"""Hosts that declare their raw values in float16 or bfloat16, and inputs that reach both ends of every rounding.

A host sums three inputs of its own type, so that a runtime that computes in float32 has values there which the type
does not have: every value of the type, the two ties beside it, and what lies just within and just beyond them.
"""

from collections.abc import Callable
from typing import Final

import hosts
import ml_dtypes
import numpy as np
import numpy.typing as npt
from onnx import ModelProto

Array = npt.NDArray[np.generic]

DTYPES: Final = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
SIGNIFICAND: Final = {"float16": 11, "bfloat16": 8}
WEIGHTS: Final = (1.0, 2.0**-12, 2.0**-14)


def matmul(dtype: str, opset: int) -> ModelProto:
    """Return a host with a score [N,1] by MatMul."""
    return _scores(dtype, opset, "pred_score = MatMul(x, w)", f"{dtype}[3,1] w")


def gemm(dtype: str, opset: int) -> ModelProto:
    """Return a host with a score [N,1] by Gemm."""
    return _scores(dtype, opset, "pred_score = Gemm<transB = 1>(x, w)", f"{dtype}[1,3] w")


def passed_through(dtype: str, opset: int) -> ModelProto:
    """Return a host with a score [N,1] that it is fed as it is."""
    return hosts.parse(
        f"host ({dtype}[N,1] x) => ({dtype}[N,1] pred_score) {{\npred_score = Identity(x)\n}}",
        opset=opset,
        ir_version=_ir_version(opset),
    )


def conv(dtype: str, opset: int) -> ModelProto:
    """Return a host with a map [N,1,H,W] alone, by Conv."""
    graph = f"host ({dtype}[N,3,H,W] x) => ({dtype}[N,1,H,W] anomaly_map)"
    body = f"\n<{dtype}[1,3,1,1] w = {_weights(dtype)}>\n{{\nanomaly_map = Conv(x, w)\n}}"
    return hosts.parse(graph + body, opset=opset, ir_version=_ir_version(opset))


def columns(dtype: str, opset: int) -> ModelProto:
    """Return a host with scores [N,2] by MatMul, of which the second are those of `matmul`."""
    graph = f"host ({dtype}[N,3] x) => ({dtype}[N,2] pred_score)\n<{dtype}[3,2] w = {_weights(dtype, columns=2)}>"
    return hosts.parse(f"{graph}\n{{\npred_score = MatMul(x, w)\n}}", opset=opset, ir_version=_ir_version(opset))


HOSTS: Final[dict[str, Callable[[str, int], ModelProto]]] = {
    "matmul": matmul,
    "gemm": gemm,
    "conv": conv,
    "pass-through": passed_through,
}


def inputs(host: str, dtype: str) -> Array:
    """Return inputs for a host that reach every value of its type from both ends; NaN and infinities are among them."""
    values = np.arange(1 << 16, dtype=np.uint16).view(DTYPES[dtype])
    if host == "pass-through":
        return values[:, None]
    with np.errstate(invalid="ignore"):  # signalling NaN
        exact = values.astype(np.float32).astype(np.float64)
    finite = np.isfinite(exact)
    _, exponent = np.frexp(np.where(finite, exact, 1.0))
    half = np.maximum(np.ldexp(1.0, exponent - SIGNIFICAND[dtype] - 1), 2.0**-25 if dtype == "float16" else 2.0**-120)
    least = np.maximum(np.ldexp(1.0, exponent - 24), 2.0**-38 if dtype == "float16" else 2.0**-112)
    rows = [
        np.stack([exact, np.where(finite, side * half, 0.0), np.where(finite, side * step * least, 0.0)], axis=1)
        for side in (-1.0, 1.0)
        for step in (-1.0, 0.0, 1.0)
    ]
    rows.append(np.stack([exact, 0 * half, 0 * half], axis=1))
    with np.errstate(over="ignore", invalid="ignore"):
        made = (np.concatenate(rows) / np.array(WEIGHTS)).astype(DTYPES[dtype])
    return made.reshape(-1, 3, 1, 1) if host == "conv" else made


def is_computed(host: str, fed: Array, given: Array) -> bool:
    """Whether raw values are about what a host has to give: OpenVINO's bfloat16 is not on every processor."""
    with np.errstate(invalid="ignore", over="ignore"):  # signalling NaN
        values = fed.reshape(len(fed), -1).astype(np.float64)
        exact = values[:, 0] if host == "pass-through" else (values * np.array(WEIGHTS)).sum(axis=1)
        found = given.reshape(len(fed), -1)[:, -1].astype(np.float64)
        is_plain = (np.abs(exact) > 2.0**-10) & (np.abs(exact) < 2.0**10)
        return bool(np.all(np.abs(found - exact)[is_plain] <= np.abs(exact)[is_plain] * 2.0**-6))


def _scores(dtype: str, opset: int, node: str, weight: str) -> ModelProto:
    graph = f"host ({dtype}[N,3] x) => ({dtype}[N,1] pred_score)\n<{weight} = {_weights(dtype)}>\n{{\n{node}\n}}"
    return hosts.parse(graph, opset=opset, ir_version=_ir_version(opset))


def _weights(dtype: str, *, columns: int = 1) -> str:
    """Return the weights, behind zeros in each row where there are several columns."""
    rows = np.stack([*[np.zeros(3)] * (columns - 1), WEIGHTS], axis=1).ravel()
    bits = rows.astype(DTYPES[dtype]).view(np.uint16)  # ONNX text holds the bits of narrow types
    return f"{{{', '.join(map(str, bits))}}}"


def _ir_version(opset: int) -> int:
    return 8 if opset <= 18 else 10
