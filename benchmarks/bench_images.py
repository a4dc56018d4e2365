"""Calibrating on image files beside the model alone: how much of the time decoding adds, by the number of threads.

    python benchmarks/bench_images.py MODEL IMAGES --image-size 256

MODEL is a raw export that runs on one thread, IMAGES a folder as `calibrate --images` takes it, both read from disk as
the command does; for the model alone the images are decoded before.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from harness import environment, interleaved, publish, ratio, summary

from postproc_export.calibration import Calibrator
from postproc_export.calibration.model_batches import run_batch
from postproc_export.calibration.model_source import ModelSource
from postproc_export.images import Preprocessing
from postproc_export.images.loading import load_batches

WORKERS = (1, 2, 4)


def model_alone(source: ModelSource) -> Callable[[], object]:
    """Return a call that runs the model over all images, decoded before."""
    batches = [batch.images for batch in decoded(source, workers=2)]
    return lambda: [
        run_batch(source.runner, source.selection, images, batch_size=source.batch_size) for images in batches
    ]


def decoded(source: ModelSource, *, workers: int) -> list[Any]:
    """Return all batches."""
    return list(
        load_batches(
            source.samples,
            source.preprocessing,
            batch_size=source.batch_size,
            masks=source.wants_pixels,
            workers=workers,
        )
    )


def calibrated(source: ModelSource) -> object:
    """Do what the command does."""
    with Calibrator() as calibrator:
        return source.calibrate(calibrator)


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("images")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    preprocessing = Preprocessing(size=(arguments.image_size, arguments.image_size))

    def opened(workers: int) -> ModelSource:
        return ModelSource.open(
            arguments.model, arguments.images, preprocessing=preprocessing, threads=1, workers=workers
        )

    source = opened(1)
    calls: dict[str, Callable[[], object]] = {
        "model alone": model_alone(source),
        "decoding, one thread": lambda: decoded(source, workers=1),
    }
    for workers in WORKERS:
        calls[f"calibrate, {workers} decoding thread(s)"] = partial(calibrated, opened(workers))
    seconds = interleaved(calls, rounds=arguments.rounds, warm_up=1)
    ratios = {
        f"{name} / model alone": round(ratio(seconds, name, "model alone"), 2)
        for name in calls
        if name != "model alone"
    }
    publish(
        "images",
        {
            "images": len(source.samples),
            "ratios": ratios,
            "figures": summary(seconds),
            "environment": environment("numpy", "onnxruntime", "pillow"),
        },
    )


if __name__ == "__main__":
    main()
