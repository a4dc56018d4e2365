"""Which validation samples a folder or a CSV file holds: layouts, splits, masks, classes."""

from pathlib import Path

import pytest
from image_files import mvtec, save

from postproc_export.errors import CalibrationError, FileError, UsageError
from postproc_export.images import Sample, find_samples
from postproc_export.images.layouts import class_counts, described, split_kind, spread


def tree(root: Path, *files: str) -> Path:
    """Write the 4x6 image at every path below a folder, and return the folder."""
    for file in files:
        save(root / file)
    return root


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
                "image,label\na.png,godo\n", CalibrationError, r"line 2: label 'godo'(.|\n)*0, good, normal", id="label"
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

    @pytest.mark.parametrize("word", ["good", "Normal", "OK", "bad", "anomaly", "NG"])
    def test_labels_may_be_the_usual_words(self, tmp_path: Path, word: str) -> None:
        """In any case of the letters; the class is what the file says."""
        tree(tmp_path, "a.png")
        (tmp_path / "list.csv").write_text(f"image,label\na.png,{word}\n")
        label = 0 if word in ("good", "Normal", "OK") else 1
        assert find_samples(tmp_path / "list.csv") == [Sample(tmp_path / "a.png", label, None, word)]

    def test_anomalib_s_columns_are_known(self, tmp_path: Path) -> None:
        """`image_path` and `mask_path` are `image` and `mask`; both names of one column are one too many."""
        tree(tmp_path, "a.png", "m.png")
        (tmp_path / "list.csv").write_text("image_path,label,mask_path\na.png,abnormal,m.png\n")
        assert find_samples(tmp_path / "list.csv") == [Sample(tmp_path / "a.png", 1, tmp_path / "m.png", "abnormal")]
        (tmp_path / "list.csv").write_text("image,image_path,label\na.png,a.png,1\n")
        with pytest.raises(CalibrationError, match=r"a column twice(.|\n)*'image'"):
            find_samples(tmp_path / "list.csv")


