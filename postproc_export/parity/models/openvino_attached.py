"""An attached OpenVINO IR: the record in rt_info, the tail as a small model of its own, taps as results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from graph_patterns.graph import Value
from graph_patterns.openvino.view import OpenVinoView
from postproc_export.adjusting import INPUT_NAMES
from postproc_export.errors import MetadataError, UnsupportedModelError
from postproc_export.graphs.metadata import METADATA_KEY, TailRecord
from postproc_export.graphs.onnx.original import recorded_names
from postproc_export.graphs.openvino.find import recorded_results
from postproc_export.parity.models.model_file import Format, no_record
from postproc_export.rewrite.openvino_file import read_ir
from postproc_export.runtimes.feeds import first_reason
from postproc_export.runtimes.openvino import import_openvino, openvino_core, port_info
from postproc_export.runtimes.protocol import PortInfo
from postproc_export.stats import Level
from postproc_export.transforms.around import misfits_around
from postproc_export.transforms.formats import OpenVinoFormat
from postproc_export.transforms.openvino_layer import read_layer
from postproc_export.transforms.record import LayerRecord, Where

_PURPOSE = "checking an OpenVINO IR"


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
    _model: Any
    format: Format = "openvino"

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file."""
        model = _read(path)
        if not model.has_rt_info([METADATA_KEY]):
            raise no_record(path)
        record = TailRecord.loads(model.get_rt_info([METADATA_KEY]).astype(str), where=str(path))
        recorded_results(record.original, where=str(path))
        recorded_names(record.original, where=str(path))
        raw = {level: _raw_port(name, _source(model, name, where=path)) for level, name in record.raw.items()}
        outputs = tuple(port_info(port, f"output_{index}") for index, port in enumerate(model.outputs))
        return cls(path=path, record=record, raw=raw, outputs=outputs, _model=model)

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
        """By the L1 norm, which is exact."""
        return "l1"

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
