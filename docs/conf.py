"""The documentation as a site: `sphinx-build docs site` writes it, and site/index.html opens from disk.

What stands elsewhere is taken from there: the README and the changelog as they are, the commands' own help, the
docstrings of the public names, and the keys of the JSON schemas.
"""

import contextlib
import inspect
import io
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]
os.environ["COLUMNS"] = "100"  # of the commands' help

import schema_tables  # noqa: E402

import postproc_export  # noqa: E402
from postproc_export.cli import main  # noqa: E402
from postproc_export.cli.commands import app  # noqa: E402

project = "postproc-export"
author = project_copyright = "The postproc-export authors"
release = postproc_export.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["examples"]
html_theme = "furo"
html_title = f"postproc-export {release}"
html_show_sphinx = False
myst_heading_anchors = 4
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_typehints_description_target = "documented"
autoclass_content = "both"  # the options of a class stand at its __init__
napoleon_google_docstring = False
napoleon_use_rtype = False

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
LANGUAGES = {".cpp": "cpp", ".html": "html", ".mjs": "javascript", ".yml": "yaml", ".py": "python", ".rs": "rust"}


FOLDERS = ("schemas", "examples")
"""Below docs, copied beside the pages as they are."""


def on_the_site(text: str, folder: Path) -> str:
    """Return a text whose links lead to pages and files of the site; what it does not hold is named by its path."""

    def link(found: re.Match[str]) -> str:
        full = (folder / found["target"]).resolve().relative_to(ROOT).as_posix()
        below = full.removeprefix("docs/")
        if below != full and below.partition("/")[0] in FOLDERS:  # a file that is not a page
            return f'<a href="{below}">{found["label"]}</a>'
        page = PAGES.get(full) or (below if below != full else None)
        if page is None:
            return f"`{full}`" if found["label"].endswith(found["target"]) else f"{found['label']} (`{full}`)"
        label = "" if found["label"] in (found["target"], full) else found["label"]  # none: the title of the page
        return f"[{label}]({page}{found['anchor'] or ''})"

    def shown(found: re.Match[str]) -> str:
        file = folder / found["path"]
        return f"```{LANGUAGES[file.suffix]}\n{file.read_text(encoding='utf-8')}```"

    text = re.sub(r"\[(?P<label>[^\]]*)\]\((?P<target>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)", link, text)
    return re.sub(r"<!-- shown: (?P<path>\S+) -->", shown, text)


def commands() -> str:
    """Return the help of every command as it prints it."""
    parts = ["# Commands\n\nWhat `--help` prints of each.\n"]
    for name in (name for name in app if not name.startswith("-")):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            main([name, "--help"])
        parts.append(f"## {name}\n\n```text\n{printed.getvalue().strip()}\n```\n")
    return "\n".join(parts)


def described(name: str, found: Any) -> str:
    """Return the directive of a class or a function."""
    kind = "autoclass" if inspect.isclass(found) else "autofunction"
    members = "   :members:\n" if inspect.isclass(found) and not issubclass(found, Exception) else ""
    return f"## {name.rpartition('.')[2]}\n\n```{{eval-rst}}\n.. {kind}:: {name}\n{members}```\n"


def returned(function: Any) -> list[type]:
    """Return the classes of ours that a function returns, one by one or several."""
    hint = get_type_hints(inspect.unwrap(function)).get("return")
    return [
        each for each in (hint, *get_args(hint)) if str(getattr(each, "__module__", "")).startswith("postproc_export")
    ]


def python() -> str:
    """Return directives for every public name, and for what the functions return."""
    names = {name: getattr(postproc_export, name) for name in postproc_export.__all__ if not name.startswith("_")}
    parts = [
        "# Python\n\n[A script](script.md) shows them at work. All but the last are imported from `postproc_export`.\n"
    ]
    parts += [described(f"postproc_export.{name}", found) for name, found in names.items()]
    results = dict.fromkeys(each for found in names.values() if not inspect.isclass(found) for each in returned(found))
    told = "Each but `Prediction` has `summary()` for people and `to_json()` for programs ([json.md](json.md))."
    parts.append(f"## What functions return\n\n{told}\n")
    parts += [described(f"{each.__module__}.{each.__name__}", each) for each in results if each not in names.values()]
    return "\n".join(parts)


def take_from_elsewhere(_: Any, page: str, source: list[str]) -> None:
    """Fill the pages that stand elsewhere, and lead links of the others to pages."""
    origin = next((ROOT / path for path, target in PAGES.items() if target == f"{page}.md"), None)
    if page in ("commands", "python"):
        source[0] = commands() if page == "commands" else python()
    elif origin is None:
        source[0] = on_the_site(source[0].replace("<!-- keys -->", schema_tables.tables()), ROOT / "docs")
    else:
        source[0] = on_the_site(origin.read_text(encoding="utf-8"), origin.parent) + "\n" + source[0]


def copy_files(application: Any, error: Exception | None) -> None:
    """Put the schemas and the examples beside the pages."""
    for name in FOLDERS if error is None else ():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "docs" / name, Path(application.outdir) / name, ignore=ignored, dirs_exist_ok=True)


def setup(application: Any) -> None:
    """Read every page through `take_from_elsewhere`."""
    application.connect("source-read", take_from_elsewhere)
    application.connect("build-finished", copy_files)
