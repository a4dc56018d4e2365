"""The folder that `predict` writes: a line in a CSV file for each image, pictures, and a sheet of the worst."""

import csv
import heapq
import os
import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from postproc_export.errors import UsageError
from postproc_export.images.layouts import SUFFIXES
from postproc_export.images.pictures import Tile, heatmap, overlay, reduced, save_jpeg, save_png, sheet, thumbnail
from postproc_export.prediction.predictor import Prediction
from postproc_export.prediction.regions import Box, find_regions

Picture: TypeAlias = Literal["map", "mask", "overlay"]

TABLE, METRICS, SHEET = "predictions.csv", "metrics.json", "contact_sheet.jpg"
FOLDERS: Final[Mapping[Picture, str]] = {"map": "maps", "mask": "masks", "overlay": "overlays"}
NAMES: Final = (TABLE, METRICS, SHEET, *FOLDERS.values())
"""What may be there, the table first: it says that all is there."""

COLUMNS: Final = (
    *("path", "group", "truth", "score", "label", "raw_score", "raw_map_max"),
    *("area", "share", "regions", "boxes", "error"),
)


def parse_pictures(save: str | Iterable[str] | None, *, has_map: bool) -> tuple[Picture, ...]:
    """Return the pictures that ``"map,mask"`` or a list names; overlays where nothing is asked for and there are maps.

    Raises UsageError for another name, and for pictures of maps where the model has none.
    """
    if save is None:
        return ("overlay",) if has_map else ()
    names = [name.strip() for name in (save.split(",") if isinstance(save, str) else save)]
    if names == ["none"]:
        return ()
    unknown = sorted(set(names) - set(FOLDERS))
    if unknown or not names:
        needed = f"{', '.join(FOLDERS)}, several of them with commas between, or none"
        raise UsageError(f"--save {','.join(unknown) or '(nothing)'}: unknown", needed=needed, fix="choose among these")
    if not has_map:
        what = f"--save {','.join(names)} would have no effect"
        raise UsageError(what, found="a model without a map", fix="leave it out")
    return tuple(each for each in FOLDERS if each in names)


def picture_name(image: Path, base: Path) -> Path:
    """Return where the pictures of an image stand in their folder: as the image stands in `base`.

    No two images have one name. A PNG keeps its own, any other image gets ``.png`` behind it, and so does a PNG whose
    name would be that of another then. A step out of the base is called ``_up``.
    """
    parts = Path(os.path.relpath(image.absolute(), base.absolute())).parts
    folders = ["_up" if part == ".." else re.sub(r"^(_up_*)$", r"\1_", part) for part in parts[:-1]]
    name = parts[-1]
    keeps = name.endswith(".png") and not name[:-4].lower().endswith(SUFFIXES)
    return Path(*folders, name if keeps else f"{name}.png")


Drawn: TypeAlias = tuple[Prediction, tuple[str, ...]]
"""What is predicted of an image, and its line of the table."""


