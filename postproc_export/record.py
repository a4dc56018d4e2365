"""What a finished file records: one JSON string for each of its layers, custom steps, the tail and decisions."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self, TypeAlias

from postproc_export.errors import MetadataError, UsageError
from postproc_export.float32 import HALVES, Half, json_number, rounded_to, shortest
from postproc_export.options import SENSITIVITIES, TailOptions
from postproc_export.outcome import Outcome, outcome_json
from postproc_export.stats import LEVELS, CalibrationStats, Level, LevelStats
from postproc_export.tail import PREFIX, Tail, input_name, place
from postproc_export.validation import close_to, parse_json

Where: TypeAlias = Literal["transform", "tail", "decision"]
"""The layers of a model: custom steps before the tail, the tail, and decisions behind it."""

KEYS: Final[Mapping[Where, str]] = {
    "transform": "postproc_export_transform",
    "tail": "postproc_export",
    "decision": "postproc_export_decision",
}
"""Where the records stand, in ONNX metadata_props and in IR rt_info alike."""

PREFIXES: Final[Mapping[Where, str]] = {
    "transform": f"{PREFIX}transform/",
    "tail": PREFIX,
    "decision": f"{PREFIX}decision/",
}
METADATA_KEY: Final = KEYS["tail"]
STATISTICS_KEY: Final = "tail"
MODEL_KEY: Final = "model"  # in statistics: the model that they were calibrated on
TRANSFORMED: Final = "transformed"  # in a merged record: the levels whose raw values a transform takes the place of
RECORD_VERSION: Final = 1

_NEEDED: Final = "switches that are true or false, names of raw values by level, a version as text"


BEFORE: Final = ("gaussian", "top-k", "resize", "thresholds", "negate", "channel")
BEHIND: Final = ("gate", "points")
SHIPPED: Final = (*BEFORE, *BEHIND)
NO_GRAPH_FORM: Final[Mapping[str, str]] = dict.fromkeys(
    ("mebin", "connected-components"),
    "connected components (as in MEBin) are found by following neighbours until nothing changes: how many steps that "
    "takes depends on the values, and neither ONNX nor OpenVINO has an operator for it",
)


class TailSpec(NamedTuple):
    """One custom step: its name, and its parameters as JSON values."""

    name: str  # one of `SHIPPED`, or "package.module:Class"
    parameters: Mapping[str, Any]  # as in statistics and in the record of a model

    @property
    def is_shipped(self) -> bool:
        """Whether the package itself has it."""
        return self.name in SHIPPED

    @property
    def is_code(self) -> bool:
        """Whether it names a class, which is imported only where a caller names it, too: never for a file alone."""
        return not self.is_shipped and ":" in self.name

    @property
    def changes_values(self) -> bool:
        """Whether it stands before the threshold, so that statistics have to be those behind it."""
        return self.name not in BEHIND

    @property
    def keeps_values(self) -> bool:
        """Whether the raw values behind it are those before it, so that statistics need not be behind it."""
        return self.name == "channel" and "index" not in self.parameters

    @property
    def text(self) -> str:
        """How the command line takes it; a table of numbers is shortened."""
        texts = {key: str(value) for key, value in self.parameters.items()}
        shown = ",".join(f"{key}={text if len(text) <= 40 else f'{text[:16]}...'}" for key, text in texts.items())
        return f"{self.name}:{shown}" if shown else self.name

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that statistics and records hold."""
        return {"name": self.name, "parameters": dict(self.parameters)}

    @classmethod
    def from_json(cls, document: object, *, where: str) -> Self:
        """Read the JSON object; a MetadataError if it is not legal."""
        name = document.get("name") if isinstance(document, Mapping) else None
        parameters = document.get("parameters", {}) if isinstance(document, Mapping) else None
        if not isinstance(name, str) or not isinstance(parameters, Mapping):
            raise MetadataError(f"{where}: not a custom step", found=repr(document)[:60])
        if "file" in parameters:  # the command line may name a file to read; a record holds what was read
            raise MetadataError(f"{where}: the step '{name}' names a file", needed="its values themselves")
        return cls(name, dict(parameters))


