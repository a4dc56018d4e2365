"""docs/faq.md: every command, run as it stands there on the files of the demo."""

from pathlib import Path

import pytest
from conftest import Invoke
from doc_pages import blocks, run_page

from postproc_export import CalibrationStats

pytestmark = pytest.mark.e2e


def test_every_command_runs_and_the_answers_hold(
    demo_folder: Path,
    tmp_path: Path,
    invoke: Invoke,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Each ends well; good images alone have a threshold; a sensitivity for recall 1 finds every defect."""
    (tmp_path / "postproc-export-demo").symlink_to(demo_folder)
    monkeypatch.chdir(tmp_path)
    assert len(blocks("faq.md")) >= 6
    assert "40 of 40 anomalous" in run_page("faq.md", invoke, lambda: capfd.readouterr().out)
    good = CalibrationStats.load(tmp_path / "good.json")
    assert good.image is not None
    assert (good.image.n_anomalous, good.image.policy) == (0, "fpr=0.05")
