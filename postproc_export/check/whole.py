"""The whole file on real inputs, compared with itself at float32, the raw file and PyTorch."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from postproc_export.check.attached import AttachedModel, RawFeeds
from postproc_export.check.inputs import BatchPlan, RealInputs, plan_batches
from postproc_export.check.readings import LABELS, SCORES, BatchRuns, ModelName, RawStore, Reader
from postproc_export.check.reference import (
    READ_TAPS,
    READS,
    EagerTransform,
    RawFile,
    Reference,
    TorchRunner,
    image_size,
    named_output,
)
from postproc_export.check.report import Check, FailureStore
from postproc_export.check.stage_report import TORCH_ATTACHED, TORCH_RAW, WayResult
from postproc_export.check.stages import KeptValues, Trace, tapped_values
from postproc_export.check.steps import DecisionCheck
from postproc_export.check.tally import CheckTally, Outcome, details_of
from postproc_export.check.ways import Configuration, tail_patterns, with_fp16_weights, with_int8
from postproc_export.comparison import EXACT, TOLERANCES, ScoreDifference, Tolerance, compare_scores, transformed
from postproc_export.errors import UnsupportedModelError
from postproc_export.runtimes import PortInfo, Runner, RuntimeName
from postproc_export.stats import Level

# --- What the outputs of a whole file are compared with: values tapped in it, the raw file, PyTorch, itself at
# float32.


class Stage:
    """One thing that the outputs of one configuration are compared with."""

    name: ClassVar[str]

    def __init__(self, reference: Reference, way: Configuration) -> None:
        self._reference = reference
        self._tally = CheckTally(reference.attached, way, is_whole=True)

    @property
    def missed(self) -> int:
        """How many labels and scores were missed so far."""
        return self._tally.missed

    def ran_on(self, runner: Runner) -> None:
        """Record what gave the outputs that are compared."""
        self._tally.ran_on(runner)

    def add(self, runs: BatchRuns) -> None:
        """Compare one batch: what was fed, and what each model gave."""
        raise NotImplementedError

    def checks(self) -> Iterator[Check]:
        """Yield what was found."""
        raise NotImplementedError


class TappedValues(Stage):
    """The reference on the raw value tapped in the same compiled model: nothing may differ but rounding."""

    name = "whole/tapped"

    def add(self, runs: BatchRuns) -> None:
        """Compare what came out beside the taps."""
        raw = tapped_values(runs)
        self._tally.add(self._reference.outputs(raw), runs.of("tapped"), raw, self._reference)

    def checks(self) -> Iterator[Check]:
        """Yield one check per output."""
        return self._tally.checks(self.name)


class Apart(Stage):
    """The reference on the raw file's own outputs: exact in ONNX Runtime, in OpenVINO within another compilation."""

    name = "whole/raw"

    def __init__(
        self, reference: Reference, way: Configuration, raw_file: RawFile, *, max_flips: int, relative: float = 0.0
    ) -> None:
        super().__init__(reference, way)
        self._raw_file, self._relative = raw_file, relative
        self._tally.drift = "recompiled" if way.runtime == "openvino" else None
        self._tally.max_flips = max_flips
        self._others: dict[str, ScoreDifference] = {}

    def add(self, runs: BatchRuns) -> None:
        """Look at the raw file, too; outputs of no level that is post-processed are compared as they are."""
        apart, outputs, runner = runs.of("apart"), runs.of("attached"), runs.runner("apart")
        raw = self._raw_file.levels(apart, runner)
        self._tally.moved = self._moved(raw, runner)
        self._tally.add(self._reference.outputs(raw), outputs, raw, self._reference)
        for port in self._raw_file.others(runner):
            level = next((level for level, values in raw.items() if values is apart[port.name]), None)
            found = compare_scores(
                apart[port.name],
                self._counterpart(port, outputs),
                tolerance=self._allowed(level, runner),
                nan="same",
                dtype=port.dtype,
            )
            self._others[port.name] = self._others[port.name].merge(found) if port.name in self._others else found

    def checks(self) -> Iterator[Check]:
        """Yield one check per output, the untouched ones last."""
        yield from self._tally.checks(self.name)
        way = self._tally.configuration
        for name, difference in self._others.items():
            yield Check(
                name=f"whole/raw/{name}/{way.label}",
                passed=bool(difference) or way.runtime == "openvino",
                judged=way.runtime == "onnxruntime",
                message=difference.describe(),
                brief=difference.brief(),
                way=way.label,
                runtime=self._tally.runtime,
                precision=self._tally.precision,
                details=details_of(difference),
            )

    def _moved(self, raw: RawFeeds, runner: Runner) -> Mapping[Level, float]:
        """How far the values may have moved besides: by a transform, and by their size where they may be of any."""
        bounds = self._raw_file.bounds(runner)
        if not (self._relative and self._tally.drift):
            return bounds
        largest = {level: np.abs(values[np.isfinite(values)]).max(initial=0.0) for level, values in raw.items()}
        return {level: bounds.get(level, 0.0) + self._relative * float(size) for level, size in largest.items()}

    def _counterpart(self, port: PortInfo, outputs: Mapping[str, Any]) -> Any:
        """Return the attached file's output of one of the names that the raw file's output has."""
        found = (outputs.get(name) for name in (port.name, *port.aliases))
        return next((values for values in found if values is not None), None)

    def _allowed(self, level: Level | None, runner: Runner) -> Tolerance:
        stats = None if level is None else self._reference.attached.tail.stats.level(level)
        band = EXACT if self._tally.drift is None or stats is None else TOLERANCES[self._tally.drift](stats)
        moved = None if level is None else self._raw_file.bounds(runner).get(level)
        return band if moved is None else transformed(band.atol + moved)


