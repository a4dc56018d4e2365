"""Statistics in checkpoints, Anomalib's of every age and ours, and what a checkpoint may not be."""

import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hosts
import pytest
import torch

from postproc_export import CalibrationStats, LevelStats, PostProcessor, attach_postprocessing, update_postprocessing
from postproc_export.checkpoint import load_checkpoint
from postproc_export.errors import FileError, MetadataError, MissingDependencyError, UsageError
from postproc_export.images import Preprocessing

NAN, INF = float("nan"), float("inf")
BUFFERS = {
    "_image_threshold": 1.5,
    "_pixel_threshold": 0.75,
    "image_min": 0.5,
    "image_max": 3.0,
    "pixel_min": 0.25,
    "pixel_max": 3.0,
}
CONFIG = {
    "enable_normalization": True,
    "enable_thresholding": True,
    "enable_threshold_matching": True,
    "image_sensitivity": 0.25,
    "pixel_sensitivity": 0.5,
}
METRICS = {
    "image_threshold.value": 1.5,
    "pixel_threshold.value": 0.75,
    "normalization_metrics.pred_scores.min": 0.5,
    "normalization_metrics.pred_scores.max": 3.0,
    "normalization_metrics.anomaly_maps.min": 0.25,
    "normalization_metrics.anomaly_maps.max": 3.0,
    "normalization_metrics.box_scores.min": INF,
}
NUMBERS = {"image": (1.5, 0.5, 3.0), "pixel": (0.75, 0.25, 3.0)}


