"""The report on the demo's files in a browser: it shows what Python computes, and everybody can read and use it."""

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from browser import OpenPage, opened_browser, opened_page
from conftest import Invoke

from postproc_export.curve import choose_sensitivities, counts_at
from postproc_export.errors import UsageError
from postproc_export.float32 import shortest
from postproc_export.inspect import inspect_model
from postproc_export.options import TailOptions
from postproc_export.policies import Policy
from postproc_export.prediction import predict
from postproc_export.report import write_report
from postproc_export.stats import LEVELS, CalibrationStats, Level, decision_boundary
from postproc_export.update import update_postprocessing

pytestmark = pytest.mark.e2e

SETTINGS: Final = [*np.linspace(0, 1, 21).round(2).tolist(), *np.random.default_rng(2).random(29).round(6).tolist()]
READ: Final = """([level, field, values]) => values.map((value) => {
  const input = document.getElementById(`${level}-${field}`);
  input.value = value;
  input.dispatchEvent(new Event("input", { bubbles: true }));
  const shown = { typed: document.getElementById(`${level}-sensitivity`).value };
  for (const each of document.querySelectorAll(`[data-level="${level}"] [data-figure]`)) {
    shown[each.dataset.figure] = [each.dataset.low, each.dataset.high, each.textContent];
  }
  shown.sentence = document.getElementById(`${level}-sentence`).textContent;
  shown.note = document.getElementById(`${level}-note`).textContent;
  return shown;
})"""

DRAWN: Final = """() => [...document.querySelectorAll("[data-example]")].map((each) => {
  const canvas = each.querySelector("canvas");
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
  const marks = Array.from({ length: canvas.width * canvas.height }, (_, at) => (data[4 * at + 3] ? "1" : "0"));
  return [each.querySelector("b").textContent, each.querySelector("[data-verdict]").textContent, marks.join("")];
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all tests of this file."""
    with opened_browser() as found:
        yield found


