"""docs/faq.md: every command, run as it stands there on the files of the demo."""

from collections.abc import Callable

import pytest
from conftest import Invoke
from doc_pages import blocks, run_page

from postproc_export import CalibrationStats

pytestmark = pytest.mark.e2e


def test_every_command_runs_and_the_answers_hold(beside_the_demo: Callable[[], str], invoke: Invoke) -> None:
    """Each ends well; good images alone have a threshold; a sensitivity for recall 1 finds every defect."""
    assert len(blocks("faq.md")) >= 6
    assert "40 of 40 anomalous" in run_page("faq.md", invoke, beside_the_demo)
    good = CalibrationStats.load("good.json")
    assert good.image is not None
    assert (good.image.n_anomalous, good.image.policy) == (0, "fpr=0.05")
