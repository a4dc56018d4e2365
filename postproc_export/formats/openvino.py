"""The OpenVINO format: layers and tails put on models, found in them and taken off, in place."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from graph_patterns.match import Site, Value
from graph_patterns.openvino import OpenVinoView, copied, emit, remove, set_numbers
from postproc_export.errors import UsageError
from postproc_export.files import publishing
from postproc_export.formats.base import (
    PLAIN,
    DetachResult,
    Edit,
    Format,
    LayerOutput,
    Plan,
    Result,
    decoded_outputs,
    name_is_taken,
)
from postproc_export.formats.digest import content_digest
from postproc_export.formats.openvino_file import (
    add_names,
    ambiguous,
    content_parts,
    described,
    flattened,
    name_nodes,
    name_operator,
    name_outputs,
    named_value,
    new_result,
    pair_of,
    read_ir,
    recorded_results,
    refuse_ambiguous,
    refuse_duplicates,
    rename_tensors,
    result_names,
    take_names,
    tensors_of,
    used_names,
    value_name,
    verify_ir,
)
from postproc_export.model_info import MODEL_INFO
from postproc_export.options import FileOptions, TailOptions
from postproc_export.ports import PortInfo, Selection
from postproc_export.process import backup_of, claimed
from postproc_export.reading.found import (
    FoundLayer,
    Tails,
    adjusted_values,
    is_exported,
    notes_of,
    raw_name,
    recorded_raw,
    refuse_no_outputs,
    restored_tails,
    touched,
)
from postproc_export.reading.tail import SCORE_OUTPUT
from postproc_export.record import KEYS, PREFIXES, LayerRecord, TailRecord, Where
from postproc_export.runtimes.openvino import openvino_core, port_info, save_ir
from postproc_export.stats import CalibrationStats, Level
from postproc_export.tail import PREFIX, Tail, TailForm, build_tail

CONVERTED: Final = (
    "the model was converted to OpenVINO after attaching: the names and the order of its outputs are those of the "
    "original, the rest is what the conversion made of it"
)
_FRAMEWORK: Final = "framework"  # where a conversion puts the metadata of an ONNX model

Make = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Returns the `openvino.Output` of each output of a layer, from those of its inputs."""


