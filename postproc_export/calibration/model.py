"""A raw model and its images as a source of calibration: batches, masks, custom steps applied."""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from postproc_export.errors import CalibrationError, FileError, UnsupportedModelError, UsageError
from postproc_export.files import model_files, usual_weights
from postproc_export.formats.base import Outputs, format_of
from postproc_export.images import Batch, Preprocessing, Sample, find_samples, fit_mask, image_input, load_batches
from postproc_export.images.samples import check_workers
from postproc_export.options import ModelOptions
from postproc_export.ports import RESULT_NAMES, Selection, select_outputs
from postproc_export.process import temporary_folder
from postproc_export.record import STATISTICS_KEY, TailSpec, parse_tails
from postproc_export.runtimes import Array, PortInfo, Runner, as_float32, open_runner
from postproc_export.stats import LEVELS, CalibrationStats, Level
from postproc_export.steps.around import put_before
from postproc_export.steps.transforms import resolve_all, select_raw
from postproc_export.validation import method_like

if TYPE_CHECKING:
    from postproc_export.calibration.calibrator import Calibrator


def file_digests(model: Path) -> dict[str, str]:
    """Return the SHA-256 of the model file and of the weights file that goes with its name (`.bin`, `.onnx.data`)."""
    weights = usual_weights(model)
    digests = {}
    for path in (model, weights) if weights.is_file() else (model,):
        try:
            with path.open("rb") as file:
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            fix = "calibrate again when nothing moves the model any more"
            raise FileError(f"cannot read {path}", found=error.strerror, fix=fix) from error
    return digests


class EmptyMaskWarning(UserWarning):
    """Masks of anomalous images in which no pixel is anomalous."""


DEFAULT_BATCH: Final = 8
_FALLBACK_BATCHES: Final = (1, 2)  # exporters trace at one of these, and some graphs then run at nothing else


def run_batch(runner: Runner, selection: Selection, images: Array, *, batch_size: int) -> tuple[Array, Array | None]:
    """Run the model on up to `batch_size` images and return score (n,) and map (n, H, W) of each.

    A smaller batch is filled up with its last image and the surplus dropped, for models that run at one size only. The
    score of a model without one is the maximum of its map, and NaN where the map holds a NaN.
    """
    count = len(images)
    fed = np.concatenate([images, np.repeat(images[-1:], batch_size - count, axis=0)]) if count < batch_size else images
    outputs = runner.run({runner.inputs[0].name: fed})
    maps = None if selection.pixel is None else _raw(outputs, selection.pixel.name, "pixel", batch_size)
    if selection.image is not None:
        scores = _raw(outputs, selection.image.name, "image", batch_size)
    else:
        assert maps is not None, "a selection has at least one level"
        scores = maps.max(axis=(1, 2))
    return scores[:count], None if maps is None else maps[:count]


def find_batch_size(
    runner: Runner, selection: Selection, preprocessing: Preprocessing, *, asked: int | None, count: int
) -> int:
    """Return a batch size at which the model runs, found by running it on a black image."""
    if asked is not None and asked < 1:
        raise UsageError(f"a batch size of {asked}", needed="at least 1", fix="leave it out for the model's own")
    static = runner.inputs[0].size(0)
    if static is not None and asked not in (None, static):
        fix = f"leave it out, or give {static}"
        raise UsageError(f"--batch-size {asked} does not fit the model", found=runner.inputs[0].describe(), fix=fix)
    fixed = static or asked
    candidates = (fixed,) if fixed else dict.fromkeys((min(DEFAULT_BATCH, count), *_FALLBACK_BATCHES))
    failures: dict[int, UnsupportedModelError] = {}
    for size in candidates:
        try:
            run_batch(runner, selection, preprocessing.blank()[None], batch_size=size)
        except UnsupportedModelError as error:
            failures[size] = error
        else:
            return size
    first = next(iter(failures.values()))
    other = None if static else "if the model runs at another batch size only, give it with --batch-size"
    what = f"{first.what} (batch size {' or '.join(map(str, failures))})"
    raise UnsupportedModelError(what, found=first.found, needed=first.needed, fix=first.fix or other)


def _raw(outputs: Mapping[str, Array], name: str, level: Level, batch_size: int) -> Array:
    """Return the scores (n,) or the maps (n, H, W) of an output, in its own type if NumPy has it.

    float64 is left to the calibrator, which rounds and tells of merged values.
    """
    values = outputs[name]
    values = as_float32(values) if values.dtype.name == "bfloat16" else values
    shape = values.shape
    if level == "image":
        is_legal, needed = values.size == batch_size and values.ndim <= 2, "[], [N] or [N, 1]"
    else:
        is_map = len(shape) == 3 or (len(shape) == 4 and shape[1] == 1)
        is_legal, needed = is_map and shape[0] == batch_size and 0 not in shape, "[N, H, W] or [N, 1, H, W]"
    if not is_legal:
        raise UnsupportedModelError(
            f"output '{name}' has not one {'score' if level == 'image' else 'map'} per image",
            found=f"shape {list(shape)} for {batch_size} image(s)",
            needed=needed,
            fix=f"name another output with --{level}-output, or 'none'",
        )
    return values.reshape(batch_size, *(() if level == "image" else shape[-2:]))


