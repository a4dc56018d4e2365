"""Compare an attached OpenVINO model with the raw one: every operator, mark and result but the tail."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from postproc_export.check.preserved import (
    NO_RECORD,
    Change,
    Key,
    Preservation,
    aligned,
    assumed,
    keyed,
    merged_openvino,
    moved,
    remaining,
    shown,
)
from postproc_export.errors import MetadataError, UnsupportedModelError
from postproc_export.formats.base import recorded_names
from postproc_export.formats.openvino_file import read_ir
from postproc_export.formats.openvino_names import used_names
from postproc_export.record import METADATA_KEY, TailRecord
from postproc_export.runtimes.openvino import openvino_core
from postproc_export.tail import PREFIX

# --- What an operator of an OpenVINO model is, as rows that can be compared.

Row: TypeAlias = Mapping[str, Any]

BODIES: Final[Mapping[str, tuple[str, ...]]] = {
    "If": ("get_then_body", "get_else_body"),
    "Loop": ("get_function",),
    "TensorIterator": ("get_function",),
}
_CHUNK: Final = 16 * 1024 * 1024


def operators(model: Any) -> dict[Key, Any]:
    """Return the operators but for results, by friendly name."""
    nodes = (node for node in model.get_ordered_ops() if node.get_type_name() != "Result")
    return keyed(nodes, lambda node: node.get_friendly_name())


def row(node: Any, names: Mapping[str, str]) -> Row:
    """Return what is compared of an operator, but for the values of constants, the bodies, and marks.

    Parameters
    ----------
    node
        The operator.
    names
        Tensor names that were moved: {in the raw model: in the attached one}.

    Notes
    -----
    The marks of single operators (their rt_info) have no form in Python; `mark_changes` reads them from the file.
    """
    info = node.get_type_info()
    found: dict[str, Any] = {
        "type": f"{info.name} of {info.version_id}",
        "attributes": {key: str(value) for key, value in node.get_attributes().items()},
    }
    for index in range(node.get_input_size()):
        source = node.input_value(index)
        found[f"operand {index}"] = f"{source.get_node().get_friendly_name()}:{source.get_index()}"
    for output in node.outputs():
        at = output.get_index()
        found[f"names of output {at}"] = sorted(names.get(name, name) for name in output.get_names())
        found[f"element type of output {at}"] = output.get_element_type().get_type_name()
        found[f"shape of output {at}"] = str(output.get_partial_shape())
    return found


def bodies(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield the models nested in an operator."""
    for getter in BODIES.get(node.get_type_name(), ()):
        yield getter.removeprefix("get_"), getattr(node, getter)()


def wiring(node: Any) -> list[str]:
    """Return how an operator feeds its bodies and takes from them."""
    found = []
    for of_body in range(len(BODIES.get(node.get_type_name(), ()))):
        for getter in ("get_input_descriptions", "get_output_descriptions"):
            method = getattr(node, getter)
            descriptions = method(of_body) if node.get_type_name() == "If" else method()
            found += [_described(item) for item in descriptions]
    return found


def same_values(raw: Any, attached: Any) -> bool:
    """Whether two constants hold the same bits; a piece at a time, so that mapped weights are not loaded as a whole."""
    before, after = _bytes(raw), _bytes(attached)
    if before.size != after.size:
        return False
    return all(
        np.array_equal(before[at : at + _CHUNK], after[at : at + _CHUNK]) for at in range(0, before.size, _CHUNK)
    )


def flattened(info: Any, path: str = "") -> dict[str, str]:
    """Return the entries of a model's rt_info as text, nested ones with their path."""
    found: dict[str, str] = {}
    for key in info:
        value = getattr(info[key], "value", info[key])
        name = f"{path}/{key}" if path else str(key)
        found |= flattened(value, name) if isinstance(value, dict) else {name: str(value)}
    return found


def _described(item: Any) -> str:
    values = {name: getattr(item, name) for name in dir(item) if not name.startswith("_")}
    return f"{type(item).__name__} { ({name: value for name, value in values.items() if not callable(value)}) }"


def _bytes(constant: Any) -> NDArray[np.uint8]:
    values = constant.data
    if values.dtype.kind in "OSU":
        return np.frombuffer(repr(values.tolist()).encode(), np.uint8)
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


# --- The marks of an IR's operators and ports (their rt_info), which only the .xml itself tells in full.


def mark_changes(raw: Path, attached: Path) -> Iterator[Change]:
    """Yield the operators of the raw IR whose marks are others in the attached one, in bodies too.

    Parameters
    ----------
    raw, attached
        The .xml files, which `refuse_unsafe_ir` has let pass.

    Raises
    ------
    UnsupportedModelError
        If one is no XML; OpenVINO's own reader takes some that are not.
    """
    before, after = _marks(raw), _marks(attached)
    for name, marks in before.items():
        if after.get(name, marks) != marks:
            yield Change(f"'{name}': rt_info", shown(", ".join(marks)), shown(", ".join(after[name])))


