"""docs/runtime_sensitivity.md: commands and Python programs run as written, C++ compiled where headers are at hand."""

import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import hosts
import numpy as np
import openvino
import pytest

from postproc_export import CalibrationStats, LevelStats, decision_boundary
from postproc_export.cli import main
from postproc_export.runtimes.openvino import openvino_core

PAGE = (Path(__file__).parents[2] / "docs" / "runtime_sensitivity.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(sh|python|cpp)\n(.*?)```", PAGE, flags=re.DOTALL)
PROGRAMS = {text.splitlines()[0].removeprefix("// "): text for language, text in BLOCKS if language == "cpp"}
IMAGE = LevelStats(threshold=0.3, min=0.0, max=0.75)
STATS = CalibrationStats(image=IMAGE, pixel=LevelStats(threshold=0.25, min=-0.25, max=0.625))
IMAGES = (
    np.random.default_rng(3).integers(0, 256, (9, 3, 12, 16)).astype(np.float32)
    / 256
    * np.linspace(0.1, 1.0, 9, dtype=np.float32).reshape(-1, 1, 1, 1)
)
GREY: Final = 0.5 * sum(hosts.CHANNEL_WEIGHTS) + hosts.BIAS  # the score of the image of the C++ programs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a model in both formats, statistics, images; and one `openvino.Core` as in the package."""
    hosts.write(hosts.score_and_map(), tmp_path / "model.onnx")
    hosts.to_ir(hosts.score_and_map(), tmp_path / "model.xml")
    STATS.save(tmp_path / "stats.json")
    np.save(tmp_path / "images.npy", IMAGES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(openvino, "Core", lambda: openvino_core(purpose="the tests"))
    for language, text in BLOCKS:
        for line in text.strip().splitlines() if language == "sh" else ():
            assert main(line.split()[1:]) == 0, line
    return tmp_path


def labels(sensitivity: float) -> np.ndarray[Any, Any]:
    """Return the labels of the images by the definition, [N, 1]; none of them lies near the boundary."""
    boundary = decision_boundary(IMAGE, sensitivity=sensitivity)
    scores = hosts.expected(IMAGES)["pred_score"]
    assert np.abs(scores - boundary).min() > 1e-5
    found: np.ndarray[Any, Any] = scores >= boundary
    return found


def test_every_python_program_runs_as_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In order; each gives the labels of the definition at the sensitivity that it sets."""
    names: dict[str, Any] = {}
    seen: list[dict[str, Any]] = []
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text, "docs/runtime_sensitivity.md", "exec"), names)
            seen.append(dict(names))
    assert labels(0.8).sum() > labels(0.5).sum()
    onnx, bounded, variables, queue, parameters = seen
    for block in (onnx, variables):
        np.testing.assert_array_equal(block["labels"], labels(0.5))
        np.testing.assert_array_equal(block["careful_labels"], labels(0.8))
    np.testing.assert_array_equal(bounded["exact_labels"], labels(0.8))
    assert sorted(queue["found"]) == list(range(len(IMAGES)))
    np.testing.assert_array_equal(np.concatenate([queue["found"][i] for i in range(len(IMAGES))]), labels(0.8))
    np.testing.assert_array_equal(parameters["parameter_labels"], labels(0.8))
    assert f"anomalous: {labels(0.5).sum()} by default, {labels(0.8).sum()} with care" in capsys.readouterr().out


def test_what_the_page_calls_surprising_is_so(folder: Path) -> None:
    """A conversion has no input, ONNX Runtime does not list it, a state reads 0 first, `compiled(...)` has its own."""
    import onnxruntime

    core = openvino_core(purpose="the tests")
    read = core.read_model(folder / "adjustable.onnx")
    assert ([port.any_name for port in read.inputs], read.get_variables()) == (["input"], [])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession("adjustable.onnx", options, providers=["CPUExecutionProvider"])
    assert [item.name for item in session.get_inputs()] == ["input"]
    listed = [item.name for item in session.get_overridable_initializers()]
    assert listed == ["image_sensitivity", "pixel_sensitivity"]
    compiled = core.compile_model(folder / "adjustable.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    assert [state.state.data.reshape(-1).tolist() for state in request.query_state()] == [[0.0], [0.0]]
    np.testing.assert_array_equal(request.infer({"input": IMAGES})["pred_label"], labels(0.5))
    assert [state.state.data.reshape(-1).tolist() for state in request.query_state()] == [[0.5], [0.5]]
    for state in request.query_state():
        state.state = openvino.Tensor(np.array([0.8], np.float32))
    np.testing.assert_array_equal(compiled({"input": IMAGES})["pred_label"], labels(0.5))
    np.testing.assert_array_equal(request.infer({"input": IMAGES})["pred_label"], labels(0.8))


def built(name: str, folder: Path, include: Path, library: Path) -> list[str]:
    """Compile a program of the page against a library, run it in a folder and return what it prints."""
    source, program = folder / f"{name}.cpp", folder / name
    source.write_text(PROGRAMS[name], encoding="utf-8")
    command = ["g++", "-std=c++17", f"-I{include}", str(source), str(library), f"-Wl,-rpath,{library.parent}"]
    compiled = subprocess.run([*command, "-o", str(program)], capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stderr
    run = subprocess.run([str(program)], cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.split("\n")[:-1]


def verdict(sensitivity: float) -> int:
    """Return the label of the grey image."""
    return int(decision_boundary(IMAGE, sensitivity=sensitivity) <= GREY)


def package_folder(name: str) -> Path:
    """Return where a package is installed."""
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_the_program_for_openvino_compiles_and_runs(folder: Path) -> None:
    """Against the headers and libraries of the openvino package, on the model that the page attaches."""
    package = package_folder("openvino")
    (library,) = (package / "libs").glob("libopenvino.so.*")
    lines = built("openvino", folder, package / "include", library)
    assert verdict(0.1) != verdict(0.9)
    assert lines == [f"0.1 {verdict(0.1)}", f"0.9 {verdict(0.9)}", f"default {verdict(0.5)}"]


@pytest.mark.skipif(
    shutil.which("g++") is None or not os.environ.get("ONNXRUNTIME_INCLUDE"),
    reason="the onnxruntime package has no headers, and ONNXRUNTIME_INCLUDE names none",
)
def test_the_program_for_onnx_runtime_compiles_and_runs(folder: Path) -> None:
    """Against the library of the onnxruntime package, with headers from elsewhere."""
    (library,) = (package_folder("onnxruntime") / "capi").glob("libonnxruntime.so.*")
    lines = built("onnxruntime", folder, Path(os.environ["ONNXRUNTIME_INCLUDE"]), library)
    assert lines == [f"0.1 {verdict(0.1)}", f"0.9 {verdict(0.9)}"]
