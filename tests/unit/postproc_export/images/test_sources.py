"""Which images `predict` takes: folders, lists, patterns and CSV files."""

from pathlib import Path

import pytest
from image_files import mvtec, save

from postproc_export.errors import CalibrationError, FileError, UsageError
from postproc_export.images.sources import Images, find_images


def names(root: Path, images: Images) -> list[str]:
    """Return the images that are found, relative to the root."""
    return [each.image.relative_to(root).as_posix() for each in find_images(images)]


def test_a_known_layout_gives_labels_classes_and_masks(tmp_path: Path) -> None:
    """Of the root, of which the test split is taken, as of the split itself."""
    root = mvtec(tmp_path / "set")
    for folder in (root, root / "test"):
        found = find_images(folder)
        assert [(each.group, each.label, each.mask is None) for each in found] == [
            ("crack", 1, False),
            ("good", 0, True),
            ("good", 0, True),
            ("hole", 1, False),
        ]
        assert (found.base, found.notes) == (folder, ())


def test_any_other_folder_is_taken_with_all_below_it(tmp_path: Path) -> None:
    """Masks, hidden files and other files are left out, and it is said that nothing is known of the images."""
    for name in ("b.jpg", "a/2.png", "a/1.png", "a/deep/er/x.bmp", "masks/a.png", ".hidden/h.png"):
        save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("x")
    found = find_images(tmp_path / "in")
    assert names(tmp_path / "in", tmp_path / "in") == ["b.jpg", "a/1.png", "a/2.png", "a/deep/er/x.bmp"]
    assert {each.label for each in found} == {None}
    assert "no layout that is known" in found.notes[0]


def test_links_that_lead_round_are_not_followed(tmp_path: Path) -> None:
    """One to its own folder would give every image forty times; any other link to a folder is followed."""
    save(tmp_path / "in" / "a" / "1.png")
    save(tmp_path / "other" / "2.png")
    (tmp_path / "in" / "a" / "round").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "other")
    assert names(tmp_path, tmp_path / "in") == ["in/a/1.png", "in/link/2.png"]


def test_a_link_to_itself_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    """It does not keep the others from being found; by any other name it is nothing."""
    save(tmp_path / "1.png")
    for name in ("itself.png", "itself"):
        (tmp_path / name).symlink_to(tmp_path / name)
    assert names(tmp_path, tmp_path) == ["1.png", "itself.png"]


def test_a_pattern_a_list_and_one_image(tmp_path: Path) -> None:
    """A pattern that is the name of a folder is that folder; a list may hold folders."""
    for name in ("a/1.png", "a/b/2.png", "c[1]/3.png"):
        save(tmp_path / name)
    assert names(tmp_path, tmp_path / "a" / "**" / "*.png") == ["a/1.png", "a/b/2.png"]
    assert names(tmp_path, str(tmp_path / "*" / "?.png")) == ["a/1.png", "c[1]/3.png"]
    assert names(tmp_path, tmp_path / "c[1]") == ["c[1]/3.png"]
    assert names(tmp_path, tmp_path / "a" / "1.png") == ["a/1.png"]
    both = find_images([tmp_path / "c[1]" / "3.png", tmp_path / "a"])
    assert ([each.image.name for each in both], both.base) == (["3.png", "1.png", "2.png"], tmp_path)


def test_a_csv_file_gives_labels_where_it_has_them(tmp_path: Path) -> None:
    """An image that is not there is left to whoever reads it."""
    save(tmp_path / "a.png")
    save(tmp_path / "m.png")
    listing = tmp_path / "list.csv"
    listing.write_text("image,label,mask\na.png,bad,m.png\nabsent.png,,\n")
    first, second = find_images(listing)
    assert (first.label, first.mask) == (1, tmp_path / "m.png")
    assert (second.label, second.image) == (None, tmp_path / "absent.png")


def test_what_holds_no_image_is_refused(tmp_path: Path) -> None:
    """An empty folder, list or pattern, and options that no image could have."""
    (tmp_path / "empty").mkdir()
    nothing: list[Images] = [tmp_path / "empty", [], tmp_path / "*.png", [tmp_path / "empty", tmp_path / "empty"]]
    for images in nothing:
        with pytest.raises(CalibrationError, match="holds no image"):
            find_images(images)
    with pytest.raises(FileError, match="no such file or folder"):
        find_images(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"--split is for one folder or CSV file"):
        find_images([tmp_path / "a.png", tmp_path / "b.png"], split="test")
    save(tmp_path / "other" / "x" / "a.png")
    with pytest.raises(UsageError, match="has no such split"):
        find_images(tmp_path / "other", split="test")


def test_an_image_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    """It would count twice, maybe with two labels: in a CSV file, and in a folder that a list names, too."""
    save(tmp_path / "in" / "a.png")
    listing = tmp_path / "list.csv"
    listing.write_text("image,label\nin/a.png,0\nin/b.png,0\nin/../in/a.png,1\n")
    twice: list[Images] = [listing, [tmp_path / "in", tmp_path / "in" / "a.png"]]
    for images in twice:
        with pytest.raises(CalibrationError, match=r"names the image .*a\.png a second time"):
            find_images(images)
