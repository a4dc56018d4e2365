"""The commands export and demo."""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

from postproc_export.cli.console import command_line, remark, say
from postproc_export.cli.options import Given, command, image_options, options_of, preprocessing_of, spelling_of
from postproc_export.errors import UsageError
from postproc_export.outcome import Outcome
from postproc_export.run_options import SEED, CalibrationOptions, ExportOptions

if TYPE_CHECKING:
    from torch.nn import Module

    from postproc_export.demo.run import DemoResult
    from postproc_export.export import ExportResult

_OPTIONS: Final = options_of(ExportOptions, without=["module", "example_input", "preprocessing"])
_OF_IMAGES: Final = image_options(ExportOptions, old_layout="--image-layout")


def _after_export(result: "ExportResult", given: Given) -> list[object]:
    """Return how a file is checked once more: beside the module, on images where there are some."""
    if not result.written:
        return []
    images = given.get("images") or given.get("calibrate")
    options = [] if given.get("weights") else ["--torch", given["module"]]
    return ["check", result.files[0].path, *options, *([] if images is None else ["--images", images])]


def _reports(result: "ExportResult") -> str:
    return "\n".join([result.summary(), *(file.report.describe() for file in result.files)])


@command(_OPTIONS, _OF_IMAGES, then=_after_export, details=_reports)
def export(
    module: Annotated[
        str,
        Parameter(
            help="What gives the model when called: package.module:function. Or a model of Anomalib: anomalib:Padim.",
            metavar="MODULE:FACTORY",
        ),
    ],
    /,
    *,
    shape: Annotated[
        str | None,
        Parameter(
            name="--input",
            metavar="SIZES",
            help="Shape of its input, batch first, such as 1,3,256,256; a model of Anomalib has one of its own.",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        Parameter(
            name="--weights",
            help="State dict to load into the model; only tensors are read. Of Anomalib the checkpoint, whose "
            "statistics are attached where none are given.",
        ),
    ] = None,
    **given: Any,
) -> Outcome:
    """Export a PyTorch model to ONNX and OpenVINO IR with its post-processing, and check the files against it.

    The model takes one tensor and gives a raw score, a raw anomaly map or both, in any form. Its files get labels and
    masks, are run beside it, and are written only where no check failed.

    Of a model of Anomalib its checkpoint is enough: postproc-export export anomalib:Padim --weights model.ckpt -o dist

    Exit code: 0 everything passed, 1 a check failed, 2 the model or the options cannot be used.

    Example: postproc-export export my.models:build --input 1,3,256,256 --dynamic batch --stats stats.json -o dist
    """
    from postproc_export.export import export_model, load_example
    from postproc_export.export.anomalib import PREFIX

    _refuse_unused(given)
    inputs = [path for path in (weights, given.get("preprocessing")) if path is not None]
    given["preprocessing"] = preprocessing_of(given)
    made: Any = module
    if module.startswith(PREFIX):
        (made, shape), weights = _of_anomalib(module, shape, weights, given), None
    if shape is None:
        fix = f"such as postproc-export export {module} --input 1,3,256,256 --stats stats.json -o dist"
        raise UsageError("--input is required", needed="the shape of its input, batch first", fix=fix)
    built, remarks, example = load_example(made, shape, weights=weights, seed=given.get("seed", SEED))
    result = export_model(built, example, inputs=inputs, tell=remark, **given)
    return replace(result, subject=module, remarks=(*remarks, *result.remarks))


def _of_anomalib(
    module: str, shape: str | None, weights: Path | None, given: dict[str, Any]
) -> "tuple[Module, str | None]":
    """Return a model of Anomalib and the shape of its input; what its checkpoint says is put to what was given."""
    from postproc_export.export.anomalib import checkpoint_statistics, load_anomalib
    from postproc_export.export.exporter import parse_shape

    if weights is None:
        fix = f"postproc-export export {module} --weights model.ckpt -o dist"
        raise UsageError("--weights is required", needed=f"the checkpoint of {module}", fix=fix)
    built, given["anomalib"], size = load_anomalib(module, weights)
    if shape is None and size is not None:
        shape = f"1,3,{size[0]},{size[1]}"
    if shape is not None and not {"stats", "calibrate"} & given.keys():
        height, width = parse_shape(shape)[-2:]
        given["stats"] = checkpoint_statistics(weights, built, (height, width))
    return built, shape


def _refuse_unused(given: Mapping[str, Any]) -> None:
    of_calibration = spelling_of(options_of(CalibrationOptions, without=["step", "tail"]))
    of_calibration |= {"image_only": "--image-only", "split": "--split"}
    for names, sources, needed in (
        (of_calibration, ("calibrate",), "--calibrate FOLDER"),
        (spelling_of(_OF_IMAGES), ("calibrate", "images"), "--calibrate FOLDER or --images FOLDER"),
    ):
        unused = [option for name, option in names.items() if name in given]
        if unused and not any(source in given for source in sources):
            raise UsageError(f"{unused[0]} would have no effect", needed=needed, fix="leave it out, or give the images")


def _files(result: "DemoResult") -> str:
    from postproc_export.demo.run import OWN

    typed = [command_line(shlex.split(line)[1:], before="  ") for line in OWN]
    failed = [report.summary() for report in result.reports if not report]
    return "\n".join([*failed, "", result.summary(), "", *_NOW_YOURS, *typed])


_NOW_YOURS: Final = (
    "Now your model. Put it beside a folder of labelled images (images/good, images/scratch, ...), and type",
    "(--image-only if there are no masks; --preset imagenet and the like if it was trained so):",
)


def _chapter(heading: str, what: str, command: str | None = None) -> None:
    """Tell a step of the demo: what happens, what came of it, and what does the same."""
    say(f"\n{heading}")
    say(f"  {what}")
    if command is not None:
        say(command_line(shlex.split(command)[1:], before="  $ "))


@command(view=_files)
def demo(
    *,
    output: Annotated[
        Path, Parameter(name=("--output", "-o"), help="Folder to write: a new or empty one, or an earlier demo's.")
    ] = Path("postproc-export-demo"),
) -> Outcome:
    """Calibrate, attach, check and run a small detector on real photos, with no download, in less than a minute.

    Example: postproc-export demo --output postproc-export-demo
    """
    from postproc_export.demo.run import run_demo

    remark("running the demo: less than a minute on two free cores; nothing is downloaded")
    return run_demo(output, tell=_chapter)
