"""One sentence per way of running: does it decide as PyTorch, by how much not, and what prevents it."""

from collections.abc import Iterator, Mapping
from typing import Final

from postproc_export.parity.reports.stage_results import TAIL, Baseline, LevelOutcome, WayResult
from postproc_export.stats import Level

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
