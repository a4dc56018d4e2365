"""From statistics and options to the expressions of a tail: the same for every format.

A tail reads the raw values ``raw_score`` and ``raw_map`` of the host and gives up to four outputs, or one that holds
all four.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from graph_patterns import catalog
from postproc_export.adjusting import AdjustableInput, adjustable_inputs, attached_boundary
from postproc_export.errors import UsageError
from postproc_export.float32 import HALVES, Half, HostDtype, rounded_to, shortest
from postproc_export.guarding import Guard, choose_guard
from postproc_export.outputs import Selection
from postproc_export.packing import PACKED_OUTPUT, PARTS, packed_shape, refuse_unpackable
from postproc_export.runtimes.protocol import PortInfo
from postproc_export.stats import LEVELS, CalibrationStats, Level
from postproc_export.tail_options import LabelDtype, TailOptions
from postproc_export.tail_steps import RAW_INPUTS, NanTest, Steps, TailOutput, host_dtype

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
        return _raw(self.selection)

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
    raw = _raw(selection)
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


def _raw(selection: Selection) -> dict[Level, PortInfo]:
    ports: dict[Level, PortInfo | None] = {"image": selection.image, "pixel": selection.pixel}
    return {level: port for level, port in ports.items() if port is not None}


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
