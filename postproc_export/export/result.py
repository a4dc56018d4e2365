"""What an export made, and what its check found."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from postproc_export.parity.reports.report import ParityReport
from postproc_export.rewrite.attach import AttachResult
from postproc_export.runtimes.protocol import PortInfo
from postproc_export.stats import CalibrationStats

Format: TypeAlias = Literal["onnx", "openvino"]

SUFFIXES: Final[Mapping[Format, str]] = {"onnx": ".onnx", "openvino": ".xml"}
_HEADING: Final = 2  # lines of an `AttachResult.summary` that say which file it is


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedFile:
    """One finished model.

    Parameters
    ----------
    path
        The file; for an IR the .xml.
    inputs, outputs
        Its ports, with the axes as they stand in the file.
    attached
        What was attached to it.
    report
        What `check_parity` and the comparison with the module found.
    """

    path: Path
    inputs: tuple[PortInfo, ...]
    outputs: tuple[PortInfo, ...]
    attached: AttachResult
    report: ParityReport


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """What `export_model` did; truthy where every check passed.

    Parameters
    ----------
    subject
        What was exported.
    files
        The finished models, in the order in which they were asked for.
    stats
        The statistics that decide.
    statistics, report
        The files with the statistics and with the parity report.
    opset
        The opset of the ONNX graph, read back from the file.
    sizes
        The other sizes at which every file was run and gave what the module gives.
    remarks
        What a user should know of how it was exported.
    written
        Every path that was written; none where a check missed something and the files were not asked for all the same.
    """

    subject: str
    files: tuple[ExportedFile, ...]
    stats: CalibrationStats
    statistics: Path
    report: Path
    opset: int
    sizes: tuple[str, ...]
    remarks: tuple[str, ...]
    written: tuple[Path, ...]

    @property
    def passed(self) -> bool:
        """Whether every check of every file passed."""
        return all(file.report for file in self.files)

    def __bool__(self) -> bool:
        return self.passed

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of the parity report: the verdict, and per file a report as of ``check --json``."""
        return {"passed": self.passed, "files": [file.report.to_json() for file in self.files]}

    def dumps(self) -> str:
        """Return the text of the parity report."""
        return json.dumps(self.to_json(), indent=2, allow_nan=False)

    def summary(self) -> str:
        """Return what was done, one fact a line."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"exported {self.subject} at opset {self.opset}"
        yield from (f"  note     {remark}" for remark in self.remarks)
        yield from (f"  input    {port.describe()}" for port in self.files[0].inputs)
        yield from (f"  output   {port.describe()}" for port in self.files[0].outputs)
        if self.sizes:
            yield f"  sizes    as the model at {', '.join(self.sizes)}"
        # What was attached is the same in both formats, but for names inside the graph that had to move.
        done = (line for file in self.files for line in file.attached.summary().splitlines()[_HEADING:])
        yield from dict.fromkeys(done)
        for file in self.files:
            yield from (f"  check    {line}" for line in verdicts(file.report))
        yield from (f"  written  {path}" for path in self.written)
        if not self.written:
            yield "  nothing was written: a check missed something (--keep-failed writes the files all the same)"


def verdicts(report: ParityReport) -> Iterator[str]:
    """Yield one line per way of running a file."""
    for way in report.ways:
        checks = [check for check in report.checks if (check.way or "file") == way]
        judged, missed = sum(check.judged for check in checks), sum(check.verdict == "MISSED" for check in checks)
        verdict = "shown, not judged" if not judged else f"{missed} of {judged} checks MISSED" if missed else "passed"
        yield f"{Path(report.subject).name}, {way}: {verdict}"
