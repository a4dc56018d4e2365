"""The calibration callback in a real Trainer of two processes, for both packages; one start runs all cases."""

import json
from typing import Any

import pytest
from calibration_cases import statistics_of
from scripting import run_script

pytestmark = pytest.mark.e2e

PACKAGES = ("lightning", "pytorch_lightning")
Results = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both processes got, by package and by the name of the case."""
    folder = tmp_path_factory.mktemp("ranks")
    run_script("lightning_cases.py", folder)
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


@pytest.fixture(params=PACKAGES)
def results(request: pytest.FixtureRequest, ranks: list[dict[str, Any]]) -> Results:
    """What both processes got with one package."""
    return [rank[request.param] for rank in ranks]


def as_json(stats: dict[str, Any]) -> Any:
    """Return statistics as they read back from a file."""
    return json.loads(json.dumps(stats))


def test_an_odd_number_of_samples_counts_once_each(results: Results) -> None:
    """13 shuffled samples on two processes give the bits of one; nothing of the sanity check or an earlier epoch."""
    expected = as_json(statistics_of(range(13), factor=2))
    assert [rank["fitted"]["stats"] for rank in results] == [expected, expected]


def test_statistics_are_in_a_file_and_in_the_checkpoints(results: Results) -> None:
    """The file beside the checkpoints has the last validation, each checkpoint its own, and resuming restores it."""
    fitted = results[0]["fitted"]
    assert fitted["file"] == fitted["last"] == fitted["resumed"] == fitted["stats"]
    assert fitted["first"] == as_json(statistics_of(range(13), factor=1))


def test_validate_looks_at_its_own_dataloaders(results: Results) -> None:
    """After a fit on other samples; with fewer samples than would fill the processes; with two dataloaders."""
    for rank in results:
        assert rank["validated"]["three"] == as_json(statistics_of(range(3), factor=2))
        assert rank["validated"]["two-loaders"] == as_json(statistics_of([*range(5), *range(2)], factor=2))


def test_a_function_says_where_the_arrays_are(results: Results) -> None:
    """Only what it returns is calibrated on; a process with nothing but a repetition takes part all the same."""
    expected = as_json(statistics_of([2], maps_only=True))
    for rank in results:
        assert rank["extracted"] == expected


def test_a_sampler_of_ones_own_can_be_vouched_for(results: Results) -> None:
    """With `no_duplicates=True` the samples of an iterable dataset count as they come."""
    expected = as_json(statistics_of(range(13)))
    assert [rank["streamed"] for rank in results] == [expected, expected]


def test_two_callbacks_stand_beside_each_other(results: Results) -> None:
    """With policies and files of their own, each is in its file and can be chosen in the checkpoint."""
    for policy, (file, in_checkpoint) in results[0]["two_callbacks"].items():
        assert file == in_checkpoint
        assert file["image"]["policy"] == policy


def test_an_error_in_the_validation_step_gives_disk_space_back(results: Results) -> None:
    """Lightning tears nothing down after an exception."""
    for rank in results:
        assert rank["broken_step"] == {"before": True, "after": False}


def test_what_is_not_there_is_found_before_training(results: Results) -> None:
    """In the sanity check, in all processes."""
    for rank in results:
        assert rank["found_early"]["trained"] == 0
        assert "the validation step has no predictions" in rank["found_early"]["text"]


REFUSED = [
    ("missing_in_one", "rank 1 of 2 failed: KeyError: 'no_such_key'", ""),
    ("not_written", "rank 0 of 2 failed: cannot write", "folder.json"),
    ("same_file", "two calibration callbacks of one Trainer write the same file", "in the folder of the checkpoints"),
    ("not_found", "the validation step has no predictions", "validation_step returned a tuple of 2"),
    ("not_vouched", "which samples of validation dataloader 0 reach several processes", "the dataset is iterable"),
    ("not_distributed", "which samples of validation dataloader 0 reach several", "the sampler is a SequentialSampler"),
    (
        "same_share",
        "which samples of validation dataloader 0 reach",
        "samplers for the ranks [0, 0] of 2 in 2 processes",
    ),
    ("wrong_count", "rank 1 of 2 failed: the sampler repeats 1 samples of batch 1", "shape [1] for 3 samples"),
    ("spoiled", "rank 1 of 2 failed: batch 0: pred_score has values that are not finite", "4 of 4 values"),
]


@pytest.mark.parametrize(("case", "what", "found"), REFUSED, ids=[row[0] for row in REFUSED])
def test_what_cannot_be_counted_stops_every_process(results: Results, case: str, what: str, found: str) -> None:
    """The run stops with the same words everywhere instead of counting a sample twice or not at all."""
    for rank in results:
        assert what in rank[case]["text"]
        assert found in rank[case]["text"]
