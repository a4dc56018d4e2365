"""Attached detectors, and labelled photos of which a test knows what they decide."""

from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
from anomalib_files import FOLDER
from image_files import save
from onnx import ModelProto

from postproc_export import CalibrationStats, LevelStats
from postproc_export.images import Preprocessing

SIDE = 16
FED = Preprocessing(size=(SIDE, SIDE), scale=255.0, dtype="float32")
LEVEL = LevelStats(threshold=0.25, min=-0.25, max=0.75)


def stats(*, fed: Preprocessing | None = FED, image: bool = True, pixel: bool = True) -> CalibrationStats:
    """Return statistics by which a detector calls a grey pixel anomalous from 146 of 255 on."""
    details = {} if fed is None else {"preprocessing": fed.to_json()}
    return CalibrationStats(image=LEVEL if image else None, pixel=LEVEL if pixel else None, details=details)


def detector(folder: Path, model: ModelProto | None = None, *, ir: bool = False, **options: Any) -> Path:
    """Attach to a detector, by default with a score and a map of any size, and return the file."""
    given = {"stats": stats(), **options}
    return hosts.attached(hosts.score_and_map() if model is None else model, folder, ir=ir, **given)[1]


def photo(path: Path, *spots: tuple[int, int, int, int], size: tuple[int, int] = (SIDE, SIDE), **options: Any) -> Path:
    """Write a dark photo with bright spots, each x, y, width and height in its own pixels."""
    pixels = np.full((*size, 3), 20, np.uint8)
    for x, y, width, height in spots:
        pixels[y : y + height, x : x + width] = 240
    return save(path, pixels, **options)


def labelled(root: Path) -> Path:
    """Write four photos in MVTec AD's layout: two normal ones, of which one looks bright, and two with a defect."""
    photo(root / "good" / "000.png")
    photo(root / "good" / "001.png", (0, 0, 2, 2))
    photo(root / "spot" / "000.png", (3, 5, 4, 2))
    photo(root / "spot" / "001.png")
    for name in ("000", "001"):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[5:7, 3:7] = 255
        save(root / "ground_truth" / "spot" / f"{name}_mask.png", mask)
    return root


STRIP = (1, 19)  # the size of the maps of Anomalib's exports in the tests


def anomalib_export(path: Path, case: str = "270_default_legacy") -> Path:
    """Write a detector for images of the size `STRIP` with Anomalib's own post-processing behind it, as it exports."""
    names = ("body_score", "body_map")
    body = hosts.score_and_map(names=names, dynamic=False, batch="b", size=STRIP, opset=14, ir_version=7)
    behind = onnx.load(FOLDER / f"{case}.onnx")
    onnx.save(onnx.compose.merge_models(body, behind, io_map=[*zip(names, ("score", "amap"), strict=True)]), path)
    return path
