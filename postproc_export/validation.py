"""What counts, files, JSON and keywords must be to be taken, stated once for all that is given.

A function that is called as an options class is made has its keywords, their types and help in the class.
"""

import functools
import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import Field, fields
from math import isinf
from numbers import Integral
from pathlib import Path
from textwrap import indent
from typing import Any, Concatenate, Final, Literal, ParamSpec, TypeVar, get_args, get_origin

from graph_patterns.onnx.wire import kind_of, special_kind
from postproc_export.errors import FileError, MetadataError, PostprocError, UsageError

DEEPEST: Final = 64  # lists and objects within each other; what this package writes has 6


def check_count(name: str, value: object) -> None:
    """Raise `MetadataError` unless a value is an integer of at least 0 or None."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise MetadataError(f"{name} is not a count", found=shown(value), needed="an integer of at least 0")


def shown(value: object) -> str:
    """Return the `repr` of a value for an error, at most 60 characters of it."""
    if isinstance(value, int) and abs(value) > 10**60:  # Python refuses to print the longest ones
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def check_file(path: Path, *, what: str = "", needed: str = "a file") -> None:
    """Raise FileError for a path that is no regular file before anything opens it: a pipe would wait for a writer.

    `what` says for the message what the file is, with an article.
    """
    fix = None
    try:
        found = special_kind(path)
    except FileNotFoundError:
        found, fix = "no such file", "check the path"
    except (OSError, ValueError) as error:  # ValueError: a null byte
        found = (error.strerror if isinstance(error, OSError) else None) or str(error)
    else:
        fix = "write what comes out of it to a file, and give that" if found not in (None, "a folder") else None
    if found is not None:
        raise FileError(f"cannot read {what} {path}".replace("  ", " "), found=found, needed=needed, fix=fix)


def kind_of_file(path: Path) -> str | None:
    """Return what a file is by its first bytes; None where they do not tell. Raises OSError if it cannot be read."""
    with path.open("rb") as stream:
        return kind_of(stream.read(512))


def is_label(value: object, label: object) -> bool:
    """Whether a label in a file is the one that was named: the same text but for spaces around it, or number."""
    if str(value).strip() == str(label).strip():
        return True
    try:
        return float(value) == float(label)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def close_to(text: str, known: Iterable[str], *, count: int = 1) -> list[str]:
    """Return the names that come nearest to a text that is none of them, the nearest first, if any is like it."""
    from difflib import get_close_matches  # only an error asks for it

    return get_close_matches(text, list(known), n=count)


def stated_twice(names: Iterable[str]) -> str | None:
    """Return the names that stand more than once among some, for an error; None where none does."""
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    return ", ".join(map(repr, twice)) or None


def read_json(path: Path, *, what: str, fix: str) -> Any:
    """Read a UTF-8 file as `parse_json` does; `what` names it, and `fix` says what to give instead of another one.

    Raises FileError if it cannot be read, and MetadataError if it is no JSON, which says what it is.
    """
    check_file(path, what=what)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileError(f"cannot read {what} {path}", found=error.strerror) from error
    kind = kind_of(content[:512])
    try:
        return parse_json(content.decode("utf-8"), title=f"{what} {path}")
    except ValueError as error:  # bytes that are not UTF-8, or MetadataError
        if isinstance(error, MetadataError) and kind == "JSON":
            raise MetadataError(error.what, found=error.found, needed="the whole file", fix=fix) from error
        found = kind or "bytes that are no text"
        raise MetadataError(f"{what} {path} is not JSON", found=found, needed="JSON", fix=fix) from error


def parse_json(text: str, *, title: str) -> Any:
    """Read JSON as the standard has it: no NaN, no Infinity, no key twice; raises MetadataError for anything else.

    A number beyond float64 is refused, too: it would become an infinity, or could not be computed with.
    """
    # An integer beyond float64 fills at least one of these pieces. Without one, all integers are read at once.
    is_long = any(text[at : at + 100].isdigit() for at in range(0, len(text), 100))
    try:
        document = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_float,
            parse_int=_int if is_long else None,
        )
    except RecursionError:
        document = None
    except ValueError as error:
        raise MetadataError(f"{title} is not JSON", found=str(error)) from error
    else:
        if _depth_within(document, DEEPEST):
            return document
    raise MetadataError(f"{title} is not JSON that can be read", found="nested too deeply")


def _depth_within(document: Any, limit: int) -> bool:
    """Whether a document is nested at most so deep: what is deeper could be read, and then not be shown or written."""
    level = [document]
    for _ in range(limit):
        level = [
            item
            for outer in level
            if isinstance(outer, (list, dict))
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return True
    return False


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = stated_twice(key for key, _ in pairs)
    if twice is not None:
        raise ValueError(f"{twice} stands twice in one object")
    return dict(pairs)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _float(text: str) -> float:
    if isinf(number := float(text)):
        raise ValueError(f"a number is beyond float64: {text[:20]}{'...' if len(text) > 20 else ''}")
    return number


def _int(text: str) -> int:
    _float(text)
    return int(text)


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
            with spelling(options):
                return function(**_by_name(function.__name__, signature, args, keywords, options))

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
            with spelling(options):
                return function(self, **_by_name(function.__qualname__, signature, args, keywords, options))

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

    Of a switch the second name switches it off. `metavar` stands for the value in the help, `text` is the type that a
    command takes where the annotation does not say it, `least` the smallest value. `flags` stand in place of a value,
    each with the value that it means and its help. The help leaves out what is `hidden`.
    """
    about = {"names": names, "metavar": metavar, "text": text, "least": least, "flags": flags or {}}
    return {**about, "hidden": hidden, "only_python": only_python}


