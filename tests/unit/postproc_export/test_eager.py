"""`PostProcessor`: scores, labels, maps and masks, what Anomalib gives, NaN, switches, and what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from eager_outputs import BOTH, IMAGE, INF, NAN, PIXEL, agree, maps, same
from raw_values import SPECIAL

from postproc_export.eager import PostProcessor
from postproc_export.errors import FileError, MetadataError, UnsupportedModelError, UsageError
from postproc_export.stats import CalibrationStats, LevelStats, unit_scores

DATA = Path(__file__).parents[2] / "data"
SWITCHES = ("enable_normalization", "enable_thresholding", "enable_threshold_matching", "nan_guard")


# --- what comes out


def test_scores_labels_maps_and_masks_by_hand() -> None:
    """Each level is normalised with its own statistics and decided at its own threshold, in the raw shapes."""
    output = PostProcessor(BOTH)(
        torch.tensor([0.5, 1.0, 9.0]), torch.tensor([[[[1.0, 2.9]]], [[[3.0, 4.0]]], [[[5.0, 6.0]]]])
    )
    assert output.pred_score.tolist() == [0.25, 0.5, 1.0]
    assert output.pred_label.tolist() == [False, True, True]
    assert output.anomaly_map.flatten().tolist() == [0.0, float(unit_scores(2.9, PIXEL)), 0.5, 0.75, 1.0, 1.0]
    assert output.pred_mask.flatten().tolist() == [False, False, True, True, True, True]
    assert [tensor.dtype for tensor in output] == [torch.float32, torch.bool] * 2
    assert output._fields == ("pred_score", "pred_label", "anomaly_map", "pred_mask")


@pytest.mark.parametrize("shape", [[], [1], [1, 1]], ids=str)
@pytest.mark.parametrize("map_shape", [[1, 4, 5], [1, 1, 4, 5]], ids=str)
def test_shapes_are_those_of_the_raw_outputs(shape: list[int], map_shape: list[int]) -> None:
    """A score of every shape goes with a map of every shape, and nothing changes shape."""
    output = PostProcessor(BOTH)(torch.zeros(shape), torch.zeros(map_shape))
    assert [list(tensor.shape) for tensor in output] == [shape, shape, map_shape, map_shape]


@pytest.mark.parametrize(
    ("map_shape", "shape"), [([3, 4, 5], [3]), ([3, 1, 4, 5], [3, 1]), ([0, 1, 4, 5], [0, 1])], ids=str
)
def test_image_score_is_the_maximum_of_the_map(map_shape: list[int], shape: list[int]) -> None:
    """A model with only a map gets its image score as the maximum over the last two axes, with the image statistics."""
    raw = torch.rand(map_shape, generator=torch.Generator().manual_seed(1)) * 3
    output = PostProcessor(BOTH)(anomaly_map=raw)
    expected = raw.amax(dim=(-2, -1))
    assert list(output.pred_score.shape) == list(output.pred_label.shape) == shape
    assert np.array_equal(output.pred_score.numpy(), unit_scores(expected.numpy(), IMAGE))
    assert torch.equal(output.pred_label, expected >= 1.0)


def test_a_batch_is_taken_by_its_fields() -> None:
    """An object with `pred_score` and `anomaly_map`, as Anomalib's models return, is the same as both."""
    score, raw = torch.tensor([0.5, 9.0]), torch.tensor([[[1.0, 2.9]], [[3.0, 4.0]]])
    module = PostProcessor(BOTH)
    for given in ((score, raw), (None, raw), (score, None)):
        assert agree(module(SimpleNamespace(pred_score=given[0], anomaly_map=given[1])), module(*given))
    with pytest.raises(UsageError, match="nothing to post-process"):
        module(SimpleNamespace(pred_score=None, anomaly_map=None))
    with pytest.raises(UsageError, match="pred_score is no tensor"):
        module(SimpleNamespace(scores=score))


