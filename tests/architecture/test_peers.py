"""What is told of the peers is what was measured: the table of the README and the page are made from the results."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest

BENCHMARKS: Final = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, which imports its neighbours by name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("peers")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The results."""
    found: dict[str, Any] = json.loads((BENCHMARKS / "results" / "peers.json").read_text("utf-8"))
    return found


def test_the_table_of_the_readme_is_made_from_the_results(script: ModuleType, document: dict[str, Any]) -> None:
    """No number in it was typed by hand."""
    text = script.README.read_text("utf-8").partition(script.MARKS[0])[2].partition(script.MARKS[1])[0]
    assert text.strip() == script.readme_table(document), "python benchmarks/peers.py --readme"


def test_the_page_is_made_from_the_results(script: ModuleType, document: dict[str, Any]) -> None:
    """Every row of the results is in it, with the machine and the versions."""
    assert (BENCHMARKS / "results" / "peers.md").read_text("utf-8") == script.markdown(document)


def test_every_case_has_us_and_others(script: ModuleType, document: dict[str, Any]) -> None:
    """Each row has a time or says why it has none; a case with a peer's ratio has ours, which is 1."""
    assert set(document) <= set(script.PARTS)
    rows = [script.Row(**row) for found in document.values() for row in found["rows"]]
    assert [row for row in rows if row.seconds is None and not row.result] == []
    cases = {(row.part, row.case) for row in rows if row.ratio is not None}
    assert cases == {(row.part, row.case) for row in rows if row.who == script.OURS and row.ratio == 1}


def test_what_was_not_measured_is_left_out(script: ModuleType) -> None:
    """A run of some cases makes a table of these, in which the fastest stands first."""
    rows = [
        {"part": "calibration", "case": "1e7 pixels", "who": who, "seconds": ratio, "ratio": ratio}
        for who, ratio in ((script.OURS, 1.0), ("slow", 23.4), ("fast", 0.567))
    ]
    document = {"calibration": {"environment": {}, "rows": rows}}
    assert script.readme_table(document).splitlines()[2:] == ["| calibrating 10^7 pixels | fast 0.57, slow 23 |"]
