"""The whole file on real inputs: against its own tapped values, the raw file and the PyTorch model, by stage."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from postproc_export.errors import UnsupportedModelError
from postproc_export.parity.checks.decisions import DecisionCheck
from postproc_export.parity.fed.batch_plan import BatchPlan, Probe, plan_batches
from postproc_export.parity.fed.real_inputs import RealInputs
from postproc_export.parity.models.attached_model import AttachedModel
from postproc_export.parity.models.configuration import Configuration
from postproc_export.parity.models.variants import tail_patterns, with_fp16_weights, with_int8
from postproc_export.parity.originals.raw_file import RawFile
from postproc_export.parity.originals.torch_runner import TorchRunner
from postproc_export.parity.reference.eager_transform import EagerTransform
from postproc_export.parity.reference.post_processor import Reference
from postproc_export.parity.reports.failures import FailureStore
from postproc_export.parity.reports.report import Check
from postproc_export.parity.reports.stage_results import WayResult
from postproc_export.parity.stages.checks import raw_checks, with_origin
from postproc_export.parity.stages.comparisons import Apart, Default, FromTorch, Stage, Tapped, Transformed
from postproc_export.parity.stages.readings import RawStore, Reader
from postproc_export.parity.stages.trace import Stored, Trace
from postproc_export.parity.stages.way_runs import BatchRuns, ModelName
from postproc_export.runtimes import Runner, RuntimeName


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
    _from_torch: Stored | None = field(default=None, init=False)
    _exact: dict[RuntimeName, Stored] = field(default_factory=dict, init=False)

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
        yield Tapped(self.reference, way)
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
            Probe(runner, self.attached.names),
            None if apart is None or self.raw_file is None else Probe(apart, self.raw_file.level_names),
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
        self._from_torch = Stored(store, "torch")

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