def parse_tail(text: str) -> TailSpec:
    """Read ``name``, ``name:key=value,key=value`` or ``package.module:Class``; values stay text.

    Raises UsageError if it is of none of these forms, or has no graph form.
    """
    name, _, rest = text.partition(":")
    if name.lower() in NO_GRAPH_FORM:
        raise UsageError(f"the step '{name}' has no graph form", found=NO_GRAPH_FORM[name.lower()])
    if name not in SHIPPED:
        if rest and "=" not in rest:
            return TailSpec(text, {})
        needed = f"{', '.join(SHIPPED)}, or a class as package.module:Class"
        near = close_to(name, SHIPPED)
        fix = f"--step {near[0]}" if near else "name one of these; docs/steps.md says what they do"
        raise UsageError(f"the step '{text}' is not known", needed=needed, fix=fix)
    pairs = [item.partition("=") for item in rest.split(",")] if rest else []
    if any(not key or not value for key, _, value in pairs):
        fix = "give each parameter its value; docs/steps.md lists them"
        raise UsageError(f"the step '{text}' cannot be read", needed=f"{name}:key=value,key=value", fix=fix)
    keys = [key for key, _, _ in pairs]
    if len(set(keys)) != len(keys):
        raise UsageError(f"the step '{text}' has a parameter twice", found=", ".join(keys), fix="give each once")
    return TailSpec(name, {key: value for key, _, value in pairs})


