"""The command calibrate: its options, its run, and the table it prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import StrEnum
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from postproc_export.cli.options import (
    PREPROCESSING,
    AxisOrderChoice,
    BatchSizeOption,
    ChannelOrderChoice,
    ChannelOrderOption,
    ImageSizeOption,
    ImagesOption,
    InterpolationChoice,
    InterpolationOption,
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

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from postproc_export.calibration.model import ModelSource
    from postproc_export.stats import CalibrationStats, LevelStats


# --- The result of `calibrate` as tables.

_RATES: Final = ("f1", "precision", "recall", "fpr")


def statistics_view(stats: CalibrationStats) -> RenderableType:
    """Return a table with one column per calibrated level, and one of the policies that were compared."""
    from rich.console import Group
    from rich.table import Table

    from postproc_export.stats import LEVELS

    levels = {level: found for level in LEVELS if (found := stats.level(level)) is not None}
    table = Table("", *levels, title="calibration, in raw units", title_justify="left")
    columns = [_cells(found) for found in levels.values()]
    for name in columns[0]:
        table.add_row(name, *(cells[name] for cells in columns))
    compared = [_policies_view(level, found.details["policies"]) for level, found in levels.items() if _compared(found)]
    return Group(table, *compared)


def _compared(level: LevelStats) -> bool:
    return bool(level.details.get("policies"))


def _cells(level: LevelStats) -> dict[str, str]:
    rates = level.details.get("at_threshold") or {}
    counts = {name: getattr(level, f"n_{name}") for name in ("normal", "anomalous", "dropped")}
    return {
        "threshold": "none" if level.threshold is None else _number(level.threshold),
        "95 % interval of it": _range(level.details.get("threshold_interval")),
        "min": _number(level.min),
        "max": _number(level.max),
        "policy": level.policy or "-",
        "decided by": level.rule or "-",
        **{name: "-" if count is None else f"{count:,}" for name, count in counts.items()},
        **{_label(name): _rate(rates.get(name)) for name in _RATES},
        "AUROC": _interval(level.details.get("auroc")),
        "average precision": _interval(level.details.get("average_precision")),
    }


def _policies_view(level: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(
        "policy", "threshold", *map(_label, _RATES), title=f"other policies, {level} level", title_justify="left"
    )
    for row in rows:
        threshold = _unreachable(row) if row.get("threshold") is None else _number(row["threshold"])
        table.add_row(str(row["policy"]), threshold, *(_rate(row.get(name)) for name in _RATES))
    return table


def _number(value: float) -> str:
    """Return the shortest decimal that reads back to the same float32: typed in, it is the same threshold."""
    from postproc_export.float32 import shortest, to_float32

    return repr(shortest(to_float32(value))).removesuffix(".0")


def _unreachable(row: Mapping[str, Any]) -> str:
    best = row.get("reachable") or {}
    if best.get("precision") is None or best.get("threshold") is None:
        return "not reachable"
    # Rounded down: a precision of 1.0000 that is none cannot be asked for.
    return f"not reachable (precision {floor(best['precision'] * 1e4) / 1e4:.4f} at {_number(best['threshold'])})"


def _label(rate: str) -> str:
    return rate.upper() if rate in ("f1", "fpr") else rate


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _range(interval: Mapping[str, Any] | None) -> str:
    if not interval or interval.get("low") is None:
        return "-"
    return f"{_number(interval['low'])} to {_number(interval['high'])}"


def _interval(interval: Mapping[str, float] | None) -> str:
    if not interval:
        return "-"
    low, high = interval["low"], interval["high"]
    return f"{low:.4f}" if f"{low:.4f}" == f"{high:.4f}" else f"{low:.4f} to {high:.4f}"


# --- What `postproc-export calibrate` does: what can fail is refused first, then it runs, and no result is lost.


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """What the command passes on, wherever the values come from."""

    image_policy: str
    pixel_policy: str
    nonfinite: Literal["error", "drop"]
    compare: bool
    spool_dir: Path | None
    dask: str | None


def check_before(source: Sequence[Path], images: Path | None, *, output: Path, spool_dir: Path | None) -> None:
    """Refuse an output that is read or cannot be written, and a folder for the spool in which nothing can be.

    Raises
    ------
    FileError
        If it is so. Of a model and its images, `from_model` looks at each file once they are known.
    """
    from postproc_export.calibration.sources import source_files
    from postproc_export.files import check_folder, check_target

    listing = [images] if images is not None and images.is_file() else []
    check_target(output, source_files(source) if images is None else [*source, *listing])
    if spool_dir is not None:
        check_folder(spool_dir)


def from_shards(source: Sequence[Path], options: CalibrationOptions) -> CalibrationStats:
    """Calibrate on raw outputs in files, with a bar where somebody sees it: its total takes a look at every header."""
    from postproc_export.calibration import COMPARED
    from postproc_export.calibration import calibrate as calibrate_shards
    from postproc_export.cli.console import progress, quiet_logging, stderr

    seen = stderr().is_terminal
    with progress("reading", unit="values") as advance, nullcontext() if options.dask is None else quiet_logging():
        return calibrate_shards(
            source,
            image_policy=options.image_policy,
            pixel_policy=options.pixel_policy,
            nonfinite=options.nonfinite,
            compare=COMPARED if options.compare else (),
            progress=(lambda at: advance(at.values, at.total, f"{at.level} level, pass {at.number}")) if seen else None,
            dask=options.dask,
        )


def from_model(opened: ModelSource, options: CalibrationOptions, *, output: Path) -> CalibrationStats:
    """Calibrate on a model that is run over images, with a bar.

    Raises
    ------
    FileError
        If the output is one of the files that are read; nothing was run then.
    """
    from postproc_export.calibration import COMPARED, Calibrator
    from postproc_export.cli.console import progress, stderr
    from postproc_export.files import check_target

    check_target(output, opened.files())
    stderr().print(opened.describe())
    calibrator = Calibrator(
        image_policy=options.image_policy,
        pixel_policy=options.pixel_policy,
        nonfinite=options.nonfinite,
        spool_dir=options.spool_dir,
        compare=COMPARED if options.compare else (),
    )
    with calibrator, progress("running the model", unit="images") as advance:

        def show(done: int, total: int) -> None:
            advance(done, total)
            if done == total:
                advance(0, None, "computing the statistics")

        return opened.calibrate(calibrator, progress=show)


def deliver(stats: CalibrationStats, output: Path, *, as_json: bool) -> None:
    """Write the statistics file and print it, or a table of it; what cannot be written is printed nevertheless.

    Raises
    ------
    FileError
        If the file cannot be written.
    """
    from postproc_export.cli.console import stderr
    from postproc_export.errors import FileError

    try:
        stats.save(output)
    except FileError:
        _show(stats, as_json=as_json)
        raise
    try:
        _show(stats, as_json=as_json)
    finally:
        stderr().print(f"statistics written to {output}")


def _show(stats: CalibrationStats, *, as_json: bool) -> None:
    from postproc_export.cli.console import stdout, write

    if as_json:
        write(stats.dumps())
    else:
        stdout().print(statistics_view(stats))


# --- `postproc-export calibrate`.

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
    layout: LayoutOption = AxisOrderChoice.nchw,
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
        typer.Option("--tail", metavar="NAME:KEY=VALUE", help="A custom step to calibrate behind; repeatable."),
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
    from postproc_export.cli.console import warnings_to_stderr
    from postproc_export.process import claimed

    model = _model_among(source, images)
    _refuse_unused(context, model)
    check_before(source, images, output=output, spool_dir=spool_dir)
    options = CalibrationOptions(image_policy, pixel_policy, nonfinite.value, compare, spool_dir, dask)
    with claimed([output]), warnings_to_stderr():
        if model is None or images is None:
            stats = from_shards(source, options)
        else:
            from postproc_export.calibration.model import ModelSource

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
