"""The command line: one module per command, each of which parses, calls one public function and prints its result.

Results go to stdout, progress and warnings to stderr. Exit codes: 0 done; 1 the check failed, or what was looked for is
not there; 2 wrong usage or unusable input.
"""

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Final

import typer

from graph_patterns.errors import ExplainedError
from postproc_export.cli.attach import attach
from postproc_export.cli.calibrate import calibrate
from postproc_export.cli.check import check
from postproc_export.cli.demo import demo
from postproc_export.cli.detach import detach
from postproc_export.cli.export import export
from postproc_export.cli.inspect import inspect
from postproc_export.cli.update import update
from postproc_export.errors import FileError
from postproc_export.version import __version__

UNUSABLE: Final = 2
INTERRUPTED: Final = 130

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line with these arguments (default: the process's own) and return the exit code."""
    try:
        app(args=None if argv is None else list(argv), prog_name="postproc-export")
    except ExplainedError as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:  # nobody foresaw it where it was raised, such as a full disk behind stdout
        print(f"error: {_of_the_system(error)}", file=sys.stderr)
        return UNUSABLE
    except SystemExit as request:  # how the parser ends every command, with its exit code
        return request.code if isinstance(request.code, int) else 0
    return 0


def entrypoint() -> None:
    """Run the command line and leave the process with its exit code."""
    code = main()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if code != UNUSABLE:
            print(f"error: {_of_the_system(error)}", file=sys.stderr)
        code = UNUSABLE
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries once more, and tells
    sys.exit(code)


def _of_the_system(error: OSError) -> FileError:
    where = "cannot write to stdout or a temporary file" if error.filename is None else f"cannot use {error.filename}"
    fix = "make room where they go to" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
    return FileError(where, found=error.strerror or str(error), fix=fix)
