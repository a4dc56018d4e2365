"""`--runtime NAME[:DEVICE]`: where a file is checked or calibrated, what is not there, and runtimes of others."""

import json
import sys
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import planted_onnx
import pytest
from conftest import Invoke
from shipped_tails import labelled_images, stats_behind

from postproc_export.attach import attach_postprocessing
from postproc_export.check import check_parity
from postproc_export.runtimes import Target, open_runner

EVERY = (
    *("onnxruntime:CPUExecutionProvider,intra_op_num_threads=1", "onnx.reference"),
    *("openvino:HETERO:CPU", "openvino:AUTO", "openvino:CPU,INFERENCE_NUM_THREADS=1"),
)
OTHER = """
from postproc_export.runtimes.onnx_reference import OnnxReferenceRunner


class OtherRunner(OnnxReferenceRunner):
    pass
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a good file in both formats, one with a fault, and inputs."""
    folder = tmp_path_factory.mktemp("runtimes")
    raw = hosts.write(hosts.score_and_map(), folder / "raw.onnx")
    attach_postprocessing(raw, stats_behind(()), output=folder / "good.onnx")
    ir = hosts.to_ir(hosts.score_and_map(), folder / "raw.xml")
    attach_postprocessing(ir, stats_behind(()), output=folder / "good.xml")
    model = onnx.load(folder / "good.onnx")
    planted_onnx.greater(model)
    onnx.save(model, folder / "faulty.onnx")
    np.savez(folder / "inputs.npz", input=np.random.default_rng(5).random((2, 3, 8, 8), np.float32))
    return folder


def ways_of(report: Any, *, passed: bool) -> set[str]:
    """Return the ways in which a judged check of the tail passed, or failed."""
    checks = (check for check in report.checks if check.judged and check.subject == "tail/pred_label")
    return {check.way for check in checks if check.passed is passed}


def test_a_file_is_judged_wherever_it_is_asked_for(files: Path) -> None:
    """The tail, and the whole file beside its original, in each runtime asked for and in no other."""
    options: dict[str, Any] = {"inputs": files / "inputs.npz", "raw": files / "raw.onnx", "threads": 1, "count": 200}
    report = check_parity(files / "good.onnx", runtimes=EVERY, **options)
    assert report, report.describe()
    assert ways_of(report, passed=True) == set(EVERY)
    assert {check.way for check in report.checks if check.subject == "whole/raw/pred_mask"} == set(EVERY)
    ran = {check.runtime.rpartition(" ")[0] for check in report.checks if check.runtime is not None}
    assert ran == {"onnxruntime-cpu", "onnx.reference", "openvino-HETERO:CPU", "openvino-AUTO", "openvino-cpu"}
    assert "other devices than those asked for" in report.not_checked


def test_a_fault_is_found_wherever_it_is_asked_for(files: Path) -> None:
    """`>` in place of `>=` is seen by each of them."""
    report = check_parity(files / "faulty.onnx", runtimes=EVERY, threads=1, count=200)
    assert not report
    assert ways_of(report, passed=False) == set(EVERY)


def test_an_ir_runs_on_devices_of_openvino(files: Path, invoke: Invoke) -> None:
    """By the command, with the name that was given in every check."""
    ran = invoke("check", files / "good.xml", "--runtime", "openvino:HETERO:CPU", "--threads", 1, "--json")
    assert ran.exit_code == 0
    assert json.loads(ran.stdout)["passed"] is True
    assert "tail/pred_mask/openvino:HETERO:CPU" in ran.stdout
    assert "openvino-default" not in ran.stdout


