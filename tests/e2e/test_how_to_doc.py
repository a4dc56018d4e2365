"""The how-to pages that run on the demo's files, and what the pages that explain show of real runs."""

import importlib
import re
from collections.abc import Callable

import openvino
import pytest
from conftest import Invoke
from doc_pages import DOCS, blocks, missing, run_page

from postproc_export.runtimes.openvino import openvino_core

Capture = Callable[[], str]

pytestmark = pytest.mark.e2e


@pytest.fixture
def capture(beside_the_demo: Capture, monkeypatch: pytest.MonkeyPatch) -> Capture:
    """Return what gives what a program has printed, with one core of OpenVINO in this process."""
    core = openvino_core(purpose="the tests")
    monkeypatch.setattr(openvino, "Core", lambda: core)  # one core per process
    return beside_the_demo


@pytest.mark.parametrize(
    ("page", "shown"),
    [("onnx.md", "proof.md"), ("ir.md", None), ("script.md", None), ("operating_point.md", "preprocessing.md")],
)
def test_every_block_runs_and_prints_what_is_shown(
    page: str, shown: str | None, invoke: Invoke, capture: Capture
) -> None:
    """In order, on the demo's files; what another page shows of the same commands is printed by them, too."""
    assert len(blocks(page)) >= 3
    printed = run_page(page, invoke, capture)
    if shown is not None:
        (told,) = re.findall(r"```text\n(.*?)```", (DOCS / shown).read_text(encoding="utf-8"), flags=re.DOTALL)
        assert [*missing(told, printed)] == []


def test_what_is_not_printed_is_missed() -> None:
    """Other words, another number, and a line that is not there; versions and near numbers are taken for the same."""
    printed = "threshold 7.84 in onnxruntime 1.32.0\nfound 70 of 80 images"
    assert [*missing("threshold 7.9 in onnxruntime 2.0.0\nfound 70 of 81 ...", printed)] == []
    for line in ("threshold 8.9 in onnxruntime 1.32.0", "found 70 of 80 ima", "found 60 of 80 images", "boundary 7.84"):
        assert [*missing(line, printed)] == [line]


def test_the_figure_of_the_decision_is_true(monkeypatch: pytest.MonkeyPatch) -> None:
    """The raw comparison is right everywhere; normalised scores are wrong as often as the page says in PyTorch."""
    monkeypatch.syspath_prepend(DOCS)
    figures = importlib.import_module("figures")
    wrong = {name: int((labels != (figures.STEPS >= 0)).sum()) for name, labels in figures.decided().items()}
    in_file, in_pytorch, *in_runtimes = wrong.values()
    assert in_file == 0
    page = (DOCS / "decision.md").read_text(encoding="utf-8")
    assert f"calls {in_pytorch} numbers anomalous" in page
    assert len(figures.STEPS) == 2401
    assert all(count > in_pytorch for count in in_runtimes)
