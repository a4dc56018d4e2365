"""Commands that are stopped by signals at random moments; what they leave is looked at, and problems are printed.

Arguments: what is run, how often, a seed, and whether every run is forked from this process, which has imported what it
needs, or is a process of its own. A run whose signal comes too late is one that ends.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Final

import hosts
import numpy as np
import onnx
from onnx import numpy_helper

from postproc_export import CalibrationStats, LevelStats, attach_postprocessing
from postproc_export.cli import entrypoint
from postproc_export.runtimes.openvino import import_openvino

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
STATS: Final = CalibrationStats(
    image=LevelStats(threshold=0.5, min=0.0, max=2.0), pixel=LevelStats(threshold=0.25, min=-1.0, max=1.0)
)
EXPORT: Final = "export export_modules:detector --input 1,3,16,16 --stats s.json --seed 1 -o out --name model"
COMMANDS: Final = {
    "attach": "attach raw.onnx --stats s.json -o out.onnx",
    "attach-external": "attach big/raw.onnx --stats s.json -o out.onnx",
    "attach-ir": "attach raw.xml --stats s.json -o out.xml",
    "update": "update post.onnx --image-sensitivity 0.3 -o out.onnx",
    "update-ir": "update post.xml --image-sensitivity 0.3 -o out.xml",
    "in-place": "update post.onnx --image-sensitivity 0.3 --in-place",
    "in-place-ir": "update post.xml --image-sensitivity 0.3 --in-place",
    "calibrate": "calibrate shard.npz -o out.json",
    "export": EXPORT,
    "export-both": f"{EXPORT} --to onnx,openvino",
}
OF_TORCH: Final = ("tmp/.ses", "tmp/torchinductor")
HEAVY: Final = (
    *("postproc_export.cli.commands", "postproc_export.cli.attach", "postproc_export.cli.calibrate"),
    *("postproc_export.calibration", "postproc_export.formats.onnx_file"),
)
Contents = dict[str, bytes]


@dataclass(frozen=True)
class Ended:
    """How a run ended: its code (negative: by a signal), what it said on stderr, how long it took in seconds."""

    code: int
    errors: str
    seconds: float


def contents(folder: Path) -> Contents:
    """Return all files below a folder, and the folders, which end in a slash; without what torch keeps for later."""
    found = {f"{path.relative_to(folder)}{'/' * path.is_dir()}": path for path in folder.rglob("*")}
    mine = {name: path for name, path in found.items() if not name.startswith(OF_TORCH)}
    same = ("parity.json",)  # a report tells the time, so that one is as good as another
    return {name: b"" if path.is_dir() or path.name in same else path.read_bytes() for name, path in mine.items()}


def prepare(folder: Path, name: str) -> None:
    """Write the inputs of a command, and an older output where it has one."""
    STATS.save(folder / "s.json")
    model = hosts.write(hosts.score_and_map(), folder / "raw.onnx")
    with_weights = onnx.load(model)
    for tensor in with_weights.graph.initializer:  # what is external is raw
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    (folder / "big").mkdir()
    (folder / "tmp").mkdir()
    onnx.save_model(
        with_weights, folder / "big" / "raw.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    rng = np.random.default_rng(1)
    np.savez(folder / "shard.npz", pred_score=rng.random(20_000), gt_label=rng.integers(0, 2, 20_000))
    if name.endswith("-ir"):
        openvino = import_openvino(purpose="the tests")
        openvino.save_model(openvino.Core().read_model(model), folder / "raw.xml", compress_to_fp16=False)
    suffix = ".xml" if name.endswith("-ir") else ".onnx"
    attach_postprocessing(folder / f"raw{suffix}", STATS, output=folder / f"post{suffix}")
    if name.startswith("export"):
        (folder / "out").mkdir()
        return
    target = COMMANDS[name].split("-o ")[-1]
    for each in (target, target.replace(".xml", ".bin")) if "-o" in COMMANDS[name] else ():
        (folder / each).write_text(f"old {each}")


def forked(folder: Path, arguments: list[str], stop: Callable[[int], None]) -> Ended:
    """Run a command in a child that needs to import nothing."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        for descriptor, name in ((1, os.devnull), (2, str(folder.parent / "stderr"))):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
        os.chdir(folder)
        sys.argv[1:] = arguments
        code: object = 1
        try:
            entrypoint()
        except SystemExit as request:
            code = request.code
        finally:
            os._exit(code if isinstance(code, int) else 1)
    stop(child)
    status = os.waitpid(child, 0)[1]
    errors = (folder.parent / "stderr").read_text() if (folder.parent / "stderr").exists() else ""
    return Ended(os.waitstatus_to_exitcode(status), errors, time.monotonic() - start)


