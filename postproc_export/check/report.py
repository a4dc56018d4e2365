"""What a check found: the report with its verdict, as text, JSON, JUnit XML and Markdown."""

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from postproc_export.check.chain import TORCH_ATTACHED, TORCH_RAW, WayResult
from postproc_export.check.findings import Cause, Check, Verdict, advice, causes_of, plain, share, verdict, worst_flips
from postproc_export.check.inputs import RealBatch
from postproc_export.files import publishing
from postproc_export.outcome import Outcome
from postproc_export.run_options import CheckOptions
from postproc_export.runtimes import RUNTIMES
from postproc_export.stats import Level

_TOLD: Final = {  # entries of the environment, as the details of a report call them
    "processor": "processor",
    "processor_features": "processor features",
    "seed": "seed",
    "threads": "threads",
    "reference": "reference",
    "torch": "PyTorch",
    "file": "file",
    "inputs": "fed",
    "synthetic": "fed",
}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ParityReport(Outcome):
    """What `check_parity` found; truthy where everything that was judged passed, and something was.

    Parameters
    ----------
    subject
        The attached file.
    files
        The SHA-256 of each file of the model as the check began, by its path in the model's folder; none where outputs
        are judged.
    checks
        Every check, in the order in which they ran.
    not_checked
        What was not checked: each the name of it, a colon, and the reason.
    environment
        Versions, CPU, threads and seed: what is needed to run it again.
    given
        The files and the module that the file was compared with, fed or judged by, under the names of the options.
    whole
        What every stage from the PyTorch model to the attached file did, for each way to run it.
    not_run
        Why the file was not run as a whole; None where it was.
    is_original
        Whether the raw file is by its content what the tail was attached to; None where nothing tells, or none was
        given.
    """

    subject: str
    checks: tuple[Check, ...]
    files: Mapping[str, str | None] = field(default_factory=dict)
    not_checked: tuple[str, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, str] = field(default_factory=dict)
    whole: tuple[WayResult, ...] = ()
    not_run: str | None = None
    is_original: bool | None = None

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

    @property
    def causes(self) -> tuple[Cause, ...]:
        """What the failures come down to; of a report that passed, why what is shown and not judged came out so."""
        found = causes_of(self.subject, self.checks, given=self.given, whole=self.whole, is_original=self.is_original)
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``check --json``."""
        return {
            "passed": self.passed,
            "verdict": self.headline(),
            "causes": [cause.to_json() for cause in self.causes],
            "next": self.next_step(),
            "attached": self.subject,
            "files": dict(self.files),
            "given": dict(self.given),
            "is_original": self.is_original,
            "checks": [check.to_json() for check in self.checks],
            "whole_model": [
                plain({**result.to_json(), "verdict": verdict(result), "advice": advice(result)})
                for result in self.whole
            ],
            "not_checked": list(self.not_checked),
            "environment": plain(self.environment),
            **({} if self.not_run is None else {"not_run": self.not_run}),
        }

    @property
    def _file(self) -> str:
        """What decides: the file, or where the outputs of another machine are judged that of which the kit was made."""
        return f"the model of {self.given['kit']}" if "kit" in self.given else self.subject

    def headline(self) -> str:
        """Return the verdict: what was proven and on what, or what is wrong; and what was not checked."""
        judged, failed = sum(check.judged for check in self.checks), len(self.failed)
        if not judged:
            found = f"FAILED: {self.subject}: nothing was checked"
        elif failed:
            titles = "; ".join(dict.fromkeys(cause.title for cause in self.causes))
            found = f"FAILED: {self.subject} {titles} ({failed} of {judged} checks failed)"
        else:
            is_twin = str(self.environment.get("reference", "")).startswith("numpy")
            who = "PyTorch does, by its twin in NumPy" if is_twin else "PyTorch does"
            found = f"PASSED: {self._file} decides as {who}{self._forgiven()}: {', '.join(self._proven())}"
        nouns = dict.fromkeys(sentence.partition(": ")[0] for sentence in self.not_checked)
        # Where something failed, what could not be run in one way is mostly a consequence.
        told = (noun for noun in nouns if self.passed or not noun.rpartition(" in ")[2].startswith(RUNTIMES))
        unchecked = "; ".join(told)
        return f"{found}. Not checked: {unchecked}." if unchecked else f"{found}."

    def _forgiven(self) -> str:
        most = max(
            (result for result in self.whole if result.way.judged), key=lambda result: result.flipped, default=None
        )
        if most is not None and most.flipped:
            shares = [share(trace, trace.decided.flipped) for trace in most.outcomes if trace.decided.flipped]
        else:  # of another machine, or on synthetic inputs alone
            of_whole = [check for check in self.checks if check.judged and _WHOLE.match(check.subject)]
            of_whole.sort(key=lambda check: int(check.details.get("flipped", 0)))
            found = {check.output: check.details for check in of_whole if check.details.get("flipped")}
            shares = [f"{each['flipped']:,} of {each['count']:,} in {name}" for name, each in found.items()]
        return f" but for {' and '.join(shares)}, which the band or the budget forgives" if shares else ""

    def _proven(self) -> Iterator[str]:
        """Yield what was run, on how much, beside what, and in what."""
        judged = [check for check in self.checks if check.judged]
        counts = Counter[str | None]()
        for check in judged:
            if check.subject in ("tail/pred_score", "tail/anomaly_map"):
                counts[check.way] += check.details.get("count", 0)
        if any(check.subject.startswith("exhaustive/") for check in judged):
            yield "the tail on every float32 there is"
        elif counts:
            yield f"the tail on {max(counts.values()):,} raw values"
        if self.not_run is not None:
            yield f"but the file was not run as a whole ({self.not_run})"
        elif "synthetic" in self.environment or "inputs" in self.environment:
            real = re.match(r"\d+( of \d+)? \w+", self.environment.get("inputs", ""))
            fed = "synthetic inputs" if real is None else real[0]
            beside = [self.given["raw"]] if "raw" in self.given else []
            beside += [self.given.get("torch", "the PyTorch model")] if "torch" in self.environment else []
            yield f"the whole file on {fed}{' beside ' if beside else ''}{' and '.join(beside)}"
            if self.is_original is False:
                yield f"though by its content {beside[0]} is not the model in front of the tail"
        if "preserved" in self.given:
            yield f"nothing else of {self.given['preserved']} changed"
        yield from dict.fromkeys(f"it fits {each.details['program']}" for each in judged if "program" in each.details)
        if "stats" in self.given:
            yield f"by {self.given['stats']}"
        ran = [(check.runtime, check.precision) for check in judged if check.runtime is not None]
        for precision in dict.fromkeys(precision for _, precision in ran):
            names = dict.fromkeys(str(runtime) for runtime, of in ran if of == precision)
            yield f"in {' and '.join(names)}{'' if precision is None else f' at {precision}'}"

    def next_step(self) -> str:
        """Return the command to run next: what mends the first cause, or what proves more; in words where none does."""
        if not self and self.causes:
            return self.causes[0].command or self.causes[0].fix
        if "kit" in self.given and "inputs" not in self.environment:
            return "postproc-export vectors ATTACHED -o KIT --images FOLDER"
        if "inputs" in self.environment:
            return f"nothing, {self._file} can be deployed{' at float32' if self.causes else ''}"
        raw = ["--raw", self.given["raw"]] if "raw" in self.given else []
        return shlex.join(["postproc-export", "check", self.subject, *raw, "--images", "FOLDER"])

    def facts(self) -> Iterator[tuple[str, str]]:
        """Yield each cause by its stage, what mends it and its worst case; then how a failure is replayed."""
        for cause in self.causes:
            yield cause.stage, cause.what
            yield from ((name, text) for name, text in (("fix", cause.fix), ("worst", cause.worst)) if text)
        yield from (("replay", each["replay"]) for each in self.environment.get("failures", ())[:1])

    def summary(self) -> str:
        """Return the report as the command prints it: the verdict, a line per cause with its mend, what to run next."""
        return "\n".join([*self._lines(), f"next: {self.next_step()}"])

    def describe(self) -> str:
        """Return all of it: between causes and next step every check, every stage, what ran, what was not checked."""
        return "\n".join([*self._lines(), *self._details(), f"next: {self.next_step()}"])

    def _details(self) -> Iterator[str]:
        yield from (f"{found:<6} {subject}{ways}: {message}" for found, subject, ways, message in self.findings())
        yield from stage_table(self.whole)
        yield from self.verdicts()
        yield from dict.fromkeys(
            f"ran: {check.way} on {check.runtime}, computing in {check.precision or 'what nobody told'}"
            for check in self.checks
            if check.runtime is not None
        )
        for key, noun in _TOLD.items():
            value = self.environment.get(key)
            if isinstance(value, Mapping):
                value = ", ".join(f"{name} {each}" for name, each in value.items())
            if key in self.environment:
                yield f"{noun}: {', '.join(value) if isinstance(value, list) else value}"
        yield from (f"replay: {each['replay']}" for each in self.environment.get("failures", ())[1:])
        yield from (f"not checked: {sentence}" for sentence in self.not_checked)

    def findings(self) -> Iterator[tuple[Verdict, str, str, str]]:
        """Yield every check's verdict, subject, ways and message; ways in which they are the same are told at once."""
        found: dict[tuple[Verdict, str, str], list[str]] = {}
        for check in self.checks:
            found.setdefault((check.verdict, check.subject, check.message), []).extend([check.way] if check.way else [])
        for (outcome, subject, message), ways in found.items():
            yield outcome, subject, f" ({', '.join(ways)})" if ways else "", message

    def verdicts(self) -> list[str]:
        """Return a sentence for each way to run the whole model, and after it what went otherwise and what helps."""
        lines = []
        for result in self.whole:
            helps = advice(result)
            more = [*worst_flips(result), *([] if helps is None else [f"to prevent it: {helps}"])]
            lines += [verdict(result), *(f"  {line}" for line in more)]
        return lines


