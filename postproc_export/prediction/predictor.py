"""Run an attached file over images, and tell what it decides of each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from postproc_export.errors import CalibrationError, FileError, PostprocError, UsageError
from postproc_export.images import Preprocessing, Sample, fit_mask
from postproc_export.images.geometry import BoolArray, Placement, Size, place_map
from postproc_export.images.preprocessing import settled
from postproc_export.images.samples import Loaded, load_ahead, load_image
from postproc_export.images.sources import ImageSource, find_images
from postproc_export.prediction.attached import AttachedFile, Outputs
from postproc_export.raw_model import find_batch_size
from postproc_export.run_options import PredictOptions
from postproc_export.runtimes import Array
from postproc_export.stats import CalibrationStats
from postproc_export.validation import called_like

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Prediction:
    """What an attached file decides of one image.

    Parameters
    ----------
    path
        The image.
    group, truth, mask_path
        What its folder or CSV file says of it: the name of its class, whether it is anomalous, and where the mask of
        its defects is; None for what is not known.
    score
        Normalised, 0 to 1, NaN where the map holds a NaN; None where the file gives none.
    label
        Whether the file calls the image anomalous; None where it does not say.
    map
        Normalised, float32, (H, W), at the size of the model's map; None where the file gives none.
    mask
        bool, (H, W): the pixels that the file calls anomalous; None where it does not say.
    raw_score, raw_map
        What the file decides on, float32; None where it was not asked for.
    true_mask
        bool, (H, W): the mask of its defects, laid to the map's size as calibration does; None where it is not known.
    shown
        bool, (H, W): the pixels of the map that are no padding; None where all are.
    placement
        Where the map lies on the image; None without a map.
    image
        The image itself, upright, where it was asked for.
    size
        Height and width of the image, upright.
    seconds
        What the model took for it.
    error
        Why the image could not be used; all that is not known of the file alone is None then.
    """

    path: Path
    group: str | None = None
    truth: bool | None = None
    mask_path: Path | None = None
    score: float | None = None
    label: bool | None = None
    map: NDArray[np.float32] | None = None
    mask: BoolArray | None = None
    raw_score: float | None = None
    raw_map: NDArray[np.float32] | None = None
    true_mask: BoolArray | None = None
    shown: BoolArray | None = None
    placement: Placement | None = None
    image: "Image | None" = None
    size: Size | None = None
    seconds: float | None = None
    error: str | None = None

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The image itself, upright, uint8, (height, width, 3); of 16 bits the upper 8."""
        assert self.image is not None, "ask for the images"
        values: NDArray[Any] = np.asarray(self.image)
        if values.ndim == 2:
            values = np.repeat((values >> 8 if self.image.mode == "I" else values)[..., None], 3, axis=2)
        return values.astype(np.uint8, copy=False)


_UNUSABLE: Final = (FileError, CalibrationError, UsageError)  # what one image is to blame for
_UNDECIDED: Final = (
    "the statistics in {} do not say how its images are fed",
    "say it, such as --preset unit for a model that does the rest itself, or --preprocessing FILE",
)
_OWN: Final = "no statistics say how the images are fed: as calibrate does it by default, or as options say"


