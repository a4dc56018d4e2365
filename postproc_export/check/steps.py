"""Custom steps and decisions, each cut out of the file and compared with its eager twin."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from graph_patterns.expr import GraphPatternError
from postproc_export.check.attached import AttachedModel, RawFeeds, axes_of, load_attached, numpy_dtype, open_file
from postproc_export.check.inputs import RealInputs, SyntheticInputs, raw_values
from postproc_export.check.originals import named_output
from postproc_export.check.readings import SCORES
from postproc_export.check.record import check_outputs
from postproc_export.check.reference import READS, EagerDecisions, EagerTransform, Reference, Size
from postproc_export.check.report import Check
from postproc_export.check.runners import Assumed, ModelFile
from postproc_export.check.tally import Outcome
from postproc_export.check.ways import Configuration
from postproc_export.comparison import LabelDifference, ScoreDifference, compare_labels, compare_scores
from postproc_export.errors import MissingDependencyError, PostprocError, UnsupportedModelError
from postproc_export.files import is_onnx
from postproc_export.record import LayerRecord
from postproc_export.runtimes import PortInfo, Runner
from postproc_export.staging import temporary_folder
from postproc_export.stats import Level
from postproc_export.steps.around import rewrite_file
from postproc_export.steps.decisions import DECIDED

# --- What a transform alone is fed: maps of several kinds and sizes, and maps that hold a NaN.

Feeds: TypeAlias = Mapping[str, NDArray[Any]]
"""Arrays for a transform by the names of what it reads: ``"score"``, ``"map"``, ``"image"``."""

SIZES: Final = ((33, 40), (7, 5), (1, 1))
"""Sizes of a dynamic map: larger than a common kernel, smaller than most, and the smallest there is."""

_BATCH: Final = 3


def transform_feeds(ports: Mapping[str, PortInfo], span: tuple[float, float], seed: int) -> Iterator[Feeds]:
    """Yield a random map, a constant one and one of a single peak, at every size that the ports leave open.

    Parameters
    ----------
    ports
        What the transform reads, and what the tail behind it reads besides.
    span
        Lowest and highest value, raw units.
    seed
        Of the random values.
    """
    random = np.random.default_rng(seed)
    fixed = next((axes[0] for port in ports.values() if (axes := axes_of(port))), None)
    for size in _sizes(ports.get("map")):
        for maps in _maps(random, size, span):
            scores = random.uniform(*span, fixed or _BATCH)
            values = {"score": scores, "map": np.stack([np.roll(maps, step, axis=1) for step in range(len(scores))])}
            yield {name: _shaped(port, values.get(name), len(scores), size) for name, port in ports.items()}


def spoilt(feeds: Feeds) -> Feeds:
    """Return the same with a NaN in every map, at the first pixel, in the middle and at the last; else in scores."""
    name = "map" if "map" in feeds else "score"
    rows = feeds[name].copy().reshape(len(np.atleast_1d(feeds[name])), -1)
    rows[np.arange(len(rows)), np.arange(len(rows)) % 3 * (rows.shape[1] - 1) // 2] = np.nan
    return {**feeds, name: rows.reshape(feeds[name].shape)}


def raw_of(feeds: Feeds) -> RawFeeds:
    """Return the raw values, by level."""
    return {level: feeds[name] for name, level in READS.items() if name in feeds}


def size_of(feeds: Feeds) -> Size | None:
    """Return height and width of the model's input; None where the transform does not look at it."""
    return (feeds["image"].shape[2], feeds["image"].shape[3]) if "image" in feeds else None


def _sizes(port: PortInfo | None) -> list[Size]:
    if port is None:
        return [(1, 1)]
    height, width = axes_of(port)[-2:]
    return list(dict.fromkeys((height or rows, width or columns) for rows, columns in SIZES))


