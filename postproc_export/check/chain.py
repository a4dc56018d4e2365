"""From the PyTorch model to the attached file: one chain of readings per way of running, and what each stage did."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from postproc_export.check.attached import TAPS, AttachedModel, RawFeeds
from postproc_export.check.inputs import RealBatch
from postproc_export.check.reference import RawFile, Reference, named_output
from postproc_export.check.ways import Configuration
from postproc_export.comparison import (
    EXACT,
    TOLERANCES,
    Distances,
    LabelDifference,
    ScoreDifference,
    Tolerance,
    compare_labels,
    compare_scores,
    largest_shown,
    narrow,
    together,
    ulps_between,
)
from postproc_export.errors import UsageError
from postproc_export.runtimes import Runner, as_float32
from postproc_export.stats import LEVELS, Level
from postproc_export.tail import TailOutput

# Whose raw values they are: the PyTorch model's, the raw file's, or those of the attached file's own body.
Baseline: TypeAlias = Literal["torch", "raw", "attached"]
# Where raw values come from: PyTorch, the same runtime at float32 (kept from an earlier run), models of this run.
Source: TypeAlias = Literal["torch", "kept", "raw", "tapped", "exact tapped"]
# The attached file; itself with taps; the raw file; the first two at float32.
ModelName: TypeAlias = Literal["attached", "tapped", "raw", "exact", "exact tapped"]


class RawStore:
    """The raw values of every sample, on disk as float32: what one model gave, for all that are compared with it."""

    def __init__(self, folder: Path, name: str, count: int, origin: Baseline) -> None:
        self.origin = origin
        self._folder, self._name, self._count = folder, name, count
        self._arrays: dict[Level, NDArray[np.float32]] = {}

    def put(self, start: int, raw: RawFeeds) -> None:
        """Keep the raw values of the samples from `start` on."""
        for level, values in raw.items():
            part = as_float32(np.atleast_1d(values))
            if level not in self._arrays:
                path, shape = self._folder / f"{self._name}-{level}.npy", (self._count, *part.shape[1:])
                self._arrays[level] = np.lib.format.open_memmap(path, "w+", np.float32, shape)
            self._arrays[level][start : start + len(part)] = part

    def get(self, start: int, stop: int) -> dict[Level, NDArray[np.float32]]:
        """Return the raw values of some samples."""
        return {level: np.array(values[start:stop]) for level, values in self._arrays.items()}


class BatchRuns:
    """One batch, and what every model of a way of running makes of it; a model runs when it is first asked for."""

    def __init__(
        self,
        batch: RealBatch,
        runners: Mapping[ModelName, Runner],
        reference: Reference,
        raw_file: RawFile | None = None,
        stores: Mapping[Source, RawStore] | None = None,
    ) -> None:
        self.batch, self.runners = batch, runners
        self._reference, self._raw_file, self._stores = reference, raw_file, stores or {}
        self._outputs: dict[int, dict[str, NDArray[Any]]] = {}
        self._raw: dict[Source, RawFeeds] = {}
        self._expected: dict[Source, dict[str, NDArray[Any]]] = {}

    def outputs(self, model: ModelName) -> dict[str, NDArray[Any]]:
        """Return the outputs of a model, without what came of filling up the batch."""
        runner = self.runners[model]
        if id(runner) not in self._outputs:  # one model may go by two names
            self._outputs[id(runner)] = self.batch.run(runner)
        return self._outputs[id(runner)]

    def raw(self, source: Source) -> RawFeeds:
        """Return raw values in the shapes in which the models give them."""
        if source not in self._raw:
            if source == "torch" or source == "kept":
                self._raw[source] = self._stores[source].get(self.batch.start, self.batch.start + self.batch.valid)
            elif source == "raw":
                assert self._raw_file is not None, "the raw file runs, so it was given"
                self._raw[source] = self._raw_file.levels(self.outputs(source), self.runners[source])
            else:
                outputs, runner = self.outputs(source), self.runners[source]
                found = {level: named_output(name, outputs, runner) for level, name in TAPS.items()}
                self._raw[source] = {level: as_float32(each) for level, each in found.items() if each is not None}
        return self._raw[source]

    def expected(self, source: Source) -> dict[str, NDArray[Any]]:
        """Return what the reference gives for raw values."""
        if source not in self._expected:
            self._expected[source] = self._reference.outputs(self.raw(source))
        return self._expected[source]


Rows: TypeAlias = NDArray[Any]
Outputs: TypeAlias = Mapping[str, NDArray[Any]]

SCORES: Final[Mapping[Level, str]] = {"image": "pred_score", "pixel": "anomaly_map"}
LABELS: Final[Mapping[Level, str]] = {"image": "pred_label", "pixel": "pred_mask"}


@dataclass(frozen=True, slots=True)
class Reading:
    """Raw values of each level, float32 (n, k), and what was decided on them; k is 1, or the number of pixels."""

    raw: Mapping[Level, Rows]
    labels: Mapping[Level, Rows]  # bool, the same shape; a level without labels is not there
    scores: Mapping[Level, Rows] = field(default_factory=dict)  # float32: what the tail should have made, or made


class Reader:
    """Turns raw values and outputs of an attached file into readings."""

    def __init__(self, reference: Reference) -> None:
        self.reference, self.attached = reference, reference.attached
        self._parts = {part.name: part for part in self.attached.tail.parts}

    def asked(self, raw: RawFeeds, expected: Outputs) -> Reading:
        """Return raw values with what the reference decides on them."""
        return Reading(self._values(raw), self._labels(expected))

    def misfit(self, raw: RawFeeds, outputs: Outputs) -> str | None:
        """Return why the outputs of a file are not those of its raw values; None where they are."""
        if lost := [level for level in self.attached.raw if level not in raw]:
            return f"the raw value of the {lost[0]} level is no output any more where it is tapped"
        sizes = {level: values.size for level, values in self._values(raw).items()}
        for part in self.attached.tail.parts:
            found = outputs.get(part.name)
            if found is None or found.size != sizes[part.level]:
                shape = "nothing" if found is None else f"shape {list(found.shape)}"
                return f"'{part.name}' has {shape} for {sizes[part.level]:,} raw values"
        return None

    def tapped(self, raw: RawFeeds, expected: Outputs, beside: Outputs, outputs: Outputs) -> tuple[Reading, Reading]:
        """Return what the body of a file gave and should have been decided on that, and what its tail made of it.

        A tap may move what it taps. So the tail is judged by the outputs `beside` the taps, and whatever else differs
        in the outputs of the file without taps is put down to the body. Nothing shows the raw value of a file without
        taps but what its tail makes of it: it is the tapped one, moved by as much as the score beside it is, times the
        span; and on the side of the boundary on which the label is.
        """
        values, asked, found = self._values(raw), self._labels(expected), self._labels(beside)
        given, body = self._labels(outputs), {}
        for level, labels in given.items():
            excused = self.reference.excused(self._parts[LABELS[level]], raw)
            faults = asked[level] ^ found[level]
            body[level] = labels ^ (faults if excused is None else faults & ~(_rows(excused) & found[level]))
        scores, alone = self._scores(beside), self._scores(outputs)
        moved = {
            level: self._moved(level, each, scores[level], alone[level], asked.get(level), body.get(level))
            for level, each in values.items()
        }
        return Reading(moved, body, self._scores(expected)), Reading(moved, given, scores)

    def _moved(
        self, level: Level, values: Rows, beside: Rows, alone: Rows, asked: Rows | None, decided: Rows | None
    ) -> Rows:
        """Return raw values as they are without taps; the very values where nothing tells that they are others."""
        boundary, _, scale = level_numbers(self.attached, level)
        with np.errstate(invalid="ignore", over="ignore"):
            step = (alone.astype(np.float64) - beside) * scale
            others = np.isfinite(step) & (step != 0) & np.isfinite(values)
            moved: Rows = np.where(others, values + step, values).astype(np.float32)
        if asked is None or decided is None or not np.isfinite(boundary):
            return moved
        below = np.nextafter(np.float32(boundary), np.float32(-np.inf))
        for side, limit in ((True, np.maximum(moved, np.float32(boundary))), (False, np.minimum(moved, below))):
            moved = np.where((others | (asked != decided)) & (decided == side), limit, moved)
        return moved

    def _values(self, raw: RawFeeds) -> dict[Level, Rows]:
        return {level: _rows(self.reference.decided_on(part, raw)) for level, part in self._of(SCORES)}

    def _labels(self, outputs: Outputs) -> dict[Level, Rows]:
        return {level: _rows(outputs[part.name]).astype(bool) for level, part in self._of(LABELS)}

    def _scores(self, outputs: Outputs) -> dict[Level, Rows]:
        return {level: _rows(as_float32(outputs[part.name])) for level, part in self._of(SCORES)}

    def _of(self, names: Mapping[Level, str]) -> Iterator[tuple[Level, TailOutput]]:
        return ((level, self._parts[names[level]]) for level in LEVELS if names[level] in self._parts)


def _rows(values: NDArray[Any]) -> Rows:
    least = np.atleast_1d(values)
    return least.reshape(len(least), -1)


def level_numbers(attached: AttachedModel, level: Level) -> tuple[float, float, float]:
    """Return boundary and span of a level that the tail reads, and how many raw units its scores count as 1."""
    stats, boundary = attached.tail.stats.level(level), attached.boundary(level)
    assert stats is not None, "a level that is read is calibrated"
    assert boundary is not None, "a level that is read is post-processed"
    return boundary, stats.span, stats.span if attached.tail.options.enable_normalization else 1.0


TORCH_RAW: Final = "torch -> raw"
TORCH_ATTACHED: Final = "torch -> attached"
RAW_ATTACHED: Final = "raw -> attached"
TAIL: Final = "tail"
SHOWN: Final = 10

_NUMBERS: Final = ("flipped", "near", "nearest", "farthest")  # of a difference of labels, as they stand in a report
_SHORT: Final = {"fp16": "fp16 weights", "int8": "int8"}


@dataclass(slots=True, kw_only=True)
class LevelTrace:
    """What each stage did to one level, and the whole chain to its decisions; numbers in raw units."""

    level: Level
    boundary: float
    span: float
    band: Tolerance  # what another float32 computation of the same values explains
    scale: float = 1.0  # what scores are multiplied with to be in raw units
    errors: dict[str, ScoreDifference] = field(default_factory=dict)  # by stage; of the tail, those of its scores
    worst: dict[str, dict[str, Any]] = field(default_factory=dict)  # by stage: where its largest error is, JSON values
    labels: dict[str, LabelDifference] = field(default_factory=dict)  # by stage: decisions that changed
    decided: LabelDifference = field(default_factory=LabelDifference)  # from the first reading to the last
    largest: float = 0.0  # error of a raw value from start to end
    distances: Distances = field(default_factory=Distances)  # of raw values from the boundary
    flips: list[dict[str, Any]] = field(default_factory=list)  # JSON objects of those farthest from the boundary
    brought_in: dict[str, int] = field(default_factory=dict)  # of flips by the stage after which they stayed so

    @classmethod
    def of(cls, attached: AttachedModel, level: Level) -> "LevelTrace":
        """Return a trace of nothing yet."""
        boundary, span, scale = level_numbers(attached, level)
        stats, half = attached.tail.stats.level(level), attached.tail.narrow.get(level)
        assert stats is not None, "a level that is read is calibrated"
        rounded = EXACT if half is None else narrow(2 * largest_shown(stats), half)  # on both sides
        band = together(TOLERANCES["exported"](stats), rounded)
        return cls(level=level, boundary=boundary, span=span, scale=scale, band=band)

    @property
    def at_risk(self) -> tuple[float, int]:
        """The largest error, up to 1 % more, and how many decisions lie at most so far from the boundary."""
        return self.distances.within(self.largest)

    def add(
        self, names: Sequence[str], nodes: Sequence[Reading], shape: tuple[int, ...], start: int, sample: "SampleName"
    ) -> None:
        """Compare each reading with the next; `names` are the stages between them, the tail last.

        `shape` is that of a map, `start` the number of the first sample, `sample` gives its name.
        """
        level = self.level
        for name, (before, after) in zip(names[:-1], pairwise(nodes[:-1]), strict=True):
            found = compare_scores(before.raw[level], after.raw[level], tolerance=self.band, nan="same")
            self._add_error(name, found, shape, start, sample)
        scores = (node.scores[level].astype(np.float64) * self.scale for node in nodes[-2:])
        made = compare_scores(*scores, tolerance=self.band, dtype=None)
        self._add_error(TAIL, made, shape, start, sample, unit=self.scale)
        if level not in nodes[-1].labels:
            return
        for name, (before, after) in zip(names, pairwise(nodes), strict=True):
            self.labels[name] = self.labels.get(name, LabelDifference()).merge(self._compared(before, after))
        self.decided = self.decided.merge(self._compared(nodes[0], nodes[-1]))
        first, last = nodes[0].raw[level], nodes[-1].raw[level]
        with np.errstate(invalid="ignore"):
            self.largest = max(self.largest, float(np.nanmax(np.abs(first - last), initial=0.0)))
            distances = np.abs(first.astype(np.float64) - self.boundary)
        self.distances.add(distances)
        self._add_flips(names, nodes, distances, shape, start, sample)

    def _add_error(
        self,
        name: str,
        found: ScoreDifference,
        shape: tuple[int, ...],
        start: int,
        sample: "SampleName",
        *,
        unit: float = 1.0,
    ) -> None:
        known = self.errors.get(name)
        self.errors[name] = found if known is None else known.merge(found)
        if found.index is not None and (known is None or found.largest > known.largest):
            row, column = found.index
            before, after = (None if value is None else value / unit for value in (found.expected, found.actual))
            values = {"before": before, "after": after}
            self.worst[name] = {"index": _place(start + row, column, shape), "sample": sample(start + row), **values}

    def _add_flips(
        self,
        names: Sequence[str],
        nodes: Sequence[Reading],
        distances: Rows,
        shape: tuple[int, ...],
        start: int,
        sample: "SampleName",
    ) -> None:
        """Attribute what came out otherwise to the last stage that changed it: after that one it stayed so."""
        labels = [node.labels[self.level] for node in nodes]
        first, last = nodes[0].raw[self.level], nodes[-1].raw[self.level]
        rows, columns = np.nonzero(labels[0] != labels[-1])
        if not len(rows):
            return
        stages = np.zeros(len(rows), np.int64)
        for number in range(len(names)):
            stages[(labels[number] != labels[number + 1])[rows, columns]] = number
        counted = {name: int((stages == number).sum()) for number, name in enumerate(names)}
        totals = {name: self.brought_in.get(name, 0) + count for name, count in counted.items()}
        self.brought_in = {name: total for name, total in totals.items() if total}
        farthest = np.argsort(-np.nan_to_num(distances[rows, columns], nan=np.inf), kind="stable")[:SHOWN]
        for index in farthest:
            row, column = int(rows[index]), int(columns[index])
            raw = float(first[row, column])
            flip = {
                "index": _place(start + row, column, shape),
                "expected": bool(labels[0][row, column]),
                "raw": raw,
                "distance": raw - self.boundary,
                "ulps": ulps_between(raw, self.boundary),
                "raw_at_the_end": float(last[row, column]),
                "stage": names[stages[index]],
                "sample": sample(start + row),
            }
            self.flips.append(flip)
        self.flips.sort(key=lambda flip: -np.nan_to_num(abs(flip["distance"]), nan=np.inf, posinf=np.inf))
        del self.flips[SHOWN:]

    def _compared(self, before: Reading, after: Reading) -> LabelDifference:
        labels, raw = (before.labels[self.level], after.labels[self.level]), before.raw[self.level]
        return compare_labels(*labels, raw=raw, boundary=self.boundary, band=self.band.atol, dtype="bool")

    def stage_json(self, stage: str) -> dict[str, Any]:
        """Return the numbers of a stage: errors in raw units and of the span, and the decisions that changed."""
        found, labels = self.errors[stage], self.labels.get(stage)
        errors = {"largest": found.largest, "mean": found.mean, "p999": found.quantile}
        return {
            "stage": stage,
            "level": self.level,
            "count": found.count,
            "error": errors,
            "error_of_span": {key: value / self.span for key, value in errors.items()},
            "worst": self.worst.get(stage),
            **({} if labels is None else {name: getattr(labels, name) for name in _NUMBERS}),
        }

    def to_json(self) -> dict[str, Any]:
        """Return what became of the decisions."""
        reached, at_risk = self.at_risk
        return {
            "level": self.level,
            "count": self.decided.count,
            **{name: getattr(self.decided, name) for name in _NUMBERS},
            "boundary": self.boundary,
            "band": self.band.atol,
            "span": self.span,
            "largest": self.largest,
            "within": reached,
            "at_risk": at_risk,
            "brought_in": self.brought_in,
            "flips": self.flips,
        }


def _place(number: int, column: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the index of a value: the number of its sample, and its place in a map of this shape."""
    return (number, *(map(int, np.unravel_index(column, shape)) if shape else ()))


