"""What is installed here, on what machine, what of the project works with it, and what a missing extra would bring.

A package that is there may still be broken, or end the process when it is imported. So packages are imported in another
process, one after the other; one that fails behind others is asked again in a process of its own.
"""

import faulthandler
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from postproc_export import __version__
from postproc_export.errors import module_of, require
from postproc_export.outcome import Outcome

PROJECT: Final = "postproc-export"
BRINGS: Final = {
    "": "attach, update, detach and inspect for ONNX models; calibrate from files of raw outputs",
    "onnxruntime": "running ONNX models: calibrate with images, and check",
    "openvino": "OpenVINO IR in every command, and running it",
    "opencv": "running ONNX models in OpenCV: --runtime opencv",
    "tract": "running ONNX models in tract: --runtime tract",
    "torch": "PostProcessor, check --torch and custom steps as classes",
    "images": "images in calibrate and check",
    "predict": "predict: what a finished model decides over images, with areas of masks",
    "report": "report: one page to see and choose a sensitivity",
    "zarr": "calibrate from Zarr stores",
    "dask": "calibrate on a Dask cluster",
    "lightning": "calibrate in a Lightning validation",
    "nncf": "check --int8: how far quantising moves decisions",
    "export": "export: a PyTorch model to ONNX and IR in one command",
    "demo": "demo: the whole job on real photos",
}
"""What each extra of the project brings; the empty name is the project without any."""

LONGEST: Final = 120.0
"""Seconds that a package may take to be imported."""

_PACKAGES: Final = ("numpy", "torch", "onnx", "onnxruntime", "openvino", "nncf")
# The features of a processor that decide how floats are computed.
_FEATURES: Final = (
    *("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx_vnni"),
    *("amx_bf16", "amx_fp16", "amx_int8", "asimd", "bf16", "sve"),
)
_MODULES: Final = {"PIL": "PIL.Image"}  # what is broken where the rest is not
_WANTED: Final = re.compile(r"([\w.-]+)(?:\[(\w+)\])?(?:>=([\w.]+))?(?:\s*;\s*extra == '(\w+)')?")
_PROBE: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {} import answer;"
    " answer(float(sys.argv[2]), sys.argv[3:])"
)


def environment(*, seed: int, threads: int | None) -> dict[str, Any]:
    """Return versions, processor, threads and seed; JSON values."""
    return {
        "postproc_export": __version__,
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in _PACKAGES if find_spec(package) is not None},
        "platform": platform.platform(),
        **processor(),
        "threads": threads,
        "seed": seed,
    }


