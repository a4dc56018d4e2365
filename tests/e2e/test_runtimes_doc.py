"""docs/runtimes.md, cpp.md and browser.md: the table is of the results, and each program decides as the file does."""

import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import hosts
import numpy as np
import pytest
from browser import opened_browser
from shipped_tails import stats_behind

from postproc_export import attach_postprocessing
from postproc_export.errors import MissingDependencyError
from postproc_export.runtimes import Target, open_runner

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("runtimes", "cpp", "browser")}
PROGRAMS = ROOT / "docs" / "examples" / "runtimes"
SHAPE = (1, 3, 64, 64)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the programs, a file in both formats, and an image."""
    shutil.copytree(PROGRAMS, tmp_path, dirs_exist_ok=True)
    for suffix in (".onnx", ".xml"):
        raw = hosts.write(hosts.score_and_map(), (tmp_path / "raw").with_suffix(suffix))
        attach_postprocessing(raw, stats_behind(()), output=(tmp_path / "attached").with_suffix(suffix))
    np.random.default_rng(0).random(SHAPE, np.float32).tofile(tmp_path / "image.f32")
    return tmp_path


def decided(folder: Path) -> str:
    """Return the line that every program should print."""
    images = np.fromfile(folder / "image.f32", np.float32).reshape(SHAPE)
    found = open_runner(folder / "attached.onnx").run({"input": images})
    mask, verdict = found["pred_mask"], "anomalous" if found["pred_label"].item() else "normal"
    return f"{verdict}, score {found['pred_score'].item():.6f}, {np.count_nonzero(mask)} of {mask.size} pixels"


def commands(page: str, title: str, *, without: str = "\0") -> str:
    """Return the commands below a heading of a page, but for lines that begin so."""
    (block,) = re.findall(rf"## {re.escape(title)}\n.*?```sh\n(.*?)```", PAGES[page], flags=re.DOTALL)[:1]
    return "".join(line for line in block.splitlines(keepends=True) if not line.startswith(without))


def printed(script: str, folder: Path) -> str:
    """Return the last line that commands of the page print, in a folder."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-euo", "pipefail", "-c", script]
    run = subprocess.run(command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout.splitlines()[-1]


def needed(*programs: str) -> None:
    """Skip the test where a program is not installed."""
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")


def package_of(name: str) -> Path:
    """Return the folder of an npm package; without it, or without Node.js, the test is skipped and says so."""
    try:
        Target.parse(name)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    code = f"console.log(require.resolve('{name}', {{ paths: [process.cwd()] }}))"
    main = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True).stdout
    return Path(main.strip()).parents[1]


def test_node_decides_so(folder: Path) -> None:
    """The package is the one that is installed, in place of the first command."""
    package_of("onnxruntime-node")
    assert printed(commands("browser", "Node.js", without="npm install"), folder) == decided(folder)


@pytest.mark.parametrize("device", ["wasm", "webgpu"])
def test_a_browser_decides_so(device: str, folder: Path) -> None:
    """In WebAssembly, and by WebGPU where the browser has it, from a server on this machine."""
    (folder / "onnxruntime-web").symlink_to(package_of("onnxruntime-web") / "dist")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    switches = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader") if device == "webgpu" else ()
    try:
        with opened_browser(*switches) as browser:
            page = browser.new_page()
            place = f"http://127.0.0.1:{server.server_port}/browser.html"
            page.goto(place)
            if device == "webgpu" and not page.evaluate("navigator.gpu?.requestAdapter().then(Boolean)"):
                pytest.skip("the browser has no WebGPU here")
            page.goto(f"{place}?shape={','.join(map(str, SHAPE))}&device={device}")
            told = page.locator("#told", has_text=re.compile("score|failed"))
            assert told.inner_text(timeout=120_000) == decided(folder)
    finally:
        server.shutdown()
        server.server_close()


def test_openvino_decides_so_in_cpp(folder: Path) -> None:
    """Compiled and linked against the Python package."""
    needed("g++")
    package = importlib.util.find_spec("openvino")
    assert package is not None
    assert package.submodule_search_locations is not None
    if not (Path(package.submodule_search_locations[0]) / "include").is_dir():
        pytest.skip("this package of OpenVINO has no headers")
    assert printed(commands("cpp", "OpenVINO"), folder) == decided(folder)


def test_onnxruntime_decides_so_in_cpp(folder: Path) -> None:
    """Where ONNXRUNTIME names an unpacked release: no package index brings its headers."""
    needed("g++")
    if not os.environ.get("ONNXRUNTIME"):
        pytest.skip("ONNXRUNTIME names no release of ONNX Runtime, whose headers no package brings")
    assert printed(commands("cpp", "ONNX Runtime"), folder) == decided(folder)


def test_opencv_decides_so(folder: Path) -> None:
    """From a file that the page's first command attaches."""
    if importlib.util.find_spec("cv2") is None:
        pytest.skip("OpenCV is not installed")
    (folder / "attached.onnx").unlink()
    (folder / "raw.onnx").rename(folder / "model.onnx")
    stats_behind(()).save(folder / "stats.json")
    assert printed(commands("runtimes", "OpenCV"), folder) == decided(folder)


def test_tract_decides_so_in_rust(folder: Path) -> None:
    """Compiled and linked against the library of tract's Python package."""
    needed("rustc")
    if importlib.util.find_spec("tract") is None:
        pytest.skip("tract is not installed")
    assert printed(commands("runtimes", "Rust"), folder) == decided(folder)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that makes the table."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("runtimes_table")


def test_the_table_is_that_of_the_results(script: ModuleType) -> None:
    """Nine runtimes and more, a million values of each level and more, and not a label off."""
    rows = json.loads(script.RESULTS.read_text(encoding="utf-8"))["rows"]
    shown = PAGES["runtimes"].split("<!-- table -->\n")[1].split("\n<!-- /table -->")[0]
    assert shown == script.table(rows)
    assert [row["name"] for row in rows] == [row.name for row in script.ROWS]
    assert min(row[kind] for row in rows for kind in ("labels", "masks")) >= 1_000_000
    assert {row[f"{kind}_off"] for row in rows for kind in ("labels", "masks")} == {0}
    assert {value for row in rows for value in row["nan"]} <= {"nan", "1"}


@pytest.mark.parametrize("name", ["ONNX Runtime", "OpenVINO, IR", "PyTorch eager"])
def test_the_table_is_made_from_real_runs(name: str, script: ModuleType) -> None:
    """A few thousand values, in what every development installation has."""
    (row,) = (row for row in script.ROWS if row.name == name)
    found = script.judged(row, 4_000)
    assert (found["labels"], found["masks"]) == (8_002, 2 * 63**2)
    assert (found["labels_off"], found["masks_off"]) == (0, 0)
    assert found["worst_error"] < 1e-6
