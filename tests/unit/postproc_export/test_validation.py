"""How a value is shown in an error."""

from typing import Any

import pytest

from postproc_export.validation import shown


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("x" * 58, repr("x" * 58), id="60-characters"),
        pytest.param("x" * 59, "'" + "x" * 56 + "...", id="61-characters"),
        pytest.param(10**59, "1" + "0" * 59, id="long-integer"),
        pytest.param(10**61, "an integer of 203 bits", id="longer-integer"),
        pytest.param(-(10**5000), "an integer of 16610 bits", id="integer-that-python-will-not-print"),
        pytest.param(True, "True", id="bool"),
    ],
)
def test_shown_is_never_longer_than_60(value: Any, expected: str) -> None:
    """A value is shown whole up to 60 characters, else cut; an integer beyond that by its size."""
    assert shown(value) == expected
    assert len(shown(value)) <= 60
