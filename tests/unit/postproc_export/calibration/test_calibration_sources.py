"""`calibrate`: every kind of source gives the statistics of the arrays it holds, and a damaged one is named."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from postproc_export.calibration import CalibrationWarning, Calibrator, Progress, arrays, calibrate, tally
from postproc_export.errors import CalibrationError, FileError, MissingDependencyError, UsageError
from postproc_export.stats import CalibrationStats

DATA = Path(__file__).parents[3] / "data" / "calibration"
RNG = np.random.default_rng(7)
ARRAYS = {
    "pred_score": RNG.normal(size=(12, 1)).astype(np.float32),
    "gt_label": RNG.random(12) < 0.5,
    "anomaly_map": RNG.gamma(2, size=(12, 1, 20, 30)).astype(np.float32),
    "gt_mask": (RNG.random((12, 20, 30)) < 0.1).astype(np.uint8),
}
SHORT = {"pred_score": "scores", "gt_label": "labels", "anomaly_map": "maps", "gt_mask": "masks"}


@pytest.fixture(autouse=True)
def several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every level is streamed in small blocks and read more than once."""
    monkeypatch.setattr(tally, "SMALL", 0)
    monkeypatch.setattr(arrays, "BLOCK", 500)
    monkeypatch.setattr("postproc_export.calibration.shards.BLOCK", 700)


def levels(stats: CalibrationStats) -> dict[str, Any]:
    """Return both levels as JSON, without the source."""
    return {name: level and level.to_json() for name, level in (("image", stats.image), ("pixel", stats.pixel))}


@pytest.fixture
def expected() -> dict[str, Any]:
    """The statistics of all the arrays."""
    calibrator = Calibrator(resamples=0)
    calibrator.update(**ARRAYS)
    return levels(calibrator.compute())


def part(start: int, stop: int) -> dict[str, np.ndarray]:
    """Return some of the images."""
    return {key: array[start:stop] for key, array in ARRAYS.items()}


def one_npz(folder: Path) -> Any:
    """One file with all arrays."""
    np.savez(folder / "a.npz", **ARRAYS)
    return folder / "a.npz"


def compressed_shards(folder: Path) -> Any:
    """Three compressed shards with short names, one of them empty."""
    for index, shard in enumerate((part(0, 5), part(5, 5), part(5, 12))):
        np.savez_compressed(folder / f"{index}.npz", **{SHORT[key]: array for key, array in shard.items()}, files=["x"])
    return folder


def npy_pairs(folder: Path) -> Any:
    """`.npy` files named by key."""
    for key, array in ARRAYS.items():
        np.save(folder / f"val_{SHORT[key]}.npy", array)
    return folder


def npy_list(folder: Path) -> Any:
    """The same files, listed."""
    npy_pairs(folder)
    return [str(path) for path in folder.iterdir()]


def fortran_maps(folder: Path) -> Any:
    """Maps in Fortran order."""
    np.savez(folder / "a.npz", **{**ARRAYS, "anomaly_map": np.asfortranarray(ARRAYS["anomaly_map"])})
    return folder / "a.npz"


def levels_apart(folder: Path) -> Any:
    """Each level in a file of its own."""
    items = list(ARRAYS.items())
    np.savez(folder / "images.npz", **dict(items[:2]))
    np.savez(folder / "pixels.npz", **dict(items[2:]))
    return folder


def mapping(folder: Path) -> Any:
    """The arrays."""
    return ARRAYS


def memory_mapped(folder: Path) -> Any:
    """Memory maps."""
    npy_pairs(folder)
    return {key: np.load(folder / f"val_{name}.npy", mmap_mode="r") for key, name in SHORT.items()}


def mapping_of_paths(folder: Path) -> Any:
    """Paths of `.npy` files by key."""
    npy_pairs(folder)
    return {key: folder / f"val_{name}.npy" for key, name in SHORT.items()}


def strided(folder: Path) -> Any:
    """Maps and masks that are not contiguous."""
    return {key: np.repeat(array, 2, axis=-1)[..., ::2] for key, array in ARRAYS.items() if array.ndim > 2}


def mixed_list(folder: Path) -> Any:
    """A file and a mapping."""
    np.savez(folder / "a.npz", **part(0, 5))
    return [folder / "a.npz", part(5, 12)]


