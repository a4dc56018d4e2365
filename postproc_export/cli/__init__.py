"""The command line: one module per command, each of which parses, calls one public function and prints its result.

Results go to stdout, progress and warnings to stderr. Exit codes: 0 done; 1 the check failed, or what was looked for is
not there; 2 wrong usage or unusable input; 128 + n stopped by signal n.
"""

import errno
import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from postproc_export.errors import FileError

UNUSABLE: Final = 2
INTERRUPTED: Final = 130
_OBJECTS: Final = 50_000  # between two looks for garbage: a small attach makes 28,000, and none of them is any


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line with these arguments (default: the process's own) and return the exit code."""
    return _main(sys.argv[1:] if argv is None else list(argv))


def _main(arguments: list[str], *, owns_process: bool = False) -> int:
    from postproc_export.cli.console import remark, write
    from postproc_export.cli.overview import HELP_FLAGS, overview

    try:
        if arguments and arguments not in [[flag] for flag in HELP_FLAGS]:
            return _run(arguments, owns_process=owns_process)
        write(overview())
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:  # nobody foresaw it where it was raised, such as a full disk behind stdout
        remark(f"error: {_of_the_system(error)}", is_error=True)
        return UNUSABLE
    return 0 if arguments else UNUSABLE


def _run(arguments: Sequence[str], *, owns_process: bool) -> int:
    from cyclopts import CycloptsError

    from postproc_export.cli.commands import app
    from postproc_export.cli.console import leftovers_to_stderr, remark
    from postproc_export.cli.overview import HOMES
    from postproc_export.cli.usage import explained
    from postproc_export.errors import PostprocError
    from postproc_export.process import natives_of_command

    if arguments[0] in HOMES:  # deep in cyclopts, where it would be imported, NumPy's import takes longer
        import_module(f"{__name__}.{HOMES[arguments[0]]}")
    if owns_process:
        gc.freeze()  # what was imported stays, and need not be looked at again
        gc.set_threshold(_OBJECTS)
        gc.enable()
    try:
        with leftovers_to_stderr(), natives_of_command():
            _refuse_empty(arguments)
            code = app(arguments)
    except (PostprocError, CycloptsError) as error:
        remark(f"error: {(error if isinstance(error, PostprocError) else explained(error)).text}", is_error=True)
        return UNUSABLE
    return 0 if code is None else int(code)  # None: help or the version was shown


def entrypoint() -> None:
    """Run the command line and leave the process with its exit code."""
    gc.disable()  # until the command runs: next to nothing of what is imported is garbage
    from postproc_export.process import end_on_signals

    end_on_signals()  # before what takes long to import
    code = _main(sys.argv[1:], owns_process=True)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if code != UNUSABLE:
            print(f"error: {_of_the_system(error)}", file=sys.stderr)
        code = UNUSABLE
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries once more, and tells
    gc.freeze()  # the process ends: to look for garbage among all that was imported takes long and frees nothing
    sys.exit(code)


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Raise UsageError for an argument without a character: as a path it would be the current folder."""
    from postproc_export.errors import UsageError

    for place, argument in enumerate(arguments):
        if not argument or (argument.startswith("--") and argument.endswith("=")):
            before = " ".join(["postproc-export", *arguments[:place], argument]).rstrip()
            raise UsageError(f"nothing stands behind {before}", found="an empty argument", fix=_UNSET)


_UNSET: Final = "give a value; a variable of the shell that is not set gives none"


def _of_the_system(error: OSError) -> "FileError":
    from postproc_export.errors import FileError

    where = "cannot write to stdout or a temporary file" if error.filename is None else f"cannot use {error.filename}"
    fix = "make room where they go to" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
    return FileError(where, found=error.strerror or str(error), fix=fix)
