"""The demo from the photos to the checked files and their picture, by the functions of the command line."""

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from postproc_export.attach import attach_postprocessing
from postproc_export.calibration import Calibrator
from postproc_export.calibration.model import ModelSource
from postproc_export.check import check_parity
from postproc_export.check.report import ParityReport
from postproc_export.demo import factory
from postproc_export.demo.data import (
    CROP_SIZE,
    DEFECTS,
    GOOD,
    PURPOSE,
    Crop,
    Gray,
    Split,
    claim,
    claim_written,
    image_files,
    load_photos,
    make_crops,
    own_files,
    whole_or_nothing,
)
from postproc_export.demo.detector import Outputs, as_input, evaluate
from postproc_export.errors import require
from postproc_export.export.exporter import INPUT, RawModule, parse_axes, write_ir, write_onnx
from postproc_export.images import Preprocessing
from postproc_export.outcome import Outcome, outcome_json
from postproc_export.prediction.run import predict_folder
from postproc_export.process import quiet_logger
from postproc_export.record import AttachResult
from postproc_export.report import write_report
from postproc_export.runtimes import open_runner
from postproc_export.stats import LEVELS, LevelStats

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage


# The picture: what the model saw, what it said, and what is true, for some test crops.
ROWS: Final = ("image", "true mask", "raw map", "normalised map", "predicted mask")
CROPS_IN_PICTURE: Final = {GOOD: 1, **dict.fromkeys(DEFECTS, 2)}
INCH_PER_CROP: Final = 1.35
DOTS_PER_INCH: Final = 100
IMAGE_COLORS, RAW_COLORS, UNIT_COLORS = "gray", "viridis", "coolwarm"
_RIGHT, _WRONG, _OUTLINE = "#1a7f37", "#c1121f", "#ff9f1c"


def draw_picture(
    crops: Sequence[Crop], before: Outputs, after: Outputs, path: Path, *, image: LevelStats, pixel: LevelStats
) -> None:
    """Write a PNG with a column for some crops of each kind, `CROPS_IN_PICTURE`, and the rows of `ROWS`.

    `before` and `after` are what the raw and the attached model gave for all crops in one batch. The calibrated levels
    give the thresholds and the range of the colors.
    """
    # Where matplotlib is new, it says on its first import that it looks for fonts.
    with quiet_logger("matplotlib.font_manager"):
        from matplotlib.figure import Figure

    kinds = [crop.kind for crop in crops]
    places = {kind: [index for index, each in enumerate(kinds) if each == kind] for kind in CROPS_IN_PICTURE}
    shown = [index for kind, count in CROPS_IN_PICTURE.items() for index in places[kind][:count]]
    width, height = (len(shown) + 1.3) * INCH_PER_CROP, (len(ROWS) + 0.88) * INCH_PER_CROP
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH)
    grid = figure.subplots(len(ROWS), len(shown), squeeze=False)
    figure.subplots_adjust(
        left=0.62 * INCH_PER_CROP / width,
        right=1 - 0.62 * INCH_PER_CROP / width,
        top=1 - 0.82 * INCH_PER_CROP / height,
        bottom=0.06 * INCH_PER_CROP / height,
        wspace=0.04,
        hspace=0.04,
    )
    for index, column in zip(shown, grid.T, strict=True):
        given, made = ({name: values[index] for name, values in outputs.items()} for outputs in (before, after))
        raw, unit = _draw_column(crops[index], given, made, column, pixel)
    for row, label in enumerate(ROWS):
        grid[row, 0].set_ylabel(label, fontsize=11)
    assert pixel.threshold is not None, "a level with a mask has a threshold"
    for axes, scale, threshold in ((grid[2, -1], raw, pixel.threshold), (grid[3, -1], unit, 0.5)):
        box = axes.get_position()
        bar = figure.colorbar(scale, cax=figure.add_axes((box.x1 + 0.006, box.y0, 0.009, box.height)))
        bar.ax.axhline(threshold, color="black", linewidth=1.2)
        bar.ax.tick_params(labelsize=9)
    title = (
        f"score: raw \N{RIGHTWARDS ARROW} normalised; thresholds: image {image.threshold:.2f}, "
        f"pixel {pixel.threshold:.2f}, both 0.5 once normalised; outlined: the true mask"
    )
    figure.text(0.5, 1 - 0.08 * INCH_PER_CROP / height, title, ha="center", va="top", fontsize=12)
    _save(figure, path)


