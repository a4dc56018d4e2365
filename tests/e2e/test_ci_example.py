"""The workflow and the test file of docs/ci.md, run as they stand on a small model, sound and damaged."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import hosts
import numpy as np
import onnx
import pytest
import yaml
from doc_pages import missing
from image_files import save

from postproc_export.attach import attach_postprocessing
from postproc_export.stats import CalibrationStats, LevelStats

DOCS = Path(__file__).parents[2] / "docs"
WORKFLOW = DOCS / "examples" / "check-model.yml"
STATS = CalibrationStats(
    image=LevelStats(threshold=0.4, min=-0.25, max=0.75),
    pixel=LevelStats(threshold=0.3, min=-0.25, max=0.625),
    details={"preprocessing": {"size": [8, 8], "scale": 255.0, "channel_order": "rgb", "layout": "nchw"}},
)

SHOWN = re.findall(r"```text\n(.*?)```", (DOCS / "ci.md").read_text(encoding="utf-8"), flags=re.DOTALL)[1:]
"""What a green and a red job print, by the page."""

Here = Callable[[str, Path], Any]

pytestmark = pytest.mark.e2e


def steps() -> list[dict[str, Any]]:
    """Return the steps of the workflow."""
    (job,) = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"].values()
    return list(job["steps"])


def checks() -> dict[str, str]:
    """Return the commands that judge the model, by the name of their step."""
    return {step["name"]: step["run"] for step in steps() if "run" in step and step["name"] != "install"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository that holds a model in both formats, images, and the test file."""
    root = tmp_path_factory.mktemp("repository")
    (root / "model").mkdir()
    hosts.write(hosts.score_and_map(), root / "model" / "model.onnx")
    hosts.to_ir(hosts.score_and_map(), root / "model" / "model.xml")
    for suffix in (".onnx", ".xml"):
        raw = root / "model" / f"model{suffix}"
        attach_postprocessing(raw, STATS, output=raw.with_suffix(f".post{suffix}"))
    for index, pixels in enumerate(np.random.default_rng(5).integers(0, 256, (3, 8, 8, 3), np.uint8)):
        save(root / "model" / "images" / f"{index}.png", pixels)
    shutil.copy(DOCS / "examples" / "test_model.py", root)
    return root


def damaged(repository: Path, folder: Path) -> Path:
    """Return a copy whose ONNX mask decides 0.1 too high, with a weight that is another."""
    root = folder / "damaged"
    shutil.copytree(repository, root)
    model = onnx.load(root / "model" / "model.post.onnx")
    tensor = next(item for item in model.graph.initializer if item.name.endswith("pred_mask/boundary"))
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + np.float32(0.1), tensor.name))
    model.graph.initializer[0].float_data[0] += 0.5
    onnx.save(model, root / "model" / "model.post.onnx")
    return root


def run(command: str, root: Path) -> subprocess.CompletedProcess[str]:
    """Run a step as the runner does: in bash, which stops at the first failure, in the repository's root."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "GITHUB_STEP_SUMMARY": str(root / "summary.md"), "PYTEST_ADDOPTS": ""}
    shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", command]
    return subprocess.run(shell, cwd=root, env=environment, capture_output=True, text=True, check=False)


def test_the_workflow_is_what_a_runner_takes() -> None:
    """Valid YAML with triggers and jobs; every step either uses an action of a fixed version or runs a command."""
    document = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    triggers = document[True]  # YAML 1.1 reads the key `on` as a boolean, which the runner knows
    assert set(triggers) == {"pull_request", "push"}
    assert document["permissions"] == {"contents": "read"}
    for step in steps():
        assert ("uses" in step) != ("run" in step)
        assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "a/b@v1"))
    assert list(checks()) == ["check the ONNX model", "check the OpenVINO model", "run the tests"]
    install = next(step["run"] for step in steps() if step.get("name") == "install")
    extras = re.search(r"tools/postproc_export-\*\.whl\)\[([\w,]+)\]", install)
    assert extras is not None
    assert set(extras.group(1).split(",")) == {"onnxruntime", "openvino", "images"}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, invoke: Any) -> Here:
    """Run a command of ours as bash would, but in this process."""

    def run_here(command: str, root: Path) -> Any:
        monkeypatch.chdir(root)
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(root / "summary.md"))
        program, *arguments = shlex.split(os.path.expandvars(command))
        assert program == "postproc-export"
        return invoke(*arguments)

    return run_here


def test_every_command_passes_on_a_sound_model(repository: Path, here: Here) -> None:
    """Exit code 0, the reports are where the workflow looks for them, and the job's page has both verdicts."""
    green, _ = SHOWN
    for name, command in checks().items():
        if name == "run the tests":
            done = run(command, repository)
            assert done.returncode == 0, f"{name}\n{done.stdout}\n{done.stderr}"
        else:
            done = here(command, repository)
            assert done.exit_code == 0, done.stderr
            assert name != "check the ONNX model" or [*missing(green, done.stdout)] == []
    reports = {path.name: ElementTree.parse(path).getroot() for path in (repository / "report").glob("*.xml")}
    assert set(reports) == {"onnx.xml", "openvino.xml", "tests.xml"}
    assert all(root.get("failures", "0") == "0" for root in reports.values())
    summary = (repository / "summary.md").read_text(encoding="utf-8")
    assert summary.count("### ✅") == 2
    for fact in ("- seed: 20240", "- threads: 2", "- processor_features:", "- packages: {'numpy'"):
        assert fact in summary
    assert not (repository / "report" / "failures").exists()


