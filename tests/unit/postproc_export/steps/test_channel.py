"""The step channel: one of several values or channels, by a number, and maps whose channel is their last axis."""

from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import pytest
import torch
from checks import check_briefly
from tail_forms import STATS

from graph_patterns.expr import UnsupportedOpsetError
from postproc_export import (
    CalibrationStats,
    PostProcessor,
    attach_postprocessing,
    attach_to_onnx,
    attach_to_openvino,
    check_parity,
    detach_postprocessing,
    inspect_model,
    update_postprocessing,
)
from postproc_export.errors import UnsupportedModelError, UsageError
from postproc_export.record import parse_tail
from postproc_export.runtimes import Array, open_runner
from postproc_export.runtimes.openvino import openvino_core
from postproc_export.steps.modules import OneChannel
from postproc_export.steps.transforms import resolve

RNG = np.random.default_rng(28)
FORMATS = pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
CASES = Path(__file__).parents[3] / "data" / "cases"
LAST = "channel:axis=last,level=pixel"  # what is put before the tail of a map [N, H, W, 1] by itself
KINDS: dict[str, tuple[dict[str, Any], str | None, list[str]]] = {  # host, option, what is recorded
    "channel-last": ({"map": "N,H,W,1"}, None, [LAST]),
    "channel-last-static": ({"score": "3,1", "map": "3,6,7,1"}, None, [LAST]),
    "channel-last-alone": ({"score": None, "map": "N,H,W,1"}, None, [LAST]),
    "open-second": ({"map": "N,only,H,W"}, "channel:axis=second", ["channel:axis=second,level=pixel"]),
    "open-last": ({"score": None, "map": "N,H,W,only"}, "channel:axis=last", [LAST]),
    "open-last-of-several": (
        {"map": "N,H,W,C"},
        "channel:index=1,axis=last",
        ["channel:index=1,axis=last,level=pixel"],
    ),
    "only-by-number": ({"map": "N,H,W,1"}, "channel:index=0", [LAST]),
    "softmax": ({"map": "N,2,H,W"}, "channel:index=1", ["channel:index=1,axis=second,level=pixel"]),
    "softmax-last": ({"map": "N,H,W,2"}, "channel:index=1", ["channel:index=1,axis=last,level=pixel"]),
    "softmax-static": (
        {"score": None, "map": "3,2,6,7"},
        "channel:index=0",
        ["channel:index=0,axis=second,level=pixel"],
    ),
    "many-channels": ({"map": "N,9,8,8"}, "channel:index=8,axis=second", ["channel:index=8,axis=second,level=pixel"]),
    "columns": ({"score": "N,2", "map": None}, "channel:index=1", ["channel:index=1,level=image"]),
    "columns-static": ({"score": "3,5", "map": "3,1,H,W"}, "channel:index=4", ["channel:index=4,level=image"]),
    "columns-open": ({"score": "N,C"}, "channel:index=1,level=image", ["channel:index=1,level=image"]),
    "columns-of-four-axes": ({"score": "N,2,1,1"}, "channel:index=1", ["channel:index=1,level=image"]),
    "columns-last": ({"score": "N,1,1,2"}, "channel:index=1,level=image", ["channel:index=1,level=image"]),
    "both": (
        {"score": "N,2", "map": "N,2,H,W"},
        "channel:index=1",
        ["channel:index=1,level=image", "channel:index=1,axis=second,level=pixel"],
    ),
    "score-of-four-axes": ({"score": "N,1,1,1"}, None, []),
}
OPEN = {"N": 3, "H": 6, "W": 7, "C": 2, "only": 1}


def stats_of(*specs: str) -> CalibrationStats:
    """Return statistics behind steps, of which those that take the only channel need not be recorded."""
    chosen = [parse_tail(spec).to_json() for spec in specs if "index=" in spec]
    return CalibrationStats(image=STATS.image, pixel=STATS.pixel, details={"tail": chosen})


def feeds_of(host: dict[str, Any], *, dtype: Any = np.float32, **sizes: int) -> dict[str, Array]:
    """Return scores and maps of an identity host, around both thresholds; the second map is NaN."""
    shapes = {"score": host.get("score", "N,1"), "map": host.get("map", "N,1,H,W")}
    feeds = {}
    for name, shape in shapes.items():
        if shape is not None:
            axes = tuple(int({**OPEN, **sizes}.get(axis, axis)) for axis in shape.split(","))
            feeds[name] = (RNG.integers(-64, 64, axes) / 64).astype(dtype)
    if "map" in feeds and len(feeds["map"]) > 1:
        feeds["map"][1] = np.nan
    return feeds


