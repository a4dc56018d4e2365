"""What the tests of `PostProcessor` share: two small levels, maps, and the comparison of outputs."""

import numpy as np
import torch

from postproc_export.eager import PostProcessed
from postproc_export.stats import CalibrationStats, LevelStats

NAN = float("nan")
INF = float("inf")

IMAGE = LevelStats(threshold=1.0, min=0.0, max=2.0)
PIXEL = LevelStats(threshold=3.0, min=1.0, max=5.0)
BOTH = CalibrationStats(image=IMAGE, pixel=PIXEL)


def maps(*values: float) -> torch.Tensor:
    """Return one map of 1x2 pixels per value, the other pixel low, shape [N, 1, 1, 2]."""
    return torch.tensor([[[[value, 0.0]]] for value in values])


def same(found: torch.Tensor | None, expected: torch.Tensor | None) -> bool:
    """Whether two outputs are equal in dtype, shape and bits of every number; NaN equals NaN."""
    if found is None or expected is None:
        return found is expected
    return found.dtype == expected.dtype and np.array_equal(
        found.detach().numpy(), expected.detach().numpy(), equal_nan=found.is_floating_point()
    )


def agree(found: PostProcessed, expected: PostProcessed) -> bool:
    """Whether all four outputs are the same."""
    return all(same(one, other) for one, other in zip(found, expected, strict=True))
