"""The command report: one file from statistics or an attached model, and what it refuses."""

import json
from pathlib import Path

import pytest
from conftest import Invoke
from report_stats import two_bells


@pytest.fixture(scope="module")
def stats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A statistics file of one level."""
    path = tmp_path_factory.mktemp("stats") / "stats.json"
    two_bells().save(path)
    return path


def test_statistics_alone_suffice(stats: Path, tmp_path: Path, invoke: Invoke) -> None:
    """A report and its plots are written, JSON says where, and the same statistics give the same bytes."""
    arguments = ("report", stats, "-o", tmp_path / "report.html", "--png", tmp_path / "plots", "--json")
    result = invoke(*arguments)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["output"] == str(tmp_path / "report.html")
    assert document["levels"]["pixel"] is None
    names = ["image-values.png", "image-rates.png", "image-precision-recall.png", "image-roc.png"]
    assert document["png"] == [str(tmp_path / "plots" / name) for name in names]
    assert all((tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG") for name in names)
    first = (tmp_path / "report.html").read_bytes()
    assert invoke("report", stats, "-o", tmp_path / "report.html").exit_code == 0
    assert (tmp_path / "report.html").read_bytes() == first


def test_a_report_never_takes_the_place_of_what_it_reads(stats: Path, invoke: Invoke) -> None:
    """Written onto the statistics it is refused, and these stay."""
    before = stats.read_bytes()
    result = invoke("report", stats, "-o", stats)
    assert result.exit_code == 2
    assert "error: " in result.stderr
    assert stats.read_bytes() == before
