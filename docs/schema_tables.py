"""The tables of keys in docs/json.md, made of the schemas in docs/schemas for the site."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parent / "schemas"
SHARED: Final = "shared"


def schemas() -> dict[str, Any]:
    """Return every schema by name, that of shared parts last."""
    names = sorted((path.stem for path in FOLDER.glob("*.json")), key=lambda name: (name == SHARED, name))
    return {name: json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")) for name in names}


def _target(reference: str, within: str) -> str:
    """Return a link to what a schema refers to: a document, or a part of one or of itself."""
    file, _, part = reference.partition("#/$defs/")
    name = Path(file).stem or within
    return f"[{part}](#{name}-{part.lower()})" if part else f"[{name}.json](#{name}-json)"


def _type(schema: Mapping[str, Any], within: str) -> str:
    """Return what a value is, in words."""
    if "$ref" in schema:
        return _target(schema["$ref"], within)
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        return ", ".join(f"`{json.dumps(value)}`" for value in values)
    if "anyOf" in schema:
        return " or ".join(_type(each, within) for each in schema["anyOf"])
    types = schema.get("type", "any")
    told = " or ".join([types] if isinstance(types, str) else types)
    inner = schema.get("items") or schema.get("additionalProperties")
    return f"{told} of {_type(inner, within)}" if isinstance(inner, Mapping) else told


def _rows(schema: Mapping[str, Any], within: str, before: str = "") -> Iterator[str]:
    """Yield a row for every key, those of objects inside it below it."""
    required = schema.get("required", [])
    for name, value in schema.get("properties", {}).items():
        about = value.get("description", "")
        about += "" if name in required else " (may be missing)" if about else "may be missing"
        yield f"| `{before}{name}` | {_type(value, within)} | {about} |"
        inner, place = value, f"{before}{name}"
        while isinstance(inner, Mapping) and "properties" not in inner:
            place += "[]" if "items" in inner else ".*"
            inner = inner.get("items") or inner.get("additionalProperties")
        if isinstance(inner, Mapping):
            yield from _rows(inner, within, f"{place}.")


def _table(schema: Mapping[str, Any], within: str) -> Iterator[str]:
    rows = [*_rows(schema, within)]
    for base in schema.get("allOf", ()):
        yield f"It has the keys of {_target(base['$ref'], within)}, and these:\n"
    if rows:
        yield from ("| key | type | meaning |", "| --- | --- | --- |", *rows, "")
    else:
        yield f"{_type(schema, within)}.\n"


def tables() -> str:
    """Return a section for each document and for each part that they share."""
    lines = []
    for name, schema in schemas().items():
        lines += [f"({name}-json)=", f"## {schema['title']}", ""]
        lines += [f"{schema['description']} Schema: [{name}.json](schemas/{name}.json).", ""]
        if name != SHARED:
            lines += _table(schema, name)
        for part, of_part in schema.get("$defs", {}).items():
            lines += [f"({name}-{part.lower()})=", f"### {part}", ""]
            lines += [f"{of_part['description']}.", ""] if "description" in of_part else []
            lines += _table(of_part, name)
    return "\n".join(lines)
