"""The post-processor for Anomalib: import it from here in place of Anomalib's own.

Importing this module imports anomalib, and lets `to_onnx`, `to_openvino` and `load_from_checkpoint` of Anomalib's
models know this post-processor; models with another one are exported and loaded as before.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import fields, replace
from functools import wraps
from pathlib import Path
from typing import Any, Final, Self

import torch

from postproc_export.attach import attach_postprocessing
from postproc_export.calibration import Calibrator
from postproc_export.checkpoint import CONFIG, OWN, buffer_of
from postproc_export.eager import PostProcessor as EagerPostProcessor
from postproc_export.eager import keeping_types
from postproc_export.errors import MetadataError, UsageError, require
from postproc_export.files import folder_made_for
from postproc_export.images import Preprocessing
from postproc_export.images.geometry import Size, resized_size
from postproc_export.integrations.lightning import CalibrationHooks, find_arrays
from postproc_export.options import STATISTICS, SWITCHES, DecisionOptions, EagerOptions, Settings
from postproc_export.policies import EXTREMES
from postproc_export.process import temporary_folder
from postproc_export.stats import LEVELS, CalibrationStats, Comparison, Level, check_comparison

_PURPOSE: Final = "the post-processor for Anomalib"
_BASE: Any = require("anomalib.post_processing", purpose=_PURPOSE).PostProcessor
_BATCH: Any = require("anomalib.data", purpose=_PURPOSE).InferenceBatch
_MODEL: Any = require("anomalib.models", purpose=_PURPOSE).AnomalibModule
_BY_LABELS: Any = require("anomalib.deploy", purpose=_PURPOSE).CompressionType.INT8_ACQ

_CALIBRATING: Final = ("image_policy", "pixel_policy", "image_range", "pixel_range")
_DECIDING: Final = ("image_sensitivity", "pixel_sensitivity", "comparison", *SWITCHES)

_log = logging.getLogger(__name__)


_BUFFERS: Final = {f"{level}_{name}": buffer_of(level, name) for level in LEVELS for name in STATISTICS}


class _Hooks(CalibrationHooks):
    """The calibration of a validation whose statistics go into buffers and checkpoints, and into no file."""

    package = "lightning"

    def _check_file(self, trainer: Any) -> None:
        """There is none."""

    def _file(self, trainer: Any) -> None:
        """There is none."""


class AnomalibPostProcessor(_BASE):  # type: ignore[misc]
    """Calibrate, normalise and decide in Anomalib as this project does, and export with its tail and record.

    Parameters
    ----------
    enable_normalization
        Normalise scores and maps; else they stay raw, and labels are decided all the same.
    enable_thresholding
        Give labels and masks.
    enable_threshold_matching
        Let a level that has a range but no threshold borrow the other level's.
    image_sensitivity, pixel_sensitivity
        In [0, 1]: at 0.5 the decision is ``raw >= threshold``.
    image_policy, pixel_policy
        Operating point of a level: ``f1``, ``fbeta=B``, ``recall=R``, ``precision=P``, ``fpr=F``, ``quantile=Q``,
        ``percentile=Q,factor=F``, ``value=T`` or ``range=U``.
    image_range, pixel_range
        What min and max of a level are: ``extremes``, or ``quantile=A,B`` of all its values.
    comparison
        ``ge`` decides as calibrated; ``gt`` exactly as Anomalib's code does.
    nan_guard
        Make an image anomalous, its score NaN, when its map holds a NaN.
    no_duplicates
        In several processes: vouches for a sampler of your own, that no sample reaches two processes.

    Raises
    ------
    PostprocError
        If an option is not legal; in a validation, if it cannot be calibrated on.

    Notes
    -----
    Both levels are calibrated in each validation, whatever is switched on, and never in a sanity check. A level that
    has no threshold stays raw, without labels. Thresholds and ranges are in the buffers of Anomalib's class, all else
    stands in the checkpoint where Anomalib's class does not look, so that either loads what the other saved.

    Override `transform` for a transform of your own in front of the decision: it is calibrated behind, and exported
    with the tail and its record. Whoever overrides `forward` gets it exported as it is, without a record.
    """

    def __init__(
        self,
        enable_normalization: bool = True,
        enable_thresholding: bool = True,
        enable_threshold_matching: bool = True,
        image_sensitivity: float = 0.5,
        pixel_sensitivity: float = 0.5,
        *,
        image_policy: str = "f1",
        pixel_policy: str = "f1",
        image_range: str = EXTREMES,
        pixel_range: str = EXTREMES,
        comparison: Comparison = "ge",
        nan_guard: bool = True,
        no_duplicates: bool = False,
    ) -> None:
        super().__init__(
            enable_normalization=enable_normalization,
            enable_thresholding=enable_thresholding,
            enable_threshold_matching=enable_threshold_matching,
            image_sensitivity=image_sensitivity,
            pixel_sensitivity=pixel_sensitivity,
        )
        for name in [name for name, _ in self.named_children()]:
            delattr(self, name)  # Anomalib's metrics, which keep every value they have seen
        self.image_policy, self.pixel_policy = image_policy, pixel_policy
        self.image_range, self.pixel_range = image_range, pixel_range
        self.comparison, self.nan_guard, self.no_duplicates = comparison, nan_guard, no_duplicates
        self._hooks: _Hooks | None = None  # while a validation runs
        self._calibrated: CalibrationStats | None = None  # of the last validation, with all that it recorded
        self._decided: tuple[Any, EagerPostProcessor | None] = (None, None)  # what decides, and by which numbers
        self._is_raw = False
        self._calibrator()
        self._settings()

    @property
    def stats(self) -> CalibrationStats:
        """The statistics in the buffers, with all that the validation recorded where they are still those of it.

        Raises MetadataError if a level has a threshold but no range, or numbers that are not legal.
        """
        stats = self._settings().stats
        known = self._calibrated
        if known is None:
            return stats
        levels = {
            level: known.level(level) if _numbers(known, level) == _numbers(stats, level) else stats.level(level)
            for level in LEVELS
        }
        return CalibrationStats(**levels, details=known.details)

    def transform(self, predictions: Any) -> Any:
        """Return what is calibrated, normalised and decided; by default what the model gave.

        Takes and returns an `InferenceBatch` with scores [N] or [N, 1] and maps [N, 1, H, W], raw, or None.
        """
        return predictions

    def forward(self, predictions: Any) -> Any:
        """Return an `InferenceBatch` with normalised scores and maps, labels and masks, of one with raw values.

        Raises UsageError if it has neither a score nor a map, and UnsupportedModelError if their shapes are not those
        of scores and maps.
        """
        raw = self.transform(predictions)
        if self._is_raw:
            return _BATCH(pred_score=raw.pred_score, anomaly_map=raw.anomaly_map)
        return _BATCH(**self._decider()(raw)._asdict())

    def post_process_batch(self, batch: Any) -> None:
        """Post-process a batch of `Engine.test` or `Engine.predict` by `forward`; labels of the model's own stay."""
        made = self(_raw(batch.pred_score, batch.anomaly_map))
        batch.pred_score, batch.anomaly_map = made.pred_score, made.anomaly_map
        for name in ("pred_label", "pred_mask"):
            if getattr(batch, name) is None:
                setattr(batch, name, getattr(made, name))

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin a calibration, and see which samples the processes share."""
        self._hooks = _Hooks(self._calibrator(), self._extract, None, self.no_duplicates)
        self._hooks.on_validation_epoch_start(trainer, pl_module)

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any, **kwargs: Any) -> None:
        """Count one batch."""
        self._running().on_validation_batch_end(trainer, pl_module, outputs, *args, **kwargs)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Put the statistics of the validation, over all processes, into the buffers."""
        hooks = self._running()
        hooks.on_validation_epoch_end(trainer, pl_module)
        self._close()
        if hooks.stats is not None:
            self._adopt(hooks.stats)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give memory and disk space back: after an error there is no teardown."""
        self._close()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Give memory and disk space back."""
        self._close()

    @property
    def state_key(self) -> str:
        """The name of the state in a Trainer's checkpoint: that of Anomalib's class, so that either takes it back."""
        return str(_BASE.__qualname__)

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        keys: tuple[str, ...] = super()._checkpoint_config_keys
        return (*keys, *_CALIBRATING, "comparison", "nan_guard")

    def checkpoint_config(self) -> dict[str, Any]:
        """Return the options as plain data, and all that the validation recorded, where Anomalib's class looks past."""
        recorded = None if self._calibrated is None else self._calibrated.to_json()
        kept = {"stats": recorded, "is_whole": type(self) is AnomalibPostProcessor}
        return {**super().checkpoint_config(), OWN: kept}

    def load_checkpoint_config(self, config: Mapping[str, Any]) -> None:
        """Take options and what was recorded from a checkpoint, ours or Anomalib's."""
        super().load_checkpoint_config(config)
        recorded = config.get(OWN, {}).get("stats")
        self._calibrated = recorded and CalibrationStats.from_json(recorded, where="the checkpoint")

    def extra_repr(self) -> str:
        """Return threshold, range, sensitivity and boundary of each level, and the options."""
        try:
            settings = self._settings()
        except MetadataError as error:
            return f"not legal: {error.what}"
        levels = [
            f"{level}: threshold {settings.numbers[settings.threshold_of(level)]:.6g}, "
            f"range {settings.numbers[f'{level}_min']:.6g} to {settings.numbers[f'{level}_max']:.6g}, "
            f"sensitivity {getattr(settings, f'{level}_sensitivity'):g}, boundary {boundary:.6g}"
            for level, boundary in settings.boundaries.items()
        ]
        options = [
            ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
            for names in (("comparison", *SWITCHES), _CALIBRATING)
        ]
        return "\n".join([*(levels or ["not calibrated"]), *options])

    def _calibrator(self) -> Calibrator:
        return Calibrator(**{name: getattr(self, name) for name in _CALIBRATING})

    def _running(self) -> _Hooks:
        if self._hooks is None:
            fix = "Engine.validate(model, ...); a callback of your own calls on_validation_epoch_start first"
            raise UsageError("no validation was begun", found="a batch, or the end of one", fix=fix)
        return self._hooks

    def _close(self) -> None:
        if self._hooks is not None:
            self._hooks.teardown(None, None, "")
        self._hooks = None

    def _extract(self, outputs: Any, batch: Any) -> dict[str, Any]:
        """Return what is calibrated of a batch: raw values behind `transform`, and ground truth."""
        found = find_arrays(outputs, batch)
        raw = self.transform(_raw(found.get("pred_score"), found.get("anomaly_map")))
        score, maps = raw.pred_score, raw.anomaly_map
        if score is None and maps is not None:
            score = maps.amax(dim=(-2, -1))
        return {**found, "pred_score": score, "anomaly_map": maps}

    def _adopt(self, stats: CalibrationStats) -> None:
        for level in LEVELS:
            of_level = stats.level(level)
            for name in STATISTICS:
                value = None if of_level is None else getattr(of_level, name)
                self.get_buffer(buffer_of(level, name)).fill_(float("nan") if value is None else value)
        self._calibrated = stats

    def _settings(self) -> Settings:
        values = torch.stack([self.get_buffer(name) for name in _BUFFERS.values()]).tolist()
        numbers = dict(zip(_BUFFERS, values, strict=True))
        has_threshold = any(numbers[f"{level}_threshold"] == numbers[f"{level}_threshold"] for level in LEVELS)
        sensitivities = {f"{level}_sensitivity": getattr(self, f"{level}_sensitivity") for level in LEVELS}
        switches = {name: getattr(self, name) for name in SWITCHES}
        if not has_threshold:  # then there is none to lend
            switches["enable_threshold_matching"] = False
        return Settings.from_state(
            {**numbers, **sensitivities}, [check_comparison(self.comparison) == "gt", *switches.values()]
        )

    def _decider(self) -> EagerPostProcessor:
        """Return what decides by the numbers as they are now; while a graph is exported, as they were before."""
        known, made = self._decided
        if made is not None and torch.compiler.is_exporting():
            return made
        buffers = torch.stack([self.get_buffer(name) for name in _BUFFERS.values()])
        asked = (buffers.cpu().numpy().tobytes(), *(getattr(self, name) for name in _DECIDING), buffers.device)
        if made is None or asked != known:
            made = EagerPostProcessor(**_options(EagerOptions, self._settings())).to(buffers.device)
            self._decided = (asked, made)
        return made

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        own = [self.get_buffer(name) for name in _BUFFERS.values()]
        super()._apply(keeping_types(own, fn), recurse)
        return self

    def export(self, write: Callable[[Path], Path], root: Path, *, fed: Preprocessing, is_fixed: bool) -> Path:
        """Return a file below `root` with the model that `write` exports raw, and the tail with its record attached.

        `write` takes a folder and returns a file in it; `fed` is how images come to its input, whose height and width
        are fixed or open.

        Raises UsageError if nothing was calibrated, and what `attach_postprocessing` raises; no file is written then.
        """
        settings, stats = self._settings(), self.stats
        if not settings.boundaries:
            fix = "Engine.validate(model, ...), or post_processor=False for a model without post-processing"
            raise UsageError("the post-processor is not calibrated, so that there is nothing to export", fix=fix)
        stats = replace(stats, details={**stats.details, "preprocessing": fed.to_json()})
        idle = {f"{level}_sensitivity" for level in LEVELS if level not in settings.boundaries}
        if not settings.enable_thresholding:
            idle |= {"image_sensitivity", "pixel_sensitivity", "comparison"}
        is_full = len(settings.boundaries) == len(LEVELS) and settings.enable_normalization
        with temporary_folder() as folder:
            self._is_raw = True
            try:
                raw = write(folder)
            finally:
                self._is_raw = False
            target = root / raw.relative_to(folder)
            with folder_made_for(target):
                attached = attach_postprocessing(
                    raw,
                    stats,
                    output=target,
                    match_thresholds=settings.enable_threshold_matching,
                    model_info=is_fixed and is_full and settings.enable_thresholding,
                    **{name: value for name, value in _options(DecisionOptions, settings).items() if name not in idle},
                )
        _log.info("attached to %s: %s", target, "; ".join(attached.notes))
        return target


