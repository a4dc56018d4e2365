"""docs/deployment.md: every command and every program, run as it stands there."""

import re
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import openvino
import pytest

from postproc_export import CalibrationStats, LevelStats
from postproc_export.cli import main
from postproc_export.runtimes.openvino import openvino_core

PAGE = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", PAGE, flags=re.DOTALL)
STATS = CalibrationStats(
    image=LevelStats(threshold=0.5, min=0.0, max=2.0), pixel=LevelStats(threshold=0.25, min=-1.0, max=1.0)
)
IMAGES = np.random.default_rng(3).integers(0, 256, (5, 3, 12, 16)).astype(np.float32) / 256


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model in both formats, statistics and images, which is the working directory."""
    hosts.write(hosts.score_and_map(), tmp_path / "model.onnx")
    hosts.to_ir(hosts.score_and_map(), tmp_path / "model.xml")
    STATS.save(tmp_path / "stats.json")
    np.save(tmp_path / "images.npy", IMAGES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(openvino, "Core", lambda: openvino_core(purpose="the tests"))  # one core per process
    return tmp_path


def run(language: str, text: str, names: dict[str, Any]) -> None:
    """Run one block: commands in process, programs one behind the other."""
    if language == "python":
        exec(compile(text, "docs/deployment.md", "exec"), names)
        return
    for line in text.strip().splitlines():
        program, *arguments = line.split()
        assert program == "postproc-export"
        assert main(arguments) == 0, line


def test_every_block_runs_as_written(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In order, on a model with dynamic sizes; the packed results are those of the reference, to the bit."""
    names: dict[str, Any] = {}
    seen = []
    for language, text in BLOCKS:
        run(language, text, names)
        if "anomaly_map = results" in text:
            seen.append({key: names[key] for key in ("anomaly_map", "pred_score", "pred_label", "pred_mask")})
    (found,) = seen
    raw = hosts.expected(IMAGES)
    np.testing.assert_array_equal(found["pred_label"], raw["pred_score"][:, 0] >= 0.5)
    np.testing.assert_array_equal(found["pred_mask"], raw["anomaly_map"][:, 0] >= 0.25)
    np.testing.assert_allclose(found["pred_score"], np.clip((raw["pred_score"][:, 0] - 0.5) / 2 + 0.5, 0, 1), atol=4e-7)
    np.testing.assert_allclose(
        found["anomaly_map"], np.clip((raw["anomaly_map"][:, 0] - 0.25) / 2 + 0.5, 0, 1), atol=4e-7
    )
    assert "anomalous" in capfd.readouterr().out


def test_the_position_in_memory_is_as_the_page_says(folder: Path) -> None:
    """`data[((n * H + y) * W + x) * 4]` is the map's value."""
    names: dict[str, Any] = {}
    for language, text in BLOCKS[:2]:
        run(language, text, names)
    results = names["results"]
    _, height, width, _ = results.shape
    data = results.reshape(-1)
    assert data[((3 * height + 7) * width + 5) * 4] == results[3, 7, 5, 0]
    np.testing.assert_array_equal(data[((3 * height + 7) * width + 5) * 4 + np.arange(4)], results[3, 7, 5])
