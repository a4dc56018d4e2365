"""What the stages found, as checks: where flips came in, and whether the export computes what PyTorch does."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from postproc_export.parity.reports.report import Check
from postproc_export.parity.reports.stage_results import TORCH_ATTACHED, TORCH_RAW, WayResult
from postproc_export.parity.reports.tally import details_of
from postproc_export.parity.stages.readings import LABELS

_NAMES = {"image": "raw_score", "pixel": "raw_map"}
_HINT = "the usual reasons are channel order, scale, mean and std, size, and other weights"


def with_origin(checks: Iterable[Check], result: WayResult | None) -> Iterator[Check]:
    """Add to each check of labels which stage brought its flips in."""
    outcomes = {} if result is None else {LABELS[outcome.level]: outcome for outcome in result.outcomes}
    for check in checks:
        outcome = outcomes.get(check.subject.rpartition("/")[2])
        if outcome is None or not outcome.flipped:
            yield check
            continue
        stages = ", ".join(f"{stage} {count:,}" for stage, count in outcome.brought_in.items())
        yield replace(
            check,
            message=f"{check.message}; brought in by {stages}",
            details={**check.details, "brought_in": dict(outcome.brought_in)},
        )


def raw_checks(result: WayResult) -> Iterator[Check]:
    """Judge the raw values of the export against those of the PyTorch model, where there is one."""
    for stage in result.stages:
        if stage.stage not in (TORCH_RAW, TORCH_ATTACHED):
            continue
        passed = bool(stage.errors)
        message = stage.errors.describe()
        yield Check(
            name=f"whole/torch/{_NAMES[stage.level]}/{result.way.label}",
            passed=passed,
            message=message if passed else f"{stage.stage}: {message}: {_HINT}",
            brief=stage.errors.brief(),
            way=result.way.label,
            runtime=result.runtime,
            precision=result.precision,
            details={**details_of(stage.errors), "stage": stage.stage},
        )
