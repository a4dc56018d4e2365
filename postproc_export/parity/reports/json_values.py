"""JSON values of a report."""

import math
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """Return JSON values only: NaN and infinities as strings, tuples as lists, unknown things as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return plain(value.item()) if hasattr(value, "item") else str(value)
