"""Formats: what is ONNX's or OpenVINO's own stands in `formats`, and the rest of the package asks a `Format`."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
OF_A_FORMAT = (
    "onnx",
    "openvino",
    "graph_patterns.onnx",
    "graph_patterns.openvino",
    "postproc_export.formats.onnx",
    "postproc_export.formats.onnx_file",
    "postproc_export.formats.openvino",
    "postproc_export.formats.openvino_file",
)
REASONS = {
    "check/attached.py": "only in an ONNX file may another tool have taken away what a record says",
    "check/attached_files.py": "a tail is cut out of the file and tapped, which attaching never does",
    "check/contracts.py": "what Model API reads of a file stands in another place in each",
    "check/kit.py": "a test-data set is made of the tensors of ONNX, whatever the format of the model",
    "check/preserved_files.py": "the two models are compared part by part, and have parts of their own",
    "check/vectors.py": "the model of the tail has the usual name of its format, and an IR feeds variables",
    "check/ways.py": "an ONNX file is run by OpenVINO, too, and never the reverse",
    "export/exporter.py": "torch exports to ONNX, and an IR is made of that",
    "files.py": "an IR is two files; external data is moved with a model",
    "inspect.py": "what stands in a file besides the tail: producer, opset, weights",
    "integrations/memory.py": "the callers have models and passes of one library",
    "ports.py": "what an ONNX model says of its ports",
    "runtimes/__init__.py": "the files that a runtime opens besides the model, and ports where it tells none",
    "runtimes/node.py": "weights beside an ONNX file are handed over apart",
    "runtimes/onnx_reference.py": "the evaluator is of the package onnx, and told by its model what it reads",
    "runtimes/opencv.py": "outputs without a shape, which OpenCV does not load, get one",
    "runtimes/openvino.py": "the names of element types",
    "runtimes/tract.py": "an ONNX file is kept in memory where no weights lie beside it",
    "steps/user_export.py": "torch exports to ONNX, and what comes out is spliced into a graph",
    "validation.py": "special files are told from regular ones where bytes are copied",
}
"""Modules outside `formats` that name ONNX or OpenVINO, and why."""


def mentions(path: Path) -> Iterator[str]:
    """Yield what a source says of one format: modules that it imports, and questions which format it is."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith(OF_A_FORMAT))
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in names if name.startswith(tuple(f"{item}." for item in OF_A_FORMAT)))
            yield from (alias.name for alias in node.names if alias.name == "is_onnx")
        elif isinstance(node, ast.Compare):
            sides = [side.value for side in (node.left, *node.comparators) if isinstance(side, ast.Constant)]
            yield from (f"== {value!r}" for value in sides if value in ("onnx", ".onnx", ".xml"))


def test_only_listed_modules_know_a_format() -> None:
    """A module outside `formats` that names ONNX or OpenVINO has a reason here, and no reason is left over."""
    package = ROOT / "postproc_export"
    sources = (path for path in package.rglob("*.py") if path.parent.name != "formats")
    found = {path.relative_to(package).as_posix(): sorted(set(mentions(path))) for path in sources}
    assert {name: used for name, used in found.items() if used and name not in REASONS} == {}
    assert REASONS.keys() <= {name for name, used in found.items() if used}
