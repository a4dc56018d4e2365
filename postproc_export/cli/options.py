"""Options that several commands have: how images are found and fed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

if TYPE_CHECKING:
    from postproc_export.images import Preprocessing

PANEL = "Images"
PREPROCESSING: Final = ("image_size", "scale", "mean", "std", "channel_order", "layout", "interpolation")


class ChannelOrderChoice(StrEnum):
    """Order of the color channels."""

    rgb = "rgb"
    bgr = "bgr"
    gray = "gray"


class AxisOrderChoice(StrEnum):
    """Order of the axes of the model's input."""

    nchw = "nchw"
    nhwc = "nhwc"


class InterpolationChoice(StrEnum):
    """Filter for resizing."""

    nearest = "nearest"
    bilinear = "bilinear"
    bicubic = "bicubic"
    lanczos = "lanczos"
    box = "box"


class RuntimeChoice(StrEnum):
    """Inference runtimes."""

    onnxruntime = "onnxruntime"
    openvino = "openvino"


class PrecisionChoice(StrEnum):
    """Inference precisions."""

    float32 = "float32"
    default = "default"


ImagesOption = Annotated[
    Path | None,
    typer.Option(
        "--images", help="Folder of images (MVTec AD's layout) or CSV file (image,label,mask).", rich_help_panel=PANEL
    ),
]
ImageSizeOption = Annotated[
    str | None,
    typer.Option(
        "--image-size", help="HEIGHTxWIDTH that images are stretched to; default: the model's.", rich_help_panel=PANEL
    ),
]
ScaleOption = Annotated[
    float | None,
    typer.Option(
        "--scale", help="Divisor of the pixels 0 to 255; default 255 (1 for a uint8 input).", rich_help_panel=PANEL
    ),
]
MeanOption = Annotated[
    str, typer.Option("--mean", help="Subtracted after scaling: one value or R,G,B.", rich_help_panel=PANEL)
]
StdOption = Annotated[str, typer.Option("--std", help="Divided by last: one value or R,G,B.", rich_help_panel=PANEL)]
ChannelOrderOption = Annotated[
    ChannelOrderChoice, typer.Option("--channel-order", help="Channels of the model's input.", rich_help_panel=PANEL)
]
LayoutOption = Annotated[
    AxisOrderChoice, typer.Option("--layout", help="Axes of the model's input.", rich_help_panel=PANEL)
]
InterpolationOption = Annotated[
    InterpolationChoice, typer.Option("--interpolation", help="Pillow's filter for resizing.", rich_help_panel=PANEL)
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        "--batch-size", min=1, help="Images per run; default: the model's own, else 8.", rich_help_panel=PANEL
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Threads that decode images; default: one per core.", rich_help_panel=PANEL),
]


def parse_preprocessing(
    *,
    size: str | None = None,
    scale: float | None = None,
    mean: str = "0",
    std: str = "1",
    channel_order: Literal["rgb", "bgr", "gray"] = "rgb",
    layout: Literal["nchw", "nhwc"] = "nchw",
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box"] = "bilinear",
) -> Preprocessing:
    """Return the pre-processing that the options ask for.

    Raises
    ------
    UsageError
        If an option is not legal.
    """
    from postproc_export.images import Preprocessing

    return Preprocessing(
        size=None if size is None else _size(size),
        scale=scale,
        mean=_numbers("--mean", mean),
        std=_numbers("--std", std),
        channel_order=channel_order,
        layout=layout,
        interpolation=interpolation,
    )


def given_options(context: typer.Context, names: Iterable[str]) -> list[str]:
    """Return those of the parameters that stand on the command line, as options."""
    sources = {name: context.get_parameter_source(name) for name in names}
    return [
        f"--{name.replace('_', '-')}"
        for name, source in sources.items()
        if source is not None and source.name == "COMMANDLINE"
    ]


def _size(text: str) -> tuple[int, int]:
    from postproc_export.errors import UsageError

    found = re.fullmatch(r"\s*(\d{1,6})\s*(?:[x,]\s*(\d{1,6})\s*)?", text)
    if found is None:
        needed = "HEIGHTxWIDTH, such as 256x320, or one number for a square"
        raise UsageError(f"--image-size {text}", needed=needed, fix="give it so, or leave it out for the model's own")
    height, width = found.groups()
    return int(height), int(width or height)


def _numbers(option: str, text: str) -> tuple[float, ...]:
    from postproc_export.errors import UsageError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        needed = "a number, or numbers with commas between them"
        raise UsageError(f"{option} {text}", needed=needed, fix=f"such as {option} 0.485,0.456,0.406") from error