def numbers(stats: CalibrationStats) -> dict[str, tuple[float | None, float, float]]:
    """Return threshold, min and max of each level that is there."""
    levels = {"image": stats.image, "pixel": stats.pixel}
    return {name: (level.threshold, level.min, level.max) for name, level in levels.items() if level is not None}


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write a checkpoint with these numbers in the state of its model, and with other parts."""

    def write(state: dict[str, float], *, start: str = "post_processor.", **parts: Any) -> Path:
        tensors = {f"{start}{name}": torch.tensor(value) for name, value in state.items()}
        torch.save({"epoch": 1, "state_dict": {"model.weight": torch.ones(2), **tensors}, **parts}, tmp_path / "a.ckpt")
        return tmp_path / "a.ckpt"

    return write


def of_anomalib(save: Callable[..., Path], *, config: dict[str, Any] | None = None, **changed: float) -> Path:
    """Return a checkpoint as Anomalib 2.7 writes it, with other numbers or options."""
    return save(BUFFERS | changed, anomalib_post_processor_config={**CONFIG, **(config or {})})


def test_anomalib_2_is_read_with_its_options(save: Callable[..., Path]) -> None:
    """Six buffers make the levels; sensitivities and switches stand beside them, and what is not known is noted."""
    stats = CalibrationStats.load(of_anomalib(save))
    assert numbers(stats) == NUMBERS
    assert stats.details["decision"] == {
        **{f"{level}_sensitivity": CONFIG[f"{level}_sensitivity"] for level in NUMBERS},
        "enable_normalization": True,
        "enable_thresholding": True,
    }
    assert stats.details["read_from"]["file"] == "a.ckpt"
    compares, counts = stats.details["read_from"]["notes"]
    assert "does not say how it compares" in compares
    assert "--comparison gt" in compares
    assert "how many images and pixels of each class" in counts


@pytest.mark.parametrize(
    ("state", "start"),
    [
        pytest.param(BUFFERS, "post_processor.", id="2.0-without-options"),
        pytest.param(BUFFERS, "", id="of-the-post-processor-alone"),
        pytest.param(METRICS, "", id="1"),
    ],
)
def test_checkpoints_without_options_say_so(state: dict[str, float], start: str, save: Callable[..., Path]) -> None:
    """The numbers are read; that there are no sensitivities is noted, and none is made up."""
    stats = CalibrationStats.load(save(state, start=start))
    assert numbers(stats) == NUMBERS
    assert stats.details["decision"] == {}
    assert "the checkpoint holds no sensitivities and no switches" in stats.details["read_from"]["notes"]


def test_anomalib_0_has_one_range(save: Callable[..., Path]) -> None:
    """It counts for both levels."""
    state = {"image_threshold.value": 1.5, "pixel_threshold.value": 1.0}
    state |= {"normalization_metrics.min": 0.0, "normalization_metrics.max": 2.0}
    assert numbers(CalibrationStats.load(save(state, start=""))) == {"image": (1.5, 0.0, 2.0), "pixel": (1.0, 0.0, 2.0)}


def test_a_state_dict_alone_is_read(tmp_path: Path) -> None:
    """What `torch.save(model.state_dict(), path)` writes: the way out for checkpoints that hold code."""
    torch.save({f"post_processor.{name}": torch.tensor(value) for name, value in BUFFERS.items()}, tmp_path / "a.pt")
    assert numbers(CalibrationStats.load(tmp_path / "a.pt")) == NUMBERS


def test_a_level_that_was_not_calibrated_is_not_there(save: Callable[..., Path]) -> None:
    """All three numbers are NaN; nor is the pixel level of Anomalib 1, whose threshold was copied."""
    gone = {"_pixel_threshold": NAN, "pixel_min": NAN, "pixel_max": NAN}
    assert CalibrationStats.load(of_anomalib(save, **gone)).pixel is None
    ends = {f"normalization_metrics.anomaly_maps.{end}": value for end, value in (("min", INF), ("max", -INF))}
    assert CalibrationStats.load(save(METRICS | ends, start="")).pixel is None


def test_a_threshold_that_is_missing_is_borrowed_as_there(save: Callable[..., Path]) -> None:
    """Anomalib matches thresholds by default; where that is switched off, the level stays without one."""
    matched = CalibrationStats.load(of_anomalib(save, _pixel_threshold=NAN))
    assert matched.details["decision"]["match_thresholds"] is True
    assert numbers(matched)["pixel"] == (None, 0.25, 3.0)
    path = of_anomalib(save, config={"enable_threshold_matching": False}, _pixel_threshold=NAN)
    assert "match_thresholds" not in CalibrationStats.load(path).details["decision"]


def test_our_post_processor_records_all_of_it(save: Callable[..., Path]) -> None:
    """Counts, policy and comparison are known; numbers that were changed since are those of the buffers."""
    level = LevelStats(threshold=1.5, min=0.5, max=3.0, policy="f1", rule="f1", n_normal=3, n_anomalous=2)
    stats = CalibrationStats(image=level, pixel=LevelStats(threshold=9.0, min=0.25, max=3.0, policy="f1"))
    own = {"comparison": "gt", "nan_guard": True, "postproc_export": {"stats": stats.to_json(), "is_whole": True}}
    found = CalibrationStats.load(of_anomalib(save, config=own))
    assert found.image == level
    assert found.pixel == LevelStats(threshold=0.75, min=0.25, max=3.0, rule="anomalib")
    assert found.details["decision"]["comparison"] == "gt"
    assert found.details["read_from"]["notes"] == []


def test_what_a_subclass_makes_of_values_is_noted(save: Callable[..., Path]) -> None:
    """Its statistics are those behind a transform that is not in the file."""
    own = {"postproc_export": {"stats": None, "is_whole": False}}
    notes = CalibrationStats.load(of_anomalib(save, config=own)).details["read_from"]["notes"]
    assert any("by a subclass" in note for note in notes)
    notes = CalibrationStats.load(of_anomalib(save, config={"pixel_threshold_percentile": 95.0})).details["read_from"]
    assert any("percentile=Q,factor=F" in note for note in notes["notes"])


@pytest.mark.parametrize(
    ("config", "changed", "message"),
    [
        pytest.param({}, dict.fromkeys(BUFFERS, NAN), r"is not calibrated\n.*nan.*\n(.*\n)*.*validate", id="never"),
        pytest.param({}, {"_image_threshold": INF}, "the image level has no finite threshold\n.*inf", id="infinite"),
        pytest.param({}, {"image_min": NAN, "image_max": NAN}, "the image level has no range\n.*nan", id="no-range"),
        pytest.param({}, {"pixel_max": INF}, "the pixel level has no range\n.*inf", id="half-a-range"),
        pytest.param({}, {"image_max": 0.5}, "image: the range .* is empty", id="empty-range"),
        pytest.param({"min_interval_len": 4}, {}, "MEBin\n.*each image.*\n.*connected parts", id="mebin"),
        pytest.param({"image_sensitivity": torch.ones(2)}, {}, "'image_sensitivity' is not legal", id="not-a-number"),
    ],
)
def test_what_cannot_be_used_is_one_message(
    config: dict[str, Any], changed: dict[str, float], message: str, save: Callable[..., Path]
) -> None:
    """The file, what was found and what helps."""
    with pytest.raises(MetadataError, match=rf"a\.ckpt.*{message}"):
        CalibrationStats.load(of_anomalib(save, config=config, **changed))


class Code:
    """What would be run, were the checkpoint unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("is_old", [False, True], ids=["archive", "pickle"])
def test_code_is_not_run(is_old: bool, tmp_path: Path) -> None:
    """A checkpoint that pickles a call is refused, and the call is not made."""
    content = {"state_dict": {}, "transform": Code(tmp_path / "made")}
    torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=not is_old)
    found = "objects" if is_old else ".*mkdir"
    with pytest.raises(
        FileError, match=rf"without running code that it holds\n  found:   pickled {found}\n(.*\n)*  fix"
    ):
        CalibrationStats.load(tmp_path / "a.ckpt")
    assert not (tmp_path / "made").exists()


