"""A raw model, loaded behind its custom steps, and run on batches of images: one score and one map of each."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from postproc_export.errors import UnsupportedModelError, UsageError
from postproc_export.formats.base import Format, Outputs, format_of
from postproc_export.images import Preprocessing
from postproc_export.ports import RESULT_NAMES, Selection, channel_choice, select_outputs
from postproc_export.process import temporary_folder
from postproc_export.record import TailSpec
from postproc_export.runtimes import Array, PortInfo, Runner, as_float32, open_runner
from postproc_export.stats import Level
from postproc_export.steps.around import put_before, with_channel
from postproc_export.steps.plan import select_raw
from postproc_export.steps.transforms import before_threshold, resolve_all

DEFAULT_BATCH: Final = 8
_FALLBACK_BATCHES: Final = (1, 2)  # exporters trace at one of these, and some graphs then run at nothing else


def run_batch(runner: Runner, selection: Selection, images: Array, *, batch_size: int) -> tuple[Array, Array | None]:
    """Run the model on up to `batch_size` images and return score (n,) and map (n, H, W) of each.

    A smaller batch is filled up with its last image and the surplus dropped, for models that run at one size only. The
    score of a model without one is the maximum of its map, and NaN where the map holds a NaN.
    """
    count = len(images)
    outputs = runner.run({runner.inputs[0].name: filled(images, batch_size)})
    maps = None if selection.pixel is None else per_image(outputs, selection.pixel.name, "pixel", batch_size)
    if selection.image is not None:
        scores = per_image(outputs, selection.image.name, "image", batch_size)
    else:
        assert maps is not None, "a selection has at least one level"
        scores = maps.max(axis=(1, 2))
    return scores[:count], None if maps is None else maps[:count]


def find_batch_size(
    port: PortInfo, run: Callable[[Array, int], object], preprocessing: Preprocessing, *, asked: int | None, count: int
) -> int:
    """Return a batch size at which a model runs, found by running it on a black image.

    `port` is its input for images, and `run` runs it on some of them at a batch size, as `run_batch` does.
    """
    static = port.size(0)
    if static is not None and asked not in (None, static):
        fix = f"leave it out, or give {static}"
        raise UsageError(f"--batch-size {asked} does not fit the model", found=port.describe(), fix=fix)
    fixed = static or asked
    candidates = (fixed,) if fixed else dict.fromkeys((min(DEFAULT_BATCH, count), *_FALLBACK_BATCHES))
    failures: dict[int, UnsupportedModelError] = {}
    for size in candidates:
        try:
            run(preprocessing.blank()[None], size)
        except UnsupportedModelError as error:
            failures[size] = error
        except (MemoryError, OverflowError) as error:
            raise UsageError(f"--batch-size {size} does not fit into memory", fix="give a smaller one") from error
        else:
            return size
    first = next(iter(failures.values()))
    other = None if static else "if the model runs at another batch size only, give it with --batch-size"
    what = f"{first.what} (batch size {' or '.join(map(str, failures))})"
    raise UnsupportedModelError(what, found=first.found, needed=first.needed, fix=first.fix or other)


def filled(images: Array, batch_size: int) -> Array:
    """Return images filled up to a batch with the last of them."""
    missing = batch_size - len(images)
    return np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]) if missing else images


def per_image(outputs: Mapping[str, Array], name: str, level: Level, batch_size: int) -> Array:
    """Return the scores (n,) or the maps (n, H, W) of an output, in its own type if NumPy has it.

    float64 is left to the calibrator, which rounds and tells of merged values.
    """
    values = outputs[name]
    values = as_float32(values) if values.dtype.name == "bfloat16" else values
    shape = values.shape
    if level == "image":
        is_legal, needed = values.size == batch_size, "[], [N] or [N, 1]"
    else:
        is_last = len(shape) == 4 and shape[1] != 1 and shape[3] == 1
        shape = shape[:3] if is_last else shape
        is_map = len(shape) == 3 or (len(shape) == 4 and shape[1] == 1)
        is_legal, needed = is_map and shape[0] == batch_size and 0 not in shape, "[N, H, W] or [N, 1, H, W]"
    if not is_legal:
        raise UnsupportedModelError(
            f"output '{name}' has not one {'score' if level == 'image' else 'map'} per image",
            found=f"shape {list(values.shape)} for {batch_size} image(s)",
            needed=needed,
            fix=channel_choice(level, shape) or f"name another output with --{level}-output, or 'none'",
        )
    return values.reshape(batch_size, *(() if level == "image" else shape[-2:]))


def open_raw(
    model: str | Path, *, outputs: Outputs, steps: Sequence[TailSpec] = (), **options: Any
) -> tuple[Runner, Selection, tuple[TailSpec, ...]]:
    """Load a model with `options` of `open_runner`, behind custom steps, and select its raw outputs.

    Returns the steps as they are recorded, too. Raises UnsupportedModelError for a model that is post-processed.
    """
    if steps:
        runner, outputs, recorded = _open_behind(Path(model), steps, outputs, options)
    else:
        choose_raw(Path(model), outputs)
        runner, recorded = open_runner(model, **options), ()
    selection = select_outputs(
        runner.outputs, image_output=outputs["image_output"], pixel_output=outputs["pixel_output"]
    )
    return runner, selection, recorded


def choose_raw(path: Path, outputs: Outputs) -> Selection:
    """Select the raw outputs of a model file without a runtime; an UnsupportedModelError if it is post-processed."""
    form = format_of(path)
    model = form.load(path, purpose="reading an OpenVINO IR")
    if outputs["image_output"] is None and outputs["pixel_output"] is None:
        _refuse_post_processed(form, model, (), path)
    selection = select_outputs(
        form.outputs(model), image_output=outputs["image_output"], pixel_output=outputs["pixel_output"]
    )
    _refuse_post_processed(form, model, selection.found.values(), path)
    return selection


def _open_behind(
    path: Path, specs: Sequence[TailSpec], outputs: Outputs, options: Mapping[str, Any]
) -> tuple[Runner, Outputs, tuple[TailSpec, ...]]:
    """Put custom steps before the threshold of a model, in memory or in a temporary file, and load it.

    Returns which outputs are the raw ones then, too, and the steps as they are recorded.
    """
    before_threshold(specs)
    form = format_of(path)

    def put(model: Any) -> tuple[Outputs, tuple[TailSpec, ...]]:
        ports = tuple(form.outputs(model))
        selection = select_raw(ports, resolve_all(specs), **outputs)
        before = put_before(form, model, with_channel(ports, specs, outputs), outputs=outputs)
        _refuse_post_processed(form, model, selection.found.values(), path)
        return before

    # Windows does not delete what a runtime maps; it goes with the folder for temporary files then.
    with temporary_folder() as folder:
        before, runnable = form.edited(path, folder, put, purpose="calibrating on an OpenVINO IR")
        return open_runner(runnable, **options), *before


def _refuse_post_processed(form: Format, model: Any, found: Collection[str], path: Path) -> None:
    """Refuse a model that has post-processing, but where it was named which of its outputs are raw."""
    results = [port.name for port in form.outputs(model) if any(port.answers_to(name) for name in RESULT_NAMES)]
    has_record = form.recorded(model, "tail", where="the model") is not None
    if (results or has_record) and set(found) != {"option"}:
        sign = f"an output '{results[0]}'" if results else "the record of a tail"
        raise UnsupportedModelError(
            f"the model is post-processed already: it has {sign}",
            needed="raw outputs, whose range and threshold are not known yet",
            fix=f"postproc-export detach {path}, and calibrate the file that it writes; or name the raw outputs with "
            "--image-output and --pixel-output",
        )
