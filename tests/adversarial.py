"""Distributions made to break a calibration, and the ways through the engine that small data would not take."""

from typing import Any

import numpy as np
import pytest

from postproc_export.calibration import search, tally

KINDS = (
    "ties",
    "heavy",
    "one-bucket",
    "offset",
    "constant-f1",
    "alternating",
    "one-anomalous",
    "subnormal",
    "zeros",
    "two-bins",
)
ROUTES = ("sorted", "histogram", "eighths", "batches", "late-batches")


def values_of(kind: str, seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 values and ground truth with both classes, of one adversarial kind."""
    rng = np.random.default_rng(seed)
    truth = rng.random(size) < rng.choice([0.02, 0.3, 0.5])
    truth[0], truth[-1] = True, False
    raw: dict[str, Any] = {
        "ties": lambda: rng.integers(-3, 4, size) + truth,
        "heavy": lambda: rng.standard_cauchy(size) * 10.0 ** rng.integers(-20, 20) + truth,
        "one-bucket": lambda: 1 + (rng.integers(0, 200, size) + 9 * truth) * 2.0**-23,
        "offset": lambda: 1000 + rng.normal(size=size) + truth,
        "constant-f1": lambda: -np.arange(size),
        "alternating": lambda: np.arange(size) * 0.37 - size / 5,
        "one-anomalous": lambda: rng.gamma(2, size=size),
        "subnormal": lambda: (rng.integers(-300, 300, size) + 40 * truth) * 2.0**-149,
        "zeros": lambda: rng.choice([0.0, -0.0, 1e-45, -1e-45, 1.0], size),
        "two-bins": lambda: rng.choice([1.0, 1.0078125], size) + rng.integers(0, 3, size) * 2.0**-23,
    }
    values = raw[kind]().astype(np.float32)
    if kind == "constant-f1":  # 2k of (2k + fp + P) stays near one value: 1, then one normal for each further anomalous
        truth = np.arange(size) % 2 == 0
    if kind == "alternating":
        truth = np.arange(size) % 2 == 1
    if kind == "one-anomalous":
        truth = np.arange(size) == rng.integers(size)
    values[0] = values.min() - max(abs(float(values.min())), 1e-20)  # a legal range whatever the kind draws
    return values, truth


def take_route(route: str, patch: pytest.MonkeyPatch) -> None:
    """Values sorted; bins divided at once or by 8 bits; no room in the table at once or later."""
    if route != "sorted":
        patch.setattr(tally, "SMALL", 0)
    if route in ("eighths", "late-batches"):
        patch.setattr(search, "FULL_BINS", 0)
    if route in ("batches", "late-batches"):
        patch.setattr(search, "MAX_BINS", 0 if route == "batches" else 60)
        patch.setattr(search, "COLLECTED", 40)
        patch.setattr(search, "CELLS", 1 << 9)