class PrecisionType(StrEnum):
    """As in the options of a model."""

    FLOAT32 = "float32"


def test_enumerations_of_anomalib_become_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options of its models hold some: they are read without Anomalib, and those of others are refused."""
    torch.save({"precision": PrecisionType.FLOAT32}, tmp_path / "other.ckpt")
    monkeypatch.setitem(sys.modules, "anomalib", SimpleNamespace(PrecisionType=PrecisionType))
    monkeypatch.setattr(PrecisionType, "__module__", "anomalib")
    torch.save({"precision": PrecisionType.FLOAT32}, tmp_path / "known.ckpt")
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "known.ckpt") == {"precision": "float32"}
    with pytest.raises(FileError, match=r"pickled .*test_checkpoint\.PrecisionType"):
        load_checkpoint(tmp_path / "other.ckpt")


def test_what_is_no_checkpoint_is_not_said_to_hold_code(tmp_path: Path) -> None:
    """Nobody is told to load it by other means."""
    path = tmp_path / "a.ckpt"
    for content in (b'{"threshold": 1}', bytes(100)):
        path.write_bytes(content)
        with pytest.raises(FileError, match="found:   neither an archive nor a pickle\n") as refused:
            load_checkpoint(path)
        assert "weights_only" not in str(refused.value)


@pytest.mark.parametrize("kept", [0, 40, 0.5, 0.99], ids=["nothing", "the-start", "half", "most"])
def test_a_truncated_checkpoint_is_one_message(kept: float, save: Callable[..., Path]) -> None:
    """However little of it is left."""
    path = of_anomalib(save)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept if kept > 1 else kept * len(content))])
    with pytest.raises(
        (FileError, MetadataError), match=r"a\.ckpt (cannot be read|is not JSON)\n  found:.*\n.*\n  fix:"
    ):
        CalibrationStats.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param({"state_dict": {"weight": torch.ones(2)}}, "that are known\n.*weight", id="no-anomalib"),
        pytest.param(torch.ones(2), "no statistics that are known\n.*no tensors", id="a-tensor"),
        pytest.param([1, 2], "no statistics that are known", id="a-list"),
        pytest.param({"state_dict": {"a._image_threshold": 1, "b._image_threshold": 1}}, "several post-proc", id="two"),
        pytest.param({"_image_threshold": torch.ones(2)}, "'_image_threshold' is not one number", id="two-numbers"),
        pytest.param({"callbacks": {"CalibrationCallback{}": {"statistics": {"x": {1, 2}}}}}, "not legal", id="a-set"),
        pytest.param({"callbacks": {"CalibrationCallback{}": {"statistics": {"x": 1}}}}, "no statistics", id="nothing"),
    ],
)
def test_other_checkpoints_are_one_message(content: object, message: str, tmp_path: Path) -> None:
    """What is no checkpoint of Anomalib, or holds something else under its names."""
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(MetadataError, match=rf"a\.ckpt.*{message}"):
        CalibrationStats.load(tmp_path / "a.ckpt")


def test_the_callbacks_statistics_go_first(tmp_path: Path) -> None:
    """Of one callback they are taken; of several it is not clear whose, and the message says who asks further."""
    document = CalibrationStats(image=LevelStats(threshold=1.0, min=0.0, max=2.0)).to_json()
    states = {f"CalibrationCallback{name}": {"statistics": document} for name in ("a", "b")}
    torch.save({"state_dict": {"_image_threshold": torch.tensor(9.0)}, "callbacks": states}, tmp_path / "two.ckpt")
    with pytest.raises(UsageError, match=r"several callbacks\n.*CalibrationCallbacka, .*\n.*checkpoint_statistics"):
        CalibrationStats.load(tmp_path / "two.ckpt")
    del states["CalibrationCallbackb"]
    torch.save({"state_dict": {"_image_threshold": torch.tensor(9.0)}, "callbacks": states}, tmp_path / "one.ckpt")
    assert numbers(CalibrationStats.load(tmp_path / "one.ckpt")) == {"image": (1.0, 0.0, 2.0)}


def test_without_torch_the_extra_is_named(save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has the command that brings it."""
    path = of_anomalib(save)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r'a\.ckpt needs .*\n.*pip install "postproc-export\[torch\]"'):
        CalibrationStats.load(path)


# --- what a checkpoint says of the decision


