"""Read attached files of both formats for checking: the body, the tail alone, and what the record says."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import onnx

from graph_patterns.match import Value
from graph_patterns.onnx.graph import ELEMENT_TYPES, LOWERINGS, OnnxView, default_opset
from graph_patterns.openvino import OpenVinoView
from postproc_export.check.assumed import Assumed
from postproc_export.check.attached import PURPOSE, AttachedModel, Shapes
from postproc_export.errors import MetadataError, UnsupportedModelError
from postproc_export.files import is_onnx
from postproc_export.formats.base import decoded_outputs, encoded_port
from postproc_export.formats.onnx import OnnxFormat
from postproc_export.formats.openvino import OpenVinoFormat
from postproc_export.formats.openvino_file import recorded_results, result_names, tensors_of, value_name
from postproc_export.ports import FLOAT_TYPES
from postproc_export.process import temporary_folder
from postproc_export.reading.found import FoundTails, raw_name
from postproc_export.reading.tail import FoundTail
from postproc_export.record import LayerRecord, TailRecord, refuse_misfit
from postproc_export.runtimes import PortInfo, first_reason
from postproc_export.runtimes.openvino import import_openvino, port_info
from postproc_export.stats import Level
from postproc_export.tail import INPUT_NAMES

_FROZEN = "what adjusts the decision is a constant in this file, as conversions make of it"
_CONVERTED = "it was converted from ONNX after it was attached: the form of the tail is a folded one"


def load_attached(path: Path, assumed: Assumed | None = None) -> AttachedModel:
    """Read an attached file and build the tail anew that its record describes.

    `assumed` stands in for the record where that is gone, and has to agree with it where it is there. Raises
    `FileError` for a file that cannot be read, `MetadataError` for an illegal record, `UnsupportedModelError` where
    there is none and nothing in its place, `UsageError` where what is given contradicts it or does not calibrate what
    the file decides.
    """
    return (_OnnxFile if is_onnx(path) else _OpenVinoFile)(path, assumed)


def read_values(tails: Mapping[Level, FoundTail]) -> dict[Level, Value]:
    """Return the raw value of each level that tails read, the guard's map among them."""
    values: dict[Level, list[Value]] = {"image": [], "pixel": []}
    for level, tail in tails.items():
        values["pixel" if tail.from_map else level].append(tail.raw)
    values["pixel"] += [tail.guard_maps for tail in tails.values() if tail.guard_maps is not None]
    return {level: found[0] for level, found in values.items() if found}


