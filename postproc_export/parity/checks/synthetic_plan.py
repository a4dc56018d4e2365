"""What the whole file is fed on synthetic inputs: sizes at which its original runs, found by trying."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from graph_patterns.errors import GraphPatternError
from postproc_export.calibration.models.files import model_files
from postproc_export.errors import MissingDependencyError, PostprocError
from postproc_export.parity.fed.real_inputs import RealBatch
from postproc_export.parity.fed.synthetic import (
    CHANNELS,
    KINDS,
    PAIRS,
    Kind,
    SyntheticInputs,
    has_open_axes,
    has_open_channels,
    unfit,
)
from postproc_export.parity.models.attached_model import AttachedModel
from postproc_export.parity.models.configuration import Configuration
from postproc_export.parity.originals.raw_file import RawFile, without_tail
from postproc_export.runtimes import PortInfo, Runner
from postproc_export.stats import Level

BATCHES: Final = (1, 3)
SECONDS: Final = 30.0
"""After so long nothing further is begun; what was left out is said."""

MOST_ELEMENTS: Final = 1 << 24
"""Larger inputs are fed at one batch size and one size only."""

WHOLE: Final = "the whole file on synthetic inputs"

_OTHER_BATCHES: Final = (2, 8)  # for models that run at neither 1 nor 3
_LARGE: Final = 1 << 28  # bytes of a model that is loaded for one way at a time

Model: TypeAlias = Literal["attached", "tapped", "apart"]
Fed: TypeAlias = tuple[SyntheticInputs, int]


@dataclass(slots=True)
class SyntheticPlan:
    """The file, itself with taps and its original, loaded every way, and what they are fed.

    Parameters
    ----------
    attached, raw_file, folder, seed, threads
        As in `SyntheticCheck`.
    said
        What could not be tried, by what it belongs to; filled while it runs.
    """

    attached: AttachedModel
    raw_file: RawFile | None
    folder: Path
    seed: int = 0
    threads: int | None = None
    said: dict[str, list[str]] = field(default_factory=dict)
    _models: dict[Model, Any] = field(default_factory=dict, init=False)
    _opened: dict[tuple[Model, Configuration], Runner | str] = field(default_factory=dict, init=False)
    _fed: tuple[SyntheticInputs, int, RealBatch] | None = field(default=None, init=False)
    _end: float = field(default=0.0, init=False)

    def begin(self) -> None:
        """Find the original, and start the clock."""
        self._end = time.monotonic() + SECONDS
        if self.raw_file is None:
            try:
                self.raw_file = without_tail(self.attached, self.folder)
            except (PostprocError, GraphPatternError) as error:
                self.say("the whole file against what is in front of its tail", one_line(error))
        tapped = self.attached.file.tapped(self.folder, self.attached.taps)
        self._models |= {"attached": self.attached.path, "tapped": tapped}

    @property
    def original(self) -> str:
        """What the original is, for people."""
        return "nothing, since there is no original" if self.raw_file is None else self.raw_file.describe()

    def fed(self, ways: Sequence[Configuration]) -> Iterator[Fed]:
        """Yield what is fed at which batch size: what the original was found to run at, then all else at once."""
        runs_both = (way for way in ways if not isinstance(self.open("apart", way), str))
        way = next(runs_both, next(iter(ways), None))
        if way is None:
            return
        ports = self._ports(way)
        strange = [port.describe() for port in ports if unfit(port)]
        if strange:
            self.say(WHOLE, f"nobody can tell what to feed {', '.join(strange)}")
            return
        chosen, base = self._sizes(way, ports)
        sizes = [base] if _static_batch(ports) is not None else list(dict.fromkeys((base, *BATCHES)))
        pairs = [(inputs, size) for size in sizes for inputs in chosen]
        for number, (inputs, size) in enumerate(dict.fromkeys((*pairs[:1], *pairs[-1:], *pairs))):
            if number and inputs.elements(size) > MOST_ELEMENTS:
                self.say(WHOLE, f"{inputs.shapes(size)} is left out for its size")
            else:
                yield inputs, size

    def _ports(self, way: Configuration) -> tuple[PortInfo, ...]:
        """Return the inputs as an original of this format declares them: an axis may be frozen in the attached one."""
        runner, apart = self.open("attached", way), self.open("apart", way)
        assert not isinstance(runner, str), "a way that is run loads the file"
        is_same = self.raw_file is not None and self.raw_file.path.suffix.lower() == self.attached.path.suffix.lower()
        if is_same and not isinstance(apart, str) and len(apart.inputs) == len(runner.inputs):
            return apart.inputs
        return runner.inputs

    def _sizes(self, way: Configuration, ports: tuple[PortInfo, ...]) -> tuple[list[SyntheticInputs], int]:
        """Return inputs of up to two sizes at which the original runs, and the batch size that was tried.

        Values at which all raw values are equal are not taken where others do better.
        """
        model: Model = "attached" if isinstance(self.open("apart", way), str) else "apart"
        static, dull = _static_batch(ports), None
        problems: list[str] = []
        for size in (static,) if static is not None else (*BATCHES, *_OTHER_BATCHES):
            for kind in KINDS:
                found = self._working(model, way, ports, kind, size, problems)
                if found and self._varies(model, way, found[0], size):
                    return found, size
                dull = dull or ((found, size) if found else None)
            if dull is not None:
                self.say("decisions on synthetic inputs", "the raw values are equal for all that was fed")
                return dull
        who = self.original if model == "apart" else "the file"
        self.say(WHOLE, f"{who} runs at none of the sizes that were tried: {next(iter(problems), 'no time is left')}")
        return [], 1

    def _working(
        self, model: Model, way: Configuration, ports: tuple[PortInfo, ...], kind: Kind, size: int, problems: list[str]
    ) -> list[SyntheticInputs]:
        """Return inputs at up to two sizes of the open axes at which a model runs."""
        pairs = PAIRS if has_open_axes(ports) else PAIRS[:1]
        found: list[SyntheticInputs] = []
        for channels in CHANNELS if has_open_channels(ports) else CHANNELS[:1]:
            for pair in pairs:
                inputs = SyntheticInputs(ports, pair, channels=channels, kind=kind, seed=self.seed)
                has_tried = bool(found or problems)  # loading alone may take all the time
                if len(found) == len(pairs[:2]) or (has_tried and self.is_late()):
                    break
                problem = self._problem(model, way, inputs, size)
                problems += [] if problem is None else [problem]
                found += [inputs] if problem is None else []
            if found:
                break
        if len(found) < len(pairs[:2]) and found:
            self.say("another size of the open axes", f"only {found[0].shapes(size)} was found to run")
        return found

    def _problem(self, model: Model, way: Configuration, inputs: SyntheticInputs, size: int) -> str | None:
        runner = self.open(model, way)
        if isinstance(runner, str):
            return runner
        try:
            outputs = self.batch(inputs, size).run(runner)
        except PostprocError as error:
            return one_line(error)
        if model == "attached" or self.raw_file is None or not self.attached.tail.options.is_packed:
            return None
        raw = self.raw_file.levels(outputs, runner)
        many = [level for level, values in raw.items() if _has_channels(level, values)]
        return f"its {many[0]} level then has channels: {raw[many[0]].shape}" if many else None

    def batch(self, inputs: SyntheticInputs, size: int) -> RealBatch:
        """Return the first batch; of large inputs it takes its time, so the last one is kept."""
        if self._fed is None or self._fed[:2] != (inputs, size):
            self._fed = (inputs, size, next(inputs.batches(size)))
        return self._fed[2]

    def _varies(self, model: Model, way: Configuration, inputs: SyntheticInputs, size: int) -> bool:
        """Whether the raw values of each level differ from each other."""
        runner = self.open(model, way)
        if model == "attached" or self.raw_file is None or isinstance(runner, str):
            return True
        seen: dict[Level, list[NDArray[Any]]] = {}
        for batch in inputs.batches(size, stop=2 * size):
            for level, values in self.raw_file.levels(batch.run(runner), runner).items():
                seen.setdefault(level, []).append(values.ravel())
        return all(len(np.unique(np.concatenate(values))) > 1 for values in seen.values())

    def order(self, ways: Sequence[Configuration], plan: Sequence[Fed]) -> Iterator[tuple[Configuration, Fed]]:
        """Yield every way with all that it is fed; a small file is tried every way first."""
        is_large = self._is_large()
        if is_large:
            self._opened.clear()
        first = [] if is_large else [(way, fed) for way in ways for fed in plan[:1]]
        yield from first
        for way in ways:
            yield from ((way, fed) for fed in plan[len(plan[:1]) if first else 0 :])
            self._opened = {key: runner for key, runner in self._opened.items() if key[1] != way}

    def _is_large(self) -> bool:
        return sum(path.stat().st_size for path in model_files(self.attached.path)) > _LARGE

    def open(self, model: Model, way: Configuration) -> Runner | str:
        """Load a model, once for each way, or return why it cannot be."""
        if (model, way) not in self._opened:
            self._opened[model, way] = self._loaded(model, way)
        return self._opened[model, way]

    def _loaded(self, model: Model, way: Configuration) -> Runner | str:
        try:
            if model != "apart":
                return self.attached.parts_of(way.open(self._models[model], threads=self.threads))
            if self.raw_file is None or not self.raw_file.can_run(way):
                return "there is no original that it reads"
            return self.raw_file.open(way, threads=self.threads)
        except MissingDependencyError:
            raise
        except PostprocError as error:
            return one_line(error)

    def is_late(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() > self._end

    def say(self, what: str, why: str) -> None:
        """Keep what could not be tried."""
        self.said.setdefault(what, []).append(why)


def _has_channels(level: Level, values: NDArray[Any]) -> bool:
    """Whether an open axis that counts as 1 became more: what is packed has no place for such raw values."""
    return values.ndim == (4 if level == "pixel" else 2) and values.shape[1] > 1


def _static_batch(ports: Sequence[PortInfo]) -> int | None:
    """Return the first axis of the inputs where it is fixed; 1 where no input has any axis."""
    if all(port.shape == () for port in ports):
        return 1
    sizes = [port.size(0) for port in ports if port.shape != ()]
    return next((size for size in sizes if size is not None), None) if None not in sizes else None


def one_line(error: Exception) -> str:
    """Return the text of an error in one line."""
    return " ".join(str(error).split())
