"""Attaching in memory: an ONNX model, an OpenVINO model, a pass of each, an `ONNXProgram`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import onnx_ir
import pytest
import torch

from postproc_export import CalibrationStats, LevelStats, attach_postprocessing, attach_to_onnx, attach_to_openvino
from postproc_export.errors import MetadataError, UnsupportedModelError, UsageError
from postproc_export.integrations.memory import attach_to_onnx_program, onnx_ir_pass, openvino_pass
from postproc_export.process import quiet_exporter
from postproc_export.runtimes import open_runner
from postproc_export.runtimes.openvino import import_openvino, openvino_core

openvino = import_openvino(purpose="the tests")

STATS = CalibrationStats(
    image=LevelStats(threshold=0.5, min=0.0, max=2.0), pixel=LevelStats(threshold=0.25, min=-1.0, max=1.0)
)
OPTIONS: dict[str, Any] = {"image_sensitivity": 0.7, "keep_raw": True, "label_dtype": "uint8"}
NAMES = ["pred_score", "pred_label", "anomaly_map", "pred_mask"]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw model, as a file."""
    return hosts.write(hosts.score_and_map(), tmp_path / "raw.onnx")


def read_ir(path: Path) -> Any:
    """Read a model with OpenVINO."""
    return openvino_core(purpose="the tests").read_model(path)


