"""The record that an attached model carries: one JSON string, in ONNX metadata_props and in IR rt_info alike."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Self

from postproc_export.adjusting import input_name
from postproc_export.errors import MetadataError, UsageError
from postproc_export.float32 import HALVES, Half, shortest
from postproc_export.stats import LEVELS, CalibrationStats, Level
from postproc_export.tail_options import TailOptions
from postproc_export.validation import parse_json

METADATA_KEY: Final = "postproc_export"
RECORD_VERSION: Final = 1

_NEEDED: Final = "switches that are true or false, names of raw values by level, a version as text"
_SENSITIVITIES: Final = ("image_sensitivity", "pixel_sensitivity")


@dataclass(frozen=True, slots=True, kw_only=True)
class TailRecord:
    """What was attached, and what is needed to give the original back.

    Parameters
    ----------
    version
        The tool's version.
    stats
        The statistics that decide; thresholds that were matched stand in both levels.
    options
        What the user decided; `mask_dtype` is the one that was taken.
    raw
        Name of the raw value that each level's tail reads, under its name in this file.
    original
        What detaching restores, in the format's own terms: outputs, renamings, an added opset import.
    narrow
        The type in which the raw values of a level were declared, where that is narrower than float32: its boundary is
        the constant for that type. Files that were attached before there were such constants have none.
    found
        What made each of these outputs the level's: see `outputs.Found`. Files of older versions do not say.
    """

    version: str
    stats: CalibrationStats
    options: TailOptions
    raw: Mapping[Level, str]
    original: Mapping[str, Any]
    narrow: Mapping[Level, Half] = field(default_factory=dict)
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

        Raises
        ------
        MetadataError
            If it is not a record of this version, or not legal.
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