def _open_behind(
    path: Path, specs: Sequence[TailSpec], outputs: Outputs, options: Mapping[str, Any]
) -> tuple[Runner, Outputs, tuple[TailSpec, ...]]:
    """Put custom steps before the threshold of a model, in memory or in a temporary file, and load it.

    Returns which outputs are the raw ones then, too, and the steps as they are recorded.
    """
    behind = [spec for spec in specs if not spec.changes_values]
    if behind:
        raise UsageError(
            f"the tail '{behind[0].name}' stands behind the decision: it changes no raw value",
            fix="leave it out here, and give it when attaching",
        )
    form = format_of(path)

    def put(model: Any) -> tuple[Outputs, tuple[TailSpec, ...]]:
        ports = tuple(form.outputs(model))
        selection = select_raw(ports, resolve_all(specs) if specs[0].is_shipped else (), **outputs)
        before = put_before(form, model, specs, outputs=outputs)
        _refuse_post_processed(ports, selection)
        return before

    # Windows does not delete what a runtime maps; it goes with the folder for temporary files then.
    with temporary_folder() as folder:
        before, runnable = form.edited(path, folder, put, purpose="calibrating on an OpenVINO IR")
        return open_runner(runnable, **options), *before


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

    @classmethod
    @method_like(ModelOptions)
    def open(cls, **given: Any) -> "ModelSource":
        """Load the model, find the images and settle everything that can be settled before the first of them is read.

        Raises a PostprocError if the model, its outputs, the images or the options do not go together.
        """
        asked = ModelOptions(**given)
        check_workers(asked.workers)
        outputs: Outputs = {"image_output": asked.image_output, "pixel_output": asked.pixel_output}
        options: dict[str, Any] = {"runtime": asked.runtime, "precision": asked.precision, "threads": asked.threads}
        specs = parse_tails(asked.steps)
        tails: tuple[TailSpec, ...] = ()
        if specs:
            runner, outputs, tails = _open_behind(Path(asked.model), specs, outputs, options)
        else:
            runner = open_runner(asked.model, **options)
        selection = select_outputs(
            runner.outputs, image_output=outputs["image_output"], pixel_output=outputs["pixel_output"]
        )
        if not specs:
            _refuse_post_processed(runner.outputs, selection)
        resolved = (asked.preprocessing or Preprocessing()).for_input(image_input(runner.inputs))
        samples = tuple(find_samples(asked.images))
        missing = [sample.image for sample in samples if sample.label == 1 and sample.mask is None]
        if missing and selection.pixel is not None and not asked.image_only:
            raise CalibrationError(
                f"{len(missing)} anomalous image(s) have no mask; the first is {missing[0]}",
                needed="a mask for every anomalous image, to calibrate the pixel level",
                fix="add the masks, or leave the pixel level out with --image-only",
            )
        size = find_batch_size(runner, selection, resolved, asked=asked.batch_size, count=len(samples))
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
        batches = load_batches(
            self.samples, self.preprocessing, batch_size=self.batch_size, masks=self.wants_pixels, workers=self.workers
        )
        for batch in batches:
            self._feed(calibrator, batch)
            empty += [
                sample.mask
                for sample, mask in zip(batch.samples, batch.masks, strict=True)
                if sample.label == 1 and sample.mask is not None and mask is not None and not mask.any()
            ]
            done += len(batch.samples)
            if progress is not None:
                progress(done, len(self.samples))
        if empty:
            message = (
                f"{len(empty)} anomalous image(s) have a mask without an anomalous pixel, so all of their pixels "
                f"count as normal; the first mask is {empty[0]}"
            )
            warnings.warn(EmptyMaskWarning(message), stacklevel=2)
        stats = calibrator.compute()
        return replace(stats, details={**stats.details, **self.details()})

    def details(self) -> dict[str, Any]:
        """Return what the statistics record: model, runtime, pre-processing and counts."""
        names = {level: port.name for level, port in self.selection.raw.items()}
        return {
            "model": {"files": file_digests(self.path), "outputs": {level: names.get(level) for level in LEVELS}},
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
        given = {"pred_score": scores, "gt_label": np.array([sample.label for sample in batch.samples], np.uint8)}
        if maps is not None and self.wants_pixels:
            height, width = maps.shape[1:]
            masks = [fit_mask(mask, height=height, width=width) for mask in batch.masks if mask is not None]
            given |= {"anomaly_map": maps, "gt_mask": np.stack(masks)}
        try:
            calibrator.update(**given)
        except CalibrationError as error:
            bad = ~np.isfinite(as_float32(scores))
            if maps is not None:
                bad |= ~np.isfinite(as_float32(maps)).all(axis=(1, 2))
            first, last = batch.samples[0].image, batch.samples[-1].image
            suspects = batch.samples[int(np.argmax(bad))].image if bad.any() else f"{first} to {last}"
            what = f"{suspects}: {error.what}"
            raise CalibrationError(what, found=error.found, needed=error.needed, fix=error.fix) from error


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
