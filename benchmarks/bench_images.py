"""Running a raw model over image files beside running it over images decoded before, by the number of decoding threads.

    python benchmarks/bench_images.py

Without arguments it takes the demo's raw model and writes images of its own, photos of 900 x 900 as PNG with masks,
which are read from disk as `calibrate --images` does. Two questions:

- On the CPU, model and decoding share the cores, and each of them alone keeps all of them busy. The sum of the two is
  what can be had at best: a ratio of 1 to it says that no core waits for anything.
- On a device of its own, the model costs the CPU nothing. A wait stands in for it, for each batch 1.5 times as long as
  decoding a batch takes all cores: a ratio of 1 to the waits alone says that the device never waits for an image.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from harness import environment, interleaved, publish, ratio, summary
from PIL import Image

from postproc_export.calibration import Calibrator
from postproc_export.calibration.model import ModelSource
from postproc_export.images import Batch, Preprocessing
from postproc_export.images.samples import load_batches
from postproc_export.raw_model import run_batch

CORES = os.cpu_count() or 1
WORKERS = (1, CORES, 2 * CORES)
PHOTO = 900
Step = Callable[[Batch], object]


def main() -> None:
    """Measure and write results/images.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="postproc-export-demo/raw.onnx", help="a raw export")
    parser.add_argument("--images", help="a folder as `calibrate --images` takes it; default: written for the run")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--count", type=int, default=96, help="images that are written")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.images is None:
            write_photos(Path(folder), arguments.count)
        size = (arguments.image_size, arguments.image_size)
        images = arguments.images or folder
        source = ModelSource.open(arguments.model, images, preprocessing=Preprocessing(size=size))
        seconds = measure(source, rounds=arguments.rounds)
    publish(
        "images",
        {
            "images": len(source.samples),
            "batch_size": source.batch_size,
            "ratios": ratios(seconds),
            "figures": summary(seconds),
            "environment": environment("numpy", "onnxruntime", "pillow"),
        },
    )


def measure(source: ModelSource, *, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of model, decoding, and both together."""
    batches = list(load(source, workers=CORES))
    on_device = partial(wait, 1.5 * seconds_per_batch(source, batches=len(batches)))
    calls: dict[str, Callable[[], object]] = {
        "model alone": lambda: each(batches, model(source)),
        "device alone": lambda: each(batches, on_device),
        "calibrate": lambda: calibrated(source),
    }
    for workers in WORKERS:
        calls[f"decoding alone, {workers} thread(s)"] = partial(exhaust, source, workers, nothing)
        calls[f"model and decoding, {workers} thread(s)"] = partial(exhaust, source, workers, model(source))
        calls[f"device and decoding, {workers} thread(s)"] = partial(exhaust, source, workers, on_device)
    return interleaved(calls, rounds=rounds, warm_up=1)


def ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Return each combination's time by the best that can be had."""
    decoding = f"decoding alone, {CORES} thread(s)"
    both = f"(model alone + {decoding})"
    sums = {**seconds, both: [a + b for a, b in zip(seconds["model alone"], seconds[decoding], strict=True)]}
    rows = {f"calibrate / {both}": ratio(sums, "calibrate", both)}
    rows[f"decoding alone, 1 thread(s) / {decoding}"] = ratio(seconds, "decoding alone, 1 thread(s)", decoding)
    for workers in WORKERS:
        threads = f"{workers} thread(s)"
        rows[f"model and decoding, {threads} / {both}"] = ratio(sums, f"model and decoding, {threads}", both)
        on_device = f"device and decoding, {threads}"
        rows[f"{on_device} / device alone"] = ratio(seconds, on_device, "device alone")
    return {name: round(value, 2) for name, value in rows.items()}


def write_photos(folder: Path, count: int) -> None:
    """Write photos of texture with the noise of a camera, every second one with a drawn defect and its mask."""
    from postproc_export.demo.data import load_photos

    rng, photos = np.random.default_rng(0), list(load_photos().values())
    normal, anomalous, masks = (folder / name for name in ("good", "patch", "ground_truth/patch"))
    for each_folder in (normal, anomalous, masks):
        each_folder.mkdir(parents=True)
    mask = np.zeros((PHOTO, PHOTO), np.uint8)
    mask[300:400, 300:500] = 255
    for index in range(count):
        left, top = rng.integers(0, 112, 2).tolist()
        piece = Image.fromarray(photos[index % len(photos)]).crop((left, top, left + 400, top + 400))
        gray = np.asarray(piece.resize((PHOTO, PHOTO), Image.Resampling.BICUBIC), dtype=np.float32)
        noise = rng.normal(0, 2, (PHOTO, PHOTO, 3)).astype(np.float32)
        photo = (gray[..., None] * np.array([1, 0.95, 0.9], np.float32) + noise).clip(0, 255).astype(np.uint8)
        if index % 2:
            photo[mask > 0] = 30
            Image.fromarray(mask).save(masks / f"{index:03d}_mask.png")
        Image.fromarray(photo).save((anomalous if index % 2 else normal) / f"{index:03d}.png")


def load(source: ModelSource, *, workers: int) -> Iterable[Batch]:
    """Yield all batches as `calibrate` gets them."""
    return load_batches(
        source.samples, source.preprocessing, batch_size=source.batch_size, masks=source.wants_pixels, workers=workers
    )


def exhaust(source: ModelSource, workers: int, step: Step) -> None:
    """Decode all images and take the step with each batch, as `calibrate` does."""
    each(load(source, workers=workers), step)


def each(batches: Iterable[Batch], step: Step) -> None:
    """Take the step with each batch."""
    for batch in batches:
        step(batch)


def model(source: ModelSource) -> Step:
    """Return the step that runs the model."""
    return lambda batch: run_batch(source.runner, source.selection, batch.images, batch_size=source.batch_size)


def nothing(batch: Batch) -> None:
    """Leave the batch alone."""


def wait(seconds: float, batch: Batch) -> None:
    """Stand in for a device of its own."""
    time.sleep(seconds)


def seconds_per_batch(source: ModelSource, *, batches: int) -> float:
    """Return the least time of several in which all cores decode all images, by the number of batches."""

    def timed() -> float:
        start = time.perf_counter()
        exhaust(source, CORES, nothing)
        return time.perf_counter() - start

    return min(timed() for _ in range(4)) / batches


def calibrated(source: ModelSource) -> Any:
    """Do all that the command does, the statistics included."""
    with Calibrator() as calibrator:
        return source.calibrate(calibrator)


if __name__ == "__main__":
    main()
