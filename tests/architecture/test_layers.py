"""Imports run one way, and start-up stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import hosts
import pytest

from postproc_export import CalibrationStats, LevelStats

ROOT = Path(__file__).parents[2]
HEAVY = (
    *("torch", "lightning", "pytorch_lightning", "dask", "distributed"),
    *("onnxruntime", "openvino", "matplotlib", "altair", "vl_convert", "PIL", "skimage", "scipy"),
)
ORDER = {
    "graph_patterns": "expr catalog transforms match onnx openvino",
    "postproc_export": """
        errors process float32 validation policies checkpoint files outcome stats ports runtimes installation images
        options run_options curve histogram tail record model_info torch_modules eager twin comparison reading formats
        steps raw_model belonging attach detach update inspect calibration ranking evaluation check prediction
        report integrations export demo cli __main__
    """,
    "postproc_export.formats": """
        digest base onnx_file onnx openvino_file openvino
    """,
    "postproc_export.steps": "modules transforms twins plan decisions user user_export around",
    "postproc_export.calibration": """
        table arrays convention counting tally search resampling statistics shards zarr ranks dask
        calibrator model
    """,
    "postproc_export.prediction": "attached predictor regions folder run",
    "postproc_export.report": "axis levels plots examples page",
    "postproc_export.check": """
        inputs assumed attached attached_files ways reference chain findings report preserved preserved_files
        contracts record tail torch_model steps whole synthetic kit judge vectors
    """,
}
"""The rooms of a package: a room imports only from those before it."""


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


@pytest.mark.parametrize("package", ORDER)
def test_imports_run_one_way(package: str) -> None:
    """Every room of a package has its place, and imports only what stands before it, lazily or not."""
    folder, order = ROOT / package.replace(".", "/"), ORDER[package].split()
    rooms = {path: path.relative_to(folder).parts[0].removesuffix(".py") for path in modules(str(folder))}
    assert sorted(order) == sorted(set(rooms.values()) - {"__init__"})
    for path, room in rooms.items():
        used = {name.removeprefix(f"{package}.").split(".")[0] for name in imported(path) if f"{package}." in name}
        later = [name for name in used if room != "__init__" and order.index(name) > order.index(room)]
        assert not later, f"{path.relative_to(ROOT)} imports {later}"


def test_the_formats_do_not_know_each_other() -> None:
    """What `graph_patterns` does for IR needs nothing of what it does for ONNX."""
    names = imported(ROOT / "graph_patterns/openvino.py")
    assert not [name for name in names if name.startswith("graph_patterns.onnx")]


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


def test_the_help_loads_no_command() -> None:
    """`--help` prints what each command does and imports none of them, so that it needs no NumPy either."""
    loaded = loaded_by("from postproc_export.cli import main; main(['--help'])")
    assert "Commands:" in loaded
    assert not loaded & {*HEAVY, "numpy", "postproc_export.options", "postproc_export.cli.attach"}


def test_an_attach_loads_nothing_of_other_commands(tmp_path: Path) -> None:
    """The process of a small attach is mostly imports, so it has those that it needs."""
    stats, output = tmp_path / "stats.json", tmp_path / "post.onnx"
    CalibrationStats(image=LevelStats(threshold=0.5, min=0.0, max=1.0)).save(stats)
    model = hosts.raw_file(hosts.score_only(), tmp_path)
    words = ["attach", str(model), "--stats", str(stats), "-o", str(output)]
    loaded = loaded_by(f"from postproc_export.cli import main; main({words})")
    assert output.exists()
    others = "policies update detach run_options runtimes curve reading.report integrations.memory"
    assert not loaded & {*HEAVY, *(f"postproc_export.{name}" for name in others.split())}


def test_graph_patterns_formats_load_no_runtime() -> None:
    """The lowerings of both formats can be imported where neither runtime is installed."""
    loaded = loaded_by("import graph_patterns.onnx.graph, graph_patterns.openvino")
    assert not loaded & set(HEAVY)
    assert not [name for name in loaded if name.startswith("postproc_export")]
