"""What an export made and what its check found, and the folder into which it is moved as a whole."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from postproc_export.check.report import ParityReport
from postproc_export.errors import FileError, PostprocError, UsageError
from postproc_export.files import explained, nearest_folder, publishing, refuse_unwritable
from postproc_export.outcome import Outcome, outcome_json
from postproc_export.process import staging_folder
from postproc_export.record import AttachResult
from postproc_export.runtimes import PortInfo
from postproc_export.stats import LEVELS, CalibrationStats

Format: TypeAlias = Literal["onnx", "openvino"]

SUFFIXES: Final[Mapping[Format, str]] = {"onnx": ".onnx", "openvino": ".xml"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedFile:
    """One finished model."""

    path: Path  # for an IR the .xml
    inputs: tuple[PortInfo, ...]  # with the axes as they stand in the file
    outputs: tuple[PortInfo, ...]
    attached: AttachResult
    report: ParityReport  # what `check_parity` and the comparison with the module found


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ExportResult(Outcome):
    """What `export_model` did; truthy where every check passed."""

    subject: str  # what was exported
    files: tuple[ExportedFile, ...]  # in the order in which they were asked for
    stats: CalibrationStats  # those that decide
    statistics: Path  # the file with the statistics
    report: Path  # the file with the parity report
    opset: int  # of the ONNX graph, read back from the file
    sizes: tuple[str, ...]  # the other sizes at which every file was run and gave what the module gives
    remarks: tuple[str, ...]  # what a user should know of how it was exported
    # Every path that was written; none where a check failed and the files were not asked for all the same.
    written: tuple[Path, ...]

    @property
    def passed(self) -> bool:
        """Whether every check of every file passed."""
        return all(file.report for file in self.files)

    def __bool__(self) -> bool:
        return self.passed

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``export --json``: docs/json.md."""
        first, notes = self.files[0].attached, (note for file in self.files for note in file.attached.notes)
        levels = {level: first.level_json(level) for level in LEVELS}
        return {
            **outcome_json(self.subject, self.report.parent, levels, dict.fromkeys((*self.remarks, *notes))),
            "opset": self.opset,
            "written": [str(path) for path in self.written],
            **self.parity(),
        }

    def parity(self) -> dict[str, Any]:
        """Return the JSON object of the parity report: the verdict, and per file a report as of ``check --json``."""
        return {"passed": self.passed, "files": [file.report.to_json() for file in self.files]}

    def headline(self) -> str:
        """Return what was exported."""
        return f"exported {self.subject} at opset {self.opset}"

    def facts(self) -> Iterator[tuple[str, str]]:
        """Yield how it was exported, what was attached, what the checks found, and what was written."""
        notes = [("note", remark) for remark in self.remarks]
        yield from notes
        yield from (("input", port.describe()) for port in self.files[0].inputs)
        yield from (("output", port.describe()) for port in self.files[0].outputs)
        if self.sizes:
            yield "sizes", f"as the model at {', '.join(self.sizes)}"
        # What was attached is the same in both formats, but for names inside the graph that had to move.
        decisions = dict.fromkeys(fact for file in self.files for fact in file.attached.decisions())
        yield from (fact for fact in decisions if fact not in notes)
        for file in self.files:
            yield "check", file.report.headline()
            yield from file.report.facts()
            theirs = [check for check in file.report.checks if check.name.startswith("anomalib/")]
            if theirs:
                told = "; ".join(f"{check.output} {check.message}" for check in theirs)
                yield "anomalib", f"its own post-processor on the same raw values: {told}"
        yield from (("written", str(path)) for path in self.written)
        if not self.written:
            yield "", "nothing was written: a check failed (--keep-failed writes the files all the same)"


STATISTICS: Final = "statistics.json"
REPORT: Final = "parity.json"


def check_target(folder: Path, name: str) -> None:
    """Refuse a target before anything is computed for it.

    Raises FileError if the folder is a file or lies in one, and UsageError if the name is no plain file name.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise UsageError(
            f"--name {name!r} is no name for the files", needed="a file name without a folder and a suffix"
        )
    if folder.exists() and not folder.is_dir():
        raise FileError(f"cannot write to {folder}", found="a file", needed="a folder, which may be new")
    refuse_unwritable(folder / REPORT)


def targets_of(folder: Path, name: str, formats: Sequence[Format]) -> list[Path]:
    """Return what is always replaced, which statistics are not: they may be read from where they are written."""
    suffixes = [*(SUFFIXES[each] for each in formats), *([".bin"] if "openvino" in formats else [])]
    return [folder / REPORT, *(folder / f"{name}{suffix}" for suffix in suffixes)]


@contextmanager
def workshop(folder: Path, name: str, formats: Sequence[Format]) -> Iterator[Path]:
    """Yield a temporary folder on the target's file system; it is gone after the block, whatever ends it.

    Raises FileError if no file can be written there, or another export writes the same ones.
    """
    where, names = folder, [path.name for path in targets_of(folder, name, formats)]
    if not folder.is_dir():
        where = nearest_folder(folder)
        names = [folder.absolute().relative_to(where).parts[0]]
    with explained(folder), staging_folder(where, names) as staging:
        try:
            yield staging.files
        except PostprocError as error:  # nobody knows the files by their temporary names
            if str(staging.files) not in str(error):
                raise
            texts = [text and text.replace(f"{staging.files}{os.sep}", f"{folder}{os.sep}") for text in error.texts]
            raise type(error)(texts[0] or "", found=texts[1], needed=texts[2], fix=texts[3]) from error


def deliver(
    made: Path, folder: Path, *, name: str, formats: Sequence[Format], inputs: Sequence[Path]
) -> tuple[Path, ...]:
    """Move everything in the folder `made` into the target folder, whole or not at all, and return the paths.

    `made` is on the same file system. The target folder is made where it is not there, and files of these names in it
    are replaced, the models last. `inputs` were read and are not replaced; statistics that were read from their own
    target stay as they are. Raises FileError if a target cannot be written; nothing is changed then.
    """
    models = [f"{name}{SUFFIXES[each]}" for each in formats]
    others = sorted(path.name for path in made.iterdir() if path.name not in models)
    targets = [folder / each for each in (*models, *others)]
    statistics = folder / STATISTICS
    if statistics.exists() and any(file.exists() and statistics.samefile(file) for file in inputs):
        targets.remove(statistics)
    with publishing(targets, inputs=inputs) as publication:
        for target in targets:
            (made / target.name).rename(publication.temporary(target))
    return tuple(targets)
