"""The shipped transforms: the same values in eager PyTorch, ONNX Runtime and OpenVINO, and no trace after detaching."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import pytest
import torch

from postproc_export import CalibrationStats, attach_postprocessing, detach_postprocessing
from postproc_export.errors import UnsupportedModelError, UsageError
from postproc_export.runtimes import RuntimeName, open_runner
from postproc_export.runtimes.protocol import Array
from postproc_export.stats import LevelStats
from postproc_export.transforms.modules import Chain
from postproc_export.transforms.plan import resolve_all
from postproc_export.transforms.record import STATISTICS_KEY
from postproc_export.transforms.spec import TailSpec, parse_tails

LEVEL = LevelStats(threshold=0.25, min=-2.0, max=2.0)
SIZE = (24, 20)
THRESHOLDS = np.linspace(-0.5, 0.5, SIZE[0] * SIZE[1], dtype=np.float32).reshape(SIZE)
RUNTIMES: tuple[RuntimeName, ...] = ("onnxruntime", "openvino")
TAILS = {
    "gaussian": "gaussian:sigma=1.5",
    "top-k": "top-k:k=7",
    "resize": "resize:height=31,width=17",
    "resize-input": "resize",
    "thresholds": "thresholds:file={folder}/thresholds.npy",
}
CHAIN = ("gaussian:sigma=1", "resize:height=48,width=40", "top-k:k=9")


def named(text: str, folder: Path) -> str:
    """Return how a tail is asked for, with a file of thresholds where it needs one."""
    np.save(folder / "thresholds.npy", THRESHOLDS)
    return text.format(folder=folder)


def statistics(tails: tuple[str, ...]) -> CalibrationStats:
    """Return statistics that say that they are those behind some tails."""
    specs = [TailSpec(item.name, item.parameters).to_json() for item in resolve_all(parse_tails(tails))]
    return CalibrationStats(image=LEVEL, pixel=LEVEL, details={STATISTICS_KEY: specs})


def eager(tails: tuple[str, ...], raw: dict[str, Array], size: tuple[int, int]) -> dict[str, Array]:
    """Return what the modules give."""
    chain = Chain([item.module() for item in resolve_all(parse_tails(tails))])
    chain.set_size(size)
    score, anomaly_map = chain(
        *(torch.from_numpy(raw[name]) if name in raw else None for name in ("pred_score", "anomaly_map"))
    )
    found = {"pred_score": score, "anomaly_map": anomaly_map}
    return {name: value.numpy() for name, value in found.items() if value is not None}


def host_file(folder: Path, *, ir: bool, make: Callable[..., onnx.ModelProto], **form: Any) -> Path:
    """Write a host."""
    model = make(**form)
    return hosts.to_ir(model, folder / "raw.xml") if ir else hosts.write(model, folder / "raw.onnx")


def images(shape: tuple[int, ...]) -> Array:
    """Draw images whose raw outputs are exact."""
    return np.random.default_rng(0).integers(-512, 512, shape).astype(np.float32) / np.float32(256)


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
@pytest.mark.parametrize("opset", [11, 14, 18])
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("form", ["dynamic", "static", "flat"])
def test_every_runtime_gives_what_the_module_gives(tail: str, opset: int, ir: bool, form: str, tmp_path: Path) -> None:
    """Raw values behind a transform are the module's within its bound, and detaching gives the original back."""
    tails = (named(TAILS[tail], tmp_path),)
    source = host_file(
        tmp_path, ir=ir, make=hosts.score_and_map, opset=opset, dynamic=form != "static", size=SIZE, flat=form == "flat"
    )
    attached = attach_postprocessing(
        source,
        statistics(tails),
        tail=tails,
        output=tmp_path / f"new{source.suffix}",
        mask_dtype="uint8",
    ).output
    feed = images((1, 3, *SIZE))
    raw = hosts.expected(feed, flat=form == "flat")
    wanted = eager(tails, raw, SIZE)
    for runtime in ("openvino",) if ir else RUNTIMES:
        found = open_runner(attached, runtime=runtime).run({"input": feed})
        for name, level in (("anomaly_map", "pred_mask"), ("pred_score", "pred_label")):
            scores = wanted[name]
            np.testing.assert_allclose(found[name], np.clip((scores - 0.25) / 4 + 0.5, 0, 1), rtol=0, atol=3e-6)
            clear = np.abs(scores - 0.25) > 1e-5
            assert np.array_equal(found[level].astype(bool)[clear], (scores >= 0.25)[clear])
    restored = detach_postprocessing(attached, output=tmp_path / f"restored{source.suffix}")
    assert restored
    if not ir:
        assert onnx.load(restored.output) == onnx.load(source)


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
def test_a_chain_is_applied_in_order(ir: bool, tmp_path: Path) -> None:
    """Several transforms give what their modules give one behind the other, on a model with a map only."""
    source = host_file(tmp_path, ir=ir, make=hosts.map_only)
    attached = attach_postprocessing(source, statistics(CHAIN), tail=CHAIN, output=tmp_path / f"new{source.suffix}")
    assert attached.output_names == ("pred_score", "pred_label", "anomaly_map", "pred_mask")
    feed = images((2, 3, *SIZE))
    raw = {"anomaly_map": hosts.expected(feed)["anomaly_map"]}
    wanted = eager(CHAIN, raw, SIZE)
    assert wanted["anomaly_map"].shape == (2, 1, 48, 40)
    found = open_runner(attached.output).run({"input": feed})
    for name, scores in wanted.items():
        np.testing.assert_allclose(found[name], np.clip((scores - 0.25) / 4 + 0.5, 0, 1), rtol=0, atol=3e-6)


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
def test_channels_with_a_threshold_each_become_one_map(ir: bool, tmp_path: Path) -> None:
    """The highest distance of the channels from their thresholds is the map, and NaN in one of them is anomalous."""
    np.save(tmp_path / "per_channel.npy", np.array([0.5, 1.0, -0.25], np.float32))
    tails = (f"thresholds:file={tmp_path / 'per_channel.npy'}",)
    model = hosts.parse(
        "channels (float[N,3,H,W] input) => (float[N,3,H,W] anomaly_map) { anomaly_map = Identity(input) }"
    )
    source = hosts.to_ir(model, tmp_path / "raw.xml") if ir else hosts.write(model, tmp_path / "raw.onnx")
    output = attach_postprocessing(source, statistics(tails), tail=tails, mask_dtype="uint8").output
    feed = images((2, 3, 5, 4))
    feed[1, 1, 2, 2] = np.nan
    found = open_runner(output).run({"input": feed})
    distance = (feed - np.array([0.5, 1.0, -0.25], np.float32).reshape(1, 3, 1, 1)).max(axis=1, keepdims=True)
    assert np.array_equal(found["pred_mask"].astype(bool), ~(distance < 0.25))
    assert found["pred_mask"][1, 0, 2, 2]
    assert found["pred_label"][1]


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (3, 40)], ids=str)
@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
def test_a_map_smaller_than_the_kernel_is_defined_where_sizes_are_open(
    ir: bool, size: tuple[int, int], tmp_path: Path
) -> None:
    """The mirror is repeated and all pixels are taken, as the modules do, where the size is known at run time."""
    tails = ("gaussian:sigma=2", "top-k:k=50")
    source = host_file(tmp_path, ir=ir, make=hosts.score_and_map)
    output = attach_postprocessing(source, statistics(tails), tail=tails).output
    feed = images((2, 3, *size))
    wanted = eager(tails, hosts.expected(feed), size)
    for runtime in ("openvino",) if ir else RUNTIMES:
        found = open_runner(output, runtime=runtime).run({"input": feed})
        for name, scores in wanted.items():
            np.testing.assert_allclose(found[name], np.clip((scores - 0.25) / 4 + 0.5, 0, 1), rtol=0, atol=3e-6)


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        ("gaussian:sigma=4", "mirrors 16 pixels at each edge"),
        ("top-k:k=65", "takes 65 pixels"),
        ("thresholds:file={folder}/thresholds.npy", "do not fit the map"),
    ],
)
def test_a_static_map_that_does_not_fit_is_refused(tail: str, message: str, tmp_path: Path) -> None:
    """A map of 8 x 8 whose sizes the graph knows is refused with what would fit; nothing is written."""
    tails = (named(tail, tmp_path),)
    source = host_file(tmp_path, ir=False, make=hosts.score_and_map, dynamic=False)
    with pytest.raises(UnsupportedModelError, match=message):
        attach_postprocessing(source, statistics(tails), tail=tails)
    assert not source.with_name("raw.post.onnx").exists()


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        ("mebin", "no graph form"),
        ("blur", "not known"),
        ("gaussian:sigma=0", r"sigma is '0'"),
        ("gaussian:radius=3", "no parameter 'radius'"),
        ("top-k", "k is None"),
        ("resize:height=3", "one of height and width"),
        ("gaussian:sigma=1,sigma=2", "twice"),
        ("thresholds", "no file"),
    ],
)
def test_what_cannot_be_is_said(tail: str, message: str, tmp_path: Path) -> None:
    """Unknown tails, tails without a graph form and illegal parameters are one clear message."""
    source = host_file(tmp_path, ir=False, make=hosts.score_and_map)
    with pytest.raises(UsageError, match=message):
        attach_postprocessing(source, CalibrationStats(image=LEVEL, pixel=LEVEL), tail=tail)


@pytest.mark.parametrize(
    ("calibrated", "asked"),
    [((), ("gaussian:sigma=1",)), (("gaussian:sigma=1",), ()), (("gaussian:sigma=1",), ("gaussian:sigma=2",))],
    ids=["none-some", "some-none", "another"],
)
def test_statistics_of_another_tail_are_refused(
    calibrated: tuple[str, ...], asked: tuple[str, ...], tmp_path: Path
) -> None:
    """A transform changes the range, so statistics have to be those behind the same; `1` and `1.0` are one."""
    source = host_file(tmp_path, ir=False, make=hosts.score_and_map)
    with pytest.raises(UsageError, match="a transform changes the range"):
        attach_postprocessing(source, statistics(calibrated), tail=asked)
    same = attach_postprocessing(source, statistics(("gaussian:sigma=1",)), tail="gaussian:sigma=1.0")
    assert same.output.exists()
