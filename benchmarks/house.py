"""The size of the house: files, lines, classes, copies, and how far a call goes, each beside its bar.

Usage: python benchmarks/house.py
"""

import ast
import json
import keyword
import re
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
BARS = {
    "files": 155,
    "lines": 43_200,
    "longest file, lines": 650,
    "longest body, lines": 60,
    "dataclasses": 157,
    "class names defined twice": 0,
    "functions of more than 12 parameters": 0,
    "places of ten lines alike": 0,
    "attach: files": 22,
    "attach: modules imported": 50,
    "check: files": 40,
}
"""The most that is allowed of each figure. A capability may raise a bar by what it is worth, in its own commit."""

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
if command == "attach":
    from postproc_export import attach_postprocessing
else:
    from postproc_export import check_parity
sys.setprofile(called)
if command == "attach":
    attach_postprocessing(folder / "raw.onnx", stats, output=folder / "attached.onnx")
else:
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
    """Return whether a class is a dataclass, or a named tuple, which is one by another name."""
    written = [ast.unparse(item) for item in (*node.decorator_list, *node.bases)]
    return any("dataclass" in text or text.endswith("NamedTuple") for text in written)


def code_shapes(text: str) -> list[tuple[int, str]]:
    """Return the numbered lines of a source that are code, with one name, string and number for all of them.

    Blank lines, comments, docstrings and imports are left out.
    """
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_text or isinstance(node, ast.Import | ast.ImportFrom):
            skipped.update(range(node.lineno, (node.end_lineno or 0) + 1))
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if number not in skipped]
    return [(number, shape(line)) for number, line in lines if line and not line.startswith("#")]


def shape(line: str) -> str:
    """Return a line with its names, strings and numbers taken away."""
    line = re.sub(r"""("[^"]*"|'[^']*'|\b\d[\w.]*)""", "0", line)
    return re.sub(r"[A-Za-z_]\w*", lambda name: name[0] if keyword.iskeyword(name[0]) else "n", line)


def alike(count: int = 10, kinds: int = 7) -> list[str]:
    """Return the places where as many lines of code as `count` stand a second time with other names, or the same ones.

    A table is no copy: of the lines at least `kinds` have to differ in shape.
    """
    seen: dict[tuple[str, ...], str] = {}
    found: list[str] = []
    for path in sources():
        lines, last = code_shapes(path.read_text("utf-8")), -count
        for start in range(len(lines) - count + 1):
            window = tuple(text for _, text in lines[start : start + count])
            place = f"{path.relative_to(ROOT)}:{lines[start][0]}"
            if len(set(window)) >= kinds and seen.setdefault(window, place) != place and start >= last + count:
                found.append(f"{seen[window]} = {place}")
                last = start
    return found


def sources() -> list[Path]:
    """Return the sources of the two packages."""
    return sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


def house() -> dict[str, object]:
    """Return what the sources themselves tell."""
    texts = {path: path.read_text("utf-8") for path in sources()}
    lines = {path: len(text.splitlines()) for path, text in texts.items()}
    nodes = [node for text in texts.values() for node in ast.walk(ast.parse(text))]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    twice = Counter(node.name for node in classes)
    imported = sum((node.end_lineno or 0) - node.lineno + 1 for node in imports)
    wide = [node for node in functions if is_public(node.name) and own_parameters(node) > 12]
    return {
        "files": len(texts),
        "lines": sum(lines.values()),
        "median file, lines": statistics.median(lines.values()),
        "longest file, lines": max(lines.values()),
        "longest body, lines": max(map(body_lines, functions)),
        "lines that are imports, %": round(100 * imported / sum(lines.values()), 1),
        "dataclasses": sum(map(is_dataclass, classes)),
        "class names defined twice": [name for name, times in twice.items() if times > 1],
        "functions of more than 12 parameters": [node.name for node in wide],
        "places of ten lines alike": alike(),
    }


def is_public(name: str) -> bool:
    """Return whether a name is public; a constructor is."""
    return name == "__init__" or not name.startswith("_")


def course(folder: Path, command: str) -> dict[str, object]:
    """Return how far one call goes, in an interpreter of its own."""
    process = [sys.executable, "-W", "ignore", "-c", TRACED, str(ROOT), str(folder), command, *PACKAGES]
    run = subprocess.run(process, capture_output=True, text=True, check=True)
    files, functions, modules = json.loads(run.stdout.splitlines()[-1])
    return {f"{command}: files": files, f"{command}: functions": functions, f"{command}: modules imported": modules}


def courses() -> dict[str, object]:
    """Return how far `attach` and `check` of a small model go."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(parser.parse_model(MODEL), folder / "raw.onnx")
        np.savez(folder / "inputs.npz", input=np.random.default_rng(0).random((4, 3, 8, 8), dtype=np.float32))
        return course(folder, "attach") | course(folder, "check")


def count(value: object) -> float:
    """Return a figure as a number: a list counts its members."""
    return len(value) if isinstance(value, list) else float(str(value))


def main() -> None:
    """Print the table, and leave with 1 where a bar is missed."""
    rows = house() | courses()
    for key, value in rows.items():
        bar = BARS.get(key)
        judged = "" if bar is None else f"at most {bar}{'' if count(value) <= bar else '  FAILED'}"
        print(f"{key:<40} {count(value):>8g}  {judged}")
        for item in value if isinstance(value, list) else ():
            print(f"    {item}")
    sys.exit(any(count(rows[key]) > bar for key, bar in BARS.items()))


if __name__ == "__main__":
    main()
