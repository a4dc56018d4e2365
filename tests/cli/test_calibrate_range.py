"""`postproc-export calibrate --image-range`: a heavy tail is warned of, and left out on request."""

from pathlib import Path

import pytest
from conftest import Invoke

from postproc_export.stats import CalibrationStats

TAIL = Path(__file__).parents[1] / "data" / "cases" / "tail.npz"


def test_the_advised_option_can_be_typed_as_it_stands(invoke: Invoke, tmp_path: Path) -> None:
    """A warning without it, none with it; the table and the file say which range it is, and what was seen."""
    output = tmp_path / "stats.json"
    ran = invoke("calibrate", TAIL, "-o", output)
    (warning,) = [line for line in ran.stderr.splitlines() if line.startswith("warning")]
    assert (ran.exit_code, CalibrationStats.load(output).image.max) == (0, 60)
    assert "extremes" in ran.stdout
    option = next(word for word in warning.split() if word.startswith("quantile="))
    assert f"--image-range {option} would" in warning
    ran = invoke("calibrate", TAIL, "-o", output, "--image-range", option)
    assert (ran.exit_code, "warning" in ran.stderr) == (0, False)
    assert f"{option} (seen: 0.8837485 to 60)" in ran.stdout
    image = CalibrationStats.load(output).image
    assert (image.details["range"], image.details["extremes"]) == (option, {"min": 0.8837485, "max": 60.0})
    assert image.max < 2


@pytest.mark.parametrize("option", ["--image-range", "--pixel-range"])
@pytest.mark.parametrize("text", ["quantile=0.9,0.1", "quantile=0.1", "min"])
def test_a_span_that_is_none_is_refused(invoke: Invoke, tmp_path: Path, option: str, text: str) -> None:
    """Exit code 2, one message that names what was typed, and nothing written."""
    ran = invoke("calibrate", TAIL, "-o", tmp_path / "stats.json", option, text)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert text in ran.stderr
    assert not (tmp_path / "stats.json").exists()