def _save(figure: "Figure", path: Path) -> None:
    """Write the figure as a PNG with a palette of 256 colors, which takes half the bytes.

    A palette fitted to the figure's pixels shows steps in the maps.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb
    from PIL import Image

    # Pillow looks colors up with five bits per channel, so greys that are closer would come out as their neighbours.
    greys = colormaps[IMAGE_COLORS](np.linspace(0.0, 1.0, 32))
    scales = [colormaps[name](np.linspace(0.0, 1.0, 97)) for name in (RAW_COLORS, UNIT_COLORS)]
    faded = np.linspace(0.0, 0.9, 10)[:, None]
    inks = [np.array(to_rgb(ink)) * (1 - faded) + faded for ink in (_RIGHT, _WRONG, _OUTLINE)]
    colors = np.concatenate([*(scale[:, :3] for scale in (greys, *scales)), *inks])
    palette = Image.new("P", (1, 1))
    palette.putpalette(bytes(np.rint(colors * 255).astype(np.uint8)))
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    pixels = Image.open(drawn).convert("RGB")
    pixels.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)


def _draw_column(
    crop: Crop, before: Outputs, after: Outputs, axes: Sequence["Axes"], pixel: LevelStats
) -> tuple["AxesImage", "AxesImage"]:
    """Draw one crop and its outputs from top to bottom; return the two images that need a scale of colors."""
    is_anomalous = bool(after["pred_label"].item())
    is_right = is_anomalous == (crop.kind != GOOD)
    label, mark = "anomalous" if is_anomalous else "normal", "\N{CHECK MARK}" if is_right else "\N{BALLOT X}"
    scores = f"{before['pred_score'].item():.2f} \N{RIGHTWARDS ARROW} {after['pred_score'].item():.3f}"
    axes[0].set_title(f"{crop.kind}\n{scores}\n{label} {mark}", fontsize=11, color=_RIGHT if is_right else _WRONG)
    axes[0].imshow(crop.image, cmap=IMAGE_COLORS, vmin=0, vmax=255)
    axes[1].imshow(crop.mask, cmap=IMAGE_COLORS, vmin=0, vmax=1)
    raw = axes[2].imshow(before["anomaly_map"][0], cmap=RAW_COLORS, vmin=pixel.min, vmax=pixel.max)
    unit = axes[3].imshow(after["anomaly_map"][0], cmap=UNIT_COLORS, vmin=0, vmax=1)
    axes[4].imshow(after["pred_mask"][0], cmap=IMAGE_COLORS, vmin=0, vmax=1)
    for row in axes[2:]:
        if crop.mask.any():
            row.contour(crop.mask, levels=[0.5], colors=_OUTLINE, linewidths=0.8)
    for row in axes:
        row.set(xticks=[], yticks=[])
    return raw, unit


Tell = Callable[[str, str, str | None], None]
"""Takes the heading of a step, what came of it and why it is done, and the command that does the same."""

PACKAGES: Final = (
    *("torch", "onnxscript", "onnxruntime", "openvino", "skimage", "PIL.Image", "matplotlib"),
    *("scipy", "altair", "vl_convert"),
)
DETECTOR: Final = "postproc_export.demo.factory:detector"
GOOD_CROPS: Final = 30
CROPS_EACH_DEFECT: Final = 10
LABELLED: Final[tuple[Split, ...]] = ("validation", "test")

RAW_ONNX, RAW_IR, STATISTICS = "raw.onnx", "raw.xml", "statistics.json"
ATTACHED_ONNX, ATTACHED_IR, PICTURE = "attached.onnx", "attached.xml", "picture.png"
CHECK, PREDICTIONS, REPORT = "check.json", "predictions/", "report.html"
FILES: Final = {
    "validation/": "labelled crops to calibrate on, with masks, in MVTec AD's layout",
    "test/": "labelled crops that neither fit nor calibration has seen",
    RAW_ONNX: "the exported detector: raw scores and maps",
    RAW_IR: "the same as OpenVINO IR, with raw.bin",
    STATISTICS: "thresholds and ranges",
    ATTACHED_ONNX: "the deployable model: normalised scores and maps, labels and masks",
    ATTACHED_IR: "the same as OpenVINO IR, with attached.bin",
    PICTURE: "both models at work on some test crops",
    CHECK: "what the check of the deployable model found, for programs",
    PREDICTIONS: "what the deployable model decides of test/: a table, and where it marks the crops",
    REPORT: "what every sensitivity finds: open it in a browser and move the boundary",
}
_WEIGHTS: Final = ("raw.bin", "attached.bin")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DemoResult(Outcome):
    """What the demo wrote and what its checks found; truthy where both files passed."""

    folder: Path
    attached: AttachResult  # of the ONNX file; that of the IR decides alike
    reports: tuple[ParityReport, ...]  # of both files

    def __bool__(self) -> bool:
        return all(self.reports)

    def headline(self) -> str:
        """Return where the files are."""
        return f"files in {self.folder}"

    def facts(self) -> Iterator[tuple[str, str]]:
        """Yield what each file is."""
        yield from FILES.items()

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``demo --json``: docs/json.md."""
        levels = {level: self.attached.level_json(level) for level in LEVELS}
        written = [str(self.folder / name) for name in FILES]
        return outcome_json(DETECTOR, self.folder, levels, self.attached.notes, passed=bool(self), written=written)


