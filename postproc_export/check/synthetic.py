"""The whole file on synthetic inputs: does it run wherever the original does, and give what it has to."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from postproc_export.check.attached import AttachedModel
from postproc_export.check.chain import BatchRuns, ModelName
from postproc_export.check.findings import Check
from postproc_export.check.inputs import (
    CHANNELS,
    KINDS,
    PAIRS,
    Kind,
    RealBatch,
    SyntheticInputs,
    has_open_axes,
    has_open_channels,
    unfit,
)
from postproc_export.check.reference import RawFile, Reference, without_tail
from postproc_export.check.report import FailureStore
from postproc_export.check.steps import DecisionCheck
from postproc_export.check.ways import Configuration
from postproc_export.check.whole import (
    MOVED,
    BatchComparison,
    LoadedModels,
    Model,
    not_run,
    one_line,
    with_raw_file,
    with_taps,
)
from postproc_export.errors import PostprocError
from postproc_export.runtimes import PortInfo, Runner, installed_runtimes
from postproc_export.stats import Level

BATCHES: Final = (1, 3)
SECONDS: Final = 30.0  # after so long nothing further is begun; what was left out is said
MOST_ELEMENTS: Final = 1 << 24  # larger inputs are fed at one batch size and one size only
WHOLE: Final = "the whole file on synthetic inputs"
_OTHER_BATCHES: Final = (2, 8)  # for models that run at neither 1 nor 3

Fed: TypeAlias = tuple[SyntheticInputs, int]


class SyntheticPlan(LoadedModels):
    """The file, itself with taps and its original, and the synthetic inputs that they are fed.

    `said` is what could not be tried, by what it belongs to; it is filled while it runs.
    """

    def __init__(
        self, attached: AttachedModel, raw_file: RawFile | None, folder: Path, *, seed: int, threads: int | None
    ) -> None:
        super().__init__(attached, raw_file, threads=threads)
        self.folder, self.seed = folder, seed
        self.said: dict[str, list[str]] = {}
        self._fed: tuple[SyntheticInputs, int, RealBatch] | None = None
        self._end = 0.0

    def begin(self) -> None:
        """Find the original, and start the clock."""
        self._end = time.monotonic() + SECONDS
        if self.raw_file is None:
            try:
                self.raw_file = without_tail(self.attached, self.folder)
            except PostprocError as error:
                self.say("the whole file against what is in front of its tail", one_line(error))
        self.tap(self.folder, self.attached.taps)

    @property
    def original(self) -> str:
        """What the original is, for people."""
        return "nothing, since there is no original" if self.raw_file is None else self.raw_file.describe()

    def fed(self, ways: Sequence[Configuration]) -> Iterator[Fed]:
        """Yield what is fed at which batch size: what the original was found to run at, then all else at once."""
        for way in self._tried(ways):
            ports = self._ports(way)
            strange = [port.describe() for port in ports if unfit(port)]
            if strange:
                self.say(WHOLE, f"nobody can tell what to feed {', '.join(strange)}")
                return
            chosen, base = self._sizes(way, ports)
            if chosen:
                break
        else:
            return
        sizes = [base] if _static_batch(ports) is not None else list(dict.fromkeys((base, *BATCHES)))
        pairs = [(inputs, size) for size in sizes for inputs in chosen]
        for number, (inputs, size) in enumerate(dict.fromkeys((*pairs[:1], *pairs[-1:], *pairs))):
            if number and inputs.elements(size) > MOST_ELEMENTS:
                self.say(WHOLE, f"{inputs.shapes(size)} is left out for its size")
            else:
                yield inputs, size

    def _tried(self, ways: Sequence[Configuration]) -> Iterator[Configuration]:
        """Yield ways to find what to feed; the last is the runtime of the format, where others were asked for."""
        runs_both = [way for way in ways if not isinstance(self.open("raw", way), str)]
        one_of_each: dict[str, Configuration] = {}
        for way in runs_both or ways[:1]:
            one_of_each.setdefault(way.runtime if way.target is None else way.label, way)
        yield from one_of_each.values()
        own = Configuration(runtime=self.attached.form.runtimes[0])
        is_known = own.label in one_of_each or own.runtime not in installed_runtimes()
        if one_of_each and not is_known and not isinstance(self.open("attached", own), str):
            yield own

    def _ports(self, way: Configuration) -> tuple[PortInfo, ...]:
        """Return the inputs as an original of this format declares them: an axis may be frozen in the attached one."""
        runner, apart = self.open("attached", way), self.open("raw", way)
        assert not isinstance(runner, str), "a way that is run loads the file"
        is_same = self.raw_file is not None and self.raw_file.path.suffix.lower() == self.attached.path.suffix.lower()
        if is_same and not isinstance(apart, str) and len(apart.inputs) == len(runner.inputs):
            return apart.inputs
        return runner.inputs

    def _sizes(self, way: Configuration, ports: tuple[PortInfo, ...]) -> tuple[list[SyntheticInputs], int]:
        """Return inputs of up to two sizes at which the original runs, and the batch size that was tried.

        Values at which all raw values are equal are not taken where others do better.
        """
        model: Model = "attached" if isinstance(self.open("raw", way), str) else "raw"
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
        who = self.original if model == "raw" else "the file"
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
        # An open axis that counts as 1 became more: what is packed has no place for such raw values.
        ranks: dict[Level, int] = {"image": 2, "pixel": 4}
        many = [level for level, values in raw.items() if values.ndim == ranks[level] and values.shape[1] > 1]
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

    def order(
        self, ways: Sequence[Configuration], plan: Sequence[Fed], later: Sequence[Configuration]
    ) -> Iterator[tuple[Configuration, Fed]]:
        """Yield every way with all that it is fed; a small file is tried every way first.

        What is loaded for ways that are run later is kept, as far as the file is small.
        """
        first = [] if self.is_large else [(way, fed) for way in ways for fed in plan[:1]]
        if self.is_large:  # most of what was tried is loaded anew, and the rest is to be like it
            self.reset()
        yield from first
        for number, way in enumerate(ways):
            self.keep([*ways[number:], *later])
            yield from ((way, fed) for fed in plan[len(plan[:1]) if first else 0 :])
        self.keep(later)

    def is_late(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() > self._end

    def say(self, what: str, why: str) -> None:
        """Keep what could not be tried."""
        self.said.setdefault(what, []).append(why)


def _static_batch(ports: Sequence[PortInfo]) -> int | None:
    """Return the first axis of the inputs where it is fixed; 1 where no input has any axis."""
    if all(port.shape == () for port in ports):
        return 1
    sizes = [port.size(0) for port in ports if port.shape != ()]
    return next((size for size in sizes if size is not None), None) if None not in sizes else None


_PART: Final = "synthetic"
_WHERE: Final = {
    "run": "it cannot be loaded, unlike its original:",
    "batch": "it does not run where its original does, at",
}
_MODELS: Final[tuple[Model, ...]] = ("attached", "tapped", "raw")


class SyntheticCheck:
    """The whole file on synthetic inputs: batch sizes 1 and 3, two sizes of every open axis.

    Sizes at which the original does not run either are no miss; without one what `detach` gives takes its place.
    `behind` is the check of what stands behind the decision, where real inputs do not go through it. `not_checked` is
    filled while it runs, and so is `ran` (what was fed and what it was compared with) or `not_run` (why nothing was).
    """

    def __init__(
        self,
        reference: Reference,
        plan: SyntheticPlan,
        behind: DecisionCheck | None,
        *,
        max_flips: int,
        failures: FailureStore | None,
    ) -> None:
        self.not_checked: list[str] = []
        self.ran: str | None = None
        self.not_run: str | None = None
        self._reference, self._plan, self._behind = reference, plan, behind
        self._max_flips, self._failures = max_flips, failures
        self._comparisons: dict[Configuration, dict[Model, list[BatchComparison]]] = {}
        self._misses: dict[tuple[str, Configuration], dict[str, str]] = {}
        self._strange: dict[Configuration, str] = {}  # asked for by name: why neither the file nor its original runs

    def checks(self, ways: Sequence[Configuration], *, later: Sequence[Configuration]) -> Iterator[Check]:
        """Run every way that is judged, the usual ones first, and yield its checks; `later` are run once more."""
        self._plan.begin()
        judged = sorted((way for way in ways if way.judged), key=lambda way: not way.optimize)
        usable = [way for way in judged if self._loads(way)]
        plan = list(self._plan.fed(usable))
        for way, fed in self._plan.order(usable, plan, later):
            self._run(way, fed)
        for (name, way), reasons in self._misses.items():
            message = f"{_WHERE[name]} {', '.join(reasons)}: {next(iter(reasons.values()))}"
            yield Check(name=f"{_PART}/{name}/{way.label}", passed=False, way=way.label, message=message)
        for way, reason in self._strange.items():
            if way not in self._comparisons:
                yield not_run(_PART, way, reason, alone=self._plan.raw_file is None)
        for of_way in self._comparisons.values():
            for comparison in (each for model in of_way.values() for each in model):
                yield from comparison.tally.checks()
        said = self._plan.said
        self.not_checked += [f"{what}: {'; '.join(dict.fromkeys(parts))}" for what, parts in said.items()]
        if self._comparisons:
            fed_all = " and ".join(dict.fromkeys(inputs.shapes(size) for inputs, size in plan))
            self.ran = f"synthetic inputs, seed {self._plan.seed}: {fed_all}; compared with {self._plan.original}"
            if self._behind is not None:
                inputs, size = plan[min(1, len(plan) - 1)]
                yield from self._behind.whole(list(self._comparisons), inputs, size, part=_PART)
        elif not self._misses and not self._strange:
            self.not_run = next((parts[0] for parts in said.values()), "there is no runtime for it")

    def _loads(self, way: Configuration) -> bool:
        """Whether a way loads the file; a failure where it loads the original alone."""
        runner = self._plan.open("attached", way)
        if isinstance(runner, str):
            is_native = way.runtime == self._plan.attached.form.runtimes[0]
            has_original = not isinstance(self._plan.open("raw", way), str)
            if has_original or (is_native and self._plan.raw_file is None):
                self._misses.setdefault(("run", way), {}).setdefault("the file", runner)
            elif way.target is not None:
                self._strange[way] = runner
            else:
                self._plan.say(WHOLE, f"{way.label} can load neither it nor the original: {runner}")
        return not isinstance(runner, str)

    def _run(self, way: Configuration, fed: Fed) -> None:
        """Feed one batch to the file and to its original."""
        (inputs, size), plan = fed, self._plan
        shown = inputs.shapes(size)
        if plan.is_late() and self._comparisons:
            plan.say(WHOLE, f"{way.label} at {shown} is left out after {SECONDS:g} s")
            return
        batch = plan.batch(inputs, size)
        opened = {name: plan.open(name, way) for name in _MODELS}
        runners: dict[ModelName, Runner] = {name: each for name, each in opened.items() if not isinstance(each, str)}
        runs = BatchRuns(batch, runners, self._reference, plan.raw_file)
        problems = {name: _problem_of(runs, name) if name in runners else str(opened[name]) for name in _MODELS}
        if problems["attached"] is None and problems["tapped"] is None:
            self._compare(way, runs, has_raw=problems["raw"] is None)
        elif problems["raw"] is None or problems["attached"] is None:
            reason = problems["attached"] or problems["tapped"]
            self._misses.setdefault(("batch", way), {}).setdefault(shown, str(reason))
            if self._failures is not None:
                self._failures.add_batch(f"{_PART}/batch/{way.label}", batch, is_seeded=True)
        else:
            if way.target is not None:
                self._strange.setdefault(way, f"at {shown}: {problems['attached']}")
            lacks = plan.raw_file is None
            other = "there is no original to compare with" if lacks else f"{plan.original} does not run either"
            plan.say(WHOLE, f"{way.label} at {shown}: {problems['attached']}; {other}")

    def _compare(self, way: Configuration, runs: BatchRuns, *, has_raw: bool) -> None:
        reference, original = self._reference, self._plan.raw_file
        found = self._comparisons.setdefault(way, {"tapped": [with_taps(reference, way, _PART)]})
        if has_raw and "raw" not in found and original is not None:
            found["raw"] = with_raw_file(reference, way, original, self._max_flips, part=_PART, relative=MOVED)
        for model, comparisons in found.items():
            for comparison in comparisons if has_raw or model != "raw" else ():
                comparison.add(runs, self._failures, is_seeded=True)


def _problem_of(runs: BatchRuns, model: ModelName) -> str | None:
    try:
        runs.outputs(model)
    except PostprocError as error:
        return one_line(error)
    return None
