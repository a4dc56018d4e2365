"""The eager reference in PyTorch, and its settings: what every exported tail is compared with."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, Self

import torch
from torch import Tensor
from torch.utils._pytree import _register_namedtuple

from postproc_export.errors import MetadataError, UsageError
from postproc_export.float32 import HALVES, Half, narrowed
from postproc_export.options import EagerOptions
from postproc_export.ports import check_shapes
from postproc_export.stats import LEVELS, CalibrationStats, Comparison, Level, LevelStats, as_stats, decision_boundary
from postproc_export.validation import method_like

STATISTICS: Final = ("threshold", "min", "max")
SENSITIVITIES: Final = tuple(f"{level}_sensitivity" for level in LEVELS)
NUMBERS: Final = tuple(f"{level}_{name}" for level in LEVELS for name in (*STATISTICS, "sensitivity"))
SWITCHES: Final = ("enable_normalization", "enable_thresholding", "enable_threshold_matching", "nan_guard")
_OTHER: Final[Mapping[Level, Level]] = {"image": "pixel", "pixel": "image"}


@dataclass(frozen=True, kw_only=True)
class Settings(EagerOptions):
    """All that decides what a `PostProcessor` returns, checked as a whole.

    Raises MetadataError if a sensitivity or a boundary is not legal, or a threshold is to be borrowed and there is
    none, and UsageError if the comparison is not known, or a switch is not a bool.
    """

    stats: CalibrationStats = field(default_factory=CalibrationStats)
    boundaries: Mapping[Level, float] = field(init=False, repr=False)  # float32, raw units, of the levels that decide

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} is not a bool", found=repr(getattr(self, name))[:60], needed="True or False")
        stats = self.stats.with_matched_thresholds() if self.enable_threshold_matching else self.stats
        boundaries = {
            level: decision_boundary(
                of_level, sensitivity=getattr(self, f"{level}_sensitivity"), comparison=self.comparison
            )
            for level in LEVELS
            if (of_level := stats.level(level)) is not None and of_level.is_calibrated
        }
        object.__setattr__(self, "boundaries", boundaries)

    def threshold_of(self, level: Level) -> str:
        """Return the name of the threshold that counts for a level that decides: the other's where it was borrowed."""
        own = self.stats.level(level)
        return f"{level if own is not None and own.is_calibrated else _OTHER[level]}_threshold"

    @property
    def numbers(self) -> dict[str, float]:
        """Every number by name, as float32 values; NaN where a level has none."""
        numbers: dict[str, float] = {}
        for level in LEVELS:
            for name in STATISTICS:
                value = getattr(self.stats.level(level), name, None)
                numbers[f"{level}_{name}"] = math.nan if value is None else value
            numbers[f"{level}_sensitivity"] = getattr(self, f"{level}_sensitivity")
        return numbers

    @property
    def flags(self) -> list[int]:
        """The options as 0 or 1: whether the comparison is ``"gt"``, then the switches in the order of `SWITCHES`."""
        return [int(self.comparison == "gt"), *(int(getattr(self, name)) for name in SWITCHES)]

    def describe(self) -> str:
        """Return one line per calibrated level, and one with the options."""
        levels = [
            f"{level}: threshold {self.numbers[self.threshold_of(level)]:.6g}, boundary {boundary:.6g}"
            for level, boundary in self.boundaries.items()
        ]
        options = ", ".join(f"{name}={getattr(self, name)!r}" for name in ("comparison", *SWITCHES))
        return "\n".join([*(levels or ["not calibrated"]), options])

    @classmethod
    def from_state(cls, numbers: Mapping[str, Any], flags: Sequence[int]) -> Self:
        """Return the settings that have these `numbers` and `flags`: the reverse of these two.

        Raises MetadataError for what the constructor refuses, and where a level has a threshold, min or max but no
        range.
        """
        is_gt, *switches = flags
        return cls(
            stats=CalibrationStats(image=_level("image", numbers), pixel=_level("pixel", numbers)),
            image_sensitivity=numbers["image_sensitivity"],
            pixel_sensitivity=numbers["pixel_sensitivity"],
            comparison="gt" if is_gt else "ge",
            **dict(zip(SWITCHES, map(bool, switches), strict=True)),
        )


