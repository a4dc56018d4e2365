"""Whole processes of every command on small files, beside the commands and scripts of others."""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import parser
from peer_rows import OURS, Row, Wanted, error_text, installed, not_installed, process, rows_of

PROGRAM = [sys.executable, "-m", "postproc_export"]
MODEL = """<ir_version: 8, opset_import: ["": 17]>
raw (float[N,3,64,64] input) => (float[N,1] pred_score, float[N,1,64,64] anomaly_map)
<float[1,3,3,3] weight = {1,1,1,1,1,1,1,1,1, 2,2,2,2,2,2,2,2,2, 1,1,1,1,1,1,1,1,1}> {
    anomaly_map = Conv<pads = [1, 1, 1, 1]>(input, weight)
    most = GlobalMaxPool(anomaly_map) pred_score = Flatten(most)
}"""
IMPORTS = "import numpy, onnx, onnx_graphsurgeon, cyclopts"
BY_HAND = """
import sys, numpy as np, onnx, onnx_graphsurgeon as gs
graph = gs.import_onnx(onnx.load(sys.argv[1]))
score = graph.outputs[0]
unit = gs.Variable("unit", np.float32)
graph.nodes.append(gs.Node("HardSigmoid", inputs=[score], outputs=[unit], attrs={"alpha": 0.1, "beta": 0.2}))
graph.outputs.append(unit)
onnx.save(gs.export_onnx(graph), sys.argv[2])
"""


def write_files(folder: Path) -> None:
    """Write a raw model, raw outputs, images with and without a defect, and what the commands read of one another."""
    from PIL import Image

    onnx.save(parser.parse_model(MODEL), folder / "raw.onnx")
    rng = np.random.default_rng(0)
    maps = rng.normal(5, 1, (16, 1, 64, 64)).astype(np.float32)
    masks = np.zeros(maps.shape, np.uint8)
    maps[8:, :, :8, :8] += 4
    masks[8:, :, :8, :8] = 1
    scores, labels = maps.max(axis=(1, 2, 3)), masks.any(axis=(1, 2, 3)).astype(np.uint8)
    np.savez(folder / "val.npz", pred_score=scores, gt_label=labels, anomaly_map=maps, gt_mask=masks)
    for kind in ("good", "spot", "ground_truth/spot"):
        (folder / "images" / kind).mkdir(parents=True)
    for index in range(8):
        image, mask = rng.integers(0, 100, (64, 64, 3)).astype(np.uint8), np.zeros((64, 64), np.uint8)
        Image.fromarray(image).save(folder / f"images/good/{index}.png")
        image[8:16, 8:16], mask[8:16, 8:16] = 255, 255
        Image.fromarray(image).save(folder / f"images/spot/{index}.png")
        Image.fromarray(mask).save(folder / f"images/ground_truth/spot/{index}_mask.png")
    for words in (
        "calibrate raw.onnx --images images -o stats.json",
        "attach raw.onnx --stats stats.json -o model.onnx",
    ):
        subprocess.run([*PROGRAM, *words.split(), "--quiet"], cwd=folder, check=True)


def jobs() -> dict[str, dict[str, list[str]]]:
    """Return what is done, and by whom with which command; a peer's name stands before the parenthesis."""
    scripts = Path(sys.executable).parent
    by_peer = {"Anomalib": "anomalib", "Polygraphy": "polygraphy", "optimum": "optimum-cli"}
    there = {who: name for who, name in by_peer.items() if (scripts / name).exists()}
    helped = {f"{who} ({name} --help)": [str(scripts / name), "--help"] for who, name in there.items()}
    polygraphy, python = str(scripts / "polygraphy"), sys.executable
    imports = {f"the imports alone ({IMPORTS.removeprefix('import ')})": [python, "-c", IMPORTS]}
    by_hand = {"graphsurgeon, one node by hand": [python, "-c", BY_HAND, "raw.onnx", "hand.onnx"]}
    peers = {
        "--help": helped,
        "doctor": {},
        "calibrate val.npz -o again.json": {},
        "calibrate raw.onnx --images images -o again.json": {},
        "attach raw.onnx --stats stats.json -o again.onnx": {**imports, **by_hand},
        "update model.onnx --pixel-sensitivity 0.6 -o again.onnx": {},
        "detach model.onnx -o again.onnx": {},
        "inspect model.onnx": {"Polygraphy (inspect model)": [polygraphy, "inspect", "model", "model.onnx"]},
        "check model.onnx --raw raw.onnx --images images": {
            "Polygraphy (run --onnxrt, which compares with nothing)": [polygraphy, "run", "model.onnx", "--onnxrt"],
        },
        "predict model.onnx images -o predictions": {},
        "report stats.json -o report.html": {},
        "export postproc_export.demo.factory:detector --input 1,3,96,96 --stats stats.json --other-model -o dist": {},
        "demo -o demo": {},
    }  # fmt: skip
    return {words: {OURS: [*PROGRAM, *words.split()], **others} for words, others in peers.items()}


def remove_results(folder: Path) -> None:
    """Remove what a command may have written, so that the next run writes it anew."""
    for name in ("again.json", "again.onnx", "hand.onnx", "report.html"):
        (folder / name).unlink(missing_ok=True)
    for name in ("predictions", "dist", "demo"):
        shutil.rmtree(folder / name, ignore_errors=True)


def measured(words: str, commands: Mapping[str, list[str]], folder: Path, *, seconds: float) -> Iterator[Row]:
    """Yield the rows of one job, of as many rounds as fit into a time; a command that fails has one that says how."""
    runs: dict[str, list[tuple[float, float]]] = {}
    start = time.perf_counter()
    for who, command in commands.items():
        remove_results(folder)
        try:
            process(command, folder)
            runs[who] = []
        except (OSError, subprocess.CalledProcessError) as error:
            said = (getattr(error, "output", None) or "").strip()
            yield Row(part="commands", case=words, who=who, result=f"{error_text(error)} {said[-120:]}")
    for _ in range(min(9, max(2, int(seconds / (time.perf_counter() - start))))):
        for who, found in runs.items():
            remove_results(folder)
            found.append(process(commands[who], folder)[:2])
    for row in rows_of("commands", words, {who: [run[0] for run in found] for who, found in runs.items()}):
        row.peak_mb = max(run[1] for run in runs[row.who])
        yield row


def rows(wanted: Wanted) -> Iterator[Row]:
    """Measure every command."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder)
        for words, commands in jobs().items():
            if wanted(words):
                yield from measured(words, commands, folder, seconds=30)
    for module, package in (("polygraphy", "polygraphy"), ("optimum", "optimum[onnx]"), ("anomalib", "anomalib")):
        if not installed(module):
            yield not_installed("commands", "all", module, package)
