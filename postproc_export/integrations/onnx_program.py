"""Attaching to what `torch.onnx.export(dynamo=True)` returns, before it is saved."""

from typing import TYPE_CHECKING, Any

from postproc_export.graphs.attached import Attached
from postproc_export.integrations.onnx_ir_pass import onnx_ir_pass
from postproc_export.stats import CalibrationStats

if TYPE_CHECKING:
    from pathlib import Path

    import torch


def attach_to_onnx_program(
    program: "torch.onnx.ONNXProgram", stats: "CalibrationStats | str | Path", **options: Any
) -> Attached:
    """Append normalised scores, labels and masks to a `torch.onnx.ONNXProgram`, in place.

    Parameters
    ----------
    program
        What `torch.onnx.export(..., dynamo=True)` returned, with raw outputs. The exporter names outputs after
        operators, and forgets the keys of a dictionary: pass `output_names` to it, or say here which output is which.
    stats
        Statistics, or the path of a statistics file.
    options
        See `attach_to_onnx`.

    Raises
    ------
    PostprocError, graph_patterns.GraphPatternError
        If the model, the statistics or the options do not allow it; the program is as it was then.

    Notes
    -----
    `program.model` is replaced; calling and saving the program then give the attached model. Its `exported_program`
    stays the one with raw outputs, so that the program's own verification against it does not apply any more.
    """
    step = onnx_ir_pass(stats, **options)
    program.model = step(program.model).model
    program.release()  # a session that was opened for the model as it was
    attached: Attached = step.attached
    return attached
