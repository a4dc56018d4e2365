"""`postproc-export update`."""

from pathlib import Path
from typing import Annotated

import typer

from postproc_export.cli.attach import ComparisonChoice, DtypeChoice, LayoutChoice, LevelsChoice, adjustable_choice


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
    layout: Annotated[
        LayoutChoice | None,
        typer.Option(help="'packed': one float32 output [N,H,W,4] with map, score, label and mask."),
    ] = None,
    levels: Annotated[
        LevelsChoice | None, typer.Option(help="Post-process both levels, or one; the other stays raw.")
    ] = None,
    normalize: Annotated[
        bool | None, typer.Option("--normalize/--no-normalize", help="Normalise scores and maps; else they stay raw.")
    ] = None,
    threshold: Annotated[bool | None, typer.Option("--threshold/--no-threshold", help="Give labels and masks.")] = None,
    runtime_sensitivity: Annotated[
        bool,
        typer.Option("--runtime-sensitivity", help="Let image_sensitivity and pixel_sensitivity be set at run time."),
    ] = False,
    runtime_boundary: Annotated[
        bool,
        typer.Option("--runtime-boundary", help="Let image_boundary and pixel_boundary, raw, be set at run time."),
    ] = False,
    runtime_constant: Annotated[
        bool, typer.Option("--runtime-constant", help="Take either away again: the decision is a constant.")
    ] = False,
    runtime_parameters: Annotated[
        bool | None,
        typer.Option(
            "--runtime-parameters/--runtime-variables",
            help="In an IR: as inputs that have to be given, or as variables.",
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
    from postproc_export.cli.console import write
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
        layout=None if layout is None else layout.value,
        levels=None if levels is None else levels.value,
        enable_normalization=normalize,
        enable_thresholding=threshold,
        adjustable=adjustable_choice(
            sensitivity=runtime_sensitivity, boundary=runtime_boundary, constant=runtime_constant
        ),
        as_parameters=runtime_parameters,
        keep_dialect=keep_dialect,
        link_weights=link_weights,
    )
    write(result.summary())
    raise typer.Exit(0 if result else 1)
