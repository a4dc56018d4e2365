"""The record of a layer: what stands before or behind the tail, and what is needed to take it off again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, TypeAlias

from postproc_export.errors import MetadataError
from postproc_export.stats import CalibrationStats
from postproc_export.transforms.spec import TailSpec
from postproc_export.validation import parse_json

Where: TypeAlias = Literal["transform", "decision"]

PREFIXES: Final[Mapping[Where, str]] = {"transform": "postproc/transform/", "decision": "postproc/decision/"}
KEYS: Final[Mapping[Where, str]] = {"transform": "postproc_export_transform", "decision": "postproc_export_decision"}
STATISTICS_KEY: Final = "tail"
TRANSFORMED: Final = "transformed"  # in a merged record: the levels whose raw values a transform takes the place of
RECORD_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecord:
    """What was put before or behind the tail.

    Parameters
    ----------
    where
        ``"transform"`` before the tail, ``"decision"`` behind it.
    version
        The tool's version.
    tails
        The tails of one's own, in the order in which they are applied.
    read
        Per input of the layer (``"score"``, ``"map"``, ``"image"``, ``"mask"``, ...) the value that it reads.
    made
        Per output of the graph that the layer gives, the value that it is.
    original
        What detaching restores, in the format's own terms.
    """

    where: Where
    version: str
    tails: tuple[TailSpec, ...]
    read: Mapping[str, str]
    made: Mapping[str, str]
    original: Mapping[str, Any]

    def dumps(self) -> str:
        """Return the JSON string."""
        document = {
            "record_version": RECORD_VERSION,
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

        Raises
        ------
        MetadataError
            If it is not a record of this version, or not legal.
        """
        title = f"{where}: the record '{KEYS[layer]}'"
        document = parse_json(text, title=title)
        if not isinstance(document, dict) or document.get("record_version") != RECORD_VERSION:
            raise MetadataError(f"{title} is of an unknown version", needed=f"record_version {RECORD_VERSION}")
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
    """Refuse a record that does not fit its model.

    Raises
    ------
    MetadataError
        If there is a reason.
    """
    if misfits:
        raise MetadataError(
            f"{where}: the record '{KEYS[record.where]}' does not fit the model",
            found="; ".join(misfits),
            needed="a record of this very model",
            fix="attach to the original again",
        )


def recorded_tails(stats: CalibrationStats) -> tuple[TailSpec, ...]:
    """Return the tails behind which statistics were calibrated; none where they were calibrated on a model's outputs.

    Raises
    ------
    MetadataError
        If what the statistics hold is not legal.
    """
    found = stats.details.get(STATISTICS_KEY, [])
    if not isinstance(found, (list, tuple)):
        raise MetadataError(f"the statistics have no legal '{STATISTICS_KEY}'", found=repr(found)[:60])
    return tuple(TailSpec.from_json(item, where="the statistics") for item in found)


def _is_texts(found: object) -> bool:
    return isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