class FromTorch(Stage):
    """The reference on the PyTorch model's raw values: equal within what another float32 computation explains."""

    name = "whole/torch"

    def __init__(self, reference: Reference, way: Configuration, values: RawStore, *, max_flips: int) -> None:
        super().__init__(reference, way)
        self._values = values
        self._tally.drift = "exported"
        self._tally.max_flips = max_flips

    def add(self, runs: BatchRuns) -> None:
        """Take the PyTorch model's values of the same samples."""
        raw, outputs = self._values.get(runs.start, runs.start + runs.batch.valid), runs.of("attached")
        expected = self._reference.outputs(raw)
        for name, values in expected.items():  # the module's own score may be [N], and the file's [N, 1]
            if name in outputs and outputs[name].size == values.size:
                expected[name] = values.reshape(outputs[name].shape)
        self._tally.add(expected, outputs, raw, self._reference)

    def checks(self) -> Iterator[Check]:
        """Yield one check per output."""
        return self._tally.checks(self.name)


class Default(Stage):
    """The same file at float32: what the machine's default precision does to the decisions. Shown, not judged."""

    name = "whole/float32"

    def add(self, runs: BatchRuns) -> None:
        """Run the file at float32, too; distances are those of the raw value there."""
        raw = tapped_values(runs, "exact tapped")
        self._tally.add(runs.of("exact"), runs.of("attached"), raw, self._reference)

    def checks(self) -> Iterator[Check]:
        """Yield one check per output."""
        return self._tally.checks(self.name)


class Transformed(Stage):
    """The eager twin of a transform on the values that it reads in the same compiled model."""

    name = "whole/transform"

    def __init__(self, reference: Reference, way: Configuration, transform: EagerTransform) -> None:
        super().__init__(reference, way)
        self._transform = transform
        self._outcome = Outcome(way)

    @property
    def missed(self) -> int:
        """How many values were missed so far."""
        return sum(found.over for found in self._outcome.found.values() if isinstance(found, ScoreDifference))

    def ran_on(self, runner: Runner) -> None:
        """Record what gave the values that are compared."""
        self._outcome.ran_on(runner)

    def add(self, runs: BatchRuns) -> None:
        """Compare what came out behind the transform with the twin on what came in."""
        outputs, runner = runs.of("tapped"), runs.runner("tapped")
        taps = {level: named_output(READ_TAPS[name], outputs, runner) for name, level in READS.items()}
        read = {level: values for level, values in taps.items() if values is not None}
        wanted, found = self._transform(read, size=image_size(runs.batch.feeds)), tapped_values(runs)
        tolerance = self._transform.tolerance(read, wanted)
        for level in self._transform.values:
            difference = compare_scores(wanted[level], found.get(level), tolerance=tolerance, nan="same")
            self._outcome.add(SCORES[level], difference)

    def checks(self) -> Iterator[Check]:
        """Yield one check per value that the transform makes."""
        return self._outcome.checks(self.name)


