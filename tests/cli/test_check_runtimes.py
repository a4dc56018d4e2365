"""`--runtime NAME[:DEVICE]`: where a file is checked or calibrated, what is not there, and runtimes of others."""

import json
import re
import sys
from collections.abc import Callable, Iterator
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
import sys

import numpy as np

from postproc_export.runtimes import RuntimeRunner
from postproc_export.runtimes.onnx_reference import OnnxReferenceRunner

buffers = {}


class OtherRunner(OnnxReferenceRunner):
    def run(self, feeds):
        return self.changed(super().run(feeds))

    def changed(self, outputs):
        return outputs


class Raises(OtherRunner):
    def changed(self, outputs):
        raise RuntimeError("the device is lost")


class Ends(OtherRunner):
    def changed(self, outputs):
        sys.exit(0)


class Forgets(OtherRunner):
    def changed(self, outputs):
        return dict(list(outputs.items())[1:])


class Flattens(OtherRunner):
    def changed(self, outputs):
        return {name: values.ravel() for name, values in outputs.items()}


class Widens(OtherRunner):
    def changed(self, outputs):
        return {name: values.astype(float) for name, values in outputs.items()}


class Counts(OtherRunner):
    def changed(self, outputs):
        return {name: values if values.dtype != bool else values.astype(int) for name, values in outputs.items()}


class Narrows(OtherRunner):
    def changed(self, outputs):
        return {name: values.astype(np.float16) for name, values in outputs.items()}


class Reuses(OtherRunner):
    def changed(self, outputs):
        for name, values in outputs.items():
            buffers.setdefault((name, values.shape), values)[...] = values
        return {name: buffers[name, values.shape] for name, values in outputs.items()}


class LoadsNot(OtherRunner):
    @classmethod
    def load(cls, model, **options):
        raise KeyError("driver")


class KnowsTails(OtherRunner):
    def run(self, feeds):
        if "input" in feeds:
            raise ValueError("Resize with an open axis")
        return super().run(feeds)


class Within(OtherRunner):
    package = "nowhere.at.all"


