"""The packed layout: one output [N, H, W, 4] with the bits of the four, in both formats, or a reason against it."""

from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import pytest
from tail_forms import IMAGE, PIXEL, STATS, attached

from graph_patterns.expr import UnsupportedOpsetError
from postproc_export import CalibrationStats, LevelStats, attach_postprocessing
from postproc_export.errors import UnsupportedModelError, UsageError
from postproc_export.options import TailOptions
from postproc_export.runtimes import open_runner

RNG = np.random.default_rng(5)
FORMATS = pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
HOSTS: dict[str, dict[str, Any]] = {
    "score-n1-map-n1hw": {},
    "score-n-map-n1hw": {"score": "N"},
    "score-n-map-nhw": {"score": "N", "map": "N,H,W"},
    "score-n1-map-nhw": {"map": "N,H,W"},
    "map-n1hw": {"score": None},
    "map-nhw": {"score": None, "map": "N,H,W"},
    "scalar": {"score": "", "map": "1,1,H,W"},
    "one-image": {"score": "1,1", "map": "1,H,W"},
    "static": {"score": "3,1", "map": "3,1,6,5"},
    "float16": {"dtype": "float16"},
    "float64": {"dtype": "double"},
    "centred": {"score": "N"},
    "named-channel": {"score": "N,score_channel", "map": "N,ReduceMaxpred_score_dim_1,H,W"},
    "unnamed-channel": {"score": "N", "map": "?,?,?,?"},
}
CENTRED = CalibrationStats(
    image=LevelStats(threshold=1000.0, min=998.0, max=1001.5), pixel=LevelStats(threshold=1000.5, min=997.0, max=1002.0)
)


def feeds_of(host: dict[str, Any], *, offset: float = 0.0) -> dict[str, np.ndarray]:
    """Return scores and maps of an identity host; the second map holds a NaN where there are several."""
    n = {"1,1,H,W": 1, "1,H,W": 1}.get(host.get("map", ""), 3)
    maps = RNG.normal(size=(n, 6, 5)) + offset
    if n > 1:
        maps[1, 2, 3] = np.nan
    dtype = {"float16": np.float16, "double": np.float64}.get(host.get("dtype", ""), np.float32)
    score_shape = {"": (), "N": (n,), "N,1": (n, 1), "1,1": (1, 1), "3,1": (3, 1), "N,score_channel": (n, 1)}
    feeds = {"map": maps.reshape((n, 1, 6, 5) if host.get("map", "N,1,H,W").count(",") == 3 else (n, 6, 5))}
    score = host.get("score", "N,1")
    if score is not None:
        feeds["score"] = RNG.normal(size=score_shape[score]) + offset
    return {name: np.asarray(values, dtype) for name, values in feeds.items()}


@FORMATS
@pytest.mark.parametrize("name", HOSTS)
def test_the_packed_output_has_the_bits_of_the_separate_ones(name: str, ir: bool, tmp_path: Path) -> None:
    """Map, score, label and mask in this order, the image's values at every place of it, a NaN's too."""
    host, stats = HOSTS[name], CENTRED if name == "centred" else STATS
    feeds = feeds_of(host, offset=1000.0 if name == "centred" else 0.0)
    (tmp_path / "a").mkdir()
    _, packed = attached(hosts.identity(**host), tmp_path, ir=ir, stats=stats, layout="packed")
    _, apart = attached(hosts.identity(**host), tmp_path / "a", ir=ir, stats=stats)
    (results,) = open_runner(packed, threads=1).run(feeds).values()
    expected = open_runner(apart, threads=1).run(feeds)
    n = len(feeds["map"])
    assert (results.shape, results.dtype) == ((n, 6, 5, 4), np.float32)
    np.testing.assert_array_equal(results[..., 0], expected["anomaly_map"].reshape(n, 6, 5))
    np.testing.assert_array_equal(results[..., 3], expected["pred_mask"].reshape(n, 6, 5))
    for channel, output in ((1, "pred_score"), (2, "pred_label")):
        plane = np.broadcast_to(expected[output].reshape(n, 1, 1), (n, 6, 5))
        np.testing.assert_array_equal(results[..., channel], plane)
    if n > 1:
        assert (results[1, ..., 2] == 1.0).all(), "a NaN in the map makes its image anomalous"


