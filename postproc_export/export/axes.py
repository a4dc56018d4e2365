"""The example's shape, and which of its axes are to be dynamic."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from postproc_export.errors import UsageError

NAMED: Final = {"batch": 0, "height": -2, "width": -1}
FORM: Final = "batch, height, width, or NAME=INDEX such as height=1"

_STEPS: Final = (32, 64)  # multiples of the strides that networks have, so that the module itself takes most of them


@dataclass(frozen=True, slots=True)
class DynamicAxis:
    """An axis of the input whose size is to be left open.

    Parameters
    ----------
    name
        What the exported file calls it.
    index
        Its place in the input's shape.
    """

    name: str
    index: int

    def describe(self) -> str:
        """Return name and place."""
        return f"'{self.name}' (axis {self.index} of the input)"


def parse_shape(text: str) -> tuple[int, ...]:
    """Return the sizes that ``"1,3,256,256"`` names.

    Raises
    ------
    UsageError
        If it is no list of positive integers.
    """
    parts = [part.strip() for part in re.split("[,x]", text)]
    if not all(part.isascii() and part.isdecimal() and 0 < int(part) < 2**31 for part in parts):
        raise UsageError(f"'{text}' is no shape", needed="sizes with commas between them, such as 1,3,256,256")
    return tuple(map(int, parts))


def parse_axes(asked: str | Iterable[str], shape: Sequence[int]) -> tuple[DynamicAxis, ...]:
    """Return the axes that are to be dynamic.

    Parameters
    ----------
    asked
        ``"batch,height,width"``, or a list of such names: batch is the first axis, height and width are the last two.
        Any other name, and another layout, takes an index: ``"height=1,width=2"``.
    shape
        The example's shape.

    Raises
    ------
    UsageError
        If a name is not known and has no index, an index is not one of the shape's, or two are the same.
    """
    texts = asked.split(",") if isinstance(asked, str) else asked
    axes = tuple(_axis(text.strip(), len(shape)) for text in texts if text.strip())
    for kind, values in (("name", [axis.name for axis in axes]), ("axis", [str(axis.index) for axis in axes])):
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise UsageError(f"{kind} {twice[0]} is asked to be dynamic twice", needed=f"each once: {FORM}")
    return axes


def trace_shape(shape: Sequence[int], axes: Iterable[DynamicAxis]) -> tuple[int, ...]:
    """Return the shape to export with: exporters take a dynamic axis of size 1 for a constant, so those get size 2."""
    dynamic = {axis.index for axis in axes}
    return tuple(max(size, 2) if index in dynamic else size for index, size in enumerate(shape))


def other_sizes(axis: DynamicAxis, size: int) -> Iterator[int]:
    """Yield sizes of an axis other than the exported one, likely ones first."""
    if axis.name == "batch":
        yield from (1, size + 1)
        return
    yield from (size + step for step in _STEPS)
    yield 2 * size
    if size > 1:
        yield size // 2


def _axis(text: str, rank: int) -> DynamicAxis:
    name, given, index = (part.strip() for part in text.partition("="))
    if not name.isidentifier() or (given and not re.fullmatch("[0-9]{1,3}", index)):
        raise UsageError(f"--dynamic {text} names no axis", needed=FORM)
    if not given and name not in NAMED:
        raise UsageError(f"--dynamic {name}: which axis that is is not known", needed=FORM, fix=f"give {name}=INDEX")
    place = int(index) if given else NAMED[name] % rank
    if place >= rank:
        raise UsageError(f"--dynamic {text}: the input has {rank} axes", needed=f"an index from 0 to {rank - 1}")
    return DynamicAxis(name, place)
