"""The whole file on real inputs, compared with itself at float32, the raw file and PyTorch."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from postproc_export.check.attached import AttachedModel, RawFeeds
from postproc_export.check.chain import (
    LABELS,
    SCORES,
    TORCH_ATTACHED,
    TORCH_RAW,
    BatchRuns,
    ModelName,
    RawStore,
    Reader,
    Source,
    Trace,
    WayResult,
)
from postproc_export.check.findings import Check, failed
from postproc_export.check.inputs import RealBatch, RealInputs
from postproc_export.check.reference import (
    READ_TAPS,
    READS,
    EagerTransform,
    RawFile,
    Reference,
    image_size,
    named_output,
)
from postproc_export.check.report import FailureStore
from postproc_export.check.steps import DecisionCheck
from postproc_export.check.tail import CheckTally, compare_tail
from postproc_export.check.torch_model import TorchRunner
from postproc_export.check.ways import Configuration, tail_patterns, with_fp16_weights, with_int8
from postproc_export.comparison import (
    EXACT,
    TOLERANCES,
    Difference,
    Tolerance,
    compare_scores,
    narrow,
    together,
    transformed,
)
from postproc_export.errors import MissingDependencyError, PostprocError, UnsupportedModelError
from postproc_export.files import model_files
from postproc_export.formats.base import format_of
from postproc_export.runtimes import PortInfo, Runner, as_float32
from postproc_export.stats import Level
from postproc_export.tail import Tail

MOVED: Final = 1e-5  # of a raw value: two compilations of a body, on values of any size
LARGE: Final = 1 << 28  # bytes of a model that is loaded for one way at a time
_NAMES: Final[Mapping[Level, str]] = {"image": "raw_score", "pixel": "raw_map"}

Model: TypeAlias = Literal["attached", "tapped", "raw"]
Compare: TypeAlias = Callable[[BatchRuns], Mapping[str, Difference]]


def one_line(error: Exception) -> str:
    """Return the text of an error in one line."""
    return " ".join(str(error).split())


def not_run(part: str, way: Configuration, reason: str, *, fix: str | None = None, alone: bool = False) -> Check:
    """Return the failure of a way that runs neither a file nor its original, or the file `alone`.

    Without another mend it is a runtime that was asked for by its name.
    """
    fix = fix or f"leave {way.label} out, or export for it: with axes that are fixed, or other operators"
    message = f"{'it does not run' if alone else 'it runs neither the file nor its original'}: {reason}"
    check = failed(f"{part}/run/{way.label}", message, fix=fix)
    return replace(check, way=way.label, judged=way.judged)


class LoadedModels:
    """The file, itself with taps and its original, each loaded once for every way of running it."""

    def __init__(self, attached: AttachedModel, raw_file: RawFile | None, *, threads: int | None) -> None:
        self.attached, self.raw_file, self.threads = attached, raw_file, threads
        self.models: dict[Model, Any] = {"attached": attached.path}
        self._opened: dict[tuple[Model, Configuration], Runner | str] = {}

    @cached_property
    def is_large(self) -> bool:
        """Whether it is loaded for one way at a time."""
        return sum(path.stat().st_size for path in model_files(self.attached.path)) > LARGE

    def tap(self, folder: Path, taps: Mapping[str, PortInfo]) -> None:
        """Give the file taps, other ones maybe than before; see `AttachedModel.tapped`."""
        self.drop("tapped")
        self.models["tapped"] = self.attached.tapped(folder, taps)

    def load(self, model: Model, way: Configuration) -> Runner:
        """Return a model loaded for a way; what could not be loaded is tried again, for its error."""
        runner = self._opened.get((model, way))
        if runner is None or isinstance(runner, str):
            if model == "raw":
                assert self.raw_file is not None, "an original that is loaded is there"
                runner = self.raw_file.open(way, threads=self.threads)
            else:
                runner = self.attached.parts_of(way.open(self.models[model], threads=self.threads))
            self._opened[model, way] = runner
        return runner

    def open(self, model: Model, way: Configuration) -> Runner | str:
        """Return a model loaded for a way, or why it cannot be."""
        if (model, way) not in self._opened:
            self._opened[model, way] = "there is no original that it reads"
            try:
                if model != "raw" or (self.raw_file is not None and self.raw_file.can_run(way)):
                    self.load(model, way)
            except MissingDependencyError:
                raise
            except PostprocError as error:
                self._opened[model, way] = one_line(error)
        return self._opened[model, way]

    def keep(self, ways: Sequence[Configuration]) -> None:
        """Let go of what is loaded for others than some ways; of a large file, for all but the first."""
        kept = ways[:1] if self.is_large else ways
        self._opened = {key: runner for key, runner in self._opened.items() if key[1] in kept}

    def drop(self, model: Model) -> None:
        """Let go of a model in all ways."""
        self._opened = {key: runner for key, runner in self._opened.items() if key[0] != model}

    def reset(self) -> None:
        """Let all that is loaded forget what it was fed."""
        for runner in self._opened.values():
            if not isinstance(runner, str):
                runner.reset()


class BatchComparison:
    """One thing that the outputs of one way of running are compared with, and the tally of it."""

    def __init__(
        self,
        name: str,
        way: Configuration,
        compare: Compare,
        max_flips: int = 0,
        *,
        is_shown: bool = False,
        is_saved: bool = True,
    ) -> None:
        self.tally = CheckTally(name, way.label, way.judged and not is_shown, max_flips)
        self._compare, self._is_saved = compare, is_saved  # whether inputs on which something fails are kept

    def add(self, runs: BatchRuns, failures: FailureStore | None, *, is_seeded: bool = False) -> None:
        """Compare one batch, and save it where something failed."""
        failures_before = self.tally.failed
        self.tally.ran_on(runs.runners["attached"])
        self.tally.add(self._compare(runs))
        if failures is not None and self._is_saved and self.tally.judged and self.tally.failed > failures_before:
            failures.add_batch(f"{self.tally.name}/{self.tally.way}", runs.batch, is_seeded=is_seeded)


def with_taps(reference: Reference, way: Configuration, part: str = "whole") -> BatchComparison:
    """The reference on the raw value tapped in the same compiled model: nothing may differ but rounding."""

    def compare(runs: BatchRuns) -> Mapping[str, Difference]:
        expected, raw = runs.expected("tapped"), runs.raw("tapped")
        return compare_tail(reference, expected, runs.outputs("tapped"), raw, is_whole=True)

    return BatchComparison(f"{part}/tapped", way, compare)


def with_float32(reference: Reference, way: Configuration) -> BatchComparison:
    """The same file at float32: what the machine's default precision does to the decisions. Shown, not judged.

    Distances from the boundary are those of the raw value at float32.
    """

    def compare(runs: BatchRuns) -> Mapping[str, Difference]:
        exact, raw = runs.outputs("exact"), runs.raw("exact tapped")
        return compare_tail(reference, exact, runs.outputs("attached"), raw, is_whole=True)

    return BatchComparison("whole/float32", way, compare)


def with_torch(reference: Reference, way: Configuration, max_flips: int) -> BatchComparison:
    """The reference on the PyTorch model's raw values: equal within what another float32 computation explains."""

    def compare(runs: BatchRuns) -> Mapping[str, Difference]:
        expected, outputs = dict(runs.expected("torch")), runs.outputs("attached")
        for name, values in expected.items():  # the module's own score may be [N], and the file's [N, 1]
            if name in outputs and outputs[name].size == values.size:
                expected[name] = values.reshape(outputs[name].shape)
        return compare_tail(reference, expected, outputs, runs.raw("torch"), allowance="exported", is_whole=True)

    return BatchComparison("whole/torch", way, compare, max_flips)


