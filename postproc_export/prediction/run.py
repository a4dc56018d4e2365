"""Predict a whole folder of images into another one."""

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from postproc_export.errors import FileError
from postproc_export.evaluation import Evaluation, EvaluationResult
from postproc_export.files import model_files, publishing_into, refuse_foreign, refuse_inputs
from postproc_export.images.samples import load_ahead
from postproc_export.outcome import Outcome, outcome_json
from postproc_export.prediction.folder import COLUMNS, METRICS, NAMES, TABLE, FolderWriter, parse_pictures
from postproc_export.prediction.predictor import Prediction, Predictor
from postproc_export.reading.report import LevelReport
from postproc_export.run_options import PredictFolderOptions
from postproc_export.stats import Level
from postproc_export.validation import called_like

_NAMED: Final = 5  # images that could not be used, by name


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PredictResult(Outcome):
    """What was predicted; falsy where an image could not be used.

    Parameters
    ----------
    source
        The attached file.
    output
        The folder that was written.
    written
        What is in it, by name.
    images, anomalous, unusable
        How many images there were, how many the file calls anomalous, and how many could not be used.
    errors
        Why the first of these could not be used, a sentence each.
    seconds
        How long it took, the model's loading left out.
    preprocessing
        How the images were fed, in one line.
    levels
        What each level of the file decides; None where it decides nothing.
    evaluation
        How that fits the labels and masks; None where none are known.
    notes
        What a user should know.
    """

    source: Path
    output: Path
    written: tuple[str, ...]
    images: int
    anomalous: int
    unusable: int
    errors: tuple[str, ...]
    seconds: float
    preprocessing: str
    levels: Mapping[Level, LevelReport | None]
    evaluation: EvaluationResult | None
    notes: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.unusable

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.seconds if self.seconds else 0.0

    def headline(self) -> str:
        """Return how many images were predicted."""
        said = f"{self.anomalous:,} of them anomalous" if self.levels.get("image") else "no labels in this file"
        unusable = f"; {self.unusable:,} could not be used" if self.unusable else ""
        images = self.images - self.unusable
        return f"predicted {images:,} image{'' if images == 1 else 's'} with {self.source}, {said}{unusable}"

    def facts(self) -> Iterator[tuple[str, str]]:
        """Yield what was written, what could not be used, and how what was predicted fits what is known."""
        yield "written", f"{self.output}: {', '.join(self.written)}"
        yield "images", f"fed {self.preprocessing}"
        yield "speed", f"{self.rate:.3g} images/s"
        if self.evaluation is not None:
            yield "known", self.evaluation.headline()
            yield from self.evaluation.facts()
        yield from (("unusable", error) for error in self.errors)
        if self.unusable > len(self.errors):
            yield "unusable", f"and {self.unusable - len(self.errors):,} more: the column error of {TABLE}"
        yield from (("note", note) for note in self.notes)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``predict --json``: docs/json.md."""
        levels = {level: None if found is None else found.to_json() for level, found in self.levels.items()}
        return outcome_json(
            self.source,
            self.output,
            levels,
            self.notes,
            written=list(self.written),
            images=self.images,
            anomalous=self.anomalous,
            unusable=self.unusable,
            errors=list(self.errors),
            images_per_second=self.rate,
            metrics=None if self.evaluation is None else self.evaluation.to_json(),
        )


@called_like(PredictFolderOptions)
def predict_folder(**given: Any) -> PredictResult:
    """Run an attached file over images and write what it decides of each into a folder.

    The images are read as they are needed, and no more than some batches are in memory. The folder appears whole or
    not at all; what an earlier run wrote there is replaced.

    Raises
    ------
    PostprocError
        If the file, the images, the options or the folder do not allow it; nothing is written then. An image that
        cannot be used raises nothing: the result is falsy and names it.
    """
    images = given["images"]
    asked = PredictFolderOptions(**{**given, "images": images if isinstance(images, str | Path) else list(images)})
    folder = Path(asked.output)
    refuse_foreign(folder, NAMES, start=",".join(COLUMNS), noun="prediction", command="predict")
    _refuse_read(folder, asked)
    predictor = Predictor.open(asked)
    pictures = parse_pictures(asked.save, has_map="pixel" in predictor.file.tails)
    _refuse_within(folder, (file for each in predictor.source for file in (each.image, each.mask)))
    with publishing_into(folder, NAMES) as staging:
        writer = FolderWriter(staging, predictor.source.base, pictures, asked.sheet)
        run = _Run(predictor, writer, asked)
        run.all()
        written = tuple(name for name in NAMES if (staging / name).exists())
    return run.result(folder, written)


class _Run:
    """One pass over all images, and what is counted on it."""

    def __init__(self, predictor: Predictor, writer: FolderWriter, asked: PredictFolderOptions) -> None:
        self._predictor, self._writer, self._asked = predictor, writer, asked
        self._images = self._anomalous = self._unusable = 0
        self._errors: list[str] = []
        self._seconds = 0.0
        reports = {level: found for level, found in predictor.file.levels.items() if found is not None}
        self._evaluation = Evaluation(
            predictor.stats,
            boundaries={level: found.boundary for level, found in reports.items() if found.boundary is not None},
            narrow={level: found.narrow for level, found in reports.items() if found.narrow is not None},
        )
        self._is_known = False
        self._measured: EvaluationResult | None = None

    def all(self) -> None:
        """Predict every image and write everything."""
        predictor, writer, asked = self._predictor, self._writer, self._asked
        wants_images = bool(asked.sheet) or "overlay" in writer.pictures
        begun = time.monotonic()
        predictions = predictor.run(images=wants_images)
        drawn = load_ahead(predictions, writer.draw, workers=asked.workers, batch_size=predictor.batch_size)
        with closing(drawn), closing(writer.rows(drawn)) as rows:  # before the folder is removed where something fails
            for prediction in rows:
                self._count(prediction)
                if asked.progress is not None:
                    asked.progress(self._images, predictor.source.count)
        self._seconds = time.monotonic() - begun
        writer.finish()
        if self._is_known:
            self._measured = self._evaluation.result()
            text = json.dumps(self._measured.to_json(), indent=2, allow_nan=False)
            (writer.folder / METRICS).write_text(f"{text}\n", encoding="utf-8")

    def _count(self, prediction: Prediction) -> None:
        self._images += 1
        if prediction.error is not None:
            self._unusable += 1
            self._errors += [prediction.error] if len(self._errors) < _NAMED else []
            return
        self._anomalous += bool(prediction.label)
        if prediction.truth is not None or prediction.true_mask is not None:
            self._is_known = True
            self._evaluation.add(
                group=prediction.group or "",
                label=prediction.truth,
                truth=prediction.true_mask,
                shown=prediction.shown,
                score=prediction.score,
                raw_score=prediction.raw_score,
                decided=prediction.label,
                unit_map=prediction.map,
                raw_map=prediction.raw_map,
                decided_mask=prediction.mask,
                seconds=prediction.seconds,
            )

    def result(self, folder: Path, written: tuple[str, ...]) -> PredictResult:
        """Return what was done."""
        predictor = self._predictor
        return PredictResult(
            source=predictor.file.path,
            output=folder,
            written=written,
            images=self._images,
            anomalous=self._anomalous,
            unusable=self._unusable,
            errors=tuple(self._errors),
            seconds=self._seconds,
            preprocessing=predictor.preprocessing.describe(),
            levels=predictor.file.levels,
            evaluation=self._measured,
            notes=predictor.notes,
        )


def _refuse_read(folder: Path, asked: PredictFolderOptions) -> None:
    """Raise FileError for a folder in a folder that is read, or with something in it that is read."""
    images = [asked.images] if isinstance(asked.images, str | Path) else asked.images
    read = [Path(each) for each in images]
    fix = "choose another folder"
    refuse_inputs([folder / TABLE], [path for path in read if path.is_dir()], fix=fix)
    given = [Path(asked.preprocessing)] if isinstance(asked.preprocessing, str | Path) else []
    _refuse_within(folder, [*model_files(Path(asked.model)), *given, *read])


def _refuse_within(folder: Path, files: Iterable[Path | None]) -> None:
    """Raise FileError if one of some files lies in a folder whose files are replaced."""
    inside = os.path.realpath(folder) + os.sep
    for file in files if folder.is_dir() else ():
        if file is not None and os.path.realpath(file).startswith(inside):
            raise FileError(f"cannot write to {folder}: {file}, which is read, lies in it", fix="choose another folder")
