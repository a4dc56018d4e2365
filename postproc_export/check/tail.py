"""Outputs of a tail compared with the reference: how far they may be off, the tally, and the tail alone."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from threading import Lock
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from graph_patterns.match import Mismatch
from postproc_export.check.attached import (
    AttachedModel,
    Decider,
    RawFeeds,
    Shapes,
    axes_of,
    fits,
    numpy_dtype,
    tail_cases,
)
from postproc_export.check.findings import Check, failed
from postproc_export.check.record import computed_parts, decided_value
from postproc_export.check.reference import LevelReference, Reference, TailReference
from postproc_export.check.ways import Configuration
from postproc_export.comparison import (
    EXACT,
    TOLERANCES,
    Difference,
    LabelDifference,
    ScoreDifference,
    Tolerance,
    compare_labels,
    compare_scores,
    largest_shown,
    merged,
    narrow,
    together,
)
from postproc_export.errors import MetadataError, MissingDependencyError, PostprocError, UnsupportedModelError
from postproc_export.float32 import LARGEST, half_ulp
from postproc_export.runtimes import PortInfo, Runner, as_float32, runner_class
from postproc_export.stats import Level, LevelStats, choose_form
from postproc_export.tail import TailOutput
from postproc_export.torch_modules import torch_threads

LABELS: Final = ("pred_label", "pred_mask")
TRANSFORMED: Final = "the transform before the tail, in another float32 computation"


@dataclass(slots=True)
class CheckTally:
    """The comparison of each output in one way of running, added up over all runs."""

    name: str  # what the names of its checks begin with
    way: str  # how it was run, which the names end with
    judged: bool = True  # False where it is shown and decides nothing
    max_flips: int = 0  # labels per output that may flip all the same
    found: dict[str, Difference] = field(default_factory=dict)
    runtime: str | None = None
    precision: str | None = None

    def ran_on(self, runner: Runner) -> None:
        """Record what it ran on."""
        self.runtime, self.precision = f"{runner.name} {runner.version}", runner.inference_precision

    def add(self, found: Mapping[str, Difference]) -> None:
        """Add the comparisons of one run, by output."""
        for name, difference in found.items():
            self.found[name] = merged(self.found[name], difference) if name in self.found else difference

    def fail(self, names: Iterable[str], reason: str | Exception) -> None:
        """Record that a run was not possible, which fails every output."""
        self.add({name: unknown(name, " ".join(str(reason).split())) for name in names})

    @property
    def failed(self) -> int:
        """How many labels flipped outside the allowed band, and scores lie beyond the tolerance, so far."""
        return sum(
            found.flipped - found.near if isinstance(found, LabelDifference) else found.over
            for found in self.found.values()
        )

    def checks(self) -> Iterator[Check]:
        """Yield one check per output."""
        for name, found in self.found.items():
            passed = bool(found)
            if isinstance(found, LabelDifference) and found.reason is None and found.count:
                passed = found.flipped - found.near <= self.max_flips
            yield self.check(name, passed, found.describe(), details=_details(found))

    def check(self, name: str, passed: bool, message: str, **more: Any) -> Check:
        """Return a check that decides where this way is judged."""
        return Check(
            name=f"{self.name}/{name}/{self.way}",
            passed=passed or not self.judged,
            judged=self.judged,
            message=message,
            way=self.way,
            runtime=self.runtime,
            precision=self.precision,
            **more,
        )


def unknown(name: str, reason: str) -> Difference:
    """Return the comparison of an output that could not be compared."""
    return LabelDifference(reason=reason) if name.startswith(LABELS) else ScoreDifference(reason=reason)


def _details(difference: Difference) -> dict[str, Any]:
    """Return the numbers of a comparison for the JSON report."""
    if isinstance(difference, LabelDifference):
        shown = asdict(difference)
        return {key: value for key, value in shown.items() if key != "parts" and value is not None}
    return {
        "count": difference.count,
        "over": difference.over,
        "excused": difference.excused,
        "largest_error": difference.largest,
        "mean_error": difference.mean,
        "error_999": difference.quantile,
        "index": difference.index,
        "expected": difference.expected,
        "actual": difference.actual,
        "allowed": difference.tolerance.atol,
        "reason_for_tolerance": difference.tolerance.reason,
    }


def compare_tail(
    reference: TailReference,
    expected: Mapping[str, NDArray[Any]],
    actual: Mapping[str, NDArray[Any]],
    raw: RawFeeds,
    *,
    allowance: str | None = None,
    is_whole: bool = False,
    raw_error: Mapping[Level, float] | None = None,
) -> dict[str, Difference]:
    """Compare the outputs of one run; where `expected` is another run of the file, it may fail itself.

    `allowance` is the entry of the tolerance table for how far the raw values may differ: flips so near to the boundary
    are shown and not judged. None where they are the very same values. With `is_whole`, not the tail alone, the
    rounding of raw values to a narrow type may be dropped. `raw_error` is by how much a transform before the tail may
    change the raw values of a level besides, raw units.
    """
    found: dict[str, Difference] = {}
    decider, tail = reference.decider, reference.decider.tail
    is_normalised, halves = tail.options.enable_normalization, tail.narrow
    if decider.guard == "none" and any(part.level == "image" for part in tail.parts) and "image" not in raw:
        expected = _without_nan_images(expected, actual, raw)
    for output in tail.parts:
        name, wanted = output.name, expected.get(output.name)
        values = reference.decided_on(output, raw)
        if wanted is None or wanted.size != values.size:
            what = "the output is missing" if wanted is None else f"the output has the shape {list(wanted.shape)}"
            found[name] = unknown(name, f"{what} for {values.size:,} raw values")
            continue
        level: Level = output.level if output.level in tail.raw else "pixel"
        band = EXACT if allowance is None else TOLERANCES[allowance](_stats(decider, output))
        band = together(band, Tolerance(atol=(raw_error or {}).get(level, 0.0), reason=TRANSFORMED))
        excused, half = reference.excused(output, raw), halves.get(output.level)
        if name in LABELS:
            # A value that differs may be rounded to the next of its narrow type, so a flip may lie further away. So may
            # one that is compared with a boundary that was computed at run time, which is no constant for the type.
            further = 0.0 if allowance is None or half is None else half_ulp(tail.boundary(output.level), half)
            found[name] = compare_labels(
                wanted,
                actual.get(name),
                raw=values,
                boundary=decider.boundary(output.level),
                excused=excused,
                band=band.atol + further,
                dtype=output.dtype,
            )
        else:
            found[name] = compare_scores(
                wanted if is_normalised else _saturated(wanted),
                actual.get(name) if is_normalised or name not in actual else _saturated(actual[name]),
                tolerance=_score_tolerance(decider, output, raw, band, is_whole=is_whole),
                nan="anomalous" if is_normalised else "same",
                excused=excused,
                dtype=output.dtype,
            )
    return found


def _saturated(scores: NDArray[Any]) -> NDArray[Any]:
    """Return raw scores with infinities as the largest float32, as OpenVINO makes some."""
    if scores.dtype == np.float32:
        scores = np.clip(scores, np.float32(-LARGEST), np.float32(LARGEST))  # NumPy 1 widens a float
    return scores


def _score_tolerance(
    decider: Decider, output: TailOutput, raw: RawFeeds, band: Tolerance, *, is_whole: bool
) -> Tolerance:
    """Add how far raw values may be from their rounding to a narrow type, as far as scores show it."""
    stats, is_normalised = _stats(decider, output), decider.tail.options.enable_normalization
    half = decider.tail.narrow.get(output.level) if is_whole else None
    if half is not None:
        values = as_float32(raw[output.level if output.level in raw else "pixel"])
        finite = np.max(np.abs(values), where=np.isfinite(values), initial=0.0)
        band = together(narrow(largest_shown(stats) if is_normalised else float(finite), half), band)
    if is_normalised:
        band = Tolerance(atol=band.atol / stats.span, reason=band.reason)
    return together(rounding_tolerance(decider, output), band)


def rounding_tolerance(decider: Decider, output: TailOutput) -> Tolerance:
    """Return how far a score may lie from the reference: not at all where it stays raw."""
    stats = _stats(decider, output)
    return TOLERANCES[choose_form(stats)](stats) if decider.tail.options.enable_normalization else EXACT


def _stats(decider: Decider, output: TailOutput) -> LevelStats:
    stats = decider.tail.stats.level(output.level)
    assert stats is not None, f"{output.name} is there, so its level is calibrated"
    return stats


def _without_nan_images(
    expected: Mapping[str, NDArray[Any]], actual: Mapping[str, NDArray[Any]], raw: RawFeeds
) -> Mapping[str, NDArray[Any]]:
    """Without a guard the image of a map with a NaN is not defined: what came out counts as expected there."""
    maps = as_float32(raw["pixel"])
    nan = np.isnan(maps).any(axis=tuple(range(1, maps.ndim)))
    defined = dict(expected)
    for name in ("pred_score", "pred_label"):
        wanted, found = defined.get(name), actual.get(name)
        if wanted is not None and found is not None and wanted.shape == found.shape and wanted.size == nan.size:
            defined[name] = np.where(nan.reshape(wanted.shape), found, wanted).astype(wanted.dtype)
    return defined


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
    out, loaded or run is a failure with the reason.
    """
    tallies = {way: CheckTally("tail", way.label, way.judged) for way in configurations}
    shapes: Shapes | None = None
    runners: dict[Configuration, Runner] = {}
    own: Shapes = {level: axes_of(port) for level, port in attached.raw.items()}
    for name, needed, runs in tail_cases(attached, count=count, seed=seed):
        declared = own if all(fits(feeds, own) for feeds in runs) else needed
        if declared != shapes:  # compiling takes longer than running
            try:
                model = attached.tail_alone(declared)
            except UnsupportedModelError as error:
                yield failed("tail", " ".join(str(error).split()))
                return
            runners, shapes = {}, declared
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
        for feeds in runs:
            expected, is_empty = reference.outputs(feeds), not all(values.size for values in feeds.values())
            for way, runner in runners.items():
                if is_empty and not runner_class(way.runtime).takes_empty:
                    continue
                try:
                    tallies[way].add(compare_tail(reference, expected, run_tail(attached, runner, feeds), feeds))
                except PostprocError as error:
                    tallies[way].fail(attached.names, f"{name}: {error}")
    for tally in tallies.values():
        yield from tally.checks()