def with_raw_file(
    reference: Reference,
    way: Configuration,
    raw_file: RawFile,
    max_flips: int,
    *,
    part: str = "whole",
    relative: float = 0.0,
) -> list[BatchComparison]:
    """The reference on the raw file's own outputs: exact in ONNX Runtime, in OpenVINO within another compilation.

    The raw values themselves are compared, too: scores that are clamped do not show what they are made of. Outputs of
    no level that is post-processed are compared as they are. With `relative` raw values may be of any size, and move by
    so much of the largest.
    """
    allowance = "recompiled" if way.recompiles else None

    def compare(runs: BatchRuns) -> Mapping[str, Difference]:
        raw, raw_error = runs.raw("raw"), dict(raw_file.bounds(runs.runners["raw"]))
        for level, values in raw.items() if relative and allowance else ():
            largest = np.abs(values[np.isfinite(values)]).max(initial=0.0)
            raw_error[level] = raw_error.get(level, 0.0) + relative * float(largest)
        expected, outputs = runs.expected("raw"), runs.outputs("attached")
        found = compare_tail(reference, expected, outputs, raw, allowance=allowance, is_whole=True, raw_error=raw_error)
        return {**found, **compare_raw(reference.attached.tail, runs.raw("raw"), runs.raw("tapped"), raw_error)}

    def others(runs: BatchRuns) -> Mapping[str, Difference]:
        apart, runner, outputs = runs.outputs("raw"), runs.runners["raw"], runs.outputs("attached")
        found = {}
        for port in raw_file.others(runner):
            level = next((level for level, values in runs.raw("raw").items() if values is apart[port.name]), None)
            stats = None if level is None else reference.attached.tail.stats.level(level)
            band = EXACT if allowance is None or stats is None else TOLERANCES[allowance](stats)
            bound = None if level is None else raw_file.bounds(runner).get(level)
            counterparts = (outputs.get(name) for name in (port.name, *port.aliases))
            found[port.name] = compare_scores(
                apart[port.name],
                next((values for values in counterparts if values is not None), None),
                tolerance=band if bound is None else transformed(band.atol + bound),
                nan="same",
                dtype=port.dtype,
            )
        return found

    return [
        BatchComparison(f"{part}/raw", way, compare, max_flips),
        BatchComparison(f"{part}/raw", way, others, is_saved=False, is_shown=allowance is not None),
    ]