def test_a_score_alone_gives_a_score_and_a_label() -> None:
    """A model with only a score gets only `pred_score` and `pred_label`."""
    output = PostProcessor(BOTH)(torch.tensor([1.0]))
    assert output[:2] == (torch.tensor([0.5]), torch.tensor([True]))
    assert output[2:] == (None, None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_raw_values_are_cast_to_float32_first(dtype: torch.dtype) -> None:
    """The decision is the float32 rule, whatever the model computes in, and the outputs are float32."""
    raw = torch.tensor([[0.3], [1.0], [1.7]], dtype=dtype)
    raw_map = raw.reshape(3, 1, 1, 1) + 2
    module = PostProcessor(BOTH)
    assert agree(module(raw, raw_map), module(raw.float(), raw_map.float()))
    assert agree(module(None, raw_map), module(None, raw_map.float()))


def test_float64_is_decided_after_rounding() -> None:
    """A float64 score below the threshold that rounds up to it is anomalous."""
    assert PostProcessor(BOTH)(torch.tensor([1.0 - 1e-12], dtype=torch.float64)).pred_label.tolist() == [True]


def test_label_is_decided_on_the_raw_value() -> None:
    """A score whose normalised value rounds to 0.5 from below is still normal."""
    level = LevelStats(threshold=1.0, min=0.0, max=100.0)
    below = torch.tensor([1.0 - 2.0**-24, 1.0])
    output = PostProcessor(CalibrationStats(image=level))(below)
    assert output.pred_score.tolist() == [0.5, 0.5]
    assert output.pred_label.tolist() == [False, True]


def test_sensitivity_moves_each_level_alone() -> None:
    """Each level has its own sensitivity; scores do not move."""
    raw, raw_map = torch.tensor([0.5, 1.0, 1.5]), maps(2.0, 3.0, 4.0)
    output = PostProcessor(BOTH, image_sensitivity=0.75, pixel_sensitivity=0.25)(raw, raw_map)
    assert output.pred_label.tolist() == [True, True, True]
    assert output.pred_mask[..., 0].flatten().tolist() == [False, False, True]
    assert torch.equal(output.pred_score, PostProcessor(BOTH)(raw, raw_map).pred_score)


@pytest.mark.parametrize(("sensitivity", "expected"), [(0.0, [False, False, True]), (1.0, [True, True, True])])
def test_extreme_sensitivities(sensitivity: float, expected: list[bool]) -> None:
    """0.0 is a value: half a span above the threshold. At 1.0 everything is anomalous, -inf included."""
    module = PostProcessor(BOTH, image_sensitivity=sensitivity)
    assert module(torch.tensor([-INF, 1.999, 2.0])).pred_label.tolist() == expected


def test_gt_decides_as_anomalib() -> None:
    """With `comparison="gt"` the threshold itself is normal."""
    raw = torch.tensor([1.0, 1.0000001])
    assert PostProcessor(BOTH, comparison="gt")(raw).pred_label.tolist() == [False, True]
    assert PostProcessor(BOTH)(raw).pred_label.tolist() == [True, True]


# --- Anomalib's own outputs


def padim(**options: Any) -> tuple[PostProcessor, dict[str, torch.Tensor]]:
    """Return the module with Padim's statistics, and what Anomalib's eager model gave."""
    arrays = dict(np.load(DATA / "padim_eager_small.npz"))
    levels = {}
    for name in ("image", "pixel"):
        threshold, low, high = arrays.pop(name).tolist()
        levels[name] = LevelStats(threshold=threshold, min=low, max=high)
    return PostProcessor(CalibrationStats(**levels), **options), {key: torch.from_numpy(a) for key, a in arrays.items()}


def test_padim_is_reproduced_bit_for_bit() -> None:
    """With `comparison="gt"` Anomalib's post-processed Padim outputs follow from its raw ones, every bit."""
    module, arrays = padim(comparison="gt")
    scores = module(arrays["raw__pred_score"])
    assert torch.equal(scores.pred_score, arrays["post__pred_score"])
    assert torch.equal(scores.pred_label, arrays["post__pred_label"])
    pixels = module(anomaly_map=arrays["raw__anomaly_map"])
    assert torch.equal(pixels.anomaly_map, arrays["post__anomaly_map"])
    assert torch.equal(pixels.pred_mask, arrays["post__pred_mask"])
    assert 0 < pixels.pred_mask.float().mean() < 1


def edge_cases() -> list[Any]:
    """Return Anomalib's answers on edge cases, by version and case."""
    cases = json.loads((DATA / "anomalib_edge.json").read_text())["cases"]
    return [pytest.param(case, id=f"{case['version']}-{case['case']}") for case in cases]


@pytest.mark.parametrize("case", edge_cases())
def test_anomalib_edge_cases(case: dict[str, Any]) -> None:
    """Scores have Anomalib's bits and labels its values, but for NaN, which Anomalib calls normal and we never do."""
    document = json.loads((DATA / "anomalib_edge.json").read_text())
    options = dict(case["options"])
    levels = {
        name: LevelStats(**{**values, "threshold": options.pop(f"{name}_threshold", values["threshold"])})
        for name, values in document["statistics"].items()
    }
    module = PostProcessor(CalibrationStats(**levels), comparison="gt", nan_guard=False, **options)
    raw = {name: torch.tensor(values) for name, values in document["inputs"].items()}
    raw_map = raw["anomaly_map"].expand(len(raw["pred_score"]), 1, 1, -1)
    output = module(raw["pred_score"], raw_map)
    found = {name: tensor for name, tensor in output._asdict().items() if tensor is not None}
    assert set(found) == set(case["outputs"])
    for name, tensor in found.items():
        values = tensor[0].flatten() if name in ("anomaly_map", "pred_mask") else tensor
        expected = torch.tensor(case["outputs"][name])
        inputs = raw["anomaly_map" if name in ("anomaly_map", "pred_mask") else "pred_score"]
        if expected.dtype == torch.bool:
            assert values[inputs.isnan()].all()
            assert not expected[inputs.isnan()].any()
            values, expected = values[~inputs.isnan()], expected[~inputs.isnan()]
        assert same(values, expected), name


# --- NaN


@pytest.mark.parametrize("comparison", ["ge", "gt"])
def test_nan_is_never_normal(comparison: Any) -> None:
    """A NaN score or pixel has label 1 and a NaN unit score, under both rules."""
    output = PostProcessor(BOTH, comparison=comparison)(torch.tensor([NAN]), maps(NAN))
    assert output.pred_label.all()
    assert output.pred_score.isnan().all()
    assert output.pred_mask.flatten().tolist() == [True, False]
    assert output.anomaly_map[..., 0].isnan().all()


@pytest.mark.parametrize(
    ("score_shape", "map_shape"),
    [([3], [3, 1, 1, 2]), ([3, 1], [3, 1, 1, 2]), ([3], [3, 1, 2]), ([3, 1], [3, 1, 2])],
    ids=str,
)
def test_a_map_with_nan_makes_its_image_score_nan(score_shape: list[int], map_shape: list[int]) -> None:
    """The guard marks exactly the image whose map holds a NaN, whatever the shapes."""
    raw_map = maps(0.0, NAN, INF).reshape(map_shape)
    output = PostProcessor(BOTH)(torch.zeros(score_shape), raw_map)
    assert output.pred_score.flatten().isnan().tolist() == [False, True, False]
    assert output.pred_label.flatten().tolist() == [False, True, False]
    assert list(output.pred_score.shape) == score_shape


def test_nan_guard_for_a_scalar_score_and_for_no_image() -> None:
    """A score of shape [] goes with one map; a batch of none works."""
    module = PostProcessor(BOTH)
    assert module(torch.tensor(0.0), maps(NAN)).pred_label.item() is True
    assert module(torch.tensor(0.0), maps(1.0)).pred_label.item() is False
    empty = module(torch.zeros(0, 1), torch.zeros(0, 1, 4, 4))
    assert [list(tensor.shape) for tensor in empty] == [[0, 1], [0, 1], [0, 1, 4, 4], [0, 1, 4, 4]]


def test_nan_guard_of_a_score_from_the_map() -> None:
    """Where the score is the maximum of the map, a NaN anywhere in it counts too."""
    output = PostProcessor(BOTH)(anomaly_map=torch.tensor([[[0.0, 9.0], [NAN, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]))
    assert output.pred_score.isnan().tolist() == [True, False]
    assert output.pred_label.tolist() == [True, False]


def test_nan_guard_works_on_every_float_type() -> None:
    """A NaN in a float16 map is found, and the guarded score is float32."""
    output = PostProcessor(CalibrationStats(image=IMAGE))(torch.zeros(1, dtype=torch.float16), maps(NAN).half())
    assert output.pred_label.all()
    assert output.pred_score.dtype == torch.float32


def test_nan_guard_can_be_left_out() -> None:
    """Without the guard a model's own score is believed."""
    output = PostProcessor(BOTH, nan_guard=False)(torch.zeros(1), maps(NAN))
    assert output.pred_score.tolist() == [0.0]
    assert output.pred_label.tolist() == [False]


# --- switches and levels that are not calibrated


def test_without_normalization_scores_stay_raw() -> None:
    """Raw scores pass as float32, and the decision is the same."""
    raw, raw_map = torch.tensor([0.5, 1.5], dtype=torch.float64), maps(2.0, 4.0)
    output = PostProcessor(BOTH, enable_normalization=False)(raw, raw_map)
    assert same(output.pred_score, raw.float())
    assert same(output.anomaly_map, raw_map)
    assert output.pred_label.tolist() == [False, True]
    assert output.pred_mask[..., 0].flatten().tolist() == [False, True]


def test_without_thresholding_there_are_no_labels() -> None:
    """Scores are the same, labels and masks are absent."""
    raw, raw_map = torch.tensor([0.5]), maps(2.0)
    output = PostProcessor(BOTH, enable_thresholding=False)(raw, raw_map)
    expected = PostProcessor(BOTH)(raw, raw_map)
    assert output == (expected.pred_score, None, output.anomaly_map, None)
    assert same(output.anomaly_map, expected.anomaly_map)


@pytest.mark.parametrize("switch", ["enable_normalization", "enable_thresholding"])
def test_a_level_that_is_not_calibrated_keeps_its_raw_output(switch: str) -> None:
    """It comes back as it is, dtype included and without a guard, with no label; the other level is not affected."""
    raw, raw_map = torch.zeros(1, dtype=torch.float64), maps(NAN).half()
    image_only = PostProcessor(CalibrationStats(image=IMAGE), **{switch: False})(raw, raw_map)
    assert image_only.anomaly_map is raw_map
    assert image_only.pred_mask is None
    assert image_only.pred_score.isnan().all()
    pixel_only = PostProcessor(CalibrationStats(pixel=PIXEL), **{switch: False})(raw, raw_map)
    assert pixel_only.pred_score is raw
    assert pixel_only.pred_label is None
    assert pixel_only.anomaly_map.dtype == torch.float32


def test_no_image_score_is_made_for_an_image_level_that_is_not_calibrated() -> None:
    """A map alone has no raw image output that could be kept."""
    assert PostProcessor(CalibrationStats(pixel=PIXEL))(anomaly_map=maps(1.0)).pred_score is None


def test_a_module_without_statistics_passes_everything_through() -> None:
    """It can be made without statistics, and then changes nothing."""
    raw, raw_map = torch.zeros(1), maps(1.0)
    assert PostProcessor()(raw, raw_map) == (raw, None, raw_map, None)


@pytest.mark.parametrize("level", ["image", "pixel"])
def test_threshold_matching_borrows_the_other_threshold(level: str) -> None:
    """A level with a range but no threshold uses the other level's, in its own range, only where that is asked for."""
    lender = "pixel" if level == "image" else "image"
    stats = CalibrationStats(**{level: LevelStats(threshold=None, min=0.0, max=4.0), lender: IMAGE})
    raw, raw_map = torch.tensor([0.5, 1.0]), maps(0.5, 1.0)
    place = 0 if level == "image" else 2
    assert PostProcessor(stats)(raw, raw_map)[place + 1] is None
    score, label = PostProcessor(stats, enable_threshold_matching=True)(raw, raw_map)[place : place + 2]
    assert score.reshape(2, -1)[:, 0].tolist() == [0.375, 0.5]
    assert label.reshape(2, -1)[:, 0].tolist() == [False, True]


def test_threshold_matching_needs_a_lender() -> None:
    """Where no level has a threshold, asking for one is refused."""
    with pytest.raises(MetadataError, match="the image level has a range but no threshold"):
        PostProcessor(
            CalibrationStats(image=LevelStats(threshold=None, min=0.0, max=1.0)), enable_threshold_matching=True
        )


# --- what is refused


@pytest.mark.parametrize(
    ("score", "raw_map", "message"),
    [
        pytest.param(
            [2, 2],
            None,
            "it has 2 values per image\n.*shape \\[2, 2\\]\n.*\\[N, 1\\]\n.*OneChannel",
            id="score-2-values",
        ),
        pytest.param([2, 0], None, "it has no value per image", id="score-no-value"),
        pytest.param([2, 1, 3], None, "pred_score: it has 3 values per image\n.*\\[2, 1, 3\\]", id="score-3-axes"),
        pytest.param(
            None, [2, 3, 5, 5], "anomaly_map: it has 3 channels\n.*\\[2, 3, 5, 5\\]\n.*\\[N, 1, H, W\\]", id="channels"
        ),
        pytest.param(None, [2, 5, 4, 1], "its channel axis is the last one(.|\n)*OneChannel", id="channel-last"),
        pytest.param(None, [4, 4], "anomaly_map: it has 2 axes\n.*shape \\[4, 4\\]\n.*\\[N, H, W\\]", id="map-2-axes"),
        pytest.param(None, [1, 1, 1, 4, 4], "anomaly_map: it has 5 axes", id="map-5-axes"),
        pytest.param(
            [2], [3, 1, 4, 4], "pred_score is for 2 images and anomaly_map for 3\n.*\\[2\\]\n.*of 3", id="batches"
        ),
        pytest.param([2, 1], [1, 4, 4], "pred_score is for 2 images and anomaly_map for 1", id="batch-of-one"),
        pytest.param([], [2, 4, 4], "pred_score is for 1 images and anomaly_map for 2", id="scalar-score"),
    ],
)
@pytest.mark.parametrize("stats", [BOTH, CalibrationStats()], ids=["calibrated", "not-calibrated"])
def test_shapes_that_are_refused(
    stats: CalibrationStats, score: list[int] | None, raw_map: list[int] | None, message: str
) -> None:
    """A score or map of another form is refused by name with its shape."""
    tensors = [None if shape is None else torch.zeros(shape) for shape in (score, raw_map)]
    with pytest.raises(UnsupportedModelError, match=message):
        PostProcessor(stats)(*tensors)


def test_inputs_that_are_refused() -> None:
    """Nothing at all, and what is no tensor, are refused."""
    with pytest.raises(UsageError, match=r"nothing to post-process\n.*pred_score, anomaly_map or both"):
        PostProcessor(BOTH)()
    with pytest.raises(UsageError, match=r"pred_score is no tensor\n.*ndarray\n.*as_tensor"):
        PostProcessor(BOTH)(np.zeros(1))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"anomaly_map is no tensor\n.*list"):
        PostProcessor(BOTH)(None, [])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"image_sensitivity": 1.5}, MetadataError, "image_sensitivity 1.5: use 0 to 1"),
        ({"pixel_sensitivity": None}, MetadataError, "pixel_sensitivity None: use 0 to 1"),
        ({"comparison": "greater"}, UsageError, "unknown comparison"),
        ({"comparison": "greater", "stats": None}, UsageError, "unknown comparison"),
        *[({switch: 1}, UsageError, f"{switch} is not a bool\n.*1\n.*True or False") for switch in SWITCHES],
        ({"stats": {"image": 1}}, UsageError, "statistics are expected\n.*dict\n.*path"),
        ({"stats": "gone.json"}, FileError, r"cannot read the statistics file gone\.json"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    """An illegal option is refused when the module is made, by name."""
    with pytest.raises(error, match=message):
        PostProcessor(**{"stats": BOTH, **options})


@pytest.mark.parametrize("level", ["image", "pixel"])
def test_a_subnormal_boundary_is_refused(level: str) -> None:
    """What no runtime would decide alike is refused by the reference too."""
    with pytest.raises(MetadataError, match="subnormal"):
        PostProcessor(CalibrationStats(**{level: LevelStats(threshold=1e-40, min=0.0, max=1.0)}))


def test_gradients_flow_through_scores_only() -> None:
    """The statistics need no gradient; a raw score keeps its own."""
    raw = torch.tensor([0.5, 9.0], requires_grad=True)
    output = PostProcessor(BOTH)(raw)
    output.pred_score.sum().backward()
    assert raw.grad.tolist() == [0.5, 0.0]
    assert not output.pred_label.requires_grad


def test_inputs_are_not_written_to() -> None:
    """The guard and the clamp work on copies."""
    raw, raw_map = torch.tensor([5.0]), maps(NAN)
    PostProcessor(BOTH)(raw, raw_map)
    assert raw.tolist() == [5.0]
    assert raw_map.flatten().isnan().tolist() == [True, False]


def test_special_values() -> None:
    """Infinities, zeros, subnormals and the largest numbers have the reference's scores and exact decisions."""
    raw = torch.tensor(list(SPECIAL.values()), dtype=torch.float32)
    level = LevelStats(threshold=0.0, min=-1.0, max=1.0)
    output = PostProcessor(CalibrationStats(image=level))(raw)
    assert np.array_equal(output.pred_score.numpy(), unit_scores(raw.numpy(), level), equal_nan=True)
    assert output.pred_label.tolist() == [not value < 0 for value in SPECIAL.values()]
