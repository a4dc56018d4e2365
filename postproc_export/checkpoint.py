"""Statistics in PyTorch checkpoints, those of the calibration callback and of Anomalib, as documents of ours.

Nothing in a checkpoint is run: it is read with ``weights_only=True``, and what would have to be run is refused.
"""

import json
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from math import isfinite, isinf
from pathlib import Path
from typing import Any, Final

import numpy as np

from postproc_export.errors import FileError, MetadataError, UsageError, require
from postproc_export.policies import MEBIN
from postproc_export.validation import check_file, shown

CALLBACK: Final = "CalibrationCallback"
"""What the names of the states begin with that the calibration callback leaves in a checkpoint."""

CONFIG: Final = "anomalib_post_processor_config"
"""In a checkpoint of Anomalib from 2.7 on: the options of its post-processor."""

OWN: Final = "postproc_export"
"""In these options: what our post-processor adds, where Anomalib's looks past."""

_LEVELS: Final = ("image", "pixel")
_NUMBERS: Final = ("threshold", "min", "max")
_SWITCHES: Final = ("enable_normalization", "enable_thresholding")
_RECORDED: Final = ("comparison", "nan_guard")  # by our post-processor alone
_LAST: Final = "_image_threshold"  # what the key of this buffer ends with, whatever the post-processor is called
_VALIDATE: Final = "validate with Engine.validate(model, ...) and save it again, or calibrate with postproc-export"
_SHOWN: Final = 4
_LONGEST: Final = 200  # characters of somebody else's error

_ENUMS: Final = (
    "anomalib.LearningType",
    "anomalib.PrecisionType",
    "anomalib.TaskType",
    "anomalib.models.components.classification.kde_classifier.FeatureScalingMethod",
    "anomalib.models.image.csflow.anomaly_map.AnomalyMapMode",
    "anomalib.models.image.efficient_ad.torch_model.EfficientAdModelSize",
    "anomalib.models.image.reverse_distillation.anomaly_map.AnomalyMapGenerationMode",
    "anomalib.models.image.vlm_ad.utils.ModelName",
)
"""Enumerations of Anomalib in the options of its models. They become texts: Anomalib itself is not imported."""


def buffer_of(level: str, name: str) -> str:
    """Return what Anomalib's post-processor calls the buffer of a number of a level."""
    return f"_{level}_{name}" if name == "threshold" else f"{level}_{name}"


