"""Evaluating what a file decides beside the model that decides it, and the memory of it over more and more images.

    python benchmarks/bench_evaluation.py

The maps are those of the demo's attached model at 256 x 256, each scaled a little, so that nearly all values differ: no
set of images is harder. Every second image has a defect of two regions. What is timed is all that the evaluation does,
the areas at the end included. Up to 128 such maps are exact; of more, values are merged.

Memory is told by a process of its own for each number of images.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from harness import environment, interleaved, publish, ratio, summary

from postproc_export.evaluation import Evaluation, EvaluationResult
from postproc_export.prediction.attached import AttachedFile, Outputs
from postproc_export.run_options import PredictOptions

SIZE, BATCH = 256, 8
_PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); import bench_evaluation; bench_evaluation.told(*sys.argv[2:])"


def main() -> None:
    """Measure and write results/evaluation.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="postproc-export-demo/attached.onnx", help="the demo's attached file")
    parser.add_argument("--counts", default="72,128,600", help="numbers of images that are timed")
    parser.add_argument("--many", default="600,2400", help="numbers of images for the memory")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    counts, many = ([int(count) for count in each.split(",") if count] for each in (arguments.counts, arguments.many))
    file, images = opened(arguments.model)
    outputs = file.run(images, BATCH)
    calls: dict[str, Callable[[], object]] = {}
    for count in counts:
        calls[f"model, {count} images"] = partial(model, file, images, count)
        calls[f"evaluation, {count} images"] = partial(evaluated, outputs, count)
    seconds = interleaved(calls, rounds=arguments.rounds, warm_up=0)
    pairs = [(f"evaluation, {count} images", f"model, {count} images") for count in counts]
    rows = {f"{slow} / model": round(ratio(seconds, slow, fast), 3) for slow, fast in pairs}
    told_of = {count: in_a_process(arguments.model, count) for count in many}
    publish(
        "evaluation",
        {
            "map": [SIZE, SIZE],
            "ratios": rows
            | {f"{name}, {count} images": value for count in many for name, value in told_of[count].items()},
            "figures": summary(seconds),
            "environment": environment("numpy", "onnxruntime", "scipy"),
        },
    )


def opened(model: str) -> tuple[AttachedFile, np.ndarray]:
    """Return the file with its raw values, and images for it."""
    file = AttachedFile(PredictOptions(model, "."))
    return file, np.random.default_rng(0).random((BATCH, 3, SIZE, SIZE)).astype(np.float32)


def model(file: AttachedFile, images: np.ndarray, count: int) -> None:
    """Run the model on so many images."""
    for _ in range(0, count, BATCH):
        file.run(images, BATCH)


def evaluated(outputs: Outputs, count: int) -> EvaluationResult:
    """Evaluate so many images."""
    defect, none = np.zeros((SIZE, SIZE), np.bool_), np.zeros((SIZE, SIZE), np.bool_)
    defect[40:90, 60:120] = defect[150:160, 200:230] = True
    assert outputs.raw_maps is not None
    assert outputs.masks is not None
    evaluation = Evaluation()
    for number in range(count):
        is_anomalous, index = bool(number % 2), number % BATCH
        raw_map = outputs.raw_maps[index] * np.float32(1 + number * 1e-4)
        evaluation.add(
            group="defect" if is_anomalous else "good",
            label=is_anomalous,
            truth=defect if is_anomalous else none,
            raw_score=float(raw_map.max()),
            raw_map=raw_map,
            decided=True,
            decided_mask=outputs.masks[index],
            seconds=outputs.seconds,
        )
    return evaluation.result()


def told(model: str, count: str) -> None:
    """Evaluate so many images and print the peak memory in MB, and how far AUROC and AUPRO may be off."""
    import resource

    file, images = opened(model)
    pixel = evaluated(file.run(images, BATCH), int(count)).levels["pixel"]
    assert pixel is not None
    halves = [
        (area["high"] - area["low"]) / 2 for name in ("auroc", "aupro") if (area := pixel.areas[name]) is not None
    ]
    print(round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024), *(f"{half:.1e}" for half in halves))


def in_a_process(model: str, count: int) -> dict[str, float]:
    """Return what `told` prints in a process of its own."""
    command = [sys.executable, "-c", _PROGRAM, str(Path(__file__).parent), model, str(count)]
    words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    names = ("peak memory, MB", "AUROC within", "AUPRO within")
    return dict(zip(names, map(float, words), strict=True))


if __name__ == "__main__":
    main()