class OpenVinoFormat(Format):
    """OpenVINO IRs; `openvino.Model`, whose weights are mapped."""

    name = "openvino"
    entry = "rt_info entry"
    needs_raw = True
    runtimes = ("openvino",)
    mask_dtype = "uint8"
    separator = "/"

    def load(self, path: Path, *, purpose: str) -> Any:
        """Read an IR."""
        return read_ir(openvino_core(purpose=purpose), path)

    def rewrite(
        self, source: Path, target: Path, edit: Edit[Result], options: FileOptions = PLAIN, *, is_checked: bool = True
    ) -> Result:
        """Edit a model and write both of its files; what was written is always read again.

        In place, both are kept as ``*.postproc-backup`` until both are replaced. Raises FileError or
        UnsupportedModelError if the source cannot be read, or the target cannot be written.
        """
        if options.link_weights:
            what = "--link-weights is for external data of an ONNX model"
            raise UsageError(what, found=f"{source}, an OpenVINO IR", fix="leave it out")
        core = openvino_core(purpose="rewriting an OpenVINO IR")
        sources, targets = pair_of(source), pair_of(target)
        with claimed(targets):
            if any(backup_of(path).exists() for path in sources):
                with claimed(sources):  # which puts back what a killed run left
                    pass
            model = read_ir(core, source)
            result = edit(model)
            if not result:
                return result
            with publishing(targets, inputs=sources, in_place=options.in_place) as publication:
                written = publication.temporary(target)
                save_ir(model, written, target=target)
                verify_ir(core, written, model, target)
        return result

    def edited(
        self, path: Path, folder: Path, edit: Edit[Result], *, purpose: str, is_checked: bool = True
    ) -> tuple[Result, Any]:
        """Edit a model in memory; nothing is written."""
        model = self.load(path, purpose=purpose)
        return edit(model), model

    def outputs(self, model: Any) -> list[PortInfo]:
        """Return the outputs of a model."""
        return [port_info(port, f"output_{index}") for index, port in enumerate(model.outputs)]

    def inputs(self, model: Any) -> list[PortInfo]:
        """Return the inputs of a model."""
        return [port_info(port, f"input_{index}") for index, port in enumerate(model.inputs)]

    def digest(self, source: Any, *, inputs: Collection[str] = ()) -> str:
        """Return the digest; weights that are mapped stay so."""
        model = self.load(source, purpose="reading an OpenVINO IR") if isinstance(source, Path) else source
        return content_digest(content_parts(model))

    def runnable(self, model: Any) -> Any:
        """Return a clone, which shares the weights."""
        return model.clone()

    def view(self, model: Any) -> OpenVinoView:
        """Return the graph, for the matcher."""
        return OpenVinoView(model)

    def value_name(self, value: Any) -> str:
        """Return the operator's friendly name and the number of its output."""
        return value_name(value)

    def show(self, model: Any, values: Mapping[str, str]) -> None:
        """Add a result for each, behind a conversion where the value is not float32."""
        import openvino
        import openvino.opset13 as opset

        sources = recorded_values(model)
        for name, value in values.items():
            source = sources[value]
            if source.get_element_type() != openvino.Type.f32:
                source = opset.convert(source, "f32").output(0)
            source.add_names({name})
            model.add_results([new_result(source, name)])

    def edit(self, model: Any, numbers: Mapping[Site, float]) -> None:
        """Change numbers of the tail in place."""
        set_numbers(model, numbers, prefix=PREFIX)

    def recorded(self, model: Any, layer: Where, *, where: str) -> str | None:
        """Return the text of a record, that of an ONNX model that was converted, too."""
        paths = [path for path in ([KEYS[layer]], [_FRAMEWORK, KEYS[layer]]) if model.has_rt_info(path)]
        return str(model.get_rt_info(paths[0]).value) if paths else None

    def was_converted(self, model: Any, layer: Where) -> bool:
        """Whether the record of a layer stands where a conversion from ONNX puts it."""
        return not model.has_rt_info([KEYS[layer]]) and bool(model.has_rt_info([_FRAMEWORK, KEYS[layer]]))

    def model_info(self, model: Any) -> dict[str, str]:
        """Return the rt_info entries below `model_info`."""
        prefix = f"{MODEL_INFO}/"
        entries = flattened(model.get_rt_info())
        return {key.removeprefix(prefix): value for key, value in entries.items() if key.startswith(prefix)}

    def _set_model_info(self, model: Any, settings: Mapping[str, str]) -> None:
        for key, value in settings.items():
            model.set_rt_info(value, [MODEL_INFO, key])

    def _drop_model_info(self, model: Any, keys: Collection[str]) -> None:
        _drop_below(model, MODEL_INFO, keys)
        _drop_below(model, _FRAMEWORK, [f"{MODEL_INFO} {key}" for key in keys])

    def build_tail(self, model: Any, stats: CalibrationStats, options: TailOptions, selection: Selection) -> Tail:
        """Return a tail that finds a NaN by the L1 norm, and gives masks as uint8."""
        if options.made_for != "any":
            what = f"--for {options.made_for} is for an ONNX model"
            raise UsageError(what, found="an OpenVINO IR", fix="attach to the ONNX file, or leave it out")
        return build_tail(stats, options, selection, form=TailForm("l1", "decided"), default_mask_dtype=self.mask_dtype)

    def put(self, model: Any, plan: Plan, *, make: Make | None = None) -> LayerRecord:
        """Append the operators of a layer behind the results; nothing else is touched."""
        results = {port.name: item for port, item in zip(self.outputs(model), model.get_results(), strict=True)}
        refuse_ambiguous(model, (result.input_value(0).get_node() for result in results.values()))
        inputs = zip(self.inputs(model), model.inputs, strict=True)
        sources = {info.name: port.get_node().output(0) for info, port in inputs}
        sources |= {name: result.input_value(0) for name, result in results.items()}
        read = {name: sources.get(port.name) or named_value(model, port.name) for name, port in plan.inputs.items()}
        document: dict[str, Any] = {"results": [described(result) for result in results.values()]}
        tensors, used = used_names(model)
        taken = {name: "an input" for port in model.inputs for name in port.get_names()}
        taken |= {
            name: "another output"
            for port, result in results.items()
            if port not in plan.replaced
            for name in result_names(result)
        }
        renamed = plan.renamings(tensors, tensors, taken)
        rename_tensors(model, renamed)
        if renamed:
            document["renamed"] = renamed
        prefix, stop = PREFIXES[plan.where], _keys(model.get_ops())
        if make is not None:
            outputs = make(read)
        else:
            given = _add_adjustable(model, plan, used)
            outputs = emit(plan.exprs, inputs={**read, **given}, prefix=prefix, taken=frozenset(used))
        for name, output in outputs.items():
            output.set_names({name})
        name_nodes(outputs.values(), stop=stop, prefix=prefix, used=used)
        _replace_results(model, plan, results, outputs, used)
        refuse_duplicates(model, plan.names)
        record = plan.record(
            read={name: value_name(output) for name, output in read.items()},
            made={name: value_name(output) for name, output in outputs.items()},
            original=document,
        )
        model.set_rt_info(record.dumps(), KEYS[plan.where])
        return record

    def _given(self, model: Any) -> Iterator[tuple[str, str]]:
        for result in model.get_results():
            yield from ((name, value_name(result.input_value(0))) for name in result_names(result) or {""})

    def _name_outputs(self, model: Any) -> Callable[[], None]:
        named = name_outputs(model)

        def unname() -> None:
            for result, names in named.items():
                result.output(0).set_names(names)

        return unname

    def _values(self, model: Any, record: LayerRecord) -> dict[str, Any]:
        return recorded_values(model, is_converted=self.was_converted(model, record.where))

    def _names(self, model: Any) -> Collection[str]:
        return used_names(model)[0]

    def _between(self, model: Any, record: LayerRecord) -> list[Any]:
        values = self._values(model, record)
        stop = _keys(values[name].get_node() for name in record.sources if name in values)
        pending = [values[name].get_node() for name in record.made.values() if name in values]
        nodes: dict[str, Any] = {}
        while pending:
            node = pending.pop()
            key = str(node.get_name())
            if key not in stop and key not in nodes and node.get_friendly_name().startswith(PREFIXES[record.where]):
                nodes[key] = node
                pending += [node.input_value(index).get_node() for index in range(node.get_input_size())]
        return [output for node in nodes.values() for output in node.outputs()]

    def _original(self, model: Any, record: LayerRecord, *, where: str) -> dict[str, str]:
        if self.was_converted(model, record.where):
            names = [item.name for item in decoded_outputs(record.original, where=where)]
            return {record.renamed.get(name, name): name for name in names}
        return {f"{source}:{port}": name for name, source, port in recorded_results(record.original, where=where)}

    def _misfits(self, model: Any, record: TailRecord, tails: Tails, *, where: str) -> Iterator[str]:
        if self.was_converted(model, "tail"):
            return
        results = recorded_results(record.original, where=where)
        ours = {value_name(value) for tail in tails.values() for value in tail.values}
        for name in (f"{source}:{port}" for _, source, port in results):
            if name in ours:
                yield f"a result of the original is of '{name}', which is of the tail"
        for tail in tails.values():
            recorded = recorded_raw(record, tail)
            if recorded is not None and recorded != value_name(tail.raw):
                yield f"the {tail.level} level reads '{value_name(tail.raw)}', not '{recorded}'"
        yield from (f"several operators are called '{name}'" for name in ambiguous(model, (row[1] for row in results)))

    def _take(self, model: Any, found: FoundLayer, *, where: str) -> DetachResult:
        restorer = _Restorer(model, found, where)
        if found.record is None:
            return restorer.rebuild()
        return (restorer.restore_converted if found.is_converted else restorer.restore)(found.record)