OWN: Final = (
    "postproc-export inspect model.onnx --defaults",
    "postproc-export calibrate model.onnx --images images --image-size 256 -o stats.json",
    "postproc-export attach model.onnx --stats stats.json -o model.post.onnx",
    "postproc-export check model.post.onnx --raw model.onnx --images images",
    "postproc-export report stats.json --model model.post.onnx --images images -o report.html",
)
"""The same with a model of the user's, `model.onnx`, and a folder of labelled images."""


def commands(folder: Path) -> tuple[str, ...]:
    """Return the commands that repeat the demo on its files: one for each step from calibration on."""
    at = {name: shlex.quote(str(folder / name)) for name in FILES}
    return (
        f"postproc-export calibrate {at[RAW_ONNX]} --images {at['validation/']} --image-size {CROP_SIZE}"
        f" -o {at[STATISTICS]}",
        f"postproc-export attach {at[RAW_ONNX]} --stats {at[STATISTICS]} -o {at[ATTACHED_ONNX]}",
        f"postproc-export check {at[ATTACHED_ONNX]} --torch {DETECTOR} --raw {at[RAW_ONNX]} --images {at['test/']}",
        f"postproc-export predict {at[ATTACHED_ONNX]} {at['test/']} -o {at[PREDICTIONS]}",
        f"postproc-export report {at[STATISTICS]} --model {at[ATTACHED_ONNX]} --images {at['test/']}"
        f" --check {at[CHECK]} -o {at[REPORT]}",
    )


