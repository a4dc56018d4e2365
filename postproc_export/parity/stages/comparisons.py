"""What the outputs of a whole file are compared with: values tapped in it, the raw file, PyTorch, itself at float32."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from postproc_export.comparison.compare import compare_scores
from postproc_export.comparison.difference import ScoreDifference
from postproc_export.comparison.tolerance import EXACT, TOLERANCES, Tolerance, transformed
from postproc_export.parity.models.attached_model import TAPS
from postproc_export.parity.models.configuration import Configuration
from postproc_export.parity.originals.raw_file import RawFile, named_output
from postproc_export.parity.reference.eager_transform import READ_TAPS, READS, EagerTransform, image_size
from postproc_export.parity.reference.post_processor import Reference
from postproc_export.parity.reference.tail_cases import RawFeeds
from postproc_export.parity.reports.outcome import Outcome
from postproc_export.parity.reports.report import Check
from postproc_export.parity.reports.tally import Tally, details_of
from postproc_export.parity.stages.readings import SCORES, RawStore
from postproc_export.parity.stages.way_runs import BatchRuns, ModelName
from postproc_export.runtimes import PortInfo, Runner, as_float32
from postproc_export.stats import Level


class Stage:
    """One thing that the outputs of one configuration are compared with."""

    name: ClassVar[str]

    def __init__(self, reference: Reference, way: Configuration) -> None:
        self._reference = reference
        self._tally = Tally(reference.attached, way, is_whole=True)

    @property
    def missed(self) -> int:
        """How many labels and scores were missed so far."""
        return self._tally.missed

    def ran_on(self, runner: Runner) -> None:
        """Record what gave the outputs that are compared."""
        self._tally.ran_on(runner)

    def add(self, runs: BatchRuns) -> None:
        """Compare one batch: what was fed, and what each model gave."""
        raise NotImplementedError

    def checks(self) -> Iterator[Check]:
        """Yield what was found."""
        raise NotImplementedError


class Tapped(Stage):
    """The reference on the raw value tapped in the same compiled model: nothing may differ but rounding."""

    name = "whole/tapped"

    def add(self, runs: BatchRuns) -> None:
        """Compare what came out beside the taps."""
        raw = tapped_values(runs)
        self._tally.add(self._reference.outputs(raw), runs.of("tapped"), raw, self._reference)

    def checks(self) -> Iterator[Check]:
        """Yield one check per output."""
        return self._tally.checks(self.name)


class Apart(Stage):
    """The reference on the raw file's own outputs: exact in ONNX Runtime, in OpenVINO within another compilation."""

    name = "whole/raw"

    def __init__(
        self, reference: Reference, way: Configuration, raw_file: RawFile, *, max_flips: int, relative: float = 0.0
    ) -> None:
        super().__init__(reference, way)
        self._raw_file, self._relative = raw_file, relative
        self._tally.drift = "recompiled" if way.runtime == "openvino" else None
        self._tally.max_flips = max_flips
        self._others: dict[str, ScoreDifference] = {}

    def add(self, runs: BatchRuns) -> None:
        """Look at the raw file, too; outputs of no level that is post-processed are compared as they are."""
        apart, outputs, runner = runs.of("apart"), runs.of("attached"), runs.runner("apart")
        raw = self._raw_file.levels(apart, runner)
        self._tally.moved = self._moved(raw, runner)
        self._tally.add(self._reference.outputs(raw), outputs, raw, self._reference)
        for port in self._raw_file.others(runner):
            level = next((level for level, values in raw.items() if values is apart[port.name]), None)
            found = compare_scores(
                apart[port.name],
                self._counterpart(port, outputs),
                tolerance=self._allowed(level, runner),
                nan="same",
                dtype=port.dtype,
            )
            self._others[port.name] = self._others[port.name].merge(found) if port.name in self._others else found

    def checks(self) -> Iterator[Check]:
        """Yield one check per output, the untouched ones last."""
        yield from self._tally.checks(self.name)
        way = self._tally.configuration
        for name, difference in self._others.items():
            yield Check(
                name=f"whole/raw/{name}/{way.label}",
                passed=bool(difference) or way.runtime == "openvino",
                judged=way.runtime == "onnxruntime",
                message=difference.describe(),
                brief=difference.brief(),
                way=way.label,
                runtime=self._tally.runtime,
                precision=self._tally.precision,
                details=details_of(difference),
            )

    def _moved(self, raw: RawFeeds, runner: Runner) -> Mapping[Level, float]:
        """How far the values may have moved besides: by a transform, and by their size where they may be of any."""
        bounds = self._raw_file.bounds(runner)
        if not (self._relative and self._tally.drift):
            return bounds
        largest = {level: np.abs(values[np.isfinite(values)]).max(initial=0.0) for level, values in raw.items()}
        return {level: bounds.get(level, 0.0) + self._relative * float(size) for level, size in largest.items()}

    def _counterpart(self, port: PortInfo, outputs: Mapping[str, Any]) -> Any:
        """Return the attached file's output of one of the names that the raw file's output has."""
        found = (outputs.get(name) for name in (port.name, *port.aliases))
        return next((values for values in found if values is not None), None)

    def _allowed(self, level: Level | None, runner: Runner) -> Tolerance:
        stats = None if level is None else self._reference.attached.tail.stats.level(level)
        band = EXACT if self._tally.drift is None or stats is None else TOLERANCES[self._tally.drift](stats)
        moved = None if level is None else self._raw_file.bounds(runner).get(level)
        return band if moved is None else transformed(band.atol + moved)