def of_its_own(folder: Path, arguments: list[str], stop: Callable[[int], None]) -> Ended:
    """Run a command in a process of its own."""
    start = time.monotonic()
    command = [sys.executable, "-m", "postproc_export", *arguments]
    environment = {**os.environ, "TMPDIR": str(folder / "tmp")}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        stop(process.pid)
        errors = process.communicate(timeout=120)[1]
    return Ended(process.returncode, errors, time.monotonic() - start)


def handles(process: int) -> bool:
    """Whether a process handles SIGTERM yet, or has ended."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return status["State"][0] in "ZX" or bool(int(status["SigCgt"], 16) >> (signal.SIGTERM - 1) & 1)


def never(process: int) -> None:
    """Send no signal."""


def problems(before: Contents, after: Contents, new: Contents, ended: Ended, number: signal.Signals) -> Iterator[str]:
    """Yield what is wrong after a run that was stopped."""
    if ended.code not in (0, 128 + number, -number):  # the last when Python itself is ending already
        yield f"exit code {ended.code}"
    if "Traceback" in ended.errors or ended.errors.count("error:") > 1:
        yield f"stderr: {ended.errors}"
    changed = {name for name in new if new[name] != before.get(name)}
    for name in before.keys() - changed:
        if after.get(name) != before[name]:
            yield f"{name} was changed"
    if number == signal.SIGKILL:
        if any(after[name] not in (before.get(name), new[name]) for name in changed & after.keys()):
            yield "a file is neither the old nor the new one"
    elif after not in (before, new):
        yield f"neither as before nor as after the run: {sorted(after.keys() ^ before.keys())}"


def after_kill(run: Callable[..., Ended], folder: Path, before: Contents, new: Contents) -> Iterator[str]:
    """Yield what is wrong after the run that follows a killed one in a folder."""
    beside = "out/" if (folder / "out").is_dir() else ""
    ended = run(folder, ["calibrate", "shard.npz", "-o", f"{beside}next.json"], never)
    shutil.rmtree(folder / "tmp")  # the place for temporary files is tidied by whoever needs it next
    (folder / "tmp").mkdir()
    left = contents(folder)
    left.pop(f"{beside}next.json", None)
    if ended.code != 0 or "Traceback" in ended.errors:
        yield f"the next run: {ended}"
    if left not in (before, new):
        yield f"after the next run: {sorted(left.keys() ^ before.keys())}"


def rounds(name: str, count: int, seed: int, run: Callable[..., Ended]) -> Iterator[str]:
    """Stop a command again and again, and yield the problems."""
    arguments, randoms = COMMANDS[name].split(), random.Random(seed)
    with tempfile.TemporaryDirectory() as home:
        pristine, folder = Path(home, "pristine"), Path(home, "run", "folder")
        pristine.mkdir()
        prepare(pristine, name)
        shutil.copytree(pristine, folder)
        before = contents(pristine)
        whole = run(folder, arguments, never)
        assert whole.code == 0, whole
        new = contents(folder)
        for index in range(count):
            shutil.rmtree(folder)
            shutil.copytree(pristine, folder)
            number, delay = SIGNALS[index % len(SIGNALS)], randoms.random() * whole.seconds

            def stop(process: int, number: signal.Signals = number, delay: float = delay) -> None:
                while not handles(process):  # Python's own start is not what is tried
                    time.sleep(0.0005)
                time.sleep(delay)
                os.kill(process, number)

            ended = run(folder, arguments, stop)
            found = list(problems(before, contents(folder), new, ended, number))
            if number == signal.SIGKILL:
                found += after_kill(run, folder, before, new)
            yield from (f"{name} {number.name} after {delay:.3f} of {whole.seconds:.3f} s: {each}" for each in found)


if __name__ == "__main__":
    command, count, seed, way = sys.argv[1:]
    for module in (*HEAVY, "openvino", *(["torch", "onnxscript"] if command.startswith("export") else [])):
        import_module(module)
    found = list(rounds(command, int(count), int(seed), forked if way == "forked" else of_its_own))
    print("\n".join(found))
    sys.exit(bool(found))
