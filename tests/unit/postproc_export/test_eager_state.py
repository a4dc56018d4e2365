"""`PostProcessor` as a module: buffers, state dict, assignment, precision, devices and copies."""

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from eager_outputs import BOTH, IMAGE, INF, NAN, PIXEL, agree, maps, same

from postproc_export.eager import PostProcessor
from postproc_export.errors import MetadataError, UsageError
from postproc_export.stats import CalibrationStats, LevelStats


def test_statistics_are_float32_buffers() -> None:
    """Statistics and sensitivities are buffers by name, NaN where there are none, and never parameters."""
    module = PostProcessor(CalibrationStats(image=IMAGE), pixel_sensitivity=0.1)
    buffers = {name: tensor.item() for name, tensor in module.named_buffers() if name != "flags"}
    expected = {
        "image_threshold": 1.0,
        "image_min": 0.0,
        "image_max": 2.0,
        "image_sensitivity": 0.5,
        "image_boundary": 1.0,
        "image_boundary_float16": 1.0 - 2.0**-12,
        "image_boundary_bfloat16": 1.0 - 2.0**-9,
        "pixel_threshold": NAN,
        "pixel_min": NAN,
        "pixel_max": NAN,
        "pixel_sensitivity": 0.10000000149011612,
        "pixel_boundary": NAN,
        "pixel_boundary_float16": NAN,
        "pixel_boundary_bfloat16": NAN,
    }
    assert buffers == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
    assert {tensor.dtype for name, tensor in module.named_buffers() if name != "flags"} == {torch.float32}
    assert not list(module.parameters())


def test_state_dict_has_what_decides_and_nothing_derived() -> None:
    """The state dict holds tensors only: the statistics, the sensitivities and the flags, not the boundaries."""
    state = PostProcessor(BOTH).state_dict()
    levels = [f"{level}_{name}" for level in ("image", "pixel") for name in ("threshold", "min", "max", "sensitivity")]
    assert set(state) == {*levels, "flags"}
    assert state["flags"].tolist() == [0, 1, 1, 0, 1]


ODD = {
    "image_sensitivity": 0.25,
    "pixel_sensitivity": 0.75,
    "comparison": "gt",
    "enable_normalization": False,
    "enable_thresholding": False,
    "enable_threshold_matching": True,
    "nan_guard": False,
}


@pytest.mark.parametrize("option", ODD)
def test_state_dict_round_trip(option: str) -> None:
    """A module that loads another one's state does as that one does, through `torch.save` with `weights_only`."""
    lacking = CalibrationStats(image=IMAGE, pixel=LevelStats(threshold=None, min=0.0, max=9.0))
    stats = lacking if option == "enable_threshold_matching" else BOTH
    source = PostProcessor(stats, **{option: ODD[option]})
    stream = io.BytesIO()
    torch.save(source.state_dict(), stream)
    stream.seek(0)
    target = PostProcessor()
    target.load_state_dict(torch.load(stream, weights_only=True))
    raw, raw_map = torch.tensor([0.5, 1.0, 1.25, 0.5]), maps(1.5, 2.5, 3.0, NAN)
    assert agree(target(raw, raw_map), source(raw, raw_map))
    assert not agree(target(raw, raw_map), PostProcessor(stats)(raw, raw_map))
    assert getattr(target, option) == getattr(source, option)
    assert target.stats == stats


@pytest.mark.parametrize("level", ["image", "pixel"])
def test_state_dict_of_one_level(level: str) -> None:
    """A level that the source does not have is taken away from the target."""
    stats = CalibrationStats(**{level: IMAGE})
    target = PostProcessor(BOTH)
    target.load_state_dict(PostProcessor(stats).state_dict())
    assert target.stats == stats
    assert agree(target(torch.tensor([1.5]), maps(1.5)), PostProcessor(stats)(torch.tensor([1.5]), maps(1.5)))


