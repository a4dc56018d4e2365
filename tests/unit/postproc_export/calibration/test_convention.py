"""Values behind steps, and labels of other conventions: the same statistics from every source, or a refusal."""

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from postproc_export import CalibrationStats
from postproc_export.calibration import Calibrator, arrays, calibrate, tally
from postproc_export.errors import CalibrationError, FileError, UsageError

Arrays = dict[str, Any]
RANDOM = np.random.default_rng(8)
FLAGS = RANDOM.integers(0, 2, 40)
SCORES = (FLAGS + RANDOM.normal(0, 0.4, 40)).astype(np.float32)
MASKS = np.tile(FLAGS[:, None, None], (1, 3, 4))
MAPS = (MASKS + RANDOM.normal(0, 0.4, MASKS.shape)).astype(np.float32)
TEXTS = np.where(FLAGS == 1, "bad", np.where(np.arange(40) % 3 == 0, "ok", "good"))
PLAIN: Arrays = {"pred_score": SCORES, "gt_label": FLAGS, "anomaly_map": MAPS, "gt_mask": MASKS}


def in_memory(given: Arrays, folder: Path, **options: Any) -> CalibrationStats:
    """From a mapping of arrays."""
    return calibrate(given, **options)


def npz(given: Arrays, folder: Path, **options: Any) -> CalibrationStats:
    """From two files."""
    for name, part in (("a", slice(25)), ("b", slice(25, None))):
        np.savez(folder / f"{name}.npz", **{key: array[part] for key, array in given.items()})
    return calibrate(folder, **options)


def npy(given: Arrays, folder: Path, **options: Any) -> CalibrationStats:
    """From a file for each array."""
    for key, array in given.items():
        np.save(folder / f"a_{key}.npy", array)
    return calibrate(folder, **options)


def csv_and_npz(given: Arrays, folder: Path, **options: Any) -> CalibrationStats:
    """Scores from a CSV file, with spaces around them."""
    rows = "".join(f"{score}, {label} \n" for score, label in zip(given["pred_score"], given["gt_label"], strict=True))
    (folder / "scores.csv").write_text(f"score,label\n{rows}")
    np.savez(folder / "maps.npz", anomaly_map=given["anomaly_map"], gt_mask=given["gt_mask"])
    return calibrate(folder, **options)


def store(given: Arrays, folder: Path, **options: Any) -> CalibrationStats:
    """From a Zarr store in small chunks."""
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(folder / "val.zarr"), mode="w")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # texts have no specification in version 3 yet
        for key, array in given.items():
            stored = group.create_array(key, shape=array.shape, dtype=array.dtype, chunks=(7, *array.shape[1:]))
            stored[...] = array
        return calibrate(folder / "val.zarr", **options)


def on_dask(given: Arrays, folder: Path, **options: Any) -> CalibrationStats:
    """From arrays of Dask, in chunks of another size each."""
    dask = pytest.importorskip("dask.array")
    chunked = {key: dask.from_array(array, chunks=9 + index) for index, (key, array) in enumerate(given.items())}
    return calibrate(chunked, **options)


def batches(given: Arrays, folder: Path, **options: Any) -> CalibrationStats:
    """Batch by batch, in two calibrators that are merged, one of which has travelled."""
    first, second = Calibrator(**options), Calibrator(**options)
    first.update(**{key: array[:11] for key, array in given.items()})
    second.update(**{key: array[11:] for key, array in given.items()})
    first.merge(pickle.loads(pickle.dumps(second)))
    return first.compute()


SOURCES = [in_memory, npz, npy, csv_and_npz, store, on_dask, batches]


def same(found: CalibrationStats, wanted: CalibrationStats) -> bool:
    """Whether both levels are equal, whatever the source."""
    return (found.image, found.pixel) == (wanted.image, wanted.pixel)


