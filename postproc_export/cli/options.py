"""Commands that take the options of a class: all that is known of an option stands in `postproc_export.options`."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from functools import cache, partial, update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias, Union, get_args, get_origin

from cyclopts import Group, Parameter

from postproc_export.cli.console import asked_for, show, show_next, warnings_to_stderr
from postproc_export.errors import UsageError
from postproc_export.validation import descriptions, flags_of

if TYPE_CHECKING:
    from rich.console import RenderableType

OPTIONS: Final = Group("Options", sort_key=0)
IMAGES: Final = Group("Images", sort_key=1)
PRINTING: Final = Group("Printing", sort_key=2)

Given: TypeAlias = Mapping[str, Any]
Next: TypeAlias = Callable[[Any, Given], Sequence[object]]
View: TypeAlias = Callable[[Any], "str | RenderableType"]
Options: TypeAlias = Sequence[inspect.Parameter] | Callable[[], Sequence[inspect.Parameter]]


def _switch(name: str, *flags: str, text: str) -> inspect.Parameter:
    parameter = Parameter(name=flags, help=text, group=PRINTING)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, parameter])


_COMMON: Final = (
    _switch("json", "--json", text="Print one JSON object on stdout, and nothing else there; see docs/json.md."),
    _switch("quiet", "--quiet", "-q", text="Print no progress, no notes and no summary; errors stay, and --json."),
    _switch("verbose", "--verbose", "-v", text="Print the details of what was found."),
)


class Command:
    """A function with a signature that is made when somebody asks: of the commands in a module one runs."""

    def __init__(self, function: Any, run: Callable[..., int], made: Callable[[], inspect.Signature]) -> None:
        self._run, self._made = run, made
        update_wrapper(self, function)

    @property
    def __signature__(self) -> inspect.Signature:
        return self._made()

    def __call__(self, *args: Any, **keywords: Any) -> int:
        """Run it, and return the exit code."""
        return self._run(*args, **keywords)


def command(
    *options: Options,
    then: Next = lambda result, given: (),
    view: View = lambda result: result.summary(),
    details: View | None = None,
    is_wanted: bool = False,
) -> Callable[[Callable[..., Any]], Command]:
    """Make a command of a function: it has its own parameters, these and `_COMMON`, and takes by name what is given.

    Options that take time are given as what returns them. The name and the help are the function's. What it returns is
    printed: its JSON object, or what `view` makes of it, with ``--verbose`` what `details` makes of it; a command
    without details has no such option. The exit code is 0 where it is truthy, else 1. A function that prints by itself
    returns the exit code. `then` gives the words of the command to run next, from the result and what was given.
    `is_wanted` says that the command does nothing but tell, which ``--quiet`` leaves.
    """
    common = [each for each in _COMMON if each.name != "verbose" or details is not None]

    def decorate(function: Callable[..., Any]) -> Command:
        @cache
        def own() -> list[inspect.Parameter]:
            return [*inspect.signature(function, eval_str=True).parameters.values()]

        @cache
        def signature() -> inspect.Signature:
            all_parameters = [each for each in own() if each.kind != each.VAR_KEYWORD]
            all_parameters += [each for group in options for each in (group() if callable(group) else group)]
            all_parameters += common
            return inspect.Signature(sorted(all_parameters, key=lambda each: each.kind == each.KEYWORD_ONLY))

        def run(*args: Any, **keywords: Any) -> int:
            named = [each for each in signature().parameters.values() if each.kind == each.KEYWORD_ONLY]
            first = [each.name for each in own() if each.kind == each.POSITIONAL_ONLY]
            given = _without_flags(signature().bind(*args, **keywords).arguments, spelling_of(named))
            how = {each.name: given.pop(each.name, False) for each in common}
            shown = details if details is not None and how.pop("verbose") else view
            with asked_for(**how):
                with warnings_to_stderr():
                    placed = [given[name] for name in first]
                    result = function(*placed, **{name: given[name] for name in given if name not in first})
                if isinstance(result, int):
                    return result
                show(result, shown, is_wanted=is_wanted)
                show_next(then(result, given))
            return 0 if result else 1

        return Command(function, run, signature)

    return decorate


def options_of(
    options: Any,
    *,
    only: Collection[str] = (),
    without: Collection[str] = (),
    group: Group = OPTIONS,
    prefix: str = "",
    defaults: bool = True,
) -> list[inspect.Parameter]:
    """Return the parameters of a command for the fields of an options class.

    `only` or `without` choose the fields, `group` is their heading in the help. `prefix` tells the names of parameters
    apart where those of two classes are alike. `defaults` is whether the help shows defaults: not where an option that
    is not given stays as it is.
    """
    texts = descriptions(options)
    taken = [item for item in fields(options) if item.init and not item.metadata.get("only_python")]
    taken = [item for item in taken if item.name not in without and (not only or item.name in only)]
    found: list[inspect.Parameter] = []
    for item in taken:
        spelling = item.metadata.get("names", ())
        is_shown = defaults and bool(item.default) and type(item.default) in (str, int, float)
        found += _parameters(item, texts.get(item.name, ""), spelling, group, show_default=is_shown)
    return [each.replace(name=f"{prefix}{each.name}") for each in found]


def spelling_of(parameters: Iterable[inspect.Parameter]) -> dict[str, str]:
    """Return how each parameter is spelt on the command line, by name."""
    return {each.name: get_args(each.annotation)[1].name[0] for each in parameters}


def _parameters(
    item: Field[Any], text: str, names: Sequence[str], group: Group, *, show_default: bool
) -> Iterator[inspect.Parameter]:
    """Yield the parameter for a field, or a switch for each of its flags."""
    about, keyword = item.metadata, partial(inspect.Parameter, kind=inspect.Parameter.KEYWORD_ONLY)
    for flag, (value, meaning) in about.get("flags", {}).items():
        switch = Parameter(name=flag, help=meaning, group=group, show_default=False)
        yield keyword(f"{item.name}__{value}", default=False, annotation=Annotated[bool, switch])
    if about.get("flags"):
        return
    kind = about.get("text") or _kind_of(item.type)
    names = names or flags_of(item)
    negative = names[1:] if kind is bool else ()
    parameter = Parameter(
        name=names[:1] if kind is bool else names,
        negative=negative,
        help=" ".join(text.replace("`", "").split()),
        group=group,
        metavar=about.get("metavar"),
        converter=_whole_number if kind is int else None,
        show=not about.get("hidden", False),
        show_default=show_default,
    )
    if item.default is MISSING and not item.kw_only and not item.metadata:
        parameter = Parameter(help=parameter.help)
        yield inspect.Parameter(item.name, inspect.Parameter.POSITIONAL_ONLY, annotation=Annotated[kind, parameter])
    elif item.default is MISSING:
        yield keyword(item.name, annotation=Annotated[kind, parameter])
    else:  # a switch stays one, which takes no value: completion asks
        optional = kind if kind is bool else kind | None
        yield keyword(item.name, default=item.default, annotation=Annotated[optional, parameter])


def _whole_number(_: object, tokens: Sequence[Any]) -> int:
    """Read an integer; cyclopts would round 1.5 to 2."""
    return int(tokens[0].value)


def _kind_of(annotation: Any) -> Any:
    """Return what a command reads where Python takes this type: of several the one that can be typed."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    kinds = tuple(each for each in kinds if each is not types.NoneType)
    if any(get_origin(each) in (Sequence, Iterable) for each in kinds):
        return list[str]
    literal = next((each for each in kinds if get_origin(each) is Literal), None)
    return literal or next((each for each in (Path, str) if each in kinds), kinds[0])