# --- What the stages found, as checks: where flips came in, and whether the export computes what PyTorch does.

_NAMES = {"image": "raw_score", "pixel": "raw_map"}
_HINT = "the usual reasons are channel order, scale, mean and std, size, and other weights"


def with_origin(checks: Iterable[Check], result: WayResult | None) -> Iterator[Check]:
    """Add to each check of labels which stage brought its flips in."""
    outcomes = {} if result is None else {LABELS[outcome.level]: outcome for outcome in result.outcomes}
    for check in checks:
        outcome = outcomes.get(check.subject.rpartition("/")[2])
        if outcome is None or not outcome.flipped:
            yield check
            continue
        stages = ", ".join(f"{stage} {count:,}" for stage, count in outcome.brought_in.items())
        yield replace(
            check,
            message=f"{check.message}; brought in by {stages}",
            details={**check.details, "brought_in": dict(outcome.brought_in)},
        )


def raw_checks(result: WayResult) -> Iterator[Check]:
    """Judge the raw values of the export against those of the PyTorch model, where there is one."""
    for stage in result.stages:
        if stage.stage not in (TORCH_RAW, TORCH_ATTACHED):
            continue
        passed = bool(stage.errors)
        message = stage.errors.describe()
        yield Check(
            name=f"whole/torch/{_NAMES[stage.level]}/{result.way.label}",
            passed=passed,
            message=message if passed else f"{stage.stage}: {message}: {_HINT}",
            brief=stage.errors.brief(),
            way=result.way.label,
            runtime=result.runtime,
            precision=result.precision,
            details={**details_of(stage.errors), "stage": stage.stage},
        )


# --- The whole file on real inputs: against its own tapped values, the raw file and the PyTorch model, by stage.


