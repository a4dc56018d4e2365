"""The commands that change a file or tell of it: attach, update, detach, inspect."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from postproc_export.options import Adjustable


# --- `postproc-export attach`.


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
    from postproc_export.options import ADJUSTABLE

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
        typer.Option("--tail", metavar="NAME:KEY=VALUE", help="A custom step: gaussian:sigma=4, ...; repeatable."),
    ] = None,
    link_weights: Annotated[
        bool, typer.Option("--link-weights", help="Hard-link external data instead of copying it.")
    ] = False,
) -> None:
    """Append normalised scores, labels and masks to the raw outputs of an exported model.

    Example: postproc-export attach model.onnx --stats stats.json -o model.post.onnx
    """
    from postproc_export.attach import attach_postprocessing
    from postproc_export.cli.console import write

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


# --- `postproc-export update`.


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
    from postproc_export.update import update_postprocessing

    given: dict[str, Any] = dict(  # noqa: C408
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
    result = update_postprocessing(model, **given)
    write(result.summary())
    raise typer.Exit(0 if result else 1)


# --- `postproc-export detach`.


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
    from postproc_export.detach import detach_postprocessing

    result = detach_postprocessing(model, output=output, in_place=in_place, link_weights=link_weights)
    write(result.summary())
    raise typer.Exit(0 if result else 1)


# --- `postproc-export inspect`.


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
    from postproc_export.inspect import inspect_model

    result = inspect_model(model, defaults=defaults)
    write(json.dumps(result.to_json(), indent=2, allow_nan=False) if json_output else result.summary())
