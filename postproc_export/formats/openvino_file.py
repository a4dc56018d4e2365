"""An OpenVINO model as a file: the names of its tensors, operators and results, and how it is read and written.

A tensor name may stand on one tensor only, and a tensor may have several. A written file is read again, and its
constants are compared bit for bit.
"""

import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any, Final

import numpy as np

from graph_patterns.expr import free_name
from postproc_export.errors import MetadataError, UnsupportedModelError
from postproc_export.formats.base import illegal
from postproc_export.formats.digest import constant_part, operator_part
from postproc_export.process import quiet_natives, refuse_backups
from postproc_export.reading.tail import LABEL_OUTPUT, SCORE_OUTPUT
from postproc_export.runtimes import first_reason
from postproc_export.tail import OUTPUT_NAMES, PACKED_OUTPUT, PREFIX
from postproc_export.validation import check_file

_MAP_RANK: Final = 3  # and above
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


def tensors_of(model: Any) -> dict[str, Any]:
    """Return the tensors by name, results left out: they repeat their tensor's names."""
    return {
        name: output
        for output in outputs_of(model)
        if output.get_node().get_type_name() != "Result"
        for name in output.get_names()
    }


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
    """Refuse a model in which the operator of an output shares its name: a record could not say which one it was."""
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


def name_nodes(outputs: Iterable[Any], *, stop: set[str], prefix: str, used: set[str]) -> None:
    """Give every operator and constant that was added a name of its own, the same in every run; `used` grows."""
    pending, seen = [output.get_node() for output in outputs], set[str]()
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
    """Return the output of an operator that `value_name` names; a MetadataError if there is none."""
    friendly_name, _, port = name.rpartition(":")
    for node in model.get_ops():
        if node.get_friendly_name() == friendly_name and port.isdecimal() and int(port) < node.get_output_size():
            return node.output(int(port))
    raise MetadataError(f"the record names a value '{name}' that the model does not have")


def result_names(result: Any) -> set[str]:
    """Return the names of a result and of its tensor."""
    return set(result.input_value(0).get_names()) | set(result.output(0).get_names())


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


def name_outputs(model: Any) -> dict[Any, set[str]]:
    """Name the results where they have no names yet, as `openvino.convert_model` leaves a torch module.

    Returns the names that each result had that was named. Anomalib's modules and ours give score, label, map and mask
    in this order, those that there are; labels and masks are boolean, maps and masks have three axes or more. A tensor
    inside may bear one of the names, after a variable: a label without a name tells that it is one.
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


def recorded_results(original: Mapping[str, Any], *, where: str) -> list[tuple[str, str, int]]:
    """Return the results of the original that a record of an IR keeps: its name, and the operator and port it is of.

    Raises MetadataError unless there is at least one, each of a value of its own.
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


LARGEST: Final = 512 * 1024 * 1024  # bytes of an .xml; that of a model of 50,000 operators has about 100 MB
LONGEST_RANGE: Final = 2**23  # elements of a constant range: OpenVINO computes it while it reads the file
_FIX: Final = "convert the model to an IR again, with OpenVINO itself"
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_STARTS: Final = (b"<?xml", b"<net")
_REFUSED: Final = {
    b"<!DOCTYPE": "a document type, which may define entities",
    b"<!ENTITY": "an entity",
    b"http://www.w3.org/2001/XInclude": "an inclusion of other files",
}
_SIZING: Final = re.compile(rb'<layer id="(\d{1,9})"[^>]*\btype="(?:Range|Broadcast|Tile|ConstantOfShape)"')
_EDGE: Final = re.compile(rb'<edge from-layer="(\d{1,9})"[^>]*\bto-layer="(\d{1,9})"')
_INTEGERS: Final = re.compile(
    rb'<layer id="(\d{1,9})"[^>]*\btype="Const"[^>]*>\s*'
    rb'<data element_type="i(32|64)" shape="[\d, ]*" offset="(\d{1,15})" size="(\d{1,4})"'
)


def refuse_unsafe_ir(path: Path) -> None:
    """Refuse an IR that is too large, is no XML in UTF-8, refers to other files, or asks for absurd sizes."""
    size = path.stat().st_size
    if size > LARGEST:
        raise _refused(path, f"{size:,} bytes", needed=f"at most {LARGEST:,} bytes")
    content = path.read_bytes()
    if not content.removeprefix(_BYTE_ORDER_MARK).lstrip().startswith(_STARTS):
        raise _refused(path, f"a file that begins with {content[:20]!r}", needed="XML in UTF-8 with the element <net>")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refused(path, str(error), needed="XML in UTF-8") from error
    for text, what in _REFUSED.items():
        if text in content:
            raise _refused(path, what, needed="elements, attributes and text alone")
    for value in _sizes(content, path.with_suffix(".bin")):
        if abs(value) > LONGEST_RANGE:
            raise _refused(path, f"a size of {value:,}", needed=f"sizes of at most {LONGEST_RANGE:,} in a constant")


