"""Tensor names of an OpenVINO model, and the tails that are found by them."""

import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from graph_patterns.expr import free_name
from graph_patterns.openvino import OpenVinoView
from postproc_export.errors import MetadataError, UnsupportedModelError
from postproc_export.formats.base import (
    FoundTails,
    decoded_outputs,
    find_tails,
    illegal,
    level_misfits,
    raw_misfits,
    recorded_names,
    recorded_raw,
    renaming_misfits,
    touched,
)
from postproc_export.reading.tail import LABEL_OUTPUT, SCORE_OUTPUT, FoundTail
from postproc_export.record import METADATA_KEY, TailRecord
from postproc_export.stats import Level
from postproc_export.tail import OUTPUT_NAMES, PACKED_OUTPUT, PREFIX

# --- Tensor names of an OpenVINO model: each may stand on one tensor only, and a tensor may have several.

_BODIES: Final[Mapping[str, tuple[str, ...]]] = {
    "If": ("get_then_body", "get_else_body"),
    "Loop": ("get_function",),
    "TensorIterator": ("get_function",),
}


def models_of(model: Any) -> Iterator[Any]:
    """Iterate over a model and the bodies nested in its operators."""
    pending = [model]
    while pending:
        current = pending.pop()
        yield current
        for node in current.get_ops():
            pending.extend(getattr(node, getter)() for getter in _BODIES.get(node.get_type_name(), ()))


def outputs_of(model: Any) -> Iterator[Any]:
    """Iterate over the outputs of all operators of one scope; a result repeats its tensor's names."""
    for node in model.get_ops():
        yield from node.outputs()


def value_name(output: Any) -> str:
    """Return how a record names the output of an operator: ``<friendly name>:<port>``."""
    return f"{output.get_node().get_friendly_name()}:{output.get_index()}"


def described(result: Any) -> dict[str, Any]:
    """Return a result as a record keeps it."""
    source = result.input_value(0)
    return {
        "name": result.get_friendly_name(),
        "source": source.get_node().get_friendly_name(),
        "port": source.get_index(),
        "tensor_names": sorted(source.get_names()),
    }


def new_result(output: Any, name: str) -> Any:
    """Make a result of an operator's output."""
    import openvino.opset13 as opset

    result = opset.result(output)
    result.set_friendly_name(name)
    return result


def used_names(model: Any) -> tuple[set[str], set[str]]:
    """Return the tensor names and the friendly names of all scopes."""
    tensors: set[str] = set()
    friendly: set[str] = set()
    for scope in models_of(model):
        for node in scope.get_ops():
            friendly.add(node.get_friendly_name())
            for output in node.outputs():
                tensors |= output.get_names()
    return tensors, friendly


def name_operator(node: Any, name: str, used: set[str]) -> None:
    """Give an operator a friendly name that no other has, and add it to `used`."""
    node.set_friendly_name(free_name(name, used))


def refuse_ambiguous(model: Any, nodes: Iterable[Any]) -> None:
    """Refuse a model in which the operator of an output shares its name: a record could not say which one it was.

    Raises
    ------
    UnsupportedModelError
        If one does.
    """
    for name in ambiguous(model, (node.get_friendly_name() for node in nodes)):
        raise UnsupportedModelError(
            f"several operators are called '{name}', and one of them gives an output",
            needed="each operator with a name of its own",
            fix="convert the model again, or rename one of them",
        )


def ambiguous(model: Any, names: Iterable[str]) -> list[str]:
    """Return the names, of some, that several operators of a model bear: OpenVINO accepts that silently."""
    bearers = Counter(node.get_friendly_name() for node in model.get_ops() if node.get_type_name() != "Result")
    return sorted({name for name in names if bearers[name] > 1})


def rename_tensors(model: Any, renamed: Mapping[str, str]) -> None:
    """Give names of tensors up for new ones, in place, in every scope; a tensor's other names stay.

    Notes
    -----
    A result has names of its own, which a file keeps and a read gives to the tensor. Its tensor comes first: a name
    that was set through the result alone falls back to the old one when the result is removed.
    """
    if not renamed:
        return
    for scope in models_of(model):
        for output in sorted(outputs_of(scope), key=lambda item: item.get_node().get_type_name() == "Result"):
            names = output.get_names()
            if not names.isdisjoint(renamed):
                output.set_names({renamed.get(name, name) for name in names})


