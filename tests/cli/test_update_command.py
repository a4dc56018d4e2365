"""`postproc-export update`: options, streams and exit codes."""

from pathlib import Path

import hosts
import pytest

from postproc_export.attach import attach_postprocessing
from postproc_export.cli import main
from postproc_export.inspect import inspect_model
from postproc_export.stats import CalibrationStats, LevelStats

STATS = CalibrationStats(
    image=LevelStats(threshold=0.5, min=0.0, max=2.0), pixel=LevelStats(threshold=0.25, min=-1.0, max=1.0)
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return an attached model."""
    host = hosts.write(hosts.score_and_map(), tmp_path / "host.onnx")
    attach_postprocessing(host, STATS, output=tmp_path / "a.onnx")
    return tmp_path / "a.onnx"


def test_update_changes_what_was_asked_for(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0, the summary in numbers on stdout."""
    output = tmp_path / "out.onnx"
    options = ["--image-threshold", "0.75", "--pixel-sensitivity", "0.3", "--comparison", "gt", "--no-nan-guard"]
    assert main(["update", str(model), "-o", str(output), *options]) == 0
    out = capsys.readouterr().out
    assert "image    threshold 0.5 -> 0.75" in out
    assert "pixel    sensitivity 0.5 -> 0.3" in out
    assert "rule     ge -> gt" in out
    report = inspect_model(output).levels["image"]
    assert report is not None
    assert (report.threshold, report.comparison) == (0.75, "gt")


def test_statistics_are_not_overwritten(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A statistics file that bears the name of the output is read, and stays, `--in-place` or not."""
    STATS.save(tmp_path / "stats.onnx")
    before = (tmp_path / "stats.onnx").read_bytes()
    for option in ([], ["--in-place"]):
        arguments = [str(model), "-s", str(tmp_path / "stats.onnx"), "-o", str(tmp_path / "stats.onnx"), *option]
        assert main(["update", *arguments]) == 2
        assert "stats.onnx: it is the file that is read\n  fix:     choose another path" in capsys.readouterr().err
        assert (tmp_path / "stats.onnx").read_bytes() == before


def test_update_without_a_change_says_so(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0: the model decides as asked for."""
    assert main(["update", str(model), "-o", str(tmp_path / "out.onnx"), "--image-threshold", "0.5"]) == 0
    assert "nothing to change in" in capsys.readouterr().out


def test_update_reports_a_model_without_a_tail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, nothing is written."""
    host = hosts.write(hosts.score_and_map(), tmp_path / "host.onnx")
    assert main(["update", str(host), "-o", str(tmp_path / "out.onnx"), "--image-threshold", "1"]) == 1
    assert "has no post-processing; found: raw outputs" in capsys.readouterr().out
    assert not (tmp_path / "out.onnx").exists()


def test_an_illegal_change_exits_2(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One clear message on stderr."""
    assert main(["update", str(model), "-o", str(tmp_path / "out.onnx"), "--image-sensitivity", "2"]) == 2
    assert "--image-sensitivity 2: use 0 to 1" in capsys.readouterr().err
