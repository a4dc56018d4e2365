"""From statistics and options to the expressions of a tail: the same for every format.

A tail reads the raw values ``raw_score`` and ``raw_map`` of the host and gives up to four outputs, or one that holds
all four.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final, Literal, NamedTuple, TypeAlias, get_args

from graph_patterns import catalog
from graph_patterns.expr import Call, Expr, Input, bind, cast, identity
from postproc_export.errors import MetadataError, UsageError
from postproc_export.float32 import HALVES, Half, HostDtype, rounded_to, shortest
from postproc_export.options import LabelDtype, TailOptions
from postproc_export.ports import Axis, Guard, PortInfo, Selection, choose_guard, is_one_value
from postproc_export.stats import (
    LEVELS,
    CalibrationStats,
    Level,
    LevelStats,
    check_dtype,
    choose_form,
    decision_boundary,
    unit_constants,
)

PACKED_OUTPUT: Final = "output"
PARTS: Final = ("anomaly_map", "pred_score", "pred_label", "pred_mask")
"""What ``output[..., 0]`` to ``output[..., 3]`` hold: docs/definition.md section 8."""


def place(part: str) -> str:
    """Return how a part of the packed output is written: ``output[..., 0]`` for the map, and so on."""
    return f"{PACKED_OUTPUT}[..., {PARTS.index(part)}]"


def _refuse_unpackable(selection: Selection, calibrated: Collection[Level]) -> None:
    score, anomaly_map = selection.image, selection.pixel
    reason, found = None, "; ".join(port.describe() for port in selection.raw.values())
    missing = [level for level in LEVELS if level not in calibrated]
    if anomaly_map is None:
        reason = "the model has a score only, and no map to lay it beside"
    elif missing:
        reason = f"the {missing[0]} level has no statistics"
        found = f"calibrated: {', '.join(calibrated) or 'none'}"
    elif score is not None and score.rank is None:
        reason = "the score's rank is not known, so it may be one score for several images"
    elif score is not None and is_one_value(score) and anomaly_map.size(0) != 1:
        # without an error, it would be laid over all images of a batch
        reason = "one score would be laid over several images, since the batch of the map is not fixed to 1"
    if reason is not None:
        raise UsageError(
            f"the packed layout cannot be had: {reason}",
            found=found,
            needed="a calibrated map [N, H, W] or [N, 1, H, W], and one calibrated score per image or none of its own",
            fix="leave out --layout packed",
        )


Adjusted: TypeAlias = Literal["sensitivity", "boundary"]

LARGEST_SUM: Final = 2.0**127
"""|threshold| + span has to stay below it, so that no step of the graph overflows."""


def input_name(level: Level, what: Adjusted) -> str:
    """Return what the input for a level is called."""
    return f"{level}_{what}"


INPUT_NAMES: Final = frozenset(input_name(level, what) for level in LEVELS for what in get_args(Adjusted))
"""What the inputs of any tail may be called."""


def adjustable_defaults(
    stats: CalibrationStats, options: TailOptions, levels: Mapping[Level, HostDtype]
) -> Iterator[tuple[Level, float]]:
    """Yield each level that can be adjusted and its float32 default: docs/definition.md section 4.

    `levels` are those with labels, and their raw types.
    Raises MetadataError if a boundary is not legal, or the graph could overflow on the way to it.
    """
    if options.adjustable == "nothing" or not options.enable_thresholding:
        return
    for level, dtype in levels.items():
        of_level = stats.level(level)
        assert of_level is not None, "a level with labels is calibrated"
        if options.adjustable == "sensitivity":
            assert of_level.threshold is not None, "a level with labels has a threshold"
            if abs(of_level.threshold) + of_level.span >= LARGEST_SUM:
                raise MetadataError(
                    f"the {level} level's boundary could overflow when it is computed at run time",
                    found=f"threshold {of_level.threshold:.3g}, span {of_level.span:.3g}",
                    needed="|threshold| + span below 2^127",
                    fix="--runtime-boundary, which computes nothing, or rescale the raw outputs of the model",
                )
            default = options.sensitivity(level)
        else:
            default = attached_boundary(of_level, options, level, dtype)
        yield level, default


def attached_boundary(stats: LevelStats, options: TailOptions, level: Level, dtype: HostDtype) -> float:
    """Return the boundary of a level at the sensitivity that was attached, as the graph compares with it."""
    sensitivity = options.sensitivity(level)
    return decision_boundary(stats, sensitivity=sensitivity, comparison=options.comparison, dtype=dtype)


def adjusted_error(stats: LevelStats) -> float:
    """Return how far from the boundary a decision may differ from the exact one, in raw units.

    With T the threshold, R = max - min, r its float32 and u = 2^-24, the exact bound is B = T + (1/2 - a) R. The graph
    rounds 1/2 - a (at most u/4 of r, since that is at most 1/2), the product (u/2 of r), the sum (u of |T| + r/2), and
    takes r for R (u/2 of r): u (|T| + 7/4 r). A runtime may fold it to (T + r/2) - a r, which rounds the constant (u of
    |T| + r/2), the product (u of r), the sum (u of |T| + r/2), and takes r for R: u (2 |T| + 5/2 r). The boundary is
    the next float32 from B on, at most 2 u (|T| + r/2) above it. Together below u (4 |T| + 4 r).
    """
    assert stats.threshold is not None, "a level with labels has a threshold"
    return float(2.0**-22 * (abs(stats.threshold) + stats.span))


NanTest: TypeAlias = Literal["sum", "l1", "arithmetic"]


class TailForm(NamedTuple):
    """In which of the forms that decide alike a tail is written: what suits a format, and what its opset knows."""

    nan_test: NanTest  # how it finds out that a map holds a NaN
    maps: catalog.MapForm = "plain"  # plain is what every tail was once, the guard's shape asked for, too
    guard_axes: catalog.Axes | None = None  # of a file that is there, where the declared shapes do not say it


RAW_INPUTS: Final[Mapping[Level, str]] = {"image": "raw_score", "pixel": "raw_map"}


class TailOutput(NamedTuple):
    """One output of a tail: its name, what it computes, its element type and declared shape."""

    name: str
    level: Level
    expr: Expr
    dtype: LabelDtype
    shape: tuple[Axis, ...] | None


class _Parts:
    """What makes scores, labels, maps and masks of raw values, in the order of the outputs."""

    def __init__(
        self, stats: CalibrationStats, options: TailOptions, selection: Selection, form: TailForm, guard: Guard
    ) -> None:
        self._stats, self._options, self._raw = stats, options, selection.raw
        self._form, self._guard = form, guard.form

    def outputs(self, mask_dtype: LabelDtype) -> Iterator[TailOutput]:
        """Yield the parts of each level that is calibrated and there."""
        image, pixel = self._stats.image, self._stats.pixel
        if image is not None and image.is_calibrated:
            port = self._raw.get("image")
            shape = self._raw["pixel"].shape if port is None else port.shape
            shape = shape[:-2] if port is None and shape is not None else shape
            score = TailOutput("pred_score", "image", self._score(), "float32", shape)
            yield from self._level(score, image, "pred_label", self._options.label_dtype)
        if pixel is not None and pixel.is_calibrated and "pixel" in self._raw:
            maps = TailOutput("anomaly_map", "pixel", self._float32("pixel"), "float32", self._raw["pixel"].shape)
            yield from self._level(maps, pixel, "pred_mask", mask_dtype)

    def _level(self, values: TailOutput, stats: LevelStats, label: str, dtype: LabelDtype) -> Iterator[TailOutput]:
        if self._options.enable_normalization:
            yield values._replace(expr=self._unit(values.expr, values.level, stats))
        else:  # a value of the host needs an operator of the tail behind it to bear the output's name
            yield values if isinstance(values.expr, Call) else values._replace(expr=identity(values.expr))
        if self._options.enable_thresholding:
            dtype = "float32" if self._options.is_float32 else dtype
            decision = self._decision(values.expr, values.level, stats)
            expr = decision if dtype == "bool" else cast(decision, dtype=dtype)
            yield TailOutput(label, values.level, expr, dtype, values.shape)

    def _score(self) -> Expr:
        if "image" in self._raw and self._guard is None:
            return self._float32("image")
        maps, rank, over = self._float32("pixel"), self._rank, self._guarded_over()
        score = self._float32("image") if "image" in self._raw else catalog.map_max(maps, rank=rank)
        if over is None:
            return score
        if self._form.nan_test == "arithmetic":
            return catalog.nan_guard_arithmetic(score, maps, rank=rank, over=over)
        has_nan = catalog.nan_by_sum if self._form.nan_test == "sum" else catalog.nan_by_l1
        return catalog.nan_guard(score, has_nan(maps, rank=rank, over=over), over=over)

    def _guarded_over(self) -> catalog.Reduced | catalog.Axes | None:
        """Return over what the map is reduced: axes where what remains is declared as the score is, one per image."""
        score, maps = self._raw.get("image"), self._raw["pixel"]
        if self._guard != "image" or self._form.maps == "plain":
            return self._guard
        if self._form.guard_axes is not None:
            return self._form.guard_axes
        if score is None:
            return (self._rank - 2, self._rank - 1)  # as the maximum is taken
        if not score.shape or not maps.shape or score.shape[0] is None or score.shape[0] != maps.shape[0]:
            return self._guard
        if score.rank == 1:
            return tuple(range(1, self._rank))
        return (2, 3) if (score.rank, self._rank, maps.size(1)) == (2, 4, 1) else self._guard

    @property
    def _rank(self) -> int:
        rank = self._raw["pixel"].rank
        assert rank is not None, "a map of unknown rank is refused when it is selected"
        return rank

    def _unit(self, values: Expr, level: Level, stats: LevelStats) -> Expr:
        alpha, beta, offset = unit_constants(stats, form := choose_form(stats))
        maps = self._form.maps if level == "pixel" else "plain"
        if form == "centred":
            return bind(catalog.centred_unit_score(values), {"alpha": alpha, "offset": offset})
        viewed = catalog.viewed(values, rank=self._rank) if maps == "squeezed" else values
        return bind(catalog.fused_unit_score(viewed), {"alpha": alpha, "beta": beta})

    def _float32(self, level: Level) -> Expr:
        value = Input(RAW_INPUTS[level])
        return value if self._raw[level].dtype == "float32" else cast(value, dtype="float32")

    def _decision(self, values: Expr, level: Level, stats: LevelStats) -> Expr:
        options = self._options
        if options.adjustable != "nothing":
            given = Input(input_name(level, options.adjustable))
            boundary = catalog.adjusted_boundary(given) if options.adjustable == "sensitivity" else given
            decision = catalog.at_least(values, boundary)
        elif level == "pixel":
            decision = catalog.map_at_least(values, form=self._form.maps, rank=self._rank)
        else:
            decision = catalog.at_least(values)
        assert stats.threshold is not None, "a level with labels has a threshold"
        constants = {
            "threshold": stats.threshold,
            "span": stats.span,
            "attached": options.sensitivity(level),
            "boundary": attached_boundary(stats, options, level, host_dtype(self._raw, level)),
        }
        return bind(decision, constants)


def host_dtype(raw: Mapping[Level, PortInfo], level: Level) -> HostDtype:
    """Return the type that a level's raw values were declared in: the map's where the score is its maximum."""
    return check_dtype((raw.get(level) or raw["pixel"]).dtype)


OUTPUT_NAMES: Final = ("pred_score", "pred_label", "anomaly_map", "pred_mask")
PREFIX: Final = "postproc/"


class Tail(NamedTuple):
    """Everything that is appended to a model, before a format says how."""

    outputs: tuple[TailOutput, ...]  # in their final order
    parts: tuple[TailOutput, ...]  # the outputs themselves, or what the packed output holds
    selection: Selection
    form: TailForm
    guard: Guard
    stats: CalibrationStats  # those that decide, thresholds matched
    options: TailOptions
    notes: tuple[str, ...]  # what a user should know about levels that were left as they are
    adjustable: Mapping[Level, float]  # the default, float32, of each level that is adjusted at run time

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
        if self.options.is_float32:
            return self.options
        dtype = next((output.dtype for output in self.outputs if output.name == "pred_mask"), self.options.mask_dtype)
        return replace(self.options, mask_dtype=dtype)

    @property
    def defaults(self) -> dict[str, float]:
        """The inputs that need not be given, in an IR variables or parameters, each with what counts then."""
        adjusted = self.options.adjustable
        if adjusted == "nothing":
            return {}
        return {input_name(level, adjusted): default for level, default in self.adjustable.items()}

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
    form: TailForm,
    default_mask_dtype: LabelDtype,
    guard: Guard | None = None,
) -> Tail:
    """Write down the tail for one model with these raw outputs.

    The guard of a file that is there already may be given, else it is as `guard_of` says. Raises UsageError if the
    statistics calibrate no level that the model has, or the packed layout cannot be had, UnsupportedModelError if the
    map cannot guard the score, as it has to, and MetadataError if a boundary is subnormal, or none can be borrowed.
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
    if options.is_packed:
        _refuse_unpackable(selection, calibrated)
    if guard is None:
        guard = guard_of(selection, stats, options)
    parts = tuple(_Parts(wanted, options, selection, form, guard).outputs(options.mask_dtype or default_mask_dtype))
    if not parts:
        raise UsageError(
            "nothing to attach: the statistics calibrate no level that the model has and that is wanted",
            found=f"calibrated: {', '.join(calibrated) or 'none'}; in the model: {', '.join(raw) or 'none'}; "
            f"wanted: {options.levels}",
            fix="calibrate on outputs of this model, or pass --match-thresholds to borrow a threshold",
        )
    dtypes = {part.level: host_dtype(raw, part.level) for part in parts}
    return Tail(
        outputs=(_packed(parts, raw["pixel"]),) if options.is_packed else parts,
        parts=parts,
        selection=selection,
        form=form,
        guard=guard,
        stats=wanted,
        options=options,
        notes=(*_notes(calibrated, raw, options), *_strange_thresholds(wanted, dtypes), *guard.notes),
        adjustable=dict(adjustable_defaults(wanted, options, dtypes)),
    )