def compare_raw(tail: Tail, raw: RawFeeds, tapped: RawFeeds, errors: Mapping[Level, float]) -> dict[str, Difference]:
    """Compare raw values with those read in front of a tail, within another compilation and `errors` of a transform."""
    found: dict[str, Difference] = {}
    for level, apart in raw.items():
        stats, values, half = tail.stats.level(level), as_float32(apart), tail.narrow.get(level)
        if stats is None or not stats.is_calibrated or level not in tapped:
            continue
        largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
        moved = Tolerance(atol=errors.get(level, 0.0) + MOVED * largest, reason="the same of values of any size")
        dropped = EXACT if half is None else narrow(largest, half)
        tolerance, beside = together(TOLERANCES["recompiled"](stats), moved, dropped), tapped[level]
        beside = beside.reshape(values.shape) if beside.size == values.size else beside
        found[_NAMES[level]] = compare_scores(values, beside, tolerance=tolerance, nan="same", dtype=None)
    return found


def with_transform(way: Configuration, transform: EagerTransform) -> BatchComparison:
    """The eager twin of a transform on the values that it reads in the same compiled model."""

    def compare(runs: BatchRuns) -> Mapping[str, Difference]:
        outputs, runner = runs.outputs("tapped"), runs.runners["tapped"]
        taps = {level: named_output(READ_TAPS[name], outputs, runner) for name, level in READS.items()}
        read = {level: values for level, values in taps.items() if values is not None}
        wanted, found = transform(read, size=image_size(runs.batch.feeds)), runs.raw("tapped")
        tolerance = transform.tolerance(read, wanted)
        return {
            SCORES[level]: compare_scores(wanted[level], found.get(level), tolerance=tolerance, nan="same")
            for level in transform.values
        }

    return BatchComparison("whole/transform", way, compare)


_BATCHES: Final = (1, 2, 8)  # exporters trace at 1 or 2, and some graphs then run at nothing else
_HINT = "the usual reasons are channel order, scale, mean and std, size, and other weights"


