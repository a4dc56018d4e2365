"""Exact calibration beside the exact curves of torchmetrics (Anomalib's way) and scikit-learn, and at growing sizes.

Every figure comes from a process of its own with one thread; the processes take turns on the same files. Peak memory is
the process's highest resident set above its imports: the input arrays count where a method needs them in memory.

    python benchmarks/bench_calibration.py --values 20000000 --rounds 3 --sizes 1e7 1e8 1e9

The distributions have 2 % anomalous values: `normal` N(0, 1) and N(2, 1); `gamma` of shape 2, anomalous ones three
times as wide; `offset` 1000 + normal; `weak` N(0, 1) and N(0.3, 1). `adversary` has distinct values all over the
float32 range, the highest quarter anomalous and then one in three, so that F1 is 2/3 at every one of these: a histogram
can prune nearly nothing.

`times_the_yardstick` is in one process, by turns, in CPU time: arrays and a stream of maps over one plain count of the
same values, `np.bincount` of their upper 16 bits, which every exact calibration has to do at least.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from postproc_export.calibration.arrays import Block, Place

ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
SHARD = 10_000_000
SIDE = 1000  # values stand in maps of 1 x SIDE
CASES = ("gamma", "normal", "offset", "weak", "adversary")
METHODS = ("postproc_export", "postproc_export_shards", "torchmetrics", "sklearn")


def generate(case: str, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 values and uint8 ground truth."""
    if case == "adversary":
        return adversary(size)
    rng = np.random.default_rng(seed)
    truth = rng.random(size, dtype=np.float32) < 0.02
    if case == "gamma":
        values = rng.standard_gamma(2, size, dtype=np.float32)
        values[truth] *= 3
    else:
        values = rng.standard_normal(size, dtype=np.float32)
        values[truth] += 0.3 if case == "weak" else 2
        values += 1000 if case == "offset" else 0
    return values, truth.astype(np.uint8)