PostProcessor = AnomalibPostProcessor
"""By the name that Anomalib has, so that one import is all that changes."""


def _raw(score: Any, maps: Any) -> Any:
    """Return what a model gave, of a batch in which Anomalib has taken the channel axis out of the maps."""
    return _BATCH(pred_score=score, anomaly_map=maps[:, None] if maps is not None and maps.ndim == 3 else maps)


def _options(options: type[DecisionOptions], settings: Settings) -> dict[str, Any]:
    return {item.name: getattr(settings, item.name) for item in fields(options)}


def _numbers(stats: CalibrationStats, level: Level) -> list[float | None] | None:
    of_level = stats.level(level)
    return None if of_level is None else [getattr(of_level, name) for name in STATISTICS]


def _exporting(original: Callable[..., Path]) -> Callable[..., Path]:
    """Return an exporting method of Anomalib's models that gives models with our post-processor its tail."""

    @wraps(original)
    def export(model: Any, export_root: Path | str, *args: Any, **kwargs: Any) -> Path:
        own = model.post_processor
        is_ours = isinstance(own, AnomalibPostProcessor) and type(own).forward is AnomalibPostProcessor.forward
        if not is_ours or own._is_raw or not (own.enable_normalization or own.enable_thresholding):
            return original(model, export_root, *args, **kwargs)
        given = inspect.signature(original).bind(model, export_root, *args, **kwargs).arguments
        size = given.get("input_size")
        is_judged = given.get("compression_type") == _BY_LABELS

        def write(folder: Path) -> Path:
            with _judging(own) if is_judged else nullcontext():
                return original(model, folder, *args, **kwargs)

        target: Path = own.export(
            write, Path(export_root), fed=how_fed(model.pre_processor, size), is_fixed=size is not None
        )
        return target

    return export