@pytest.mark.parametrize(
    ("name", "asked", "said"),
    [
        ("good.onnx", "tensorrt", "unknown runtime 'tensorrt'"),
        ("good.onnx", "openvinoo", "fix:     --runtime openvino\n"),
        ("good.onnx", "onnxruntime:CUDAExecutionProvider", "pip install onnxruntime-gpu in place of onnxruntime"),
        ("good.onnx", "onnxruntime:NoSuchProvider", "ONNX Runtime has no NoSuchProvider here"),
        ("good.onnx", "onnxruntime,threads=2", "ONNX Runtime does not take threads=2"),
        ("good.onnx", "onnxruntime,intra_op_num_threads=two", "does not take intra_op_num_threads=two"),
        ("good.onnx", "openvino:NPU", "OpenVINO finds no device NPU"),
        ("good.onnx", "openvino:HETERO:GPU,CPU", "OpenVINO finds no device GPU"),
        ("good.onnx", "openvino:CPU,NO_SUCH_THING=1", "cannot be used here"),
        ("good.onnx", "onnx.reference:CPU", "onnx.reference has neither devices nor options"),
        ("good.onnx", " ", "unknown runtime ' '"),
        ("good.xml", "onnx.reference", "onnx.reference does not read"),
        ("good.xml", "onnxruntime", "onnxruntime does not read"),
    ],
)
def test_what_is_not_there_is_exit_code_2(name: str, asked: str, said: str, files: Path, invoke: Invoke) -> None:
    """With what there is, or what would bring it."""
    ran = invoke("check", files / name, "--runtime", asked)
    assert ran.exit_code == 2
    assert said in ran.stderr


def test_a_runtime_that_is_not_installed_is_named(files: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for by its name it is no miss that is passed over."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    ran = invoke("check", files / "good.onnx", "--runtime", "openvino:CPU")
    assert ran.exit_code == 2
    assert "the runtime openvino is not installed" in ran.stderr
    assert "pip install openvino" in ran.stderr


def test_another_package_brings_a_runtime(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point of the group is found by its name, and judged like the others."""
    (tmp_path / "other_runtime.py").write_text(OTHER)
    information = tmp_path / "other_runtime-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: other-runtime\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[postproc_export.runtimes]\nother = other_runtime:OtherRunner\n")
    monkeypatch.syspath_prepend(tmp_path)
    report = check_parity(files / "good.onnx", runtimes=["other"], threads=1, count=200)
    assert report, report.describe()
    assert ways_of(report, passed=True) == {"other"}


@pytest.mark.parametrize("asked", EVERY)
def test_every_runtime_gives_the_same_raw_values(asked: str, files: Path) -> None:
    """On a host whose raw values are exact; NaN stays one."""
    images = np.random.default_rng(2).integers(-512, 512, (2, 3, 8, 8)).astype(np.float32) / np.float32(256)
    expected = open_runner(files / "raw.onnx").run({"input": images})
    found = open_runner(files / "raw.onnx", runtime=asked).run({"input": images})
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_calibrate_takes_the_same_names(files: Path, tmp_path: Path, invoke: Invoke) -> None:
    """The statistics name where the model ran, and have the same numbers."""
    images, numbers = labelled_images(tmp_path / "images"), {}
    for asked in ("onnxruntime", "onnx.reference", "openvino:HETERO:CPU"):
        target = tmp_path / f"{asked.replace(':', '-')}.json"
        arguments = ("--images", images, "--image-only", "--image-size", 8, "--runtime", asked, "-o", target)
        assert invoke("calibrate", files / "raw.onnx", *arguments).exit_code == 0
        numbers[asked] = json.loads(target.read_text())
    names = [each["runtime"]["name"] for each in numbers.values()]
    assert names == ["onnxruntime-cpu", "onnx.reference", "openvino-HETERO:CPU"]
    assert len({each["image"]["threshold"] for each in numbers.values()}) == 1


@pytest.mark.parametrize("text", [*EVERY, "openvino:HETERO:CPU,INFERENCE_NUM_THREADS=1"])
def test_a_target_is_read_as_it_is_written(text: str) -> None:
    """Name, device and options, back and forth."""
    assert Target.parse(text).text == text
