"""The tail alone at other sensitivities or boundaries than the attached one, given at run time."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from postproc_export.errors import MetadataError, PostprocError
from postproc_export.parity.checks.tail import fed_by_port
from postproc_export.parity.models.attached_model import AttachedModel
from postproc_export.parity.models.configuration import Configuration
from postproc_export.parity.reference.post_processor import Reference
from postproc_export.parity.reference.tail_cases import Case, tail_cases
from postproc_export.parity.reports.report import Check
from postproc_export.parity.reports.tally import LABELS, Tally
from postproc_export.runtimes import Runner
from postproc_export.stats import Level

COUNT: Final = 5_000
"""Raw values per level and sensitivity at the most: what is adjusted is one number."""

_SENSITIVITIES: Final = (0.0, 0.3, 0.85, 1.0)
_BEYOND: Final = ((-0.5, 0.0), (1.5, 1.0), (math.nan, 1.0))


@dataclass(frozen=True, slots=True)
class Setting:
    """What is given at run time.

    Parameters
    ----------
    given
        The sensitivity, which may lie outside [0, 1] or be NaN.
    meant
        The sensitivity in [0, 1] that it counts as.
    """

    given: float
    meant: float


def check_adjusted(
    attached: AttachedModel, ways: Sequence[Configuration], *, count: int, seed: int, threads: int | None = None
) -> Iterator[Check]:
    """Compare the labels of the tail alone with the reference's at several sensitivities.

    Parameters
    ----------
    attached
        The attached file.
    ways
        The ways to run a tail; those that cannot be adjusted are left out.
    count, seed, threads
        As in `check_tail`.

    Notes
    -----
    Exact at the attached sensitivity, from 1 on, for NaN, and wherever the boundary itself is given; else labels may
    differ within the distance from the boundary that docs/definition.md section 4 states.
    """
    if not attached.tail.adjustable:
        return
    ways = [way for way in ways if way.judged and can_adjust(attached, way)]
    runners: dict[Configuration, Runner] = {}
    for setting in _settings(attached):
        try:
            meant, values = attached.at_sensitivity(setting.meant), _values(attached, setting)
        except MetadataError:  # a boundary that is subnormal: no such file can be attached, and so none is given
            continue
        drift = "adjusted" if _is_computed(attached, setting) else None
        tallies = [Tally(meant, way, drift=drift) for way in ways]
        case = next(iter(tail_cases(meant, count=min(count, COUNT), seed=seed)))
        _run(case, tallies, runners, values, threads=threads)
        for tally in tallies:
            checks = tally.checks(f"adjusted/{setting.given:g}")
            yield from (check for check in checks if check.subject.rpartition("/")[2] in LABELS)


def can_adjust(attached: AttachedModel, way: Configuration) -> bool:
    """Whether a way of running keeps the inputs: OpenVINO makes constants of an ONNX model's."""
    return (way.runtime == "openvino") is (attached.file.format == "openvino")


def _settings(attached: AttachedModel) -> Iterator[Setting]:
    options = attached.tail.options
    attached_ones = dict.fromkeys(options.sensitivity(item.level) for item in attached.tail.adjustable)
    for sensitivity in dict.fromkeys((*attached_ones, *_SENSITIVITIES)):
        yield Setting(sensitivity, sensitivity)
    if options.adjustable == "sensitivity":
        yield from (Setting(given, meant) for given, meant in _BEYOND)
    elif options.comparison == "ge":
        yield Setting(math.nan, 1.0)


def _is_computed(attached: AttachedModel, setting: Setting) -> bool:
    """Whether some level's boundary is computed by the graph."""
    options = attached.tail.options
    is_attached = all(options.sensitivity(item.level) == setting.meant for item in attached.tail.adjustable)
    return options.adjustable == "sensitivity" and setting.meant < 1.0 and not is_attached


def _values(attached: AttachedModel, setting: Setting) -> dict[str, float]:
    """Return what is given for each input."""
    return {item.name: _value(attached, item.level, setting) for item in attached.tail.adjustable}


def _value(attached: AttachedModel, level: Level, setting: Setting) -> float:
    if attached.tail.options.adjustable == "sensitivity" or math.isnan(setting.given):
        return setting.given
    return attached.at_sensitivity(setting.meant).tail.boundary(level)


def _run(
    case: Case,
    tallies: Sequence[Tally],
    runners: dict[Configuration, Runner],
    values: dict[str, float],
    *,
    threads: int | None,
) -> None:
    for tally in tallies:
        attached, way = tally.attached, tally.configuration
        reference = Reference(attached)
        try:
            if way not in runners:
                runners[way] = way.open(attached.tail_alone(case.shapes), threads=threads)
            runner = attached.parts_of(runners[way], values)
            tally.ran_on(runner)
            for feeds in case.feeds:
                fed = {attached.file.raw[level].name: array for level, array in feeds.items()}
                actual = runner.run(fed_by_port(runner, fed))
                tally.add(reference.outputs(feeds), actual, feeds, reference)
        except PostprocError as error:
            tally.fail(" ".join(f"{case.name}: {error}".split()))
