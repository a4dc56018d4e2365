"""The folder that `predict` writes: names, pictures, the table, and what is not written over."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from postproc_export.errors import FileError, UsageError
from postproc_export.files import refuse_foreign
from postproc_export.prediction import folder as folders
from postproc_export.prediction.folder import COLUMNS, FolderWriter, parse_pictures, picture_name
from postproc_export.prediction.predictor import Prediction


def test_pictures_are_chosen_by_name() -> None:
    """In one order, each once; of a model without a map none, and asking for one is refused."""
    assert parse_pictures(None, has_map=True) == ("overlay",)
    assert parse_pictures(None, has_map=False) == ()
    assert parse_pictures("overlay, map", has_map=True) == ("map", "overlay")
    assert parse_pictures(["mask", "mask"], has_map=True) == ("mask",)
    assert parse_pictures("none", has_map=False) == ()
    with pytest.raises(UsageError, match=r"--save heat: unknown\n(.|\n)*map, mask, overlay"):
        parse_pictures("heat,map", has_map=True)
    with pytest.raises(UsageError, match="--save map would have no effect"):
        parse_pictures("map", has_map=False)


NAMES = {
    "a/1.png": "a/1.png",
    "a/1.jpg": "a/1.jpg.png",
    "a/1.jpg.png": "a/1.jpg.png.png",
    "a/1.PNG": "a/1.PNG.png",
    "a/1.PNG.png": "a/1.PNG.png.png",
    "a/1.png.png": "a/1.png.png.png",
    "../b/1.png": "_up/b/1.png",
    "_up/b/1.png": "_up_/b/1.png",
    "_up_/b/1.png": "_up__/b/1.png",
    "a b/\udcff.png": "a b/\udcff.png",
}


@pytest.mark.parametrize("image", NAMES)
def test_pictures_stand_as_the_images_do(image: str) -> None:
    """Readable names, below the folder of the pictures whatever the image's path."""
    assert picture_name(Path("/base/in") / image, Path("/base/in")).as_posix() == NAMES[image]


def test_no_two_images_have_one_picture() -> None:
    """Nor does it matter how an image is written."""
    assert len(set(NAMES.values())) == len(NAMES)
    assert picture_name(Path("/base/in/x/../a/1.png"), Path("/base/in")) == Path("a/1.png")


def refuse(folder: Path) -> None:
    """Refuse a folder as `predict` does."""
    refuse_foreign(folder, folders.NAMES, start=",".join(COLUMNS), noun="prediction", command="predict")


class TestForeign:
    """A folder with anything but an earlier prediction is left alone."""

    def test_an_earlier_prediction_and_nothing_are_replaced(self, tmp_path: Path) -> None:
        """Hidden files do not count; a folder need not be there."""
        refuse(tmp_path / "absent")
        refuse(tmp_path)
        (tmp_path / ".hidden").touch()
        (tmp_path / "predictions.csv").write_text(",".join(COLUMNS) + "\n")
        (tmp_path / "masks").mkdir()
        refuse(tmp_path)

    @pytest.mark.parametrize("name", ["notes.txt", "masks", "predictions.csv"])
    def test_other_files_are_not(self, tmp_path: Path, name: str) -> None:
        """A file of another name, a folder of masks without our table, a table of somebody else's."""
        (tmp_path / name).mkdir() if name == "masks" else (tmp_path / name).write_text("path,label\n")
        with pytest.raises(FileError, match=rf"holds other files(.|\n)*{name}"):
            refuse(tmp_path)

    def test_a_file_is_no_folder(self, tmp_path: Path) -> None:
        """It is refused before anything runs."""
        (tmp_path / "out").touch()
        with pytest.raises(FileError, match="no folder"):
            refuse(tmp_path / "out")


def scored(name: str, raw: float | None, score: float | None = None) -> Prediction:
    """Return a prediction of an image of two pixels."""
    image = Image.new("RGB", (2, 1))
    return Prediction(path=Path("/in") / name, raw_score=raw, score=score, label=True, image=image, size=(1, 2))


def test_the_table_has_a_line_for_each_image(tmp_path: Path) -> None:
    """Numbers as the shortest decimal of the float32; an error in place of what is not known; commas are quoted."""
    writer = FolderWriter(tmp_path, Path("/in"), (), 0)
    failed = Prediction(path=Path("/in/b,c.png"), group="x", truth=True, error="cannot read it")
    drawn = [writer.draw(scored("a.png", float(np.float32(0.1)), 0.75)), writer.draw(failed)]
    assert list(writer.rows(drawn)) == [prediction for prediction, _ in drawn]
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert lines == [",".join(COLUMNS), "/in/a.png,,,0.75,1,0.1,,,,,,", '"/in/b,c.png",x,1,,,,,,,,,cannot read it']


def test_the_sheet_shows_the_most_anomalous(tmp_path: Path) -> None:
    """By raw value, of which clamped scores tell nothing; NaN first; images without a value are left out."""
    writer = FolderWriter(tmp_path, Path("/in"), (), 3)
    values = [5.0, 1.0, float("nan"), 7.0, 5.0, None]
    list(
        writer.rows(
            [writer.draw(scored(f"{index}.png", raw, 1.0 if raw else None)) for index, raw in enumerate(values)]
        )
    )
    assert [lines[0] for _, lines in writer.worst()] == ["2.png", "3.png", "0.png"]
    writer.finish()
    assert (tmp_path / "contact_sheet.jpg").is_file()


def test_no_sheet_without_values(tmp_path: Path) -> None:
    """Nothing to show gives no file."""
    writer = FolderWriter(tmp_path, Path("/in"), (), 3)
    assert len(list(writer.rows([writer.draw(scored("a.png", None))]))) == 1
    writer.finish()
    assert not (tmp_path / "contact_sheet.jpg").exists()
