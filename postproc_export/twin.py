"""The eager reference in NumPy, bit for bit that of PyTorch: for a machine that checks files and has no PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from postproc_export.errors import UsageError
from postproc_export.float32 import HALVES, narrowed
from postproc_export.options import Settings
from postproc_export.ports import check_shapes
from postproc_export.stats import Level

_NAMES: Final[Mapping[Level, tuple[str, str]]] = {
    "image": ("pred_score", "pred_label"),
    "pixel": ("anomaly_map", "pred_mask"),
}


@dataclass(frozen=True, kw_only=True)
class NumpyPostProcessor(Settings):
    """`PostProcessor` on arrays: the same numbers and switches, and the same bits come out.

    Raises MetadataError or UsageError as `Settings` does.
    """

    def __call__(
        self, pred_score: NDArray[Any] | None = None, anomaly_map: NDArray[Any] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Post-process one batch of raw values of any float type, in the shapes that `PostProcessor` takes.

        Returns what there is of ``pred_score`` and ``anomaly_map``, float32 in [0, 1] or NaN, and of ``pred_label`` and
        ``pred_mask``, bool. The values of a level that is not calibrated stay as they are.

        Raises UsageError if both are None, UnsupportedModelError if a shape is another one, or the batch sizes differ.
        """
        if pred_score is None and anomaly_map is None:
            raise UsageError("nothing to post-process", needed="pred_score, anomaly_map or both")
        check_shapes(
            None if pred_score is None else pred_score.shape, None if anomaly_map is None else anomaly_map.shape
        )
        given = anomaly_map if pred_score is None else pred_score  # its type counts: the score may be float32 already
        with np.errstate(all="ignore"):
            score = self._image_score(pred_score, anomaly_map) if "image" in self.boundaries else pred_score
            return {**self._of("image", score, given), **self._of("pixel", anomaly_map, anomaly_map)}

    def _image_score(self, score: NDArray[Any] | None, raw_maps: NDArray[Any] | None) -> NDArray[Any] | None:
        if raw_maps is None:
            return score
        maps = raw_maps.astype(np.float32, copy=False)
        if score is None:
            score = maps.max(axis=(-2, -1))
        if not self.nan_guard:
            return score
        holds_nan = np.isnan(maps).any(axis=tuple(range(1, maps.ndim)))
        return np.where(holds_nan.reshape(score.shape), np.float32(np.nan), score.astype(np.float32))

    def _of(self, level: Level, raw: NDArray[Any] | None, given: NDArray[Any] | None) -> dict[str, NDArray[Any]]:
        if raw is None or given is None:
            return {}
        score, label = _NAMES[level]
        if level not in self.boundaries:
            return {score: raw}
        values, boundary = raw.astype(np.float32, copy=False), self.boundaries[level]
        half = next((half for half in HALVES if given.dtype.name == half), "float32")
        below = values < np.float32(narrowed(boundary, half))
        made = {score: self._unit(level, values) if self.enable_normalization else values}
        return {**made, label: np.asarray(~below)} if self.enable_thresholding else made  # so that NaN is anomalous

    def _unit(self, level: Level, values: NDArray[np.float32]) -> NDArray[np.float32]:
        numbers = {name: np.float32(value) for name, value in self.numbers.items()}
        unit: NDArray[np.float32] = np.asarray(values - numbers[self.threshold_of(level)])  # of [] NumPy makes a scalar
        unit /= numbers[f"{level}_max"] - numbers[f"{level}_min"]
        unit += np.float32(0.5)
        return np.clip(unit, np.float32(0), np.float32(1), out=unit)
