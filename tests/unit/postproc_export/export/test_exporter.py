"""`export.exporter` and `export.verify`: what was asked for is read back from the files, and run."""

from pathlib import Path

import export_modules
import hosts
import numpy as np
import onnx
import pytest
import torch

from postproc_export.errors import UnsupportedModelError
from postproc_export.export import WAYS
from postproc_export.export.exporter import RawModule, parse_axes, refuse_fixed, write_ir, write_onnx
from postproc_export.export.verify import Probe, random_like, raw_checks, size_probes, usual_probes
from postproc_export.runtimes import PortInfo, open_runner

IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
HEIGHT = {"height": 2}
SIZES = {**HEIGHT, "width": 3}


def test_a_dataclass_is_exported_with_fixed_names(tmp_path: Path) -> None:
    """torch.export does not know the dataclass; the outputs have names and open axes in both formats all the same."""
    axes = parse_axes("batch,width", IMAGES.shape)
    raw = RawModule(export_modules.detector("dataclass"), IMAGES)
    assert (
        write_onnx(raw, IMAGES, tmp_path / "model.onnx", axes=axes)
        == onnx.load(tmp_path / "model.onnx").opset_import[0].version
    )
    write_ir(tmp_path / "model.onnx", tmp_path / "model.xml", axes=axes)
    for path, batch, width in (("model.onnx", "batch", "width"), ("model.xml", None, None)):
        runner = open_runner(tmp_path / path)
        assert [port.shape for port in runner.inputs] == [(batch, 3, 16, width)]
        assert {port.name: port.shape for port in runner.outputs} == {
            "pred_score": (batch, 1),
            "anomaly_map": (batch, 1, 16, width),
        }


def test_an_opset_that_the_exporter_does_not_give_is_refused(tmp_path: Path) -> None:
    """The opset is read back; where it is another one, both are named."""
    raw = RawModule(export_modules.detector(), IMAGES)
    with pytest.raises(UnsupportedModelError, match="wrote opset 18 where opset 11 was asked for"):
        write_onnx(raw, IMAGES, tmp_path / "model.onnx", axes={}, opset=11)


def test_a_size_that_the_module_makes_a_number_of_is_named(tmp_path: Path) -> None:
    """torch.export refuses it in its own words; the message here names the axis and the size that it gets."""
    raw = RawModule(export_modules.Computing().eval(), IMAGES)
    axes = parse_axes("batch,height,width", IMAGES.shape)
    with pytest.raises(UnsupportedModelError, match=r"'height' \(axis 2 (.|\n)*fixes it to 16"):
        write_onnx(raw, IMAGES, tmp_path / "model.onnx", axes=axes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        pytest.param(("batch", 3, 16, "width"), r"'height' (.|\n)*fixes it to 16: input: float32", id="fixed"),
        pytest.param(("batch", 3, "size", "size"), "'width' (.|\n)*makes it the same as 'height'", id="tied"),
    ],
)
def test_an_axis_that_is_not_symbolic_in_a_file_is_refused(shape: tuple[int | str, ...], message: str) -> None:
    """Exporters fix an axis, or tie two together, without an error."""
    with pytest.raises(UnsupportedModelError, match=message):
        refuse_fixed(SIZES, [PortInfo("input", "float32", shape)], in_what="the ONNX export")


@pytest.mark.parametrize("shape", [("batch", 3, "height", "width"), (None, 3, None, None), None])
def test_symbolic_axes_pass(shape: tuple[int | str | None, ...] | None) -> None:
    """Named ones, an IR's, which have no names, and an input of unknown rank."""
    refuse_fixed(SIZES, [PortInfo("input", "float32", shape)], in_what="the ONNX export")


