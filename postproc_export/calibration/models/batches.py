"""Running a raw model on batches of images, whatever batch size its graph was made for."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from postproc_export.errors import UnsupportedModelError, UsageError
from postproc_export.images import Preprocessing
from postproc_export.outputs import Selection
from postproc_export.runtimes import Array, Runner, as_float32

DEFAULT_BATCH: Final = 8
_FALLBACK_BATCHES: Final = (1, 2)  # exporters trace at one of these, and some graphs then run at nothing else


def run_batch(runner: Runner, selection: Selection, images: Array, *, batch_size: int) -> tuple[Array, Array | None]:
    """Run the model on up to `batch_size` images and return score (n,) and map (n, H, W) of each.

    Notes
    -----
    A smaller batch is filled up with its last image and the surplus dropped, for models that run at one size only. The
    score of a model without one is the maximum of its map, and NaN where the map holds a NaN.

    Raises
    ------
    UnsupportedModelError
        If the run fails, or the outputs have not one value or map per image.
    """
    count = len(images)
    fed = np.concatenate([images, np.repeat(images[-1:], batch_size - count, axis=0)]) if count < batch_size else images
    outputs = runner.run({runner.inputs[0].name: fed})
    maps = None if selection.pixel is None else _maps(selection.pixel.name, outputs, batch_size)
    if selection.image is not None:
        scores = _scores(selection.image.name, outputs, batch_size)
    else:
        assert maps is not None, "a selection has at least one level"
        scores = maps.max(axis=(1, 2))
    return scores[:count], None if maps is None else maps[:count]


def find_batch_size(
    runner: Runner, selection: Selection, preprocessing: Preprocessing, *, asked: int | None, count: int
) -> int:
    """Return a batch size at which the model runs, found by running it on a black image.

    Parameters
    ----------
    runner, selection, preprocessing
        The model, its raw outputs, and the pre-processing resolved for its input.
    asked
        The size that the user wants; None: the model's own where it is static, else the first that works of 8, 1 and 2.
    count
        Number of images; no more are run at once.

    Raises
    ------
    UsageError
        If the size asked for is not the model's static one.
    UnsupportedModelError
        If the model runs at none of the sizes, or gives not one value per image.
    """
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
        failure = _trial(runner, selection, preprocessing, size)
        if failure is None:
            return size
        failures[size] = failure
    raise _no_batch_size(failures, static)


def _trial(
    runner: Runner, selection: Selection, preprocessing: Preprocessing, size: int
) -> UnsupportedModelError | None:
    try:
        run_batch(runner, selection, preprocessing.blank()[None], batch_size=size)
    except UnsupportedModelError as error:
        return error
    return None


def _no_batch_size(failures: Mapping[int, UnsupportedModelError], static: int | None) -> UnsupportedModelError:
    first = next(iter(failures.values()))
    fix = None if static else "if the model runs at another batch size only, give it with --batch-size"
    sizes = " or ".join(map(str, failures))
    return UnsupportedModelError(
        f"{first.what} (batch size {sizes})", found=first.found, needed=first.needed, fix=first.fix or fix
    )


def _scores(name: str, outputs: Mapping[str, Array], batch_size: int) -> Array:
    values = _float(outputs[name])
    if values.size != batch_size or values.ndim > 2:
        raise UnsupportedModelError(
            f"output '{name}' has not one score per image",
            found=f"shape {list(values.shape)} for {batch_size} image(s)",
            needed="[], [N] or [N, 1]",
            fix="name another output with --image-output, or 'none'",
        )
    return values.reshape(batch_size)


def _maps(name: str, outputs: Mapping[str, Array], batch_size: int) -> Array:
    values = _float(outputs[name])
    shape = values.shape
    if values.ndim not in (3, 4) or shape[0] != batch_size or (values.ndim == 4 and shape[1] != 1) or 0 in shape:
        raise UnsupportedModelError(
            f"output '{name}' has not one map per image",
            found=f"shape {list(shape)} for {batch_size} image(s)",
            needed="[N, H, W] or [N, 1, H, W]",
            fix="name another output with --pixel-output, or 'none'",
        )
    return values.reshape(batch_size, *shape[-2:])


def _float(values: Array) -> Array:
    # bfloat16 is no type of NumPy's own; float64 is left to the calibrator, which rounds and tells of merged values.
    return as_float32(values) if values.dtype.name == "bfloat16" else values
