"""Feature-distance detectors on backbones of the transformers library, as factories for `postproc-export export`.

The backbones have small random configurations, so that nothing is downloaded: put `from_pretrained` in the place of a
configuration, and your own normal images in the place of the random ones.
"""

from collections.abc import Callable

import torch
import transformers
from torch import Tensor
from torch.nn import functional

Features = Callable[[torch.nn.Module, Tensor], Tensor]


class FeatureDistance(torch.nn.Module):
    """How far the features of a place are from their mean over normal images: a map (N, 1, H, W) and its maximum."""

    def __init__(self, backbone: torch.nn.Module, features: Features, normal: Tensor) -> None:
        super().__init__()
        self.backbone = backbone.eval()
        self.features = features
        with torch.no_grad():
            found = features(self.backbone, normal)
        self.register_buffer("mean", found.mean(dim=(0, 2, 3), keepdim=True))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the raw score and the raw map of images (N, 3, H, W)."""
        distance = torch.linalg.vector_norm(self.features(self.backbone, image) - self.mean, dim=1, keepdim=True)
        anomaly_map = functional.interpolate(distance, size=image.shape[-2:], mode="bilinear", align_corners=False)
        return {"anomaly_map": anomaly_map, "pred_score": anomaly_map.amax(dim=(2, 3))}


def last_map(backbone: torch.nn.Module, image: Tensor) -> Tensor:
    """Return the features of a convolutional backbone: (N, C, h, w)."""
    return backbone(image).last_hidden_state


def patch_tokens(backbone: torch.nn.Module, image: Tensor) -> Tensor:
    """Return the patch tokens of a vision transformer, without the class token, in their places: (N, C, h, w)."""
    tokens = backbone(image).last_hidden_state[:, 1:]
    side = backbone.config.image_size // backbone.config.patch_size
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def resnet() -> FeatureDistance:
    """Build a detector on a ResNet: any batch, height and width."""
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    return _seeded(lambda: transformers.ResNetModel(config), last_map)


def convnext() -> FeatureDistance:
    """Build a detector on a ConvNeXt: any batch, height and width."""
    config = transformers.ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1])
    return _seeded(lambda: transformers.ConvNextModel(config), last_map)


def vit() -> FeatureDistance:
    """Build a detector on a vision transformer: any batch, but images of 64 x 64 pixels only."""
    config = transformers.ViTConfig(
        image_size=64, patch_size=16, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    return _seeded(lambda: transformers.ViTModel(config, add_pooling_layer=False), patch_tokens)


def _seeded(build: Callable[[], torch.nn.Module], features: Features) -> FeatureDistance:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FeatureDistance(build().eval(), features, torch.rand(4, 3, 64, 64)).eval()
