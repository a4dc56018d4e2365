"""What every source is held to: types, shapes, numbers of images, ground truth throughout, at least one sample."""

from typing import Any, Final

from postproc_export.calibration.counting.arrays import Place, check_type, level_shape
from postproc_export.errors import CalibrationError, UsageError
from postproc_export.stats import Level

NONFINITE: Final = ("error", "drop")


def checked_shape(level: Level, values: Any, truth: Any, *, place: Place) -> tuple[int, ...]:
    """Return the canonical shape of a pair of arrays; refuses types and shapes that do not fit."""
    values_at, truth_at = f"{place.where}: {place.key}", f"{place.where}: {place.truth_key}"
    check_type(values.dtype, place=values_at, truth=False)
    shape = level_shape(tuple(values.shape), level=level, place=values_at)
    if truth is not None:
        check_type(truth.dtype, place=truth_at, truth=True)
        truth_shape = level_shape(tuple(truth.shape), level=level, place=truth_at)
        if truth_shape != shape:
            found = f"{place.key} {tuple(values.shape)}, {place.truth_key} {tuple(truth.shape)}"
            raise CalibrationError(
                f"{place.where}: the shapes do not agree", found=found, needed="the same N (, H and W)"
            )
    return shape


def check_counts(shapes: dict[Level, tuple[int, ...]], *, where: str) -> None:
    """Refuse scores and maps of different numbers of images."""
    if len({shape[0] for shape in shapes.values()}) > 1:
        found = f"{shapes['image'][0]} scores, {shapes['pixel'][0]} maps"
        raise CalibrationError(f"{where}: the shapes do not agree", found=found, needed="one score per map")


def check_labelled(before: bool | None, now: bool, *, place: Place) -> None:
    """Refuse a level that has ground truth in some batches or files and none in others."""
    if before is not None and before != now:
        raise CalibrationError(
            f"{place.where}: {place.key} comes {'with' if now else 'without'} {place.truth_key}, unlike earlier ones",
            needed=f"{place.truth_key} everywhere or nowhere",
        )


def check_seen(level: Level, seen: int, *, dropped: int) -> None:
    """Refuse a level without a single value."""
    if not seen:
        found = f"{dropped} values, none of them finite" if dropped else "arrays without elements"
        raise CalibrationError(f"{level} level: no sample at all", found=found)


def check_nonfinite(nonfinite: str) -> None:
    """Refuse an unknown way to treat values that are not finite."""
    if nonfinite not in NONFINITE:
        raise UsageError(f"nonfinite={nonfinite!r} is not known", needed="'error' or 'drop'")
