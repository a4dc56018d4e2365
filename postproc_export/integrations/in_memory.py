"""Attaching to a model that another program holds in memory: a step of its own compiler pipeline."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from postproc_export.graphs.attached import Attached
from postproc_export.settings import as_stats
from postproc_export.stats import CalibrationStats
from postproc_export.tail_options import TailOptions

if TYPE_CHECKING:
    from pathlib import Path

    import onnx


def attach_to_onnx(
    model: "onnx.ModelProto",
    stats: "CalibrationStats | str | Path",
    *,
    image_output: str | int | None = None,
    pixel_output: str | int | None = None,
    tail: str | Sequence[str] = (),
    **options: Any,
) -> Attached:
    """Append normalised scores, labels and masks to an ONNX model in memory, in place.

    Parameters
    ----------
    model
        A model with raw outputs; weights may be inline, external, or left out.
    stats
        Statistics, or the path of a statistics file.
    image_output, pixel_output
        Which output is the raw score and which the raw map; see `attach_postprocessing`.
    tail
        Tails of one's own around it; see `attach_postprocessing`.
    options
        The fields of `TailOptions`, such as ``image_sensitivity=0.6`` or ``keep_raw=True``.

    Returns
    -------
    Attached
        The tail, the record that is now in the model's metadata, and the values that had to be renamed.

    Raises
    ------
    PostprocError, graph_patterns.GraphPatternError
        If the model, the statistics or the options do not allow it; the model is as it was then.

    Notes
    -----
    The result equals, byte for byte, what `attach_postprocessing` makes of the same model in a file.
    """
    from postproc_export.transforms.around import attach_around
    from postproc_export.transforms.formats import OnnxFormat
    from postproc_export.transforms.spec import parse_tails

    specs, statistics, tail_options = parse_tails(tail), as_stats(stats), TailOptions(**options)
    # One layer may be in when the next is refused; without tails of one's own there is but one.
    target = type(model).FromString(model.SerializeToString()) if specs else model
    attached = attach_around(
        OnnxFormat(), target, statistics, tail_options, specs, image_output=image_output, pixel_output=pixel_output
    )
    if target is not model:
        model.CopyFrom(target)
    return attached


def attach_to_openvino(
    model: Any,
    stats: "CalibrationStats | str | Path",
    *,
    image_output: str | int | None = None,
    pixel_output: str | int | None = None,
    tail: str | Sequence[str] = (),
    **options: Any,
) -> Attached:
    """Append normalised scores, labels and masks to an `openvino.Model` in memory, in place.

    Parameters
    ----------
    model
        A model with raw outputs.
    stats, image_output, pixel_output, tail, options
        See `attach_to_onnx`.

    Raises
    ------
    PostprocError
        If the model, the statistics or the options do not allow it; the model is as it was then.

    Notes
    -----
    Save it with ``openvino.save_model(model, path, compress_to_fp16=False)``: compression would round the constants of
    the tail, too. To have the body compressed, compress before attaching.
    """
    from postproc_export.transforms.around import attach_around
    from postproc_export.transforms.formats import OpenVinoFormat
    from postproc_export.transforms.spec import parse_tails

    specs = parse_tails(tail)
    statistics, tail_options = as_stats(stats), TailOptions(**options)
    # Some refusals come when results are replaced already. A clone shares the weights: trying it costs next to nothing.
    for target in (model.clone(), model):
        attached = attach_around(
            OpenVinoFormat(),
            target,
            statistics,
            tail_options,
            specs,
            image_output=image_output,
            pixel_output=pixel_output,
        )
    return attached
