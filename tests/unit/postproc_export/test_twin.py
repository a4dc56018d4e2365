"""`NumpyPostProcessor` is `PostProcessor` bit for bit: every option, form and type, and every float32 there is."""

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from eager_outputs import BOTH, IMAGE
from raw_values import SPECIAL

from postproc_export.eager import PostProcessor, on_arrays
from postproc_export.errors import MetadataError, UnsupportedModelError, UsageError
from postproc_export.options import SWITCHES
from postproc_export.runtimes import Array
from postproc_export.stats import CalibrationStats, LevelStats
from postproc_export.twin import NumpyPostProcessor

NAMES = ("pred_score", "pred_label", "anomaly_map", "pred_mask")
STATS = {
    "both": BOTH,
    "image": CalibrationStats(image=IMAGE),
    "pixel": CalibrationStats(pixel=LevelStats(threshold=-0.1, min=-2.0, max=0.3)),
    "borrowed": CalibrationStats(image=IMAGE, pixel=LevelStats(threshold=None, min=-1e-20, max=2e30)),
}
TYPES = {name: np.dtype(name) for name in ("float32", "float16", "float64")} | {
    "bfloat16": np.dtype(ml_dtypes.bfloat16)
}
SHAPES: tuple[tuple[tuple[int, ...] | None, tuple[int, ...] | None], ...] = (
    *(((), (1, 3, 4)), ((1,), (1, 1, 3, 4)), ((5, 1), (5, 3, 4)), ((5,), (5, 1, 3, 4))),
    *(((7,), None), ((), None), (None, (5, 3, 4)), (None, (5, 1, 3, 4)), ((0,), (0, 1, 3, 4)), (None, (0, 3, 4))),
)


def drawn(shape: tuple[int, ...] | None, dtype: str, seed: int) -> Array | None:
    """Draw values of every size, with those that are special among them."""
    if shape is None:
        return None
    random = np.random.default_rng(seed)
    values = random.normal(0.5, 3.0, shape)
    special = random.choice(list(SPECIAL.values()), shape)
    with np.errstate(all="ignore"):
        return np.asarray(np.where(random.random(shape) < 0.2, special, values)).astype(TYPES[dtype])


def assert_same_bits(given: tuple[Array | None, Array | None], stats: CalibrationStats, **options: Any) -> None:
    """Compare all that both return, NaN by its bits as well."""
    made = dict(zip(NAMES, on_arrays(PostProcessor(stats, **options), *given), strict=True))
    found = NumpyPostProcessor(stats=stats, **options)(*given)
    assert found.keys() == {name for name, values in made.items() if values is not None}
    for name, values in found.items():
        wanted = made[name]
        assert isinstance(values, np.ndarray)
        assert wanted is not None
        assert (values.dtype, values.shape) == (wanted.dtype, wanted.shape), name
        assert values.tobytes() == wanted.tobytes(), (name, values, wanted)


@pytest.mark.parametrize("stats", STATS)
@pytest.mark.parametrize("dtype", TYPES)
def test_every_form_and_type_has_the_bits_of_torch(dtype: str, stats: str) -> None:
    """Scores, maps, labels and masks of each shape that there is, from values of each type."""
    for seed, (score, maps) in enumerate(SHAPES):
        given = (drawn(score, dtype, seed), drawn(maps, dtype, seed + 100))
        assert_same_bits(given, STATS[stats], enable_threshold_matching=stats == "borrowed")


@pytest.mark.parametrize("switches", list(itertools.product((False, True), repeat=len(SWITCHES))), ids=str)
def test_every_option_has_the_bits_of_torch(switches: tuple[bool, ...]) -> None:
    """All switches, with both rules and several sensitivities."""
    options = dict(zip(SWITCHES, switches, strict=True))
    for number, comparison in enumerate(("ge", "gt")):
        given = (drawn((5,), "float32", number), drawn((5, 1, 3, 4), "float32", number + 10))
        for sensitivity in (0.0, 0.3, 1.0):
            decided = {"image_sensitivity": sensitivity, "pixel_sensitivity": 1 - sensitivity}
            assert_same_bits(given, BOTH, comparison=comparison, **decided, **options)


def test_other_statistics_have_other_bits() -> None:
    """The comparison sees one ulp of a threshold."""
    above = float(np.nextafter(np.float32(IMAGE.threshold), np.float32(9)))
    values = np.array([IMAGE.threshold], np.float32)
    moved = NumpyPostProcessor(stats=CalibrationStats(image=LevelStats(threshold=above, min=0.0, max=2.0)))
    made = on_arrays(PostProcessor(CalibrationStats(image=IMAGE)), values, None)
    found = moved(values)
    assert made[1] is not None
    assert found["pred_label"].tolist() != made[1].tolist()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ((None, None), UsageError, "nothing to post-process"),
        ((np.zeros((2, 3), np.float32), None), UnsupportedModelError, "pred_score"),
        ((np.zeros(2, np.float32), np.zeros((3, 4, 5), np.float32)), UnsupportedModelError, "2 images"),
    ],
)
def test_what_torch_refuses_is_refused(given: Any, error: type[Exception], message: str) -> None:
    """The same shapes with the same words."""
    with pytest.raises(error, match=message):
        NumpyPostProcessor(stats=BOTH)(*given)
    with pytest.raises(error, match=message):
        on_arrays(PostProcessor(BOTH), *given)


def test_settings_that_are_not_legal_are_refused() -> None:
    """As the module does."""
    with pytest.raises(MetadataError, match="image_sensitivity"):
        NumpyPostProcessor(stats=BOTH, image_sensitivity=1.5)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["image", "pixel"])
def test_every_float32_has_the_bits_of_torch(level: str) -> None:
    """All 2^32 values of each level, NaN with every payload among them."""
    module, twin = PostProcessor(BOTH), NumpyPostProcessor(stats=BOTH)
    for start in range(0, 1 << 32, 1 << 24):
        values = np.arange(start, start + (1 << 24), dtype=np.uint32).view(np.float32)
        given = (values, None) if level == "image" else (None, values.reshape(-1, 1, 1))
        found = twin(*given)
        for name, wanted in zip(NAMES, on_arrays(module, *given), strict=True):
            assert wanted is None or np.array_equal(found[name].view(np.uint8), wanted.view(np.uint8)), start
