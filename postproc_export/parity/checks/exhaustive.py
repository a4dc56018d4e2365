"""Every raw value there is through the tail of each level: all 2^32 float32, or all 2^16 of a half-precision type.

float32 values go in where the level's comparison and its normalised score read them: behind the NaN guard and the
reductions over a map, which see whole maps and not single values, and whose test is `tail_check`.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Lock
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from graph_patterns.match import Mismatch
from postproc_export.comparison.compare import compare_labels, compare_scores
from postproc_export.comparison.difference import Difference, LabelDifference, ScoreDifference, merged
from postproc_export.comparison.tolerance import Tolerance
from postproc_export.parity.checks.record import computed_parts, decided_value
from postproc_export.parity.models.attached_model import AttachedModel
from postproc_export.parity.models.configuration import Configuration
from postproc_export.parity.reference.level_reference import LevelReference, one_thread
from postproc_export.parity.reference.tail_cases import boundary_of, numpy_dtype
from postproc_export.parity.reports.report import Check
from postproc_export.parity.reports.tally import LABELS, details_of, rounding_tolerance
from postproc_export.runtimes import PortInfo, Runner, RuntimeName, open_runner
from postproc_export.runtimes.protocol import RUNTIMES
from postproc_export.stats import Level

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
    with one_thread(), ThreadPoolExecutor(max(1, len(sweeps))) as pool:
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
            self.add(_values(first, min(first + CHUNK, chunks.stop), self.dtype))
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
        return replace(compare_scores(expected, actual, tolerance=tolerance), histogram=None)
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


def _values(start: int, stop: int, dtype: str) -> NDArray[Any]:
    """Return the values whose bit patterns lie in a range."""
    if dtype == "float16":
        return np.arange(start, stop, dtype=np.uint16).view(np.float16)
    if dtype == "bfloat16":
        import ml_dtypes

        return np.arange(start, stop, dtype=np.uint16).view(ml_dtypes.bfloat16)
    return np.arange(start, stop, dtype=np.uint32).view(np.float32)