@pytest.fixture(params=[tally.SMALL, 8], ids=["kept", "counted"])
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once with values that are kept, once with values that are read again in every pass, block by block."""
    monkeypatch.setattr(tally, "SMALL", request.param)
    monkeypatch.setattr(arrays, "BLOCK", 16)


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("label", "labels"),
    [
        ("bad", TEXTS),
        ("-1", 1 - 2 * FLAGS),
        (-1, (1 - 2 * FLAGS).astype(np.float64)),
        (0, 1 - FLAGS),
        ("0", FLAGS == 0),
        (7, np.where(FLAGS == 1, 7, np.arange(40) % 5)),
    ],
    ids=["text", "outlier-is-minus-one", "number", "one-is-normal", "booleans", "many"],
)
def test_labels_of_every_convention_mean_the_same_from_every_source(
    source: Callable[..., CalibrationStats], label: Any, labels: Any, tmp_path: Path
) -> None:
    """The label that is named is the anomaly, every other is normal: the statistics of 0/1, and they say so."""
    if source is csv_and_npz and labels.dtype == bool:
        labels = labels.astype(int)
    found = source({**PLAIN, "gt_label": labels}, tmp_path, anomalous_label=label, resamples=10)
    assert same(found, calibrate(PLAIN, resamples=10))
    assert found.details["anomalous_label"] == label


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("step", "levels"), [("negate", (-1, -1)), ("negate:level=pixel", (1, -1))])
def test_values_behind_a_step_mean_the_same_from_every_source(
    source: Callable[..., CalibrationStats], step: str, levels: tuple[int, int], tmp_path: Path
) -> None:
    """As if the values had been turned round before; the statistics record the step as a model's do."""
    turned = {**PLAIN, "pred_score": levels[0] * SCORES, "anomaly_map": levels[1] * MAPS}
    found = source(turned, tmp_path, step=step, resamples=10)
    assert same(found, calibrate(PLAIN, resamples=10))
    level = {} if step == "negate" else {"level": "pixel"}
    assert found.details["tail"] == [{"name": "negate", "parameters": level}]
    twice = source(PLAIN, tmp_path, step=[step, step], resamples=10)
    assert same(twice, calibrate(PLAIN, resamples=10))
    assert len(twice.details["tail"]) == 2


OF_SCORES, OF_MAPS = "channel:index=1,level=image", "channel:index=2,axis=second,level=pixel"


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("source", [each for each in SOURCES if each is not csv_and_npz])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_channel_means_the_same_from_every_source(
    source: Callable[..., CalibrationStats], order: Literal["C", "F"], tmp_path: Path
) -> None:
    """As if it had been taken before, wherever the axis is and however the arrays lie; recorded as a model's is."""
    columns = np.asarray(np.stack([1 - SCORES, SCORES], axis=1), order=order)
    planes = np.asarray(np.stack([0 * MAPS, -MAPS, MAPS, 1 - MAPS], axis=1), order=order)
    wanted = calibrate(PLAIN, resamples=10)
    given = {**PLAIN, "pred_score": columns, "anomaly_map": planes}
    found = source(given, tmp_path, step=[OF_SCORES, OF_MAPS], resamples=10)
    assert same(found, wanted)
    assert [each["parameters"]["index"] for each in found.details["tail"]] == [1, 2]
    last = {**PLAIN, "anomaly_map": np.moveaxis(planes, 1, -1)}
    steps = ["negate:level=pixel", "channel:index=1,axis=last,level=pixel"]
    assert same(source(last, tmp_path, step=steps, resamples=10), wanted)


