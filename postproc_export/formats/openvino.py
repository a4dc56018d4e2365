"""The OpenVINO format: layers and tails put on models, found in them and taken off, in place."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from graph_patterns.expr import SharedValueError
from graph_patterns.match import Site, Value
from graph_patterns.openvino import OpenVinoView, copied, emit, remove, set_numbers
from postproc_export.files import publishing
from postproc_export.formats.base import (
    PLAIN,
    Detached,
    Edit,
    Format,
    LayerOutput,
    Plan,
    Result,
    decoded_outputs,
    name_is_taken,
)
from postproc_export.formats.openvino_file import (
    add_names,
    ambiguous,
    described,
    name_nodes,
    name_operator,
    name_outputs,
    named_value,
    new_result,
    outputs_of,
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
from postproc_export.options import FileOptions, TailOptions
from postproc_export.ports import Selection
from postproc_export.process import backup_of, claimed
from postproc_export.reading.found import (
    FoundTails,
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
from postproc_export.record import KEYS, METADATA_KEY, PREFIXES, LayerRecord, TailRecord, Where, refuse_misfit
from postproc_export.runtimes import PortInfo
from postproc_export.runtimes.openvino import openvino_core, port_info, save_ir
from postproc_export.stats import CalibrationStats, Level
from postproc_export.tail import PREFIX, AdjustableInput, Tail, build_tail

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

    def view(self, model: Any) -> OpenVinoView:
        """Return the graph, for the matcher."""
        return OpenVinoView(model)

    def value_name(self, value: Any) -> str:
        """Return the operator's friendly name and the number of its output."""
        return value_name(value)

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

    def build_tail(self, model: Any, stats: CalibrationStats, options: TailOptions, selection: Selection) -> Tail:
        """Return a tail that finds a NaN by the L1 norm, and gives masks as uint8."""
        return build_tail(stats, options, selection, nan_test="l1", default_mask_dtype=self.mask_dtype)

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

    def _output_names(self, model: Any) -> Iterator[str]:
        return (name for result in model.get_results() for name in result_names(result))

    def _name_outputs(self, model: Any) -> Callable[[], None]:
        named = name_outputs(model)

        def unname() -> None:
            for result, names in named.items():
                result.output(0).set_names(names)

        return unname

    def _raw_values(self, model: Any, record: TailRecord) -> Mapping[Level, Any]:
        return raw_values(model, record, is_converted=self.was_converted(model, "tail"))

    def _original(self, model: Any, record: LayerRecord, *, where: str) -> list[str]:
        if self.was_converted(model, record.where):
            return [item.name for item in decoded_outputs(record.original, where=where)]
        return [f"{source}:{port}" for _, source, port in recorded_results(record.original, where=where)]

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

    def _doubts(self, model: Any, record: TailRecord, tails: Tails, *, where: str) -> Iterator[str]:
        tensors, _ = used_names(model)
        yield from (f"the tensor '{name}' is not in the model" for name in record.back if name not in tensors)
        there = {value_name(result.input_value(0)) for result in model.get_results()}.union(record.raw.values())
        for name, source, port in recorded_results(record.original, where=where):
            if f"{source}:{port}" not in there:
                yield f"the output '{name}' of the original is not in the model"

    def _take_layer(self, model: Any, record: LayerRecord, *, where: str) -> None:
        results = recorded_results(record.original, where=where)
        values = _between(model, record)
        refuse_misfit(record.where, list(_layer_misfits(model, record, results, values)), where=where)
        nodes = {node.get_friendly_name(): node for node in model.get_ops() if node.get_type_name() != "Result"}
        kept = {value_name(result.input_value(0)): result for result in model.get_results()}
        gone = [result for result in kept.values() if not result_names(result).isdisjoint(record.made)]
        final, fresh = [], []
        for name, source, port in results:
            result = kept.get(f"{source}:{port}")
            if result is None:
                result = new_result(nodes[source].output(port), name)
                fresh.append(result)
            final.append(result)
        _refuse_readers(model, values, gone)
        model.add_results(fresh)  # before any goes: a model without a result drops its operators
        for result in gone:
            model.remove_result(result)
        _reorder(model, final)
        rename_tensors(model, record.back)
        del model.get_rt_info()[KEYS[record.where]]

    def _take_tail(self, model: Any, found: FoundTails, *, where: str) -> Detached:
        restorer = _Restorer(model, found.tails, where)
        if found.record is None:
            return restorer.rebuild(found.misfits)
        return (restorer.restore_converted if found.is_converted else restorer.restore)(found.record)


