"""The demo's model: how far the texture around a pixel is from the texture of normal crops.

    input [N,3,H,W] -> grey -> 4x4 DCT every 2 pixels -> squared, the directions of a frequency pair added
    -> local averages -> logarithms: 10 features -> Mahalanobis distance to one Gaussian
    -> upsampled map [N,1,H,W] -> its maximum [N,1]

Nothing is learned but mean and covariance of the features, so the fit takes a second and is the same every time.
It is a small honest detector, not a good one.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from postproc_export.demo.defects import Gray
from postproc_export.demo.filters import Float32Array
from postproc_export.demo.network import texture_detector, texture_features
from postproc_export.quiet import quiet_exporter

if TYPE_CHECKING:
    import torch

DYNAMIC_AXES: Final = {0: "batch", 2: "height", 3: "width"}
# Keeps the covariance invertible however few crops it is fitted to.
RIDGE: Final = 1e-3


def as_input(images: Iterable[Gray]) -> Float32Array:
    """Stack grey images into the model's input: float32, shape (N, 3, H, W), range [0, 1]."""
    grey = np.stack(list(images)).astype(np.float32) / np.float32(255.0)
    return np.repeat(grey[:, None], 3, axis=1)


def fit_gaussian(features: npt.NDArray[np.float64]) -> tuple[Float32Array, Float32Array]:
    """Fit a Gaussian to feature vectors of shape (n, d), n > 1.

    Returns
    -------
    mean
        float32, shape (d,).
    whitening
        float32, shape (d, d): the Mahalanobis distance of f is the Euclidean length of ``whitening @ (f - mean)``.
    """
    mean = features.mean(axis=0)
    covariance = np.cov(features, rowvar=False)
    ridge = RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    whitening = np.linalg.inv(np.linalg.cholesky(covariance + ridge))
    return mean.astype(np.float32), whitening.astype(np.float32)


def fit_detector(normal: Float32Array) -> "torch.nn.Module":
    """Fit the detector to normal images.

    Parameters
    ----------
    normal
        float32, shape (N, 3, H, W), range [0, 1].

    Returns
    -------
    torch.nn.Module
        In evaluation mode; from float32 (N, 3, H, W) in [0, 1] to a score (N, 1) and a map (N, 1, H, W), both in raw
        units, zero and above.
    """
    import torch

    with torch.no_grad():
        features = texture_features()(torch.from_numpy(normal)).permute(0, 2, 3, 1).flatten(0, 2)
    return texture_detector(*fit_gaussian(features.double().numpy()))


def export_onnx(detector: "torch.nn.Module", path: Path, *, size: int) -> None:
    """Write the detector as one ONNX file: `input` to `pred_score` and `anomaly_map`, with N, H and W dynamic.

    Parameters
    ----------
    size
        Height and width of the image that the exporter traces with, in pixels.
    """
    import torch

    example = torch.linspace(0.0, 1.0, 2 * 3 * size * size).reshape(2, 3, size, size)
    with quiet_exporter():
        torch.onnx.export(
            detector,
            (example,),
            path,
            dynamo=True,
            input_names=["input"],
            output_names=["pred_score", "anomaly_map"],
            dynamic_shapes=({axis: torch.export.Dim(name) for axis, name in DYNAMIC_AXES.items()},),
            external_data=False,
            verbose=False,
        )
