"""`postproc-export calibrate`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from postproc_export.cli.image_options import (
    PREPROCESSING,
    BatchSizeOption,
    ChannelOrderChoice,
    ChannelOrderOption,
    ImageSizeOption,
    ImagesOption,
    InterpolationChoice,
    InterpolationOption,
    LayoutChoice,
    LayoutOption,
    MeanOption,
    PrecisionChoice,
    RuntimeChoice,
    ScaleOption,
    StdOption,
    WorkersOption,
    given_options,
    parse_preprocessing,
)

_MODEL_SUFFIXES: Final = (".onnx", ".xml")
_OF_MODELS: Final = (
    *PREPROCESSING,
    "batch_size",
    "workers",
    "image_output",
    "pixel_output",
    "image_only",
    "runtime",
    "precision",
    "threads",
    "spool_dir",
    "tail",
)


class NonfiniteChoice(StrEnum):
    """What is done with NaN and infinite scores."""

    error = "error"
    drop = "drop"


def calibrate(
    context: typer.Context,
    source: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE",
            help="Raw validation outputs: .npz, .npy, Zarr, CSV, folders of them; or a raw model with --images.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Statistics file to write.")],
    image_policy: Annotated[
        str, typer.Option(help="f1, fbeta=B, recall=R, precision=P, fpr=F, quantile=Q, value=T or range=U.")
    ] = "f1",
    pixel_policy: Annotated[str, typer.Option(help="The same for the pixel level.")] = "f1",
    nonfinite: Annotated[
        NonfiniteChoice, typer.Option(help="Refuse NaN and infinite scores, or drop and count them.")
    ] = NonfiniteChoice.error,
    compare: Annotated[
        bool, typer.Option("--compare/--no-compare", help="Print and record what other policies would give as well.")
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the statistics file instead of a table.")] = False,
    images: ImagesOption = None,
    image_size: ImageSizeOption = None,
    scale: ScaleOption = None,
    mean: MeanOption = "0",
    std: StdOption = "1",
    channel_order: ChannelOrderOption = ChannelOrderChoice.rgb,
    layout: LayoutOption = LayoutChoice.nchw,
    interpolation: InterpolationOption = InterpolationChoice.bilinear,
    batch_size: BatchSizeOption = None,
    workers: WorkersOption = None,
    image_output: Annotated[
        str | None, typer.Option(help="Output with the image score: a name, an index, or 'none'.")
    ] = None,
    pixel_output: Annotated[
        str | None, typer.Option(help="Output with the anomaly map: a name, an index, or 'none'.")
    ] = None,
    image_only: Annotated[
        bool, typer.Option("--image-only", help="Leave the pixel level out; no masks are needed.")
    ] = False,
    runtime: Annotated[
        RuntimeChoice | None, typer.Option(help="Runtime for the model; default: the one of its format.")
    ] = None,
    precision: Annotated[
        PrecisionChoice, typer.Option(help="float32, or the runtime's default on this machine.")
    ] = PrecisionChoice.float32,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the runtime.")] = None,
    tail: Annotated[
        list[str] | None,
        typer.Option("--tail", metavar="NAME:KEY=VALUE", help="A tail of your own to calibrate behind; repeatable."),
    ] = None,
    spool_dir: Annotated[
        Path | None, typer.Option(help="Folder for the temporary file that raw maps of a model are kept in.")
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Dask scheduler, such as tcp://10.0.0.1:8786, whose workers read the files."
        ),
    ] = None,
) -> None:
    """Find threshold and range of both levels from labelled validation data.

    Example: postproc-export calibrate model.onnx --images bottle/test -o stats.json
    """
    from postproc_export.cli.calibrate_run import CalibrationOptions, check_before, deliver, from_model, from_shards
    from postproc_export.cli.console import warnings_to_stderr
    from postproc_export.files.staging import claimed

    model = _model_among(source, images)
    _refuse_unused(context, model)
    check_before(source, images, output=output, spool_dir=spool_dir)
    options = CalibrationOptions(image_policy, pixel_policy, nonfinite.value, compare, spool_dir, dask)
    with claimed([output]), warnings_to_stderr():
        if model is None or images is None:
            stats = from_shards(source, options)
        else:
            from postproc_export.calibration.models.source import ModelSource

            opened = ModelSource.open(
                model,
                images,
                preprocessing=parse_preprocessing(
                    size=image_size,
                    scale=scale,
                    mean=mean,
                    std=std,
                    channel_order=channel_order.value,
                    layout=layout.value,
                    interpolation=interpolation.value,
                ),
                image_output=image_output,
                pixel_output=pixel_output,
                image_only=image_only,
                runtime=None if runtime is None else runtime.value,
                precision=precision.value,
                batch_size=batch_size,
                threads=threads,
                workers=workers,
                tail=tail or (),
            )
            stats = from_model(opened, options, output=output)
    deliver(stats, output, as_json=json)


def _model_among(source: list[Path], images: Path | None) -> Path | None:
    from postproc_export.errors import UsageError

    models = [path for path in source if path.suffix.lower() in _MODEL_SUFFIXES]
    if models and (len(source) != 1 or images is None):
        raise UsageError(
            f"{models[0]} is a model",
            found=f"{len(source)} source(s){'' if images else ' and no --images'}",
            needed="one model alone, and the images to run it on",
            fix=f"postproc-export calibrate {models[0]} --images FOLDER -o stats.json",
        )
    if images is not None and not models:
        fix = "give the raw model as the source, or leave --images out"
        raise UsageError("--images without a model", found=str(source[0]), needed="an .onnx or .xml file", fix=fix)
    return models[0] if models else None


def _refuse_unused(context: typer.Context, model: Path | None) -> None:
    from postproc_export.errors import UsageError

    unused = given_options(context, _OF_MODELS)
    if unused and model is None:
        raise UsageError(
            f"{unused[0]} is for a model that is run on images",
            found="raw outputs in files",
            fix="leave it out, or give a model with --images",
        )
    if model is not None and given_options(context, ("dask",)):
        fix = "leave it out, or save the raw outputs as shards and calibrate on these"
        raise UsageError("--dask is for raw outputs in files", found=f"the model {model}", fix=fix)
