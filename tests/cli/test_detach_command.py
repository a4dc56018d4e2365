"""`postproc-export detach`: streams and exit codes."""

from pathlib import Path

import hosts
import pytest

from postproc_export.cli import main
from postproc_export.rewrite.attach import attach_postprocessing
from postproc_export.stats import CalibrationStats, LevelStats

STATS = CalibrationStats(image=LevelStats(threshold=0.5, min=0.0, max=2.0))


def test_detach_gives_the_original_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0, the summary on stdout, the original in the file."""
    host = hosts.write(hosts.score_and_map(), tmp_path / "host.onnx")
    attach_postprocessing(host, STATS, output=tmp_path / "a.onnx")
    assert main(["detach", str(tmp_path / "a.onnx"), "-o", str(tmp_path / "raw.onnx")]) == 0
    printed = capsys.readouterr()
    assert f"removed post-processing from {tmp_path / 'a.onnx'}" in printed.out
    assert printed.err == ""
    assert (tmp_path / "raw.onnx").read_bytes() == host.read_bytes()


def test_detach_reports_a_model_without_a_tail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`detach` on a plain model exits 1, says why, and writes nothing."""
    host = hosts.write(hosts.score_and_map(), tmp_path / "host.onnx")
    assert main(["detach", str(host), "-o", str(tmp_path / "raw.onnx")]) == 1
    assert "no post-processing found: expected clip, found identity at 'pred_score'" in capsys.readouterr().out
    assert not (tmp_path / "raw.onnx").exists()


@pytest.mark.parametrize("name", ["absent.onnx", "absent.xml", "model.pt"])
def test_what_cannot_be_read_exits_2(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One clear message on stderr, no traceback, nothing on stdout."""
    assert main(["detach", str(tmp_path / name)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert "Traceback" not in printed.err
