"""The example of docs/graph_patterns.md runs, and does what the page says."""

import re
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import parser

from graph_patterns import Match, Mismatch

PAGE = (Path(__file__).parents[3] / "docs" / "graph_patterns.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
ENDS = {"calibrated": "m = Mul(x, s) a = Add(m, o) probability = Clip(a, zero, one)", "plain": "probability = Relu(x)"}


def write(folder: Path, end: str) -> None:
    """Write a model that ends in one way or another."""
    constants = "float s = {4.0}, float o = {-0.25}, float zero = {0.0}, float one = {1.0}"
    text = f"g (float[N] i) => (float[N] probability) <{constants}> {{ x = Neg(i) {ENDS[end]} }}"
    onnx.save(parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}'), folder / "model.onnx")


def run(blocks: list[str]) -> dict[str, Any]:
    """Run blocks one after the other and return their names."""
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/graph_patterns.md", "exec"), names)
    return names


def test_the_example_reads_a_tail_of_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has ten lines of code, finds the piece, and says why where it is not there."""
    monkeypatch.chdir(tmp_path)
    assert len([line for line in BLOCKS[0].splitlines() if line]) <= 11
    write(tmp_path, "calibrated")
    assert isinstance(run(BLOCKS[:1])["found"], Match)
    assert capsys.readouterr().out.strip() in PAGE
    write(tmp_path, "plain")
    assert isinstance(run(BLOCKS[:1])["found"], Mismatch)
    assert capsys.readouterr().out.strip() in PAGE


def test_the_example_removes_the_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes, constants and the output go; the value that was read stays."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "calibrated")
    graph = run(BLOCKS[:2])["model"].graph
    assert [node.op_type for node in graph.node] == ["Neg"]
    assert (len(graph.initializer), len(graph.output)) == (0, 0)


def test_the_example_changes_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The constant is another one, under its own name, since nothing else reads it."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "calibrated")
    names = run([BLOCKS[0], BLOCKS[2]])
    (offset,) = (item for item in names["model"].graph.initializer if item.name == "o")
    assert onnx.numpy_helper.to_array(offset) == -0.5
