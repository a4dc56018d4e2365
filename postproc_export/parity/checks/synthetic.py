"""The whole file on synthetic inputs: does it run wherever the original does, and give what it has to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from postproc_export.errors import PostprocError
from postproc_export.parity.checks.decisions import DecisionCheck
from postproc_export.parity.checks.synthetic_plan import SECONDS, WHOLE, Fed, Model, SyntheticPlan, one_line
from postproc_export.parity.models.attached_model import AttachedModel
from postproc_export.parity.models.configuration import Configuration
from postproc_export.parity.originals.raw_file import RawFile
from postproc_export.parity.reference.post_processor import Reference
from postproc_export.parity.reports.failures import FailureStore
from postproc_export.parity.reports.report import Check
from postproc_export.parity.stages.comparisons import Apart, Stage, Tapped
from postproc_export.parity.stages.way_runs import BatchRuns, ModelName
from postproc_export.runtimes import Runner

_MOVED: Final = 1e-5  # of a raw value: two compilations of a body, on values of any size
_PART: Final = "synthetic"
_WHERE: Final = {
    "run": "it cannot be loaded, unlike its original:",
    "batch": "it does not run where its original does, at",
}
_MODELS: Final[tuple[Model, ...]] = ("attached", "tapped", "apart")


@dataclass(slots=True)
class SyntheticCheck:
    """The whole file on synthetic inputs.

    Parameters
    ----------
    attached, reference
        The file, and what its outputs have to be.
    raw_file
        The original with raw outputs; None where it was not given: then what `detach` gives takes its place.
    folder
        An empty folder for temporary files.
    behind
        The check of what stands behind the decision; None where nothing does, or real inputs go through it.
    seed, threads, max_flips, failures
        As in `WholeCheck`.
    not_checked
        What could not be checked, one sentence each; filled while it runs.
    ran, not_run
        What was fed and what it was compared with, one line; or why nothing was.

    Notes
    -----
    Batch sizes 1 and 3, and two sizes of every open axis, as far as the original runs at them: sizes at which it does
    not run either are no miss.
    """

    attached: AttachedModel
    reference: Reference
    raw_file: RawFile | None
    folder: Path
    behind: DecisionCheck | None = None
    seed: int = 0
    threads: int | None = None
    max_flips: int = 0
    failures: FailureStore | None = None
    not_checked: list[str] = field(default_factory=list)
    ran: str | None = None
    not_run: str | None = None
    _stages: dict[Configuration, dict[type[Stage], Stage]] = field(default_factory=dict, init=False)
    _misses: dict[tuple[str, Configuration], dict[str, str]] = field(default_factory=dict, init=False)
    _plan: SyntheticPlan = field(init=False)

    def __post_init__(self) -> None:
        self._plan = SyntheticPlan(self.attached, self.raw_file, self.folder, self.seed, self.threads)

    def checks(self, ways: Sequence[Configuration]) -> Iterator[Check]:
        """Run every way that is judged, the usual ones first, and yield its checks."""
        self._plan.begin()
        judged = sorted((way for way in ways if way.judged), key=lambda way: not way.optimize)
        usable = [way for way in judged if self._loads(way)]
        plan = list(self._plan.fed(usable))
        for way, fed in self._plan.order(usable, plan):
            self._run(way, fed)
        for (name, way), reasons in self._misses.items():
            message = f"{_WHERE[name]} {', '.join(reasons)}: {next(iter(reasons.values()))}"
            yield Check(name=f"{_PART}/{name}/{way.label}", passed=False, way=way.label, message=message)
        for stages in self._stages.values():
            for stage in stages.values():
                yield from (_renamed(check) for check in stage.checks())
        said = self._plan.said
        self.not_checked += [f"{what}: {'; '.join(dict.fromkeys(parts))}" for what, parts in said.items()]
        if self._stages:
            fed_all = " and ".join(dict.fromkeys(inputs.shapes(size) for inputs, size in plan))
            self.ran = f"synthetic inputs, seed {self.seed}: {fed_all}; compared with {self._plan.original}"
            if self.behind is not None:
                inputs, size = plan[min(1, len(plan) - 1)]
                yield from (_renamed(check) for check in self.behind.whole(list(self._stages), inputs, size))
        elif not self._misses:
            self.not_run = next((parts[0] for parts in said.values()), "there is no runtime for it")

    def _loads(self, way: Configuration) -> bool:
        """Whether a way loads the file; a miss where it loads the original alone."""
        runner = self._plan.open("attached", way)
        if isinstance(runner, str):
            is_native = (way.runtime == "openvino") is (self.attached.file.format == "openvino")
            has_original = not isinstance(self._plan.open("apart", way), str)
            if has_original or (is_native and self._plan.raw_file is None):
                self._miss("run", way, "the file", runner)
            else:
                self._plan.say(WHOLE, f"{way.label} can load neither it nor the original: {runner}")
        return not isinstance(runner, str)

    def _run(self, way: Configuration, fed: Fed) -> None:
        """Feed one batch to the file and to its original."""
        (inputs, size), plan = fed, self._plan
        shown = inputs.shapes(size)
        if self._plan.is_late() and self._stages:
            self._plan.say(WHOLE, f"{way.label} at {shown} is left out after {SECONDS:g} s")
            return
        batch = self._plan.batch(inputs, size)
        opened = {name: self._plan.open(name, way) for name in _MODELS}
        runners: dict[ModelName, Runner] = {name: each for name, each in opened.items() if not isinstance(each, str)}
        runs = BatchRuns(batch, 0, runners)
        problems = {name: _problem_of(runs, name) if name in runners else str(opened[name]) for name in _MODELS}
        if problems["attached"] is None and problems["tapped"] is None:
            self._compare(way, runs, is_apart=problems["apart"] is None)
        elif problems["apart"] is None or problems["attached"] is None:
            reason = problems["attached"] or problems["tapped"]
            self._miss("batch", way, shown, str(reason))
            if self.failures is not None:
                self.failures.add_batch(f"synthetic/batch/{way.label}", batch, is_seeded=True)
        else:
            lacks = plan.raw_file is None
            other = "there is no original to compare with" if lacks else f"{plan.original} does not run either"
            plan.say(WHOLE, f"{way.label} at {shown}: {problems['attached']}; {other}")

    def _compare(self, way: Configuration, runs: BatchRuns, *, is_apart: bool) -> None:
        stages = self._stages.setdefault(way, {})
        if Tapped not in stages:
            stages[Tapped] = Tapped(self.reference, way)
        original = self._plan.raw_file
        if is_apart and Apart not in stages and original is not None:
            stages[Apart] = Apart(self.reference, way, original, max_flips=self.max_flips, relative=_MOVED)
        for kind, stage in stages.items():
            if kind is Apart and not is_apart:
                continue
            missed = stage.missed
            stage.ran_on(runs.runner("attached"))
            stage.add(runs)
            if self.failures is not None and stage.missed > missed:
                name = stage.name.replace("whole/", f"{_PART}/")
                self.failures.add_batch(f"{name}/{way.label}", runs.batch, is_seeded=True)

    def _miss(self, name: str, way: Configuration, where: str, reason: str) -> None:
        self._misses.setdefault((name, way), {}).setdefault(where, reason)


def _problem_of(runs: BatchRuns, model: ModelName) -> str | None:
    try:
        runs.of(model)
    except PostprocError as error:
        return one_line(error)
    return None


def _renamed(check: Check) -> Check:
    return replace(check, name=check.name.replace("whole/", f"{_PART}/", 1))
