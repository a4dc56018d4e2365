"""Update the tail of an OpenVINO model, in place: ours is attached anew, Anomalib's is replaced or edited."""

from typing import Any

from graph_patterns.openvino.editing import set_numbers
from postproc_export.graphs.openvino.attach import attach_to_openvino_model
from postproc_export.graphs.openvino.detach import detach_from_openvino_model
from postproc_export.graphs.openvino.find import find_in_openvino_model
from postproc_export.graphs.state import Changes
from postproc_export.graphs.updated import Updated
from postproc_export.graphs.updating import update_model
from postproc_export.tail import PREFIX


def update_openvino_model(model: Any, changes: Changes, *, keep_dialect: bool, where: str) -> Updated:
    """Change what the tail of an `openvino.Model` decides.

    Raises
    ------
    UsageError, MetadataError
        If the changes do not fit the tail, or are not legal.
    SharedValueError, UnsupportedModelError
        If the tail cannot be taken off.
    """
    found = find_in_openvino_model(model, where=where)
    return update_model(
        found,
        changes,
        keep_dialect=keep_dialect,
        edit=lambda numbers: set_numbers(model, numbers, prefix=PREFIX),
        detach=lambda: detach_from_openvino_model(model, where=where),
        attach=lambda stats, options, outputs: attach_to_openvino_model(model, stats, options, **outputs),
    )
