"""Change what a model with post-processing decides: threshold, sensitivity, rule, statistics."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from postproc_export.boundary import Comparison
from postproc_export.files.targets import default_target, is_onnx
from postproc_export.graphs.detached import nearest_miss
from postproc_export.graphs.reading.level_report import shown
from postproc_export.graphs.state import Changes, State
from postproc_export.graphs.updated import Updated
from postproc_export.rewrite.counts import describe_counts
from postproc_export.stats import LEVELS, CalibrationStats, Level
from postproc_export.tail_options import Adjustable, LabelDtype, Layout, LevelChoice

_SHOWN_OPTIONS: Final = {
    "rule": "comparison",
    "layout": "layout",
    "levels": "levels",
    "scores": "enable_normalization",
    "labels": "enable_thresholding",
    "adjusted": "adjustable",
}


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """What was changed, and where the changed model was written; falsy where there was nothing to update.

    Parameters
    ----------
    source
        The model that was read; for an IR the .xml.
    output
        The model that was written; None where it has no post-processing, and so nothing was written.
    updated
        What it decided before and decides now.
    """

    source: Path
    output: Path | None
    updated: Updated

    def __bool__(self) -> bool:
        return bool(self.updated)

    @property
    def is_changed(self) -> bool:
        """Whether the model decides differently, or its outputs are others, than before."""
        return self.updated.is_changed

    @property
    def before(self) -> State:
        """What the source decides."""
        return self.updated.before

    @property
    def after(self) -> State:
        """What the output decides."""
        return self.updated.after

    def summary(self) -> str:
        """Return what was changed, one fact a line, in numbers."""
        if not self:
            return f"no post-processing found: {nearest_miss(self.updated.misses.values())}"
        if not self.is_changed:
            lines = [f"nothing changes in {self.source}: it decides so already"]
        else:
            lines = [f"updated post-processing of {self.source}"]
        lines += [f"  written  {self.output}", *self._lines()]
        return "\n".join(lines)

    def _lines(self) -> Iterator[str]:
        for level in LEVELS:
            yield from (f"  {level:<8} {line}" for line in self._level(level))
        for title, name in _SHOWN_OPTIONS.items():
            was, now = getattr(self.before.options, name), getattr(self.after.options, name)
            if was != now:
                yield f"  {title:<8} {_word(was)} -> {_word(now)}"
        guard = None if self.updated.tail is None else self.updated.tail.describe_guard()
        yield from (f"  guard    {text}" for text in (guard,) if text)
        yield from (f"  note     {note}" for note in self.updated.notes)

    def _level(self, level: Level) -> Iterator[str]:
        old, new = self.before.stats.level(level), self.after.stats.level(level)
        if new is None or not new.is_calibrated:
            return
        rows = (
            ("threshold", None if old is None else old.threshold, new.threshold),
            ("span", None if old is None else old.span, new.span),
            ("sensitivity", self.before.options.sensitivity(level), self.after.options.sensitivity(level)),
            ("boundary", self.before.boundary(level), self.after.boundary(level)),
        )
        for name, was, now in (row for row in rows if row[2] is not None):
            yield f"{name} {shown(now)}" if was == now else f"{name} {shown(was)} -> {shown(now)}"
        yield from describe_counts(level, new, self.before, self.after)


def update_postprocessing(
    model_path: str | Path,
    *,
    output: str | Path | None = None,
    stats: CalibrationStats | str | Path | None = None,
    image_threshold: float | None = None,
    pixel_threshold: float | None = None,
    normalized: bool = False,
    image_sensitivity: float | None = None,
    pixel_sensitivity: float | None = None,
    comparison: Comparison | None = None,
    label_dtype: LabelDtype | None = None,
    mask_dtype: LabelDtype | None = None,
    keep_raw: bool | None = None,
    nan_guard: bool | None = None,
    match_thresholds: bool | None = None,
    layout: Layout | None = None,
    levels: LevelChoice | None = None,
    enable_normalization: bool | None = None,
    enable_thresholding: bool | None = None,
    adjustable: Adjustable | None = None,
    as_parameters: bool | None = None,
    keep_dialect: bool = False,
    in_place: bool = False,
    link_weights: bool = False,
) -> UpdateResult:
    """Change what a model with post-processing decides; what is not given stays as it is.

    Parameters
    ----------
    model_path
        An ONNX file (.onnx) or an OpenVINO IR (.xml, its .bin beside it).
    output
        The file to write; default ``<name>.updated.onnx`` or ``<name>.updated.xml`` beside the input.
    stats
        Statistics, or the path of a statistics file, that take the place of those in the file.
    image_threshold, pixel_threshold
        New thresholds in raw units.
    normalized
        The thresholds are in normalised units instead, of the scores that the file gives now.
    image_sensitivity, pixel_sensitivity, comparison, label_dtype, mask_dtype, keep_raw, nan_guard, match_thresholds
        As in `attach_postprocessing`.
    layout, levels, enable_normalization, enable_thresholding, adjustable, as_parameters
        As in `attach_postprocessing`.
    keep_dialect
        Edit the constants of Anomalib's post-processing in place instead of putting ours there.
    in_place
        Allow `output` to be the input.
    link_weights
        Hard-link external data of an ONNX model into the folder of `output` instead of copying it.

    Returns
    -------
    UpdateResult
        Falsy, and nothing is written, where the model has no post-processing that is known.

    Raises
    ------
    PostprocError, graph_patterns.GraphPatternError
        If the model, the changes or the files do not allow it; nothing is written then.

    Notes
    -----
    Anomalib's post-processing is replaced by ours with the same threshold, span, sensitivity and rule (``gt``), so that
    nothing changes but what was asked for. Where its numbers are not in the file, its constants are edited in place.
    """
    source = Path(model_path)
    changes = Changes(
        stats=CalibrationStats.load(stats) if isinstance(stats, (str, Path)) else stats,
        image_threshold=image_threshold,
        pixel_threshold=pixel_threshold,
        normalized=normalized,
        image_sensitivity=image_sensitivity,
        pixel_sensitivity=pixel_sensitivity,
        comparison=comparison,
        label_dtype=label_dtype,
        mask_dtype=mask_dtype,
        keep_raw=keep_raw,
        nan_guard=nan_guard,
        match_thresholds=match_thresholds,
        layout=layout,
        levels=levels,
        enable_normalization=enable_normalization,
        enable_thresholding=enable_thresholding,
        adjustable=adjustable,
        as_parameters=as_parameters,
    )
    target = default_target(source, output, in_place=in_place, mark="updated", read=[stats])
    if is_onnx(source):
        from postproc_export.rewrite.onnx_file import rewrite_onnx_file
        from postproc_export.transforms.around import update_around
        from postproc_export.transforms.formats import OnnxFormat

        def on_onnx(model: Any) -> Updated:
            return update_around(OnnxFormat(), model, changes, keep_dialect=keep_dialect, where=str(source))

        updated = rewrite_onnx_file(source, target, on_onnx, in_place=in_place, link_weights=link_weights)
    else:
        from postproc_export.rewrite.openvino_file import rewrite_openvino_file
        from postproc_export.transforms.around import update_around
        from postproc_export.transforms.formats import OpenVinoFormat

        def on_openvino(model: Any) -> Updated:
            return update_around(OpenVinoFormat(), model, changes, keep_dialect=keep_dialect, where=str(source))

        updated = rewrite_openvino_file(source, target, on_openvino, in_place=in_place)
    return UpdateResult(source, target if updated else None, updated)


def _word(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
