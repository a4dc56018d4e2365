"""What the record in a model keeps of the original, as text: its outputs as ONNX ports, and names that had to move."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from graph_patterns.onnx.validation import check_text
from postproc_export.errors import MetadataError
from postproc_export.graphs.metadata import METADATA_KEY, TailRecord


def encoded_port(item: onnx.ValueInfoProto) -> str:
    """Return a port as the record keeps it: base64 of its bytes."""
    return base64.b64encode(item.SerializeToString(deterministic=True)).decode("ascii")


def read_record(model: onnx.ModelProto, *, where: str) -> TailRecord | None:
    """Return the record of a model; None where it has none."""
    text = next((item.value for item in model.metadata_props if item.key == METADATA_KEY), None)
    return None if text is None else TailRecord.loads(text, where=where)


def decoded_outputs(original: Mapping[str, Any], *, where: str) -> list[onnx.ValueInfoProto]:
    """Return the outputs of the original that a record of an ONNX model keeps."""
    try:
        serialised = [base64.b64decode(text, validate=True) for text in original["outputs"]]
        outputs = [onnx.ValueInfoProto.FromString(item) for item in serialised]
        check_text(onnx.ModelProto(graph=onnx.GraphProto(output=outputs)).SerializeToString())
        return outputs
    except (KeyError, TypeError, binascii.Error, ValueError, DecodeError) as error:
        raise MetadataError(f"{where}: the record '{METADATA_KEY}' has no legal outputs", found=str(error)) from error


def recorded_names(original: Mapping[str, Any], *, where: str) -> dict[str, str]:
    """Return the renamings that a record keeps, the way back: {name in the file: name in the original}."""
    renamed = original.get("renamed", {})
    if not isinstance(renamed, dict) or not all(isinstance(new, str) for new in renamed.values()):
        raise MetadataError(f"{where}: the record '{METADATA_KEY}' has no legal renamings", found=repr(renamed)[:60])
    return {new: old for old, new in renamed.items()}