def test_state_dict_of_a_parent_module() -> None:
    """The state travels with a model that holds the post-processor."""
    source = torch.nn.Sequential(torch.nn.Identity(), PostProcessor(BOTH, image_sensitivity=0.75))
    target = torch.nn.Sequential(torch.nn.Identity(), PostProcessor())
    target.load_state_dict(source.state_dict())
    assert target[1](torch.tensor([0.5])).pred_label.tolist() == [True]
    target.load_state_dict({**source.state_dict(), "1.image_sensitivity": torch.tensor(0.5)}, assign=True)
    assert target[1](torch.tensor([0.5])).pred_label.tolist() == [False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"image_min": 5.0}, "the image level: the range", id="empty-range"),
        pytest.param({"pixel_max": INF}, "the pixel level: max is not a finite float32", id="inf"),
        pytest.param(
            {"pixel_max": NAN}, "the pixel level has no range\n.*threshold 3.0, min 1.0\n.*beside it", id="no-max"
        ),
        pytest.param(
            {"image_min": NAN, "image_max": NAN}, "the image level has no range\n.*threshold 1.0", id="no-range"
        ),
        pytest.param({"image_sensitivity": 2.0}, "image_sensitivity 2: use 0 to 1", id="sensitivity"),
        pytest.param({"pixel_threshold": 1e-40}, "subnormal", id="subnormal"),
    ],
)
def test_illegal_state_is_refused_and_changes_nothing(changes: dict[str, float], message: str) -> None:
    """Statistics that are not legal are refused from a state dict as well; the module stays as it was."""
    module = PostProcessor(BOTH)
    before = repr(module)
    state = {**module.state_dict(), **{name: torch.tensor(value) for name, value in changes.items()}}
    with pytest.raises(MetadataError, match=message):
        module.load_state_dict(state)
    assert repr(module) == before
    assert module.image_min.item() == 0.0
    assert agree(module(torch.tensor([1.0])), PostProcessor(BOTH)(torch.tensor([1.0])))


def test_state_that_does_not_fit_is_reported_by_torch() -> None:
    """Missing keys and wrong shapes are torch's errors; `strict=False` takes a part of a state."""
    module = PostProcessor(BOTH)
    state = module.state_dict()
    flags = state.pop("flags")
    with pytest.raises(RuntimeError, match=r'Missing key.*"flags"'):
        module.load_state_dict(state)
    with pytest.raises(RuntimeError, match="size mismatch for image_min"):
        module.load_state_dict({**state, "flags": flags, "image_min": torch.zeros(2)})
    assert module.stats == BOTH
    module.load_state_dict({"image_sensitivity": torch.tensor(0.75)}, strict=False)
    assert module(torch.tensor([0.5])).pred_label.tolist() == [True]


@pytest.mark.parametrize(
    ("name", "value", "raw", "expected"),
    [
        ("image_sensitivity", 0.75, 0.5, True),
        ("image_sensitivity", torch.tensor(0.75), 0.5, True),
        ("image_threshold", 0.5, 0.5, True),
        ("image_threshold", torch.tensor(2, dtype=torch.float64), 1.5, False),
        ("comparison", "gt", 1.0, False),
        ("stats", CalibrationStats(image=LevelStats(threshold=9.0, min=0.0, max=10.0)), 8.0, False),
    ],
)
def test_assigning_moves_the_boundary(name: str, value: Any, raw: float, expected: bool) -> None:
    """Statistics, sensitivities and the rule can be assigned; the decision follows at once."""
    module = PostProcessor(BOTH)
    assert module(torch.tensor([raw])).pred_label.item() is not expected
    setattr(module, name, value)
    assert module(torch.tensor([raw])).pred_label.item() is expected


def test_assigning_moves_the_boundary_after_loading_too() -> None:
    """A module that was loaded, or refused a state, follows assignments like any other."""
    module = PostProcessor(BOTH)
    module.load_state_dict(module.state_dict())
    with pytest.raises(MetadataError):
        module.load_state_dict({**module.state_dict(), "image_min": torch.tensor(9.0)})
    module.image_threshold = 0.5
    assert module(torch.tensor([0.5])).pred_label.tolist() == [True]


def test_assigning_none_takes_a_threshold_away() -> None:
    """A level without threshold is not calibrated any more; its range stays."""
    module = PostProcessor(BOTH)
    module.image_threshold = None
    assert module(torch.tensor([1.5])) == (torch.tensor([1.5]), None, None, None)
    assert module.stats.image == LevelStats(threshold=None, min=0.0, max=2.0)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("image_sensitivity", NAN, MetadataError),
        ("pixel_min", 7.0, MetadataError),
        ("image_threshold", True, MetadataError),
        ("comparison", None, UsageError),
        ("nan_guard", 0, UsageError),
        ("stats", 5, UsageError),
    ],
)
def test_illegal_assignments_change_nothing(name: str, value: Any, error: type[Exception]) -> None:
    """An illegal value is refused, and everything stays as it was."""
    module = PostProcessor(BOTH)
    before = repr(module)
    with pytest.raises(error):
        setattr(module, name, value)
    assert repr(module) == before


