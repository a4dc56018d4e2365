"""What a check found: the report, its verdicts and failures, as text, JSON and JUnit XML."""

import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from postproc_export.check.chain import TAIL, TORCH_ATTACHED, TORCH_RAW, Baseline, LevelTrace, WayResult
from postproc_export.check.inputs import RealBatch
from postproc_export.comparison import describe_flip
from postproc_export.files import publishing
from postproc_export.options import CheckOptions
from postproc_export.stats import Level

if TYPE_CHECKING:
    from rich.table import Table


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


_STYLES: Final = {"passed": "green", "FAILED": "bold red", "shown": "yellow"}
_CELLS: Final = {"passed": "ok {}", "FAILED": "FAIL {}", "shown": "({})"}
_TOLD: Final = {  # entries of the environment, as the remarks of a report call them
    "processor": "processor",
    "processor_features": "processor features",
    "seed": "seed",
    "threads": "threads",
    "torch": "PyTorch",
    "file": "file",
    "inputs": "fed",
    "synthetic": "fed",
}
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
        """Return ``"passed"``, ``"FAILED"`` or ``"shown"``."""
        if not self.judged:
            return "shown"
        return "passed" if self.passed else "FAILED"

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
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.judged and not check.passed)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``check --json``."""
        return {
            "passed": self.passed,
            "attached": self.subject,
            "checks": [check.to_json() for check in self.checks],
            "whole_model": [
                plain({**result.to_json(), "verdict": verdict(result), "advice": advice(result)})
                for result in self.whole
            ],
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
        names = ", ".join(check.name for check in self.failed)
        return f"{self.subject}: {len(self.failed)} of {judged} checks failed: {names}"

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
        """Return what the table does not show, a line each: what ran, what failed, what was not checked, verdict."""
        ran = dict.fromkeys(
            f"ran: {check.way} on {check.runtime}, computing in {check.precision}"
            for check in self.checks
            if check.runtime is not None
        )
        told = []
        for key, noun in _TOLD.items():
            value = self.environment.get(key)
            if isinstance(value, Mapping):
                value = ", ".join(f"{name} {each}" for name, each in value.items())
            if key in self.environment:
                told.append(f"{noun}: {', '.join(value) if isinstance(value, list) else value}")
        return [
            *ran,
            *told,
            *(f"FAILED {check.name}: {check.message}" for check in self.failed),
            *(f"replay: {item['replay']}" for item in self.environment.get("failures", ())),
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


def failed(name: str, message: str, **details: Any) -> Check:
    """Return a check that could not be carried out, which is a failure."""
    return Check(name=name, passed=False, message=message, details=details)


MOST: Final = 5


class FailureStore:
    """A folder for inputs on which a check failed, each with the command that replays it.

    The folder is made when the first failure is saved. `code` is what was named to be imported, `assumed` the options
    that were given for a record.
    """

    def __init__(
        self, folder: Path, asked: CheckOptions, threads: int | None, *, code: Sequence[str], assumed: Sequence[str]
    ) -> None:
        self.saved: list[dict[str, str]] = []  # each file and its command, in order
        self._folder, self._seed = folder, ["--seed", str(asked.seed)]
        steps = (word for name in code for word in ("--step", name))
        self._command = [str(Path(asked.attached)), *assumed, *steps]
        self._raw = [] if asked.raw is None else ["--raw", str(Path(asked.raw))]
        self._torch = ["--torch", asked.torch] if isinstance(asked.torch, str) else []
        self._budget = ["--max-flips", str(asked.max_flips)] if asked.max_flips else []
        self._threads = [] if threads is None else ["--threads", str(threads)]
        self._counts: dict[str, int] = {}

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
        path = self._save(f"{name}-{number}", arrays)
        fed = self._seed if is_seeded else [*self._torch, "--inputs", str(path)]
        self._record(path, [*self._raw, *fed, *self._budget])

    def add_tail(self, checks: list[Check]) -> None:
        """Save the raw values that the tail decided wrongly; the seed alone replays them."""
        for check in checks:
            flips = check.details.get("flips", ())
            if not check and check.subject.startswith("tail/") and flips:
                path = self._save(check.name, {"raw": np.array([flip["raw"] for flip in flips], np.float32)})
                self._record(path, self._seed)

    def _save(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> Path:
        path = self._folder / f"{name.replace('/', '-')}.npz"
        with publishing([path]) as publication:
            np.savez(publication.temporary(path), **arrays)  # type: ignore[arg-type]  # the stubs take **arrays for allow_pickle
        return path

    def _record(self, path: Path, options: Sequence[str]) -> None:
        command = shlex.join(["postproc-export", "check", *self._command, *options, *self._threads])
        self.saved.append({"file": str(path), "replay": command})


SHOWN_FLIPS: Final = 3
_ROUNDING: Final = 1e-5  # the longest form of a tail stays below this at float32: docs/definition.md section 3

PREVENTED_BY: Final = "INFERENCE_PRECISION_HINT=f32 or EXECUTION_MODE_HINT=ACCURACY"
_ADVICE: Final[Mapping[str, str]] = {
    "stored": f"compile the model with {PREVENTED_BY}: no IR carries that by itself; or calibrate at this precision",
    "fp16": "convert and save with compress_to_fp16=False; or calibrate on the compressed model",
    "int8": "quantise first, calibrate on the quantised model, then attach",
}

_NOUNS: Final[Mapping[Level, str]] = {"image": "labels", "pixel": "mask pixels"}
_ONE: Final[Mapping[Level, str]] = {"image": "label", "pixel": "mask pixel"}
_PYTORCH: Final[Mapping[Baseline, str]] = {
    "torch": "PyTorch",
    "raw": "PyTorch on the raw file's values",
    "attached": "PyTorch on its own raw values",
}


def verdict(result: WayResult) -> str:
    """Return one sentence: how it ran, whether it decides alike, and how near to a boundary that is."""
    computing = f"at {result.precision}{', the default here' if result.way.precision == 'default' else ''}"
    if result.way.weights == "fp16":
        computing = f"at {result.precision}, weights rounded to float16"
    elif result.way.weights == "int8":
        computing = f"quantised, else at {result.precision}"
    found = f"{result.way.label} {computing}: {_decided(result)}"
    # A converter that rounds weights may round the constants of the tail, too.
    tails = (trace.errors[stage].largest / trace.span for stage, trace in result.stages if stage == TAIL)
    largest = max(tails, default=0.0)
    if result.way.weights != "stored" and largest > _ROUNDING:
        found += f"; constants of the tail were rounded, too, which moves its scores by up to {largest:.1e}"
    return f"{found}; shown, not judged" if result.flipped and not result.way.judged else found


def advice(result: WayResult) -> str | None:
    """Return what keeps another precision from moving decisions; None where it moved none, or it is float32."""
    is_exact = result.way.weights == "stored" and result.precision == "float32"
    return None if not result.moved or is_exact else _ADVICE[result.way.weights]


def worst_flips(result: WayResult) -> Iterator[str]:
    """Yield the flips farthest from the boundary, a line each, and how many more there are."""
    for trace in result.outcomes:
        for traced in trace.flips[:SHOWN_FLIPS]:
            name = "" if traced["sample"] is None else f" ({traced['sample']})"
            where = f"{describe_flip(traced)}{name}, then {traced['raw_at_the_end']:.9g}; by {traced['stage']}"
            yield f"{_ONE[trace.level]}: {where}"
        rest = trace.decided.flipped - min(SHOWN_FLIPS, len(trace.flips))
        if rest:
            yield f"{rest:,} more {(_ONE if rest == 1 else _NOUNS)[trace.level]}, nearer to the boundary"


def _decided(result: WayResult) -> str:
    pytorch = _PYTORCH[result.baseline]
    if not result.outcomes:
        return "it gives no labels, so nothing is decided"
    if not result.flipped:
        return f"decides as {pytorch}; {_at_risk(result)}"
    parts, bands = [], []
    for trace in result.outcomes:
        if trace.decided.flipped:
            far = trace.decided.farthest
            farthest = "" if far is None else f" (up to {far:.1e} from the boundary)"
            parts.append(f"{_share(trace, trace.decided.flipped)}{farthest}")
            bands.append(f"{trace.band.atol:.1e}")
    flipped = " and ".join(parts)
    brought = ", ".join(f"{stage} brought in {count:,}" for stage, count in result.brought_in.items())
    if result.beyond:
        return f"decides otherwise than {pytorch}: {flipped} flipped; {brought}"
    return f"decides as {pytorch} but for {flipped}, all nearer to the boundary than {' and '.join(bands)}; {brought}"


def _at_risk(result: WayResult) -> str:
    if all(trace.largest == 0 for trace in result.outcomes):
        return "the raw values are equal to the bit"
    moved = [(trace, *trace.at_risk) for trace in result.outcomes if trace.largest]
    if near := [(trace, reached, count) for trace, reached, count in moved if count]:
        return " and ".join(
            f"{_share(trace, count)} {'lies' if count == 1 else 'lie'} within {reached:.1e} of the boundary"
            for trace, reached, count in near
        )
    nouns = " and ".join(f"no {_ONE[trace.level]} within {reached:.1e}" for trace, reached, _ in moved)
    return f"{nouns} of the boundary, the largest error"


def _share(trace: LevelTrace, part: int) -> str:
    return f"{part:,} of {trace.decided.count:,} {_NOUNS[trace.level]}"


HEADINGS: Final = (
    "stage",
    "of",
    "largest, raw",
    "largest, of span",
    "99.9 %, of span",
    "mean, of span",
    "flipped / all",
)
CAPTION: Final = "errors in raw units and of the calibrated span; flipped: decisions that this stage changed"

_LEVELS: Final[dict[Level, str]] = {"image": "score", "pixel": "map"}


def stage_table(results: Sequence[WayResult]) -> "Table":
    """Return the table for the terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="stage by stage", title_justify="left", caption=CAPTION, caption_justify="left")
    table.box, table.padding = None, (0, 1, 0, 0)
    for heading in HEADINGS:
        is_text = heading in ("stage", "of")
        lines = heading.replace(", ", "\n").replace(" / ", "\n/ ")
        table.add_column(lines, justify="left" if is_text else "right", no_wrap=True)
    for result in results:
        table.add_row(Text(result.way.label, style="bold" if result.way.judged else "bold yellow"))
        for flipped, (first, *others) in _stage_rows(result):
            style = "red" if flipped else ""
            table.add_row(Text(f" {first}"), *(Text(cell, style=style) for cell in others))
    return table


