"""The tail alone against the eager reference: adversarial values, adjusted at run time, every value there is."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from graph_patterns.match import Mismatch
from postproc_export.check.attached import AttachedModel, Case, boundary_of, numpy_dtype, tail_cases
from postproc_export.check.record import computed_parts, decided_value
from postproc_export.check.reference import LevelReference, Reference, torch_threads
from postproc_export.check.report import Check, failed
from postproc_export.check.runners import Format, Shapes
from postproc_export.check.tally import LABELS, CheckTally, details_of, rounding_tolerance
from postproc_export.check.ways import Configuration
from postproc_export.comparison import (
    Difference,
    LabelDifference,
    ScoreDifference,
    Tolerance,
    compare_labels,
    compare_scores,
    merged,
)
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

    Notes
    -----
    The expected values of a case are computed once and compared with every configuration. A tail that cannot be cut
    out, loaded or run is a miss with the reason.
    """
    tallies = [CheckTally(attached, configuration) for configuration in configurations]
    shapes: Shapes | None = None
    runners: list[Runner | None] = []
    for case in tail_cases(attached, count=count, seed=seed):
        if case.shapes != shapes:  # compiling takes longer than running
            try:
                runners = [_open(attached.tail_alone(case.shapes), tally, threads=threads) for tally in tallies]
            except UnsupportedModelError as error:
                yield failed("tail", " ".join(str(error).split()))
                return
            shapes = case.shapes
        _run(case, runners, tallies, reference)
    for tally in tallies:
        yield from tally.checks("tail")


