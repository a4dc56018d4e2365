"""Whether exported files give what the module gives: raw values, decisions, and every size that was asked for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from postproc_export.comparison.compare import compare_scores
from postproc_export.comparison.difference import ScoreDifference
from postproc_export.comparison.tolerance import Tolerance, observed
from postproc_export.errors import UnsupportedModelError
from postproc_export.export.exporter import INPUT, fixed_axis
from postproc_export.export.probes import Probe
from postproc_export.outputs import RAW_NAMES
from postproc_export.parity.models.attached_model import AttachedModel
from postproc_export.parity.models.configuration import Configuration
from postproc_export.parity.reference.eager_transform import EagerTransform, image_size
from postproc_export.parity.reference.post_processor import Reference
from postproc_export.parity.reports.report import Check
from postproc_export.parity.reports.tally import Tally, details_of
from postproc_export.runtimes import Array, Runner, as_float32
from postproc_export.stats import Level
from postproc_export.transforms.spec import TailSpec


@dataclass(frozen=True, slots=True)
class RawAgreement:
    """A raw file beside the module.

    Parameters
    ----------
    way
        What runs the file.
    runner
        The file, loaded.
    tolerances
        How far its raw values may lie from the module's, per level.
    """

    way: Configuration
    runner: Runner
    tolerances: Mapping[Level, Tolerance]

    @classmethod
    def open(cls, path: Path, way: Configuration, probes: Sequence[Probe]) -> "RawAgreement":
        """Load a raw file; the tolerances follow from the values that the module gave."""
        tolerances = {level: _tolerance([probe.raw[level] for probe in probes]) for level in probes[0].raw}
        return cls(way, way.open(path, threads=None), tolerances)

    def refuse_fixed_sizes(self, probes: Sequence[Probe]) -> None:
        """Run every probe of another size.

        Raises
        ------
        UnsupportedModelError
            If the file fails at a size, or gives something else than the module; the axis is named.
        """
        for probe in probes:
            if probe.axes and (problem := self._problem(probe)) is not None:
                shape = list(probe.images.shape)
                raise fixed_axis(probe.axes[0], f"at {probe.label}, {shape}, {self.way.label}: {problem}")

    def checks(self, probes: Sequence[Probe]) -> Iterator[Check]:
        """Compare the raw values of all probes; one check per level."""
        found: dict[Level, ScoreDifference] = {}
        for probe in probes:
            for level, difference in self._differences(probe).items():
                found[level] = found[level].merge(difference) if level in found else difference
        for level, difference in found.items():
            yield Check(
                name=f"module/raw/{RAW_NAMES[level]}/{self.way.label}",
                passed=bool(difference),
                message=difference.describe(),
                brief=difference.brief(),
                way=self.way.label,
                runtime=f"{self.runner.name} {self.runner.version}",
                precision=self.runner.inference_precision,
                details=details_of(difference),
            )

    def _problem(self, probe: Probe) -> str | None:
        try:
            differences = self._differences(probe)
        except UnsupportedModelError as error:
            return " ".join(f"{error.what} {error.found or ''}".split())
        bad = (f"{RAW_NAMES[level]}: {found.describe()}" for level, found in differences.items() if not found)
        return next(bad, None)

    def _differences(self, probe: Probe) -> dict[Level, ScoreDifference]:
        outputs = self.runner.run({INPUT: probe.images})
        return {
            level: compare_scores(
                expected, _named(outputs, RAW_NAMES[level]), tolerance=self.tolerances[level], nan="same"
            )
            for level, expected in probe.raw.items()
        }


def decision_checks(
    attached: AttachedModel, way: Configuration, probes: Sequence[Probe], named: Sequence[TailSpec] = ()
) -> Iterator[Check]:
    """Compare an attached file's outputs with `PostProcessor` on the module's own raw values; one check per output.

    Notes
    -----
    The module computes in PyTorch and the file in a runtime, so raw values may move as by another compilation; flips of
    raw values beside the boundary are shown and not judged (`parity.tolerance.exported`).
    """
    reference, runner = Reference(attached), attached.parts_of(way.open(attached.path, threads=None))
    tally = Tally(attached, way, drift="exported", is_whole=True)
    tally.ran_on(runner)
    transform = EagerTransform.load(attached, named)
    for probe in probes:
        raw = probe.raw if transform is None else transform(probe.raw, size=image_size({INPUT: probe.images}))
        tally.add(reference.outputs(raw), runner.run({INPUT: probe.images}), raw, reference)
    yield from tally.checks("module")


def _tolerance(values: Sequence[Array]) -> Tolerance:
    finite = np.concatenate([array[np.isfinite(array)] for array in values])
    return observed(float(finite.min()), float(finite.max())) if finite.size else observed(0.0, 0.0)


def _named(outputs: Mapping[str, Array], name: str) -> Array | None:
    values = outputs.get(name)
    return None if values is None else as_float32(values)
