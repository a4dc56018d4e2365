"""The page: one file that asks nothing of a network, and nothing that is read becomes a part of it."""

import json
import re
from pathlib import Path

import pytest
from report_stats import thinned, two_bells

from postproc_export.errors import FileError, MetadataError, UsageError
from postproc_export.report import write_report
from postproc_export.report.page import html_text, json_text
from postproc_export.stats import CalibrationStats, LevelStats

NASTY = "</script><script>alert(1)</script><!-- \" ' &amp; \udcff"


def data_of(page: str) -> dict[str, object]:
    """Return the data that stand in a page."""
    found = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    document: dict[str, object] = json.loads(found[1])
    return document


def test_the_page_holds_all_that_it_shows(tmp_path: Path) -> None:
    """There is no address in it but the names of XML, its policy allows no request, and it is small."""
    stats = thinned()
    result = write_report(stats, output=tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert {found.partition("/")[0] for found in re.findall(r"https?://([^\"'` )]+)", page)} == {"www.w3.org"}
    assert "default-src 'none'" in page
    assert result.size == len(page.encode()) < 5_000_000
    assert page.count("</script>") == 3


def test_texts_do_not_become_markup(tmp_path: Path) -> None:
    """A policy, a model's name and a file's name with markup, quotes and what is no UTF-8 are shown, and no more."""
    found = two_bells().image
    assert found is not None
    image = LevelStats(
        **{name: getattr(found, name) for name in ("threshold", "min", "max", "n_normal", "n_anomalous")},
        policy=NASTY.encode("utf-8", "replace").decode(),
        details=found.details,
    )
    model = {"name": "</script><b>", "format": "onnx", "digest": "0"}
    path = tmp_path / "<b> '\" &.json"
    path.write_text(CalibrationStats(image=image, details={"model": model}).dumps())
    write_report(path, output=tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("</script>") == 3
    assert "<script>alert" not in page
    assert "&lt;b&gt; &#x27;&quot; &amp;.json" in page
    assert "&lt;/script&gt;&lt;b&gt;" in page


def test_json_and_html_keep_texts_as_texts() -> None:
    """JSON in a script reads back, without a character that could end it; what is no UTF-8 is spelt out."""
    assert json.loads(json_text({"a": NASTY})) == {"a": NASTY}
    assert not set(json_text({"a": NASTY})) & set("<>&")
    assert html_text("a\udcff<") == "a\\xff&lt;"


def test_statistics_without_a_curve_have_a_report(tmp_path: Path) -> None:
    """The boundary can be set, and the page says what is not known; a level that is not there is told as such."""
    plain = CalibrationStats.from_json({"schema_version": 1, "image": {"threshold": 1, "min": 0, "max": 3}})
    write_report(plain, output=tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "What a setting finds is not known." in page
    assert "The statistics have no curve" in page
    assert "there is nothing to set" in page
    assert data_of(page)["plots"] == {}


@pytest.mark.parametrize(
    ("tp", "fp"), [([3, 2, 1], [2, 1, 2]), ([4, 2, 1], [2, 1, 0]), ([3, 2, -1], [2, 1, 0]), ([3, 2], [2, 1, 0])]
)
def test_a_damaged_curve_is_told(tmp_path: Path, tp: list[int], fp: list[int]) -> None:
    """Counts that rise, above the samples that there are, below 0, or too few: not taken for a curve, nor for none."""
    curve = {"threshold": [0.5, 1.0, 2.0], "tp": tp, "fp": fp}
    level = {"threshold": 1, "min": 0, "max": 3, "n_normal": 2, "n_anomalous": 3, "curve": curve}
    write_report(CalibrationStats.from_json({"schema_version": 1, "image": level}), output=tmp_path / "report.html")
    assert "The statistics have a damaged curve" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_one_class_has_a_report(tmp_path: Path) -> None:
    """Of normal values alone recall is not known and shown as such."""
    from report_stats import stats_of

    with pytest.warns(UserWarning, match="only normal"):
        stats = stats_of([1.0, 1.5, 2.0, 2.5], [])
    write_report(stats, output=tmp_path / "report.html")
    levels = data_of((tmp_path / "report.html").read_text(encoding="utf-8"))["levels"]
    assert isinstance(levels, dict)
    assert set(levels["image"]["texts"]["recall"]) == {"-"}


def test_what_does_not_decide_is_refused(tmp_path: Path) -> None:
    """Statistics with a range alone, an empty file and statistics of another kind are refused; nothing is written."""
    ranged = CalibrationStats.from_json({"schema_version": 1, "image": {"threshold": None, "min": 0, "max": 3}})
    output = tmp_path / "report.html"
    with pytest.raises(UsageError, match="nothing to report"):
        write_report(ranged, output=output)
    (tmp_path / "empty.json").touch()
    with pytest.raises(MetadataError):
        write_report(tmp_path / "empty.json", output=output)
    with pytest.raises(FileError, match="not there"):
        write_report(tmp_path / "not there.json", output=output)
    with pytest.raises(UsageError, match="no model to run"):
        write_report(two_bells(), output=output, images=tmp_path)
    assert not output.exists()
