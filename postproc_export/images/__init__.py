"""Validation images: which files there are, how they are decoded, and how a model wants them."""

from postproc_export.images.geometry import fit_mask
from postproc_export.images.layouts import Sample, find_samples
from postproc_export.images.preprocessing import Preprocessing, image_input
from postproc_export.images.samples import Batch, load_batches

__all__ = ["Batch", "Preprocessing", "Sample", "find_samples", "fit_mask", "image_input", "load_batches"]
