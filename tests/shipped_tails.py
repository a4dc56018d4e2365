"""Statistics behind shipped tails, and what their eager twins make of a model's raw outputs."""

from collections.abc import Sequence

import numpy as np
import torch

from postproc_export import CalibrationStats, LevelStats
from postproc_export.runtimes.protocol import Array
from postproc_export.transforms.modules import Chain
from postproc_export.transforms.plan import resolve_all, split
from postproc_export.transforms.spec import TailSpec, parse_tails

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