def run_demo(folder: Path, *, tell: Tell) -> DemoResult:
    """Fit, export, calibrate, attach and check the demo's detector, run it, and report what it decides.

    The folder is a new or empty one, or that of an earlier run, whose files are replaced. `tell` is called after each
    step. Raises MissingDependencyError if a package of the extra `demo`
    is not installed, and FileError if the folder holds other files or scikit-image does not hold the photos.
    """
    own_files(folder)  # refuses a folder of others at once, before the slow imports
    for package in PACKAGES:
        require(package, purpose=PURPOSE, extra="demo")
    with whole_or_nothing(folder):
        test_crops = _write_crops(folder, tell=tell)
        detector = factory.detector()
        export_detector(detector, folder)
        what = (
            f"A small detector, fitted to the normal crops, becomes {RAW_ONNX} and {RAW_IR}. They give raw scores: the "
            "higher, the less a crop is like the normal ones. From which number on is it defective? They do not say."
        )
        tell("2. A model is exported", what, None)

        preprocessing = Preprocessing(size=(CROP_SIZE, CROP_SIZE))
        source = ModelSource.open(folder / RAW_ONNX, folder / "validation", preprocessing=preprocessing)
        with Calibrator() as calibrator:
            statistics = source.calibrate(calibrator)
        statistics.save(folder / STATISTICS)
        image, pixel = statistics.image, statistics.pixel
        assert image is not None, "the detector has a score"
        assert pixel is not None, "the detector has a map"
        what = (
            f"{RAW_ONNX} runs over the labelled crops in validation/. The best F1 is reached if an image counts as "
            f"defective from {image.threshold:.2f} on, and a pixel from {pixel.threshold:.2f} on."
        )
        tell("3. calibrate finds the thresholds", what, commands(folder)[0])

        results, reports = [], []
        pairs = ((RAW_ONNX, ATTACHED_ONNX), (RAW_IR, ATTACHED_IR))
        for raw, attached in pairs:
            results.append(attach_postprocessing(folder / raw, statistics, output=folder / attached))
        what = (
            f"Copies with the decision inside: {ATTACHED_ONNX} and {ATTACHED_IR} give "
            f"{', '.join(results[0].output_names)}. Scores are from 0 to 1, with the threshold at 0.5."
        )
        tell("4. attach writes them into the files", what, commands(folder)[1])
        for raw, attached in pairs:
            output, images = folder / attached, folder / "test"
            reports.append(check_parity(output, raw=folder / raw, torch=detector, images=images))
        what = "\n  ".join(report.headline() for report in reports)
        tell("5. check proves that the files decide as PyTorch", what, commands(folder)[2])

        fed = {INPUT: as_input(crop.image for crop in test_crops)}
        before, after = (open_runner(folder / name).run(fed) for name in (RAW_ONNX, ATTACHED_ONNX))
        draw_picture(test_crops, before, after, folder / PICTURE, image=image, pixel=pixel)
        separation, decisions = evaluate(test_crops, before, after)
        (folder / CHECK).write_text(json.dumps(reports[0].to_json(), indent=2) + "\n", encoding="utf-8")
        _show(folder, f"It finds {decisions}.\n  On the test crops, {separation}.", tell=tell)
    return DemoResult(folder=folder, attached=results[0], reports=tuple(reports))


def _show(folder: Path, found: str, *, tell: Tell) -> None:
    """Predict the test crops with the attached file, of which `found` says more, and report every sensitivity."""
    attached, test = folder / ATTACHED_ONNX, folder / "test"
    predicted = predict_folder(attached, test, output=folder / PREDICTIONS).headline()
    claim_written(folder, PREDICTIONS)
    tell("6. predict shows what is decided of new images", f"{predicted}.\n  {found}", commands(folder)[3])
    check, report = folder / CHECK, folder / REPORT
    written = write_report(folder / STATISTICS, model=attached, images=test, check=check, output=report)
    what = f"{written.headline()}: open it in a browser, move the sensitivity, and see what it finds and stops."
    tell("7. report is for whoever chooses the sensitivity", what, commands(folder)[4])


def _write_crops(folder: Path, *, tell: Tell) -> Sequence[Crop]:
    """Claim the folder, write the labelled crops into it, and return those of the test."""
    from PIL import Image

    photos = load_photos()
    crops: dict[Split, Sequence[Crop]] = {}
    files: dict[PurePosixPath, Gray] = {}
    for split in LABELLED:
        crops[split] = make_crops(photos, split, good=GOOD_CROPS, each_defect=CROPS_EACH_DEFECT)
        files |= {PurePosixPath(split, name): image for name, image in image_files(crops[split]).items()}
    models = [PurePosixPath(name) for name in (*FILES, *_WEIGHTS) if not name.endswith("/")]
    claim(folder, [*files, *models])
    for name, image in files.items():
        Image.fromarray(image).save(folder / name)
    what = (
        f"{', '.join(photos)}, as scikit-image installs them: {factory.TRAINING_CROPS} normal crops to fit a detector, "
        f"{len(crops['validation'])} labelled ones to calibrate and {len(crops['test'])} to test, from three separate "
        "strips. The defects are painted in."
    )
    tell("1. Photos, of which some have a defect", what, None)
    return crops["test"]


def export_detector(detector: "torch.nn.Module", folder: Path) -> None:
    """Write the raw ONNX file, with `pred_score` and `anomaly_map` and open batch, height and width, and the raw IR."""
    import torch

    example = torch.linspace(0.0, 1.0, 2 * 3 * CROP_SIZE**2).reshape(2, 3, CROP_SIZE, CROP_SIZE)
    axes = parse_axes("batch,height,width", example.shape)
    write_onnx(RawModule(detector, example), example, folder / RAW_ONNX, axes=axes)
    write_ir(folder / RAW_ONNX, folder / RAW_IR, axes=axes)
