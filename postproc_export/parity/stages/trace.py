"""The chain of one way of running, fed with what its models gave, batch by batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from postproc_export.errors import UsageError
from postproc_export.parity.fed.real_inputs import RealInputs
from postproc_export.parity.models.configuration import Configuration
from postproc_export.parity.originals.raw_file import RawFile
from postproc_export.parity.reference.tail_cases import RawFeeds
from postproc_export.parity.reports.stage_results import (
    RAW_ATTACHED,
    TAIL,
    TORCH_ATTACHED,
    TORCH_RAW,
    Baseline,
    WayResult,
)
from postproc_export.parity.stages.chain import Chain
from postproc_export.parity.stages.comparisons import tapped_values
from postproc_export.parity.stages.readings import RawStore, Reader, Reading
from postproc_export.parity.stages.way_runs import BatchRuns
from postproc_export.runtimes import Runner
from postproc_export.stats import Level

Source = Callable[[BatchRuns], RawFeeds]

_SHORT = {"fp16": "fp16 weights", "int8": "int8"}


@dataclass(frozen=True, slots=True)
class Stored:
    """Raw values of every sample that were kept from an earlier run.

    Parameters
    ----------
    store
        The values.
    origin
        Whose they are.
    """

    store: RawStore
    origin: Baseline

    def of(self, runs: BatchRuns) -> RawFeeds:
        """Return those of the samples of a batch."""
        return self.store.get(runs.start, runs.start + runs.batch.valid)


class Trace:
    """What the stages of one way did.

    Parameters
    ----------
    reader
        Decides on raw values.
    way
        How the models are run.
    inputs
        What they are fed.
    torch
        The PyTorch model's values; None where there is none.
    exact
        The values at float32 in the same runtime; None where this way is at float32 itself.
    raw_file
        The raw file, where it is run this way, too.
    keep
        Where the values in front of the attached file's tail are kept, for other ways to be compared with.
    """

    def __init__(
        self,
        reader: Reader,
        way: Configuration,
        inputs: RealInputs,
        *,
        torch: Stored | None,
        exact: Stored | None,
        raw_file: RawFile | None,
        keep: RawStore | None = None,
    ) -> None:
        self.problem: str | None = None
        self._reader, self._way, self._inputs = reader, way, inputs
        self._stored = [stored for stored in (torch, exact) if stored is not None]
        self._raw_file, self._keep = raw_file, keep
        self._has_raw = raw_file is not None if exact is None else exact.origin == "raw"
        self._chain: Chain | None = None
        self._runner: Runner | None = None

    @property
    def kept(self) -> Stored | None:
        """The values that were kept, the raw file's where it was run."""
        return None if self._keep is None else Stored(self._keep, "attached" if self._raw_file is None else "raw")

    def add(self, runs: BatchRuns) -> None:
        """Follow one batch through the stages.

        Raises
        ------
        UsageError
            If the PyTorch model's outputs are of another size than the exported model's.
        """
        body = tapped_values(runs)
        apart = None if self._raw_file is None else self._raw_file.levels(runs.of("apart"), runs.runner("apart"))
        if self._keep is not None:
            self._keep.put(runs.start, body if apart is None else apart)
        if self.problem is not None:
            return
        self.problem = self._reader.misfit(body, runs.of("tapped")) or self._reader.misfit(body, runs.of("attached"))
        if self.problem is not None:
            return
        tapped = self._reader.tapped(body, runs.of("tapped"), runs.of("attached"))
        before = [stored.of(runs) for stored in self._stored] + ([] if apart is None else [apart])
        readings = [self._reader.asked(raw) for raw in before]
        for number, reading in enumerate(readings):
            self._compare_sizes(number, reading, tapped.body)
        if self.problem is None:
            self._runner = runs.runner("attached")
            if self._chain is None:
                self._chain = Chain(self._reader.attached, self._names(self._runner), self._inputs.sample_name)
            self._chain.add(readings, tapped, body["pixel"].shape[-2:] if "pixel" in body else ())

    def result(self) -> WayResult | None:
        """Return what came of it; None where nothing could be compared."""
        if self._chain is None or self._runner is None or self.problem is not None:
            return None
        return WayResult(
            way=self._way,
            runtime=f"{self._runner.name} {self._runner.version}",
            precision=self._runner.inference_precision,
            baseline=self._baseline(),
            stages=self._chain.results(),
            outcomes=self._chain.outcomes(),
        )

    def _baseline(self) -> Baseline:
        if self._stored:
            return self._stored[0].origin
        return "attached" if self._raw_file is None else "raw"

    def _names(self, runner: Runner) -> Sequence[str]:
        names = []
        if any(stored.origin == "torch" for stored in self._stored):
            names.append(TORCH_RAW if self._has_raw else TORCH_ATTACHED)
        if any(stored.origin != "torch" for stored in self._stored):
            names.append(f"f32 -> {_precision(self._way, runner)}")
        if self._raw_file is not None:
            names.append(RAW_ATTACHED)
        return [*names, TAIL]

    def _compare_sizes(self, number: int, reading: Reading, body: Reading) -> None:
        for level, values in body.raw.items():
            found = reading.raw[level].shape
            if found == values.shape:
                continue
            sentence = f"{found[1]:,} values per sample on the {level} level, and the attached file {values.shape[1]:,}"
            if number < len(self._stored) and self._stored[number].origin == "torch":
                raise UsageError(
                    f"the PyTorch module gives {sentence}",
                    needed="the module that was exported, at the same size",
                    fix=_output_option(level),
                )
            self.problem = f"the raw file gives {sentence}"


def _precision(way: Configuration, runner: Runner) -> str:
    if way.weights != "stored":
        return _SHORT[way.weights]
    return "default" if runner.inference_precision == "float32" else runner.inference_precision


def _output_option(level: Level) -> str:
    return f"name the raw output of the module with --{level}-output, if it is another one"
