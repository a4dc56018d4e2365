"""The commands that change a file or tell of it: attach, update, detach, inspect."""

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from postproc_export.cli.console import write
from postproc_export.cli.options import command, options_of
from postproc_export.options import AttachOptions, FileOptions, UpdateOptions


@command(options_of(AttachOptions))
def attach(**given: Any) -> int:
    """Append normalised scores, labels and masks to the raw outputs of an exported model.

    Example: postproc-export attach model.onnx --stats stats.json -o model.post.onnx
    """
    from postproc_export.attach import attach_postprocessing

    write(attach_postprocessing(**given).summary())
    return 0


@command(options_of(UpdateOptions, defaults=False))
def update(**given: Any) -> int:
    """Change what a model with post-processing decides; exit code 1 where it has none.

    What is not given stays as it is in the file.

    Example: postproc-export update model.post.onnx -o fewer.onnx --image-sensitivity 0.3
    """
    from postproc_export.update import update_postprocessing

    result = update_postprocessing(**given)
    write(result.summary())
    return 0 if result else 1


@command(options_of(FileOptions))
def detach(
    model: Annotated[Path, Parameter(help="ONNX model (.onnx) or OpenVINO IR (.xml) with post-processing.")],
    /,
    **given: Any,
) -> int:
    """Remove the post-processing of a model and give the raw outputs back; exit code 1 where there is none.

    Example: postproc-export detach model.post.onnx -o model.onnx
    """
    from postproc_export.detach import detach_postprocessing

    result = detach_postprocessing(model, **given)
    write(result.summary())
    return 0 if result else 1


@command()
def inspect(
    model: Annotated[Path, Parameter(help="ONNX model (.onnx) or OpenVINO IR (.xml).")],
    /,
    *,
    defaults: Annotated[
        bool, Parameter(name="--defaults", help="Say what attach would do to this file with no options, and why.")
    ] = False,
    as_json: Annotated[bool, Parameter(name="--json", help="Print JSON instead of a table.")] = False,
) -> int:
    """Say what a model file is, what post-processing it has and what that decides, without running it.

    Example: postproc-export inspect model.onnx --json
    """
    from postproc_export.inspect import inspect_model

    result = inspect_model(model, defaults=defaults)
    write(json.dumps(result.to_json(), indent=2, allow_nan=False) if as_json else result.summary())
    return 0