def run_tail(attached: AttachedModel, runner: Runner, raw: RawFeeds) -> dict[str, NDArray[Any]]:
    """Run a tail alone on raw values; an input that is an output as well may go by that name."""
    fed = {attached.raw[level].name: values for level, values in raw.items()}
    return runner.run(
        {port.name: values for port in runner.inputs for name, values in fed.items() if port.answers_to(name)}
    )


COUNT: Final = 5_000  # raw values per level and sensitivity at the most: what is adjusted is one number
_SENSITIVITIES: Final = (0.0, 0.3, 0.85, 1.0)
_BEYOND: Final = ((-0.5, 0.0), (1.5, 1.0), (math.nan, 1.0))


def check_adjusted(
    reference: Reference, ways: Sequence[Configuration], *, count: int, seed: int, threads: int | None = None
) -> Iterator[Check]:
    """Compare the labels of the tail alone with the reference's at several sensitivities, where it can be adjusted.

    Exact at the attached sensitivity, from 1 on, for NaN, and wherever the boundary itself is given; else labels may
    differ within the distance from the boundary that docs/definition.md section 4 states.
    """
    attached = reference.attached
    if not attached.tail.adjustable:
        return
    form = attached.form.name
    ways = [way for way in ways if way.judged and form in runner_class(way.runtime).adjusts]
    options, runners = attached.tail.options, dict[Configuration, Runner]()
    for given, meant in settings_of(attached):
        try:
            adjusted = attached.at_sensitivity(meant)
            is_number = options.adjustable == "sensitivity" or math.isnan(given)
            values = {
                name: given if is_number else adjusted.tail.boundary(level)
                for level, name in zip(attached.tail.adjustable, attached.tail.defaults, strict=True)
            }
        except MetadataError:  # a boundary that is subnormal: no such file can be attached, and so none is given
            continue
        is_attached = all(options.sensitivity(level) == meant for level in attached.tail.adjustable)
        is_computed = options.adjustable == "sensitivity" and meant < 1.0 and not is_attached
        wanted, allowance = reference.of(adjusted), "adjusted" if is_computed else None
        name, shapes, runs = next(iter(tail_cases(adjusted, count=min(count, COUNT), seed=seed)))
        for way in ways:
            tally = CheckTally(f"adjusted/{given:g}", way.label, way.judged)
            try:
                if way not in runners:
                    runners[way] = way.open(adjusted.tail_alone(shapes), threads=threads)
                runner = adjusted.parts_of(runners[way], values)
                tally.ran_on(runner)
                for feeds in runs:
                    actual = run_tail(adjusted, runner, feeds)
                    tally.add(compare_tail(wanted, wanted.outputs(feeds), actual, feeds, allowance=allowance))
            except PostprocError as error:
                tally.fail(adjusted.names, f"{name}: {error}")
            yield from (check for check in tally.checks() if check.subject.rpartition("/")[2] in LABELS)


