"""Samples for a validation loop: an image that is its own raw map, with mask and label."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from postproc_export.calibration import Calibrator


def sample(index: int) -> dict[str, torch.Tensor]:
    """Return a map of shape [1, 6, 5], its mask and its label; no two samples are alike."""
    rng = np.random.default_rng(index)
    mask = rng.random((6, 5)) < 0.1 * (index % 3)
    image = torch.from_numpy((rng.normal(index, 1, (1, 6, 5)) + 3 * mask).astype(np.float32))
    return {"image": image, "gt_mask": torch.from_numpy(mask), "gt_label": torch.tensor(bool(mask.any()))}


def statistics_of(indices: Iterable[int], *, factor: int = 1, maps_only: bool = False) -> dict[str, Any]:
    """Return the statistics of some samples, each seen once, from maps times a factor; in one process."""
    with Calibrator(resamples=20) as calibrator:
        for index in indices:
            one = sample(index)
            maps = one["image"] * factor
            image = {} if maps_only else {"pred_score": maps.max(), "gt_label": one["gt_label"]}
            calibrator.update(**image, anomaly_map=maps, gt_mask=one["gt_mask"])
        return calibrator.compute().to_json()
