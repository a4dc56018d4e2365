"""Zarr stores: chunks are decoded once, damage is named before it is decoded, and what is not stored is told."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from postproc_export.calibration import CalibrationWarning, Calibrator, Progress, arrays, calibrate, tally
from postproc_export.calibration import zarr as zarr_store
from postproc_export.calibration.arrays import Pair, Place, box_blocks, boxes_of
from postproc_export.errors import CalibrationError, FileError

zarr = pytest.importorskip("zarr", reason="the extra 'zarr' is not installed")

RNG = np.random.default_rng(3)
MAPS = (1 + RNG.gamma(2, size=(12, 1, 40, 36))).astype(np.float32)
MASKS = RNG.random((12, 40, 36)) < 0.1
BLOSC: dict[int, Any] = {2: lambda: __import__("numcodecs").Blosc(), 3: lambda: __import__("zarr").codecs.BloscCodec()}


@pytest.fixture(autouse=True)
def small_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every level is read more than once, in several boxes and blocks."""
    monkeypatch.setattr(tally, "SMALL", 0)
    monkeypatch.setattr(arrays, "BLOCK", 700)
    monkeypatch.setattr(arrays, "GROUPED", 2000)


def write(
    path: Path, version: int, *, maps: Any = MAPS, chunks: Any = (5, 1, 13, 36), masks: Any = (4, 11, 36)
) -> Path:
    """Write a store in Blosc frames."""
    shutil.rmtree(path, ignore_errors=True)
    group = zarr.open_group(str(path), mode="w", zarr_format=version)
    for key, array, chunk in (("maps", maps, chunks), ("masks", MASKS, masks)):
        stored = group.create_array(
            key, shape=array.shape, dtype=array.dtype, chunks=chunk, compressors=BLOSC[version]()
        )
        stored[...] = array
    return path


def chunk_of(store: Path, key: str = "maps") -> Path:
    """Return the file of the last chunk."""
    return sorted(path for path in (store / key).rglob("*") if path.is_file() and path.name[0] in "0123456789c")[-1]


