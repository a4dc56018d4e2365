"""Detaching: the original comes back, and what cannot come back is said."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import openvino
import pytest

from graph_patterns.expr import SharedValueError
from postproc_export.attach import attach_postprocessing
from postproc_export.detach import detach_postprocessing
from postproc_export.errors import FileError, MetadataError, UnsupportedModelError
from postproc_export.formats.base import DetachResult
from postproc_export.runtimes import open_runner
from postproc_export.stats import CalibrationStats, LevelStats
from postproc_export.update import update_postprocessing

TOOLS = Path(__file__).parents[2] / "data" / "other_tools"
IMAGE = LevelStats(threshold=0.5, min=0.0, max=2.0)
PIXEL = LevelStats(threshold=0.25, min=-1.0, max=1.0)
STATS = CalibrationStats(image=IMAGE, pixel=PIXEL)
HOSTS: dict[str, Callable[[], onnx.ModelProto]] = {
    "dynamic": hosts.score_and_map,
    "static": lambda: hosts.score_and_map(dynamic=False),
    "flat": lambda: hosts.score_and_map(flat=True, dynamic=False),
    "map_only": hosts.map_only,
    "score_only": hosts.score_only,
    "float16": lambda: hosts.score_and_map(dtype="float16"),
    "other_names": lambda: hosts.score_and_map(names=("score", "heat")),
    "opset_7": lambda: hosts.score_and_map(opset=7, ir_version=3),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "keep_raw": {"keep_raw": True},
    "dtypes": {"label_dtype": "uint8", "mask_dtype": "float32"},
    "no_guard": {"nan_guard": False, "comparison": "gt", "image_sensitivity": 0.25},
}


def attached(folder: Path, model: onnx.ModelProto, *, suffix: str = ".onnx", **options: Any) -> tuple[Path, Path]:
    """Write a host and attach to it; return both files. A type of masks is for hosts with a map."""
    if [item.name for item in model.graph.output] == ["pred_score"]:
        options.pop("mask_dtype", None)
    host = folder / f"host{suffix}"
    hosts.write(model, host)
    target = folder / f"attached{suffix}"
    attach_postprocessing(host, options.pop("stats", STATS), output=target, **options)
    return host, target


def edited(path: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    """Edit an ONNX file and return its path."""
    model = onnx.load(path)
    edit(model)
    onnx.save(model, path)
    return path


def strip(path: Path) -> Path:
    """Remove the record from an ONNX file."""
    return edited(path, lambda model: model.ClearField("metadata_props"))


def outputs(path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """Run a file on images."""
    runner = open_runner(path)
    return runner.run({runner.inputs[0].name: images})


def images(*, size: int = 8) -> np.ndarray:
    """Return one image, exact in float16."""
    return np.random.default_rng(0).integers(-64, 64, (1, 3, size, size)).astype(np.float32) / 64


def assert_raw(result: DetachResult, host: onnx.ModelProto, folder: Path) -> None:
    """Assert that the outputs are the host's, by name, order and value."""
    assert result.output is not None
    expected = outputs(hosts.write(host, folder / "expected.onnx"), images())
    found = outputs(result.output, images())
    assert list(found) == list(expected)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_an_onnx_model_comes_back_proto_equal(
    host: Callable[[], onnx.ModelProto], options: dict[str, Any], tmp_path: Path
) -> None:
    """Nodes, initializers, outputs, their order, names and metadata are the original's."""
    original, model = attached(tmp_path, host(), **options)
    result = detach_postprocessing(model, output=tmp_path / "raw.onnx")
    assert result.is_original
    assert result.output is not None
    assert onnx.load(result.output) == onnx.load(original)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("host", [key for key in HOSTS if key != "opset_7"])
