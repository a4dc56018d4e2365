"""From statistics and options to the expressions of a tail: the same for every format.

A tail reads the raw values ``raw_score`` and ``raw_map`` of the host and gives up to four outputs, or one that holds
all four.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias, get_args

from graph_patterns import catalog
from graph_patterns.expr import Call, Expr, Input, Scalar, bind, cast, identity
from postproc_export.decision import check_dtype, choose_form, decision_boundary, unit_constants
from postproc_export.errors import MetadataError, UsageError
from postproc_export.float32 import HALVES, Half, HostDtype, rounded_to, shortest
from postproc_export.options import LabelDtype, TailOptions
from postproc_export.ports import Axis, Guard, GuardForm, PortInfo, Selection, choose_guard
from postproc_export.stats import LEVELS, CalibrationStats, Level, LevelStats

# --- The packed layout: one float32 output [N, H, W, 4] in place of four, docs/definition.md section 8.

PACKED_OUTPUT: Final = "output"
PARTS: Final = ("anomaly_map", "pred_score", "pred_label", "pred_mask")
"""What ``output[..., 0]`` to ``output[..., 3]`` hold."""


def place(part: str) -> str:
    """Return how a part of the packed output is written: ``output[..., 0]`` for the map, and so on."""
    return f"{PACKED_OUTPUT}[..., {PARTS.index(part)}]"


def packed_shape(port: PortInfo) -> tuple[Axis, ...] | None:
    """Return the declared shape of the packed output of a map."""
    return None if port.shape is None else (port.shape[0], *port.shape[-2:], len(PARTS))


def refuse_unpackable(selection: Selection, calibrated: Collection[Level]) -> None:
    """Refuse a model that has no packed form.

    Parameters
    ----------
    selection
        The raw outputs.
    calibrated
        The levels that the statistics calibrate.

    Raises
    ------
    UsageError
        With the reason.
    """
    for reason, found in _problems(selection, calibrated):
        raise UsageError(
            f"the packed layout cannot be had: {reason}",
            found=found,
            needed="a calibrated map [N, H, W] or [N, 1, H, W], and one calibrated score per image or none of its own",
            fix="leave out --layout packed",
        )


def _problems(selection: Selection, calibrated: Collection[Level]) -> Iterator[tuple[str, str]]:
    score, anomaly_map = selection.image, selection.pixel
    if anomaly_map is None:
        yield "the model has a score only, and no map to lay it beside", _shown(score)
        return
    for level in LEVELS:
        if level not in calibrated:
            yield f"the {level} level has no statistics", f"calibrated: {', '.join(calibrated) or 'none'}"
    if score is not None:
        yield from _score_problems(score, anomaly_map)


def _score_problems(score: PortInfo, anomaly_map: PortInfo) -> Iterator[tuple[str, str]]:
    """A score of one image would be laid over all images of a batch, without an error."""
    found = f"{_shown(score)}; {_shown(anomaly_map)}"
    if score.rank is None:
        yield "the score's rank is not known, so it may be one score for several images", found
    elif (score.rank == 0 or score.size(0) == 1) and anomaly_map.size(0) != 1:
        yield "one score would be laid over several images, since the batch of the map is not fixed to 1", found


def _shown(port: PortInfo | None) -> str:
    return "no output" if port is None else port.describe()


# --- Decisions that are adjusted at run time: the inputs for it, their defaults, and how exactly a graph computes
# them.
#
# docs/definition.md section 4 defines it, docs/runtime_sensitivity.md shows it in use.

Adjusted: TypeAlias = Literal["sensitivity", "boundary"]

LARGEST_SUM: Final = 2.0**127
"""|threshold| + span has to stay below it, so that no step of the graph overflows."""


@dataclass(frozen=True, slots=True)
class AdjustableInput:
    """An input of a model that need not be given.

    Parameters
    ----------
    name
        Of the input in ONNX, of the variable or parameter in an IR.
    level
        The level that it decides about.
    what
        What it is: the sensitivity, or the boundary itself in raw units.
    default
        float32: what counts where it is not given.
    """

    name: str
    level: Level
    what: Adjusted
    default: float

    def describe(self) -> str:
        """Return one phrase: the name and the default."""
        default = self.default if self.default in (float("inf"), float("-inf")) else shortest(self.default)
        return f"{self.name} (default {default})"


def input_name(level: Level, what: Adjusted) -> str:
    """Return what the input for a level is called."""
    return f"{level}_{what}"


INPUT_NAMES: Final = frozenset(input_name(level, what) for level in LEVELS for what in get_args(Adjusted))
"""What the inputs of any tail may be called."""


def adjustable_inputs(
    stats: CalibrationStats, options: TailOptions, levels: Mapping[Level, HostDtype]
) -> Iterator[AdjustableInput]:
    """Yield the inputs of a tail.

    Parameters
    ----------
    stats, options
        What the tail decides by.
    levels
        The levels that it decides about, each with the type that its raw values were declared in.

    Raises
    ------
    MetadataError
        If a boundary is not legal, or the graph could overflow on the way to it.
    """
    if options.adjustable == "nothing" or not options.enable_thresholding:
        return
    for level, dtype in levels.items():
        of_level = stats.level(level)
        assert of_level is not None, "a level with labels is calibrated"
        if options.adjustable == "sensitivity":
            _check_size(level, of_level)
            default = options.sensitivity(level)
        else:
            default = attached_boundary(of_level, options, level, dtype)
        yield AdjustableInput(input_name(level, options.adjustable), level, options.adjustable, default)


def attached_boundary(stats: LevelStats, options: TailOptions, level: Level, dtype: HostDtype) -> float:
    """Return the boundary of a level at the sensitivity that was attached, as the graph compares with it."""
    sensitivity = options.sensitivity(level)
    return decision_boundary(stats, sensitivity=sensitivity, comparison=options.comparison, dtype=dtype)


def adjusting_constants(stats: LevelStats, options: TailOptions, level: Level, dtype: HostDtype) -> Mapping[str, float]:
    """Return the constants of the computed boundary: `catalog.adjusted_boundary`'s scalars, float32 values."""
    assert stats.threshold is not None, "a level with labels has a threshold"
    return {
        "threshold": stats.threshold,
        "span": stats.span,
        "attached": options.sensitivity(level),
        "boundary": attached_boundary(stats, options, level, dtype),
    }