def parse_tails(texts: str | Sequence[str]) -> tuple[TailSpec, ...]:
    """Read several, in the order in which they are applied."""
    return tuple(parse_tail(text) for text in ([texts] if isinstance(texts, str) else texts))


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecord:
    """What a layer is, and what taking it off restores."""

    where: Where
    version: str  # the tool's
    tails: tuple[TailSpec, ...] = ()  # the custom steps, in the order in which they are applied
    read: Mapping[str, str] = field(default_factory=dict)  # per input ("score", "map", "image", ...) the value it reads
    made: Mapping[str, str] = field(default_factory=dict)  # per output of the graph that it gives, the value that it is
    original: Mapping[str, Any]  # what taking it off restores, in the format's own terms

    @property
    def renamed(self) -> Mapping[str, str]:
        """Values that had to give their names up: {name in the original: name in this file}."""
        renamed = self.original.get("renamed", {})
        return renamed if isinstance(renamed, dict) else {}

    @property
    def back(self) -> dict[str, str]:
        """The way back: {name in this file: name in the original}; `formats.base.recorded_names` checks it."""
        return {new: old for old, new in self.renamed.items()}

    @property
    def sources(self) -> frozenset[str]:
        """The values that it reads."""
        return frozenset(self.read.values())

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, without its versions."""
        return {
            "tails": [spec.to_json() for spec in self.tails],
            "read": dict(self.read),
            "made": dict(self.made),
            "original": dict(self.original),
        }

    def dumps(self) -> str:
        """Return the JSON string; floats as the shortest decimal that reads back to the same float32."""
        document = {"record_version": RECORD_VERSION, "version": self.version, **self.to_json()}
        return json.dumps(document, separators=(",", ":"), allow_nan=False)

    @classmethod
    def of_json(cls, document: Mapping[str, Any], layer: Where, *, where: str) -> Self:
        """Read the JSON object of a step or a decision; `where` names the record in errors."""
        tails, original = document.get("tails"), document.get("original")
        texts = [document.get("read"), document.get("made")]
        if not isinstance(tails, list) or not isinstance(original, dict) or not all(map(_is_texts, texts)):
            raise MetadataError(f"{where} is not legal", found=", ".join(sorted(document)))
        return cls(
            where=layer,
            version=str(document.get("version")),
            tails=tuple(TailSpec.from_json(item, where=where) for item in tails),
            read=texts[0] or {},
            made=texts[1] or {},
            original=original,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TailRecord(LayerRecord):
    """What the tail decides, besides."""

    where: Where = "tail"
    stats: CalibrationStats  # thresholds that were matched stand in both levels
    options: TailOptions  # what the user decided; `mask_dtype` is the one that was taken
    raw: Mapping[Level, str]  # the raw value that each level reads, under its name in this file
    narrow: Mapping[Level, Half] = field(default_factory=dict)
    """The type in which the raw values of a level were declared, where that is narrower than float32: its boundary is
    the constant for that type. Files that were attached before there were such constants have none."""
    found: Mapping[Level, str] = field(default_factory=dict)
    """What made each of these outputs the level's: see `ports.Found`. Files of older versions do not say."""

    @property
    def levels(self) -> frozenset[Level]:
        """The levels that have outputs of the tail."""
        has_score = "image" in self.raw or "pixel" in self.raw  # without one of its own it is the map's maximum
        present: dict[Level, bool] = {"image": has_score, "pixel": "pixel" in self.raw}
        stats = {level: self.stats.level(level) for level in present}
        return frozenset(
            level for level, of_level in stats.items() if present[level] and of_level and of_level.is_calibrated
        )

    @property
    def sources(self) -> frozenset[str]:
        """The values that it reads."""
        return frozenset(self.raw.values())

    @property
    def inputs(self) -> frozenset[str]:
        """The names of the inputs by which the tail is adjusted at run time."""
        what = self.options.adjustable
        if what == "nothing" or not self.options.enable_thresholding:
            return frozenset()
        return frozenset(input_name(level, what) for level in self.levels)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, without its versions."""
        options = {item.name: getattr(self.options, item.name) for item in fields(TailOptions)}
        options |= {name: shortest(options[name]) for name in SENSITIVITIES}
        document = {
            "statistics": self.stats.to_json(),
            "options": options,
            "raw": dict(self.raw),
            "found": dict(self.found),
            "original": dict(self.original),
        }
        return document | ({"narrow": dict(self.narrow)} if self.narrow else {})

    @classmethod
    def loads(cls, text: str, *, where: str) -> "TailRecord":
        """Read the JSON string; `where` names the file in errors."""
        record = load_record(text, "tail", where=where)
        assert isinstance(record, TailRecord), "the tail has a record of its own"
        return record

    @classmethod
    def of_json(cls, document: Mapping[str, Any], layer: Where, *, where: str) -> Self:
        """Read the JSON object; `where` names the record in errors."""
        options, raw, original = (_mapping(document, key, where=where) for key in ("options", "raw", "original"))
        found = document["found"] if isinstance(document.get("found"), dict) else {}
        narrow = _mapping({"narrow": {}, **document}, "narrow", where=where)
        known = {item.name for item in fields(TailOptions)}
        _check_types(document, options, raw, where=where)
        legal: dict[Level, Half] = {level: half for level in LEVELS for half in HALVES if narrow.get(level) == half}
        if legal != narrow:
            raise MetadataError(f"{where} has no legal types", found=repr(narrow)[:60])
        file = where.removesuffix(f": the record '{METADATA_KEY}'")
        try:
            return cls(
                version=str(document.get("version")),
                stats=CalibrationStats.from_json(document.get("statistics"), where=f"{file}: statistics"),
                options=TailOptions(**{key: value for key, value in options.items() if key in known}),
                raw={level: raw[level] for level in LEVELS if level in raw},
                original=original,
                narrow=legal,
                found={level: str(found[level]) for level in LEVELS if level in found},
            )
        except UsageError as error:
            raise MetadataError(f"{file}: {error.what}", found=error.found, needed=error.needed) from error


def load_record(text: str, layer: Where, *, where: str) -> LayerRecord:
    """Read the JSON string of a layer; `where` names the file in errors. Raises MetadataError if it is not legal."""
    title = f"{where}: the record '{KEYS[layer]}'"
    document = parse_json(text, title=title)
    if not isinstance(document, dict) or document.get("record_version") != RECORD_VERSION:
        raise MetadataError(
            f"{title} is of an unknown version",
            needed=f"record_version {RECORD_VERSION}",
            fix="use the version of postproc-export that attached it",
        )
    return (TailRecord if layer == "tail" else LayerRecord).of_json(document, layer, where=title)


def _check_types(
    document: Mapping[str, Any], options: Mapping[str, Any], raw: Mapping[str, Any], *, where: str
) -> None:
    """Refuse what Python would take for something else, such as a text for a switch."""
    switches = [item.name for item in fields(TailOptions) if isinstance(item.default, bool)]
    wrong = [f"options.{name}" for name in switches if not isinstance(options.get(name, False), bool)]
    wrong += [f"raw.{level}" for level in raw if level not in LEVELS or not isinstance(raw[level], str)]
    wrong += [] if raw else ["raw"]
    wrong += [] if isinstance(document.get("version"), str) else ["version"]
    if wrong:
        raise MetadataError(f"{where} is not legal", found=", ".join(wrong)[:200], needed=_NEEDED)


def _mapping(document: Mapping[str, Any], key: str, *, where: str) -> Mapping[str, Any]:
    value = document.get(key)
    if not isinstance(value, dict):
        raise MetadataError(f"{where} has no object {key!r}")
    return value


def _is_texts(found: object) -> bool:
    return isinstance(found, dict) and all(isinstance(value, str) for value in found.values())


def refuse_misfit(layer: Where, misfits: Sequence[str], *, where: str) -> None:
    """Raise MetadataError where there is a reason why a record does not fit its model."""
    if misfits:
        raise MetadataError(
            f"{where}: the record '{KEYS[layer]}' does not fit the model",
            found="; ".join(misfits),
            needed="a record of this very model",
            fix="attach to the original again",
        )


def recorded_tails(stats: CalibrationStats) -> tuple[TailSpec, ...]:
    """Return the custom steps behind which statistics were calibrated; none where there were none.

    Raises MetadataError if what the statistics hold is not legal.
    """
    found = stats.details.get(STATISTICS_KEY, [])
    if not isinstance(found, (list, tuple)):
        raise MetadataError(f"the statistics have no legal '{STATISTICS_KEY}'", found=repr(found)[:60])
    return tuple(TailSpec.from_json(item, where="the statistics") for item in found)


def level_json(
    level: Level, stats: LevelStats | None, options: TailOptions, boundary: float | None, half: Half | None
) -> dict[str, Any] | None:
    """Return what a level decides as JSON, under the names that `inspect` has; None where it does not decide.

    A boundary of None is that of a level without labels.
    """
    if stats is None or not stats.is_calibrated:
        return None
    is_relative = stats.details.get("range_is_relative")  # then the span alone is known
    return {
        "threshold": json_number(stats.threshold),
        "min": None if is_relative else json_number(stats.min),
        "max": None if is_relative else json_number(stats.max),
        "span": json_number(stats.span),
        "sensitivity": json_number(options.sensitivity(level)),
        "comparison": options.comparison,
        "boundary": json_number(boundary),
        "host_dtype": half,
    }


@dataclass(frozen=True, slots=True, repr=False)
class AttachResult(Outcome):
    """What was attached, and where it was written.

    Parameters
    ----------
    tail
        The outputs, statistics and options of the tail, and notes on levels that were left as they are.
    record
        The record that is now in the model's metadata.
    source, output
        The model that was read and the one that was written, for an IR the .xml; None for a model in memory.
    own
        The custom steps around it, as they were asked for.
    chosen
        A note on each sensitivity that was chosen for a rate.
    remarks
        What a user should know of whether the statistics belong to the model.
    """

    tail: Tail
    record: TailRecord
    source: Path | None = None
    output: Path | None = None
    own: tuple[str, ...] = ()
    chosen: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def renamed(self) -> Mapping[str, str]:
        """New name of each value of the model that had to give up the name of an output."""
        return self.record.renamed

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the outputs that were added, in order."""
        return tuple(output.name for output in self.tail.outputs)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about sensitivities that were chosen, levels that were left, and the statistics."""
        return (*self.chosen, *self.tail.notes, *self.remarks)

    def boundary(self, level: Level) -> float:
        """Return the raw value from which on the file calls a score anomalous, as it stands in the file."""
        return self.tail.boundary(level)

    def headline(self) -> str:
        """Return which model it is."""
        return f"attached post-processing to {self.source or 'a model in memory'}"

    def facts(self) -> Iterator[tuple[str, str]]:
        """Yield what was written, what it decides, and what a user should know."""
        if self.output:
            yield "written", str(self.output)
        yield from self.decisions()

    def decisions(self) -> Iterator[tuple[str, str]]:
        """Yield what is alike in every file with this tail."""
        yield from ((level, self._decision(level)) for level in LEVELS if self.tail.names(level))
        yield from (("guard", text) for text in (self.tail.describe_guard(),) if text)
        yield from (("with", text) for text in self.own)
        for name, value in self.tail.defaults.items():
            yield "adjusted", f"at run time by {name} (default {_shown(value)})"
        yield from (("renamed", f"'{old}' is now '{new}' inside the model") for old, new in self.renamed.items())
        yield from (("note", note) for note in self.notes)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``attach --json``: docs/json.md."""
        levels = {level: self.level_json(level) for level in LEVELS}
        more = {"outputs": list(self.output_names), "steps": list(self.own), "renamed": dict(self.renamed)}
        return outcome_json(self.source, self.output, levels, self.notes, **more)

    def level_json(self, level: Level) -> dict[str, Any] | None:
        """Return what a level decides as JSON; None where it was left as it is."""
        if not (names := self.tail.names(level)):
            return None
        options, raw = self.tail.options, self.tail.raw.get(level)
        boundary = self.boundary(level) if options.enable_thresholding else None
        found = level_json(level, self.tail.stats.level(level), options, boundary, self.tail.narrow.get(level))
        return {"raw_output": None if raw is None else raw.name, "outputs": names, **(found or {})}

    def _decision(self, level: Level) -> str:
        stats, options = self.tail.stats.level(level), self.tail.options
        assert stats is not None, "a level with outputs has statistics"
        assert stats.threshold is not None, "a level with outputs has a threshold"
        names = [place(name) if options.is_packed else name for name in self.tail.names(level)]
        calibrated = f"threshold {_shown(stats.threshold)}, range {_shown(stats.min)} to {_shown(stats.max)}"
        if not options.enable_thresholding:
            return f"{names[0]}: normalised, without a label ({calibrated})"
        raw = "" if options.enable_normalization else f", {names[0]} raw"
        boundary, half = self.boundary(level), self.tail.narrow.get(level)
        narrow = "" if half is None else f"in {half} from {_shown(rounded_to(boundary, half))}, "
        return (
            f"{' and '.join(names)}: anomalous from raw {_shown(boundary)} on ({narrow}{calibrated}, "
            f"sensitivity {shortest(options.sensitivity(level))}, rule {options.comparison}{raw})"
        )


def _shown(value: float) -> str:
    return str(value) if value in (float("inf"), float("-inf")) else str(shortest(value))
