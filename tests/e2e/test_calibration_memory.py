"""Memory does not grow with the data, whatever the data is made to do."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

SCRIPT = Path(__file__).parents[1] / "scripts" / "calibration_memory.py"
LIMIT = 200.0  # MB above the imports

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system tells no peak memory"),
]


@pytest.mark.parametrize(
    ("kind", "dtype", "policy"),
    [
        ("constant-f1", "float32", "f1"),
        pytest.param("constant-f1", "float64", "f1", marks=pytest.mark.slow),
        pytest.param("alternating", "float32", "fbeta=1e-9", marks=pytest.mark.slow),
    ],
)
def test_scores_that_cannot_be_pruned_stay_within_the_limit(kind: str, dtype: str, policy: str) -> None:
    """Both levels at once, with every policy compared: millions of candidates reach the same F1, and are read again."""
    run = subprocess.run([sys.executable, SCRIPT, kind, dtype, policy], capture_output=True, text=True, check=True)
    assert float(run.stdout) < LIMIT


def test_one_large_map_is_read_in_parts(tmp_path: Path) -> None:
    """A map of 200 MB in one array, in a type that has to be converted, as a file and as one batch of a stream."""
    maps = np.lib.format.open_memmap(tmp_path / "maps.npy", "w+", np.float16, (1, 5_000, 20_000))
    maps[:] = np.linspace(0, 100, 20_000, dtype=np.float16)
    masks = np.lib.format.open_memmap(tmp_path / "masks.npy", "w+", np.bool_, maps.shape)
    masks[:] = np.arange(20_000) > 15_000
    del maps, masks
    run = subprocess.run([sys.executable, SCRIPT, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(run.stdout) < LIMIT


def test_a_zarr_store_with_unlike_chunks_is_read_in_parts(tmp_path: Path) -> None:
    """Boxes on the common grid of both arrays, and the chunks being decoded, take no more."""
    group, shape = zarr.open_group(tmp_path / "val.zarr", mode="w"), (20, 1, 1536, 1536)
    maps = group.create_array("maps", shape=shape, chunks=(20, 1, 256, 256), dtype="f4")
    masks = group.create_array("masks", shape=shape, chunks=(10, 1, 768, 768), dtype="bool")
    rng = np.random.default_rng(0)
    for first in range(0, shape[0], 10):
        values = rng.standard_normal((10, *shape[1:]), dtype=np.float32)
        maps[first : first + 10], masks[first : first + 10] = values, values > 2
    run = subprocess.run([sys.executable, SCRIPT, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(run.stdout) < LIMIT
