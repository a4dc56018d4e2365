"""tract and the runtimes for JavaScript: what is installed judges as the others do, and what is not is told of."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import planted_onnx
import pytest
from checks import there
from conftest import Invoke
from shipped_tails import labelled_images, stats_behind

from postproc_export.attach import attach_postprocessing
from postproc_export.check import check_parity
from postproc_export.errors import MissingDependencyError, UnsupportedModelError, UsageError
from postproc_export.runtimes import Runner, Target, open_runner

JAVASCRIPT = ("onnxruntime-node", "onnxruntime-web")
FURTHER = (*JAVASCRIPT, "onnxruntime-node:cpu,graphOptimizationLevel=disabled", "tract")
NAN_SCORES = {"tract": 1.0}
"""What a NaN becomes where it does not stay one: tract clamps by minimum and maximum of Rust, which drop a NaN."""


FIXED = "fixed (float[N,4] x) => (float[M,2] y) <int64[2] shape = {2, 2}> { y = Reshape(x, shape) }"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a file that has post-processing, its original, one with a fault, and inputs."""
    folder = tmp_path_factory.mktemp("further")
    raw = hosts.write(hosts.score_and_map(), folder / "raw.onnx")
    attach_postprocessing(raw, stats_behind(()), output=folder / "good.onnx")
    model = onnx.load(folder / "good.onnx")
    planted_onnx.greater(model)
    onnx.save(model, folder / "faulty.onnx")
    np.savez(folder / "inputs.npz", input=np.random.default_rng(5).random((2, 3, 8, 8), np.float32))
    return folder


@pytest.mark.parametrize("asked", FURTHER)
def test_a_file_and_a_fault_are_judged(asked: str, files: Path) -> None:
    """The tail, the whole file and its original are compared as in any runtime; `>` in place of `>=` is seen."""
    options: dict[str, Any] = {"runtimes": [there(asked)], "threads": 1, "count": 200}
    report = check_parity(files / "good.onnx", inputs=files / "inputs.npz", raw=files / "raw.onnx", **options)
    assert report, report.describe()
    assert {"tail/pred_label", "whole/raw/pred_mask"} <= {check.subject for check in report.checks if check.judged}
    report = check_parity(files / "faulty.onnx", **options)
    assert [check.subject for check in report.checks if check.judged and check.subject == "tail/pred_label"]
    assert not report


@pytest.mark.parametrize("asked", FURTHER)
def test_values_and_types_are_those_of_onnxruntime(asked: str) -> None:
    """Every element type goes in and out, an empty batch is one, a NaN is anomalous, and results are the caller's."""
    runtime = there(asked)
    for text, dtype in {"float": np.float32, "float16": np.float16, "double": np.float64, "int64": np.int64}.items():
        runner = open_runner(hosts.identity(map=None, dtype=text).SerializeToString(), runtime=runtime)
        for fed in (np.array([[1], [2], [60000]], dtype)[::2], np.zeros((0, 1), dtype)):
            found = runner.run({"score": fed})["pred_score"]
            np.testing.assert_array_equal(found, fed, strict=True)
            found += 1
    scalar = open_runner(hosts.identity(score="", map=None).SerializeToString(), runtime=runtime)
    assert scalar.run({"score": np.float32(2.5).reshape(())})["pred_score"].shape == ()


@pytest.mark.parametrize("asked", FURTHER)
def test_a_nan_is_anomalous_and_its_score_no_lower_than_one(asked: str, tmp_path: Path) -> None:
    """In the score, in the map, and in the score of a map that holds it; axes without a name are no matter."""
    runtime, raw = there(asked), hosts.identity()
    for port in (*raw.graph.input, *raw.graph.output):
        for axis in port.type.tensor_type.shape.dim:
            axis.ClearField("dim_param")
    attach_postprocessing(hosts.write(raw, tmp_path / "raw.onnx"), stats_behind(()), output=tmp_path / "attached.onnx")
    maps = np.zeros((3, 1, 2, 2), np.float32)
    maps[1, 0, 1, 0] = np.nan
    found = _run(tmp_path / "attached.onnx", runtime, score=np.array([[np.nan], [0], [0]], np.float32), map=maps)
    np.testing.assert_array_equal(found["pred_label"], [[True], [True], [False]])
    np.testing.assert_array_equal(found["pred_mask"], np.isnan(maps))
    expected = NAN_SCORES.get(asked, np.nan)
    np.testing.assert_array_equal(found["pred_score"][:2], [[expected], [expected]])
    np.testing.assert_array_equal(found["anomaly_map"][np.isnan(maps)], [expected])


