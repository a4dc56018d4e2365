"""Put a layer before or behind the tail of an OpenVINO model, in place, and take it off again."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from graph_patterns.expr import SharedValueError, free_name
from graph_patterns.openvino import emit
from postproc_export import __version__
from postproc_export.errors import MetadataError, UnsupportedModelError
from postproc_export.formats.base import Plan, decoded_outputs, moved_name, name_is_taken, recorded_names
from postproc_export.formats.openvino_names import (
    described,
    name_operator,
    new_result,
    recorded_results,
    refuse_ambiguous,
    refuse_duplicates,
    rename_tensors,
    used_names,
    value_name,
)
from postproc_export.record import KEYS, PREFIXES, LayerRecord, Where, refuse_misfit
from postproc_export.runtimes.openvino import port_info

Make = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def put_openvino_layer(model: Any, plan: Plan, *, make: Make | None = None) -> LayerRecord:
    """Append a layer to an `openvino.Model`.

    Parameters
    ----------
    model
        Changed in place.
    plan
        What is added.
    make
        Returns the `openvino.Output` of each output of the plan, from those of its inputs; None lowers the expressions.

    Raises
    ------
    UnsupportedModelError
        If a name that it needs is taken by an input or another output.
    """
    results = {
        port_info(port, f"output_{index}").name: result
        for index, (port, result) in enumerate(zip(model.outputs, model.get_results(), strict=True))
    }
    refuse_ambiguous(model, (result.input_value(0).get_node() for result in results.values()))
    sources = {name: result.input_value(0) for name, result in results.items()}
    sources |= {port_info(port, f"input_{i}").name: port.get_node().output(0) for i, port in enumerate(model.inputs)}
    read = {name: sources.get(port.name) or named_value(model, port.name) for name, port in plan.inputs.items()}
    document: dict[str, Any] = {"results": [described(result) for result in results.values()]}
    renamed = _renamings(model, plan, results)
    old_names = set(used_names(model)[1])
    outputs = make(read) if make is not None else _emitted(plan, read, old_names)
    rename_tensors(model, renamed)
    if renamed:
        document["renamed"] = renamed
    for name, output in outputs.items():
        output.set_names({name})
    name_nodes(outputs.values(), stop=_keys(model.get_ops()), prefix=PREFIXES[plan.where], taken=old_names)
    _replace_results(model, plan, results, outputs)
    refuse_duplicates(model, outputs)
    record = LayerRecord(
        where=plan.where,
        version=__version__,
        tails=plan.tails,
        read={name: value_name(output) for name, output in read.items()},
        made={name: value_name(output) for name, output in outputs.items()},
        original=document,
    )
    model.set_rt_info(record.dumps(), KEYS[plan.where])
    return record


def read_openvino_layer(model: Any, layer: Where, *, where: str) -> LayerRecord | None:
    """Return the record of a layer, of an ONNX model that was converted, too; None where there is none.

    Raises
    ------
    MetadataError
        If it is not legal.
    """
    path = next((path for path in _paths(layer) if model.has_rt_info(path)), None)
    if path is None:
        return None
    record = LayerRecord.loads(model.get_rt_info(path).astype(str), layer=layer, where=where)
    check = decoded_outputs if was_converted(model, layer) else recorded_results
    check(record.original, where=where)
    recorded_names(record.original, where=where)
    return record


def take_openvino_layer(model: Any, layer: Where, *, where: str) -> LayerRecord | None:
    """Remove a layer and give the results and names back that were there before it; None where there is none.

    Raises
    ------
    SharedValueError
        If an operator outside the layer reads one of its values.
    MetadataError
        If the record is not legal, or names what the model does not have.
    UnsupportedModelError
        If the model was converted since: the record names what an ONNX model had.
    """
    record = read_openvino_layer(model, layer, where=where)
    if record is None:
        return None
    if was_converted(model, layer):
        raise UnsupportedModelError(
            f"{where} was converted to OpenVINO with custom steps: they cannot be told from the rest",
            found=", ".join(spec.text for spec in record.tails),
            fix="take the ONNX file for this, and convert what comes out",
        )
    results = recorded_results(record.original, where=where)
    back = recorded_names(record.original, where=where)
    values = _between(model, record, PREFIXES[layer])
    refuse_misfit(record, list(_misfits(model, record, back, results, values)), where=where)
    nodes = {node.get_friendly_name(): node for node in model.get_ops() if node.get_type_name() != "Result"}
    kept = {_place(result): result for result in model.get_results()}
    gone = [result for result in kept.values() if not _names(result).isdisjoint(record.made)]
    final, fresh = [], []
    for name, source, port in results:
        result = kept.get((source, port))
        if result is None:
            result = new_result(nodes[source].output(port), name)
            fresh.append(result)
        final.append(result)
    _refuse_readers(model, values, gone)
    model.add_results(fresh)  # before any goes: a model without a result drops its operators
    for result in gone:
        model.remove_result(result)
    _reorder(model, final)
    rename_tensors(model, back)
    del model.get_rt_info()[KEYS[layer]]
    return record


def _between(model: Any, record: LayerRecord, prefix: str) -> set[str]:
    """Return the operators of the layer: those of its prefix between what it made and what it reads."""
    places = {value_name(output): output.get_node() for node in model.get_ops() for output in node.outputs()}
    stop = {str(places[name].get_name()) for name in record.read.values() if name in places}
    pending = [places[name] for name in record.made.values() if name in places]
    values: set[str] = set()
    while pending:
        node = pending.pop()
        key = str(node.get_name())
        if key in stop or key in values or not node.get_friendly_name().startswith(prefix):
            continue
        values.add(key)
        pending += [node.input_value(index).get_node() for index in range(node.get_input_size())]
    return values


def _misfits(
    model: Any, record: LayerRecord, back: Mapping[str, str], results: Sequence[tuple[str, str, int]], gone: set[str]
) -> Iterator[str]:
    """Yield what a record says that cannot be true of the model without the layer."""
    tensors, _ = used_names(model)
    yield from (f"the value '{name}' is not there" for name in back if name not in tensors)
    yield from (f"the layer has not taken the name '{old}'" for old in back.values() if old not in record.made)
    places = {value_name(output): output.get_node() for node in model.get_ops() for output in node.outputs()}
    yield from (f"the value '{name}' is not there" for name in record.read.values() if name not in places)
    for name, value in record.made.items():
        if value not in places or str(places[value].get_name()) not in gone:
            yield f"the output '{name}' is not the layer's"
    for name, source, port in results:
        node = places.get(f"{source}:{port}")
        if node is None or node.get_type_name() == "Result" or str(node.get_name()) in gone:
            yield f"the result '{name}' is of '{source}', which is not in the original"


def was_converted(model: Any, layer: Where) -> bool:
    """Whether the record of a layer is that of an ONNX model, from which this one was converted."""
    native, framework = _paths(layer)
    return not model.has_rt_info(native) and model.has_rt_info(framework)


def name_nodes(outputs: Iterable[Any], *, stop: set[str], prefix: str, taken: set[str]) -> None:
    """Give every operator and constant that was added a name of its own, the same in every run."""
    pending, seen = [output.get_node() for output in outputs], set[str]()
    used = set(taken)
    while pending:
        node = pending.pop()
        key = str(node.get_name())
        if key in stop or key in seen:
            continue
        seen.add(key)
        name = node.get_friendly_name()
        if not name.startswith(prefix):
            name = free_name(f"{prefix}{node.get_type_name().lower()}", used)
            node.set_friendly_name(name)
        used.add(name)
        pending += [node.input_value(index).get_node() for index in range(node.get_input_size())]


def named_value(model: Any, name: str) -> Any:
    """Return the output of an operator that `value_name` names.

    Raises
    ------
    MetadataError
        If there is none.
    """
    friendly_name, _, port = name.rpartition(":")
    for node in model.get_ops():
        if node.get_friendly_name() == friendly_name and port.isdecimal() and int(port) < node.get_output_size():
            return node.output(int(port))
    raise MetadataError(f"the record names a value '{name}' that the model does not have")


def _paths(layer: Where) -> tuple[list[str], list[str]]:
    return [KEYS[layer]], ["framework", KEYS[layer]]


def _emitted(plan: Plan, read: Mapping[str, Any], taken: set[str]) -> Mapping[str, Any]:
    exprs = {output.name: output.expr for output in plan.outputs if output.expr is not None}
    return emit(exprs, inputs=read, prefix=PREFIXES[plan.where], taken=frozenset(taken))


def _renamings(model: Any, plan: Plan, results: Mapping[str, Any]) -> dict[str, str]:
    used, _ = used_names(model)
    replaced = {output.replaces for output in plan.outputs}
    others = {name for port, result in results.items() if port not in replaced for name in _names(result)}
    inputs = {name for port in model.inputs for name in port.get_names()}
    renamed: dict[str, str] = {}
    for output in plan.outputs:
        for names, by in ((others, "another output"), (inputs, "an input")):
            if output.name in names:
                raise name_is_taken(output.name, by=by)
        if output.name in used:
            renamed[output.name] = moved_name(output.name, plan.where, used)
    return renamed


def _replace_results(model: Any, plan: Plan, results: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
    by_place = {output.replaces: output.name for output in plan.outputs if output.replaces is not None}
    used = used_names(model)[1]
    added = {name: new_result(output, "") for name, output in outputs.items()}
    for name, result in added.items():
        name_operator(result, f"{PREFIXES[plan.where]}{name}/result", used)
    model.add_results(list(added.values()))  # before any is taken out: a model without a result drops its operators
    final = [added[by_place[port]] if port in by_place else result for port, result in results.items()]
    final += [added[output.name] for output in plan.outputs if output.replaces is None]
    for port in by_place:
        model.remove_result(results[port])
    _reorder(model, final)


def _reorder(model: Any, final: Iterable[Any]) -> None:
    for result in final:  # the order of results is the order in which they were added
        model.remove_result(result)
        model.add_results([result])


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


def _place(result: Any) -> tuple[str, int]:
    source = result.input_value(0)
    return source.get_node().get_friendly_name(), source.get_index()


def _names(result: Any) -> set[str]:
    return {*result.input_value(0).get_names(), *result.output(0).get_names()}


def _keys(nodes: Iterable[Any]) -> set[str]:
    return {str(node.get_name()) for node in nodes}
