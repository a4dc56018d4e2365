"""From the PyTorch model to the attached file, stage by stage: errors, flips, and which stage brought each flip in."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np

from postproc_export.check.attached import TAPS, AttachedModel, RawFeeds, boundary_of
from postproc_export.check.inputs import RealInputs
from postproc_export.check.readings import BatchRuns, ModelName, RawStore, Reader, Reading, Rows, TappedReading
from postproc_export.check.reference import RawFile, named_output
from postproc_export.check.stage_report import (
    RAW_ATTACHED,
    TAIL,
    TORCH_ATTACHED,
    TORCH_RAW,
    Baseline,
    LevelOutcome,
    StageResult,
    TracedFlip,
    WayResult,
)
from postproc_export.check.ways import Configuration
from postproc_export.comparison import (
    EXACT,
    TOLERANCES,
    Distances,
    Flip,
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
from postproc_export.stats import Level, LevelStats

# --- The chain of one way of running, fed with what its models gave, batch by batch.

Source = Callable[[BatchRuns], RawFeeds]

_SHORT = {"fp16": "fp16 weights", "int8": "int8"}


@dataclass(frozen=True, slots=True)
class KeptValues:
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
        torch: KeptValues | None,
        exact: KeptValues | None,
        raw_file: RawFile | None,
        keep: RawStore | None = None,
    ) -> None:
        self.problem: str | None = None
        self._reader, self._way, self._inputs = reader, way, inputs
        self._stored = [stored for stored in (torch, exact) if stored is not None]
        self._raw_file, self._keep = raw_file, keep
        self._has_raw = raw_file is not None if exact is None else exact.origin == "raw"
        self._chain: StageChain | None = None
        self._runner: Runner | None = None

    @property
    def kept(self) -> KeptValues | None:
        """The values that were kept, the raw file's where it was run."""
        return None if self._keep is None else KeptValues(self._keep, "attached" if self._raw_file is None else "raw")

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
                self._chain = StageChain(self._reader.attached, self._names(self._runner), self._inputs.sample_name)
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


SHOWN: Final = 10

SampleName = Callable[[int], str | None]


@dataclass(slots=True)
class _LevelChain:
    """One level of a chain."""

    level: Level
    stats: LevelStats
    boundary: float
    scale: float
    map_shape: tuple[int, ...]
    band: Tolerance
    errors: dict[str, ScoreDifference] = field(default_factory=dict)
    labels: dict[str, LabelDifference] = field(default_factory=dict)
    brought_in: dict[str, int] = field(default_factory=dict)
    whole: LabelDifference | None = None
    largest: float = 0.0
    margin: Distances = field(default_factory=Distances)
    flips: list[TracedFlip] = field(default_factory=list)

    def add_values(self, stage: str, before: Rows, after: Rows) -> None:
        found = compare_scores(before, after, tolerance=self.band, nan="same")
        self.errors[stage] = self.errors[stage].merge(found) if stage in self.errors else found

    def add_tail(self, wanted: Rows, found: Rows) -> None:
        """The tail's scores are compared as they are; times the span, their error is in raw units like the others'."""
        scaled = (values.astype(np.float64) * self.scale for values in (wanted, found))
        difference = compare_scores(*scaled, tolerance=self.band, dtype=None)
        self.errors[TAIL] = self.errors[TAIL].merge(difference) if TAIL in self.errors else difference

    def add_labels(self, stage: str, before: Rows, after: Rows, raw: Rows) -> None:
        found = self._compared(before, after, raw)
        self.labels[stage] = self.labels[stage].merge(found) if stage in self.labels else found

    def add_whole(self, names: Sequence[str], nodes: Sequence[Reading], start: int, sample: SampleName) -> None:
        """Attribute what came out otherwise to the last stage that changed it: after that one it stayed so."""
        labels = [node.labels[self.level] for node in nodes]
        first, last = nodes[0].raw[self.level], nodes[-1].raw[self.level]
        found = self._compared(labels[0], labels[-1], first)
        self.whole = found if self.whole is None else self.whole.merge(found)
        with np.errstate(invalid="ignore"):
            self.largest = max(self.largest, float(np.nanmax(np.abs(first - last), initial=0.0)))
            distances = np.abs(first.astype(np.float64) - self.boundary)
        self.margin.add(distances)
        where = np.argwhere(labels[0] != labels[-1])
        if not len(where):
            return
        stages = np.zeros(len(where), np.int64)
        rows, columns = where.T
        for number in range(len(names)):
            stages[(labels[number] != labels[number + 1])[rows, columns]] = number
        for number, name in enumerate(names):
            self.brought_in[name] = self.brought_in.get(name, 0) + int((stages == number).sum())
        farthest = np.argsort(-np.nan_to_num(distances[rows, columns], nan=np.inf), kind="stable")[:SHOWN]
        self.flips += [
            self._flip(int(rows[i]), int(columns[i]), names[stages[i]], (first, last, labels[0]), start, sample)
            for i in farthest
        ]
        self.flips = sorted(self.flips, key=_farthest_first)[:SHOWN]

    def results(self, names: Sequence[str]) -> Iterator[StageResult]:
        for name in names:
            if name in self.errors:
                yield StageResult(
                    stage=name,
                    level=self.level,
                    errors=self.errors[name],
                    labels=self.labels.get(name),
                    span=self.stats.span,
                )

    def outcome(self) -> LevelOutcome | None:
        if self.whole is None:
            return None
        within, at_risk = self.margin.within(self.largest)
        return LevelOutcome(
            level=self.level,
            count=self.whole.count,
            flipped=self.whole.flipped,
            near=self.whole.near,
            brought_in={name: count for name, count in self.brought_in.items() if count},
            flips=tuple(self.flips),
            boundary=self.boundary,
            band=self.band.atol,
            span=self.stats.span,
            largest=self.largest,
            within=within,
            at_risk=at_risk,
            nearest=self.whole.nearest,
            farthest=self.whole.farthest,
        )

    def _compared(self, before: Rows, after: Rows, raw: Rows) -> LabelDifference:
        return compare_labels(before, after, raw=raw, boundary=self.boundary, band=self.band.atol, dtype="bool")

    def _flip(
        self, row: int, column: int, stage: str, values: tuple[Rows, Rows, Rows], start: int, sample: SampleName
    ) -> TracedFlip:
        first, last, labels = values
        raw = float(first[row, column])
        pixel = tuple(int(i) for i in np.unravel_index(column, self.map_shape)) if self.map_shape else ()
        flip = Flip(
            index=(start + row, *pixel),
            expected=bool(labels[row, column]),
            raw=raw,
            distance=raw - self.boundary,
            ulps=ulps_between(raw, self.boundary),
        )
        return TracedFlip(flip=flip, raw=float(last[row, column]), stage=stage, sample=sample(start + row))


