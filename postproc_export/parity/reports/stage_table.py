"""The stages as a table: for the terminal, where it fits into 80 columns, and in Markdown."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from postproc_export.parity.reports.stage_results import TORCH_ATTACHED, TORCH_RAW, StageResult, WayResult
from postproc_export.stats import Level

if TYPE_CHECKING:
    from rich.table import Table

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
