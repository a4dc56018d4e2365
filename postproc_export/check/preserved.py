"""What attaching changed besides the tail: two models of one format compared part by part."""

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, TypeAlias

from postproc_export.formats.base import Format, recorded_names
from postproc_export.record import KEYS, METADATA_KEY, TRANSFORMED, LayerRecord, TailRecord
from postproc_export.stats import LEVELS
from postproc_export.tail import OUTPUT_NAMES

LONGEST: Final = 80  # characters of a value in a message
SHOWN: Final = 5  # changes in the one-line message; a machine gets all
NO_RECORD: Final = "the outputs, their order, types and shapes: the record of what they were is gone from the file"

Names: TypeAlias = Mapping[str, str]
"""Values that were renamed: {in the raw model: in the attached one}."""


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is not as it was; neither value is told where both are None, since they are too long."""

    where: str  # from the outside in: "node 'Conv_0': attribute 'pads'"
    raw: str | None  # None where it was not there
    attached: str | None  # None where it is gone

    def __str__(self) -> str:
        match self.raw, self.attached:
            case None, None:
                return f"{self.where} differ"
            case None, _:
                return f"{self.where} was added"
            case _, None:
                return f"{self.where} is gone"
        return f"{self.where} was {self.raw}, is {self.attached}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preservation:
    """What a comparison of an attached file with the raw one found; truthy where nothing but the tail was added."""

    compared: Mapping[str, int]  # how many parts of the raw file were compared, by kind: {"node": 12}
    tail: int  # how many nodes or operators are the tail's
    changes: tuple[Change, ...]
    not_judged: tuple[str, ...] = ()  # a sentence each

    def __bool__(self) -> bool:
        return not self.changes

    def describe(self) -> str:
        """Return one line: what is the same, or the first changes."""
        if self.changes:
            first = "; ".join(str(change) for change in self.changes[:SHOWN])
            rest = len(self.changes) - SHOWN
            return f"{len(self.changes)} changed: {first}" + (f"; and {rest} more" if rest > 0 else "")
        counts = self.compared.items()
        parts = ", ".join(f"{count} {kind}{'' if count == 1 else 's'}" for kind, count in counts if count)
        return f"nothing but the tail of {self.tail} operators was added: {parts} as in the raw file"

    def to_json(self) -> dict[str, Any]:
        """Return the details of the JSON report."""
        return {
            "changes": [asdict(change) for change in self.changes],
            "compared": dict(self.compared),
            "tail_operators": self.tail,
            "not_judged": list(self.not_judged),
        }


class ModelPart:
    """A part of a model: a node, an attribute, a declared value, a nested graph. The key tells it from its siblings."""

    def __init__(self, key: Hashable, title: str, fields: Mapping[str, Any] | None = None) -> None:
        self.key, self.title, self._fields = key, title, fields or {}

    def fields(self) -> Mapping[str, Any]:
        """Return what it has: `Parts`, a tuple of the values that a field has, or any other value."""
        return self._fields

    def equals(self, other: Any) -> bool:
        """Whether it is surely the same as in the other model, so that nobody need look further."""
        return False

    def hidden_differences(self, other: Any) -> Iterator[str]:
        """Yield what differs and is too long to be told."""
        return iter(())


class Parts(dict[tuple[Hashable, int], ModelPart]):
    """Parts of one kind by key, those of one key numbered; `order` is what a message calls their order, if any."""

    def __init__(self, parts: Iterable[ModelPart], order: str | None = None) -> None:
        counts: Counter[Hashable] = Counter()
        for part in parts:
            self[part.key, counts[part.key]] = part
            counts[part.key] += 1
        self.order = order


def differences(raw: ModelPart, attached: ModelPart, where: str = "") -> Iterator[Change]:
    """Yield what differs between two parts that stand `where`, at any depth."""
    if raw.equals(attached):
        return
    before, after = raw.fields(), attached.fields()
    for name in dict.fromkeys((*before, *after)):
        left, right = before.get(name), after.get(name)
        if isinstance(left, Parts) or isinstance(right, Parts):
            yield from part_changes(left or Parts(()), right or Parts(()), where)
        else:
            yield from _changed(_inside(where, name), left, right)
    yield from (Change(_inside(where, what), None, None) for what in raw.hidden_differences(attached))


def part_changes(raw: Parts, attached: Parts, where: str) -> Iterator[Change]:
    """Yield which parts are gone or were added, whether the rest is in another order, and what differs inside."""
    for before, after, found in ((raw, attached, ("there", None)), (attached, raw, (None, "there"))):
        yield from (Change(_inside(where, part.title), *found) for key, part in before.items() if key not in after)
    both = [key for key in raw if key in attached]
    moved = [pair for pair in zip(both, (key for key in attached if key in raw), strict=True) if pair[0] != pair[1]]
    if raw.order is not None and moved:
        old, new = moved[0]
        order = _inside(where, f"{raw.order} at position {both.index(old)}")
        yield Change(order, _inside(where, raw[old].title), _inside(where, attached[new].title))
    for key in both:
        yield from differences(raw[key], attached[key], _inside(where, raw[key].title))


def _changed(where: str, raw: Any, attached: Any) -> Iterator[Change]:
    if repr(raw) == repr(attached) or not (raw or attached):  # so that NaN is NaN, and -0.0 is not 0.0
        return
    pair = [raw, attached]
    if isinstance(raw, tuple):
        is_single = all(len(values) <= 1 for values in pair)
        pair = [(values[0] if is_single else list(values)) if values else None for values in pair]
    yield Change(where, *(None if value is None else shown(value) for value in pair))


def shown(value: object) -> str:
    """Return a value for a message, cut where it is long."""
    text = f"{len(value):,} bytes" if isinstance(value, bytes) else repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _inside(where: str, what: str) -> str:
    return f"{where}: {what}" if where else what


class Comparison:
    """An attached model beside the raw one; a format says what their parts are.

    What stands before or behind the tail counts as the tail's: its record and the tail's are taken for one.
    """

    form: Format
    order: str  # what a message calls the order of the outputs
    record: TailRecord | None
    names: Names

    def __init__(self, raw: Any, attached: Any, where: str) -> None:
        self.raw, self.attached, self.where = raw, attached, where
        self.entries = {METADATA_KEY}  # what attaching wrote into the metadata
        self.form.take(attached, "decision", where=where)
        is_converted = self.form.was_converted(attached, "tail")
        self.record = None if is_converted else self.form.record(attached, where=where)
        if self.record is not None and self.record.options.model_info:
            self.entries |= self.form.model_info_entries()
        layer = self.form.read(attached, "transform", where=where)
        if layer is not None and self.record is not None:
            self.record = _merged(self.record, layer, self.hosts(layer))
            self.entries.add(KEYS["transform"])

    def hosts(self, layer: LayerRecord) -> Mapping[str, str | None]:
        """Return the raw value whose place each value takes that a transform makes; None where it takes none."""
        raise NotImplementedError

    def bodies(self) -> tuple[ModelPart, ModelPart]:
        """Return the raw model and the attached one without its tail, neither with its outputs."""
        raise NotImplementedError

    def outputs(self, names: Names) -> list[tuple[str, ModelPart]]:
        """Return the outputs of the raw model, each with its value as the record of the tail names it."""
        raise NotImplementedError

    def other_outputs(self) -> list[ModelPart]:
        """Return the outputs of the attached model that are not the tail's."""
        raise NotImplementedError

    def recorded_outputs(self, record: TailRecord) -> list[ModelPart]:
        """Return what detaching would give back as outputs."""
        raise NotImplementedError

    def counts(self) -> tuple[dict[str, int], int]:
        """Return how many parts of each kind the raw model has, and how many the tail."""
        raise NotImplementedError

    def set_names(self, raw: Collection[str], attached: Collection[str]) -> None:
        """Take the renamings from the record; without one from the names themselves.

        Attaching moves a value that bears the name of one of its outputs to ``<name>_raw``, or ``<name>_raw_1`` and on.
        """
        if self.record is not None:
            back = recorded_names(self.record.original, where=self.where)
            self.names = {old: new for new, old in back.items()}
            return
        new, self.names = sorted(name for name in attached if name not in raw), {}
        for name in OUTPUT_NAMES:
            moved = [item for item in new if item == f"{name}_raw" or item.startswith(f"{name}_raw_")]
            if name in raw and moved and name not in attached:
                self.names = {**self.names, name: moved[0]}

    def compared(self) -> Preservation:
        """Compare the models."""
        changes = list(differences(*self.bodies()))
        not_judged: list[str] = []
        if self.record is None:
            doubt = "whether '{}' is '{}' of the raw model: taken from the names, no record says so"
            not_judged += [NO_RECORD, *(doubt.format(new, old) for old, new in self.names.items())]
        else:
            expected = Parts(_remaining(self.record, dict(self.outputs(self.names))), self.order)
            changes += part_changes(expected, Parts(self.other_outputs()), "")
            original = Parts((part for _, part in self.outputs({})), self.order)
            changes += part_changes(original, Parts(self.recorded_outputs(self.record)), "in the record")
        compared, tail = self.counts()
        return Preservation(compared=compared, tail=tail, changes=tuple(changes), not_judged=tuple(not_judged))


