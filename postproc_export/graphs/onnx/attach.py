"""Attach a tail to an ONNX model, in place: nodes behind the outputs, nothing else touched."""

from collections.abc import Container, Mapping
from typing import Any, Final

import onnx

from graph_patterns.errors import UnsupportedOpsetError
from graph_patterns.onnx.lowering import INITIALIZERS_NEED_NO_INPUT_SINCE, OnnxTarget, emit
from graph_patterns.onnx.view import default_opset
from postproc_export.errors import UnsupportedModelError, UsageError
from postproc_export.graphs.attached import (
    Attached,
    final_order,
    name_is_taken,
    new_name,
    new_names,
    refuse_attached,
    replaced_outputs,
)
from postproc_export.graphs.metadata import METADATA_KEY, TailRecord
from postproc_export.graphs.onnx.find import find_in_onnx_model
from postproc_export.graphs.onnx.names import immovable_names, rename_values, used_names, value_names
from postproc_export.graphs.onnx.original import NEEDED_IMPORT, encoded_port, oldest_opset_of, uses_default_domain
from postproc_export.graphs.onnx.ports import output_ports
from postproc_export.outputs import OutputChoice, select_outputs
from postproc_export.packing import PACKED_OUTPUT, PARTS
from postproc_export.runtimes.protocol import PortInfo
from postproc_export.stats import CalibrationStats
from postproc_export.tail import PREFIX, Tail, build_tail, calibrated_levels
from postproc_export.tail_options import TailOptions
from postproc_export.tail_steps import TailOutput
from postproc_export.version import __version__

_ELEMENT_TYPES: Final = {
    "float32": onnx.TensorProto.FLOAT,
    "bool": onnx.TensorProto.BOOL,
    "uint8": onnx.TensorProto.UINT8,
}
_BFLOAT16_CAST_SINCE: Final = 13


def attach_to_onnx_model(
    model: onnx.ModelProto,
    stats: CalibrationStats,
    options: TailOptions,
    *,
    image_output: OutputChoice = None,
    pixel_output: OutputChoice = None,
) -> Attached:
    """Append the tail to a model in memory, which may be a skeleton without its weights.

    Raises
    ------
    UnsupportedModelError
        If a tail is there already, or the outputs cannot be post-processed.
    UnsupportedOpsetError
        Below opset 7 or IR version 3.
    UsageError, MetadataError
        If the statistics and options do not fit the model or each other.
    """
    _refuse_attached(model)
    added_opset = None if default_opset(model) else oldest_opset_of(model.ir_version)
    target = OnnxTarget(added_opset or default_opset(model), model.ir_version)
    ports = output_ports(model)
    selection = select_outputs(
        ports,
        image_output=image_output,
        pixel_output=pixel_output,
        calibrated=calibrated_levels(stats, options),
    )
    for port in (selection.image, selection.pixel):
        _refuse_bfloat16(port, target)
    tail = build_tail(
        stats,
        options,
        selection,
        nan_test="sum" if target.supports("is_nan") and target.supports("select") else "arithmetic",
        default_mask_dtype="bool",
    )
    _refuse_adjustable(tail, target)
    return _Rewriter(model, tail, target).attach(added_opset)


