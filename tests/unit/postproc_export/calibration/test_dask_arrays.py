"""`calibrate` on Dask arrays: the bits of one process, however they are cut; what does not fit is named."""

import asyncio
import concurrent.futures
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import calibration_cases
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from postproc_export.calibration import COMPARED, Progress, calibrate, tally
from postproc_export.calibration import dask as dask_level
from postproc_export.calibration.shards import NpzShard
from postproc_export.errors import CalibrationError, UsageError

dask = pytest.importorskip("dask", reason="the extra 'dask' is not installed")
da = pytest.importorskip("dask.array", reason="the extra 'dask' is not installed")

RNG = np.random.default_rng(11)
ARRAYS = {
    "pred_score": RNG.normal(size=(12, 1)).astype(np.float32),
    "gt_label": np.arange(12) % 3 == 0,
    "anomaly_map": RNG.gamma(2, size=(12, 1, 20, 30)).astype(np.float32),
    "gt_mask": (RNG.random((12, 20, 30)) < 0.1).astype(np.uint8),
}
CHUNKS: dict[str, Mapping[str, Any]] = {
    "one": dict.fromkeys(ARRAYS, -1),
    "alike": {"pred_score": (5, 1), "gt_label": 5, "anomaly_map": (5, 1, 7, 30), "gt_mask": (5, 7, 30)},
    "unlike": {"pred_score": (4, 1), "gt_label": 5, "anomaly_map": (5, 1, 7, 30), "gt_mask": (7, 20, 11)},
    "uneven": {
        "pred_score": ((1, 11), 1),
        "gt_label": 12,
        "anomaly_map": (12, 1, (1, 2, 17), (29, 1)),
        "gt_mask": (1, (19, 1), 30),
    },
}


@pytest.fixture(autouse=True)
def in_this_thread() -> Iterator[None]:
    """Tasks run one after the other."""
    with dask.config.set(scheduler="synchronous"):
        yield


def chunked(arrays: Mapping[str, Any], chunks: Mapping[str, Any]) -> dict[str, Any]:
    """Return Dask arrays."""
    return {key: da.from_array(array, chunks=chunks[key]) for key, array in arrays.items()}


def outcome(source: Any, **options: Any) -> tuple[Any, list[str]]:
    """Return the statistics file, or the text of the error, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = calibrate(source, **{"resamples": 20, **options}).dumps()
        except CalibrationError as error:
            found = str(error)
    return found, [str(each.message) for each in caught]


@pytest.mark.parametrize("route", ["sorted", "histogram", "eighths", "late-batches"])
@pytest.mark.parametrize("chunks", CHUNKS)
def test_chunks_do_not_matter(chunks: str, route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both levels with all policies, through every way of the engine, equal the arrays in one piece, bit for bit."""
    calibration_cases.take_route(route, monkeypatch)
    found = outcome(chunked(ARRAYS, CHUNKS[chunks]), compare=COMPARED)
    assert found == outcome(ARRAYS, compare=COMPARED)


