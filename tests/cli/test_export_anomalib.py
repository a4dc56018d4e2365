"""`postproc-export export anomalib:Model`: from a checkpoint to checked files, in a stand-in for Anomalib."""

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from anomalib_standin import AnomalibModule, AnomalibPostProcessor
from conftest import Invoke

from postproc_export import inspect_model
from postproc_export.runtimes import open_runner

NUMBERS = {"_image_threshold": 0.75, "image_min": 0.25, "image_max": 1.0}
NUMBERS |= {"_pixel_threshold": 0.5, "pixel_min": 0.0, "pixel_max": 1.0}


class Padim(AnomalibModule):  # type: ignore[misc]
    """A model of Anomalib by name; it is told not to fetch weights, for the checkpoint has them."""

    def __init__(self, pre_trained: bool = True, **given: Any) -> None:
        assert not pre_trained
        super().__init__(**given)


class Patchcore(Padim):
    """Another one, with a weight that the checkpoint does not have."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.weight = torch.nn.Parameter(torch.ones(2))


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the stand-in have models."""
    for model in (Padim, Patchcore):
        monkeypatch.setattr(import_module("anomalib.models"), model.__name__, model, raising=False)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint as Anomalib writes it, with sensitivities of its own."""
    model = Padim(pre_trained=False, post_processor=AnomalibPostProcessor(image_sensitivity=0.25))
    for name, number in NUMBERS.items():
        model.post_processor.get_buffer(name).fill_(number)
    content: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(content)
    torch.save(content, tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt"


def test_a_checkpoint_becomes_checked_files(checkpoint: Path, tmp_path: Path, invoke: Invoke) -> None:
    """In both formats, with its size, statistics and sensitivity, and compared with Anomalib's decisions."""
    dist = tmp_path / "dist"
    result = invoke("export", "anomalib:Padim", "--weights", checkpoint, "--to", "onnx,openvino", "-o", dist)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("its own post-processor on the same raw values: ") == 2
    assert result.stdout.count("the checkpoint does not say how it compares") == 1
    parity = json.loads((dist / "parity.json").read_text())
    for file, runtime in zip(parity["files"], ("onnxruntime", "openvino"), strict=True):
        theirs = [check["name"] for check in file["checks"] if check["name"].startswith("anomalib/")]
        outputs = ("pred_score", "pred_label", "anomaly_map", "pred_mask")
        assert theirs == [f"anomalib/{output}/{runtime}" for output in outputs]
    record = json.loads(
        {entry.key: entry.value for entry in onnx.load(dist / "model.onnx").metadata_props}["postproc_export"]
    )
    assert record["options"]["image_sensitivity"] == 0.25
    assert record["statistics"]["preprocessing"]["size"] == [8, 8]
    runner = open_runner(dist / "model.onnx")
    assert runner.inputs[0].shape == (1, 3, 8, 8)
    bright = runner.run({"input": np.full((1, 3, 8, 8), 0.9375, np.float32)})
    assert (bright["pred_label"].item(), bright["pred_mask"].all()) == (True, True)  # from 0.75 + 0.25 * 0.75 on


def test_what_is_given_counts_before_the_checkpoint(checkpoint: Path, tmp_path: Path, invoke: Invoke) -> None:
    """A size, the rule and a sensitivity; Anomalib's post-processor decides by the same ones in the check."""
    options = ("--input", "2,3,8,12", "--comparison", "gt", "--image-sensitivity", 0.5, "--name", "other")
    result = invoke("export", "anomalib:Padim", "--weights", checkpoint, *options, "-o", tmp_path / "dist")
    assert result.exit_code == 0, result.stderr
    level = inspect_model(tmp_path / "dist" / "other.onnx").levels["image"]
    assert level is not None
    assert (level.sensitivity, level.comparison, level.boundary) == (0.5, "gt", np.nextafter(np.float32(0.75), 1))
    assert list(open_runner(tmp_path / "dist" / "other.onnx").inputs[0].shape or ()) == [2, 3, 8, 12]


def test_another_decision_is_a_failed_check(
    checkpoint: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Anomalib decides otherwise on the same raw values nothing is written, and the exit code is 1."""
    real = AnomalibPostProcessor.forward

    def forward(self: Any, predictions: Any) -> Any:
        made = real(self, predictions)
        return made._replace(pred_mask=~made.pred_mask)

    monkeypatch.setattr(AnomalibPostProcessor, "forward", forward)
    result = invoke("export", "anomalib:Padim", "--weights", checkpoint, "-o", tmp_path / "dist")
    assert (result.exit_code, (tmp_path / "dist").exists()) == (1, False)
    assert "FAILED" in result.stdout


class Code:
    """What would be run, were the checkpoint unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("made",)


def test_what_cannot_be_exported_is_one_message(
    checkpoint: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No such model, another one's checkpoint, none, or one that holds code: exit code 2, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "hyper_parameters": {"x": Code()}}, "code.ckpt")
    torch.save({"state_dict": {}}, "empty.ckpt")
    monkeypatch.setattr(Patchcore, "input_size", None)
    model, dist = ("export", "anomalib:Padim"), ("-o", "dist")
    for words, message in (
        (("export", "anomalib:Padin", "--weights", checkpoint, *dist), "no model Padin\n.*Padim, .*\n.*anomalib:Padim"),
        (("export", "anomalib:Patchcore", "--weights", checkpoint, *dist), "is no checkpoint of anomalib:Patchcore\n"),
        ((*model, "--weights", "empty.ckpt", *dist), "is no checkpoint of anomalib:Padim\n"),
        ((*model, "--weights", "code.ckpt", *dist), "without running code that it holds\n.*mkdir"),
        ((*model, "--weights", "gone.ckpt", *dist), "gone.ckpt\n  found:   no such file"),
        ((*model, *dist), "--weights is required\n(.*\n)*  fix: .*export anomalib:Padim --weights model.ckpt -o dist"),
        (("export", "export_modules:detector", *dist), "--input is required\n(.*\n)*  fix: .*--input 1,3,256,256"),
    ):
        result = invoke(*words)
        assert (result.exit_code, result.stdout) == (2, ""), words
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(result.stderr)
    assert not Path("dist").exists()
    assert not Path("made").exists()
