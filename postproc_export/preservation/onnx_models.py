"""Compare an attached ONNX model with the raw one: everything but the tail, which is taken out by its prefix."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import onnx

from postproc_export.adjusting import INPUT_NAMES
from postproc_export.graphs.metadata import METADATA_KEY, TailRecord
from postproc_export.graphs.onnx.names import value_names
from postproc_export.graphs.onnx.original import decoded_outputs, read_record, recorded_names
from postproc_export.preservation.alignment import Key, keyed, moved
from postproc_export.preservation.change import Change, Preservation
from postproc_export.preservation.expectation import NO_RECORD, assumed, remaining
from postproc_export.preservation.messages import PAYLOADS, Comparison, Names, SamePayload
from postproc_export.tail import PREFIX
from postproc_export.transforms.merged import merged_onnx

_UNNAMED: Final[Names] = {}


def compare_onnx_models(
    raw: onnx.ModelProto,
    attached: onnx.ModelProto,
    *,
    same_payload: SamePayload | None = None,
    where: str = "the attached model",
) -> Preservation:
    """Return what differs besides the tail.

    Parameters
    ----------
    raw, attached
        The models, which stay as they are; skeletons where `same_payload` is given.
    same_payload
        Whether two tensors hold the same values; default: whether their fields are equal.
    where
        The attached model, for errors.

    Raises
    ------
    MetadataError
        If the record of the attached model is not legal.
    """
    return _Pair(raw, merged_onnx(attached, where=where), same_payload or _equal_payloads, where).compared()


class _Pair:
    def __init__(self, raw: onnx.ModelProto, attached: onnx.ModelProto, same_payload: SamePayload, where: str) -> None:
        self._record = read_record(attached, where=where)
        self._where = where
        self._outputs = list(raw.graph.output)
        self._raw, self._body = _without_outputs(raw), _without_outputs(attached)
        tail = _take_out_tail(self._body, raw, self._record)
        self._tail = len(tail)
        self._others = [item for item in attached.graph.output if not any(item.name in node.output for node in tail)]
        self._names = self._renamed()
        self._comparison = Comparison(same_payload)

    def compared(self) -> Preservation:
        changes = list(self._comparison.changes(self._raw, self._body, self._names))
        if self._record is not None:
            changes += self._output_changes(self._record)
            changes += self._record_changes(self._record)
        graph = self._raw.graph
        return Preservation(
            compared={
                "node": len(graph.node),
                "initializer": len(graph.initializer) + len(graph.sparse_initializer),
                "function": len(self._raw.functions),
                "value_info": len(graph.value_info),
                "other metadata value": len(self._raw.metadata_props),
            },
            tail=self._tail,
            changes=tuple(changes),
            not_judged=tuple(self._not_judged()),
        )

    def _renamed(self) -> Names:
        if self._record is not None:
            return {old: new for new, old in recorded_names(self._record.original, where=self._where).items()}
        return assumed(value_names(self._raw), value_names(self._body))

    def _output_changes(self, record: TailRecord) -> Iterator[Change]:
        """The outputs that are not the tail's: which, how they are declared, in which order."""
        named = [(self._names.get(item.name, item.name), item) for item in self._outputs]
        expected = keyed(remaining(record, named), lambda item: self._names.get(item.name, item.name))
        yield from self._listed_changes(expected, keyed(self._others, _name), self._names)

    def _record_changes(self, record: TailRecord) -> Iterator[Change]:
        """What detaching would give back as outputs."""
        recorded = keyed(decoded_outputs(record.original, where=self._where), _name)
        yield from (
            replace(change, where=f"in the record: {change.where}")
            for change in self._listed_changes(keyed(self._outputs, _name), recorded, _UNNAMED)
        )

    def _listed_changes(self, raw: dict[Key, Any], attached: dict[Key, Any], names: Names) -> Iterator[Change]:
        yield from moved(raw, attached, _title, "the order of outputs")
        for key, item in raw.items():
            if key in attached:
                yield from self._comparison.changes(item, attached[key], names, _title(item), "output")

    def _not_judged(self) -> Iterator[str]:
        if self._record is None:
            yield NO_RECORD
            for old, new in self._names.items():
                yield f"whether '{new}' is '{old}' of the raw model: taken from the names, no record says so"


def _take_out_tail(model: onnx.ModelProto, raw: onnx.ModelProto, record: TailRecord | None) -> list[onnx.NodeProto]:
    """Take out what attaching added, in place, and return the nodes of the tail."""
    known = {node.name for node in raw.graph.node}  # the tail's nodes bear no name of these
    weights = {tensor.name for tensor in raw.graph.initializer}
    nodes = [
        index for index, node in enumerate(model.graph.node) if node.name.startswith(PREFIX) and node.name not in known
    ]
    tail = [onnx.NodeProto.FromString(model.graph.node[index].SerializeToString()) for index in nodes]
    _delete(model.graph.node, nodes)
    _delete(
        model.graph.initializer,
        [
            index
            for index, tensor in enumerate(model.graph.initializer)
            if tensor.name.startswith(PREFIX) and tensor.name not in weights
        ],
    )
    for items, before in ((model.graph.initializer, raw.graph.initializer), (model.graph.input, raw.graph.input)):
        added = (INPUT_NAMES if record is None else record.inputs) - {item.name for item in before}
        _delete(items, [index for index, item in enumerate(items) if item.name in added])
    entries = [index for index, item in enumerate(model.metadata_props) if item.key == METADATA_KEY]
    _delete(model.metadata_props, entries)
    if record is not None and "added_opset_import" in record.original:
        imported = ("", record.original["added_opset_import"])
        imports = enumerate(model.opset_import)
        _delete(model.opset_import, [index for index, item in imports if (item.domain, item.version) == imported])
    return tail


def _delete(items: Any, indices: list[int]) -> None:
    for index in reversed(indices):
        del items[index]


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    return made


def _without_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    made = _copy(model)
    del made.graph.output[:]
    return made


def _equal_payloads(raw: onnx.TensorProto, attached: onnx.TensorProto) -> bool:
    return all(getattr(raw, field) == getattr(attached, field) for field in PAYLOADS)


def _name(item: onnx.ValueInfoProto) -> str:
    return str(item.name)


def _title(item: onnx.ValueInfoProto) -> str:
    return f"output '{item.name}'"
