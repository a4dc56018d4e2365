"""`postproc-export detach`: streams and exit codes."""

import shutil
from pathlib import Path

import hosts
import numpy as np
import pytest
from anomalib_files import FOLDER

from postproc_export.attach import attach_postprocessing
from postproc_export.cli import main
from postproc_export.inspect import inspect_model
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
    printed = capsys.readouterr().out
    assert "host.onnx has no post-processing; found: raw outputs anomaly_map, pred_score" in printed
    assert f"postproc-export attach {host}" in printed
    assert not (tmp_path / "raw.onnx").exists()


@pytest.mark.parametrize("name", ["absent.onnx", "absent.xml", "model.pt"])
def test_what_cannot_be_read_exits_2(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One clear message on stderr, no traceback, nothing on stdout."""
    assert main(["detach", str(tmp_path / name)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert "Traceback" not in printed.err


@pytest.mark.parametrize("name", ["270_default_dynamo.onnx", "270_default_dynamo.xml", "262_default_legacy.xml"])
def test_the_documented_path_from_anomalib_to_a_new_calibration(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The three commands of docs/finished_models.md, as they stand there, on Anomalib's own exports."""
    page = (Path(__file__).parents[2] / "docs" / "finished_models.md").read_text(encoding="utf-8")
    block = page.split("## Calibrate it again")[1].split("```sh\n")[1].split("```")[0]
    suffix = Path(name).suffix
    for path in FOLDER.glob(f"{Path(name).stem}.*"):
        shutil.copy(path, tmp_path / f"model{path.suffix}")
    scores = np.linspace(0, 9, 10, dtype=np.float32)
    maps = scores[:, None, None, None].repeat(19, axis=3)
    np.savez(tmp_path / "validation.npz", pred_score=scores, gt_label=scores > 6, anomaly_map=maps, gt_mask=maps > 4)
    monkeypatch.chdir(tmp_path)
    for line in block.strip().splitlines():
        assert main(line.replace(".onnx", suffix).split()[1:]) == 0
    result = inspect_model(tmp_path / f"recalibrated{suffix}")
    image, pixel = result.levels["image"], result.levels["pixel"]
    assert image is not None
    assert pixel is not None
    assert (image.threshold, pixel.threshold) == (7.0, 5.0)
    assert [port.name for port in result.outputs] == ["pred_score", "pred_label", "anomaly_map", "pred_mask"]
