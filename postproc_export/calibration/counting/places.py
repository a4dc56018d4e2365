"""Where blocks lie that do not follow the C order of their array: Fortran order, and boxes of an array."""

from dataclasses import dataclass

import numpy as np

from postproc_export.calibration.counting.arrays import Place, Positions


@dataclass(frozen=True, slots=True)
class FortranPlace(Place):
    """An array whose elements are met in Fortran order, as they are stored."""

    def ranks(self, flat: Positions) -> Positions:
        """Return where flat indices stand in the C order of the array."""
        assert self.shape is not None, "the header tells the shape"
        return _ravelled(np.unravel_index(flat, self.shape, order="F"), self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxPlace(Place):
    """A box of an array; flat indices are those of the box, positions in messages those of the array.

    Parameters
    ----------
    origin, box
        The index of its first element in the array, and its own shape.
    within
        The place of the array; None where no other block of it is read in the same run.
    """

    origin: tuple[int, ...]
    box: tuple[int, ...]
    within: Place | None = None

    @property
    def array(self) -> Place:
        """The place of the whole array."""
        return self if self.within is None else self.within

    def ranks(self, flat: Positions) -> Positions:
        """Return where flat indices of the box stand in the C order of the array."""
        if not self.shape:
            return flat
        inside = np.unravel_index(flat, self.box)
        return _ravelled(
            tuple(np.add(first, axis) for first, axis in zip(self.origin, inside, strict=True)), self.shape
        )


def _ravelled(index: tuple[Positions, ...], shape: tuple[int, ...]) -> Positions:
    return np.asarray(np.ravel_multi_index(index, shape), dtype=np.intp)