@pytest.fixture(scope="module")
def folder(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose name has to be quoted, with an attached model of the demo, its statistics and their report."""
    folder = tmp_path_factory.mktemp("a page")
    for name in ("attached.onnx", "statistics.json"):
        shutil.copy(demo_folder / name, folder / name)
    given = {"model": folder / "attached.onnx", "images": demo_folder / "test"}
    write_report(folder / "statistics.json", output=folder / "report.html", **given)
    return folder


@pytest.fixture(scope="module")
def stats(folder: Path) -> CalibrationStats:
    """The statistics that the report shows."""
    return CalibrationStats.load(folder / "statistics.json")


@pytest.fixture(scope="module")
def opened(browser: Any, folder: Path) -> Iterator[OpenPage]:
    """The report, opened from disk."""
    with opened_page(browser, folder / "report.html", viewport={"width": 1280, "height": 900}) as found:
        found.page.wait_for_selector("html[data-ready=true]")
        yield found


def shown(opened: OpenPage, level: Level, field: str, values: list[Any]) -> list[dict[str, Any]]:
    """Type each value into a field of a level, and return what the page shows then."""
    found: list[dict[str, Any]] = opened.page.evaluate(READ, [level, field, [str(value) for value in values]])
    return found


def computed(stats: CalibrationStats, level: Level, sensitivity: float) -> dict[str, tuple[float, float]]:
    """Return what Python computes for a setting: boundary, counts and rates, each the lowest and the highest."""
    found = stats.level(level)
    assert found is not None
    boundary = decision_boundary(found, sensitivity=sensitivity)
    counts = counts_at(found, boundary)
    assert counts is not None
    (tp, most_tp), (fp, most_fp), anomalous, normal = counts.tp, counts.fp, counts.anomalous, counts.normal
    told = boundary if np.isinf(boundary) else shortest(boundary)
    return {
        "boundary": (told, told),
        "tp": (tp, most_tp),
        "fp": (fp, most_fp),
        "fn": (anomalous - most_tp, anomalous - tp),
        "tn": (normal - most_fp, normal - fp),
        "f1": (2 * tp / (tp + most_fp + anomalous), 2 * most_tp / (most_tp + fp + anomalous)),
        **{name: limits for name, limits in counts.rates.items() if limits is not None},
    }


@pytest.mark.parametrize("level", LEVELS)
def test_every_number_is_what_python_computes(level: Level, opened: OpenPage, stats: CalibrationStats) -> None:
    """At fifty settings boundary, confusion matrix and rates to the last digit; where counts have limits, these."""
    assert len(set(SETTINGS)) == 50
    told = shown(opened, level, "sensitivity", SETTINGS)
    for setting, figures in zip(SETTINGS, told, strict=True):
        for name, limits in computed(stats, level, setting).items():
            assert tuple(map(float, figures[name][:2])) == limits, (setting, name)
    assert len({str(figures["tp"]) for figures in told}) > 10
    assert (len([1 for figures in told if figures["tp"][0] != figures["tp"][1]]) > 10) is (level == "pixel")


@pytest.mark.parametrize("level", LEVELS)
def test_the_sentence_says_the_same(level: Level, opened: OpenPage, stats: CalibrationStats) -> None:
    """The counts stand in it as in the matrix, with all that there are."""
    found = stats.level(level)
    assert found is not None
    for figures in shown(opened, level, "sensitivity", [0.3, 0.5, 1]):
        for text in (figures["tp"][2], figures["fp"][2], f"{found.n_anomalous:,}", f"{found.n_normal:,}"):
            assert text in figures["sentence"]


@pytest.mark.parametrize(("level", "per"), [("image", 1_000), ("pixel", 1_000_000)])
def test_accepted_false_alarms_find_the_setting(
    level: Level, per: int, opened: OpenPage, stats: CalibrationStats
) -> None:
    """The one that `update --image-sensitivity-for fpr=R` chooses; what no setting keeps to is said."""
    accepted = [0, 0.5, 5, 33.4, 67, 100, 250]
    for number, figures in zip(accepted, shown(opened, level, "accept", accepted), strict=True):
        target = Policy.parse(f"fpr={number / per:.12f}")
        try:
            chosen, _ = choose_sensitivities({level: target}, stats, TailOptions())
        except UsageError:
            assert "No setting" in figures["note"]
            continue
        assert float(figures["typed"]) == chosen[f"{level}_sensitivity"], number
        assert figures["typed"] in figures["note"]


def test_the_command_writes_what_is_set(opened: OpenPage, folder: Path, invoke: Invoke) -> None:
    """Copied as it stands it runs, and the file that it writes has the boundaries that the page shows."""
    (image,) = shown(opened, "image", "sensitivity", [0.47])
    (pixel,) = shown(opened, "pixel", "sensitivity", [0.6125])
    opened.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened.page.click("#copy-command")
    opened.page.wait_for_function("document.getElementById('copied').textContent !== ''")
    words = shlex.split(opened.page.inner_text("#update-command"))
    assert words[:2] == ["postproc-export", "update"]
    assert Path(words[2]) == folder / "attached.onnx"
    result = invoke(*words[1:-1], folder / words[-1])
    assert result.exit_code == 0, result.stderr
    levels = inspect_model(folder / words[-1]).levels
    for level, figures in (("image", image), ("pixel", pixel)):
        found = levels[level]  # type: ignore[index]
        assert found is not None
        assert found.boundary is not None
        assert shortest(found.boundary) == float(figures["boundary"][0])


def test_masks_and_verdicts_follow(opened: OpenPage, folder: Path, demo_folder: Path) -> None:
    """Over each example image stands what a file of these sensitivities decides: its mask to the pixel, its label."""
    moved = folder / "moved.onnx"
    update_postprocessing(folder / "attached.onnx", output=moved, image_sensitivity=0.44, pixel_sensitivity=0.58)
    found = {"/".join(each.path.parts[-2:]): each for each in predict(moved, demo_folder / "test")}
    before = opened.page.evaluate(DRAWN)
    shown(opened, "image", "sensitivity", [0.44])
    shown(opened, "pixel", "sensitivity", [0.58])
    drawn = opened.page.evaluate(DRAWN)
    assert len(drawn) >= 12
    for name, verdict, marks in drawn:
        decided = found[name]
        assert decided.mask is not None
        assert marks == "".join("1" if each else "0" for each in decided.mask.ravel()), name
        words = {True: ("missed", "found"), False: ("passed", "false alarm")}[bool(decided.truth)]
        assert verdict == words[bool(decided.label)]
    assert before != drawn
    assert {verdict for _, verdict, _ in drawn} >= {"missed", "passed"}


def test_the_keyboard_alone_moves_the_control(opened: OpenPage) -> None:
    """Tab reaches the slider; its arrow keys go from a setting to the next one, Home and End to the first and last."""
    page = opened.page
    page.evaluate("document.activeElement.blur(); window.getSelection().removeAllRanges(); scrollTo(0, 0)")
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
        if reached[-1] == "image-slider":
            break
    assert reached[-1] == "image-slider"
    told = []
    for key in ("Home", "ArrowRight", "ArrowRight", "ArrowLeft", "End"):
        page.keyboard.press(key)
        told.append(int(page.get_attribute('[data-level="image"] [data-figure="tp"]', "data-low")))
        assert page.get_attribute("#image-slider", "aria-valuetext").endswith(page.input_value("#image-sensitivity"))
    assert told[0] <= told[1] <= told[2] <= told[4] == 40
    assert told[3] == told[1]


def test_the_boundary_moves_in_every_plot(opened: OpenPage) -> None:
    """The drawing of each plot of a level changes with its setting, and those of the other level stay."""
    shown(opened, "image", "sensitivity", [0.5])
    opened.page.wait_for_timeout(200)
    plots = opened.page.query_selector_all(".plot")
    before = [plot.inner_html() for plot in plots]
    assert len(before) == 8
    assert all("<svg" in drawn for drawn in before)
    shown(opened, "image", "sensitivity", [0.4])
    opened.page.wait_for_timeout(200)
    after = [plot.inner_html() for plot in plots]
    is_of_image = [plot.get_attribute("id").startswith("image-") for plot in plots]
    assert [one != other for one, other in zip(before, after, strict=True)] == is_of_image


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it(scheme: str, opened: OpenPage) -> None:
    """axe-core finds nothing serious or critical: names for screen readers, contrast, order of headings."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    opened.page.emulate_media(color_scheme=scheme)
    grave = [each for each in axe.run(opened.page).response["violations"] if each["impact"] in ("serious", "critical")]
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in grave] == []