def test_an_ir_comes_back_byte_by_byte(host: str, options: dict[str, Any], tmp_path: Path) -> None:
    """The .xml and the .bin are the original's bytes."""
    original, model = attached(tmp_path, HOSTS[host](), suffix=".xml", **options)
    result = detach_postprocessing(model, output=tmp_path / "raw.xml")
    assert result.is_original
    assert (tmp_path / "raw.xml").read_bytes() == original.read_bytes()
    assert (tmp_path / "raw.bin").read_bytes() == original.with_suffix(".bin").read_bytes()


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize(
    "stats", [CalibrationStats(image=IMAGE), CalibrationStats(pixel=PIXEL)], ids=["image-only", "pixel-only"]
)
def test_a_level_that_was_left_alone_stays(stats: CalibrationStats, suffix: str, tmp_path: Path) -> None:
    """Only what was attached goes."""
    original, model = attached(tmp_path, hosts.score_and_map(), suffix=suffix, stats=stats)
    result = detach_postprocessing(model, output=tmp_path / f"raw{suffix}")
    assert list(result.tails) == (["image"] if stats.image else ["pixel"])
    assert (tmp_path / f"raw{suffix}").read_bytes() == original.read_bytes()


def test_an_import_that_was_added_goes(tmp_path: Path) -> None:
    """A model without an import of the default domain is without it again."""
    model = hosts.identity(map=None)
    del model.graph.node[:]
    model.graph.node.append(onnx.helper.make_node("Custom", ["score"], ["pred_score"], domain="custom"))
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("custom", 1))
    original, path = attached(tmp_path, model, stats=CalibrationStats(image=IMAGE))
    detach_postprocessing(path, output=tmp_path / "raw.onnx")
    assert onnx.load(tmp_path / "raw.onnx") == onnx.load(original)


def test_external_data_comes_along(tmp_path: Path) -> None:
    """The weights stay external, and are there in the folder of the output."""
    model = hosts.score_and_map()
    for tensor in model.graph.initializer:  # only raw data can be external
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    onnx.save(model, tmp_path / "in" / "host.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    attach_postprocessing(tmp_path / "in" / "host.onnx", STATS, output=tmp_path / "in" / "a.onnx")
    detach_postprocessing(tmp_path / "in" / "a.onnx", output=tmp_path / "out" / "raw.onnx")
    assert (tmp_path / "out" / "raw.onnx").read_bytes() == (tmp_path / "in" / "host.onnx").read_bytes()
    assert (tmp_path / "out" / "w.data").read_bytes() == (tmp_path / "in" / "w.data").read_bytes()


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_in_place_has_to_be_asked_for(suffix: str, tmp_path: Path) -> None:
    """Without `in_place` the input is refused as the output; with it the original stands there."""
    original, model = attached(tmp_path, hosts.score_and_map(), suffix=suffix)
    with pytest.raises(FileError, match="--in-place"):
        detach_postprocessing(model, output=model)
    detach_postprocessing(model, in_place=True)
    assert model.read_bytes() == original.read_bytes()


def _tap(name: str) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.node.append(onnx.helper.make_node("Relu", [name], ["tapped"], name="head/Relu_7"))
        model.graph.output.append(onnx.helper.make_tensor_value_info("tapped", onnx.TensorProto.FLOAT, None))

    return edit


def _capture(model: onnx.ModelProto) -> None:
    inner = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["anomaly_map"], ["inside"])],
        "branch",
        [],
        [onnx.helper.make_tensor_value_info("inside", onnx.TensorProto.FLOAT, None)],
    )
    condition = onnx.helper.make_tensor("condition", onnx.TensorProto.BOOL, [], [True])
    model.graph.initializer.append(condition)
    node = onnx.helper.make_node("If", ["condition"], ["chosen"], name="If_3", then_branch=inner, else_branch=inner)
    model.graph.node.append(node)
    model.graph.output.append(onnx.helper.make_tensor_value_info("chosen", onnx.TensorProto.FLOAT, None))


def _output(model: onnx.ModelProto) -> None:
    name = "postproc/pred_score/select"
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))