def flags_of(item: Field[Any]) -> tuple[str, ...]:
    """Return how the command line spells a field: of a switch first what switches on, then what switches off."""
    about = item.metadata
    return tuple(about.get("flags") or about.get("names") or (f"--{item.name.replace('_', '-')}",))


def choices_of(annotation: Any) -> tuple[Any, ...]:
    """Return the values that a `Literal` lists, alone or as one of several types; none of any other type."""
    parts = (annotation, *get_args(annotation))
    return next((get_args(part) for part in parts if get_origin(part) is Literal), ())


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
    name: str, signature: inspect.Signature, args: tuple[Any, ...], keywords: Mapping[str, Any], options: Any
) -> dict[str, Any]:
    try:
        given = signature.bind(*args, **keywords).arguments
    except TypeError as error:
        unknown = next((each for each in keywords if each not in signature.parameters), "")
        near = close_to(unknown, signature.parameters)
        raise TypeError(f"{name}() {error}" + (f"; did you mean {near[0]!r}?" if near else "")) from None
    for item in fields(options):
        least, value = item.metadata.get("least"), given.get(item.name)
        is_whole = isinstance(value, Integral) and not isinstance(value, bool)
        if least is not None and value is not None and not (is_whole and value >= least):
            flag, needed = flags_of(item)[0], f"a whole number of at least {least}"
            raise UsageError(f"{flag} {shown(value)}", needed=needed, fix=f"{flag} {least}, or leave it out")
        if item.type == Iterable[str] and item.name in given:
            given[item.name] = _names(flags_of(item)[0], value)
    return given


def _names(flag: str, value: object) -> tuple[str, ...]:
    """Return the names that an option is given; one of them may stand alone."""
    found = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (value,)
    if not all(isinstance(name, str) for name in found):
        raise UsageError(f"{flag} {shown(value)}", needed="names", fix="give them as a list of texts, or leave it out")
    return found


_FLAG: Final = re.compile(r"(?<![\w-])(--[a-z][a-z0-9-]*)(?: ([^\s,:;)]+))?")
_KEYWORD: Final = re.compile(r"(?<![\w.'/-])[a-z]+(?:_[a-z0-9]+)+(?![\w.'/=(-])")


@contextmanager
def spelling(options: Any) -> Iterator[None]:
    """Spell options in errors of the block: in `text` as the command line does, in `str` as Python does."""
    try:
        yield
    except PostprocError as error:
        keywords = {flag: (item, place) for item in fields(options) for place, flag in enumerate(flags_of(item))}
        error.args = (_FLAG.sub(lambda found: _as_keyword(found, keywords), error.text),)
        flags = {item.name: flags_of(item)[0] for item in fields(options) if not item.metadata.get("only_python")}
        for name in ("what", "found", "needed", "fix"):
            text = getattr(error, name)
            setattr(error, name, text and _KEYWORD.sub(lambda found: flags.get(found[0], found[0]), text))
        raise


def _as_keyword(found: re.Match[str], keywords: Mapping[str, tuple[Field[Any], int]]) -> str:
    """Return a flag of a text, and a value behind it that is one, as Python has it; each flag's field is known.

    In a command that stands in the text it stays as it is.
    """
    flag, value = found.groups()
    if flag not in keywords or "postproc-export " in found.string[: found.start()].rpartition("\n")[2]:
        return found[0]
    (item, place), behind = keywords[flag], "" if value is None else f" {value}"
    if item.metadata.get("flags"):
        return f"{item.name}={item.metadata['flags'][flag][0]!r}{behind}"
    if isinstance(item.default, bool) or (place and flag.startswith("--")):  # a switch, or what switches one off
        return f"{item.name}={not place}{behind}"
    if value in choices_of(item.type):
        return f"{item.name}={value!r}"
    is_value = value is not None and (value[0].isdigit() or value[0] == "-" or value.isupper())
    return f"{item.name}={value}" if is_value else f"{item.name}{behind}"
