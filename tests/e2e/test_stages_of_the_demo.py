"""The demo from its PyTorch model to its attached files, by the command line."""

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("suffix", [pytest.param("onnx", marks=pytest.mark.slow), "xml"])
def test_the_demo_decides_as_its_pytorch_model(suffix: str, demo_folder: Path, invoke: Any) -> None:
    """Fitted again, the PyTorch model and both files decide alike at float32, stage by stage."""
    attached, raw = (demo_folder / f"{name}.{suffix}" for name in ("attached", "raw"))
    module = ("--torch", "postproc_export.demo.factory:detector")
    images = ("--images", demo_folder / "test", "--limit", "24", "--no-int8", "--json")
    result = invoke("check", attached, "--raw", raw, *module, *images)
    assert result.exit_code == 0, result.stdout
    ways = {way["way"]: way for way in json.loads(result.stdout)["whole_model"]}
    assert ("onnxruntime" in ways) is (suffix == "onnx")
    assert "openvino at float32: decides as PyTorch" in ways["openvino"]["verdict"]
    stages = [stage["stage"] for stage in ways["openvino"]["stages"] if stage["level"] == "pixel"]
    assert stages == ["torch -> raw", "raw -> attached", "tail"]
    assert all(stage["error_of_span"]["largest"] < 1e-5 for stage in ways["openvino"]["stages"])
    assert ways["openvino-fp16-weights"]["stages"][2]["error_of_span"]["largest"] > 1e-5