def test_attach_decides_as_the_checkpoint(save: Callable[..., Path], tmp_path: Path) -> None:
    """By its sensitivity and its switches, where no option says otherwise; notes tell both."""
    raw = hosts.write(hosts.score_and_map(), tmp_path / "raw.onnx")
    path = of_anomalib(save, config={"enable_normalization": False})
    attached = attach_postprocessing(raw, path, output=tmp_path / "a.onnx")
    options = attached.record.options
    assert (options.image_sensitivity, options.pixel_sensitivity, options.enable_normalization) == (0.25, 0.5, False)
    assert attached.notes[0] == "as the statistics have it: --image-sensitivity 0.25, --no-normalize"
    assert "does not say how it compares" in attached.notes[1]
    assert "decision" not in attached.record.stats.details
    options = attach_postprocessing(
        raw, path, output=tmp_path / "b.onnx", image_sensitivity=0.5, enable_normalization=True
    ).record.options
    assert (options.image_sensitivity, options.enable_normalization) == (0.5, True)


def test_what_has_no_effect_is_left_out(save: Callable[..., Path], tmp_path: Path) -> None:
    """A sensitivity of a level that is not wanted, or of labels that are switched off, draws no refusal."""
    raw = hosts.write(hosts.score_and_map(), tmp_path / "raw.onnx")
    path = of_anomalib(save)
    attach_postprocessing(raw, path, output=tmp_path / "a.onnx", levels="pixel")
    path = of_anomalib(save, config={"enable_thresholding": False})
    attached = attach_postprocessing(raw, path, output=tmp_path / "b.onnx")
    assert attached.output_names == ("pred_score", "anomaly_map")


def test_a_borrowed_threshold_is_attached(save: Callable[..., Path], tmp_path: Path) -> None:
    """As Anomalib borrows it by default."""
    raw = hosts.write(hosts.score_and_map(), tmp_path / "raw.onnx")
    attached = attach_postprocessing(raw, of_anomalib(save, _pixel_threshold=NAN), output=tmp_path / "a.onnx")
    assert attached.record.stats.pixel is not None
    assert attached.record.stats.pixel.threshold == 1.5


def test_update_takes_all_of_the_checkpoint(save: Callable[..., Path], tmp_path: Path) -> None:
    """Statistics and sensitivities take the place of those in the file; what is given besides counts."""
    raw = hosts.write(hosts.score_and_map(), tmp_path / "raw.onnx")
    level = LevelStats(threshold=0.5, min=0.0, max=2.0)
    stats = CalibrationStats(image=level, pixel=level)
    attach_postprocessing(raw, stats, output=tmp_path / "a.onnx", image_sensitivity=0.75)
    updated = update_postprocessing(
        tmp_path / "a.onnx", stats=of_anomalib(save), output=tmp_path / "b.onnx", pixel_sensitivity=0.625
    )
    assert numbers(updated.after.stats) == NUMBERS
    assert (updated.after.options.image_sensitivity, updated.after.options.pixel_sensitivity) == (0.25, 0.625)
    assert any("does not say how it compares" in note for note in updated.notes)


def test_how_images_are_fed_stays_in_the_file(save: Callable[..., Path], tmp_path: Path) -> None:
    """A checkpoint does not say, so that an update keeps what the file records, and says so."""
    raw = hosts.write(hosts.score_and_map(), tmp_path / "raw.onnx")
    level, fed = LevelStats(threshold=0.5, min=0.0, max=2.0), Preprocessing(size=(8, 8)).to_json()
    stats = CalibrationStats(image=level, pixel=level, details={"preprocessing": fed})
    attach_postprocessing(raw, stats, output=tmp_path / "a.onnx")
    updated = update_postprocessing(tmp_path / "a.onnx", stats=of_anomalib(save), output=tmp_path / "b.onnx")
    assert updated.after.stats.details["preprocessing"] == fed
    assert any("how images are fed" in note for note in updated.notes)


def test_the_eager_module_decides_as_the_checkpoint(save: Callable[..., Path]) -> None:
    """It takes the path as it takes that of a statistics file."""
    module = PostProcessor(of_anomalib(save, _pixel_threshold=NAN))
    assert (module.image_sensitivity, module.enable_threshold_matching) == (0.25, True)
    assert PostProcessor(of_anomalib(save), image_sensitivity=0.5).image_sensitivity == 0.5


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        pytest.param([1], "a decision that is not legal", id="a-list"),
        pytest.param({"output": "x"}, "a decision that is not legal", id="another-option"),
        pytest.param({"nan_guard": 0}, "nan_guard in the statistics is not a switch", id="a-number"),
        pytest.param({"image_sensitivity": 2.0}, "sensitivity 2: use 0 to 1", id="out-of-range"),
    ],
)
def test_a_decision_that_is_not_legal_is_refused(decision: object, message: str, tmp_path: Path) -> None:
    """Statistics are data: nothing else can be set by them."""
    level = LevelStats(threshold=0.5, min=0.0, max=2.0)
    stats = CalibrationStats(image=level, details={"decision": decision})
    raw = hosts.write(hosts.score_and_map(), tmp_path / "raw.onnx")
    with pytest.raises((MetadataError, UsageError), match=message):
        attach_postprocessing(raw, stats, output=tmp_path / "a.onnx")
