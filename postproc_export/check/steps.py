"""Custom steps and decisions, each cut out of the file and compared with its eager twin."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from postproc_export.check.attached import PURPOSE, AttachedModel, RawFeeds, axes_of, numpy_dtype
from postproc_export.check.chain import SCORES
from postproc_export.check.findings import Check
from postproc_export.check.inputs import RealInputs, SyntheticInputs, raw_values
from postproc_export.check.record import check_outputs
from postproc_export.check.reference import READS, EagerDecisions, EagerTransform, Reference, Size, named_output
from postproc_export.check.tail import CheckTally
from postproc_export.check.ways import Configuration
from postproc_export.comparison import Difference, compare_labels, compare_scores
from postproc_export.errors import MissingDependencyError, PostprocError, UnsupportedModelError
from postproc_export.float32 import HALVES
from postproc_export.process import temporary_folder
from postproc_export.runtimes import PortInfo, Runner, as_float32
from postproc_export.stats import Level
from postproc_export.steps.decisions import DECIDED
from postproc_export.steps.transforms import Channel

Feeds: TypeAlias = Mapping[str, NDArray[Any]]
"""Arrays by the names of what a layer reads: ``"score"``, ``"map"``, ``"image"``; ``"mask"``, ``"label"``."""


@contextmanager
def _counted(tally: CheckTally, names: Sequence[str]) -> Iterator[None]:
    """Count what fails inside as a failure of all outputs, with the reason."""
    try:
        yield
    except MissingDependencyError:
        raise
    except PostprocError as error:
        tally.fail(names, error)


def _opened(way: Configuration, model: Any, tally: CheckTally, threads: int | None) -> Runner:
    runner = way.open(model, threads=threads)
    tally.ran_on(runner)
    return runner


def _fed(runner: Runner, ports: Mapping[str, PortInfo], feeds: Feeds) -> dict[str, NDArray[Any]]:
    """Run what was cut out of a file on what it reads."""
    given = {port.name: feeds[name] for name, port in ports.items()}
    return runner.run({port.name: given[port.name] for port in runner.inputs})


SIZES: Final = ((33, 40), (7, 5), (1, 1))
"""Sizes of a dynamic map: larger than a common kernel, smaller than most, and the smallest there is."""

_BATCH: Final = 3


def check_transform(
    reference: Reference, transform: EagerTransform, ways: Sequence[Configuration], *, seed: int, threads: int | None
) -> Iterator[Check]:
    """Cut the transform out of the file and compare it with its twin, which is the slowest and runs once for all ways.

    For NaN the tail stays behind it: an image that twin and reference call anomalous has to be so in every runtime. A
    class of the user's that does not take the smallest maps is not fed them.
    """
    attached = reference.attached
    raw = attached.raw
    others = {name: raw[level] for name, level in READS.items() if level in raw and level not in transform.values}
    ports = {**others, **transform.ports}  # what the transform reads, and what the tail reads besides
    stats = attached.tail.stats.pixel or attached.tail.stats.image
    assert stats is not None, "an attached file has a level with statistics"
    span = (stats.min - stats.span, stats.max + stats.span)
    cases: list[tuple[Feeds, RawFeeds, Mapping[Level, NDArray[np.float32]]]] = []
    for feeds in _transform_feeds(ports, span, seed, [step for step in transform.steps if isinstance(step, Channel)]):
        values = {level: feeds[name] for name, level in READS.items() if name in feeds}
        size = (feeds["image"].shape[2], feeds["image"].shape[3]) if "image" in feeds else None
        try:
            cases.append((feeds, values, transform(values, size=size)))
        except UnsupportedModelError:
            if transform.steps:
                raise
    names = [SCORES[level] for level in transform.values]
    for way in ways:
        tally, anomalous = CheckTally("transform", way.label, way.judged), 0
        normal: list[str] = []
        alone: Runner | None = None
        tail: Runner | None = None
        with _counted(tally, names):
            model = attached.cut(tuple(transform.values.values()), list(transform.ports.values()))
            alone = _opened(way, model, tally, threads)
            model = attached.cut(attached.output_names, list(ports.values()))
            tail = attached.parts_of(_opened(way, model, tally, threads))
        for feeds, given, made in cases:
            has_nan = any(np.isnan(array).any() for array in given.values())
            with _counted(tally, names):
                if not has_nan and alone is not None:
                    found, tolerance = _fed(alone, ports, feeds), transform.tolerance(given, made)
                    for level, name in transform.values.items():
                        actual = named_output(name, found, alone)
                        if actual is not None and raw[level].dtype in HALVES:  # it rounds nothing: see `plan_transform`
                            actual = as_float32(actual)
                        tally.add({SCORES[level]: compare_scores(made[level], actual, tolerance=tolerance, nan="same")})
                elif has_nan and tail is not None:
                    wanted = reference.outputs({level: made[level] for level in raw})
                    count, missed = _compare_nan(attached, feeds, made, wanted, _fed(tail, ports, feeds))
                    anomalous += count
                    normal += missed
        yield from tally.checks()
        if anomalous or normal:
            message = "; ".join(normal[:3]) or f"{anomalous} images with a NaN are anomalous"
            yield tally.check("nan", not normal, message)


def _transform_feeds(
    ports: Mapping[str, PortInfo], span: tuple[float, float], seed: int, channels: Sequence[Channel]
) -> Iterator[Feeds]:
    """Yield a random map, a constant one and one of a single peak, at every size that the ports leave open.

    Each comes a second time with a NaN in every map, at the first pixel, in the middle and at the last; else in scores.
    `channels` say of which of several channels, none of them like another, the file reads one.
    """
    random = np.random.default_rng(seed)
    low, high = span
    fixed = next((axes[0] for port in ports.values() if (axes := axes_of(port))), None)
    sizes: list[Size] = [(1, 1)]
    last = any(step.axis == "last" for step in channels)
    least = {step.level: 1 + (step.index or 0) for step in channels}
    if "map" in ports:
        height, width = axes_of(ports["map"])[1:3] if last else axes_of(ports["map"])[-2:]
        sizes = list(dict.fromkeys((height or rows, width or columns) for rows, columns in SIZES))
    for size in sizes:
        peak = np.full(size, low)
        peak[size[0] // 2, size[1] // 3] = high
        for maps in (random.uniform(low, high, size), np.full(size, (low + high) / 2), peak):
            scores = random.uniform(low, high, fixed or _BATCH)
            values = {"score": scores, "map": np.stack([np.roll(maps, step, axis=1) for step in range(len(scores))])}
            name = "map" if "map" in ports else "score"
            rows = values[name].copy().reshape(len(scores), -1)
            rows[np.arange(len(rows)), np.arange(len(rows)) % 3 * (rows.shape[1] - 1) // 2] = np.nan
            for given in (values, {**values, name: rows.reshape(values[name].shape)}):
                yield {
                    name: _image(port, len(scores), size)
                    if name == "image"
                    else _shaped(port, given[name], least.get(READS[name], 1), is_last=last and name == "map")
                    for name, port in ports.items()
                }


def _image(port: PortInfo, count: int, size: Size) -> NDArray[Any]:
    """Return images of a model's input, of which nothing is read but their size."""
    _, channels, height, width = axes_of(port)
    return np.zeros((count, channels or 3, height or 2 * size[0] + 1, width or size[1] + 3), numpy_dtype(port))