class _OnnxFile(AttachedModel):
    format, form = "onnx", OnnxFormat()
    view: OnnxView

    def _settle_record(self, remarks: list[str], *, is_assumed: bool, is_converted: bool) -> list[str]:
        """Take the types and shapes that the original declared, or that ONNX infers for them.

        Another tool may have given a raw value another name: then it is the one that the tail reads.
        """
        items = decoded_outputs(self.record.original, where=self._where)
        original = _with_outputs(self._model, items, self.record.renamed)
        ports, read = {port.name: port for port in self.form.outputs(original)}, read_values(self.tails)
        raw: dict[Level, PortInfo] = {}
        for level, name in self.record.raw.items():
            if name not in ports:
                raise MetadataError(f"{self.path}: the record names '{name}' as the raw {level} output, which was none")
            raw[level] = port = ports[name]
            if port.dtype not in FLOAT_TYPES:
                raise MetadataError(f"{self.path}: the record has a raw {level} output of {port.dtype}")
            if level in read and not self.view.has(name):
                raw[level] = port._replace(name=str(read[level]))
                remarks.append(f"'{read[level]}' is what the {level} level reads: '{name}' of the record is gone")
        self.raw = raw
        return remarks

    def _assumed_record(self, found: FoundTails, assumed: Assumed) -> TailRecord:
        values = {level: str(value) for level, value in read_values(self.tails).items()}
        names = {
            level: raw_name(self.tails[level], name) if level in self.tails else name for level, name in values.items()
        }
        items = [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(values.values())]
        known = {port.name: port for port in self.form.outputs(_with_outputs(self._model, items, {}))}
        outputs = [
            onnx.helper.make_tensor_value_info(
                names[level], ELEMENT_TYPES.get(known[name].dtype, onnx.TensorProto.FLOAT), known[name].shape
            )
            for level, name in values.items()
        ]
        renamed = {names[level]: name for level, name in values.items() if names[level] != name}
        original = {"outputs": [encoded_port(item) for item in outputs], "renamed": renamed}
        return assumed.record(found, values, original, where=self.path)

    @cached_property
    def nan_test(self) -> Literal["sum", "l1", "arithmetic"]:
        """As the guard does that is there; else by sum where the opset knows IsNaN and Where, or by arithmetic."""
        image = self.tails.get("image")
        if image is not None and image.guard is not None:
            nodes = (self.view.producer(value) for value in image.values)
            return "sum" if any(node is not None and node.op == "is_nan" for node in nodes) else "arithmetic"
        opset = default_opset(self._model)
        known = all(LOWERINGS[op][0].since <= opset for op in ("is_nan", "select"))
        return "sum" if known else "arithmetic"

    def names_in(self, original: Mapping[str, Any]) -> list[tuple[str, ...]]:
        return [(item.name,) for item in decoded_outputs(original, where=self._where)]

    def original_output(self, level: Level) -> PortInfo:
        port, name = self.raw[level], self.record.raw[level]
        back = {new: old for old, new in self.record.renamed.items()}
        return PortInfo(back.get(name, name), port.dtype, port.shape)

    def is_raw(self, level: Level, value: Value) -> bool:
        return level in self.raw and value == self.raw[level].name

    def cut(self, names: tuple[str, ...], inputs: Sequence[PortInfo]) -> bytes:
        model = self._model
        needed = list(_behind(model.graph, names, stop=frozenset(port.name for port in inputs)))
        read = {name for node in needed for name in node.input}
        given = {tensor.name for tensor in model.graph.initializer}
        declared = {port.name: ELEMENT_TYPES[port.dtype] for port in self.raw.values()}  # what a step made among them
        declared |= {item.name: item.type.tensor_type.elem_type for item in model.graph.output}
        outputs = [onnx.ValueInfoProto(name=name) for name in names]
        for item in outputs:  # without the shape: the tail alone is fed other sizes than the file declares
            item.type.tensor_type.elem_type = declared.get(item.name, onnx.TensorProto.FLOAT)
        graph = onnx.helper.make_graph(
            needed,
            "tail",
            [
                onnx.helper.make_tensor_value_info(port.name, ELEMENT_TYPES[port.dtype], port.shape)
                for port in inputs
                if port.name in read
            ]
            + [item for item in model.graph.input if item.name in read and item.name in given],
            outputs,
            [tensor for tensor in model.graph.initializer if tensor.name in read],
        )
        alone = onnx.helper.make_model(graph, opset_imports=model.opset_import, functions=model.functions)
        alone.ir_version = max(model.ir_version, 4)  # below, an initializer had to be a graph input too
        text: bytes = alone.SerializeToString()
        return text

    def save_tail(self, folder: Path, shapes: Shapes) -> tuple[str, ...]:
        model, is_open = onnx.ModelProto.FromString(self.tail_alone(shapes)), _is_open(shapes)
        for item, output in zip(model.graph.output, self.tail.outputs, strict=True):
            if output.shape is not None:  # `cut` leaves it out, and without it a file is not valid
                last = (*(None for _ in output.shape[:-1]), 4 if self.tail.options.is_packed else None)
                axes = last[len(last) - len(output.shape) :] if is_open else output.shape
                item.CopyFrom(onnx.helper.make_tensor_value_info(item.name, item.type.tensor_type.elem_type, axes))
        (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
        return tuple(item.name for item in model.graph.input)

    def tapped(self, folder: Path, taps: Mapping[str, PortInfo]) -> Path:
        def tap(model: onnx.ModelProto) -> bool:
            self.form.show(model, {name: port.name for name, port in taps.items()})
            return True

        return self._edited(folder / "tapped", tap)

    def host(self, folder: Path) -> Path:
        def cut_off(model: onnx.ModelProto) -> bool:
            names = tuple(port.name for port in self.raw.values())
            needed = list(_behind(model.graph, names, stop=frozenset(item.name for item in model.graph.input)))
            for field in (model.graph.node, model.graph.output):
                del field[:]
            model.graph.node.extend(needed)
            for port in self.raw.values():
                kind = ELEMENT_TYPES[port.dtype]
                model.graph.output.append(onnx.helper.make_tensor_value_info(port.name, kind, None))
            return True

        return self._edited(folder / "host", cut_off)

    def _edited(self, folder: Path, edit: Callable[[onnx.ModelProto], bool]) -> Path:
        folder.mkdir(exist_ok=True)
        return self.form.edited(self.path, folder, edit, purpose=PURPOSE, is_checked=False)[1]

    def layer_inputs(self, record: LayerRecord) -> Mapping[str, PortInfo]:
        """Return them with the types and shapes of the outputs that there were before the layer."""
        names, since = record.renamed, self._renamed_since(record)
        items = decoded_outputs(record.original, where=self._where)
        before = {item.name: names.get(item.name, item.name) for item in items}
        now = {original: since.get(name, name) for original, name in before.items()}
        ports = {port.name: port for port in self.form.outputs(_with_outputs(self._model, items, now))}
        ports |= {port.name: port for port in self.inputs}
        read = {key: since.get(name, name) for key, name in record.read.items()}
        if record.where == "transform":
            strange = [record.read[key] for key, name in read.items() if name not in ports]
            lost = [f"the layer reads '{name}', which was no output" for name in strange]
            refuse_misfit(record.where, lost, where=self._where)
        return {key: ports.get(name, PortInfo(name, "float32", None)) for key, name in read.items()}

    def layer_values(self, record: LayerRecord) -> Mapping[str, str]:
        since = self._renamed_since(record)
        return {name: since.get(value, value) for name, value in record.made.items()}

    def _renamed_since(self, record: LayerRecord) -> Mapping[str, str]:
        """Return the names that values of a layer have now: the tail renamed what stood before it."""
        return self.record.renamed if record.where == "transform" else {}


def _is_open(shapes: Shapes) -> bool:
    return not any(isinstance(axis, int) for axes in shapes.values() for axis in axes)


def _behind(graph: onnx.GraphProto, names: tuple[str, ...], *, stop: frozenset[str]) -> Iterator[onnx.NodeProto]:
    """Yield the nodes that compute values from the raw ones, in the order of the graph."""
    producers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    constants = {tensor.name for tensor in graph.initializer}
    pending, seen = list(names), set[int]()
    while pending:
        name = pending.pop()
        if name in stop or name in constants or not name:
            continue
        if name not in producers:
            raise UnsupportedModelError(
                "the tail does not compute its outputs from the raw values alone",
                found=f"it reads '{name}'",
                needed=f"only {', '.join(sorted(stop))} and constants",
            )
        if producers[name] not in seen:
            seen.add(producers[name])
            pending += graph.node[producers[name]].input
    return (graph.node[index] for index in sorted(seen))


def _with_outputs(
    model: onnx.ModelProto, outputs: Iterable[onnx.ValueInfoProto], now: Mapping[str, str]
) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.output[:]
    for item in outputs:
        made.graph.output.add(name=now.get(item.name, item.name), type=item.type)
    return made


class _OpenVinoFile(AttachedModel):
    """Cutting a model changes it, so every cut starts from the file again; reading maps the weights and is quick."""

    format, form = "openvino", OpenVinoFormat()
    view: OpenVinoView

    def _settle_record(self, remarks: list[str], *, is_assumed: bool, is_converted: bool) -> list[str]:
        if is_converted:
            self.record, remarks = self._native_record(self.record), [_CONVERTED]
        elif not is_assumed:
            recorded_results(self.record.original, where=self._where)
        decided = [tail for tail in self.tails.values() if tail.decides]
        is_frozen = all(tail.is_frozen or (is_converted and tail.adjusted is None) for tail in decided)
        options = self.record.options
        if options.adjustable != "nothing" and is_frozen:
            options = replace(options, adjustable="nothing", as_parameters=False)
            self.record, remarks = replace(self.record, options=options), [*remarks, _FROZEN]
        self.raw = {level: self._raw_port(name) for level, name in self.record.raw.items()}
        return remarks

    def _native_record(self, record: TailRecord) -> TailRecord:
        """Return the record of an ONNX file in the terms of the IR that was made of it."""
        renamed, tensors = record.original.get("renamed", {}), tensors_of(self._model)
        read = {level: tensors[name] for level, name in record.raw.items() if name in tensors}
        values: dict[Level, Any] = {**read_values(self.tails), **read}
        for level in record.raw.keys() - values.keys():
            name = record.raw[level]
            raise MetadataError(f"{self.path}: the record names a raw value '{name}' that the model does not have")
        results = [
            _described(item.name, tensors.get(renamed.get(item.name, item.name)), (item.name,))
            for item in decoded_outputs(record.original, where=self._where)
        ]
        raw = {level: value_name(values[level]) for level in record.raw}
        return replace(record, raw=raw, original={"results": results, "renamed": renamed})

    def _assumed_record(self, found: FoundTails, assumed: Assumed) -> TailRecord:
        values: Mapping[Level, Any] = read_values(self.tails)
        results: list[dict[str, Any]] = []
        renamed: dict[str, str] = {}
        for level, value in values.items():
            tail = self.tails.get(level)
            now = {name: name if tail is None else raw_name(tail, name) for name in sorted(value.get_names())}
            results.append(_described(f"{level}/result", value, tuple(now.values())))
            renamed |= {then: name for name, then in now.items() if then != name}
        raw = {level: value_name(value) for level, value in values.items()}
        return assumed.record(found, raw, {"results": results, "renamed": renamed}, where=self.path)

    @property
    def nan_test(self) -> Literal["sum", "l1", "arithmetic"]:
        """By the L1 norm, which is exact; in a file that was converted from ONNX by what the ONNX model had."""
        image = self.tails.get("image")
        if image is None or image.guard is None:
            return "l1"
        values: Sequence[Any] = image.values
        kinds = {str(value.get_node().get_type_name()) for value in values}
        return "l1" if "ReduceL1" in kinds else "sum" if "IsNaN" in kinds else "arithmetic"

    def names_in(self, original: Mapping[str, Any]) -> list[tuple[str, ...]]:
        return [tuple(item.get("tensor_names", ())) for item in original.get("results", [])]

    def original_output(self, level: Level) -> PortInfo:
        for index, item in enumerate(self.record.original.get("results", [])):
            if f"{item.get('source')}:{item.get('port')}" == self.record.raw[level]:
                names = tuple(item.get("tensor_names", ()))
                return PortInfo((names or (f"output_{index}",))[0], self.raw[level].dtype, None, aliases=names)
        raise MetadataError(f"{self.path}: the record does not say which result was the raw {level} output")

    def is_raw(self, level: Level, value: Value) -> bool:
        return level in self.raw and value == self._source(self._model, self.record.raw[level])

    def is_rounded(self, value: Value) -> bool:
        return self.view.is_rounded(value)

    def cut(self, names: tuple[str, ...], inputs: Sequence[PortInfo]) -> Any:
        openvino = import_openvino(purpose=PURPOSE)
        model = self.form.load(self.path, purpose=PURPOSE)
        results = [result for result in model.get_results() if not result_names(result).isdisjoint(names)]
        found = {name for result in results for name in result_names(result)}
        results += [self._inner_result(model, name) for name in names if name not in found]
        parameters = []
        for port in inputs:
            source = self._source(model, port.name)
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

    def save_tail(self, folder: Path, shapes: Shapes) -> tuple[str, ...]:
        model = self.tail_alone(shapes)
        for parameter in model.get_parameters():  # else they are called after how many there have been
            parameter.set_friendly_name(min(parameter.output(0).get_names()))
        for result in model.get_results():
            result.set_friendly_name(f"{min(result_names(result))}/result")
        import_openvino(purpose=PURPOSE).save_model(model, folder / "model.xml", compress_to_fp16=False)
        return tuple(min(parameter.output(0).get_names()) for parameter in model.get_parameters())

    def tapped(self, folder: Path, taps: Mapping[str, PortInfo]) -> Any:
        model = self.form.load(self.path, purpose=PURPOSE)
        self.form.show(model, {name: port.name for name, port in taps.items()})
        return model

    def host(self, folder: Path) -> Any:
        openvino = import_openvino(purpose=PURPOSE)
        model = self.form.load(self.path, purpose=PURPOSE)
        results = [self._inner_result(model, port.name) for port in self.raw.values()]
        sinks = [sink for sink in model.get_sinks() if _variable(sink) not in INPUT_NAMES]
        reached = _above([*results, *sinks])
        parameters = [item for item in model.get_parameters() if str(item.get_name()) in reached]
        return openvino.Model(results, sinks, parameters, "host")

    def layer_inputs(self, record: LayerRecord) -> Mapping[str, PortInfo]:
        return {key: self._raw_port(name) for key, name in record.read.items()}

    def _raw_port(self, name: str) -> PortInfo:
        port = port_info(self._source(self._model, name), name)
        return PortInfo(name, port.dtype, port.shape)

    def _source(self, model: Any, name: str) -> Any:
        """Return the output of an operator that the record names as ``<friendly name>:<port>``."""
        friendly_name, _, port = name.rpartition(":")
        for node in model.get_ops():
            if node.get_friendly_name() == friendly_name and port.isdecimal() and int(port) < node.get_output_size():
                return node.output(int(port))
        raise MetadataError(f"{self.path}: the record names a raw value '{name}' that the model does not have")

    def _inner_result(self, model: Any, name: str) -> Any:
        try:
            source = self._source(model, name)
        except MetadataError as error:
            found = ", ".join(sorted({each for result in model.get_results() for each in result_names(result)}))
            raise UnsupportedModelError(
                f"{self.path} has no output '{name}'", found=found, needed="the tail's outputs"
            ) from error
        source.add_names({name})
        return import_openvino(purpose=PURPOSE).opset13.result(source)


def _described(name: str, value: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Return a result as a record has it."""
    source, _, port = ("", "", "0") if value is None else value_name(value).rpartition(":")
    return {"name": name, "source": source, "port": int(port), "tensor_names": list(names)}


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


@contextmanager
def without_decisions(
    whole: AttachedModel, assumed: Assumed | None = None
) -> Iterator[tuple[AttachedModel, AttachedModel | None]]:
    """Yield the file whose tail is the last there is, and the one given where something stands behind its decision.

    Where nothing does the first is the file itself; else a copy for as long as the block runs.
    """
    path = whole.path
    if whole.layer("decision") is None:
        yield whole, None
        return
    with temporary_folder() as folder:
        target = folder / path.name
        whole.form.rewrite(
            path, target, lambda model: whole.form.take(model, "decision", where=str(path)), is_checked=False
        )
        yield load_attached(target, assumed), whole