def _level(level: Level, numbers: Mapping[str, Any]) -> LevelStats | None:
    values = {name: numbers[f"{level}_{name}"] for name in STATISTICS}
    given = {name: value for name, value in values.items() if value is not None and value == value}  # NaN is not itself
    if not given:
        return None
    if not {"min", "max"} <= set(given):
        raise MetadataError(
            f"the {level} level has no range",
            found=", ".join(f"{name} {value}" for name, value in given.items()),
            needed="min and max beside it, or none of the three",
        )
    try:
        return LevelStats(**{"threshold": None, **given})
    except MetadataError as error:
        what = f"the {level} level: {error.what}"
        raise MetadataError(what, found=error.found, needed=error.needed, fix=error.fix) from error


_OPTIONS: Final = ("comparison", *SWITCHES)
_BOUNDARIES: Final = tuple(f"{level}_boundary" for level in LEVELS)
_NARROW_BOUNDARIES: Final = tuple(f"{boundary}_{dtype}" for boundary in _BOUNDARIES for dtype in HALVES)
_DERIVED: Final = (*_BOUNDARIES, *_NARROW_BOUNDARIES)
_HALVES: Final[dict[torch.dtype, Half]] = {torch.float16: "float16", torch.bfloat16: "bfloat16"}


class PostProcessed(NamedTuple):
    """What a `PostProcessor` returns; None where there is nothing to return.

    Parameters
    ----------
    pred_score
        float32, the shape of the raw score, in [0, 1] or NaN; the raw score where the image level is not calibrated.
    pred_label
        bool, the shape of `pred_score`, True is anomalous.
    anomaly_map
        float32, the shape of the raw map, in [0, 1] or NaN; the raw map where the pixel level is not calibrated.
    pred_mask
        bool, the shape of `anomaly_map`, True is anomalous.
    """

    pred_score: Tensor | None
    pred_label: Tensor | None
    anomaly_map: Tensor | None
    pred_mask: Tensor | None


# torch.export.save() names the class of the outputs in its file
_register_namedtuple(PostProcessed, serialized_type_name=f"{__name__}.PostProcessed")


