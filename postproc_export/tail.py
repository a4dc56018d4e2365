"""From statistics and options to the expressions of a tail: the same for every format.

A tail reads the raw values ``raw_score`` and ``raw_map`` of the host and gives up to four outputs.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from graph_patterns import catalog
from graph_patterns.expr import Expr, Input, bind, cast
from postproc_export.boundary import (
    Comparison,
    check_comparison,
    check_sensitivity,
    choose_form,
    decision_boundary,
    unit_constants,
)
from postproc_export.errors import UsageError
from postproc_export.rewrite.outputs import Selection
from postproc_export.runtimes.protocol import Axis, PortInfo
from postproc_export.stats import CalibrationStats, Level, LevelStats

LabelDtype: TypeAlias = Literal["bool", "uint8", "float32"]
NanTest: TypeAlias = Literal["sum", "l1", "arithmetic"]

LABEL_DTYPES: Final[tuple[LabelDtype, ...]] = ("bool", "uint8", "float32")
OUTPUT_NAMES: Final = ("pred_score", "pred_label", "anomaly_map", "pred_mask")
PREFIX: Final = "postproc/"
RAW_INPUTS: Final[Mapping[Level, str]] = {"image": "raw_score", "pixel": "raw_map"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TailOptions:
    """What a user decides about a tail; the defaults are docs/definition.md's.

    Parameters
    ----------
    image_sensitivity, pixel_sensitivity
        In [0, 1]; at 0.5 the decision is ``raw >= threshold``, at 1 everything is anomalous.
    comparison
        ``"ge"``, or ``"gt"`` for Anomalib's rule as its code computes it.
    label_dtype, mask_dtype
        Element type of `pred_label` and `pred_mask`; a `mask_dtype` of None is the format's default.
    keep_raw
        Whether the raw outputs stay as additional outputs.
    match_thresholds
        Whether a level that has a range but no threshold borrows the other level's.
    nan_guard
        Whether a NaN in a map makes its image's score NaN.

    Raises
    ------
    MetadataError
        If a sensitivity is not in [0, 1].
    UsageError
        If one of the other options is not known.
    """

    image_sensitivity: float = 0.5
    pixel_sensitivity: float = 0.5
    comparison: Comparison = "ge"
    label_dtype: LabelDtype = "bool"
    mask_dtype: LabelDtype | None = None
    keep_raw: bool = False
    match_thresholds: bool = False
    nan_guard: bool = True

    def __post_init__(self) -> None:
        for name in ("image_sensitivity", "pixel_sensitivity"):
            object.__setattr__(self, name, check_sensitivity(getattr(self, name), name=name))
        check_comparison(self.comparison)
        _check_choice("label_dtype", self.label_dtype, LABEL_DTYPES)
        _check_choice("mask_dtype", self.mask_dtype, (*LABEL_DTYPES, None))

    def sensitivity(self, level: Level) -> float:
        """Return the sensitivity of one level."""
        return self.image_sensitivity if level == "image" else self.pixel_sensitivity


@dataclass(frozen=True, slots=True)
class TailOutput:
    """One output of a tail: its name, what it computes, its element type and declared shape."""

    name: str
    level: Level
    expr: Expr
    dtype: LabelDtype
    shape: tuple[Axis, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """Everything that is appended to a model, before a format says how.

    Parameters
    ----------
    outputs
        The outputs, in their final order.
    raw
        The host's output for each level that it has, calibrated or not.
    stats
        The statistics that decide, thresholds matched.
    notes
        What a user should know about levels that were left as they are.
    """

    outputs: tuple[TailOutput, ...]
    raw: Mapping[Level, PortInfo]
    stats: CalibrationStats
    options: TailOptions
    notes: tuple[str, ...]

    @property
    def inputs(self) -> dict[str, PortInfo]:
        """The host's output for each raw input that the expressions read."""
        return {RAW_INPUTS[level]: port for level, port in self.raw.items()}

    @property
    def resolved_options(self) -> TailOptions:
        """The options, with the element type that `pred_mask` has in place of the format's default."""
        dtype = next((output.dtype for output in self.outputs if output.name == "pred_mask"), self.options.mask_dtype)
        return replace(self.options, mask_dtype=dtype)

    def names(self, level: Level) -> list[str]:
        """Return the names of a level's outputs; none where it was left as it is."""
        return [output.name for output in self.outputs if output.level == level]