@pytest.mark.parametrize(
    ("given", "step", "error", "message"),
    [
        ({}, "channel:index=1", UsageError, r"does not say of what(.|\n)*channel:index=1,level=image for scores"),
        ({}, "channel:index=1,level=pixel", UsageError, r"does not say of what(.|\n)*axis=second,level=pixel"),
        ({}, OF_SCORES, CalibrationError, r"pred_score has not what(.|\n)*\(40,\)(.|\n)*\[N, C\]"),
        ({"pred_score": np.zeros((40, 1))}, OF_SCORES, CalibrationError, r"has not what(.|\n)*\(40, 1\)"),
        ({"pred_score": np.zeros((40, 2, 3))}, OF_SCORES, CalibrationError, "has not what"),
        ({}, OF_MAPS, CalibrationError, r"anomaly_map has not what(.|\n)*\[N, C, H, W\], as the model gives them"),
        ({"anomaly_map": MAPS[:, None]}, OF_MAPS, CalibrationError, r"has not what(.|\n)*\(40, 1, 3, 4\)"),
        ({"anomaly_map": MAPS[:, None]}, "channel:axis=last,level=pixel", CalibrationError, r"\[N, H, W, C\]"),
        ({"pred_score": np.zeros((40, 2))}, (), CalibrationError, "step channel:index=1,level=image"),
        (
            {"anomaly_map": np.zeros((40, 2, 3, 4))},
            (),
            CalibrationError,
            "step channel:index=1,axis=second,level=pixel",
        ),
    ],
)
def test_a_channel_that_is_not_there_is_refused(given: Arrays, step: Any, error: type, message: str) -> None:
    """With the shape that was found; several values without a step are refused with the one that takes one."""
    with pytest.raises(error, match=message):
        calibrate({**PLAIN, **given}, step=step, resamples=0)


def test_a_column_of_a_csv_has_no_channels(tmp_path: Path) -> None:
    """A step that takes one is refused, not passed over."""
    (tmp_path / "s.csv").write_text("score,label\n0.5,1\n0.25,0\n")
    with pytest.raises(CalibrationError, match=r"s.csv has not what (.|\n)*channel:index=1,level=image"):
        calibrate(tmp_path / "s.csv", step=OF_SCORES)


def test_the_only_channel_may_be_named(tmp_path: Path) -> None:
    """It changes nothing."""
    last = {**PLAIN, "anomaly_map": MAPS[..., None]}
    assert same(npz(last, tmp_path, step="channel:axis=last,level=pixel", resamples=10), calibrate(PLAIN, resamples=10))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint64", "float16", "float64", "longdouble"])
def test_scores_of_every_type_are_turned_round(dtype: str) -> None:
    """An unsigned number has no negative of its own, the lowest of a signed type none either."""
    info = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else None
    values = np.array([info.min, 1, 2, info.max] if info else [-1.5, 1, 2, 3], dtype)
    image = calibrate({"pred_score": values, "gt_label": [1, 1, 0, 0]}, step="negate", resamples=0).image
    assert image is not None
    assert (image.min, image.max, image.threshold) == (-np.float32(values[3]), -np.float32(values[0]), -1)


def test_merged_values_of_a_wide_type_are_still_noticed() -> None:
    """Values that float32 merges at the threshold are told in the sign that they are calibrated in."""
    wide = {"pred_score": np.array([-2.0, -1.0, -1.0 - 1e-12, -0.5]), "gt_label": [1, 1, 0, 0]}
    with pytest.warns(UserWarning, match=r"merges different values \(1\.0 to 1\.000000000001\)"):
        calibrate(wide, step="negate", resamples=0)


@pytest.mark.parametrize("make", [bytes, str])
def test_texts_of_every_kind_are_read(make: type) -> None:
    """Bytes as texts in UTF-8, with spaces around them; tensors by their numbers."""
    labels = np.array([f" {text} ".encode() if make is bytes else f" {text} " for text in ("gut", "übel")])
    assert calibrate({"pred_score": [1.0, 2.0], "gt_label": labels}, anomalous_label="übel").image
    calibrator = Calibrator(anomalous_label=2)
    calibrator.update(torch.tensor([1.0, 2.0]), torch.tensor([1, 2]))
    assert calibrator.compute().image


