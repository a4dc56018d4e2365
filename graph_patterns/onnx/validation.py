"""What makes bytes an ONNX model, and what is said about bytes that are none."""

from functools import cache
from typing import Any, Final

import onnx
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from graph_patterns.errors import ModelFileError

LARGEST: Final = 2**31 - 1  # bytes; protobuf's limit for a message
_NEEDED: Final = "a serialised onnx.ModelProto with a graph"
_SIGNATURES: Final = {
    b"version https://git-lfs": "a Git LFS pointer; `git lfs pull` fetches the file itself",
    b"PK\x03\x04": "a zip archive, such as a PyTorch checkpoint",
    b"\x89HDF": "HDF5, such as a Keras model",
    b"<": "XML, such as an OpenVINO IR",
    b"{": "JSON",
}


def check_text(serialised: bytes) -> None:
    """Raise DecodeError unless the names and other texts of a serialised model are UTF-8.

    Notes
    -----
    onnx's own classes hand out other names as `bytes`, which fail wherever they meet a `str`.
    """
    _strict_model_class().FromString(serialised)


@cache
def _strict_model_class() -> Any:
    """Make a twin of ModelProto that checks texts: the same schema declared as proto3."""
    schema = FileDescriptorProto()
    onnx.ModelProto.DESCRIPTOR.file.CopyToProto(schema)
    schema.syntax = "proto3"
    pool = DescriptorPool()
    pool.AddSerializedFile(schema.SerializeToString())
    return GetMessageClass(pool.FindMessageTypeByName(onnx.ModelProto.DESCRIPTOR.full_name))


def refuse_other_messages(model: onnx.ModelProto, *, where: str, start: bytes) -> None:
    """Refuse what protobuf can parse, as it can many files, but what holds no model.

    Parameters
    ----------
    model
        What was parsed.
    where
        The file, for the message.
    start
        The first bytes of the file.
    """
    if not model.HasField("graph"):
        raise not_a_model(where, "no graph in it", start=start)
    if not (model.HasField("ir_version") or model.opset_import or model.graph.node):
        raise not_a_model(where, "neither an IR version, nor an operator set, nor a node in it", start=start)


def not_a_model(where: str, reason: str, *, start: bytes) -> ModelFileError:
    """Explain a file that is no ONNX model; its first bytes may tell what it is."""
    kind = next((kind for signature, kind in _SIGNATURES.items() if start.startswith(signature)), None)
    found = "an empty file" if not start else kind or reason
    return ModelFileError(
        f"cannot read {where}: it is no ONNX model, or a damaged one",
        found=found,
        needed=_NEEDED,
        fix="export or copy the model again, or give another file",
    )


def too_large(what: str, size: int | None) -> ModelFileError:
    """Explain that one file cannot hold a model of this size in bytes, where that is known."""
    return ModelFileError(
        f"{what}: a single ONNX file cannot be above 2 GiB",
        found=None if size is None else f"{size:,} bytes",
        needed=f"at most {LARGEST:,} bytes, protobuf's limit",
        fix="store the weights beside the model, as external data: onnx.save(model, path, save_as_external_data=True)",
    )
