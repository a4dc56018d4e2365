"""What results show of themselves: on a screen, in a notebook, as JSON."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import hosts
import pytest

from postproc_export import (
    attach_postprocessing,
    calibrate,
    detach_postprocessing,
    inspect_model,
    update_postprocessing,
)
from postproc_export.outcome import COLUMNS, ROWS, Outcome
from postproc_export.stats import CalibrationStats, LevelStats

STATS = CalibrationStats(
    image=LevelStats(threshold=0.5, min=0.0, max=2.0), pixel=LevelStats(threshold=0.25, min=-1.0, max=1.0)
)
SHARED = {"version", "input", "output", "levels", "sensitivities", "notes"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """What each function returns, by what it did; ``nothing`` of what had nothing to do."""
    folder = tmp_path_factory.mktemp("results")
    host = hosts.write(hosts.score_and_map(), folder / "host.onnx")
    return {
        "attach": attach_postprocessing(host, STATS, output=folder / "a.onnx", image_sensitivity=0.3),
        "update": update_postprocessing(folder / "a.onnx", output=folder / "u.onnx", pixel_sensitivity=1.0),
        "detach": detach_postprocessing(folder / "a.onnx", output=folder / "d.onnx"),
        "inspect": inspect_model(folder / "u.onnx"),
        "nothing": detach_postprocessing(host, output=folder / "n.onnx"),
    }


def fits(text: str) -> bool:
    """Return whether a text needs no more than a screen, even where the terminal breaks its lines."""
    return sum(-(-max(len(line), 1) // 80) for line in text.splitlines()) <= 24


class Long(Outcome):
    """A result of a hundred facts, one of them of many characters."""

    def headline(self) -> str:
        """Return what looks like markup."""
        return "a <b>long</b> result"

    def facts(self) -> Iterator[tuple[str, str]]:
        """Yield them."""
        yield "wide", "x" * 1000
        yield from (("note", str(number)) for number in range(99))

    def to_json(self) -> dict[str, Any]:
        """Return nothing."""
        return {}


@pytest.mark.parametrize("name", ["attach", "update", "detach", "inspect", "nothing"])
def test_a_result_fits_on_a_screen(results: dict[str, Outcome], name: str) -> None:
    """Its repr names the class and the file, and is no wider and no longer than a terminal."""
    text = repr(results[name])
    assert text.startswith(f"<{type(results[name]).__name__}: ")
    assert fits(text)
    assert ".onnx" in text or not results[name]


def test_a_longer_result_is_cut() -> None:
    """What is left out is counted; the summary has it all."""
    lines = repr(Long()).splitlines()
    assert (len(lines), max(map(len, lines))) == (ROWS + 1, COLUMNS)
    assert lines[-1] == f"  ... {101 - ROWS} more>"
    assert len(Long().summary().splitlines()) == 101


@pytest.mark.parametrize("name", ["attach", "update", "detach", "inspect"])
def test_a_notebook_shows_a_table(results: dict[str, Outcome], name: str) -> None:
    """A row of two cells for each fact, all of its text, well-formed."""
    result = results[name]
    rows = ElementTree.fromstring(result._repr_html_()).findall("tr")
    assert [tuple(cell.text for cell in row) for row in rows] == [*result.facts()]


def test_a_notebook_takes_no_markup_from_a_name() -> None:
    """A name that reads like a tag is shown as it is."""
    table = ElementTree.fromstring(Long()._repr_html_())
    assert table.findtext("caption") == "a <b>long</b> result"
    assert not list(table.iter("b"))


def test_statistics_fit_on_a_screen() -> None:
    """Curves, policies and bootstrap are left out of the repr; the numbers are there, and can be evaluated again."""
    values = [number / 7 for number in range(300)]
    labels = [number > 200 for number in range(300)]
    stats = calibrate({"pred_score": values, "gt_label": labels})
    assert stats.image is not None
    text = repr(stats)
    assert fits(text)
    assert "'curve': ..." in text
    assert f"threshold={stats.image.to_json()['threshold']}" in text
    plain = LevelStats(threshold=0.1, min=-1e-30, max=3.4e37, policy="f1", n_normal=3, n_anomalous=4)
    assert eval(repr(plain), {"LevelStats": LevelStats}) == plain


def test_statistics_of_many_details_fit_too() -> None:
    """A file may hold anything."""
    details = {f"detail {number}": "x" * 1000 for number in range(1000)}
    text = repr(LevelStats(threshold=0.5, min=0.0, max=2.0, details=details))
    assert fits(text)
    assert text.endswith(", ...})")


def test_a_notebook_shows_a_column_per_level() -> None:
    """A level that is not calibrated has none; a number that one level lacks is a dash."""
    both = CalibrationStats(image=LevelStats(threshold=0.5, min=0.0, max=2.0, policy="f1"), pixel=STATS.pixel)
    rows = [[cell.text for cell in row] for row in ElementTree.fromstring(both._repr_html_()).findall("tr")]
    assert [None, "image", "pixel"] in rows
    assert ["threshold", "0.5", "0.25"] in rows
    assert ["policy", "f1", "-"] in rows
    alone = ElementTree.fromstring(CalibrationStats(image=STATS.image)._repr_html_())
    assert [cell.text for cell in alone.findall("tr")[0]] == [None, "image"]
    assert ElementTree.fromstring(both.image._repr_html_()).find("tr/td") is not None  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["attach", "update", "detach", "inspect", "nothing"])
def test_a_result_can_be_sent(results: dict[str, Outcome], name: str) -> None:
    """A process that edits models gives back what one can go on with."""
    again = pickle.loads(pickle.dumps(results[name]))
    assert (again.to_json(), again.summary()) == (results[name].to_json(), results[name].summary())


@pytest.mark.parametrize("options", [{}, {"adjustable": "sensitivity"}], ids=["plain", "adjustable"])
def test_what_is_taken_off_an_ir_leaves_the_model(options: dict[str, Any], tmp_path: Path) -> None:
    """The result can be sent, too: it holds no value of the graph."""
    _, attached = hosts.attached(hosts.score_and_map(), tmp_path, ir=True, stats=STATS, **options)
    result = detach_postprocessing(attached, output=tmp_path / "raw.xml")
    again = pickle.loads(pickle.dumps(result))
    assert (again.to_json(), again.summary()) == (result.to_json(), result.summary())
    assert result.to_json()["levels"]["image"]["adjustable"] == options.get("adjustable")


@pytest.mark.parametrize("name", ["attach", "update", "detach", "inspect", "nothing"])
def test_results_have_the_same_keys(results: dict[str, Outcome], name: str) -> None:
    """Input, output, levels, sensitivities and notes, in JSON as the standard has it."""
    document = json.loads(json.dumps(results[name].to_json(), allow_nan=False))
    assert document.keys() >= SHARED
    assert document["levels"].keys() == document["sensitivities"].keys() == {"image", "pixel"}


def test_json_tells_what_was_done(results: dict[str, Outcome]) -> None:
    """The decision of each level in numbers that read back; where there was nothing to do, why."""
    attached, updated = results["attach"].to_json(), results["update"].to_json()
    assert attached["sensitivities"] == {"image": 0.3, "pixel": 0.5}
    assert attached["levels"]["image"]["outputs"] == ["pred_score", "pred_label"]
    assert attached["levels"]["pixel"]["boundary"] == 0.25
    assert Path(attached["output"]).name == "a.onnx"
    assert updated["sensitivities"] == {"image": 0.3, "pixel": 1.0}
    assert updated["levels"]["pixel"]["boundary"] == "-inf"
    assert updated["before"] == {
        level: {key: value for key, value in attached["levels"][level].items() if key in updated["before"][level]}
        for level in ("image", "pixel")
    }
    removed = results["detach"].to_json()["levels"]["image"]
    assert (removed["tail"], removed["threshold"]) == ("postproc_export", 0.5)
    nothing = results["nothing"].to_json()
    assert (nothing["output"], nothing["found"], nothing["levels"]["image"]) == (None, False, None)
    assert "no post-processing" in nothing["notes"][0]
