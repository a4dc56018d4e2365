"""Decisions that are adjusted at run time: the inputs for it, their defaults, and how exactly a graph computes them.

docs/definition.md section 4 defines it, docs/runtime_sensitivity.md shows it in use.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from postproc_export.boundary import decision_boundary
from postproc_export.errors import MetadataError
from postproc_export.float32 import HostDtype, shortest
from postproc_export.stats import LEVELS, CalibrationStats, Level, LevelStats
from postproc_export.tail_options import TailOptions

Adjusted: TypeAlias = Literal["sensitivity", "boundary"]

LARGEST_SUM: Final = 2.0**127
"""|threshold| + span has to stay below it, so that no step of the graph overflows."""


@dataclass(frozen=True, slots=True)
class AdjustableInput:
    """An input of a model that need not be given.

    Parameters
    ----------
    name
        Of the input in ONNX, of the variable or parameter in an IR.
    level
        The level that it decides about.
    what
        What it is: the sensitivity, or the boundary itself in raw units.
    default
        float32: what counts where it is not given.
    """

    name: str
    level: Level
    what: Adjusted
    default: float

    def describe(self) -> str:
        """Return one phrase: the name and the default."""
        default = self.default if self.default in (float("inf"), float("-inf")) else shortest(self.default)
        return f"{self.name} (default {default})"


def input_name(level: Level, what: Adjusted) -> str:
    """Return what the input for a level is called."""
    return f"{level}_{what}"


INPUT_NAMES: Final = frozenset(input_name(level, what) for level in LEVELS for what in get_args(Adjusted))
"""What the inputs of any tail may be called."""


def adjustable_inputs(
    stats: CalibrationStats, options: TailOptions, levels: Mapping[Level, HostDtype]
) -> Iterator[AdjustableInput]:
    """Yield the inputs of a tail.

    Parameters
    ----------
    stats, options
        What the tail decides by.
    levels
        The levels that it decides about, each with the type that its raw values were declared in.

    Raises
    ------
    MetadataError
        If a boundary is not legal, or the graph could overflow on the way to it.
    """
    if options.adjustable == "nothing" or not options.enable_thresholding:
        return
    for level, dtype in levels.items():
        of_level = stats.level(level)
        assert of_level is not None, "a level with labels is calibrated"
        if options.adjustable == "sensitivity":
            _check_size(level, of_level)
            default = options.sensitivity(level)
        else:
            default = attached_boundary(of_level, options, level, dtype)
        yield AdjustableInput(input_name(level, options.adjustable), level, options.adjustable, default)


def attached_boundary(stats: LevelStats, options: TailOptions, level: Level, dtype: HostDtype) -> float:
    """Return the boundary of a level at the sensitivity that was attached, as the graph compares with it."""
    sensitivity = options.sensitivity(level)
    return decision_boundary(stats, sensitivity=sensitivity, comparison=options.comparison, dtype=dtype)


def adjusting_constants(stats: LevelStats, options: TailOptions, level: Level, dtype: HostDtype) -> Mapping[str, float]:
    """Return the constants of the computed boundary: `catalog.adjusted_boundary`'s scalars, float32 values."""
    assert stats.threshold is not None, "a level with labels has a threshold"
    return {
        "threshold": stats.threshold,
        "span": stats.span,
        "attached": options.sensitivity(level),
        "boundary": attached_boundary(stats, options, level, dtype),
    }


def adjusted_error(stats: LevelStats) -> float:
    """Return how far from the boundary a decision may differ from the exact one, in raw units.

    Notes
    -----
    With T the threshold, R = max - min, r its float32 and u = 2^-24, the exact bound is B = T + (1/2 - a) R. The graph
    rounds 1/2 - a (at most u/4 of r, since that is at most 1/2), the product (u/2 of r), the sum (u of |T| + r/2), and
    takes r for R (u/2 of r): u (|T| + 7/4 r). A runtime may fold it to (T + r/2) - a r, which rounds the constant
    (u of |T| + r/2), the product (u of r), the sum (u of |T| + r/2), and takes r for R: u (2 |T| + 5/2 r). The boundary
    is the next float32 from B on, at most 2 u (|T| + r/2) above it. Together below u (4 |T| + 4 r).
    """
    assert stats.threshold is not None, "a level with labels has a threshold"
    return float(2.0**-22 * (abs(stats.threshold) + stats.span))


def _check_size(level: Level, stats: LevelStats) -> None:
    assert stats.threshold is not None, "a level with labels has a threshold"
    if abs(stats.threshold) + stats.span >= LARGEST_SUM:
        raise MetadataError(
            f"the {level} level's boundary could overflow when it is computed at run time",
            found=f"threshold {stats.threshold:.3g}, span {stats.span:.3g}",
            needed="|threshold| + span below 2^127",
            fix="--runtime-boundary, which computes nothing, or rescale the raw outputs of the model",
        )
