"""`postproc-export attach`."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from postproc_export.tail_options import Adjustable


class ComparisonChoice(StrEnum):
    """The rule of the decision."""

    ge = "ge"
    gt = "gt"


class LayoutChoice(StrEnum):
    """How the results are laid out."""

    separate = "separate"
    packed = "packed"


class LevelsChoice(StrEnum):
    """Which levels are post-processed."""

    both = "both"
    image = "image"
    pixel = "pixel"


class DtypeChoice(StrEnum):
    """Element types of labels and masks."""

    bool = "bool"
    uint8 = "uint8"
    float32 = "float32"


def adjustable_choice(*, sensitivity: bool, boundary: bool, constant: bool = False) -> "Adjustable | None":
    """Return what is to be adjusted at run time; None where no option says so.

    Raises
    ------
    UsageError
        If more than one says so.
    """
    from postproc_export.errors import UsageError
    from postproc_export.tail_options import ADJUSTABLE

    given = {"sensitivity": sensitivity, "boundary": boundary, "nothing": constant}
    chosen = [choice for choice in ADJUSTABLE if given[choice]]
    if len(chosen) > 1:
        options = {"sensitivity": "--runtime-sensitivity", "boundary": "--runtime-boundary"}
        names = [options.get(choice, "--runtime-constant") for choice in chosen]
        raise UsageError(
            f"{' and '.join(names)} contradict each other", needed="one of them", fix="leave the others out"
        )
    return chosen[0] if chosen else None


def tail_keywords(
    *,
    normalize: bool,
    threshold: bool,
    runtime_sensitivity: bool,
    runtime_boundary: bool,
    runtime_parameters: bool,
    tail: list[str] | None,
    **others: Any,
) -> dict[str, Any]:
    """Return the keywords of `attach_postprocessing` for the options of a command line, which `export` has, too.

    Raises
    ------
    UsageError
        If the options contradict each other.
    """
    adjustable = adjustable_choice(sensitivity=runtime_sensitivity, boundary=runtime_boundary)
    return {
        **{name: value.value if isinstance(value, StrEnum) else value for name, value in others.items()},
        "enable_normalization": normalize,
        "enable_thresholding": threshold,
        "adjustable": adjustable or "nothing",
        "as_parameters": runtime_parameters,
        "tail": tail or (),
    }


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
    layout: Annotated[
        LayoutChoice,
        typer.Option(help="'packed': one float32 output [N,H,W,4] with map, score, label and mask."),
    ] = LayoutChoice.separate,
    levels: Annotated[
        LevelsChoice, typer.Option(help="Post-process both levels, or one; the other stays raw.")
    ] = LevelsChoice.both,
    normalize: Annotated[
        bool, typer.Option("--normalize/--no-normalize", help="Normalise scores and maps; else they stay raw.")
    ] = True,
    threshold: Annotated[bool, typer.Option("--threshold/--no-threshold", help="Give labels and masks.")] = True,
    runtime_sensitivity: Annotated[
        bool,
        typer.Option("--runtime-sensitivity", help="Let image_sensitivity and pixel_sensitivity be set at run time."),
    ] = False,
    runtime_boundary: Annotated[
        bool,
        typer.Option("--runtime-boundary", help="Let image_boundary and pixel_boundary, raw, be set at run time."),
    ] = False,
    runtime_parameters: Annotated[
        bool,
        typer.Option("--runtime-parameters", help="In an IR: as inputs that have to be given, not as variables."),
    ] = False,
    tail: Annotated[
        list[str] | None,
        typer.Option("--tail", metavar="NAME:KEY=VALUE", help="A tail of your own: gaussian:sigma=4, ...; repeatable."),
    ] = None,
    link_weights: Annotated[
        bool, typer.Option("--link-weights", help="Hard-link external data instead of copying it.")
    ] = False,
) -> None:
    """Append normalised scores, labels and masks to the raw outputs of an exported model.

    Example: postproc-export attach model.onnx --stats stats.json -o model.post.onnx
    """
    from postproc_export.cli.console import write
    from postproc_export.rewrite.attach import attach_postprocessing

    result = attach_postprocessing(
        model,
        stats,
        output=output,
        in_place=in_place,
        image_output=image_output,
        pixel_output=pixel_output,
        **tail_keywords(
            image_sensitivity=image_sensitivity,
            pixel_sensitivity=pixel_sensitivity,
            comparison=comparison,
            keep_raw=keep_raw,
            label_dtype=label_dtype,
            mask_dtype=mask_dtype,
            match_thresholds=match_thresholds,
            nan_guard=nan_guard,
            layout=layout,
            levels=levels,
            normalize=normalize,
            threshold=threshold,
            runtime_sensitivity=runtime_sensitivity,
            runtime_boundary=runtime_boundary,
            runtime_parameters=runtime_parameters,
            tail=tail,
        ),
        link_weights=link_weights,
    )
    write(result.summary())
