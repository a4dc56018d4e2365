"""Raw values, levels and statistics for all tests: the adversarial ones in a table, the others as strategies.

What hypothesis draws is legal by construction, and none of it is filtered.
"""

from typing import Final, Literal

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from postproc_export.float32 import LARGEST, SMALLEST_NORMAL, is_subnormal, to_float32
from postproc_export.stats import MAX_SPAN, MIN_SPAN, CalibrationStats, LevelStats

SPECIAL: Final[dict[str, float]] = {
    "nan": float("nan"),
    "inf": float("inf"),
    "minus-inf": float("-inf"),
    "zero": 0.0,
    "minus-zero": -0.0,
    "smallest-subnormal": 2.0**-149,
    "minus-smallest-subnormal": -(2.0**-149),
    "smallest-normal": SMALLEST_NORMAL,
    "minus-smallest-normal": -SMALLEST_NORMAL,
    "largest": LARGEST,
    "minus-largest": -LARGEST,
}


def around(value: float, *, steps: int = 8) -> NDArray[np.float32]:
    """Return a float32 and its neighbours, `steps` to either side, in rising order; both zeros count as one."""
    bits = int(np.float32(abs(value)).view(np.uint32))
    rank = bits if value > 0 else -bits
    top = 0x7F800000  # +inf
    ranks = np.clip(np.arange(rank - steps, rank + steps + 1), -top, top)
    return np.where(ranks < 0, np.float32(-1), np.float32(1)) * np.abs(ranks).astype(np.uint32).view(np.float32)


def adversarial(level: LevelStats, *boundaries: float) -> NDArray[np.float32]:
    """Return the special values, and the neighbours of min, max, the threshold and the boundaries."""
    marks = [level.min, level.max, *([] if level.threshold is None else [level.threshold]), *boundaries]
    return np.concatenate([np.float32(list(SPECIAL.values())), *(around(mark) for mark in marks)])


finite32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
any32 = st.floats(width=32)

sensitivities = st.one_of(
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(0, 100).map(lambda percent: percent / 100),
    st.floats(0.0, 1.0, width=32),
)
comparisons: st.SearchStrategy[Literal["ge", "gt"]] = st.sampled_from(["ge", "gt"])

_mantissas = st.floats(1.0, 2.0, width=32, exclude_max=True)
_spans = st.builds(
    lambda mantissa, exponent: min(mantissa * 2.0**exponent, MAX_SPAN),
    _mantissas,
    st.one_of(st.integers(-10, 10), st.integers(-75, 126), st.sampled_from([-75, 126])),
)
_multiples = st.one_of(
    st.sampled_from([0.0, -0.5, -1.0, 1.0]),
    st.floats(-2.0, 2.0),
    st.builds(lambda sign, exponent: sign * 10.0**exponent, st.sampled_from([-1, 1]), st.floats(-3.0, 5.0)),
)


def _normal(value: float) -> float:
    rounded = to_float32(np.clip(value, -3e38, 3e38))
    return 0.0 if is_subnormal(rounded) else rounded


@st.composite
def level_stats(draw: st.DrawFn, *, min_ratio: float = 0.0, max_ratio: float = 1e9) -> LevelStats:
    """Draw the statistics of one level: spans of every legal size, either sign, the threshold inside or outside.

    `min_ratio` and `max_ratio` limit |threshold| / span, about.
    """
    span = draw(_spans)
    low = _normal(draw(_multiples) * span)
    high = to_float32(np.clip(low + span, -3e38, 3e38))
    with np.errstate(over="ignore"):
        rounded_span = float(np.float32(high) - np.float32(low))
    if not low < high or not MIN_SPAN <= rounded_span <= MAX_SPAN:  # lost to rounding: a range that is not
        low, high = 0.0, span
    kinds = [low, high, low + draw(st.floats(0.0, 1.0)) * span, draw(_multiples) * span, draw(finite32)]
    threshold = _normal(draw(st.sampled_from(kinds)))
    level = LevelStats(threshold=threshold, min=low, max=high)
    if min_ratio <= abs(threshold) / level.span <= max_ratio:
        return level
    ratio = draw(st.floats(min_ratio, min(max_ratio, 2 * min_ratio + 1)))
    return LevelStats(threshold=_normal(ratio * level.span), min=low, max=high)


@st.composite
def stats(draw: st.DrawFn) -> CalibrationStats:
    """Draw statistics of the image level, the pixel level or both."""
    which = draw(st.sampled_from(["image", "pixel", "both"]))
    return CalibrationStats(
        image=None if which == "pixel" else draw(level_stats()), pixel=None if which == "image" else draw(level_stats())
    )