def csv_and_npz(folder: Path) -> Any:
    """Scores in a CSV, maps beside it."""
    rows = zip(ARRAYS["pred_score"][:, 0].tolist(), ARRAYS["gt_label"].astype(int).tolist(), strict=True)
    text = "".join(f"{score!r},x,{label}\n" for score, label in rows)
    (folder / "scores.csv").write_text("score,note,label\n" + text)
    np.savez(folder / "pixels.npz", maps=ARRAYS["anomaly_map"], masks=ARRAYS["gt_mask"])
    return folder


def zarr_store(folder: Path) -> Any:
    """A Zarr group."""
    zarr = pytest.importorskip("zarr", reason="the extra 'zarr' is not installed")
    group = zarr.open_group(str(folder / "val.zarr"), mode="w")
    for key, array in ARRAYS.items():
        stored = group.create_array(key, shape=array.shape, dtype=array.dtype, chunks=(5, *array.shape[1:]))
        stored[...] = array
    return folder / "val.zarr"


SOURCES = [
    one_npz,
    compressed_shards,
    npy_pairs,
    npy_list,
    fortran_maps,
    levels_apart,
    mapping,
    memory_mapped,
    mapping_of_paths,
    strided,
    mixed_list,
    csv_and_npz,
    zarr_store,
]


@pytest.mark.parametrize("make", SOURCES, ids=lambda make: make.__name__)
def test_every_source_gives_the_same_statistics(
    make: Callable[[Path], Any], tmp_path: Path, expected: dict[str, Any]
) -> None:
    """Files, folders, arrays and mixtures of them equal the arrays in one piece, bit for bit."""
    stats = levels(calibrate(make(tmp_path), resamples=0))
    assert stats == (expected if make is not strided else {**expected, "image": None})


@pytest.mark.parametrize("model", ["padim", "dfkde"])
def test_anomalib_validation_outputs_give_anomalibs_statistics(model: str) -> None:
    """Threshold, minimum and maximum of the image level have the bits of Anomalib 2.7.0's buffers."""
    bits = {"padim": ("9407ab40", "d5934f40", "82c74441"), "dfkde": ("3a92a63e", "05ef8a3e", "9dfa4d3f")}
    stats = calibrate(DATA / f"{model}.npz", resamples=0)
    assert stats.image is not None
    found = [np.float32(each).tobytes().hex() for each in (stats.image.threshold, stats.image.min, stats.image.max)]
    assert found == list(bits[model])
    assert (stats.image.n_normal, stats.image.n_anomalous) == (40, 40)
    assert (stats.pixel is None) == (model == "dfkde")  # masks without maps are no level


def test_anomalib_maps_give_the_threshold_of_sorting_them() -> None:
    """The pixel level of Padim (every fourth row and column of its maps) equals a plain search over all thresholds."""
    with np.load(DATA / "padim.npz") as file:
        values, truth = file["maps"].reshape(-1), file["masks"].reshape(-1)
    order = np.argsort(-values, kind="stable")
    last = np.flatnonzero(np.append(np.diff(values[order]) != 0, True))
    tp = np.cumsum(truth[order], dtype=np.int64)[last]
    score = 2 * tp / (last + 1 + truth.sum())  # exact enough here: no two of the best are nearly equal
    best = np.sort(score)[::-1]
    assert best[0] - best[1] > 1e-9
    stats = calibrate(DATA / "padim.npz", resamples=0).pixel
    assert stats is not None
    assert stats.threshold == values[order][last[np.argmax(score)]]
    assert (stats.min, stats.max) == (values.min(), values.max())


def test_progress_counts_values_and_passes(tmp_path: Path) -> None:
    """The callback hears of every block: the level, the pass, and the whole, which headers tell."""
    heard: list[Progress] = []
    calibrate(one_npz(tmp_path), resamples=0, progress=heard.append)
    pixels = [each for each in heard if each.level == "pixel"]
    assert pixels[0].total == 7200
    assert pixels[-1].number >= 2
    assert pixels[-1].values == pixels[-1].total == 12 * 20 * 30
    assert pixels[-1].shard.endswith("a.npz")


def truncate(path: Path) -> None:
    """Cut the end off."""
    path.write_bytes(path.read_bytes()[:-3000])


def flip(path: Path) -> None:
    """Change one byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def cut_npy(path: Path) -> None:
    """Cut the end of every member off."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content[:-40] if name.startswith("pred") else content)


def pickled(path: Path) -> None:
    """Store Python objects."""
    np.savez(path, pred_score=np.array([{}, 1.0], dtype=object), gt_label=[0, 1])


