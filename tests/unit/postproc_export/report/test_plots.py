"""The plots of a level: what stands in them is counted, and every part of them is drawn."""

import pytest
from report_stats import heavy_tails, stats_of, thinned, two_bells

from postproc_export.report.levels import LevelView
from postproc_export.report.plots import compiled, plots, png
from postproc_export.stats import CalibrationStats
from postproc_export.update import State


def view_of(stats: CalibrationStats) -> LevelView:
    """Return the level that is calibrated."""
    found = LevelView.of("image" if stats.image else "pixel", State(stats))
    assert found is not None
    return found


@pytest.mark.parametrize("stats", [two_bells(), thinned(), heavy_tails()])
def test_bars_hold_every_sample_once(stats: CalibrationStats) -> None:
    """The bars of a class add up to its samples, on every axis, of a thinned curve, too; both classes have some."""
    view = view_of(stats)
    assert view.curve is not None
    layers = plots(view)["values"]["layer"]
    datasets = plots(view)["values"].get("datasets", {})
    bars = [
        row
        for layer in layers
        for row in layer.get("data", {}).get("values", []) or datasets.get(layer.get("data", {}).get("name"), [])
        if "class" in row
    ]
    for name, total in (("normal", view.curve.normal), ("anomalous", view.curve.anomalous)):
        counts = [int(row["samples"].split()[0].replace(",", "")) for row in bars if row["class"] == name]
        assert sum(counts) == total
        assert all(row["start"] < row["end"] for row in bars)
    assert {row["height"] > 0 for row in bars if row["class"] == "normal"} == {True}
    assert {row["height"] < 0 for row in bars if row["class"] == "anomalous"} == {True}


def test_one_class_has_no_precision_over_recall() -> None:
    """With normal values alone there are distributions and rates, and no curve of two classes."""
    with pytest.warns(UserWarning, match="only normal"):
        stats = stats_of([1.0, 1.5, 2.0, 2.5], [])
    assert [*plots(view_of(stats))] == ["values", "rates"]


def test_a_plot_is_drawn_for_a_page_and_as_png() -> None:
    """Both are of the same plot; the page's has variables for colours and no address, the PNG colours."""
    plot = plots(view_of(two_bells()))["values"]
    page = compiled(plot)
    assert "var(--normal)" in str(page)
    assert "http" not in str(page)
    assert {data["name"] for data in page["data"]} >= {"current"}
    assert png(plot).startswith(b"\x89PNG")


def test_without_a_curve_nothing_is_drawn() -> None:
    """A threshold and a range alone have no plots."""
    plain = CalibrationStats.from_json({"schema_version": 1, "image": {"threshold": 1, "min": 0, "max": 3}})
    assert plots(view_of(plain)) == {}