def settings_of(attached: AttachedModel) -> Iterator[tuple[float, float]]:
    """Yield what is given, which may lie outside [0, 1] or be NaN, and the sensitivity that it counts as."""
    options = attached.tail.options
    attached_ones = dict.fromkeys(options.sensitivity(level) for level in attached.tail.adjustable)
    for sensitivity in dict.fromkeys((*attached_ones, *_SENSITIVITIES)):
        yield sensitivity, sensitivity
    if options.adjustable == "sensitivity":
        yield from _BEYOND
    elif options.comparison == "ge":
        yield math.nan, 1.0


# Every raw value there is through the tail of each level: all 2^32 float32, or all 2^16 of a half-precision type.
#
# float32 values go in where the level's comparison and its normalised score read them: behind the NaN guard and the
# reductions over a map, which see whole maps and not single values, and whose test is `tail_check`.

Progress: TypeAlias = Callable[[int, int], None]

CHUNK: Final = 1 << 20  # 4 MiB: what runs over it stays in the cache
ALL: Final = 1 << 32
_HALVES: Final = ("float16", "bfloat16")
_FORMULA: Final = "anomalib-formula"


def check_exhaustively(
    reference: Reference,
    ways: Sequence[Configuration],
    *,
    progress: Progress | None = None,
    start: int = 0,
    stop: int = ALL,
) -> Iterator[Check]:
    """Run every raw value of each level through the tail and compare it with the eager reference.

    Values are streamed in the order of their bits, 2^20 at a time, both levels at once in a thread each; runtimes and
    reference take one thread each. `start` and `stop` are the first bit pattern, and the one before which to stop.
    With the rule ``"gt"`` the reference itself is compared with Anomalib's formula written out: on every value but NaN
    and, where nothing finite is anomalous, +inf, which Anomalib calls normal.
    """
    attached = reference.attached
    form = attached.form.name
    ways = [way for way in ways if way == way.exact and form in runner_class(way.runtime).formats]
    sweeps = [_Sweep(reference, level, ways) for level in attached.levels]
    chunks = [sweep.chunks(start, stop) for sweep in sweeps]
    total, lock, done = sum(map(len, chunks)), Lock(), iter(range(1, sum(map(len, chunks)) + 1))

    def run(sweep: _Sweep, chunks: range) -> None:
        for first in chunks:
            sweep.add(first, min(first + CHUNK, chunks.stop))
            with lock:
                number = next(done)
                if progress is not None:
                    progress(number, total)

    alone = torch_threads(1) if reference.arithmetic == "torch" else nullcontext()
    with alone, ThreadPoolExecutor(max(1, len(sweeps))) as pool:
        for part in [pool.submit(run, *each) for each in zip(sweeps, chunks, strict=True)]:
            part.result()
    for tally in (each for sweep in sweeps for each in sweep.tallies):
        yield from tally.checks()


