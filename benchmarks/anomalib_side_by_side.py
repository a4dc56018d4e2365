"""Decide six models of Anomalib by its own post-processor and by ours, in its engine and in exported files.

Usage: python benchmarks/anomalib_side_by_side.py      in the environment of benchmarks/peers.txt

Each model, with a random backbone, is fitted once on crops of a photo, as in tests/scripts/anomalib_cases.py. Then
each post-processor is validated and tested on it, and the model is exported with each: with Anomalib's, with ours, and
with ours by Anomalib's rule (`gt`). The files run in ONNX Runtime on the test images.

It prints the table of docs/anomalib.md.
"""

import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from anomalib.data.utils import read_image
from anomalib.models import Fastflow, ReverseDistillation
from anomalib.post_processing import PostProcessor as AnomalibPostProcessor

from postproc_export.integrations.anomalib import PostProcessor

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "scripts")]

from anomalib_cases import SIZE, build, crops, engine, images  # noqa: E402
from anomalib_exports import outputs  # noqa: E402

MODELS: dict[str, Callable[[Any], Any]] = {
    "Padim": lambda made: build("padim", made),
    "PatchCore": lambda made: build("patchcore", made),
    "Stfpm": lambda made: build("stfpm", made),
    "Dfkde": lambda made: build("dfkde", made),
    "Fastflow": lambda made: Fastflow(
        backbone="resnet18",
        flow_steps=2,
        post_processor=made,
        visualizer=False,
        pre_processor=Fastflow.configure_pre_processor(SIZE),
    ),
    "ReverseDistillation": lambda made: ReverseDistillation(
        backbone="resnet18",
        post_processor=made,
        visualizer=False,
        pre_processor=ReverseDistillation.configure_pre_processor(SIZE),
    ),
}
LABELS = ("pred_label", "pred_mask")


def compared(name: str, folder: Path, data: Any) -> dict[str, Any]:
    """Return what both post-processors make of one model."""
    ways = {"theirs": AnomalibPostProcessor(), "ours": PostProcessor(), "ours, gt": PostProcessor(comparison="gt")}
    model = MODELS[name](ways["theirs"])
    engine(folder / "fit", max_epochs=2).fit(model, datamodule=data)
    loaders = {"validation": data.val_dataloader(), "test": data.test_dataloader()}
    paths = [path for loader in loaders.values() for batch in loader for path in batch.image_path]
    filled = paths + paths[: -len(paths) % 8]  # a graph may run at one batch size
    pixels = np.stack([read_image(path, as_tensor=True).numpy() for path in filled])
    found: dict[str, Any] = {"model": name}
    files: dict[str, dict[str, Any]] = {}
    for way, made in ways.items():
        model.post_processor = made
        runner = engine(folder / way)
        runner.validate(model, datamodule=data, verbose=False)
        found[way] = {level: float(getattr(made, f"_{level}_threshold")) for level in ("image", "pixel")}
        for part, loader in loaders.items():
            tested = runner.test(model, dataloaders=loader, verbose=False)[0]
            found[way] |= {f"{part} f1": tested["image_F1Score"], f"{part} pixel f1": tested.get("pixel_F1Score")}
        path = model.to_onnx(folder, way.replace(", ", "_"), input_size=SIZE)
        files[way] = {label: values[: len(paths)] for label, values in outputs(path, pixels).items()}
    found["off"] = {
        way: {
            label: int((files[way][label].reshape(-1) != files["theirs"][label].reshape(-1)).sum())
            for label in LABELS
            if label in files["theirs"] and label in files[way]
        }
        for way in ("ours", "ours, gt")
    }
    return found


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the rows of docs/anomalib.md."""
    titles = ("model", "F1, validation", "F1, test", "pixel F1, test", "image threshold", "pixel threshold")
    titles += ("off, of 82 images", "off with `gt`")
    keys = ("validation f1", "test f1", "test pixel f1", "image", "pixel")
    lines = [f"| {' | '.join(titles)} |", "|" + " --- |" * len(titles)]
    for row in rows:
        cells = [
            " / ".join("-" if value is None or np.isnan(value) else f"{value:.4g}" for value in pair)
            for pair in ((row["theirs"][key], row["ours"][key]) for key in keys)
        ]
        cells += [", ".join(str(row["off"][way].get(label, "-")) for label in LABELS) for way in ("ours", "ours, gt")]
        lines.append(f"| {row['model']} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Compare all models, and print the table."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    create = timm.create_model
    timm.create_model = lambda *args, **options: create(*args, **{**options, "pretrained": False})
    torch.manual_seed(0)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        crops(folder / "crops")
        for name in MODELS:
            rows.append(compared(name, folder / name, images(folder / "crops")))
            print(table(rows[-1:])[-1], flush=True)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
