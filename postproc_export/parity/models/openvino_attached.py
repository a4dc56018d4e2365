"""An attached OpenVINO IR: the record in rt_info, the tail as a small model of its own, taps as results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from graph_patterns.graph import Value
from graph_patterns.openvino.view import OpenVinoView
from postproc_export.adjusting import INPUT_NAMES
from postproc_export.errors import MetadataError, UnsupportedModelError
from postproc_export.graphs.detached import Found, raw_name
from postproc_export.graphs.metadata import TailRecord
from postproc_export.graphs.onnx.original import decoded_outputs, recorded_names
from postproc_export.graphs.openvino.find import (
    find_in_openvino_model,
    raw_values,
    read_record,
    recorded_results,
    tensors_of,
)
from postproc_export.graphs.openvino.names import value_name
from postproc_export.graphs.reading.own_tail import OwnTail
from postproc_export.parity.models.assumed import Assumed
from postproc_export.parity.models.model_file import Format, folded, own_tails, read_values
from postproc_export.rewrite.openvino_file import read_ir
from postproc_export.runtimes.feeds import first_reason
from postproc_export.runtimes.openvino import import_openvino, openvino_core, port_info
from postproc_export.runtimes.protocol import PortInfo
from postproc_export.stats import Level
from postproc_export.transforms.around import misfits_around
from postproc_export.transforms.formats import OpenVinoFormat
from postproc_export.transforms.openvino_layer import read_layer, was_converted
from postproc_export.transforms.record import LayerRecord, Where

_PURPOSE = "checking an OpenVINO IR"
_FROZEN = "what adjusts the decision is a constant in this file, as conversions make of it"
_CONVERTED = "it was converted from ONNX after it was attached: the form of the tail is a folded one"


@dataclass(frozen=True, slots=True)
class OpenVinoAttached:
    """An attached IR; see `parity.attached_model.ModelFile`.

    Notes
    -----
    Cutting a model changes it, so every cut starts from the file again; reading maps the weights and is quick.
    """

    path: Path
    record: TailRecord
    raw: Mapping[Level, PortInfo]
    outputs: tuple[PortInfo, ...]
    tails: Mapping[Level, OwnTail]
    remarks: tuple[str, ...]
    _model: Any
    format: Format = "openvino"

    @classmethod
    def load(cls, path: Path, assumed: Assumed) -> Self:
        """Read the file."""
        model = _read(path)
        record, is_converted = read_record(model, where=str(path))
        if is_converted or record is None:
            _refuse_layers(model, path)
        found = find_in_openvino_model(model, where=str(path))
        tails = own_tails(found.tails)
        remarks = folded(tails)
        if record is None:
            record = _assumed_record(found, assumed, where=path)
            remarks = [assumed.describe(record)]
        else:
            assumed.refuse_contradiction(record, where=path)
            recorded_names(record.original, where=str(path))
            if not is_converted:
                recorded_results(record.original, where=str(path))
        if is_converted:
            record, remarks = _native_record(model, record, tails, where=path), [_CONVERTED]
        decided = [tail for tail in tails.values() if tail.decides]
        is_frozen = all(tail.is_frozen or (is_converted and tail.adjusted is None) for tail in decided)
        if record.options.adjustable != "nothing" and is_frozen:
            record = replace(record, options=replace(record.options, adjustable="nothing", as_parameters=False))
            remarks.append(_FROZEN)
        return cls(
            path=path,
            record=record,
            raw={level: _raw_port(name, _source(model, name, where=path)) for level, name in record.raw.items()},
            outputs=tuple(port_info(port, f"output_{index}") for index, port in enumerate(model.outputs)),
            tails=tails,
            remarks=tuple(remarks),
            _model=model,
        )

    @property
    def inputs(self) -> tuple[PortInfo, ...]:
        """The inputs that this file declares."""
        return tuple(port_info(port, f"input_{index}") for index, port in enumerate(self._model.inputs))

    @property
    def misfits(self) -> tuple[str, ...]:
        """What the record says that does not fit the file."""
        return misfits_around(OpenVinoFormat(), self._model.clone(), where=str(self.path))

    @property
    def view(self) -> OpenVinoView:
        """The graph, for the matcher."""
        return OpenVinoView(self._model)

    @property
    def nan_test(self) -> Literal["sum", "l1", "arithmetic"]:
        """By the L1 norm, which is exact; in a file that was converted from ONNX by what the ONNX model had."""
        if "image" not in self.tails or self.tails["image"].guard is None:
            return "l1"
        kinds = {_node_type(value) for value in self.tails["image"].values}
        return "l1" if "ReduceL1" in kinds else "sum" if "IsNaN" in kinds else "arithmetic"

    @property
    def original_names(self) -> tuple[tuple[str, ...], ...]:
        """The tensor names of each output of the original."""
        return tuple(tuple(item.get("tensor_names", ())) for item in self.record.original.get("results", []))

    def original_output(self, level: Level) -> PortInfo:
        """Return a raw output under the names that it had in the original."""
        for index, item in enumerate(self.record.original.get("results", [])):
            if f"{item.get('source')}:{item.get('port')}" == self.record.raw[level]:
                names = tuple(item.get("tensor_names", ()))
                return PortInfo((names or (f"output_{index}",))[0], self.raw[level].dtype, None, aliases=names)
        raise MetadataError(f"{self.path}: the record does not say which result was the raw {level} output")

    def is_raw(self, level: Level, value: Value) -> bool:
        """Whether a value of the graph is the raw value of a level."""
        return level in self.raw and value == _source(self._model, self.record.raw[level], where=self.path)

    def is_rounded(self, value: Value) -> bool:
        """Whether an operator reads a constant that was compressed to fewer bits."""
        return self.view.is_rounded(value)

    def value_name(self, value: Value) -> str:
        """Return the operator's friendly name and the number of its output."""
        output: Any = value
        return f"{output.get_node().get_friendly_name()}:{output.get_index()}"

    def cut(self, names: tuple[str, ...], inputs: Sequence[PortInfo]) -> Any:
        """Return the operators between some values and the outputs as a model of its own."""
        openvino = import_openvino(purpose=_PURPOSE)
        model = _read(self.path)
        results = [result for result in model.get_results() if not _names(result).isdisjoint(names)]
        found = {name for result in results for name in _names(result)}
        results += [_inner_result(model, name, where=self.path) for name in names if name not in found]
        parameters = []
        for port in inputs:
            source = _source(model, port.name, where=self.path)
            shape = openvino.PartialShape([-1 if axis is None else axis for axis in port.shape or ()])
            parameter = openvino.opset13.parameter(shape, source.get_element_type())
            source.replace(parameter.output(0))
            parameter.output(0).set_names({port.name})
            parameters.append(parameter)
        reached = _above(results)  # a part of the tail need not read what adjusts the decision
        variables = {_variable(node) for node in reached.values()}
        sinks = [sink for sink in model.get_sinks() if _variable(sink) in INPUT_NAMES & variables]
        parameters += [
            item
            for item in model.get_parameters()
            if str(item.get_name()) in reached and not INPUT_NAMES.isdisjoint(item.output(0).get_names())
        ]
        try:
            alone = openvino.Model(results, sinks, parameters, "tail")
            alone.validate_nodes_and_infer_types()  # 2025 keeps the shapes that the whole model had
            return alone
        except RuntimeError as error:
            raise UnsupportedModelError(
                "the tail does not compute its outputs from the raw values alone",
                found=first_reason(error),
                needed=f"only {', '.join(sorted(port.name for port in inputs))} and constants",
            ) from error

    def tapped(self, folder: Path, taps: Mapping[str, PortInfo]) -> Any:
        """Return the whole model with some values as float32 results; nothing is written."""
        openvino = import_openvino(purpose=_PURPOSE)
        model = _read(self.path)
        for tap, port in taps.items():
            source = _source(model, port.name, where=self.path)
            if source.get_element_type() != openvino.Type.f32:
                source = openvino.opset13.convert(source, "f32").output(0)
            source.add_names({tap})
            model.add_results([openvino.opset13.result(source)])
        return model

    def host(self, folder: Path) -> Any:
        """Return the operators that the raw values need; nothing is written."""
        openvino = import_openvino(purpose=_PURPOSE)
        model = _read(self.path)
        results = [_inner_result(model, port.name, where=self.path) for port in self.raw.values()]
        sinks = [sink for sink in model.get_sinks() if _variable(sink) not in INPUT_NAMES]
        reached = _above([*results, *sinks])
        parameters = [item for item in model.get_parameters() if str(item.get_name()) in reached]
        return openvino.Model(results, sinks, parameters, "host")

    def layer(self, layer: Where) -> LayerRecord | None:
        """Return the record of what stands before the tail or behind it."""
        return read_layer(self._model, layer, where=str(self.path))

    def layer_inputs(self, record: LayerRecord) -> Mapping[str, PortInfo]:
        """Return what a layer reads."""
        return {key: _raw_port(name, _source(self._model, name, where=self.path)) for key, name in record.read.items()}

    def layer_values(self, record: LayerRecord) -> Mapping[str, str]:
        """Return what a layer makes."""
        return record.made

    @property
    def host_names(self) -> frozenset[str] | None:
        """The tensor names of the outputs of the model before its transform."""
        record = self.layer("transform")
        if record is None:
            return None
        return frozenset(
            name
            for index, item in enumerate(record.original.get("results", []))
            for name in (item.get("tensor_names") or (f"output_{index}",))
        )


