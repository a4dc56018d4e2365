"""`Calibrator.compute(distributed=True)` in three gloo processes, one of which has nothing, is interrupted and dies."""

import json
from typing import Any

import pytest
from calibration_cases import computed, three_shards
from scripting import run_script

pytestmark = pytest.mark.e2e

Results = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What the processes got, by the name of the case."""
    folder = tmp_path_factory.mktemp("ranks")
    run_script("three_ranks.py", folder)
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(3)]


@pytest.mark.parametrize("route", ["sorted", "histogram"])
def test_three_ranks_get_what_one_process_gets(ranks: Results, route: str) -> None:
    """Also the one that has seen nothing, and those after it."""
    case = three_shards(route)
    expected = json.loads(json.dumps(computed(case, case.whole)))
    assert [rank[route] for rank in ranks] == [expected] * 3


def test_an_interrupt_is_passed_on(ranks: Results) -> None:
    """The interrupted rank leaves with the interrupt itself; the others are told which one it was."""
    assert [rank["interrupted"]["class"] for rank in ranks] == [
        "CalibrationError",
        "KeyboardInterrupt",
        "CalibrationError",
    ]
    assert ranks[0]["interrupted"]["text"] == ranks[2]["interrupted"]["text"] == "rank 1 of 3 failed: KeyboardInterrupt"


def test_a_rank_of_a_smaller_group_is_called_by_its_global_number(ranks: Results) -> None:
    """Which is the one in the logs; a rank outside of the group is left alone."""
    for rank in ranks[1:]:
        assert rank["subgroup"]["text"].startswith("global rank 2 in a group of 2 failed: a batch could not be kept")
    assert ranks[0]["subgroup"]["class"] == "none"


def test_a_rank_that_is_killed_in_the_middle_stops_the_others(ranks: Results) -> None:
    """They raise and say what to look for; the killed one has written nothing after that."""
    assert "killed" not in ranks[1]
    for rank in (ranks[0], ranks[2]):
        assert "the process group failed in the middle of a calibration" in rank["killed"]["text"]
        assert "look for a rank that has ended" in rank["killed"]["text"]