def raw_values(model: Any, record: TailRecord, *, is_converted: bool) -> dict[Level, Any]:
    """Return the raw values that a record names, as far as the model has them."""
    values = tensors_of(model)
    if not is_converted:
        nodes = (node for node in model.get_ops() if node.get_type_name() != "Result")
        values = {value_name(output): output for node in nodes for output in node.outputs()}
    return {level: values[name] for level, name in record.raw.items() if name in values}


# --- Put operators behind the results.


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
    add = _add_parameter if as_parameters else _add_variable
    return {item.name: add(model, item, used) for item in plan.adjustable}


def _add_parameter(model: Any, item: AdjustableInput, used: set[str]) -> Any:
    import openvino.opset13 as opset

    parameter = opset.parameter([], np.float32)
    name_operator(parameter, f"{PREFIX}{item.name}", used)
    parameter.output(0).set_names({item.name})
    model.add_parameters([parameter])
    return parameter.output(0)


def _add_variable(model: Any, item: AdjustableInput, used: set[str]) -> Any:
    import openvino
    import openvino.opset13 as opset
    from openvino.op import assign, read_value
    from openvino.op.util import Variable, VariableInfo

    if any(variable.info.variable_id == item.name for variable in model.get_variables()):
        raise name_is_taken(item.name, by="a variable")
    default = opset.constant(np.float32(item.default))
    name_operator(default, f"{PREFIX}{item.name}/default", used)
    info = VariableInfo()
    info.variable_id, info.data_type, info.data_shape = item.name, openvino.Type.f32, openvino.PartialShape([])
    variable = Variable(info)  # one for both: an opset's own functions make two, and the model is not valid then
    read = read_value(default, variable)
    name_operator(read, f"{PREFIX}{item.name}", used)
    written = assign(read, variable)
    name_operator(written, f"{PREFIX}{item.name}/assign", used)
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


# --- Take custom steps and decisions off.


def _between(model: Any, record: LayerRecord) -> set[str]:
    """Return the operators of the layer: those of its prefix between what it made and what it reads."""
    places = {value_name(output): output.get_node() for output in outputs_of(model)}
    stop = {str(places[name].get_name()) for name in record.read.values() if name in places}
    pending = [places[name] for name in record.made.values() if name in places]
    values: set[str] = set()
    while pending:
        node = pending.pop()
        key = str(node.get_name())
        if key in stop or key in values or not node.get_friendly_name().startswith(PREFIXES[record.where]):
            continue
        values.add(key)
        pending += [node.input_value(index).get_node() for index in range(node.get_input_size())]
    return values


def _layer_misfits(
    model: Any, record: LayerRecord, results: Sequence[tuple[str, str, int]], gone: Collection[str]
) -> Iterator[str]:
    """Yield what a record says that cannot be true of the model without the layer."""
    tensors, _ = used_names(model)
    yield from (f"the value '{name}' is not there" for name in record.back if name not in tensors)
    yield from (f"the layer has not taken the name '{old}'" for old in record.renamed if old not in record.made)
    places = {value_name(output): output.get_node() for output in outputs_of(model)}
    yield from (f"the value '{name}' is not there" for name in record.read.values() if name not in places)
    for name, value in record.made.items():
        if value not in places or str(places[value].get_name()) not in gone:
            yield f"the output '{name}' is not the layer's"
    for name, source, port in results:
        node = places.get(f"{source}:{port}")
        if node is None or node.get_type_name() == "Result" or str(node.get_name()) in gone:
            yield f"the result '{name}' is of '{source}', which is not in the original"


def _refuse_readers(model: Any, values: set[str], gone: Iterable[Any]) -> None:
    """Look at the model's own operators alone: a tail that was just taken off may still be there, out of its reach."""
    going = values | _keys(gone)
    for node in model.get_ops():
        if str(node.get_name()) in going:
            continue
        for index in range(node.get_input_size()):
            source = node.input_value(index).get_node()
            if str(source.get_name()) in values:
                raise SharedValueError(
                    f"'{source.get_friendly_name()}' has a reader outside what is to be removed",
                    found=f"reader {node.get_friendly_name()}",
                    needed="every value of it read only inside it",
                    fix=f"remove {node.get_friendly_name()} first, or export the model again without it",
                )


# --- Take a tail off, and give the original's results and names back.


