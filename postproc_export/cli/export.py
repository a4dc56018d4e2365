"""The commands export and demo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import Parameter

from postproc_export.cli.console import stderr, stdout, warnings_to_stderr, write
from postproc_export.cli.options import command, image_options, options_of, preprocessing_of, spelling_of
from postproc_export.errors import UsageError
from postproc_export.options import SEED, CalibrationOptions, ExportOptions

_OPTIONS: Final = options_of(ExportOptions, without=["module", "example_input", "preprocessing"])
_OF_IMAGES: Final = image_options(ExportOptions, old_layout="--image-layout")


@command(_OPTIONS, _OF_IMAGES)
def export(
    module: Annotated[
        str, Parameter(help="What gives the model when called: package.module:function.", metavar="MODULE:FACTORY")
    ],
    /,
    *,
    shape: Annotated[
        str, Parameter(name="--input", metavar="SIZES", help="Shape of its input, batch first, such as 1,3,256,256.")
    ],
    weights: Annotated[
        Path | None, Parameter(name="--weights", help="State dict to load into the model; only tensors are read.")
    ] = None,
    as_json: Annotated[
        bool, Parameter(name="--json", help="Print the parity report as JSON in place of a summary.")
    ] = False,
    **given: Any,
) -> int:
    """Export a PyTorch model to ONNX and OpenVINO IR with its post-processing, and check the files against it.

    The model takes one tensor and gives a raw score, a raw anomaly map or both, in any form. Its files get labels and
    masks, are run beside it, and are written only where no check failed.

    Exit code: 0 everything passed, 1 a check failed, 2 the model or the options cannot be used.

    Example: postproc-export export my.models:build --input 1,3,256,256 --dynamic batch --stats stats.json -o dist
    """
    from postproc_export.export import export_model, load_example

    _refuse_unused(given)
    inputs = [path for path in (weights, given.get("preprocessing")) if path is not None]
    given["preprocessing"] = preprocessing_of(given)
    built, remarks, example = load_example(module, shape, weights=weights, seed=given.get("seed", SEED))
    with warnings_to_stderr():
        result = export_model(built, example, inputs=inputs, tell=lambda step: stderr().print(step), **given)
    if as_json:
        write(result.dumps())
    else:
        write(replace(result, subject=module, remarks=(*remarks, *result.remarks)).summary())
        for file in result.files:
            for check in file.report.failed:
                write(f"FAILED {file.path.name}: {check.name}: {check.message}")
    return 0 if result else 1


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


@command()
def demo(
    *,
    output: Annotated[
        Path, Parameter(name=("--output", "-o"), help="Folder to write: a new or empty one, or an earlier demo's.")
    ] = Path("postproc-export-demo"),
) -> int:
    """Calibrate, attach and check a small detector on real photos, with no download, in about half a minute.

    Example: postproc-export demo --output postproc-export-demo
    """
    from rich.markup import escape

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
    for line in commands(output):
        console.print(f"  {escape(line)}")
    return 0 if all(reports) else 1