def _run(path: Path, runtime: str, **feeds: Any) -> Mapping[str, Any]:
    return open_runner(path, runtime=runtime).run(feeds)


@pytest.mark.parametrize("asked", FURTHER)
def test_weights_in_a_file_of_their_own_are_read(asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the model, which may be named from where one is."""
    runtime, images = there(asked), np.ones((1, 3, 4, 4), np.float32)
    (tmp_path / "there").mkdir()
    path = tmp_path / "there" / "model.onnx"
    onnx.save(hosts.score_and_map(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    if asked not in JAVASCRIPT:  # these are found from the working folder
        monkeypatch.chdir(tmp_path)
        path = path.relative_to(tmp_path)
    np.testing.assert_allclose(_run(path, runtime, input=images)["anomaly_map"], hosts.expected(images)["anomaly_map"])


@pytest.mark.parametrize("asked", FURTHER)
def test_a_file_may_be_gone_once_it_is_loaded(asked: str, tmp_path: Path) -> None:
    """As one that was written for the run alone; other shapes run all the same."""
    path = hosts.write(hosts.identity(map=None), tmp_path / "model.onnx")
    runner = open_runner(path, runtime=there(asked))
    path.unlink()
    assert [len(runner.run({"score": np.zeros((n, 1), np.float32)})["pred_score"]) for n in (1, 2)] == [1, 2]


@pytest.mark.parametrize("asked", FURTHER)
def test_what_does_not_load_or_run_is_told(asked: str, tmp_path: Path) -> None:
    """With the runtime's own reason; the next model runs."""
    runtime = there(asked)
    model = hosts.parse(
        """fixed (float[N,4] x) => (float[M,2] y) <int64[2] shape = {2, 2}> { y = Reshape(x, shape) }"""
    )
    runner = open_runner(hosts.write(model, tmp_path / "fixed.onnx"), runtime=runtime)
    with pytest.raises(UnsupportedModelError, match=r"failed to run fixed.onnx on x: float32 \[3, 4\](.|\n)*found: .+"):
        runner.run({"x": np.zeros((3, 4), np.float32)})
    assert runner.run({"x": np.zeros((1, 4), np.float32)})["y"].shape == (2, 2)
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(UnsupportedModelError, match=r"the model(.|\n)*NoSuchOperator"):
        open_runner(model.SerializeToString(), runtime=runtime).run({"x": np.zeros((1, 4), np.float32)})
    path = tmp_path / "broken.onnx"
    path.write_bytes(hosts.score_and_map().SerializeToString()[:150])
    with pytest.raises(ValueError, match=r"it is cut off after 150 bytes"):
        open_runner(path, runtime=runtime)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("onnxruntime-node:nowhere", "cannot be used here"),
        ("onnxruntime-web,threads=2", "onnxruntime-web does not take threads"),
        ("onnxruntime-node,executionMode=sideways", "cannot be used here"),
        ("tract:nowhere", "tract has no nowhere here"),
        ("tract:cuda", "tract has no cuda here"),
        ("tract,threads=2", "tract has no options"),
    ],
)
def test_devices_and_options_that_are_not_there_are_refused(asked: str, said: str) -> None:
    """Before anything is run."""
    there(asked.split(":")[0].split(",")[0])
    with pytest.raises(UsageError, match=said):
        Target.parse(asked)


def test_calibrate_takes_the_same_names(files: Path, tmp_path: Path, invoke: Invoke) -> None:
    """The statistics name where the model ran."""
    images = labelled_images(tmp_path / "images")
    for index, asked in enumerate(map(there, ("onnxruntime-node", "tract"))):
        target = tmp_path / f"{index}.json"
        arguments = ("--images", images, "--image-only", "--image-size", 8, "--runtime", asked, "-o", target)
        ran = invoke("calibrate", files / "raw.onnx", *arguments)
        assert ran.exit_code == 0, ran.stderr
        assert f'"name": "{asked}-cpu"' in target.read_text()


