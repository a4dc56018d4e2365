"""The command report."""

from typing import Any

from postproc_export.cli.options import command, options_of
from postproc_export.outcome import Outcome
from postproc_export.run_options import ReportOptions


@command(options_of(ReportOptions))
def report(**given: Any) -> Outcome:
    """Write what the statistics tell of every sensitivity as one HTML file, in which the boundary can be moved.

    Example: postproc-export report stats.json -o report.html
    """
    from postproc_export.report import write_report

    return write_report(**given)
