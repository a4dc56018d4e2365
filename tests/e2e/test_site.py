"""The documentation is built as a site, without a warning, and every link in it leads somewhere."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

import postproc_export
from postproc_export.cli.commands import app

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.e2e


class Page(HTMLParser):
    """What a page has: anchors, what it leads to, and what a browser loads with it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors, self.links, self.loaded = set[str](), set[str](), set[str]()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element is called and what it refers to."""
        given = {name: value for name, value in attrs if value}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if "href" in given:
            (self.links if tag == "a" else self.loaded).add(given["href"])
        if "src" in given:
            self.loaded.add(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as CONTRIBUTING says, with warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        str(ROOT / "docs"),
        str(folder),
    ]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout + run.stderr) == (0, "")
    return folder


def test_every_link_leads_somewhere_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    """The site works from disk without a network."""
    pages = {path: Page(path) for path in site.glob("*.html")}
    assert len(pages) > 20
    for path, page in pages.items():
        assert [each for each in page.loaded if re.match("https?:", each)] == [], path.name
        for link in page.links - {each for each in page.links if re.match("[a-z]+:", each)}:
            name, _, anchor = unquote(link).partition("#")
            target = path if not name else (path.parent / name).resolve()
            assert target.exists(), f"{path.name}: {link}"
            assert not anchor or target not in pages or anchor in pages[target].anchors, f"{path.name}: {link}"


def test_the_reference_is_complete(site: Path) -> None:
    """Every command with its options, every public name with its own."""
    commands = (site / "commands.html").read_text(encoding="utf-8")
    assert [name for name in app if not name.startswith("-") and f'id="{name}"' not in commands] == []
    assert "--image-sensitivity" in commands
    python = (site / "python.html").read_text(encoding="utf-8")
    names = [name for name in postproc_export.__all__ if not name.startswith("_")]
    assert [name for name in names if f'id="postproc_export.{name}"' not in python] == []
    assert "image_sensitivity" in python


def test_every_page_is_in_the_contents(site: Path) -> None:
    """None can be reached by a link in another page alone."""
    contents = re.findall(r'class="reference internal" href="([^"#]+)"', (site / "index.html").read_text("utf-8"))
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert pages <= {Path(each).stem for each in contents}
