"""The schemas of docs/schemas, closed: a key that they do not describe is a fault, so that none is forgotten."""

import json
from functools import cache
from pathlib import Path
from typing import Any, Final

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

FOLDER: Final = Path(__file__).parents[1] / "docs" / "schemas"
SCHEMA_OF: Final = {"calibrate": "statistics", "judge": "check", "stats": "statistics"}
"""The schema of what a command prints with --json, where it does not have the command's name."""

_BY_NAME: Final = {"properties", "$defs"}  # these hold schemas by name
_PARTS: Final = {"anyOf", "items", "additionalProperties"}  # these are schemas, or lists of them


def schema(name: str) -> Any:
    """Return a schema as readers have it, which takes keys that it does not describe."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def _closed(node: Any, *, is_part: bool) -> Any:
    """Return a schema in which every object has the described keys alone; what others add keys to stays open."""
    if not isinstance(node, dict):
        return [_closed(each, is_part=is_part) for each in node] if isinstance(node, list) else node
    found = {
        key: {name: _closed(each, is_part=key == "properties") for name, each in value.items()}
        if key in _BY_NAME
        else _closed(value, is_part=True)
        if key in _PARTS
        else value
        for key, value in node.items()
    }
    is_object = bool({"$ref", "allOf", "properties"} & node.keys())
    return found | ({"unevaluatedProperties": False} if is_part and is_object else {})


@cache
def _validator(name: str) -> Draft202012Validator:
    documents = {path.name: _closed(schema(path.stem), is_part=False) for path in FOLDER.glob("*.json")}
    registry = Registry().with_resources((key, Resource.from_contents(each)) for key, each in documents.items())
    whole = {"$ref": f"{name}.json", "unevaluatedProperties": False}
    return Draft202012Validator(whole, registry=registry)


def faults(name: str, document: Any) -> list[str]:
    """Return what is wrong with a document by its schema, each with its place."""
    found = _validator(name).iter_errors(document)
    return sorted(f"{'/'.join(map(str, error.absolute_path))}: {error.message[:300]}" for error in found)
