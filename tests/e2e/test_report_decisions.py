"""The report in a browser: rules, narrow hosts, and what is decided of images as the controls move."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import hosts
import numpy as np
import pytest
from attached_files import LEVEL, detector, labelled
from browser import opened_browser, opened_page
from narrow_hosts import matmul
from report_stats import two_bells

from postproc_export import predict
from postproc_export.curve import counts_at
from postproc_export.float32 import HostDtype, shortest
from postproc_export.report import write_report
from postproc_export.stats import Comparison, decision_boundary, unit_scores

pytestmark = pytest.mark.e2e

SETTINGS: Final = [0.0, 0.5, 1.0, *np.random.default_rng(4).random(30).round(5).tolist()]
TYPE: Final = """([level, value]) => {
  const input = document.getElementById(`${level}-sensitivity`);
  input.value = value;
  input.dispatchEvent(new Event("input", { bubbles: true }));
  const told = Object.fromEntries([...document.querySelectorAll(`[data-level="${level}"] [data-figure]`)]
    .map((each) => [each.dataset.figure, [each.dataset.low, each.dataset.high]]));
  const texts = (selector) => [...document.querySelectorAll(selector)].map((each) => each.textContent);
  return {
    ...told,
    verdicts: texts("[data-verdict]"),
    names: texts(".example figcaption b"),
    called: texts("[data-called]"),
    marked: [...document.querySelectorAll(".example canvas")].map((each) => Number(each.dataset.marked)),
  };
}"""
WORDS: Final = {(True, True): "found", (True, False): "missed", (False, True): "false alarm", (False, False): "passed"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all tests of this file."""
    with opened_browser() as found:
        yield found


@pytest.mark.parametrize(("dtype", "comparison"), [("float16", "ge"), ("bfloat16", "gt"), ("float32", "gt")])
def test_every_rule_and_host_is_as_python_has_it(
    browser: Any, tmp_path: Path, dtype: HostDtype, comparison: Comparison
) -> None:
    """Boundary, normalised value and counts at typed sensitivities, of a model whose outputs are of a narrow type."""
    stats = two_bells()
    image = stats.image
    assert image is not None
    host = hosts.score_only() if dtype == "float32" else matmul(dtype, 17)
    model = detector(tmp_path, host, stats=stats, comparison=comparison)
    write_report(model, output=tmp_path / "report.html")
    with opened_page(browser, tmp_path / "report.html") as opened:
        opened.page.wait_for_selector("html[data-ready=true]")
        for setting in SETTINGS:
            told = opened.page.evaluate(TYPE, ["image", str(setting)])
            boundary = decision_boundary(image, sensitivity=setting, comparison=comparison, dtype=dtype)
            counts = counts_at(image, boundary, None if dtype == "float32" else dtype)
            assert counts is not None
            unit = float(unit_scores(boundary, image))
            raw = boundary if np.isinf(boundary) else shortest(boundary)
            assert [*map(float, told["boundary"])] == [raw, raw], setting
            assert [*map(float, told["normalised"])] == [shortest(unit)] * 2, setting
            assert [*map(int, told["tp"])] == [*counts.tp], setting
            assert [*map(int, told["fp"])] == [*counts.fp], setting


def test_images_follow_the_controls(browser: Any, tmp_path: Path) -> None:
    """Verdicts, folders and the marked pixels of every image are those of the raw values that `predict` gives."""
    model, images = detector(tmp_path), labelled(tmp_path / "images")
    known = {"/".join(each.path.parts[-2:]): each for each in predict(model, images)}
    write_report(model, images=images, output=tmp_path / "report.html")
    with opened_page(browser, tmp_path / "report.html") as opened:
        opened.page.wait_for_selector("html[data-ready=true]")
        met = set()
        for setting in (0.0, 0.3, 0.5, 0.7, 0.9, 1.0):
            boundary = decision_boundary(LEVEL, sensitivity=setting)
            told = opened.page.evaluate(TYPE, ["image", str(setting)])
            called = {name: not each.raw_score < boundary for name, each in known.items()}
            assert told["verdicts"] == [WORDS[bool(known[name].truth), called[name]] for name in told["names"]]
            good, spot = (sum(called[name] for name in called if name.startswith(each)) for each in ("good/", "spot/"))
            assert [*map(int, told["called"])] == [good, spot]
            told = opened.page.evaluate(TYPE, ["pixel", str(setting)])
            marked = [int((~(known[name].raw_map < boundary)).sum()) for name in told["names"]]
            assert told["marked"] == marked
            met |= {*marked}
        assert len(met) > 3
        assert opened.errors == []
        assert {request.partition(":")[0] for request in opened.requests} <= {"file", "data"}
