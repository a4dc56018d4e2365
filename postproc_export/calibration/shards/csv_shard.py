"""Image scores and labels in a CSV file."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from postproc_export.calibration.counting.arrays import Block, Place
from postproc_export.calibration.shards.kinds import NAMES, file_signature
from postproc_export.errors import CalibrationError
from postproc_export.stats import Level

_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "pred_score": (*NAMES["pred_score"], "score"),
    "gt_label": (*NAMES["gt_label"], "label"),
}
_ROWS: Final = 1 << 16


class CsvShard:
    """A CSV file with a header: a column `score` (or `pred_score`, `scores`) and `label` (`gt_label`, `labels`)."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)

    def signature(self) -> object:
        """Return the state of the file."""
        return file_signature(self.path)

    def blocks(self, level: Level, *, verify: bool) -> Iterator[Block]:
        """Yield the image level, some ten thousand rows at a time.

        Raises
        ------
        CalibrationError
            If a column is missing or a cell is not a number; the row is in the message.
        """
        if level == "image":
            try:
                with self.path.open(newline="", encoding="utf-8-sig") as stream:
                    yield from self._rows(csv.DictReader(stream))
            except (UnicodeDecodeError, csv.Error) as error:
                raise CalibrationError(f"{self.name} is not a CSV file", found=str(error)) from error

    def _rows(self, reader: "csv.DictReader[str]") -> Iterator[Block]:
        columns = {
            key: next((name for name in names if name in (reader.fieldnames or ())), None)
            for key, names in _COLUMNS.items()
        }
        score, label = columns["pred_score"], columns["gt_label"]
        if score is None:
            found = ", ".join(reader.fieldnames or ()) or "no header"
            raise CalibrationError(f"{self.name} has no column of scores", found=found, needed="score,label")
        place, start = Place(self.name, score, label or "label", None), 0
        rows: list[tuple[float, float]] = []
        for row in reader:
            rows.append((self._cell(row, score, reader), 0.0 if label is None else self._cell(row, label, reader)))
            if len(rows) == _ROWS:
                yield _row_block(rows, place, start, labelled=label is not None)
                start, rows = start + len(rows), []
        if rows:
            yield _row_block(rows, place, start, labelled=label is not None)

    def _cell(self, row: Mapping[str, str | None], column: str, reader: "csv.DictReader[str]") -> float:
        text = row[column]
        try:
            return float(text or "")
        except ValueError as error:
            at = f"{self.name}, line {reader.line_num}, column {column!r}"
            raise CalibrationError(
                f"{at}: not a number", found=repr(text), needed="score,label with numbers"
            ) from error


def _row_block(rows: list[tuple[float, float]], place: Place, start: int, *, labelled: bool) -> Block:
    table = np.array(rows, dtype=np.float64)
    return Block(table[:, 0], table[:, 1] if labelled else None, place, start)
