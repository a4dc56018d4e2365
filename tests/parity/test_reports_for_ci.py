"""What a CI job takes from a check: JUnit XML, a Markdown summary, saved failures with their commands, an assertion."""

import json
import shlex
from pathlib import Path
from xml.etree import ElementTree

import hosts
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from postproc_export.attach import attach_postprocessing
from postproc_export.check import assert_parity
from postproc_export.check.findings import Check, failed
from postproc_export.check.report import ParityReport, junit, markdown
from postproc_export.cli import main
from postproc_export.stats import CalibrationStats, LevelStats

STATS = CalibrationStats(
    image=LevelStats(threshold=0.2, min=-1.0, max=0.75), pixel=LevelStats(threshold=0.3, min=-0.25, max=0.625)
)
REPORT = ParityReport(
    subject="model.onnx",
    checks=(
        Check(name="tail/pred_mask/openvino", way="openvino", passed=True, message="9 labels equal"),
        Check(name="tail/pred_mask/default", way="default", passed=True, judged=False, message="a | b"),
        failed("outputs", "output 'pred_mask' is missing\x00", declared=["pred_score"]),
    ),
    not_checked=("other devices",),
    environment={"seed": 4},
)


@pytest.fixture
def wrong(tmp_path: Path) -> tuple[Path, Path]:
    """Return a raw file and an attached one whose mask boundary is 0.1 too high."""
    raw = hosts.write(hosts.score_and_map(), tmp_path / "raw.onnx")
    path = attach_postprocessing(raw, STATS, output=tmp_path / "a file.onnx").output
    model = onnx.load(path)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("pred_mask/boundary"))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.1), tensor.name))
    onnx.save(model, path)
    return raw, path


def test_junit_has_a_case_for_every_check() -> None:
    """The verdict comes first; misses are failures with their cause and mend; what decides nothing is skipped."""
    suite = ElementTree.fromstring(junit(REPORT))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("5", "2", "2")
    assert len(suite.findall("testcase")) == 5
    assert len(suite.findall("testcase/skipped")) == 2
    verdict, failure = suite.findall("testcase/failure")
    assert suite.findall("testcase")[0].find("failure") is verdict
    assert verdict.get("message") == REPORT.headline()
    assert str(verdict.text).splitlines()[0] == REPORT.headline()
    assert str(failure.get("message")).startswith("output 'pred_mask' is missing?; fix: attach to the original again")
    assert [(item.get("name"), item.get("value")) for item in suite.iter("property")] == [("seed", "4")]


def test_markdown_is_a_table_that_no_message_breaks() -> None:
    """The verdict first, then the cause with its mend and what to run next; pipes are escaped."""
    lines = markdown(REPORT).splitlines()
    assert lines[0] == f"### ❌ {REPORT.headline()}"
    assert lines[2].startswith("- **tail**: output 'pred_mask' is missing")
    assert lines[3].startswith("- **fix**: attach to the original again")
    assert lines[4] == f"- **next**: `{REPORT.next_step()}`"
    assert "| ✅ tail/pred_mask (openvino) | 9 labels equal |" in lines
    assert "| 👁 tail/pred_mask (default) | a \\| b |" in lines
    assert "- not checked: other devices" in lines


def test_assert_parity_raises_with_the_whole_report(wrong: tuple[Path, Path]) -> None:
    """In a test suite one line is enough, and its failure tells everything."""
    raw, path = wrong
    with pytest.raises(AssertionError, match=r"FAILED constants/pred_mask: boundary is 0\.4"):
        assert_parity(path, count=1_000, threads=1)
    good = attach_postprocessing(raw, STATS, output=path.with_name("good.onnx")).output
    assert assert_parity(good, count=1_000, threads=1).passed


def test_failures_are_saved_and_replayed(
    wrong: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each saved file comes with a command; run as it stands, it misses the same check again."""
    raw, path = wrong
    images = np.random.default_rng(7).integers(0, 256, (12, 3, 8, 8)).astype(np.float32) / 256
    np.savez(tmp_path / "inputs.npz", input=images)
    arguments = ["check", path, "--raw", raw, "--inputs", tmp_path / "inputs.npz", "--threads", 1, "--json"]
    arguments += ["--save-failures", tmp_path / "failures", "--junit", tmp_path / "junit.xml"]
    assert main([*map(str, arguments), "--markdown", str(tmp_path / "summary.md")]) == 1
    saved = json.loads(capsys.readouterr().out)["environment"]["failures"]
    assert all(Path(item["file"]).is_file() for item in saved)
    names = {Path(item["file"]).name for item in saved}
    assert {"whole-tapped-onnxruntime-0.npz", "whole-raw-openvino-0.npz", "tail-pred_mask-openvino.npz"} <= names
    replay = next(item["replay"] for item in saved if "whole-raw-onnxruntime-0" in item["file"])
    assert main([*shlex.split(replay)[1:], "--json"]) == 1
    missed = {check["name"] for check in json.loads(capsys.readouterr().out)["checks"] if not check["passed"]}
    assert "whole/raw/pred_mask/onnxruntime" in missed
    assert ElementTree.parse(tmp_path / "junit.xml").getroot().get("failures") != "0"
    assert (tmp_path / "summary.md").read_text(encoding="utf-8").startswith("### ❌")


def test_nothing_is_saved_where_nothing_is_missed(tmp_path: Path) -> None:
    """The folder is made for the first failure only."""
    path = attach_postprocessing(hosts.write(hosts.score_and_map(), tmp_path / "raw.onnx"), STATS).output
    images = np.zeros((2, 3, 8, 8), np.float32)
    report = assert_parity(path, inputs={"input": images}, count=1_000, threads=1, save_failures=tmp_path / "failures")
    assert report.environment["failures"] == []
    assert not (tmp_path / "failures").exists()