class FolderWriter:
    """Writes what is predicted into a temporary folder; only `draw` may be called in several threads at once.

    `base` is the folder that the images lie in, and `tiles` how many of them the sheet shows.
    """

    def __init__(self, folder: Path, base: Path, pictures: Sequence[Picture], tiles: int) -> None:
        self.folder, self.pictures = folder, pictures
        self._base, self._tiles = base, tiles
        self._made = set[Path]()
        self._worst: list[tuple[float, int, Prediction]] = []
        self._count = 0

    def rows(self, drawn: Iterable[Drawn]) -> Generator[Prediction, None, None]:
        """Write the table line by line, and yield the prediction of each."""
        with (self.folder / TABLE).open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            lines = csv.writer(file, lineterminator="\n")
            lines.writerow(COLUMNS)
            for prediction, row in drawn:
                lines.writerow(row)
                self._keep_worst(prediction)
                yield prediction

    def draw(self, prediction: Prediction) -> Drawn:
        """Write the pictures of an image, and return its line."""
        if prediction.error is not None:
            return prediction, _row(prediction, None)
        placement, mask = prediction.placement, prediction.mask
        regions = None if mask is None or placement is None else find_regions(mask, placement)
        name = picture_name(prediction.path, self._base)
        for picture in self.pictures:
            drawn = _picture(picture, prediction)
            if drawn is not None:
                target = self.folder / FOLDERS[picture] / name
                if target.parent not in self._made:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    self._made.add(target.parent)
                save_png(target, drawn)
        return prediction, _row(prediction, regions)

    def worst(self) -> list[Tile]:
        """Return the most anomalous images so far, the worst first."""
        worst = sorted(self._worst, key=lambda item: (-item[0], -item[1]))
        return [_tile(prediction, self._base) for *_, prediction in worst]

    def finish(self) -> None:
        """Write the sheet of the most anomalous images."""
        if tiles := self.worst():
            save_jpeg(self.folder / SHEET, sheet(tiles, side=_SIDE, columns=_ACROSS))

    def _keep_worst(self, prediction: Prediction) -> None:
        self._count += 1
        rank = prediction.score if prediction.raw_score is None else prediction.raw_score
        if rank is None or not self._tiles:
            return
        place = (float("inf") if np.isnan(rank) else rank, -self._count)  # of equal ones the first
        if len(self._worst) < self._tiles or place > self._worst[0][:2]:
            image = prediction.image
            assert image is not None, "the images were asked for"
            entry = (*place, replace(prediction, image=reduced(image, _SIDE)))
            (heapq.heappush if len(self._worst) < self._tiles else heapq.heapreplace)(self._worst, entry)


_SIDE, _ACROSS = 200, 6  # pixels of a tile, tiles in a row


def _tile(prediction: Prediction, base: Path) -> Tile:
    drawn = _picture("overlay", prediction)
    assert drawn is not None, "the image itself is there"
    score = "-" if prediction.score is None else f"{prediction.score:.3f}"
    label = {None: "", True: "anomalous", False: "normal"}[prediction.label]
    known = {None: "", True: "defect", False: "good"}[prediction.truth]
    name = os.path.relpath(prediction.path.absolute(), base.absolute())
    return thumbnail(drawn, _SIDE), (name, "  ".join(filter(None, (score, label, known and f"({known})"))))


def _picture(picture: Picture, prediction: Prediction) -> Any:
    """Return a picture in the image's own size; None where the file does not give what it shows."""
    placement, unit, mask = prediction.placement, prediction.map, prediction.mask
    if picture == "overlay":
        pixels = prediction.pixels
        if placement is None:
            return pixels
        placement = placement.at_size(pixels.shape[:2]) if pixels.shape[:2] != placement.size else placement
    if placement is None:
        return None
    if picture == "mask":
        return None if mask is None else placement.on_image(np.where(mask, np.uint8(255), np.uint8(0)))
    colors = None if unit is None else placement.on_image(heatmap(unit))
    laid = None if mask is None or picture == "map" else placement.on_image(mask)
    return colors if picture == "map" else overlay(pixels, colors, laid, seen=placement.seen)


def _row(prediction: Prediction, regions: tuple[int, list[Box]] | None) -> tuple[str, ...]:
    area, boxes = regions or (None, None)
    height, width = prediction.size or (0, 0)
    highest = None if prediction.raw_map is None else _highest(prediction)
    cells: tuple[Any, ...] = (
        prediction.path,
        prediction.group,
        _flag(prediction.truth),
        _number(prediction.score),
        _flag(prediction.label),
        _number(prediction.raw_score),
        _number(highest),
        area,
        None if area is None else f"{area / (height * width):.6g}",
        None if boxes is None else len(boxes),
        None if boxes is None else ";".join(",".join(map(str, box)) for box in boxes),
        prediction.error,
    )
    return tuple("" if cell is None else str(cell) for cell in cells)


def _highest(prediction: Prediction) -> float:
    """Return the highest raw value of the map, where it shows the image."""
    assert prediction.raw_map is not None, "only asked where there is one"
    values = prediction.raw_map if prediction.shown is None else prediction.raw_map[prediction.shown]
    return float(values.max(initial=-np.inf))


def _flag(value: bool | None) -> int | None:
    return None if value is None else int(value)


def _number(value: float | None) -> str | None:
    """Return the shortest decimal that reads back to the same float32."""
    return None if value is None else str(np.float32(value))
