"""A function that is called as an options class is made: its keywords, their types and help stand in the class."""

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from textwrap import indent
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")


def called_like(options: Callable[P, object]) -> Callable[[Callable[..., R]], Callable[P, R]]:
    """Give a function the parameters of an options class.

    The function itself takes ``**given``: what the caller gave, by name. `help` and editors show the class's parameters
    with their types, defaults and descriptions; a name that is not known is a TypeError.
    """
    signature = inspect.signature(options)

    def decorate(function: Callable[..., R]) -> Callable[P, R]:
        @functools.wraps(function)
        def flat(*args: P.args, **keywords: P.kwargs) -> R:
            return function(**_by_name(function.__name__, signature, args, keywords))

        _describe(flat, function, options, signature)
        return flat

    return decorate


def method_like(
    options: Callable[P, object],
) -> Callable[[Callable[Concatenate[S, ...], R]], Callable[Concatenate[S, P], R]]:
    """Give a method the parameters of an options class behind its first one; see `called_like`."""
    signature = inspect.signature(options)

    def decorate(function: Callable[Concatenate[S, ...], R]) -> Callable[Concatenate[S, P], R]:
        @functools.wraps(function)
        def flat(self: S, /, *args: P.args, **keywords: P.kwargs) -> R:
            return function(self, **_by_name(function.__qualname__, signature, args, keywords))

        _describe(
            flat, function, options, signature, first=[inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)]
        )
        return flat

    return decorate


def _describe(
    flat: Any, function: Any, options: Any, signature: inspect.Signature, *, first: Sequence[inspect.Parameter] = ()
) -> None:
    """Set what `help` shows: the signature, and a Parameters section behind the summary of the docstring."""
    result = inspect.signature(function).return_annotation
    flat.__signature__ = inspect.Signature([*first, *signature.parameters.values()], return_annotation=result)
    texts = descriptions(options)
    lines = [f"{name}\n{indent(texts[name], '    ')}" for name in signature.parameters if name in texts]
    summary, _, rest = inspect.cleandoc(function.__doc__ or "").partition("\n\n")
    parameters = "Parameters\n----------\n" + "\n".join(lines)
    flat.__doc__ = "\n\n".join(part for part in (summary, parameters, rest) if part)


def spelt(
    *names: str,
    metavar: str | None = None,
    text: type | None = None,
    least: int | None = None,
    flags: Mapping[str, tuple[str, str]] | None = None,
    hidden: bool = False,
    only_python: bool = False,
) -> dict[str, Any]:
    """Return how the command line spells an option, as the metadata of its field; by default ``--like-its-name``.

    Parameters
    ----------
    names
        Its names, such as ``"--output", "-o"``; of a switch, the second one switches it off.
    metavar
        What stands for its value in the help.
    text
        The type that a command takes, where the annotation does not say it.
    least
        The smallest value.
    flags
        In place of a value: flags, each with the value that it stands for and its help.
    hidden
        Whether the help leaves it out.
    only_python
        Whether no command has it.
    """
    about = {"names": names, "metavar": metavar, "text": text, "least": least, "flags": flags or {}}
    return {**about, "hidden": hidden, "only_python": only_python}


def descriptions(options: Any) -> dict[str, str]:
    """Return the text of every parameter in the numpydoc docstrings of a class and its bases; none under ``-OO``."""
    texts: dict[str, str] = {}
    for each in reversed(inspect.getmro(options)):
        _, _, section = inspect.cleandoc(each.__doc__ or "").partition("Parameters\n----------\n")
        section = section.partition("\n\n")[0]
        for entry in re.split(r"\n(?=\S)", section) if section else ():
            names, _, text = entry.partition("\n")
            texts |= dict.fromkeys(names.split(", "), inspect.cleandoc(text))
    return texts


def _by_name(
    name: str, signature: inspect.Signature, args: tuple[Any, ...], keywords: Mapping[str, Any]
) -> dict[str, Any]:
    try:
        return signature.bind(*args, **keywords).arguments
    except TypeError as error:
        unknown = next((each for each in keywords if each not in signature.parameters), "")
        near = get_close_matches(unknown, signature.parameters, n=1)
        raise TypeError(f"{name}() {error}" + (f"; did you mean {near[0]!r}?" if near else "")) from None
