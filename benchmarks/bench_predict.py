"""`predict` beside the model and the decoding alone, and the memory that it takes over many images.

    python benchmarks/bench_predict.py

It writes photos of 900 x 900 as PNG with masks, as bench_images.py does, and takes the demo's attached model, at the
size of its statistics. The alternatives take turns: what decodes the photos and runs the model and does nothing else,
and `predict` without pictures, with its table, its regions and its sheet, alone and with the evaluation.

Memory is told by a process of its own for each number of images: small files that are links to one.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bench_images import write_photos
from harness import environment, interleaved, publish, ratio, summary

from postproc_export.images import Sample
from postproc_export.images.samples import load_ahead, load_image
from postproc_export.prediction import Predictor
from postproc_export.prediction.run import predict_folder
from postproc_export.run_options import PredictOptions

BESIDE = "model and decoding"
_PROGRAM = """
import resource, sys
from postproc_export.prediction.run import predict_folder
model, images, output = sys.argv[1:]
result = predict_folder(model, images, output=output, save="none")
print(result.images, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def main() -> None:
    """Measure and write results/predict.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="postproc-export-demo/attached.onnx", help="an attached file")
    parser.add_argument("--count", type=int, default=72, help="photos that are written")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--many", default="2000,20000", help="numbers of images for the memory")
    arguments = parser.parse_args()
    model = str(Path(arguments.model).resolve())
    with tempfile.TemporaryDirectory() as folder:
        photos, out = Path(folder, "photos"), Path(folder, "out")
        write_photos(photos, arguments.count)
        without = [each for name in ("good", "patch") for each in sorted((photos / name).iterdir())]
        calls: dict[str, Callable[[], object]] = {
            BESIDE: lambda: beside(model, without),
            "predict": lambda: predict_folder(model, without, output=out, save="none"),
            "predict, no sheet": lambda: predict_folder(model, without, output=out, save="none", sheet=0),
            f"{BESIDE} and masks": lambda: beside(model, photos),
            "predict and evaluate": lambda: predict_folder(model, photos, output=out, save="none"),
            "predict with overlays": lambda: predict_folder(model, without, output=out),
        }
        seconds = interleaved(calls, rounds=arguments.rounds, warm_up=1)
        peaks = {count: peak(model, Path(folder), int(count)) for count in arguments.many.split(",") if count}
    pairs = [(name, BESIDE) for name in ("predict", "predict, no sheet", "predict with overlays")]
    pairs.append(("predict and evaluate", f"{BESIDE} and masks"))
    publish(
        "predict",
        {
            "images": arguments.count,
            "ratios": {f"{slow} / {fast}": round(ratio(seconds, slow, fast), 3) for slow, fast in pairs}
            | {f"peak memory, MB, {count} images": round(peaks[count]) for count in peaks},
            "figures": summary(seconds),
            "environment": environment("numpy", "onnxruntime", "pillow", "scipy"),
        },
    )


def beside(model: str, images: Path | list[Path]) -> None:
    """Load the model as `predict` does, decode all images in its threads, and run them through the model."""
    predictor = Predictor.open(PredictOptions(model, images))

    def load(sample: Sample) -> np.ndarray:
        return load_image(sample, predictor.preprocessing, with_mask=sample.label is not None).array

    batch = []
    for array in load_ahead(predictor.source, load, workers=None, batch_size=predictor.batch_size):
        batch.append(array)
        if len(batch) == predictor.batch_size:
            predictor.file.run(np.stack(batch), predictor.batch_size)
            batch.clear()
    if batch:
        predictor.file.run(np.stack(batch), predictor.batch_size)


def peak(model: str, folder: Path, count: int) -> float:
    """Return the peak memory of a process that predicts so many images, MB."""
    images = folder / f"many {count}"
    images.mkdir()
    first = next((folder / "photos" / "good").iterdir())
    small = folder / "small.png"
    if not small.exists():
        from PIL import Image

        with Image.open(first) as image:
            image.resize((64, 64)).save(small)
    for index in range(count):
        os.link(small, images / f"{index:07}.png")
    command = [sys.executable, "-c", _PROGRAM, model, str(images), str(folder / f"out {count}")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(run.stdout.split()[1]) / 1024


if __name__ == "__main__":
    main()