def eager(feeds: dict[str, Array], specs: list[str], stats: CalibrationStats = STATS) -> dict[str, Array]:
    """Return what the modules make of raw values, in PyTorch."""
    score, maps = (torch.from_numpy(feeds[name]) if name in feeds else None for name in ("score", "map"))
    for spec in specs:
        score, maps = resolve(parse_tail(spec)).module()(score, maps)
    made = PostProcessor(stats)(score, maps)._asdict()
    return {name: values.numpy() for name, values in made.items() if values is not None}


def assert_as_in_pytorch(path: Path, feeds: dict[str, Array], specs: list[str]) -> None:
    """Labels and masks are equal to the bit, scores to a rounding, in the shapes of the twins."""
    found = open_runner(path, threads=1).run(feeds)
    for name, values in eager(feeds, specs).items():
        assert found[name].shape == values.shape, name
        if values.dtype == bool:
            np.testing.assert_array_equal(found[name].astype(bool), values)
        else:
            np.testing.assert_allclose(np.nan_to_num(found[name], nan=1.0), np.nan_to_num(values, nan=1.0), atol=1e-6)


@FORMATS
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_output_is_post_processed(kind: str, ir: bool, tmp_path: Path) -> None:
    """As in PyTorch, checked, shown, updated and taken off again; what an option settles is recorded in full."""
    host, step, specs = KINDS[kind]
    raw = hosts.raw_file(hosts.identity(**host, names=("s", "m")), tmp_path, ir=ir)
    named = {"image_output": "s"} if host.get("score", "N,1") is not None else {}
    named |= {"pixel_output": "m"} if host.get("map", "N,1,H,W") is not None else {}
    given: dict[str, Any] = {**named, **({} if step is None else {"step": step})}
    stats = stats_of(*specs)
    attached = attach_postprocessing(raw, stats, **given)
    assert attached.output is not None
    assert ("with     " in attached.summary()) is bool(specs)
    assert [spec.text for spec in inspect_model(attached.output).before] == specs
    assert_as_in_pytorch(attached.output, feeds_of(host), specs)
    if not str(host.get("map")).startswith("3"):
        assert_as_in_pytorch(attached.output, feeds_of(host, N=0), specs)
    updated = update_postprocessing(attached.output, image_sensitivity=0.4, stats=stats)
    assert [spec.text for spec in inspect_model(updated.output).before] == specs
    detached = detach_postprocessing(updated.output, output=tmp_path / f"back{raw.suffix}")
    assert detached.is_original
    if not ir:
        assert onnx.load(detached.output) == onnx.load(raw)


@FORMATS
@pytest.mark.parametrize("kind", ["channel-last", "both"])
def test_the_packed_layout_holds_them(kind: str, ir: bool, tmp_path: Path) -> None:
    """[N, H, W, 4], with the bits of the separate outputs."""
    host, step, specs = KINDS[kind]
    raw = hosts.raw_file(hosts.identity(**host), tmp_path, ir=ir)
    stats = stats_of(*specs)
    options: dict[str, Any] = {} if step is None else {"step": step}
    apart = attach_postprocessing(raw, stats, output=tmp_path / f"a{raw.suffix}", **options).output
    packed = attach_postprocessing(raw, stats, output=tmp_path / f"p{raw.suffix}", layout="packed", **options).output
    feeds = feeds_of(host)
    expected, found = (open_runner(path, threads=1).run(feeds) for path in (apart, packed))
    for index, name in ((0, "anomaly_map"), (3, "pred_mask")):
        np.testing.assert_array_equal(found["output"][..., index], expected[name])
    for index, name in ((1, "pred_score"), (2, "pred_label")):
        np.testing.assert_array_equal(found["output"][:, 2, 3, index], expected[name].reshape(-1))
    assert check_briefly(packed, raw=raw, count=100)