@cache
def _version(package: str) -> str:
    """Return the version of a package, which does not change while a process runs."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def processor() -> dict[str, Any]:
    """Return the processor, its features that decide how floats are computed, and its cores; JSON values."""
    flags = (_processor_field("flags") or _processor_field("Features") or "").split()
    return {
        "processor": _processor_field("model name") or platform.processor() or platform.machine(),
        "processor_features": [feature for feature in _FEATURES if feature in flags],
        "cores": os.cpu_count(),
    }


def _processor_field(name: str) -> str | None:
    """Return what the system tells of its first processor; None where it does not."""
    source = Path("/proc/cpuinfo")
    lines = source.read_text(encoding="utf-8", errors="replace").splitlines() if source.is_file() else []
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in pairs if key.strip() == name), None)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Installation(Outcome):
    """What `examine` found.

    Parameters
    ----------
    machine
        ``platform``, ``processor``, ``processor_features`` (empty where the system does not tell) and ``cores``.
    packages
        By the name that pip knows: ``state`` (``"installed"``, ``"missing"`` or ``"broken"``), ``version`` (None where
        it is not known), ``error`` (of a broken one), and for the runtimes ``providers`` or ``devices``.
    extras
        By name, the empty one for the project itself: ``works``, ``brings`` (in words), ``packages`` (the oldest
        version of each that it needs), and ``install``, the command that brings what is missing; None where nothing is.
    """

    machine: Mapping[str, Any]
    packages: Mapping[str, Mapping[str, Any]]
    extras: Mapping[str, Mapping[str, Any]]

    def headline(self) -> str:
        """Return how much works."""
        optional = [extra["works"] for name, extra in self.extras.items() if name]
        python = f"Python {platform.python_version()}"
        return f"{PROJECT} {__version__}, {python}: {sum(optional)} of {len(optional)} extras work here"

    def facts(self) -> Iterator[tuple[str, str]]:
        """Yield the machine, the runtimes, all versions, what works, and what would bring the rest."""
        features = self.machine["processor_features"]
        amx = "" if any(feature.startswith("amx") for feature in features) else ", no AMX"
        known = f"{' '.join(features)}{amx}" if features else "instruction sets not known"
        yield "system", self.machine["platform"]
        yield "CPU", f"{self.machine['processor']}, {self.machine['cores']} cores; {known}"
        for name, found in self.packages.items():
            yield from _of_runtime(name, found)
        there = {name: found for name, found in self.packages.items() if found["state"] == "installed"}
        yield "version", ", ".join(f"{name} {found['version'] or 'unknown'}" for name, found in there.items())
        yield from (("broken", f"{name}: {each['error']}") for name, each in self.packages.items() if each["error"])
        for name, extra in sorted(self.extras.items(), key=lambda item: not item[1]["works"]):
            yield "works" if extra["works"] else "missing", f"{extra['brings']}{f' ({name})' if name else ''}"
            if not extra["works"]:
                yield "", f"fix: {extra['install']}"
        if not self.extras:
            yield "missing", f"{PROJECT} itself is not installed, so that its extras are not known; fix: pip install ."

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``doctor --json``: docs/installation.md."""
        return {
            "version": __version__,
            "python": platform.python_version(),
            **self.machine,
            "packages": dict(self.packages),
            "extras": {name or PROJECT: dict(extra) for name, extra in self.extras.items()},
        }


