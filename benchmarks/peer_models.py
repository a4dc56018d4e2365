"""The tail's share of real models, batch 1, one thread.

PaDiM and FastFlow are Anomalib's own, exported by it. ResNet and ConvNeXt are backbones of transformers: the map is the
length of their features at each place. The weights are random; what is timed does not depend on them. Anomalib's file
ends in its post-processor; the raw model is what `detach` makes of it, and ours is attached to that. "result" is what
the tail adds to the raw model's time.
"""

import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
from harness import Call
from peer_rows import OURS, Row, Wanted, in_turn, installed, not_installed, rows_of

from postproc_export import CalibrationStats, LevelStats, attach_postprocessing, detach_postprocessing

SIZE = 256
OUTPUTS = ("pred_score", "pred_label", "anomaly_map", "pred_mask")
LEVELS = {
    "image": LevelStats(threshold=20.0, min=5.0, max=40.0),
    "pixel": LevelStats(threshold=15.0, min=0.0, max=40.0),
}


def padim() -> Any:
    """Return PaDiM on images of noise."""
    import torch
    from anomalib.models import Padim

    model = Padim(backbone="resnet18", layers=["layer1", "layer2", "layer3"], pre_trained=False)
    model.model.train()
    with torch.no_grad():
        model.model(torch.rand(12, 3, SIZE, SIZE))
    model.model.fit()
    return model


def fastflow() -> Any:
    """Return FastFlow as it is before training."""
    from anomalib.models import Fastflow

    return Fastflow(backbone="resnet18", pre_trained=False)


def resnet() -> Any:
    """Return a detector on ResNet-18."""
    from transformers import ResNetConfig, ResNetModel

    sizes = [64, 128, 256, 512]
    return detector(ResNetModel(ResNetConfig(layer_type="basic", depths=[2] * 4, hidden_sizes=sizes)))


def convnext() -> Any:
    """Return a detector on ConvNeXt-T."""
    from transformers import ConvNextConfig, ConvNextModel

    return detector(ConvNextModel(ConvNextConfig()))


def detector(backbone: Any) -> Any:
    """Return a backbone with a map of how long its features are, and Anomalib's post-processor behind it."""
    import torch
    from anomalib.data import InferenceBatch
    from anomalib.post_processing import PostProcessor

    class Detector(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.post_processor = backbone, PostProcessor()

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            lengths = self.backbone(image).last_hidden_state.norm(dim=1, keepdim=True)
            maps = torch.nn.functional.interpolate(lengths, size=(SIZE, SIZE), mode="bilinear")
            found = self.post_processor(InferenceBatch(pred_score=maps.amax(dim=(2, 3)), anomaly_map=maps))
            return tuple(getattr(found, name) for name in OUTPUTS)

    return Detector()


MODELS: dict[str, Callable[[], Any]] = {"PaDiM": padim, "FastFlow": fastflow, "ResNet": resnet, "ConvNeXt": convnext}


def write_files(name: str, folder: Path) -> dict[str, Path]:
    """Export a model with Anomalib's post-processing, and make the raw one and ours of it."""
    import torch

    model = MODELS[name]()
    for level, stats in LEVELS.items():
        values = {f"_{level}_threshold": stats.threshold, f"{level}_min": stats.min, f"{level}_max": stats.max}
        for buffer, value in values.items():
            getattr(model.post_processor, buffer).copy_(torch.tensor(value))
    if hasattr(model, "to_onnx"):
        exported = Path(model.eval().to_onnx(export_root=folder, input_size=(SIZE, SIZE)))
    else:
        exported, example = folder / "model.onnx", torch.zeros(1, 3, SIZE, SIZE)
        names: dict[str, Any] = {"input_names": ["input"], "output_names": list(OUTPUTS)}
        torch.onnx.export(model.eval(), (example,), exported, **names, external_data=False, verbose=False)
    files = {"Anomalib 2.7": exported}
    for who in ("raw", OURS):
        files[who] = exported.with_name(f"{who}.onnx")
    detach_postprocessing(exported, output=files["raw"])
    attach_postprocessing(files["raw"], CalibrationStats(**LEVELS), output=files[OURS])
    return files


def onnxruntime_call(path: Path, image: np.ndarray) -> Call:
    """Return a run of one thread in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"input": image})


def openvino_call(path: Path, image: np.ndarray) -> Call:
    """Return a run of one thread in OpenVINO, at float32, with the shapes that the file has."""
    properties = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    request = openvino.Core().compile_model(path, "CPU", properties).create_infer_request()
    request.set_input_tensor(openvino.Tensor(image, shared_memory=True))
    return request.infer


RUNTIMES = {"ONNX Runtime": onnxruntime_call, "OpenVINO": openvino_call}


def rows(wanted: Wanted) -> Iterator[Row]:
    """Measure every model in both runtimes."""
    if not installed("anomalib"):
        yield not_installed("models", "all", "Anomalib 2.7", "anomalib")
        return
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    image = np.random.default_rng(0).random((1, 3, SIZE, SIZE), dtype=np.float32)
    for name in filter(wanted, MODELS):
        with tempfile.TemporaryDirectory() as folder:
            files = write_files(name, Path(folder))
            for runtime, call in RUNTIMES.items():
                calls = {
                    who: call(path, image) for who, path in sorted(files.items(), key=lambda item: item[0] != OURS)
                }
                seconds = in_turn(calls, seconds=30, most=401)
                yield from rows_of("models", f"{name} {SIZE}², {runtime}", seconds, added(seconds))


def added(seconds: dict[str, list[float]]) -> dict[str, str]:
    """Return what each tail adds to the raw model, the median over the rounds."""
    found = {}
    for who, values in seconds.items():
        share = statistics.median(a / b for a, b in zip(values, seconds["raw"], strict=True)) - 1
        found[who] = "" if who == "raw" else f"{100 * share:+.1f} % over the raw model"
    return found
