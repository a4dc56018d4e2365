"""The commands, as one application."""

from typing import Annotated

import typer

from postproc_export import __version__
from postproc_export.cli.attach import attach, detach, inspect, update
from postproc_export.cli.calibrate import calibrate
from postproc_export.cli.check import check
from postproc_export.cli.export import demo, export

app = typer.Typer(
    name="postproc-export",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: twice as fast, and no option name is cut off in a narrow terminal
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (demo, calibrate, attach, export, check, inspect, update, detach):
    app.command()(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"postproc-export {__version__}")
        raise typer.Exit


@app.callback()
def _callback(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Calibrate, attach and check the post-processing of exported anomaly-detection models."""
