"""The commands export and demo."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from postproc_export.cli.attach import attach, tail_keywords
from postproc_export.cli.options import (
    PANEL,
    PREPROCESSING,
    AxisOrderChoice,
    ChannelOrderChoice,
    ChannelOrderOption,
    ImageSizeOption,
    InterpolationChoice,
    InterpolationOption,
    MeanOption,
    ScaleOption,
    StdOption,
    given_options,
    parse_preprocessing,
)

if TYPE_CHECKING:
    from postproc_export.export import ExportResult


# --- `postproc-export export`.

_OWN: Final = ("model", "stats", "output", "in_place", "link_weights", "image_output", "pixel_output")
_IMAGE_OPTIONS: Final = tuple("image_layout" if name == "layout" else name for name in PREPROCESSING)


def _with_options_of_attach(command: Callable[..., None]) -> Callable[..., None]:
    """Add to a command what `attach` takes: an option that is added there is one here, too."""
    own = [
        item for item in inspect.signature(command, eval_str=True).parameters.values() if item.kind != item.VAR_KEYWORD
    ]
    taken = [item for item in inspect.signature(attach).parameters.values() if item.name not in _OWN]
    command.__signature__ = inspect.Signature([*own, *taken])  # type: ignore[attr-defined]
    return command


@_with_options_of_attach
def export(
    context: typer.Context,
    module: Annotated[
        str, typer.Argument(metavar="MODULE:FACTORY", help="What gives the model when called: package.module:function.")
    ],
    input_shape: Annotated[
        str, typer.Option("--input", metavar="SIZES", help="Shape of its input, batch first, such as 1,3,256,256.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; made where it is not there.")],
    stats: Annotated[
        Path | None, typer.Option("--stats", "-s", help="Statistics file, as `calibrate` writes it.")
    ] = None,
    to: Annotated[
        str, typer.Option("--to", metavar="FORMATS", help="onnx, openvino, or both: onnx,openvino.")
    ] = "onnx",
    dynamic: Annotated[
        str,
        typer.Option("--dynamic", metavar="AXES", help="Axes that stay open: batch,height,width, or NAME=INDEX."),
    ] = "",
    weights: Annotated[
        Path | None, typer.Option("--weights", help="State dict to load into the model; only tensors are read.")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Name of the model files.")] = "model",
    opset: Annotated[int | None, typer.Option("--opset", help="Opset of the graph; default: the exporter's.")] = None,
    image_output: Annotated[
        str | None, typer.Option(help="Output with the image score: a key, an index, or 'none'.")
    ] = None,
    pixel_output: Annotated[
        str | None, typer.Option(help="Output with the anomaly map: a key, an index, or 'none'.")
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option("--calibrate", help="In place of --stats: labelled images to calibrate the exported graph on."),
    ] = None,
    image_policy: Annotated[str, typer.Option(help="For --calibrate; see `calibrate --help`.")] = "f1",
    pixel_policy: Annotated[str, typer.Option(help="The same for the pixel level.")] = "f1",
    image_only: Annotated[
        bool, typer.Option("--image-only", help="For --calibrate: leave the pixel level out.")
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images", help="Images for the check, labels not needed; default: --calibrate's.", rich_help_panel=PANEL
        ),
    ] = None,
    image_size: ImageSizeOption = None,
    scale: ScaleOption = None,
    mean: MeanOption = "0",
    std: StdOption = "1",
    channel_order: ChannelOrderOption = ChannelOrderChoice.rgb,
    image_layout: Annotated[
        AxisOrderChoice, typer.Option("--image-layout", help="Axes of the model's input.", rich_help_panel=PANEL)
    ] = AxisOrderChoice.nchw,
    interpolation: InterpolationOption = InterpolationChoice.bilinear,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the inputs of the check.")] = None,
    keep_failed: Annotated[
        bool, typer.Option("--keep-failed", help="Write the files though a check missed something.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the parity report as JSON in place of a summary.")
    ] = False,
    **attach_options: Any,
) -> None:
    """Export a PyTorch model to ONNX and OpenVINO IR with its post-processing, and check the files against it.

    The model takes one tensor and gives a raw score, a raw anomaly map or both, in any form. Its files get labels and
    masks, are run beside it, and are written only where nothing was missed.

    Exit code: 0 everything passed, 1 a check missed something, 2 the model or the options cannot be used.

    Example: postproc-export export my.models:build --input 1,3,256,256 --dynamic batch --stats stats.json -o dist
    """
    from postproc_export.check.inputs import SEED
    from postproc_export.cli.console import stderr, warnings_to_stderr
    from postproc_export.export import Calibration, export_model, load_example

    _refuse_unused(context, calibrating=calibrate is not None, with_images=images is not None)
    preprocessing = parse_preprocessing(
        size=image_size,
        scale=scale,
        mean=mean,
        std=std,
        channel_order=channel_order.value,
        layout=image_layout.value,
        interpolation=interpolation.value,
    )
    loaded, example = load_example(module, input_shape, weights=weights, seed=SEED if seed is None else seed)
    with warnings_to_stderr():
        result = export_model(
            loaded.module,
            example,
            stats,
            output=output,
            formats=to,
            dynamic=dynamic,
            name=name,
            opset=opset,
            image_output=image_output,
            pixel_output=pixel_output,
            calibrate=calibrate,
            calibration=Calibration(image_policy=image_policy, pixel_policy=pixel_policy, image_only=image_only),
            images=images,
            preprocessing=preprocessing if given_options(context, _IMAGE_OPTIONS) else None,
            seed=SEED if seed is None else seed,
            keep_failed=keep_failed,
            inputs=[] if weights is None else [weights],
            tell=lambda step: stderr().print(step),
            **tail_keywords(**attach_options),
        )
    _show(replace(result, subject=module, remarks=(*loaded.remarks, *result.remarks)), as_json=json)
    raise typer.Exit(0 if result else 1)


def _show(result: ExportResult, *, as_json: bool) -> None:
    from postproc_export.cli.console import write

    if as_json:
        write(result.dumps())
        return
    write(result.summary())
    for file in result.files:
        for check in file.report.missed:
            write(f"MISSED {file.path.name}: {check.name}: {check.message}")


def _refuse_unused(context: typer.Context, *, calibrating: bool, with_images: bool) -> None:
    from postproc_export.errors import UsageError

    for names, needed, is_used in (
        (("image_policy", "pixel_policy", "image_only"), "--calibrate FOLDER", calibrating),
        (_IMAGE_OPTIONS, "--calibrate FOLDER or --images FOLDER", calibrating or with_images),
    ):
        given = given_options(context, names)
        if given and not is_used:
            raise UsageError(f"{given[0]} would have no effect", needed=needed, fix="leave it out, or give the images")


# --- `postproc-export demo`.


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write: a new or empty one, or an earlier demo's.")
    ] = Path("postproc-export-demo"),
) -> None:
    """Calibrate, attach and check a small detector on real photos, with no download, in about half a minute.

    Example: postproc-export demo --output postproc-export-demo
    """
    from rich.markup import escape

    from postproc_export.cli.console import stderr, stdout
    from postproc_export.demo.run import FILES, commands, run_demo

    console = stdout(markup=True)
    stderr().print("running the demo: about half a minute on two free cores; nothing is downloaded")
    reports = run_demo(output, tell=lambda step, outcome: console.print(f"[bold]{step:<10}[/]{escape(outcome)}"))
    for report in reports:
        if not report:
            console.print(report.describe(), markup=False)
    console.print(f"\n[bold]files in {escape(str(output))}[/]")
    for name, what in FILES.items():
        console.print(f"  {name:<17}{what}")
    console.print("\n[bold]the same with a model of your own[/] (as they stand, these repeat the demo)")
    for command in commands(output):
        console.print(f"  {escape(command)}")
    raise typer.Exit(0 if all(reports) else 1)
