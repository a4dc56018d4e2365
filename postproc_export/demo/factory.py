"""The demo's detector as a factory, for `export`: ``postproc_export.demo.factory:detector``."""

from typing import TYPE_CHECKING, Final

from postproc_export.demo.data import load_photos, make_crops
from postproc_export.demo.detector import as_input, fit_detector

if TYPE_CHECKING:
    import torch

TRAINING_CROPS: Final = 48


def detector() -> "torch.nn.Module":
    """Fit the detector to the demo's normal crops, which takes a second; see `texture_detector` for what it gives.

    Raises MissingDependencyError if a package of the extra ``demo`` is not installed.
    """
    crops = make_crops(load_photos(), "training", good=TRAINING_CROPS)
    return fit_detector(as_input(crop.image for crop in crops))
