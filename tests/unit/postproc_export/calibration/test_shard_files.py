"""Shard files that are damaged, forbidden, incomplete, twice there or written to: each is named, none is dropped."""

import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from postproc_export.calibration import Calibrator, Progress, arrays, calibrate, shards, tally
from postproc_export.calibration.calibrator import source_files
from postproc_export.calibration.shards import CsvShard, NpyShard
from postproc_export.errors import CalibrationError, FileError, UsageError

RNG = np.random.default_rng(5)
SCORES, LABELS = RNG.normal(size=9).astype(np.float32), np.arange(9) % 2
MAPS = RNG.gamma(2, size=(9, 1, 16, 20)).astype(np.float32)
MASKS = (RNG.random((9, 16, 20)) < 0.1).astype(np.uint8)


@pytest.fixture(autouse=True)
def several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every level is streamed in small blocks and read more than once."""
    monkeypatch.setattr(tally, "SMALL", 0)
    monkeypatch.setattr(arrays, "BLOCK", 500)
    monkeypatch.setattr("postproc_export.calibration.shards.BLOCK", 700)


def save(folder: Path, **named: np.ndarray) -> Path:
    """Write `.npy` files."""
    for name, array in named.items():
        np.save(folder / f"{name}.npy", array)
    return folder


# Fortran order


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_fortran_order_is_streamed_as_stored(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps and masks in Fortran order are never loaded whole, and count as in C order."""
    monkeypatch.setattr(shards, "WHOLE", 0)
    stored = {"a_maps": np.asfortranarray(MAPS), "a_masks": np.asfortranarray(MASKS)}
    if suffix == "npz":
        np.savez(tmp_path / "a.npz", maps=stored["a_maps"], masks=stored["a_masks"])
    else:
        save(tmp_path, **stored)
    assert calibrate(tmp_path, resamples=0).pixel == calibrate({"maps": MAPS, "masks": MASKS}, resamples=0).pixel