def through_onnx_ir(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return what onnx_ir keeps of a model."""
    return onnx_ir.to_proto(onnx_ir.from_proto(model))


def heavy_host() -> onnx.ModelProto:
    """Return a host whose weights are large, and one of them bears the name of an output."""
    graph = """heavy (float[N,3,H,W] input) => (float[N,1] score, float[N,1,H,W] map) {
        wide = Conv(input, pred_label)
        map = ReduceMean<axes = [1], keepdims = 1>(wide)
        pooled = GlobalMaxPool(map)
        score = Flatten<axis = 1>(pooled)
    }"""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{graph}')
    weights = np.linspace(-1, 1, 512 * 3, dtype=np.float32).reshape(512, 3, 1, 1)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "pred_label"))
    return model


def test_an_onnx_model_in_memory_becomes_what_its_file_becomes(raw: Path, tmp_path: Path) -> None:
    """`attach_to_onnx` gives the bytes of `attach_postprocessing`, with every option."""
    attach_postprocessing(raw, STATS, output=tmp_path / "file.onnx", **OPTIONS)
    model = onnx.load(raw)
    attached = attach_to_onnx(model, STATS, **OPTIONS)
    assert model == onnx.load(tmp_path / "file.onnx")
    assert [output.name for output in attached.tail.outputs] == NAMES


def test_an_openvino_model_in_memory_becomes_what_its_file_becomes(raw: Path, tmp_path: Path) -> None:
    """`attach_to_openvino`, saved, gives the two files of `attach_postprocessing`."""
    ir = hosts.to_ir(onnx.load(raw), tmp_path / "raw.xml")
    attach_postprocessing(ir, STATS, output=tmp_path / "file.xml", **OPTIONS)
    model = read_ir(ir)
    attach_to_openvino(model, STATS, **OPTIONS)
    openvino.save_model(model, tmp_path / "memory.xml", compress_to_fp16=False)
    for suffix in (".xml", ".bin"):
        assert (tmp_path / f"memory{suffix}").read_bytes() == (tmp_path / f"file{suffix}").read_bytes()


def test_a_pass_of_openvinos_manager_attaches(raw: Path) -> None:
    """The pass runs in `openvino.passes.Manager`, after others, and gives what the function gives."""
    from openvino.passes import ConstantFolding, Manager

    manager = Manager()
    manager.register_pass(ConstantFolding())
    step = openvino_pass(STATS, **OPTIONS)
    manager.register_pass(step)
    model = read_ir(raw)
    manager.run_passes(model)
    images = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    expected = read_ir(raw)
    attach_to_openvino(expected, STATS, **OPTIONS)
    found, wanted = (open_runner(each).run({"input": images}) for each in (model, expected))
    assert list(found) == list(wanted)
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    assert step.attached.record.options.image_sensitivity == np.float32(0.7)


@pytest.mark.parametrize("host", [hosts.score_and_map, heavy_host], ids=["light", "heavy-and-renamed"])
def test_a_pass_of_onnx_ir_attaches(host: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    """The pass, alone or in a `Sequential`, gives what the file becomes; its input and the weights stay as they are."""
    path = hosts.write(host(), tmp_path / "raw.onnx")
    attach_postprocessing(path, STATS, output=tmp_path / "file.onnx", **OPTIONS)
    model = onnx_ir.load(path)
    before, weights = onnx_ir.to_proto(model), {id(value.const_value) for value in model.graph.initializers.values()}
    step = onnx_ir_pass(STATS, **OPTIONS)
    for result in (step(model), onnx_ir.passes.Sequential(onnx_ir_pass(STATS, **OPTIONS))(model)):
        assert result.modified
        assert onnx_ir.to_proto(result.model) == through_onnx_ir(onnx.load(tmp_path / "file.onnx"))
    assert onnx_ir.to_proto(model) == before
    assert weights == {id(value.const_value) for value in model.graph.initializers.values()}
    assert ("pred_label" in step.attached.renamed) is (host is heavy_host)


def test_an_onnx_program_is_attached_to_before_it_is_saved(tmp_path: Path) -> None:
    """A `torch.onnx.ONNXProgram` that was called before gives the four outputs when called and when saved."""

    class Detector(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            anomaly_map = image.mean(dim=1, keepdim=True)
            return anomaly_map.amax(dim=(2, 3)), anomaly_map

    images = torch.rand(2, 3, 8, 8)
    with quiet_exporter():
        program = torch.onnx.export(
            Detector().eval(),
            (images,),
            dynamo=True,
            input_names=["input"],
            output_names=["score", "map"],
            dynamic_shapes=({0: "batch"},),
            verbose=False,
        )
    assert program is not None
    raw_score, raw_map = program(images)
    attached = attach_to_onnx_program(program, STATS)
    score, label, unit_map, mask = program(images)
    assert torch.equal(label, raw_score >= 0.5)
    assert torch.equal(mask, raw_map >= 0.25)
    program.save(tmp_path / "program.onnx")
    saved = open_runner(tmp_path / "program.onnx").run({"input": images.numpy()})
    assert list(saved) == NAMES == [output.name for output in attached.tail.outputs]
    assert np.array_equal(saved["pred_score"], score.numpy())
    assert np.array_equal(saved["anomaly_map"], unit_map.numpy())


WRONG: list[Any] = [
    pytest.param({"image_sensitivity": 1.5}, MetadataError, "image_sensitivity 1.5: use 0 to 1", id="option"),
    pytest.param({"image_output": "nothing"}, UsageError, "image_output nothing", id="output"),
    pytest.param({"pixel_output": "pred_score"}, UsageError, "cannot be both", id="both"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_what_is_refused_leaves_an_onnx_model_as_it_was(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """A refusal of `attach_to_onnx` or of the onnx_ir pass changes nothing."""
    model = hosts.score_and_map()
    before = model.SerializeToString(deterministic=True)
    with pytest.raises(error, match=message):
        attach_to_onnx(model, STATS, **options)
    assert model.SerializeToString(deterministic=True) == before
    held = onnx_ir.from_proto(model)
    with pytest.raises(error, match=message):
        onnx_ir_pass(STATS, **options)(held)
    assert onnx_ir.to_proto(held) == through_onnx_ir(model)


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_what_is_refused_leaves_an_openvino_model_as_it_was(
    options: dict[str, Any], error: type[Exception], message: str, raw: Path
) -> None:
    """A refusal of `attach_to_openvino` or of its pass changes nothing, and comes through OpenVINO's manager."""
    from openvino.passes import Manager

    model = read_ir(raw)
    before = [operator.get_friendly_name() for operator in model.get_ordered_ops()]
    with pytest.raises(error, match=message):
        attach_to_openvino(model, STATS, **options)
    manager = Manager()
    manager.register_pass(openvino_pass(STATS, **options))
    with pytest.raises(error, match=message):
        manager.run_passes(model)
    assert [operator.get_friendly_name() for operator in model.get_ordered_ops()] == before
    assert [output.any_name for output in model.outputs] == ["pred_score", "anomaly_map"]


def test_a_second_attach_is_refused() -> None:
    """A model that has its tail is refused, as in files."""
    model = hosts.score_and_map()
    attach_to_onnx(model, STATS)
    with pytest.raises(UnsupportedModelError, match="has post-processing already"):
        attach_to_onnx(model, STATS)


def test_statistics_may_be_a_file(tmp_path: Path) -> None:
    """Every form takes the path of a statistics file."""
    STATS.save(tmp_path / "stats.json")
    by_path, by_value = hosts.score_and_map(), hosts.score_and_map()
    attach_to_onnx(by_path, tmp_path / "stats.json")
    attach_to_onnx(by_value, STATS)
    assert by_path == by_value


def test_a_sensitivity_is_chosen_in_memory_as_for_a_file(raw: Path) -> None:
    """For both kinds of models; the number beside it is refused."""
    curve = {"threshold": [0.25, 0.5, 1.0], "tp": [4, 4, 1], "fp": [5, 1, 0]}
    level = LevelStats(threshold=1.0, min=0.0, max=2.0, n_normal=5, n_anomalous=4, details={"curve": curve})
    stats = CalibrationStats(image=level, pixel=STATS.pixel)
    model = onnx.load(raw)
    for attach, host in ((attach_to_onnx, model), (attach_to_openvino, openvino.Core().read_model(raw))):
        with pytest.raises(UsageError, match="contradict each other"):
            attach(host, stats, image_sensitivity_for="recall=1", image_sensitivity=0.5)
        attached = attach(host, stats, image_sensitivity_for="recall=1")
        assert 0.25 < attached.boundary("image") <= 0.5
        assert "4 of 4 anomalous and 1 of 5 normal" in attached.summary()
