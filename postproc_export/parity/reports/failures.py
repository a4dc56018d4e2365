"""Failing inputs, saved with the command that replays them."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from postproc_export.files.writing import folder_made_for, publishing
from postproc_export.parity.fed.real_inputs import RealBatch
from postproc_export.parity.reports.report import Check

MOST: Final = 5


@dataclass(slots=True)
class FailureStore:
    """A folder for inputs on which something was missed.

    Parameters
    ----------
    folder
        Made when the first failure is saved.
    attached, raw, torch
        The files of the check and the PyTorch module, for the command.
    seed
        The seed of the raw values, which replays the tail's check as it was.
    threads, max_flips, code, assumed
        As the check had them; `code` is what was named to be imported, `assumed` the options given for a record.
    saved
        Each file and its command, in order.
    """

    folder: Path
    attached: Path
    raw: Path | None
    seed: int
    torch: str | None = None
    threads: int | None = None
    max_flips: int = 0
    code: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    saved: list[dict[str, str]] = field(default_factory=list)
    _counts: dict[str, int] = field(default_factory=dict)

    def add_batch(self, name: str, batch: RealBatch, *, is_seeded: bool = False) -> None:
        """Save a batch of inputs, which the seed alone may replay; of each kind of failure the first five."""
        number = self._counts.get(name, 0)
        if number >= MOST:
            return
        self._counts[name] = number + 1
        arrays = {
            port: values.astype(np.float32) if values.dtype.name == "bfloat16" else values
            for port, values in batch.samples().items()
        }
        path = self._path(f"{name}-{number}")
        _save(path, arrays)
        raw = [] if self.raw is None else ["--raw", str(self.raw)]
        torch = [] if self.torch is None else ["--torch", self.torch]
        budget = ["--max-flips", str(self.max_flips)] if self.max_flips else []
        fed = ["--seed", str(self.seed)] if is_seeded else [*torch, "--inputs", str(path)]
        self._record(path, [*raw, *fed, *budget])

    def add_tail(self, checks: list[Check]) -> None:
        """Save the raw values that the tail decided wrongly; the seed alone replays them."""
        for check in checks:
            flips = check.details.get("flips", ())
            if not check and check.subject.startswith("tail/") and flips:
                path = self._path(check.name)
                _save(path, {"raw": np.array([flip["raw"] for flip in flips], np.float32)})
                self._record(path, ["--seed", str(self.seed)])

    def _path(self, name: str) -> Path:
        return self.folder / f"{name.replace('/', '-')}.npz"

    def _record(self, path: Path, options: list[str]) -> None:
        threads = [] if self.threads is None else ["--threads", str(self.threads)]
        code = [word for name in self.code for word in ("--tail", name)]
        command = shlex.join(["postproc-export", "check", str(self.attached), *self.assumed, *code, *options, *threads])
        self.saved.append({"file": str(path), "replay": command})


def _save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    with folder_made_for(path), publishing([path]) as publication:
        np.savez(publication.temporary(path), **arrays)  # type: ignore[arg-type]  # the stubs take **arrays for allow_pickle