@FORMATS
@pytest.mark.parametrize(
    ("host", "step", "feeds"),
    [
        ({"map": "N,H,W,C"}, "channel:axis=last", {"C": 2}),
        ({"map": "N,H,W,C"}, "channel:axis=second", {}),
        ({"map": "N,H,W,C"}, "channel:index=2,axis=last", {}),
        ({"score": "N,C"}, "channel:index=2,level=image", {}),
    ],
    ids=["last", "second", "index-of-map", "index-of-score"],
)
def test_what_is_not_there_at_run_time_is_an_error(
    host: dict[str, Any], step: str, feeds: dict[str, int], ir: bool, tmp_path: Path
) -> None:
    """Of open axes nothing else is known before; a channel that is missing never counts as zeros."""
    raw = hosts.raw_file(hosts.identity(**host), tmp_path, ir=ir)
    attached = attach_postprocessing(raw, stats_of(step if "level" in step else f"{step},level=pixel"), step=step)
    with pytest.raises(UnsupportedModelError, match=r"failed|cannot run|does not run"):
        open_runner(attached.output, threads=1).run(feeds_of(host, **feeds))


@FORMATS
@pytest.mark.parametrize("dtype", ["float16", "double"])
def test_the_type_of_the_host_is_handed_through(dtype: str, ir: bool, tmp_path: Path) -> None:
    """A narrow one as if there were no step: the boundary is the constant for it, for nothing is rounded."""
    host = {"score": "N,2", "map": "N,H,W,1"}
    raw = hosts.raw_file(hosts.identity(**host, dtype=dtype), tmp_path, ir=ir)
    stats = stats_of("channel:index=1,level=image")
    attached = attach_postprocessing(raw, stats, step="channel:index=1")
    assert dict(attached.record.narrow) == ({} if dtype == "double" else {"image": "float16", "pixel": "float16"})
    feeds = feeds_of(host, dtype={"float16": np.float16, "double": np.float64}[dtype])
    assert_as_in_pytorch(attached.output, feeds, ["channel:index=1,level=image", LAST])
    assert check_briefly(attached.output, raw=raw, count=100)


@pytest.mark.parametrize("open_name", [None, "h"])
def test_open_axes_are_inferred_where_the_graph_tells(open_name: str | None, tmp_path: Path) -> None:
    """Exporters declare axes of size 1 by names that they make up; what ONNX infers of them counts."""
    axis = open_name or "?"
    graph = f"""keras (float[N,8,8,3] image) => (float[N,{axis},{axis},{axis}] conv)
    <float[1,3,1,1] weight = {{0.5, 0.25, 0.125}}> {{
    planes = Transpose<perm = [0, 3, 1, 2]>(image) maps = Conv(planes, weight)
    conv = Transpose<perm = [0, 2, 3, 1]>(maps)
    }}"""
    raw = hosts.raw_file(hosts.parse(graph), tmp_path)
    attached = attach_postprocessing(raw, STATS, pixel_output="conv")
    assert f"with     {LAST}" in attached.summary()
    images = RNG.random((2, 8, 8, 3)).astype(np.float32)
    assert open_runner(attached.output).run({"image": images})["pred_mask"].shape == (2, 8, 8)


@FORMATS
@pytest.mark.parametrize("names", ["n,h,w,c", "n,c,h,w", "?,?,?,?"])
def test_a_map_of_open_axes_is_taken_for_nothing(names: str, ir: bool, tmp_path: Path) -> None:
    """Whatever its axes are called, the user has to say where the channel is; both answers work."""
    raw = hosts.raw_file(hosts.identity(score=None, map=names, names=("s", "heat")), tmp_path, ir=ir)
    with pytest.raises(
        UnsupportedModelError, match=r"channel axis of 'heat' is not known(.|\n)*step channel:axis=last"
    ):
        attach_postprocessing(raw, STATS, pixel_output="heat")
    assert {path.suffix for path in tmp_path.iterdir()} <= {".onnx", ".xml", ".bin"}
    for step, sizes in (("channel:axis=last", (2, 6, 7, 1)), ("channel:axis=second", (2, 1, 6, 7))):
        output = tmp_path / f"{step[-4:]}{raw.suffix}"
        attach_postprocessing(raw, STATS, pixel_output="heat", step=step, output=output)
        maps = RNG.random(sizes).astype(np.float32)
        found = open_runner(output).run({"map": maps})
        np.testing.assert_array_equal(found["pred_score"] >= 0.5, maps.max(axis=(1, 2, 3)) >= 0.5)
        assert found["pred_mask"].shape == (2, 6, 7)