def _stage_rows(result: WayResult) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield how many decisions a stage changed, and its cells.

    A way at another precision or with other weights shares the stages of the export with the way at float32.
    """
    for stage, trace in result.stages:
        if not result.way.judged and stage in (TORCH_RAW, TORCH_ATTACHED):
            continue
        errors, span, labels = trace.errors[stage], trace.span, trace.labels.get(stage)
        cells = (
            stage,
            _LEVELS[trace.level],
            f"{errors.largest:.1e}",
            f"{errors.largest / span:.1e}",
            f"{errors.quantile / span:.1e}",
            f"{errors.mean / span:.1e}",
            "" if labels is None else f"{labels.flipped:,} / {labels.count:,}",
        )
        yield 0 if labels is None else labels.flipped, cells


_NOT_XML: Final = re.compile(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")
_SIGNS: Final = {"passed": "✅", "FAILED": "❌", "shown": "👁"}


def junit(report: ParityReport) -> str:
    """Return the report as JUnit XML: a test case per check; what decides nothing, or was not checked, is skipped."""
    skipped = sum(not check.judged for check in report.checks) + len(report.not_checked)
    suite = ElementTree.Element(
        "testsuite",
        name=f"parity of {report.subject}",
        tests=str(len(report.checks) + len(report.not_checked)),
        failures=str(len(report.failed)),
        errors="0",
        skipped=str(skipped),
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in report.environment.items():
        ElementTree.SubElement(properties, "property", name=name, value=_text(str(value)))
    for check in report.checks:
        case = ElementTree.SubElement(suite, "testcase", classname=_text(check.subject), name=_text(check.name))
        if not check.judged:
            ElementTree.SubElement(case, "skipped", message=_text(f"shown, decides nothing: {check.message}"))
        elif not check.passed:
            ElementTree.SubElement(case, "failure", message=_text(check.message)).text = _text(str(check.to_json()))
        else:
            ElementTree.SubElement(case, "system-out").text = _text(check.message)
    for sentence in report.not_checked:
        case = ElementTree.SubElement(suite, "testcase", classname="not checked", name=_text(sentence))
        ElementTree.SubElement(case, "skipped", message="not checked")
    if report.whole:
        ElementTree.SubElement(suite, "system-out").text = _text("\n".join(report.verdicts()))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def markdown(report: ParityReport) -> str:
    """Return the report as Markdown: the verdict, a table as on the terminal, what failed, what was not checked."""
    ways = report.ways
    lines = [f"### {_SIGNS['passed' if report else 'FAILED']} {_cell(report.verdict())}", ""]
    lines += [f"| check | {' | '.join(ways)} |", f"| --- |{' --- |' * len(ways)}"]
    for subject, found in report.rows().items():
        cells = [f"{_SIGNS[found[way].verdict]} {_cell(found[way].brief)}" if way in found else "" for way in ways]
        lines.append(f"| {_cell(subject)} | {' | '.join(cells)} |")
    if report.whole:
        # What is indented belongs to the entry before it.
        lines += ["", *(f"{'  ' if line.startswith(' ') else ''}- {_cell(line)}" for line in report.verdicts()), ""]
        lines += [f"| way | {' | '.join(HEADINGS)} |", f"| --- | --- | --- |{' ---: |' * (len(HEADINGS) - 2)}"]
        for result in report.whole:
            lines += [f"| {result.way.label} | {' | '.join(cells)} |" for _, cells in _stage_rows(result)]
    lines += ["", *(f"- **failed** `{check.name}`: {_cell(check.message)}" for check in report.failed)]
    lines += [f"- not checked: {_cell(sentence)}" for sentence in report.not_checked]
    lines += [f"- {key}: {_cell(str(value))}" for key, value in report.environment.items()]
    return "\n".join(lines) + "\n"


def _text(text: str) -> str:
    return _NOT_XML.sub("?", text)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
