"""What a finished file records: the tail in one JSON string, each custom step and decision in another."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, Self, TypeAlias

from postproc_export.errors import MetadataError, UsageError
from postproc_export.float32 import HALVES, Half, shortest
from postproc_export.options import TailOptions
from postproc_export.stats import LEVELS, CalibrationStats, Level
from postproc_export.tail import input_name
from postproc_export.validation import parse_json

# --- The record that an attached model carries: one JSON string, in ONNX metadata_props and in IR rt_info alike.

METADATA_KEY: Final = "postproc_export"
RECORD_VERSION: Final = 1

_NEEDED: Final = "switches that are true or false, names of raw values by level, a version as text"
_SENSITIVITIES: Final = ("image_sensitivity", "pixel_sensitivity")


@dataclass(frozen=True, slots=True, kw_only=True)
class TailRecord:
    """What was attached, and what is needed to give the original back."""

    version: str  # the tool's
    stats: CalibrationStats  # those that decide; thresholds that were matched stand in both levels
    options: TailOptions  # what the user decided; `mask_dtype` is the one that was taken
    raw: Mapping[Level, str]  # name in this file of the raw value that each level's tail reads
    original: Mapping[str, Any]  # for detaching, in the format's own terms: outputs, renamings, an added opset import
    # The type in which the raw values of a level were declared, where that is narrower than float32: its boundary is
    # the constant for that type. Files that were attached before there were such constants have none.
    narrow: Mapping[Level, Half] = field(default_factory=dict)
    # What made each of these outputs the level's: see `outputs.Found`. Files of older versions do not say.
    found: Mapping[Level, str] = field(default_factory=dict)

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
    def inputs(self) -> frozenset[str]:
        """The names of the inputs by which the tail is adjusted at run time."""
        what = self.options.adjustable
        if what == "nothing" or not self.options.enable_thresholding:
            return frozenset()
        return frozenset(input_name(level, what) for level in self.levels)

    def dumps(self) -> str:
        """Return the JSON string; floats as the shortest decimal that reads back to the same float32."""
        options = {item.name: getattr(self.options, item.name) for item in fields(TailOptions)}
        options |= {name: shortest(options[name]) for name in _SENSITIVITIES}
        document = {
            "record_version": RECORD_VERSION,
            "version": self.version,
            "statistics": self.stats.to_json(),
            "options": options,
            "raw": dict(self.raw),
            "found": dict(self.found),
            "original": dict(self.original),
        }
        if self.narrow:
            document["narrow"] = dict(self.narrow)
        return json.dumps(document, separators=(",", ":"), allow_nan=False)

    @classmethod
    def loads(cls, text: str, *, where: str) -> Self:
        """Read the JSON string; `where` names the file in errors.

        Raises MetadataError if it is not a record of this version, or not legal.
        """
        document = _document(text, where=where)
        options, raw, original = (_mapping(document, key, where=where) for key in ("options", "raw", "original"))
        found = document["found"] if isinstance(document.get("found"), dict) else {}
        known = {item.name for item in fields(TailOptions)}
        _check_types(document, options, raw, where=where)
        try:
            return cls(
                version=str(document.get("version")),
                stats=CalibrationStats.from_json(document.get("statistics"), where=f"{where}: statistics"),
                options=TailOptions(**{key: value for key, value in options.items() if key in known}),
                raw={level: raw[level] for level in LEVELS if level in raw},
                original=original,
                narrow=_narrow(document, where=where),
                found={level: str(found[level]) for level in LEVELS if level in found},
            )
        except UsageError as error:
            raise MetadataError(f"{where}: {error.what}", found=error.found, needed=error.needed) from error


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
        raise MetadataError(
            f"{where}: the record '{METADATA_KEY}' is not legal", found=", ".join(wrong)[:200], needed=_NEEDED
        )


def _document(text: str, *, where: str) -> Mapping[str, Any]:
    document = parse_json(text, title=f"{where}: the record '{METADATA_KEY}'")
    if not isinstance(document, dict) or document.get("record_version") != RECORD_VERSION:
        raise MetadataError(
            f"{where}: the record '{METADATA_KEY}' is of an unknown version",
            needed=f"record_version {RECORD_VERSION}",
            fix="use the version of postproc-export that attached it",
        )
    return document


def _narrow(document: Mapping[str, Any], *, where: str) -> dict[Level, Half]:
    found = _mapping({"narrow": {}, **document}, "narrow", where=where)
    narrow = {level: half for level in LEVELS for half in HALVES if found.get(level) == half}
    if narrow != found:
        raise MetadataError(f"{where}: the record '{METADATA_KEY}' has no legal types", found=repr(found)[:60])
    return narrow


def _mapping(document: Mapping[str, Any], key: str, *, where: str) -> Mapping[str, Any]:
    value = document.get(key)
    if not isinstance(value, dict):
        raise MetadataError(f"{where}: the record '{METADATA_KEY}' has no object {key!r}")
    return value


# --- How a custom step is named: ``gaussian:sigma=4`` where it is shipped, ``package.module:Class`` for yours.

BEFORE: Final = ("gaussian", "top-k", "resize", "thresholds")
BEHIND: Final = ("gate", "points")
SHIPPED: Final = (*BEFORE, *BEHIND)
NO_GRAPH_FORM: Final[Mapping[str, str]] = dict.fromkeys(
    ("mebin", "connected-components"),
    "connected components (as in MEBin) are found by following neighbours until nothing changes: how many steps that "
    "takes depends on the values, and neither ONNX nor OpenVINO has an operator for it",
)


@dataclass(frozen=True, slots=True)
class TailSpec:
    """One custom step: its name, and its parameters as they stand in statistics and in the record of a model."""

    name: str  # one of `SHIPPED`, or "package.module:Class"
    parameters: Mapping[str, Any] = field(default_factory=dict)  # JSON values

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
    def text(self) -> str:
        """How the command line takes it; a table of numbers is shortened."""
        shown = ",".join(f"{key}={_short(value)}" for key, value in self.parameters.items())
        return f"{self.name}:{shown}" if shown else self.name

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that statistics and records hold."""
        return {"name": self.name, "parameters": dict(self.parameters)}

    @classmethod
    def from_json(cls, document: object, *, where: str) -> Self:
        """Read the JSON object; raises MetadataError if it is not legal."""
        name = document.get("name") if isinstance(document, Mapping) else None
        parameters = document.get("parameters", {}) if isinstance(document, Mapping) else None
        if not isinstance(name, str) or not isinstance(parameters, Mapping):
            raise MetadataError(f"{where}: not a custom step", found=repr(document)[:60])
        if "file" in parameters:  # the command line may name a file to read; a record holds what was read
            raise MetadataError(f"{where}: the tail '{name}' names a file", needed="its values themselves")
        return cls(name, dict(parameters))


