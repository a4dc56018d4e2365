"""Put a million adversarial values through attached files in every runtime, and write the table of docs/runtimes.md.

Usage: python benchmarks/runtimes_table.py [--only TEXT ...] [--values N] [--output FILE.json]

Two models that give back what they are fed get our tail, one of each form. N raw scores run as a batch, N raw values of
a map as one map. Labels, masks and scores are compared with the reference in NumPy. What is not installed is left out
and named. Rows are added to the JSON file as soon as they are there, so what needs another environment, such as
onnxruntime-openvino, is run there with --only. The browser is Chromium, with onnxruntime-web from node_modules of the
working folder; WebGPU runs there on the processor, by SwiftShader.
"""

import argparse
import json
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from harness import environment
from onnx import TensorProto, helper

from postproc_export import CalibrationStats, LevelStats, attach_postprocessing
from postproc_export.check.attached_files import load_attached
from postproc_export.check.inputs import raw_values
from postproc_export.check.reference import Reference
from postproc_export.errors import PostprocError
from postproc_export.runtimes import Array, open_runner
from postproc_export.stats import decision_boundary

ROOT: Final = Path(__file__).parents[1]
RESULTS: Final = ROOT / "benchmarks" / "results" / "runtimes.json"
PAGE: Final = ROOT / "docs" / "examples" / "runtimes" / "browser.html"
VALUES: Final = 1_000_000
CASES: Final = {  # of each form of the normalised score
    "fused": CalibrationStats(
        image=LevelStats(threshold=5.344675064086914, min=3.2433979511260986, max=12.298707962036133),
        pixel=LevelStats(threshold=4.661016464233398, min=0.6696368455886841, max=12.298707962036133),
    ),
    "centred": CalibrationStats(
        image=LevelStats(threshold=1000.0, min=995.0, max=1003.0),
        pixel=LevelStats(threshold=-2000.5, min=-2004.0, max=-1996.0),
    ),
}


@dataclass(frozen=True)
class Row:
    """A line of the table: what it is called, how a file is opened, and which file."""

    name: str
    asked: str  # as --runtime takes it; "torch", or "chromium:" and a device, are run by this script
    keeps: str  # what it makes of a NaN in a score, and why
    file: str = "attached.onnx"
    options: Mapping[str, Any] = field(default_factory=dict)


_KEPT: Final = "its minimum and maximum keep a NaN"
_ORDER: Final = "the processor's minimum gives its second operand where one is a NaN"
ROWS: Final = (
    Row("ONNX Runtime", "onnxruntime", _KEPT),
    Row("ONNX Runtime, extended", "onnxruntime,graph_optimization_level=ORT_ENABLE_EXTENDED", _KEPT),
    Row("ONNX Runtime, not optimised", "onnxruntime", _KEPT, options={"optimize": False}),
    Row(
        "ONNX Runtime, OpenVINO's provider",
        "onnxruntime:OpenVINOExecutionProvider",
        f"as OpenVINO, by the shape: {_ORDER}",
    ),
    Row("OpenVINO, ONNX file", "openvino", _ORDER),
    Row("OpenVINO, IR", "openvino", _ORDER, "attached.xml"),
    Row("OpenVINO, by default", "openvino", _ORDER, "attached.xml", {"precision": "default"}),
    Row("OpenVINO, AUTO", "openvino:AUTO", _ORDER, "attached.xml"),
    Row("OpenVINO, HETERO:CPU", "openvino:HETERO:CPU", _ORDER, "attached.xml"),
    Row("onnxruntime-node", "onnxruntime-node", _KEPT),
    Row("onnxruntime-web in Node.js", "onnxruntime-web", _KEPT),
    Row("onnxruntime-web in Chromium, WebAssembly", "chromium:wasm", _KEPT),
    Row("onnxruntime-web in Chromium, WebGPU", "chromium:webgpu", "WGSL's minimum may give either operand"),
    Row("tract", "tract", "Rust's minimum gives the operand that is a number"),
    Row("onnx.reference", "onnx.reference", "NumPy's minimum and maximum keep a NaN"),
    Row("OpenCV", "opencv", "C++'s std::min gives its first operand where one is a NaN", "opencv.onnx"),
    Row("PyTorch eager", "torch", "its clamp keeps a NaN"),
)

