"""Attach post-processing to a model file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from postproc_export.decision import Comparison
from postproc_export.files import default_target
from postproc_export.float32 import rounded_to, shortest
from postproc_export.options import (
    Adjustable,
    LabelDtype,
    Layout,
    LevelChoice,
    TailOptions,
    changed_options,
    refuse_unused,
)
from postproc_export.stats import LEVELS, CalibrationStats, Level
from postproc_export.tail import Tail, place


@dataclass(frozen=True, slots=True)
class AttachResult:
    """What was attached, and where it was written.

    Parameters
    ----------
    source, output
        The model that was read and the one that was written; for an IR the .xml.
    tail
        The outputs, statistics and options of the tail, and notes on levels that were left as they are.
    renamed
        New name of each value of the model that had to give up the name of an output.
    own
        The tails of one's own around it, as they were asked for.
    """

    source: Path
    output: Path
    tail: Tail
    renamed: Mapping[str, str]
    own: tuple[str, ...] = ()

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the outputs that were added, in order."""
        return tuple(output.name for output in self.tail.outputs)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about levels that were left as they are."""
        return self.tail.notes

    def boundary(self, level: Level) -> float:
        """Return the raw value from which on the file calls a score anomalous, as it stands in the file."""
        return self.tail.boundary(level)

    def summary(self) -> str:
        """Return what was done, one fact a line."""
        lines = [f"attached post-processing to {self.source}", f"  written  {self.output}"]
        lines += [f"  {level:<8} {self._decision(level)}" for level in LEVELS if self.tail.names(level)]
        lines += [f"  guard    {text}" for text in (self.tail.describe_guard(),) if text]
        lines += [f"  with     {text}" for text in self.own]
        lines += [f"  adjusted at run time by {item.describe()}" for item in self.tail.adjustable]
        lines += [f"  renamed  '{old}' is now '{new}' inside the model" for old, new in self.renamed.items()]
        lines += [f"  note     {note}" for note in self.notes]
        return "\n".join(lines)

    def _decision(self, level: Level) -> str:
        stats, options = self.tail.stats.level(level), self.tail.options
        assert stats is not None, "a level with outputs has statistics"
        assert stats.threshold is not None, "a level with outputs has a threshold"
        names = [place(name) if options.is_packed else name for name in self.tail.names(level)]
        calibrated = f"threshold {_shown(stats.threshold)}, range {_shown(stats.min)} to {_shown(stats.max)}"
        if not options.enable_thresholding:
            return f"{names[0]}: normalised, without a label ({calibrated})"
        raw = "" if options.enable_normalization else f", {names[0]} raw"
        boundary, half = self.boundary(level), self.tail.narrow.get(level)
        narrow = "" if half is None else f"in {half} from {_shown(rounded_to(boundary, half))}, "
        return (
            f"{' and '.join(names)}: anomalous from raw {_shown(boundary)} on ({narrow}{calibrated}, "
            f"sensitivity {shortest(options.sensitivity(level))}, rule {options.comparison}{raw})"
        )


def attach_postprocessing(
    model_path: str | Path,
    stats: CalibrationStats | str | Path,
    *,
    output: str | Path | None = None,
    image_output: str | int | None = None,
    pixel_output: str | int | None = None,
    image_sensitivity: float = 0.5,
    pixel_sensitivity: float = 0.5,
    comparison: Comparison = "ge",
    keep_raw: bool = False,
    label_dtype: LabelDtype = "bool",
    mask_dtype: LabelDtype | None = None,
    match_thresholds: bool = False,
    nan_guard: bool = True,
    layout: Layout = "separate",
    levels: LevelChoice = "both",
    enable_normalization: bool = True,
    enable_thresholding: bool = True,
    adjustable: Adjustable = "nothing",
    as_parameters: bool = False,
    tail: str | Sequence[str] = (),
    in_place: bool = False,
    link_weights: bool = False,
) -> AttachResult:
    """Append normalised scores, labels and masks to the raw outputs of an exported model.

    Parameters
    ----------
    model_path
        An ONNX file (.onnx) or an OpenVINO IR (.xml, its .bin beside it) with raw outputs.
    stats
        Statistics, or the path of a statistics file.
    output
        The file to write; default ``<name>.post.onnx`` or ``<name>.post.xml`` beside the input.
    image_output, pixel_output
        Which output is the raw score and which the raw map: a name, an index, or ``"none"``; default: found by the
        names ``pred_score`` and ``anomaly_map``, else by rank where that is unambiguous and the level is calibrated.
    image_sensitivity, pixel_sensitivity
        In [0, 1]; at 0.5 the decision is ``raw >= threshold``, the one that calibration optimised.
    comparison
        ``"ge"``, or ``"gt"`` for exactly the decisions of Anomalib's code.
    keep_raw
        Keep the raw outputs as additional, last outputs.
    label_dtype, mask_dtype
        Element type of `pred_label` and `pred_mask`; the mask's default is bool in ONNX and uint8 in an IR.
    match_thresholds
        Let a level that has a range but no threshold borrow the other level's.
    nan_guard
        Call an image anomalous when its map holds a NaN: a map that is calibrated, named by `pixel_output`, or called
        ``anomaly_map``.
    layout
        ``"separate"``, or ``"packed"`` for one float32 output ``output`` [N, H, W, 4]: the normalised map, the
        normalised score, the label and the mask.
    levels
        ``"both"``, or ``"image"`` or ``"pixel"`` to post-process one level only.
    enable_normalization
        If False, scores and maps stay raw, in float32.
    enable_thresholding
        If False, there are no labels and masks.
    adjustable
        ``"sensitivity"`` for inputs `image_sensitivity` and `pixel_sensitivity` that need not be given,
        ``"boundary"`` for `image_boundary` and `pixel_boundary` in raw units; docs/runtime_sensitivity.md.
    as_parameters
        Of an IR: make them parameters, which have to be given, in place of state variables.
    tail
        Tails of one's own, each ``name:key=value`` or ``package.module:Class``, in the order in which they are applied;
        see docs/steps.md.
    in_place
        Allow `output` to be the input.
    link_weights
        Hard-link external data of an ONNX model into the folder of `output` instead of copying it.

    Raises
    ------
    PostprocError, graph_patterns.GraphPatternError
        If the model, the statistics, the options or the files do not allow it; nothing is written then.

    Notes
    -----
    Only the end of the graph changes; docs/definition.md section 7 lists what stays. The weights of an ONNX model are
    never loaded.
    """
    from postproc_export.record import parse_tails
    from postproc_export.steps.around import attach_around, rewrite_file

    source, own = Path(model_path), parse_tails(tail)
    target = default_target(source, output, in_place=in_place, mark="post", read=[stats])
    if not isinstance(stats, CalibrationStats):
        stats = CalibrationStats.load(stats)
    options = TailOptions(
        image_sensitivity=image_sensitivity,
        pixel_sensitivity=pixel_sensitivity,
        comparison=comparison,
        label_dtype=label_dtype,
        mask_dtype=mask_dtype,
        keep_raw=keep_raw,
        match_thresholds=match_thresholds,
        nan_guard=nan_guard,
        layout=layout,
        levels=levels,
        enable_normalization=enable_normalization,
        enable_thresholding=enable_thresholding,
        adjustable=adjustable,
        as_parameters=as_parameters,
    )
    refuse_unused(options, changed_options(options))
    outputs = {"image_output": image_output, "pixel_output": pixel_output}
    attached = rewrite_file(
        source,
        target,
        lambda form, model: attach_around(form, model, stats, options, own, **outputs),
        in_place=in_place,
        link_weights=link_weights,
    )
    return AttachResult(source, target, attached.tail, attached.renamed, tuple(spec.text for spec in own))


def _shown(value: float) -> str:
    return str(value) if value in (float("inf"), float("-inf")) else str(shortest(value))
