"""Attaching to an OpenVINO model: what is added, what moves, and that nothing else changes."""

from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import openvino
import openvino.opset13 as opset
import openvino.opset16 as opset16
import pytest

from graph_patterns.openvino import copied
from postproc_export.check.preserved_files import compare_models
from postproc_export.detach import detach_postprocessing
from postproc_export.errors import UnsupportedModelError
from postproc_export.formats.openvino import OpenVinoFormat
from postproc_export.formats.openvino_file import tail_constants
from postproc_export.inspect import inspect_model
from postproc_export.options import TailOptions
from postproc_export.record import AttachResult
from postproc_export.runtimes.openvino import openvino_core
from postproc_export.stats import CalibrationStats, LevelStats

STATS = CalibrationStats(
    image=LevelStats(threshold=0.5, min=0.0, max=2.0), pixel=LevelStats(threshold=0.25, min=-1.0, max=1.0)
)
CORE = openvino_core(purpose="the tests")
NAMES = ["pred_score", "pred_label", "anomaly_map", "pred_mask"]


def read(model: onnx.ModelProto) -> Any:
    """Return a host as an OpenVINO model."""
    return CORE.read_model(model.SerializeToString())


def names(model: Any) -> list[str]:
    """Return the tensor name of each output, in order."""
    return ["/".join(sorted(port.get_names())) for port in model.outputs]


