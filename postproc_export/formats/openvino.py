"""Attach a tail to an OpenVINO model, in place, and take it off again with the original's results and names."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from graph_patterns.match import Site, Value
from graph_patterns.openvino import OpenVinoView, copied, emit, remove, set_numbers
from postproc_export import __version__
from postproc_export.formats.base import (
    Attached,
    Detached,
    Format,
    FoundTails,
    Outputs,
    Plan,
    Result,
    adjusted_values,
    decoded_outputs,
    final_order,
    is_exported,
    name_is_taken,
    new_name,
    new_names,
    notes_of,
    raw_name,
    recorded_names,
    refuse_attached,
    refuse_damaged,
    refuse_no_outputs,
    refuse_partial,
    replaced_outputs,
    restored_tails,
    touched,
    with_what_is_left,
)
from postproc_export.formats.openvino_file import read_ir, rewrite_openvino_file
from postproc_export.formats.openvino_layer import (
    Make,
    put_openvino_layer,
    read_openvino_layer,
    take_openvino_layer,
    was_converted,
)
from postproc_export.formats.openvino_names import (
    add_names,
    described,
    find_in_openvino_model,
    name_operator,
    new_result,
    raw_values,
    read_record,
    recorded_results,
    refuse_ambiguous,
    refuse_duplicates,
    rename_tensors,
    result_names,
    take_names,
    tensors_of,
    used_names,
    value_name,
)
from postproc_export.options import TailOptions
from postproc_export.ports import OutputChoice, select_outputs
from postproc_export.reading.tail import SCORE_OUTPUT, FoundTail
from postproc_export.record import METADATA_KEY, LayerRecord, TailRecord, Where
from postproc_export.runtimes import PortInfo
from postproc_export.runtimes.openvino import openvino_core, port_info
from postproc_export.stats import CalibrationStats, Level
from postproc_export.tail import PREFIX, AdjustableInput, Tail, TailOutput, build_tail, calibrated_levels

# --- Inputs for adjusting at run time in an OpenVINO model: state variables with a default, or parameters.


def add_adjustable(
    model: Any, inputs: Iterable[AdjustableInput], *, as_parameters: bool, used: set[str]
) -> dict[str, Any]:
    """Add the inputs of a tail, last, and return the `openvino.Output` of each by name; `used` are friendly names.

    Raises
    ------
    UnsupportedModelError
        If the model has a variable of that name.
    """
    add = _add_parameter if as_parameters else _add_variable
    return {item.name: add(model, item, used) for item in inputs}


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


def remove_adjustable(model: Any, values: Iterable[Value]) -> None:
    """Remove the variables and parameters that give values, unless something that is left in the model reads them."""
    for value in values:
        node: Any = value.get_node()  # type: ignore[attr-defined]  # openvino ships no types for Output
        if _is_read(model, node):
            continue
        match node.get_type_name():
            case "ReadValue":
                _remove_variable(model, node.get_attributes()["variable_id"])
            case "Parameter":
                model.remove_parameter(node)


def _is_read(model: Any, node: Any) -> bool:
    left = {other.get_name() for other in model.get_ops() if other.get_type_name() != "Assign"}
    readers = (reader.get_node().get_name() for reader in node.output(0).get_target_inputs())
    return any(reader in left for reader in readers)


def _remove_variable(model: Any, name: str) -> None:
    for sink in [sink for sink in model.get_sinks() if sink.get_attributes().get("variable_id") == name]:
        model.remove_sink(sink)
    for variable in [variable for variable in model.get_variables() if variable.info.variable_id == name]:
        model.remove_variable(variable)


# --- Attach a tail to an OpenVINO model, in place: operators behind the results, nothing else touched.


def attach_to_openvino_model(
    model: Any,
    stats: CalibrationStats,
    options: TailOptions,
    *,
    image_output: OutputChoice = None,
    pixel_output: OutputChoice = None,
) -> Attached:
    """Append the tail to an `openvino.Model`.

    Raises
    ------
    UnsupportedModelError
        If a tail is there already, or the outputs cannot be post-processed.
    UsageError, MetadataError
        If the statistics and options do not fit the model or each other.
    """
    _refuse_attached(model)
    ports = [port_info(port, f"output_{index}") for index, port in enumerate(model.outputs)]
    selection = select_outputs(
        ports,
        image_output=image_output,
        pixel_output=pixel_output,
        calibrated=calibrated_levels(stats, options),
    )
    tail = build_tail(stats, options, selection, nan_test="l1", default_mask_dtype="uint8")
    results = {port.name: result for port, result in zip(ports, model.get_results(), strict=True)}
    return _OpenVinoRewriter(model, tail, results).attach()


class _OpenVinoRewriter:
    def __init__(self, model: Any, tail: Tail, results: Mapping[str, Any]) -> None:
        self._model = model
        self._tail = tail
        self._results = results
        self._tensor_names, self._friendly_names = used_names(model)

    def attach(self) -> Attached:
        refuse_ambiguous(self._model, (result.input_value(0).get_node() for result in self._results.values()))
        document: dict[str, Any] = {"results": [described(result) for result in self._results.values()]}
        renamed = self._renamings()
        rename_tensors(self._model, renamed)
        if renamed:
            document["renamed"] = renamed
        raw = {level: value_name(self._results[port.name].input_value(0)) for level, port in self._tail.raw.items()}
        self._replace_results()
        refuse_duplicates(self._model, new_names(self._tail))
        record = TailRecord(
            version=__version__,
            stats=self._tail.stats,
            options=self._tail.resolved_options,
            raw=raw,
            original=document,
            narrow=self._tail.narrow,
            found=self._tail.selection.found,
        )
        self._model.set_rt_info(record.dumps(), METADATA_KEY)
        return Attached(self._tail, record, renamed)

    def _renamings(self) -> dict[str, str]:
        replaced = replaced_outputs(self._tail)
        others = {name for port, result in self._results.items() if port not in replaced for name in _names(result)}
        inputs = {name for port in self._model.inputs for name in port.get_names()}
        renamed: dict[str, str] = {}
        for name in new_names(self._tail):
            if name in others:
                raise name_is_taken(name, by="another output")
            if name in inputs:
                raise name_is_taken(name, by="an input")
            if name in self._tensor_names:
                renamed[name] = new_name(name, self._tensor_names)
        return renamed

    def _replace_results(self) -> None:
        added = self._added_results()
        final = [
            added[item.name] if isinstance(item, TailOutput) else self._results[item]
            for item in final_order(self._tail, self._results)
        ]
        # A model without a result drops its operators, so none is taken out before the new ones are in.
        self._model.add_results(list(added.values()))
        for result in final:
            self._model.remove_result(result)
            self._model.add_results([result])
        for name in replaced_outputs(self._tail):
            if not self._tail.options.keep_raw:
                self._model.remove_result(self._results[name])

    def _added_results(self) -> dict[str, Any]:
        import openvino.opset13 as opset

        raw = {name: self._results[port.name].input_value(0) for name, port in self._tail.inputs.items()}
        used = self._friendly_names
        as_parameters = self._tail.options.as_parameters
        given = add_adjustable(self._model, self._tail.adjustable, as_parameters=as_parameters, used=used)
        emitted = emit(
            {output.name: output.expr for output in self._tail.outputs},
            inputs={**raw, **given},
            prefix=PREFIX,
            taken=frozenset(used),
        )
        added = {name: opset.result(output) for name, output in emitted.items()}
        for name, result in added.items():
            name_operator(result, f"{PREFIX}{name}/result", used)
        return added


def _names(result: Any) -> set[str]:
    return set(result.input_value(0).get_names())


def _refuse_attached(model: Any) -> None:
    has_record = model.has_rt_info(METADATA_KEY) or model.has_rt_info(["framework", METADATA_KEY])
    found = find_in_openvino_model(model, where="the model")
    refuse_attached(found, entry=f"the rt_info entry '{METADATA_KEY}'" if has_record else None)


# --- Take a tail off an OpenVINO model, in place, and give the original's results and names back.

CONVERTED: Final = (
    "the model was converted to OpenVINO after attaching: the names and the order of its outputs are those of the "
    "original, the rest is what the conversion made of it"
)


def detach_from_openvino_model(model: Any, *, where: str = "the model") -> Detached:
    """Remove the tail from an `openvino.Model`.

    Returns
    -------
    Detached
        Falsy, with reasons, where there is no tail; the model is as it was then.

    Raises
    ------
    SharedValueError
        If an operator outside the tail reads one of its values.
    MetadataError, UnsupportedModelError
        If the record is not legal, or the tail is not the one that it describes.
    """
    found = find_in_openvino_model(model, where=where)
    refuse_damaged(found, where=where)
    refuse_partial(found)
    if not found.tails:
        return Detached(misses=found.misses, outputs=found.outputs)
    rewriter = _Restorer(model, found.tails, where)
    if found.record is None:
        detached = rewriter.rebuild(found.misfits)
    else:
        detached = (rewriter.restore_converted if found.is_converted else rewriter.restore)(found.record)
    return with_what_is_left(detached, OpenVinoView(model))


class _Restorer:
    def __init__(self, model: Any, tails: Mapping[Level, FoundTail], where: str) -> None:
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
        wanted = recorded_names(record.original, where=self._where)
        back = self._rename(wanted)
        notes += [f"'{old}' is not called '{new}' again" for old, new in wanted.items() if old not in back]
        return Detached(
            tails=self._tails,
            renamed=back,
            notes=tuple(notes),
            is_original=not notes,
            raw_outputs=self._indices(raw),
        )

    def restore_converted(self, record: TailRecord) -> Detached:
        """Give back the names and the order of an ONNX model's outputs in what OpenVINO made of it."""
        back = recorded_names(record.original, where=self._where)
        moved = {old: new for new, old in back.items()}
        wanted = [item.name for item in decoded_outputs(record.original, where=self._where)]
        tensors = tensors_of(self._model)
        results = {name: item for item in self._remaining() for name in result_names(item)}
        final, made, notes = [], [], [CONVERTED]
        for name in wanted:
            current = moved.get(name, name)
            if current in results:
                final.append(results[current])
            elif current in tensors and current in record.raw.values():
                made.append(new_result(tensors[current], f"{name}/result"))
                final.append(made[-1])
            else:
                notes.append(f"the output '{name}' of the original is not in the model any more")
        raw = raw_values(self._model, record, is_converted=True)
        self._replace(made, final)
        renamed = self._rename(back)
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
        for result in final:  # the order of results is the order in which they were added
            self._model.remove_result(result)
            self._model.add_results([result])
        remove_adjustable(self._model, adjusted_values(self._tails))
        drop_record(self._model)

    def _rename(self, back: Mapping[str, str]) -> dict[str, str]:
        tensors, _ = used_names(self._model)
        back = {new: old for new, old in back.items() if new in tensors and old not in tensors}
        rename_tensors(self._model, back)
        return back