def _marks(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    try:
        for _, layer in ElementTree.iterparse(path):
            if layer.tag == "layer":
                found[layer.get("name", "")] += _marks_of(layer)
                layer.clear()
    except ElementTree.ParseError as error:
        raise UnsupportedModelError(f"cannot read {path}: not XML", found=str(error)) from error
    return found


def _marks_of(layer: ElementTree.Element) -> Iterator[str]:
    places = {"": layer.findall("rt_info")}
    for side in ("input", "output"):
        for index, port in enumerate(layer.findall(f"{side}/port")):
            places[f"{side} {index}: "] = port.findall("rt_info")
    for place, infos in places.items():
        for mark in (mark for info in infos for mark in info.iter() if mark is not info):
            yield place + " ".join((mark.tag, *(f"{key}={value}" for key, value in sorted(mark.attrib.items()))))


# --- Compare an attached OpenVINO model with the raw one: everything but the tail, which is known by its prefix.

_UNNAMED: Final[Mapping[str, str]] = {}


def compare_openvino_models(raw: Any, attached: Any, *, where: str = "the attached model") -> Preservation:
    """Return what differs besides the tail.

    Parameters
    ----------
    raw, attached
        The `openvino.Model`s, which stay as they are.
    where
        The attached model, for errors.

    Raises
    ------
    MetadataError
        If the record of the attached model is not legal.
    """
    return _OpenVinoPair(raw, merged_openvino(attached, where=where), where).compared()


@dataclass(frozen=True, slots=True)
class _Output:
    """A result: its own name, and the value that it gives out with its tensor names."""

    name: str
    value: str
    tensor_names: tuple[str, ...]

    def __str__(self) -> str:
        return f"result '{self.name}'"


class _OpenVinoPair:
    def __init__(self, raw: Any, attached: Any, where: str) -> None:
        self._raw, self._attached = raw, attached
        has_record = attached.has_rt_info([METADATA_KEY])
        text = attached.get_rt_info([METADATA_KEY]).astype(str) if has_record else None
        self._record = None if text is None else TailRecord.loads(text, where=where)
        self._where = where
        self._names = self._renamed()

    def compared(self) -> Preservation:
        changes = list(self._scope_changes(self._raw, self._attached, "", tail=True))
        names = (model.get_friendly_name() for model in (self._raw, self._attached))
        changes += [*_changed("name of the model", *names), *self._rt_info_changes()]  # a body's own is not kept
        if self._record is not None:
            changes += self._output_changes(self._record)
            changes += self._record_changes(self._record)
        nodes = operators(self._raw).values()
        constants = sum(node.get_type_name() == "Constant" for node in nodes)
        return Preservation(
            compared={
                "operator": len(nodes) - constants,
                "constant": constants,
                "result": len(self._raw.get_results()),
                "rt_info value": len(flattened(self._raw.get_rt_info())),
            },
            tail=len(self._tail(self._raw, self._attached)),
            changes=tuple(changes),
            not_judged=tuple(self._not_judged()),
        )

    def _renamed(self) -> Mapping[str, str]:
        if self._record is not None:
            return {old: new for new, old in recorded_names(self._record.original, where=self._where).items()}
        tail = self._tail(self._raw, self._attached)
        body = [node for key, node in operators(self._attached).items() if key not in tail]
        return assumed(used_names(self._raw)[0], {name for node in body for name in _tensor_names(node)})

    def _tail(self, raw: Any, attached: Any) -> set[Key]:
        """Return the operators of the tail: those of its prefix that the raw model does not have."""
        known = operators(raw)
        return {key for key in operators(attached) if str(key[0]).startswith(PREFIX) and key not in known}

    def _scope_changes(self, raw: Any, attached: Any, where: str, *, tail: bool = False) -> Iterator[Change]:
        gone = self._tail(raw, attached) if tail else set()
        before = operators(raw)
        after = {key: node for key, node in operators(attached).items() if key not in gone}

        def title(node: Any) -> str:
            return f"{where}{node.get_type_name()} '{node.get_friendly_name()}'"

        yield from moved(before, after, title, None)
        for left, right in aligned(before, after):
            yield from self._operator_changes(left, right, title(left))
        for kind in ("parameters", "sinks"):
            names = [_listed(model, kind) for model in (raw, attached)]
            if tail:  # what adjusts it at run time is known by its prefix, too
                names[1] = [name for name in names[1] if name in names[0] or not name.startswith(PREFIX)]
            yield from _changed(f"{where}the order of {kind}", *names)

    def _operator_changes(self, raw: Any, attached: Any, where: str) -> Iterator[Change]:
        before, after = row(raw, self._names), row(attached, _UNNAMED)
        for key in dict.fromkeys((*before, *after)):
            yield from _changed(f"{where}: {key}", before.get(key), after.get(key))
        both = (raw.get_type_name(), attached.get_type_name())
        if both == ("Constant", "Constant") and not same_values(raw, attached):
            yield Change(f"{where}: values", None, None)
        if both[0] == both[1]:
            yield from _changed(f"{where}: its wiring", wiring(raw), wiring(attached))
            for (name, left), (_, right) in zip(bodies(raw), bodies(attached), strict=True):
                yield from self._scope_changes(left, right, f"{where}: {name}: ")
                results = (_listed(model, "results") for model in (left, right))
                yield from _changed(f"{where}: {name}: results", *results)

    def _rt_info_changes(self) -> Iterator[Change]:
        before, after = (flattened(model.get_rt_info()) for model in (self._raw, self._attached))
        after.pop(METADATA_KEY, None)
        for info in (before, after):  # what 2025 writes into a model as it reads one: where its .bin lies
            info.pop("__weights_path", None)
        for key in dict.fromkeys((*before, *after)):
            yield from _changed(f"rt_info '{key}'", before.get(key), after.get(key))

    def _output_changes(self, record: TailRecord) -> Iterator[Change]:
        """The results that are not the tail's: which, of what, in which order."""
        known = {result.get_friendly_name() for result in self._raw.get_results()}
        results = _outputs(self._attached, _UNNAMED)
        own = [item for item in results if item.name in known or not item.name.startswith(PREFIX)]
        expected = remaining(record, ((item.value, item) for item in _outputs(self._raw, self._names)))
        yield from _listed_changes(expected, own, "")

    def _record_changes(self, record: TailRecord) -> Iterator[Change]:
        """What detaching would give back as results."""
        try:
            recorded = [
                _Output(str(item["name"]), f"{item['source']}:{item['port']}", tuple(item["tensor_names"]))
                for item in record.original["results"]
            ]
        except (KeyError, TypeError) as error:
            where = f"{self._where}: the record '{METADATA_KEY}' has no legal results"
            raise MetadataError(where, found=str(error)) from error
        yield from _listed_changes(_outputs(self._raw, _UNNAMED), recorded, "in the record: ")

    def _not_judged(self) -> Iterator[str]:
        if self._record is None:
            yield NO_RECORD
            for old, new in self._names.items():
                yield f"whether '{new}' is '{old}' of the raw model: taken from the names, no record says so"


def _tensor_names(node: Any) -> set[str]:
    return {name for output in node.outputs() for name in output.get_names()}


def _outputs(model: Any, names: Mapping[str, str]) -> list[_Output]:
    found = []
    for result in model.get_results():
        source = result.input_value(0)
        value = f"{source.get_node().get_friendly_name()}:{source.get_index()}"
        tensor_names = tuple(sorted(names.get(name, name) for name in source.get_names()))
        found.append(_Output(result.get_friendly_name(), value, tensor_names))
    return found


def _listed_changes(raw: list[_Output], attached: list[_Output], where: str) -> Iterator[Change]:
    before, after = (keyed(items, lambda item: item.name) for items in (raw, attached))
    yield from moved(before, after, lambda item: f"{where}{item}", f"{where}the order of results")
    for left, right in aligned(before, after):
        yield from _changed(f"{where}{left}: its value", left.value, right.value)
        yield from _changed(f"{where}{left}: tensor names", left.tensor_names, right.tensor_names)


def _listed(model: Any, kind: str) -> list[str]:
    return [node.get_friendly_name() for node in getattr(model, f"get_{kind}")()]


def _changed(where: str, raw: Any, attached: Any) -> Iterator[Change]:
    if raw == attached or (not raw and not attached):
        return
    yield Change(where, None if raw is None else shown(raw), None if attached is None else shown(attached))


# --- Compare an attached IR with the raw one; weights are mapped and compared a piece at a time.


def compare_openvino_files(raw: Path, attached: Path) -> Preservation:
    """Return what differs besides the tail.

    Raises
    ------
    FileError, UnsupportedModelError
        If one of the files cannot be read.
    MetadataError
        If the attached file has a record that is not legal.
    MissingDependencyError
        If OpenVINO is not installed.
    """
    core = openvino_core(purpose="comparing an OpenVINO IR")
    found = compare_openvino_models(read_ir(core, raw), read_ir(core, attached), where=str(attached))
    return replace(found, changes=(*found.changes, *mark_changes(raw, attached)))
