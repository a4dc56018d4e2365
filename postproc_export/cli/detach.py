"""`postproc-export detach`."""

from pathlib import Path
from typing import Annotated

import typer


def detach(
    model: Annotated[Path, typer.Argument(help="ONNX model (.onnx) or OpenVINO IR (.xml) with post-processing.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default: MODEL.raw.onnx or MODEL.raw.xml.")
    ] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Write onto the input.")] = False,
    link_weights: Annotated[
        bool, typer.Option("--link-weights", help="Hard-link external data instead of copying it.")
    ] = False,
) -> None:
    """Remove the post-processing of a model and give the raw outputs back; exit code 1 where there is none.

    Example: postproc-export detach model.post.onnx -o model.onnx
    """
    from postproc_export.cli.console import write
    from postproc_export.rewrite.detach import detach_postprocessing

    result = detach_postprocessing(model, output=output, in_place=in_place, link_weights=link_weights)
    write(result.summary())
    raise typer.Exit(0 if result else 1)