def _sizes(content: bytes, weights: Path) -> Iterator[int]:
    """Yield the constants that decide how large a computed value is."""
    sizing = {match[1] for match in _SIZING.finditer(content)}
    if not sizing:
        return
    sources = {match[1] for match in _EDGE.finditer(content) if match[2] in sizing}
    with weights.open("rb") as stream:
        for layer, bits, offset, size in (match.groups() for match in _INTEGERS.finditer(content)):
            if layer in sources:
                stream.seek(int(offset))
                values = stream.read(int(size))
                width = int(bits) // 8
                yield from np.frombuffer(values[: len(values) // width * width], f"<i{width}").tolist()


def _refused(path: Path, found: str, *, needed: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"cannot read {path}: not an OpenVINO IR", found=found, needed=needed, fix=_FIX)


PATIENCE: Final = 20.0  # seconds; a sound IR of 1 GiB takes 0.01
SLOWEST: Final = 250_000  # bytes of an .xml per second, at the least


def pair_of(path: Path) -> list[Path]:
    """Return the two files of an IR."""
    return [path, path.with_suffix(".bin")]


def read_ir(core: Any, source: Path) -> Any:
    """Read an IR with an `openvino.Core`, or say which of its two files is at fault."""
    refuse_backups(pair_of(source), verb="read")
    for path in pair_of(source):
        check_file(path, needed="an IR: an .xml with its .bin beside it")
    refuse_unsafe_ir(source)
    try:
        return _read_in_time(core, source)
    except (RuntimeError, ValueError, OverflowError, MemoryError) as error:  # texts that are no UTF-8 are a ValueError
        raise UnsupportedModelError(f"cannot read {source}: not an OpenVINO IR", found=first_reason(error)) from error


def _read_in_time(core: Any, source: Path) -> Any:
    """Read an IR in a thread of its own: OpenVINO computes shapes while it reads, and damaged ones may take forever."""
    limit = PATIENCE + source.stat().st_size / SLOWEST
    finished: Queue[tuple[Any, Exception | None]] = Queue()

    def read() -> None:
        try:
            finished.put((core.read_model(source), None))
        except Exception as error:  # whatever it is, it is raised again where it can be handled
            finished.put((None, error))

    try:
        with quiet_natives():
            Thread(target=read, daemon=True).start()
            model, error = finished.get(timeout=limit)
    except Empty:
        raise UnsupportedModelError(
            f"cannot read {source}: OpenVINO did not finish reading it within {limit:.0f} s",
            found="sizes in it that take very long to compute, as in a damaged file",
            fix="convert or copy the model again",
        ) from None
    if error is not None:
        raise error
    return model


def verify_ir(core: Any, written: Path, model: Any, target: Path) -> None:
    """Read what was written: it has the outputs that it should have, and the tail's constants bit for bit."""
    read = core.read_model(written)
    outputs, expected = ([sorted(port.get_names()) for port in item.outputs] for item in (read, model))
    if not outputs or outputs != expected:
        raise UnsupportedModelError(
            f"cannot write {target}: it would not have the outputs that it should have",
            found=f"{outputs or 'no outputs'}, not {expected}" if expected else "no outputs",
        )
    constants, found = tail_constants(model), tail_constants(read)
    wrong = sorted(name for name in constants if found.get(name) != constants[name])
    if wrong:
        raise UnsupportedModelError(
            f"cannot write {target}: this version of OpenVINO does not keep the tail's constants",
            found=f"other bits in {', '.join(wrong)}",
            fix="use another version of OpenVINO, or attach to the ONNX model and convert that",
        )


def tail_constants(model: Any) -> dict[str, bytes]:
    """Return the bytes of every constant of the tail, by friendly name."""
    return {
        node.get_friendly_name(): node.get_data().tobytes()
        for node in model.get_ops()
        if node.get_type_name() == "Constant" and node.get_friendly_name().startswith(PREFIX)
    }


def content_parts(model: Any) -> Iterator[bytes]:
    """Yield what counts of a model for its digest; not what has our prefix, nor its inputs and results."""
    for scope in models_of(model):
        for node in scope.get_ops():
            kind = node.get_type_name()
            if kind in ("Parameter", "Result") or node.get_friendly_name().startswith(PREFIX):
                continue
            if kind != "Constant":
                attributes = node.get_attributes()
                yield operator_part(kind, [f"{name} {attributes[name]}".encode() for name in sorted(attributes)])
                continue
            dtype, shape = node.get_element_type().get_type_name(), node.get_output_shape(0)
            values = np.empty(0) if dtype == "string" else node.data.reshape(-1)
            content = values.view(np.uint8)
            yield constant_part(dtype, shape, content.size, partial(_slice, content))


def _slice(content: Any, start: int, length: int) -> bytes:
    sliced: bytes = content[start : start + length].tobytes()
    return sliced


def flattened(info: Any, path: str = "") -> dict[str, str]:
    """Return the entries of a model's rt_info as text, nested ones with their path."""
    found: dict[str, str] = {}
    for key in info:
        value = getattr(info[key], "value", info[key])
        name = f"{path}/{key}" if path else str(key)
        found |= flattened(value, name) if isinstance(value, dict) else {name: str(value)}
    return found