def adjusted_error(stats: LevelStats) -> float:
    """Return how far from the boundary a decision may differ from the exact one, in raw units.

    Notes
    -----
    With T the threshold, R = max - min, r its float32 and u = 2^-24, the exact bound is B = T + (1/2 - a) R. The graph
    rounds 1/2 - a (at most u/4 of r, since that is at most 1/2), the product (u/2 of r), the sum (u of |T| + r/2), and
    takes r for R (u/2 of r): u (|T| + 7/4 r). A runtime may fold it to (T + r/2) - a r, which rounds the constant
    (u of |T| + r/2), the product (u of r), the sum (u of |T| + r/2), and takes r for R: u (2 |T| + 5/2 r). The boundary
    is the next float32 from B on, at most 2 u (|T| + r/2) above it. Together below u (4 |T| + 4 r).
    """
    assert stats.threshold is not None, "a level with labels has a threshold"
    return float(2.0**-22 * (abs(stats.threshold) + stats.span))


def _check_size(level: Level, stats: LevelStats) -> None:
    assert stats.threshold is not None, "a level with labels has a threshold"
    if abs(stats.threshold) + stats.span >= LARGEST_SUM:
        raise MetadataError(
            f"the {level} level's boundary could overflow when it is computed at run time",
            found=f"threshold {stats.threshold:.3g}, span {stats.span:.3g}",
            needed="|threshold| + span below 2^127",
            fix="--runtime-boundary, which computes nothing, or rescale the raw outputs of the model",
        )


# --- The parts of a tail as expressions: how a score, a label, a map and a mask are computed from the raw values.

NanTest: TypeAlias = Literal["sum", "l1", "arithmetic"]

RAW_INPUTS: Final[Mapping[Level, str]] = {"image": "raw_score", "pixel": "raw_map"}


