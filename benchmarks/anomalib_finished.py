"""Detach and update Anomalib's own finished exports of a model and compare with its raw export and with eager.

Usage: python benchmarks/anomalib_finished.py FOLDER FINISHED=RAW [FINISHED=RAW ...]

FOLDER holds the exports (.onnx or .xml), `eager.npz` (images `x`) and `stats.json` as `anomalib_exports.py` says. Per
pair, at float32:

- detach: the raw outputs against those of the raw export, on the same images;
- update to sensitivities 0.3 (image) and 0.7 (pixel): labels and masks against `PostProcessor` with these on the raw
  values tapped in the updated file.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib_exports import LABELS, outputs, statistics

from postproc_export import PostProcessor, detach_postprocessing, update_postprocessing
from postproc_export.check.attached import TAPS
from postproc_export.check.attached_files import load_attached

SENSITIVITY = {"image_sensitivity": 0.3, "pixel_sensitivity": 0.7}


def detached(folder: Path, finished: str, raw: str, images: Any) -> dict[str, object]:
    """Compare the detached file with the raw export."""
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary) / finished
        detach_postprocessing(folder / finished, output=target)
        found, expected = outputs(target, images), outputs(folder / raw, images)
    difference = {}
    for name in LABELS.values():
        values = expected[name].reshape(found[name].shape)
        moved = found[name] - values
        difference[name] = {
            "values that differ": int((found[name].view(np.int32) != values.view(np.int32)).sum()),
            "of": values.size,
            "largest difference": float(np.abs(moved).max()),
            "spread of the difference": float(moved.max() - moved.min()),
        }
    return {"detach": difference}


def updated(folder: Path, finished: str, images: Any) -> dict[str, object]:
    """Compare the decisions of the updated file with eager at the same sensitivities."""
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary) / finished
        update_postprocessing(folder / finished, output=target, **SENSITIVITY)
        model = load_attached(target)
        together = outputs(model.tapped(Path(temporary)), images)
        raw = {"pred_score": together[TAPS["image"]], "anomaly_map": together[TAPS["pixel"]]}
        stats = statistics(folder)
        for origin, used in (("the file's", model.record.stats), ("Anomalib's", stats)):
            reference = PostProcessor(used, **SENSITIVITY)(**{name: torch.from_numpy(raw[name]) for name in raw})
            for label in LABELS:
                flipped = together[label].astype(bool) != getattr(reference, label).numpy()
                found[f"{label} flipped, {origin} statistics"] = f"{int(flipped.sum())} of {flipped.size}"
    return {"update": found}


def main() -> None:
    """Compare every pair and print what was found."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    images = np.load(folder / "eager.npz")["x"]
    for pair in sys.argv[2:]:
        finished, _, raw = pair.partition("=")
        print(
            finished, json.dumps(detached(folder, finished, raw, images) | updated(folder, finished, images), indent=2)
        )


if __name__ == "__main__":
    main()