class Unfinished(RuntimeRunner):
    package, formats = "onnx", ("onnx",)
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
        ("good.onnx", "OpenVINO", "fix:     --runtime openvino\n"),
        ("good.onnx", "openvino:", "--runtime openvino: ends without a device"),
        ("good.onnx", "openvino:HETERO:", "ends without a device"),
        ("good.onnx", "openvino:CPU,", "ends without a device"),
        ("good.onnx", "openvino:hetero:cpu", "fix:     --runtime openvino:HETERO:CPU\n"),
        ("good.onnx", "openvino,NUM_STREAMS=1,NUM_STREAMS=2", "gives an option twice\n  found:   'NUM_STREAMS'"),
        ("good.onnx", "openvino,=1", "has an option without a name"),
        ("good.onnx", "onnxruntime:cpu", "fix:     --runtime onnxruntime:CPUExecutionProvider\n"),
        ("good.onnx", "onnxruntime,intra_op_num_threads=--3", "does not take intra_op_num_threads=--3"),
        ("good.onnx", "onnxruntime,intra_op_num_threads=99999999999", "does not take intra_op_num_threads=99999999999"),
        ("good.onnx", "onnxruntime,use_deterministic_compute=maybe", "does not take use_deterministic_compute=maybe"),
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


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Install a package that brings the runtime `other`, of a class of it or of what else is written so."""

    def install(what: str) -> None:
        (tmp_path / "other_runtime.py").write_text(OTHER)
        information = tmp_path / "other_runtime-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: other-runtime\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(f"[postproc_export.runtimes]\nother = {what}\n")
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    sys.modules.pop("other_runtime", None)


@pytest.mark.parametrize("name", ["OtherRunner", "Reuses"])
def test_another_package_brings_a_runtime(name: str, files: Path, other: Callable[[str], None]) -> None:
    """An entry point of the group is found by its name, and judged like the others; its arrays may be used again."""
    other(f"other_runtime:{name}")
    options: dict[str, Any] = {"inputs": files / "inputs.npz", "raw": files / "raw.onnx", "threads": 1, "count": 200}
    report = check_parity(files / "good.onnx", runtimes=["other"], **options)
    assert report, report.describe()
    assert ways_of(report, passed=True) == {"other"}


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("nowhere:Runner", "cannot be imported\n  found:   ModuleNotFoundError: No module named 'nowhere'"),
        ("other_runtime:Nothing", "cannot be imported\n  found:   AttributeError: "),
        ("other_runtime:np", "other_runtime:np is no runtime"),
        ("other_runtime:Unfinished", "other_runtime:Unfinished is no runtime"),
        ("other_runtime:Within", "the runtime other is not installed"),
    ],
)
def test_a_runtime_that_cannot_be_used_is_exit_code_2(
    what: str, said: str, files: Path, other: Callable[[str], None], invoke: Invoke
) -> None:
    """One message that names it, and the package that brings it."""
    other(what)
    ran = invoke("check", files / "good.onnx", "--runtime", "other")
    assert ran.exit_code == 2
    assert said in ran.stderr
    assert "fix:     " in ran.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Raises", "other failed to run the model on .* found: RuntimeError: the device is lost"),
        ("Ends", "other failed to run the model on .* found: SystemExit: 0"),
        ("Forgets", "ValueError: it gives no output 'pred_score'"),
        ("Flattens", "ValueError: it gives float32 \\[.*\\] for pred_score: float32"),
        ("Widens", "ValueError: it gives float64 \\[.*\\] for pred_score: float32"),
        ("Counts", "expected dtype bool, found int64"),
        ("LoadsNot", "other cannot load .* found: KeyError: 'driver'"),
    ],
)
def test_what_a_runtime_gets_wrong_fails(
    name: str, said: str, files: Path, other: Callable[[str], None], invoke: Invoke
) -> None:
    """It is no end of the check, and is put down to the runtime and not to the file."""
    other(f"other_runtime:{name}")
    ran = invoke("check", files / "good.onnx", "--runtime", "other", "--runtime", "onnxruntime", "--verbose")
    assert ran.exit_code == 1
    assert re.search(said, ran.stdout)
    assert "then other computes otherwise" in ran.stdout
    assert f"next: postproc-export check {files / 'good.onnx'}" in ran.stdout


@pytest.mark.parametrize("asked", [("other",), ("other", "onnxruntime"), ("onnxruntime", "other")])
def test_a_runtime_that_runs_a_model_at_no_size_fails(
    asked: tuple[str, ...], files: Path, other: Callable[[str], None]
) -> None:
    """What is fed is found in the runtime of the format then; others are judged on it, in whatever order they stand."""
    other("other_runtime:KnowsTails")
    report = check_parity(files / "good.onnx", runtimes=asked, threads=1, count=200)
    assert [(check.name, check.passed) for check in report.failed] == [("synthetic/run/other", False)]
    assert "Resize with an open axis" in report.describe()
    judged = {check.way for check in report.checks if check.subject == "synthetic/tapped/pred_mask"}
    assert judged == {*asked} - {"other"}


@pytest.mark.parametrize("asked", [("onnx.reference",), ("onnxruntime", "onnx.reference")])
@pytest.mark.parametrize("more", [(), ("--inputs", "inputs.npz"), ("--raw", "strange.onnx")])
def test_a_runtime_that_does_not_know_the_model_fails(
    more: tuple[str, ...], asked: tuple[str, ...], files: Path, tmp_path: Path, invoke: Invoke
) -> None:
    """Asked for by its name it is no miss that is passed over, though its original does not run there either."""
    raw = hosts.score_and_map()
    raw.graph.node[0].input[0] = "gelu"
    raw.graph.node.insert(0, onnx.helper.make_node("QuickGelu", ["input"], ["gelu"], domain="com.microsoft"))
    raw.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    attach_postprocessing(hosts.write(raw, tmp_path / "strange.onnx"), stats_behind(()), output=tmp_path / "file.onnx")
    np.savez(tmp_path / "inputs.npz", **np.load(files / "inputs.npz"))
    named = [str(tmp_path / word) if "." in word else word for word in more]
    runtimes = [word for name in asked for word in ("--runtime", name)]
    ran = invoke("check", tmp_path / "file.onnx", *named, *runtimes)
    if "--inputs" in more and asked == ("onnx.reference",):  # what is fed depends on its inputs
        assert ran.exit_code == 2
        assert "onnx.reference cannot load file.onnx" in ran.stderr
        return
    assert ran.exit_code == 1
    assert f"FAILED: {tmp_path / 'file.onnx'} does not run in onnx.reference" in ran.stdout
    assert "run in onnx.reference: it runs neither the file nor its original" in ran.stdout
    assert "leave onnx.reference out" in ran.stdout


@pytest.mark.parametrize("asked", [("other",), ("other", "onnxruntime"), ("onnxruntime", "other")])
@pytest.mark.parametrize("more", [{}, {"raw": "raw.onnx"}])
def test_a_runtime_that_loads_the_model_and_does_not_run_it_fails(
    more: dict[str, str], asked: tuple[str, ...], files: Path, other: Callable[[str], None]
) -> None:
    """Neither is this put down to the file, nor is anything left out in the runtimes that are named behind it."""
    other("other_runtime:KnowsTails")
    given = {name: files / value for name, value in more.items()}
    report = check_parity(
        files / "good.onnx", runtimes=asked, inputs=files / "inputs.npz", threads=1, count=200, **given
    )
    assert {check.way for check in report.failed} == {"other"}
    (cause,) = report.causes
    assert cause.title == "does not run in other"
    assert cause.fix.startswith("leave other out, or export for it")
    assert "neither the file nor its original" in cause.what
    ran = {(check.kind, check.way) for check in report.checks if check.name.startswith("synthetic/")}
    assert {("tapped", name) for name in asked if name != "other"} <= ran


def test_inputs_that_do_not_fit_are_not_put_down_to_the_file(files: Path, tmp_path: Path) -> None:
    """Neither it nor its original runs on them."""
    np.savez(tmp_path / "inputs.npz", input=np.zeros((2, 5, 8, 8), np.float32))
    report = check_parity(files / "good.onnx", raw=files / "raw.onnx", inputs=tmp_path / "inputs.npz", threads=1)
    (cause,) = report.causes
    assert cause.title == "does not run on what it was fed"
    assert "it runs neither the file nor its original" in cause.what
    assert cause.fix.startswith("feed what the model takes")


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


def test_scores_that_a_runtime_narrows_are_not_calibrated_on(
    files: Path, other: Callable[[str], None], tmp_path: Path, invoke: Invoke
) -> None:
    """Its raw values are declared float32, and thresholds found on others would not be those of the model."""
    other("other_runtime:Narrows")
    images, target = labelled_images(tmp_path / "images"), tmp_path / "stats.json"
    arguments = ("--images", images, "--image-only", "--image-size", 8, "--runtime", "other", "-o", target)
    ran = invoke("calibrate", files / "raw.onnx", *arguments)
    assert ran.exit_code == 2
    assert "it gives float16" in ran.stderr
    assert not target.exists()


@pytest.mark.parametrize("text", [*EVERY, "openvino:HETERO:CPU,INFERENCE_NUM_THREADS=1"])
def test_a_target_is_read_as_it_is_written(text: str) -> None:
    """Name, device and options, back and forth."""
    assert Target.parse(text).text == text