class StageChain:
    """Readings of the same samples, from the first that decides to the labels that come out.

    Parameters
    ----------
    attached
        The attached file.
    names
        The stage between each reading and the next, the tail last.
    sample
        Gives the name of a sample by its number.
    """

    def __init__(self, attached: AttachedModel, names: Sequence[str], sample: SampleName) -> None:
        self.names = tuple(names)
        self._attached = attached
        self._sample = sample
        self._levels: dict[Level, _LevelChain] = {}
        self._position = 0

    def add(self, readings: Sequence[Reading], tapped: TappedReading, map_shape: tuple[int, ...]) -> None:
        """Compare one batch.

        Parameters
        ----------
        readings
            What decided before the attached file's body, in order; may be empty.
        tapped
            The attached file's body, and what its tail made of it.
        map_shape
            Height and width of a map; empty where there is none.
        """
        nodes = [*readings, tapped.body, tapped.given]
        for level in tapped.given.raw:
            chain = self._level(level, map_shape)
            for name, (before, after) in zip(self.names[:-1], pairwise(nodes[:-1]), strict=True):
                chain.add_values(name, before.raw[level], after.raw[level])
            chain.add_tail(tapped.wanted[level], tapped.found[level])
            if level in tapped.given.labels:
                for name, (before, after) in zip(self.names, pairwise(nodes), strict=True):
                    chain.add_labels(name, before.labels[level], after.labels[level], before.raw[level])
                chain.add_whole(self.names, nodes, self._position, self._sample)
        self._position += len(next(iter(tapped.given.raw.values())))

    def results(self) -> tuple[StageResult, ...]:
        """Return what every stage did on every level."""
        found = [result for chain in self._levels.values() for result in chain.results(self.names)]
        return tuple(sorted(found, key=lambda result: self.names.index(result.stage)))

    def outcomes(self) -> tuple[LevelOutcome, ...]:
        """Return what became of the decisions of each level that has labels."""
        found = (chain.outcome() for chain in self._levels.values())
        return tuple(outcome for outcome in found if outcome is not None)

    def _level(self, level: Level, map_shape: tuple[int, ...]) -> _LevelChain:
        if level not in self._levels:
            stats, boundary = self._attached.tail.stats.level(level), boundary_of(self._attached, level)
            assert stats is not None, "a level that is read is calibrated"
            assert boundary is not None, "a level that is read is post-processed"
            half = self._attached.tail.narrow.get(level)
            rounded = EXACT if half is None else narrow(2 * largest_shown(stats), half)  # on both sides
            self._levels[level] = _LevelChain(
                level=level,
                stats=stats,
                boundary=boundary,
                scale=stats.span if self._attached.tail.options.enable_normalization else 1.0,
                map_shape=map_shape if level == "pixel" else (),
                band=together(TOLERANCES["exported"](stats), rounded),
            )
        return self._levels[level]


def _farthest_first(traced: TracedFlip) -> float:
    distance = traced.flip.distance
    return -math.inf if distance is None or math.isnan(distance) else -abs(distance)


def tapped_values(runs: BatchRuns, model: ModelName = "tapped") -> RawFeeds:
    """Return the float32 raw values that came out at the taps of a model."""
    outputs, runner = runs.of(model), runs.runner(model)
    found = {level: named_output(name, outputs, runner) for level, name in TAPS.items()}
    return {level: as_float32(values) for level, values in found.items() if values is not None}
