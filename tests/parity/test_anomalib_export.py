"""`export anomalib:Model` in the real Anomalib 2.7: files of its checkpoints decide as its Engine predicts.

It needs an environment with anomalib 2.7.0; docs/anomalib.md has the commands. Everything runs in processes of its own.
"""

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from scripting import run_script


def is_installed() -> bool:
    """Whether Anomalib 2.7 itself is here, not its stand-in."""
    try:
        return version("anomalib").startswith("2.7.")
    except PackageNotFoundError:
        return False


pytestmark = [pytest.mark.slow, pytest.mark.skipif(not is_installed(), reason="anomalib 2.7 is not installed")]


@pytest.mark.parametrize(("name", "outputs"), [("padim", 4), ("patchcore", 4), ("dfkde", 2)])
def test_files_of_a_checkpoint_decide_as_predict(name: str, outputs: int, tmp_path: Path) -> None:
    """ONNX in two runtimes and the IR, by both rules; the command compared each output of both with Anomalib's."""
    run_script("anomalib_export.py", name, tmp_path, timeout=1800)
    found = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    assert found["seen"] == [False, True]
    for rule in ("ge", "gt"):
        assert (found[f"{rule}: exit code"], found[f"{rule}: compared"]) == (0, 2 * outputs)
        runs = [run for each in found[rule].values() for run in each.values()]
        assert [(run["labels"], run["pixels"]) for run in runs] == [(0, 0)] * 3
        assert all(run["scores"] < 1e-4 for run in runs)