def _refuse_layers(model: Any, path: Path) -> None:
    """Refuse a converted file with tails of one's own around the tail: their records are those of the ONNX file."""
    for layer in ("transform", "decision"):
        record = read_layer(model, layer, where=str(path))
        if record is not None and was_converted(model, layer):
            raise UnsupportedModelError(
                f"{path} was converted to OpenVINO with tails of one's own: they cannot be told from the rest",
                found=", ".join(spec.text for spec in record.tails),
                fix="check the ONNX file, or attach to the converted raw model",
            )


def _native_record(model: Any, record: TailRecord, tails: Mapping[Level, OwnTail], *, where: Path) -> TailRecord:
    """Return the record of an ONNX file in the terms of the IR that was made of it."""
    renamed, tensors = record.original.get("renamed", {}), tensors_of(model)
    values: dict[Level, Any] = {**read_values(tails), **raw_values(model, record, is_converted=True)}
    for level in record.raw.keys() - values.keys():
        raise MetadataError(f"{where}: the record names a raw value '{record.raw[level]}' that the model does not have")
    results = [
        _described(item.name, tensors.get(renamed.get(item.name, item.name)), (item.name,))
        for item in decoded_outputs(record.original, where=str(where))
    ]
    raw = {level: value_name(values[level]) for level in record.raw}
    return replace(record, raw=raw, original={"results": results, "renamed": renamed})


