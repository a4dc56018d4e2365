"""What `postproc-export calibrate` does: what can fail is refused first, then it runs, and no result is lost."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from postproc_export.calibration import COMPARED, Calibrator
from postproc_export.calibration import calibrate as calibrate_shards
from postproc_export.calibration.models.source import ModelSource
from postproc_export.calibration.sources import source_files
from postproc_export.cli.calibrate_view import statistics_view
from postproc_export.cli.console import progress, quiet_logging, stderr, stdout, write
from postproc_export.errors import FileError
from postproc_export.files.checking import check_folder, check_target
from postproc_export.stats import CalibrationStats


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
    listing = [images] if images is not None and images.is_file() else []
    check_target(output, source_files(source) if images is None else [*source, *listing])
    if spool_dir is not None:
        check_folder(spool_dir)


def from_shards(source: Sequence[Path], options: CalibrationOptions) -> CalibrationStats:
    """Calibrate on raw outputs in files, with a bar where somebody sees it: its total takes a look at every header."""
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
    if as_json:
        write(stats.dumps())
    else:
        stdout().print(statistics_view(stats))
