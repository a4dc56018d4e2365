"""The two batches: of a model in a graph, and of Lightning's steps."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch


class InferenceBatch(NamedTuple):
    """What a model gives, raw or post-processed."""

    pred_score: torch.Tensor | None = None
    pred_label: torch.Tensor | None = None
    anomaly_map: torch.Tensor | None = None
    pred_mask: torch.Tensor | None = None


@dataclass
class ImageBatch:
    """Images with ground truth and predictions."""

    image: torch.Tensor
    gt_label: torch.Tensor | None = None
    gt_mask: torch.Tensor | None = None
    pred_score: torch.Tensor | None = None
    pred_label: torch.Tensor | None = None
    anomaly_map: torch.Tensor | None = None
    pred_mask: torch.Tensor | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("anomaly_map", "pred_mask") and value is not None and value.ndim == 4:
            value = value.squeeze(1)
        super().__setattr__(name, value)

    def update(self, in_place: bool = True, **changes: Any) -> "ImageBatch":
        """Set fields."""
        for name, value in changes.items():
            setattr(self, name, value)
        return self