def fed_by_port(runner: Runner, fed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return what the inputs that a runner has are fed: one that is an output as well may go by that name."""
    return {port.name: values for port in runner.inputs for name, values in fed.items() if port.answers_to(name)}


def _open(model: object, tally: CheckTally, *, threads: int | None) -> Runner | None:
    way = tally.configuration
    try:
        runner = way.open(model, threads=threads)
    except MissingDependencyError:
        raise
    except PostprocError as error:
        tally.fail(" ".join(str(error).split()))
        return None
    tally.ran_on(runner)
    return tally.attached.parts_of(runner)


def _run(case: Case, runners: Sequence[Runner | None], tallies: Sequence[CheckTally], reference: Reference) -> None:
    for feeds in case.feeds:
        expected = reference.outputs(feeds)
        for runner, tally in zip(runners, tallies, strict=True):
            if runner is None:
                continue
            fed = {tally.attached.file.raw[level].name: values for level, values in feeds.items()}
            try:
                actual = runner.run(fed_by_port(runner, fed))
            except PostprocError as error:
                tally.fail(" ".join(f"{case.name}: {error}".split()))
                continue
            tally.add(expected, actual, feeds, reference)


# --- The tail alone at other sensitivities or boundaries than the attached one, given at run time.

COUNT: Final = 5_000
"""Raw values per level and sensitivity at the most: what is adjusted is one number."""

_SENSITIVITIES: Final = (0.0, 0.3, 0.85, 1.0)
_BEYOND: Final = ((-0.5, 0.0), (1.5, 1.0), (math.nan, 1.0))


@dataclass(frozen=True, slots=True)
class Setting:
    """What is given at run time.

    Parameters
    ----------
    given
        The sensitivity, which may lie outside [0, 1] or be NaN.
    meant
        The sensitivity in [0, 1] that it counts as.
    """

    given: float
    meant: float


def check_adjusted(
    attached: AttachedModel, ways: Sequence[Configuration], *, count: int, seed: int, threads: int | None = None
) -> Iterator[Check]:
    """Compare the labels of the tail alone with the reference's at several sensitivities.

    Parameters
    ----------
    attached
        The attached file.
    ways
        The ways to run a tail; those that cannot be adjusted are left out.
    count, seed, threads
        As in `check_tail`.

    Notes
    -----
    Exact at the attached sensitivity, from 1 on, for NaN, and wherever the boundary itself is given; else labels may
    differ within the distance from the boundary that docs/definition.md section 4 states.
    """
    if not attached.tail.adjustable:
        return
    ways = [way for way in ways if way.judged and can_adjust(attached, way)]
    runners: dict[Configuration, Runner] = {}
    for setting in _settings(attached):
        try:
            meant, values = attached.at_sensitivity(setting.meant), _values(attached, setting)
        except MetadataError:  # a boundary that is subnormal: no such file can be attached, and so none is given
            continue
        drift = "adjusted" if _is_computed(attached, setting) else None
        tallies = [CheckTally(meant, way, drift=drift) for way in ways]
        case = next(iter(tail_cases(meant, count=min(count, COUNT), seed=seed)))
        _run_adjusted(case, tallies, runners, values, threads=threads)
        for tally in tallies:
            checks = tally.checks(f"adjusted/{setting.given:g}")
            yield from (check for check in checks if check.subject.rpartition("/")[2] in LABELS)


def can_adjust(attached: AttachedModel, way: Configuration) -> bool:
    """Whether a way of running keeps the inputs: OpenVINO makes constants of an ONNX model's."""
    return (way.runtime == "openvino") is (attached.file.format == "openvino")


def _settings(attached: AttachedModel) -> Iterator[Setting]:
    options = attached.tail.options
    attached_ones = dict.fromkeys(options.sensitivity(item.level) for item in attached.tail.adjustable)
    for sensitivity in dict.fromkeys((*attached_ones, *_SENSITIVITIES)):
        yield Setting(sensitivity, sensitivity)
    if options.adjustable == "sensitivity":
        yield from (Setting(given, meant) for given, meant in _BEYOND)
    elif options.comparison == "ge":
        yield Setting(math.nan, 1.0)


def _is_computed(attached: AttachedModel, setting: Setting) -> bool:
    """Whether some level's boundary is computed by the graph."""
    options = attached.tail.options
    is_attached = all(options.sensitivity(item.level) == setting.meant for item in attached.tail.adjustable)
    return options.adjustable == "sensitivity" and setting.meant < 1.0 and not is_attached


def _values(attached: AttachedModel, setting: Setting) -> dict[str, float]:
    """Return what is given for each input."""
    return {item.name: _value(attached, item.level, setting) for item in attached.tail.adjustable}


def _value(attached: AttachedModel, level: Level, setting: Setting) -> float:
    if attached.tail.options.adjustable == "sensitivity" or math.isnan(setting.given):
        return setting.given
    return attached.at_sensitivity(setting.meant).tail.boundary(level)


def _run_adjusted(
    case: Case,
    tallies: Sequence[CheckTally],
    runners: dict[Configuration, Runner],
    values: dict[str, float],
    *,
    threads: int | None,
) -> None:
    for tally in tallies:
        attached, way = tally.attached, tally.configuration
        reference = Reference(attached)
        try:
            if way not in runners:
                runners[way] = way.open(attached.tail_alone(case.shapes), threads=threads)
            runner = attached.parts_of(runners[way], values)
            tally.ran_on(runner)
            for feeds in case.feeds:
                fed = {attached.file.raw[level].name: array for level, array in feeds.items()}
                actual = runner.run(fed_by_port(runner, fed))
                tally.add(reference.outputs(feeds), actual, feeds, reference)
        except PostprocError as error:
            tally.fail(" ".join(f"{case.name}: {error}".split()))


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

    Parameters
    ----------
    attached
        The attached file.
    runtimes
        The runtimes at hand.
    progress
        Called with the number of chunks done and of all there are.
    start, stop
        The first bit pattern, and the one before which to stop; for tests.

    Notes
    -----
    Values are streamed in the order of their bits, 2^20 at a time, both levels at once in a thread each; the runtimes
    and torch take one thread each. With the rule ``"gt"`` the reference itself is compared with Anomalib's formula
    written out in torch: on every value but NaN and, where nothing finite is anomalous, +inf, which Anomalib calls
    normal.
    """
    readers = RUNTIMES if attached.file.format == "onnx" else ("openvino",)
    ways = [way for way in _WAYS if way.runtime in runtimes and way.runtime in readers]
    sweeps = [_Sweep(attached, level, ways) for level in attached.levels]
    counter = _Counter(progress, total=sum(len(sweep.chunks(start, stop)) for sweep in sweeps))
    with torch_threads(1), ThreadPoolExecutor(max(1, len(sweeps))) as pool:
        for done in [pool.submit(sweep.run, start, stop, counter) for sweep in sweeps]:
            done.result()
    for sweep in sweeps:
        yield from sweep.checks()


class _Counter:
    """Counts chunks from several threads."""

    def __init__(self, progress: Progress | None, *, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0
        self._lock = Lock()

    def advance(self) -> None:
        with self._lock:
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, self._total)


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
        self._runners = {way: self._open(way) for way in ways}
        self._found: dict[tuple[str, str], Difference] = {}

    def chunks(self, start: int, stop: int) -> range:
        """Return where the chunks begin."""
        return range(start, min(stop, 1 << 16 if self.dtype in _HALVES else ALL), CHUNK)

    def run(self, start: int, stop: int, counter: _Counter) -> None:
        """Run all chunks."""
        chunks = self.chunks(start, stop)
        for first in chunks:
            self.add(_swept_values(first, min(first + CHUNK, chunks.stop), self.dtype))
            counter.advance()

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

    def _open(self, way: Configuration) -> Runner:
        model = self._attached.file.cut(tuple(self._outputs), self._inputs())
        runner = open_runner(model, runtime=way.runtime, optimize=way.optimize, threads=1)
        return self._attached.with_values(runner)

    def add(self, values: NDArray[Any]) -> None:
        """Run one chunk everywhere."""
        with np.errstate(invalid="ignore", over="ignore"):  # a cast of a signalling NaN
            raw = values.astype(np.float32, copy=False)
        scores, labels = self._reference(raw)
        formula = self._reference.anomalib(raw)
        if formula is not None:
            expected, known = formula
            name = next((part.name for part in self._outputs.values() if part.name in LABELS), "the decision")
            self._merge(name, _FORMULA, self._labels(expected[known], labels[known], raw[known]))
        for way, runner in self._runners.items():
            outputs = runner.run(self._feeds(runner, values))
            for name, part in self._outputs.items():
                actual = outputs[name].reshape(-1)
                if part.name in LABELS:
                    self._merge(part.name, way.label, self._labels(labels, actual, raw))
                else:
                    allowed = rounding_tolerance(self._attached, part)
                    self._merge(part.name, way.label, _score_difference(scores, actual, allowed))

    def checks(self) -> Iterator[Check]:
        """Yield one check per output and runtime."""
        runners = {way.label: runner for way, runner in self._runners.items()}
        for (name, label), difference in self._found.items():
            runner = runners.get(label)
            yield Check(
                name=f"exhaustive/{name}/{label}",
                passed=bool(difference),
                message=difference.describe(),
                brief=difference.brief(),
                way=label,
                runtime=None if runner is None else f"{runner.name} {runner.version}",
                precision=None if runner is None else runner.inference_precision,
                details=details_of(difference),
            )

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

    def _merge(self, name: str, way: str, difference: Difference) -> None:
        key = (name, way)
        self._found[key] = merged(self._found[key], difference) if key in self._found else difference


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
