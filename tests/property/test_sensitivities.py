"""Sensitivities that are chosen for a rate, and the table of them: what is told is what NumPy counts."""

import re
import warnings
from fractions import Fraction

import numpy as np
import pytest
from calibration_cases import KINDS, values_of
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from postproc_export import CalibrationStats, Calibrator, LevelStats
from postproc_export.curve import Counts, choose_sensitivities, counts_at, sensitivity_table
from postproc_export.errors import MetadataError, UsageError
from postproc_export.float32 import rank_of, ranked, to_float32
from postproc_export.options import TailOptions
from postproc_export.policies import Policy
from postproc_export.stats import Comparison, decision_boundary, least_sensitivity

GRID = np.unique(np.concatenate([np.linspace(0, 1, 201), 0.5 + np.linspace(-1, 1, 101) ** 5 / 2]).astype(np.float32))
COMPARISONS = st.sampled_from(["ge", "gt"])
RATES = st.sampled_from(["0", "0.001", "0.02", "0.3", "0.5", "0.75", "0.9", "0.99", "1"])


def calibrated(values: np.ndarray, truth: np.ndarray, **options: str) -> LevelStats:
    """Return the statistics of the image level."""
    with Calibrator(resamples=0, **options) as calibrator:
        calibrator.update(values, truth)
        stats = calibrator.compute().image
    assert stats is not None
    return stats


def counted(
    stats: LevelStats, values: np.ndarray, truth: np.ndarray, sensitivity: float, rule: Comparison
) -> tuple[int, int]:
    """Return true and false positives at a sensitivity, one value after the other."""
    called = ~(values < np.float32(decision_boundary(stats, sensitivity=sensitivity, comparison=rule)))
    return int((called & truth).sum()), int((called & ~truth).sum())


def reached(kind: str, tp: int, fp: int, truth: np.ndarray) -> Fraction | None:
    """Return a rate, exact; None over nothing."""
    whole = {"recall": int(truth.sum()), "precision": tp + fp, "fpr": int((~truth).sum())}[kind]
    return Fraction(fp if kind == "fpr" else tp, whole) if whole else None


def keeps(kind: str, rate: Fraction | None, asked: Fraction) -> bool:
    """Whether a rate is good enough."""
    return rate is not None and (rate <= asked if kind == "fpr" else rate >= asked)


def choose(stats: LevelStats, text: str, rule: Comparison) -> tuple[float, str]:
    """Return the sensitivity of the image level and the note on it."""
    targets, options = {"image": Policy.parse(text)}, TailOptions(comparison=rule)
    chosen, (note,) = choose_sensitivities(targets, CalibrationStats(image=stats), options)
    return chosen["image_sensitivity"], note


def attempted(stats: LevelStats, text: str, rule: Comparison) -> tuple[float, str] | str:
    """Return the same, or the message that refuses it."""
    try:
        return choose(stats, text, rule)
    except UsageError as error:
        return str(error)


def told(note: str) -> tuple[int, int, int, int]:
    """Return the fewest and most true positives, and the same of false ones, as a note has them."""
    found = re.search(r": (\d+)(?: to (\d+))? of \d+ anomalous and (\d+)(?: to (\d+))? of \d+ normal ones", note)
    assert found is not None, note
    tp, most_tp, fp, most_fp = found.groups()
    return int(tp), int(most_tp or tp), int(fp), int(most_fp or fp)


cases = st.tuples(
    st.sampled_from([kind for kind in KINDS if kind not in ("subnormal", "zeros")]),
    st.integers(0, 10**6),
    st.integers(3, 90),
)