class _Restorer:
    def __init__(self, model: Any, tails: Tails, where: str) -> None:
        self._model = model
        self._tails = tails
        self._where = where
        names = {name for tail in tails.values() for name in tail.outputs}
        self._gone = [result for result in model.get_results() if not names.isdisjoint(result_names(result))]

    def restore(self, record: TailRecord) -> Detached:
        """Give back the results and names that the record keeps."""
        raw = raw_values(self._model, record, is_converted=False)
        described = recorded_results(record.original, where=self._where)
        kept = {_key(result): result for result in self._remaining()}
        operators = (node for node in self._model.get_ops() if node.get_type_name() != "Result")
        nodes = {node.get_friendly_name(): node for node in operators}
        final, made, notes = [], [], touched(self._tails)
        for name, source, port in described:
            result = kept.pop((name, source, port), None)
            if result is None and f"{source}:{port}" in record.raw.values():
                result = new_result(nodes[source].output(port), name)
                made.append(result)
            if result is None:
                notes.append(f"the output '{name}' of the original is not in the model any more")
            else:
                final.append(result)
        notes += [f"the output '{name}', which the original did not have, stays" for name, *_ in kept]
        self._replace(made, [*final, *kept.values()])
        back = self._rename(record.back)
        notes += [f"'{old}' is not called '{new}' again" for old, new in record.back.items() if old not in back]
        return Detached(
            tails=self._tails,
            renamed=back,
            notes=tuple(notes),
            is_original=not notes,
            raw_outputs=self._indices(raw),
        )

    def restore_converted(self, record: TailRecord) -> Detached:
        """Give back the names and the order of an ONNX model's outputs in what OpenVINO made of it."""
        wanted = [item.name for item in decoded_outputs(record.original, where=self._where)]
        tensors = tensors_of(self._model)
        results = {name: item for item in self._remaining() for name in result_names(item)}
        final, made, notes = [], [], [CONVERTED]
        for name in wanted:
            current = record.renamed.get(name, name)
            if current in results:
                final.append(results[current])
            elif current in tensors and current in record.raw.values():
                made.append(new_result(tensors[current], f"{name}/result"))
                final.append(made[-1])
            else:
                notes.append(f"the output '{name}' of the original is not in the model any more")
        raw = raw_values(self._model, record, is_converted=True)
        self._replace(made, final)
        renamed = self._rename(record.back)
        return Detached(tails=self._tails, renamed=renamed, notes=tuple(notes), raw_outputs=self._indices(raw))

    def rebuild(self, misfits: tuple[str, ...]) -> Detached:
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
        notes = (*(f"the record was left aside: {misfit}" for misfit in misfits), *notes_of(self._tails))
        return Detached(tails=self._tails, renamed=renamed, notes=notes, raw_outputs=self._indices(sources))

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
        remove(
            self._model,
            [value for tail in self._tails.values() for value in tail.values],
            results=self._gone,
            instead=made,
        )
        _reorder(self._model, final)
        for value in adjusted_values(self._tails):
            _remove_adjustable(self._model, value)
        drop_record(self._model)

    def _rename(self, back: Mapping[str, str]) -> dict[str, str]:
        tensors, _ = used_names(self._model)
        back = {new: old for new, old in back.items() if new in tensors and old not in tensors}
        rename_tensors(self._model, back)
        return back


def drop_record(model: Any) -> None:
    """Remove the tail's record, wherever it stands in the rt_info."""
    info = model.get_rt_info()
    if model.has_rt_info([METADATA_KEY]):
        del info[METADATA_KEY]
    if model.has_rt_info([_FRAMEWORK, METADATA_KEY]):
        others = [key for key in info[_FRAMEWORK] if key != METADATA_KEY]
        kept = {key: str(model.get_rt_info([_FRAMEWORK, key]).value) for key in others}
        del info[_FRAMEWORK]
        for key, value in kept.items():
            model.set_rt_info(value, [_FRAMEWORK, key])


def _own_output(raw: Any, name: str) -> Any:
    """Return an output for a result: an input of the model gets an operator between, as its name is not an output's."""
    if raw.get_node().get_type_name() != "Parameter":
        return raw
    copy = copied(raw, axes=f"{name}/same")
    copy.set_friendly_name(name)
    return copy.output(0)


def _key(result: Any) -> tuple[str, str, int]:
    source = result.input_value(0)
    return result.get_friendly_name(), source.get_node().get_friendly_name(), source.get_index()