class _Rewriter:
    def __init__(self, model: onnx.ModelProto, tail: Tail, target: OnnxTarget) -> None:
        self._model = model
        self._tail = tail
        self._target = target
        self._used = used_names(model)

    def attach(self, added_opset: int | None) -> Attached:
        outputs = {item.name: item for item in self._model.graph.output}
        document: dict[str, Any] = {"outputs": [encoded_port(item) for item in outputs.values()]}
        renamed = self._renamings(outputs)
        rename_values(self._model, renamed)
        if renamed:
            document["renamed"] = renamed
        if added_opset is not None:
            is_needed = uses_default_domain(self._model)
            self._model.opset_import.append(onnx.helper.make_opsetid("", added_opset))
            document["added_opset_import"] = added_opset
            document |= {NEEDED_IMPORT: True} if is_needed else {}
        self._append(renamed)
        self._replace_outputs(outputs)
        raw = {level: renamed.get(port.name, port.name) for level, port in self._tail.raw.items()}
        record = TailRecord(
            version=__version__,
            stats=self._tail.stats,
            options=self._tail.resolved_options,
            raw=raw,
            original=document,
            narrow=self._tail.narrow,
            found=self._tail.selection.found,
        )
        self._model.metadata_props.add(key=METADATA_KEY, value=record.dumps())
        return Attached(self._tail, record, renamed)

    def _renamings(self, outputs: Container[str]) -> dict[str, str]:
        replaced = replaced_outputs(self._tail)
        values, immovable = value_names(self._model), immovable_names(self._model.graph)
        renamed: dict[str, str] = {}
        for name in new_names(self._tail):
            if name in outputs and name not in replaced:
                raise name_is_taken(name, by="another output")
            if name in immovable:
                raise name_is_taken(name, by=immovable[name])
            if name in values:
                renamed[name] = new_name(name, self._used)
        return renamed

    def _append(self, renamed: Mapping[str, str]) -> None:
        raw = {name: renamed.get(port.name, port.name) for name, port in self._tail.inputs.items()}
        fragment = emit(
            {output.name: output.expr for output in self._tail.outputs},
            inputs={**raw, **{item.name: item.name for item in self._tail.adjustable}},
            target=self._target,
            prefix=PREFIX,
            taken=self._used,
        )
        self._model.graph.node.extend(fragment.nodes)
        self._model.graph.initializer.extend(fragment.initializers)
        for item in self._tail.adjustable:  # an initializer that is an input too can be overridden
            self._model.graph.initializer.append(onnx.helper.make_tensor(item.name, 1, [], [item.default]))
            self._model.graph.input.append(onnx.helper.make_tensor_value_info(item.name, 1, []))

    def _replace_outputs(self, outputs: Mapping[str, onnx.ValueInfoProto]) -> None:
        final = []
        for item in final_order(self._tail, outputs):
            if isinstance(item, TailOutput):
                raw = self._tail.raw.get(item.level) or self._tail.raw["pixel"]
                final.append(_value_info(item, outputs[raw.name]))
            else:
                final.append(onnx.ValueInfoProto.FromString(outputs[item].SerializeToString()))
        del self._model.graph.output[:]  # only now: the messages in `outputs` die with it
        self._model.graph.output.extend(final)


def _value_info(output: TailOutput, source: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    item = onnx.ValueInfoProto(name=output.name)
    item.type.tensor_type.elem_type = _ELEMENT_TYPES[output.dtype]
    if source.type.tensor_type.HasField("shape"):
        item.type.tensor_type.shape.CopyFrom(source.type.tensor_type.shape)
        axes = item.type.tensor_type.shape.dim
        if output.name == PACKED_OUTPUT:
            del axes[1:-2]
            axes.add(dim_value=len(PARTS))
        rank = len(output.shape) if output.shape is not None else len(axes)
        del axes[rank:]
    return item


def _refuse_attached(model: onnx.ModelProto) -> None:
    has_record = any(item.key == METADATA_KEY for item in model.metadata_props)
    found = find_in_onnx_model(model, where="the model")
    refuse_attached(found, entry=f"the metadata entry '{METADATA_KEY}'" if has_record else None)


def _refuse_adjustable(tail: Tail, target: OnnxTarget) -> None:
    if tail.options.as_parameters:
        raise UsageError(
            "as_parameters is for an IR", found="an ONNX model, whose inputs have defaults", fix="leave it out"
        )
    if tail.adjustable and target.ir_version < INITIALIZERS_NEED_NO_INPUT_SINCE:
        raise UnsupportedOpsetError(
            "an input with a default cannot be expressed",
            found=f"IR version {target.ir_version}",
            needed=f"IR version {INITIALIZERS_NEED_NO_INPUT_SINCE} or later",
            fix="export the model again, or attach without a run-time sensitivity or boundary",
        )


def _refuse_bfloat16(port: PortInfo | None, target: OnnxTarget) -> None:
    if port is not None and port.dtype == "bfloat16" and target.opset < _BFLOAT16_CAST_SINCE:
        raise UnsupportedModelError(
            f"output '{port.name}' is bfloat16, which opset {target.opset} cannot convert to float32",
            needed=f"opset {_BFLOAT16_CAST_SINCE} or later",
            fix="export the model again with a later opset",
        )