@settings(max_examples=50)
@given(case=cases, rule=COMPARISONS, kind=st.sampled_from(["recall", "precision", "fpr"]), asked=RATES)
def test_a_chosen_sensitivity_has_the_counts_that_are_told(
    case: tuple[str, int, int], rule: Comparison, kind: str, asked: str
) -> None:
    """The target is kept, and no sensitivity of a fine grid keeps it with fewer alarms, or finds more; or none does."""
    values, truth = values_of(*case)
    values = values + np.float32(0)
    stats = calibrated(values, truth)
    ratio = Fraction(asked)
    found = {float(each): counted(stats, values, truth, float(each), rule) for each in GRID if each < 1 or rule == "gt"}
    good = {each: at for each, at in found.items() if keeps(kind, reached(kind, *at, truth), ratio)}
    outcome = attempted(stats, f"{kind}={asked}", rule)
    if isinstance(outcome, str):
        assert not good
        best = re.search(rf"{kind} \S+ \((\d+) of (\d+)\) at best, at sensitivity (\S+)\n", outcome)
        if best is None:  # nothing is called anomalous
            assert all(at == (0, 0) for at in found.values())
            return
        part, whole, sensitivity = int(best[1]), int(best[2]), float(best[3])
        rate = reached(kind, *counted(stats, values, truth, sensitivity, rule), truth)
        assert rate == Fraction(part, whole)
        rates = [each for at in found.values() if (each := reached(kind, *at, truth)) is not None]
        assert rate <= min(rates) if kind == "fpr" else rate >= max(rates)
        return
    sensitivity, note = outcome
    tp, fp = counted(stats, values, truth, sensitivity, rule)
    assert told(note) == (tp, tp, fp, fp)
    assert keeps(kind, reached(kind, tp, fp, truth), ratio)
    if kind == "recall":  # nothing less sensitive keeps it
        assert all(at == (tp, fp) for each, at in good.items() if each < sensitivity)
    else:  # nothing more sensitive does
        assert all(at == (tp, fp) for each, at in good.items() if each > sensitivity)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    rule=COMPARISONS,
    kind=st.sampled_from(["recall", "precision", "fpr"]),
    asked=RATES,
    offset=st.sampled_from([0.0, 1000.0]),
)
def test_a_thinned_curve_says_between_which_counts_the_truth_lies(
    seed: int, rule: Comparison, kind: str, asked: str, offset: float
) -> None:
    """Of 4,000 values the curve has every other one: the target is kept all the same, and the counts are within."""
    rng = np.random.default_rng(seed)
    truth = rng.random(4000) < 0.3
    values = (offset + rng.normal(size=4000) + 2 * truth).astype(np.float32)
    stats = calibrated(values, truth)
    outcome = attempted(stats, f"{kind}={asked}", rule)
    if isinstance(outcome, str):
        assert " at best, at sensitivity " in outcome
        return
    sensitivity, note = outcome
    tp, fp = counted(stats, values, truth, sensitivity, rule)
    fewest_tp, most_tp, fewest_fp, most_fp = told(note)
    assert fewest_tp <= tp <= most_tp
    assert fewest_fp <= fp <= most_fp
    assert keeps(kind, reached(kind, tp, fp, truth), Fraction(asked))


@given(case=cases, rule=COMPARISONS, sensitivity=st.floats(0, 1, width=32))
def test_every_row_of_the_table_is_what_numpy_counts(
    case: tuple[str, int, int], rule: Comparison, sensitivity: float
) -> None:
    """A dozen rows at most, 0.5 and the one asked for among them, from what 0 finds to what 1 finds."""
    values, truth = values_of(*case)
    values = values + np.float32(0)
    stats = calibrated(values, truth)
    table = sensitivity_table(stats, comparison=rule, also=[sensitivity])
    assert len(table) <= 12
    assert list(table) == sorted(table)
    assert {0.5, sensitivity} <= set(map(to_float32, table))
    for each, counts in table.items():
        tp, fp = counted(stats, values, truth, each, rule)
        assert (counts.tp, counts.fp) == ((tp, tp), (fp, fp))
    ends = [counted(stats, values, truth, each, rule) for each in (0.0, 1.0)]
    assert [(each.tp[0], each.fp[0]) for each in (next(iter(table.values())), [*table.values()][-1])] == ends
    if len(np.unique(values)) < 9:
        changes = {counted(stats, values, truth, float(each), rule) for each in GRID}
        assert changes <= {(each.tp[0], each.fp[0]) for each in table.values()}


@given(
    threshold=st.floats(-1e3, 1e3, width=32),
    low=st.floats(-1e3, 1e3, width=32),
    span=st.floats(2**-10, 1e3, width=32),
    value=st.floats(-3e3, 3e3, width=32),
    rule=COMPARISONS,
)
def test_the_least_sensitivity_is_where_the_boundary_comes_down_to_a_value(
    threshold: float, low: float, span: float, value: float, rule: Comparison
) -> None:
    """At it the value is anomalous, at the float32 below it is not; where there is none it is so nowhere below 1."""
    stats = LevelStats(threshold=threshold, min=low, max=to_float32(low + span))

    def is_anomalous(sensitivity: float) -> bool:
        try:
            return value + 0.0 >= decision_boundary(stats, sensitivity=sensitivity, comparison=rule)
        except MetadataError:  # the boundary is subnormal
            reject()

    least = least_sensitivity(stats, value, comparison=rule)
    if least is None:
        assert not is_anomalous(1.0 if rule == "gt" else ranked(rank_of(1.0) - 1))
        return
    assert 0 <= least <= 1
    assert is_anomalous(least)
    assert least == 0 or not is_anomalous(ranked(rank_of(least) - 1))


