"""The demo from the photos to the checked files; every step uses the functions that the command line uses."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from postproc_export.calibration import Calibrator
from postproc_export.calibration.models.source import ModelSource
from postproc_export.demo.data import CROP_SIZE, GOOD, PURPOSE, Crop, Split, image_files, load_photos, make_crops
from postproc_export.demo.defects import DEFECTS, Gray
from postproc_export.demo.detector import as_input, export_onnx, fit_detector
from postproc_export.demo.evaluation import Evaluation, evaluate, judge
from postproc_export.demo.folder import claim, own_files, whole_or_nothing
from postproc_export.demo.picture import draw_picture
from postproc_export.errors import require
from postproc_export.images import Preprocessing
from postproc_export.parity import check_parity
from postproc_export.parity.reports.report import ParityReport
from postproc_export.rewrite.attach import attach_postprocessing
from postproc_export.runtimes import open_runner
from postproc_export.runtimes.openvino import openvino_core, save_ir
from postproc_export.stats import CalibrationStats, LevelStats

if TYPE_CHECKING:
    import torch

Tell = Callable[[str, str], None]

PACKAGES: Final = ("torch", "onnxscript", "onnxruntime", "openvino", "skimage", "PIL.Image", "matplotlib")
DETECTOR: Final = "postproc_export.demo.factory:detector"
TRAINING_CROPS: Final = 48
GOOD_CROPS: Final = 30
CROPS_EACH_DEFECT: Final = 10
LABELLED: Final[tuple[Split, ...]] = ("validation", "test")
CROPS_IN_PICTURE: Final = {GOOD: 1, **dict.fromkeys(DEFECTS, 2)}

RAW_ONNX, RAW_IR, STATISTICS = "raw.onnx", "raw.xml", "statistics.json"
ATTACHED_ONNX, ATTACHED_IR, PICTURE = "attached.onnx", "attached.xml", "picture.png"
FILES: Final = {
    "validation/": "labelled crops to calibrate on, with masks, in MVTec AD's layout",
    "test/": "labelled crops that neither fit nor calibration has seen",
    RAW_ONNX: "the exported detector: raw scores and maps",
    RAW_IR: "the same as OpenVINO IR, with raw.bin",
    STATISTICS: "thresholds and ranges",
    ATTACHED_ONNX: "the deployable model: normalised scores and maps, labels and masks",
    ATTACHED_IR: "the same as OpenVINO IR, with attached.bin",
    PICTURE: "both models at work on some test crops",
}
_WEIGHTS: Final = ("raw.bin", "attached.bin")


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What a demo run made and found.

    Parameters
    ----------
    folder
        Where the files are; `FILES` says which.
    statistics
        The calibrated levels.
    evaluation
        How the models do on the test crops.
    reports
        The parity report of each attached file, ONNX first.
    """

    folder: Path
    statistics: CalibrationStats
    evaluation: Evaluation
    reports: tuple[ParityReport, ...]

    @property
    def passed(self) -> bool:
        """Whether both attached files passed their check."""
        return all(self.reports)

    @property
    def commands(self) -> tuple[str, ...]:
        """The three commands that do the same with any model; as they stand they work on the demo's files."""
        at = {name: shlex.quote(str(self.folder / name)) for name in FILES}
        return (
            f"postproc-export calibrate {at[RAW_ONNX]} --images {at['validation/']} --image-size {CROP_SIZE}"
            f" -o {at[STATISTICS]}",
            f"postproc-export attach {at[RAW_ONNX]} --stats {at[STATISTICS]} -o {at[ATTACHED_ONNX]}",
            f"postproc-export check {at[ATTACHED_ONNX]} --torch {DETECTOR} --raw {at[RAW_ONNX]} --images {at['test/']}",
        )


def run_demo(folder: str | Path, *, tell: Tell = lambda step, outcome: None) -> DemoResult:
    """Fit, export, calibrate, attach and check the demo's detector, and draw its picture.

    Parameters
    ----------
    folder
        A new or empty folder, or that of an earlier run, whose files are replaced.
    tell
        Called after each step with its name and one sentence on its outcome.

    Raises
    ------
    MissingDependencyError
        If a package of the extra `demo` is not installed.
    FileError
        If the folder holds other files, or scikit-image does not hold the photos.
    """
    folder = Path(folder)
    own_files(folder)  # refuses a folder of others at once, before the slow imports
    for package in PACKAGES:
        require(package, extra="demo", purpose=PURPOSE)
    with whole_or_nothing(folder):
        crops = _write_crops(folder, tell=tell)
        detector = _export(crops["training"], folder, tell=tell)
        statistics = _calibrate(folder, tell=tell)
        reports = tuple(
            _attach_and_check(folder, statistics, detector, raw=raw, attached=attached, tell=tell)
            for raw, attached in ((RAW_ONNX, ATTACHED_ONNX), (RAW_IR, ATTACHED_IR))
        )
        evaluation = _try_out(crops["test"], folder, statistics, tell=tell)
    return DemoResult(folder, statistics, evaluation, reports)