class Predictor:
    """An attached file with the images that it is to run on: `open` makes one, `run` runs it."""

    def __init__(
        self, file: AttachedFile, source: ImageSource, preprocessing: Preprocessing, asked: PredictOptions
    ) -> None:
        self.file, self.source, self.preprocessing = file, source, preprocessing
        unrecorded = () if file.record is not None else (_OWN,)
        self.notes = (*source.notes, *unrecorded)
        self._workers = asked.workers
        self.batch_size = find_batch_size(
            file.port, file.run, preprocessing, asked=asked.batch_size, count=source.count
        )
        self._placed = lru_cache(64)(self._place)

    @classmethod
    def open(cls, asked: PredictOptions) -> Self:
        """Find the images, load the file, and settle everything that can be settled before the first image is read.

        Raises a PostprocError if the file, the images or the options do not go together.
        """
        source = find_images(asked.images, split=asked.split, anomalous_label=asked.anomalous_label)
        file = AttachedFile(asked)
        recorded = None if file.stats is None else file.stats.details.get("preprocessing")
        if file.stats is not None and recorded is None and asked.preprocessing is None:
            what, fix = _UNDECIDED
            raise UsageError(what.format(file.path), fix=fix)
        wanted = settled(recorded, asked.preprocessing, file.port, other=asked.other_preprocessing)
        return cls(file, source, wanted, asked)

    @property
    def stats(self) -> CalibrationStats | None:
        """The statistics that the file records."""
        return self.file.stats

    def run(self, *, images: bool = False) -> Iterator[Prediction]:
        """Yield what the file decides of each image, in order; `images` keeps the images themselves.

        An image that cannot be used is told as such, and the others go on.
        """

        def load(sample: Sample) -> tuple[Sample, Loaded | PostprocError]:
            has_mask = "pixel" in self.file.tails and (sample.mask is not None or sample.label == 0)
            try:
                return sample, load_image(sample, self.preprocessing, with_mask=has_mask)
            except _UNUSABLE as error:
                return sample, error

        waiting: list[tuple[Sample, Loaded | PostprocError]] = []
        usable = 0
        for pair in load_ahead(self.source, load, workers=self._workers, batch_size=self.batch_size):
            waiting.append(pair)
            usable += isinstance(pair[1], Loaded)
            if usable == self.batch_size:
                yield from self._predicted(waiting, images=images)
                waiting, usable = [], 0
        yield from self._predicted(waiting, images=images)

    def _predicted(
        self, pairs: Sequence[tuple[Sample, Loaded | PostprocError]], *, images: bool
    ) -> Iterator[Prediction]:
        arrays = [loaded.array for _, loaded in pairs if isinstance(loaded, Loaded)]
        outputs = self.file.run(np.stack(arrays), self.batch_size) if arrays else None
        index = 0
        for sample, loaded in pairs:
            known = Prediction(
                path=sample.image,
                group=sample.group,
                truth=None if sample.label is None else bool(sample.label),
                mask_path=sample.mask,
            )
            if outputs is None or not isinstance(loaded, Loaded):
                assert not isinstance(loaded, Loaded), "what can be used is run"
                reason = f": {loaded.found}" if loaded.found else ""
                yield replace(known, error=" ".join(f"{loaded.what}{reason}".split()))
                continue
            yield self._prediction(known, loaded, outputs, index, images=images)
            index += 1

    def _prediction(
        self, known: Prediction, loaded: Loaded, outputs: Outputs, index: int, *, images: bool
    ) -> Prediction:
        def of(values: Array | None) -> Any:
            return None if values is None else values[index]

        scores, labels, raw = (of(each) for each in (outputs.scores, outputs.labels, outputs.raw_scores))
        found_map, mask, raw_map = (of(each) for each in (outputs.maps, outputs.masks, outputs.raw_maps))
        size = (loaded.image.height, loaded.image.width)
        map_size = next((each.shape for each in (found_map, mask, raw_map) if each is not None), None)

        def at_map(marked: BoolArray | None) -> BoolArray | None:
            if marked is None or map_size is None:
                return None
            return fit_mask(self.preprocessing.covered(marked), height=map_size[0], width=map_size[1])

        return replace(
            known,
            score=None if scores is None else float(scores),
            label=None if labels is None else bool(labels),
            map=found_map,
            mask=mask,
            raw_score=None if raw is None else float(raw),
            raw_map=raw_map,
            true_mask=at_map(loaded.mask),
            shown=at_map(loaded.shown),
            placement=None if map_size is None else self._placed(size, map_size),
            image=loaded.image if images else None,
            size=size,
            seconds=outputs.seconds,
        )

    def _place(self, size: Size, map_size: Size) -> Placement:
        crop = self.preprocessing.map_crop
        return place_map(size, self.preprocessing.axes(size), map_crop=crop, map_size=map_size)


@called_like(PredictOptions)
def predict(**given: Any) -> Iterator[Prediction]:
    """Run an attached file over images and yield what it decides of each, in their order.

    Returns
    -------
    Iterator[Prediction]
        One for each image, made as it is asked for: no more than some batches are in memory.

    Raises
    ------
    PostprocError
        If the file, the images or the options do not go together; an image that cannot be used raises nothing, and its
        prediction says why.
    """
    return Predictor.open(PredictOptions(**given)).run()