def parse_tail(text: str) -> TailSpec:
    """Read ``name``, ``name:key=value,key=value`` or ``package.module:Class``; values stay text.

    Raises UsageError if it is of none of these forms, or has no graph form.
    """
    name, _, rest = text.partition(":")
    if name.lower() in NO_GRAPH_FORM:
        raise UsageError(f"the tail '{name}' has no graph form", found=NO_GRAPH_FORM[name.lower()])
    if name not in SHIPPED:
        if rest and "=" not in rest:
            return TailSpec(text)
        raise UsageError(
            f"the tail '{text}' is not known", needed=f"{', '.join(SHIPPED)}, or a class as package.module:Class"
        )
    pairs = [item.partition("=") for item in rest.split(",")] if rest else []
    if any(not key or not value for key, _, value in pairs):
        raise UsageError(f"the tail '{text}' cannot be read", needed=f"{name}:key=value,key=value")
    keys = [key for key, _, _ in pairs]
    if len(set(keys)) != len(keys):
        raise UsageError(f"the tail '{text}' has a parameter twice", found=", ".join(keys))
    return TailSpec(name, {key: value for key, _, value in pairs})


def parse_tails(texts: str | Sequence[str]) -> tuple[TailSpec, ...]:
    """Read several, in the order in which they are applied."""
    return tuple(parse_tail(text) for text in ([texts] if isinstance(texts, str) else texts))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:16]}..."


