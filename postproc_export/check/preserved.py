"""What attaching changed besides the tail: the changes found, and what has to be left out of the comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from postproc_export.record import KEYS, METADATA_KEY, TRANSFORMED, LayerRecord, TailRecord
from postproc_export.stats import LEVELS
from postproc_export.tail import OUTPUT_NAMES

if TYPE_CHECKING:
    import onnx


# --- One thing that differs between two files, and all of them.

LONGEST: Final = 80  # characters of a value in a message
SHOWN: Final = 5  # changes in the one-line message; a machine gets all


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is not as it was.

    Parameters
    ----------
    where
        What it is, from the outside in: ``"node 'Conv_0': attribute 'pads'"``.
    raw, attached
        What stands there in either file; None where it is not there, or in both where it is too long to be told.
    """

    where: str
    raw: str | None
    attached: str | None

    def __str__(self) -> str:
        if self.raw is None and self.attached is None:
            return f"{self.where} differ"
        if self.attached is None:
            return f"{self.where} is gone"
        if self.raw is None:
            return f"{self.where} was added"
        return f"{self.where} was {self.raw}, is {self.attached}"

    def to_json(self) -> dict[str, str | None]:
        """Return the JSON object."""
        return {"where": self.where, "raw": self.raw, "attached": self.attached}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preservation:
    """What a comparison of an attached file with the raw one found; truthy where nothing but the tail was added.

    Parameters
    ----------
    compared
        How many parts of the raw file were compared, by kind, such as ``{"node": 12}``.
    tail
        How many nodes or operators of the attached file are the tail's.
    changes
        What else differs.
    not_judged
        What could not be judged, one sentence each.
    """

    compared: Mapping[str, int]
    tail: int
    changes: tuple[Change, ...]
    not_judged: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.changes

    def describe(self) -> str:
        """Return one line: what is the same, or the first changes."""
        if self.changes:
            shown = "; ".join(str(change) for change in self.changes[:SHOWN])
            rest = len(self.changes) - SHOWN
            return f"{len(self.changes)} changed: {shown}" + (f"; and {rest} more" if rest > 0 else "")
        parts = ", ".join(
            f"{count} {kind}{'' if count == 1 else 's'}" for kind, count in self.compared.items() if count
        )
        return f"nothing but the tail of {self.tail} operators was added: {parts} as in the raw file"

    def to_json(self) -> dict[str, Any]:
        """Return the details of the JSON report."""
        return {
            "changes": [change.to_json() for change in self.changes],
            "compared": dict(self.compared),
            "tail_operators": self.tail,
            "not_judged": list(self.not_judged),
        }


def shown(value: object) -> str:
    """Return a value for a message, cut where it is long."""
    text = f"{len(value):,} bytes" if isinstance(value, bytes) else repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


# --- Line up two lists by keys: what is gone, what was added, what stands in both, and whether the order is the same.

Item = TypeVar("Item")
Key = tuple[Hashable, int]


def keyed(items: Iterable[Item], key: Callable[[Item], Hashable]) -> dict[Key, Item]:
    """Return the items by key, in order; items of one key are numbered."""
    counts: Counter[Hashable] = Counter()
    found: dict[Key, Item] = {}
    for item in items:
        name = key(item)
        found[name, counts[name]] = item
        counts[name] += 1
    return found


def aligned(raw: Mapping[Key, Item], attached: Mapping[Key, Item]) -> Iterator[tuple[Item, Item]]:
    """Yield what stands in both, in the raw order."""
    return ((item, attached[key]) for key, item in raw.items() if key in attached)


def moved(
    raw: Mapping[Key, Item], attached: Mapping[Key, Item], title: Callable[[Item], str], order: str | None
) -> Iterator[Change]:
    """Yield what is gone and what was added; with a text for it, the order of the rest, too."""
    yield from (Change(title(item), "there", None) for key, item in raw.items() if key not in attached)
    yield from (Change(title(item), None, "there") for key, item in attached.items() if key not in raw)
    before = [key for key in raw if key in attached]
    after = [key for key in attached if key in raw]
    if order is not None and before != after:
        first = next(index for index, key in enumerate(before) if key != after[index])
        yield Change(f"{order} at position {first}", title(raw[before[first]]), title(attached[after[first]]))


# --- Which names and outputs of the raw file an attached one still has to have.

Output = TypeVar("Output")

NO_RECORD: Final = "the outputs, their order, types and shapes: the record of what they were is gone from the file"


def remaining(record: TailRecord, outputs: Iterable[tuple[str, Output]]) -> list[Output]:
    """Return the raw outputs that are outputs of the attached file, in its order.

    Parameters
    ----------
    record
        What was attached.
    outputs
        The outputs of the raw file, each with its value as the record names raw values.

    Notes
    -----
    Those of levels that were left alone stand in their level's place, then come all that belong to no level, then the
    raw ones that ours took the place of, where they were kept.
    """
    by_value = dict(outputs)
    raw = {level: value for level, value in record.raw.items() if value in by_value}
    transformed = record.original.get(TRANSFORMED, ())  # what the file gives of these is not what the raw one gives
    kept = [level for level in LEVELS if level in raw and level not in transformed]
    left_alone = [raw[level] for level in kept if level not in record.levels]
    replaced = [raw[level] for level in kept if level in record.levels]
    others = [value for value in by_value if value not in raw.values()]
    return [by_value[value] for value in (*left_alone, *others, *(replaced if record.options.keep_raw else []))]


def assumed(raw: Collection[str], attached: Collection[str]) -> dict[str, str]:
    """Return the renamings that the names themselves tell where no record does: {in the raw file: in the attached}.

    Notes
    -----
    Attaching moves a value that bears the name of one of its outputs to ``<name>_raw``, or ``<name>_raw_1`` and so on.
    """
    new = sorted(name for name in attached if name not in raw)
    found = {}
    for name in OUTPUT_NAMES:
        moved = [item for item in new if item == f"{name}_raw" or item.startswith(f"{name}_raw_")]
        if name in raw and moved and name not in attached:
            found[name] = moved[0]
    return found


# --- An attached model as if tail and layers were one: what a comparison with the raw model has to leave out.


def merged_onnx(model: onnx.ModelProto, *, where: str) -> onnx.ModelProto:
    """Return a copy whose record tells of tail and layers together; the model itself where it has no layers.

    Raises
    ------
    MetadataError
        If a record is not legal.
    """
    import onnx

    from postproc_export.formats import onnx_layer
    from postproc_export.formats.base import read_record

    if not any(item.key in KEYS.values() for item in model.metadata_props):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx_layer.take_onnx_layer(copy, "decision", where=where)
    layer, record = onnx_layer.read_onnx_layer(copy, "transform", where=where), read_record(copy, where=where)
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
    from postproc_export.formats import openvino_layer

    if not any(model.has_rt_info([key]) for key in KEYS.values()):
        return model
    clone = model.clone()
    openvino_layer.take_openvino_layer(clone, "decision", where=where)
    layer = openvino_layer.read_openvino_layer(clone, "transform", where=where)
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