@given(
    case=st.tuples(st.sampled_from(calibration_cases.KINDS), st.integers(0, 999), st.integers(2, 300)),
    route=st.sampled_from(calibration_cases.ROUTES),
    chunks=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    policy=st.sampled_from(["f1", "fbeta=2", "recall=0.9", "precision=0.7", "fpr=0.05", "quantile=0.9", "range=0.4"]),
)
def test_adversarial_scores(case: tuple[str, int, int], route: str, chunks: tuple[int, int], policy: str) -> None:
    """Statistics and errors of scores made to break a calibration are those of one process, whatever the chunks."""
    values, truth = calibration_cases.values_of(*case)
    scores = {
        "scores": da.from_array(values, chunks=max(chunks[0], values.size // 40)),
        "labels": da.from_array(truth, chunks=max(chunks[1], truth.size // 40)),
    }
    with pytest.MonkeyPatch.context() as patch:
        calibration_cases.take_route(route, patch)
        options = {"image_policy": policy, "resamples": 0}
        assert outcome(scores, **options) == outcome({"scores": values, "labels": truth}, **options)


SCORES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "float64 that float32 merges": (np.float64([0.5, 2, 2 + 1e-9, 3]), [0, 1, 1, 0], {}),
    "integers": (np.arange(9) ** 7, np.arange(9) > 6, {}),
    "float16": (np.arange(9).astype(np.float16), np.arange(9) > 6, {}),
    "negative zeros": (np.float32([-0.0, 1, 0.0, -1]), [0, 1, 1, 0], {}),
    "no ground truth": (np.float32([1, 2, 3]), None, {}),
    "no ground truth, fixed": (np.float32([1, 2, 3]), None, {"image_policy": "value=2.5"}),
    "only normal": (np.float32([1, 2, 3]), [0, 0, 0], {}),
    "dropped": (np.float32([1, np.nan, 3, np.inf, 5, 2]), [0, 1, 1, 1, 1, 0], {"nonfinite": "drop"}),
    "all dropped": (np.float32([np.nan, np.nan]), [0, 1], {"nonfinite": "drop"}),
    "one value": (np.float32([2, 2, 2]), [0, 1, 1], {}),
    "unreachable": (np.float32([3, 2, 1]), [0, 1, 1], {"image_policy": "precision=0.9"}),
    "no element": (np.zeros(0, np.float32), np.zeros(0, bool), {}),
    "a single score": (np.float32(3), np.bool_(True), {}),
}


@pytest.mark.parametrize("route", ["sorted", "histogram"])
@pytest.mark.parametrize("name", SCORES)
def test_types_options_and_warnings(name: str, route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics, warnings and errors are those of one process, whatever the type and the options."""
    calibration_cases.take_route(route, monkeypatch)
    values, truth, options = SCORES[name]
    plain = {"scores": values} if truth is None else {"scores": values, "labels": np.asarray(truth)}
    cut = {key: da.from_array(array, chunks=chunk) for (key, array), chunk in zip(plain.items(), (2, 3), strict=False)}
    assert outcome(cut, **options) == outcome(plain, **options)


def test_numpy_beside_dask_and_several_mappings() -> None:
    """Ground truth may be NumPy arrays, and a list may hold mappings of both kinds."""
    first, second = ({key: array[part] for key, array in ARRAYS.items()} for part in (slice(0, 5), slice(5, 12)))
    mixed = {**chunked(first, CHUNKS["alike"]), "gt_label": first["gt_label"], "gt_mask": first["gt_mask"]}
    assert outcome([mixed, second]) == outcome([first, second])
    assert outcome([first, chunked(second, CHUNKS["unlike"])]) == outcome([first, second])


def test_few_values_left_by_dropping_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where fewer values than were announced remain, the small set gets its bootstrap interval as in one process."""
    values = np.where(np.arange(100) % 3 == 0, np.arange(100), np.nan).astype(np.float32)
    truth = np.arange(100) % 2 == 0
    monkeypatch.setattr(tally, "SMALL", 40)
    lost = {"scores": da.from_array(values, chunks=9), "labels": da.from_array(truth, chunks=10)}
    found, _ = outcome(lost, nonfinite="drop")
    assert found == outcome({"scores": values, "labels": truth}, nonfinite="drop")[0]
    assert '"resamples": 20' in found


def test_progress_counts_values_and_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The callback hears of every chunk in every pass, and of the whole, which the chunks tell."""
    monkeypatch.setattr(tally, "SMALL", 0)
    heard: list[Progress] = []
    calibrate(chunked(ARRAYS, CHUNKS["alike"]), resamples=0, progress=heard.append)
    pixels = [each for each in heard if each.level == "pixel"]
    assert [each.values for each in pixels if each.number == 1][-1] == 7200
    assert sum(each.number == 1 for each in pixels) == 9
    assert pixels[0].total == 7200
    assert pixels[-1].number >= 2
    assert pixels[-1].values == pixels[-1].total == 7200


@pytest.mark.parametrize("kind", [asyncio.CancelledError, concurrent.futures.CancelledError])
def test_a_part_that_is_given_up_is_an_error_of_the_cluster(
    kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Dask hands over in the place of a count is raised, not passed to the progress function."""
    client = SimpleNamespace(compute=lambda tasks: [SimpleNamespace(release=lambda: None) for _ in tasks], loop=None)
    completed = SimpleNamespace(as_completed=lambda *given, **options: SimpleNamespace(__anext__=None))
    monkeypatch.setattr(dask_level, "require", lambda name, **why: completed if name == "distributed" else dask)
    monkeypatch.setattr(dask_level, "watched", lambda client, start: (None, kind("scheduler-connection-lost")))
    heard: list[int] = []
    with pytest.raises(CalibrationError, match=r"found:   CancelledError: scheduler-connection-lost"):
        dask_level.Cluster(client).run(lambda question: [dask.delayed(1)], object(), on_reply=heard.append)  # type: ignore[arg-type]
    assert heard == []


def spoilt(key: str, value: Any, *at: tuple[int, ...]) -> dict[str, Any]:
    """Return the arrays in chunks, some elements of one of them replaced."""
    array = ARRAYS[key].astype(np.float32)
    for index in at:
        array[index] = value
    return {**chunked(ARRAYS, CHUNKS["alike"]), key: da.from_array(array, chunks=CHUNKS["alike"][key])}


BROKEN = [
    pytest.param(
        lambda: spoilt("anomaly_map", np.nan, (7, 0, 1, 2), (3, 0, 19, 29), (11, 0, 0, 0)),
        r"the mapping: anomaly_map has values that are not finite as float32\n  found:   3 of 7200 values, the first "
        r"is nan at the mapping: anomaly_map\[3, 0, 19, 29\], in chunk \(0, 0, 2, 0\)",
        id="nan",
    ),
    pytest.param(
        lambda: spoilt("gt_mask", 2, (7, 1, 2)),
        r"gt_mask is not 0/1\n  found:   1 of 7200 values, the first is 2.0 at the mapping: gt_mask\[7, 0, 1, 2\]",
        id="mask",
    ),
    pytest.param(
        lambda: spoilt("gt_label", np.nan, (11,)), r"gt_label is not 0/1\n  found:   1 of 12 values", id="label"
    ),
    pytest.param(
        lambda: {**chunked(ARRAYS, CHUNKS["one"]), "gt_mask": da.zeros((12, 20, 29), dtype=bool)},
        r"the mapping: the shapes do not agree\n  found:   anomaly_map \(12, 1, 20, 30\), gt_mask \(12, 20, 29\)",
        id="unequal-shapes",
    ),
    pytest.param(
        lambda: {"scores": da.zeros(3), "maps": da.zeros((4, 5, 5))}, "3 scores, 4 maps", id="unequal-numbers"
    ),
    pytest.param(
        lambda: {"scores": da.zeros(9)[da.zeros(9) < 1], "labels": da.zeros(9)},
        r"the mapping: scores has chunks of unknown size\n(.*\n)+  fix:     array = array.compute_chunk_sizes\(\)",
        id="unknown-chunks",
    ),
    pytest.param(
        lambda: {"scores": da.zeros(9), "labels": da.zeros(9)[da.zeros(9) < 1]},
        "the mapping: labels has chunks of unknown size",
        id="unknown-chunks-of-the-labels",
    ),
    pytest.param(
        lambda: {"scores": da.zeros(9, chunks=4).map_blocks(lambda block: block[1:], dtype=float)},
        r"chunk \(0,\) of scores is not what the Dask array promises\n  found:   shape \(3,\)\n  needed:  shape \(4,\)",
        id="broken-promise",
    ),
    pytest.param(
        lambda: {"scores": da.zeros(9, chunks=4).map_blocks(lambda block: block.astype(str), dtype=float)},
        r"chunk \(0,\) of scores has elements of type <U32",
        id="broken-type",
    ),
    pytest.param(lambda: {"scores": da.zeros(9) > 1}, "scores has elements of type bool", id="boolean-scores"),
    pytest.param(
        lambda: {"scores": da.zeros(9, chunks=4).map_blocks(lambda block: block[0, 0], dtype=float)},
        "Dask could not compute the parts of the source\n  found:   IndexError: too many indices",
        id="failing-task",
    ),
    pytest.param(
        lambda: [
            {"scores": da.arange(4, chunks=2), "labels": da.zeros(4, chunks=2)},
            {"scores": da.arange(4, chunks=2)},
        ],
        "the mapping: scores comes without gt_label, unlike earlier ones",
        id="labels-in-one-only",
    ),
    pytest.param(
        lambda: [
            {"scores": da.from_array(np.float32([1, np.nan]))},
            {"scores": da.from_array(np.float32([np.nan, 2]))},
        ],
        "1 of 2 values, the first is nan at the mapping: scores.1.",
        id="first-of-two-mappings",
    ),
]


@pytest.mark.parametrize(("make", "text"), BROKEN)
def test_what_does_not_fit_is_named(make: Any, text: str) -> None:
    """An error says which array, which element of the whole and which chunk, and how many there are."""
    with pytest.raises(CalibrationError, match=text):
        calibrate(make())


def test_other_collections_are_no_arrays(tmp_path: Path) -> None:
    """A delayed value says so, and a path beside arrays too."""
    with pytest.raises(UsageError, match="the mapping: scores is not an array\n  found:   Delayed"):
        calibrate({"scores": dask.delayed(1)})
    np.save(tmp_path / "labels.npy", np.zeros(3))
    with pytest.raises(UsageError, match="the mapping: labels is a path beside arrays"):
        calibrate({"scores": da.zeros(3), "labels": tmp_path / "labels.npy"})
    with pytest.raises(UsageError, match="dask= is not a cluster\n  found:   int"):
        calibrate({"scores": da.zeros(3)}, dask=3)


def test_a_source_that_changes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that are computed anew in every pass have to be the same ones."""
    calls = iter(range(1000))
    scores = da.zeros(400, chunks=100).map_blocks(
        lambda block: np.random.default_rng(next(calls)).normal(size=block.shape).astype(np.float32),
        dtype=np.float32,
        meta=np.zeros(0, np.float32),
    )
    labels = da.from_array(np.arange(400) % 2 == 0, chunks=100)
    monkeypatch.setattr(tally, "SMALL", 0)
    with pytest.raises(CalibrationError, match="the source changed between two passes over it"):
        calibrate({"scores": scores, "labels": labels})


def test_a_small_source_that_changes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """So is one whose few values are collected only after they were counted."""
    calls = iter(range(1000))
    scores = da.zeros(40, chunks=40).map_blocks(
        lambda block: np.where(np.arange(40) < 20 + next(calls), np.nan, 1 + np.arange(40)).astype(np.float32),
        dtype=np.float32,
        meta=np.zeros(0, np.float32),
    )
    monkeypatch.setattr(tally, "SMALL", 30)
    with pytest.raises(CalibrationError, match="the source changed between two passes over it"):
        calibrate({"scores": scores, "labels": da.arange(40, chunks=40) % 2}, nonfinite="drop")


def test_numpy_arrays_do_not_import_dask() -> None:
    """Telling Dask arrays from others costs no import."""
    code = (
        "import sys, numpy as np; from postproc_export import calibrate; "
        "calibrate({'scores': np.arange(4.0), 'labels': [0, 0, 1, 1]}); "
        "assert not {'dask', 'distributed'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_groups_of_shards_are_not_too_many() -> None:
    """However many shards there are, tasks are few, and every shard is in one of them."""
    shards = [NpzShard(Path(f"{index}.npz")) for index in range(1000)]
    (source,) = dask_level.shard_sources("image", shards, groups=64, states={})
    groups = source.groups  # type: ignore[attr-defined]
    assert len(groups) == 64
    assert [shard.name for group in groups for shard in group] == [shard.name for shard in shards]
    assert {len(group) for group in groups} <= {15, 16}
