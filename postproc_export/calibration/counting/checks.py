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
                f"{place.where}: the shapes do not agree",
                found=found,
                needed="the same N (, H and W)",
                fix=f"bring the {place.truth_key} to the size of the {place.key}, and give one for each",
            )
    return shape


def check_counts(shapes: dict[Level, tuple[int, ...]], *, where: str) -> None:
    """Refuse scores and maps of different numbers of images."""
    if len({shape[0] for shape in shapes.values()}) > 1:
        found = f"{shapes['image'][0]} scores, {shapes['pixel'][0]} maps"
        fix = "give scores and maps of the same images, or files for each level apart"
        raise CalibrationError(f"{where}: the shapes do not agree", found=found, needed="one score per map", fix=fix)


def check_labelled(before: bool | None, now: bool, *, place: Place, earlier: Place | None = None) -> None:
    """Refuse a level that has ground truth in some batches or files and none in others.

    Parameters
    ----------
    before, now
        Whether those met so far had ground truth (None where there were none), and whether this one has.
    place, earlier
        Where this one is, and one met before it: the one without may know the file that is missing.
    """
    if before is not None and before != now:
        without = earlier if now else place
        missing = None if without is None else without.missing
        raise CalibrationError(
            f"{place.where}: {place.key} comes {'with' if now else 'without'} {place.truth_key}, unlike earlier ones",
            needed=f"{place.truth_key} everywhere or nowhere",
            fix=None if missing is None else f"add {missing}",
        )


def check_seen(level: Level, seen: int, *, dropped: int) -> None:
    """Refuse a level without a single value."""
    if not seen:
        found = f"{dropped} values, none of them finite" if dropped else "arrays without elements"
        needed = "one finite value at least" if dropped else "one image at least"
        fix = "give arrays with elements, or leave the level out"
        raise CalibrationError(f"{level} level: no sample at all", found=found, needed=needed, fix=fix)


def check_nonfinite(nonfinite: str) -> None:
    """Refuse an unknown way to treat values that are not finite."""
    if nonfinite not in NONFINITE:
        raise UsageError(f"nonfinite={nonfinite!r} is not known", needed="'error' or 'drop'")