Feeds = Mapping[str, Array]  # by the names of the inputs, score and map
Run = Any  # from feeds to outputs by name


def adversarial(stats: LevelStats, count: int, *, seed: int) -> Array:
    """Return so many raw values: around boundary, threshold and range, special ones of every kind, and random ones."""
    assert stats.threshold is not None
    random = np.random.default_rng(seed)
    values = raw_values(stats, decision_boundary(stats, sensitivity=0.5), count=2 * count, seed=seed)
    payload = random.integers(1, 1 << 23, count // 100, dtype=np.uint32)
    sign = random.integers(0, 2, count // 100, dtype=np.uint32) << 31
    unusual = np.concatenate([payload | sign, payload | sign | np.uint32(0x7F800000)]).view(np.float32)
    first = np.concatenate([values.few, unusual, values.rising[: count // 50], values.falling[: count // 50]])
    ordinary = random.permutation(values.ordinary)
    return np.concatenate([first, ordinary])[:count]


def write_files(folder: Path, stats: CalibrationStats) -> None:
    """Write a model that gives back what it is fed, with our tail, for every row."""
    import openvino

    shapes = {"score": ("pred_score", ["N", 1]), "map": ("anomaly_map", ["N", 1, "H", "W"])}
    graph = helper.make_graph(
        [helper.make_node("Identity", [source], [name]) for source, (name, _) in shapes.items()],
        "identity",
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, shape) for source, (_, shape) in shapes.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.values()],
    )
    raw, ir = folder / "raw.onnx", folder / "raw.xml"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), raw)
    openvino.save_model(openvino.Core().read_model(raw), ir, compress_to_fp16=False)
    attach_postprocessing(raw, stats, output=folder / "attached.onnx")
    attach_postprocessing(ir, stats, output=folder / "attached.xml")
    attach_postprocessing(raw, stats, output=folder / "opencv.onnx", made_for="opencv")


def feeds_of(stats: CalibrationStats, count: int) -> Iterator[dict[str, Array]]:
    """Yield the values as scores of a batch, each with a map of its own, and as one map."""
    assert stats.image is not None
    assert stats.pixel is not None
    scores = adversarial(stats.image, count, seed=1).reshape(-1, 1)
    yield {"score": scores, "map": np.full((len(scores), 1, 1, 1), stats.pixel.min, np.float32)}
    side = int(count**0.5)
    maps = adversarial(stats.pixel, side * side, seed=2).reshape(1, 1, side, side)
    yield {"score": np.full((1, 1), stats.image.min, np.float32), "map": maps}


class _Handler(SimpleHTTPRequestHandler):
    """Serves a folder, and writes what is put there."""

    def do_PUT(self) -> None:
        """Write a file."""
        size = int(self.headers["Content-Length"])
        Path(self.translate_path(self.path)).write_bytes(self.rfile.read(size))
        self.send_response(201)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Keep quiet."""


RUN_IN_PAGE: Final = """async ([device, shapes]) => {
  const inputs = {};
  for (const name in shapes) {
    const bytes = await (await fetch(`${name}.f32`)).arrayBuffer();
    inputs[name] = [new Float32Array(bytes), shapes[name]];
  }
  await example.load("attached.onnx", device);
  const outputs = await example.run(inputs), told = {};
  for (const name in outputs) {
    await fetch(`${name}.out`, { method: "PUT", body: outputs[name].data });
    told[name] = [outputs[name].type, outputs[name].dims];
  }
  return told;
}"""


@contextmanager
def in_chromium(folder: Path, device: str) -> Iterator[Run]:
    """Yield what runs a file of a folder in a page of Chromium."""
    from playwright.sync_api import sync_playwright

    package = Path("node_modules/onnxruntime-web/dist").absolute()
    browser = shutil.which("chromium")
    if browser is None or not package.is_dir():
        raise ModuleNotFoundError("Chromium, or node_modules/onnxruntime-web in the working folder")
    shutil.copy(PAGE, folder)
    (folder / "onnxruntime-web").unlink(missing_ok=True)
    (folder / "onnxruntime-web").symlink_to(package)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    switches = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    switches += ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"] if device == "webgpu" else []
    with sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=browser, args=switches)
        page = chromium.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/{PAGE.name}")

        def run(feeds: Feeds) -> dict[str, Array]:
            for name, values in feeds.items():
                values.tofile(folder / f"{name}.f32")
            shapes = {name: list(values.shape) for name, values in feeds.items()}
            told = page.evaluate(RUN_IN_PAGE, [device, shapes])
            return {
                name: np.fromfile(folder / f"{name}.out", np.dtype(dtype)).reshape(shape)
                for name, (dtype, shape) in told.items()
            }

        version = json.loads((package.parent / "package.json").read_text(encoding="utf-8"))["version"]
        yield run, f"{version}, Chromium {chromium.version}", "float32"
        chromium.close()
    server.shutdown()


@contextmanager
def opened(row: Row, folder: Path) -> Iterator[tuple[Run, str, str]]:
    """Yield what runs a row's file, with the version and the precision of what runs it."""
    if row.asked == "torch":
        import torch

        reference = Reference(load_attached(folder / row.file), "torch")
        yield lambda feeds: reference.outputs({"image": feeds["score"], "pixel": feeds["map"]}), torch.__version__, ""
    elif row.asked.startswith("chromium:"):
        with in_chromium(folder, row.asked.partition(":")[2]) as found:
            yield found
    else:
        runner = open_runner(folder / row.file, runtime=row.asked, threads=1, **row.options)
        yield runner.run, runner.version, runner.inference_precision


def judged(row: Row, count: int) -> dict[str, Any]:
    """Return what a row's runtime makes of the values of every case, compared with the reference in NumPy."""
    found: dict[str, Any] = {"name": row.name, "labels": 0, "masks": 0, "labels_off": 0, "masks_off": 0}
    error, nans = 0.0, set[str]()
    for stats in CASES.values():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_files(folder, stats)
            reference = Reference(load_attached(folder / "attached.onnx"), "numpy")
            with opened(row, folder) as (run, version, precision):
                for feeds in feeds_of(stats, count):
                    actual, wanted = run(feeds), reference.outputs({"image": feeds["score"], "pixel": feeds["map"]})
                    found["labels"] += feeds["score"].size
                    found["masks"] += feeds["map"].size if len(feeds["map"]) == 1 else 0  # else all alike
                    for kind, name in (("labels", "pred_label"), ("masks", "pred_mask")):
                        found[f"{kind}_off"] += int(np.count_nonzero(actual[name] != wanted[name]))
                    for name in ("pred_score", "anomaly_map"):
                        is_nan = np.isnan(wanted[name])
                        nans |= {f"{value:g}" for value in np.unique(actual[name][is_nan])}
                        off = np.abs(actual[name][~is_nan].astype(np.float64) - wanted[name][~is_nan])
                        error = max(error, float(np.max(off, initial=0.0)))
    of_nan = {"nan": sorted(nans), "keeps": row.keeps}
    return {**found, "worst_error": error, **of_nan, "version": version, "precision": precision}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows in Markdown."""
    lines = [
        "| runtime | version | labels off | masks off | worst error of a score | NaN becomes | because |",
        f"|{' --- |' * 7}",
    ]
    for row in rows:
        off = (f"{row[f'{kind}_off']:,}" for kind in ("labels", "masks"))
        precision = f", {row['precision']}" if row["precision"] not in ("", "float32") else ""
        nan = " or ".join(row["nan"]).replace("nan", "NaN")
        told = (f"{row['worst_error']:.1g}", nan, row["keeps"])
        cells = (row["name"], f"{row['version']}{precision}", *off, *told)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the rows that are asked for, add them to the results, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="parts of the names of the rows to run")
    parser.add_argument("--values", type=int, default=VALUES, help="how many of each level, for a trial")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    known = json.loads(options.output.read_text(encoding="utf-8"))["rows"] if options.output.is_file() else []
    done, missing = {row["name"]: row for row in known}, []
    for row in ROWS:
        if options.only and not any(part in row.name for part in options.only):
            continue
        try:
            done[row.name] = judged(row, options.values)
        except (PostprocError, ModuleNotFoundError) as reason:
            missing.append(f"{row.name}: {reason}")
            continue
        print(json.dumps(done[row.name]), flush=True)
        document = {
            "environment": environment("numpy", "onnx"),
            "rows": [done[each.name] for each in ROWS if each.name in done],
        }
        options.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(table([done[row.name] for row in ROWS if row.name in done]))
    print("\n".join(f"left out: {reason}" for reason in missing))


if __name__ == "__main__":
    main()
