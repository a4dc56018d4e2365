"""`postproc-export update`."""

from pathlib import Path
from typing import Annotated

import typer

from postproc_export.cli.attach import ComparisonChoice, DtypeChoice


def update(
    model: Annotated[Path, typer.Argument(help="ONNX model (.onnx) or OpenVINO IR (.xml) with post-processing.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; default: MODEL.updated.onnx or MODEL.updated.xml."),
    ] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Write onto the input.")] = False,
    stats: Annotated[
        Path | None, typer.Option("--stats", "-s", help="Statistics file that takes the place of what the model has.")
    ] = None,
    image_threshold: Annotated[float | None, typer.Option(help="New threshold of the image score, raw.")] = None,
    pixel_threshold: Annotated[float | None, typer.Option(help="New threshold of the anomaly map, raw.")] = None,
    normalized: Annotated[
        bool, typer.Option("--normalized", help="Thresholds are normalised scores, as the model gives them now.")
    ] = False,
    image_sensitivity: Annotated[
        float | None, typer.Option(help="In [0, 1]; higher finds more anomalous images.")
    ] = None,
    pixel_sensitivity: Annotated[
        float | None, typer.Option(help="In [0, 1]; higher finds more anomalous pixels.")
    ] = None,
    comparison: Annotated[
        ComparisonChoice | None, typer.Option(help="'ge' decides as calibrated; 'gt' exactly as Anomalib's code does.")
    ] = None,
    label_dtype: Annotated[DtypeChoice | None, typer.Option(help="Element type of pred_label.")] = None,
    mask_dtype: Annotated[DtypeChoice | None, typer.Option(help="Element type of pred_mask.")] = None,
    keep_raw: Annotated[
        bool | None, typer.Option("--keep-raw/--no-keep-raw", help="Keep the raw outputs as additional ones.")
    ] = None,
    nan_guard: Annotated[
        bool | None,
        typer.Option("--nan-guard/--no-nan-guard", help="Call an image anomalous when its map holds a NaN."),
    ] = None,
    match_thresholds: Annotated[
        bool | None,
        typer.Option(
            "--match-thresholds/--no-match-thresholds",
            help="Let a level without a threshold borrow the other one's.",
        ),
    ] = None,
    keep_dialect: Annotated[
        bool, typer.Option("--keep-dialect", help="Edit the constants of Anomalib's post-processing in place.")
    ] = False,
    link_weights: Annotated[
        bool, typer.Option("--link-weights", help="Hard-link external data instead of copying it.")
    ] = False,
) -> None:
    """Change what a model with post-processing decides; exit code 1 where it has none.

    Example: postproc-export update model.post.onnx -o stricter.onnx --image-sensitivity 0.3
    """
    from postproc_export.cli.console import stdout
    from postproc_export.rewrite.update import update_postprocessing

    result = update_postprocessing(
        model,
        output=output,
        in_place=in_place,
        stats=stats,
        image_threshold=image_threshold,
        pixel_threshold=pixel_threshold,
        normalized=normalized,
        image_sensitivity=image_sensitivity,
        pixel_sensitivity=pixel_sensitivity,
        comparison=None if comparison is None else comparison.value,
        label_dtype=None if label_dtype is None else label_dtype.value,
        mask_dtype=None if mask_dtype is None else mask_dtype.value,
        keep_raw=keep_raw,
        nan_guard=nan_guard,
        match_thresholds=match_thresholds,
        keep_dialect=keep_dialect,
        link_weights=link_weights,
    )
    stdout().print(result.summary(), highlight=False, markup=False)
    raise typer.Exit(0 if result else 1)
