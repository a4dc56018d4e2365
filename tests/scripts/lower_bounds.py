"""Every command on small files of both formats, with whatever versions the environment has; prints what went wrong.

Run by `test_lower_bounds.py` in an environment with the lowest versions that pyproject.toml declares.
"""

import contextlib
import io
import sys
from pathlib import Path

import hosts
import numpy as np

from postproc_export.cli import main
from postproc_export.stats import CalibrationStats, LevelStats

LEVEL = LevelStats(threshold=0.5, min=0.0, max=1.0)
GAUSSIAN = {"tail": [{"name": "gaussian", "parameters": {"sigma": 1.0}}]}
FORMS = (
    [],
    ["--no-normalize"],
    ["--no-normalize", "--keep-raw"],
    ["--keep-raw", "--comparison", "gt", "--image-sensitivity", "0.3"],
    ["--layout", "packed"],
    ["--no-nan-guard", "--mask-dtype", "float32"],
    ["--no-threshold"],
    ["--runtime-sensitivity"],
    ["--runtime-boundary"],
    ["--step", "gaussian:sigma=1"],
    ["--step", "gate", "--step", "points:strict=0.3"],
)
HOSTS = {
    "both": hosts.score_and_map,
    "static": lambda: hosts.score_and_map(dynamic=False),
    "flat": lambda: hosts.score_and_map(flat=True),
    "half": lambda: hosts.score_and_map(dtype="float16"),
    "score": hosts.score_only,
    "map": hosts.map_only,
    "old": lambda: hosts.score_and_map(opset=11),
}


def run(*arguments: object) -> str:
    """Run a command; return what it said where its exit code is not 0."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main([str(argument) for argument in arguments])
    return "" if code == 0 else f"{' '.join(map(str, arguments))}: exit {code}\n{out.getvalue()}"


def try_form(folder: Path, raw: Path, options: list[str], number: int) -> list[str]:
    """Attach, read, check, change and detach; return what went wrong."""
    suffix, stats = raw.suffix, folder / ("behind.json" if "gaussian:sigma=1" in options else "stats.json")
    attached, changed, back = (folder / f"{name}-{number}{suffix}" for name in ("attached", "changed", "back"))
    # 2025 rounds the raw output of a float16 model, and not what a tail reads of it
    apart = ["--inputs", folder / "in.npz", *([] if raw.stem == "half" else ["--raw", raw])]
    changed_levels = () if "--no-threshold" in options else ("image",) if raw.stem == "score" else ("image", "pixel")
    levels = [word for level in changed_levels for word in (f"--{level}-sensitivity", 0.4)]
    found = [
        run("attach", raw, "--stats", stats, "-o", attached, *options),
        run("inspect", attached),
        run("check", attached, "--preserved", raw, *apart, "--no-int8", "--threads", 1),
        run("update", attached, "-o", changed, *(levels or ["--keep-raw"])),
        run("detach", changed, "-o", back),
    ]
    if not any(found) and back.read_bytes() != raw.read_bytes():
        found.append(f"{raw.name} {options}: detach gave other bytes")
    return [each for each in found if each]


def main_of(folder: Path) -> None:
    """Try every form on every host."""
    CalibrationStats(image=LEVEL, pixel=LEVEL).save(folder / "stats.json")
    CalibrationStats(image=LEVEL, pixel=LEVEL, details=GAUSSIAN).save(folder / "behind.json")
    images = np.random.default_rng(0).integers(-512, 512, (3, 3, 8, 8)).astype(np.float32) / np.float32(256)
    np.savez(folder / "in.npz", input=images)
    problems: list[str] = []
    count = 0
    for name, host in HOSTS.items():
        onnx, ir = hosts.write(host(), folder / f"{name}.onnx"), hosts.to_ir(host(), folder / f"{name}.xml")
        for raw in (onnx, ir):
            forms = FORMS if name == "both" else FORMS[:3]
            for number, options in enumerate(forms):
                problems += try_form(folder, raw, list(options), count + number)
            count += len(forms)
    print("\n".join([*problems, f"{count} files tried, {len(problems)} problems"]))
    sys.exit(bool(problems))


if __name__ == "__main__":
    main_of(Path(sys.argv[1]))
