"""The command check: its options, and the report files it writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from postproc_export.cli.attach import ComparisonChoice
from postproc_export.cli.options import (
    PANEL,
    PREPROCESSING,
    AxisOrderChoice,
    ChannelOrderChoice,
    ChannelOrderOption,
    ImageSizeOption,
    InterpolationChoice,
    InterpolationOption,
    LayoutOption,
    MeanOption,
    ScaleOption,
    StdOption,
    given_options,
    parse_preprocessing,
)

if TYPE_CHECKING:
    from postproc_export.check import ParityReport


# --- The files that `postproc-export check` writes besides its result: refused before the check, written after it.


def check_before(
    read: Sequence[Path], images: Path | None, *, junit: Path | None, markdown: Path | None, save_failures: Path | None
) -> None:
    """Refuse reports that are read, and what cannot be written; nothing is made.

    Parameters
    ----------
    read
        The models, and files of inputs or images.
    images
        A folder or a CSV file of images.
    junit, markdown, save_failures
        What is written, if anything.

    Raises
    ------
    FileError
        If a report is read, or one of them cannot be written.
    """
    from postproc_export.files import check_folder
    from postproc_export.images import find_samples

    reports = [path for path in (junit, markdown) if path is not None]
    if reports:
        files = [each for path in read if not path.is_dir() for each in _files_of(path)]
        samples = [] if images is None else find_samples(images, labels=False)
        files += [path for sample in samples for path in (sample.image, sample.mask) if path is not None]
        _check_reports(junit, markdown, files)
    if save_failures is not None:
        check_folder(next(each for each in (save_failures, *save_failures.absolute().parents) if each.exists()))


def write_reports(report: ParityReport, *, junit: Path | None, markdown: Path | None) -> None:
    """Write the JUnit file, and append the summary; each whole or not at all, in a folder that is made if need be.

    Raises
    ------
    FileError
        If one of them cannot be written.
    """
    from postproc_export.check import report as formats
    from postproc_export.files import append_text, folder_made_for, write_text

    if junit is not None:
        with folder_made_for(junit):
            write_text(junit, formats.junit(report))
    if markdown is not None:
        with folder_made_for(markdown):
            append_text(markdown, formats.markdown(report))


def _check_reports(junit: Path | None, markdown: Path | None, files: Sequence[Path]) -> None:
    from postproc_export.errors import FileError
    from postproc_export.files import check_target, explained, refuse_inputs

    if junit is not None:
        check_target(junit, files) if junit.parent.is_dir() else _check_new(junit)
    if markdown is not None and (markdown.is_file() or not markdown.exists()):
        # It is appended to, so that a device such as /dev/stdout may stand there.
        refuse_inputs([markdown], files, fix="choose another path")
        with explained(markdown):
            _check_new(markdown) if not markdown.exists() else markdown.open("a").close()
    elif markdown is not None and markdown.is_dir():
        raise FileError(f"cannot write {markdown}", found="a folder", needed="the path of a file", fix="add a name")


def _check_new(path: Path) -> None:
    """Refuse a path whose folders cannot be made."""
    from postproc_export.errors import FileError
    from postproc_export.files import check_folder

    nearest = next(each for each in (path, *path.absolute().parents) if each.exists())
    if not nearest.is_dir():
        found, fix = f"the folder cannot be made: {nearest} is no folder", "choose another path"
        raise FileError(f"cannot write {path}", found=found, fix=fix)
    check_folder(nearest)


def _files_of(path: Path) -> list[Path]:
    from postproc_export.calibration.model import model_files
    from postproc_export.files import FORMATS

    return model_files(path) if path.suffix in FORMATS else [path]


# --- `postproc-export check`.


def check(
    context: typer.Context,
    attached: Annotated[Path, typer.Argument(help="ONNX model (.onnx) or OpenVINO IR (.xml) that `attach` wrote.")],
    raw: Annotated[Path | None, typer.Option("--raw", help="The original with raw outputs, to be run apart.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images", help="Folder or CSV file of real images; labels are not needed.", rich_help_panel=PANEL
        ),
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option("--inputs", help="In place of images: an .npz file with an array for each input.")
    ] = None,
    torch: Annotated[
        str | None,
        typer.Option("--torch", metavar="MODULE:FACTORY", help="The PyTorch model that was exported, to be run apart."),
    ] = None,
    image_output: Annotated[
        str | None, typer.Option("--image-output", help="Which output of --torch is the raw score: key or index.")
    ] = None,
    pixel_output: Annotated[
        str | None, typer.Option("--pixel-output", help="Which output of --torch is the raw map: key or index.")
    ] = None,
    tail: Annotated[
        list[str] | None,
        typer.Option(
            "--tail",
            metavar="MODULE:CLASS",
            help="The class of your own that the file was attached with: imported and run only when named here.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Feed at most so many images.")] = None,
    max_flips: Annotated[
        int, typer.Option("--max-flips", min=0, help="Labels that may flip against --raw or --torch beyond the band.")
    ] = 0,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the raw values for the tail alone.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads of the runtimes.")] = None,
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Put all 2^32 float32 values through the tail, too; takes minutes.")
    ] = False,
    int8: Annotated[
        bool | None,
        typer.Option("--int8/--no-int8", help="Quantise it by nncf and run that, too; by default where nncf is there."),
    ] = None,
    preserved: Annotated[
        Path | None, typer.Option("--preserved", help="The raw file: nothing of it may have changed but for the tail.")
    ] = None,
    contract: Annotated[
        list[str] | None,
        typer.Option(
            "--contract", metavar="anomalib|model-api", help="A program that the file has to fit; repeatable."
        ),
    ] = None,
    stats: Annotated[
        Path | None, typer.Option("--stats", help="Statistics it was attached with, for a file whose record is gone.")
    ] = None,
    image_sensitivity: Annotated[
        float | None, typer.Option(help="With --stats: what it was attached with; default: 0.5, the default there.")
    ] = None,
    pixel_sensitivity: Annotated[float | None, typer.Option(help="The same for pixels.")] = None,
    comparison: Annotated[
        ComparisonChoice | None, typer.Option(help="With --stats: the rule it was attached with; default: ge.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of a table.")] = False,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write the report as JUnit XML, too.")] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Append a Markdown summary to this file, such as a job page.")
    ] = None,
    save_failures: Annotated[
        Path | None, typer.Option("--save-failures", help="Folder for inputs on which something was missed.")
    ] = None,
    image_size: ImageSizeOption = None,
    scale: ScaleOption = None,
    mean: MeanOption = "0",
    std: StdOption = "1",
    channel_order: ChannelOrderOption = ChannelOrderChoice.rgb,
    layout: LayoutOption = AxisOrderChoice.nchw,
    interpolation: InterpolationOption = InterpolationChoice.bilinear,
) -> None:
    """Check that an attached model decides as PyTorch does, in every runtime that is installed.

    Images are pre-processed as the statistics in the file record it; any of the options for that replaces the record.

    Exit code: 0 everything that was judged passed, 1 something was missed, 2 the file or the inputs cannot be used.

    Example: postproc-export check model.post.onnx --raw model.onnx --images bottle/test
    """
    from postproc_export.check import check_parity, check_paths
    from postproc_export.check.inputs import SEED
    from postproc_export.cli.console import progress, write
    from postproc_export.errors import UsageError

    preprocessing = None
    given = given_options(context, PREPROCESSING)
    if given and images is None:
        raise UsageError(f"{given[0]} without images", fix="leave it out, or give --images")
    if given:
        preprocessing = parse_preprocessing(
            size=image_size,
            scale=scale,
            mean=mean,
            std=std,
            channel_order=channel_order.value,
            layout=layout.value,
            interpolation=interpolation.value,
        )
    check_paths(raw=raw, images=images, inputs=inputs)
    read = [attached, *(path for path in (raw, preserved, inputs, images, stats) if path is not None)]
    check_before(read, images, junit=junit, markdown=markdown, save_failures=save_failures)
    with progress("checking") as advance:
        report = check_parity(
            attached,
            raw=raw,
            images=images,
            inputs=inputs,
            torch=torch,
            image_output=image_output,
            pixel_output=pixel_output,
            tail=tail or (),
            preprocessing=preprocessing,
            limit=limit,
            max_flips=max_flips,
            seed=SEED if seed is None else seed,
            threads=threads,
            int8=int8,
            exhaustive=exhaustive,
            preserved=preserved,
            contracts=contract or (),
            save_failures=save_failures,
            progress=advance,
            stats=stats,
            image_sensitivity=image_sensitivity,
            pixel_sensitivity=pixel_sensitivity,
            comparison=None if comparison is None else comparison.value,
        )
    if json:
        write(report.dumps())
    else:
        _show(report)
    write_reports(report, junit=junit, markdown=markdown)
    raise typer.Exit(0 if report else 1)


def _show(report: ParityReport) -> None:
    from postproc_export.cli.console import stdout

    console = stdout()
    console.print(report.table())
    if report.whole:
        from postproc_export.check.report import stage_table

        console.print(stage_table(report.whole))
    for line in report.remarks():
        console.print(line)
