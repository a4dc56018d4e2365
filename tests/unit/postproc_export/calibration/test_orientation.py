"""Values that hardly tell the classes apart: warned of alike wherever they come from, at 0.6 and at 0.5."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from postproc_export.calibration import CalibrationWarning, Calibrator, calibrate

Arrays = dict[str, Any]


def of_area(wrong: int) -> Arrays:
    """Return maps with ten pixels of each class, in which `wrong` of the 100 pairs are in the wrong order."""
    below_all, above = divmod(wrong, 10)
    anomalous = [*[-1.0] * below_all, 9.5 - above, *[99.0] * (9 - below_all)]
    values = np.concatenate([np.arange(10), anomalous]).astype(np.float32)
    return {"anomaly_map": values.reshape(2, 2, 5), "gt_mask": np.repeat([0, 1], 10).reshape(2, 2, 5)}


def in_memory(arrays: Arrays, folder: Path) -> None:
    """From arrays."""
    calibrate(arrays)


def in_a_file(arrays: Arrays, folder: Path) -> None:
    """From a file."""
    np.savez(folder / "val.npz", **arrays)
    calibrate(folder / "val.npz")


def in_batches(arrays: Arrays, folder: Path) -> None:
    """Batch by batch."""
    calibrator = Calibrator()
    calibrator.update(**arrays)
    calibrator.compute()


def in_one_pass(arrays: Arrays, folder: Path) -> None:
    """By one pass, of which the areas are intervals."""
    calibrator = Calibrator(exact=False)
    calibrator.update(**arrays)
    calibrator.compute()


def on_dask(arrays: Arrays, folder: Path) -> None:
    """From arrays of Dask."""
    dask = pytest.importorskip("dask.array")
    calibrate({key: dask.from_array(array) for key, array in arrays.items()})


def told(run: Callable[[Arrays, Path], None], arrays: Arrays, folder: Path) -> list[str]:
    """Return what is warned of the pixel level."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CalibrationWarning)
        run(arrays, folder)
    return [str(each.message) for each in caught if str(each.message).startswith("pixel level")]


@pytest.mark.parametrize("run", [in_memory, in_a_file, in_batches, in_one_pass, on_dask])
@pytest.mark.parametrize(("wrong", "is_low", "is_reversed"), [(40, False, False), (41, True, False), (51, True, True)])
def test_the_area_decides(
    run: Callable[[Arrays, Path], None], wrong: int, is_low: bool, is_reversed: bool, tmp_path: Path
) -> None:
    """Below 0.6, not at it, the causes are listed; below 0.5 the sign and inverted masks are named as well."""
    found = [line for line in told(run, of_area(wrong), tmp_path) if "AUROC" in line]
    assert len(found) == is_low
    assert ["inverted masks" in line for line in found] == [is_reversed] * is_low


def test_a_shown_area_is_below_the_limit(tmp_path: Path) -> None:
    """An AUROC just below 0.6 is not shown as 0.6000."""
    scores = np.concatenate([np.zeros(1000), np.ones(1000)]).astype(np.float32)
    scores[:401] = 2.0
    scores[400], scores[1999] = 0.5, 0.4
    with pytest.warns(CalibrationWarning, match=r"AUROC of 0\.599"):
        calibrate({"pred_score": scores, "gt_label": np.repeat([0, 1], 1000)})


def test_a_threshold_below_all_normal_values_is_noted_though_the_area_is_good() -> None:
    """A recall that takes all of them: the threshold calls every normal image anomalous; a lower one is silent."""
    arrays = {"pred_score": np.float32([1, 2, 3, 0.5, 4, 5, 6, 7]), "gt_label": [0, 0, 0, 1, 1, 1, 1, 1]}
    with pytest.warns(CalibrationWarning, match="image level: the threshold calls every one of 3 normal images"):
        calibrate(arrays, image_policy="recall=1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrate(arrays, image_policy="recall=0.8")