class _Sweep:
    """One level of one file, over all chunks."""

    def __init__(self, reference: Reference, level: Level, ways: Sequence[Configuration]) -> None:
        self._attached = attached = reference.attached
        self._boundary = attached.boundary(level)
        self._outputs = {self._value_name(part.name): part for part in computed_parts(attached, level)}
        self._fed: Level = level if level in attached.raw else "pixel"
        self.dtype = attached.raw[self._fed].dtype
        self._reference = LevelReference(attached, level, reference.arithmetic)
        self._formula = CheckTally("exhaustive", _FORMULA)
        self._runs: list[tuple[Runner, CheckTally]] = []
        if self.dtype in _HALVES:
            raw = attached.raw.values()
            inputs = tuple(port._replace(shape=(None,) * max(1, port.rank or 1)) for port in raw)
        else:
            rank = attached.raw[level].rank if level == "pixel" else 1  # a map's tail takes it as one, and no score's
            inputs = (PortInfo(decided_value(attached, level), "float32", (None,) * (rank or 1)),)
        for way in ways:
            model = attached.cut(tuple(self._outputs), inputs)
            runner = attached.with_values(way.open(model, threads=1))
            self._runs.append((runner, CheckTally("exhaustive", way.label)))
            self._runs[-1][1].ran_on(runner)
        self.tallies = [self._formula, *(tally for _, tally in self._runs)]

    def chunks(self, start: int, stop: int) -> range:
        """Return where the chunks begin."""
        return range(start, min(stop, 1 << 16 if self.dtype in _HALVES else ALL), CHUNK)

    def _value_name(self, part: str) -> str:
        """Return the name by which a part can be cut out: that of its value where it has no output of its own."""
        if not self._attached.tail.options.is_packed:
            return part
        at = self._attached.places[part]
        assert not isinstance(at, Mismatch), "a tail that is not as recorded is refused by `decided_value`"
        return self._attached.form.value_name(at)

    def add(self, start: int, stop: int) -> None:
        """Run one chunk everywhere: the values whose bit patterns lie in a range."""
        fed = self._attached.raw[self._fed]
        bits, dtype = (np.uint16, numpy_dtype(fed)) if self.dtype in _HALVES else (np.uint32, np.dtype(np.float32))
        values = np.arange(start, stop, dtype=bits).view(dtype)
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

    def _feeds(self, runner: Runner, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Half-precision values go in as images and maps of their own; the level that is not meant gets zeros."""
        if self.dtype not in _HALVES:
            port = runner.inputs[0]
            return {port.name: values.reshape(*[1] * ((port.rank or 1) - 1), -1)}
        read = {port.name for port in runner.inputs}
        feeds = {}
        for level, port in self._attached.raw.items():
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
