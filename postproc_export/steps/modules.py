"""The eager twins of the shipped transforms, and the base class for your own: plain torch, raw values to raw values."""

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from graph_patterns.transforms import gaussian_radius, gaussian_weights
from postproc_export.stats import Level

Raw = tuple[Tensor | None, Tensor | None]


class TailTransform(torch.nn.Module):
    """Base class of a transform: raw score and map in, raw score and map out, before the threshold.

    Notes
    -----
    `forward` gets the raw outputs in their own element types (float32 for those that are shipped), None for a level
    that the model does not have. It returns ``(pred_score, anomaly_map)`` of the forms that docs/definition.md section
    1 allows, None where there is none, and has to be plain torch that `torch.onnx.export` can export.
    """

    def forward(self, pred_score: Tensor | None = None, anomaly_map: Tensor | None = None) -> Raw:
        """Return the transformed score and map."""
        raise NotImplementedError


class GaussianSmoothing(TailTransform):
    """Smooth the map: kernel of 2 int(4 sigma + 0.5) + 1 taps, mirrored at the edges; the score stays.

    Source: anomalib 2.x GaussianBlur2d with its default kernel size, whose two-dimensional kernel is the product of
    these two; for maps smaller than the kernel, which that refuses, the mirror is repeated.
    """

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.radius = gaussian_radius(sigma)
        self.register_buffer("weights", torch.tensor(gaussian_weights(sigma)), persistent=False)

    def forward(self, pred_score: Tensor | None = None, anomaly_map: Tensor | None = None) -> Raw:
        """Return the score as it is, and the map smoothed."""
        if anomaly_map is None:
            return pred_score, None
        planes = anomaly_map.flatten(0, -3).unsqueeze(1)
        for axis in (2, 3):
            planes = planes.index_select(axis, _mirrored(planes.shape[axis], self.radius))
        weights = self.get_buffer("weights")
        planes = functional.conv2d(planes, weights.reshape(1, 1, -1, 1))
        return pred_score, functional.conv2d(planes, weights.reshape(1, 1, 1, -1)).reshape(anomaly_map.shape)


class TopKMean(TailTransform):
    """The score as the mean of the `k` highest values of the map, of all where it has fewer; the map stays."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, pred_score: Tensor | None = None, anomaly_map: Tensor | None = None) -> Raw:
        """Return the mean in the shape of the score, [N] where there is none, and the map as it is."""
        assert anomaly_map is not None, "refused where there is no map"
        flat = anomaly_map.flatten(1)
        score = flat.topk(min(self.k, flat.shape[1]), dim=1).values.mean(dim=1)
        return score if pred_score is None else score.reshape(pred_score.shape), anomaly_map


class Resized(TailTransform):
    """The map resized bilinearly to `size`, (height, width) in pixels; the score stays.

    A map that holds a NaN becomes NaN as a whole: made smaller, it may have it in a pixel that no new one is made of.
    """

    def __init__(self, size: tuple[int, int] | None) -> None:
        super().__init__()
        self.size = size
        self.follows_input = size is None

    def forward(self, pred_score: Tensor | None = None, anomaly_map: Tensor | None = None) -> Raw:
        """Return the score as it is, and the map resized."""
        assert anomaly_map is not None and self.size is not None, "refused where there is no map or no size"  # noqa: PT018
        planes = anomaly_map.flatten(0, -3).unsqueeze(1)
        unknown = planes.isnan().flatten(1).any(dim=1).reshape(-1, 1, 1, 1)
        planes = functional.interpolate(planes, self.size, mode="bilinear", align_corners=False)
        planes = planes.masked_fill(unknown, float("nan"))
        return pred_score, planes.reshape(*anomaly_map.shape[:-2], *self.size)


class AboveThresholds(TailTransform):
    """The map minus a threshold per pixel, region or channel; of several channels the highest; the score stays."""

    def __init__(self, thresholds: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
        super().__init__()
        self.register_buffer("thresholds", torch.from_numpy(np.array(thresholds)), persistent=False)

    def forward(self, pred_score: Tensor | None = None, anomaly_map: Tensor | None = None) -> Raw:
        """Return the score as it is, and by how much the map exceeds the thresholds."""
        assert anomaly_map is not None, "refused where there is no map"
        distance = anomaly_map - self.get_buffer("thresholds")
        return pred_score, distance.amax(dim=1, keepdim=True) if anomaly_map.ndim == 4 else distance


class Negated(TailTransform):
    """Score and map times -1, or that of one level alone, in their own element types."""

    def __init__(self, levels: Collection[Level]) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, pred_score: Tensor | None = None, anomaly_map: Tensor | None = None) -> Raw:
        """Return score and map, negated or as they are."""
        return (
            pred_score if pred_score is None or "image" not in self.levels else -pred_score,
            anomaly_map if anomaly_map is None or "pixel" not in self.levels else -anomaly_map,
        )


class OneChannel(TailTransform):
    """One of the values of each image, or one channel of the map along an axis, which goes; the other level stays.

    An `index` of None is the only one there is.
    """

    def __init__(self, index: int | None, *, level: Level, axis: int = 1) -> None:
        super().__init__()
        self.index, self.level, self.axis = index, level, axis

    def forward(self, pred_score: Tensor | None = None, anomaly_map: Tensor | None = None) -> Raw:
        """Return a score [N] of one [N, C], or a map [N, H, W] of one [N, C, H, W] or [N, H, W, C]."""
        if self.level == "image":
            return pred_score if pred_score is None else self._one(pred_score.flatten(1), 1), anomaly_map
        return pred_score, anomaly_map if anomaly_map is None else self._one(anomaly_map, self.axis)

    def _one(self, values: Tensor, axis: int) -> Tensor:
        if self.index is not None:
            return values.select(axis, self.index)
        (only,) = values.unbind(axis)
        return only


class Chain(TailTransform):
    """Several transforms, one behind the other."""

    def __init__(self, steps: Sequence[torch.nn.Module]) -> None:
        super().__init__()
        self.steps = torch.nn.ModuleList(steps)

    def forward(self, pred_score: Tensor | None = None, anomaly_map: Tensor | None = None) -> Raw:
        """Return what the last one gives."""
        for step in self.steps:
            pred_score, anomaly_map = step(pred_score, anomaly_map)
        return pred_score, anomaly_map

    def set_size(self, size: tuple[int, int]) -> None:
        """Set the size that maps are resized to, for every step that takes it from the model's input."""
        for step in self.steps:
            if isinstance(step, Resized) and step.follows_input:
                step.size = size


def _mirrored(length: int, radius: int) -> Tensor:
    places = torch.arange(-radius, length + radius).abs()
    period = torch.full_like(places, 2 * (length - 1)).clamp(min=1)  # tensors: a length need not be known in an export
    places = torch.remainder(places, period)
    return (length - 1) - (places - (length - 1)).abs()