def test_what_was_dynamic_stays_so(tmp_path: Path) -> None:
    """The declared shape is [N, H, W, 4] under the map's own names in ONNX; dynamic axes in an IR; static ones stay."""
    cases = (({}, ["N", "H", "W", 4]), ({"map": "N,H,W"}, ["N", "H", "W", 4]), ({"map": "3,1,6,5"}, [3, 6, 5, 4]))
    for host, shape in cases:
        score = "3,1" if shape[0] == 3 else "N,1"
        model = onnx.load(attached(hosts.identity(score=score, **host), tmp_path, ir=False, layout="packed")[1])
        (output,) = model.graph.output
        assert output.name == "output"
        assert [axis.dim_param or axis.dim_value for axis in output.type.tensor_type.shape.dim] == shape
        onnx.checker.check_model(model, full_check=True)
    runner = open_runner(attached(hosts.identity(), tmp_path, ir=True, layout="packed")[1])
    assert [port.describe() for port in runner.outputs] == ["output: float32 [?, ?, ?, 4]"]


@FORMATS
def test_an_empty_batch_is_one(ir: bool, tmp_path: Path) -> None:
    """No images give no results, and no error."""
    runner = open_runner(attached(hosts.identity(), tmp_path, ir=ir, layout="packed")[1], threads=1)
    feeds = {"score": np.zeros((0, 1), np.float32), "map": np.zeros((0, 1, 6, 5), np.float32)}
    assert runner.run(feeds)["output"].shape == (0, 6, 5, 4)


REFUSED: dict[str, tuple[dict[str, Any], CalibrationStats, dict[str, Any], str]] = {
    "score-only": ({"map": None}, STATS, {}, "the model has a score only"),
    "no-image-statistics": ({}, CalibrationStats(pixel=PIXEL), {}, "the image level has no statistics"),
    "no-pixel-statistics": ({"score": None}, CalibrationStats(image=IMAGE), {}, "the pixel level has no statistics"),
    "no-threshold-to-decide-by": (
        {},
        CalibrationStats(image=IMAGE, pixel=LevelStats(threshold=None, min=0.0, max=1.0)),
        {},
        "the pixel level has no statistics",
    ),
    "keep-raw": ({}, STATS, {"keep_raw": True}, "the raw outputs are to be kept beside it"),
    "one-level": ({}, STATS, {"levels": "pixel"}, "the pixel level alone is wanted"),
    "raw-scores": ({}, STATS, {"enable_normalization": False}, "it holds normalised scores"),
    "no-labels": ({}, STATS, {"enable_thresholding": False}, "it holds labels"),
    "label-dtype": (
        {},
        STATS,
        {"label_dtype": "uint8"},
        r"label_dtype='uint8' would have no effect\n.*packed layout is float32",
    ),
    "mask-dtype": ({}, STATS, {"mask_dtype": "uint8"}, "mask_dtype='uint8' would have no effect"),
    "scalar-score-dynamic-batch": (
        {"score": ""},
        STATS,
        {},
        r"one score would be laid over several images.*\n.*pred_score: float32 \[\]; anomaly_map",
    ),
    "score-1-dynamic-batch": ({"score": "1"}, STATS, {}, "one score would be laid over several images"),
    "score-11-dynamic-batch": ({"score": "1,1"}, STATS, {}, "one score would be laid over several images"),
    "scalar-score-batch-2": ({"score": "", "map": "2,1,H,W"}, STATS, {}, "is for 1 images and output .* for 2"),
    "channels": ({"map": "N,3,H,W"}, STATS, {}, "it has 3 channels"),
}


