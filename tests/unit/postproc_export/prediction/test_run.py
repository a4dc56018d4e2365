"""`predict` into a folder, on images of which every figure is known."""

import csv
import json
import os
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import pytest
from attached_files import FED, SIDE, detector, labelled, photo, stats
from image_files import save
from numpy.typing import NDArray
from PIL import Image

from postproc_export.errors import FileError, UsageError
from postproc_export.images.pictures import COLORS
from postproc_export.prediction.run import PredictResult, predict_folder


def table(folder: Path) -> list[dict[str, str]]:
    """Return the lines of the table."""
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def picture(path: Path) -> NDArray[Any]:
    """Return the pixels of a picture."""
    with Image.open(path) as image:
        return np.asarray(image)


def files(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder with its bytes."""
    return {each.relative_to(folder).as_posix(): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> PredictResult:
    """The four labelled photos, with every picture."""
    root = tmp_path_factory.mktemp("predicted")
    return predict_folder(detector(root), labelled(root / "images"), output=root / "out", save="map,mask,overlay")


def test_every_figure_is_right(predicted: PredictResult) -> None:
    """Counts, areas, shares and boxes by hand."""
    assert (predicted.images, predicted.anomalous, predicted.unusable, bool(predicted)) == (4, 2, 0, True)
    rows = table(predicted.output)
    assert [(row["group"], row["truth"], row["label"]) for row in rows] == [
        ("good", "0", "0"),
        ("good", "0", "1"),
        ("spot", "1", "1"),
        ("spot", "1", "0"),
    ]
    assert [(row["area"], row["share"], row["regions"], row["boxes"]) for row in rows] == [
        ("0", "0", "0", ""),
        ("4", "0.015625", "1", "0,0,2,2"),
        ("8", "0.03125", "1", "3,5,4,2"),
        ("0", "0", "0", ""),
    ]
    raw = str(np.float32(240 / 255) * np.float32(0.875) - np.float32(0.25))
    assert rows[2]["raw_score"] == rows[2]["raw_map_max"] == raw
    known = json.loads((predicted.output / "metrics.json").read_text())["levels"]
    counts = {level: [known[level]["decisions"][name] for name in ("tp", "fp", "tn", "fn")] for level in known}
    assert counts == {"image": [1, 1, 1, 1], "pixel": [8, 4, 4 * SIDE**2 - 20, 8]}


def test_pictures_have_the_size_of_the_image_and_one_scale(predicted: PredictResult) -> None:
    """Masks of 0 and 255, maps in the colors of the scale, overlays of the image."""
    assert predicted.written == ("predictions.csv", "metrics.json", "contact_sheet.jpg", "maps", "masks", "overlays")
    names = {f"{folder}/{name}.png" for folder in ("good", "spot") for name in ("000", "001")}
    for pictures in ("maps", "masks", "overlays"):
        assert set(files(predicted.output / pictures)) == names
    mask = picture(predicted.output / "masks" / "spot" / "000.png")
    expected = np.zeros((SIDE, SIDE), np.uint8)
    expected[5:7, 3:7] = 255
    np.testing.assert_array_equal(mask, expected)
    drawn = picture(predicted.output / "maps" / "spot" / "000.png")
    np.testing.assert_array_equal(drawn[5, 3], COLORS[211])  # 240 / 255 * 0.875 - 0.25 is 0.8235 of it
    assert drawn[0, 0, 2] > drawn[0, 0, 0]


def test_the_same_images_give_the_same_files(predicted: PredictResult, tmp_path: Path) -> None:
    """To the byte, but for the latency; in batches of another size, and without the raw values, the table of one."""
    images, pictures = predicted.source.parent / "images", ["overlay", "map", "mask"]
    again = predict_folder(predicted.source, images, output=tmp_path / "out", save=pictures, batch_size=3)
    first, second = files(predicted.output), files(again.output)
    metrics = [json.loads(found.pop("metrics.json")) for found in (first, second)]
    assert first == second
    assert [each.pop("latency") is None for each in metrics] == [False, False]
    assert metrics[0] == metrics[1]


def test_an_earlier_prediction_is_replaced_and_other_files_are_not(tmp_path: Path) -> None:
    """What the second run does not write is gone, too."""
    model, out = detector(tmp_path), tmp_path / "out"
    predict_folder(model, labelled(tmp_path / "images"), output=out, save="mask")
    assert (out / "metrics.json").exists()
    photo(tmp_path / "other" / "x.png", (1, 1, 1, 1))
    result = predict_folder(model, tmp_path / "other", output=out, sheet=0)
    assert sorted(files(out)) == ["overlays/x.png", "predictions.csv"]
    assert result.evaluation is None
    (out / "mine.txt").touch()
    before = files(out)
    with pytest.raises(FileError, match=r"mine\.txt"):
        predict_folder(model, tmp_path / "images", output=out)
    assert files(out) == before


def test_what_fails_leaves_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Halfway through the images, of a new folder and of one that is there."""
    model, images = detector(tmp_path), labelled(tmp_path / "images")
    predict_folder(model, images, output=tmp_path / "there")
    before = files(tmp_path / "there")

    def full(path: Path, _: Any) -> None:
        if path.name == "001.png":
            raise OSError(28, "No space left on device")
        path.touch()

    monkeypatch.setattr("postproc_export.prediction.folder.save_png", full)
    for name in ("there", "new"):
        with pytest.raises(FileError, match=r"No space left(.|\n)*make room"):
            predict_folder(model, images, output=tmp_path / name)
    assert files(tmp_path / "there") == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["images", "raw.onnx", "raw.post.onnx", "there"]


class TestNothingIsWrittenOver:
    """No image, model or listing is ever replaced."""

    def test_a_folder_among_the_images(self, tmp_path: Path) -> None:
        """Its pictures would be images of the next run."""
        images = labelled(tmp_path / "images")
        with pytest.raises(FileError, match=r"lies in .*images, which is read"):
            predict_folder(detector(tmp_path), images, output=images / "out")

    @pytest.mark.parametrize("kind", ["pattern", "list", "csv", "link"])
    def test_images_among_the_pictures_of_an_earlier_run(self, tmp_path: Path, kind: str) -> None:
        """They would be gone before they were read."""
        model, out = detector(tmp_path), tmp_path / "out"
        predict_folder(model, labelled(tmp_path / "images"), output=out)
        pictures = sorted((out / "overlays").rglob("*.png"))
        listing = tmp_path / "list.csv"
        listing.write_text("image\n" + "".join(f"{each}\n" for each in pictures))
        (tmp_path / "link").symlink_to(out / "overlays")
        images: Any = {
            "pattern": out / "overlays" / "*" / "*.png",
            "list": pictures,
            "csv": listing,
            "link": tmp_path / "link",
        }[kind]
        before = files(out)
        with pytest.raises(FileError, match="lies in"):
            predict_folder(model, images, output=out)
        assert files(out) == before


def test_nothing_is_drawn_any_more_once_it_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is not waited for would make the folder again, which nobody removes then."""
    for number in range(12):
        photo(tmp_path / "images" / str(number) / "photo.png")
    drawing, ended = list[Path](), list[Path]()

    def slow(path: Path, _: Any) -> None:
        drawing.append(path)
        time.sleep(0.05)
        ended.append(path)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("postproc_export.prediction.folder.save_png", slow)
    asked: dict[str, Any] = {"workers": 4, "batch_size": 1, "progress": interrupt}
    with pytest.raises(KeyboardInterrupt) as stopped:
        predict_folder(detector(tmp_path), tmp_path / "images", output=tmp_path / "out", **asked)
    assert (len(drawing), (tmp_path / "out").exists()) == (len(ended), False)
    assert stopped.tb, "the frames are there still, and what they hold"


def test_an_unusable_image_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    """Empty, cut off, not there, with a mask of another size: each has a line with the reason, and no picture."""
    photo(tmp_path / "in" / "a.png", (2, 2, 1, 1))
    (tmp_path / "in" / "empty.png").touch()
    (tmp_path / "in" / "cut.png").write_bytes((tmp_path / "in" / "a.png").read_bytes()[:60])
    save(tmp_path / "in" / "small_mask.png", np.zeros((3, 3), np.uint8))
    shutil.copy(tmp_path / "in" / "a.png", tmp_path / "in" / "b.png")
    names = ("a", "empty", "cut", "absent")
    listing = tmp_path / "list.csv"
    lines = ["image,label,mask", *(f"in/{name}.png,0," for name in names), "in/b.png,1,in/small_mask.png"]
    listing.write_text("\n".join(lines))
    result = predict_folder(detector(tmp_path), listing, output=tmp_path / "out")
    assert (result.images, result.unusable, bool(result)) == (5, 4, False)
    found = [row["error"] for row in table(result.output)]
    assert [bool(each) for each in found] == [False, True, True, True, True]
    for text, name in zip(found[1:], ("empty.png", "cut.png", "absent.png", "small_mask.png"), strict=True):
        assert name in text
    assert "absent.png" in result.summary()
    assert [each for each in files(result.output) if each.startswith("overlays")] == ["overlays/in/a.png"]


def test_images_of_one_name_have_pictures_of_their_own(tmp_path: Path) -> None:
    """In other folders, of other types, and outside of the folder of the listing."""
    for name in ("in/a.png", "in/a.jpg", "in/b/a.png", "else where/a.png"):
        photo(tmp_path / name)
    listing = tmp_path / "in" / "list.csv"
    listing.write_text("image\na.png\na.jpg\nb/a.png\n../else where/a.png\n")
    result = predict_folder(detector(tmp_path), listing, output=tmp_path / "out", sheet=0)
    assert sorted(files(result.output / "overlays")) == ["_up/else where/a.png", "a.jpg.png", "a.png", "b/a.png"]


def test_turned_grey_and_deep_images_have_pictures_as_they_are_seen(tmp_path: Path) -> None:
    """Boxes and pictures are in pixels of the image upright."""
    turn = Image.Exif()
    turn[0x0112] = 6  # turned by 90 degrees clockwise to be upright
    photo(tmp_path / "in" / "turned.png", (0, 0, 4, 2), size=(16, 32), exif=turn)
    grey = np.full((16, 32), 20, np.uint8)
    grey[4:6, 8:12] = 240
    save(tmp_path / "in" / "grey.png", grey)
    result = predict_folder(detector(tmp_path), tmp_path / "in", output=tmp_path / "out", save="mask,overlay")
    rows = {Path(row["path"]).name: row for row in table(result.output)}
    assert (rows["turned.png"]["boxes"], rows["grey.png"]["boxes"]) == ("14,0,2,4", "8,4,4,2")
    assert picture(result.output / "masks" / "turned.png").shape == (32, 16)
    assert picture(result.output / "overlays" / "grey.png").shape == (16, 32, 3)
    deep = detector(tmp_path, stats=stats(fed=FED.replaced({"bits": 16, "scale": 65535})))
    save(tmp_path / "deep" / "a.png", grey.astype(np.uint16) * 257)
    result = predict_folder(deep, tmp_path / "deep", output=tmp_path / "deep out", save="overlay")
    assert table(result.output)[0]["boxes"] == "8,4,4,2"


def test_names_of_any_bytes(tmp_path: Path) -> None:
    """A name that is no UTF-8 stands in the table as it is, and has its picture."""
    folder = tmp_path / "in"
    folder.mkdir()
    name = os.fsdecode(b"\xff \xc3\xa4.png")
    try:
        photo(folder / name)
    except OSError:
        pytest.skip("this file system has no such names")
    result = predict_folder(detector(tmp_path), folder, output=tmp_path / "out")
    assert os.fsencode(name) in (result.output / "predictions.csv").read_bytes()
    assert (result.output / "overlays" / name).exists()
    json.dumps(result.to_json())


def test_nothing_is_evaluated_where_nothing_is_known(tmp_path: Path) -> None:
    """A folder without a known layout: no metrics, and the reason is told."""
    photo(tmp_path / "in" / "line 1" / "a.png")
    result = predict_folder(detector(tmp_path), tmp_path / "in", output=tmp_path / "out")
    assert (result.evaluation, result.to_json()["metrics"]) == (None, None)
    assert "no layout that is known" in result.notes[0]
    assert not (result.output / "metrics.json").exists()


def test_a_score_alone(tmp_path: Path) -> None:
    """There is no picture of each image; the sheet shows the images, and asking for maps is refused."""
    model = detector(tmp_path, hosts.score_only(), stats=stats(pixel=False))
    images = labelled(tmp_path / "images")
    with pytest.raises(UsageError, match="save mask would have no effect"):
        predict_folder(model, images, output=tmp_path / "out", save="mask")
    result = predict_folder(model, images, output=tmp_path / "out")
    assert result.written == ("predictions.csv", "metrics.json", "contact_sheet.jpg")
    assert {(row["area"], row["boxes"], row["raw_map_max"]) for row in table(result.output)} == {("", "", "")}
    assert Counter(row["label"] for row in table(result.output)) == {"0": 2, "1": 2}


def test_progress_counts_every_image(tmp_path: Path) -> None:
    """From one to all."""
    seen: list[tuple[int, int]] = []
    predict_folder(
        detector(tmp_path), labelled(tmp_path / "in"), output=tmp_path / "out", progress=lambda *at: seen.append(at)
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
