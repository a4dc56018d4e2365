"""The demo's picture: what the model saw, what it said, and what is true, for some test crops."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from postproc_export.demo.evaluation import Verdict
from postproc_export.quiet import quiet_logger
from postproc_export.stats import LevelStats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

ROWS: Final = ("image", "true mask", "raw map", "normalised map", "predicted mask")
INCH_PER_CROP: Final = 1.35
DOTS_PER_INCH: Final = 100
IMAGE_COLORS, RAW_COLORS, UNIT_COLORS = "gray", "viridis", "coolwarm"
_RIGHT, _WRONG, _OUTLINE = "#1a7f37", "#c1121f", "#ff9f1c"


def draw_picture(verdicts: Sequence[Verdict], path: Path, *, image: LevelStats, pixel: LevelStats) -> None:
    """Write a PNG with a column for each verdict and the rows of `ROWS`.

    Parameters
    ----------
    verdicts
        At least one.
    path
        The PNG file.
    image, pixel
        The calibrated levels, for the thresholds and the range of the colors.
    """
    # Where matplotlib is new, it says on its first import that it looks for fonts.
    with quiet_logger("matplotlib.font_manager"):
        from matplotlib.figure import Figure

    width, height = (len(verdicts) + 1.3) * INCH_PER_CROP, (len(ROWS) + 0.88) * INCH_PER_CROP
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH)
    grid = figure.subplots(len(ROWS), len(verdicts), squeeze=False)
    figure.subplots_adjust(
        left=0.62 * INCH_PER_CROP / width,
        right=1 - 0.62 * INCH_PER_CROP / width,
        top=1 - 0.82 * INCH_PER_CROP / height,
        bottom=0.06 * INCH_PER_CROP / height,
        wspace=0.04,
        hspace=0.04,
    )
    for verdict, column in zip(verdicts, grid.T, strict=True):
        raw, unit = _draw_column(verdict, column, pixel)
    for row, label in enumerate(ROWS):
        grid[row, 0].set_ylabel(label, fontsize=11)
    assert pixel.threshold is not None, "a level with a mask has a threshold"
    _draw_scales(figure, list(grid[2:4, -1]), [(raw, pixel.threshold), (unit, 0.5)])
    figure.text(0.5, 1 - 0.08 * INCH_PER_CROP / height, _title(image, pixel), ha="center", va="top", fontsize=12)
    _save(figure, path)


def _save(figure: "Figure", path: Path) -> None:
    """Write the figure as a PNG with a palette, which takes half the bytes."""
    from PIL import Image

    palette = Image.new("P", (1, 1))
    palette.putpalette(_palette())
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    pixels = Image.open(drawn).convert("RGB")
    pixels.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)


def _palette() -> bytes:
    """Return the 256 colors that the picture is made of; a palette fitted to its pixels shows steps in the maps."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    # Pillow looks colors up with five bits per channel, so greys that are closer would come out as their neighbours.
    greys = colormaps[IMAGE_COLORS](np.linspace(0.0, 1.0, 32))
    scales = [colormaps[name](np.linspace(0.0, 1.0, 97)) for name in (RAW_COLORS, UNIT_COLORS)]
    faded = np.linspace(0.0, 0.9, 10)[:, None]
    inks = [np.array(to_rgb(ink)) * (1 - faded) + faded for ink in (_RIGHT, _WRONG, _OUTLINE)]
    colors = np.concatenate([*(scale[:, :3] for scale in (greys, *scales)), *inks])
    return bytes(np.rint(colors * 255).astype(np.uint8))


def _title(image: LevelStats, pixel: LevelStats) -> str:
    return (
        f"score: raw \N{RIGHTWARDS ARROW} normalised; thresholds: image {image.threshold:.2f}, "
        f"pixel {pixel.threshold:.2f}, both 0.5 once normalised; outlined: the true mask"
    )


def _caption(verdict: Verdict) -> str:
    label, mark = "anomalous" if verdict.label else "normal", "\N{CHECK MARK}" if verdict.is_right else "\N{BALLOT X}"
    return f"{verdict.crop.kind}\n{verdict.raw_score:.2f} \N{RIGHTWARDS ARROW} {verdict.unit_score:.3f}\n{label} {mark}"


def _draw_column(verdict: Verdict, axes: Sequence["Axes"], pixel: LevelStats) -> tuple["AxesImage", "AxesImage"]:
    """Draw one verdict from top to bottom; return the two images that need a scale of colors."""
    axes[0].set_title(_caption(verdict), fontsize=11, color=_RIGHT if verdict.is_right else _WRONG)
    axes[0].imshow(verdict.crop.image, cmap=IMAGE_COLORS, vmin=0, vmax=255)
    axes[1].imshow(verdict.crop.mask, cmap=IMAGE_COLORS, vmin=0, vmax=1)
    raw = axes[2].imshow(verdict.raw_map, cmap=RAW_COLORS, vmin=pixel.min, vmax=pixel.max)
    unit = axes[3].imshow(verdict.unit_map, cmap=UNIT_COLORS, vmin=0, vmax=1)
    axes[4].imshow(verdict.mask, cmap=IMAGE_COLORS, vmin=0, vmax=1)
    for row in axes[2:]:
        if verdict.crop.mask.any():
            row.contour(verdict.crop.mask, levels=[0.5], colors=_OUTLINE, linewidths=0.8)
    for row in axes:
        row.set(xticks=[], yticks=[])
    return raw, unit


def _draw_scales(figure: "Figure", beside: Sequence["Axes"], scales: Sequence[tuple["AxesImage", float]]) -> None:
    """Draw a scale of colors beside each of the two maps, with a line at the threshold."""
    for axes, (scale, threshold) in zip(beside, scales, strict=True):
        box = axes.get_position()
        bar = figure.colorbar(scale, cax=figure.add_axes((box.x1 + 0.006, box.y0, 0.009, box.height)))
        bar.ax.axhline(threshold, color="black", linewidth=1.2)
        bar.ax.tick_params(labelsize=9)
