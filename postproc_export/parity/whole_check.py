"""The whole file on real inputs: against the raw value tapped in the same compiled model, and against the raw file."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from postproc_export.errors import UnsupportedModelError
from postproc_export.parity.attached_model import AttachedModel, Format
from postproc_export.parity.batch_plan import Probe, plan_batches
from postproc_export.parity.configuration import Configuration
from postproc_export.parity.failures import FailureStore
from postproc_export.parity.raw_file import RawFile
from postproc_export.parity.real_inputs import RealInputs
from postproc_export.parity.reference import Reference
from postproc_export.parity.report import Check
from postproc_export.parity.stages import Apart, Default, Stage, Tapped
from postproc_export.runtimes import Runner, RuntimeName

_WAYS: Final = (
    Configuration(runtime="onnxruntime", optimize=False),
    Configuration(runtime="onnxruntime"),
    Configuration(runtime="openvino"),
    Configuration(runtime="openvino", precision="default"),
)


def whole_configurations(file_format: Format, runtimes: Sequence[RuntimeName]) -> list[Configuration]:
    """Return every way to run a whole file of a format on the runtimes at hand."""
    return [way for way in _WAYS if way.runtime in runtimes and (file_format == "onnx" or way.runtime == "openvino")]


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
    threads
        Threads inside an operator; None is the runtime's choice.
    max_flips
        Labels per output that may differ from the raw file's though the raw value lies outside the allowed band.
    progress
        Called with the number of samples run and of all there are to run.
    failures
        Where failing inputs are saved; None saves none.
    not_checked
        What could not be checked, one sentence each; filled while it runs.
    """

    attached: AttachedModel
    reference: Reference
    inputs: RealInputs
    raw_file: RawFile | None
    folder: Path
    threads: int | None = None
    max_flips: int = 0
    progress: Callable[[int, int], None] | None = None
    failures: FailureStore | None = None
    not_checked: list[str] = field(default_factory=list)
    _opened: dict[tuple[int, Configuration], Runner] = field(default_factory=dict, init=False)
    _sizes: tuple[int, ...] | None = field(default=None, init=False)

    def checks(self, ways: Sequence[Configuration]) -> Iterator[Check]:
        """Run every configuration and yield its checks."""
        tapped = self.attached.file.tapped(self.folder)
        for number, way in enumerate(ways):
            if self.progress is not None:
                self.progress(number, len(ways))
            if way.judged:
                self._opened.clear()
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
        plan = plan_batches(
            Probe(runner, self.attached.names),
            None if apart is None or self.raw_file is None else Probe(apart, self.raw_file.level_names),
            self.inputs,
            allowed=self._sizes,
        )
        self._sizes = self._sizes or plan.possible or None
        self.not_checked += [f"{way.label}, {refusal}" for refusal in plan.refusals]
        for sentence in (*plan.misses, *(() if plan.sizes else ("it runs at none of the batch sizes",))):
            yield _miss(f"whole/batch/{way.label}", way, sentence)
        if not plan.sizes:
            return
        stages: list[Stage] = [Tapped(self.reference, way, self._open(tapped, way))]
        if apart is not None and self.raw_file is not None:
            stages.append(Apart(self.reference, way, apart, self.raw_file, max_flips=self.max_flips))
        if not way.judged:
            exact = Configuration(runtime=way.runtime)
            stages.append(
                Default(self.reference, way, self._open(self.attached.path, exact), self._open(tapped, exact))
            )
        for stage in stages:
            stage.ran_on(runner)
        for batch in plan.batches(self.inputs):
            outputs = batch.run(runner)
            for stage in stages:
                missed_before = stage.missed
                stage.add(batch, outputs)
                if self.failures is not None and way.judged and stage.missed > missed_before:
                    self.failures.add_batch(f"{stage.name}/{way.label}", batch)
        for stage in stages:
            yield from stage.checks()

    def _open(self, model: Any, way: Configuration) -> Runner:
        """Load a model, or take the one that was loaded for the way before: the default is compared with float32."""
        key = (id(model), way)
        if key not in self._opened:
            self._opened[key] = way.open(model, threads=self.threads)
        return self._opened[key]

    def _open_apart(self, way: Configuration) -> Runner | None:
        if self.raw_file is None or not way.judged:
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