@pytest.mark.parametrize(
    ("edit", "reader"),
    [
        pytest.param(_tap("pred_score"), "head/Relu_7", id="of-an-output"),
        pytest.param(_tap("postproc/pred_score/select"), "head/Relu_7", id="of-an-inner-value"),
        pytest.param(_capture, "If_3", id="inside-a-branch"),
        pytest.param(_output, "the output 'postproc/pred_score/select'", id="an-output-of-the-graph"),
    ],
)
def test_a_reader_outside_the_tail_is_refused_by_name(
    edit: Callable[[onnx.ModelProto], None], reader: str, tmp_path: Path
) -> None:
    """Nothing is removed that something else reads, and nothing is written."""
    _, model = attached(tmp_path, hosts.score_and_map())
    edited(model, edit)
    with pytest.raises(SharedValueError, match=f"has a reader outside .*\n  found:   reader {reader}"):
        detach_postprocessing(model, output=tmp_path / "raw.onnx")
    assert not (tmp_path / "raw.onnx").exists()


def test_a_reader_outside_the_tail_is_refused_in_an_ir(tmp_path: Path) -> None:
    """The same in OpenVINO."""
    _, path = attached(tmp_path, hosts.score_and_map(), suffix=".xml")
    model = openvino.Core().read_model(path)
    relu = openvino.opset13.relu(model.output("anomaly_map").get_node().input_value(0))
    relu.set_friendly_name("head/Relu_7")
    model.add_results([openvino.opset13.result(relu)])
    openvino.save_model(model, tmp_path / "tapped.xml", compress_to_fp16=False)
    with pytest.raises(SharedValueError, match="reader head/Relu_7"):
        detach_postprocessing(tmp_path / "tapped.xml", output=tmp_path / "raw.xml")


@pytest.mark.parametrize("host", [key for key in HOSTS if key != "opset_7"])
def test_a_stripped_onnx_model_is_found_by_its_pattern(host: str, tmp_path: Path) -> None:
    """Names come back by what attaching does to them; that the record is gone is said."""
    _, model = attached(tmp_path, HOSTS[host]())
    result = detach_postprocessing(strip(model), output=tmp_path / "raw.onnx")
    assert not result.is_original
    assert "the record of the original is gone" in result.summary()
    onnx.checker.check_model(str(tmp_path / "raw.onnx"), full_check=True)
    assert_raw(result, HOSTS[host](), tmp_path)


@pytest.mark.parametrize("host", ["dynamic", "flat", "map_only", "score_only", "float16"])
def test_a_stripped_ir_is_found_by_its_pattern(host: str, tmp_path: Path) -> None:
    """The same in OpenVINO."""
    _, path = attached(tmp_path, HOSTS[host](), suffix=".xml")
    model = openvino.Core().read_model(path)
    del model.get_rt_info()["postproc_export"]
    openvino.save_model(model, tmp_path / "stripped.xml", compress_to_fp16=False)
    result = detach_postprocessing(tmp_path / "stripped.xml", output=tmp_path / "raw.xml")
    assert "the record of the original is gone" in result.summary()
    assert_raw(result, HOSTS[host](), tmp_path)


def _read(source: Path, target: Path) -> None:
    openvino.save_model(openvino.Core().read_model(source), target, compress_to_fp16=False)


def _convert(source: Path, target: Path) -> None:
    openvino.save_model(openvino.convert_model(str(source)), target, compress_to_fp16=True)