def with_origin(checks: Iterable[Check], result: WayResult) -> Iterator[Check]:
    """Add to each check of labels which stage brought its flips in."""
    traces = {LABELS[trace.level]: trace for trace in result.outcomes}
    for check in checks:
        trace = traces.get(check.subject.rpartition("/")[2])
        if trace is None or not trace.decided.flipped:
            yield check
            continue
        stages = ", ".join(f"{stage} {count:,}" for stage, count in trace.brought_in.items())
        message = f"{check.message}; brought in by {stages}"
        yield replace(check, message=message, details={**check.details, "brought_in": trace.brought_in})


def raw_checks(result: WayResult) -> Iterator[Check]:
    """Judge the raw values of the export against those of the PyTorch model, where there is one."""
    tally = CheckTally("whole/torch", result.way.label, runtime=result.runtime, precision=result.precision)
    stages = {
        _NAMES[trace.level]: (name, trace) for name, trace in result.stages if name in (TORCH_RAW, TORCH_ATTACHED)
    }
    tally.add({name: trace.errors[stage] for name, (stage, trace) in stages.items()})
    for check in tally.checks():
        stage = stages[check.subject.rpartition("/")[2]][0]
        message = check.message if check else f"{stage}: {check.message}: {_HINT}"
        yield replace(check, message=message, details={**check.details, "stage": stage})


