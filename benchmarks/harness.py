"""Time alternatives in turn in one process, and tell of them as ratios."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Call = Callable[[], object]


def interleaved(
    calls: Mapping[str, Call], *, rounds: int, warm_up: int = 3, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Return the seconds of each call in each round; the calls take turns, so that a drift meets all of them."""
    for call in calls.values():
        for _ in range(warm_up):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = clock()
            call()
            seconds[name].append(clock() - start)
    return seconds


def summary(seconds: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return median and interquartile range of each, in milliseconds."""
    rows = {}
    for name, values in seconds.items():
        low, middle, high = statistics.quantiles(values, n=4)
        rows[name] = {"median_ms": 1e3 * middle, "iqr_ms": 1e3 * (high - low)}
    return rows


def ratio(seconds: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """Return the median over the rounds of one call's time by another's in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))


def environment(*packages: str) -> dict[str, Any]:
    """Return what a figure depends on: machine, versions, commit."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "commit": commit.stdout.strip() or None,
    }


def publish(name: str, document: Mapping[str, Any]) -> None:
    """Write the figures to results/<name>.json and print them."""
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document["ratios"], indent=2))
    print(f"figures: {path}")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