def _shaped(port: PortInfo, values: NDArray[np.float64], least: int, *, is_last: bool) -> NDArray[Any]:
    """Return scores (n,) or maps (n, H, W) with the axes of a port, of which an open one has the fewest that do."""
    axes = axes_of(port)
    others = axes[1:] if values.ndim == 1 else axes[-1:] if is_last else axes[1:-2]
    channels = tuple(axis or least for axis in others)
    divisors = 1.0 + np.arange(math.prod(channels))
    wide = (values[:, np.newaxis] / divisors.reshape(-1, *[1] * (values.ndim - 1))).reshape(
        len(values), *channels, *values.shape[1:]
    )
    return (np.moveaxis(wide, 1, -1) if is_last else wide if axes else wide.reshape(())).astype(numpy_dtype(port))


def _compare_nan(
    attached: AttachedModel, feeds: Feeds, made: RawFeeds, wanted: Feeds, found: Feeds
) -> tuple[int, list[str]]:
    """Return how many images with a NaN have to be anomalous, and a sentence where a label or mask does not say so."""
    nan: dict[str, NDArray[np.bool_]] = {}
    count = 0
    there = [name for name in wanted if name in found and found[name].shape == wanted[name].shape]
    if "pred_label" in there and (attached.guard != "none" or "pixel" not in attached.raw):
        rows = [np.isnan(array).reshape(max(1, len(np.atleast_1d(array))), -1).any(axis=1) for array in made.values()]
        label = wanted["pred_label"].astype(bool)
        nan["pred_label"] = label & np.logical_or.reduce(rows).reshape(label.shape)
        count = int(nan["pred_label"].sum())
    if "pred_mask" in there:
        nan["pred_mask"] = np.isnan(made["pixel"])
    shape = list(feeds.get("map", feeds.get("score", np.zeros(0))).shape)
    missed = {name: int((values & ~found[name].astype(bool)).sum()) for name, values in nan.items()}
    return count, [f"{of} of {name} normal though a NaN came in, fed {shape}" for name, of in missed.items() if of]


_TAPS: Final[Mapping[str, str]] = {name: f"postproc-check/read_{name}" for name in ("mask", "label", DECIDED)}
_COUNT: Final = 2_000
_SIZE: Final = (5, 7)