class PostProcessor(torch.nn.Module):
    """Normalise raw scores and maps to [0, 1], and decide on the raw values.

    Raises
    ------
    MetadataError
        If the statistics, a sensitivity, or a boundary that follows from them is not legal.
    UsageError
        If the comparison is not known, or an option is of another type.

    Notes
    -----
    Statistics and sensitivities are float32 buffers (``image_threshold``, ``image_min``, ``image_max``,
    ``image_sensitivity``, the same for ``pixel``; NaN where a level has none) and stay float32 under ``half()`` and the
    like. Assign to change one (``module.image_sensitivity = 0.3``, ``module.stats = ...``): the boundaries follow, and
    what is not legal is refused and changes nothing. Writing into a buffer in place is not noticed.
    The state dict holds everything that decides: these buffers, the comparison and the switches.
    Raw values in float16 or bfloat16 are compared with the constant for that type, which decides alike before and after
    the rounding to it: runtimes drop that rounding in an exported graph. Hand them over as they are, without a cast of
    your own: the type is known by them alone.
    Source: docs/definition.md sections 3 to 6; the scores have the bits of anomalib 2.7.0 PostProcessor on a CPU.
    """

    comparison: Comparison
    enable_normalization: bool
    enable_thresholding: bool
    enable_threshold_matching: bool
    nan_guard: bool

    @method_like(EagerOptions)
    def __init__(self, **given: Any) -> None:
        super().__init__()
        self._is_loading = False
        settings = Settings(**{**given, "stats": as_stats(given.get("stats"))})
        for name in (*NUMBERS, *_DERIVED):
            self.register_buffer(name, torch.empty((), dtype=torch.float32), persistent=name in NUMBERS)
        self.register_buffer("flags", torch.empty(len(_OPTIONS), dtype=torch.uint8))
        self._adopt(settings)

    @property
    def stats(self) -> CalibrationStats:
        """The statistics; assign to replace those of both levels."""
        return self._settings.stats

    def forward(self, pred_score: Tensor | None = None, anomaly_map: Tensor | None = None) -> PostProcessed:
        """Post-process one batch.

        Parameters
        ----------
        pred_score
            Raw scores of any float type, shape [], [N] or [N, 1]; None if the model has only a map.
        anomaly_map
            Raw maps of any float type, shape [N, H, W] or [N, 1, H, W]; None if the model has only a score.

        Raises
        ------
        UsageError
            If both are None, or one is no tensor.
        UnsupportedModelError
            If a shape is another one, or the batch sizes differ. Dynamic sizes are not checked while a graph is traced.
        """
        _check_inputs(pred_score, anomaly_map)
        score = self._image_score(pred_score, anomaly_map) if "image" in self._settings.boundaries else pred_score
        given = anomaly_map if pred_score is None else pred_score  # `score` may be float32 already
        return PostProcessed(
            *self._post_process("image", score, given), *self._post_process("pixel", anomaly_map, anomaly_map)
        )

    def _image_score(self, score: Tensor | None, raw_maps: Tensor | None) -> Tensor | None:
        if raw_maps is None:
            return score
        maps = raw_maps.to(torch.float32)
        if score is None:
            score = maps.amax(dim=(-2, -1))
        if not self.nan_guard:
            return score
        # amax keeps NaN by itself, but the ReduceMax that an exporter makes of it does not
        holds_nan = torch.isnan(maps).flatten(1).any(dim=1)
        return score.to(torch.float32).masked_fill(holds_nan.reshape(score.shape), float("nan"))

    def _post_process(
        self, level: Level, raw: Tensor | None, given: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        if raw is None or given is None or level not in self._settings.boundaries:
            return raw, None
        values, half = raw.to(torch.float32), _HALVES.get(given.dtype)
        below = values < self.get_buffer(f"{level}_boundary" if half is None else f"{level}_boundary_{half}")
        return (
            self._unit(level, values) if self.enable_normalization else values,
            torch.logical_not(below) if self.enable_thresholding else None,  # so that NaN is anomalous
        )

    def _unit(self, level: Level, values: Tensor) -> Tensor:
        threshold = self.get_buffer(self._settings.threshold_of(level))
        span = self.get_buffer(f"{level}_max") - self.get_buffer(f"{level}_min")
        return ((values - threshold) / span + 0.5).clamp(0.0, 1.0)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "stats":
            self._adopt(replace(self._settings, stats=as_stats(value)))
        elif name in (*SENSITIVITIES, *_OPTIONS):
            self._adopt(replace(self._settings, **{name: _plain(value)}))
        elif name in NUMBERS and not self._is_loading:
            numbers = {**self._settings.numbers, name: _plain(value)}
            self._adopt(Settings.from_state(numbers, self._settings.flags))
        else:
            super().__setattr__(name, value)

    def _adopt(self, settings: Settings) -> None:
        boundaries = {f"{level}_boundary": boundary for level, boundary in settings.boundaries.items()}
        boundaries |= {f"{name}_{half}": narrowed(value, half) for name, value in boundaries.items() for half in HALVES}
        device = self.get_buffer("flags").device
        for name, value in {**dict.fromkeys(_DERIVED, float("nan")), **settings.numbers, **boundaries}.items():
            self._buffers[name] = torch.tensor(value, dtype=torch.float32, device=device)
        self._buffers["flags"] = torch.tensor(settings.flags, dtype=torch.uint8, device=device)
        for name in _OPTIONS:
            object.__setattr__(self, name, getattr(settings, name))
        self._settings = settings

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        own = {id(self.get_buffer(name)) for name in (*NUMBERS, *_DERIVED)}

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            # half() and the like would round the statistics; only the device is taken over
            return tensor.to(moved.device) if id(tensor) in own and moved.dtype != tensor.dtype else moved

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        own = {name: state_dict[prefix + name] for name in (*NUMBERS, "flags") if prefix + name in state_dict}
        settings = None
        shapes = {name: self.get_buffer(name).shape for name in own}
        if all(isinstance(value, Tensor) and value.shape == shapes[name] for name, value in own.items()):
            # else torch says what does not fit
            flags = own.pop("flags").tolist() if "flags" in own else self._settings.flags
            numbers = {**self._settings.numbers, **{name: _plain(value) for name, value in own.items()}}
            settings = Settings.from_state(numbers, flags)  # what is not legal is refused before anything is copied
        self._is_loading = True  # torch assigns one buffer after the other; they are judged as a whole
        try:
            super()._load_from_state_dict(state_dict, prefix, *args)
        finally:
            self._is_loading = False
        self._adopt(settings or self._settings)

    def extra_repr(self) -> str:
        """Return the options and, per calibrated level, the threshold and the boundary."""
        return self._settings.describe()


def _plain(value: object) -> Any:
    return value.item() if isinstance(value, Tensor) and value.ndim == 0 else value


def _check_inputs(score: Tensor | None, anomaly_map: Tensor | None) -> None:
    if score is None and anomaly_map is None:
        raise UsageError("nothing to post-process", needed="pred_score, anomaly_map or both")
    for name, raw in (("pred_score", score), ("anomaly_map", anomaly_map)):
        if raw is not None and not isinstance(raw, Tensor):
            raise UsageError(f"{name} is no tensor", found=type(raw).__name__, fix="torch.as_tensor(...)")
    check_shapes(None if score is None else score.shape, None if anomaly_map is None else anomaly_map.shape)
