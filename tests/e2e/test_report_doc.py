"""docs/report.md: its commands and its program run as written."""

import re
import shlex
from pathlib import Path

import pytest
from attached_files import FED, detector, labelled
from conftest import Invoke
from report_stats import two_bells

PAGE = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", PAGE, flags=re.DOTALL)

pytestmark = pytest.mark.e2e


def test_the_page_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Invoke) -> None:
    """Commands and program write what the page says, with statistics and a model in the working folder."""
    monkeypatch.chdir(tmp_path)
    stats = two_bells()
    stats.save("stats.json")
    image = stats.image
    assert image is not None
    detector(tmp_path, stats=type(stats)(image=image, pixel=image, details={"preprocessing": FED.to_json()})).rename(
        "model.post.onnx"
    )
    labelled(tmp_path / "validation")
    assert {language for language, _ in BLOCKS} == {"sh", "python"}
    for language, text in BLOCKS:
        Path("report.html").unlink(missing_ok=True)
        if language == "sh":
            result = invoke(*shlex.split(text)[1:])
            assert result.exit_code == 0, result.stderr
        else:
            exec(text, {})
        assert Path("report.html").stat().st_size > 500_000
    assert len([*Path("plots").glob("*.png")]) == 10
