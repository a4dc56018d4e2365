"""An attached model as if tail and layers were one: what a comparison with the raw model has to leave out."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import onnx

from postproc_export.graphs.metadata import METADATA_KEY, TailRecord
from postproc_export.graphs.onnx.original import read_record
from postproc_export.transforms import onnx_layer, openvino_layer
from postproc_export.transforms.record import KEYS, TRANSFORMED, LayerRecord


def merged_onnx(model: onnx.ModelProto, *, where: str) -> onnx.ModelProto:
    """Return a copy whose record tells of tail and layers together; the model itself where it has no layers.

    Raises
    ------
    MetadataError
        If a record is not legal.
    """
    if not any(item.key in KEYS.values() for item in model.metadata_props):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx_layer.take_layer(copy, "decision", where=where)
    layer, record = onnx_layer.read_layer(copy, "transform", where=where), read_record(copy, where=where)
    if layer is None or record is None:
        return copy
    replaced = _renamed(layer)
    merged = _merged(record, layer, {name: replaced.get(name, name) for name in layer.made})
    kept = [item for item in copy.metadata_props if item.key != KEYS["transform"]]
    entries = [onnx.StringStringEntryProto(key=item.key, value=item.value) for item in kept]
    del copy.metadata_props[:]
    for entry in entries:
        copy.metadata_props.add(key=entry.key, value=merged.dumps() if entry.key == METADATA_KEY else entry.value)
    return copy


def merged_openvino(model: Any, *, where: str) -> Any:
    """Return a clone whose record tells of tail and layers together; the model itself where it has no layers.

    Raises
    ------
    MetadataError
        If a record is not legal.
    """
    if not any(model.has_rt_info([key]) for key in KEYS.values()):
        return model
    clone = model.clone()
    openvino_layer.take_layer(clone, "decision", where=where)
    layer = openvino_layer.read_layer(clone, "transform", where=where)
    if layer is None or not clone.has_rt_info([METADATA_KEY]):
        return clone
    record = TailRecord.loads(clone.get_rt_info([METADATA_KEY]).astype(str), where=where)
    values = {name: f"{item['source']}:{item['port']}" for item in layer.original["results"] for name in _names(item)}
    merged = _merged(record, layer, {made: values.get(name) for name, made in layer.made.items()})
    clone.set_rt_info(merged.dumps(), METADATA_KEY)
    del clone.get_rt_info()[KEYS["transform"]]
    return clone


def _merged(record: TailRecord, layer: LayerRecord, hosts: Mapping[str, str | None]) -> TailRecord:
    """Return the record of a tail that would read what the transform reads.

    Parameters
    ----------
    record, layer
        The tail's and the transform's.
    hosts
        For each value that the transform made, by its name before the tail renamed it, the raw value whose place it
        took; None, or no value of the model, where it took none.
    """
    renamed = _renamed(record)
    now = {renamed.get(made, made): host for made, host in hosts.items()}
    raw = {level: now.get(name, name) for level, name in record.raw.items()}
    own = {old: new for old, new in renamed.items() if old not in layer.made}
    return replace(
        record,
        raw={level: name for level, name in raw.items() if name is not None},
        original={
            **layer.original,
            "renamed": {**own, **_renamed(layer)},
            TRANSFORMED: [level for level, name in record.raw.items() if name in now],
        },
    )


def _renamed(record: TailRecord | LayerRecord) -> Mapping[str, str]:
    renamed = record.original.get("renamed", {})
    return renamed if isinstance(renamed, dict) else {}


def _names(item: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(item.get("tensor_names", ()))