def _assumed_record(found: Found, assumed: Assumed, *, where: Path) -> TailRecord:
    """Return a record for a file that has none: its raw outputs are what the tails read."""
    tails = own_tails(found.tails)
    values: Mapping[Level, Any] = read_values(tails)
    results: list[dict[str, Any]] = []
    renamed: dict[str, str] = {}
    for level, value in values.items():
        now = {name: raw_name(tails[level], name) if level in tails else name for name in sorted(value.get_names())}
        results.append(_described(f"{level}/result", value, tuple(now.values())))
        renamed |= {then: name for name, then in now.items() if then != name}
    raw = {level: value_name(value) for level, value in values.items()}
    return assumed.record(found, raw, {"results": results, "renamed": renamed}, where=where)


def _described(name: str, value: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Return a result as a record has it."""
    source, _, port = ("", "", "0") if value is None else value_name(value).rpartition(":")
    return {"name": name, "source": source, "port": int(port), "tensor_names": list(names)}


def _node_type(value: Any) -> str:
    return str(value.get_node().get_type_name())


def _read(path: Path) -> Any:
    return read_ir(openvino_core(purpose=_PURPOSE), path)


def _source(model: Any, name: str, *, where: Path) -> Any:
    """Return the output of an operator that the record names as ``<friendly name>:<port>``."""
    friendly_name, _, port = name.rpartition(":")
    for node in model.get_ops():
        if node.get_friendly_name() == friendly_name and port.isdecimal() and int(port) < node.get_output_size():
            return node.output(int(port))
    raise MetadataError(f"{where}: the record names a raw value '{name}' that the model does not have")


def _inner_result(model: Any, name: str, *, where: Path) -> Any:
    try:
        source = _source(model, name, where=where)
    except MetadataError as error:
        found = ", ".join(sorted({each for result in model.get_results() for each in _names(result)}))
        raise UnsupportedModelError(
            f"{where} has no output '{name}'", found=found, needed="the tail's outputs"
        ) from error
    source.add_names({name})
    return import_openvino(purpose=_PURPOSE).opset13.result(source)


def _above(results: Sequence[Any]) -> dict[str, Any]:
    """Return every operator that results depend on, by its unique name."""
    pending, seen = list(results), dict[str, Any]()
    while pending:
        node = pending.pop()
        if str(node.get_name()) not in seen:
            seen[str(node.get_name())] = node
            pending += [node.input_value(index).get_node() for index in range(node.get_input_size())]
    return seen


def _variable(node: Any) -> str | None:
    """Return the state variable that an operator reads or sets; None for any other."""
    found = node.get_attributes().get("variable_id") if node.get_type_name() in ("ReadValue", "Assign") else None
    return None if found is None else str(found)


def _raw_port(name: str, source: Any) -> PortInfo:
    port = port_info(source, name)
    return PortInfo(name, port.dtype, port.shape)


def _names(result: Any) -> set[str]:
    return {*result.input_value(0).get_names(), *result.output(0).get_names()}
