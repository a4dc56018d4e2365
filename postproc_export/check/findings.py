"""What was judged, and what failures come down to: one cause for all that it explains, its worst case, its mend."""

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from textwrap import shorten
from typing import Any, Final, Literal, TypeAlias, get_args

from postproc_export.check.chain import (
    LABELS,
    RAW_ATTACHED,
    TAIL,
    TORCH_ATTACHED,
    TORCH_RAW,
    Baseline,
    LevelTrace,
    WayResult,
)
from postproc_export.comparison import Flip, describe_flip
from postproc_export.stats import LEVELS, Level


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


Verdict: TypeAlias = Literal["passed", "FAILED", "shown"]


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
    fix
        What mends it, where the check itself knows; None where it takes the other checks to tell.
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
    fix: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.passed

    @property
    def subject(self) -> str:
        """The name without the way it was run."""
        return self.name if self.way is None else self.name.removesuffix(f"/{self.way}")

    @property
    def kind(self) -> str:
        """What was compared or looked at: the first part of the name, or what follows the run that it is of."""
        first, _, rest = self.subject.partition("/")
        return rest.partition("/")[0] if first in ("whole", "synthetic") else first

    @property
    def output(self) -> str:
        """The last part of the name without the way: the output, in most cases."""
        return self.subject.rpartition("/")[2]

    @property
    def verdict(self) -> Verdict:
        """Return ``"passed"``, ``"FAILED"`` or ``"shown"``."""
        if not self.judged:
            return "shown"
        return "passed" if self.passed else "FAILED"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object; numbers that JSON does not know become strings."""
        document: dict[str, Any] = {"name": self.name, "passed": self.passed, "judged": self.judged}
        for key in ("runtime", "precision"):
            if getattr(self, key) is not None:
                document[key] = getattr(self, key)
        fix = {} if self.fix is None else {"fix": self.fix}
        return {**document, "message": self.message, **fix, **plain(self.details)}


def failed(name: str, message: str, *, fix: str | None = None, **details: Any) -> Check:
    """Return a check that could not be carried out, which is a failure."""
    return Check(name=name, passed=False, message=message, fix=fix, details=details)


# Where a fault lies, in the order in which faults are told: an earlier one explains a later one.
Stage: TypeAlias = Literal["tail", "step", "runtime", "model", "export", "program", "precision"]

_STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
# The stage that a check is about, by its kind; all others are about the tail.
_ABOUT: Final[Mapping[str, Stage]] = {
    **dict.fromkeys(("transform", "decision"), "step"),
    **dict.fromkeys(("run", "batch"), "runtime"),
    **dict.fromkeys(("preserved", "raw"), "model"),
    **dict.fromkeys(("torch", "module", "anomalib"), "export"),
}
# Kinds of checks: which of several that failed says most.
_LEADING: Final = ("outputs", "constants", "guard", "input", "run", "batch", "record", "preserved")
_CHAIN: Final[Mapping[Stage, tuple[str, ...]]] = {
    "tail": (TAIL,),
    "model": (RAW_ATTACHED,),
    "export": (TORCH_RAW, TORCH_ATTACHED),
}
_RAW: Final = frozenset(("raw_score", "raw_map"))
_OTHER_MODEL: Final = 100  # times what is allowed, so 1 % of the span: rounded weights move raw values by less
_USUAL_WAYS: Final = frozenset(("", "onnxruntime", "onnxruntime-unoptimised", "openvino", "openvino-default"))
_LONGEST: Final = 240  # characters of a finding, such as a runtime's own words


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Why checks failed, or why a way of running that is not judged decides otherwise.

    Parameters
    ----------
    stage
        Where the fault lies.
    title
        What that means for the file: a predicate to its name.
    what
        What was found, one sentence.
    fix
        What mends it, in words.
    command
        The command that mends it; None where the fix is none.
    worst
        The worst case: the image, where in it, and the values; None where no value shows it.
    checks
        The names of the checks that it explains; none where nothing failed.
    """

    stage: Stage
    title: str
    what: str
    fix: str
    command: str | None = None
    worst: str | None = None
    checks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {**asdict(self), "checks": list(self.checks)}