@contextmanager
def _judging(own: AnomalibPostProcessor) -> Iterator[None]:
    """Let NNCF's accuracy control see what the tail decides: the model that it quantises has no labels yet."""
    nncf: Any = require("nncf", purpose=f"quantising with {_BY_LABELS.name}")
    quantize = nncf.quantize_with_accuracy_control
    decider = EagerPostProcessor(**_options(EagerOptions, own._settings()))

    def decided(outputs: Mapping[str, Any]) -> dict[str, Any]:
        raw = {name: torch.from_numpy(outputs[name]) for name in ("pred_score", "anomaly_map") if name in outputs}
        return {name: value.numpy() for name, value in decider(**raw)._asdict().items() if value is not None}

    def quantize_raw(model: Any, calibration: Any, validation: Any, judge: Callable[..., Any], **options: Any) -> Any:
        def judge_decided(candidate: Any, batches: Any) -> Any:
            return judge(lambda images: decided(candidate(images)), batches)

        return quantize(model, calibration, validation, judge_decided, **options)

    nncf.quantize_with_accuracy_control = quantize_raw
    try:
        yield
    finally:
        nncf.quantize_with_accuracy_control = quantize


def how_fed(pre_processor: Any, size: Size | None) -> Preprocessing:
    """Return how images come to a model that pre-processes them in its graph, at the size of its input or at any.

    For any size that is what it resizes them to, so that its own resizing, in a graph without antialiasing, does
    nothing. What it crops stands in its record, since the map covers no more.
    """
    own = Preprocessing(resize="none")
    if getattr(pre_processor, "transform", None) is not None:
        try:
            own = Preprocessing.from_transforms(pre_processor)
        except UsageError as error:
            _log.warning("%s; the map is taken to cover the whole image", error.what)
    if own.resize == "none" or own.size is None:
        return Preprocessing(size=size, map_crop=own.crop)
    if size is None:
        return Preprocessing(resize=own.resize, size=own.size, interpolation=own.interpolation, map_crop=own.crop)
    inside = resized_size(size, own.resize, own.size)
    covered = own.crop and (round(own.crop[0] * size[0] / inside[0]), round(own.crop[1] * size[1] / inside[1]))
    return Preprocessing(size=size, interpolation=own.interpolation, map_crop=covered)