def test_a_policy_that_was_compared_is_reached_exactly_in_any_number_of_values() -> None:
    """The points of the compared policies are on the curve, so that no better one is looked for between others."""
    rng = np.random.default_rng(4)
    truth = rng.random(20_000) < 0.1
    values = (100 + rng.normal(size=20_000) + 2 * truth).astype(np.float32)  # sensitivities are finer than values
    with Calibrator(resamples=0, compare=["recall=0.99"]) as calibrator:
        calibrator.update(values, truth)
        stats = calibrator.compute().image
    assert stats is not None
    (row,) = stats.details["policies"]
    sensitivity, note = choose(stats, "recall=0.99", "ge")
    assert counted(stats, values, truth, sensitivity, "ge") == (row["tp"], row["fp"])
    assert "thinned" not in note
    _, note = choose(stats, "recall=0.98", "ge")
    assert "(the curve is thinned: its next point, which misses, has recall 0.97" in note


def test_a_heavy_tail_is_nothing_and_all_side_by_side() -> None:
    """0.45 finds nothing and 0.51 everything, and the table shows exactly that."""
    values = np.concatenate([1 + np.arange(40) / 400, 1.2 + np.arange(20) / 200, [60.0]]).astype(np.float32)
    truth = np.arange(61) >= 40
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stats = calibrated(values, truth)
    table = sensitivity_table(stats)
    assert {each: (counts.tp[0], counts.fp[0]) for each, counts in table.items() if each in (0.49, 0.5, 0.51)} == {
        0.49: (1, 0),
        0.5: (21, 0),
        0.51: (21, 40),
    }
    assert (min(table), max(table)) == (0.49, 0.51)


def test_a_boundary_that_no_file_can_have_is_no_row() -> None:
    """A subnormal threshold is calibrated and warned of nowhere else: the table leaves 0.5 out, and has the rest."""
    stats = calibrated(np.float32([-1.0, 1e-45, 1.0, 2.0]), np.array([False, True, True, True]))
    assert stats.threshold == np.float32(1e-45)
    assert [each["sensitivity"] for each in stats.details["sensitivities"]] == [0.16, 0.33, 0.67, 0.84]


DAMAGED = [
    {"threshold": [1.0], "tp": [1.5], "fp": [0]},
    {"threshold": [1.0, 0.5], "tp": [1, 2], "fp": [0, 0]},
    {"threshold": [10**400], "tp": [1], "fp": [0]},
    {"threshold": ["1"], "tp": [1], "fp": [0]},
    {"threshold": [1.0], "tp": [1], "fp": []},
    {"threshold": [], "tp": [], "fp": []},
    {"threshold": [1.0], "tp": [True], "fp": [0]},
    [1.0],
    None,
]


@pytest.mark.parametrize("curve", DAMAGED, ids=range(len(DAMAGED)))
def test_what_is_not_quite_a_curve_is_none(curve: object) -> None:
    """No counts, no table, and no sensitivity for a rate."""
    details = {"curve": curve, "extremes": {"max": "x"}, "policies": 3, "at_threshold": []}
    stats = LevelStats(threshold=1.0, min=0.0, max=2.0, n_normal=1, n_anomalous=2, details=details)
    assert counts_at(stats, 1.0) is None
    assert sensitivity_table(stats) == {}
    kind = "no" if curve is None else "a damaged"
    with pytest.raises(UsageError, match=rf"the statistics have {kind} curve of the image level\n(.|\n)*--stats"):
        choose(stats, "recall=1", "ge")


def test_rates_of_limits_are_limits() -> None:
    """The lowest and the highest that each could be; none over nothing."""
    counts = Counts(tp=(2, 3), fp=(0, 1), anomalous=4, normal=0)
    assert counts.rates == {"recall": (0.5, 0.75), "precision": (2 / 3, 1.0), "fpr": None}
    assert counts.columns() == ["0.5000 to 0.7500", "0.6667 to 1.0000", "-", "0 to 1"]
    near = Counts(tp=(900_100, 900_300), fp=(5, 5), anomalous=10**6, normal=10**4)
    assert near.columns() == ["0.900", "1.0000", "0.0005", "5"]
    few = Counts(tp=(4, 4), fp=(4, 5), anomalous=10**5, normal=10**4)
    assert few.columns() == ["0.0000", "0.4444 to 0.5000", "0.0004 to 0.0005", "4 to 5"]
    assert Counts(tp=(0, 0), fp=(0, 0), anomalous=4, normal=3).rates["precision"] is None
