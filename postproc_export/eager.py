"""The eager reference in PyTorch: what every exported tail is compared with."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import _register_namedtuple

from postproc_export.errors import UsageError, require
from postproc_export.float32 import HALVES, Half, narrowed
from postproc_export.options import NUMBERS, SENSITIVITIES, SWITCHES, EagerOptions, Settings, with_decision
from postproc_export.ports import check_shapes
from postproc_export.stats import LEVELS, CalibrationStats, Comparison, Level, as_stats
from postproc_export.validation import method_like

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
        stats, given, _ = with_decision(as_stats(given.get("stats")), given)
        if given.pop("match_thresholds", False):  # as files call it
            given.setdefault("enable_threshold_matching", True)
        settings = Settings(**{**given, "stats": stats})
        for name in (*NUMBERS, *_DERIVED):
            self.register_buffer(name, torch.empty((), dtype=torch.float32), persistent=name in NUMBERS)
        self.register_buffer("flags", torch.empty(len(_OPTIONS), dtype=torch.uint8))
        self._adopt(settings)

    @property
    def stats(self) -> CalibrationStats:
        """The statistics; assign to replace those of both levels."""
        return self._settings.stats

    def forward(self, pred_score: Any = None, anomaly_map: Tensor | None = None) -> PostProcessed:
        """Post-process one batch.

        Parameters
        ----------
        pred_score
            Raw scores of any float type, shape [], [N] or [N, 1]; None if the model has only a map. Or all of the
            batch: an object with both as attributes of these names, such as Anomalib's `InferenceBatch`.
        anomaly_map
            Raw maps of any float type, shape [N, H, W] or [N, 1, H, W]; None if the model has only a score.

        Raises
        ------
        UsageError
            If both are None, or one is no tensor.
        UnsupportedModelError
            If a shape is another one, or the batch sizes differ. Dynamic sizes are not checked while a graph is traced.
        """
        if anomaly_map is None and hasattr(pred_score, "pred_score") and hasattr(pred_score, "anomaly_map"):
            pred_score, anomaly_map = pred_score.pred_score, pred_score.anomaly_map
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
        own = [self.get_buffer(name) for name in (*NUMBERS, *_DERIVED)]
        super()._apply(keeping_types(own, fn), recurse)  # type: ignore[no-untyped-call]
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


def keeping_types(own: Iterable[Tensor], fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return `fn`, which a module applies to its tensors, with the type of some kept: only their device is taken over.

    `half()` and the like would round statistics.
    """
    kept = {id(tensor) for tensor in own}

    def move(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        return tensor.to(moved.device) if id(tensor) in kept and moved.dtype != tensor.dtype else moved

    return move


def _plain(value: object) -> Any:
    return value.item() if isinstance(value, Tensor) and value.ndim == 0 else value


def _check_inputs(score: Tensor | None, anomaly_map: Tensor | None) -> None:
    if score is None and anomaly_map is None:
        raise UsageError("nothing to post-process", needed="pred_score, anomaly_map or both")
    for name, raw in (("pred_score", score), ("anomaly_map", anomaly_map)):
        if raw is not None and not isinstance(raw, Tensor):
            raise UsageError(f"{name} is no tensor", found=type(raw).__name__, fix="torch.as_tensor(...)")
    check_shapes(None if score is None else score.shape, None if anomaly_map is None else anomaly_map.shape)


def as_tensor(values: NDArray[Any]) -> Tensor:
    """Return an array as a tensor of the same type; torch does not take bfloat16 from NumPy."""
    array = np.require(values, requirements=["C", "W"])
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def on_arrays(
    module: Callable[..., Iterable[Tensor | None]], *given: NDArray[Any] | None
) -> tuple[NDArray[Any] | None, ...]:
    """Return what a module gives for arrays, as arrays; None stays None on the way in and out."""
    with torch.inference_mode():
        made = module(*(None if each is None else as_tensor(each) for each in given))
    return tuple(None if each is None else _as_array(each) for each in made)


def _as_array(tensor: Tensor) -> NDArray[Any]:
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()
    bfloat16 = require("ml_dtypes", purpose="values in bfloat16").bfloat16
    return tensor.view(torch.int16).numpy().view(bfloat16)
