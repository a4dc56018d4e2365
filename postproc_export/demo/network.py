"""The detector as PyTorch modules; built by functions, so that importing this file does not import torch."""

from typing import TYPE_CHECKING

from postproc_export.demo.filters import (
    BLOCK,
    BORDER,
    FLOOR,
    STRIDE,
    WINDOW,
    Float32Array,
    dct_filters,
    direction_sums,
)

if TYPE_CHECKING:
    import torch


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

    Parameters
    ----------
    mean, whitening
        float32, shapes (10,) and (10, 10): the Gaussian of normal texture, as `fit_gaussian` returns it.
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
