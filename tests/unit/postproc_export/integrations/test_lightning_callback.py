"""The calibration callback without a Trainer: where arrays are found, which samples repeat, what is refused."""

import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, DistributedSampler

from postproc_export.calibration import Calibrator
from postproc_export.errors import CalibrationError, FileError, UsageError
from postproc_export.integrations import lightning
from postproc_export.integrations.lightning import (
    CalibrationHooks,
    SamplerPartition,
    calibration_callback,
    checked_arrays,
    checkpoint_statistics,
    find_arrays,
    unrepeated_part,
)
from postproc_export.stats import CalibrationStats

SCORES, LABELS = np.float32([1, 2, 3]), np.array([0, 1, 1])


class Callback(CalibrationHooks):
    """The hooks without a base class of Lightning's."""

    package = "lightning"


def callback(calibrator: Calibrator | None = None, **options: Any) -> Callback:
    """Return the hooks with few resamples."""
    given = {"extract": None, "output": None, "no_duplicates": False, **options}
    return Callback(calibrator or Calibrator(resamples=0), **given)


def trainer(folder: Any = None, *callbacks: Any, sanity_checking: bool = False) -> Any:
    """Return what the hooks look at of a Trainer with one process."""
    keeper = None if folder is None else SimpleNamespace(dirpath=folder)
    return SimpleNamespace(
        sanity_checking=sanity_checking,
        world_size=1,
        is_global_zero=True,
        checkpoint_callback=keeper,
        callbacks=callbacks,
    )


def validate(hooks: Callback, run: Any, *batches: Any) -> None:
    """Run the hooks as a validation does."""
    hooks.on_validation_epoch_start(run, None)
    for number, batch in enumerate(batches):
        hooks.on_validation_batch_end(run, None, None, batch, number)
    hooks.on_validation_epoch_end(run, None)


BATCH = {"pred_score": SCORES, "gt_label": LABELS}


def test_each_validation_starts_anew_and_writes_its_file(tmp_path: Path) -> None:
    """The statistics are those of the last validation alone, also after one that an error ended."""
    hooks, run = callback(), trainer(tmp_path / "checkpoints")
    validate(hooks, run, {**BATCH, "pred_score": SCORES * 100})
    hooks.on_validation_epoch_start(run, None)
    hooks.on_validation_batch_end(run, None, None, {**BATCH, "pred_score": SCORES * 1000}, 0)
    validate(hooks, run, BATCH)
    assert hooks.stats is not None
    assert hooks.stats.image is not None
    assert (hooks.stats.image.threshold, hooks.stats.image.max) == (2, 3)
    assert CalibrationStats.load(tmp_path / "checkpoints" / "calibration.json").to_json() == hooks.stats.to_json()


def test_sanity_checks_count_nothing(tmp_path: Path) -> None:
    """Neither statistics nor a file come from the sanity check."""
    hooks = callback()
    validate(hooks, trainer(tmp_path, sanity_checking=True), BATCH)
    assert hooks.stats is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sanity_checking", [True, False])