@FORMATS
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_packed_is_refused_with_the_reason(case: str, ir: bool, tmp_path: Path) -> None:
    """Nothing is written; the same model is accepted without the packed layout unless it is refused anyway."""
    host, stats, options, message = REFUSED[case]
    with pytest.raises((UsageError, UnsupportedModelError), match=message):
        attached(hosts.identity(**host), tmp_path, ir=ir, stats=stats, layout="packed", **options)
    assert {path.stem for path in tmp_path.iterdir()} == {"raw"}
    if case not in ("scalar-score-batch-2", "channels"):
        assert attached(hosts.identity(**host), tmp_path, ir=ir, stats=stats, **options)[1].exists()


def test_one_score_and_one_map_may_be_packed(tmp_path: Path) -> None:
    """A scalar is refused beside a dynamic batch, and accepted where the map's batch is 1."""
    for score in ("", "1", "1,1"):
        assert attached(hosts.identity(score=score, map="1,1,H,W"), tmp_path, ir=False, layout="packed")[1].exists()


def test_a_borrowed_threshold_can_be_packed(tmp_path: Path) -> None:
    """A level without a threshold of its own is calibrated once it has borrowed the other's."""
    stats = CalibrationStats(image=LevelStats(threshold=None, min=0.0, max=2.0), pixel=PIXEL)
    options: dict[str, Any] = {"stats": stats, "layout": "packed", "match_thresholds": True}
    assert attached(hosts.identity(), tmp_path, ir=False, **options)[1].exists()


def test_other_outputs_follow(tmp_path: Path) -> None:
    """What is neither score nor map stays, behind the packed output."""
    model = hosts.parse(
        "g (float[N,1] score, float[N,1,H,W] map) => (float[N,1] features, float[N,1] pred_score, "
        "float[N,1,H,W] anomaly_map) { features = Neg(score) pred_score = Identity(score) anomaly_map = Identity(map) }"
    )
    _, path = attached(model, tmp_path, ir=False, layout="packed")
    assert [item.name for item in onnx.load(path).graph.output] == ["output", "features"]


def test_a_value_that_bears_the_name_moves(tmp_path: Path) -> None:
    """A raw map named `output` gives the name up, as with the other names; an input of that name is refused."""
    raw, path = attached(hosts.identity(names=("pred_score", "output")), tmp_path, ir=False, layout="packed")
    assert "output_raw" in {name for node in onnx.load(path).graph.node for name in node.output}
    model = onnx.load(raw)
    model.graph.input[0].name = "output"
    model.graph.node[0].input[0] = "output"
    model.graph.output[1].name = model.graph.node[1].output[0] = "anomaly_map"
    with pytest.raises(UnsupportedModelError, match=r"the name 'output' is taken\n.*an input of that name"):
        attach_postprocessing(hosts.write(model, raw), STATS, layout="packed")


def test_opset_7_is_refused_and_opset_8_is_not(tmp_path: Path) -> None:
    """Broadcasting to a shape exists from opset 8 on; a constant shape needs IR version 4 or opset 9 besides."""
    for opset, ir_version in ((7, 3), (7, 4), (8, 3)):
        with pytest.raises(UnsupportedOpsetError, match=f"cannot be expressed at opset {opset}"):
            attached(hosts.identity(opset=opset, ir_version=ir_version), tmp_path, ir=False, layout="packed")
    assert not (tmp_path / "raw.post.onnx").exists()
    _, path = attached(hosts.identity(opset=8, ir_version=4), tmp_path, ir=False, layout="packed")
    feeds = feeds_of({})
    results = open_runner(path, threads=1).run(feeds)["output"]
    np.testing.assert_array_equal(results[..., 3], ~(feeds["map"][:, 0] < PIXEL.threshold))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "tiled"}, r"layout 'tiled' is not known\n.*separate, packed"),
        ({"levels": "none"}, r"levels 'none' is not known\n.*both, image, pixel"),
        ({"enable_normalization": False, "enable_thresholding": False}, "nothing to attach"),
    ],
)
def test_options_that_are_not_known_or_leave_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    """The message lists what there is."""
    with pytest.raises(UsageError, match=message):
        TailOptions(**options)