# --- The record of a layer: what stands before or behind the tail, and what is needed to take it off again.

Where: TypeAlias = Literal["transform", "decision"]

PREFIXES: Final[Mapping[Where, str]] = {"transform": "postproc/transform/", "decision": "postproc/decision/"}
KEYS: Final[Mapping[Where, str]] = {"transform": "postproc_export_transform", "decision": "postproc_export_decision"}
STATISTICS_KEY: Final = "tail"
TRANSFORMED: Final = "transformed"  # in a merged record: the levels whose raw values a transform takes the place of
LAYER_RECORD_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecord:
    """What was put before or behind the tail."""

    where: Where  # "transform" before the tail, "decision" behind it
    version: str  # the tool's
    tails: tuple[TailSpec, ...]  # the custom steps, in the order in which they are applied
    read: Mapping[str, str]  # per input of the layer ("score", "map", "image", "mask", ...) the value that it reads
    made: Mapping[str, str]  # per output of the graph that the layer gives, the value that it is
    original: Mapping[str, Any]  # what detaching restores, in the format's own terms

    def dumps(self) -> str:
        """Return the JSON string."""
        document = {
            "record_version": LAYER_RECORD_VERSION,
            "version": self.version,
            "tails": [spec.to_json() for spec in self.tails],
            "read": dict(self.read),
            "made": dict(self.made),
            "original": dict(self.original),
        }
        return json.dumps(document, separators=(",", ":"), allow_nan=False)

    @classmethod
    def loads(cls, text: str, *, layer: Where, where: str) -> Self:
        """Read the JSON string; `where` names the file in errors.

        Raises MetadataError if it is not a record of this version, or not legal.
        """
        title = f"{where}: the record '{KEYS[layer]}'"
        document = parse_json(text, title=title)
        if not isinstance(document, dict) or document.get("record_version") != LAYER_RECORD_VERSION:
            raise MetadataError(f"{title} is of an unknown version", needed=f"record_version {LAYER_RECORD_VERSION}")
        tails, original = document.get("tails"), document.get("original")
        texts = [document.get("read"), document.get("made")]
        if not isinstance(tails, list) or not isinstance(original, dict) or not all(map(_is_texts, texts)):
            raise MetadataError(f"{title} is not legal", found=", ".join(sorted(document)))
        return cls(
            where=layer,
            version=str(document.get("version")),
            tails=tuple(TailSpec.from_json(item, where=title) for item in tails),
            read=texts[0] or {},
            made=texts[1] or {},
            original=original,
        )


def refuse_misfit(record: LayerRecord, misfits: Sequence[str], *, where: str) -> None:
    """Raise MetadataError for a record that does not fit its model, if there is a reason."""
    if misfits:
        raise MetadataError(
            f"{where}: the record '{KEYS[record.where]}' does not fit the model",
            found="; ".join(misfits),
            needed="a record of this very model",
            fix="attach to the original again",
        )


def recorded_tails(stats: CalibrationStats) -> tuple[TailSpec, ...]:
    """Return the tails behind which statistics were calibrated; none where they were calibrated on a model's outputs.

    Raises MetadataError if what the statistics hold is not legal.
    """
    found = stats.details.get(STATISTICS_KEY, [])
    if not isinstance(found, (list, tuple)):
        raise MetadataError(f"the statistics have no legal '{STATISTICS_KEY}'", found=repr(found)[:60])
    return tuple(TailSpec.from_json(item, where="the statistics") for item in found)


def _is_texts(found: object) -> bool:
    return isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
