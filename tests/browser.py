"""A page of the report in a headless Chromium, which may load nothing but files."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SWITCHES: Final = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


@contextmanager
def opened_browser(*switches: str) -> Iterator[Any]:
    """Start the browser that is installed, with further switches, while the block runs; without one skip the test."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser is installed: none of {', '.join(NAMES)}")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=path, args=[*SWITCHES, *switches])
        yield browser
        browser.close()


@dataclass
class OpenPage:
    """A page with what it complained of and what it asked the network for."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def opened_page(browser: Any, file: Path, **options: Any) -> Iterator[OpenPage]:
    """Open a file from disk in a context of its own; every request but that for a file is noted and refused."""
    context = browser.new_context(**options)
    found = OpenPage(context.new_page())

    def answer(route: Any) -> None:
        if route.request.url.startswith(("file:", "data:", "blob:")):
            route.continue_()
        else:
            route.abort()

    context.route("**/*", answer)
    found.page.on("request", lambda request: found.requests.append(request.url))
    found.page.on("console", lambda told: found.errors.append(told.text) if told.type in ("error", "warning") else None)
    found.page.on("pageerror", lambda error: found.errors.append(str(error)))
    found.page.goto(file.as_uri())
    yield found
    context.close()
