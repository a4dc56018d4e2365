"""The size of the house: files, lines, classes, and how far a call goes.

Usage: python benchmarks/house.py
"""

import ast
import json
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from onnx import parser

ROOT = Path(__file__).parents[1]
PACKAGES = ("graph_patterns", "postproc_export")
MODEL = """<ir_version: 8, opset_import: ["": 17]>
g (float[N,3,8,8] input) => (float[N] pred_score, float[N,1,8,8] anomaly_map) <float half = {0.5}> {
    a = Abs(input) b = ReduceMean<axes = [1], keepdims = 1>(a) c = Relu(b) d = Mul(c, half) e = Abs(d)
    anomaly_map = Relu(e) f = GlobalMaxPool(anomaly_map) h = Flatten(f) i = Abs(h) j = Relu(i)
    pred_score = ReduceMax<axes = [1], keepdims = 0>(j)
}"""
TRACED = """
import json, sys
from inspect import CO_OPTIMIZED
from pathlib import Path
root, folder, command, packages = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:]
sys.path.insert(0, str(root))
seen = set()
def called(frame, event, argument):
    if event == "call" and frame.f_code.co_flags & CO_OPTIMIZED:
        seen.add(frame.f_code)
from postproc_export import CalibrationStats, LevelStats
levels = {name: LevelStats(threshold=1.0, min=0.0, max=2.0) for name in ("image", "pixel")}
stats = CalibrationStats(**levels)
sys.setprofile(called)
if command == "attach":
    from postproc_export import attach_postprocessing
    attach_postprocessing(folder / "raw.onnx", stats, output=folder / "attached.onnx")
else:
    from postproc_export import check_parity
    check_parity(folder / "attached.onnx", inputs=folder / "inputs.npz", raw=folder / "raw.onnx", count=10)
sys.setprofile(None)
ours = [code for code in seen if any(Path(code.co_filename).is_relative_to(root / name) for name in packages)]
modules = [name for name in sys.modules if name.split(".")[0] in packages]
print(json.dumps([len({code.co_filename for code in ours}), len(ours), len(modules)]))
"""


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function without its signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return 0 if not body else (body[-1].end_lineno or 0) - body[0].lineno + 1


def own_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how many parameters a function has besides `self` and `cls`."""
    args = function.args
    names = [arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def is_dataclass(node: ast.ClassDef) -> bool:
    """Return whether a class is decorated as a dataclass."""
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def house() -> dict[str, object]:
    """Return what the sources themselves tell."""
    texts = {path: path.read_text("utf-8") for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    lines = {path: len(text.splitlines()) for path, text in texts.items()}
    nodes = [node for text in texts.values() for node in ast.walk(ast.parse(text))]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    twice = sorted(name for name, times in Counter(node.name for node in classes).items() if times > 1)
    longest = max(lines, key=lines.__getitem__)
    wide = [node for node in functions if own_parameters(node) > 12 and not node.name.startswith("_")]
    return {
        "files": len(texts),
        "lines": sum(lines.values()),
        "median file, lines": statistics.median(lines.values()),
        "longest file, lines": f"{lines[longest]} ({longest.relative_to(ROOT)})",
        "files over 650 lines": sum(count > 650 for count in lines.values()),
        "longest body, lines": max(map(body_lines, functions)),
        "lines that are imports, %": round(
            100 * sum((node.end_lineno or 0) - node.lineno + 1 for node in imports) / sum(lines.values()), 1
        ),
        "dataclasses": sum(map(is_dataclass, classes)),
        "class names defined twice": f"{len(twice)} {' '.join(twice)}".strip(),
        "public functions of more than 12 parameters": len(wide),
    }


def course(folder: Path, command: str) -> dict[str, object]:
    """Return how far one call goes, in an interpreter of its own."""
    process = [sys.executable, "-W", "ignore", "-c", TRACED, str(ROOT), str(folder), command, *PACKAGES]
    run = subprocess.run(process, capture_output=True, text=True, check=True)
    files, functions, modules = json.loads(run.stdout.splitlines()[-1])
    return {f"{command}: files": files, f"{command}: functions": functions, f"{command}: modules imported": modules}


def main() -> None:
    """Print the table."""
    rows = house()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(parser.parse_model(MODEL), folder / "raw.onnx")
        np.savez(folder / "inputs.npz", input=np.random.default_rng(0).random((4, 3, 8, 8), dtype=np.float32))
        rows |= course(folder, "attach") | course(folder, "check")
    for key, value in rows.items():
        print(f"{key:<45} {value}")


if __name__ == "__main__":
    main()
