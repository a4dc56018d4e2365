"""`check` where PyTorch is not installed, and `--reference`: the same verdicts by the twin in NumPy."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import planted_onnx
import pytest
from conftest import Invoke
from scripting import SCRIPTS, environment
from shipped_tails import stats_behind

from postproc_export.attach import attach_postprocessing
from postproc_export.check import check_parity
from postproc_export.record import TailSpec

STEPS = ("gaussian:sigma=1", "top-k:k=3", "resize", "gate")
MOVED = {"reference", "environment", "verdict"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with good files in both formats, faulty ones, one with a class of its own, and inputs."""
    folder = tmp_path_factory.mktemp("without torch")
    raw, ir = (
        hosts.write(hosts.score_and_map(), folder / "raw.onnx"),
        hosts.to_ir(hosts.score_and_map(), folder / "raw.xml"),
    )
    attach_postprocessing(raw, stats_behind(()), output=folder / "good.onnx", comparison="gt")
    attach_postprocessing(ir, stats_behind(STEPS), output=folder / "good.xml", step=STEPS)
    own = replace(stats_behind(()), details={"tail": [TailSpec("own_tails:Halved", {}).to_json()]})
    attach_postprocessing(raw, own, output=folder / "own.onnx", step="own_tails:Halved")
    model = onnx.load(folder / "good.onnx")
    planted_onnx.one_ulp_off(model)
    onnx.save(model, folder / "faulty.onnx")
    np.savez(folder / "inputs.npz", input=np.random.default_rng(5).random((3, 3, 16, 16), np.float32))
    return folder


def run_without_torch(folder: Path, *calls: list[str]) -> list[dict[str, Any]]:
    """Return what each call of the command line came to, in one process without torch."""
    script, given = SCRIPTS / "check_without_torch.py", "".join(json.dumps(["check", *call]) + "\n" for call in calls)
    command = [sys.executable, str(script)]
    run = subprocess.run(
        command, input=given, capture_output=True, text=True, check=False, cwd=folder, env=environment()
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_a_process_without_torch_tells_good_files_from_faulty_ones(files: Path) -> None:
    """Both formats, steps, real inputs, a raw file: exit code 0; planted faults: 1; and torch is never loaded."""
    inputs = ["--raw", "raw.onnx", "--inputs", "inputs.npz", "--threads", "1"]
    reports = ["--junit", "report.xml", "--markdown", "report.md"]
    good, ir, faulty = run_without_torch(
        files,
        ["good.onnx", *inputs, "-v", *reports],
        ["good.xml", "--inputs", "inputs.npz", "--json", "--threads", "1"],
        ["faulty.onnx", "--threads", "1"],
    )
    assert [each["code"] for each in (good, ir, faulty)] == [0, 0, 1], good["stdout"] + good["stderr"]
    assert all(each["torch"] == ["torch"] for each in (good, ir, faulty)), "the entry that makes its import fail"
    named = f"numpy {np.__version__}"
    assert good["stdout"].startswith("PASSED: good.onnx decides as PyTorch does, by its twin in NumPy: the tail on ")
    assert f"reference: {named}" in good["stdout"]
    assert json.loads(ir["stdout"])["environment"]["reference"] == named
    assert {"transform/pred_score/openvino", "whole/transform/anomaly_map/openvino", "decision/pred_mask/openvino"} <= {
        check["name"] for check in json.loads(ir["stdout"])["checks"]
    }
    assert f'<property name="reference" value="{named}" />' in (files / "report.xml").read_text()
    assert f"- reference: {named}\n" in (files / "report.md").read_text()
    assert faulty["stdout"].startswith("FAILED: faulty.onnx ")


def test_what_needs_torch_says_so(files: Path) -> None:
    """A class of PyTorch before the threshold, a PyTorch model, or torch asked for: exit code 2, and how to get it."""
    calls = (["own.onnx", "--step", "own_tails:Halved"], ["good.onnx", "--reference", "torch"])
    torch = ["good.onnx", "--inputs", "inputs.npz", "--torch", "torch_hosts:Detector"]
    unnamed, *refused = run_without_torch(files, ["own.onnx", "--threads", "1"], *calls, torch)
    assert unnamed["code"] == 0
    assert "Not checked: the class 'own_tails:Halved' before the threshold" in unnamed["stdout"]
    needed = ("the step 'own_tails:Halved' is a class of PyTorch", "--reference torch needs", "PyTorch module needs")
    for each, text in zip(refused, needed, strict=True):
        assert each["code"] == 2
        assert text in each["stderr"]
        assert "pip install torch" in each["stderr"]


@pytest.mark.parametrize(("name", "passed"), [("good.onnx", True), ("faulty.onnx", False)])
def test_both_references_find_the_same(name: str, passed: bool, files: Path) -> None:
    """Where torch is there, it is the default; either way every check has the same message and numbers."""
    options: dict[str, Any] = {"inputs": files / "inputs.npz", "threads": 1, "count": 200, "runtimes": ["onnxruntime"]}
    first, by_torch, by_numpy = (
        check_parity(files / name, reference=asked, **options).to_json() for asked in (None, "torch", "numpy")
    )
    assert first["passed"] is passed
    assert first == by_torch
    assert first["environment"]["reference"].startswith("torch ")
    assert first["checks"] == by_numpy["checks"]
    assert by_numpy["environment"] == {**first["environment"], "reference": f"numpy {np.__version__}"}


def test_a_class_has_no_form_in_numpy(files: Path, invoke: Invoke) -> None:
    """Asked for NumPy beside a class of PyTorch: refused, with what to do; with torch it is checked."""
    own = ("check", files / "own.onnx", "--step", "own_tails:Halved", "--threads", 1, "--runtime", "onnxruntime")
    refused = invoke(*own, "--reference", "numpy")
    assert refused.exit_code == 2
    assert "the step 'own_tails:Halved' is a class of PyTorch, and has no form in NumPy" in refused.stderr
    assert "leave --reference out" in refused.stderr
    assert invoke(*own).exit_code == 0
