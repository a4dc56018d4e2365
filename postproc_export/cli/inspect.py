"""`postproc-export inspect`."""

from pathlib import Path
from typing import Annotated

import typer


def inspect(
    model: Annotated[Path, typer.Argument(help="ONNX model (.onnx) or OpenVINO IR (.xml).")],
    defaults: Annotated[
        bool, typer.Option("--defaults", help="Say what `attach` would do to this file with no options, and why.")
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say what a model file is, what post-processing it has and what that decides, without running it.

    Example: postproc-export inspect model.onnx --json
    """
    import json

    from postproc_export.cli.console import write
    from postproc_export.rewrite.inspect import inspect_model

    result = inspect_model(model, defaults=defaults)
    write(json.dumps(result.to_json(), indent=2, allow_nan=False) if json_output else result.summary())
