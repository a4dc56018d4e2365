"""Remove post-processing from a model file."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from postproc_export.files import default_target
from postproc_export.formats.base import DetachResult, Format, format_of
from postproc_export.options import FileOptions


def detach_postprocessing(
    model_path: str | Path, *, output: str | Path | None = None, in_place: bool = False, link_weights: bool = False
) -> DetachResult:
    """Remove the post-processing of a model and give the raw outputs back.

    Parameters
    ----------
    model_path
        An ONNX file (.onnx) or an OpenVINO IR (.xml, its .bin beside it).
    output
        The file to write; default ``<name>.raw.onnx`` or ``<name>.raw.xml`` beside the input.
    in_place
        Allow `output` to be the input.
    link_weights
        Hard-link external data of an ONNX model into the folder of `output` instead of copying it.

    Returns
    -------
    DetachResult
        Falsy, and nothing is written, where the model has no post-processing that is known.

    Raises
    ------
    SharedValueError
        If something outside the tail reads one of its values; nothing is written then.
    PostprocError
        If the model or the files do not allow it.

    Notes
    -----
    What `attach_postprocessing` attached goes without a trace: an ONNX model is proto-equal to the original, an IR has
    the same operators, constants and names. Where the record was stripped, `notes` says what could not be restored.
    """
    source = Path(model_path)
    target = default_target(source, output, in_place=in_place, mark="raw")
    form = format_of(source)
    edit = partial(detach_model, form, where=str(source))
    detached = form.rewrite(source, target, edit, FileOptions(in_place=in_place, link_weights=link_weights))
    tails = {level: tail.apart() for level, tail in detached.tails.items()}
    return replace(detached, source=source, output=target if detached else None, tails=tails)


def detach_model(form: Format, model: Any, *, where: str) -> DetachResult:
    """Take the tail off a model in memory, with what stands around it; a falsy result's model is not to be written."""
    behind = form.take(model, "decision", where=where)
    detached = form.take(model, "tail", where=where)
    if not detached:
        return detached
    before = form.take(model, "transform", where=where)
    layers = (before, detached, behind)
    notes = dict.fromkeys(note for layer in layers for note in layer.notes)
    own = [spec.text for layer in layers if layer.record is not None for spec in layer.record.tails]
    is_original = detached.is_original and not notes
    return replace(detached, own=tuple(own), notes=tuple(notes), is_original=is_original)