@dataclass(frozen=True, slots=True)
class TailOutput:
    """One output of a tail: its name, what it computes, its element type and declared shape."""

    name: str
    level: Level
    expr: Expr
    dtype: LabelDtype
    shape: tuple[Axis, ...] | None


@dataclass(frozen=True, slots=True)
class Steps:
    """The parts of one tail as expressions.

    Parameters
    ----------
    stats
        The statistics of the levels that are wanted, thresholds matched.
    options
        What the user decided.
    raw
        The host's output for each level that it has.
    nan_test
        How the format finds out that a map holds a NaN.
    mask_dtype
        Element type of `pred_mask`.
    guard
        Over what the map is reduced for that; None where it does not guard the score.
    """

    stats: CalibrationStats
    options: TailOptions
    raw: Mapping[Level, PortInfo]
    nan_test: NanTest
    mask_dtype: LabelDtype
    guard: GuardForm | None

    def parts(self) -> Iterator[TailOutput]:
        """Yield scores, labels, maps and masks, in the order of the outputs."""
        image, pixel = self.stats.image, self.stats.pixel
        if image is not None and image.is_calibrated:
            names = ("pred_score", "pred_label")
            yield from self._level("image", image, self._score(), names, self.options.label_dtype, self._score_shape())
        if pixel is not None and pixel.is_calibrated and "pixel" in self.raw:
            names = ("anomaly_map", "pred_mask")
            yield from self._level("pixel", pixel, self._map(), names, self.mask_dtype, self.raw["pixel"].shape)

    def _level(
        self,
        level: Level,
        stats: LevelStats,
        values: Expr,
        names: tuple[str, str],
        dtype: LabelDtype,
        shape: tuple[Axis, ...] | None,
    ) -> Iterator[TailOutput]:
        score, label = names
        if self.options.is_packed:
            dtype = "float32"
        shown = _unit(values, stats) if self.options.enable_normalization else _as_output(values)
        yield TailOutput(score, level, shown, "float32", shape)
        if self.options.enable_thresholding:
            yield TailOutput(label, level, self._label(values, level, stats, dtype), dtype, shape)

    def _map(self) -> Expr:
        return self._float32("pixel")

    def _score(self) -> Expr:
        score = self._float32("image") if "image" in self.raw else catalog.map_max(self._map(), rank=self._map_rank())
        if self.guard is None:
            return score
        maps, rank, over = self._map(), self._map_rank(), self.guard
        if self.nan_test == "arithmetic":
            return catalog.nan_guard_arithmetic(score, maps, rank=rank, over=over)
        has_nan = catalog.nan_by_sum if self.nan_test == "sum" else catalog.nan_by_l1
        return catalog.nan_guard(score, has_nan(maps, rank=rank, over=over), over=over)

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

    def _label(self, values: Expr, name: Level, level: LevelStats, dtype: LabelDtype) -> Expr:
        constants = adjusting_constants(level, self.options, name, host_dtype(self.raw, name))
        decision = bind(catalog.at_least(values, self._boundary(name)), constants)
        return decision if dtype == "bool" else cast(decision, dtype=dtype)

    def _boundary(self, level: Level) -> Expr:
        if self.options.adjustable == "nothing":
            return Scalar("boundary")
        given = Input(input_name(level, self.options.adjustable))
        return catalog.adjusted_boundary(given) if self.options.adjustable == "sensitivity" else given


def host_dtype(raw: Mapping[Level, PortInfo], level: Level) -> HostDtype:
    """Return the type that a level's raw values were declared in: the map's where the score is its maximum."""
    return check_dtype((raw.get(level) or raw["pixel"]).dtype)


def _unit(values: Expr, level: LevelStats) -> Expr:
    form = choose_form(level)
    constants = unit_constants(level, form)
    if form == "fused":
        return bind(catalog.fused_unit_score(values), {"alpha": constants.alpha, "beta": constants.beta})
    assert constants.offset is not None, "the centred form subtracts the threshold"
    return bind(catalog.centred_unit_score(values), {"alpha": constants.alpha, "offset": constants.offset})