def run(model: Any, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    """Run a model in float32."""
    compiled = CORE.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled(feeds)
    return {port.get_any_name(): results[index] for index, port in enumerate(compiled.outputs)}


def saved(model: Any, folder: Path, name: str = "m.xml") -> Any:
    """Return the model written to a file and read back."""
    openvino.save_model(model, folder / name, compress_to_fp16=False)
    return CORE.read_model(folder / name)


def attach(model: Any, stats: CalibrationStats = STATS, **options: Any) -> AttachResult:
    """Attach in place."""
    outputs = {key: options.pop(key) for key in ("image_output", "pixel_output") if key in options}
    return OpenVinoFormat().attach(model, stats, TailOptions(**options), outputs)


def test_the_four_outputs_have_their_names_order_types_and_axes(tmp_path: Path) -> None:
    """Score, label, map, mask: f32, boolean, f32, u8; dynamic axes stay dynamic; a file keeps all of it."""
    model = read(hosts.score_and_map())
    attach(model)
    model = saved(model, tmp_path)
    assert names(model) == NAMES
    assert [port.get_element_type().get_type_name() for port in model.outputs] == ["f32", "boolean", "f32", "u8"]
    assert [str(port.get_partial_shape()) for port in model.outputs] == [
        "[?,1]",
        "[?,1]",
        "[?,1,1..,1..]",
        "[?,1,1..,1..]",
    ]


def test_the_outputs_are_the_normalised_and_decided_raw_values() -> None:
    """Values, labels and masks follow from the raw outputs."""
    images = np.arange(2 * 3 * 4 * 4, dtype=np.float32).reshape(2, 3, 4, 4) / 64 - 0.5
    raw = hosts.expected(images)
    model = read(hosts.score_and_map())
    attach(model)
    result = run(model, input=images)
    np.testing.assert_array_equal(result["pred_label"], raw["pred_score"] >= 0.5)
    np.testing.assert_array_equal(result["pred_mask"], raw["anomaly_map"] >= 0.25)
    np.testing.assert_allclose(result["pred_score"], np.clip((raw["pred_score"] - 0.5) / 2 + 0.5, 0, 1), atol=1e-6)
    np.testing.assert_allclose(result["anomaly_map"], np.clip((raw["anomaly_map"] - 0.25) / 2 + 0.5, 0, 1), atol=1e-6)


@pytest.mark.parametrize("host", ["score_and_map", "score_only", "map_only"])
@pytest.mark.parametrize("keep_raw", [False, True])
def test_attaching_changes_nothing_but_the_tail(host: str, keep_raw: bool, tmp_path: Path) -> None:
    """Every operator, constant, name and rt_info of the original is there; only the recorded names moved."""
    before = read(getattr(hosts, host)())
    before.set_rt_info("value", ["vendor", "key"])
    before = saved(before, tmp_path, "before.xml")
    model = before.clone()
    result = attach(model, keep_raw=keep_raw)
    found = compare_models(before, saved(model, tmp_path, "after.xml"))
    assert found, found.describe()
    assert found.compared["result"] == len(before.get_results())
    names = [item.get_friendly_name() for item in before.get_results()]
    assert [row["name"] for row in result.record.original["results"]] == names


def test_other_outputs_follow_unchanged_and_raw_ones_on_request(tmp_path: Path) -> None:
    """Any other output keeps its name and result behind ours; `keep_raw` adds the raw ones behind that."""
    scores = opset.parameter([-1, 1], np.float32, name="s")
    maps = opset.parameter([-1, -1, -1], np.float32, name="m")
    features = opset.relu(scores)
    features.output(0).set_names({"features"})
    score = opset.relu(scores)
    score.output(0).set_names({"pred_score", "other_name"})
    heat = opset.relu(maps)
    heat.output(0).set_names({"heat"})
    for port, name in ((scores, "s"), (maps, "m")):
        port.output(0).set_names({name})
    results = [opset.result(item) for item in (features, score, heat)]
    model = saved(openvino.Model(results, [scores, maps], "host"), tmp_path)
    own = [item.get_friendly_name() for item in model.get_results()]
    attach(model, keep_raw=True)
    model = saved(model, tmp_path, "attached.xml")
    assert names(model) == [*NAMES, "features", "other_name/pred_score_raw", "heat"]
    assert [item.get_friendly_name() for item in model.get_results()][4:] == own


@pytest.mark.parametrize(
    ("stats", "expected"),
    [
        pytest.param(CalibrationStats(image=STATS.image), ["pred_score", "pred_label", "anomaly_map"], id="image-only"),
        pytest.param(CalibrationStats(pixel=STATS.pixel), ["pred_score", "anomaly_map", "pred_mask"], id="pixel-only"),
    ],
)
def test_a_level_without_statistics_stays_as_it_is(stats: CalibrationStats, expected: list[str]) -> None:
    """Its raw output keeps its name, result and place."""
    model = read(hosts.score_and_map())
    attach(model, stats)
    assert names(model) == expected


@pytest.mark.parametrize(("label", "mask"), [("uint8", "float32"), ("float32", "bool")])
def test_labels_and_masks_have_the_types_asked_for(label: str, mask: str) -> None:
    """Labels and masks are 0 and 1 in every type."""
    model = read(hosts.identity())
    attach(model, label_dtype=label, mask_dtype=mask)
    result = run(model, score=np.float32([[0.5], [0.0]]), map=np.float32([[[[0.25]]], [[[0.0]]]]))
    assert (result["pred_label"].dtype, result["pred_mask"].dtype) == (np.dtype(label), np.dtype(mask))
    assert result["pred_label"].reshape(-1).tolist() == [1, 0]
    assert result["pred_mask"].reshape(-1).tolist() == [1, 0]


@pytest.mark.parametrize("score", ["", "N", "N,1"])
@pytest.mark.parametrize("position", [0, 1, 3], ids=["first", "middle", "last"])
def test_a_nan_in_a_map_makes_its_image_anomalous(score: str, position: int) -> None:
    """The guard reaches a score that the model itself gives, wherever the NaN is; a batch of none works."""
    model = read(hosts.identity(score=score))
    attach(model)
    count = 1 if score == "" else 2
    scores = np.zeros((count, 1), np.float32).reshape(() if score == "" else (2,) if score == "N" else (2, 1))
    maps = np.zeros((count, 1, 2, 2), np.float32)
    maps.reshape(count, 4)[0, position] = np.nan
    result = run(model, score=scores, map=maps)
    assert result["pred_label"].reshape(-1).tolist() == [True, False][:count]
    assert not result["pred_score"].reshape(-1)[0] < 1.0
    if score:
        empty = run(model, score=scores[:0], map=maps[:0])
        assert [item.shape[0] for item in empty.values()] == [0, 0, 0, 0]


def test_maps_with_infinities_of_both_signs_are_not_flagged() -> None:
    """The sum of absolute values is NaN for a NaN alone: an infinite pixel decides as a number does."""
    model = read(hosts.identity())
    attach(model)
    maps = np.float32([[[[np.inf, -np.inf], [0.0, 0.0]]]])
    assert run(model, score=np.float32([[0.0]]), map=maps)["pred_label"].tolist() == [[False]]


@pytest.mark.parametrize("dtype", ["float16", "double", "bfloat16"])
def test_raw_outputs_of_other_float_types_are_cast_first(dtype: str) -> None:
    """The tail computes in float32 whatever the model does."""
    model = read(hosts.score_and_map(dtype=dtype))
    attach(model)
    result = run(model, input=np.zeros((1, 3, 2, 2), np.float32))
    assert result["pred_score"].dtype == np.float32
    assert result["pred_label"].tolist() == [[False]]


def test_a_tail_is_never_doubled(tmp_path: Path) -> None:
    """An attached IR, or one converted from an attached ONNX model, is refused with a hint."""
    model = read(hosts.score_and_map())
    attach(model)
    model = saved(model, tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"has post-processing already(.|\n)*update(.|\n)*detach"):
        attach(model)


def test_an_input_that_bears_our_name_is_refused() -> None:
    """An input cannot move: its name is the model's interface."""
    raw = opset.parameter([-1, 1], np.float32, name="in")
    raw.output(0).set_names({"pred_score"})
    score = opset.relu(raw)
    score.output(0).set_names({"score"})
    model = openvino.Model([opset.result(score)], [raw], "host")
    with pytest.raises(UnsupportedModelError, match="'pred_score' is taken\n  found:   an input of that name"):
        attach(model)


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    """Every operator, constant and result that is added has a name, so nothing depends on counters."""
    paths = [tmp_path / "a.xml", tmp_path / "b.xml"]
    hosts.to_ir(hosts.score_and_map(), tmp_path / "host.xml")
    for path in paths:
        model = CORE.read_model(tmp_path / "host.xml")
        opset.constant(np.zeros(3))  # moves OpenVINO's own counter
        attach(model)
        openvino.save_model(model, path, compress_to_fp16=False)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].with_suffix(".bin").read_bytes() == paths[1].with_suffix(".bin").read_bytes()