SampleName: TypeAlias = Callable[[int], str | None]


@dataclass(slots=True, kw_only=True)
class WayResult:
    """What one way to run the whole model came to."""

    way: Configuration
    runtime: str
    precision: str  # what the runtime says it computes in
    baseline: Baseline  # what decided first
    names: Sequence[str]  # the stages between the readings, the tail last
    levels: dict[Level, LevelTrace] = field(default_factory=dict)

    @property
    def stages(self) -> list[tuple[str, LevelTrace]]:
        """Every stage with every level that it was compared on, in order."""
        return [(name, trace) for name in self.names for trace in self.levels.values() if name in trace.errors]

    @property
    def outcomes(self) -> list[LevelTrace]:
        """Each level that has labels."""
        return [trace for trace in self.levels.values() if trace.decided.count]

    @property
    def flipped(self) -> int:
        """How many decisions came out otherwise."""
        return sum(trace.decided.flipped for trace in self.outcomes)

    @property
    def brought_in(self) -> dict[str, int]:
        """Of those, how many each stage brought in."""
        return sum((Counter(trace.brought_in) for trace in self.outcomes), Counter[str]())

    @property
    def moved(self) -> int:
        """How many of them something behind the export brought in: precision, weights, compilation, the tail."""
        return self.flipped - sum(self.brought_in.get(stage, 0) for stage in (TORCH_RAW, TORCH_ATTACHED))

    @property
    def beyond(self) -> int:
        """How many of them lie outside the band around the boundary."""
        return sum(trace.decided.flipped - trace.decided.near for trace in self.outcomes)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "way": self.way.label,
            "runtime": self.runtime,
            "precision": self.precision,
            "weights": self.way.weights,
            "judged": self.way.judged,
            "baseline": self.baseline,
            "flipped": self.flipped,
            "flipped_beyond_band": self.beyond,
            "levels": [trace.to_json() for trace in self.outcomes],
            "stages": [trace.stage_json(name) for name, trace in self.stages],
        }


