"""The transform before the tail alone, and with the tail where a value is NaN, in every runtime."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from postproc_export.comparison.compare import compare_scores
from postproc_export.comparison.difference import ScoreDifference
from postproc_export.errors import MissingDependencyError, PostprocError, UnsupportedModelError
from postproc_export.parity.models.attached_model import AttachedModel
from postproc_export.parity.models.configuration import Configuration
from postproc_export.parity.originals.raw_file import named_output
from postproc_export.parity.reference.eager_transform import READS, EagerTransform
from postproc_export.parity.reference.post_processor import Reference
from postproc_export.parity.reference.transform_cases import Feeds, raw_of, size_of, spoilt, transform_feeds
from postproc_export.parity.reports.outcome import Outcome
from postproc_export.parity.reports.report import Check
from postproc_export.parity.stages.readings import SCORES
from postproc_export.runtimes.protocol import PortInfo, Runner
from postproc_export.stats import Level

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