def _maps(random: np.random.Generator, size: Size, span: tuple[float, float]) -> Iterator[NDArray[np.float64]]:
    low, high = span
    peak = np.full(size, low)
    peak[size[0] // 2, size[1] // 3] = high
    yield from (random.uniform(low, high, size), np.full(size, (low + high) / 2), peak)


def _shaped(port: PortInfo, values: NDArray[np.float64] | None, count: int, size: Size) -> NDArray[Any]:
    axes = axes_of(port)
    if values is None:  # of the input nothing is read but its size
        height, width = size
        return np.zeros((count, axes[1] or 3, axes[2] or 2 * height + 1, axes[3] or width + 3), numpy_dtype(port))
    if values.ndim == 1:
        return values.reshape((count, *[1] * (len(axes) - 1)) if axes else ()).astype(numpy_dtype(port))
    channels = tuple(axis or 1 for axis in axes[1:-2])
    wide = np.broadcast_to(values.reshape(count, *[1] * len(channels), *size), (count, *channels, *size))
    return wide.astype(numpy_dtype(port))


# --- The transform before the tail alone, and with the tail where a value is NaN, in every runtime.

Made = Mapping[Level, NDArray[np.float32]]


@dataclass(slots=True)
class _Run:
    """One way to run the transform, alone and with the tail behind it, and what became of NaN."""

    outcome: Outcome
    alone: Runner | None = None
    tail: Runner | None = None
    anomalous: int = 0
    normal: list[str] = field(default_factory=list)

    def checks(self) -> Iterator[Check]:
        yield from self.outcome.checks("transform")
        if self.anomalous or self.normal:
            message = "; ".join(self.normal[:3]) or f"{self.anomalous} images with a NaN are anomalous"
            yield self.outcome.check("transform/nan", not self.normal, message)

    def judge(self, name: str, missed: NDArray[np.bool_], feeds: Feeds) -> None:
        if missed.any():
            shape = list(feeds.get("map", feeds.get("score", missed)).shape)
            self.normal.append(f"{int(missed.sum())} of {name} normal though a NaN came in, fed {shape}")


@dataclass(frozen=True, slots=True)
class TransformCheck:
    """The check of one file's transform.

    Parameters
    ----------
    attached, reference
        The file, and what its tail has to give.
    transform
        The twin.
    seed, threads
        As in `check_tail`.

    Notes
    -----
    It is cut out of the file and compared with its twin. For NaN the tail stays behind it: an image that twin and
    reference call anomalous has to be so in every runtime. A class of one's own that does not take the smallest maps is
    not fed them.
    """

    attached: AttachedModel
    reference: Reference
    transform: EagerTransform
    seed: int
    threads: int | None = None

    def checks(self, ways: Sequence[Configuration]) -> Iterator[Check]:
        """Run every way and yield its checks; the twin, which is the slowest, runs once for all of them."""
        runs = [_Run(Outcome(way, self.threads)) for way in ways]
        for run in runs:
            self._guarded(run, self._open)
        for feeds in transform_feeds(self._ports(), self._span(), self.seed):
            with_nan = spoilt(feeds)
            for fed, compare in ((feeds, self._compare), (with_nan, self._compare_nan)):
                made = self._made(fed)
                if made is not None:
                    for run in runs:
                        self._guarded(run, compare, fed, made)
        for run in runs:
            yield from run.checks()

    def _guarded(self, run: _Run, step: Callable[..., None], *arguments: Any) -> None:
        """Take a step; a runtime that fails is a miss, with the reason."""
        try:
            step(run, *arguments)
        except MissingDependencyError:
            raise
        except PostprocError as error:
            for level in self.transform.values:
                run.outcome.add(SCORES[level], ScoreDifference(reason=" ".join(str(error).split())))

    def _open(self, run: _Run) -> None:
        file, ports = self.attached.file, self._ports()
        values, reads = tuple(self.transform.values.values()), list(self.transform.ports.values())
        run.alone = run.outcome.open(file.cut(values, reads))
        run.tail = self.attached.parts_of(run.outcome.open(file.cut(self.attached.output_names, list(ports.values()))))

    def _ports(self) -> dict[str, PortInfo]:
        """Return what the transform reads, and the raw values that the tail reads besides."""
        raw, made = self.attached.file.raw, self.transform.values
        others = {name: raw[level] for name, level in READS.items() if level in raw and level not in made}
        return {**others, **self.transform.ports}

    def _made(self, feeds: Feeds) -> Made | None:
        try:
            return self.transform(raw_of(feeds), size=size_of(feeds))
        except UnsupportedModelError:
            if self.transform.steps:
                raise
            return None

    def _compare(self, run: _Run, feeds: Feeds, made: Made) -> None:
        if run.alone is None:
            return
        found = self._outputs(run.alone, feeds)
        tolerance = self.transform.tolerance(raw_of(feeds), made)
        for level, name in self.transform.values.items():
            actual = named_output(name, found, run.alone)
            run.outcome.add(SCORES[level], compare_scores(made[level], actual, tolerance=tolerance, nan="same"))

    def _compare_nan(self, run: _Run, feeds: Feeds, made: Made) -> None:
        if run.tail is None:
            return
        wanted = self.reference.outputs({level: made[level] for level in self.attached.file.raw})
        found = self._outputs(run.tail, feeds)
        wanted = {
            name: values for name, values in wanted.items() if name in found and found[name].shape == values.shape
        }
        if "pred_label" in wanted and (self.attached.guard != "none" or "pixel" not in self.attached.file.raw):
            images = wanted["pred_label"].astype(bool) & _images_of_nan(made, wanted["pred_label"].shape)
            run.anomalous += int(images.sum())
            run.judge("pred_label", images & ~found["pred_label"].astype(bool), feeds)
        if "pred_mask" in wanted:
            run.judge("pred_mask", np.isnan(made["pixel"]) & ~found["pred_mask"].astype(bool), feeds)

    def _outputs(self, runner: Runner, feeds: Feeds) -> dict[str, NDArray[Any]]:
        fed = {port.name: feeds[name] for name, port in self._ports().items()}
        return runner.run({port.name: fed[port.name] for port in runner.inputs})

    def _span(self) -> tuple[float, float]:
        stats = self.attached.tail.stats.pixel or self.attached.tail.stats.image
        assert stats is not None, "an attached file has a level with statistics"
        return stats.min - stats.span, stats.max + stats.span


def _images_of_nan(made: Made, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    rows = [np.isnan(values).reshape(max(1, len(np.atleast_1d(values))), -1).any(axis=1) for values in made.values()]
    of_nan: NDArray[np.bool_] = np.logical_or.reduce(rows).reshape(shape)
    return of_nan


# --- What stands behind the decision: alone on every kind of value, and in the whole file on real inputs.

_TAPS: Final[Mapping[str, str]] = {name: f"postproc-check/read_{name}" for name in ("mask", "label", DECIDED)}
_COUNT: Final = 2_000
_SIZE: Final = (5, 7)

Given = Mapping[str, NDArray[Any]]


@contextmanager
def without_decisions(path: Path, assumed: Assumed | None = None) -> Iterator[tuple[Path, LayerRecord | None]]:
    """Yield the file whose tail is the last there is, and the record of what stands behind it in the one given.

    Notes
    -----
    Where nothing stands behind the tail that is the file itself; else a copy for as long as the block runs.
    """
    record = open_file(path, assumed).layer("decision")
    if record is None:
        yield path, None
        return
    with temporary_folder() as folder:
        target = folder / path.name
        rewrite_file(path, target, lambda form, model: form.take(model, "decision", where=str(path)), is_checked=False)
        yield target, record


def unfit_layer(path: Path, assumed: Assumed | None = None) -> Check | None:
    """Return the miss of a file from which what stands behind the decision cannot be taken; None where it can.

    Notes
    -----
    Its outputs were renamed or removed since, so that nothing before them can be looked at apart.
    """
    if open_file(path, assumed).layer("decision") is None:
        return None
    try:
        lost = _lost_without(path)
    except (PostprocError, GraphPatternError) as error:
        reason = " ".join(str(error).split())
    else:
        reason = f"nothing computes '{lost[0]}'" if lost else ""
    if not reason:
        return None
    outputs = _check_layer_outputs(path)
    found = "" if outputs else f"{outputs.message}; "
    return replace(outputs, passed=False, message=f"{found}the rest cannot be checked without it: {reason}")


def _check_layer_outputs(path: Path) -> Check:
    attached = load_attached(path)
    record = attached.file.layer("decision")
    return replace(check_outputs(attached, added=record.made if record else ()), name="decision/outputs")


def _lost_without(path: Path) -> list[str]:
    """Take the layer off in memory; return the outputs before it that nothing computes."""
    if not is_onnx(path):
        from postproc_export.formats import openvino_layer
        from postproc_export.formats.openvino_file import read_ir
        from postproc_export.runtimes.openvino import openvino_core

        model = read_ir(openvino_core(purpose="checking an OpenVINO IR"), path)
        openvino_layer.take_openvino_layer(model, "decision", where=str(path))
        return []
    from graph_patterns.onnx.file import load_skeleton
    from postproc_export.formats.onnx_layer import take_onnx_layer

    with load_skeleton(path) as file:
        graph = file.model.graph
        take_onnx_layer(file.model, "decision", where=str(path))
        made = {name for node in graph.node for name in node.output}
        made |= {item.name for item in (*graph.input, *graph.initializer)}
        return [output.name for output in graph.output if output.name not in made]


class DecisionCheck:
    """The check of what stands behind the decision of one file.

    Parameters
    ----------
    path
        The file.
    record
        The layer's.
    attached
        The file without it.
    seed, threads
        As in `check_tail`.
    """

    def __init__(
        self, path: Path, record: LayerRecord, attached: AttachedModel, *, seed: int, threads: int | None
    ) -> None:
        self._path, self._attached, self._seed, self._threads = path, attached, seed, threads
        self._file: ModelFile = open_file(path)
        self._eager = EagerDecisions.of(self._file, record, attached.tail)

    def alone(self, ways: Sequence[Configuration]) -> Iterator[Check]:
        """Look at the file's outputs; cut the layer out and feed it every mask and label, and values around points."""
        yield _check_layer_outputs(self._path)
        for way in ways:
            outcome = Outcome(way, self._threads)
            try:
                model = self._file.cut(self._eager.outputs, list(self._eager.ports.values()))
                runner = outcome.open(model)
                for given in self._feeds():
                    fed = {self._eager.ports[name].name: values for name, values in given.items()}
                    outputs = runner.run({port.name: fed[port.name] for port in runner.inputs})
                    self._compare(outcome, given, runner, outputs)
            except MissingDependencyError:
                raise
            except PostprocError as error:
                self._fail(outcome, error)
            yield from outcome.checks("decision")

    def whole(self, ways: Sequence[Configuration], inputs: RealInputs | SyntheticInputs, size: int) -> Iterator[Check]:
        """Run the whole file on real inputs, and compare with what it reads in the same compiled model.

        Parameters
        ----------
        ways
            How it is run.
        inputs, size
            What it is fed, and how many at a time.
        """
        taps = {_TAPS[name]: port for name, port in self._eager.ports.items()}
        with temporary_folder() as folder:
            tapped = self._file.tapped(folder, taps)
            for way in (each for each in ways if each.weights == "stored"):
                outcome = Outcome(way, self._threads)
                try:
                    runner = self._attached.with_values(outcome.open(tapped))
                    for batch in inputs.batches(size):
                        outputs = batch.run(runner)
                        read = {name: named_output(tap, outputs, runner) for name, tap in _TAPS.items()}
                        given = {name: values for name, values in read.items() if values is not None}
                        self._compare(outcome, given, runner, outputs)
                except MissingDependencyError:
                    raise
                except PostprocError as error:
                    self._fail(outcome, error)
                yield from outcome.checks("whole/decision")

    def _compare(self, outcome: Outcome, given: Given, runner: Runner, outputs: Given) -> None:
        for name, wanted in self._eager(given).items():
            boundary = self._eager.boundaries.get(name)
            difference = compare_labels(
                wanted,
                named_output(name, outputs, runner),
                raw=None if boundary is None else given[DECIDED],
                boundary=boundary,
                dtype=self._eager.dtype(name),
            )
            outcome.add(name, difference)

    def _fail(self, outcome: Outcome, error: PostprocError) -> None:
        for name in self._eager.outputs:
            outcome.add(name, LabelDifference(reason=" ".join(str(error).split())))

    def _feeds(self) -> Iterator[Given]:
        """Yield batches of the size that the file declares; else one with everything."""
        stats = self._attached.tail.stats.image
        assert stats is not None, "a layer behind the decision has a label before it"
        boundaries = self._eager.boundaries.values()
        values = [raw_values(stats, boundary, count=_COUNT, seed=self._seed).few for boundary in boundaries]
        column = np.concatenate(values) if values else np.zeros(12, np.float32)
        axes = axes_of(self._eager.label)
        fixed = (axes[0] if axes else 1) or len(column)
        random = np.random.default_rng(self._seed)
        for start in range(0, len(column), fixed):
            chunk = column[np.arange(start, start + fixed) % len(column)]
            yield {name: self._shaped(name, port, chunk, axes, random) for name, port in self._eager.ports.items()}

    def _shaped(
        self, name: str, port: PortInfo, values: NDArray[Any], axes: tuple[int | None, ...], random: np.random.Generator
    ) -> NDArray[Any]:
        scalar = (len(values), *[1] * (len(axes) - 1)) if axes else ()
        if name == DECIDED:
            return values.reshape(scalar)
        if name == "label":
            return (np.arange(len(values)) % 2).reshape(scalar).astype(numpy_dtype(port))
        found = axes_of(port)
        size = (found[-2] or _SIZE[0], found[-1] or _SIZE[1])
        shape = (len(values), *[1] * (len(found) - 3), *size)
        return random.integers(0, 2, shape).astype(numpy_dtype(port))
