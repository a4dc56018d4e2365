"""Update the tail of an ONNX model, in place: ours is attached anew, Anomalib's is replaced or edited."""

import onnx

from graph_patterns.onnx.editing import set_numbers
from postproc_export.graphs.onnx.attach import attach_to_onnx_model
from postproc_export.graphs.onnx.detach import detach_from_onnx_model
from postproc_export.graphs.onnx.find import find_in_onnx_model
from postproc_export.graphs.state import Changes
from postproc_export.graphs.updated import Updated
from postproc_export.graphs.updating import update_model
from postproc_export.tail import PREFIX


def update_onnx_model(model: onnx.ModelProto, changes: Changes, *, keep_dialect: bool, where: str) -> Updated:
    """Change what the tail of a model in memory decides; the model may be a skeleton without its weights.

    Raises
    ------
    UsageError, MetadataError
        If the changes do not fit the tail, or are not legal.
    SharedValueError, UnsupportedModelError
        If the tail cannot be taken off.
    """
    found = find_in_onnx_model(model, where=where)
    return update_model(
        found,
        changes,
        keep_dialect=keep_dialect,
        edit=lambda numbers: set_numbers(model, numbers, prefix=PREFIX),
        detach=lambda: detach_from_onnx_model(model, where=where),
        attach=lambda stats, options, outputs: attach_to_onnx_model(model, stats, options, **outputs),
    )
