"""No image's decision depends on another image, whatever other outputs a model has."""

from typing import Any

import hosts
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_patterns.expr import UnsupportedOpsetError
from postproc_export import CalibrationStats, LevelStats
from postproc_export.errors import UnsupportedModelError, UsageError
from postproc_export.formats.onnx import OnnxFormat
from postproc_export.formats.openvino import OpenVinoFormat
from postproc_export.options import TailOptions
from postproc_export.runtimes import open_runner
from postproc_export.runtimes.openvino import openvino_core

BATCH = 3
SIZES = {"N": BATCH, "batch": BATCH, "?": 2, "H": 4, "W": 2, "L": 2}
SCORES = ("N", "N,1", "batch", "?", "?,1", "3", "3,1")
MAPS = ("N,1,H,W", "N,H,W", "batch,1,H,W", "?,H,W", "?,1,?,?", "3,1,H,W")
OTHERS = ("2,N,8", "N,4,8", "N,8", "N,3,H,W", "?,4,8", "2,3,8", "H,W", "N,1,2,2", "L,batch,8")
LEVEL = LevelStats(threshold=0.5, min=-1.0, max=2.0)
STATS = (CalibrationStats(image=LEVEL), CalibrationStats(image=LEVEL, pixel=LEVEL))
Array = np.ndarray[Any, Any]

models = st.fixed_dictionaries(
    {
        "score": st.sampled_from((*SCORES, None)),
        "map": st.sampled_from((*MAPS, None)),
        "map_name": st.sampled_from(["anomaly_map", "heat"]),
        "others": st.lists(st.sampled_from(OTHERS), max_size=2),
        "opset": st.sampled_from([(7, 3), (8, 4), (9, 4), (13, 7), (17, 8)]),
    }
)


def declared(drawn: dict[str, Any]) -> dict[str, str]:
    """Return the axes of each output of a drawn model."""
    ports = {"pred_score": drawn["score"], drawn["map_name"]: drawn["map"]}
    ports |= {f"other{index}": axes for index, axes in enumerate(drawn["others"])}
    return {name: axes for name, axes in ports.items() if axes is not None}


def host_of(drawn: dict[str, Any]) -> Any:
    """Return a model that gives back what it is fed."""
    ports = declared(drawn)
    inputs = ", ".join(f"float[{axes}] in_{name}" for name, axes in ports.items())
    outputs = ", ".join(f"float[{axes}] {name}" for name, axes in ports.items())
    nodes = " ".join(f"{name} = Identity(in_{name})" for name in ports)
    opset, ir_version = drawn["opset"]
    return hosts.parse(f"g ({inputs}) => ({outputs}) {{ {nodes} }}", opset=opset, ir_version=ir_version)


def batch_axis(axes: str) -> int | None:
    """Return which axis of an output is the batch; None where it has none."""
    names = axes.split(",")
    return next(
        (index for index, axis in enumerate(names) if axis in ("N", "batch", "3") or (axis, index) == ("?", 0)), None
    )


def values_of(axes: str, random: np.random.Generator) -> Array:
    """Return values around the threshold, with a NaN or an infinity here and there."""
    names = axes.split(",")
    sizes = [SIZES.get(axis) or int(axis) for axis in names]
    if names[1:3] == ["1", "?"]:
        sizes[2:] = [4, 2]
    if batch_axis(axes) == 0:
        sizes[0] = BATCH
    values = random.uniform(-1, 1.5, sizes).astype(np.float32)
    if random.random() < 0.5:
        places = random.integers(0, values.size, random.integers(1, 3))
        values.flat[places] = random.choice(np.array([np.nan, np.inf, -np.inf], np.float32), len(places))
    return values


def mixed(first: Array, second: Array, image: int, axis: int | None) -> Array:
    """Return one image's part of an array and the other images' part of another."""
    if axis is None:
        return second
    places = [1] * first.ndim
    places[axis] = BATCH
    return np.where((np.arange(BATCH) == image).reshape(places), first, second)


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
@settings(max_examples=60)
@given(drawn=models, stats=st.sampled_from(STATS), seed=st.integers(0, 2**32 - 1))
def test_other_images_of_a_batch_change_no_label(
    ir: bool, drawn: dict[str, Any], stats: CalibrationStats, seed: int
) -> None:
    """Other images replaced or in another order: every image keeps its label, and a NaN of its own is anomalous."""
    ports = declared(drawn)
    if "pred_score" not in ports and drawn["map_name"] not in ports:
        return
    host = host_of(drawn)
    try:
        if ir:
            model = openvino_core(purpose="the tests").read_model(host.SerializeToString())
            tail = OpenVinoFormat().attach(model, stats, TailOptions()).tail
            runner = open_runner(model, runtime="openvino", threads=1)
        else:
            tail = OnnxFormat().attach(host, stats, TailOptions()).tail
            runner = open_runner(host.SerializeToString(), runtime="onnxruntime", threads=1)
    except (UnsupportedModelError, UsageError, UnsupportedOpsetError):
        return  # two that could be the map, or one that cannot guard
    random = np.random.default_rng(seed)
    first = {name: values_of(axes, random) for name, axes in ports.items()}
    second = {name: values_of(axes, random) for name, axes in ports.items()}
    order = random.permutation(BATCH)
    axes_of_batch = {name: batch_axis(axes) for name, axes in ports.items()}

    pixel = tail.raw.get("pixel")
    if pixel is not None and axes_of_batch[pixel.name] not in (None, 0):
        return  # by other names for its axes it was taken for a map, and told; it fits no score, and does not run

    def labels(values: dict[str, Array]) -> list[bool]:
        found = runner.run({f"in_{name}": array for name, array in values.items()})
        result: list[bool] = found["pred_label"].astype(bool).ravel().tolist()
        return result

    expected = labels(first)
    moved = {
        name: first[name] if axis is None else first[name].take(order, axis) for name, axis in axes_of_batch.items()
    }
    assert labels(moved) == [expected[place] for place in order]
    for image in range(BATCH):
        others = {name: mixed(first[name], second[name], image, axis) for name, axis in axes_of_batch.items()}
        assert labels(others)[image] == expected[image]
    for level, port in tail.raw.items():
        if level == "image" or tail.guard.form is not None:
            own = np.isnan(first[port.name]).reshape(BATCH, -1).any(axis=1)
            assert all(np.array(expected)[own])
