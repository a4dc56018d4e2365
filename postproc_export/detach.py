"""Remove post-processing from a model file."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from postproc_export.files import default_target
from postproc_export.formats.base import Detached, Format, format_of
from postproc_export.options import FileOptions
from postproc_export.reading.found import nothing_found
from postproc_export.stats import Level


@dataclass(frozen=True, slots=True)
class DetachResult:
    """What was removed, and where the model without it was written; falsy where nothing was there to remove.

    Parameters
    ----------
    source
        The model that was read; for an IR the .xml.
    output
        The model that was written; None where there was nothing to remove, and so nothing was written.
    detached
        What was removed from which level, what could not be restored, or why nothing was found.
    """

    source: Path
    output: Path | None
    detached: Detached

    def __bool__(self) -> bool:
        return bool(self.detached)

    @property
    def is_original(self) -> bool:
        """Whether the model that was attached to came back as it was, by the file's own record."""
        return self.detached.is_original

    @property
    def renamed(self) -> Mapping[str, str]:
        """Names that values got back: {name in the source: name in the output}."""
        return self.detached.renamed

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be restored, and what a user should know."""
        return self.detached.notes

    def summary(self) -> str:
        """Return what was done, one fact a line."""
        if not self:
            return nothing_found(self.source, self.detached.misses, self.detached.outputs)
        lines = [f"removed post-processing from {self.source}", f"  written  {self.output}"]
        lines += [f"  {level:<8} {self._removed(level)}" for level in self.detached.tails]
        lines += [f"  with     {text}" for text in self.detached.own]
        lines += [f"  renamed  '{old}' is now '{new}'" for old, new in self.renamed.items()]
        if self.is_original:
            lines.append("  original its outputs, names and order are back as the file's record has them")
        lines += [f"  note     {note}" for note in self.notes]
        return "\n".join(lines)

    def _removed(self, level: Level) -> str:
        tail = self.detached.tails[level]
        kind = "Anomalib's post-processing" if not tail.is_ours else "the tail"
        count = len(set(tail.values))
        return f"{' and '.join(tail.outputs)}: {kind}, {count} operator{'s' if count > 1 else ''}"


def detach_postprocessing(
    model_path: str | Path,
    *,
    output: str | Path | None = None,
    in_place: bool = False,
    link_weights: bool = False,
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
    PostprocError, graph_patterns.GraphPatternError
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
    return DetachResult(source, target if detached else None, detached)


def detach_model(form: Format, model: Any, *, where: str) -> Detached:
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
