"""Attaching as a pass of onnx_ir, the library that torch's exporter and onnxscript work with."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from postproc_export.errors import require
from postproc_export.integrations.in_memory import attach_to_onnx
from postproc_export.settings import as_stats
from postproc_export.stats import CalibrationStats

if TYPE_CHECKING:
    from pathlib import Path

_INLINE: Final = 1024  # bytes; smaller tensors may be shapes and axes, which the rewriter has to be able to read


def onnx_ir_pass(stats: "CalibrationStats | str | Path", **options: Any) -> Any:
    """Return an `onnx_ir.passes.FunctionalPass` that attaches post-processing to the models it is run on.

    Parameters
    ----------
    stats
        Statistics, or the path of a statistics file.
    options
        See `attach_to_onnx`.

    Returns
    -------
    onnx_ir.passes.FunctionalPass
        Called with an `onnx_ir.Model` it returns a `PassResult` with a new one; the input is left as it is, and the
        weights are shared. After a run its attribute `attached` holds what was done.

    Raises
    ------
    MissingDependencyError
        If onnx_ir is not installed.
    FileError, MetadataError, UsageError
        If the statistics cannot be read. Running the pass raises what `attach_to_onnx` raises; in a
        `onnx_ir.passes.Sequential` that is the cause of the `PassError`.

    Notes
    -----
    onnx_ir itself does not hold sparse initializers and training_info: a model that was read with it has lost them
    before this pass sees it. Where they matter, attach to the `onnx.ModelProto` or to the file. The `meta` dictionaries
    of nodes and values, which onnx_ir never writes to a file, are not in the new model.
    """
    ir: Any = require("onnx_ir", extra="export", purpose="a pass for onnx_ir")
    statistics = as_stats(stats)

    class AttachPostprocessing(ir.passes.FunctionalPass):  # type: ignore[misc]  # its base is imported lazily
        def __init__(self) -> None:
            super().__init__()
            self.attached: Any = None

        def call(self, model: Any) -> Any:
            weights = _weights(model, at_least=_INLINE)
            with _left_out(ir, model, weights):
                proto = ir.to_proto(model)
            self.attached = attach_to_onnx(proto, statistics, **options)
            result = ir.from_proto(proto)
            for name, tensor in weights.items():
                value = result.graph.initializers[self.attached.renamed.get(name, name)]
                value.const_value = tensor
            return ir.passes.PassResult(result, modified=True)

    return AttachPostprocessing()


def _weights(model: Any, *, at_least: int) -> dict[str, Any]:
    """Return the initializers of some size by name."""
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None and tensor.nbytes >= at_least}


@contextmanager
def _left_out(ir: Any, model: Any, weights: dict[str, Any]) -> Iterator[None]:
    """Put references to a file that is never opened in the place of weights: what is written out copies no weights."""
    values = model.graph.initializers
    try:
        for name, tensor in weights.items():
            values[name].const_value = ir.ExternalTensor(
                "left-out", 0, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=name
            )
        yield
    finally:
        for name, tensor in weights.items():
            values[name].const_value = tensor