def drop_record(model: Any) -> None:
    """Remove the record, wherever it stands in the rt_info."""
    info = model.get_rt_info()
    if model.has_rt_info([METADATA_KEY]):
        del info[METADATA_KEY]
    if model.has_rt_info(["framework", METADATA_KEY]):
        others = [key for key in info["framework"] if key != METADATA_KEY]
        kept = {key: str(model.get_rt_info(["framework", key]).value) for key in others}
        del info["framework"]
        for key, value in kept.items():
            model.set_rt_info(value, ["framework", key])


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


# --- The format.


class OpenVinoFormat(Format):
    """OpenVINO IRs: `openvino.Model`, whose weights are mapped."""

    name = "openvino"

    def load(self, path: Path, *, purpose: str) -> Any:
        """Read an IR."""
        return read_ir(openvino_core(purpose=purpose), path)

    def rewrite(
        self,
        source: Path,
        target: Path,
        edit: Callable[[Any], Result],
        *,
        in_place: bool = False,
        link_weights: bool = False,
        is_checked: bool = True,
    ) -> Result:
        """Edit a model; the weights are always written, and what was written is always read again."""
        return rewrite_openvino_file(source, target, edit, in_place=in_place)

    def edited(
        self, path: Path, folder: Path, edit: Callable[[Any], Result], *, purpose: str, is_checked: bool = True
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

    def record(self, model: Any, *, where: str) -> tuple[TailRecord | None, bool]:
        """Return the tail's record, and whether it is that of the ONNX model that was converted."""
        return read_record(model, where=where)

    def put(self, model: Any, plan: Plan, *, make: Make | None = None) -> LayerRecord:
        """Append a layer."""
        return put_openvino_layer(model, plan, make=make)

    def read(self, model: Any, layer: Where, *, where: str) -> LayerRecord | None:
        """Return the record of a layer, of an ONNX model that was converted, too; None where there is none."""
        return read_openvino_layer(model, layer, where=where)

    def take(self, model: Any, layer: Where, *, where: str) -> LayerRecord | None:
        """Remove a layer."""
        return take_openvino_layer(model, layer, where=where)

    def was_converted(self, model: Any, layer: Where) -> bool:
        """Whether the record of a layer is that of an ONNX model."""
        return was_converted(model, layer)

    def attach(self, model: Any, stats: CalibrationStats, options: TailOptions, outputs: Outputs) -> Attached:
        """Append the tail."""
        return attach_to_openvino_model(model, stats, options, **outputs)

    def find(self, model: Any, *, where: str) -> FoundTails:
        """Find the tail."""
        return find_in_openvino_model(model, where=where)

    def detach(self, model: Any, *, where: str) -> Detached:
        """Remove the tail."""
        return detach_from_openvino_model(model, where=where)

    def edit(self, model: Any, numbers: Mapping[Site, float]) -> None:
        """Change numbers of the tail in place."""
        set_numbers(model, numbers, prefix=PREFIX)
