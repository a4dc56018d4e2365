"""Which validation samples a folder or a CSV file holds."""

from pathlib import Path

import pytest
from image_files import mvtec, save

from postproc_export.errors import CalibrationError, FileError, UsageError
from postproc_export.images import Sample, find_samples


def names(samples: list[Sample], root: Path) -> list[tuple[str, int | None, str | None]]:
    """Return samples as plain tuples with paths relative to a folder."""
    short = [(s.image, s.label, s.mask) for s in samples]
    return [(str(i.relative_to(root)), label, None if m is None else str(m.relative_to(root))) for i, label, m in short]


class TestFindSamples:
    """Folders and CSV files."""

    @pytest.mark.parametrize("inner", ["", "test"], ids=["root", "test-folder"])
    def test_the_layout_of_mvtec_ad_is_read_from_root_or_test_folder(self, tmp_path: Path, inner: str) -> None:
        """`good` is normal, every other folder anomalous with its mask; order is by path; `train` is not looked at."""
        save(mvtec(tmp_path) / "train" / "good" / "000.png")
        assert names(find_samples(tmp_path / inner), tmp_path) == [
            ("test/crack/000.png", 1, "ground_truth/crack/000_mask.png"),
            ("test/good/000.png", 0, None),
            ("test/good/001.png", 0, None),
            ("test/hole/000.png", 1, "ground_truth/hole/000_mask.png"),
        ]

    def test_masks_may_lie_beside_the_class_folders(self, tmp_path: Path) -> None:
        """`ground_truth` next to `good` works, with `<stem>.png` too; it is no class of its own."""
        save(tmp_path / "good" / "a.JPG")
        save(tmp_path / "dent" / "b.jpg")
        save(tmp_path / "ground_truth" / "dent" / "b.png")
        assert names(find_samples(tmp_path), tmp_path) == [
            ("dent/b.jpg", 1, "ground_truth/dent/b.png"),
            ("good/a.JPG", 0, None),
        ]

    def test_a_missing_mask_is_none_here(self, tmp_path: Path) -> None:
        """Whether masks are needed is decided where the pixel level is."""
        assert [sample.mask for sample in find_samples(mvtec(tmp_path, masks=False))] == [None] * 4

    def test_other_and_hidden_files_are_no_images(self, tmp_path: Path) -> None:
        """Thumbnails' databases, notes and the dot files of other systems are passed over."""
        save(tmp_path / "good" / "a.png")
        for name in ("Thumbs.db", "notes.txt", "._a.png"):
            (tmp_path / "good" / name).write_bytes(b"x")
        (tmp_path / ".cache").mkdir()
        assert len(find_samples(tmp_path)) == 1

    def test_a_flat_folder_has_no_labels(self, tmp_path: Path) -> None:
        """Without labels it is refused, unless labels are not needed."""
        save(tmp_path / "b.png")
        save(tmp_path / "a.png")
        with pytest.raises(CalibrationError, match=r"2 of 2 images have no label; the first is .*a\.png"):
            find_samples(tmp_path)
        assert names(find_samples(tmp_path, labels=False), tmp_path) == [("a.png", None, None), ("b.png", None, None)]

    def test_a_folder_without_good_is_refused(self, tmp_path: Path) -> None:
        """Folders called `train` and `val` must not pass for two kinds of defects."""
        save(tmp_path / "train" / "a.png")
        with pytest.raises(UsageError, match=r"not the layout(.|\n)*folders train(.|\n)*good/"):
            find_samples(tmp_path)

    def test_images_beside_class_folders_are_refused(self, tmp_path: Path) -> None:
        """Nobody knows their label."""
        save(mvtec(tmp_path) / "test" / "stray.png")
        with pytest.raises(UsageError, match=r"1 image\(s\) and the folders crack, good, hole"):
            find_samples(tmp_path)

    def test_an_empty_folder_and_a_missing_one_are_refused(self, tmp_path: Path) -> None:
        """No image is an error, not an empty calibration."""
        with pytest.raises(CalibrationError, match="holds no image"):
            find_samples(tmp_path)
        with pytest.raises(FileError, match="no such file or folder"):
            find_samples(tmp_path / "absent")

    def test_a_csv_file_lists_images_labels_and_masks(self, tmp_path: Path) -> None:
        """Paths are relative to the file; blanks and a byte-order mark do not matter, other columns neither."""
        save(tmp_path / "i" / "a.png")
        save(tmp_path / "i" / "b.png")
        save(tmp_path / "m" / "b.png")
        text = "\ufeffimage, label, mask, note\ni/a.png, 0,,fine\ni/b.png,1, m/b.png,\n"
        (tmp_path / "list.csv").write_text(text, encoding="utf-8")
        assert names(find_samples(tmp_path / "list.csv"), tmp_path) == [("i/a.png", 0, None), ("i/b.png", 1, "m/b.png")]

    def test_a_csv_file_without_labels_serves_where_none_are_needed(self, tmp_path: Path) -> None:
        """The columns label and mask may be absent."""
        save(tmp_path / "a.png")
        (tmp_path / "list.csv").write_text("image\na.png\n")
        assert find_samples(tmp_path / "list.csv", labels=False) == [Sample(tmp_path / "a.png")]
        with pytest.raises(CalibrationError, match="1 of 1 images have no label"):
            find_samples(tmp_path / "list.csv")

    @pytest.mark.parametrize(
        ("text", "error", "message"),
        [
            pytest.param("file,label\na.png,0\n", CalibrationError, r"no column 'image'(.|\n)*'file'", id="no-column"),
            pytest.param(
                "image,label\na.png,good\n", CalibrationError, r"line 2: label 'good'(.|\n)*0 \(normal\)", id="label"
            ),
            pytest.param(
                "image,label\na.png,0\nx.png,1\n", FileError, r"line 3: image .*x\.png is not there", id="image"
            ),
            pytest.param("image,label,mask\na.png,1,x.png\n", FileError, r"line 2: mask .*x\.png is not", id="mask"),
            pytest.param("image,label\n,1\n", CalibrationError, "line 2: no image is named", id="blank"),
            pytest.param("", CalibrationError, "no column 'image'", id="empty"),
            pytest.param(
                "image,label\na.png,0\n./a.png,1\n",
                CalibrationError,
                r"line 3: the image .*a\.png a second time(.|\n)*the same file in line 2(.|\n)*fix: ",
                id="twice",
            ),
        ],
    )
    def test_a_faulty_csv_file_is_refused_with_the_line(
        self, tmp_path: Path, text: str, error: type[Exception], message: str
    ) -> None:
        """The line and what is wrong with it are named."""
        save(tmp_path / "a.png")
        (tmp_path / "list.csv").write_text(text)
        with pytest.raises(error, match=message) as raised:
            find_samples(tmp_path / "list.csv")
        assert "cannot read" not in str(raised.value), "an error that says what is wrong is wrapped in no other"

    def test_a_file_that_is_no_text_is_refused(self, tmp_path: Path) -> None:
        """An image given for the CSV file is named."""
        with pytest.raises(CalibrationError, match=r"a\.png is not a CSV file"):
            find_samples(save(tmp_path / "a.png"))
