"""Calibration statistics: frozen, validated when made, with a versioned JSON form."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np

from postproc_export.errors import MetadataError
from postproc_export.float32 import shortest, to_float32
from postproc_export.validation import check_count, read_json, shown

SCHEMA_VERSION: Final = 1
MIN_SPAN: Final = 2.0**-75
MAX_SPAN: Final = 2.0**126

Level = Literal["image", "pixel"]
LEVELS: Final[tuple[Level, ...]] = ("image", "pixel")

_FLOATS: Final = ("threshold", "min", "max")
_TEXTS: Final = ("policy", "rule")
_COUNTS: Final = ("n_normal", "n_anomalous", "n_dropped")
_FIELDS: Final = (*_FLOATS, *_TEXTS, *_COUNTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelStats:
    """Threshold and range of one level, in raw units.

    Parameters
    ----------
    threshold
        float32, raw units; None where the level has a range but no threshold of its own.
    min, max
        float32, raw units: the lowest and highest raw value seen.
    policy
        The operating point that was asked for, such as ``"f1"``.
    rule
        What decided the threshold: the policy, ``"only_normal"`` / ``"only_anomalous"`` for a one-class set, or
        ``"matched_image"`` / ``"matched_pixel"`` where it was borrowed from that level.
    n_normal, n_anomalous, n_dropped
        Values (images or pixels) of each class, and non-finite ones left out on request.
    details
        Anything more that a calibration recorded (counts at the threshold, curves, ...), JSON values only.

    Raises
    ------
    MetadataError
        Unless threshold, min and max are finite, min < max and float32(max - min) lies in [2^-75, 2^126]; if a text
        is not a string, a count not an integer of at least 0, or a detail bears the name of a field.

    Notes
    -----
    Every number is rounded to float32 first, and -0.0 counts as 0.0. The threshold may lie outside [min, max].
    Source: docs/definition.md section 2.
    """

    threshold: float | None
    min: float
    max: float
    policy: str | None = None
    rule: str | None = None
    n_normal: int | None = None
    n_anomalous: int | None = None
    n_dropped: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _FLOATS:
            if name != "threshold" or self.threshold is not None:
                object.__setattr__(self, name, _finite_float32(name, getattr(self, name)))
        for name in _TEXTS:
            if not isinstance(getattr(self, name), str | None):
                raise MetadataError(f"{name} is not a text", found=shown(getattr(self, name)))
        for name in _COUNTS:
            check_count(name, getattr(self, name))
        _check_details(self.details, reserved=_FIELDS)
        if not self.min < self.max:
            raise MetadataError(
                f"the range [{self.min}, {self.max}] is empty",
                needed="min < max",
                fix="calibrate on outputs that are not all equal",
            )
        if not MIN_SPAN <= self.span <= MAX_SPAN:
            raise MetadataError(
                f"the span max - min is {self.span}",
                needed=f"a float32 between 2^-75 ({MIN_SPAN:.3g}) and 2^126 ({MAX_SPAN:.3g})",
                fix="rescale the raw outputs of the model",
            )

    @property
    def span(self) -> float:
        """float32(max - min), raw units, above zero."""
        with np.errstate(over="ignore"):
            return float(np.float32(self.max) - np.float32(self.min))

    @property
    def is_calibrated(self) -> bool:
        """Whether the level has a threshold of its own."""
        return self.threshold is not None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object: floats as the shortest decimal that reads back to the same float32."""
        document: dict[str, Any] = dict(self.details)
        for name in _FLOATS:
            value = getattr(self, name)
            document[name] = None if value is None else shortest(value)
        for name in (*_TEXTS, *_COUNTS):
            if getattr(self, name) is not None:
                document[name] = getattr(self, name)
        return document

    @classmethod
    def from_json(cls, document: object, *, where: str) -> Self:
        """Read a JSON object; `where` names it in errors. Unknown keys are kept in `details`."""
        if not isinstance(document, Mapping):
            raise MetadataError(f"{where} is not a JSON object", found=shown(document))
        missing = [name for name in _FLOATS if name not in document]
        if missing:
            raise MetadataError(f"{where} has no {', '.join(map(repr, missing))}", needed="threshold, min and max")
        try:
            return cls(
                **{name: document[name] for name in (*_FLOATS, *_TEXTS) if name in document},
                **{name: document[name] for name in _COUNTS if document.get(name) is not None},
                details={key: value for key, value in document.items() if key not in _FIELDS},
            )
        except MetadataError as error:
            what = f"{where}: {error.what}"
            raise MetadataError(what, found=error.found, needed=error.needed, fix=error.fix) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationStats:
    """Statistics of the image level, the pixel level or both, and how they came about.

    Parameters
    ----------
    image, pixel
        One `LevelStats` per level; None where a level was not calibrated.
    details
        Anything more that was recorded (pre-processing, runtime, source, ...), JSON values only.

    Raises
    ------
    MetadataError
        If a detail bears the name of a field.
    """

    image: LevelStats | None = None
    pixel: LevelStats | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_details(self.details, reserved=("schema_version", *LEVELS))

    def level(self, level: Level) -> LevelStats | None:
        """Return the statistics of one level."""
        return self.image if level == "image" else self.pixel

    def with_matched_thresholds(self) -> Self:
        """Return statistics in which a level with a range but no threshold has borrowed the other level's.

        Raises
        ------
        MetadataError
            If a level has a range but no threshold and the other level has none to lend.
        """
        return replace(
            self,
            image=_matched(self.image, self.pixel, name="image", rule="matched_pixel"),
            pixel=_matched(self.pixel, self.image, name="pixel", rule="matched_image"),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of the statistics file (schema version 1)."""
        levels = {name: stats and stats.to_json() for name, stats in (("image", self.image), ("pixel", self.pixel))}
        return {"schema_version": SCHEMA_VERSION, **levels, **self.details}

    @classmethod
    def from_json(cls, document: object, *, where: str = "the statistics") -> Self:
        """Read the JSON object of a statistics file.

        Raises
        ------
        MetadataError
            If the version is not known, no level is there, or a level is not legal.
        """
        if not isinstance(document, Mapping):
            raise MetadataError(f"{where}: not a JSON object", found=shown(document))
        if document.get("schema_version") != SCHEMA_VERSION or isinstance(document["schema_version"], bool):
            raise MetadataError(
                f"{where}: unknown schema_version",
                found=shown(document.get("schema_version")),
                needed=str(SCHEMA_VERSION),
                fix="write the file with `postproc-export calibrate` of this version",
            )
        levels = {
            name: LevelStats.from_json(document[name], where=f"{where}: {name}")
            for name in LEVELS
            if document.get(name) is not None
        }
        if not levels:
            raise MetadataError(f"{where}: no level is calibrated", needed="an object under 'image' or 'pixel'")
        details = {key: value for key, value in document.items() if key not in (*LEVELS, "schema_version")}
        return cls(image=levels.get("image"), pixel=levels.get("pixel"), details=details)

    def dumps(self) -> str:
        """Return the text of the statistics file.

        Raises
        ------
        MetadataError
            If the details hold something that JSON has no form for, such as NaN.
        """
        try:
            return json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise MetadataError("the details of the statistics have no JSON form", found=str(error)) from error

    def save(self, path: str | Path) -> None:
        """Write the statistics file: to a temporary name first, moved into place when it is whole.

        Raises
        ------
        FileError
            If the path cannot be written.
        """
        from postproc_export.files import write_text

        write_text(Path(path), self.dumps())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a statistics file.

        Raises
        ------
        FileError
            If the file cannot be read.
        MetadataError
            If it is not JSON (NaN and Infinity are not), a key stands twice in one object, or it is not legal.
        """
        return cls.from_json(read_json(Path(path), what="the statistics file"), where=str(path))


def _matched(stats: LevelStats | None, other: LevelStats | None, *, name: Level, rule: str) -> LevelStats | None:
    if stats is None or stats.is_calibrated:
        return stats
    if other is None or other.threshold is None:
        raise MetadataError(
            f"the {name} level has a range but no threshold, and the other level has none to lend",
            needed="a threshold on one of the levels",
            fix="calibrate one level with labels",
        )
    return replace(stats, threshold=other.threshold, rule=rule)


def _finite_float32(name: str, value: object) -> float:
    """Return a number rounded to float32, or raise `MetadataError` where it is none or not finite after rounding."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise MetadataError(f"{name} is not a number", found=shown(value))
    try:
        rounded = to_float32(float(value))
    except OverflowError:
        rounded = float("inf")
    if not np.isfinite(rounded):
        raise MetadataError(f"{name} is not a finite float32", found=shown(value))
    return rounded


def _check_details(details: Iterable[str], *, reserved: Collection[str]) -> None:
    clash = sorted(set(details) & set(reserved))
    if clash:
        raise MetadataError("a detail bears the name of a field", found=", ".join(map(repr, clash)))