def recorded_values(model: Any, *, is_converted: bool = False) -> dict[str, Any]:
    """Return the outputs of all operators but results, by the names that a record gives them."""
    if is_converted:
        return tensors_of(model)
    nodes = (node for node in model.get_ops() if node.get_type_name() != "Result")
    return {value_name(output): output for node in nodes for output in node.outputs()}


def _replace_results(
    model: Any, plan: Plan, results: Mapping[str, Any], outputs: Mapping[str, Any], used: set[str]
) -> None:
    added = {name: new_result(output, "") for name, output in outputs.items()}
    for name, result in added.items():
        name_operator(result, f"{PREFIXES[plan.where]}{name}/result", used)
    order = plan.order(results)
    model.add_results(list(added.values()))  # before any is taken out: a model without a result drops its operators
    for port in results.keys() - {item for item in order if isinstance(item, str)}:
        model.remove_result(results[port])
    _reorder(model, (added[item.name] if isinstance(item, LayerOutput) else results[item] for item in order))


def _reorder(model: Any, final: Iterable[Any]) -> None:
    for result in final:  # the order of results is the order in which they were added
        model.remove_result(result)
        model.add_results([result])


def _keys(nodes: Iterable[Any]) -> set[str]:
    return {str(node.get_name()) for node in nodes}