def refuse_duplicates(model: Any, names: Iterable[str]) -> None:
    """Refuse a model in which one of our names stands on two tensors: OpenVINO would take any one silently."""
    wanted = set(names)
    bearer: dict[str, Any] = {}
    for output in outputs_of(model):
        node = output.get_node()
        tensor = node.input_value(0) if node.get_type_name() == "Result" else output
        for name in output.get_names() & wanted:
            if bearer.setdefault(name, tensor) != tensor:
                raise UnsupportedModelError(
                    f"the tensor name '{name}' stands on two tensors", needed="each name on one tensor"
                )


# --- Find the tails of an OpenVINO model, and what its record and its outputs are called.

_MAP_RANK: Final = 3  # and above


def find_in_openvino_model(model: Any, *, where: str) -> FoundTails:
    """Find the tails of a model, ours or Anomalib's, with the help of its record where that fits."""
    record, is_converted = read_record(model, where=where)
    named = name_outputs(model) if record is None else {}
    raw = raw_values(model, record, is_converted=is_converted)
    fits = record is not None and raw.keys() == record.raw.keys()
    tails, misses = find_tails(
        OpenVinoView(model), raw=tuple(raw.values()) if fits else (), record=record if fits else None
    )
    if not tails:
        for result, names in named.items():  # the file is as it was
            result.output(0).set_names(names)
    outputs = frozenset(name for result in model.get_results() for name in result_names(result))
    if record is None:
        return FoundTails(tails, misses, None, outputs=outputs)
    if not fits:
        lost = ", ".join(f"'{name}'" for level, name in record.raw.items() if level not in raw)
        return FoundTails(
            tails, misses, None, misfits=(f"it names raw values that are not in the model: {lost}",), outputs=outputs
        )
    if not tails or record.levels & misses.keys():  # a level that is gone is told as such
        return FoundTails(tails, misses, record, is_converted, outputs=outputs)
    check = _converted_misfits if is_converted else _misfits
    misfits = tuple(check(model, record, tails, where))
    certain = not (misfits or is_converted or touched(tails))
    doubts = tuple(_doubts(model, record, where)) if certain else ()
    return FoundTails(tails, misses, record, is_converted, misfits=misfits, doubts=doubts, outputs=outputs)


def _doubts(model: Any, record: TailRecord, where: str) -> Iterator[str]:
    """Yield what a record tells of and the model does not have."""
    tensors, _ = used_names(model)
    names = recorded_names(record.original, where=where)
    yield from (f"the tensor '{name}' is not in the model" for name in names if name not in tensors)
    there = {value_name(result.input_value(0)) for result in model.get_results()}.union(record.raw.values())
    for name, source, port in recorded_results(record.original, where=where):
        if f"{source}:{port}" not in there:
            yield f"the output '{name}' of the original is not in the model"


def _misfits(model: Any, record: TailRecord, tails: Mapping[Level, FoundTail], where: str) -> Iterator[str]:
    """Yield what a record says of the original that cannot be true of this model."""
    yield from level_misfits(record, tails)
    try:
        results = recorded_results(record.original, where=where)
        back = recorded_names(record.original, where=where)
    except MetadataError as error:
        yield f"{error.what.removeprefix(f'{where}: ')} ({error.found})"
        return
    yield from renaming_misfits(record, tails, back)
    sources = [f"{source}:{port}" for _, source, port in results]
    yield from raw_misfits(record, {}, sources)
    ours = {value_name(value) for tail in tails.values() for value in tail.values}
    yield from (f"a result of the original is of '{name}', which is of the tail" for name in sources if name in ours)
    for tail in tails.values():
        recorded = recorded_raw(record, tail)
        if recorded is not None and recorded != value_name(tail.raw):
            yield f"the {tail.level} level reads '{value_name(tail.raw)}', not '{recorded}'"
    yield from (f"several operators are called '{name}'" for name in ambiguous(model, (row[1] for row in results)))


def _converted_misfits(model: Any, record: TailRecord, tails: Mapping[Level, FoundTail], where: str) -> Iterator[str]:
    """Yield what the record of an ONNX model says that cannot be true of what was made of it."""
    yield from level_misfits(record, tails)
    try:
        original = [item.name for item in decoded_outputs(record.original, where=where)]
        back = recorded_names(record.original, where=where)
    except MetadataError as error:
        yield f"{error.what.removeprefix(f'{where}: ')} ({error.found})"
        return
    yield from renaming_misfits(record, tails, back)
    yield from raw_misfits(record, back, original)