class TestLayouts:
    """What is known besides MVTec AD, and what is refused."""

    @pytest.mark.parametrize(
        ("files", "expected"),
        [
            pytest.param(
                ["normal/0.png", "abnormal/0.png", "mask/0.png"],
                [("abnormal/0.png", 1, "mask/0.png"), ("normal/0.png", 0, None)],
                id="folder-masks-flat",
            ),
            pytest.param(
                ["good/0.jpg", "colour/0.jpg", "crack/0.jpg", "mask/colour/0.png", "mask/crack/0.bmp"],
                [
                    ("colour/0.jpg", 1, "mask/colour/0.png"),
                    ("crack/0.jpg", 1, "mask/crack/0.bmp"),
                    ("good/0.jpg", 0, None),
                ],
                id="folder-masks-by-defect",
            ),
            pytest.param(
                ["good/0.png", "bad/0.png", "masks/bad/0_mask.jpg"],
                [("bad/0.png", 1, "masks/bad/0_mask.jpg"), ("good/0.png", 0, None)],
                id="folder-good-bad",
            ),
            pytest.param(
                ["train/ok/0.bmp", "test/ok/1.bmp", "test/ko/2.bmp", "ground_truth/ko/2.png"],
                [("test/ko/2.bmp", 1, "ground_truth/ko/2.png"), ("test/ok/1.bmp", 0, None)],
                id="btad",
            ),
            pytest.param(
                ["Data/Images/Normal/00.JPG", "Data/Images/Anomaly/0.JPG", "Data/Masks/Anomaly/0.png"],
                [("Data/Images/Anomaly/0.JPG", 1, "Data/Masks/Anomaly/0.png"), ("Data/Images/Normal/00.JPG", 0, None)],
                id="visa",
            ),
            pytest.param(
                ["test/good/0.png", "test/bad/0.png", "ground_truth/test/bad/0.png", "ground_truth/train/bad/0.png"],
                [("test/bad/0.png", 1, "ground_truth/test/bad/0.png"), ("test/good/0.png", 0, None)],
                id="visa-two-class",
            ),
            pytest.param(
                ["test_public/good/0.png", "test_public/bad/0.png", "test_public/ground_truth/bad/0_mask.png"],
                [
                    ("test_public/bad/0.png", 1, "test_public/ground_truth/bad/0_mask.png"),
                    ("test_public/good/0.png", 0, None),
                ],
                id="mvtec-ad-2",
            ),
            pytest.param(["KO/0.png"], [("KO/0.png", 1, None)], id="anomalous-alone"),
        ],
    )
    def test_known_layouts(self, tmp_path: Path, files: list[str], expected: list[tuple[str, int, str | None]]) -> None:
        """Class folders give the labels, whatever their upper and lower case; masks have any suffix."""
        assert names(find_samples(tree(tmp_path, *files)), tmp_path) == expected

    def test_visa_s_own_lists(self, tmp_path: Path) -> None:
        """With the split list beside the objects their splits are known; paths start at the folder of all objects."""
        candle = tree(
            tmp_path / "candle",
            "Data/Images/Normal/0.JPG", "Data/Images/Normal/1.JPG",
            "Data/Images/Anomaly/0.JPG", "Data/Masks/Anomaly/0.png",
        )  # fmt: skip
        images = "candle/Data/Images"
        (tmp_path / "split_csv").mkdir()
        listing = tmp_path / "split_csv" / "1cls.csv"
        listing.write_text(
            f"object,split,label,image,mask\ncandle,train,normal,{images}/Normal/0.JPG,\n"
            f"candle,test,normal,{images}/Normal/1.JPG,\n"
            f"candle,test,anomaly,{images}/Anomaly/0.JPG,candle/Data/Masks/Anomaly/0.png\n"
        )
        for path in (candle, listing):
            samples = find_samples(path)
            assert [(sample.label, sample.group, sample.split) for sample in samples] == [
                (0, "normal", "test"),
                (1, "anomaly", "test"),
            ]
            assert [sample.image for sample in samples] == [
                tmp_path / images / name for name in ("Normal/1.JPG", "Anomaly/0.JPG")
            ]
            assert samples[1].mask == candle / "Data/Masks/Anomaly/0.png"
        assert [sample.image.name for sample in find_samples(candle, split="train")] == ["0.JPG"]
        assert len(find_samples(candle / "Data" / "Images")) == 3, "the folders alone have no splits"

    def test_visa_s_annotations_name_the_defects(self, tmp_path: Path) -> None:
        """In `image_anno.csv` every label but `normal` is a kind of defect; in other lists it is a mistake."""
        tree(tmp_path / "candle" / "Data" / "Images", "Normal/0.JPG", "Anomaly/0.JPG")
        text = "image,label\nfolder/Normal/0.JPG,normal\nfolder/Anomaly/0.JPG,'burnt,bent'\n"
        text = text.replace("folder", "candle/Data/Images").replace("'", '"')
        listing = tmp_path / "candle" / "image_anno.csv"
        listing.write_text(text)
        assert [(sample.label, sample.group) for sample in find_samples(listing)] == [(0, "normal"), (1, "burnt,bent")]
        (tmp_path / "list.csv").write_text(text)
        with pytest.raises(CalibrationError, match="line 3: label 'burnt,bent'"):
            find_samples(tmp_path / "list.csv")

    def test_a_list_of_many_objects_is_refused(self, tmp_path: Path) -> None:
        """A threshold of all objects together means nothing; the folder to give is named. A check may take them."""
        tree(tmp_path, "a/Data/Images/Normal/0.JPG", "b/Data/Images/Normal/0.JPG")
        (tmp_path / "split_csv").mkdir()
        listing = tmp_path / "split_csv" / "1cls.csv"
        rows = [f"{each},test,normal,{each}/Data/Images/Normal/0.JPG,\n" for each in "ab"]
        listing.write_text("".join(["object,split,label,image,mask\n", *rows]))
        with pytest.raises(UsageError, match=rf"lists 2 objects\n.*a, b(.|\n)*such as {tmp_path / 'a'}"):
            find_samples(listing)
        assert len(find_samples(listing, labels=False)) == 2
        with pytest.raises(UsageError, match=rf"no layout that is known(.|\n)*fix: .*such as {tmp_path / 'a'}"):
            find_samples(tmp_path)

    @pytest.mark.parametrize(
        ("files", "found"),
        [
            pytest.param(["a/0.png", "b/0.png"], "0 image(s) and the folders a, b", id="names"),
            pytest.param(["good/0.png", "crack/0.png", "0.png"], "1 image(s) and the folders crack, good", id="beside"),
            pytest.param(["good/0.png", "normal_test/0.png"], "folders good, normal_test", id="two-normal"),
            pytest.param(["good/0.png", "train/0.png"], "folders good, train", id="class-and-split"),
            pytest.param(["bad/0.png", "scratch/0.png"], "folders bad, scratch", id="no-normal"),
            pytest.param(["validation/a/0.png"], "0 image(s) and the folders a", id="in-a-split"),
        ],
    )
    def test_an_unknown_layout_is_refused(self, tmp_path: Path, files: list[str], found: str) -> None:
        """What was found and what is known is said; nothing is guessed."""
        with pytest.raises(UsageError, match="no layout that is known") as raised:
            find_samples(tree(tmp_path, *files))
        assert found in str(raised.value.found)
        for known in ("good/, normal/ or ok/", "MVTec AD", "BTAD", "Anomalib's Folder", "VisA", "validation/"):
            assert known in str(raised.value.needed)
        assert "CSV file with image,label,mask" in str(raised.value.fix)

    def test_a_folder_of_data_sets_names_one_of_them(self, tmp_path: Path) -> None:
        """Given `mvtec` in place of `mvtec/bottle`, the fix is a path that works."""
        tree(tmp_path, "bottle/test/good/0.png", "cable/test/good/0.png")
        with pytest.raises(UsageError, match="no layout that is known") as raised:
            find_samples(tmp_path)
        assert str(raised.value.fix).endswith(f"such as {tmp_path / 'bottle'}")
        assert len(find_samples(tmp_path / "bottle")) == 1

    def test_a_class_folder_alone_is_refused_with_the_one_around_it(self, tmp_path: Path) -> None:
        """Its images have no label of their own."""
        tree(tmp_path, "good/0.png", "bad/0.png")
        with pytest.raises(CalibrationError, match=rf"1 of 1 images have no label(.|\n)*around it: {tmp_path}$"):
            find_samples(tmp_path / "good")

    def test_folders_in_a_class_folder_are_not_passed_over(self, tmp_path: Path) -> None:
        """A defect whose images lie a folder deeper would be left out without a word."""
        with pytest.raises(UsageError, match=r"crack holds no image\n.*the folders rgb, xyz"):
            find_samples(tree(tmp_path, "good/0.png", "crack/rgb/0.png", "crack/xyz/0.png"))