@pytest.mark.parametrize(
    ("given", "label", "error", "message"),
    [
        (
            {"pred_score": [1.0, 2.0], "gt_label": ["good", "bad"]},
            "Bad",
            CalibrationError,
            r"no image has anomalous_label=?.Bad.?\n  found:   2 images with other labels, such as bad, good",
        ),
        ({"pred_score": [1.0, 2.0]}, "bad", UsageError, r"has no label to be compared with\n  found:   scores without"),
        ({"anomaly_map": MAPS, "gt_mask": MASKS}, 1, UsageError, r"compared with\n  found:   no scores"),
        (
            {"pred_score": [1.0, 2.0, 3.0], "gt_label": ["good", "", "bad"]},
            "bad",
            CalibrationError,
            r"1 of 3 values, the first is nan at the mapping: gt_label\[1\](.|\n)*fill the gaps in gt_label",
        ),
        (
            {"pred_score": [1.0, 2.0, 3.0], "gt_label": [2.0, np.nan, 3.0]},
            3,
            CalibrationError,
            r"the first is nan at the mapping: gt_label\[1\]",
        ),
        (
            {"anomaly_map": MAPS[:2], "gt_mask": np.full((2, 3, 4), "bad"), "pred_score": [0, 1.0], "gt_label": [0, 1]},
            1,
            CalibrationError,
            "gt_mask has elements of type <U3",
        ),
    ],
    ids=["never", "no-labels", "no-scores", "empty", "nan", "mask"],
)
def test_a_label_that_says_nothing_is_refused(given: Arrays, label: Any, error: type, message: str) -> None:
    """One that never occurs, labels that are not there or missing; masks are 0/1 whatever labels are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one class only, before it is refused
        with pytest.raises(error, match=message):
            calibrate(given, anomalous_label=label)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gt_label": [1, -1]}, r"scikit-learn has -1 for outliers.*anomalous_label=-1; where 1 is the anomaly"),
        ({"gt_label": [1, 2]}, r"the first is 2(.|\n)*say which label is anomalous: anomalous_label=VALUE"),
        ({"gt_label": [-1, 0]}, "say which label is anomalous"),
        ({"gt_label": ["ok", "ko"]}, r"type <U2\n  needed:  0/1(.|\n)*anomalous_label=VALUE"),
        ({"gt_label": [0, np.nan]}, "fill the gaps in gt_label"),
        ({"gt_mask": [[[0, 255]]]}, "compare it with 0 first"),
        ({"gt_mask": [[[1, -1]]]}, r"write 1 where -1 \(or 1\) is anomalous: masks == -1"),
    ],
)
def test_labels_that_are_not_0_and_1_are_told_what_to_do(given: Arrays, message: str) -> None:
    """By what they look like: -1 and 1 have one meaning in scikit-learn and another elsewhere."""
    values = {"pred_score": [1.0, 2.0]} if "gt_label" in given else {"anomaly_map": [[[1.0, 2.0]]]}
    with pytest.raises(CalibrationError, match=message):
        calibrate({**values, **given})


def test_a_missing_cell_of_a_csv_is_refused_with_its_line(tmp_path: Path) -> None:
    """Where labels are texts as well, in which an empty one would count as normal."""
    (tmp_path / "a.csv").write_text("score,label\n1,good\n2,\n3,bad\n")
    with pytest.raises(CalibrationError, match=r"the first is nan at .*a\.csv: label\[1\], line 3"):
        calibrate(tmp_path / "a.csv", anomalous_label="bad")
    with pytest.raises(CalibrationError, match=r"line 2, column 'label': not a number(.|\n)*anomalous_label=VALUE"):
        calibrate(tmp_path / "a.csv")


def test_objects_are_never_unpickled_for_their_labels(tmp_path: Path) -> None:
    """Texts that NumPy had to pickle stay refused, with and without a label."""
    np.savez(tmp_path / "a.npz", pred_score=np.float32([1, 2]), gt_label=np.array(["good", "bad"], object))
    for options in ({}, {"anomalous_label": "bad"}):
        with pytest.raises((CalibrationError, FileError), match="holds Python objects"):
            calibrate(tmp_path / "a.npz", **options)


def test_a_command_in_a_message_can_be_typed_as_it_stands() -> None:
    """Python's spelling of an option stands outside of it."""
    with pytest.raises(UsageError, match=r"^step gaussian takes(.|\n)*postproc-export calibrate .* --step gaussian -o"):
        calibrate(PLAIN, step="gaussian")


def test_calibrators_of_two_meanings_are_not_merged() -> None:
    """Their values and labels would be mixed up."""
    for options in ({"step": "negate"}, {"anomalous_label": 0}):
        with pytest.raises(UsageError, match="values and labels of two meanings cannot be merged"):
            Calibrator().merge(Calibrator(**options))
