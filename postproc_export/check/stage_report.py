"""What the stages found, as numbers and as a table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from postproc_export.check.ways import Configuration
from postproc_export.comparison import Flip, LabelDifference, ScoreDifference
from postproc_export.stats import Level

if TYPE_CHECKING:
    from rich.table import Table


# --- What each stage between the PyTorch model and the attached file did to values and decisions, as results.

Baseline: TypeAlias = Literal["torch", "raw", "attached"]
"""What decided first: the PyTorch model's raw values, the raw file's, or those of the attached file's own body."""

TORCH_RAW: Final = "torch -> raw"
TORCH_ATTACHED: Final = "torch -> attached"
RAW_ATTACHED: Final = "raw -> attached"
TAIL: Final = "tail"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """What one stage did on one level.

    Parameters
    ----------
    stage
        What was compared with what: ``"torch -> raw"``, ``"raw -> attached"``, ``"tail"``, ...
    level
        The level.
    errors
        Absolute differences in raw units; of the tail, those of its scores times the span.
    labels
        Decisions that changed from one side to the other; None where the tail has no labels.
    span
        max - min of the calibration, raw units.
    """

    stage: str
    level: Level
    errors: ScoreDifference
    labels: LabelDifference | None
    span: float

    def to_json(self) -> dict[str, Any]:
        """Return the numbers: errors in raw units and of the span, and the decisions that changed."""
        errors = {"largest": self.errors.largest, "mean": self.errors.mean, "p999": self.errors.quantile}
        numbers: dict[str, Any] = {}
        if self.labels is not None:
            numbers = {name: getattr(self.labels, name) for name in ("flipped", "near", "nearest", "farthest")}
        return {
            "stage": self.stage,
            "level": self.level,
            "count": self.errors.count,
            "error": errors,
            "error_of_span": {key: value / self.span for key, value in errors.items()},
            **numbers,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedFlip:
    """A decision that came out otherwise than at the start of the chain.

    Parameters
    ----------
    flip
        Where (sample, then row and column of a map), which way, and how far the first raw value is from the boundary.
    raw
        The raw value at the end of the chain, raw units.
    stage
        The stage after which it stayed so.
    sample
        What was fed, where it has a name.
    """

    flip: Flip
    raw: float
    stage: str
    sample: str | None = None

    def describe(self) -> str:
        """Return one line."""
        name = "" if self.sample is None else f" ({self.sample})"
        return f"{self.flip.describe()}{name}, then {self.raw:.9g}; by {self.stage}"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        flip = asdict(self.flip)
        first = {key: flip[key] for key in ("index", "expected", "raw", "distance", "ulps")}
        return {**first, "raw_at_the_end": self.raw, "stage": self.stage, "sample": self.sample}


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelOutcome:
    """What the whole chain did to the decisions of one level.

    Parameters
    ----------
    level
        The level.
    count, flipped, near
        Decisions, those that came out otherwise, and those of them that lie within the band around the boundary.
    brought_in
        Of the flipped ones, how many each stage brought in: after it they stayed so.
    flips
        The flipped ones that lie farthest from the boundary, those first.
    boundary, band, span
        Raw units; the band is what another float32 computation of the same values explains.
    largest
        Largest error of a raw value from start to end, raw units.
    within, at_risk
        That error, up to 1 % more, and how many decisions lie at most so far from the boundary.
    nearest, farthest
        The smallest and largest distance of a flipped decision from the boundary, raw units.
    """

    level: Level
    count: int
    flipped: int
    near: int
    brought_in: Mapping[str, int]
    flips: tuple[TracedFlip, ...]
    boundary: float
    band: float
    span: float
    largest: float
    within: float
    at_risk: int
    nearest: float | None = None
    farthest: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        plain = {name: getattr(self, name) for name in _NUMBERS}
        return {**plain, "brought_in": dict(self.brought_in), "flips": [flip.to_json() for flip in self.flips]}


_NUMBERS: Final = (
    *("level", "count", "flipped", "near", "nearest", "farthest"),
    *("boundary", "band", "span", "largest", "within", "at_risk"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WayResult:
    """What one way to run the whole model came to.

    Parameters
    ----------
    way
        How it was run.
    runtime, precision
        What it ran on, and what that says it computes in.
    baseline
        What decided first.
    stages
        Every stage and level, in order.
    outcomes
        Each level that has labels.
    """

    way: Configuration
    runtime: str
    precision: str
    baseline: Baseline
    stages: tuple[StageResult, ...]
    outcomes: tuple[LevelOutcome, ...]

    @property
    def flipped(self) -> int:
        """How many decisions came out otherwise."""
        return sum(outcome.flipped for outcome in self.outcomes)

    @property
    def moved(self) -> int:
        """How many of them something behind the export brought in: precision, weights, compilation, the tail."""
        counts = (
            outcome.brought_in.get(stage, 0) for outcome in self.outcomes for stage in (TORCH_RAW, TORCH_ATTACHED)
        )
        return self.flipped - sum(counts)

    @property
    def beyond(self) -> int:
        """How many of them lie outside the band around the boundary."""
        return sum(outcome.flipped - outcome.near for outcome in self.outcomes)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "way": self.way.label,
            "runtime": self.runtime,
            "precision": self.precision,
            "weights": self.way.weights,
            "judged": self.way.judged,
            "baseline": self.baseline,
            "flipped": self.flipped,
            "flipped_beyond_band": self.beyond,
            "levels": [outcome.to_json() for outcome in self.outcomes],
            "stages": [stage.to_json() for stage in self.stages],
        }


# --- The stages as a table: for the terminal, where it fits into 80 columns, and in Markdown.

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


def cells(stage: StageResult) -> tuple[str, ...]:
    """Return the cells of one row."""
    errors, span, labels = stage.errors, stage.span, stage.labels
    return (
        stage.stage,
        _LEVELS[stage.level],
        f"{errors.largest:.1e}",
        f"{errors.largest / span:.1e}",
        f"{errors.quantile / span:.1e}",
        f"{errors.mean / span:.1e}",
        "" if labels is None else f"{labels.flipped:,} / {labels.count:,}",
    )


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
        for stage in _own(result):
            first, *others = cells(stage)
            style = "red" if stage.labels is not None and stage.labels.flipped else ""
            table.add_row(Text(f" {first}"), *(Text(cell, style=style) for cell in others))
    return table


def markdown_rows(results: Sequence[WayResult]) -> Iterator[str]:
    """Yield the lines of the table in Markdown."""
    yield f"| way | {' | '.join(HEADINGS)} |"
    yield f"| --- | --- | --- |{' ---: |' * (len(HEADINGS) - 2)}"
    for result in results:
        for stage in _own(result):
            yield f"| {result.way.label} | {' | '.join(cells(stage))} |"


def _own(result: WayResult) -> Iterator[StageResult]:
    """Yield the stages of one way; another precision or weights share the export's with the way at float32."""
    for stage in result.stages:
        if result.way.judged or stage.stage not in (TORCH_RAW, TORCH_ATTACHED):
            yield stage