def _as_output(values: Expr) -> Expr:
    """A value of the host needs an operator of the tail behind it to bear the output's name."""
    return values if isinstance(values, Call) else identity(values)


OUTPUT_NAMES: Final = ("pred_score", "pred_label", "anomaly_map", "pred_mask")
PREFIX: Final = "postproc/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """Everything that is appended to a model, before a format says how.

    Parameters
    ----------
    outputs
        The outputs, in their final order.
    parts
        Scores, labels, maps and masks: the outputs themselves, or what the packed output holds.
    selection
        The host's raw outputs, and by which rule they were found.
    nan_test
        How it finds out that a map holds a NaN.
    guard
        How a NaN in the map makes the image score NaN.
    stats
        The statistics that decide, thresholds matched.
    notes
        What a user should know about levels that were left as they are.
    adjustable
        The inputs by which it can be adjusted at run time.
    """

    outputs: tuple[TailOutput, ...]
    parts: tuple[TailOutput, ...]
    selection: Selection
    nan_test: NanTest
    guard: Guard
    stats: CalibrationStats
    options: TailOptions
    notes: tuple[str, ...]
    adjustable: tuple[AdjustableInput, ...] = ()

    @property
    def raw(self) -> dict[Level, PortInfo]:
        """The host's output for each level that it has, calibrated or not."""
        return self.selection.raw

    @property
    def inputs(self) -> dict[str, PortInfo]:
        """The host's output for each raw input that the expressions read."""
        return {RAW_INPUTS[level]: port for level, port in self.raw.items()}

    @property
    def resolved_options(self) -> TailOptions:
        """The options, with the element type that `pred_mask` has in place of the format's default."""
        dtype = next((output.dtype for output in self.outputs if output.name == "pred_mask"), self.options.mask_dtype)
        return replace(self.options, mask_dtype=dtype)

    def describe_guard(self) -> str | None:
        """Return in one line which output guards the image level against a NaN; None where none does."""
        if self.guard.form is None:
            return None
        whose = "its image" if self.guard.form == "image" else "all of its images"
        return f"a NaN in '{self.raw['pixel'].name}' makes {whose} anomalous"

    def names(self, level: Level) -> list[str]:
        """Return the names of a level's parts; none where it was left as it is."""
        return [part.name for part in self.parts if part.level == level]

    @property
    def narrow(self) -> dict[Level, Half]:
        """The levels whose raw values were declared in a narrower type than float32, each with that type."""
        dtypes = {level: host_dtype(self.raw, level) for level in LEVELS if self.names(level)}
        return {level: half for level, dtype in dtypes.items() for half in HALVES if dtype == half}

    def boundary(self, level: Level, dtype: HostDtype | None = None) -> float:
        """Return what the raw values of a level are compared with; with a type, what a host of that type needs."""
        stats = self.stats.level(level)
        assert stats is not None, f"the {level} level has no statistics"
        return attached_boundary(stats, self.options, level, dtype or host_dtype(self.raw, level))


