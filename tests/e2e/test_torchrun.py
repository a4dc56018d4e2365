"""`Calibrator.compute(distributed=True)` in two gloo processes, started once by torchrun for all cases."""

import json
from typing import Any

import pytest
from calibration_cases import computed, sharded_cases
from scripting import run_script

CASES = sharded_cases()

pytestmark = pytest.mark.e2e

Results = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What both processes got, by the name of the case."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    run_script("torchrun_cases.py", folder, launcher=torchrun)
    one, other = (json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1))
    return one, other


@pytest.mark.parametrize("name", CASES)
def test_every_rank_gets_what_one_process_gets(ranks: Results, name: str) -> None:
    """Threshold, range, counts, areas, curve, bootstrap interval and warnings: the same bits as one process has."""
    expected = json.loads(json.dumps(computed(CASES[name], CASES[name].whole)))
    assert ranks[0][name] == expected
    assert ranks[1][name] == expected


@pytest.mark.parametrize(
    ("name", "warning"),
    [
        ("merged-across", "merges different values (2.0 to 2.000000001) at the threshold"),
        ("merged-in-one", "merges different values (2.0 to 2.000000001) at the threshold"),
        ("only-normal", "only normal samples"),
        ("unlabelled", "a range but no threshold"),
    ],
)
def test_every_rank_is_warned_of_the_whole(ranks: Results, name: str, warning: str) -> None:
    """Also of values that differ only between the ranks, or that another rank has."""
    for rank in ranks:
        assert warning in rank[name]["warnings"][0]


@pytest.mark.parametrize(
    ("model", "bits"),
    [("padim", (5.344675, 3.243398, 12.298708)), ("dfkde", (0.32533437, 0.27135482, 0.8046053))],
    ids=["padim", "dfkde"],
)
def test_anomalib_validation_outputs_keep_their_bits(ranks: Results, model: str, bits: tuple[float, ...]) -> None:
    """Two processes give the threshold, minimum and maximum of Anomalib 2.7.0's buffers."""
    image = ranks[0][model]["stats"]["image"]
    assert (image["threshold"], image["min"], image["max"]) == bits


ALIKE = [
    ("nothing_seen", "CalibrationError", "nothing to calibrate on: no sample was seen"),
    ("unreachable", "CalibrationError", "the image level cannot reach precision=0.9\n  found:   at most 0.25 (1 of 4)"),
    ("broken_before", "CalibrationError", "rank 1 of 2 failed: a batch could not be kept"),
    ("broken_later", "FileError", "rank 1 of 2 failed: the spool file of the calibrator was truncated"),
    ("foreign_error", "CalibrationError", "rank 0 of 2 failed: AttributeError: 'NoneType' object"),
    ("changed", "CalibrationError", "the source changed between two passes over it"),
    ("warned", "CalibrationError", "rank 1 of 2 failed: CalibrationWarning: image level: only normal samples"),
    ("other_options", "UsageError", "different options\n  found:   image_policy 'f1' on rank 0, 'recall=1' on rank 1"),
    ("other_ranges", "UsageError", "image_range 'extremes' on rank 0, 'quantile=0,0.9' on rank 1"),
    ("other_steps", "UsageError", "different options\n  found:   steps [] on rank 0, ['negate'] on rank 1"),
    ("other_labels", "CalibrationError", "others have not\n  found:   rank 0 with, rank 1 without"),
    ("apart", "CalibrationError", "the ranks have come to different steps of the calibration"),
]


@pytest.mark.parametrize(("name", "kind", "text"), ALIKE, ids=[row[0] for row in ALIKE])
def test_an_error_stops_every_rank_with_the_same_words(ranks: Results, name: str, kind: str, text: str) -> None:
    """No rank waits for one that failed, before the first exchange or after the last one; each says which and why."""
    for rank in ranks:
        assert rank[name]["class"] == kind
        assert text in rank[name]["text"]


def test_a_group_is_for_its_ranks(ranks: Results) -> None:
    """Within a group of its own a rank computes alone; a rank outside of it is told so."""
    assert ranks[0]["subgroup"]["class"] == "UsageError"
    assert "this process is not in the group" in ranks[0]["subgroup"]["text"]
    assert ranks[1]["subgroup"]["text"] == "rank 1 got its own statistics"


def test_a_rank_that_ends_does_not_leave_the_other_waiting(ranks: Results) -> None:
    """The rank that is left raises, and says what to look for."""
    assert "ended" not in ranks[1]
    assert "the process group failed in the middle of a calibration" in ranks[0]["ended"]["text"]
    assert "look for a rank that has ended" in ranks[0]["ended"]["text"]
