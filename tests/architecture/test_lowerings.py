"""Nothing is silently missing from a backend."""

import pytest

from graph_patterns import openvino as openvino_lowering
from graph_patterns.onnx import graph as onnx_lowering

BACKENDS = {"onnx": onnx_lowering.LOWERINGS, "openvino": openvino_lowering.LOWERINGS}
OPS = sorted(set().union(*BACKENDS.values()))
NOT_LOWERED: dict[tuple[str, str], str] = {}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_every_operator_is_lowered_or_excused(backend: str, op: str) -> None:
    """A canonical operator has a lowering, or a written reason, and never both."""
    assert (op in BACKENDS[backend]) != ((backend, op) in NOT_LOWERED)


@pytest.mark.parametrize("op", onnx_lowering.LOWERINGS)
def test_onnx_forms_are_sorted_by_opset(op: str) -> None:
    """The newest form comes last, since the last one that an opset knows is taken."""
    since = [form.since for form in onnx_lowering.LOWERINGS[op]]
    assert since == sorted(since)