def _add_adjustable(model: Any, plan: Plan, used: set[str]) -> dict[str, Any]:
    """Add the inputs by which a tail is adjusted, last: state variables with a default, or parameters."""
    as_parameters = plan.tail is not None and plan.tail.options.as_parameters
    return {
        name: _add_parameter(model, name, used) if as_parameters else _add_variable(model, name, default, used)
        for name, default in plan.adjustable.items()
    }


def _add_parameter(model: Any, name: str, used: set[str]) -> Any:
    import openvino.opset13 as opset

    parameter = opset.parameter([], np.float32)
    name_operator(parameter, f"{PREFIX}{name}", used)
    parameter.output(0).set_names({name})
    model.add_parameters([parameter])
    return parameter.output(0)


def _add_variable(model: Any, name: str, default: float, used: set[str]) -> Any:
    import openvino
    import openvino.opset13 as opset
    from openvino.op import assign, read_value
    from openvino.op.util import Variable, VariableInfo

    if any(variable.info.variable_id == name for variable in model.get_variables()):
        raise name_is_taken(name, by="a variable")
    constant = opset.constant(np.float32(default))
    name_operator(constant, f"{PREFIX}{name}/default", used)
    info = VariableInfo()
    info.variable_id, info.data_type, info.data_shape = name, openvino.Type.f32, openvino.PartialShape([])
    variable = Variable(info)  # one for both: an opset's own functions make two, and the model is not valid then
    read = read_value(constant, variable)
    name_operator(read, f"{PREFIX}{name}", used)
    written = assign(read, variable)
    name_operator(written, f"{PREFIX}{name}/assign", used)
    model.add_sinks([written])
    return read.output(0)


def _remove_adjustable(model: Any, value: Value) -> None:
    """Remove the variable or parameter that gives a value, unless something that is left in the model reads it."""
    node: Any = value.get_node()  # type: ignore[attr-defined]  # openvino ships no types for Output
    left = {other.get_name() for other in model.get_ops() if other.get_type_name() != "Assign"}
    if any(reader.get_node().get_name() in left for reader in node.output(0).get_target_inputs()):
        return
    if node.get_type_name() == "Parameter":
        model.remove_parameter(node)
    if node.get_type_name() == "ReadValue":
        name = node.get_attributes()["variable_id"]
        for sink in [sink for sink in model.get_sinks() if sink.get_attributes().get("variable_id") == name]:
            model.remove_sink(sink)
        for variable in [variable for variable in model.get_variables() if variable.info.variable_id == name]:
            model.remove_variable(variable)


