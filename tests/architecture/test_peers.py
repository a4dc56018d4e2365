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


def test_every_part_has_us_and_others(script: ModuleType, document: dict[str, Any]) -> None:
    """Each part was run; each row has a time or says why it has none; each case of the README has a peer in it."""
    assert list(document) == list(script.PARTS)
    rows = [script.Row(**row) for found in document.values() for row in found["rows"]]
    assert [row for row in rows if row.seconds is None and not row.result] == []
    for part, case in script.SHOWN.values():
        times = {row.who: row.ratio for row in rows if (row.part, row.case) == (part, case) and row.ratio is not None}
        assert times[script.OURS] == 1
        assert len(times) > 1
