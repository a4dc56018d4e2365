"""Attaching to a 1 GiB ONNX file with inline weights, against a copy of the file; and the start of the command line.

Whole processes, in turn, with their peak memory. Usage: python benchmarks/bench_attach.py [--gib 1] [--folder /tmp]
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from harness import environment, publish
from onnx import TensorProto, helper, numpy_helper

from postproc_export import CalibrationStats, LevelStats

ROUNDS = 7
TENSORS = 8


def write_model(path: Path, gib: float) -> None:
    """Write a model with that much of inline weights."""
    rows = int(gib * 2**30 / 4 / TENSORS / 1024)
    values = np.random.default_rng(0).normal(size=(rows, 1024)).astype(np.float32)
    weights = [numpy_helper.from_array(values, f"w{index}") for index in range(TENSORS)]
    nodes = [helper.make_node("ReduceMax", [f"w{index}"], [f"m{index}"], keepdims=0) for index in range(TENSORS)]
    nodes.append(helper.make_node("Sum", [f"m{index}" for index in range(TENSORS)], ["sum"]))
    nodes.append(helper.make_node("Add", ["x", "sum"], ["pred_score"]))
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in ("x", "pred_score")]
    graph = helper.make_graph(nodes, "large", infos[:1], infos[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def measured(command: Sequence[str | Path]) -> tuple[float, float]:
    """Return wall seconds and peak MB of a command that succeeds."""
    start = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, f"{command} failed"
    return time.perf_counter() - start, usage.ru_maxrss / 1024


CALLS = """
import json, shutil, sys, time
from pathlib import Path
from postproc_export import CalibrationStats, attach_postprocessing

model, stats, out, copy = map(Path, sys.argv[1:5])
attach_postprocessing(model, CalibrationStats.load(stats), output=out)
pairs = []
for _ in range(int(sys.argv[5])):
    times = []
    for call in (lambda: attach_postprocessing(model, stats, output=out), lambda: shutil.copyfile(model, copy)):
        out.unlink(missing_ok=True)
        copy.unlink(missing_ok=True)
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    pairs.append(times)
print(json.dumps(pairs))
"""


def called(model: Path, stats: Path, out: Path, copy: Path) -> list[tuple[float, float]]:
    """Return the seconds of the function and of a copy in turn, in a process that has imported everything."""
    command = [sys.executable, "-c", CALLS, *map(str, (model, stats, out, copy)), str(ROUNDS)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return [(attach, copied) for attach, copied in json.loads(run.stdout)]


def main() -> None:
    """Measure attach against a copy, and the start-up of the command line."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--gib", type=float, default=1.0)
    arguments.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = arguments.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        _measure(folder, options.gib)
    finally:
        shutil.rmtree(folder)


def _measure(folder: Path, gib: float) -> None:
    model, stats, out = folder / "large.onnx", folder / "stats.json", folder / "out.onnx"
    # In a process of its own: a child's peak memory starts with its parent's.
    maker = multiprocessing.get_context("spawn").Process(target=write_model, args=(model, gib))
    maker.start()
    maker.join()
    CalibrationStats(image=LevelStats(threshold=0.5, min=0.0, max=1.0)).save(stats)
    program = [sys.executable, "-m", "postproc_export"]
    commands: dict[str, list[str | Path]] = {
        "copy": ["cp", "--reflink=never", model, folder / "copy.onnx"],
        "attach": [*program, "attach", model, "--stats", stats, "-o", out],
        "help": [*program, "--help"],
    }
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for command in commands.values():
        measured(command)
    for _ in range(ROUNDS):
        for name, command in commands.items():
            (folder / "copy.onnx").unlink(missing_ok=True)
            out.unlink(missing_ok=True)
            runs[name].append(measured(command))
    seconds = {name: [run[0] for run in values] for name, values in runs.items()}
    pairs = zip(seconds["attach"], seconds["copy"], strict=True)
    calls = called(model, stats, out, folder / "copy.onnx")
    figures = {
        name: {"median_s": statistics.median(seconds[name]), "peak_mb": max(run[1] for run in runs[name])}
        for name in runs
    }
    quoted = {
        "attach_postprocessing() / shutil.copyfile()": round(statistics.median(a / b for a, b in calls), 2),
        "attach_postprocessing(), s": round(statistics.median(a for a, _ in calls), 2),
        "attach / cp, whole processes": round(statistics.median(a / b for a, b in pairs), 2),
        "peak memory of attach, MB": round(figures["attach"]["peak_mb"]),
        "--help, s": round(figures["help"]["median_s"], 2),
    }
    machine = environment("onnx", "onnx-graphsurgeon", "numpy")
    publish("attach", {"gib": gib, "rounds": ROUNDS, "ratios": quoted, "figures": figures, "environment": machine})


if __name__ == "__main__":
    main()
