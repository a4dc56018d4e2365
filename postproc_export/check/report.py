"""What a check found: the report, its verdicts and failures, as text, JSON and JUnit XML."""

import json
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from postproc_export.check.inputs import RealBatch
from postproc_export.check.stage_report import TAIL, Baseline, LevelOutcome, WayResult, markdown_rows
from postproc_export.files import folder_made_for, publishing
from postproc_export.stats import Level

if TYPE_CHECKING:
    from rich.table import Table


# --- JSON values of a report.


def plain(value: Any) -> Any:
    """Return JSON values only: NaN and infinities as strings, tuples as lists, unknown things as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return plain(value.item()) if hasattr(value, "item") else str(value)


# --- The report of a parity check: what ran, on which runtime and precision, what passed, and what was not checked.

_STYLES: Final = {"passed": "green", "MISSED": "bold red", "shown": "yellow"}
_CELLS: Final = {"passed": "ok {}", "MISSED": "MISS {}", "shown": "({})"}
_LEGEND: Final = (
    "labels: how many are equal, or flipped / all; scores: largest error; in brackets: shown, decides nothing"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check.

    Parameters
    ----------
    name
        What was checked and how it was run, such as ``"tail/pred_label/onnxruntime"``.
    passed
        The verdict; True where the check only reports.
    message
        One sentence: the numbers, and where it failed what was found and where.
    judged
        False where the outcome is shown and decides nothing.
    way
        The last part of the name where something ran: which runtime, optimised or not, at which precision.
    runtime, precision
        What it ran on and what that computes in; None where nothing ran.
    brief
        The numbers alone, for a cell of a table.
    details
        More for a machine: counts, errors, flips. JSON values.
    """

    name: str
    passed: bool
    message: str
    judged: bool = True
    way: str | None = None
    runtime: str | None = None
    precision: str | None = None
    brief: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.passed

    @property
    def subject(self) -> str:
        """The name without the way it was run."""
        return self.name if self.way is None else self.name.removesuffix(f"/{self.way}")

    @property
    def verdict(self) -> str:
        """Return ``"passed"``, ``"MISSED"`` or ``"shown"``."""
        if not self.judged:
            return "shown"
        return "passed" if self.passed else "MISSED"

    def cell(self) -> str:
        """Return what stands in a cell of the table."""
        return _CELLS[self.verdict].format(self.brief).strip()

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object; numbers that JSON does not know become strings."""
        document: dict[str, Any] = {"name": self.name, "passed": self.passed, "judged": self.judged}
        for key in ("runtime", "precision"):
            if getattr(self, key) is not None:
                document[key] = getattr(self, key)
        return {**document, "message": self.message, **plain(self.details)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """What `check_parity` found; truthy where everything that was judged passed, and something was.

    Parameters
    ----------
    subject
        The attached file.
    checks
        Every check, in the order in which they ran.
    not_checked
        What was not checked, one sentence each, with the reason.
    environment
        Versions, CPU, threads and seed: what is needed to run it again.
    whole
        What every stage from the PyTorch model to the attached file did, for each way to run it.
    not_run
        Why the file was not run as a whole; None where it was.
    """

    subject: str
    checks: tuple[Check, ...]
    not_checked: tuple[str, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    whole: tuple[WayResult, ...] = ()
    not_run: str | None = None

    @property
    def passed(self) -> bool:
        """Whether every judged check passed, and there was one."""
        judged = [check.passed for check in self.checks if check.judged]
        return bool(judged) and all(judged)

    def __bool__(self) -> bool:
        return self.passed

    @property
    def missed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.judged and not check.passed)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``check --json``."""
        return {
            "passed": self.passed,
            "attached": self.subject,
            "checks": [check.to_json() for check in self.checks],
            "whole_model": [plain(_with_verdict(result)) for result in self.whole],
            "not_checked": list(self.not_checked),
            "environment": plain(self.environment),
            **({} if self.not_run is None else {"not_run": self.not_run}),
        }

    def dumps(self) -> str:
        """Return the text of ``check --json``."""
        return json.dumps(self.to_json(), indent=2, allow_nan=False)

    def verdict(self) -> str:
        """Return one sentence."""
        judged = sum(check.judged for check in self.checks)
        if not judged:
            return f"{self.subject}: nothing was checked"
        if self.passed:
            part = "" if self.not_run is None else f", but the file was not run as a whole: {self.not_run}"
            return f"{self.subject}: passed, {judged} checks{part}"
        names = ", ".join(check.name for check in self.missed)
        return f"{self.subject}: {len(self.missed)} of {judged} checks missed: {names}"

    def describe(self) -> str:
        """Return the report as plain text: the verdict, every check, and what was not checked."""
        rows = [f"  {check.verdict:<7} {check.name}: {check.message}" for check in self.checks]
        found = [f"  {line}" for line in self.verdicts()]
        open_ends = [f"  not checked: {sentence}" for sentence in self.not_checked]
        return "\n".join([self.verdict(), *rows, *found, *open_ends])

    def verdicts(self) -> list[str]:
        """Return a sentence for each way to run the whole model, and after it what went otherwise and what helps."""
        lines = []
        for result in self.whole:
            helps = advice(result)
            more = [*worst_flips(result), *([] if helps is None else [f"to prevent it: {helps}"])]
            lines += [verdict(result), *(f"  {line}" for line in more)]
        return lines

    @property
    def ways(self) -> list[str]:
        """The ways of running, and ``"file"`` for what was read and not run: the columns of a table."""
        return list(dict.fromkeys(check.way or "file" for check in self.checks))

    def rows(self) -> dict[str, dict[str, Check]]:
        """Return the checks by subject, and of each subject by way: the rows of a table."""
        rows: dict[str, dict[str, Check]] = {}
        for check in self.checks:
            rows.setdefault(check.subject, {})[check.way or "file"] = check
        return rows

    def remarks(self) -> list[str]:
        """Return what the table does not show, a line each: what ran, misses in full, what was not checked, verdict."""
        ran = dict.fromkeys(
            f"ran: {check.way} on {check.runtime}, computing in {check.precision}"
            for check in self.checks
            if check.runtime is not None
        )
        keys = ("processor", "processor_features", "seed", "threads")
        machine = [
            f"{key.replace('_', ' ')}: {_told(self.environment[key])}" for key in keys if key in self.environment
        ]
        torch = [f"PyTorch: {_listed(self.environment['torch'])}"] if "torch" in self.environment else []
        fed = [f"fed: {self.environment[key]}" for key in ("inputs", "synthetic") if key in self.environment]
        file = [f"file: {self.environment['file']}"] if "file" in self.environment else []
        saved = [f"replay: {item['replay']}" for item in self.environment.get("failures", ())]
        misses = [f"MISSED {check.name}: {check.message}" for check in self.missed]
        return [
            *ran,
            *machine,
            *torch,
            *file,
            *fed,
            *misses,
            *saved,
            *self.verdicts(),
            *(f"not checked: {item}" for item in self.not_checked),
            self.verdict(),
        ]

    def table(self) -> "Table":
        """Return the report as a table for the terminal: one row per subject, one column per way of running."""
        from rich.table import Table
        from rich.text import Text

        ways = self.ways
        table = Table(title=f"parity of {self.subject}", title_justify="left", caption=_LEGEND, caption_justify="left")
        table.add_column("check", no_wrap=True)
        for way in ways:
            table.add_column(way.replace("-", "\n", 1), overflow="fold")
        group = None
        for subject, found in self.rows().items():
            heading, _, leaf = subject.rpartition("/")
            if heading != group:
                table.add_section()
                if heading:
                    table.add_row(Text(heading, style="bold"))
            group = heading
            cells = [found.get(way) for way in ways]
            shown = (Text() if cell is None else Text(cell.cell(), style=_STYLES[cell.verdict]) for cell in cells)
            table.add_row(Text(f" {leaf}" if heading else leaf), *shown)
        return table


