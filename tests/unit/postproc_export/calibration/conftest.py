"""What tests of calibration share."""

import pytest

from postproc_export.calibration import tally


@pytest.fixture
def tiny_spool(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spool that goes to disk after 20 values."""
    monkeypatch.setattr(tally, "SMALL", 0)
    monkeypatch.setattr(tally, "SPOOLED", 10)
    monkeypatch.setattr(tally, "IN_MEMORY", 2 * 10 * 4)
