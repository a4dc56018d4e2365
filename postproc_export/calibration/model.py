"""A raw model and its images as a source of calibration: batches, masks, custom steps applied."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from postproc_export.belonging import model_details
from postproc_export.calibration.statistics import CalibrationWarning
from postproc_export.errors import CalibrationError
from postproc_export.files import check_model, model_files
from postproc_export.formats.base import Outputs
from postproc_export.images import Batch, Preprocessing, Sample, find_samples, fit_mask, image_input, load_batches
from postproc_export.images.geometry import BoolArray
from postproc_export.images.layouts import class_counts, described, split_kind
from postproc_export.ports import Selection
from postproc_export.raw_model import find_batch_size, open_raw, run_batch
from postproc_export.record import MODEL_KEY, STATISTICS_KEY, TailSpec, parse_tails
from postproc_export.run_options import ModelOptions
from postproc_export.runtimes import Array, Runner, as_float32
from postproc_export.stats import CalibrationStats
from postproc_export.validation import method_like

if TYPE_CHECKING:
    from postproc_export.calibration.calibrator import Calibrator


class MaskWarning(UserWarning):
    """Masks of anomalous images in which no pixel is anomalous, or some are so by half."""


_NAMED: Final = 5  # masks that a warning names

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A raw model with the images that it is to be calibrated on; `open` makes one, `calibrate` runs it."""

    path: Path  # of the model file
    runner: Runner  # the model, loaded
    selection: Selection  # its raw outputs
    images: Path  # the folder or CSV file that lists the labelled images
    samples: tuple[Sample, ...]  # these images
    preprocessing: Preprocessing  # what is done to them, resolved for the model's input
    batch_size: int  # images per run
    image_only: bool = False  # whether the pixel level is left out, so that no masks are needed
    workers: int | None = None  # decoding threads; None chooses
    tails: tuple[TailSpec, ...] = ()  # custom steps behind which it is calibrated, as they are recorded
    model: Mapping[str, Any]  # what tells it from others, as it is recorded
    anomalous_label: str | float | None = None  # the label in a CSV file that says anomalous; None: 1

    @classmethod
    @method_like(ModelOptions)
    def open(cls, **given: Any) -> "ModelSource":
        """Load the model, find the images and settle everything that can be settled before the first of them is read.

        Raises a PostprocError if the model, its outputs, the images or the options do not go together.
        """
        asked = ModelOptions(**given)
        outputs: Outputs = {"image_output": asked.image_output, "pixel_output": asked.pixel_output}
        options: dict[str, Any] = {"runtime": asked.runtime, "precision": asked.precision, "threads": asked.threads}
        check_model(Path(asked.model))
        samples = tuple(find_samples(asked.images, split=asked.split, anomalous_label=asked.anomalous_label))
        steps = parse_tails(asked.steps)
        runner, selection, tails = open_raw(asked.model, outputs=outputs, steps=steps, **options)
        resolved = Preprocessing().replaced(asked.preprocessing).for_input(image_input(runner.inputs))
        resolved.warn()
        if asked.split is None:
            _warn_of_split(asked.images, samples[0].split)
        missing = [sample.image for sample in samples if sample.label == 1 and sample.mask is None]
        if missing and selection.pixel is not None and not asked.image_only:
            raise CalibrationError(
                f"{len(missing)} anomalous image(s) have no mask; the first is {missing[0]}",
                needed="a mask for every anomalous image, to calibrate the pixel level: "
                "ground_truth/<defect>/<stem>_mask.png or <stem>.png, or the column mask of the CSV file",
                fix="add the masks, or leave the pixel level out with --image-only",
            )

        def run(images: Array, size: int) -> object:
            return run_batch(runner, selection, images, batch_size=size)

        size = find_batch_size(runner.inputs[0], run, resolved, asked=asked.batch_size, count=len(samples))

        def exact() -> tuple[Runner, Selection]:
            """Load it at float32, in which models are compared."""
            if asked.precision == "float32":
                return runner, selection
            return open_raw(asked.model, outputs=outputs, steps=steps, **{**options, "precision": "float32"})[:2]

        return cls(
            path=Path(asked.model),
            runner=runner,
            selection=selection,
            images=Path(asked.images),
            samples=samples,
            preprocessing=resolved,
            batch_size=size,
            image_only=asked.image_only,
            workers=asked.workers,
            tails=tails,
            anomalous_label=asked.anomalous_label,
            model=model_details(Path(asked.model), selection, exact, resolved),
        )

    @property
    def wants_pixels(self) -> bool:
        """Whether the pixel level is calibrated."""
        return self.selection.pixel is not None and not self.image_only

    def files(self) -> list[Path]:
        """Return every file that is read: model, weights, images, masks, and the CSV file that lists them."""
        listing = [self.images] if self.images.is_file() else []
        masks = [sample.mask for sample in self.samples if sample.mask is not None]
        return [*model_files(self.path), *listing, *(sample.image for sample in self.samples), *masks]

    def calibrate(self, calibrator: "Calibrator", *, progress: Progress | None = None) -> CalibrationStats:
        """Run the model over all images, feed the calibrator and return its statistics with a record of how.

        The calibrator gets one `update` per batch. `progress` is called after each batch with the number of images done
        and of all. Raises a FileError if an image or mask cannot be read, a CalibrationError that names the image if
        the calibrator refuses a value, an UnsupportedModelError if the model fails on a batch.
        """
        done = 0
        empty: list[Path] = []
        between: dict[Path, int] = {}  # masks with values between 0 and the largest, and how many pixels of each
        batches = load_batches(
            self.samples, self.preprocessing, batch_size=self.batch_size, masks=self.wants_pixels, workers=self.workers
        )
        for batch in batches:
            masks = self._feed(calibrator, batch)
            for sample, mask, count in zip(batch.samples, masks, batch.between, strict=False):
                if sample.mask is not None and sample.label == 1 and not mask.any():
                    empty.append(sample.mask)
                if sample.mask is not None and count:
                    between[sample.mask] = count
            done += len(batch.samples)
            if progress is not None:
                progress(done, len(self.samples))
        told = _told_of_masks(empty, between)
        stats = calibrator.compute()
        details = self.details()
        details["samples"] |= told
        behind = [*details.pop(STATISTICS_KEY, ()), *stats.details.get(STATISTICS_KEY, ())]  # steps of both, in order
        return replace(stats, details={**stats.details, **({STATISTICS_KEY: behind} if behind else {}), **details})

    def details(self) -> dict[str, Any]:
        """Return what the statistics record: model, runtime, pre-processing and counts."""
        return {
            MODEL_KEY: dict(self.model),
            "runtime": {
                "name": self.runner.name,
                "version": self.runner.version,
                "precision": self.runner.precision,
                "inference_precision": self.runner.inference_precision,
            },
            **({STATISTICS_KEY: [spec.to_json() for spec in self.tails]} if self.tails else {}),
            **({} if self.anomalous_label is None else {"anomalous_label": self.anomalous_label}),
            "preprocessing": self.preprocessing.to_json(),
            "samples": {
                **self.counts(),
                "batch_size": self.batch_size,
                "classes": class_counts(self.samples),
                "split": self.samples[0].split,
            },
        }

    def counts(self) -> dict[str, int]:
        """Return the number of images, normal ones, anomalous ones and masks used."""
        anomalous = sum(sample.label == 1 for sample in self.samples)
        masks = sum(sample.mask is not None for sample in self.samples) if self.wants_pixels else 0
        total = len(self.samples)
        return {"images": total, "normal": total - anomalous, "anomalous": anomalous, "masks": masks}

    def describe(self) -> str:
        """Return some lines for people: runtime, outputs, pre-processing, images."""
        counts, split = self.counts(), self.samples[0].split
        kinds = class_counts(sample for sample in self.samples if sample.label == 1)
        of_kinds = f" ({described(kinds)})" if len(kinds) > 1 else ""
        runner = self.runner
        return "\n".join(
            (
                f"runtime: {runner.name} {runner.version}, computing in {runner.inference_precision}",
                f"outputs: {self.selection.describe()}{'; pixel level left out' if self.image_only else ''}",
                *(f"behind: {spec.text}" for spec in self.tails),
                f"pre-processing: {self.preprocessing.describe()}",
                f"images: {counts['normal']} normal, {counts['anomalous']} anomalous{of_kinds}, "
                f"{counts['masks']} masks, {self.batch_size} at a time",
                *([f"split: {split}"] if split else []),
            )
        )

    def _feed(self, calibrator: "Calibrator", batch: Batch) -> list[BoolArray]:
        """Run the model on a batch, update the calibrator, and return the masks at the map's size, if there are any.

        Padding is no pixel of the images, and left out.
        """
        scores, maps = run_batch(self.runner, self.selection, batch.images, batch_size=self.batch_size)
        labels = np.array([sample.label for sample in batch.samples], np.uint8)
        updates: list[dict[str, Array]] = [{"pred_score": scores, "gt_label": labels}]
        masks: list[BoolArray] = []
        if maps is not None and self.wants_pixels:
            masks, shown = (self._at_map(each, maps) for each in (batch.masks, batch.shown))
            if np.all(shown):
                updates[0] |= {"anomaly_map": maps, "gt_mask": np.stack(masks)}
            else:  # as one map of a single row
                kept = np.stack(shown)
                pixels, truth = (each[kept].reshape(1, 1, -1) for each in (maps, np.stack(masks)))
                updates.append({"anomaly_map": pixels, "gt_mask": truth})
        try:
            for update in updates:
                calibrator.update(**update)
        except CalibrationError as error:
            bad = ~np.isfinite(as_float32(scores))
            if maps is not None:
                bad |= ~np.isfinite(as_float32(maps)).all(axis=(1, 2))
            first, last = batch.samples[0].image, batch.samples[-1].image
            suspects = batch.samples[int(np.argmax(bad))].image if bad.any() else f"{first} to {last}"
            what = f"{suspects}: {error.what}"
            raise CalibrationError(what, found=error.found, needed=error.needed, fix=error.fix) from error
        return masks

    def _at_map(self, masks: Sequence[BoolArray | None], maps: Array) -> list[BoolArray]:
        height, width = maps.shape[1:]
        covered = (self.preprocessing.covered(mask) for mask in masks if mask is not None)
        return [fit_mask(mask, height=height, width=width) for mask in covered]