def _with_verdict(result: WayResult) -> dict[str, Any]:
    return {**result.to_json(), "verdict": verdict(result), "advice": advice(result)}


def failed(name: str, message: str, **details: Any) -> Check:
    """Return a check that could not be carried out, which is a miss."""
    return Check(name=name, passed=False, message=message, details=details)


def sentences(parts: Iterable[str]) -> str:
    """Join findings into one line."""
    return "; ".join(part for part in parts if part)


def _told(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


# --- Failing inputs, saved with the command that replays them.

MOST: Final = 5


@dataclass(slots=True)
class FailureStore:
    """A folder for inputs on which something was missed.

    Parameters
    ----------
    folder
        Made when the first failure is saved.
    attached, raw, torch
        The files of the check and the PyTorch module, for the command.
    seed
        The seed of the raw values, which replays the tail's check as it was.
    threads, max_flips, code, assumed
        As the check had them; `code` is what was named to be imported, `assumed` the options given for a record.
    saved
        Each file and its command, in order.
    """

    folder: Path
    attached: Path
    raw: Path | None
    seed: int
    torch: str | None = None
    threads: int | None = None
    max_flips: int = 0
    code: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    saved: list[dict[str, str]] = field(default_factory=list)
    _counts: dict[str, int] = field(default_factory=dict)

    def add_batch(self, name: str, batch: RealBatch, *, is_seeded: bool = False) -> None:
        """Save a batch of inputs, which the seed alone may replay; of each kind of failure the first five."""
        number = self._counts.get(name, 0)
        if number >= MOST:
            return
        self._counts[name] = number + 1
        arrays = {
            port: values.astype(np.float32) if values.dtype.name == "bfloat16" else values
            for port, values in batch.samples().items()
        }
        path = self._path(f"{name}-{number}")
        _save(path, arrays)
        raw = [] if self.raw is None else ["--raw", str(self.raw)]
        torch = [] if self.torch is None else ["--torch", self.torch]
        budget = ["--max-flips", str(self.max_flips)] if self.max_flips else []
        fed = ["--seed", str(self.seed)] if is_seeded else [*torch, "--inputs", str(path)]
        self._record(path, [*raw, *fed, *budget])

    def add_tail(self, checks: list[Check]) -> None:
        """Save the raw values that the tail decided wrongly; the seed alone replays them."""
        for check in checks:
            flips = check.details.get("flips", ())
            if not check and check.subject.startswith("tail/") and flips:
                path = self._path(check.name)
                _save(path, {"raw": np.array([flip["raw"] for flip in flips], np.float32)})
                self._record(path, ["--seed", str(self.seed)])

    def _path(self, name: str) -> Path:
        return self.folder / f"{name.replace('/', '-')}.npz"

    def _record(self, path: Path, options: list[str]) -> None:
        threads = [] if self.threads is None else ["--threads", str(self.threads)]
        code = [word for name in self.code for word in ("--tail", name)]
        command = shlex.join(["postproc-export", "check", str(self.attached), *self.assumed, *code, *options, *threads])
        self.saved.append({"file": str(path), "replay": command})


def _save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    with folder_made_for(path), publishing([path]) as publication:
        np.savez(publication.temporary(path), **arrays)  # type: ignore[arg-type]  # the stubs take **arrays for allow_pickle


# --- One sentence per way of running: does it decide as PyTorch, by how much not, and what prevents it.

SHOWN_FLIPS: Final = 3
_ROUNDING: Final = 1e-5  # the longest form of a tail stays below this at float32: docs/definition.md section 3

PREVENTED_BY: Final = "INFERENCE_PRECISION_HINT=f32 or EXECUTION_MODE_HINT=ACCURACY"
PRECISION_ADVICE: Final = (
    f"compile the model with {PREVENTED_BY}: no IR carries that by itself; or calibrate at this precision"
)
FP16_ADVICE: Final = "convert and save with compress_to_fp16=False; or calibrate on the compressed model"
INT8_ADVICE: Final = "quantise first, calibrate on the quantised model, then attach"

_NOUNS: Final[Mapping[Level, str]] = {"image": "labels", "pixel": "mask pixels"}
_ONE: Final[Mapping[Level, str]] = {"image": "label", "pixel": "mask pixel"}
_PYTORCH: Final[Mapping[Baseline, str]] = {
    "torch": "PyTorch",
    "raw": "PyTorch on the raw file's values",
    "attached": "PyTorch on its own raw values",
}


def verdict(result: WayResult) -> str:
    """Return one sentence: how it ran, whether it decides alike, and how near to a boundary that is."""
    found = f"{result.way.label} {_computing(result)}: {_decided(result)}{_rounded_tail(result)}"
    return f"{found}; shown, not judged" if result.flipped and not result.way.judged else found


def advice(result: WayResult) -> str | None:
    """Return what keeps another precision from moving decisions; None where it moved none, or it is float32."""
    is_exact = result.way.weights == "stored" and result.precision == "float32"
    if not result.moved or is_exact:
        return None
    if result.way.weights == "fp16":
        return FP16_ADVICE
    return INT8_ADVICE if result.way.weights == "int8" else PRECISION_ADVICE


def worst_flips(result: WayResult) -> Iterator[str]:
    """Yield the flips farthest from the boundary, a line each, and how many more there are."""
    for outcome in result.outcomes:
        for traced in outcome.flips[:SHOWN_FLIPS]:
            yield f"{_ONE[outcome.level]}: {traced.describe()}"
        rest = outcome.flipped - min(SHOWN_FLIPS, len(outcome.flips))
        if rest:
            yield f"{rest:,} more {(_ONE if rest == 1 else _NOUNS)[outcome.level]}, nearer to the boundary"


def _decided(result: WayResult) -> str:
    pytorch = _PYTORCH[result.baseline]
    if not result.outcomes:
        return "it gives no labels, so nothing is decided"
    if not result.flipped:
        return f"decides as {pytorch}; {_at_risk(result)}"
    flipped = " and ".join(_flipped(outcome) for outcome in result.outcomes if outcome.flipped)
    brought = ", ".join(f"{stage} brought in {count:,}" for stage, count in _brought_in(result).items())
    if result.beyond:
        return f"decides otherwise than {pytorch}: {flipped} flipped; {brought}"
    near = f"all nearer to the boundary than {_bands(result)}"
    return f"decides as {pytorch} but for {flipped}, {near}; {brought}"


def _rounded_tail(result: WayResult) -> str:
    """A converter that rounds weights may round the constants of the tail, too."""
    tails = [stage for stage in result.stages if stage.stage == TAIL]
    largest = max((stage.errors.largest / stage.span for stage in tails), default=0.0)
    if result.way.weights == "stored" or largest <= _ROUNDING:
        return ""
    return f"; constants of the tail were rounded, too, which moves its scores by up to {largest:.1e}"


def _computing(result: WayResult) -> str:
    if result.way.weights == "fp16":
        return f"at {result.precision}, weights rounded to float16"
    if result.way.weights == "int8":
        return f"quantised, else at {result.precision}"
    return f"at {result.precision}{', the default here' if result.way.precision == 'default' else ''}"


def _at_risk(result: WayResult) -> str:
    exact = all(outcome.largest == 0 for outcome in result.outcomes)
    if exact:
        return "the raw values are equal to the bit"
    near = [outcome for outcome in result.outcomes if outcome.at_risk]
    if not near:
        moved = [outcome for outcome in result.outcomes if outcome.largest]
        nouns = " and ".join(f"no {_ONE[outcome.level]} within {outcome.within:.1e}" for outcome in moved)
        return f"{nouns} of the boundary, the largest error"
    return " and ".join(
        f"{_share(outcome, outcome.at_risk)} {'lies' if outcome.at_risk == 1 else 'lie'} "
        f"within {outcome.within:.1e} of the boundary"
        for outcome in near
    )


def _flipped(outcome: LevelOutcome) -> str:
    return f"{_share(outcome, outcome.flipped)}{_farthest(outcome)}"


def _share(outcome: LevelOutcome, part: int) -> str:
    return f"{part:,} of {outcome.count:,} {_NOUNS[outcome.level]}"


def _farthest(outcome: LevelOutcome) -> str:
    return "" if outcome.farthest is None else f" (up to {outcome.farthest:.1e} from the boundary)"


def _bands(result: WayResult) -> str:
    return " and ".join(f"{outcome.band:.1e}" for outcome in result.outcomes if outcome.flipped)


def _brought_in(result: WayResult) -> dict[str, int]:
    counts: dict[str, int] = {}
    for outcome in result.outcomes:
        for stage, count in outcome.brought_in.items():
            counts[stage] = counts.get(stage, 0) + count
    return counts


# --- A report for machines and job pages: JUnit XML and Markdown.

_NOT_XML: Final = re.compile(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")
_SIGNS: Final = {"passed": "✅", "MISSED": "❌", "shown": "👁"}


def junit(report: ParityReport) -> str:
    """Return the report as JUnit XML: a test case per check; what decides nothing, or was not checked, is skipped."""
    skipped = sum(not check.judged for check in report.checks) + len(report.not_checked)
    suite = ElementTree.Element(
        "testsuite",
        name=f"parity of {report.subject}",
        tests=str(len(report.checks) + len(report.not_checked)),
        failures=str(len(report.missed)),
        errors="0",
        skipped=str(skipped),
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in report.environment.items():
        ElementTree.SubElement(properties, "property", name=name, value=_text(str(value)))
    for check in report.checks:
        _add_case(suite, check)
    for sentence in report.not_checked:
        case = ElementTree.SubElement(suite, "testcase", classname="not checked", name=_text(sentence))
        ElementTree.SubElement(case, "skipped", message="not checked")
    if report.whole:
        ElementTree.SubElement(suite, "system-out").text = _text("\n".join(report.verdicts()))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def markdown(report: ParityReport) -> str:
    """Return the report as Markdown: the verdict, a table as on the terminal, misses in full, what was not checked."""
    ways = report.ways
    lines = [f"### {_SIGNS['passed' if report else 'MISSED']} {_cell(report.verdict())}", ""]
    lines += [f"| check | {' | '.join(ways)} |", f"| --- |{' --- |' * len(ways)}"]
    for subject, found in report.rows().items():
        cells = [f"{_SIGNS[found[way].verdict]} {_cell(found[way].brief)}" if way in found else "" for way in ways]
        lines.append(f"| {_cell(subject)} | {' | '.join(cells)} |")
    if report.whole:
        lines += ["", *(_bullet(line) for line in report.verdicts()), "", *markdown_rows(report.whole)]
    lines += ["", *(f"- **missed** `{check.name}`: {_cell(check.message)}" for check in report.missed)]
    lines += [f"- not checked: {_cell(sentence)}" for sentence in report.not_checked]
    lines += [f"- {key}: {_cell(str(value))}" for key, value in report.environment.items()]
    return "\n".join(lines) + "\n"


def _bullet(line: str) -> str:
    """Return a list entry; what is indented belongs to the entry before it."""
    return f"{'  ' if line.startswith(' ') else ''}- {_cell(line)}"


def _add_case(suite: ElementTree.Element, check: Check) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=_text(check.subject), name=_text(check.name))
    if not check.judged:
        ElementTree.SubElement(case, "skipped", message=_text(f"shown, decides nothing: {check.message}"))
    elif not check.passed:
        ElementTree.SubElement(case, "failure", message=_text(check.message)).text = _text(str(check.to_json()))
    else:
        ElementTree.SubElement(case, "system-out").text = _text(check.message)


def _text(text: str) -> str:
    return _NOT_XML.sub("?", text)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