def build_tail(
    stats: CalibrationStats,
    options: TailOptions,
    selection: Selection,
    *,
    nan_test: NanTest,
    default_mask_dtype: LabelDtype,
) -> Tail:
    """Write down the tail for one model.

    Parameters
    ----------
    stats, options
        The statistics and what the user decided.
    selection
        The raw outputs of the model.
    nan_test
        How the format finds out that a map holds a NaN.
    default_mask_dtype
        The format's element type of `pred_mask`.

    Raises
    ------
    UsageError
        If the statistics calibrate no level that the model has.
    MetadataError
        If a boundary is subnormal, or no threshold is there to borrow.
    """
    if options.match_thresholds:
        stats = stats.with_matched_thresholds()
    raw: dict[Level, PortInfo] = {}
    if selection.image is not None:
        raw["image"] = selection.image
    if selection.pixel is not None:
        raw["pixel"] = selection.pixel
    steps = _Steps(stats, options, raw, nan_test, options.mask_dtype or default_mask_dtype)
    outputs = tuple(steps.outputs())
    if not outputs:
        raise UsageError(
            "nothing to attach: the statistics calibrate no level that the model has",
            found=f"calibrated: {_listed(_calibrated(stats))}; in the model: {_listed(raw)}",
            fix="calibrate on outputs of this model, or pass --match-thresholds to borrow a threshold",
        )
    return Tail(outputs=outputs, raw=raw, stats=stats, options=options, notes=tuple(_notes(stats, raw)))


@dataclass(frozen=True, slots=True)
class _Steps:
    stats: CalibrationStats
    options: TailOptions
    raw: Mapping[Level, PortInfo]
    nan_test: NanTest
    mask_dtype: LabelDtype

    def outputs(self) -> Iterator[TailOutput]:
        image, pixel = self.stats.image, self.stats.pixel
        if image is not None and image.is_calibrated:
            shape = self._score_shape()
            yield TailOutput("pred_score", "image", self._unit(self._score(), image), "float32", shape)
            label = self._label(self._score(), "image", image, self.options.label_dtype)
            yield TailOutput("pred_label", "image", label, self.options.label_dtype, shape)
        if pixel is not None and pixel.is_calibrated and "pixel" in self.raw:
            shape = self.raw["pixel"].shape
            yield TailOutput("anomaly_map", "pixel", self._unit(self._map(), pixel), "float32", shape)
            mask = self._label(self._map(), "pixel", pixel, self.mask_dtype)
            yield TailOutput("pred_mask", "pixel", mask, self.mask_dtype, shape)

    def _map(self) -> Expr:
        return self._float32("pixel")

    def _score(self) -> Expr:
        score = self._float32("image") if "image" in self.raw else catalog.map_max(self._map(), rank=self._map_rank())
        if not self.options.nan_guard or "pixel" not in self.raw:
            return score
        maps, rank = self._map(), self._map_rank()
        if self.nan_test == "arithmetic":
            return catalog.nan_guard_arithmetic(score, maps, rank=rank)
        has_nan = catalog.nan_by_sum if self.nan_test == "sum" else catalog.nan_by_l1
        return catalog.nan_guard(score, has_nan(maps, rank=rank))

    def _float32(self, level: Level) -> Expr:
        value = Input(RAW_INPUTS[level])
        return value if self.raw[level].dtype == "float32" else cast(value, dtype="float32")

    def _map_rank(self) -> int:
        rank = self.raw["pixel"].rank
        assert rank is not None, "a map of unknown rank is refused when it is selected"
        return rank

    def _score_shape(self) -> tuple[Axis, ...] | None:
        if "image" in self.raw:
            return self.raw["image"].shape
        shape = self.raw["pixel"].shape
        return None if shape is None else shape[:-2]

    def _unit(self, values: Expr, level: LevelStats) -> Expr:
        form = choose_form(level)
        constants = unit_constants(level, form)
        if form == "fused":
            return bind(catalog.fused_unit_score(values), {"alpha": constants.alpha, "beta": constants.beta})
        assert constants.offset is not None, "the centred form subtracts the threshold"
        return bind(catalog.centred_unit_score(values), {"alpha": constants.alpha, "offset": constants.offset})

    def _label(self, values: Expr, name: Level, level: LevelStats, dtype: LabelDtype) -> Expr:
        boundary = decision_boundary(
            level, sensitivity=self.options.sensitivity(name), comparison=self.options.comparison
        )
        decision = bind(catalog.at_least(values), {"boundary": boundary})
        return decision if dtype == "bool" else cast(decision, dtype=dtype)


def _calibrated(stats: CalibrationStats) -> Iterator[Level]:
    for level, of_level in (("image", stats.image), ("pixel", stats.pixel)):
        if of_level is not None and of_level.is_calibrated:
            yield "image" if level == "image" else "pixel"


def _notes(stats: CalibrationStats, raw: Mapping[Level, PortInfo]) -> Iterator[str]:
    calibrated = list(_calibrated(stats))
    for level, port in raw.items():
        if level not in calibrated:
            yield f"{level} level not calibrated: '{port.name}' stays as it is, with no label or mask"
    if "pixel" in calibrated and "pixel" not in raw:
        yield "pixel level not attached: the model has no anomaly map"
    if "image" in calibrated and "image" not in raw:
        yield "image score taken as the maximum of the anomaly map: the model has none"


def _listed(levels: Iterable[str]) -> str:
    return ", ".join(levels) or "none"


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise UsageError(
            f"{name} {value!r} is not known", needed=", ".join(str(choice) for choice in choices if choice is not None)
        )