@dataclass(slots=True)
class WholeCheck:
    """The whole file on real inputs.

    Parameters
    ----------
    attached, reference
        The file, and what its outputs have to be.
    inputs
        What it is fed.
    raw_file
        The original with raw outputs; None where it was not given.
    folder
        An empty folder for temporary files.
    torch
        The PyTorch model; None where it was not given.
    transform
        What stands before the tail; None where nothing does.
    behind
        The check of what stands behind the decision; None where nothing does.
    threads
        Threads inside an operator; None is the runtime's choice.
    max_flips
        Labels per output that may differ from the raw file's or the PyTorch model's though the raw value lies outside
        the allowed band.
    progress
        Called with the number of ways run and of all there are to run.
    failures
        Where failing inputs are saved; None saves none.
    not_checked
        What could not be checked, one sentence each; filled while it runs.
    results
        What the stages of each way did; filled while it runs.
    """

    attached: AttachedModel
    reference: Reference
    inputs: RealInputs
    raw_file: RawFile | None
    folder: Path
    torch: TorchRunner | None = None
    transform: EagerTransform | None = None
    behind: DecisionCheck | None = None
    threads: int | None = None
    max_flips: int = 0
    progress: Callable[[int, int], None] | None = None
    failures: FailureStore | None = None
    not_checked: list[str] = field(default_factory=list)
    results: list[WayResult] = field(default_factory=list)
    _opened: dict[tuple[int, Configuration], Runner] = field(default_factory=dict, init=False)
    _sizes: tuple[int, ...] | None = field(default=None, init=False)
    _from_torch: KeptValues | None = field(default=None, init=False)
    _exact: dict[RuntimeName, KeptValues] = field(default_factory=dict, init=False)

    def checks(self, ways: Sequence[Configuration]) -> Iterator[Check]:
        """Run every configuration and yield its checks."""
        reads = {} if self.transform is None else self.transform.taps
        tapped = self.attached.file.tapped(self.folder, {**self.attached.taps, **reads})
        for number, way in enumerate(ways):
            if self.progress is not None:
                self.progress(number, len(ways))
            if way.judged:
                self._opened.clear()
            if way.weights == "stored":
                yield from self._stored(way, tapped)
            elif way.runtime in self._exact:  # else the file does not run there, as was said
                self._variant(way, tapped)
        if self.behind is not None and self._sizes:
            yield from self.behind.whole(ways, self.inputs, self._sizes[-1])

    def _stored(self, way: Configuration, tapped: Any) -> Iterator[Check]:
        apart = self._open_apart(way)
        try:
            yield from self._checks_of(way, self._open(self.attached.path, way), apart, tapped)
        except UnsupportedModelError as error:
            yield from self._failure(way, error, apart)

    def _failure(self, way: Configuration, error: UnsupportedModelError, apart: Runner | None) -> Iterator[Check]:
        """A miss, unless it is a foreign runtime that may know neither this file nor its original."""
        is_native = (way.runtime == "openvino") is (self.attached.file.format == "openvino")
        reason = " ".join(str(error).split())
        if is_native or apart is not None:
            yield _miss(f"whole/run/{way.label}", way, reason)
        else:
            self.not_checked.append(f"the whole file in {way.label}: {reason}")

    def _checks_of(self, way: Configuration, runner: Runner, apart: Runner | None, tapped: Any) -> Iterator[Check]:
        plan = self._plan(way, runner, apart if way.judged else None)
        frozen = () if apart is None or self.raw_file is None else self.raw_file.frozen_axes(apart, runner)
        for sentence in (*plan.misses, *frozen, *(() if plan.sizes else ("it runs at none of the batch sizes",))):
            yield _miss(f"whole/batch/{way.label}", way, sentence)
        if not plan.sizes:
            return
        runners: dict[ModelName, Runner] = {"attached": runner, "tapped": self._open(tapped, way)}
        if apart is not None:
            runners["apart"] = apart
        if not way.judged:
            runners |= {
                "exact": self._open(self.attached.path, way.exact),
                "exact tapped": self._open(tapped, way.exact),
            }
        self._run_torch(plan)
        stages = list(self._stages(way, apart))
        for stage in stages:
            stage.ran_on(runner)
        result = self._run(way, plan, runners, stages)
        for stage in stages:
            yield from with_origin(stage.checks(), result) if isinstance(stage, FromTorch) else stage.checks()
        if result is not None and way.judged:
            yield from raw_checks(result)

    def _stages(self, way: Configuration, apart: Runner | None) -> Iterator[Stage]:
        yield TappedValues(self.reference, way)
        if self.transform is not None:
            yield Transformed(self.reference, way, self.transform)
        if not way.judged:
            yield Default(self.reference, way)
            return
        if apart is not None and self.raw_file is not None:
            yield Apart(self.reference, way, self.raw_file, max_flips=self.max_flips)
        if self._from_torch is not None:
            yield FromTorch(self.reference, way, self._from_torch.store, max_flips=self.max_flips)

    def _variant(self, way: Configuration, tapped: Any) -> None:
        """Other weights than the file's: only the stages are looked at."""
        try:
            runners = self._variant_runners(way, tapped)
        except UnsupportedModelError as error:
            self.not_checked.append(f"the whole file in {way.label}: {' '.join(str(error).split())}")
            return
        plan = self._plan(way, runners["attached"], None)
        if plan.sizes:
            self._run(way, plan, runners, ())

    def _variant_runners(self, way: Configuration, tapped: Any) -> dict[ModelName, Runner]:
        if way.weights == "int8":
            size = (self._sizes or (1,))[0]
            model = with_int8(tapped, self.inputs, size, given=self._given(), ignored=tail_patterns(self.attached))
            both = self.attached.parts_of(way.open(model, threads=self.threads))
            return {"attached": both, "tapped": both}
        models: dict[ModelName, Any] = {"attached": self.attached.path, "tapped": tapped}
        opened = {name: self.attached.parts_of(self._open_fp16(way, model, name)) for name, model in models.items()}
        if self._exact[way.runtime].origin == "raw" and self.raw_file is not None:
            opened["apart"] = self.raw_file.behind_transform(self._open_fp16(way, self.raw_file.path, "raw"))
        return opened

    def _given(self) -> dict[str, NDArray[np.float32]]:
        """What inputs that adjust the tail are given."""
        return {item.name: np.array(item.default, np.float32) for item in self.attached.tail.adjustable}

    def _open_fp16(self, way: Configuration, model: Any, name: str) -> Runner:
        return way.open(with_fp16_weights(model, self.folder / f"fp16-{name}.xml"), threads=self.threads)

    def _plan(self, way: Configuration, runner: Runner, apart: Runner | None) -> BatchPlan:
        plan = plan_batches(
            (runner, self.attached.names),
            None if apart is None or self.raw_file is None else (apart, self.raw_file.level_names),
            self.inputs,
            allowed=self._sizes,
        )
        self._sizes = self._sizes or plan.possible or None
        self.not_checked += [f"{way.label}, {refusal}" for refusal in plan.refusals]
        return plan

    def _run_torch(self, plan: BatchPlan) -> None:
        if self.torch is None or self._from_torch is not None:
            return
        store = RawStore(self.folder, "torch", self.inputs.count)
        start = 0
        for batch in plan.batches(self.inputs):
            store.put(start, self.torch.raw(batch))
            start += batch.valid
        self._from_torch = KeptValues(store, "torch")

    def _run(
        self, way: Configuration, plan: BatchPlan, runners: dict[ModelName, Runner], stages: Sequence[Stage]
    ) -> WayResult | None:
        """Feed every batch to the stages and follow it through the chain."""
        is_kept = way == way.exact and way.runtime == "openvino"
        trace = Trace(
            Reader(self.reference),
            way,
            self.inputs,
            torch=self._from_torch,
            exact=None if way.judged else self._exact.get(way.runtime),
            raw_file=self.raw_file if "apart" in runners else None,
            keep=RawStore(self.folder, way.label, self.inputs.count) if is_kept else None,
        )
        start = 0
        for batch in plan.batches(self.inputs):
            runs = BatchRuns(batch, start, runners)
            trace.add(runs)
            for stage in stages:
                missed_before = stage.missed
                stage.add(runs)
                if self.failures is not None and way.judged and stage.missed > missed_before:
                    self.failures.add_batch(f"{stage.name}/{way.label}", batch)
            start += batch.valid
        if trace.kept is not None:
            self._exact[way.runtime] = trace.kept
        if trace.problem is not None:
            self.not_checked.append(f"{way.label}, stage by stage: {trace.problem}")
        result = trace.result()
        self.results += [] if result is None else [result]
        return result

    def _open(self, model: Any, way: Configuration) -> Runner:
        """Load a model, or take the one that was loaded for the way before: the default is compared with float32."""
        key = (id(model), way)
        if key not in self._opened:
            self._opened[key] = self.attached.parts_of(way.open(model, threads=self.threads))
        return self._opened[key]

    def _open_apart(self, way: Configuration) -> Runner | None:
        if self.raw_file is None:
            return None
        if not self.raw_file.can_run(way):
            self.not_checked.append(f"{way.label} does not read the raw file {self.raw_file.path}")
            return None
        try:
            return self.raw_file.open(way, threads=self.threads)
        except UnsupportedModelError as error:
            if way.runtime == "openvino" and self.raw_file.path.suffix.lower() == ".onnx":
                self.not_checked.append(f"the raw file in {way.label}: {' '.join(str(error).split())}")
                return None
            raise


def _miss(name: str, way: Configuration, reason: str) -> Check:
    return Check(name=name, passed=not way.judged, judged=way.judged, way=way.label, message=" ".join(reason.split()))