class TestMasks:
    """Which file is the mask of an image."""

    def test_the_ending_mask_goes_before_the_bare_stem(self, tmp_path: Path) -> None:
        """Some sets keep a copy of the image beside its mask."""
        tree(tmp_path, "good/0.png", "bad/0.png", "masks/bad/0.png", "masks/bad/0_mask.png")
        assert find_samples(tmp_path)[0].mask == tmp_path / "masks/bad/0_mask.png"

    def test_two_masks_of_one_image_are_refused(self, tmp_path: Path) -> None:
        """Nobody knows which one is meant."""
        tree(tmp_path, "good/0.png", "bad/0.png", "masks/bad/0.png", "masks/bad/0.bmp")
        with pytest.raises(CalibrationError, match=r"bad.0\.png has 2 masks\n.*0\.bmp, .*0\.png"):
            find_samples(tmp_path)

    def test_two_folders_of_masks_are_refused(self, tmp_path: Path) -> None:
        """As well."""
        tree(tmp_path, "good/0.png", "bad/0.png", "masks/0.png", "ground_truth/bad/0.png")
        with pytest.raises(UsageError, match=r"masks may be in 2 folders\n.*ground_truth and .*masks"):
            find_samples(tmp_path)

    def test_one_folder_for_the_masks_of_several_defects_is_not_taken(self, tmp_path: Path) -> None:
        """`0.png` could be of either; with folders by defect it is clear."""
        tree(tmp_path, "good/0.png", "a/0.png", "b/0.png", "masks/0.png")
        assert [sample.mask for sample in find_samples(tmp_path)] == [None, None, None]

    def test_the_folder_may_be_where_the_command_runs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """`--images .` finds the masks beside it, and the split that it is."""
        monkeypatch.chdir(mvtec(tmp_path) / "test")
        samples = find_samples(".")
        assert sum(sample.mask is not None for sample in samples) == 2
        assert {sample.split for sample in samples} == {"test"}