@pytest.mark.parametrize("convert", [_read, _convert], ids=["read", "convert-and-compress"])
@pytest.mark.parametrize("host", ["dynamic", "static", "flat", "map_only", "float16"])
def test_a_tail_is_found_behind_a_conversion_to_openvino(
    host: str, convert: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    """Names and order are those of the ONNX model's record; that the rest is the conversion's is said."""
    _, model = attached(tmp_path, HOSTS[host]())
    convert(model, tmp_path / "converted.xml")
    result = detach_postprocessing(tmp_path / "converted.xml", output=tmp_path / "raw.xml")
    assert "converted to OpenVINO after attaching" in result.summary()
    assert_raw(result, HOSTS[host](), tmp_path)
    assert not openvino.Core().read_model(tmp_path / "raw.xml").has_rt_info(["framework", "postproc_export"])


@pytest.mark.parametrize("path", sorted(TOOLS.glob("onnx*.onnx")), ids=lambda path: path.stem)
@pytest.mark.parametrize("is_stripped", [False, True], ids=["record", "stripped"])
def test_a_tail_is_found_behind_other_tools(path: Path, is_stripped: bool, tmp_path: Path) -> None:
    """onnxslim, onnxsim and ONNX Runtime's optimiser leave a tail that is found; what they changed is said."""
    shutil.copy(path, tmp_path / "tool.onnx")
    if is_stripped:
        strip(tmp_path / "tool.onnx")
    result = detach_postprocessing(tmp_path / "tool.onnx", output=tmp_path / "raw.onnx")
    onnx.checker.check_model(str(tmp_path / "raw.onnx"), full_check=True)
    assert not result.is_original
    assert result.notes
    host = HOSTS[path.stem.split("_", 2 if "runtime" in path.stem else 1)[-1]]()
    expected = outputs(hosts.write(host, tmp_path / "expected.onnx"), images())
    found = outputs(tmp_path / "raw.onnx", images())
    assert is_stripped or list(found) == list(expected)
    for left, right in zip(found.values(), expected.values(), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_model_without_a_tail_is_left_alone(suffix: str, tmp_path: Path) -> None:
    """The result is falsy, says what the model gives, and nothing is written."""
    host = tmp_path / f"host{suffix}"
    model = hosts.score_and_map()
    hosts.write(model, host)
    result = detach_postprocessing(host, output=tmp_path / f"raw{suffix}")
    assert not result
    assert result.output is None
    assert result.summary().startswith(f"host{suffix} has no post-processing; found: raw outputs ")
    assert not (tmp_path / f"raw{suffix}").exists()


def test_a_raw_model_is_named_as_one(tmp_path: Path) -> None:
    """Where no output bears a name of ours, detach and update say what the outputs are and how to attach."""
    host = hosts.write(hosts.score_and_map(names=("score", "heat")), tmp_path / "host.onnx")
    expected = (
        "host.onnx has no post-processing; found: raw outputs heat, score; "
        f"fix: postproc-export attach {host} --stats FILE"
    )
    assert detach_postprocessing(host).summary() == expected
    assert update_postprocessing(host, image_threshold=1.0).summary() == expected


def test_a_tail_that_was_changed_by_hand_is_refused(tmp_path: Path) -> None:
    """Where the record says that there is a tail, half of one is not removed."""
    _, model = attached(tmp_path, hosts.score_and_map())

    def edit(model: onnx.ModelProto) -> None:
        next(node for node in model.graph.node if node.op_type == "Not").op_type = "Identity"

    edited(model, edit)
    with pytest.raises(UnsupportedModelError, match=r"not as it was attached\n  found:   expected logical_not"):
        detach_postprocessing(model, output=tmp_path / "raw.onnx")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        pytest.param(lambda text: text.replace('"outputs":["', '"outputs":["?'), "no legal outputs", id="outputs"),
        pytest.param(lambda text: text.replace('"outputs":', '"results":'), "no legal outputs", id="no-outputs"),
        pytest.param(
            lambda text: text.replace('"renamed":{', '"renamed":{"x":1,'), "no legal renamings", id="renamings"
        ),
        pytest.param(lambda text: text[:-1], "is not JSON", id="cut-off"),
    ],
)
def test_a_damaged_record_is_refused(change: Callable[[str], str], match: str, tmp_path: Path) -> None:
    """A record that is there has to be legal."""
    _, model = attached(tmp_path, hosts.score_and_map())

    def edit(model: onnx.ModelProto) -> None:
        model.metadata_props[0].value = change(model.metadata_props[0].value)

    edited(model, edit)
    with pytest.raises(MetadataError, match=match):
        detach_postprocessing(model, output=tmp_path / "raw.onnx")


def test_an_output_that_was_added_since_stays(tmp_path: Path) -> None:
    """What the record does not know is kept behind the original's outputs, and told."""
    _, model = attached(tmp_path, hosts.score_and_map())
    edited(model, _tap("pred_score_raw"))
    result = detach_postprocessing(model, output=tmp_path / "raw.onnx")
    assert [item.name for item in onnx.load(tmp_path / "raw.onnx").graph.output] == [
        "pred_score",
        "anomaly_map",
        "tapped",
    ]
    assert "the output 'tapped', which the original did not have, stays" in result.summary()
