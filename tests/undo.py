"""Undo an attachment by its record, in plain protobuf: an oracle of its own for what attaching may change."""

import base64
import json
from typing import Any

import onnx

KEY = "postproc_export"
PREFIX = "postproc/"


def record_of(model: onnx.ModelProto) -> dict[str, Any]:
    """Return the JSON record of an attached model."""
    (text,) = (item.value for item in model.metadata_props if item.key == KEY)
    return dict(json.loads(text))


def undo(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model without its tail, with the outputs and names that the record keeps."""
    original = onnx.ModelProto.FromString(model.SerializeToString())
    record = record_of(original)["original"]
    _keep(original.graph.node, lambda node: not node.name.startswith(PREFIX))
    _keep(original.graph.initializer, lambda tensor: not tensor.name.startswith(PREFIX))
    _keep(original.metadata_props, lambda item: item.key != KEY)
    if "added_opset_import" in record:
        _keep(original.opset_import, lambda item: item.domain != "")
    text = original.SerializeToString()
    for old, new in record.get("renamed", {}).items():
        assert len(old) <= len(new)
        text = _replace_name(text, new, old)
    original = onnx.ModelProto.FromString(text)
    del original.graph.output[:]
    original.graph.output.extend(onnx.ValueInfoProto.FromString(base64.b64decode(item)) for item in record["outputs"])
    return original


def _keep(items: Any, wanted: Any) -> None:
    kept = [type(item).FromString(item.SerializeToString()) for item in items if wanted(item)]
    del items[:]
    items.extend(kept)


def _replace_name(text: bytes, new: str, old: str) -> bytes:
    model = onnx.ModelProto.FromString(text)
    _walk(model, new, old)
    return model.SerializeToString()


def _walk(message: Any, new: str, old: str) -> None:
    # Every string field of every message: the new name was unused everywhere, so wherever it stands it was put.
    for descriptor, value in message.ListFields():
        repeated = descriptor.is_repeated
        if descriptor.type == descriptor.TYPE_MESSAGE:
            for item in value if repeated else [value]:
                _walk(item, new, old)
        elif descriptor.type == descriptor.TYPE_STRING:
            if repeated:
                value[:] = [old if item == new else item for item in value]
            elif value == new:
                setattr(message, descriptor.name, old)