def probes_of_the_host() -> list[Probe]:
    """Return probes of the detector of `hosts`, written in torch, with one of another height."""

    class Same(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            weights = torch.tensor(hosts.CHANNEL_WEIGHTS)[None, :, None, None]
            anomaly_map = (image * weights).sum(dim=1, keepdim=True) + hosts.BIAS
            return {"pred_score": anomaly_map.amax(dim=(2, 3)), "anomaly_map": anomaly_map}

    raw = RawModule(Same(), IMAGES)
    return [*usual_probes(raw, IMAGES, seed=1), *size_probes(raw, IMAGES, HEIGHT, seed=1)]


def test_a_file_that_gives_what_the_module_gives_passes(tmp_path: Path) -> None:
    """Every size is run, and every level compared."""
    probes = probes_of_the_host()
    checks = raw_checks(hosts.write(hosts.score_and_map(), tmp_path / "model.onnx"), WAYS["onnx"], probes)
    assert [check.name for check in checks] == [
        "module/raw/pred_score/onnxruntime",
        "module/raw/anomaly_map/onnxruntime",
    ]
    assert all(checks)
    assert [list(probe.images.shape) for probe in probes] == [*[[2, 3, 16, 16]] * 3, [2, 3, 48, 16]]


def test_a_file_whose_axis_is_fixed_inside_is_refused(tmp_path: Path) -> None:
    """The input is declared dynamic, and a Reshape further on is not: the axis is named, with the runtime's reason."""
    graph = """fixed (float[N,3,H,W] input) => (float[N,1] pred_score, float[N,1,H,W] anomaly_map)
    <int64[4] shape = {-1, 1, 16, 16}, float[1,3,1,1] weight = {0.5, 0.25, 0.125}, float[1] bias = {-0.25}> {
        any_size = Conv(input, weight, bias)
        anomaly_map = Reshape(any_size, shape)
        pooled = GlobalMaxPool(anomaly_map)
        pred_score = Flatten<axis = 1>(pooled)
    }"""
    path, probes = hosts.write(hosts.parse(graph), tmp_path / "model.onnx"), probes_of_the_host()
    with pytest.raises(UnsupportedModelError, match=r"'height' (.|\n)*at height 48, \[2, 3, 48, 16\], onnxruntime: "):
        raw_checks(path, WAYS["onnx"], probes)
    assert all(raw_checks(path, WAYS["onnx"], [probe for probe in probes if not probe.axes]))


def test_a_file_that_computes_something_else_is_a_miss(tmp_path: Path) -> None:
    """Another bias: the check of the raw values fails, with the largest difference."""
    model = hosts.score_and_map()
    (bias,) = [tensor for tensor in model.graph.initializer if tensor.name == "bias"]
    bias.CopyFrom(onnx.numpy_helper.from_array(np.float32([hosts.BIAS + 0.01]), "bias"))
    path, probes = hosts.write(model, tmp_path / "model.onnx"), probes_of_the_host()
    checks = raw_checks(path, WAYS["onnx"], [probe for probe in probes if not probe.axes])
    assert not any(checks)
    assert "worst 0.01" in checks[0].message
    with pytest.raises(UnsupportedModelError, match=r"'height' (.|\n)*at height 48(.|\n)*worst 0.01"):
        raw_checks(path, WAYS["onnx"], probes)


@pytest.mark.parametrize(
    ("example", "low", "high"),
    [
        (np.float32([-3, 5]), -3, 5),
        (np.float32([2, 2]), 0, 1),
        (np.uint8([0, 255]), 0, 255),
        (np.float16([0, 1]), 0, 1),
    ],
    ids=["range", "constant", "uint8", "float16"],
)
def test_random_inputs_have_the_example_s_type_and_range(example: np.ndarray, low: float, high: float) -> None:
    """Seeded, of the same element type, over the same range; a constant example gives [0, 1]."""
    drawn = random_like(example, seed=3, shape=[1000])
    assert drawn.dtype == example.dtype
    assert low <= drawn.min() < drawn.max() <= high
    assert np.array_equal(drawn, random_like(example, seed=3, shape=[1000]))
    assert not np.array_equal(drawn, random_like(example, seed=4, shape=[1000]))
