"""The fixed numbers of the demo's texture features."""

from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

Float32Array: TypeAlias = npt.NDArray[np.float32]

BLOCK: Final = 4
STRIDE: Final = 2
WINDOW: Final = 5
# Feature pixels on each side that two windows in a row cannot reach.
BORDER: Final = 2 * (WINDOW // 2)
# Energies far below this one (a step of one grey level has 1.5e-5) count as smooth; chosen on the validation crops.
FLOOR: Final = 2e-4


def dct_filters(size: int = BLOCK) -> Float32Array:
    """Return the orthonormal 2-D DCT-II of a block: float32, shape (size * size, 1, size, size), the mean first."""
    index = np.arange(size)
    basis = np.cos(np.pi * (index[None, :] + 0.5) * index[:, None] / size) * np.sqrt(2.0 / size)
    basis[0] /= np.sqrt(2.0)
    blocks = basis[:, None, :, None] * basis[None, :, None, :]
    return np.asarray(blocks.reshape(size * size, 1, size, size), dtype=np.float32)


def direction_sums(size: int = BLOCK) -> Float32Array:
    """Return the 0/1 matrix that adds the energies of frequencies (i, j) and (j, i) and leaves the mean out.

    float32, shape (pairs, size * size, 1, 1).
    """
    pairs = [(i, j) for i in range(size) for j in range(i, size)][1:]
    rows = [[float((min(i, j), max(i, j)) == pair) for i in range(size) for j in range(size)] for pair in pairs]
    return np.asarray(rows, dtype=np.float32)[..., None, None]
