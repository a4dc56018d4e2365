"""Attach to Anomalib's own raw exports of a model and compare with what its PyTorch model gave.

Usage: python benchmarks/anomalib_exports.py FOLDER RAW [RAW ...]

FOLDER holds the exports RAW (.onnx or .xml, without post-processing), `eager.npz` (images `x`, PyTorch's raw outputs
`raw__*` and post-processed ones `post__*`) and `stats.json` (`buffers`: thresholds, min and max). Per export:

- ge: labels and masks against `PostProcessor` on the raw values of the same run;
- gt: all four outputs against Anomalib's own, labels and masks where the raw values agree bit for bit.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from postproc_export import CalibrationStats, LevelStats, PostProcessor, attach_postprocessing
from postproc_export.runtimes import open_runner
from postproc_export.stats import Comparison

LABELS = {"pred_label": "pred_score", "pred_mask": "anomaly_map"}


def statistics(folder: Path) -> CalibrationStats:
    """Return the statistics of Anomalib's post-processor."""
    buffers = json.loads((folder / "stats.json").read_text())["buffers"]
    levels = {
        level: LevelStats(
            threshold=buffers[f"_{level}_threshold"], min=buffers[f"{level}_min"], max=buffers[f"{level}_max"]
        )
        for level in ("image", "pixel")
        if np.isfinite(buffers[f"{level}_max"])
    }
    return CalibrationStats(image=levels.get("image"), pixel=levels.get("pixel"))


def outputs(path: Any, images: Any) -> dict[str, Any]:
    """Run a file in its own runtime at float32, in batches of the size that it declares; outputs by all their names."""
    runner = open_runner(path)
    (port,) = runner.inputs
    size = port.size(0) or len(images)
    runs = [runner.run({port.name: images[start : start + size]}) for start in range(0, len(images), size)]
    whole = {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}
    return {name: whole[port.name] for port in runner.outputs for name in (port.name, *port.aliases)}


def compared(folder: Path, raw: str, comparison: Comparison) -> dict[str, object]:
    """Attach, run and compare one export under one rule."""
    eager = dict(np.load(folder / "eager.npz"))
    stats = statistics(folder)
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary) / raw
        attach_postprocessing(folder / raw, stats, output=target, comparison=comparison, keep_raw=True)
        result = outputs(target, eager["x"])
        runner = open_runner(target)
        axes = {port.name: port.describe().split(": ")[1] for port in runner.outputs[:4]}
    tapped = {name: result.get(f"{name}_raw") for name in LABELS.values()}
    found: dict[str, object] = {"rule": comparison, "outputs": axes}
    reference = PostProcessor(stats, comparison=comparison)(
        **{name: None if value is None else torch.from_numpy(value) for name, value in tapped.items()}
    )
    for label, source in LABELS.items():
        if label not in result:
            continue
        expected = getattr(reference, label).numpy()
        found[f"{label}: flipped against PostProcessor"] = int((result[label].astype(bool) != expected).sum())
        if comparison == "gt":
            same = tapped[source] == eager[f"raw__{source}"].reshape(tapped[source].shape)
            theirs = eager[f"post__{label}"].reshape(expected.shape)
            found[f"{label}: flipped against Anomalib"] = int((result[label].astype(bool) != theirs).sum())
            found[f"{label}: flipped where the raw value agrees"] = int(
                ((result[label].astype(bool) != theirs) & same).sum()
            )
            off = np.abs(result[source] - eager[f"post__{source}"].reshape(expected.shape)).max()
            found[f"{source}: largest error against Anomalib"] = float(f"{off:.2g}")
    return found


def main() -> None:
    """Compare every export under both rules and print what was found."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    for raw in sys.argv[2:]:
        for comparison in ("ge", "gt"):
            print(raw, json.dumps(compared(folder, raw, comparison), indent=2))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