def test_it_fits_a_phone(browser: Any, folder: Path) -> None:
    """At 390 pixels nothing is wider than the screen, and what is touched is large enough."""
    with opened_page(browser, folder / "report.html", viewport={"width": 390, "height": 844}) as found:
        found.page.wait_for_selector("html[data-ready=true]")
        found.page.wait_for_timeout(100)
        assert found.page.evaluate("document.documentElement.scrollWidth") == 390
        heights = found.page.evaluate("[...document.querySelectorAll('button')].map((each) => each.offsetHeight)")
        assert min(heights) >= 24


def test_it_prints_without_its_controls(opened: OpenPage) -> None:
    """On paper there is what was set, with all numbers and plots, and nothing to press."""
    opened.page.emulate_media(media="print")
    for selector in ("#image-slider", "#image-sensitivity", "#image-accept", "#copy-command"):
        assert not opened.page.is_visible(selector), selector
    for selector in ("#image-sentence", "#image-values svg", "#update-command", '[data-figure="recall"]'):
        assert opened.page.is_visible(selector), selector
    opened.page.emulate_media(media="screen")
    assert opened.page.is_visible("#image-slider")


def test_nothing_is_asked_of_a_network_and_nothing_fails(opened: OpenPage, folder: Path) -> None:
    """After all of the above the page has read its own file alone, and the console is empty."""
    assert opened.requests == [(folder / "report.html").as_uri()]
    assert opened.errors == []
    with pytest.raises(Exception, match="ERR_FAILED"):  # what the tests watch with would see it
        opened.page.context.new_page().goto("http://192.0.2.1/")
