"""The small histograms of `calibrate` and `inspect`: plain text that fits a terminal, from the statistics alone."""

import json
from pathlib import Path

import hosts
import numpy as np
import pytest
from conftest import Invoke


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with raw values of two levels, of which the maps have heavy tails, and a raw model."""
    random = np.random.default_rng(5)
    labels = np.arange(40) >= 25
    masks = np.broadcast_to(labels[:, None, None], (40, 8, 8)) & (random.random((40, 8, 8)) < 0.5)
    maps = random.lognormal(masks * 1.5, 1.0).astype(np.float32)
    scores = random.normal(4.0 * labels, 1.0).astype(np.float32)
    np.savez(tmp_path / "v.npz", pred_score=scores, gt_label=labels, anomaly_map=maps, gt_mask=masks)
    hosts.write(hosts.score_and_map(), tmp_path / "raw.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(text: str) -> list[str]:
    """Return the lines of histograms: a title, what is between it and the next empty line or fact of a level."""
    found, inside = list[str](), False
    for line in text.splitlines():
        inside = line.endswith("by raw value") or (inside and line.strip() != "")
        inside = inside and not line.startswith(("  pixel    ", "next:"))
        found += [line.strip()] if inside else []
    return found


@pytest.mark.parametrize("columns", ["80", None])
def test_both_commands_draw_both_levels(
    columns: str | None, folder: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal of 80 columns and in a pipe: the same characters, no colour, all of them ASCII, no line broken."""
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    calibrated = invoke("calibrate", "v.npz", "-o", "stats.json")
    assert calibrated.exit_code == 0, calibrated.stderr
    invoke("attach", "raw.onnx", "--stats", "stats.json", "-o", "attached.onnx")
    for told in (rows(calibrated.stdout), rows(invoke("inspect", "attached.onnx").stdout)):
        assert [line.split(":")[0] for line in told if line.endswith("by raw value")] == ["image level", "pixel level"]
        assert "image level: 25 normal and 15 anomalous images by raw value" in told
        assert sum(line.startswith("-- threshold and boundary ") for line in told) == 2
        assert any(line.startswith("tail ") for line in told)
        assert "the curve is thinned" in "\n".join(told)
        assert "\n".join(told).isascii()
        assert "\x1b" not in "\n".join(told)
        assert max(map(len, told)) <= 76
        assert len(told) < 40
    assert told == rows(calibrated.stdout)


def test_inspect_draws_the_boundary_that_is_in_the_file(folder: Path, invoke: Invoke) -> None:
    """Of another sensitivity it stands apart from the threshold, and the rows behind it hold what it finds."""
    invoke("calibrate", "v.npz", "-o", "stats.json")
    invoke("attach", "raw.onnx", "--stats", "stats.json", "--image-sensitivity", "0.2", "-o", "attached.onnx")
    (level,) = [json.loads(invoke("inspect", "attached.onnx", "--json").stdout)["levels"]["image"]]
    told = rows(invoke("inspect", "attached.onnx").stdout)
    told = told[: [line.startswith("pixel level") for line in told].index(True)]
    (place,) = [number for number, line in enumerate(told) if line.startswith("-- boundary")]
    assert told[place].split()[2] == str(level["boundary"])
    counts = [[int(word) for word in line.split()[3:] if word.isdigit()] for line in told[place + 1 :]]
    found = level["validation"]
    assert [sum(column) for column in zip(*counts, strict=True)] == [found["fp"], found["tp"]]


def test_quiet_and_json_draw_nothing(folder: Path, invoke: Invoke) -> None:
    """They print what they printed before."""
    assert invoke("calibrate", "v.npz", "-o", "stats.json", "--quiet").stdout == ""
    assert rows(invoke("calibrate", "v.npz", "-o", "stats.json", "--json").stdout) == []
    invoke("attach", "raw.onnx", "--stats", "stats.json", "-o", "attached.onnx")
    assert rows(invoke("inspect", "attached.onnx", "--json").stdout) == []


def test_a_level_without_a_curve_draws_nothing(folder: Path, invoke: Invoke) -> None:
    """Statistics that were typed in have no samples to draw."""
    (folder / "typed.json").write_text('{"schema_version": 1, "image": {"threshold": 1.5, "min": 0, "max": 3}}')
    invoke("attach", "raw.onnx", "--stats", "typed.json", "-o", "attached.onnx")
    assert rows(invoke("inspect", "attached.onnx").stdout) == []
