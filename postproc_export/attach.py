"""Attach post-processing to a model file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from postproc_export.files import default_target
from postproc_export.float32 import rounded_to, shortest
from postproc_export.formats.base import Attached, Format, Outputs, format_of
from postproc_export.options import AttachOptions, TailOptions, changed_options, refuse_unused
from postproc_export.record import TailSpec, parse_tails, recorded_tails
from postproc_export.stats import LEVELS, CalibrationStats, Level
from postproc_export.tail import Tail, calibrated_levels, place
from postproc_export.validation import called_like


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
        The custom steps around it, as they were asked for.
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


@called_like(AttachOptions)
def attach_postprocessing(**given: Any) -> AttachResult:
    """Append normalised scores, labels and masks to the raw outputs of an exported model.

    Raises
    ------
    PostprocError, graph_patterns.GraphPatternError
        If the model, the statistics, the options or the files do not allow it; nothing is written then.

    Notes
    -----
    Only the end of the graph changes; docs/definition.md section 7 lists what stays. The weights of an ONNX model are
    never loaded.
    """
    asked = AttachOptions(**given)
    source, own, options = Path(asked.model_path), parse_tails(asked.steps), TailOptions.of(asked)
    target = default_target(source, asked.output, in_place=asked.in_place, mark="post", read=[asked.stats])
    stats = asked.stats if isinstance(asked.stats, CalibrationStats) else CalibrationStats.load(asked.stats)
    refuse_unused(options, changed_options(options))
    outputs: Outputs = {"image_output": asked.image_output, "pixel_output": asked.pixel_output}
    form = format_of(source)
    edit = partial(attach_model, form, stats=stats, options=options, steps=own, outputs=outputs)
    attached = form.rewrite(source, target, edit, asked)
    return AttachResult(source, target, attached.tail, attached.renamed, tuple(spec.text for spec in own))


def attach_model(
    form: Format,
    model: Any,
    stats: CalibrationStats,
    options: TailOptions,
    steps: Sequence[TailSpec],
    outputs: Outputs,
) -> Attached:
    """Attach the tail to a model in memory, with custom steps before it and behind it.

    Raises UsageError if the statistics were calibrated behind other steps, or these contradict each other.
    """
    if not steps and not recorded_tails(stats):
        return form.attach(model, stats, options, outputs)
    from postproc_export.steps.around import put_before, put_behind, refuse_other_tails
    from postproc_export.steps.transforms import split

    before, behind = split(steps)
    if before:
        levels = calibrated_levels(stats, options)
        outputs, _ = put_before(form, model, before, stats=stats, outputs=outputs, calibrated=levels)
    else:
        refuse_other_tails(stats, ())
    attached = form.attach(model, stats, options, outputs)
    if behind:
        put_behind(form, model, behind, attached.tail)
    return attached


def _shown(value: float) -> str:
    return str(value) if value in (float("inf"), float("-inf")) else str(shortest(value))
