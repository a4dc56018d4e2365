"""Compare an attached ONNX file with the raw one, without loading the weights of either."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import onnx

from graph_patterns.onnx.container import OnnxFile, load_skeleton
from graph_patterns.onnx.external import external_files
from graph_patterns.onnx.payloads import RAW_DATA
from graph_patterns.onnx.source import CHUNK
from postproc_export.preservation.change import Change, Preservation
from postproc_export.preservation.messages import PAYLOADS
from postproc_export.preservation.onnx_models import compare_onnx_models

_RAW_DATA: Final = bytes([RAW_DATA])


def compare_onnx_files(raw: Path, attached: Path) -> Preservation:
    """Return what differs besides the tail: in the graph, in the weights, and in external data.

    Raises
    ------
    MetadataError
        If the attached file has a record that is not legal.
    ModelFileError
        If one of the files or its external data cannot be read.
    """
    with load_skeleton(raw) as original, load_skeleton(attached) as file:

        def same_payload(before: onnx.TensorProto, after: onnx.TensorProto) -> bool:
            return _same_payload(original, before, file, after)

        found = compare_onnx_models(original.model, file.model, same_payload=same_payload, where=str(attached))
        external = tuple(
            _external_changes(external_files(original.model, raw.parent), external_files(file.model, attached.parent))
        )
    return replace(found, changes=(*found.changes, *external))


def _same_payload(original: OnnxFile, before: onnx.TensorProto, file: OnnxFile, after: onnx.TensorProto) -> bool:
    if _digest(original, before) == _digest(file, after):
        return True
    if any(next(of.payload(tensor), b"")[:1] == _RAW_DATA for of, tensor in ((original, before), (file, after))):
        return False
    # Numbers in typed fields have more than one encoding; only the parser tells whether they are the same.
    left, right = original.full_tensor(before), file.full_tensor(after)
    return all(getattr(left, field) == getattr(right, field) for field in PAYLOADS)


def _digest(file: OnnxFile, tensor: onnx.TensorProto) -> bytes:
    digest = hashlib.blake2b()
    for piece in file.payload(tensor):
        digest.update(piece)
    return digest.digest()


def _external_changes(raw: dict[Path, Path], attached: dict[Path, Path]) -> Iterator[Change]:
    """Yield the files whose contents differ; one that only one model refers to differs in the reference."""
    for location, before in raw.items():
        after = attached.get(location)
        if after is not None and not after.samefile(before):
            at = _first_difference(before, after)
            if at is not None:
                yield Change(f"external data in '{location}' from byte {at:,}", None, None)


def _first_difference(before: Path, after: Path) -> int | None:
    at = 0
    with before.open("rb") as left, after.open("rb") as right:
        while True:
            one, other = left.read(CHUNK), right.read(CHUNK)
            if one != other:
                length = min(len(one), len(other))
                return at + next((index for index in range(length) if one[index] != other[index]), length)
            if not one:
                return None
            at += len(one)