def adversary(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return distinct values in random order, whose F1 is the same at every anomalous one but the highest."""
    rank = np.random.default_rng(0).permutation(size)  # from the highest value
    keys = np.linspace(0x7D00_0000, 0x0300_0000, size).astype(np.uint32)[rank]
    top = size // 4
    return keys.view(np.float32), ((rank < top) | ((rank - top) % 3 == 0)).astype(np.uint8)


def write_shards(folder: Path, case: str, size: int) -> None:
    """Write pairs of `.npy` files of at most 10^7 values."""
    for index, start in enumerate(range(0, size, SHARD)):
        values, truth = generate(case, min(SHARD, size - start), index)
        np.save(folder / f"{index:04d}_maps.npy", values.reshape(-1, 1, SIDE))
        np.save(folder / f"{index:04d}_masks.npy", truth.reshape(-1, 1, SIDE))


def load(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return all values and all ground truth in memory."""
    parts = [
        np.concatenate([np.load(path) for path in sorted(folder.glob(f"*_{key}.npy"))]) for key in ("maps", "masks")
    ]
    return parts[0], parts[1]


def postproc_export(folder: Path) -> Callable[[], object]:
    """Calibrate arrays in memory."""
    from postproc_export.calibration import calibrate

    maps, masks = load(folder)
    return lambda: calibrate({"maps": maps, "masks": masks}).to_json()["pixel"]["threshold"]


def postproc_export_shards(folder: Path) -> Callable[[], object]:
    """Calibrate the files."""
    from postproc_export.calibration import calibrate

    return lambda: calibrate(folder).to_json()["pixel"]["threshold"]


def torchmetrics(folder: Path) -> Callable[[], object]:
    """Build the exact curve and take its best F1, as Anomalib does; scores in [0, 1] spare it a sigmoid."""
    import torch
    from torchmetrics.functional.classification import binary_precision_recall_curve

    torch.set_num_threads(1)
    maps, masks = load(folder)
    low, high = maps.min(), maps.max()
    scores, truth = torch.from_numpy((maps - low) / (high - low)).flatten(), torch.from_numpy(masks).flatten()

    def run() -> object:
        precision, recall, thresholds = binary_precision_recall_curve(scores, truth.int(), thresholds=None)
        f1 = 2 * precision * recall / (precision + recall + 1e-10)
        return float(thresholds[torch.argmax(f1)]) * float(high - low) + float(low)

    return run


def sklearn(folder: Path) -> Callable[[], object]:
    """Build the exact curve and take its best F1."""
    from sklearn.metrics import precision_recall_curve

    maps, masks = load(folder)

    def run() -> object:
        precision, recall, thresholds = precision_recall_curve(masks.ravel(), maps.ravel())
        f1 = 2 * precision * recall / (precision + recall + 1e-10)
        return float(thresholds[np.argmax(f1[:-1])])

    return run


def yardstick(values: np.ndarray) -> None:
    """Count all values once, by the upper 16 bits."""
    counts = np.zeros(1 << 16, np.int64)
    for start in range(0, values.size, 1 << 17):
        counts += np.bincount(values[start : start + (1 << 17)].view(np.uint16)[1::2], minlength=1 << 16)


def times_the_yardstick(folder: Path, repeat: int) -> dict[str, float]:
    """Return how often the yardstick's time arrays and a stream take: medians of rounds."""
    from postproc_export.calibration import Calibrator, calibrate

    maps, masks = load(folder)

    def stream() -> None:
        with Calibrator() as calibrator:
            for some, flags in zip(np.array_split(maps, 20), np.array_split(masks, 20), strict=True):
                calibrator.update(anomaly_map=some, gt_mask=flags)
            calibrator.compute()

    calls: dict[str, Callable[[], object]] = {
        "yardstick": lambda: yardstick(maps.ravel()),
        "arrays": lambda: calibrate({"maps": maps, "masks": masks}),
        "stream": stream,
    }
    rounds = [{name: cpu_seconds(call) for name, call in calls.items()} for _ in range(repeat + 1)][1:]
    return {name: statistics.median(each[name] / each["yardstick"] for each in rounds) for name in ("arrays", "stream")}


def few_images() -> dict[str, float]:
    """Return the CPU seconds of 80 images of 256 x 256, one at a time, and of their interval alone."""
    from postproc_export.calibration import Calibrator
    from postproc_export.calibration.resampling import threshold_interval
    from postproc_export.calibration.tally import Tally
    from postproc_export.policies import Policy, Range

    maps, masks = (each.reshape(80, 1, 256, 256) for each in generate("gamma", 80 << 16, 0))
    labels = np.arange(80) % 3 == 0
    scores = maps.max(axis=(1, 2, 3)) + 10 * labels
    tally = Tally()
    tally.count([Block(scores, labels, Place("here", "scores", "labels", (80,)), 0)], nonfinite="error")
    table = tally.table(exact=True)

    def whole() -> None:
        with Calibrator() as calibrator:
            for index in range(80):
                row = slice(index, index + 1)
                calibrator.update(scores[row], labels[row], maps[row], masks[row])
            calibrator.compute()

    def interval() -> object:
        return threshold_interval(table, Policy.parse("f1"), Range.parse("extremes"), resamples=1000)

    return {name: min(cpu_seconds(call) for _ in range(9)) for name, call in (("all", whole), ("interval", interval))}


def cpu_seconds(call: Callable[[], object]) -> float:
    """Return the CPU time of a call in this thread."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


def measure(method: str, folder: Path, repeat: int) -> dict[str, Any]:
    """Run one method in this process: its best seconds, its result and its peak memory."""
    import postproc_export.calibration  # noqa: F401 - imports are not what is measured

    if method in ("torchmetrics", "sklearn"):
        __import__("torchmetrics.functional.classification" if method == "torchmetrics" else "sklearn.metrics")
    before = peak_kib()
    run, seconds, result = globals()[method](folder), [], None
    for _ in range(repeat):
        start = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds), "threshold": result, "peak_mb": round((peak_kib() - before) / 1024, 1)}


def peak_kib() -> int:
    """Return the highest resident set of this program; `ru_maxrss` holds that of the process that started it too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def child(method: str, folder: Path | str, *, repeat: int = 1) -> dict[str, Any]:
    """Measure in a fresh process with one thread."""
    command = [sys.executable, __file__, "--child", method, str(folder), str(repeat)]
    done = subprocess.run(command, env={**os.environ, **ONE_THREAD}, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(case: str, size: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Return seconds, memory and ratios of every method on one distribution."""
    write_shards(folder, case, size)
    found: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    for _ in range(rounds):
        for method in METHODS:
            repeat = 3 if method.startswith("postproc_export") else 1
            found[method].append(child(method, folder, repeat=repeat))
    rows = {method: row(each, size) for method, each in found.items()}
    mine = found["postproc_export"]
    ratios = {
        method: statistics.median(a["seconds"] / b["seconds"] for a, b in zip(found[method], mine, strict=True))
        for method in ("torchmetrics", "sklearn")
    }
    plain = child("yardstick", folder, repeat=rounds)
    return {"values": size, "methods": rows, "times_as_fast_as": ratios, "times_the_yardstick": plain}


def row(runs: list[dict[str, Any]], size: int) -> dict[str, Any]:
    """Return the median seconds, nanoseconds per value and the peak of several runs."""
    seconds = statistics.median(run["seconds"] for run in runs)
    peak = max(run["peak_mb"] for run in runs)
    threshold = runs[0]["threshold"]
    return {"seconds": seconds, "ns_per_value": 1e9 * seconds / size, "peak_mb": peak, "threshold": threshold}


def main() -> None:
    """Measure what the arguments ask for and write results/calibration.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=float, default=2e7)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=float, nargs="*", default=[1e7, 1e8])
    parser.add_argument("--folder", help="where the shards go; 5 bytes per value")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        method, folder, repeat = options.child
        if method == "yardstick":
            found: Any = times_the_yardstick(Path(folder), int(repeat))
        else:
            found = few_images() if method == "few_images" else measure(method, Path(folder), int(repeat))
        print(json.dumps(found))
        return
    from harness import environment, publish

    document: dict[str, Any] = {
        "environment": environment("numpy", "torch", "torchmetrics", "scikit-learn"),
        "cases": {},
    }
    for case in options.cases:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            document["cases"][case] = compare(case, int(options.values), options.rounds, Path(folder))
            print(case, json.dumps(document["cases"][case]), file=sys.stderr, flush=True)
    document["sizes"] = {}
    for size in map(int, options.sizes):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            write_shards(Path(folder), "gamma", size)
            document["sizes"][str(size)] = row([child("postproc_export_shards", Path(folder))], size)
            print(size, json.dumps(document["sizes"][str(size)]), file=sys.stderr, flush=True)
    document["few_images"] = child("few_images", "")
    document["ratios"] = {
        case: {**figures["times_as_fast_as"], "times the yardstick": figures["times_the_yardstick"]}
        for case, figures in document["cases"].items()
    }
    publish("calibration", document)


if __name__ == "__main__":
    main()
