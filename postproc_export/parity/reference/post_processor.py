"""The reference: `PostProcessor` on raw values, and the raw values that it decides on."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from postproc_export.errors import require
from postproc_export.float32 import HALVES
from postproc_export.parity.fed.excuses import excused_images
from postproc_export.parity.models.attached_model import AttachedModel
from postproc_export.runtimes.protocol import as_float32
from postproc_export.stats import CalibrationStats, Level
from postproc_export.tail_options import TailOptions
from postproc_export.tail_steps import TailOutput

if TYPE_CHECKING:
    from postproc_export.eager import PostProcessor


class Reference:
    """What the outputs have to be.

    Parameters
    ----------
    attached
        The attached file; statistics and options come from its record.
    """

    def __init__(self, attached: AttachedModel) -> None:
        self.attached = attached
        self._module = eager_module(attached.tail.stats, attached.tail.options)

    def outputs(self, raw: Mapping[Level, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs of the tail: float32 scores, boolean labels.

        Parameters
        ----------
        raw
            The raw values of each level that the model has, of any float type.
        """
        if self.attached.tail.guard.form == "image" or len(raw) == 1:
            named = self._outputs(raw)
        else:  # no image has a map of its own
            image, pixel = raw["image"], raw["pixel"]
            if self.attached.tail.guard.form == "all" and np.isnan(as_float32(_readable(pixel))).any():
                image = np.full_like(image, np.nan)
            named = {**self._outputs({"pixel": pixel}), **self._outputs({"image": image})}
        return {name: named[name] for name in self.attached.names}

    def _outputs(self, raw: Mapping[Level, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        import torch

        tensors = {
            level: torch.from_numpy(np.require(_readable(values), requirements="C")) for level, values in raw.items()
        }
        for level, port in self.attached.tail.raw.items():
            if level in tensors and port.dtype in HALVES:  # tapped values and bfloat16 come as float32
                tensors[level] = tensors[level].to(getattr(torch, port.dtype))
        with torch.inference_mode():
            result = self._module(pred_score=tensors.get("image"), anomaly_map=tensors.get("pixel"))
        decided = self.attached.names  # a level without statistics stays as it is, in a type that NumPy may not have
        named = result._asdict()
        return {name: named[name].numpy() for name in decided if named[name] is not None}

    def decided_on(self, output: TailOutput, raw: Mapping[Level, NDArray[Any]]) -> NDArray[np.float32]:
        """Return the float32 raw values that an output is computed from; a map's maximum where there is no score."""
        values = raw.get(output.level)
        if values is not None:
            return as_float32(_readable(values))
        highest: NDArray[np.float32] = as_float32(_readable(raw["pixel"])).max(axis=(-2, -1))
        return highest

    def excused(self, output: TailOutput, raw: Mapping[Level, NDArray[Any]]) -> NDArray[np.bool_] | None:
        """Return where an output may be anomalous though the reference says normal; None where nowhere."""
        is_unguarded = "image" in raw and self.attached.tail.guard.form is None
        if output.level == "pixel" or "pixel" not in raw or is_unguarded:
            return None
        maps, guard = as_float32(_readable(raw["pixel"])), self.attached.guard
        if self.attached.tail.guard.form != "all":
            return excused_images(maps, guard)
        return np.full(np.shape(raw["image"]), excused_images(maps[np.newaxis], guard)[0])


def _readable(values: NDArray[Any]) -> NDArray[Any]:
    """Return bfloat16, which torch does not take from NumPy, as float32."""
    return values.astype(np.float32) if values.dtype.name == "bfloat16" else values


def eager_module(stats: CalibrationStats, options: TailOptions) -> "PostProcessor":
    """Return the eager reference for statistics and options of a tail.

    Raises
    ------
    MissingDependencyError
        If torch is not installed.
    """
    require("torch", extra="torch", purpose="the eager reference of the check")
    from postproc_export.eager import PostProcessor

    return PostProcessor(
        stats,
        image_sensitivity=options.image_sensitivity,
        pixel_sensitivity=options.pixel_sensitivity,
        comparison=options.comparison,
        nan_guard=options.nan_guard,
        enable_normalization=options.enable_normalization,
        enable_thresholding=options.enable_thresholding,
    )