def test_what_cannot_be_found_is_said_in_the_sanity_check(sanity_checking: bool) -> None:
    """Not after an epoch of training; what the user's own function raises comes out as it is."""
    run = trainer(sanity_checking=sanity_checking)
    with pytest.raises(UsageError, match="the validation step has no ground truth"):
        validate(callback(), run, {"pred_score": SCORES})
    with pytest.raises(ZeroDivisionError):
        validate(callback(extract=lambda outputs, batch: 1 // 0), run, BATCH)


def test_a_file_for_each_callback(tmp_path: Path) -> None:
    """Two that would write the same file are refused: before the folder of the checkpoints is known, and after it."""
    one, other = callback(), callback(Calibrator(image_policy="recall=1", resamples=0))
    apart = callback(output=tmp_path / "recall.json")
    same = callback(output=tmp_path / "calibration.json")
    for hooks, run in ((one, trainer(tmp_path, one, other)), (one, trainer(tmp_path, one, same))):
        with pytest.raises(UsageError, match=r"(?s)write the same file.*calibration\.json.*output="):
            hooks.on_validation_epoch_start(run, None)
    early = trainer(None, one, other)
    early.checkpoint_callback = SimpleNamespace(dirpath=None)
    with pytest.raises(UsageError, match=r"calibration\.json in the folder of the checkpoints"):
        one._check_file(early)
    for run in (trainer(tmp_path, one, apart), trainer(None, one, other)):  # without checkpoints there is no file
        one.on_validation_epoch_start(run, None)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file in its place, for example."""
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(FileError, match=r"(?s)cannot make the folder of .*taken.*output="):
        validate(callback(output=tmp_path / "taken" / "stats.json"), trainer(), BATCH)


def test_without_checkpoints_no_file_is_written_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Trainer without checkpoints leaves the working folder alone; `output` is written in any case."""
    monkeypatch.chdir(tmp_path)
    validate(callback(), trainer(), BATCH)
    assert list(tmp_path.iterdir()) == []
    validate(callback(output="own/stats.json"), trainer(), BATCH)
    assert (tmp_path / "own" / "stats.json").is_file()


def test_checkpoints_on_another_machine_need_an_output() -> None:
    """A folder that is a URL is refused before the first sample, in the sanity check already."""
    run = trainer("s3://bucket/run", sanity_checking=True)
    with pytest.raises(UsageError, match=r"(?s)beside the checkpoints.*s3://bucket/run.*output="):
        callback().on_validation_epoch_start(run, None)
    callback(output="stats.json").on_validation_epoch_start(run, None)


def test_one_process_raises_at_the_batch() -> None:
    """Alone, there is nobody to wait for: what the calibrator refuses stops the run where it is."""
    with pytest.raises(CalibrationError, match="batch 0: pred_score has values that are not finite"):
        validate(callback(), trainer(), {**BATCH, "pred_score": SCORES * np.nan})


def test_the_trainer_of_the_other_package_is_refused() -> None:
    """The message names the package to ask for; the right Trainer and its subclasses pass."""
    made = {name: type("Trainer", (), {"__module__": f"{name}.trainer"}) for name in ("lightning", "pytorch_lightning")}
    mine = type("Mine", (made["lightning"],), vars(trainer()))
    callback().setup(mine(), None, "fit")
    with pytest.raises(UsageError, match=r"(?s)made for lightning.*package='pytorch_lightning'"):
        callback().setup(made["pytorch_lightning"](), None, "fit")


@pytest.mark.parametrize("imported", [(), ("lightning", "pytorch_lightning")], ids=["none", "both"])
def test_the_package_has_to_be_clear(imported: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """With both packages imported, or none, the callback is not built for one by guess."""
    for name in ("lightning", "pytorch_lightning"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in imported:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    with pytest.raises(UsageError, match="not clear whose Trainer"):
        calibration_callback()


def test_an_unknown_package_is_refused() -> None:
    """Only two packages have a Trainer."""
    with pytest.raises(UsageError, match="package='torch' is not known"):
        calibration_callback(package="torch")  # type: ignore[arg-type]


def test_the_class_is_built_once_per_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """It derives from the package's own Callback, and instances survive pickling, as spawned processes need it."""
    fake = ModuleType("pytorch_lightning")
    fake.Callback = type("Callback", (), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pytorch_lightning", fake)
    monkeypatch.delitem(sys.modules, "lightning", raising=False)
    lightning.callback_class.cache_clear()
    one, other = calibration_callback(output="stats.json"), calibration_callback(Calibrator(image_policy="recall=1"))
    again = pickle.loads(pickle.dumps(one))
    lightning.callback_class.cache_clear()
    assert type(one) is type(other) is type(again)
    assert isinstance(one, fake.Callback)
    assert (again.state_key, again._output) == (one.state_key, Path("stats.json"))
    assert one.state_key != other.state_key


def test_statistics_come_back_from_a_checkpoint(tmp_path: Path) -> None:
    """As plain data, which `torch.load` reads without executing anything."""
    hooks = callback(Calibrator(compare=("recall=1",), resamples=5))
    validate(hooks, trainer(), BATCH)
    assert hooks.stats is not None
    torch.save({"callbacks": {hooks.state_key: hooks.state_dict(), "Other": {}}}, tmp_path / "a.ckpt")
    assert checkpoint_statistics(tmp_path / "a.ckpt").to_json() == hooks.stats.to_json()
    other = callback()
    other.load_state_dict(hooks.state_dict())
    assert other.stats is not None
    assert other.stats.to_json() == hooks.stats.to_json()


def test_one_of_several_callbacks_is_chosen_by_its_policies(tmp_path: Path) -> None:
    """In any spelling of a policy; without a choice, or with one that nobody has, the message says who is there."""
    policies = [{}, {"image_policy": "recall=1"}, {"image_policy": "recall=1", "pixel_policy": "recall=0.5"}]
    states = {}
    for options in policies:
        hooks = callback(Calibrator(resamples=0, **options))  # type: ignore[arg-type]
        validate(hooks, trainer(), BATCH)
        states[hooks.state_key] = hooks.state_dict()
    path = tmp_path / "a.ckpt"
    torch.save({"callbacks": states}, path)
    assert checkpoint_statistics(path, image_policy="f1").image.policy == "f1"  # type: ignore[union-attr]
    assert checkpoint_statistics(path, pixel_policy="recall=0.50").image.policy == "recall=1"  # type: ignore[union-attr]
    with pytest.raises(UsageError, match=r"(?s)found:   3 of CalibrationCallback.*recall=0.5.*fix: +say which with"):
        checkpoint_statistics(path)
    with pytest.raises(UsageError, match=r"0 of CalibrationCallback.*, with image_policy='fpr=0.1'"):
        checkpoint_statistics(path, image_policy="fpr=0.1")


def test_checkpoints_without_statistics_are_refused(tmp_path: Path) -> None:
    """No callback, none yet, or no checkpoint at all: each with its reason."""
    torch.save({"callbacks": {}}, tmp_path / "none.ckpt")
    torch.save({"callbacks": {callback().state_key: callback().state_dict()}}, tmp_path / "early.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(UsageError, match=r"(?s)statistics of one validation.*0 of no calibration callback"):
        checkpoint_statistics(tmp_path / "none.ckpt")
    with pytest.raises(UsageError, match=r"0 of CalibrationCallback"):
        checkpoint_statistics(tmp_path / "early.ckpt")
    with pytest.raises(FileError, match=r"text\.ckpt cannot be read"):
        checkpoint_statistics(tmp_path / "text.ckpt")


OUTPUTS = [
    pytest.param({"pred_score": 1, "gt_label": 2}, None, {"pred_score": 1, "gt_label": 2}, id="keys"),
    pytest.param(
        SimpleNamespace(anomaly_map=1, gt_mask=None), {"masks": 2}, {"anomaly_map": 1, "gt_mask": 2}, id="mixed"
    ),
    pytest.param({"scores": 1}, SimpleNamespace(labels=2, scores=3), {"pred_score": 1, "gt_label": 2}, id="step-first"),
    pytest.param({"maps": 1, "anomaly_map": 2}, None, {"anomaly_map": 2}, id="first-name-first"),
    pytest.param(torch.zeros(3), [torch.zeros(3)], {}, id="nothing"),
]


@pytest.mark.parametrize(("outputs", "batch", "found"), OUTPUTS)
def test_arrays_are_found_by_their_names(outputs: Any, batch: Any, found: dict[str, Any]) -> None:
    """Keys or attributes of what the step returned, then of the batch; None is not there."""
    assert find_arrays(outputs, batch) == found


REFUSED = [
    pytest.param({"gt_label": 1}, True, False, "the validation step has no predictions", id="no-predictions"),
    pytest.param({"scores": 1}, True, False, "the validation step has no ground truth", id="no-truth"),
    pytest.param({"gt_mask": 1}, True, True, "what extract returned has no predictions", id="extract"),
    pytest.param({"pred": 1}, False, True, r"(?s)unknown keys.*pred\n", id="unknown-key"),
]


@pytest.mark.parametrize(("arrays", "truth_needed", "asked", "message"), REFUSED)
def test_a_step_that_cannot_be_calibrated_on_is_refused(
    arrays: dict[str, Any], truth_needed: bool, asked: bool, message: str
) -> None:
    """With what was there instead, and how to say where the arrays are."""
    with pytest.raises(UsageError, match=message):
        checked_arrays(arrays, {"loss": 0}, (1, 2), truth_needed=truth_needed, asked=asked)


def test_what_was_there_instead_is_shown() -> None:
    """The message describes what the step returned and the batch, and gives an example of `extract`."""
    with pytest.raises(
        UsageError, match=r"a mapping with loss, the batch is a tuple of 2(?s:.*)extract=lambda outputs"
    ):
        checked_arrays({}, {"loss": 0}, (1, 2), truth_needed=True, asked=False)


def test_policies_without_ground_truth_need_none() -> None:
    """`range=U` and `value=T` need predictions only."""
    hooks = callback(Calibrator(image_policy="range=0.5", pixel_policy="value=1", resamples=0))
    validate(hooks, trainer(), {"pred_score": SCORES})
    assert hooks.stats is not None
    assert hooks.stats.image is not None
    assert hooks.stats.image.threshold == 2


@given(samples=st.integers(1, 40), ranks=st.integers(1, 6), batch_size=st.integers(1, 7), shuffle=st.booleans())
def test_every_sample_is_counted_once(samples: int, ranks: int, batch_size: int, shuffle: bool) -> None:
    """Over all processes and batches, what is kept of a DistributedSampler's samples is each of them once."""
    kept: list[int] = []
    for rank in range(ranks):
        sampler = DistributedSampler(range(samples), num_replicas=ranks, rank=rank, shuffle=shuffle)  # type: ignore[arg-type]
        loader = DataLoader(range(samples), batch_size=batch_size, sampler=sampler)  # type: ignore[arg-type]
        dealt = SamplerPartition(sampler, batch_size)
        for number, batch in enumerate(loader):
            size, own = dealt.counts(number)
            assert size == len(batch)
            kept += batch[:own].tolist()
    assert sorted(kept) == list(range(samples))


def partition(*, rank: int, samples: int, batch_size: int) -> SamplerPartition:
    """Return how a DistributedSampler deals out to one of two processes."""
    sampler = DistributedSampler(range(samples), num_replicas=2, rank=rank, shuffle=False)  # type: ignore[arg-type]
    return SamplerPartition(sampler, batch_size)


def test_repeated_samples_are_left_out_of_every_array() -> None:
    """The first ones are kept; a batch of repetitions is nothing; a batch without any stays as it is."""
    arrays = {"pred_score": torch.arange(3.0), "anomaly_map": torch.zeros(3, 1, 2, 2)}
    last = partition(rank=1, samples=5, batch_size=3)
    part = unrepeated_part(arrays, last, 0)
    assert part["pred_score"].tolist() == [0, 1]
    assert part["anomaly_map"].shape == (2, 1, 2, 2)
    assert unrepeated_part(arrays, partition(rank=1, samples=1, batch_size=1), 0) == {}
    assert unrepeated_part(arrays, partition(rank=0, samples=5, batch_size=3), 0) == arrays
    with pytest.raises(UsageError, match=r"(?s)repeats 1 samples of batch 0, but pred_score.*shape \[2\] for 3"):
        unrepeated_part({"pred_score": torch.zeros(2)}, last, 0)
