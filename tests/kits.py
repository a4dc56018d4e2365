"""Kits, and what a machine makes of them: a runtime that is installed, or the expected outputs themselves."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from postproc_export.runtimes import open_runner

Arrays = Mapping[str, npt.NDArray[Any]]
SUITES = ("tail", "tail_open", "tail_adjusted", "whole")


def sets(kit: Path, suite: str) -> list[Path]:
    """Return the sets of a suite in order."""
    return sorted((kit / suite).glob("test_data_set_*"), key=lambda path: int(path.name.rpartition("_")[2]))


def expected(kit: Path, outputs: Path, change: Callable[[str, dict[str, Any]], Arrays] = lambda _, each: each) -> Path:
    """Write what a kit expects, as if it had been computed; `change` gets the place of each set, and its arrays."""
    for suite in SUITES:
        for case in sets(kit, suite):
            with np.load(case / "outputs.npz") as arrays:
                write(outputs, f"{suite}/{case.name}", change(f"{suite}/{case.name}", dict(arrays)))
    shutil.copy(kit / "kit.json", outputs)
    return outputs


def computed(kit: Path, attached: Path, outputs: Path, *, runtime: str | None = None) -> Path:
    """Run the tail of a kit and the whole file on the tensors of every set, and write what comes out."""
    for suite in SUITES:
        cases = sets(kit, suite)
        if cases:
            model = attached if suite == "whole" else kit / suite / f"model{attached.suffix}"
            runner = open_runner(model, runtime=runtime, threads=1)
            for case in cases:
                tensors = [onnx.load_tensor(path) for path in sorted(case.glob("input_*.pb"))]
                feeds = {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}
                write(outputs, f"{suite}/{case.name}", runner.run(feeds))
    shutil.copy(kit / "kit.json", outputs)
    return outputs


def write(outputs: Path, place: str, arrays: Arrays) -> None:
    """Write the outputs of a set by name."""
    (outputs / place).mkdir(parents=True, exist_ok=True)
    np.savez(outputs / place / "outputs.npz", **arrays)
