"""Attach post-processing to a model file."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from postproc_export.files import default_target
from postproc_export.formats.base import Format, Judge, Outputs, format_of
from postproc_export.options import (
    AttachOptions,
    BelongingOptions,
    TailOptions,
    changed_options,
    refuse_unused,
    with_decision,
)
from postproc_export.ports import PortInfo, is_plain
from postproc_export.record import MODEL_KEY, AttachResult, TailSpec, parse_tails, recorded_tails
from postproc_export.stats import CalibrationStats, Level, as_stats
from postproc_export.tail import calibrated_levels
from postproc_export.validation import called_like

if TYPE_CHECKING:
    from postproc_export.policies import Policy


@called_like(AttachOptions)
def attach_postprocessing(**given: Any) -> AttachResult:
    """Append normalised scores, labels and masks to the raw outputs of an exported model.

    Raises
    ------
    PostprocError
        If the model, the statistics, the options or the files do not allow it; nothing is written then.

    Notes
    -----
    Only the end of the graph changes; docs/definition.md section 7 lists what stays. The weights of an ONNX model are
    never loaded.
    """
    return attach_file(given)


def attach_file(given: Mapping[str, Any], **called: str) -> AttachResult:
    """Attach as `attach_postprocessing` does; `called` is what messages call the model, see `belonging.Candidate`."""
    asked = AttachOptions(**given)
    source, own = Path(asked.model_path), parse_tails(asked.steps)
    target = default_target(source, asked.output, in_place=asked.in_place, mark="post", read=[asked.stats])
    stats, given, told = with_decision(as_stats(asked.stats), given)
    asked = AttachOptions(**given)
    options, chosen = tail_options(asked, asked.targets(given), stats)
    outputs: Outputs = {"image_output": asked.image_output, "pixel_output": asked.pixel_output}
    form = format_of(source)
    calibrated = f"postproc-export calibrate {source} --images FOLDER -o stats.json"
    judge = judge_of(
        stats,
        asked,
        form=form,
        source=source,
        steps=[spec for spec in own if spec.changes_values],
        outputs=outputs,
        **{"where": str(source), "remedy": calibrated, **called},
    )
    edit = partial(attach_model, form, stats=stats, options=options, steps=own, outputs=outputs, judge=judge)
    attached = form.rewrite(source, target, edit, asked)
    return replace(attached, source=source, output=target, chosen=(*told, *chosen))


def tail_options(
    asked: TailOptions, targets: "Mapping[Level, Policy]", stats: CalibrationStats
) -> tuple[TailOptions, tuple[str, ...]]:
    """Return the options of the tail, with sensitivities that reach the targets, and a note on each of these.

    Raises UsageError if a sensitivity cannot be chosen.
    """
    options = TailOptions.of(asked)
    if not targets:
        return options, ()
    from postproc_export.curve import choose_sensitivities

    chosen, notes = choose_sensitivities(targets, stats, options)
    return replace(options, **chosen), notes


NAMELESS: Final = "the statistics do not say which model they were calibrated on, so it may be another than this one"


def judge_of(stats: CalibrationStats | None, asked: BelongingOptions, **candidate: Any) -> Judge:
    """Return what tells whether statistics, if there are any, belong to a model; it takes what a `Candidate` has.

    All of `postproc_export.belonging` is imported only where the statistics name a model.
    """

    def judge(model: Any, raw: Mapping[Level, PortInfo]) -> tuple[str, ...]:
        if stats is None or not isinstance(stats.details.get(MODEL_KEY), Mapping):
            return () if stats is None else (NAMELESS,)
        from postproc_export.belonging import Candidate

        return Candidate(**candidate, model=model, raw=raw).notes(stats, other_model=asked.other_model)

    return judge


def attach_model(
    form: Format,
    model: Any,
    stats: CalibrationStats,
    options: TailOptions,
    steps: Sequence[TailSpec],
    outputs: Outputs,
    judge: Judge = lambda *_: (),
) -> AttachResult:
    """Attach the tail to a model in memory, with custom steps before it and behind it.

    Raises UsageError if the statistics were calibrated behind other steps, or these contradict each other.
    """
    given = changed_options(options)
    refuse_unused(options, given)
    ports = form.outputs(model)
    if not steps and not recorded_tails(stats) and all(map(is_plain, ports)):
        return form.attach(model, stats, options, outputs, given=given, judge=judge)
    from postproc_export.steps.around import put_before, put_behind, refuse_other_tails, with_channel
    from postproc_export.steps.transforms import split

    form.refuse_attached(model)
    before, behind = split(steps)
    if not before:
        refuse_other_tails(stats, ())
    levels = calibrated_levels(stats, options)
    is_read = "pixel" in levels and options.includes("pixel")
    before = with_channel(ports, before, outputs, levels, is_read=is_read)
    if before:
        outputs, _ = put_before(form, model, before, stats=stats, outputs=outputs, calibrated=levels)
    attached = form.attach(model, stats, options, outputs, given=given, judge=judge)
    if behind:
        put_behind(form, model, behind, attached.tail)
    return replace(attached, own=tuple(spec.text for spec in (*before, *behind)))
