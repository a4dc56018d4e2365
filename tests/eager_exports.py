"""Our eager module behind a detector, exported as its users export it: by torch's two exporters, or by OpenVINO."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import openvino
import torch

from postproc_export import CalibrationStats, PostProcessor
from postproc_export.stats import LevelStats

IMAGE: Final = LevelStats(threshold=0.7, min=0.1, max=2.3)
PIXEL: Final = LevelStats(threshold=0.25, min=-1.0, max=1.5)
STATS: Final = CalibrationStats(image=IMAGE, pixel=PIXEL)
Raw = tuple[torch.Tensor | None, torch.Tensor | None]


@dataclass(frozen=True, eq=False)
class Case:
    """A detector's raw outputs, the statistics, and the module's options."""

    raw: Callable[[torch.Tensor], Raw] = lambda maps: (maps.abs().amax(dim=(-2, -1)), maps)
    stats: CalibrationStats = STATS
    options: dict[str, Any] = field(default_factory=dict)

    def module(self) -> PostProcessor:
        """Return the module."""
        return PostProcessor(self.stats, **self.options)


CASES: Final[dict[str, Case]] = {
    "default": Case(),
    "sensitivities": Case(options={"image_sensitivity": 0.3, "pixel_sensitivity": 0.85}),
    "extremes": Case(options={"image_sensitivity": 0.0, "pixel_sensitivity": 1.0}),
    "gt": Case(options={"comparison": "gt", "image_sensitivity": 0.3}),
    "no_labels": Case(options={"enable_thresholding": False}),
    "no_scores": Case(options={"enable_normalization": False}),
    "guard_alone": Case(options={"enable_normalization": False, "enable_thresholding": False}),
    "no_guard": Case(options={"nan_guard": False}),
    "matched": Case(
        stats=CalibrationStats(image=IMAGE, pixel=LevelStats(threshold=None, min=-1.0, max=1.5)),
        options={"enable_threshold_matching": True},
    ),
    "image_alone": Case(stats=CalibrationStats(image=IMAGE)),
    "pixel_alone": Case(stats=CalibrationStats(pixel=PIXEL)),
    "map_alone": Case(raw=lambda maps: (None, maps)),
    "score_alone": Case(raw=lambda maps: (maps.amax(dim=(-2, -1)), None)),
    "flat": Case(raw=lambda maps: (maps.amax(dim=(1, 2, 3)), maps[:, 0])),
    "half": Case(raw=lambda maps: (maps.amax(dim=(-2, -1)).half(), maps.half())),
    "own_affine": Case(raw=lambda maps: (maps.amax(dim=(-2, -1)) * 3 - 1, maps * 2 + 0.5)),
    "round_numbers": Case(
        stats=CalibrationStats(
            image=LevelStats(threshold=0.0, min=-1.0, max=1.0), pixel=LevelStats(threshold=0.5, min=0.0, max=1.0)
        )
    ),
    "far_from_zero": Case(
        stats=CalibrationStats(
            image=LevelStats(threshold=500.25, min=500.0, max=501.0),
            pixel=LevelStats(threshold=-3.0, min=-4.0, max=2.0),
        )
    ),
}


class Model(torch.nn.Module):
    """A convolution, what a case makes of it, and the eager module behind."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 1, 3, padding=1)
        with torch.no_grad():
            self.convolution.weight.copy_(torch.linspace(-0.25, 0.75, 27).reshape(1, 3, 3, 3))
            self.convolution.bias.fill_(-0.5)
        self.case = case
        self.post_processor = case.module()
        self.eval()

    def raw(self, images: torch.Tensor) -> Raw:
        """Return the detector's raw outputs, as the module is given them."""
        return self.case.raw(self.convolution(images))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what the module returns, without what is None."""
        return tuple(item for item in self.post_processor(*self.raw(images)) if item is not None)

    def outputs(self) -> list[str]:
        """Return the names of what it returns."""
        with torch.no_grad():
            results = self.post_processor(*self.raw(IMAGES))
        return [name for name, item in results._asdict().items() if item is not None]


IMAGES: Final = torch.linspace(-1.0, 1.0, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


def _torchscript(model: Model, path: Path, *, opset: int = 17, **options: Any) -> None:
    axes = {name: {0: "batch"} for name in ("input", *model.outputs())}
    _export(model, path, dynamo=False, opset_version=opset, dynamic_axes=axes, **options)


def _dynamo(model: Model, path: Path, *, opset: int = 18, **options: Any) -> None:
    shapes = {"images": {0: torch.export.Dim("batch")}}
    _export(model, path, dynamo=True, opset_version=opset, dynamic_shapes=shapes, external_data=False, **options)


def _static(model: Model, path: Path) -> None:
    _export(model, path, dynamo=True, opset_version=18, external_data=False)


_EXPORTED: Final[dict[tuple[Case, str], bytes]] = {}  # an export takes a second, and several tests read the same


def _export(model: Model, path: Path, **options: Any) -> None:
    key = (model.case, repr(options))
    if key not in _EXPORTED:
        torch.onnx.export(model, (IMAGES,), path, input_names=["input"], output_names=model.outputs(), **options)
        _EXPORTED[key] = path.read_bytes()
    path.write_bytes(_EXPORTED[key])


def _converted(export: Callable[[Model, Path], None]) -> Callable[[Model, Path], None]:
    def convert(model: Model, path: Path) -> None:
        export(model, path.with_suffix(".onnx"))
        openvino.save_model(openvino.convert_model(path.with_suffix(".onnx")), path, compress_to_fp16=False)

    return convert


def _module(model: Model, path: Path) -> None:
    openvino.save_model(openvino.convert_model(model, example_input=IMAGES), path, compress_to_fp16=False)


def _program(model: Model, path: Path) -> None:
    program = torch.export.export(model, (IMAGES,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})
    openvino.save_model(openvino.convert_model(program), path, compress_to_fp16=False)


FORMS: Final[dict[str, Callable[[Model, Path], None]]] = {
    "torchscript.onnx": _torchscript,
    "dynamo.onnx": _dynamo,
    "torchscript.xml": _converted(_torchscript),
    "dynamo.xml": _converted(_dynamo),
    "module.xml": _module,
}
OTHER_FORMS: Final[dict[str, Callable[[Model, Path], None]]] = {
    "opset_11.onnx": lambda model, path: _torchscript(model, path, opset=11),
    "unfolded.onnx": lambda model, path: _torchscript(model, path, do_constant_folding=False),
    "opset_23.onnx": lambda model, path: _dynamo(model, path, opset=23),
    "unoptimised.onnx": lambda model, path: _dynamo(model, path, optimize=False),
    "static.onnx": _static,
    "program.xml": _program,
}


def write(case: Case, form: str, folder: Path) -> tuple[Model, Path]:
    """Export a case in one form; return the model in memory and the file."""
    model, path = Model(case), folder / form
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own
        {**FORMS, **OTHER_FORMS}[form](model, path)
    return model, path
