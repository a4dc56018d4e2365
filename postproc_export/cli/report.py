"""The command report."""

from typing import Any, Final

from postproc_export.cli.console import progress
from postproc_export.cli.options import command, image_options, options_of, preprocessing_of, spelling_of
from postproc_export.errors import UsageError
from postproc_export.outcome import Outcome
from postproc_export.run_options import ReportOptions

_OF_IMAGES: Final = image_options(ReportOptions, defaults=False)


@command(options_of(ReportOptions, without=["preprocessing", "other_preprocessing"]), _OF_IMAGES)
def report(**given: Any) -> Outcome:
    """Write what the statistics tell of every sensitivity as one HTML file, in which the boundary can be moved.

    Images are pre-processed as the statistics record it, and another value is refused without --other-preprocessing.

    Example: postproc-export report stats.json -o report.html
    """
    from postproc_export.report import write_report

    unused = [option for name, option in spelling_of(_OF_IMAGES).items() if name in given]
    if unused and "images" not in given:
        raise UsageError(f"{unused[0]} without images", fix="leave it out, or give --images")
    preprocessing = preprocessing_of(given)
    with progress("running the model", unit="images") as advance:
        return write_report(**given, preprocessing=preprocessing, progress=advance)
