"""What the record in a model keeps of the original, as text: its outputs as ONNX ports, and names that had to move."""

import base64
import binascii
import reprlib
from collections.abc import Collection, Mapping
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError

from graph_patterns.onnx.lowering import OLDEST_OPSET
from graph_patterns.onnx.validation import check_text
from postproc_export.errors import MetadataError
from postproc_export.graphs.metadata import METADATA_KEY, TailRecord
from postproc_export.graphs.onnx.names import subgraphs

NEEDED_IMPORT: Final = "import_was_missing"  # the original's own nodes are of the default domain, without an import


def encoded_port(item: onnx.ValueInfoProto) -> str:
    """Return a port as the record keeps it: base64 of its bytes."""
    return base64.b64encode(item.SerializeToString(deterministic=True)).decode("ascii")


def read_record(model: onnx.ModelProto, *, where: str) -> TailRecord | None:
    """Return the record of a model; None where it has none.

    Raises
    ------
    MetadataError
        If it is not legal, or there are several.
    """
    texts = [item.value for item in model.metadata_props if item.key == METADATA_KEY]
    if len(texts) > 1:
        raise illegal("text", f"{len(texts)} entries of that name", where=where)
    return TailRecord.loads(texts[0], where=where) if texts else None


def decoded_outputs(original: Mapping[str, Any], *, where: str) -> list[onnx.ValueInfoProto]:
    """Return the outputs of the original that a record of an ONNX model keeps.

    Raises
    ------
    MetadataError
        Unless there is at least one, each with a name of its own.
    """
    try:
        serialised = [base64.b64decode(text, validate=True) for text in _texts(original["outputs"])]
        outputs = [onnx.ValueInfoProto.FromString(item) for item in serialised]
        check_text(onnx.ModelProto(graph=onnx.GraphProto(output=outputs)).SerializeToString())
    except (KeyError, TypeError, binascii.Error, ValueError, DecodeError) as error:
        raise illegal("outputs", str(error), where=where) from error
    names = [item.name for item in outputs]
    if not names or "" in names or len(set(names)) < len(names):
        raise illegal("outputs", f"{', '.join(map(repr, names)) or 'none'}", where=where)
    return outputs


def recorded_names(original: Mapping[str, Any], *, where: str) -> dict[str, str]:
    """Return the renamings that a record keeps, the way back: {name in the file: name in the original}.

    Raises
    ------
    MetadataError
        Unless each is one that attaching makes: of a name to that name with a suffix, and no two to the same one.
    """
    renamed = original.get("renamed", {})
    legal = isinstance(renamed, dict) and all(isinstance(new, str) for new in renamed.values())
    if not legal or not all(new.startswith((f"{old}_raw", f"{old}_before_")) for old, new in renamed.items()):
        raise illegal("renamings", reprlib.repr(renamed), where=where)
    back = {new: old for old, new in renamed.items()}
    if len(back) < len(renamed) or "" in renamed or not back.keys().isdisjoint(renamed):
        raise illegal("renamings", reprlib.repr(renamed), where=where)
    return back


def added_import(original: Mapping[str, Any], *, where: str) -> int | None:
    """Return the version of the default operator set whose import attaching added; None where it added none."""
    version = original.get("added_opset_import")
    if version is not None and type(version) is not int:
        raise illegal("added import", reprlib.repr(version), where=where)
    return version


def oldest_opset_of(ir_version: int) -> int:
    """Return the oldest opset that was released with an IR version: any reader of that version knows it."""
    released: dict[int, int] = {}
    for _, ir, opset, *_ in onnx.helper.VERSION_TABLE:
        released.setdefault(ir, opset)
    return max(OLDEST_OPSET, released.get(ir_version, max(released.values())))


def uses_default_domain(model: onnx.ModelProto, *, apart: Collection[str] = ()) -> bool:
    """Whether a node is of the default domain: not those that compute some values, nor those of functions.

    Notes
    -----
    A function imports for itself.
    """
    training = (graph for info in model.training_info for graph in (info.initialization, info.algorithm))
    nodes = (node for graph in (model.graph, *training) for scope in subgraphs(graph) for node in scope.node)
    return any(node.domain in ("", "ai.onnx") and not any(name in apart for name in node.output) for node in nodes)


def import_doubts(
    model: onnx.ModelProto, original: Mapping[str, Any], *, where: str, apart: Collection[str] = ()
) -> list[str]:
    """Return why the import that a record says was added cannot have been; the nodes of some values do not count."""
    version = added_import(original, where=where)
    if version is None:
        return []
    found = any((item.domain, item.version) == ("", version) for item in model.opset_import)
    if not found or version != oldest_opset_of(model.ir_version):
        return [f"attaching adds no import of operator set {version} to such a model"]
    if uses_default_domain(model, apart=apart) and not original.get(NEEDED_IMPORT):
        return [f"the import of operator set {version} stays: nodes of the model need it"]
    return []


def drop_added_import(model: onnx.ModelProto, original: Mapping[str, Any], *, where: str) -> list[str]:
    """Remove the import that attaching added, or say why it stays."""
    version, doubts = added_import(original, where=where), import_doubts(model, original, where=where)
    if version is not None and not doubts:
        index = [(item.domain, item.version) for item in model.opset_import].index(("", version))
        del model.opset_import[index]
    return doubts


def illegal(what: str, found: str, *, where: str) -> MetadataError:
    """Return the error for a record that keeps of the original what nobody could have written there."""
    return MetadataError(
        f"{where}: the record '{METADATA_KEY}' has no legal {what}",
        found=found[:200],
        needed="what attaching wrote of the original",
        fix="attach to the original again",
    )


def _texts(items: object) -> list[str]:
    if not isinstance(items, list):
        raise TypeError(f"{type(items).__name__}, not a list")
    return items