class TestSplits:
    """Which of several splits is taken."""

    @pytest.mark.parametrize(
        ("splits", "taken"),
        [
            (["test", "train", "validation"], "validation"),
            (["test", "train", "val"], "val"),
            (["Test", "Valid"], "Valid"),
            (["test", "train"], "test"),
            (["test_public", "train", "validation"], "validation"),
        ],
        ids=" ".join,
    )
    def test_validation_goes_before_test(self, tmp_path: Path, splits: list[str], taken: str) -> None:
        """Every sample tells its split; another one is taken if asked for, by its name or by its kind."""
        tree(tmp_path, *(f"{split}/good/0.png" for split in splits))
        assert [sample.split for sample in find_samples(tmp_path)] == [taken]
        for split in splits:
            assert find_samples(tmp_path, split=split)[0].image == tmp_path / split / "good" / "0.png"
        assert find_samples(tmp_path, split="test")[0].split in ("test", "Test", "test_public")

    def test_the_training_split_is_taken_only_if_asked_for(self, tmp_path: Path) -> None:
        """A threshold on what the model was trained on is too low; where no labels are needed it serves."""
        tree(tmp_path, "train/good/0.png")
        with pytest.raises(UsageError, match=r"no validation or test split\n.*train(.|\n)*--split train"):
            find_samples(tmp_path)
        assert find_samples(tmp_path, split="train") == find_samples(tmp_path, labels=False)

    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            ("holdout", r"--split holdout: .* has no such split\n.*test_a, test_b(.|\n)*--split test_a"),
            ("validation", "--split validation: .* has no such split"),
            (None, r"several test splits\n.*test_a, test_b(.|\n)*--split test_a"),
            ("test", "several test splits"),
        ],
    )
    def test_a_split_that_is_not_there_or_not_clear_is_refused(
        self, tmp_path: Path, asked: str | None, message: str
    ) -> None:
        """The error names those that are there; where no labels are needed the first one serves."""
        tree(tmp_path, "test_a/good/0.png", "test_b/good/0.png")
        with pytest.raises(UsageError, match=message):
            find_samples(tmp_path, split=asked)
        assert find_samples(tmp_path, labels=False)[0].split == "test_a"

    def test_the_name_of_a_folder_tells_its_split(self, tmp_path: Path) -> None:
        """`bottle/test` is the test split, `bottle` with classes in it is none that is known."""
        tree(tmp_path, "test/good/0.png", "bottle/good/0.png")
        assert find_samples(tmp_path / "test", split="test")[0].split == "test"
        assert find_samples(tmp_path / "bottle")[0].split is None
        for folder, found in (("test", "test"), ("bottle", "no splits")):
            with pytest.raises(UsageError, match=rf"--split val: .*{folder} has no such split\n.*{found}"):
                find_samples(tmp_path / folder, split="val")

    def test_a_column_of_a_csv_file_tells_the_split(self, tmp_path: Path) -> None:
        """Only the lines of the split that is taken are looked at; else the name of the file may tell it."""
        tree(tmp_path, "a.png", "b.png")
        (tmp_path / "list.csv").write_text("image,label,split\na.png,0,val\nb.png,1,holdout\ngone.png,x,test\n")
        assert find_samples(tmp_path / "list.csv") == [Sample(tmp_path / "a.png", 0, None, "normal", "val")]
        assert find_samples(tmp_path / "list.csv", split="holdout")[0].image == tmp_path / "b.png"
        with pytest.raises(UsageError, match=r"no such split\n.*val, holdout, test\n.*--split test"):
            find_samples(tmp_path / "list.csv", split="tset")
        (tmp_path / "test.csv").write_text("image,label\na.png,0\n")
        assert find_samples(tmp_path / "test.csv")[0].split == "test"

    @pytest.mark.parametrize(
        ("name", "kind"),
        [("val2017", "validation"), ("Training", "train"), ("tests", None), ("good", None), ("", None), (None, None)],
    )
    def test_the_first_word_says_what_a_split_is(self, name: str | None, kind: str | None) -> None:
        """And nothing that merely begins alike."""
        assert split_kind(name) == kind


class TestClasses:
    """Counting by class, and taking some of each."""

    SAMPLES = (
        *(Sample(Path(f"crack/{index}.png"), 1, None, "crack") for index in range(5)),
        *(Sample(Path(f"good/{index}.png"), 0, None, "good") for index in range(3)),
        Sample(Path("hole/0.png"), 1, None, "hole"),
    )

    @pytest.mark.parametrize(
        ("limit", "taken"),
        [
            (1, {"crack": 1}),
            (3, {"crack": 1, "good": 1, "hole": 1}),
            (6, {"crack": 3, "good": 2, "hole": 1}),
            (99, {"crack": 5, "good": 3, "hole": 1}),
            (None, {"crack": 5, "good": 3, "hole": 1}),
        ],
    )
    def test_a_limit_takes_from_every_class_in_turn(self, limit: int | None, taken: dict[str, int]) -> None:
        """The first ones of each, in the order that they had."""
        some = spread(self.SAMPLES, limit)
        assert class_counts(some) == taken
        assert list(some) == [sample for sample in self.SAMPLES if sample in some]
        assert {sample.image.stem for sample in some if sample.group == "crack"} == {
            str(i) for i in range(taken["crack"])
        }

    def test_images_without_classes_are_taken_from_the_front(self) -> None:
        """They count to none."""
        flat = [Sample(Path(f"{index}.png")) for index in range(3)]
        assert (spread(flat, 2), class_counts(flat)) == (tuple(flat[:2]), {})

    def test_of_many_classes_the_largest_are_shown(self) -> None:
        """A line stays a line."""
        assert described({"crack": 3, "hole": 2}) == "crack 3, hole 2"
        assert described({f"kind{index}": index for index in range(10)}).startswith("kind2 2, kind3 3")
        assert described({f"kind{index}": index for index in range(10)}).endswith("kind9 9, 2 more kinds")