def test_fortran_order_of_one_array_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is small is turned, one that is large is refused with what to do."""
    save(tmp_path, a_maps=np.asfortranarray(MAPS), a_masks=MASKS)
    assert calibrate(tmp_path, resamples=0).pixel == calibrate({"maps": MAPS, "masks": MASKS}, resamples=0).pixel
    monkeypatch.setattr(shards, "WHOLE", MAPS.size - 1)
    with pytest.raises(CalibrationError, match=r"maps is in Fortran order, unlike(.*\n)+.*np\.ascontiguousarray"):
        calibrate(tmp_path)


def test_positions_in_fortran_order(tmp_path: Path) -> None:
    """The first bad value is the first in the order of the indices, not the first that was met."""
    bad = MAPS.copy()
    bad[8, 0, 0, 0] = bad[2, 0, 15, 19] = np.nan
    save(tmp_path, a_maps=np.asfortranarray(bad), a_masks=np.asfortranarray(MASKS))
    with pytest.raises(CalibrationError, match=r"2 of 2880 values, the first is nan at .*maps\[2, 0, 15, 19\]"):
        calibrate(tmp_path)


# Damage


HEADERS = [
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (9,)",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (9,, }",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': ('''",
    b"{'descr': 5, 'fortran_order': False, 'shape': (9,), }",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (-9,), }",
    b"{'descr': ('<f4', -1), 'fortran_order': False, 'shape': (9,), }",
    b"{[]: 1, 2: 3}",
    b"(" * 3000,
    b"\x00\xff",
    b"1_0.__class__",
]


@pytest.mark.parametrize("header", HEADERS)
def test_a_damaged_header_is_one_error(header: bytes, tmp_path: Path) -> None:
    """Whatever evaluating the text of a header raises, the file is named."""
    text = header.ljust(118) + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + SCORES.tobytes()
    (tmp_path / "a_scores.npy").write_bytes(content)
    with pytest.raises(CalibrationError, match=r"a_scores\.npy cannot be read as \.npy\n(.*\n)*  fix:"):
        calibrate(tmp_path)


def test_a_truncated_npy_is_named(tmp_path: Path) -> None:
    """Its name, how much is there and how much is needed."""
    path = save(tmp_path, a_scores=SCORES) / "a_scores.npy"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CalibrationError, match=r"a_scores\.npy is truncated\n  found:   3 bytes too few"):
        calibrate(tmp_path)


def test_a_damaged_lzma_member_is_named(tmp_path: Path) -> None:
    """As one of any other compression."""
    stream = io.BytesIO()
    np.save(stream, SCORES)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("scores.npy", stream.getvalue())
    assert calibrate(tmp_path / "a.npz", image_policy="value=0").image is not None

    def fail(*_: Any, **__: Any) -> Any:
        raise lzma.LZMAError("Corrupt input data")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipfile.LZMADecompressor, "decompress", fail)
        with pytest.raises(CalibrationError, match=r"a\.npz is damaged or truncated\n.*LZMAError: Corrupt input data"):
            calibrate(tmp_path / "a.npz")


def test_booleans_of_other_bytes_are_named(tmp_path: Path) -> None:
    """A boolean is a byte, and one that is neither 0 nor 1 counts as neither."""
    labels = np.array([0, 1, 2, 1], np.uint8).view(np.bool_)
    np.savez(tmp_path / "a.npz", scores=SCORES[:4], labels=labels)
    with pytest.raises(
        CalibrationError, match=r"labels is not 0/1\n.*1 of 4 values, the first is byte 2 at .*labels\[2\]"
    ):
        calibrate(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", scores=SCORES[:4], labels=labels == 1)
    calibrate(tmp_path / "a.npz", resamples=0)


# What may not be read


def forbidding(name: str, monkeypatch: pytest.MonkeyPatch, *, error: int = 13) -> None:
    """Let opening a file of a name fail as the system would."""
    genuine = Path.open

    def opened(path: Path, *given: Any, **options: Any) -> Any:
        if path.name == name:
            raise OSError(error, "", str(path))
        return genuine(path, *given, **options)

    monkeypatch.setattr(Path, "open", opened)


@pytest.mark.parametrize(("error", "reason"), [(13, "Permission denied"), (5, "Input/output error")])
@pytest.mark.parametrize("name", ["a.csv", "a_scores.npy"])
def test_what_cannot_be_read_is_not_called_damaged(
    name: str, error: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason of the system is told, and nobody is asked to write the file again."""
    (tmp_path / "a.csv").write_text("score,label\n1,0\n2,1\n")
    save(tmp_path, a_scores=SCORES, a_labels=LABELS)
    calibrate(tmp_path, resamples=0)
    forbidding(name, monkeypatch, error=error)
    with pytest.raises(FileError, match=rf"cannot read .*\n  found:   {reason}") as caught:
        calibrate(tmp_path)
    assert "damaged" not in str(caught.value)
    assert "write it again" not in str(caught.value)