def _of_runtime(name: str, found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "providers" in found:
        used = "CPUExecutionProvider is used unless --runtime names another"
        yield "runtime", f"{name} {found['version']}: {', '.join(found['providers'])}; {used}"
    for device in found.get("devices", ()):
        used = "; it is used, at float32, unless --runtime names another" if device["name"] == "CPU" else ""
        precision = device["precision"] or "a precision that it does not tell"
        told = f"{device['name']} ({device['full_name']}), which computes in {precision} by default{used}"
        yield "runtime", f"{name} {found['version']}: {told}"


def examine(*, longest: float = LONGEST, progress: Callable[[int, int], None] | None = None) -> Installation:
    """Import every package of every extra in another process, and say what works; a broken one is told of.

    `longest` is how many seconds a package may take. `progress` is called with how many are done, and of how many.
    """
    extras, modules = _wanted()
    there = {name: module for name, module in modules.items() if _is_there(module)}
    told = _asked(list(there.values()), longest)
    packages: dict[str, dict[str, Any]] = {}
    for name in modules:
        packages[name] = _state(name, next(told) if name in there else None)
        if progress is not None:
            progress(len(packages), len(modules))
    return Installation(
        machine={"platform": platform.platform(), **processor()},
        packages=packages,
        extras={extra: _of_extra(extra, oldest, packages) for extra, oldest in extras.items()},
    )


def _wanted() -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return for each extra the oldest version of each package that it needs, and the module of each package."""
    extras: dict[str, dict[str, str]] = {}
    modules: dict[str, str] = {}
    with suppress(metadata.PackageNotFoundError):
        for parts in map(_WANTED.fullmatch, metadata.requires(PROJECT) or ()):
            if parts is not None and (extra := parts[4] or "") in BRINGS:
                name, part, oldest = parts[1].replace("_", "-"), parts[2], parts[3] or ""
                of_extra, module = extras.setdefault(extra, {}), module_of(name)
                of_extra[name] = max(of_extra.get(name, ""), oldest, key=_numbers)
                modules[name] = _MODULES.get(module, f"{module}.{part}" if part else module)
    return {extra: extras[extra] for extra in BRINGS if extra in extras}, modules


def _of_extra(extra: str, oldest: Mapping[str, str], packages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the entry of an extra in `Installation.extras`."""
    lacking = [name for name in oldest if not _is_usable(packages[name], oldest[name])]
    states = {packages[name]["state"] for name in lacking}
    how = "--force-reinstall " if "broken" in states else "--upgrade " if "installed" in states else ""
    install = f"pip install {how}{' '.join(lacking)}" if lacking else None
    return {"works": not lacking, "brings": BRINGS[extra], "packages": dict(oldest), "install": install}


def _is_usable(package: Mapping[str, Any], oldest: str) -> bool:
    version = package["version"]
    return package["state"] == "installed" and (version is None or _numbers(version) >= _numbers(oldest))


def _is_there(module: str) -> bool:
    """Return whether a module is found; one that cannot be looked for is broken, as importing it tells."""
    try:
        return find_spec(module.split(".")[0]) is not None
    except (ImportError, ValueError):
        return True


def _state(name: str, found: dict[str, Any] | None) -> dict[str, Any]:
    """Return the entry of a package in `Installation.packages`, from what importing it told; None where it is not."""
    if found is None:
        return {"state": "missing", "version": None, "error": None}
    with suppress(metadata.PackageNotFoundError):  # another distribution has the module, such as onnxruntime-gpu
        found = {**found, "version": metadata.version(name)}
    return {"state": "broken" if "error" in found else "installed", "version": None, "error": None, **found}


def _numbers(version: str) -> list[int]:
    """Return the numbers that a version begins with."""
    return [int(part) for part in re.match(r"[\d.]*", version)[0].split(".") if part]  # type: ignore[index]


def _asked(modules: list[str], longest: float) -> Iterator[dict[str, Any]]:
    """Import modules in another process, where the same modules are found, and yield what each tells."""
    while modules:
        arguments = [sys.executable, "-P", "-c", _PROBE.format(__name__), json.dumps(sys.path), str(longest), *modules]
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
        ):
            assert process.stdout is not None
            done = 0
            for line in process.stdout:
                found = json.loads(line)
                if "error" in found and done:
                    process.kill()  # it may be for what was imported before
                    break
                yield found
                done += 1
            code = process.wait()
            if done == 0:
                errors.seek(0)
                yield {"error": _end(code, errors.read().strip().splitlines(), longest)}
                done = 1
        modules = modules[done:]


def _end(code: int, lines: list[str], longest: float) -> str:
    """Return how a process ended that imported a module."""
    if any(line.startswith("Timeout (") for line in lines):  # by the watch; a package may have written before
        return f"its import took longer than {longest:g} seconds"
    if code < 0:
        return f"its import ends the process ({signal.Signals(-code).name})"
    return f"its import ends the process: {lines[-1] if lines else f'exit code {code}'}"


def answer(longest: float, modules: list[str]) -> None:
    """Import modules in this process, and print what each tells as a line of JSON: an error, or what it can run on."""
    stdout = os.dup(1)
    os.dup2(2, 1)  # what packages print of themselves is no answer
    for module in modules:
        faulthandler.dump_traceback_later(longest, exit=True)  # a watch that what hangs in C cannot stop
        try:
            found = _told(module)
        except Exception as error:  # whatever is broken
            text = (str(error).strip() or "no reason given").splitlines()[0]
            found = {"error": f"{type(error).__name__}: {text}"}
        faulthandler.cancel_dump_traceback_later()
        os.write(stdout, json.dumps(found).encode() + b"\n")
    os._exit(0)  # what is broken may hang or fail once more when the process ends


def _told(module: str) -> dict[str, Any]:
    from postproc_export.runtimes.openvino import devices, without_telemetry

    with without_telemetry():
        imported: Any = require(module, purpose="the doctor")
    version = getattr(imported, "__version__", None)
    more = {}
    if module == "onnxruntime":
        more["providers"] = imported.get_available_providers()
    if module == "openvino":
        more["devices"] = devices()
    return {"version": None if version is None else str(version), **more}