class Counting:
    """An array in memory that counts how often each of its chunks is met."""

    def __init__(self, array: np.ndarray, chunks: tuple[int, ...]) -> None:
        self.array, self.chunks = array, chunks
        self.shape, self.dtype = array.shape, array.dtype
        self.decoded: Counter[tuple[int, ...]] = Counter()
        self.largest = 0

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        spans = [
            range(axis.start // chunk, -(-axis.stop // chunk)) for axis, chunk in zip(index, self.chunks, strict=True)
        ]
        self.decoded.update(tuple(map(int, each)) for each in np.stack(np.meshgrid(*spans), -1).reshape(-1, len(spans)))
        self.largest = max(self.largest, self.array[index].size)
        return self.array[index]


CHUNKS = [
    pytest.param((1, 1, 40, 36), (1, 40, 36), id="an-image"),
    pytest.param((12, 1, 8, 8), (12, 8, 8), id="tiles-of-all"),
    pytest.param((5, 1, 13, 36), (4, 11, 36), id="unlike"),
    pytest.param((12, 1, 40, 36), (1, 40, 36), id="one-and-many"),
    pytest.param((1, 1, 1, 36), (3, 40, 5), id="rows-and-columns"),
]


@pytest.mark.parametrize(("chunks", "truth_chunks"), CHUNKS)
def test_no_chunk_is_decoded_twice(chunks: tuple[int, ...], truth_chunks: tuple[int, ...]) -> None:
    """Within the budget each chunk of both arrays is met once, and every value is paired with its ground truth."""
    values, truth = Counting(MAPS, chunks), Counting(MASKS, truth_chunks)
    blocks = list(box_blocks(Pair(values, truth, Place("here", "maps", "masks", MAPS.shape))))
    assert set(values.decoded.values()) == set(truth.decoded.values()) == {1}
    for block in blocks:
        at = block.place.ranks(block.start + np.arange(block.values.size))
        np.testing.assert_array_equal(block.values, MAPS.reshape(-1)[at])
        np.testing.assert_array_equal(block.truth, MASKS.reshape(-1)[at])
    assert sum(block.values.size for block in blocks) == MAPS.size


def test_memory_goes_before_decoding_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the common boxes do not fit, boxes stay small and some chunks are decoded again."""
    monkeypatch.setattr(arrays, "BUDGET", 40_000)
    values, truth = Counting(MAPS, (1, 1, 40, 36)), Counting(MASKS, (12, 4, 36))
    assert (
        sum(block.values.size for block in box_blocks(Pair(values, truth, Place("", "", "", MAPS.shape)))) == MAPS.size
    )
    assert max(*values.decoded.values(), *truth.decoded.values()) > 1
    assert values.largest * 5 <= 40_000


def test_a_chunk_larger_than_the_budget_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays decoded, while the other array is read in boxes within the budget beside it."""
    monkeypatch.setattr(arrays, "BUDGET", 10_000)
    values, truth = Counting(MAPS, (1, 1, 40, 36)), Counting(MASKS, (12, 40, 36))
    blocks = list(box_blocks(Pair(values, truth, Place("here", "maps", "masks", MAPS.shape))))
    assert set(values.decoded.values()) == set(truth.decoded.values()) == {1}
    assert values.largest == 40 * 36
    found = np.concatenate([block.truth for block in blocks if block.truth is not None])
    np.testing.assert_array_equal(found, MASKS.reshape(-1))


def test_runs_of_boxes_make_up_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that workers read are disjoint and complete, also where inner and outer boxes do not fit each other."""
    monkeypatch.setattr(arrays, "BUDGET", 10_000)
    monkeypatch.setattr(arrays, "GROUPED", 1)
    pair = Pair(Counting(MAPS, (5, 1, 40, 36)), Counting(MASKS, (2, 7, 36)), Place("", "", "", MAPS.shape))
    boxes = list(boxes_of(pair))
    met = np.zeros(MASKS.shape, int)
    for outer, inner in boxes:
        met[inner] += 1
        assert all(o.start <= i.start < i.stop <= o.stop for o, i in zip(outer, inner, strict=True))
    assert (met == 1).all()
    assert {(inner[0].start, inner[0].stop) for _, inner in boxes} >= {(4, 5), (5, 6), (6, 8)}
    cuts = [(0, 1), (1, 17), (17, len(boxes))]
    found = [block for run in cuts for block in box_blocks(pair, run=run)]
    places = np.concatenate([block.place.ranks(block.start + np.arange(block.values.size)) for block in found])
    assert (np.sort(places) == np.arange(MAPS.size)).all()


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(("chunks", "truth_chunks"), CHUNKS)
def test_stores_give_the_statistics_of_their_arrays(
    version: int, chunks: Any, truth_chunks: Any, tmp_path: Path
) -> None:
    """Whatever the chunks of maps and masks, in both versions of the format."""
    with Calibrator(resamples=0) as calibrator:
        calibrator.update(anomaly_map=MAPS, gt_mask=MASKS)
        expected = calibrator.compute().pixel
    store = write(tmp_path / "a.zarr", version, chunks=chunks, masks=truth_chunks)
    assert calibrate(store, resamples=0).pixel == expected


@pytest.mark.parametrize("version", [2, 3])
def test_positions_are_those_of_the_whole_array(version: int, tmp_path: Path) -> None:
    """All illegal elements of the array are counted, and the first in its order is named, whichever box it is in."""
    maps = MAPS.copy()
    maps[0, 0, 39, 2] = maps[1, 0, 0, 0] = maps[11, 0, 0, 35] = np.nan
    store = write(tmp_path / "a.zarr", version, maps=maps)
    with pytest.raises(CalibrationError, match=r"3 of 17280 values, the first is nan at .*: maps\[0, 0, 39, 2\]"):
        calibrate(store)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("key", ["maps", "masks"])
def test_a_truncated_frame_is_named_before_it_is_decoded(version: int, key: str, tmp_path: Path) -> None:
    """Decoding half a Blosc frame may end the process, so its length is compared first."""
    store = write(tmp_path / "a.zarr", version)
    path = chunk_of(store, key)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CalibrationError, match=rf"a\.zarr: chunk \S*[./]0 of {key} is damaged or truncated"):
        calibrate(store)


@pytest.mark.parametrize("version", [2, 3])
def test_chunks_that_are_not_stored_are_told(version: int, tmp_path: Path) -> None:
    """Maps that are not stored count as the fill value, with a warning; masks without anomalies are nothing special."""
    store = write(tmp_path / "a.zarr", version)
    chunk_of(store, "masks").unlink()
    calibrate(store, resamples=0)
    chunk_of(store).unlink()
    message = r"a\.zarr: 1 of 12 chunks of maps are not stored and count as their fill value 0\.0"
    with pytest.warns(CalibrationWarning, match=message):
        stats = calibrate(store, resamples=0)
    assert stats.pixel is not None
    assert stats.pixel.min == 0


DAMAGES = [
    pytest.param(3, "zarr.json", "[]", "cannot be read as a Zarr group", id="group-list"),
    pytest.param(3, "zarr.json", "{", "cannot be read as a Zarr group", id="group-cut"),
    pytest.param(3, "maps/zarr.json", "{", "cannot be read as a Zarr group", id="array-cut"),
    pytest.param(2, ".zgroup", "{", "cannot be read as a Zarr group", id="group-cut-2"),
    pytest.param(2, "maps/.zarray", "{}", "maps is not an array", id="array-empty-2"),
    pytest.param(3, "maps/zarr.json", '{"zarr_format": 3, "node_type": "group"}', "maps is not an array", id="a-group"),
]


@pytest.mark.parametrize(("version", "name", "text", "message"), DAMAGES)
def test_damaged_metadata_is_one_error(version: int, name: str, text: str, message: str, tmp_path: Path) -> None:
    """Whatever Zarr's parser stumbles over, the store is named."""
    store = write(tmp_path / "a.zarr", version)
    (store / name).write_text(text)
    with pytest.raises(CalibrationError, match=rf"a\.zarr.*{message}"):
        calibrate(store)


@pytest.mark.parametrize("version", [2, 3])
def test_an_array_is_no_group(version: int, tmp_path: Path) -> None:
    """A store of one array says how to save a group."""
    zarr.save_array(str(tmp_path / "a.zarr"), MAPS, zarr_format=version)
    with pytest.raises(
        CalibrationError, match=r"a\.zarr is not a Zarr group\n  found:   an array\n(.*\n)+.*save_group"
    ):
        calibrate(tmp_path / "a.zarr")


def test_a_store_that_changes_in_the_last_pass_is_noticed(tmp_path: Path) -> None:
    """Looking once more after each pass leaves no pass whose values are of two states."""
    store = write(tmp_path / "a.zarr", 3)

    def rewrite(progress: Progress) -> None:
        if (progress.number, progress.values) == (2, MAPS.size):
            path = chunk_of(store)
            path.write_bytes(path.read_bytes())
            path.touch()

    with pytest.raises(CalibrationError, match=r"a\.zarr changed while it was read"):
        calibrate(store, progress=rewrite, resamples=0)


def test_a_forbidden_store_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system does not let us read says so."""
    store = write(tmp_path / "a.zarr", 3)

    def forbidden(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(store / "zarr.json"))

    monkeypatch.setattr(zarr, "open_group", forbidden)
    with pytest.raises(FileError, match=r"cannot read .*a\.zarr\n  found:   Permission denied: .*zarr\.json"):
        calibrate(store)


def test_a_failing_read_leaves_no_noise_behind(tmp_path: Path) -> None:
    """Reads that were under way beside a failing one have ended, so the process says nothing of its own at exit."""
    maps = np.random.default_rng(0).random((12, 1, 1024, 1024), dtype=np.float32)
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    group.create_array("maps", shape=maps.shape, dtype=maps.dtype, chunks=(1, 1, 512, 256))[...] = maps
    group.create_array("masks", shape=maps.shape, dtype=bool, chunks=(12, 1, 1024, 1024))[...] = True
    for path in (tmp_path / "a.zarr" / "maps" / "c").glob("*/0/0/0"):
        path.write_bytes(path.read_bytes()[:9])
    code = (
        "import sys\nfrom postproc_export import calibrate\nfrom postproc_export.errors import CalibrationError\n"
        "try: calibrate(sys.argv[1])\nexcept CalibrationError as error: print(error.what)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.zarr")], capture_output=True, text=True, check=True, timeout=60
    )
    assert "is damaged or truncated" in run.stdout
    assert run.stderr == ""


def test_marks_of_a_store(tmp_path: Path) -> None:
    """A folder with the metadata of either version is a store, another folder is none."""
    (tmp_path / "zarr.json").write_text(json.dumps({}))
    assert zarr_store.is_store(tmp_path)
    assert not zarr_store.is_store(tmp_path.parent)
