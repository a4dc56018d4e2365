"""Workers of a Dask cluster that stop, go, or were never there: the bits of one process, or an error that says so."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from scripting import run_script

pytest.importorskip("distributed", reason="the extra 'dask' is not installed")

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of every case, by its name."""
    folder: Path = tmp_path_factory.mktemp("trouble")
    run_script("dask_trouble.py", folder)
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


def test_a_worker_that_dies_changes_nothing(results: dict[str, Any]) -> None:
    """With another one left, the statistics are those of one process, and progress hears of each part once a pass."""
    assert results["one_dies"] == {"stats": results["alone"], "parts": [24, 24]}


REFUSED = [
    ("last_dies", "CalibrationError", r"the Dask scheduler at tcp://\S+ has lost its last worker"),
    ("none_left", "CalibrationError", r"the Dask scheduler at tcp://\S+ has no worker"),
    ("one_stopped", "CalibrationError", r"the Dask worker tcp://\S+ does not answer\n  found:   TimeoutError: nothing"),
    ("other_software", "CalibrationError", "the Dask scheduler is not the same software"),
    ("bad_progress", "ZeroDivisionError", "^in the progress function$"),
]


@pytest.mark.parametrize(("case", "kind", "text"), REFUSED, ids=[row[0] for row in REFUSED])
def test_nothing_waits_for_ever(results: dict[str, Any], case: str, kind: str, text: str) -> None:
    """On the default client, too: who is missing is named; an error of the user's own comes back as it is."""
    assert results[case]["class"] == kind
    assert re.search(text, results[case]["text"]), results[case]["text"]
