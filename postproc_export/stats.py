"""Calibration statistics, frozen and validated when made, and the numbers of the decision that they make.

These are the boundary, the constants of the normalised score, and how far they may be off: pure arithmetic on the
float32 statistics, docs/definition.md sections 3 and 4.
"""

import json
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from postproc_export.errors import MetadataError, UsageError
from postproc_export.float32 import (
    HALVES,
    HostDtype,
    is_subnormal,
    narrowed,
    nearest,
    rank_of,
    ranked,
    shortest,
    smallest_at_least,
    smallest_where,
    to_float32,
)
from postproc_export.outcome import brief_repr, html_table
from postproc_export.validation import check_count, check_file, kind_of_file, read_json, shown

SCHEMA_VERSION: Final = 1
MIN_SPAN: Final = 2.0**-75
MAX_SPAN: Final = 2.0**126

Level = Literal["image", "pixel"]
LEVELS: Final[tuple[Level, ...]] = ("image", "pixel")

_FLOATS: Final = ("threshold", "min", "max")
_TEXTS: Final = ("policy", "rule")
_COUNTS: Final = ("n_normal", "n_anomalous", "n_dropped")
_FIELDS: Final = (*_FLOATS, *_TEXTS, *_COUNTS)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
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
        return {**self.details, **self.numbers()}

    def numbers(self) -> dict[str, Any]:
        """Return the fields but for the details, as JSON values: those that are known, and a threshold of None."""
        floats = {name: getattr(self, name) for name in _FLOATS}
        others = {name: getattr(self, name) for name in (*_TEXTS, *_COUNTS)}
        document = {name: None if value is None else shortest(value) for name, value in floats.items()}
        return document | {name: value for name, value in others.items() if value is not None}

    def __repr__(self) -> str:
        return brief_repr(type(self).__name__, self.numbers(), self.details)

    def _repr_html_(self) -> str:
        return html_table(((name, str(value)) for name, value in self.numbers().items()), caption="statistics")

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


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
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

    def __repr__(self) -> str:
        return brief_repr(type(self).__name__, {level: self.level(level) for level in LEVELS}, self.details)

    def _repr_html_(self) -> str:
        numbers = {level: found.numbers() for level in LEVELS if (found := self.level(level)) is not None}
        rows = ((name, *(str(each.get(name, "-")) for each in numbers.values())) for name in _FIELDS)
        return html_table(rows, caption="statistics, in raw units", titles=("", *numbers))

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
        """Read the JSON object of a statistics file, or of the metadata.json that Anomalib 0.x and 1.x wrote.

        Raises
        ------
        MetadataError
            If the version is not known, no level is there, or a level is not legal.
        """
        if not isinstance(document, Mapping):
            found = f"a list of {len(document)}" if isinstance(document, list) else shown(document)
            raise MetadataError(f"{where}: not a JSON object", found=found, needed=_EXAMPLE, fix=_WRITE)
        if "schema_version" not in document:
            document = _of_anomalib(document, where=where)
        if document["schema_version"] != SCHEMA_VERSION or isinstance(document["schema_version"], bool):
            raise MetadataError(
                f"{where}: unknown schema_version",
                found=shown(document["schema_version"]),
                needed=str(SCHEMA_VERSION),
                fix="calibrate with this version of postproc-export, or use the version that wrote the file",
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
        """Read a statistics file, or the statistics in a checkpoint of Anomalib or of the calibration callback.

        Raises
        ------
        FileError
            If the file cannot be read; a checkpoint that holds code is not.
        MetadataError
            If it is not JSON (NaN and Infinity are not), a key stands twice in one object, or it is not legal.
        MissingDependencyError
            If it is a checkpoint, and torch is not installed.
        """
        path = Path(path)
        check_file(path, what="the statistics file")
        if (kind_of_file(path) or "").endswith("PyTorch checkpoint"):
            from postproc_export.checkpoint import statistics_document

            return cls.from_json(statistics_document(path), where=str(path))
        is_model = path.suffix.lower() in (".onnx", ".xml")
        fix = (
            f"`postproc-export stats convert {path} -o stats.json` writes those of a finished model"
            if is_model
            else _WRITE
        )
        return cls.from_json(read_json(path, what="the statistics file", fix=fix), where=str(path))


_WRITE: Final = "give the file that `postproc-export calibrate MODEL --images FOLDER -o stats.json` writes"
_EXAMPLE: Final = '{"schema_version": 1, "image": {"threshold": 1.5, "min": 0, "max": 3}, "pixel": null}'


def _of_anomalib(document: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Return our form of what Anomalib writes as JSON: metadata.json, or the stats.json of a tiled ensemble.

    There is a threshold per level, and a range for each or one for both. A level without a range, or without a
    threshold, was not calibrated there. All numbers are in raw units.
    """
    levels, ranges = {}, document.get("minmax")  # of an ensemble: an object with both ranges
    for level, names in (("image", ("pred_scores", "pred_score")), ("pixel", ("anomaly_maps", "anomaly_map"))):
        if isinstance(ranges, Mapping):
            found = [ranges[name] for name in names if isinstance(ranges.get(name), Mapping)]
            numbers = {end: found[0].get(end) if found else None for end in _FLOATS[1:]}
            numbers["threshold"] = document.get(f"{level}_threshold")
        else:
            prefix = f"{names[0]}." if any(f"{names[0]}.{end}" in document for end in _FLOATS[1:]) else ""
            keys = {"threshold": f"{level}_threshold", "min": f"{prefix}min", "max": f"{prefix}max"}
            numbers = {name: document.get(key) for name, key in keys.items()}
        if None not in numbers.values():
            levels[level] = numbers
    if not levels:
        raise MetadataError(
            f"{where} holds no statistics that are known",
            found=f"the keys {', '.join(map(str, document)) or '(none)'}"[:200],
            needed=_EXAMPLE,
            fix=_WRITE,
        )
    kind, notes = _KINDS[isinstance(ranges, Mapping)]
    return {
        "schema_version": SCHEMA_VERSION,
        **levels,
        "read_from": {"kind": kind, "file": Path(where).name, "notes": [*notes]},
    }


_KINDS: Final[Mapping[bool, tuple[str, tuple[str, ...]]]] = {
    False: ("metadata.json of Anomalib 0 or 1", ()),
    True: (
        "stats.json of a tiled ensemble of Anomalib",
        ("they are of the joined outputs of all tiles: the model of one tile has others",),
    ),
}


def as_stats(stats: object) -> CalibrationStats:
    """Return statistics from what a user may give: themselves, the path of a file, or None for none.

    Raises FileError or MetadataError if the file cannot be read or is not legal, and UsageError for anything else.
    """
    if stats is None:
        return CalibrationStats()
    if isinstance(stats, (str, Path)):
        return CalibrationStats.load(stats)
    if isinstance(stats, CalibrationStats):
        return stats
    raise UsageError(
        "statistics are expected",
        found=type(stats).__name__,
        needed="CalibrationStats or the path of a statistics file",
    )


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


Comparison = Literal["ge", "gt"]
Form = Literal["fused", "centred"]

DEFAULT_SENSITIVITY: Final = 0.5
FUSED_LIMIT: Final = 1e-5
"""The largest error of the normalised score for which the one-operator form is taken."""

_HALF: Final = Fraction(1, 2)
_UNIT_ROUNDOFF: Final = 2.0**-24


def decision_boundary(
    level: LevelStats,
    *,
    sensitivity: float = DEFAULT_SENSITIVITY,
    comparison: Comparison = "ge",
    dtype: object = "float32",
) -> float:
    """Return the raw value from which on a score is anomalous: ``label(s) = not (s < boundary)``.

    Parameters
    ----------
    level
        Statistics of the level, with a threshold.
    sensitivity
        In [0, 1], rounded to float32; higher finds more anomalies.
    comparison
        ``"ge"``: the exact rule ``s >= threshold + (1/2 - sensitivity) (max - min)``.
        ``"gt"``: Anomalib's float32 rule ``unit(s) > 1 - sensitivity``, for those who migrate.
    dtype
        The declared type of the raw output: ``"float16"`` or ``"bfloat16"``, by name or as NumPy and torch have it,
        gives the constant that decides alike on a value and on its rounding to that type; see `narrowed`.

    Returns
    -------
    float
        A float32 in raw units, never subnormal, never -0.0. ``-inf``: every score is anomalous (``"ge"`` at sensitivity
        1); ``inf``: no finite score is. With a narrow `dtype` the value that rounds to infinity stands for ``inf``.

    Raises
    ------
    MetadataError
        If the level has no threshold, the sensitivity is not in [0, 1], or the boundary would be subnormal.
    UsageError
        If the comparison is neither ``"ge"`` nor ``"gt"``, or the type is none of raw outputs.

    Notes
    -----
    Source: docs/definition.md section 4; ``"gt"`` agrees with anomalib 2.7.0 PostProcessor on every float32 but ``inf``
    at sensitivity 0, where Anomalib calls nothing anomalous.
    """
    boundary = _RULES[check_comparison(comparison)](level, check_sensitivity(sensitivity))
    if is_subnormal(boundary):
        raise MetadataError(
            f"the decision boundary is a subnormal float32 at sensitivity {sensitivity}",
            found=f"{boundary!r}",
            needed="0, or a magnitude of at least 2^-126: some runtimes flush smaller constants to zero",
            fix="choose another threshold or sensitivity, or rescale the raw outputs of the model",
        )
    return narrowed(boundary, check_dtype(dtype))


def least_sensitivity(level: LevelStats, value: float, *, comparison: Comparison = "ge") -> float | None:
    """Return the lowest sensitivity at which a float32 raw value is anomalous: the inverse of `decision_boundary`.

    It is a float32 in [0, 1]: at it and above, and nowhere below, the boundary is at most the value. None: at no
    sensitivity, and at 1 alone with ``"ge"``, where every score is anomalous.
    """
    if check_comparison(comparison) == "ge":
        least = _HALF - (Fraction(value) - Fraction(_threshold(level))) / (Fraction(level.max) - Fraction(level.min))
        found = max(smallest_at_least(least), 0.0)
        return found if found < 1.0 else None
    unit = unit_scores(value, level)
    ranks = range(rank_of(1.0) + 1)
    place = bisect_left(ranks, True, key=lambda rank: bool(unit > np.float32(1.0) - np.float32(ranked(rank))))
    return ranked(place) if place < len(ranks) else None


def unit_scores(raw: ArrayLike, level: LevelStats) -> NDArray[np.float32]:
    """Return ``clamp((raw - threshold) / (max - min) + 0.5, 0, 1)``, every step rounded to float32.

    Raw scores may have any shape, and are cast to float32 first; NaN stays NaN, and the threshold gives exactly 0.5.
    Source: docs/definition.md section 3; the same bits as anomalib 2.7.0 PostProcessor on a CPU.
    """
    with np.errstate(over="ignore", under="ignore"):
        scores = np.asarray(raw).astype(np.float32)
        centred = scores - np.float32(_threshold(level))
        unclamped = centred / np.float32(level.span) + np.float32(0.5)
    return np.asarray(np.clip(unclamped, np.float32(0.0), np.float32(1.0)))


def unit_constants(level: LevelStats, form: Form) -> tuple[float, float, float]:
    """Return alpha, beta and offset of the exported score ``max(0, min(1, alpha * (raw - offset) + beta))``, float32.

    alpha is in 1 / raw unit, beta in unit scores, the offset in raw units; each is rounded once from the exact
    rational. ``"fused"``: ``hard_sigmoid(raw; 1/span, 1/2 - threshold/span)``, which subtracts no offset, 0 here.
    ``"centred"``: ``hard_sigmoid(raw - threshold; 1/span, 1/2)``.
    """
    return _constants(_threshold(level), level.span, form)


@lru_cache(maxsize=1024)  # a check asks again for every batch
def _constants(threshold: float, span: float, form: Form) -> tuple[float, float, float]:
    slope = 1 / Fraction(span)
    if form == "centred":
        return nearest(slope), 0.5, threshold + 0.0
    return nearest(slope), nearest(_HALF - Fraction(threshold) * slope), 0.0


def error_bound(level: LevelStats, form: Form) -> float:
    """Return how far the exported normalised score may lie from the float32 reference, in unit scores.

    With u = 2^-24 and r = |threshold| / span, wherever the clamp does not act: |raw - threshold| <= span / 2 and |raw|
    <= (r + 1/2) span. The reference rounds three times: the difference (u/2), the quotient (u/4), the sum (u/2). The
    fused form rounds alpha, its product with raw, and beta, each of them at most r + 1/2 and so by at most (r + 1/2) u,
    and the sum (u/2). Together (3 r + 3.25) u; the promise is (3 r + 5) u. The centred form shares the reference's
    difference and rounds alpha (u/2), the product (u/4) and the sum (u/2): together with the reference's quotient and
    sum 2 u; the promise is 2.5 u. A fused multiply-add rounds once less. Where the clamp acts, both are monotone and
    the bound at the edge holds beyond it.
    """
    if form == "centred":
        return 2.5 * _UNIT_ROUNDOFF
    ratio = abs(_threshold(level)) / level.span
    return (3.0 * ratio + 5.0) * _UNIT_ROUNDOFF


def choose_form(level: LevelStats) -> Form:
    """Return the one-operator form, unless its error bound exceeds 1e-5 (|threshold| / span above about 54).

    Nor where beta would be 0: OpenVINO's CPU plugin (2026.4.1) computes a HardSigmoid of beta 0 as one of 0.5.
    """
    _, beta, _ = unit_constants(level, "fused")
    if beta == 0.0:
        return "centred"
    return "fused" if error_bound(level, "fused") <= FUSED_LIMIT else "centred"


def check_sensitivity(value: object, *, name: str = "sensitivity") -> float:
    """Return a sensitivity rounded to float32; raises MetadataError unless it is a number (no bool) in [0, 1].

    `name` is what the message calls it: an option, or where it stands.
    """
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= 1:  # type: ignore[operator]
        fix = "a higher one finds more anomalies, and 0.5 decides as calibrated"
        raise MetadataError(f"{name} {shown(value).removesuffix('.0')}: use 0 to 1", fix=fix)
    return to_float32(float(value))  # type: ignore[arg-type]


def check_comparison(value: object) -> Comparison:
    """Return the name of a rule that is known; raises UsageError unless it is ``"ge"`` or ``"gt"``."""
    if value == "ge":
        return "ge"
    if value == "gt":
        return "gt"
    raise UsageError("unknown comparison", found=repr(value)[:60], needed="'ge' or 'gt'")


def check_dtype(value: object) -> HostDtype:
    """Return which type of raw output decisions depend on: float32 stands for float64, which is cast to it.

    Raises UsageError unless it is, or names, ``float16``, ``bfloat16``, ``float32`` or ``float64``.
    """
    name = str(getattr(value, "__name__", value)).rpartition(".")[2]
    if name in ("float32", "float64"):
        return "float32"
    for half in HALVES:
        if name == half:
            return half
    raise UsageError(
        "no raw output has this type", found=repr(value)[:60], needed="'float16', 'bfloat16', 'float32' or 'float64'"
    )


def _boundary_ge(level: LevelStats, sensitivity: float) -> float:
    threshold = _threshold(level)
    return float("-inf") if sensitivity == 1.0 else _least_anomalous(threshold, level.min, level.max, sensitivity)


@lru_cache(maxsize=1024)  # a check asks again for every batch
def _least_anomalous(threshold: float, least: float, largest: float, sensitivity: float) -> float:
    # max - min as rationals: the float32 span belongs to the normalised score alone
    width = Fraction(largest) - Fraction(least)
    return smallest_at_least(Fraction(threshold) + (_HALF - Fraction(sensitivity)) * width)


def _boundary_gt(level: LevelStats, sensitivity: float) -> float:
    return _least_above(_threshold(level), level.min, level.max, sensitivity)


@lru_cache(maxsize=1024)  # a check asks again for every batch
def _least_above(threshold: float, least: float, largest: float, sensitivity: float) -> float:
    level = LevelStats(threshold=threshold, min=least, max=largest)
    cut = np.float32(1.0) - np.float32(sensitivity)
    # -inf never has it: its unit score is 0, and the cut is never below 0
    return smallest_where(lambda value: bool(unit_scores(value, level) > cut))


def _threshold(level: LevelStats) -> float:
    if level.threshold is None:
        raise MetadataError(
            "the level has a range but no threshold",
            needed="a threshold of its own, or the other level's",
            fix="calibrate the level with labels, or borrow the other level's threshold (match thresholds)",
        )
    return level.threshold


_RULES: Final[dict[Comparison, Callable[[LevelStats, float], float]]] = {"ge": _boundary_ge, "gt": _boundary_gt}
