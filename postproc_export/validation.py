"""What counts, files and JSON must be to be taken, stated once for all that is read."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from graph_patterns.onnx.wire import special_kind
from postproc_export.errors import FileError, MetadataError

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
    """Refuse a path that is no regular file before anything opens it: that of a pipe would wait for a writer.

    `what` says what the file is, with an article, and `needed` what has to be there, for the message. Raises FileError
    if it is not there, or is a folder, a pipe, a socket or a device.
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


def stated_twice(names: Iterable[str]) -> str | None:
    """Return the names that stand more than once among some, for an error; None where none does."""
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    return ", ".join(map(repr, twice)) or None


def read_json(path: Path, *, what: str) -> Any:
    """Read a JSON file, which has to be UTF-8, as `parse_json` does; `what` names it.

    Raises FileError if it cannot be read, and MetadataError if it is not JSON, or nested too deeply to be read.
    """
    check_file(path, what=what)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise FileError(f"cannot read {what} {path}", found=error.strerror) from error
    except ValueError as error:  # bytes that are not UTF-8
        raise MetadataError(f"{what} {path} is not JSON", found=str(error)) from error
    return parse_json(text, title=f"{what} {path}")


def parse_json(text: str, *, title: str) -> Any:
    """Read JSON as the standard has it: no NaN, no Infinity, no key twice in one object.

    Raises MetadataError if it is something else, or nested too deeply; `title` says what it is.
    """
    try:
        document = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
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