def _write_crops(folder: Path, *, tell: Tell) -> Mapping[Split, Sequence[Crop]]:
    from PIL import Image

    photos = load_photos()
    crops: dict[Split, Sequence[Crop]] = {"training": make_crops(photos, "training", good=TRAINING_CROPS)}
    files: dict[PurePosixPath, Gray] = {}
    for split in LABELLED:
        crops[split] = make_crops(photos, split, good=GOOD_CROPS, each_defect=CROPS_EACH_DEFECT)
        files |= {PurePosixPath(split, name): image for name, image in image_files(crops[split]).items()}
    models = [PurePosixPath(name) for name in (*FILES, *_WEIGHTS) if not name.endswith("/")]
    claim(folder, [*files, *models])
    for name, image in files.items():
        Image.fromarray(image).save(folder / name)
    tell("photos", f"{', '.join(photos)} as scikit-image installs them")
    tell(
        "crops",
        f"{TRAINING_CROPS} normal ones to fit, {len(crops['validation'])} labelled ones to calibrate, "
        f"{len(crops['test'])} to test, from three separate strips",
    )
    return crops


def _export(training: Sequence[Crop], folder: Path, *, tell: Tell) -> "torch.nn.Module":
    detector = fit_detector(as_input(crop.image for crop in training))
    export_onnx(detector, folder / RAW_ONNX, size=CROP_SIZE)
    model = openvino_core(purpose="writing the demo's IR").read_model(folder / RAW_ONNX)
    save_ir(model, folder / RAW_IR)
    tell("export", f"a detector fitted to the normal crops: {RAW_ONNX} by torch.onnx.export, {RAW_IR} from it")
    return detector


def _calibrate(folder: Path, *, tell: Tell) -> CalibrationStats:
    preprocessing = Preprocessing(size=(CROP_SIZE, CROP_SIZE))
    source = ModelSource.open(folder / RAW_ONNX, folder / "validation", preprocessing=preprocessing)
    with Calibrator() as calibrator:
        statistics = source.calibrate(calibrator)
    statistics.save(folder / STATISTICS)
    image, pixel = _levels(statistics)
    tell(
        "calibrate",
        f"{RAW_ONNX} over validation/: threshold {image.threshold:.2f} for images, {pixel.threshold:.2f} for pixels",
    )
    return statistics


def _attach_and_check(
    folder: Path,
    statistics: CalibrationStats,
    detector: "torch.nn.Module",
    *,
    raw: str,
    attached: str,
    tell: Tell,
) -> ParityReport:
    result = attach_postprocessing(folder / raw, statistics, output=folder / attached)
    tell("attach", f"{', '.join(result.output_names)}: {raw} becomes {attached}")
    report = check_parity(folder / attached, raw=folder / raw, torch=detector, images=folder / "test", int8=False)
    tell("check", report.verdict())
    return report


def _try_out(crops: Sequence[Crop], folder: Path, statistics: CalibrationStats, *, tell: Tell) -> Evaluation:
    verdicts = judge(crops, raw=open_runner(folder / RAW_ONNX), attached=open_runner(folder / ATTACHED_ONNX))
    result = evaluate(verdicts)
    shown = [
        verdict
        for kind, count in CROPS_IN_PICTURE.items()
        for verdict in [each for each in verdicts if each.crop.kind == kind][:count]
    ]
    image, pixel = _levels(statistics)
    draw_picture(shown, folder / PICTURE, image=image, pixel=pixel)
    tell("test", f"on the test crops, AUROC {result.image_auroc:.3f} of images, {result.pixel_auroc:.3f} of pixels")
    tell(
        "",
        f"{ATTACHED_ONNX} finds {result.found} of {result.anomalous} anomalous crops, "
        f"with {result.false_alarms} false alarms in {result.good}",
    )
    return result


def _levels(statistics: CalibrationStats) -> tuple[LevelStats, LevelStats]:
    image, pixel = statistics.image, statistics.pixel
    assert image is not None, "the detector has a score"
    assert pixel is not None, "the detector has a map"
    return image, pixel