def test_other_attributes_are_plain() -> None:
    """What does not decide is an attribute or a submodule like on any module."""
    module = PostProcessor(BOTH)
    module.note = "mine"
    module.blur = torch.nn.Linear(1, 1)
    assert module.note == "mine"
    module.register_buffer("kernel", torch.ones(3))
    assert {module.half().blur.weight.dtype, module.kernel.dtype} == {torch.float16}
    assert module.image_threshold.dtype == torch.float32


@pytest.mark.parametrize(
    "convert",
    [
        lambda module: module.half(),
        lambda module: module.double(),
        lambda module: module.to(torch.bfloat16),
        lambda module: torch.nn.Sequential(module).half()[0],
        lambda module: torch.nn.Sequential(module).to("cpu", torch.float16)[0],
    ],
    ids=["half", "double", "to-bfloat16", "parent-half", "parent-to"],
)
def test_statistics_stay_float32(convert: Any) -> None:
    """Changing the precision of a model never rounds its statistics or boundaries."""
    level = LevelStats(threshold=1.2345678, min=0.1234567, max=70000.0)
    module = convert(PostProcessor(CalibrationStats(image=level), image_sensitivity=0.3))
    reference = PostProcessor(CalibrationStats(image=level), image_sensitivity=0.3)
    for name, tensor in reference.named_buffers():
        assert same(module.get_buffer(name), tensor), name
    assert agree(module(torch.tensor([5.0]).half()), reference(torch.tensor([5.0])))


def test_buffers_follow_the_device() -> None:
    """Moving the module moves every buffer, and what is assigned or loaded later stays there."""
    module = PostProcessor(BOTH).to("meta")
    assert {tensor.device.type for tensor in module.buffers()} == {"meta"}
    module.image_sensitivity = 0.3
    assert {tensor.device.type for tensor in module.buffers()} == {"meta"}
    module.to_empty(device="cpu").load_state_dict(PostProcessor(BOTH).state_dict())
    assert module(torch.tensor([1.0])).pred_label.item() is True


def test_module_made_on_the_meta_device_takes_a_state() -> None:
    """Deferred initialisation: made on `meta`, filled by `load_state_dict(assign=True)`."""
    with torch.device("meta"):
        module = PostProcessor()
    module.load_state_dict(PostProcessor(BOTH).state_dict(), assign=True)
    assert module(torch.tensor([1.0]), maps(3.0)).pred_mask.flatten().tolist() == [True, False]


def test_default_dtype_does_not_matter() -> None:
    """The statistics are float32 where torch's default is another type."""
    torch.set_default_dtype(torch.float64)
    try:
        module = PostProcessor(BOTH)
        output = module(torch.tensor([0.1]))
    finally:
        torch.set_default_dtype(torch.float32)
    assert {tensor.dtype for name, tensor in module.named_buffers() if name != "flags"} == {torch.float32}
    assert output.pred_score.dtype == torch.float32


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=["deepcopy", "pickle"]
)
def test_copies_are_independent(copied: Any) -> None:
    """A copy decides alike, and changing it leaves the original alone."""
    module = PostProcessor(BOTH, image_sensitivity=0.25, comparison="gt")
    other = copied(module)
    raw, raw_map = torch.tensor([0.5, 1.5]), maps(NAN, 3.5)
    assert agree(other(raw, raw_map), module(raw, raw_map))
    other.image_sensitivity = 1.0
    assert other(raw).pred_label.all()
    assert not module(raw).pred_label.all()


def test_statistics_from_a_file(tmp_path: Path) -> None:
    """A path will do for statistics, as text or `Path`."""
    path = tmp_path / "stats.json"
    path.write_text(BOTH.dumps())
    assert PostProcessor(path).stats == PostProcessor(str(path)).stats == BOTH


def test_repr_shows_what_decides() -> None:
    """Printing a model shows thresholds, boundaries and options."""
    text = repr(PostProcessor(CalibrationStats(pixel=PIXEL), pixel_sensitivity=0.25))
    assert "pixel: threshold 3, boundary 4\n" in text
    assert "comparison='ge', enable_normalization=True" in text
    assert "image:" not in text
    assert "not calibrated" in repr(PostProcessor())


def test_repr_shows_a_borrowed_threshold() -> None:
    """The threshold that counts is shown."""
    stats = CalibrationStats(image=LevelStats(threshold=None, min=0.0, max=4.0), pixel=PIXEL)
    assert "image: threshold 3, boundary 3" in repr(PostProcessor(stats, enable_threshold_matching=True))
