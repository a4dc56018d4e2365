"""Calibrating on an exported raw model itself, run over a folder of labelled images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from postproc_export.calibration.models.batches import find_batch_size, run_batch
from postproc_export.calibration.models.files import file_digests, model_files
from postproc_export.calibration.models.masks import EmptyMasks, fitted_masks, refuse_missing_masks
from postproc_export.calibration.models.transformed import open_transformed
from postproc_export.errors import CalibrationError, UnsupportedModelError
from postproc_export.images import Batch, Preprocessing, Sample, find_samples, image_input, load_batches
from postproc_export.images.loading import check_workers
from postproc_export.outputs import RESULT_NAMES, Selection, select_outputs
from postproc_export.runtimes import Array, PortInfo, Precision, Runner, RuntimeName, as_float32, open_runner
from postproc_export.stats import CalibrationStats
from postproc_export.transforms.formats import Outputs
from postproc_export.transforms.record import STATISTICS_KEY
from postproc_export.transforms.spec import TailSpec, parse_tails

if TYPE_CHECKING:
    from postproc_export.calibration.calibrator import Calibrator

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A raw model with the images that it is to be calibrated on; `open` makes one, `calibrate` runs it.

    Parameters
    ----------
    path
        The model file.
    runner
        The model, loaded.
    selection
        Its raw outputs.
    images
        The folder or CSV file that lists the labelled images.
    samples
        These images.
    preprocessing
        What is done to them, resolved for the model's input.
    batch_size
        Images per run.
    image_only
        Whether the pixel level is left out, so that no masks are needed.
    workers
        Decoding threads; None chooses.
    tails
        Tails of one's own behind which it is calibrated, as they are recorded.
    """

    path: Path
    runner: Runner
    selection: Selection
    images: Path
    samples: tuple[Sample, ...]
    preprocessing: Preprocessing
    batch_size: int
    image_only: bool = False
    workers: int | None = None
    tails: tuple[TailSpec, ...] = ()

    @classmethod
    def open(
        cls,
        model: str | Path,
        images: str | Path,
        *,
        preprocessing: Preprocessing | None = None,
        image_output: str | int | None = None,
        pixel_output: str | int | None = None,
        image_only: bool = False,
        runtime: RuntimeName | None = None,
        precision: Precision = "float32",
        batch_size: int | None = None,
        threads: int | None = None,
        workers: int | None = None,
        tail: str | Sequence[str] = (),
    ) -> Self:
        """Load the model, find the images and settle everything that can be settled before the first of them is read.

        Parameters
        ----------
        model
            An ``.onnx`` or ``.xml`` file with raw outputs and one input, a batch of images.
        images
            A folder or a CSV file; see `find_samples`.
        preprocessing
            What is done to the images; default `Preprocessing()`. What it leaves open, the model's input decides.
        image_output, pixel_output
            See `select_outputs`.
        image_only
            Leave the pixel level out.
        runtime, precision, threads
            See `open_runner`. Calibrate on what will be deployed: in bfloat16 the raw scores themselves move.
        batch_size
            Images per run. Default: the model's own where it is static; else 8, or 1 or 2 where the model, although its
            batch axis is declared dynamic, does not run at 8.
        workers
            Decoding threads; at least 1. Default: one per core, at most 8.
        tail
            Tails of one's own before the threshold, behind which it is calibrated; see `attach_postprocessing`.

        Raises
        ------
        FileError, UsageError, UnsupportedModelError, CalibrationError
            If the model, its outputs, the images or the options do not go together.
        """
        check_workers(workers)
        outputs: Outputs = {"image_output": image_output, "pixel_output": pixel_output}
        options: dict[str, Any] = {"runtime": runtime, "precision": precision, "threads": threads}
        specs = parse_tails(tail)
        tails: tuple[TailSpec, ...] = ()
        if specs:
            transformed = open_transformed(model, specs, outputs, **options)
            runner, outputs, tails = transformed.runner, transformed.before.outputs, transformed.before.tails
            _refuse_post_processed(transformed.ports, transformed.selection)
        else:
            runner = open_runner(model, **options)
        selection = select_outputs(
            runner.outputs, image_output=outputs["image_output"], pixel_output=outputs["pixel_output"]
        )
        if not specs:
            _refuse_post_processed(runner.outputs, selection)
        resolved = (preprocessing or Preprocessing()).for_input(image_input(runner.inputs))
        samples = tuple(find_samples(images))
        if selection.pixel is not None and not image_only:
            refuse_missing_masks(samples)
        size = find_batch_size(runner, selection, resolved, asked=batch_size, count=len(samples))
        return cls(
            path=Path(model),
            runner=runner,
            selection=selection,
            images=Path(images),
            samples=samples,
            preprocessing=resolved,
            batch_size=size,
            image_only=image_only,
            workers=workers,
            tails=tails,
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

        Parameters
        ----------
        calibrator
            Gets one `update` per batch: score and label of every image and, where the pixel level is calibrated, map
            and mask. A model with only a map gives its maximum as score.
        progress
            Called with the number of images done and of all images, after each batch.

        Raises
        ------
        FileError
            If an image or mask cannot be read.
        CalibrationError
            If the calibrator refuses a value; the image is named.
        UnsupportedModelError
            If the model fails on a batch.
        """
        done, empty = 0, EmptyMasks()
        batches = load_batches(
            self.samples,
            self.preprocessing,
            batch_size=self.batch_size,
            masks=self.wants_pixels,
            workers=self.workers,
        )
        for batch in batches:
            self._feed(calibrator, batch)
            empty.look_at(batch)
            done += len(batch.samples)
            if progress is not None:
                progress(done, len(self.samples))
        empty.warn()
        stats = calibrator.compute()
        return replace(stats, details={**stats.details, **self.details()})

    def details(self) -> dict[str, Any]:
        """Return what the statistics record: model, runtime, pre-processing and counts."""
        outputs = {"image": self.selection.image, "pixel": self.selection.pixel}
        return {
            "model": {
                "files": file_digests(self.path),
                "outputs": {level: None if port is None else port.name for level, port in outputs.items()},
            },
            "runtime": {
                "name": self.runner.name,
                "version": self.runner.version,
                "precision": self.runner.precision,
                "inference_precision": self.runner.inference_precision,
            },
            **({STATISTICS_KEY: [spec.to_json() for spec in self.tails]} if self.tails else {}),
            "preprocessing": self.preprocessing.to_json(),
            "samples": {**self.counts(), "batch_size": self.batch_size},
        }

    def counts(self) -> dict[str, int]:
        """Return the number of images, normal ones, anomalous ones and masks used."""
        anomalous = sum(sample.label == 1 for sample in self.samples)
        masks = sum(sample.mask is not None for sample in self.samples) if self.wants_pixels else 0
        total = len(self.samples)
        return {"images": total, "normal": total - anomalous, "anomalous": anomalous, "masks": masks}

    def describe(self) -> str:
        """Return some lines for people: runtime, outputs, pre-processing, images."""
        counts = self.counts()
        runner = self.runner
        return "\n".join(
            (
                f"runtime: {runner.name} {runner.version}, computing in {runner.inference_precision}",
                f"outputs: {self.selection.describe()}{'; pixel level left out' if self.image_only else ''}",
                *(f"behind: {spec.text}" for spec in self.tails),
                f"pre-processing: {self.preprocessing.describe()}",
                f"images: {counts['normal']} normal, {counts['anomalous']} anomalous, {counts['masks']} masks, "
                f"{self.batch_size} at a time",
            )
        )

    def _feed(self, calibrator: "Calibrator", batch: Batch) -> None:
        scores, maps = run_batch(self.runner, self.selection, batch.images, batch_size=self.batch_size)
        masks = None if maps is None or not self.wants_pixels else fitted_masks(batch, maps.shape[1:])
        labels = np.array([sample.label for sample in batch.samples], np.uint8)
        try:
            if masks is None:
                calibrator.update(pred_score=scores, gt_label=labels)
            else:
                calibrator.update(pred_score=scores, gt_label=labels, anomaly_map=maps, gt_mask=masks)
        except CalibrationError as error:
            where = _suspects(batch.samples, scores, maps)
            raise CalibrationError(
                f"{where}: {error.what}", found=error.found, needed=error.needed, fix=error.fix
            ) from error


def _refuse_post_processed(ports: Sequence[PortInfo], selection: Selection) -> None:
    results = [port.name for port in ports if any(port.answers_to(name) for name in RESULT_NAMES)]
    asked = [found for found in (selection.image_found, selection.pixel_found) if found is not None]
    if results and set(asked) != {"option"}:
        raise UnsupportedModelError(
            f"the model is post-processed already: it has an output '{results[0]}'",
            needed="raw outputs, whose range and threshold are not known yet",
            fix="calibrate on the raw export (`postproc-export detach` makes one of a finished file), or name its raw "
            "outputs with --image-output and --pixel-output",
        )


def _suspects(samples: tuple[Sample, ...], scores: Array, maps: Array | None) -> str:
    bad = ~np.isfinite(as_float32(scores))
    if maps is not None:
        bad |= ~np.isfinite(as_float32(maps)).all(axis=(1, 2))
    if bad.any():
        return str(samples[int(np.argmax(bad))].image)
    return f"{samples[0].image} to {samples[-1].image}"
