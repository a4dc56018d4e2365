"""The tail alone against the eager reference: adversarial values, adjusted at run time, every value there is."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Lock
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from graph_patterns.match import Mismatch
from postproc_export.check.attached import AttachedModel, RawFeeds, boundary_of, numpy_dtype, tail_cases
from postproc_export.check.record import computed_parts, decided_value
from postproc_export.check.reference import LevelReference, Reference, torch_threads
from postproc_export.check.report import Check, failed
from postproc_export.check.runners import Format, Shapes
from postproc_export.check.tally import LABELS, CheckTally, TailComparison, rounding_tolerance
from postproc_export.check.ways import Configuration
from postproc_export.comparison import LabelDifference, ScoreDifference, Tolerance, compare_labels, compare_scores
from postproc_export.errors import MetadataError, MissingDependencyError, PostprocError, UnsupportedModelError
from postproc_export.runtimes import RUNTIMES, PortInfo, Runner, RuntimeName, open_runner
from postproc_export.stats import Level

# --- The tail alone, on adversarial raw values, in every runtime, against the eager reference.

_ONNX_RUNTIME = (Configuration(runtime="onnxruntime", optimize=False), Configuration(runtime="onnxruntime"))
_OPENVINO = (Configuration(runtime="openvino"), Configuration(runtime="openvino", precision="default"))


def tail_configurations(file_format: Format, runtimes: Sequence[RuntimeName]) -> list[Configuration]:
    """Return every way to run a tail of a format on the runtimes at hand."""
    ways = (*_ONNX_RUNTIME, *_OPENVINO) if file_format == "onnx" else _OPENVINO
    return [way for way in ways if way.runtime in runtimes]


def check_tail(
    attached: AttachedModel,
    reference: Reference,
    configurations: Sequence[Configuration],
    *,
    count: int,
    seed: int,
    threads: int | None = None,
) -> Iterator[Check]:
    """Compare the tail alone with the reference, output by output.

    The expected values of a case are computed once and compared with every configuration. A tail that cannot be cut
    out, loaded or run is a miss with the reason.
    """
    compare = TailComparison(reference)
    tallies = {way: CheckTally("tail", way.label, way.judged) for way in configurations}
    shapes: Shapes | None = None
    runners: dict[Configuration, Runner] = {}
    for case in tail_cases(attached, count=count, seed=seed):
        if case.shapes != shapes:  # compiling takes longer than running
            try:
                model = attached.tail_alone(case.shapes)
            except UnsupportedModelError as error:
                yield failed("tail", " ".join(str(error).split()))
                return
            runners, shapes = {}, case.shapes
            for way, tally in tallies.items():
                try:
                    runner = way.open(model, threads=threads)
                except MissingDependencyError:
                    raise
                except PostprocError as error:
                    tally.fail(attached.names, error)
                    continue
                tally.ran_on(runner)
                runners[way] = attached.parts_of(runner)
        for feeds in case.feeds:
            expected = reference.outputs(feeds)
            for way, runner in runners.items():
                try:
                    tallies[way].add(compare(expected, run_tail(attached, runner, feeds), feeds))
                except PostprocError as error:
                    tallies[way].fail(attached.names, f"{case.name}: {error}")
    for tally in tallies.values():
        yield from tally.checks()


def run_tail(attached: AttachedModel, runner: Runner, raw: RawFeeds) -> dict[str, NDArray[Any]]:
    """Run a tail alone on raw values; an input that is an output as well may go by that name."""
    fed = {attached.file.raw[level].name: values for level, values in raw.items()}
    return runner.run(
        {port.name: values for port in runner.inputs for name, values in fed.items() if port.answers_to(name)}
    )


# --- The tail alone at other sensitivities or boundaries than the attached one, given at run time.

COUNT: Final = 5_000
"""Raw values per level and sensitivity at the most: what is adjusted is one number."""

_SENSITIVITIES: Final = (0.0, 0.3, 0.85, 1.0)
_BEYOND: Final = ((-0.5, 0.0), (1.5, 1.0), (math.nan, 1.0))


def check_adjusted(
    attached: AttachedModel, ways: Sequence[Configuration], *, count: int, seed: int, threads: int | None = None
) -> Iterator[Check]:
    """Compare the labels of the tail alone with the reference's at several sensitivities, where it can be adjusted.

    Exact at the attached sensitivity, from 1 on, for NaN, and wherever the boundary itself is given; else labels may
    differ within the distance from the boundary that docs/definition.md section 4 states.
    """
    if not attached.tail.adjustable:
        return
    # OpenVINO makes constants of an ONNX model's inputs that adjust the tail.
    is_ir = attached.file.format == "openvino"
    ways = [way for way in ways if way.judged and (way.runtime == "openvino") is is_ir]
    options, runners = attached.tail.options, dict[Configuration, Runner]()
    for given, meant in _settings(attached):
        try:
            adjusted = attached.at_sensitivity(meant)
            is_number = options.adjustable == "sensitivity" or math.isnan(given)
            values = {
                item.name: given if is_number else adjusted.tail.boundary(item.level)
                for item in attached.tail.adjustable
            }
        except MetadataError:  # a boundary that is subnormal: no such file can be attached, and so none is given
            continue
        is_attached = all(options.sensitivity(item.level) == meant for item in attached.tail.adjustable)
        is_computed = options.adjustable == "sensitivity" and meant < 1.0 and not is_attached
        compare = TailComparison(Reference(adjusted), "adjusted" if is_computed else None)
        case = next(iter(tail_cases(adjusted, count=min(count, COUNT), seed=seed)))
        for way in ways:
            tally = CheckTally(f"adjusted/{given:g}", way.label, way.judged)
            try:
                if way not in runners:
                    runners[way] = way.open(adjusted.tail_alone(case.shapes), threads=threads)
                runner = adjusted.parts_of(runners[way], values)
                tally.ran_on(runner)
                for feeds in case.feeds:
                    actual = run_tail(adjusted, runner, feeds)
                    tally.add(compare(compare.reference.outputs(feeds), actual, feeds))
            except PostprocError as error:
                tally.fail(adjusted.names, f"{case.name}: {error}")
            yield from (check for check in tally.checks() if check.subject.rpartition("/")[2] in LABELS)


def _settings(attached: AttachedModel) -> Iterator[tuple[float, float]]:
    """Yield what is given, which may lie outside [0, 1] or be NaN, and the sensitivity that it counts as."""
    options = attached.tail.options
    attached_ones = dict.fromkeys(options.sensitivity(item.level) for item in attached.tail.adjustable)
    for sensitivity in dict.fromkeys((*attached_ones, *_SENSITIVITIES)):
        yield sensitivity, sensitivity
    if options.adjustable == "sensitivity":
        yield from _BEYOND
    elif options.comparison == "ge":
        yield math.nan, 1.0


# --- Every raw value there is through the tail of each level: all 2^32 float32, or all 2^16 of a half-precision type.
#
# float32 values go in where the level's comparison and its normalised score read them: behind the NaN guard and the
# reductions over a map, which see whole maps and not single values, and whose test is `tail_check`.

Progress: TypeAlias = Callable[[int, int], None]

CHUNK: Final = 1 << 20  # 4 MiB: what runs over it stays in the cache
ALL: Final = 1 << 32
_HALVES: Final = ("float16", "bfloat16")
_WAYS: Final = (Configuration(runtime="onnxruntime"), Configuration(runtime="openvino"))
_FORMULA: Final = "anomalib-formula"


def check_exhaustively(
    attached: AttachedModel,
    runtimes: Sequence[RuntimeName],
    *,
    progress: Progress | None = None,
    start: int = 0,
    stop: int = ALL,
) -> Iterator[Check]:
    """Run every raw value of each level through the tail and compare it with the eager reference.

    Values are streamed in the order of their bits, 2^20 at a time, both levels at once in a thread each; the runtimes
    and torch take one thread each. `start` and `stop` are the first bit pattern, and the one before which to stop.
    With the rule ``"gt"`` the reference itself is compared with Anomalib's formula written out in torch: on every value
    but NaN and, where nothing finite is anomalous, +inf, which Anomalib calls normal.
    """
    readers = RUNTIMES if attached.file.format == "onnx" else ("openvino",)
    ways = [way for way in _WAYS if way.runtime in runtimes and way.runtime in readers]
    sweeps = [_Sweep(attached, level, ways) for level in attached.levels]
    chunks = [sweep.chunks(start, stop) for sweep in sweeps]
    total, lock, done = sum(map(len, chunks)), Lock(), iter(range(1, sum(map(len, chunks)) + 1))

    def run(sweep: _Sweep, chunks: range) -> None:
        for first in chunks:
            sweep.add(_swept_values(first, min(first + CHUNK, chunks.stop), sweep.dtype))
            with lock:
                number = next(done)
                if progress is not None:
                    progress(number, total)

    with torch_threads(1), ThreadPoolExecutor(max(1, len(sweeps))) as pool:
        for part in [pool.submit(run, *each) for each in zip(sweeps, chunks, strict=True)]:
            part.result()
    for sweep in sweeps:
        yield from sweep.checks()


class _Sweep:
    """One level of one file, over all chunks."""

    def __init__(self, attached: AttachedModel, level: Level, ways: Sequence[Configuration]) -> None:
        self._attached = attached
        self._level = level
        self._boundary = boundary_of(attached, level)
        self._outputs = {self._value_name(part.name): part for part in computed_parts(attached, level)}
        self._fed: Level = level if level in attached.file.raw else "pixel"
        self.dtype = attached.file.raw[self._fed].dtype
        self._reference = LevelReference(attached, level)
        self._formula = CheckTally("exhaustive", _FORMULA)
        self._runs: list[tuple[Runner, CheckTally]] = []
        for way in ways:
            model = attached.file.cut(tuple(self._outputs), self._inputs())
            runner = attached.with_values(open_runner(model, runtime=way.runtime, optimize=way.optimize, threads=1))
            self._runs.append((runner, CheckTally("exhaustive", way.label)))
            self._runs[-1][1].ran_on(runner)

    def chunks(self, start: int, stop: int) -> range:
        """Return where the chunks begin."""
        return range(start, min(stop, 1 << 16 if self.dtype in _HALVES else ALL), CHUNK)

    def _value_name(self, part: str) -> str:
        """Return the name by which a part can be cut out: that of its value where it has no output of its own."""
        if not self._attached.tail.options.is_packed:
            return part
        at = self._attached.value_at(part)
        assert not isinstance(at, Mismatch), "a tail that is not as recorded is refused by `decided_value`"
        return self._attached.file.value_name(at)

    def _inputs(self) -> tuple[PortInfo, ...]:
        raw = self._attached.file.raw
        if self.dtype in _HALVES:
            return tuple(replace(port, shape=(None,) * max(1, port.rank or 1)) for port in raw.values())
        return (PortInfo(decided_value(self._attached, self._level), "float32", (None,)),)

    def add(self, values: NDArray[Any]) -> None:
        """Run one chunk everywhere."""
        with np.errstate(invalid="ignore", over="ignore"):  # a cast of a signalling NaN
            raw = values.astype(np.float32, copy=False)
        scores, labels = self._reference(raw)
        formula = self._reference.anomalib(raw)
        if formula is not None:
            expected, known = formula
            name = next((part.name for part in self._outputs.values() if part.name in LABELS), "the decision")
            self._formula.add({name: self._labels(expected[known], labels[known], raw[known])})
        for runner, tally in self._runs:
            outputs = runner.run(self._feeds(runner, values))
            for name, part in self._outputs.items():
                actual = outputs[name].reshape(-1)
                if part.name in LABELS:
                    tally.add({part.name: self._labels(labels, actual, raw)})
                else:
                    allowed = rounding_tolerance(self._attached, part)
                    tally.add({part.name: _score_difference(scores, actual, allowed)})

    def checks(self) -> Iterator[Check]:
        """Yield one check per output and runtime."""
        yield from self._formula.checks()
        for _, tally in self._runs:
            yield from tally.checks()

    def _feeds(self, runner: Runner, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Half-precision values go in as images and maps of their own; the level that is not meant gets zeros."""
        if self.dtype not in _HALVES:
            return {runner.inputs[0].name: values}
        read = {port.name for port in runner.inputs}
        feeds = {}
        for level, port in self._attached.file.raw.items():
            if port.name in read:
                fed = values if level == self._fed else np.zeros(len(values), numpy_dtype(port))
                feeds[port.name] = fed.reshape(-1, *[1] * (max(1, port.rank or 1) - 1))
        return feeds

    def _labels(self, expected: NDArray[Any], actual: NDArray[Any], raw: NDArray[Any]) -> LabelDifference:
        if np.array_equal(expected, actual):
            return LabelDifference(count=expected.size)
        return compare_labels(expected, actual, raw=raw, boundary=self._boundary)


def _score_difference(expected: NDArray[Any], actual: NDArray[Any], tolerance: Tolerance) -> ScoreDifference:
    """Compare a chunk of scores; where all are numbers, in float32 alone, for there are 4 billion of them."""
    error = expected - actual
    np.abs(error, out=error)
    worst = int(error.argmax())
    if not error[worst] <= tolerance.atol:  # too large, or NaN, which argmax finds first
        return replace(compare_scores(expected, actual, tolerance=tolerance), errors=None)
    return ScoreDifference(
        tolerance=tolerance,
        count=expected.size,
        numbers=expected.size,
        largest=float(error[worst]),
        total=float(error.sum(dtype=np.float64)),
        index=(worst,),
        expected=float(expected[worst]),
        actual=float(actual[worst]),
    )


def _swept_values(start: int, stop: int, dtype: str) -> NDArray[Any]:
    """Return the values whose bit patterns lie in a range."""
    if dtype == "float16":
        return np.arange(start, stop, dtype=np.uint16).view(np.float16)
    if dtype == "bfloat16":
        import ml_dtypes

        return np.arange(start, stop, dtype=np.uint16).view(ml_dtypes.bfloat16)
    return np.arange(start, stop, dtype=np.uint32).view(np.float32)
