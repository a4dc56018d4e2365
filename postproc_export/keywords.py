"""A function that is called as an options class is made: its keywords, their types and help stand in the class."""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
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

        result = inspect.signature(function).return_annotation
        flat.__signature__ = signature.replace(return_annotation=result)  # type: ignore[attr-defined]
        flat.__doc__ = _with_parameters(function.__doc__, options, signature)
        return flat

    return decorate


def made_like(
    options: Callable[P, object],
) -> Callable[[Callable[Concatenate[S, ...], None]], Callable[Concatenate[S, P], None]]:
    """Give an `__init__` the parameters of an options class; see `called_like`."""
    signature = inspect.signature(options)

    def decorate(function: Callable[Concatenate[S, ...], None]) -> Callable[Concatenate[S, P], None]:
        @functools.wraps(function)
        def flat(self: S, /, *args: P.args, **keywords: P.kwargs) -> None:
            function(self, **_by_name(type(self).__name__, signature, args, keywords))

        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        taken = [own, *signature.parameters.values()]
        flat.__signature__ = inspect.Signature(taken, return_annotation=None)  # type: ignore[attr-defined]
        return flat

    return decorate


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


def _with_parameters(doc: str | None, options: Any, signature: inspect.Signature) -> str:
    """Put a Parameters section behind the summary of a docstring."""
    texts = descriptions(options)
    lines = [f"{name}\n{indent(texts[name], '    ')}" for name in signature.parameters if name in texts]
    summary, _, rest = inspect.cleandoc(doc or "").partition("\n\n")
    parameters = "Parameters\n----------\n" + "\n".join(lines)
    return "\n\n".join(part for part in (summary, parameters, rest) if part)