def causes_of(
    subject: str,
    checks: Sequence[Check],
    *,
    given: Mapping[str, str],
    whole: Sequence[WayResult],
    is_original: bool | None,
) -> Iterator[Cause]:
    """Yield the causes of all failures; where nothing failed, those of what is shown and came out otherwise.

    `subject` is the attached file, and the rest as in a report.
    """
    failed = [check for check in checks if check.judged and not check.passed]
    finder = _Finder(subject, failed, given, whole, is_original=is_original)
    yield from finder.causes()
    for result in () if finder.failed else whole:
        if (helps := advice(result)) is not None:
            title, worst = "decides otherwise at another precision", next(worst_flips(result), None)
            flipped = [share(each, each.decided.flipped) for each in result.outcomes if each.decided.flipped]
            what = f"{_how(result)}: {' and '.join(flipped)} flip; shown, not judged"
            yield Cause(stage="precision", title=title, what=what, fix=helps, worst=worst)


class _Finder:
    """Puts failures down to causes."""

    def __init__(
        self,
        subject: str,
        failed: Sequence[Check],
        given: Mapping[str, str],
        whole: Sequence[WayResult],
        *,
        is_original: bool | None,
    ) -> None:
        self.is_original = is_original
        self.subject, self.failed, self.given = subject, failed, given
        self.names = {check.name for check in failed}
        self.judged = [result for result in whole if result.way.judged]
        self.original = given.get("raw") or given.get("preserved")
        self.again = ["attach", self.original or "RAW", "--stats", given.get("stats", "FILE"), "-o", subject]

    def causes(self) -> Iterator[Cause]:
        """Yield the causes, by stage."""
        groups: dict[tuple[Stage, str], list[Check]] = {}
        for check in sorted(self.failed, key=_rank):
            stage = self._stage(check)
            groups.setdefault((stage, check.name if stage == "program" else ""), []).append(check)
        for stage, name in sorted(groups, key=lambda key: _STAGES.index(key[0])):
            yield self._cause(stage, groups[stage, name])

    def _stage(self, check: Check) -> Stage:
        """Return where the fault lies that made a check fail, by what else failed."""
        kind, part, way = check.kind, check.subject.partition("/")[0], check.way
        of_way = [other for other in self.failed if other.way == way]
        if "program" in check.details:
            return "program"
        if "kit" in self.given:
            return "model" if kind in ("kit", "raw") else "tail"
        if kind == "run" and check.fix is not None:  # its original does not run there either
            return "runtime"
        if kind in ("run", "batch"):
            stuck = any(other.kind == "tail" and not other.details.get("count") for other in of_way)
            return "tail" if stuck or "outputs" in self.names else "runtime"
        if kind in ("raw", "torch"):
            if f"{part}/tapped/{check.output}/{way}" in self.names:
                return "tail"
            if any(other.kind == "transform" for other in of_way):
                return "step"
        if kind == "torch":
            of_raw = [other.output for other in of_way if other.subject.startswith("whole/raw/")]
            if check.output not in _RAW:
                return "model" if check.output in of_raw else "export"
            # Is the attached file as the PyTorch model, and the raw file neither?
            agrees = not any(other.kind == "torch" and other.output not in _RAW for other in of_way)
            return "model" if of_raw and agrees else "export"
        return _ABOUT.get(kind, "tail")

    def _cause(self, stage: Stage, group: Sequence[Check]) -> Cause:
        """Return the cause of some failures, the one that says most first."""
        lead, what, command = group[0], _found(group), self.again
        match stage:
            case _ if "kit" in self.given:
                title, fix = _ELSEWHERE[stage]
                command = []
            case "tail":
                is_gone = "options" in lead.details and lead.kind == "record"
                by = self.given.get("stats", "its record")
                title = "has no record to be judged by" if is_gone else f"does not decide as {by} says"
                fix, command = self._mended_tail(group)
            case "step":
                title = "does not compute its custom steps as PyTorch does"
                fix = "attach again; a class of your own has to compute in its graph what it computes in PyTorch"
            case "runtime":
                title = "does not run where its original does"
                fix = "attach to the original again; convert and edit it without fixing an axis"
                if lead.fix is not None:
                    where = "on what it was fed" if lead.way in _USUAL_WAYS else f"in {lead.way}"
                    title, fix, command = f"does not run {where}", lead.fix, []
            case "model":
                title, what, fix, command = self._of_model(group)
            case "export":
                torch, name = self.given.get("torch", "the PyTorch model"), self.original or "the exported model"
                title = f"does not decide as {torch}"
                what = f"{name} is not what {torch} computes: {self._difference(stage, group)[1]}"
                fix = f"export {torch} again, or name the one that was exported: {_USUAL}"
                command = ["export", torch, "--input", "SHAPE", *self.again[2:4], "-o", "FOLDER"]
                command = command if "torch" in self.given else []
            case _:
                title, fix, command = f"does not fit {lead.details['program']}", lead.fix or "", []
        return Cause(
            stage=stage,
            title=title,
            what=what,
            fix=fix,
            command=shlex.join(["postproc-export", *command]) if command else None,
            worst=self._worst(stage, group),
            checks=tuple(dict.fromkeys(check.name for check in group)),
        )

    def _mended_tail(self, group: Sequence[Check]) -> tuple[str, list[str]]:
        """Return what mends a tail, in words and as a command."""
        told = [check.details["options"] for check in group if "options" in check.details]
        found = {name: value for each in told for name, value in each.items()} if all(told) else {}
        options = [word for name, value in found.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        if options:
            words = f"say what it was attached with: {shlex.join(options)}"
            return words, ["check", self.subject, *self._fed("stats"), *options, *self._fed()]
        if "options" in group[0].details:
            stats = self.given.get("stats", "those that were given")
            return f"give the statistics that it was attached with, or attach to the original with {stats}", self.again
        if group[0].fix and not any(check.kind == "record" for check in group):
            return group[0].fix, ["update", self.subject]
        ways = dict.fromkeys(check.way or "" for check in group)
        if _USUAL_WAYS.isdisjoint(ways):  # runtimes that were asked for, and nothing that looks at the file alone
            words = f"see whether it passes without --runtime: then {' and '.join(ways)} computes otherwise"
            return f"{words}, and another version or device of it may not", ["check", self.subject]
        return "attach to the original again: the end of the graph was changed since", self.again

    def _of_model(self, group: Sequence[Check]) -> tuple[str, str, str, list[str]]:
        """Return title, finding and mend where the model in front of the tail is not the original."""
        difference, told = self._difference("model", group)
        name, lead = self.original or "the same file without its tail", group[0]
        title, fix = f"does not decide as {name}", "attach to the original again: the model was changed since"
        if lead.kind == "preserved":
            if len(group) == 1:
                return f"is not {name} with a tail", lead.message, fix, self.again
            return title, f"{lead.message}; {told}", fix, self.again
        # Failed beside PyTorch, on decisions alone: the original's raw values are PyTorch's, and it is no other model.
        outputs = {check.output for check in self.failed if check.kind == "torch"}
        is_of_torch = bool(outputs) and outputs.isdisjoint(_RAW)
        is_like = self.is_original is None and (is_of_torch or difference <= _OTHER_MODEL)
        if self.original is None or self.is_original or is_like:
            return title, told, fix, self.again
        fix = f"give the file that {self.subject} was made of; if {name} is that file, attach to it again"
        told = f"{name} is another model than the one in front of the tail: {told}"
        return title, told, fix, ["check", self.subject, "--raw", "RAW", *self._fed()]

    def _fed(self, *names: str) -> list[str]:
        known = (name for name in names or ("images", "inputs", "torch") if name in self.given)
        return [word for name in known for word in (f"--{name}", self.given[name])]

    def _difference(self, stage: Stage, group: Sequence[Check]) -> tuple[float, str]:
        """Return how many times what is allowed raw values differ by; and in words by how much, and what flips."""
        group = [check for check in group if check.subject.startswith("whole/")] or group
        found = [check.details for check in group if check.output in _RAW and check.details.get("allowed")]
        times = max((each["largest_error"] / each["allowed"] for each in found), default=0.0)
        largest = max((each["largest_error"] for each in found), default=0.0)
        traces = [pair for each in self.judged for pair in each.stages if pair[0] in _CHAIN[stage]]
        shares = [trace.errors[name].largest / trace.span for name, trace in traces]
        told = [f"raw values differ by up to {largest:.2g}"] if largest else []
        told += [f"{max(shares):.2g} of the span"] if largest and shares else []
        for level in LEVELS:
            labels = [check.details for check in group if check.output == LABELS[level]]
            most = max(labels, key=lambda found: int(found.get("flipped", 0)), default={})
            if most.get("flipped"):
                told.append(f"{most['flipped']:,} of {most['count']:,} {_NOUNS[level]} flip")
        return times, ", ".join(told) or _found(group)

    def _worst(self, stage: Stage, group: Sequence[Check]) -> str | None:
        """Return the flip farthest from the boundary, on an image where there is one; else the largest error."""
        traces, stages = [trace for each in self.judged for trace in each.levels.values()], _CHAIN.get(stage, ())
        flips = [(trace, flip) for trace in traces for flip in trace.flips if flip["stage"] in stages]
        if flips:
            return _flip_line(*max(flips, key=lambda pair: abs(pair[1]["distance"])))
        for trace, name in ((trace, name) for trace in traces for name in stages):
            if name in trace.worst and not trace.errors[name]:
                worst, noun = trace.worst[name], "score" if name == TAIL else "raw value"
                change = f"{worst['before']:.9g} became {worst['after']:.9g} at {list(worst['index'])}"
                return f"{_sample(worst)}{noun} {change}"
        compared = [check for check in group if check.details.get("count")]
        compared.sort(key=lambda check: "flips" not in check.details)
        return next((f"{check.output}: {check.message}" for check in compared), None)


# Where outputs of another machine are judged: what that means, and what to do there.
_ELSEWHERE: Final[Mapping[Stage, tuple[str, str]]] = {
    "tail": (
        "were not computed as the tail of the kit says",
        "run the tail there in float32, unchanged: no lower precision, no rounded constants, no flushed numbers",
    ),
    "model": (
        "are of other raw values than those of the kit",
        "look there at precision, weights and inputs; or calibrate on what is deployed",
    ),
}
_USUAL: Final = "the usual reasons are channel order, scale, mean and std, size, and other weights"


def _rank(check: Check) -> int:
    return _LEADING.index(check.kind) if check.kind in _LEADING else len(_LEADING)


def _found(group: Sequence[Check]) -> str:
    """Return what the first failure says, and which others of its kind say the like."""
    lead = group[0]
    names = list(dict.fromkeys(check.output for check in group if check.kind == lead.kind and "/" in check.subject))
    where = "" if not names else f"{names[0]} in {lead.way}: " if lead.way else f"{names[0]}: "
    others = f"; the like in {', '.join(names[1:])}" if names[1:] else ""
    return f"{where}{shorten(lead.message, _LONGEST, placeholder=' ...')}{others}"


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
    found = f"{_how(result)}: {_decided(result)}"
    # A converter that rounds weights may round the constants of the tail, too.
    tails = (trace.errors[stage].largest / trace.span for stage, trace in result.stages if stage == TAIL)
    largest = max(tails, default=0.0)
    if result.way.weights != "stored" and largest > _ROUNDING:
        found += f"; constants of the tail were rounded, too, which moves its scores by up to {largest:.1e}"
    return f"{found}; shown, not judged" if result.flipped and not result.way.judged else found


def _how(result: WayResult) -> str:
    if result.way.weights == "fp16":
        return f"{result.way.label} at {result.precision}, weights rounded to float16"
    if result.way.weights == "int8":
        return f"{result.way.label} quantised, else at {result.precision}"
    return (
        f"{result.way.label} at {result.precision}{', the default here' if result.way.precision == 'default' else ''}"
    )


def advice(result: WayResult) -> str | None:
    """Return what keeps another precision from moving decisions; None where it moved none, or it is float32."""
    is_exact = result.way.weights == "stored" and result.precision == "float32"
    return None if not result.moved or is_exact else _ADVICE[result.way.weights]


def worst_flips(result: WayResult) -> Iterator[str]:
    """Yield the flips farthest from the boundary, a line each, and how many more there are."""
    for trace in result.outcomes:
        yield from (f"{_flip_line(trace, flip)}; by {flip['stage']}" for flip in trace.flips[:SHOWN_FLIPS])
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
            parts.append(f"{share(trace, trace.decided.flipped)}{farthest}")
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
            f"{share(trace, count)} {'lies' if count == 1 else 'lie'} within {reached:.1e} of the boundary"
            for trace, reached, count in near
        )
    nouns = " and ".join(f"no {_ONE[trace.level]} within {reached:.1e}" for trace, reached, _ in moved)
    return f"{nouns} of the boundary, the largest error"


def _flip_line(trace: LevelTrace, flip: Flip) -> str:
    where = f"{_sample(flip)}{_ONE[trace.level]}, {describe_flip(flip)}"
    return f"{where}, then {flip['raw_at_the_end']:.9g}"


def _sample(found: Mapping[str, Any]) -> str:
    return "" if found["sample"] is None else f"{found['sample']}: "


def share(trace: LevelTrace, part: int) -> str:
    """Return how many of the decisions of a level, such as ``"3 of 128 mask pixels"``."""
    return f"{part:,} of {trace.decided.count:,} {_NOUNS[trace.level]}"
