"""Attach in memory: to models, as a pass of ONNX IR, to an `ONNXProgram`, as a pass of OpenVINO."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from postproc_export.attach import attach_model, judge_of, tail_options
from postproc_export.errors import require
from postproc_export.formats.base import Format, Outputs
from postproc_export.options import BelongingOptions, OutputOptions, Source, TailOptions, TargetOptions, with_decision
from postproc_export.ports import is_plain
from postproc_export.record import AttachResult, parse_tails
from postproc_export.runtimes.openvino import import_openvino
from postproc_export.stats import CalibrationStats, as_stats
from postproc_export.validation import called_like

if TYPE_CHECKING:
    from pathlib import Path

    import torch


@dataclass(frozen=True)
class AttachInMemoryOptions(TailOptions, OutputOptions, BelongingOptions, TargetOptions):
    """What `attach_to_onnx` and `attach_to_openvino` take.

    Parameters
    ----------
    model
        An `onnx.ModelProto` or `openvino.Model` with raw outputs, changed in place. Weights of an ONNX model may be
        inline, external, or left out.
    stats
        Statistics, or the path of a statistics file.
    """

    model: Any
    stats: Source


@called_like(AttachInMemoryOptions)
def attach_to_onnx(**given: Any) -> AttachResult:
    """Append normalised scores, labels and masks to an ONNX model in memory, in place.

    Returns
    -------
    AttachResult
        The tail, the record that is now in the model's metadata, and the values that had to be renamed.

    Raises
    ------
    PostprocError
        If the model, the statistics or the options do not allow it; the model is as it was then.

    Notes
    -----
    The result equals, byte for byte, what `attach_postprocessing` makes of the same model in a file.
    """
    from postproc_export.formats.onnx import OnnxFormat

    asked = AttachInMemoryOptions(**given)
    # One layer may be in when the next is refused; without custom steps there is but one.
    form, target = OnnxFormat(), asked.model
    if asked.steps or not all(map(is_plain, form.outputs(asked.model))):
        target = type(asked.model).FromString(asked.model.SerializeToString())
    attached = _attach_to(target, form, asked, given)
    if target is not asked.model:
        asked.model.CopyFrom(target)
    return attached


@called_like(AttachInMemoryOptions)
def attach_to_openvino(**given: Any) -> AttachResult:
    """Append normalised scores, labels and masks to an `openvino.Model` in memory, in place.

    Raises
    ------
    PostprocError
        If the model, the statistics or the options do not allow it; the model is as it was then.

    Notes
    -----
    Save it with ``openvino.save_model(model, path, compress_to_fp16=False)``: compression would round the constants of
    the tail, too. To have the body compressed, compress before attaching.
    """
    from postproc_export.formats.openvino import OpenVinoFormat

    asked = AttachInMemoryOptions(**given)
    # Some refusals come when results are replaced already. A clone shares the weights: trying it costs next to nothing.
    for target in (asked.model.clone(), asked.model):
        attached = _attach_to(target, OpenVinoFormat(), asked, given)
    return attached


def _attach_to(model: Any, form: Format, asked: AttachInMemoryOptions, given: Mapping[str, Any]) -> AttachResult:
    stats, given, told = with_decision(as_stats(asked.stats), given)
    asked, steps = AttachInMemoryOptions(**given), parse_tails(asked.steps)
    outputs: Outputs = {"image_output": asked.image_output, "pixel_output": asked.pixel_output}
    options, chosen = tail_options(asked, asked.targets(given), stats)
    where, remedy = "the model", "statistics that were calibrated on this model"
    judge = judge_of(stats, asked, form=form, source=model, where=where, remedy=remedy)
    return replace(attach_model(form, model, stats, options, steps, outputs, judge), chosen=(*told, *chosen))


_INLINE: Final = 1024  # bytes; smaller tensors may be shapes and axes, which the rewriter has to be able to read


def onnx_ir_pass(stats: "CalibrationStats | str | Path", **options: Any) -> Any:
    """Return an `onnx_ir.passes.FunctionalPass` that attaches post-processing to the models it is run on.

    `options` are those of `attach_to_onnx`. Called with an `onnx_ir.Model`, the pass returns a `PassResult` with a new
    one; the input is left as it is, and the weights are shared. After a run its attribute `attached` holds what was
    done. Raises MissingDependencyError if onnx_ir is not installed, and FileError, MetadataError or UsageError if the
    statistics cannot be read. Running the pass raises what `attach_to_onnx` raises; in a `onnx_ir.passes.Sequential`
    that is the cause of the `PassError`.

    onnx_ir itself does not hold sparse initializers and training_info: a model that was read with it has lost them
    before this pass sees it. Where they matter, attach to the `onnx.ModelProto` or to the file. The `meta` dictionaries
    of nodes and values, which onnx_ir never writes to a file, are not in the new model.
    """
    ir: Any = require("onnx_ir", purpose="a pass for onnx_ir")
    statistics = as_stats(stats)

    def call(self: Any, model: Any) -> Any:
        weights = _weights(model, at_least=_INLINE)
        with _left_out(ir, model, weights):
            proto = ir.to_proto(model)
        self.attached = attach_to_onnx(proto, statistics, **options)
        result = ir.from_proto(proto)
        for name, tensor in weights.items():
            value = result.graph.initializers[self.attached.renamed.get(name, name)]
            value.const_value = tensor
        return ir.passes.PassResult(result, modified=True)

    return _new_pass(ir.passes.FunctionalPass, call=call)


def _new_pass(base: Any, **methods: Any) -> Any:
    """Return a pass of a new class: its base is a library's, imported only when it is needed."""
    made = type("AttachPostprocessing", (base,), {"attached": None, **methods})
    return made()


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


def attach_to_onnx_program(
    program: "torch.onnx.ONNXProgram", stats: "CalibrationStats | str | Path", **options: Any
) -> AttachResult:
    """Append normalised scores, labels and masks to a `torch.onnx.ONNXProgram`, in place.

    `program` is what `torch.onnx.export(..., dynamo=True)` returned, with raw outputs. The exporter names outputs after
    operators, and forgets the keys of a dictionary: pass `output_names` to it, or say here which output is which.
    `options` are those of `attach_to_onnx`, and so are the errors; the program is as it was then.

    `program.model` is replaced; calling and saving the program then give the attached model. Its `exported_program`
    stays the one with raw outputs, so that the program's own verification against it does not apply any more.
    """
    step = onnx_ir_pass(stats, **options)
    program.model = step(program.model).model
    program.release()  # a session that was opened for the model as it was
    attached: AttachResult = step.attached
    return attached


def openvino_pass(stats: "CalibrationStats | str | Path", **options: Any) -> Any:
    """Return an `openvino.passes.ModelPass` for `Manager.register_pass`, which attaches post-processing.

    `options` are those of `attach_to_openvino`. After a run its attribute `attached` holds what was done. Raises
    MissingDependencyError if OpenVINO is not installed, and FileError, MetadataError or UsageError if the statistics
    cannot be read. Running the pass raises what `attach_to_openvino` raises.
    """
    import_openvino(purpose="a pass for OpenVINO's pass manager")
    from openvino.passes import ModelPass

    statistics = as_stats(stats)

    def run_on_model(self: Any, model: Any) -> bool:
        self.attached = attach_to_openvino(model, statistics, **options)
        return True

    return _new_pass(ModelPass, run_on_model=run_on_model)