def build_tail(
    stats: CalibrationStats,
    options: TailOptions,
    selection: Selection,
    *,
    nan_test: NanTest,
    default_mask_dtype: LabelDtype,
    guard: Guard | None = None,
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
    guard
        How a file guards the image level; default: as `guard_of` says.

    Raises
    ------
    UsageError
        If the statistics calibrate no level that the model has, or the packed layout cannot be had.
    UnsupportedModelError
        If the map cannot guard the score, as it has to.
    MetadataError
        If a boundary is subnormal, or no threshold is there to borrow.
    """
    if options.match_thresholds:
        stats = stats.with_matched_thresholds()
    calibrated = calibrated_levels(stats, options)
    wanted = replace(
        stats,
        image=stats.image if options.includes("image") else None,
        pixel=stats.pixel if options.includes("pixel") else None,
    )
    raw = selection.raw
    mask_dtype = options.mask_dtype or default_mask_dtype
    if options.is_packed:
        refuse_unpackable(selection, calibrated)
    if guard is None:
        guard = guard_of(selection, stats, options)
    steps = Steps(wanted, options, raw, nan_test, mask_dtype, guard.form)
    parts = tuple(steps.parts())
    if not parts:
        raise UsageError(
            "nothing to attach: the statistics calibrate no level that the model has and that is wanted",
            found=f"calibrated: {_listed(calibrated)}; in the model: {_listed(raw)}; wanted: {options.levels}",
            fix="calibrate on outputs of this model, or pass --match-thresholds to borrow a threshold",
        )
    dtypes = {part.level: host_dtype(raw, part.level) for part in parts}
    return Tail(
        outputs=(_packed(parts, raw["pixel"]),) if options.is_packed else parts,
        parts=parts,
        selection=selection,
        nan_test=nan_test,
        guard=guard,
        stats=wanted,
        options=options,
        notes=(*_notes(calibrated, raw, options), *_strange_thresholds(wanted, dtypes), *guard.notes),
        adjustable=tuple(adjustable_inputs(wanted, options, dtypes)),
    )


def _packed(parts: Iterable[TailOutput], port: PortInfo) -> TailOutput:
    exprs = {part.name: part.expr for part in parts}
    maps, score, label, mask = (exprs[name] for name in PARTS)
    assert port.rank is not None, "a map of unknown rank is refused when it is selected"
    expr = catalog.packed(maps=maps, score=score, label=label, mask=mask, rank=port.rank)
    return TailOutput(PACKED_OUTPUT, "pixel", expr, "float32", packed_shape(port))


def calibrated_levels(stats: CalibrationStats, options: TailOptions) -> tuple[Level, ...]:
    """Return the levels that statistics calibrate, a threshold that is borrowed included.

    Raises
    ------
    MetadataError
        If no threshold is there to borrow.
    """
    if options.match_thresholds:
        stats = stats.with_matched_thresholds()
    found = ((level, stats.level(level)) for level in LEVELS)
    return tuple(level for level, of_level in found if of_level is not None and of_level.is_calibrated)


def guard_of(selection: Selection, stats: CalibrationStats, options: TailOptions, *, may_refuse: bool = True) -> Guard:
    """Return how the map of a model guards its image level, by docs/definition.md section 5.

    Raises
    ------
    UnsupportedModelError
        If it cannot, though it is calibrated or was chosen; not where `may_refuse` is False.
    """
    score, anomaly_map, calibrated = selection.image, selection.pixel, calibrated_levels(stats, options)
    if not (options.nan_guard and anomaly_map and options.includes("image") and "image" in calibrated):
        return Guard(None)
    if score is None:
        return Guard("image")  # the score is that map's maximum
    is_calibrated, found = "pixel" in calibrated, selection.pixel_found
    return choose_guard(
        score,
        anomaly_map,
        is_known=is_calibrated or found != "rank",
        is_wanted=may_refuse and (is_calibrated or found == "option"),
    )


def _notes(calibrated: tuple[Level, ...], raw: Mapping[Level, PortInfo], options: TailOptions) -> Iterator[str]:
    for level, port in raw.items():
        if not options.includes(level):
            yield f"{level} level left out: '{port.name}' stays as it is, with no label or mask"
        elif level not in calibrated:
            yield f"{level} level not calibrated: '{port.name}' stays as it is, with no label or mask"
    if "pixel" in calibrated and "pixel" not in raw and options.includes("pixel"):
        yield "pixel level not attached: the model has no anomaly map"
    if "image" in calibrated and "image" not in raw and options.includes("image"):
        yield "image score taken as the maximum of the anomaly map: the model has none"


def _strange_thresholds(stats: CalibrationStats, dtypes: Mapping[Level, HostDtype]) -> Iterator[str]:
    """A threshold that the model cannot give was calibrated on something else than its outputs."""
    for level, dtype in dtypes.items():
        of_level = stats.level(level)
        threshold = None if of_level is None else of_level.threshold
        if dtype != "float32" and threshold is not None and rounded_to(threshold, dtype) != threshold:
            yield (
                f"the {level} threshold {shortest(threshold)} is no value of {dtype}, which the model gives: "
                "calibrate on the outputs of this model"
            )


def _listed(levels: Iterable[str]) -> str:
    return ", ".join(levels) or "none"