class FromTorch(Stage):
    """The reference on the PyTorch model's raw values: equal within what another float32 computation explains."""

    name = "whole/torch"

    def __init__(self, reference: Reference, way: Configuration, values: RawStore, *, max_flips: int) -> None:
        super().__init__(reference, way)
        self._values = values
        self._tally.drift = "exported"
        self._tally.max_flips = max_flips

    def add(self, runs: BatchRuns) -> None:
        """Take the PyTorch model's values of the same samples."""
        raw, outputs = self._values.get(runs.start, runs.start + runs.batch.valid), runs.of("attached")
        expected = self._reference.outputs(raw)
        for name, values in expected.items():  # the module's own score may be [N], and the file's [N, 1]
            if name in outputs and outputs[name].size == values.size:
                expected[name] = values.reshape(outputs[name].shape)
        self._tally.add(expected, outputs, raw, self._reference)

    def checks(self) -> Iterator[Check]:
        """Yield one check per output."""
        return self._tally.checks(self.name)


class Default(Stage):
    """The same file at float32: what the machine's default precision does to the decisions. Shown, not judged."""

    name = "whole/float32"

    def add(self, runs: BatchRuns) -> None:
        """Run the file at float32, too; distances are those of the raw value there."""
        raw = tapped_values(runs, "exact tapped")
        self._tally.add(runs.of("exact"), runs.of("attached"), raw, self._reference)

    def checks(self) -> Iterator[Check]:
        """Yield one check per output."""
        return self._tally.checks(self.name)


class Transformed(Stage):
    """The eager twin of a transform on the values that it reads in the same compiled model."""

    name = "whole/transform"

    def __init__(self, reference: Reference, way: Configuration, transform: EagerTransform) -> None:
        super().__init__(reference, way)
        self._transform = transform
        self._outcome = Outcome(way)

    @property
    def missed(self) -> int:
        """How many values were missed so far."""
        return sum(found.over for found in self._outcome.found.values() if isinstance(found, ScoreDifference))

    def ran_on(self, runner: Runner) -> None:
        """Record what gave the values that are compared."""
        self._outcome.ran_on(runner)

    def add(self, runs: BatchRuns) -> None:
        """Compare what came out behind the transform with the twin on what came in."""
        outputs, runner = runs.of("tapped"), runs.runner("tapped")
        taps = {level: named_output(READ_TAPS[name], outputs, runner) for name, level in READS.items()}
        read = {level: values for level, values in taps.items() if values is not None}
        wanted, found = self._transform(read, size=image_size(runs.batch.feeds)), tapped_values(runs)
        tolerance = self._transform.tolerance(read, wanted)
        for level in self._transform.values:
            difference = compare_scores(wanted[level], found.get(level), tolerance=tolerance, nan="same")
            self._outcome.add(SCORES[level], difference)

    def checks(self) -> Iterator[Check]:
        """Yield one check per value that the transform makes."""
        return self._outcome.checks(self.name)


def tapped_values(runs: BatchRuns, model: ModelName = "tapped") -> RawFeeds:
    """Return the float32 raw values that came out at the taps of a model."""
    outputs, runner = runs.of(model), runs.runner(model)
    found = {level: named_output(name, outputs, runner) for level, name in TAPS.items()}
    return {level: as_float32(values) for level, values in found.items() if values is not None}
