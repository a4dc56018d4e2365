"""Find the tails of an OpenVINO model, and what its record and its outputs are called."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from graph_patterns.openvino.view import OpenVinoView
from postproc_export.graphs.detached import Found, find_tails
from postproc_export.graphs.metadata import METADATA_KEY, TailRecord
from postproc_export.graphs.openvino.names import outputs_of, used_names
from postproc_export.stats import Level
from postproc_export.tail import OUTPUT_NAMES

_UNNAMED: Final[Mapping[str, tuple[str, ...]]] = {
    "fbfb": OUTPUT_NAMES,
    "fb": OUTPUT_NAMES[:2],
}


def find_in_openvino_model(model: Any, *, where: str) -> Found:
    """Find the tails of a model, ours or Anomalib's, with the help of its record where that fits."""
    record, is_converted = read_record(model, where=where)
    if record is None:
        name_outputs(model)
    raw = raw_values(model, record, is_converted=is_converted)
    fits = record is not None and raw.keys() == record.raw.keys()
    tails, misses = find_tails(
        OpenVinoView(model), raw=tuple(raw.values()) if fits else (), record=record if fits else None
    )
    return Found(tails, misses, record if fits else None, is_converted)


def name_outputs(model: Any) -> None:
    """Name the outputs where no tensor bears one of the names, as `openvino.convert_model` leaves a torch module.

    Notes
    -----
    Anomalib's modules give score, label, map and mask in this order; labels and masks are boolean.
    """
    results = model.get_results()
    tensors, _ = used_names(model)
    if not tensors.isdisjoint(OUTPUT_NAMES):
        return
    kinds = "".join("b" if item.get_output_element_type(0).get_type_name() == "boolean" else "f" for item in results)
    for result, name in zip(results, _UNNAMED.get(kinds, ()), strict=False):
        add_names(result, {name})


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
            yield f"{output.get_node().get_friendly_name()}:{output.get_index()}", output


def add_names(result: Any, names: set[str]) -> None:
    """Name a result's tensor; it keeps the names that it has."""
    source = result.input_value(0)
    source.set_names(source.get_names() | names)
    result.output(0).set_names(source.get_names())


def result_names(result: Any) -> set[str]:
    """Return the names of a result and of its tensor."""
    return set(result.input_value(0).get_names()) | set(result.output(0).get_names())