_is_open: ContextVar[bool] = ContextVar("_is_open", default=False)  # while a model is loaded as it comes


def _loading(original: Callable[..., Any]) -> Any:
    @wraps(original)
    def load_from_checkpoint(cls: Any, *args: Any, **kwargs: Any) -> Any:
        before = _is_open.set("post_processor" not in kwargs)
        try:
            return original(cls, *args, **kwargs)
        finally:
            _is_open.reset(before)

    return classmethod(load_from_checkpoint)


def _restoring(original: Callable[..., None]) -> Callable[..., None]:
    """Return a method that puts our post-processor where Anomalib makes its default, if the checkpoint is of ours.

    `Engine.export(ckpt_path=...)` loads in this way, and would decide by another rule. Of a subclass nothing is put:
    what a file names is not run.
    """

    @wraps(original)
    def on_load_checkpoint(model: Any, checkpoint: dict[str, Any]) -> None:
        kept = checkpoint.get(CONFIG, {}).get(OWN, {})
        if _is_open.get() and kept.get("is_whole") and type(model.post_processor) is _BASE:
            model.post_processor = AnomalibPostProcessor()
        original(model, checkpoint)

    return on_load_checkpoint


for _name in ("to_onnx", "to_openvino"):
    setattr(_MODEL, _name, _exporting(getattr(_MODEL, _name)))
_MODEL.load_from_checkpoint = _loading(_MODEL.load_from_checkpoint.__func__)
_MODEL.on_load_checkpoint = _restoring(_MODEL.on_load_checkpoint)