MOST: Final = 5
_WHOLE: Final = re.compile("(whole|synthetic)/")


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
        self._budget = [] if asked.reference is None else ["--reference", asked.reference]
        self._budget += [word for text in asked.runtimes for word in ("--runtime", text)]
        self._budget += ["--max-flips", str(asked.max_flips)] if asked.max_flips else []
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


def stage_table(results: Sequence[WayResult]) -> Iterator[str]:
    """Yield the lines of a table of 80 columns: of each way its stages, with errors and the decisions they changed."""
    if not results:
        return
    tops = [heading.replace(" / ", ", / ").split(", ", 1) for heading in HEADINGS]
    headings = [tuple(top[line] if line < len(top) else "" for top in tops) for line in range(2)]
    rows = [(result, list(_stage_rows(result))) for result in results]
    lines = [*headings, *(cells for _, of_way in rows for cells in of_way)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]

    def aligned(cells: Sequence[str]) -> str:
        texts = (f"{cell:<{width}}" for cell, width in zip(cells[:2], widths, strict=False))
        numbers = (f"{cell:>{width}}" for cell, width in zip(cells[2:], widths[2:], strict=True))
        return " ".join(["", *texts, *numbers]).rstrip()

    yield from map(aligned, headings)
    for result, of_way in rows:
        yield result.way.label
        yield from map(aligned, of_way)
    yield CAPTION


