"""Plain words: short lines, short sentences, and none of the words that have been replaced."""

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
HISTORY: Final = ROOT / "CHANGELOG.md"  # a sentence a line, with names as they were
PAGES: Final = [
    *sorted({*ROOT.glob("*.md"), ROOT / "benchmarks" / "README.md"} - {HISTORY}),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FOLDERS: Final = ("graph_patterns", "postproc_export", "tests")
SOURCES: Final = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
SWEPT: Final = (*PAGES, *SOURCES)
COLUMNS: Final = 120
PRAGMAS: Final = ("# type: ignore", "# noqa")  # they may stand beyond the last column, as ruff lets them
WORDS_OF_A_SENTENCE: Final = 40
REPLACED: Final = {  # a pattern of the old words: the words in their place
    r"tails? of (one's|your|the user's) own": "custom step",
    r"seek(s|ing)? trouble": "adversarial values",
    r"may not (have moved|move) at all": "has no tolerance",
    r"which cannot be reached is refused, saying": "if no threshold reaches the target, calibration stops",
    r"\bunrepeated\b": "no_duplicates",
    r"comes? out (of the attached file )?otherwise than": "differs from",
}


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Give the lines of a page that are neither code nor a table, with their numbers."""
    code = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            code = not code
        elif not code and not line.startswith(("    ", "|")):
            yield number, line


def remarks(source: Path) -> Iterator[tuple[int, str]]:
    """Give the lines of the comments and docstrings of a module, with their numbers."""
    text = source.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if ast.get_docstring(node) is not None and first is not None:
                lines = text.splitlines()[first.lineno - 1 : first.end_lineno]
                yield from enumerate(lines, first.lineno)
    with source.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT and not token.string.startswith(PRAGMAS):
                yield token.start[0], token.line.rstrip("\n")


def sentences(page: Path) -> Iterator[str]:
    """Give the sentences of a page: a heading, an item of a list and a paragraph begin new ones."""
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", "\n".join(line for _, line in prose(page)))
    for block in blocks:
        yield from re.split(r"(?<=[.:?!;]) (?=[A-Z`*\[(])", " ".join(block.split()))


def test_the_page_for_contributors_names_files_that_are_there() -> None:
    """Every file in it exists below a package or the root, so that no move of a file leaves the page behind."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names = set(re.findall(r"[\w/.]+\.(?:py|md|toml)\b", page))
    assert len(names) > 20
    known = [named(path) for path in (*SOURCES, *ROOT.glob("*.*"), *PAGES)]
    assert [name for name in names if not any(f"/{path}".endswith(f"/{name}") for path in known)] == []


def named(path: Path) -> str:
    """Return the path of a file in the repository."""
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_page_reads_well(page: Path) -> None:
    """No line of prose is wider than the screen, and no sentence longer than a reader keeps in mind."""
    assert [f"line {number}" for number, line in prose(page) if len(line) > COLUMNS] == []
    assert long_sentences(page) == []


def test_the_history_reads_well() -> None:
    """Each of its lines is an entry, however wide; its sentences are no longer than others."""
    assert long_sentences(HISTORY) == []


def long_sentences(page: Path) -> list[str]:
    """Return the sentences that are longer than a reader keeps in mind."""
    return [text for text in sentences(page) if len(text.split()) > WORDS_OF_A_SENTENCE]


@pytest.mark.parametrize("folder", FOLDERS)
def test_comments_and_docstrings_are_no_wider_than_code(folder: str) -> None:
    """At most 120 columns, with the indentation."""
    sources = [path for path in SOURCES if path.is_relative_to(ROOT / folder)]
    wide = [(path, number) for path in sources for number, line in remarks(path) if len(line) > COLUMNS]
    assert [f"{named(path)}:{number}" for path, number in wide] == []


@pytest.mark.parametrize("old", REPLACED)
def test_no_replaced_word_comes_back(old: str) -> None:
    """Pages, comments, docstrings and messages use the words that replaced these, also over the end of a line."""
    pattern = re.compile(old.replace(" ", r"[\s#]+"), flags=re.IGNORECASE)
    found = [path for path in SWEPT if path != Path(__file__)]
    found = [path for path in found if pattern.search(path.read_text(encoding="utf-8"))]
    assert [named(path) for path in found] == [], f"say {REPLACED[old]!r}"