def test_a_damaged_model_fails_the_job_and_can_be_replayed(repository: Path, tmp_path: Path, here: Here) -> None:
    """Exit code 1; what is wrong is named on the job's page; a command of the log misses the same check again."""
    root = damaged(repository, tmp_path)
    shutil.rmtree(root / "report", ignore_errors=True)
    (root / "summary.md").unlink(missing_ok=True)
    done = here(checks()["check the ONNX model"], root)
    assert done.exit_code == 1, done.stderr
    assert [*missing(SHOWN[1], done.stdout)] == []
    summary = (root / "summary.md").read_text(encoding="utf-8")
    assert summary.startswith("### ❌")
    assert "- **model**: 1 changed: graph: initializer 'weight': values differ" in summary
    assert "- **tail**: pred_mask: boundary is" in summary
    failures = ElementTree.parse(root / "report" / "onnx.xml").getroot().findall("testcase/failure")
    assert failures[0].get("message") == done.stdout.splitlines()[0]
    assert len(failures) > summary.count("❌")
    replay = next(line for line in done.stdout.splitlines() if line.startswith("replay: ") and "whole-raw" in line)
    assert "--threads 2" in replay
    again = here(replay.removeprefix("replay: "), root)
    assert again.exit_code == 1, again.stderr
    assert "  tail     pred_mask: boundary is" in again.stdout


def test_a_file_that_is_missing_is_no_pass(tmp_path: Path, here: Here) -> None:
    """Exit code 2 fails the job, too."""
    done = here(checks()["check the OpenVINO model"], tmp_path)
    assert done.exit_code == 2
    assert "cannot read the raw model model/model.xml" in done.stderr


@pytest.mark.parametrize("page", ["ci.md", "exhaustive.md", "quantisation.md"])
def test_the_pages_lead_somewhere(page: str) -> None:
    """No link of the page leads nowhere."""
    links = re.findall(r"\]\(([^)#:]+)\)", (DOCS / page).read_text(encoding="utf-8"))
    assert [link for link in links if not (DOCS / link).exists()] == []


def test_the_table_of_all_values_is_that_of_the_results() -> None:
    """docs/exhaustive.md shows the rows of benchmarks/results/exhaustive.json: eight and more, none with a flip."""
    results = json.loads((DOCS.parent / "benchmarks" / "results" / "exhaustive.json").read_text(encoding="utf-8"))
    page = (DOCS / "exhaustive.md").read_text(encoding="utf-8")
    assert len(results["rows"]) >= 8
    assert {row["rule"] for row in results["rows"]} == {"ge", "gt"}
    for row in results["rows"]:
        assert f"| {row['name']} | {row['threshold']} |" in page
        assert row["passed"]
        assert all(item["flipped"] == 0 for item in row["labels"].values())
        assert all(item["count"] >= 2**32 - 2**24 for item in row["labels"].values())
