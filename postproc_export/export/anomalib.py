"""A model of Anomalib from its checkpoint, to be exported raw, and what its own post-processor decides."""

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from postproc_export.checkpoint import buffer_of, load_checkpoint
from postproc_export.errors import UsageError, require
from postproc_export.images.geometry import Size
from postproc_export.options import STATISTICS, SWITCHES
from postproc_export.runtimes import Array
from postproc_export.stats import LEVELS, CalibrationStats, Level
from postproc_export.tail import Tail
from postproc_export.torch_modules import reason_of
from postproc_export.validation import close_to

if TYPE_CHECKING:
    from torch.nn import Module

PREFIX: Final = "anomalib:"
_PURPOSE: Final = "exporting a model of Anomalib"
_LEFT_OUT: Final = {"evaluator": False, "visualizer": False, "pre_trained": False}  # the checkpoint has the weights


def load_anomalib(spec: str, checkpoint: Path) -> "tuple[Module, Module, Size | None]":
    """Return a model without its post-processor, that post-processor, and the size of its images where it has one.

    `spec` is ``anomalib:Name``, such as ``anomalib:Padim``: one of Anomalib's own models, and nothing that the
    checkpoint names. Raises UsageError if there is no such model or the checkpoint is not one of it, FileError if that
    holds code, and MissingDependencyError if Anomalib is not installed.
    """
    load_checkpoint(checkpoint)  # what would be run is refused before Anomalib reads it
    with _quiet():
        models: Any = require("anomalib.models", purpose=_PURPOSE)
        found = _model_class(spec, models)
        theirs: Any = require("anomalib.post_processing", purpose=_PURPOSE).PostProcessor()
        wanted = inspect.signature(found.__init__).parameters
        given = {name: value for name, value in _LEFT_OUT.items() if name in wanted} | {"post_processor": theirs}
        try:
            model = found.load_from_checkpoint(checkpoint, map_location="cpu", strict=True, **given)
        except Exception as error:  # of Anomalib, Lightning and torch: another model's weights, other options
            raise UsageError(
                f"{checkpoint} is no checkpoint of {spec}",
                found=reason_of(error)[:300],
                needed="a checkpoint of that model, as Anomalib's Engine writes it",
                fix="name the model that was trained",
            ) from error
        size = model.input_size
    model.post_processor = None
    return model.eval(), theirs, None if size is None else (int(size[0]), int(size[1]))


def checkpoint_statistics(checkpoint: Path, model: Any, size: Size) -> CalibrationStats:
    """Return the statistics in a checkpoint, with how images come to its model at this size of its input."""
    from postproc_export.integrations.anomalib import how_fed

    stats = CalibrationStats.load(checkpoint)
    return replace(stats, details={**stats.details, "preprocessing": how_fed(model.pre_processor, size).to_json()})


def anomalib_outputs(post_processor: Any, tail: Tail, raw: Mapping[Level, Array]) -> dict[str, Array]:
    """Return what Anomalib's post-processor makes of raw values, by the numbers and options of a tail.

    Where nothing is normalised there are no labels: Anomalib compares raw values with its normalised threshold there.
    """
    import torch

    batch: Any = require("anomalib.data", purpose=_PURPOSE).InferenceBatch
    for level in LEVELS:
        stats = tail.stats.level(level)
        for name in STATISTICS:
            value = getattr(stats, name, None)
            post_processor.get_buffer(buffer_of(level, name)).fill_(float("nan") if value is None else value)
        setattr(post_processor, f"{level}_sensitivity", tail.options.sensitivity(level))
    for name in SWITCHES[:2]:
        setattr(post_processor, name, getattr(tail.options, name))
    values = {level: torch.from_numpy(array) for level, array in raw.items()}
    with torch.no_grad():
        made = post_processor(batch(pred_score=values.get("image"), anomaly_map=values.get("pixel")))
    fields = {name: value.numpy() for name, value in made._asdict().items() if value is not None}
    return fields if tail.options.enable_normalization else {}


def _model_class(spec: str, models: Any) -> Any:
    name, base = spec.removeprefix(PREFIX), models.AnomalibModule
    known = {
        each.__name__: each
        for each in vars(models).values()
        if inspect.isclass(each) and issubclass(each, base) and each is not base
    }
    if name not in known:
        near = close_to(name, known)
        fix = f"{PREFIX}{near[0]}" if near else None
        raise UsageError(f"Anomalib has no model {name}", needed=", ".join(sorted(known)), fix=fix)
    return known[name]


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what Anomalib and what it imports log and warn of while they are loaded: one message says what is wrong."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
