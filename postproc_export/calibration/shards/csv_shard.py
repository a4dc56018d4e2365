"""Image scores and labels in a CSV file."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np

from postproc_export.calibration.counting.arrays import Block, Place
from postproc_export.calibration.shards.access import file_signature, readable
from postproc_export.calibration.shards.kinds import NAMES
from postproc_export.errors import CalibrationError
from postproc_export.stats import Level

_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "pred_score": (*NAMES["pred_score"], "score"),
    "gt_label": (*NAMES["gt_label"], "label"),
}
_ROWS: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class RowPlace(Place):
    """The rows of a CSV file, which messages give by their line too."""

    def at(self, flat: int, *, truth: bool = False) -> str:
        """Return ``"scores.csv: score[3], line 5"``; the line is looked up, since cells may span several."""
        text = Place.at(self, flat, truth=truth)
        try:
            with Path(self.where).open(newline="", encoding="utf-8-sig") as stream:
                reader = csv.DictReader(stream, skipinitialspace=True)
                next(islice(reader, flat, None))
                return f"{text}, line {reader.line_num}"
        except (OSError, ValueError, csv.Error, StopIteration):
            return text


class CsvShard:
    """A CSV file with a header: a column `score` (or `pred_score`, `scores`) and `label` (`gt_label`, `labels`)."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)

    @property
    def files(self) -> list[Path]:
        """The file."""
        return [self.path]

    def signature(self) -> object:
        """Return the state of the file."""
        return file_signature(self.path)

    def size(self, level: Level) -> int | None:
        """Return no values of the pixel level; how many rows there are only reading tells."""
        return None if level == "image" else 0

    def blocks(self, level: Level, *, verify: bool) -> Iterator[Block]:
        """Yield the image level, some ten thousand rows at a time.

        Raises
        ------
        CalibrationError
            If a column is missing or a cell is not a number; the row is in the message.
        FileError
            If the file cannot be read.
        """
        if level == "image":
            with readable(self.name):
                try:
                    with self.path.open(newline="", encoding="utf-8-sig") as stream:
                        yield from _text_blocks(csv.DictReader(stream, skipinitialspace=True), self.name)
                except (UnicodeDecodeError, csv.Error) as error:
                    fix = "save it as CSV in UTF-8"
                    raise CalibrationError(f"{self.name} is not a CSV file", found=str(error), fix=fix) from error


def _text_blocks(reader: "csv.DictReader[str]", name: str) -> Iterator[Block]:
    reader.fieldnames = [cell.strip().lower() for cell in reader.fieldnames or ()]
    score, label = (_column(reader.fieldnames, names, name) for names in _COLUMNS.values())
    if score is None:
        found, fix = ", ".join(reader.fieldnames) or "no header", "write a first line that names the columns"
        raise CalibrationError(f"{name} has no column of scores", found=found, needed="score,label", fix=fix)
    place, start = RowPlace(name, score, label or "label", None), 0
    rows: list[tuple[float, float]] = []
    for row in reader:
        at = f"{name}, line {reader.line_num}"
        rows.append((_cell(row, score, at), 0.0 if label is None else _cell(row, label, at)))
        if len(rows) == _ROWS:
            yield _row_block(rows, place, start, labelled=label is not None)
            start, rows = start + len(rows), []
    if rows:
        yield _row_block(rows, place, start, labelled=label is not None)


def _column(header: Sequence[str], names: Sequence[str], name: str) -> str | None:
    found = [cell for cell in header if cell in names]
    if len(found) > 1:
        fix = "leave one of them in"
        raise CalibrationError(f"{name} has two columns for one thing", found=", ".join(found), needed="one", fix=fix)
    return found[0] if found else None


def _cell(row: Mapping[str, str | None], column: str, at: str) -> float:
    text = row[column] or ""
    try:
        if "_" not in text:  # which Python reads as a group of digits
            return float(text)
    except ValueError:
        pass
    needed = "score,label with numbers"
    raise CalibrationError(f"{at}, column {column!r}: not a number", found=repr(row[column]), needed=needed)


def _row_block(rows: list[tuple[float, float]], place: Place, start: int, *, labelled: bool) -> Block:
    table = np.array(rows, dtype=np.float64)
    return Block(table[:, 0], table[:, 1] if labelled else None, place, start)
