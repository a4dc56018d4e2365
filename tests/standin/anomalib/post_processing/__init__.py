"""The post-processor: six buffers, options that a checkpoint keeps by name, and hooks of a Lightning callback."""

from typing import Any

import torch

from anomalib.data import InferenceBatch

NUMBERS = ("_image_threshold", "_pixel_threshold", "image_min", "image_max", "pixel_min", "pixel_max")


class PostProcessor(torch.nn.Module):
    """Buffers and options; what they decide is left to the class that is tested."""

    def __init__(
        self,
        enable_normalization: bool = True,
        enable_thresholding: bool = True,
        enable_threshold_matching: bool = True,
        image_sensitivity: float = 0.5,
        pixel_sensitivity: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.enable_normalization, self.enable_thresholding = enable_normalization, enable_thresholding
        self.enable_threshold_matching = enable_threshold_matching
        self.image_sensitivity, self.pixel_sensitivity = image_sensitivity, pixel_sensitivity
        self._image_threshold_metric = torch.nn.Identity()
        for name in NUMBERS:
            self.register_buffer(name, torch.tensor(float("nan")))

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        switches = ("enable_normalization", "enable_thresholding", "enable_threshold_matching")
        return (*switches, "image_sensitivity", "pixel_sensitivity")

    def checkpoint_config(self) -> dict[str, Any]:
        """Return what a checkpoint keeps besides the buffers."""
        return {key: getattr(self, key, None) for key in self._checkpoint_config_keys}

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Take it back, by known names."""
        for key in self._checkpoint_config_keys:
            if key in config:
                setattr(self, key, config[key])

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any, **kwargs: Any) -> None:
        """Count a batch."""

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Compute the statistics."""

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any, **kwargs: Any) -> None:
        """Post-process a batch."""
        self.post_process_batch(outputs)

    def on_predict_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any, **kwargs: Any) -> None:
        """Post-process a batch."""
        self.post_process_batch(outputs)

    def post_process_batch(self, batch: Any) -> None:
        """Post-process a batch in place."""

    def forward(self, predictions: InferenceBatch) -> InferenceBatch:
        """Normalise and decide, as the real one does where both levels are calibrated; else nothing is changed."""
        numbers = {name: getattr(self, name) for name in NUMBERS}
        if any(number.isnan() for number in numbers.values()):
            return predictions
        made = {}
        for level, score, label in (("image", "pred_score", "pred_label"), ("pixel", "anomaly_map", "pred_mask")):
            low, high = numbers[f"{level}_min"], numbers[f"{level}_max"]
            values = (getattr(predictions, score) - numbers[f"_{level}_threshold"]) / (high - low) + 0.5
            made[score] = values.clamp(0, 1)
            made[label] = made[score] > 1.0 - getattr(self, f"{level}_sensitivity")
        return InferenceBatch(**made)