def _stage_rows(result: WayResult) -> Iterator[tuple[str, ...]]:
    """Yield the cells of every stage.

    A way at another precision or with other weights shares the stages of the export with the way at float32.
    """
    for stage, trace in result.stages:
        if not result.way.judged and stage in (TORCH_RAW, TORCH_ATTACHED):
            continue
        errors, span, labels = trace.errors[stage], trace.span, trace.labels.get(stage)
        yield (
            stage,
            _LEVELS[trace.level],
            f"{errors.largest:.1e}",
            f"{errors.largest / span:.1e}",
            f"{errors.quantile / span:.1e}",
            f"{errors.mean / span:.1e}",
            "" if labels is None else f"{labels.flipped:,} / {labels.count:,}",
        )


_NOT_XML: Final = re.compile(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")
_SIGNS: Final = {"passed": "✅", "FAILED": "❌", "shown": "👁"}


def junit(report: ParityReport) -> str:
    """Return the report as JUnit XML: first a case for the verdict, then one for every check.

    A check that failed tells its cause and the mend; what decides nothing, or was not checked, is skipped.
    """
    skipped = sum(not check.judged for check in report.checks) + len(report.not_checked)
    suite = ElementTree.Element(
        "testsuite",
        name=f"parity of {report.subject}",
        tests=str(1 + len(report.checks) + len(report.not_checked)),
        failures=str(len(report.failed) + (not report)),
        errors="0",
        skipped=str(skipped),
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in report.environment.items():
        ElementTree.SubElement(properties, "property", name=name, value=_text(str(value)))
    causes = {name: f"{cause.what}; fix: {cause.fix}" for cause in report.causes for name in cause.checks}
    case = ElementTree.SubElement(suite, "testcase", classname=_text(report.subject), name="verdict")
    told = {} if report else {"message": _text(report.headline())}
    ElementTree.SubElement(case, "system-out" if report else "failure", told).text = _text(report.summary())
    for check in report.checks:
        case = ElementTree.SubElement(suite, "testcase", classname=_text(check.subject), name=_text(check.name))
        if not check.judged:
            ElementTree.SubElement(case, "skipped", message=_text(f"shown, decides nothing: {check.message}"))
        elif not check.passed:
            found = f"{check.message}\n{check.to_json()}"
            ElementTree.SubElement(case, "failure", message=_text(causes[check.name])).text = _text(found)
        else:
            ElementTree.SubElement(case, "system-out").text = _text(check.message)
    for sentence in report.not_checked:
        case = ElementTree.SubElement(suite, "testcase", classname="not checked", name=_text(sentence))
        ElementTree.SubElement(case, "skipped", message="not checked")
    if report.whole:
        ElementTree.SubElement(suite, "system-out").text = _text("\n".join(report.verdicts()))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def markdown(report: ParityReport) -> str:
    """Return the report as Markdown: the verdict and the causes as on the terminal, then tables of all there is."""
    lines = [f"### {_SIGNS['passed' if report else 'FAILED']} {_cell(report.headline())}", ""]
    lines += [f"- **{name}**: {_cell(text)}" for name, text in report.facts()]
    lines += [f"- **next**: `{_cell(report.next_step())}`", "", "| check | found |", "| --- | --- |"]
    for outcome, subject, ways, message in report.findings():
        lines.append(f"| {_SIGNS[outcome]} {_cell(subject)}{ways} | {_cell(message)} |")
    if report.whole:
        lines += ["", *(f"{'  ' if line.startswith(' ') else ''}- {_cell(line)}" for line in report.verdicts()), ""]
        lines += [f"| way | {' | '.join(HEADINGS)} |", f"| --- | --- | --- |{' ---: |' * (len(HEADINGS) - 2)}"]
        for result in report.whole:
            lines += [f"| {result.way.label} | {' | '.join(cells)} |" for cells in _stage_rows(result)]
    lines += ["", *(f"- not checked: {_cell(sentence)}" for sentence in report.not_checked)]
    lines += [f"- {key}: {_cell(str(value))}" for key, value in report.environment.items()]
    return "\n".join(lines) + "\n"


def _text(text: str) -> str:
    return _NOT_XML.sub("?", text)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