def test_tract_that_is_not_installed_is_named(files: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that brings it."""
    monkeypatch.setitem(sys.modules, "tract", None)
    ran = invoke("check", files / "good.onnx", "--runtime", "tract")
    assert ran.exit_code == 2
    assert "the runtime tract is not installed\n  fix:     pip install tract" in ran.stderr


@pytest.mark.parametrize("asked", JAVASCRIPT)
def test_a_machine_without_node_is_told_so(
    asked: str, files: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With what to install, and what then."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    ran = invoke("check", files / "good.onnx", "--runtime", asked)
    assert ran.exit_code == 2
    assert f"the runtime {asked} needs Node.js, which is not installed\n  fix:     install Node.js" in ran.stderr
    assert f"npm install --ignore-scripts {asked}" in ran.stderr


def with_package(folder: Path, source: str) -> None:
    """Install a package in a folder, as npm would, with this source."""
    if shutil.which("node") is None:
        pytest.skip("Node.js is not installed")
    package = folder / "node_modules" / "onnxruntime-web"
    package.mkdir(parents=True)
    (package / "index.js").write_text(source)


@pytest.mark.parametrize(
    ("source", "error", "said"),
    [
        (None, MissingDependencyError, r"not installed(.|\n)*node_modules(.|\n)*npm install --ignore-scripts"),
        ("throw new Error('no such processor')", UnsupportedModelError, r"cannot load(.|\n)*no such processor"),
        ("process.exit(3)", UnsupportedModelError, r"cannot load(.|\n)*Node.js has ended"),
    ],
)
def test_a_package_that_is_not_there_or_broken_is_told(
    source: str | None, error: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked for from the working folder, by a process that ends."""
    with_package(tmp_path, source or "")
    if source is None:
        shutil.rmtree(tmp_path / "node_modules")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NODE_PATH", raising=False)
    started, start = list[Any](), subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **given: started.append(start(*args, **given)) or started[0])
    with pytest.raises(error, match=said):
        Target.parse("onnxruntime-web")
    assert [process.returncode is not None for process in started] == [True]


STRANGE = """
const create = async () => ({ release() {}, run: async () => process.exit(3) });
module.exports = { env: { wasm: {}, versions: { web: "0" } }, InferenceSession: { create }, Tensor: class {} };
"""


def test_node_that_ends_is_told_and_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash is a run that failed; the next model has a process of its own."""
    with_package(tmp_path, STRANGE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NODE_PATH", raising=False)
    for _ in range(2):
        runner: Runner = open_runner(hosts.identity(map=None).SerializeToString(), runtime="onnxruntime-web")
        with pytest.raises(UnsupportedModelError, match=r"failed to run(.|\n)*Node.js has ended"):
            runner.run({"score": np.zeros((1, 1), np.float32)})


PRINTS = """
const run = async () => process.stdout.write(Buffer.from([2, 0, 0, 0, 120, 120]));
const create = async () => ({ release() {}, run });
module.exports = { env: { wasm: {}, versions: { web: "0" } }, InferenceSession: { create }, Tensor: class {} };
"""


@pytest.mark.parametrize("source", [STRANGE, PRINTS], ids=["ends", "prints"])
def test_every_model_of_a_node_that_ended_is_told(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that it kept besides cannot run any more; one that is loaded then does not suffer from it."""
    with_package(tmp_path, source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NODE_PATH", raising=False)
    model, fed = hosts.identity(map=None).SerializeToString(), {"score": np.zeros((1, 1), np.float32)}
    runners = [open_runner(model, runtime="onnxruntime-web") for _ in range(2)]
    for runner in (*runners, runners[0]):
        with pytest.raises(UnsupportedModelError, match=r"failed to run(.|\n)*Node.js has ended"):
            runner.run(fed)
    assert open_runner(model, runtime="onnxruntime-web").name == "onnxruntime-web-cpu"