class Trace:
    """Follows batches through the stages of one way of running.

    `stores` are the values of PyTorch and of the same runtime at float32, `has_raw` says whether the raw file is run
    this way, too. `problem` says why nothing can be compared.
    """

    def __init__(
        self,
        reader: Reader,
        way: Configuration,
        sample: SampleName,
        stores: Mapping[Source, RawStore],
        *,
        has_raw: bool,
    ) -> None:
        self.problem: str | None = None
        self.result: WayResult | None = None
        self._reader, self._way, self._sample = reader, way, sample
        self._stores, self._has_raw = stores, has_raw

    def add(self, runs: BatchRuns) -> None:
        """Follow one batch; UsageError if the PyTorch model's outputs are of another size than the exported model's."""
        if self.problem is not None:
            return
        body, beside, outputs = runs.raw("tapped"), runs.outputs("tapped"), runs.outputs("attached")
        self.problem = self._reader.misfit(body, beside) or self._reader.misfit(body, outputs)
        if self.problem is not None:
            return
        sources: list[Source] = [*self._stores, *(("raw",) if self._has_raw else ())]
        before = [self._reader.asked(runs.raw(source), runs.expected(source)) for source in sources]
        tapped = self._reader.tapped(body, runs.expected("tapped"), beside, outputs)
        for source, reading in zip(sources, before, strict=True):
            self._compare_sizes(source, reading, tapped[0])
        if self.problem is not None:
            return
        if self.result is None:
            self.result = self._begun(runs.runners["attached"])
        shape = body["pixel"].shape[-2:] if "pixel" in body else ()
        for level in tapped[0].raw:
            if level not in self.result.levels:
                self.result.levels[level] = LevelTrace.of(self._reader.attached, level)
            of_level = shape if level == "pixel" else ()
            trace = self.result.levels[level]
            trace.add(self.result.names, [*before, *tapped], of_level, runs.batch.start, self._sample)

    def _begun(self, runner: Runner) -> WayResult:
        kept = self._stores.get("kept")
        has_raw = self._has_raw if kept is None else kept.origin == "raw"
        precision = "default" if runner.inference_precision == "float32" else runner.inference_precision
        other = f"f32 -> {_SHORT.get(self._way.weights, precision)}"
        names = {"torch": TORCH_RAW if has_raw else TORCH_ATTACHED, "kept": other}
        first = next(iter(self._stores.values()), None)
        return WayResult(
            way=self._way,
            runtime=f"{runner.name} {runner.version}",
            precision=runner.inference_precision,
            baseline=first.origin if first is not None else "raw" if self._has_raw else "attached",
            names=[*(names[source] for source in self._stores), *([RAW_ATTACHED] if self._has_raw else []), TAIL],
        )

    def _compare_sizes(self, source: Source, reading: Reading, body: Reading) -> None:
        for level, values in body.raw.items():
            found = reading.raw[level].shape
            if found == values.shape:
                continue
            sentence = f"{found[1]:,} values per sample on the {level} level, and the attached file {values.shape[1]:,}"
            if source == "torch":
                raise UsageError(
                    f"the PyTorch module gives {sentence}",
                    needed="the module that was exported, at the same size",
                    fix=f"name the raw output of the module with --{level}-output, if it is another one",
                )
            self.problem = f"the raw file gives {sentence}"
