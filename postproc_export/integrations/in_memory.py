"""Attaching to a model that another program holds in memory: a step of its own compiler pipeline."""

from typing import TYPE_CHECKING, Any

from postproc_export.rewrite.attached import Attached
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
    from postproc_export.rewrite.onnx_attach import attach_to_onnx_model

    return attach_to_onnx_model(
        model, as_stats(stats), TailOptions(**options), image_output=image_output, pixel_output=pixel_output
    )


def attach_to_openvino(
    model: Any,
    stats: "CalibrationStats | str | Path",
    *,
    image_output: str | int | None = None,
    pixel_output: str | int | None = None,
    **options: Any,
) -> Attached:
    """Append normalised scores, labels and masks to an `openvino.Model` in memory, in place.

    Parameters
    ----------
    model
        A model with raw outputs.
    stats, image_output, pixel_output, options
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
    from postproc_export.rewrite.openvino_attach import attach_to_openvino_model

    statistics, tail_options = as_stats(stats), TailOptions(**options)
    # Some refusals come when results are replaced already. A clone shares the weights: trying it costs next to nothing.
    for target in (model.clone(), model):
        attached = attach_to_openvino_model(
            target, statistics, tail_options, image_output=image_output, pixel_output=pixel_output
        )
    return attached
