"""Peak memory of a calibration above its imports, in MB: of hard data of a kind, type and policy, or of a folder."""

import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from postproc_export.calibration import COMPARED, Calibrator, calibrate
from postproc_export.calibration.table import float_values

LOWEST, HIGHEST = 0x0200_0000, 0xFD00_0000  # ordered keys, almost all of float32
BATCH = 500_000


def megabytes(name: str) -> float:
    """Return a figure of this process."""
    with open("/proc/self/status", encoding="ascii") as lines:  # noqa: PTH123 - no more imports than needed
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def batch(kind: str, first: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return some of `size` distinct values, in a scattered order, with their ground truth."""
    rank = (np.arange(first, min(first + BATCH, size), dtype=np.int64) * 7_368_787 + 12_345) % size  # from the top
    top = size // 4
    truth = (rank < top) | ((rank - top) % 3 == 0) if kind == "constant-f1" else rank % 2 == 1
    return float_values((HIGHEST - rank * ((HIGHEST - LOWEST) // size)).astype(np.uint32)), truth


def hard(kind: str, dtype: str, policy: str) -> float:
    """Calibrate both levels on values that a histogram cannot prune."""
    before, size = megabytes("VmRSS"), 6_000_000
    with Calibrator(image_policy=policy, pixel_policy=policy, compare=COMPARED) as calibrator:
        for first in range(0, size, BATCH):
            values, truth = batch(kind, first, size)
            values = values.astype(dtype)
            calibrator.update(values, truth, values[:, None, None], truth[:, None, None])
        calibrator.compute()
    return megabytes("VmHWM") - before


@contextmanager
def watched() -> Iterator[list[float]]:
    """Yield a list whose one number rises to the most that the process held itself, mapped files apart."""
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], megabytes("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def large(folder: Path) -> float:
    """Calibrate on the shards of a folder, and on its arrays mapped as one batch where they are `.npy` files."""
    before = megabytes("RssAnon")
    with watched() as peak, Calibrator() as calibrator:
        stats = calibrate(folder)
        if (folder / "maps.npy").exists():
            maps, masks = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("maps", "masks"))
            calibrator.update(anomaly_map=maps, gt_mask=masks)
            assert stats.pixel == calibrator.compute().pixel
    return peak[0] - before


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(hard(*sys.argv[1:]) if len(sys.argv) > 2 else large(Path(sys.argv[1])))
