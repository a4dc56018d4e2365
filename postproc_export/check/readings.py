"""What a model gave for consecutive samples: raw values and decisions, one row per sample."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from postproc_export.check.attached import AttachedModel, RawFeeds, boundary_of
from postproc_export.check.inputs import RealBatch
from postproc_export.check.reference import Reference
from postproc_export.runtimes import Runner, as_float32
from postproc_export.stats import LEVELS, Level
from postproc_export.tail import TailOutput

# --- What a model gave for consecutive samples: raw values and decisions, one row per sample, in memory or on disk.

Rows: TypeAlias = NDArray[Any]
Outputs: TypeAlias = Mapping[str, NDArray[Any]]

SCORES: Final[Mapping[Level, str]] = {"image": "pred_score", "pixel": "anomaly_map"}
LABELS: Final[Mapping[Level, str]] = {"image": "pred_label", "pixel": "pred_mask"}


@dataclass(frozen=True, slots=True)
class Reading:
    """Raw values, and what was decided on them.

    Parameters
    ----------
    raw
        Per level float32, shape (n, k), raw units: k is 1 for scores, the number of pixels for maps.
    labels
        Per level bool, the same shape; a level without labels is not there.
    """

    raw: Mapping[Level, Rows]
    labels: Mapping[Level, Rows]


@dataclass(frozen=True, slots=True)
class TappedReading:
    """What an attached file did with the raw values of its own body.

    Parameters
    ----------
    body
        The raw values of the body without taps as far as its scores and labels tell them, and what should have been
        decided on them.
    given
        The same values, and the labels that came out.
    wanted, found
        Per level float32, shape (n, k): the scores that should have come out beside the taps, and those that did.
    """

    body: Reading
    given: Reading
    wanted: Mapping[Level, Rows]
    found: Mapping[Level, Rows]


@dataclass(frozen=True, slots=True)
class Reader:
    """Turns outputs into readings.

    Parameters
    ----------
    reference
        What decides on raw values.
    """

    reference: Reference

    @property
    def attached(self) -> AttachedModel:
        """The attached file."""
        return self.reference.attached

    def part(self, name: str) -> TailOutput | None:
        """Return a score, label, map or mask of the tail; None where it has none of this name."""
        return next((part for part in self.attached.tail.parts if part.name == name), None)

    def asked(self, raw: RawFeeds) -> Reading:
        """Return raw values with what the reference decides on them."""
        return Reading(self._raw(raw), self._labels(self.reference.outputs(raw)))

    def misfit(self, raw: RawFeeds, outputs: Outputs) -> str | None:
        """Return why the outputs of a file are not those of its raw values; None where they are."""
        if lost := [level for level in self.attached.file.raw if level not in raw]:
            return f"the raw value of the {lost[0]} level is no output any more where it is tapped"
        sizes = {level: values.size for level, values in self._raw(raw).items()}
        for part in self.attached.tail.parts:
            found = outputs.get(part.name)
            if found is None or found.size != sizes[part.level]:
                shape = "nothing" if found is None else f"shape {list(found.shape)}"
                return f"'{part.name}' has {shape} for {sizes[part.level]:,} raw values"
        return None

    def tapped(self, raw: RawFeeds, beside: Outputs, outputs: Outputs) -> TappedReading:
        """Return what a body gave, and what its tail made of it.

        Parameters
        ----------
        raw
            The tapped raw values.
        beside
            The outputs that came out beside them.
        outputs
            The outputs of the file without taps: a tap may move what it taps, so the tail is judged beside the taps,
            and whatever else differs from the file without taps is put down to the body.

        Notes
        -----
        Nothing shows the raw value of a file without taps but what its tail makes of it. So it is the tapped one, moved
        by as much as the score beside it is, times the span; and on the side of the boundary on which the label is.
        """
        expected = self.reference.outputs(raw)
        values, asked, found = self._raw(raw), self._labels(expected), self._labels(beside)
        given = self._labels(outputs)
        body = {level: given[level] ^ self._faults(level, raw, asked[level], found[level]) for level in given}
        wanted, scores, alone = self._scores(expected), self._scores(beside), self._scores(outputs)
        moved = {
            level: self._moved(level, each, scores[level], alone[level], asked.get(level), body.get(level))
            for level, each in values.items()
        }
        return TappedReading(Reading(moved, body), Reading(moved, given), wanted, scores)

    def _moved(
        self, level: Level, values: Rows, beside: Rows, alone: Rows, asked: Rows | None, decided: Rows | None
    ) -> Rows:
        """Return raw values as they are without taps; the very values where nothing tells that they are others."""
        tail, boundary = self.attached.tail, boundary_of(self.attached, level)
        stats = tail.stats.level(level)
        assert stats is not None, "a level that is read is calibrated"
        assert boundary is not None, "a level that is read is post-processed"
        scale = stats.span if tail.options.enable_normalization else 1.0
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

    def _faults(self, level: Level, raw: RawFeeds, asked: Rows, found: Rows) -> Rows:
        part = self.part(LABELS[level])
        assert part is not None, "a level with labels has a part for them"
        excused = self.reference.excused(part, raw)
        faults: Rows = asked ^ found
        return faults if excused is None else faults & ~(_rows(excused) & found)

    def _raw(self, raw: RawFeeds) -> dict[Level, Rows]:
        parts = {level: self.part(SCORES[level]) for level in LEVELS}
        return {level: _rows(self.reference.decided_on(part, raw)) for level, part in parts.items() if part is not None}

    def _labels(self, outputs: Outputs) -> dict[Level, Rows]:
        return {
            level: _rows(outputs[name]).astype(bool) for level, name in LABELS.items() if self.part(name) is not None
        }

    def _scores(self, outputs: Outputs) -> dict[Level, Rows]:
        return {
            level: _rows(as_float32(outputs[name])) for level, name in SCORES.items() if self.part(name) is not None
        }


@dataclass(slots=True)
class RawStore:
    """The raw values of every sample, on disk: what one model gave, for all that are compared with it.

    Parameters
    ----------
    folder
        Where the files go; float32, four bytes per pixel.
    name
        What their names begin with.
    count
        How many samples there are.
    """

    folder: Path
    name: str
    count: int
    _arrays: dict[Level, NDArray[np.float32]] = field(default_factory=dict, init=False)

    def put(self, start: int, raw: RawFeeds) -> None:
        """Keep the raw values of the samples from `start` on."""
        for level, values in raw.items():
            part = as_float32(np.atleast_1d(values))
            if level not in self._arrays:
                path, shape = self.folder / f"{self.name}-{level}.npy", (self.count, *part.shape[1:])
                self._arrays[level] = np.lib.format.open_memmap(path, "w+", np.float32, shape)
            self._arrays[level][start : start + len(part)] = part

    def get(self, start: int, stop: int) -> dict[Level, NDArray[np.float32]]:
        """Return the raw values of some samples."""
        return {level: np.array(values[start:stop]) for level, values in self._arrays.items()}


def _rows(values: NDArray[Any]) -> Rows:
    least = np.atleast_1d(values)
    return least.reshape(len(least), -1)


# --- What the models of one way of running gave for one batch, each run once.

ModelName: TypeAlias = Literal["attached", "tapped", "apart", "exact", "exact tapped"]
"""The attached file; itself with taps; the raw file; the first two at float32."""


@dataclass(slots=True)
class BatchRuns:
    """One batch and the models that are run on it.

    Parameters
    ----------
    batch
        What is fed.
    start
        The number of its first sample among all.
    runners
        The models, each run when its outputs are first asked for.
    """

    batch: RealBatch
    start: int
    runners: Mapping[ModelName, Runner]
    _outputs: dict[int, dict[str, NDArray[Any]]] = field(default_factory=dict)

    def runner(self, model: ModelName) -> Runner:
        """Return a model."""
        return self.runners[model]

    def of(self, model: ModelName) -> dict[str, NDArray[Any]]:
        """Return the outputs of a model, without what came of filling up the batch."""
        runner = self.runners[model]
        if id(runner) not in self._outputs:  # one model may go by two names
            self._outputs[id(runner)] = self.batch.run(runner)
        return self._outputs[id(runner)]
