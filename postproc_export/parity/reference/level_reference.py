"""The eager reference of one level alone, for values by the billion; and Anomalib's rule written out."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from postproc_export.parity.models.attached_model import AttachedModel
from postproc_export.parity.reference.post_processor import eager_module
from postproc_export.stats import CalibrationStats, Level


class LevelReference:
    """Scores and labels of flat raw values.

    Parameters
    ----------
    attached
        The attached file; statistics and options come from its record.
    level
        The level; the other one is left out.
    """

    def __init__(self, attached: AttachedModel, level: Level) -> None:
        stats = attached.tail.stats.level(level)
        assert stats is not None, f"the {level} level is post-processed, so it is calibrated"
        self._stats = stats
        self._level = level
        self._options = attached.tail.options
        alone = CalibrationStats(image=stats) if level == "image" else CalibrationStats(pixel=stats)
        both = replace(self._options, enable_normalization=True, enable_thresholding=True)
        self._module = eager_module(alone, both)

    def __call__(self, raw: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return float32 scores and boolean labels of float32 values, shape (n,)."""
        import torch

        values = torch.from_numpy(raw)
        with torch.inference_mode():
            if self._level == "image":
                result = self._module(pred_score=values)
                return result.pred_score.numpy(), result.pred_label.numpy()
            result = self._module(anomaly_map=values.reshape(-1, 1, 1))
            return result.anomaly_map.numpy().reshape(-1), result.pred_mask.numpy().reshape(-1)

    def anomalib(self, raw: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Return Anomalib's labels, and where ours have to equal them; None unless the rule is ``"gt"``.

        Notes
        -----
        Source: anomalib 2.7.0 PostProcessor._normalize and _apply_threshold, every step in float32.
        """
        if self._options.comparison != "gt":
            return None
        import torch

        number = {
            name: torch.tensor(getattr(self._stats, name), dtype=torch.float32) for name in ("threshold", "min", "max")
        }
        cut = 1 - torch.tensor(self._options.sensitivity(self._level), dtype=torch.float32)
        values = torch.from_numpy(raw)
        unit = ((values - number["threshold"]) / (number["max"] - number["min"]) + 0.5).clamp(0, 1)
        known = ~np.isnan(raw)
        if cut == 1:
            known &= raw != np.inf
        return (unit > cut).numpy(), known


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in the calling threads alone, each on its own."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
