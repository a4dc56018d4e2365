"""Values and ground truth of a level, met together in the order that costs least: as they are stored."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from postproc_export.calibration.counting.arrays import AnyArray, Block, Place, flat_chunks, paired
from postproc_export.calibration.counting.boxes import box_blocks, is_chunked
from postproc_export.calibration.counting.places import FortranPlace
from postproc_export.calibration.shards.streams import StreamedArray
from postproc_export.errors import CalibrationError

_WHOLE: Final = 1 << 24  # values that are loaded to turn them from Fortran into C order


def pair_blocks(values: Any, truth: Any, place: Place) -> Iterator[Block]:
    """Yield the blocks of a pair of arrays that fit each other; only within a place does their order matter.

    Raises
    ------
    CalibrationError
        If one of them is large and in Fortran order and the other one is not.
    """
    arrays = [values] if truth is None else [values, truth]
    if any(map(is_chunked, arrays)) and not any(isinstance(each, StreamedArray) for each in arrays):
        yield from box_blocks(values, truth, place)
        return
    if all(map(_is_fortran, arrays)):
        place = FortranPlace(place.where, place.key, place.truth_key, place.shape, place.missing)
        parts = [_as_stored(each) for each in arrays]
    else:
        keys = (place.key, place.truth_key)
        parts = [_in_c_order(each, name=f"{place.where}: {key}") for each, key in zip(arrays, keys, strict=False)]
    start = 0
    for part, truth_part in paired(parts[0], parts[1] if len(parts) > 1 else None):
        yield Block(part, truth_part, place, start)
        start += part.size


def _is_fortran(array: Any) -> bool:
    """Whether an array lies in Fortran order and that is another one than C order."""
    if isinstance(array, StreamedArray):
        return array.order_matters
    return isinstance(array, np.ndarray) and array.flags.f_contiguous and not array.flags.c_contiguous


def _as_stored(array: Any) -> Iterator[AnyArray]:
    return array.chunks() if isinstance(array, StreamedArray) else flat_chunks(array.T)


def _in_c_order(array: Any, *, name: str) -> Iterator[AnyArray]:
    if not isinstance(array, StreamedArray):
        return flat_chunks(array)
    if not array.order_matters:
        return array.chunks()
    if array.size > _WHOLE:
        raise CalibrationError(
            f"{name} is in Fortran order, unlike the array it goes with",
            found=f"{array.size} values, which cannot be paired while streaming",
            needed=f"both in the same order, or at most {_WHOLE} values",
            fix="save it in C order: np.save(path, np.ascontiguousarray(array))",
        )
    return flat_chunks(np.ascontiguousarray(array.whole()))
