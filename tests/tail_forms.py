"""The forms that a tail may have besides four outputs, and files with them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import hosts
import onnx

from postproc_export import CalibrationStats, LevelStats
from postproc_export.runtimes.openvino import import_openvino, openvino_core

IMAGE: Final = LevelStats(threshold=0.5, min=0.0, max=2.0)
PIXEL: Final = LevelStats(threshold=0.25, min=-1.0, max=1.0)
STATS: Final = CalibrationStats(image=IMAGE, pixel=PIXEL)
FORMS: Final[dict[str, dict[str, Any]]] = {
    "packed": {"layout": "packed"},
    "raw-scores": {"enable_normalization": False},
    "raw-scores-unguarded": {"enable_normalization": False, "nan_guard": False},
    "no-labels": {"enable_thresholding": False},
    "image-level": {"levels": "image"},
    "pixel-level": {"levels": "pixel"},
}
DETECTORS: Final[dict[str, Callable[[], onnx.ModelProto]]] = {
    "score-and-map": hosts.score_and_map,
    "flat": lambda: hosts.score_and_map(flat=True),
    "map-only": hosts.map_only,
    "float16": lambda: hosts.score_and_map(dtype="float16"),
    "other-names": lambda: hosts.score_and_map(names=("score", "heat")),
}


attached = partial(hosts.attached, stats=STATS)


def stripped(path: Path) -> Path:
    """Write a file without the record of its tail beside it."""
    target = path.with_name(f"stripped{path.suffix}")
    if path.suffix == ".onnx":
        model = onnx.load(path)
        del model.metadata_props[:]
        return hosts.write(model, target)
    model = openvino_core(purpose="the tests").read_model(path)
    del model.get_rt_info()["postproc_export"]
    import_openvino(purpose="the tests").save_model(model, target, compress_to_fp16=False)
    return target


def converted(path: Path) -> Path:
    """Convert an ONNX file to an IR beside it."""
    target = path.with_name("converted.xml")
    return hosts.to_ir(onnx.load(path), target)
