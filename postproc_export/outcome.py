"""What a function did, told once: as a text of one fact a line, as a table in a notebook, and as JSON.

docs/json.md lists the keys that every command's JSON has.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from postproc_export import __version__
from postproc_export.validation import shown

ROWS, COLUMNS = 20, 79
"""What is shown of a result in an interpreter, so that it fits on a screen of 24 rows and 80 columns."""

_LABEL: Final = 8  # columns


class Outcome(ABC):
    """Base of what the public functions return: they say what they did as facts, each with a label."""

    __slots__ = ()

    @abstractmethod
    def headline(self) -> str:
        """Return what was done, in one line."""

    @abstractmethod
    def facts(self) -> Iterator[tuple[str, str]]:
        """Yield what there is to know beside it, each with a label of one word."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that ``--json`` prints: the keys of `outcome_json`, and its own."""

    def summary(self) -> str:
        """Return what was done, one fact a line."""
        return "\n".join(self._lines())

    def _lines(self) -> list[str]:
        facts = [*self.facts()]
        width = max((len(label) for label, _ in facts), default=0)
        return [self.headline(), *(f"  {label:<{max(_LABEL, width)}} {text}" for label, text in facts)]

    def __repr__(self) -> str:
        lines = self._lines()
        left = len(lines) - ROWS
        rows = [f"<{type(self).__name__}: {lines[0]}", *lines[1:ROWS], *([f"  ... {left} more"] if left > 0 else [])]
        return "\n".join(row if len(row) <= COLUMNS else f"{row[: COLUMNS - 3]}..." for row in rows) + ">"

    def _repr_html_(self) -> str:
        return html_table(self.facts(), caption=self.headline())


def html_table(rows: Iterable[Sequence[str]], *, caption: str, titles: Sequence[str] = ()) -> str:
    """Return a table for a notebook: `titles` above the columns, the first cell of each row as its label."""
    from html import escape

    above = "".join(f"<th>{escape(title)}</th>" for title in titles)
    cells = "".join(
        f"<tr><th>{escape(label)}</th>{''.join(f'<td>{escape(text)}</td>' for text in texts)}</tr>"
        for label, *texts in rows
    )
    return f"<table><caption>{escape(caption)}</caption>{f'<tr>{above}</tr>' if above else ''}{cells}</table>"


def outcome_json(
    source: object, output: Path | None, levels: Mapping[Any, Any], notes: Iterable[str], **more: Any
) -> dict[str, Any]:
    """Return the JSON object of a result: the keys that all have, then its own."""
    return {
        "version": __version__,
        "input": None if source is None else str(source),
        "output": None if output is None else str(output),
        "levels": dict(levels),
        "sensitivities": {level: found and found["sensitivity"] for level, found in levels.items()},
        "notes": list(notes),
        **more,
    }


def brief_repr(name: str, values: Mapping[str, object], details: Mapping[str, object]) -> str:
    """Return the `repr` of what holds some values and many details, of which lists and objects are left out."""
    told = [f"{key}={value!r}" for key, value in values.items()]
    inside = [f"{key!r}: {_brief(value)}" for key, value in islice(details.items(), ROWS)]
    inside += ["..."] if len(details) > ROWS else []
    told += [f"details={{{', '.join(inside)}}}"] if inside else []
    return f"{name}({', '.join(told)})"


def _brief(value: object) -> str:
    return "..." if isinstance(value, Mapping | list | tuple) else shown(value)
