"""The model of this repository decides as PyTorch does, in both formats and in every runtime that is installed."""

from pathlib import Path

import pytest

from postproc_export.check import assert_parity

MODEL = Path(__file__).parent / "model"


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_the_model_decides_as_pytorch(suffix: str) -> None:
    """A release that decides otherwise fails here, with the whole report as the message."""
    raw = MODEL / f"model{suffix}"
    report = assert_parity(
        MODEL / f"model.post{suffix}", raw=raw, preserved=raw, images=MODEL / "images", seed=20240, threads=2
    )
    assert not report.failed