def test_a_forbidden_folder_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listing it fails as reading a file does."""

    def refused(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(FileError, match=r"cannot read .*\n  found:   Permission denied"):
        calibrate(tmp_path)


def test_a_folder_in_place_of_an_array(tmp_path: Path) -> None:
    """It is no damaged file."""
    with pytest.raises(FileError, match="cannot read the mapping\n  found:   Is a directory"):
        calibrate({"scores": tmp_path})


# Names and partners


@pytest.mark.parametrize("second", ["a-scores", "a.scores", "ascores", "a_pred_score"])
def test_names_that_mean_the_same_are_refused(second: str, tmp_path: Path) -> None:
    """Neither file is dropped in favour of the other."""
    save(tmp_path, a_scores=SCORES, **{second: SCORES})
    with pytest.raises(FileError, match=r"a.*\.npy and a.*\.npy hold the same of one shard"):
        calibrate(tmp_path)


def test_a_missing_partner_is_named(tmp_path: Path) -> None:
    """Whichever of the two shards lacks its file, the message names that file."""
    save(tmp_path, a_maps=MAPS, b_maps=MAPS, b_masks=MASKS)
    with pytest.raises(CalibrationError, match=r"b: maps comes with masks, unlike(.*\n)+  fix:     add a_masks\.npy"):
        calibrate(tmp_path)
    save(tmp_path, a_masks=MASKS, c_anomaly_map=MAPS)
    with pytest.raises(
        CalibrationError, match=r"c: anomaly_map comes without gt_mask(.*\n)+  fix:     add c_gt_mask\.npy"
    ):
        calibrate(tmp_path)
    save(tmp_path, c_gt_mask=MASKS)
    calibrate(tmp_path, resamples=0)


def test_a_stray_npy_says_how_to_go_on(tmp_path: Path) -> None:
    """Nothing is left out silently."""
    save(tmp_path, a_scores=SCORES, embedding=SCORES)
    with pytest.raises(FileError, match=r"embedding\.npy does not say what it holds(.*\n)+  fix:     rename it"):
        calibrate(tmp_path)


def test_hidden_files_and_capitals(tmp_path: Path) -> None:
    """`._a.npz` of macOS is no shard, and `B.NPZ` is one."""
    np.savez(tmp_path / "a.npz", scores=SCORES, labels=LABELS)
    (tmp_path / "._a.npz").write_bytes(b"no zip")
    (tmp_path / "a.npz").rename(tmp_path / "B.NPZ")
    (tmp_path / "C.CSV").write_text("score,label\n1,0\n")
    assert [path.name for path in source_files(tmp_path)] == ["B.NPZ", "C.CSV"]
    assert calibrate(tmp_path, resamples=0).image.n_normal == 6  # type: ignore[union-attr]


def test_a_file_given_twice_is_refused(tmp_path: Path) -> None:
    """Beside its folder, by another path, or as a link: it would count twice."""
    np.savez(tmp_path / "a.npz", scores=SCORES, labels=LABELS)
    for source in ([tmp_path, tmp_path / "a.npz"], [tmp_path / "a.npz", tmp_path / ".." / tmp_path.name / "a.npz"]):
        with pytest.raises(FileError, match=r"a\.npz is given twice"):
            calibrate(source)
    (tmp_path / "b.npz").hardlink_to(tmp_path / "a.npz")
    with pytest.raises(FileError, match=r"b\.npz is the same file as .*a\.npz"):
        calibrate(tmp_path)
    (tmp_path / "b.npz").unlink()
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes())
    assert calibrate(tmp_path, resamples=0).image.n_normal == 10  # type: ignore[union-attr]


def test_an_empty_path_is_refused() -> None:
    """It is not the folder one is in."""
    with pytest.raises(UsageError, match="the source is an empty path"):
        calibrate("")


def test_source_files_are_all_that_is_read(tmp_path: Path) -> None:
    """Files of every kind, paths in mappings, and the folder of a store; arrays in memory have none."""
    save(tmp_path, a_maps=MAPS, a_masks=MASKS)
    (tmp_path / "s.csv").write_text("score\n1\n")
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / ".zgroup").write_text("{}")
    found = source_files(tmp_path)
    assert sorted(path.name for path in found) == ["a_maps.npy", "a_masks.npy", "s.csv", "z"]
    np.save(tmp_path / "l.npy", np.zeros(len(SCORES)))
    assert source_files({"scores": SCORES, "labels": tmp_path / "l.npy"}) == [tmp_path / "l.npy"]


# Changes


def rewriting(path: Path, when: Callable[[Progress], bool]) -> Callable[[Progress], None]:
    """Return a callback that writes other maps once."""
    done: list[Progress] = []

    def heard(progress: Progress) -> None:
        if not done and when(progress):
            done.append(progress)
            np.savez(path, scores=SCORES, labels=LABELS, maps=MAPS + 1, masks=MASKS)

    return heard


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("level", ["image", "pixel"])
def test_a_change_in_any_pass_is_noticed(level: str, number: int, tmp_path: Path) -> None:
    """Also in the last pass over a level, which no other pass follows, and between the levels."""
    path = tmp_path / "a.npz"
    np.savez(path, scores=SCORES, labels=LABELS, maps=MAPS, masks=MASKS)
    heard = rewriting(path, lambda at: (at.level, at.number) == (level, number) and at.values == at.total)
    with pytest.raises(CalibrationError, match=r"a\.npz changed while it was read"):
        calibrate(path, progress=heard, resamples=0)


def test_a_change_between_the_levels_is_noticed(tmp_path: Path) -> None:
    """Scores of one file and maps of another one are no source: the second shard changes after its last reading."""
    np.savez(tmp_path / "a.npz", scores=SCORES, labels=LABELS, maps=MAPS, masks=MASKS)
    np.savez(tmp_path / "b.npz", maps=MAPS, masks=MASKS)
    np.savez(tmp_path / "c.npz", scores=SCORES, labels=LABELS)
    heard = rewriting(tmp_path / "a.npz", lambda at: at.level == "image" and at.number == 2 and at.values == 18)
    with pytest.raises(CalibrationError, match=r"a\.npz changed between two passes"):
        calibrate(tmp_path, progress=heard, resamples=0)


# CSV


CSV = [
    pytest.param("score, label\n1, 0\n2, 1\n", id="spaces"),
    pytest.param(" Score ,LABEL\n1,0\n2,1\n", id="capitals"),
    pytest.param('note,score,label\n"two\nlines",1,0\n,2,1\n', id="cells-of-two-lines"),
    pytest.param("note,note,score,label\na,b,1,0\na,b,2,1\n", id="other-columns-twice"),
]


@pytest.mark.parametrize("text", CSV)
def test_headers_are_read_as_they_are_meant(text: str, tmp_path: Path) -> None:
    """Spaces and capitals lose neither scores nor labels."""
    (tmp_path / "a.csv").write_text(text)
    stats = calibrate(tmp_path / "a.csv", resamples=0).image
    assert stats is not None
    assert (stats.threshold, stats.n_normal, stats.n_anomalous) == (2, 1, 1)


BAD_CSV = [
    pytest.param("score,label,score\n1,0,2\n", "two columns for one thing\n.*score, score", id="twice"),
    pytest.param("score,pred_score\n1,0\n", "two columns for one thing", id="two-names"),
    pytest.param("score,label\n1_0,0\n", "line 2, column 'score': not a number\n.*'1_0'", id="underscore"),
    pytest.param('n,score\n"a\nb",1\n,nan\n', r"the first is nan at .*score\[1\], line 4", id="line-of-a-nan"),
    pytest.param("image\na\n", "no column of scores\n(.*\n)+  fix:", id="no-scores"),
]


@pytest.mark.parametrize(("text", "message"), BAD_CSV)
def test_what_a_csv_leaves_open_is_refused(text: str, message: str, tmp_path: Path) -> None:
    """Columns that contradict each other, and cells that only Python reads as numbers."""
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(CalibrationError, match=message):
        calibrate(tmp_path / "a.csv")


# Arrays that are more than their values


def test_masked_arrays_are_refused() -> None:
    """What a mask hides would count; filled arrays are taken."""
    masked = np.ma.masked_array(SCORES, mask=LABELS == 1)
    with pytest.raises(CalibrationError, match="the mapping: scores is a masked array"):
        calibrate({"scores": masked, "labels": LABELS})
    with Calibrator() as calibrator, pytest.raises(CalibrationError, match="batch 0: pred_score is a masked"):
        calibrator.update(masked, LABELS)
    stats = calibrate({"scores": masked.filled(9), "labels": LABELS}, resamples=0).image
    assert stats is not None
    assert stats.max == 9


def test_sparse_tensors_and_ragged_lists_are_refused() -> None:
    """Both say what they are; lists of equal rows are arrays."""
    torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")
    with pytest.raises(CalibrationError, match=r"the mapping: maps is sparse\n  found:   torch\.sparse_coo"):
        calibrate({"maps": torch.zeros(2, 4, 4).to_sparse()})
    with pytest.raises(CalibrationError, match="the mapping: scores is not an array"):
        calibrate({"scores": [[1.0], [2.0, 3.0]]})
    with Calibrator() as calibrator, pytest.raises(CalibrationError, match="batch 0: gt_label is not an array"):
        calibrator.update([[1.0], [2.0]], [[0], [1, 1]])
    assert calibrate({"scores": [[1.0], [2.0]], "labels": [0, 1]}, resamples=0).image is not None


# Sizes


def test_sizes_are_those_of_the_headers(tmp_path: Path) -> None:
    """A level that is not there has no values; rows of a CSV are not known, and then no total is told."""
    save(tmp_path, a_maps=MAPS, a_masks=MASKS)
    shard = NpyShard({"maps": tmp_path / "a_maps.npy", "masks": tmp_path / "a_masks.npy"}, name="a")
    assert (shard.size("image"), shard.size("pixel")) == (0, MAPS.size)
    (tmp_path / "a.csv").write_text("score,label\n1,0\n2,1\n")
    assert (CsvShard(tmp_path / "a.csv").size("image"), CsvShard(tmp_path / "a.csv").size("pixel")) == (None, 0)
    heard: list[Progress] = []
    calibrate(tmp_path, progress=heard.append, resamples=0)
    totals = {(at.level, at.number): at.total for at in heard if at.number < 3}
    assert totals == {("image", 1): None, ("image", 2): 2, ("pixel", 1): MAPS.size, ("pixel", 2): MAPS.size}