def _remaining(record: TailRecord, outputs: Mapping[str, ModelPart]) -> list[ModelPart]:
    """Return the raw outputs, given by their values, that are outputs of the attached file, in its order.

    Those of levels that were left alone stand in their level's place, then come all that belong to no level, then the
    raw ones that ours took the place of, where they were kept.
    """
    raw = {level: value for level, value in record.raw.items() if value in outputs}
    transformed = record.original.get(TRANSFORMED, ())  # what the file gives of these is not what the raw one gives
    kept = [level for level in LEVELS if level in raw and level not in transformed]
    left_alone = [raw[level] for level in kept if level not in record.levels]
    replaced = [raw[level] for level in kept if level in record.levels]
    others = [value for value in outputs if value not in raw.values()]
    return [outputs[value] for value in (*left_alone, *others, *(replaced if record.options.keep_raw else []))]


def _merged(record: TailRecord, layer: LayerRecord, hosts: Mapping[str, str | None]) -> TailRecord:
    """Return the record of a tail that would read what the transform reads; for `hosts` see `Comparison.hosts`."""
    renamed = record.renamed
    now = {renamed.get(made, made): host for made, host in hosts.items()}
    raw = {level: now.get(name, name) for level, name in record.raw.items()}
    own = {old: new for old, new in renamed.items() if old not in layer.made}
    original = {
        **layer.original,
        "renamed": {**own, **layer.renamed},
        TRANSFORMED: [level for level, name in record.raw.items() if name in now],
    }
    return replace(record, raw={level: name for level, name in raw.items() if name is not None}, original=original)
