"""The commands that change a file or tell of it, attach, update, detach and inspect; and doctor."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from postproc_export.cli.console import progress
from postproc_export.cli.options import Given, command, options_of
from postproc_export.options import AttachOptions, FileOptions, UpdateOptions
from postproc_export.outcome import Outcome

if TYPE_CHECKING:
    from postproc_export.formats.base import DetachResult
    from postproc_export.inspect import InspectResult
    from postproc_export.record import AttachResult
    from postproc_export.update import UpdateResult


def _after_attach(result: "AttachResult", given: Given) -> list[object]:
    from postproc_export.record import parse_tail

    raw = [] if result.source == result.output else ["--raw", result.source]
    steps = [text for text in (*given.get("step", ()), *given.get("tail", ())) if parse_tail(text).is_code]
    return ["check", result.output, *raw, *(word for text in steps for word in ("--step", text))]


def _after_update(result: "UpdateResult", _: Given) -> list[object]:
    if not result:
        return ["attach", result.source, "--stats", "stats.json"]
    return ["check", result.output or result.source]


def _after_detach(result: "DetachResult", _: Given) -> list[object]:
    return ["inspect", result.output, "--defaults"] if result else ["inspect", result.source]


def _after_inspect(result: "InspectResult", given: Given) -> list[object]:
    """Return how the file is checked, or what its raw outputs still need."""
    if any(level is not None and level.tail != "none" for level in result.levels.values()):
        return ["check", result.path]
    if any(level is not None and level.other_rule is None for level in result.levels.values()):
        return ["calibrate", result.path, "--images", "FOLDER", "-o", "stats.json"]
    return [] if given.get("defaults") else ["inspect", result.path, "--defaults"]


@command(partial(options_of, AttachOptions), then=_after_attach)
def attach(**given: Any) -> Outcome:
    """Append normalised scores, labels and masks to the raw outputs of an exported model.

    Example: postproc-export attach model.onnx --stats stats.json -o model.post.onnx
    """
    from postproc_export.attach import attach_postprocessing

    return attach_postprocessing(**given)


@command(partial(options_of, UpdateOptions, defaults=False), then=_after_update)
def update(**given: Any) -> Outcome:
    """Change what a model with post-processing decides; exit code 1 where it has none.

    What is not given stays as it is in the file.

    Example: postproc-export update model.post.onnx -o fewer.onnx --image-sensitivity 0.3
    """
    from postproc_export.update import update_postprocessing

    return update_postprocessing(**given)


@command(partial(options_of, FileOptions), then=_after_detach)
def detach(
    model: Annotated[Path, Parameter(help="ONNX model (.onnx) or OpenVINO IR (.xml) with post-processing.")],
    /,
    **given: Any,
) -> Outcome:
    """Remove the post-processing of a model and give the raw outputs back; exit code 1 where there is none.

    Example: postproc-export detach model.post.onnx -o model.onnx
    """
    from postproc_export.detach import detach_postprocessing

    return detach_postprocessing(model, **given)


@command(then=_after_inspect, is_wanted=True)
def inspect(
    model: Annotated[Path, Parameter(help="ONNX model (.onnx) or OpenVINO IR (.xml).")],
    /,
    *,
    defaults: Annotated[
        bool, Parameter(name="--defaults", help="Say what attach would do to this file with no options, and why.")
    ] = False,
) -> Outcome:
    """Say what a model file is, what post-processing it has and what that decides, without running it.

    Example: postproc-export inspect model.onnx --json
    """
    from postproc_export.inspect import inspect_model

    return inspect_model(model, defaults=defaults)


@command(is_wanted=True)
def doctor() -> Outcome:
    """Say what is installed and on what machine, what of the project works here, and what would bring the rest.

    Every package is imported in a process of its own, so that a broken one is told of and stops nothing. The exit code
    is 0.

    Example: postproc-export doctor --json
    """
    from postproc_export.installation import examine

    with progress("importing", unit="packages") as advance:
        return examine(progress=advance)