def test_the_case_of_open_channel_last_axes(tmp_path: Path) -> None:
    """The map of the case file is [n, h, w, c]: neither an option nor a rank makes [N, 1, H, W] of it."""
    raw = hosts.raw_file(onnx.load(CASES / "nhwc_dyn.onnx"), tmp_path)
    for options, message in (({"pixel_output": 0}, "channel axis of 'y' is not known"), ({}, "no output of the model")):
        with pytest.raises(UnsupportedModelError, match=message):
            attach_postprocessing(raw, STATS, **options)  # type: ignore[arg-type]
    attached = attach_postprocessing(raw, STATS, pixel_output=0, step="channel:axis=last")
    maps = RNG.random((2, 4, 5, 1)).astype(np.float32)
    found = open_runner(attached.output).run({"x": maps})
    np.testing.assert_array_equal(found["pred_label"], maps.max(axis=(1, 2, 3)) >= 0.5)
    assert check_briefly(attached.output, raw=raw, count=100)


@FORMATS
def test_a_map_that_nothing_reads_stays_as_it_is(ir: bool, tmp_path: Path) -> None:
    """Where the pixel level is not calibrated, or left out, its output keeps its shape; it guards all the same."""
    raw = hosts.raw_file(hosts.identity(map="N,H,W,1"), tmp_path, ir=ir)
    for number, (stats, options) in enumerate(
        ((CalibrationStats(image=STATS.image), {}), (STATS, {"levels": "image"}))
    ):
        output = tmp_path / f"{number}{raw.suffix}"
        attached = attach_postprocessing(raw, stats, output=output, **options)  # type: ignore[arg-type]
        assert not attached.own
        feeds = feeds_of({"map": "N,H,W,1"})
        found = open_runner(output).run(feeds)
        np.testing.assert_array_equal(found["anomaly_map"], feeds["map"])
        assert found["pred_label"].reshape(-1)[1], "the NaN in its map"
        assert check_briefly(output, raw=raw, count=100)


@pytest.mark.parametrize("opset", [10, 11, 12, 13, 18, 21])
def test_every_opset_has_it(opset: int, tmp_path: Path) -> None:
    """From 10 on; below, the operator and the opset are named."""
    host, step, specs = KINDS["both"]
    model = hosts.identity(**host, opset=opset, ir_version=10 if opset > 18 else 5)
    attached = attach_postprocessing(hosts.raw_file(model, tmp_path), stats_of(*specs), step=step)
    assert_as_in_pytorch(attached.output, feeds_of(host), specs)
    older = hosts.raw_file(hosts.identity(**host, opset=9, ir_version=5), tmp_path, "older")
    with pytest.raises(UnsupportedOpsetError, match="Slice cannot be expressed at opset 9"):
        attach_postprocessing(older, stats_of(*specs), step=step)


def test_in_memory_it_is_the_same(tmp_path: Path) -> None:
    """Byte for byte what a file gets; a model that is refused half-way is as it was."""
    model = hosts.identity(map="N,H,W,1")
    raw = hosts.raw_file(model, tmp_path)
    attach_to_onnx(model, STATS)
    attach_postprocessing(raw, STATS, output=tmp_path / "a.onnx")
    assert model == onnx.load(tmp_path / "a.onnx")
    kept = hosts.identity(map="N,H,W,1")
    before = kept.SerializeToString()
    refused: dict[str, Any] = {"layout": "packed"}
    with pytest.raises(UsageError, match="the image level has no statistics"):
        attach_to_onnx(kept, CalibrationStats(pixel=STATS.pixel), **refused)
    assert kept.SerializeToString() == before
    ir = openvino_core(purpose="a test").read_model(hosts.to_ir(hosts.identity(map="N,H,W,1"), tmp_path / "m.xml"))
    assert attach_to_openvino(ir, STATS).own == (LAST,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("channel", "does not say which one"),
        ("channel:level=pixel", "does not say which one"),
        ("channel:axis=last,level=image", "does not say which one"),
        ("channel:index=-1", r"index is '-1'\n  needed:  a whole number of at least 0"),
        ("channel:index=one", "index is 'one'"),
        ("channel:index=1,axis=3", r"axis is '3'\n  needed:  second or last"),
        ("channel:index=1,level=both", r"level is 'both'\n  needed:  image or pixel"),
        ("channel:index=1,at=2", r"no parameter 'at'\n  needed:  index, axis, level"),
    ],
)
def test_parameters_that_are_not_legal_are_refused(text: str, message: str) -> None:
    """The parameter, what was found and what is needed are named."""
    with pytest.raises(UsageError, match=message):
        resolve(parse_tail(text))