def _without_flags(given: Mapping[str, Any], spelling: Mapping[str, str]) -> dict[str, Any]:
    """Put the value that a flag stands for in its place; raises UsageError for two flags of the same option."""
    options = {name: value for name, value in given.items() if "__" not in name}
    flags: dict[str, str] = {}
    for name in (name for name, value in given.items() if "__" in name and value):
        option, _, options_value = name.partition("__")
        if option in flags:
            names = f"{flags[option]} and {spelling[name]}"
            raise UsageError(f"{names} contradict each other", needed="one of them", fix="leave the others out")
        flags[option], options[option] = spelling[name], options_value
    return options


_PREFIX: Final = "preprocessing_"
_FILE: Final = "preprocessing"
_OTHER: Final = "other_preprocessing"
_OLD_LAYOUT: Final = f"{_PREFIX}old_layout"


def image_options(owner: Any, *, defaults: bool = True, old_layout: str = "--layout") -> list[inspect.Parameter]:
    """Return the options of the pre-processing, for an options class that takes one.

    `old_layout` is the former name of the option for the layout, which is taken and not shown.
    """
    from postproc_export.images.preprocessing import Preprocessing

    whole = options_of(owner, only=[_FILE, _OTHER], group=IMAGES)
    single = options_of(Preprocessing, group=IMAGES, prefix=_PREFIX, defaults=defaults)
    (layout,) = (each for each in single if each.name == f"{_PREFIX}layout")
    hidden = Parameter(name=(old_layout,), show=False)
    former = layout.replace(name=_OLD_LAYOUT, annotation=Annotated[get_args(layout.annotation)[0], hidden])
    return [*whole, *single, former]


def preprocessing_of(given: dict[str, Any]) -> dict[str, Any] | None:
    """Take the pre-processing out of what was given: the fields of the file and in their place those of options."""
    from postproc_export.images.preprocessing import given_fields, merged_fields

    names = [name for name in given if name.startswith(_PREFIX)]
    single = {name.removeprefix(_PREFIX): given.pop(name) for name in names}
    if "old_layout" in single:
        if "layout" in single:
            raise UsageError("the layout of the input is given twice", fix="give --input-layout alone")
        single["layout"] = single.pop("old_layout")
    file = given_fields(given.pop(_FILE, None))
    return merged_fields(file, single) or None
