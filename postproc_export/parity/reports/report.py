"""The report of a parity check: what ran, on which runtime and precision, what passed, and what was not checked."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from postproc_export.parity.reports.json_values import plain
from postproc_export.parity.reports.stage_results import WayResult
from postproc_export.parity.reports.verdicts import advice, verdict, worst_flips

if TYPE_CHECKING:
    from rich.table import Table

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