def _packed(parts: Iterable[TailOutput], port: PortInfo) -> TailOutput:
    exprs = {part.name: part.expr for part in parts}
    maps, score, label, mask = (exprs[name] for name in PARTS)
    expr = catalog.packed(maps=maps, score=score, label=label, mask=mask, rank=len(port.shape or ()))
    shape = None if port.shape is None else (port.shape[0], *port.shape[-2:], len(PARTS))
    return TailOutput(PACKED_OUTPUT, "pixel", expr, "float32", shape)


def calibrated_levels(stats: CalibrationStats, options: TailOptions) -> tuple[Level, ...]:
    """Return the levels that statistics calibrate, a threshold that is borrowed included.

    Raises MetadataError if no threshold is there to borrow.
    """
    if options.match_thresholds:
        stats = stats.with_matched_thresholds()
    found = ((level, stats.level(level)) for level in LEVELS)
    return tuple(level for level, of_level in found if of_level is not None and of_level.is_calibrated)


def guard_of(selection: Selection, stats: CalibrationStats, options: TailOptions, *, may_refuse: bool = True) -> Guard:
    """Return how the map of a model guards its image level, by docs/definition.md section 5.

    Raises UnsupportedModelError if it cannot, though it is calibrated or was chosen; not where `may_refuse` is False.
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
