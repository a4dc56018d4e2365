"""Imports run one way, and start-up stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = (
    *("torch", "lightning", "pytorch_lightning", "dask", "distributed"),
    *("onnxruntime", "openvino", "matplotlib", "PIL", "skimage", "scipy"),
)
ORDER = {
    "graph_patterns": [
        "errors",
        "expr",
        "pattern",
        "catalog",
        "transforms",
        "graph",
        "match",
        "folding",
        "emission",
        "onnx",
        "openvino",
    ],
}


def modules(package: str) -> list[Path]:
    """Return the sources of a package."""
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Return every module that a source imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module)
    return names


def loaded_by(code: str) -> set[str]:
    """Return the modules that are loaded after some code ran in a fresh interpreter."""
    code = f"{code}\nimport sys; print('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(run.stdout.split())


@pytest.mark.parametrize("path", modules("graph_patterns"), ids=lambda path: str(path.relative_to(ROOT)))
def test_graph_patterns_never_imports_postproc_export(path: Path) -> None:
    """`graph_patterns` is the lower layer."""
    assert not [name for name in imported(path) if name.split(".")[0] == "postproc_export"]


@pytest.mark.parametrize("path", modules("graph_patterns"), ids=lambda path: str(path.relative_to(ROOT)))
def test_graph_patterns_imports_run_one_way(path: Path) -> None:
    """A module of `graph_patterns` imports only what stands before it."""
    order = ORDER["graph_patterns"]
    part = path.relative_to(ROOT / "graph_patterns").parts[0].removesuffix(".py")
    if part == "__init__":
        return
    used = {name.split(".")[1] for name in imported(path) if name.startswith("graph_patterns.")}
    assert not [name for name in used if order.index(name) > order.index(part)]
    assert not (part == "openvino" and "onnx" in used), "the formats do not know each other"


@pytest.mark.parametrize(
    "statement",
    [
        "import graph_patterns",
        "import postproc_export",
        "import postproc_export.cli",
        "from postproc_export import CalibrationStats",
    ],
)
def test_start_up_is_light(statement: str) -> None:
    """Importing the packages or the command line loads no runtime, no torch, and no onnx."""
    assert not loaded_by(statement) & {*HEAVY, "onnx", "onnx_graphsurgeon"}


def test_graph_patterns_formats_load_no_runtime() -> None:
    """The lowerings of both formats can be imported where neither runtime is installed."""
    code = "import graph_patterns.onnx.lowering, graph_patterns.onnx.view, graph_patterns.openvino.lowering"
    loaded = loaded_by(f"{code}, graph_patterns.openvino.view")
    assert not loaded & set(HEAVY)
    assert not [name for name in loaded if name.startswith("postproc_export")]
