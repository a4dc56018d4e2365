"""Validation images: which files there are, how they are decoded, and how a model wants them.

Each name is imported when it is first used: attaching needs the pre-processing alone. That is what `postproc_export`
itself does, too, but there a name may need a package that is not installed, and says so.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from postproc_export.images.geometry import fit_mask
    from postproc_export.images.layouts import Sample, find_samples
    from postproc_export.images.preprocessing import Preprocessing, image_input
    from postproc_export.images.samples import Batch, load_batches

__all__ = ["Batch", "Preprocessing", "Sample", "find_samples", "fit_mask", "image_input", "load_batches"]

_HOMES: Final = {
    "Batch": "samples",
    "Preprocessing": "preprocessing",
    "Sample": "layouts",
    "find_samples": "layouts",
    "fit_mask": "geometry",
    "image_input": "preprocessing",
    "load_batches": "samples",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
