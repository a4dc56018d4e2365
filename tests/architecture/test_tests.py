"""What tests may not do: reach for private names of the two packages."""

import ast
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("graph_patterns", "postproc_export")
EXCEPTIONS: Final[dict[str, str]] = {}  # "tests/... name": why


def is_private(name: str) -> bool:
    """Whether a name, or a part of a dotted one, is private; `__version__` and its like are not."""
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def reached(tree: ast.Module) -> Iterator[str]:
    """Give the private names of the packages that a module imports, reads or patches."""
    ours = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            ours |= {item.asname or item.name for item in node.names}
            yield from (item.name for item in node.names if is_private(f"{node.module}.{item.name}"))
        elif isinstance(node, ast.Import):
            names = [item for item in node.names if item.name.split(".")[0] in PACKAGES]
            ours |= {item.asname or item.name.split(".")[0] for item in names}
            yield from (item.name for item in names if is_private(item.name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            path = ast.unparse(node).split(".")
            if path[0] in ours:
                yield ".".join(path)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "import" in node.value:
            with suppress(SyntaxError):  # a program for a process of its own
                yield from reached(ast.parse(node.value))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.endswith("attr"):
            texts = [item.value for item in node.args[:2] if isinstance(item, ast.Constant)]
            yield from (text for text in texts if isinstance(text, str) and is_private(text))


def test_no_test_reaches_for_a_private_name() -> None:
    """Neither imports nor patches: a test that needs a smaller size patches a public one, or gives a parameter."""
    found = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(ROOT)} {name}" for name in sorted(set(reached(tree)))]
    assert [item for item in found if item not in EXCEPTIONS] == []
    assert [item for item in EXCEPTIONS if item not in found] == [], "an exception that is not needed"