class _Restorer:
    def __init__(self, model: Any, found: FoundLayer, where: str) -> None:
        self._model = model
        self._found = found
        self._tails = found.tails
        self._where = where
        names = found.given
        self._gone = [result for result in model.get_results() if not names.isdisjoint(result_names(result))]

    def restore(self, record: LayerRecord) -> DetachResult:
        """Give back the results and names that the record keeps."""
        values, kept = recorded_values(self._model), dict[str, Any]()
        remaining = self._remaining()
        for result in remaining:
            kept.setdefault(value_name(result.input_value(0)), result)
        final, made, notes = [], [], touched(self._tails)
        for name, source, port in recorded_results(record.original, where=self._where):
            place = f"{source}:{port}"
            result = kept.get(place)
            if result is not None:
                result.set_friendly_name(name)
            elif record.where != "tail" or place in record.sources:  # a step may replace what it does not read
                result = new_result(values[place], name)
                made.append(result)
            else:
                notes.append(f"the output '{name}' of the original is not in the model any more")
                continue
            final.append(result)
        known = _keys(final)
        added = [result for result in remaining if str(result.get_name()) not in known]
        notes += [f"the output '{item.get_friendly_name()}', which the original did not have, stays" for item in added]
        self._replace(made, [*final, *added])
        back = self._rename(record.back)
        notes += [f"'{old}' is not called '{new}' again" for old, new in record.back.items() if old not in back]
        return DetachResult(
            record=record,
            tails=self._tails,
            renamed=back,
            notes=tuple(notes),
            is_original=not notes,
            raw_outputs=self._indices({level: values[name] for level, name in self._found.raw.items()}),
        )

    def restore_converted(self, record: LayerRecord) -> DetachResult:
        """Give back the names and the order of an ONNX model's outputs in what OpenVINO made of it."""
        wanted = [item.name for item in decoded_outputs(record.original, where=self._where)]
        tensors = tensors_of(self._model)
        results = {name: item for item in self._remaining() for name in result_names(item)}
        final, made, notes = [], [], [CONVERTED]
        for name in wanted:
            current = record.renamed.get(name, name)
            if current in results:
                final.append(results[current])
            elif current in tensors and current in record.sources:
                made.append(new_result(tensors[current], f"{name}/result"))
                final.append(made[-1])
            else:
                notes.append(f"the output '{name}' of the original is not in the model any more")
        raw = {level: tensors[name] for level, name in self._found.raw.items() if name in tensors}
        self._replace(made, final)
        renamed = self._rename(record.back)
        return DetachResult(
            record=record, tails=self._tails, renamed=renamed, notes=tuple(notes), raw_outputs=self._indices(raw)
        )

    def rebuild(self) -> DetachResult:
        """Name and order the raw outputs from the tail's own, where no record that fits says how they were."""
        made: dict[Level, Any] = {}
        wanted: dict[Level, set[str]] = {}
        renamed: dict[str, str] = {}
        present = [result.input_value(0) for result in self._remaining()]
        for tail in restored_tails(self._tails):
            raw: Any = tail.raw
            score = SCORE_OUTPUT[tail.level]
            names = {} if is_exported(tail) else {old: raw_name(tail, old) for old in raw.get_names()}
            renamed |= {old: new for old, new in names.items() if old != new}
            if tail.is_ours and raw in present:
                continue
            made[tail.level] = new_result(_own_output(raw, score), f"{score}/sink_port_0")
            if is_exported(tail):
                wanted[tail.level] = {score}
        final: list[Any] = []
        remaining = {result.get_name() for result in self._remaining()}
        for result in self._model.get_results():
            if result.get_name() in remaining:
                final.append(result)
            else:
                names_here = result_names(result)
                final += [item for level, item in made.items() if self._tails[level].outputs[0] in names_here]
        self._replace(list(made.values()), final)
        for level, names_to_add in wanted.items():
            take_names(self._model, names_to_add)  # a conversion names tensors after variables
            add_names(made[level], names_to_add)
        renamed = self._rename(renamed)
        sources = {
            level: made[level].input_value(0) if level in made else tail.raw
            for level, tail in self._tails.items()
            if not tail.from_map
        }
        notes = (*(f"the record was left aside: {misfit}" for misfit in self._found.misfits), *notes_of(self._tails))
        return DetachResult(tails=self._tails, renamed=renamed, notes=notes, raw_outputs=self._indices(sources))

    def _remaining(self) -> list[Any]:
        """Return the results that are not given up; 2025 makes an operator of `==` between two of them."""
        gone = {result.get_name() for result in self._gone}
        return [result for result in self._model.get_results() if result.get_name() not in gone]

    def _indices(self, raw: Mapping[Level, Any]) -> dict[Level, str | int]:
        """Return the index of the result of each raw value."""
        results = self._model.get_results()
        return {
            level: index
            for level, value in raw.items()
            for index, result in enumerate(results)
            if result.input_value(0) == value
        }

    def _replace(self, made: list[Any], final: list[Any]) -> None:
        refuse_no_outputs(final, where=self._where)
        remove(self._model, self._found.values, results=self._gone, instead=made)
        _reorder(self._model, final)
        for value in adjusted_values(self._tails):
            _remove_adjustable(self._model, value)
        drop_record(self._model, self._found.where)

    def _rename(self, back: Mapping[str, str]) -> dict[str, str]:
        tensors, _ = used_names(self._model)
        back = {new: old for new, old in back.items() if new in tensors and old not in tensors}
        rename_tensors(self._model, back)
        return back


def drop_record(model: Any, layer: Where = "tail") -> None:
    """Remove the record of a layer, wherever it stands in the rt_info."""
    info, key = model.get_rt_info(), KEYS[layer]
    if model.has_rt_info([key]):
        del info[key]
    _drop_below(model, _FRAMEWORK, [key])


def _drop_below(model: Any, section: str, keys: Collection[str]) -> None:
    """Remove entries of a section of the rt_info, and the section where nothing else stands in it."""
    if not any(model.has_rt_info([section, key]) for key in keys):
        return
    info = model.get_rt_info()
    kept = {other: str(model.get_rt_info([section, other]).value) for other in info[section] if other not in keys}
    del info[section]
    for other, value in kept.items():
        model.set_rt_info(value, [section, other])


def _own_output(raw: Any, name: str) -> Any:
    """Return an output for a result: an input of the model gets an operator between, as its name is not an output's."""
    if raw.get_node().get_type_name() != "Parameter":
        return raw
    copy = copied(raw, axes=f"{name}/same")
    copy.set_friendly_name(name)
    return copy.output(0)