def test_constants_survive_a_compressed_body(tmp_path: Path) -> None:
    """Behind float16 weights the constants of the tail keep every bit."""
    path = hosts.to_ir(hosts.score_and_map(), tmp_path / "host.xml", compress_to_fp16=True)
    model = CORE.read_model(path)
    stats = CalibrationStats(image=LevelStats(threshold=39.123456, min=0.1, max=77.7))
    attach(model, stats)
    constants = tail_constants(model)
    assert np.float32(39.123456).tobytes() == constants["postproc/pred_label/boundary"]
    assert tail_constants(saved(model, tmp_path, "attached.xml")) == constants


@pytest.mark.parametrize("size", [(), (1,), (5, 7)], ids=str)
@pytest.mark.parametrize("is_input", [True, False])
def test_a_copy_keeps_every_bit(size: tuple[int, ...], is_input: bool) -> None:
    """NaN with their payload, infinities, -0.0 and subnormals, at every rank, run after run."""
    import openvino.opset13 as opset

    words = np.array([0x7FC00001, 0xFFC00000, 0x7F800000, 0xFF800000, 0x80000000, 1, 0x00400000, 0x3F800000], np.uint32)
    values = words.view(np.float32)
    parameter = opset.parameter([-1, *size] if size else [-1], np.float32)
    source = parameter.output(0) if is_input else opset.unsqueeze(opset.squeeze(parameter, 0), 0).output(0)
    copy = copied(source, axes="same")
    compiled = CORE.compile_model(openvino.Model([opset.result(copy)], [parameter], "m"), "CPU", {})
    for first in range(len(values)):
        shape = (1, *size) if size else (1,)
        fed = np.resize(np.roll(values, first), shape)
        assert compiled([fed])[0].tobytes() == fed.tobytes()


@pytest.mark.parametrize("options", [{}, {"keep_raw": True}, {"levels": "pixel"}], ids=str)
def test_raw_scores_bear_our_names_without_identity(options: dict[str, Any], tmp_path: Path) -> None:
    """No operator that the lowest declared version does not run; files of earlier versions are read all the same."""
    host = hosts.to_ir(hosts.score_and_map(), tmp_path / "host.xml")
    for number, by_identity in enumerate((False, True)):
        model = CORE.read_model(host)
        with pytest.MonkeyPatch.context() as patch:
            if by_identity:
                patch.setattr("graph_patterns.openvino.copied", lambda value, axes: opset16.identity(value))
            attach(model, enable_normalization=False, **options)
        model = saved(model, tmp_path, f"{number}.xml")
        ours = {node.get_type_name() for node in model.get_ops() if node.get_friendly_name().startswith("postproc/")}
        assert ("Identity" in ours) is by_identity
        report = inspect_model(tmp_path / f"{number}.xml").levels["pixel"]
        assert report is not None
        assert (report.tail, report.certain) == ("postproc_export", True)
        detach_postprocessing(tmp_path / f"{number}.xml", output=tmp_path / f"{number}.raw.xml")
        assert (tmp_path / f"{number}.raw.xml").read_bytes() == host.read_bytes()
