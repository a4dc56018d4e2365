"""The base of the models, with a model in it: the map is how bright an image is, the score its maximum."""

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from anomalib.data import InferenceBatch
from anomalib.deploy import CompressionType
from anomalib.post_processing import PostProcessor

CONFIG = "anomalib_post_processor_config"


class Brightness(torch.nn.Module):
    """Means over the channels."""

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        """Return scores [N] and maps [N, 1, H, W] of images [N, 3, H, W]."""
        maps = images.mean(dim=1, keepdim=True)
        return InferenceBatch(pred_score=maps.amax(dim=(1, 2, 3)), anomaly_map=maps)


class AnomalibModule(torch.nn.Module):
    """A model and its post-processor: exported, saved and loaded together."""

    input_size = (8, 8)

    def __init__(
        self, pre_processor: Any = True, post_processor: Any = True, evaluator: Any = True, visualizer: Any = True
    ) -> None:
        super().__init__()
        self.model, self.pre_processor = Brightness(), None if pre_processor is True else pre_processor
        self.post_processor = self.configure_post_processor() if post_processor is True else post_processor or None

    def configure_post_processor(self) -> PostProcessor | None:
        """Return the default post-processor."""
        return PostProcessor()

    def forward(self, batch: torch.Tensor, *args: Any, **kwargs: Any) -> InferenceBatch:
        """Return what is exported."""
        made = self.model(batch)
        return self.post_processor(made) if self.post_processor else made

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the options of the post-processor."""
        checkpoint[CONFIG] = self.post_processor.checkpoint_config()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them back."""
        self.post_processor.load_checkpoint_config(checkpoint[CONFIG])

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool = True,
        **kwargs: Any,
    ) -> "AnomalibModule":
        """Make a model and load it, in the order of Lightning."""
        checkpoint = torch.load(checkpoint_path, weights_only=weights_only)
        model = cls(**kwargs)
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
        return model

    def to_onnx(
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> Path:
        """Export all of it, by the exporter that takes no second."""
        path = Path(export_root) / "weights" / "onnx" / f"{model_file_name}.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = torch.zeros(2, 3, *(input_size or (8, 8)))
        given = {name: value for name, value in self.eval()(probe)._asdict().items() if value is not None}
        open_axes = {0: "batch_size"} if input_size else {0: "batch_size", 2: "height", 3: "width"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                Given(self, tuple(given)),
                (probe,),
                str(path),
                dynamo=False,
                input_names=["input"],
                output_names=[*given],
                dynamic_axes={"input": open_axes, **{name: {0: "batch_size"} for name in given}},
            )
        return path

    def to_openvino(
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        compression_type: Any = None,
        datamodule: Any = None,
        metric: Any = None,
        task: Any = None,
        max_drop: float = 0.01,
        ov_kwargs: dict[str, Any] | None = None,
        onnx_kwargs: dict[str, Any] | None = None,
    ) -> Path:
        """Export to ONNX, and convert that."""
        import openvino

        path = Path(export_root) / "weights" / "openvino" / f"{model_file_name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            model = openvino.convert_model(self.to_onnx(folder, model_file_name, input_size, **(onnx_kwargs or {})))
            if compression_type == CompressionType.INT8_ACQ:
                model = self._controlled(model, datamodule, metric, max_drop)
            openvino.save_model(model, path, compress_to_fp16=compression_type == CompressionType.FP16)
        return path

    @staticmethod
    def _controlled(model: Any, datamodule: Any, metric: Any, max_drop: float) -> Any:
        """Quantise while the metric is told what the model gives, of each batch."""
        import nncf

        def judge(candidate: Any, batches: Any) -> None:
            for batch in batches:
                metric(candidate(batch))

        return nncf.quantize_with_accuracy_control(model, datamodule, datamodule, judge, max_drop=max_drop)


class Given(torch.nn.Module):
    """A model whose outputs that are there are a tuple."""

    def __init__(self, model: AnomalibModule, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return them in order."""
        return tuple(getattr(self.model(images), name) for name in self.names)
