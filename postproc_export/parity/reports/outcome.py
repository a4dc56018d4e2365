"""What came of one way to run a part of a file: a comparison per output, added up over all runs."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from postproc_export.comparison.difference import Difference, merged
from postproc_export.parity.models.configuration import Configuration
from postproc_export.parity.reports.report import Check
from postproc_export.parity.reports.tally import details_of
from postproc_export.runtimes import Runner


@dataclass(slots=True)
class Outcome:
    """What came of one way.

    Parameters
    ----------
    way
        How it was run.
    threads
        Threads inside an operator.
    found
        The comparison of each output; filled while it runs.
    runtime, precision
        What it ran on.
    """

    way: Configuration
    threads: int | None = None
    found: dict[str, Difference] = field(default_factory=dict)
    runtime: str | None = None
    precision: str | None = None

    def open(self, model: Any) -> Runner:
        """Load a model to run it this way."""
        runner = self.way.open(model, threads=self.threads)
        self.ran_on(runner)
        return runner

    def ran_on(self, runner: Runner) -> None:
        """Record what it ran on."""
        self.runtime, self.precision = f"{runner.name} {runner.version}", runner.inference_precision

    def add(self, name: str, difference: Difference) -> None:
        """Add one run's comparison of an output."""
        self.found[name] = merged(self.found[name], difference) if name in self.found else difference

    def checks(self, prefix: str) -> Iterator[Check]:
        """Yield one check per output."""
        for name, found in self.found.items():
            details = details_of(found)
            yield self.check(f"{prefix}/{name}", bool(found), found.describe(), brief=found.brief(), details=details)

    def check(self, subject: str, passed: bool, message: str, **more: Any) -> Check:
        """Return a check that decides where this way is judged."""
        return Check(
            name=f"{subject}/{self.way.label}",
            passed=passed or not self.way.judged,
            judged=self.way.judged,
            message=message,
            way=self.way.label,
            runtime=self.runtime,
            precision=self.precision,
            **more,
        )