def unfit_layer(whole: AttachedModel) -> Check | None:
    """Return the failure of a file from which what stands behind the decision cannot be taken; None where it can.

    Its outputs were renamed or removed since, so that nothing before them can be looked at apart.
    """
    try:
        model = whole.form.load(whole.path, purpose=PURPOSE)
        whole.form.take(model, "decision", where=str(whole.path))
        lost = [f"nothing computes '{name}'" for name in whole.form.uncomputed(model)]
    except PostprocError as error:
        lost = [" ".join(str(error).split())]
    if not lost:
        return None
    outputs = _check_layer_outputs(whole)
    found = "" if outputs else f"{outputs.message}; "
    return replace(outputs, passed=False, message=f"{found}the rest cannot be checked without it: {lost[0]}")


def _check_layer_outputs(whole: AttachedModel) -> Check:
    record = whole.layer("decision")
    return replace(check_outputs(whole, added=record.made if record else ()), name="decision/outputs")


class DecisionCheck:
    """The check of what stands behind the decision of one file, which is `attached` without it."""

    def __init__(self, whole: AttachedModel, attached: AttachedModel, *, seed: int, threads: int | None) -> None:
        self._file, self._attached, self._seed, self._threads = whole, attached, seed, threads
        self._eager = EagerDecisions(whole, attached.tail)

    def alone(self, ways: Sequence[Configuration]) -> Iterator[Check]:
        """Look at the file's outputs; cut the layer out and feed it every mask and label, and values around points."""
        yield _check_layer_outputs(self._file)
        for way in ways:
            tally = CheckTally("decision", way.label, way.judged)
            with _counted(tally, self._eager.outputs):
                model = self._file.cut(self._eager.outputs, list(self._eager.ports.values()))
                runner = _opened(way, model, tally, self._threads)
                for given in self._feeds():
                    tally.add(self._compare(given, runner, _fed(runner, self._eager.ports, given)))
            yield from tally.checks()

    def whole(
        self, ways: Sequence[Configuration], inputs: RealInputs | SyntheticInputs, size: int, *, part: str = "whole"
    ) -> Iterator[Check]:
        """Run the whole file on real inputs, `size` at a time; compare with what it reads in the same model."""
        taps = {_TAPS[name]: port for name, port in self._eager.ports.items()}
        with temporary_folder() as folder:
            tapped = self._file.tapped(folder, taps)
            for way in (each for each in ways if each.weights == "stored"):
                tally = CheckTally(f"{part}/decision", way.label, way.judged)
                with _counted(tally, self._eager.outputs):
                    runner = self._attached.with_values(_opened(way, tapped, tally, self._threads))
                    for batch in inputs.batches(size):
                        outputs = batch.run(runner)
                        read = {name: named_output(tap, outputs, runner) for name, tap in _TAPS.items()}
                        given = {name: values for name, values in read.items() if values is not None}
                        tally.add(self._compare(given, runner, outputs))
                yield from tally.checks()

    def _compare(self, given: Feeds, runner: Runner, outputs: Feeds) -> dict[str, Difference]:
        found: dict[str, Difference] = {}
        for name, wanted in self._eager(given).items():
            boundary = self._eager.boundaries.get(name)
            found[name] = compare_labels(
                wanted,
                named_output(name, outputs, runner),
                raw=None if boundary is None else given[DECIDED],
                boundary=boundary,
                dtype=self._eager.dtype(name),
            )
        return found

    def _feeds(self) -> Iterator[Feeds]:
        """Yield batches of the size that the file declares; else one with everything."""
        stats = self._attached.tail.stats.image
        assert stats is not None, "a layer behind the decision has a label before it"
        boundaries = self._eager.boundaries.values()
        values = [raw_values(stats, boundary, count=_COUNT, seed=self._seed).few for boundary in boundaries]
        column = np.concatenate(values) if values else np.zeros(12, np.float32)
        axes = axes_of(self._eager.label)
        fixed = (axes[0] if axes else 1) or len(column)
        scalar = (fixed, *[1] * (len(axes) - 1)) if axes else ()
        random = np.random.default_rng(self._seed)
        for start in range(0, len(column), fixed):
            given: dict[str, NDArray[Any]] = {}
            for name, port in self._eager.ports.items():
                if name == DECIDED:
                    given[name] = column[np.arange(start, start + fixed) % len(column)].reshape(scalar)
                elif name == "label":
                    given[name] = (np.arange(fixed) % 2).reshape(scalar).astype(numpy_dtype(port))
                else:
                    found = axes_of(port)
                    size = (found[-2] or _SIZE[0], found[-1] or _SIZE[1])
                    shape = (fixed, *[1] * (len(found) - 3), *size)
                    given[name] = random.integers(0, 2, shape).astype(numpy_dtype(port))
            yield given