def load_checkpoint(path: Path) -> Any:
    """Return what a checkpoint holds; nothing in it is run, and tensors stay on the disk until they are looked at.

    Raises FileError if it cannot be read as plain data, and MissingDependencyError if torch is not installed.
    """
    check_file(path, what="the checkpoint")
    torch = require("torch", purpose=f"reading the checkpoint {path}", extra="torch")
    try:
        with torch.serialization.safe_globals([*_harmless()]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises what unzipping and unpickling raise, and errors of its own
        what = f"the checkpoint {path} cannot be read"
        if not _is_pickled(path):
            needed, fix = "a checkpoint as torch.save writes it", "give the .ckpt or .pt file"
            raise FileError(what, found="neither an archive nor a pickle", needed=needed, fix=fix) from error
        if not isinstance(error, pickle.UnpicklingError):
            found = str(error).partition("\n")[0].partition(". ")[0][:_LONGEST] or type(error).__name__
            fix = "copy it again: it is damaged or cut off"
            raise FileError(what, found=found, needed="a checkpoint as torch.save writes it", fix=fix) from error
        code = _code_in(path, torch)
        more = f" and {len(code) - _SHOWN} more" if code[_SHOWN:] else ""
        raise FileError(
            f"{what} without running code that it holds",
            found=f"pickled {', '.join(code[:_SHOWN]) or 'objects'}{more}",
            needed="tensors, numbers and texts alone",
            fix="where you trust it, torch.save(torch.load(path, weights_only=False)['state_dict'], 'state.pt'), and "
            "give state.pt",
        ) from error


def _is_pickled(path: Path) -> bool:
    """Return whether a file begins as torch.save begins one; an empty or cut off one may have."""
    with path.open("rb") as stream:
        start = stream.read(2)
    return start in (b"", b"P", b"PK") or start[:1] == b"\x80"


def _harmless() -> Iterator[tuple[Callable[..., object], str] | type]:
    """Yield what a checkpoint may name besides tensors: enumerations, and what holds numbers of NumPy."""
    yield from ((str, name) for name in _ENUMS)
    scalar, array = np.float64(0).__reduce__()[0], np.empty(0).__reduce__()[0]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        yield scalar, f"{module}.scalar"  # type: ignore[misc]
        yield array, f"{module}._reconstruct"  # type: ignore[misc]
    yield from (np.dtype, np.ndarray, type(np.dtype(np.float64)))


def _code_in(path: Path, torch: Any) -> list[str]:
    """Return what a checkpoint would have imported and called; none where it cannot be taken apart."""
    try:
        with torch.serialization.safe_globals([*_harmless()]):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # it is damaged, or older than these archives: then the first error has to do
        return []


def callback_statistics(checkpoint: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the documents that calibration callbacks left in a checkpoint, and the names of all their states."""
    found = _part(checkpoint, "callbacks")
    states = {key: _part(found, key) for key in found if str(key).startswith(CALLBACK)}
    kept = {key: document for key, state in states.items() if (document := _part(state, "statistics"))}
    return kept, tuple(states)


def _part(whole: Any, key: Any) -> Mapping[Any, Any]:
    """Return what stands under a key of a mapping, if both are mappings; else an empty one."""
    part = whole.get(key) if isinstance(whole, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def statistics_document(path: Path) -> dict[str, Any]:
    """Return the statistics in a checkpoint in the form of the statistics file, with what it says of the decision.

    Raises what `load_checkpoint` raises, UsageError if there are those of several callbacks, and MetadataError if there
    are none, or none that one threshold for a level tells.
    """
    checkpoint = load_checkpoint(path)
    kept, _ = callback_statistics(checkpoint)
    if len(kept) > 1:
        fix = (
            "checkpoint_statistics(path, image_policy=..., pixel_policy=...) of postproc_export.integrations.lightning"
        )
        raise UsageError(f"{path} has the statistics of several callbacks", found=", ".join(kept), fix=fix)
    if kept:
        (recorded,) = kept.values()
        document = {**recorded, "read_from": {"kind": "checkpoint of a calibration callback", "file": path.name}}
    else:
        document = _of_anomalib(path, checkpoint)
    try:
        json.dumps(document, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise MetadataError(f"{path}: its statistics are not legal", found=str(error), needed="JSON values") from error
    return document


def _of_anomalib(path: Path, checkpoint: Any) -> dict[str, Any]:
    state, config = _part(checkpoint, "state_dict") or _part({"": checkpoint}, ""), _part(checkpoint, CONFIG)
    if "min_interval_len" in config:
        raise MetadataError(
            f"{path}: its masks are decided by MEBin",
            found=MEBIN,
            needed="one threshold for all images: no operator of ONNX or OpenVINO counts connected parts",
            fix="validate it with Anomalib's PostProcessor, or calibrate its raw outputs with postproc-export",
        )
    major, keys = _keys(path, state)
    levels = {level: _level(path, level, state, keys, major) for level in _LEVELS}
    if all(found is None or found["threshold"] is None for found in levels.values()):
        rows = [f"{key} {_number(path, state, key)}" for key in keys["image"].values()]
        raise MetadataError(f"{path} is not calibrated", found=", ".join(rows), needed="a threshold", fix=_VALIDATE)
    own = _part(config, OWN)
    recorded = _part(own, "stats")  # by our post-processor: all that its validation found
    levels = {level: _same(found, recorded.get(level)) for level, found in levels.items()}
    source = {
        "kind": f"checkpoint of Anomalib {major}",
        "file": path.name,
        "notes": [*_unknown(config, own, major, is_recorded=bool(recorded))],
    }
    return {"schema_version": 1, **recorded, **levels, "decision": _decision(path, config, levels), "read_from": source}


def _keys(path: Path, state: Mapping[Any, Any]) -> tuple[int, dict[str, dict[str, str]]]:
    """Return which Anomalib has saved a state, and the key of each number by level."""
    starts = sorted(str(key).removesuffix(_LAST) for key in state if str(key).endswith(_LAST))
    if len(starts) > 1:
        found, fix = ", ".join(starts), "save the state_dict() of one of them by itself"
        raise MetadataError(f"{path} holds several post-processors", found=found, needed="one", fix=fix)
    if starts:
        return 2, {level: {name: starts[0] + buffer_of(level, name) for name in _NUMBERS} for level in _LEVELS}
    if "image_threshold.value" in state:
        parts = {"image": "pred_scores.", "pixel": "anomaly_maps."}
        if "normalization_metrics.min" in state:  # of 0.x: one range for both levels
            parts = dict.fromkeys(_LEVELS, "")
        ends = {
            level: {end: f"normalization_metrics.{part}{end}" for end in _NUMBERS[1:]} for level, part in parts.items()
        }
        return 1, {level: {"threshold": f"{level}_threshold.value", **ends[level]} for level in _LEVELS}
    names = ", ".join(map(str, [*state][:_SHOWN])) or "no tensors"
    raise MetadataError(
        f"{path} holds no statistics that are known",
        found=f"{names}{', ...' if len(state) > _SHOWN else ''}",
        needed=f"the buffers of Anomalib's post-processor, such as post_processor.{_LAST}, or a calibration callback's",
        fix="postproc-export calibrate MODEL --images FOLDER -o stats.json, where MODEL is the exported model",
    )


def _number(path: Path, state: Mapping[Any, Any], key: str) -> float:
    """Return a number of a state; NaN where it is not there."""
    value = state.get(key, float("nan"))
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MetadataError(f"{path}: '{key}' is not one number", found=shown(value)) from error


def _level(
    path: Path, level: str, state: Mapping[Any, Any], keys: Mapping[str, Mapping[str, str]], major: int
) -> dict[str, Any] | None:
    """Return the numbers of a level; None where it was not calibrated."""
    numbers = {name: _number(path, state, key) for name, key in keys[level].items()}
    threshold, *ends = numbers.values()
    # Anomalib 1 begins with a threshold of 0.5, and copies that of the images to the pixels where there are no masks.
    is_none = not isfinite(threshold) or (major == 1 and (level == "pixel" or threshold == 0.5))
    if is_none and not any(map(isfinite, ends)):
        return None
    has_range = all(map(isfinite, ends))
    if not has_range or isinf(threshold):
        raise MetadataError(
            f"{path}: the {level} level has no {'finite threshold' if has_range else 'range'}",
            found=", ".join(f"{keys[level][name]} {number}" for name, number in numbers.items()),
            needed="finite numbers" if has_range else "min and max, which Anomalib finds where it normalises",
            fix=_VALIDATE,
        )
    return {**numbers, "threshold": threshold if isfinite(threshold) else None, "rule": "anomalib"}


def _same(level: dict[str, Any] | None, recorded: Any) -> dict[str, Any] | None:
    """Return what was recorded of a level, where its numbers are still those of the buffers."""
    if level is None or not isinstance(recorded, Mapping):
        return level
    pairs = [(level[name], recorded.get(name)) for name in _NUMBERS]
    is_same = all(
        one is other or (isinstance(other, int | float) and one is not None and np.float32(one) == np.float32(other))
        for one, other in pairs
    )
    return dict(recorded) if is_same else level


def _decision(path: Path, config: Mapping[Any, Any], levels: Mapping[str, dict[str, Any] | None]) -> dict[str, Any]:
    """Return the options that a checkpoint holds, by the names of those of `attach`."""
    thresholds = {level: found["threshold"] for level, found in levels.items() if found is not None}
    names = [*(f"{level}_sensitivity" for level in thresholds), *_SWITCHES, *_RECORDED]
    decision = {name: config[name] for name in names if config.get(name) is not None}
    if None in thresholds.values() and config.get("enable_threshold_matching", True):
        decision["match_thresholds"] = True
    wrong = [name for name, value in decision.items() if not isinstance(value, bool | int | float | str)]
    if wrong:
        raise MetadataError(f"{path}: '{wrong[0]}' is not legal", found=shown(decision[wrong[0]]))
    return decision


def _unknown(config: Mapping[Any, Any], own: Mapping[Any, Any], major: int, *, is_recorded: bool) -> Iterator[str]:
    """Yield what the checkpoint does not say, and what was taken in its place."""
    if not own:
        how = "normalised > 1 - sensitivity" if major == 2 else "raw >= threshold"
        keeps = "; --comparison gt keeps its decisions" if major == 2 else ""
        yield f"the checkpoint does not say how it compares; Anomalib {major} does by {how}{keeps}"
    if not config:
        yield "the checkpoint holds no sensitivities and no switches"
    if own.get("is_whole") is False:
        yield "it was calibrated by a subclass, behind what that makes of raw values: attach behind the same"
    if not is_recorded:
        yield "the checkpoint does not say on how many images and pixels of each class it was calibrated"
    if "pixel_threshold_percentile" in config:
        yield (
            "its thresholds are SuperADD's, of pixels drawn at random; the policy percentile=Q,factor=F takes all of "
            "them"
        )
