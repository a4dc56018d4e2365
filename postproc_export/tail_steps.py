"""The parts of a tail as expressions: how a score, a label, a map and a mask are computed from the raw values."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from graph_patterns import catalog
from graph_patterns.expr import Call, Expr, Input, Scalar, bind, cast, identity
from postproc_export.adjusting import adjusting_constants, input_name
from postproc_export.boundary import check_dtype, choose_form, unit_constants
from postproc_export.float32 import HostDtype
from postproc_export.guarding import GuardForm
from postproc_export.runtimes.protocol import Axis, PortInfo
from postproc_export.stats import CalibrationStats, Level, LevelStats
from postproc_export.tail_options import LabelDtype, TailOptions

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
