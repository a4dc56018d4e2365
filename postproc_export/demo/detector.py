"""The demo's model: how far the texture around a pixel is from the texture of normal crops.

    input [N,3,H,W] -> grey -> 4x4 DCT every 2 pixels -> squared, the directions of a frequency pair added
    -> local averages -> logarithms: 10 features -> Mahalanobis distance to one Gaussian
    -> upsampled map [N,1,H,W] -> its maximum [N,1]

Nothing is learned but mean and covariance of the features, so the fit takes a second and is the same every time.
It is a small honest detector, not a good one.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from postproc_export.demo.data import GOOD, Crop, Gray

if TYPE_CHECKING:
    import torch


Float32Array: TypeAlias = npt.NDArray[np.float32]
Outputs: TypeAlias = Mapping[str, npt.NDArray[Any]]

BLOCK: Final = 4
STRIDE: Final = 2
WINDOW: Final = 5
# Feature pixels on each side that two windows in a row cannot reach.
BORDER: Final = 2 * (WINDOW // 2)
# Energies far below this one (a step of one grey level has 1.5e-5) count as smooth; chosen on the validation crops.
FLOOR: Final = 2e-4


def dct_filters(size: int = BLOCK) -> Float32Array:
    """Return the orthonormal 2-D DCT-II of a block: float32, shape (size * size, 1, size, size), the mean first."""
    index = np.arange(size)
    basis = np.cos(np.pi * (index[None, :] + 0.5) * index[:, None] / size) * np.sqrt(2.0 / size)
    basis[0] /= np.sqrt(2.0)
    blocks = basis[:, None, :, None] * basis[None, :, None, :]
    return np.asarray(blocks.reshape(size * size, 1, size, size), dtype=np.float32)


def direction_sums(size: int = BLOCK) -> Float32Array:
    """Return the 0/1 matrix, (pairs, size * size, 1, 1), that adds energies of (i, j) and (j, i) without the mean."""
    pairs = [(i, j) for i in range(size) for j in range(i, size)][1:]
    rows = [[float((min(i, j), max(i, j)) == pair) for i in range(size) for j in range(size)] for pair in pairs]
    return np.asarray(rows, dtype=np.float32)[..., None, None]


# The detector as PyTorch modules; built by functions, so that importing this file does not import torch.


def texture_features() -> "torch.nn.Module":
    """Return the module from images (N, 3, H, W) in [0, 1] to features (N, 10, H / 2 - 8, W / 2 - 8), all float32."""
    import torch
    from torch.nn import functional

    class TextureFeatures(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("filters", torch.from_numpy(dct_filters()))
            self.register_buffer("sums", torch.from_numpy(direction_sums()))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            grey = image.mean(dim=1, keepdim=True)
            # A block reaches one pixel beyond the two pixels it stands for, on each side.
            padded = functional.pad(grey, ((BLOCK - STRIDE) // 2,) * 4, mode="reflect")
            waves = functional.conv2d(padded, self.get_buffer("filters"), stride=STRIDE)
            level = waves[:, :1] / BLOCK
            energies = functional.conv2d(waves.square(), self.get_buffer("sums"))
            # Twice a square window weights the neighbours like a tent.
            for _ in range(2):
                level, energies = (functional.avg_pool2d(each, WINDOW, stride=1) for each in (level, energies))
            return torch.cat([level, torch.log(energies + FLOOR)], dim=1)

    return TextureFeatures().eval()


def texture_detector(mean: Float32Array, whitening: Float32Array) -> "torch.nn.Module":
    """Return the module from images (N, 3, H, W) in [0, 1] to a score (N, 1) and a map (N, 1, H, W), all float32.

    The Gaussian of normal texture is what `fit_gaussian` returns: shapes (10,) and (10, 10).
    """
    import torch
    from torch.nn import functional

    class TextureDetector(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = texture_features()
            self.register_buffer("mean", torch.from_numpy(mean)[:, None, None])
            self.register_buffer("whitening", torch.from_numpy(whitening)[..., None, None])

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            centred = self.features(image) - self.get_buffer("mean")
            whitened = functional.conv2d(centred, self.get_buffer("whitening"))
            distance = torch.linalg.vector_norm(whitened, dim=1, keepdim=True)
            # A window that reached over the border would average less, and the highest distances would all be there.
            whole = functional.pad(distance, (BORDER,) * 4, mode="replicate")
            anomaly_map = functional.interpolate(whole, size=image.shape[-2:], mode="bilinear", align_corners=False)
            return anomaly_map.amax(dim=(2, 3)), anomaly_map

    return TextureDetector().eval()


# Keeps the covariance invertible however few crops it is fitted to.
RIDGE: Final = 1e-3


def as_input(images: Iterable[Gray]) -> Float32Array:
    """Stack grey images into the model's input: float32, shape (N, 3, H, W), range [0, 1]."""
    grey = np.stack(list(images)).astype(np.float32) / np.float32(255.0)
    return np.repeat(grey[:, None], 3, axis=1)


def fit_gaussian(features: npt.NDArray[np.float64]) -> tuple[Float32Array, Float32Array]:
    """Fit a Gaussian to feature vectors of shape (n, d), n > 1; return mean (d,) and whitening (d, d).

    The Mahalanobis distance of f is the Euclidean length of ``whitening @ (f - mean)``.
    """
    mean = features.mean(axis=0)
    covariance = np.cov(features, rowvar=False)
    ridge = RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    whitening = np.linalg.inv(np.linalg.cholesky(covariance + ridge))
    return mean.astype(np.float32), whitening.astype(np.float32)


def fit_detector(normal: Float32Array) -> "torch.nn.Module":
    """Fit the detector to normal images, (N, 3, H, W) in [0, 1].

    It is in evaluation mode. Its score (N, 1) and map (N, 1, H, W) are in raw units, zero and above.
    """
    import torch

    with torch.no_grad():
        features = texture_features()(torch.from_numpy(normal)).permute(0, 2, 3, 1).flatten(0, 2)
    return texture_detector(*fit_gaussian(features.double().numpy()))


def evaluate(crops: Sequence[Crop], raw: Outputs, attached: Outputs) -> tuple[str, str]:
    """Say how well the raw values separate the classes, and what the calibrated decisions make of it.

    `raw` and `attached` are what the two models gave for all crops in one batch.
    """
    anomalous = np.array([crop.kind != GOOD for crop in crops])
    labels = attached["pred_label"].reshape(-1)
    of_images = auroc(raw["pred_score"].reshape(-1), anomalous)
    of_pixels = auroc(raw["anomaly_map"][:, 0], np.stack([crop.mask for crop in crops]))
    return (
        f"AUROC {of_images:.3f} of images, {of_pixels:.3f} of pixels",
        f"{(labels & anomalous).sum()} of {anomalous.sum()} anomalous crops, "
        f"and calls {(labels & ~anomalous).sum()} of {(~anomalous).sum()} good ones anomalous",
    )


def auroc(scores: npt.NDArray[Any], anomalous: npt.NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve, 0.5 by chance: how often an anomalous value is higher than a normal one.

    All pairs are counted, ties as one half, in integers, with one division at the end.
    """
    normal = np.sort(scores[~anomalous], axis=None)
    values = scores[anomalous]
    lower = int(np.searchsorted(normal, values, side="left").sum(dtype=np.int64))
    not_higher = int(np.searchsorted(normal, values, side="right").sum(dtype=np.int64))
    return (lower + not_higher) / (2 * values.size * normal.size)
