"""Image files for the tests, written as they are needed."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

PIXELS = np.random.default_rng(3).integers(0, 256, (4, 6, 3), np.uint8)


def save(path: Path, pixels: npt.NDArray[Any] | None = None, **options: Any) -> Path:
    """Write an image file, by default the 4x6 color image, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS if pixels is None else pixels).save(path, **options)
    return path


def mvtec(root: Path, *, masks: bool = True) -> Path:
    """Write a test set of two normal images and two kinds of defects in MVTec AD's layout."""
    for name in ("good/000.png", "good/001.png", "crack/000.png", "hole/000.png"):
        save(root / "test" / name)
    if masks:
        for defect in ("crack", "hole"):
            save(root / "ground_truth" / defect / "000_mask.png", np.eye(4, 6, dtype=np.uint8) * 255)
    return root


def png_rgb16() -> bytes:
    """Return a 1x1 PNG of 16 bits per channel, which Pillow cannot write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + struct.pack(">HHH", 258, 514, 770))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
