"""Statistics behind shipped tails, and what their eager twins make of a model's raw outputs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from image_files import save

from postproc_export import CalibrationStats, LevelStats
from postproc_export.record import TailSpec, parse_tails
from postproc_export.runtimes import Array
from postproc_export.steps.modules import Chain
from postproc_export.steps.transforms import resolve_all, split

IMAGE = LevelStats(threshold=0.5, min=-1.0, max=2.0)
PIXEL = LevelStats(threshold=0.25, min=-1.0, max=2.0)


def stats_behind(tails: Sequence[str]) -> CalibrationStats:
    """Return statistics as a calibration behind the tails before the threshold records them."""
    before, _ = split(parse_tails(tails))
    specs = [TailSpec(step.name, step.parameters) for step in resolve_all(before)]
    details = {"tail": [spec.to_json() for spec in specs]} if specs else {}
    return CalibrationStats(image=IMAGE, pixel=PIXEL, details=details)


def behind(tails: Sequence[str], raw: dict[str, Array], *, size: tuple[int, int]) -> dict[str, Array]:
    """Return what the eager twins make of raw outputs, for an input of a size."""
    chain = Chain([step.module() for step in resolve_all(parse_tails(tails))])
    chain.set_size(size)
    tensors = {name: torch.from_numpy(values) for name, values in raw.items()}
    made = dict(zip(("pred_score", "anomaly_map"), chain(**tensors), strict=True))
    return {name: values.numpy() for name, values in made.items() if values is not None}


def images(shape: tuple[int, ...], *, seed: int = 0) -> Array:
    """Draw images on which the raw outputs of a detector are exact."""
    return np.random.default_rng(seed).integers(-512, 512, shape).astype(np.float32) / np.float32(256)


def labelled_images(root: Path, *, size: tuple[int, int] = (32, 32)) -> Path:
    """Write six normal and five anomalous images with masks in MVTec AD's layout; the defects are bright spots."""
    random = np.random.default_rng(11)
    for folder, count in {"good": 6, "spot": 5}.items():
        for index in range(count):
            pixels, mask = random.integers(0, 128, (*size, 3), np.uint8), np.zeros(size, np.uint8)
            if folder != "good":
                pixels[8:20, 10:22] += 100
                mask[8:20, 10:22] = 255
                save(root / "ground_truth" / folder / f"{index:03}_mask.png", mask)
            save(root / "validation" / folder / f"{index:03}.png", pixels)
    return root
