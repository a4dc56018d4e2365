"""Draw the pictures of the report in README.md and docs/quality_manager.md anew, from the demo's own report.

Usage: python docs/pictures.py [FOLDER], the folder of a demo that has run; without one the demo is run. Needs the
extras `demo` and `dev`, and a Chromium.
"""

import shutil
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

DOCS = Path(__file__).parent
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SWITCHES = ("--no-sandbox", "--disable-gpu", "--hide-scrollbars")


def save(drawn: bytes, name: str) -> None:
    """Write a screenshot as a PNG with a palette of 256 colours, which takes a third of the bytes."""
    pixels = Image.open(BytesIO(drawn)).convert("RGB")
    pixels.quantize(256, dither=Image.Dither.NONE).save(DOCS / name, optimize=True)
    print(f"{name}: {pixels.width} x {pixels.height}, {(DOCS / name).stat().st_size:,} bytes")


def draw(page: Any) -> None:
    """Take the pictures of an open report: a control with what it moves, a heavy tail, and some images."""
    level = page.query_selector('section[data-level="image"]').bounding_box()
    parts = ('[data-level="image"] .matrix', "#image-values")
    boxes = [page.query_selector(part).bounding_box() for part in parts]
    bottom = max(box["y"] + box["height"] for box in boxes) + 18
    save(page.screenshot(full_page=True, clip={**level, "height": bottom - level["y"]}), "report.png")
    save(page.query_selector("figure:has(#pixel-values)").screenshot(), "report_tail.png")
    page.evaluate("scrollTo(0, 0)")  # boxes are told from the corner of what is seen
    first = [page.query_selector(f'[data-example="{number}"]').bounding_box() for number in range(3)]
    left, top = min(box["x"] for box in first) - 8, min(box["y"] for box in first) - 8
    right, bottom = (max(box[at] + box[size] for box in first) + 8 for at, size in (("x", "width"), ("y", "height")))
    clip = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    save(page.screenshot(full_page=True, clip=clip), "report_images.png")


def main() -> None:
    """Run the demo where no folder is given, open its report, and write the pictures."""
    browser = next(filter(None, map(shutil.which, NAMES)))
    with tempfile.TemporaryDirectory() as home, sync_playwright() as engine:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(home, "demo")
        if len(sys.argv) == 1:
            subprocess.run([sys.executable, "-m", "postproc_export", "demo", "-o", str(folder)], check=True)
        opened = engine.chromium.launch(executable_path=browser, args=SWITCHES)
        page = opened.new_page(viewport={"width": 1200, "height": 900})
        page.goto((folder / "report.html").absolute().as_uri())
        page.wait_for_selector("html[data-ready=true]")
        page.wait_for_timeout(1000)  # until every plot is drawn
        draw(page)
        opened.close()


if __name__ == "__main__":
    main()
