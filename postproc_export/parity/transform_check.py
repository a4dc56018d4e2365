"""The transform before the tail alone, and with the tail where a value is NaN, in every runtime."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from postproc_export.errors import MissingDependencyError, PostprocError, UnsupportedModelError
from postproc_export.parity.attached_model import AttachedModel
from postproc_export.parity.compare import compare_scores
from postproc_export.parity.configuration import Configuration
from postproc_export.parity.difference import ScoreDifference
from postproc_export.parity.eager_transform import READS, EagerTransform
from postproc_export.parity.outcome import Outcome
from postproc_export.parity.readings import SCORES
from postproc_export.parity.reference import Reference
from postproc_export.parity.report import Check
from postproc_export.parity.transform_cases import Feeds, raw_of, size_of, spoilt, transform_feeds
from postproc_export.runtimes.protocol import PortInfo, Runner
from postproc_export.stats import Level


@dataclass(slots=True)
class _OfNan:
    """What became of NaN in one way."""

    anomalous: int = 0
    normal: list[str] = field(default_factory=list)

    def message(self) -> str:
        return "; ".join(self.normal[:3]) or f"{self.anomalous} images with a NaN are anomalous"


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
        """Run every way and yield its checks."""
        for way in ways:
            outcome, of_nan = Outcome(way, self.threads), _OfNan()
            try:
                self._run(outcome, of_nan)
            except MissingDependencyError:
                raise
            except PostprocError as error:
                for level in self.transform.values:
                    outcome.add(SCORES[level], ScoreDifference(reason=" ".join(str(error).split())))
            yield from outcome.checks("transform")
            if of_nan.anomalous or of_nan.normal:
                yield outcome.check("transform/nan", not of_nan.normal, of_nan.message())

    def _run(self, outcome: Outcome, of_nan: _OfNan) -> None:
        file, ports = self.attached.file, self._ports()
        values, reads = tuple(self.transform.values.values()), list(self.transform.ports.values())
        alone = outcome.open(file.cut(values, reads))
        tail = self.attached.parts_of(outcome.open(file.cut(self.attached.output_names, list(ports.values()))))
        for feeds in transform_feeds(ports, self._span(), self.seed):
            made = self._made(feeds)
            if made is not None:
                self._compare(outcome, alone, feeds, made)
            with_nan = spoilt(feeds)
            made = self._made(with_nan)
            if made is not None:
                self._compare_nan(of_nan, tail, with_nan, made)

    def _ports(self) -> dict[str, PortInfo]:
        """Return what the transform reads, and the raw values that the tail reads besides."""
        raw, made = self.attached.file.raw, self.transform.values
        others = {name: raw[level] for name, level in READS.items() if level in raw and level not in made}
        return {**others, **self.transform.ports}

    def _made(self, feeds: Feeds) -> Mapping[Level, NDArray[np.float32]] | None:
        try:
            return self.transform(raw_of(feeds), size=size_of(feeds))
        except UnsupportedModelError:
            if self.transform.steps:
                raise
            return None

    def _compare(
        self, outcome: Outcome, runner: Runner, feeds: Feeds, made: Mapping[Level, NDArray[np.float32]]
    ) -> None:
        found = self._outputs(runner, feeds)
        tolerance = self.transform.tolerance(raw_of(feeds), made)
        for level, name in self.transform.values.items():
            actual = next((found[port.name] for port in runner.outputs if port.answers_to(name)), None)
            outcome.add(SCORES[level], compare_scores(made[level], actual, tolerance=tolerance, nan="same"))

    def _compare_nan(
        self, of_nan: _OfNan, runner: Runner, feeds: Feeds, made: Mapping[Level, NDArray[np.float32]]
    ) -> None:
        wanted = self.reference.outputs({level: made[level] for level in self.attached.file.raw})
        found = self._outputs(runner, feeds)
        if "pred_label" in wanted and (self.attached.guard != "none" or "pixel" not in self.attached.file.raw):
            images = wanted["pred_label"].astype(bool) & _images_of_nan(made, wanted["pred_label"].shape)
            of_nan.anomalous += int(images.sum())
            _judge(of_nan, "pred_label", images & ~found["pred_label"].astype(bool), feeds)
        if "pred_mask" in wanted:
            _judge(of_nan, "pred_mask", np.isnan(made["pixel"]) & ~found["pred_mask"].astype(bool), feeds)

    def _outputs(self, runner: Runner, feeds: Feeds) -> dict[str, NDArray[Any]]:
        fed = {port.name: feeds[name] for name, port in self._ports().items()}
        return runner.run({port.name: fed[port.name] for port in runner.inputs})

    def _span(self) -> tuple[float, float]:
        stats = self.attached.tail.stats.pixel or self.attached.tail.stats.image
        assert stats is not None, "an attached file has a level with statistics"
        return stats.min - stats.span, stats.max + stats.span


def _judge(of_nan: _OfNan, name: str, missed: NDArray[np.bool_], feeds: Feeds) -> None:
    if missed.any():
        shape = list(feeds.get("map", feeds.get("score", missed)).shape)
        of_nan.normal.append(f"{int(missed.sum())} of {name} normal though a NaN came in, fed {shape}")


def _images_of_nan(made: Mapping[Level, NDArray[np.float32]], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    rows = [np.isnan(values).reshape(max(1, len(np.atleast_1d(values))), -1).any(axis=1) for values in made.values()]
    of_nan: NDArray[np.bool_] = np.logical_or.reduce(rows).reshape(shape)
    return of_nan