DAMAGES = [
    pytest.param(truncate, "b.npz is damaged or truncated", id="truncated-zip"),
    pytest.param(flip, "b.npz is damaged or truncated\n.*Bad CRC-32", id="flipped-bit"),
    pytest.param(cut_npy, "b.npz: pred_score is truncated", id="truncated-member"),
    pytest.param(pickled, "b.npz: pred_score holds Python objects", id="pickled"),
    pytest.param(
        lambda path: path.write_text("no"), "b.npz is damaged or truncated\n.*text that begins with 'no'", id="no-zip"
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_shard_is_named(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    """One bad file among good ones is found in the first pass, by name."""
    for name in ("a.npz", "b.npz"):
        np.savez(tmp_path / name, **ARRAYS)
    damage(tmp_path / "b.npz")
    with pytest.raises(CalibrationError, match=message):
        calibrate(tmp_path)


def test_a_file_that_changes_between_passes_is_noticed(tmp_path: Path) -> None:
    """Statistics are of one state of the data or of none."""
    path = one_npz(tmp_path)

    def rewrite(progress: Progress) -> None:
        if (progress.level, progress.number, progress.values) == ("pixel", 1, 7200):
            np.savez(path, **{**ARRAYS, "anomaly_map": ARRAYS["anomaly_map"] + 1})

    with pytest.raises(CalibrationError, match=r"a\.npz changed while it was read"):
        calibrate(path, progress=rewrite, resamples=0)


def test_an_array_that_changes_between_passes_is_noticed() -> None:
    """Values that moved out of the bins that decide are missed there."""
    changing = {key: array.copy() for key, array in ARRAYS.items() if array.ndim > 2}

    def overwrite(progress: Progress) -> None:
        if progress.number == 1 and progress.values == 7200:
            changing["anomaly_map"] += 100

    with pytest.raises(CalibrationError, match="the source changed between two passes"):
        calibrate(changing, progress=overwrite)


def test_errors_in_files_say_where() -> None:
    """File, array, index and number of the bad values."""
    bad = {**ARRAYS, "anomaly_map": ARRAYS["anomaly_map"].copy()}
    bad["anomaly_map"][3, 0, 4, 5:8] = np.nan
    message = r"3 of 7200 values, the first is nan at the mapping: anomaly_map\[3, 0, 4, 5\]"
    with pytest.raises(CalibrationError, match=message):
        calibrate(bad)
    with pytest.warns(CalibrationWarning, match="3 values that are not finite were left out; in the deployed file"):
        stats = calibrate(bad, nonfinite="drop", resamples=0)
    assert stats.pixel.n_dropped == 3  # type: ignore[union-attr]


UNUSABLE = [
    pytest.param("missing.npz", FileError, "missing.npz is not there", id="missing"),
    pytest.param("a.txt", FileError, "not of a known kind", id="kind"),
    pytest.param("empty", FileError, "has no validation outputs", id="empty-folder"),
    pytest.param("maps.npy", FileError, "give both files of the pair", id="one-npy"),
    pytest.param("other.csv", CalibrationError, "has no column of scores\n.*image, label, mask", id="csv-columns"),
    pytest.param("text.csv", CalibrationError, "line 3, column 'score': not a number\n.*'high'", id="csv-cell"),
    pytest.param("keys.npz", CalibrationError, "has neither scores nor maps", id="npz-keys"),
]


@pytest.mark.parametrize(("name", "kind", "message"), UNUSABLE)
def test_what_cannot_be_read_is_refused(name: str, kind: type[Exception], message: str, tmp_path: Path) -> None:
    """The message names the path and what is needed."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "other.csv").write_text("image,label,mask\na,0,\n")
    (tmp_path / "text.csv").write_text("score,label\n0.5,0\nhigh,1\n")
    np.save(tmp_path / "maps.npy", ARRAYS["anomaly_map"])
    np.savez(tmp_path / "keys.npz", predictions=SHORT)
    with pytest.raises(kind, match=message):
        calibrate(tmp_path / name)


def test_a_source_of_another_type_is_refused() -> None:
    """A generator can be read only once."""
    with pytest.raises(UsageError, match=r"the source cannot be read\n.*generator"):
        calibrate(each for each in ())  # type: ignore[arg-type]


def test_a_zarr_store_without_zarr_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optional formats say what to install."""
    monkeypatch.setitem(__import__("sys").modules, "zarr", None)
    (tmp_path / ".zgroup").write_text("{}")
    with pytest.raises(MissingDependencyError, match=r"pip install zarr$"):
        calibrate(tmp_path)