def _told_of_masks(empty: Sequence[Path], between: Mapping[Path, int]) -> dict[str, int]:
    """Warn of masks that lose or blur what they mark, and return the counts that the statistics record."""
    found: dict[str, int] = {}
    if empty:
        found["empty_masks"] = len(empty)
        named = ", ".join(map(str, empty[:_NAMED])) + (f" and {len(empty) - _NAMED} more" if empty[_NAMED:] else "")
        message = (
            f"{len(empty)} anomalous image(s) have a mask without an anomalous pixel at the map's size, so all their "
            f"pixels count as normal: nothing is marked, or cropping or resizing loses it; {named}"
        )
        warnings.warn(MaskWarning(message), stacklevel=3)
    if between:
        pixels = sum(between.values())
        found |= {"gray_masks": len(between), "gray_mask_pixels": pixels}
        message = (
            f"{len(between)} mask(s) hold {pixels:,} pixels between 0 and their largest value, such as blurred edges; "
            f"all of them count as anomalous; the first mask is {next(iter(between))}"
        )
        warnings.warn(MaskWarning(message), stacklevel=3)
    return found


def _warn_of_split(images: str | Path, split: str | None) -> None:
    """Warn where the images that are taken should not be what a threshold is chosen on."""
    why = {
        "test": "what is measured on it later is no longer a test",
        "train": "a model scores the images that it was trained on lower than new ones, and the threshold is too low",
    }.get(split_kind(split) or "")
    if why is not None:
        warnings.warn(
            CalibrationWarning(
                f"the split '{split}' of {images} is taken for calibration: {why}; "
                f"fix: give validation images, or --split {split} if it is meant"
            ),
            stacklevel=4,
        )
