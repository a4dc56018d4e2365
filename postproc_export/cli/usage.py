"""Arguments that cannot be parsed, explained as every other error is: where, found, needed, fix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from cyclopts import CoercionError, MissingArgumentError, UnknownCommandError, UnknownOptionError
from cyclopts.exceptions import UnusedCliTokensError

from postproc_export.errors import UsageError
from postproc_export.validation import choices_of, close_to

if TYPE_CHECKING:
    from cyclopts import CycloptsError

_NUMBERS: Final = {int: ("a whole number", "1"), float: ("a number", "0.5")}


def explained(error: CycloptsError) -> UsageError:
    """Return the error for what a user typed."""
    command = " ".join(["postproc-export", *(error.command_chain or ())])
    text = (error.target.__doc__ or "").partition("Example: ")[2].strip() if error.target else ""
    example = f"such as {text}" if text else f"{command} --help tells what it takes"
    argument = error.argument
    match error:
        case MissingArgumentError() if argument is not None:
            is_named = error.keyword is not None or bool(argument.tokens)
            needed = (argument.parameter.help or "").partition(". ")[0].rstrip(".") or None
            what = f"{error.keyword or argument.name} needs a value" if is_named else f"{argument.name} is required"
            return UsageError(what, needed=needed, fix=example)
        case UnknownOptionError(token=token):
            typed = (token.keyword or token.value).partition("=")[0]
            known = [name for each in error.argument_collection if each.parse for name in each.names]
            return UsageError(f"unknown option {typed}", fix=_nearest(typed, known) or f"{command} --help lists them")
        case CoercionError(token=token) if token is not None and argument is not None:
            flag, choices = token.keyword or command, [str(each) for each in choices_of(argument.hint)]
            if argument.hint in (bool, bool | None):
                what = f"{flag} {token.value}: a switch takes no value"
                return UsageError(what, fix=" or ".join(each for each in argument.names if each.startswith("--")))
            needed, usual = _NUMBERS[int if argument.hint in (int, int | None) else float]
            if choices:
                needed, usual = " or ".join(choices), (close_to(token.value, choices) or choices)[0]
            return UsageError(
                f"{flag} {token.value}", needed=needed, fix=f"{flag} {usual}" if token.keyword else example
            )
        case UnusedCliTokensError():
            return UsageError(f"too many arguments: {' '.join(error.unused_tokens or ())}", fix=example)
        case UnknownCommandError():
            typed, known = (error.unused_tokens or [""])[0], [name for name in error.app or () if name[0] != "-"]
            near = _nearest(typed, known)
            fix = f"postproc-export {near}" if near else "postproc-export --help tells what each does"
            return UsageError(f"unknown command {typed}", needed=", ".join(known), fix=fix)
    return UsageError(str(error), fix=example)


def _nearest(typed: str, known: Sequence[str]) -> str | None:
    """Return the name that comes nearest, or the two that come as near as each other; None where none does."""
    from difflib import SequenceMatcher

    near = close_to(typed, known, count=2)
    closeness = [SequenceMatcher(None, each, typed).ratio() for each in near]
    return " or ".join(each for each, ratio in zip(near, closeness, strict=True) if ratio == closeness[0]) or None
