"""What it takes to run a check again: versions, processor, threads, seed; and which runtimes are installed."""

import os
import platform
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from postproc_export.runtimes.protocol import RUNTIMES, RuntimeName
from postproc_export.version import __version__

_PACKAGES: Final = ("numpy", "torch", "onnx", "onnxruntime", "openvino", "nncf")
_FEATURES: Final = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_bf16",
    "avx512_fp16",
    "avx512_vnni",
    "avx_vnni",
    "amx_bf16",
    "amx_fp16",
    "amx_int8",
    "asimd",
    "bf16",
    "sve",
)


def environment(*, seed: int, threads: int | None) -> dict[str, Any]:
    """Return versions, processor, threads and seed; JSON values."""
    return {
        "postproc_export": __version__,
        "python": platform.python_version(),
        "packages": dict(_versions()),
        "platform": platform.platform(),
        "processor": _processor(),
        "processor_features": _features(),
        "cores": os.cpu_count(),
        "threads": threads,
        "seed": seed,
    }


def usable_cores() -> int:
    """Return how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return (os.cpu_count() or 1) if affinity is None else len(affinity(0))


def installed_runtimes() -> tuple[RuntimeName, ...]:
    """Return the runtimes that can be imported."""
    return tuple(name for name in RUNTIMES if find_spec(name) is not None)


def _versions() -> Iterator[tuple[str, str]]:
    for package in _PACKAGES:
        if find_spec(package) is not None:
            try:
                yield package, metadata.version(package)
            except metadata.PackageNotFoundError:
                yield package, "unknown"


def _processor() -> str:
    return next(_fields("model name"), platform.processor() or platform.machine())


def _features() -> list[str]:
    """Return those features that decide how floats are computed, where the system tells."""
    flags = set(next(_fields("flags"), next(_fields("Features"), "")).split())
    return [feature for feature in _FEATURES if feature in flags]


def _fields(name: str) -> Iterator[str]:
    source = Path("/proc/cpuinfo")
    if not source.is_file():
        return
    for line in source.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            yield value.strip()