@FORMATS
@pytest.mark.parametrize(
    ("host", "options", "message"),
    [
        ({"score": "N,2"}, {}, r"'pred_score' cannot be .* 2 values per image(.|\n)*step channel:index=1;"),
        ({"score": "N,2"}, {"image_output": 0}, r"2 values per image(.|\n)*step channel:index=1;"),
        ({"score": "N,2,1,1"}, {}, r"2 values per image(.|\n)*step channel:index=1,level=image;"),
        ({"score": "N,2,3"}, {}, r"6 values per image(.|\n)*fix:     select another output with image_output"),
        ({"map": "N,2,H,W"}, {}, r"'anomaly_map' cannot be .* 2 channels(.|\n)*step channel:index=1;"),
        ({"map": "N,64,14,7"}, {}, r"of 64, or on its last, of 7(.|\n)*channel:index=1,axis=last"),
        ({"score": "N,2"}, {"step": "channel:index=2"}, r"'pred_score' has 2 values(.|\n)*from 0 to 1"),
        ({"map": "N,2,H,W"}, {"step": "channel:index=2"}, r"'anomaly_map' has 2 channels(.|\n)*from 0 to 1"),
        ({"map": "N,2,H,W"}, {"step": "channel:axis=second"}, r"'anomaly_map' has 2 channels(.|\n)*from 0 to 1"),
        ({}, {"step": "channel:index=0"}, r"nothing to choose from\n.*pred_score.*anomaly_map(.|\n)*leave it out"),
        ({"map": "N,H,W,C"}, {"step": "channel:index=0"}, r"nothing to choose(.|\n)*add axis=second or axis=last"),
        ({"map": "N,2,H,W"}, {"step": ["channel:index=1", "channel:index=0,level=pixel"]}, "nothing left to choose"),
        ({"map": "N,2,H,W"}, {"step": ["gaussian:sigma=1", "channel:index=1"]}, "does not fit the anomaly map"),
        ({"map": "N,H,W,1"}, {"step": "own_tails:Weighted"}, r"is the last one(.|\n)*\[N, 1, H, W\] for a class"),
    ],
)
def test_what_is_not_supported_is_refused_by_what_it_is(
    host: dict[str, Any], options: dict[str, Any], message: str, ir: bool, tmp_path: Path
) -> None:
    """With the output and the option that mends it; nothing is written."""
    raw = hosts.raw_file(hosts.identity(**host), tmp_path, ir=ir)
    files = set(tmp_path.iterdir())
    with pytest.raises((UnsupportedModelError, UsageError), match=message):
        attach_postprocessing(raw, STATS, **options)
    assert set(tmp_path.iterdir()) == files


def test_statistics_belong_to_the_channel_that_was_calibrated(tmp_path: Path) -> None:
    """Another number is refused, and so is none; where the only channel is changes no value, so it does not count."""
    raw = hosts.raw_file(hosts.identity(score="N,2"), tmp_path)
    stats = stats_of("channel:index=1,level=image")
    for step in ("channel:index=0", ()):
        with pytest.raises(UsageError, match=r"not those behind this tail(.|\n)*step channel:index=1,level=image"):
            attach_postprocessing(raw, stats, step=step)
    last = hosts.raw_file(hosts.identity(map="N,H,W,1"), tmp_path, "last")
    same = CalibrationStats(image=STATS.image, pixel=STATS.pixel, details={"tail": [parse_tail(LAST).to_json()]})
    for number, each in enumerate((STATS, same)):
        assert attach_postprocessing(last, each, output=tmp_path / f"{number}.onnx").own == (LAST,)
    with pytest.raises(UsageError, match=r"'channel:index=0' is not the one(.|\n)*step channel:index=1,level=image"):
        check_parity(attach_postprocessing(raw, stats, step="channel:index=1").output, step="channel:index=0")


def test_the_twin_takes_one_channel() -> None:
    """A score [N], a map [N, H, W]; the other level is handed on, and a level that is missing stays so."""
    score, maps = torch.arange(6.0).reshape(2, 3), torch.arange(24.0).reshape(2, 3, 2, 2)
    found = OneChannel(1, level="image")(score, maps)
    assert found[0] is not None
    assert found[0].tolist() == [1.0, 4.0]
    assert found[1] is maps
    found = OneChannel(2, level="pixel")(score, maps)
    assert found[0] is score
    torch.testing.assert_close(found[1], maps[:, 2])
    torch.testing.assert_close(OneChannel(2, level="pixel", axis=3)(None, maps.permute(0, 2, 3, 1))[1], maps[:, 2])
    assert OneChannel(1, level="pixel")(score, None) == (score, None)
    assert OneChannel(1, level="image")(None, maps) == (None, maps)