def recorded_results(original: Mapping[str, Any], *, where: str) -> list[tuple[str, str, int]]:
    """Return the results of the original that a record of an IR keeps: its name, and the operator and port it is of.

    Raises
    ------
    MetadataError
        Unless there is at least one, each of a value of its own.
    """
    try:
        rows = [(row["name"], row["source"], row["port"]) for row in original["results"]]
    except (KeyError, TypeError) as error:
        raise illegal("results", str(error), where=where) from error
    for row in rows:
        if not (isinstance(row[0], str) and isinstance(row[1], str) and type(row[2]) is int and row[2] >= 0):
            raise illegal("results", reprlib.repr(row), where=where)
    if not rows or len({row[1:] for row in rows}) < len(rows):
        raise illegal("results", reprlib.repr(rows), where=where)
    return rows


def name_outputs(model: Any) -> dict[Any, set[str]]:
    """Name the results where they have no names yet, as `openvino.convert_model` leaves a torch module.

    Returns
    -------
    dict
        The names that each result had that was named.

    Notes
    -----
    Anomalib's modules and ours give score, label, map and mask in this order, those that there are; labels and masks
    are boolean, maps and masks have three axes or more. A tensor inside may bear one of the names, after a variable:
    a label without a name tells that it is one.
    """
    results = model.get_results()
    named = [not result_names(result).isdisjoint((*OUTPUT_NAMES, PACKED_OUTPUT)) for result in results]
    if any(named) and all(is_named or not _is_boolean(result) for is_named, result in zip(named, results, strict=True)):
        return {}
    wanted: dict[str, Any] = {}
    for result in results:
        names = LABEL_OUTPUT if _is_boolean(result) else SCORE_OUTPUT
        rank = result.get_output_partial_shape(0).rank
        name = names["pixel" if rank.is_static and rank.get_length() >= _MAP_RANK else "image"]
        if name in wanted:
            return {}
        wanted[name] = result
    before = {result: set(result.output(0).get_names()) for result in wanted.values()}
    for name, result in wanted.items():
        result.output(0).set_names(before[result] | {name})
    return before


def _is_boolean(result: Any) -> bool:
    return bool(result.get_output_element_type(0).get_type_name() == "boolean")


def read_record(model: Any, *, where: str) -> tuple[TailRecord | None, bool]:
    """Return the record of a model, and whether it is that of the ONNX model that was converted."""
    for path, is_converted in (([METADATA_KEY], False), (["framework", METADATA_KEY], True)):
        if model.has_rt_info(path):
            return TailRecord.loads(str(model.get_rt_info(path).value), where=where), is_converted
    return None, False


def raw_values(model: Any, record: TailRecord | None, *, is_converted: bool) -> dict[Level, Any]:
    """Return the raw values that a record names, as far as the model has them."""
    if record is None:
        return {}
    tensors = tensors_of(model) if is_converted else dict(_ports(model))
    return {level: tensors[name] for level, name in record.raw.items() if name in tensors}


def tensors_of(model: Any) -> dict[str, Any]:
    """Return the tensors by name, results left out: they repeat their tensor's names."""
    return {
        name: output
        for output in outputs_of(model)
        if output.get_node().get_type_name() != "Result"
        for name in output.get_names()
    }


def _ports(model: Any) -> Iterator[tuple[str, Any]]:
    for output in outputs_of(model):
        if output.get_node().get_type_name() != "Result":
            yield value_name(output), output


def tail_constants(model: Any) -> dict[str, bytes]:
    """Return the bytes of every constant of the tail, by friendly name."""
    return {
        node.get_friendly_name(): node.get_data().tobytes()
        for node in model.get_ops()
        if node.get_type_name() == "Constant" and node.get_friendly_name().startswith(PREFIX)
    }


def take_names(model: Any, names: set[str]) -> None:
    """Take names away from every tensor that bears one: an output is to bear it."""
    for output in outputs_of(model):
        if not names.isdisjoint(output.get_names()):
            output.set_names(output.get_names() - names)


def add_names(result: Any, names: set[str]) -> None:
    """Name a result's tensor; it keeps the names that it has."""
    source = result.input_value(0)
    source.set_names(source.get_names() | names)
    result.output(0).set_names(source.get_names())


def result_names(result: Any) -> set[str]:
    """Return the names of a result and of its tensor."""
    return set(result.input_value(0).get_names()) | set(result.output(0).get_names())