class WholeCheck:
    """The whole file on real inputs.

    `raw_file`, `torch`, `transform` and `behind` are the original with raw outputs, the PyTorch model, and the custom
    steps before the tail and behind the decision; None where there is none. `loaded` may have run on other inputs.
    `max_flips` labels per output may differ from the raw file's or the PyTorch model's though the raw value lies
    outside the allowed band. `progress` is called with the number of ways run and of all. `not_checked` and `results`
    are filled while it runs.
    """

    def __init__(
        self,
        reference: Reference,
        inputs: RealInputs,
        loaded: LoadedModels,
        raw_file: RawFile | None,
        folder: Path,
        torch: TorchRunner | None,
        transform: EagerTransform | None,
        behind: DecisionCheck | None,
        *,
        max_flips: int,
        failures: FailureStore | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.not_checked: list[str] = []
        self.results: list[WayResult] = []
        self._reference, self._attached, self._inputs = reference, reference.attached, inputs
        self._loaded, self._raw_file, self._folder, self._torch = loaded, raw_file, folder, torch
        self._transform, self._behind = transform, behind
        self._max_flips, self._failures, self._progress = max_flips, failures, progress
        self._sizes: tuple[int, ...] | None = None
        self._from_torch: RawStore | None = None
        self._exact: dict[str, RawStore] = {}

    def checks(self, ways: Sequence[Configuration]) -> Iterator[Check]:
        """Run every configuration and yield its checks."""
        loaded = self._loaded
        loaded.reset()
        if self._transform is not None:
            loaded.tap(self._folder, {**self._attached.taps, **self._transform.taps})
        if self._raw_file is None:
            loaded.drop("raw")  # what synthetic inputs were fed to in its place
        for number, way in enumerate(ways):
            if self._progress is not None:
                self._progress(number, len(ways))
            if way.weights != "stored":
                loaded.keep(())
                if way.runtime in self._exact:  # else the file does not run there, as was said
                    self._variant(way)
                continue
            if way.judged:
                loaded.keep(ways[number:])
            else:
                loaded.drop("raw")  # the default is compared with the file at float32 alone
            apart = self._open_apart(way)
            try:
                yield from self._checks_of(way, loaded.load("attached", way), apart)
            except UnsupportedModelError as error:
                yield from self._failure(way, error, apart)
        loaded.keep(())
        if self._behind is not None and self._sizes:
            yield from self._behind.whole(ways, self._inputs, self._sizes[-1])

    def _failure(self, way: Configuration, error: UnsupportedModelError, apart: Runner | None) -> Iterator[Check]:
        """A failure, unless it is a foreign runtime that may know neither this file nor its original."""
        is_native = way.runtime == self._attached.form.runtimes[0]
        reason = one_line(error)
        if is_native or apart is not None:
            yield CheckTally("whole", way.label, way.judged).check("run", False, reason)
        elif way.target is not None:
            yield not_run("whole", way, reason, alone=self._raw_file is None)
        else:
            self.not_checked.append(f"the whole file in {way.label}: {reason}")

    def _checks_of(self, way: Configuration, runner: Runner, apart: Runner | None) -> Iterator[Check]:
        sizes, misses, refused = self._fitting_sizes(way, runner, apart if way.judged else None)
        frozen = () if apart is None or self._raw_file is None else self._raw_file.frozen_axes(apart, runner)
        for sentence in (*misses, *frozen):
            yield CheckTally("whole", way.label, way.judged).check("batch", False, " ".join(sentence.split()))
        if not sizes:
            if not misses:
                yield from self._stuck(way, apart, next(iter(refused.values())))
            return
        runners: dict[ModelName, Runner] = {"attached": runner, "tapped": self._loaded.load("tapped", way)}
        if apart is not None:
            runners["raw"] = apart
        if not way.judged:
            runners["exact"] = self._loaded.load("attached", way.exact)
            runners["exact tapped"] = self._loaded.load("tapped", way.exact)
        self._run_torch(sizes)
        comparisons = list(self._comparisons(way, apart))
        result = self._run(way, sizes, runners, comparisons)
        for each in comparisons:
            checks = each.tally.checks()
            if result is not None and each.tally.name == "whole/torch":
                checks = with_origin(checks, result)
            yield from checks
        if result is not None and way.judged:
            yield from raw_checks(result)

    def _stuck(self, way: Configuration, apart: Runner | None, reason: str) -> Iterator[Check]:
        """A failure of a way that runs the file at no batch size, unless it is a foreign runtime that nobody named."""
        if way.runtime == self._attached.form.runtimes[0]:
            fix = "feed what the model takes: another size, or other inputs"
            yield not_run("whole", way, reason, fix=fix, alone=apart is None)
        elif way.target is not None:
            yield not_run("whole", way, reason, alone=apart is None)

    def _comparisons(self, way: Configuration, apart: Runner | None) -> Iterator[BatchComparison]:
        yield with_taps(self._reference, way)
        if self._transform is not None:
            yield with_transform(way, self._transform)
        if not way.judged:
            yield with_float32(self._reference, way)
            return
        if apart is not None and self._raw_file is not None:
            yield from with_raw_file(self._reference, way, self._raw_file, self._max_flips)
        if self._from_torch is not None:
            yield with_torch(self._reference, way, self._max_flips)

    def _variant(self, way: Configuration) -> None:
        """Other weights than the file's: only the stages are looked at."""
        try:
            runners = self._variant_runners(way)
        except UnsupportedModelError as error:
            self.not_checked.append(f"the whole file in {way.label}: {one_line(error)}")
            return
        sizes, _, _ = self._fitting_sizes(way, runners["attached"], None)
        if sizes:
            self._run(way, sizes, runners, ())

    def _variant_runners(self, way: Configuration) -> dict[ModelName, Runner]:
        tapped, threads = self._loaded.models["tapped"], self._loaded.threads
        if way.weights == "int8":
            size = (self._sizes or (1,))[0]
            given: dict[str, NDArray[Any]] = {
                name: np.array(value, np.float32) for name, value in self._attached.tail.defaults.items()
            }
            model = with_int8(tapped, self._inputs, size, given=given, ignored=tail_patterns(self._attached))
            both = self._attached.parts_of(way.open(model, threads=threads))
            return {"attached": both, "tapped": both}

        def opened(model: Any, name: str) -> Runner:
            path = with_fp16_weights(model, self._folder / f"fp16-{name}.xml")
            return way.open(path, threads=threads)

        runners: dict[ModelName, Runner] = {
            "attached": self._attached.parts_of(opened(self._attached.path, "attached")),
            "tapped": self._attached.parts_of(opened(tapped, "tapped")),
        }
        if self._exact[way.runtime].origin == "raw" and self._raw_file is not None:
            runners["raw"] = self._raw_file.behind_transform(opened(self._raw_file.path, "raw"))
        return runners

    def _fitting_sizes(
        self, way: Configuration, runner: Runner, apart: Runner | None
    ) -> tuple[tuple[int, ...], list[str], dict[int, str]]:
        """Try batch sizes 1, 2 and 8, or the one that the file declares: where it runs, the failures, the rest and why.

        A size at which the raw file runs is one at which the attached file has to run. Where no raw file shows that it
        should, the size is not checked, and not tried in other runtimes.
        """
        shared = next(iter(self._inputs.batches(1, stop=1))).shared
        batched = (port for port in runner.inputs if port.rank and not any(map(port.answers_to, shared)))
        static = next((size for port in batched if (size := port.size(0)) is not None), None)
        candidates = (static,) if static is not None else self._sizes or _BATCHES
        sizes, misses = [], []
        refused: dict[int, str] = {}
        for size in candidates:
            batch = next(iter(self._inputs.batches(size, stop=1)))
            problem = _batch_problem(batch, runner, self._attached.names)
            names = () if self._raw_file is None else self._raw_file.level_names
            if problem is None:
                sizes.append(size)
            elif apart is not None and _batch_problem(batch, apart, names) is None:
                misses.append(f"it does not run at batch size {size}: {problem}")
            else:
                self.not_checked.append(f"batch size {size} in {way.label}: {problem}")
                refused[size] = problem
        self._sizes = self._sizes or tuple(size for size in candidates if size not in refused) or None
        return tuple(sizes), misses, refused

    def _run_torch(self, sizes: Sequence[int]) -> None:
        if self._torch is None or self._from_torch is not None:
            return
        store = RawStore(self._folder, "torch", self._inputs.count, "torch")
        for batch in self._inputs.at_sizes(sizes):
            store.put(batch.start, self._torch.raw(batch))
        self._from_torch = store

    def _run(
        self,
        way: Configuration,
        sizes: Sequence[int],
        runners: dict[ModelName, Runner],
        comparisons: Sequence[BatchComparison],
    ) -> WayResult | None:
        """Feed every batch to the comparisons and follow it through the chain."""
        stores: dict[Source, RawStore] = {} if self._from_torch is None else {"torch": self._from_torch}
        if not way.judged and way.runtime in self._exact:
            stores["kept"] = self._exact[way.runtime]
        has_raw, keep = "raw" in runners, None
        if way == way.exact and way.runtime == "openvino":
            keep = RawStore(self._folder, way.label, self._inputs.count, "raw" if has_raw else "attached")
        trace = Trace(Reader(self._reference), way, self._inputs.sample_name, stores, has_raw=has_raw)
        for batch in self._inputs.at_sizes(sizes):
            runs = BatchRuns(batch, runners, self._reference, self._raw_file, stores)
            if keep is not None:
                keep.put(batch.start, runs.raw("raw" if has_raw else "tapped"))
            trace.add(runs)
            for comparison in comparisons:
                comparison.add(runs, self._failures)
        if keep is not None:
            self._exact[way.runtime] = keep
        if trace.problem is not None:
            self.not_checked.append(f"stage by stage in {way.label}: {trace.problem}")
            return None
        self.results += [] if trace.result is None else [trace.result]
        return trace.result

    def _open_apart(self, way: Configuration) -> Runner | None:
        if self._raw_file is None:
            return None
        if not self._raw_file.can_run(way):
            self.not_checked.append(f"the raw file in {way.label}: it does not read {self._raw_file.path}")
            return None
        try:
            return self._loaded.load("raw", way)
        except UnsupportedModelError as error:
            if way.runtime != format_of(self._raw_file.path).runtimes[0]:
                self.not_checked.append(f"the raw file in {way.label}: {one_line(error)}")
                return None
            raise


def _batch_problem(batch: RealBatch, runner: Runner, names: Sequence[str]) -> str | None:
    """Return why a model does not run on a batch; None where it does."""
    try:
        outputs = runner.run(batch.feeds)
    except PostprocError as error:
        return one_line(error)
    for port in runner.outputs:
        values = outputs[port.name]
        if values.ndim and len(values) != batch.size and any(map(port.answers_to, names)):
            return f"output '{port.name}' has {len(values)} results for {batch.size} samples"
    return None
