"""`postproc-export attach`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class ComparisonChoice(StrEnum):
    """The rule of the decision."""

    ge = "ge"
    gt = "gt"


class DtypeChoice(StrEnum):
    """Element types of labels and masks."""

    bool = "bool"
    uint8 = "uint8"
    float32 = "float32"


def attach(
    model: Annotated[Path, typer.Argument(help="ONNX model (.onnx) or OpenVINO IR (.xml) with raw outputs.")],
    stats: Annotated[Path, typer.Option("--stats", "-s", help="Statistics file, as `calibrate` writes it.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default: MODEL.post.onnx or MODEL.post.xml.")
    ] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Write onto the input.")] = False,
    image_output: Annotated[
        str | None, typer.Option(help="Output with the image score: a name, an index, or 'none'.")
    ] = None,
    pixel_output: Annotated[
        str | None, typer.Option(help="Output with the anomaly map: a name, an index, or 'none'.")
    ] = None,
    image_sensitivity: Annotated[float, typer.Option(help="In [0, 1]; higher finds more anomalous images.")] = 0.5,
    pixel_sensitivity: Annotated[float, typer.Option(help="In [0, 1]; higher finds more anomalous pixels.")] = 0.5,
    comparison: Annotated[
        ComparisonChoice, typer.Option(help="'ge' decides as calibrated; 'gt' exactly as Anomalib's code does.")
    ] = ComparisonChoice.ge,
    keep_raw: Annotated[bool, typer.Option("--keep-raw", help="Keep the raw outputs as additional ones.")] = False,
    label_dtype: Annotated[DtypeChoice, typer.Option(help="Element type of pred_label.")] = DtypeChoice.bool,
    mask_dtype: Annotated[
        DtypeChoice | None, typer.Option(help="Element type of pred_mask; default: bool in ONNX, uint8 in IR.")
    ] = None,
    match_thresholds: Annotated[
        bool, typer.Option("--match-thresholds", help="Let a level without a threshold borrow the other one's.")
    ] = False,
    nan_guard: Annotated[
        bool, typer.Option("--nan-guard/--no-nan-guard", help="Call an image anomalous when its map holds a NaN.")
    ] = True,
    link_weights: Annotated[
        bool, typer.Option("--link-weights", help="Hard-link external data instead of copying it.")
    ] = False,
) -> None:
    """Append normalised scores, labels and masks to the raw outputs of an exported model.

    Example: postproc-export attach model.onnx --stats stats.json -o model.post.onnx
    """
    from postproc_export.rewrite.attach import attach_postprocessing

    result = attach_postprocessing(
        model,
        stats,
        output=output,
        in_place=in_place,
        image_output=image_output,
        pixel_output=pixel_output,
        image_sensitivity=image_sensitivity,
        pixel_sensitivity=pixel_sensitivity,
        comparison=comparison.value,
        keep_raw=keep_raw,
        label_dtype=label_dtype.value,
        mask_dtype=None if mask_dtype is None else mask_dtype.value,
        match_thresholds=match_thresholds,
        nan_guard=nan_guard,
        link_weights=link_weights,
    )
    typer.echo(result.summary())
