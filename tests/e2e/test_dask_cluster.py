"""Calibration on a Dask cluster of two worker processes: the bits of one process, and errors as clear as there."""

import json
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from postproc_export.calibration import COMPARED, Progress, calibrate
from postproc_export.calibration import dask as dask_level
from postproc_export.calibration.counting import Divide
from postproc_export.calibration.dask import answer_shards
from postproc_export.calibration.shards import NpzShard
from postproc_export.calibration.tally import Count
from postproc_export.errors import CalibrationError, FileError

distributed = pytest.importorskip("distributed", reason="the extra 'dask' is not installed")
da = pytest.importorskip("dask.array", reason="the extra 'dask' is not installed")

pytestmark = pytest.mark.e2e

SCRIPT = Path(__file__).parents[1] / "scripts" / "dask_cluster.py"
DATA = Path(__file__).parents[1] / "data" / "calibration"


@pytest.fixture(scope="module")
def addresses() -> Iterator[tuple[str, str, str]]:
    """The addresses of the scheduler, of something else, and of a scheduler without workers; in another process."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH", ""))),
    }
    with subprocess.Popen([sys.executable, str(SCRIPT)], env=environment, **pipes) as process:  # type: ignore[call-overload]
        yield tuple(process.stdout.readline().split())
        process.stdin.close()
        assert process.wait(timeout=60) == 0


@pytest.fixture
def cluster(addresses: tuple[str, str, str]) -> str:
    """The address of the scheduler."""
    return addresses[0]


@pytest.fixture(scope="module")
def images() -> dict[str, np.ndarray]:
    """Raw outputs for 60 images, more pixels than are sorted in one pass."""
    rng = np.random.default_rng(5)
    masks = rng.random((60, 160, 160)) < 0.01
    maps = rng.gamma(2, size=(60, 1, 160, 160)).astype(np.float32) + 3 * masks[:, None].astype(np.float32)
    return {"scores": maps.max(axis=(1, 2, 3)), "labels": np.arange(60) % 2, "maps": maps, "masks": masks}


@pytest.fixture(scope="module")
def shards(images: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in six files of different kinds and sizes."""
    folder = tmp_path_factory.mktemp("shards")
    for index, (first, end) in enumerate([(0, 5), (5, 30), (30, 30), (30, 44)]):
        np.savez(folder / f"{index}.npz", **{key: array[first:end] for key, array in images.items()})
    for key, array in images.items():
        np.save(folder / f"pair_{key}.npy", array[44:50])
    write_zarr(folder / "store.zarr", {key: array[50:] for key, array in images.items()})
    return folder


def write_zarr(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a Zarr group in chunks of three images."""
    group = pytest.importorskip("zarr", reason="the extra 'zarr' is not installed").open_group(str(path), mode="w")
    for key, array in arrays.items():
        stored = group.create_array(key, shape=array.shape, dtype=array.dtype, chunks=(3, *array.shape[1:]))
        stored[...] = array


def statistics(source: Any, **options: Any) -> tuple[str, list[str]]:
    """Return the statistics file and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return calibrate(source, **{"resamples": 20, **options}).dumps(), [str(each.message) for each in caught]


def test_shards_give_the_bits_of_one_process(shards: Path, cluster: str) -> None:
    """Files of every kind, all policies, curve, areas and bootstrap interval."""
    found = statistics(shards, compare=COMPARED, dask=cluster)
    assert found == statistics(shards, compare=COMPARED)
    assert json.loads(found[0])["pixel"]["n_normal"] > 1 << 20


def test_arrays_give_the_bits_of_one_process(images: dict[str, np.ndarray], cluster: str) -> None:
    """Arrays in chunks that do not match, on a client that is the default one, given, or made for the address."""
    chunks = {"scores": 7, "labels": 60, "maps": (20, 1, 160, 100), "masks": (15, 160, 160)}
    arrays = {key: da.from_array(array, chunks=chunks[key]) for key, array in images.items()}
    expected = statistics(images)
    assert statistics(arrays, dask=cluster) == expected
    with distributed.Client(cluster, set_as_default=False) as client:
        assert statistics(arrays, dask=client) == expected
    with distributed.Client(cluster):
        assert statistics(arrays) == expected


@pytest.mark.parametrize("name", ["padim", "dfkde"])
def test_anomalib_validation_outputs_keep_their_bits(name: str, cluster: str) -> None:
    """Anomalib's own validation outputs, as a file that a worker opens and as Dask arrays, equal one process."""
    expected = statistics(DATA / f"{name}.npz")
    assert statistics(DATA / f"{name}.npz", dask=cluster) == expected
    with np.load(DATA / f"{name}.npz") as file:
        arrays = {key: da.from_array(file[key], chunks=(9, *file[key].shape[1:])) for key in file}
    whole, cut = json.loads(expected[0]), json.loads(statistics(arrays, dask=cluster)[0])
    assert (cut["image"], cut["pixel"]) == (whole["image"], whole["pixel"])
    bits = {"padim": (5.344675, 3.243398, 12.298708), "dfkde": (0.32533437, 0.27135482, 0.8046053)}
    assert tuple(cut["image"][key] for key in ("threshold", "min", "max")) == bits[name]


def test_dropped_values_are_counted_once(images: dict[str, np.ndarray], tmp_path: Path, cluster: str) -> None:
    """`nonfinite="drop"`, float64 maps and no scores: the bits and the warnings of one process."""
    maps = images["maps"].astype(np.float64)
    maps[17:29, 0, 3] = np.nan
    for index in range(4):
        part = slice(15 * index, 15 * index + 15)
        np.savez(tmp_path / f"{index}.npz", maps=maps[part], masks=images["masks"][part])
    options = {"nonfinite": "drop", "pixel_policy": "recall=0.9"}
    found = statistics(tmp_path, dask=cluster, **options)
    assert found == statistics(tmp_path, **options)
    assert json.loads(found[0])["pixel"]["n_dropped"] == 12 * 160


def test_relative_paths_mean_the_folder_of_the_caller(
    shards: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers' own folder does not matter; the statistics name the files as they were given."""
    monkeypatch.chdir(shards)
    names = ["0.npz", "1.npz", "pair_maps.npy", "pair_masks.npy", "store.zarr"]
    found = statistics(names, dask=cluster)
    assert found == statistics(names)
    assert json.loads(found[0])["source"] == ["0.npz", "1.npz", "store.zarr", "pair"]


def same_error(source: Path, cluster: str) -> str:
    """Return the text of the error, which is the one of a single process."""
    with pytest.raises(CalibrationError) as local:
        calibrate(source)
    with pytest.raises(CalibrationError) as far:
        calibrate(source, dask=cluster)
    assert str(far.value) == str(local.value)
    return str(far.value)


def test_the_first_corrupt_shard_is_named(images: dict[str, np.ndarray], tmp_path: Path, cluster: str) -> None:
    """Of several damaged shards the first in order is reported, in the words of one process."""
    for name in ("a", "b", "c", "d"):
        np.savez(tmp_path / f"{name}.npz", maps=images["maps"][:3], masks=images["masks"][:3])
    for name in ("b", "d"):
        path = tmp_path / f"{name}.npz"
        path.write_bytes(path.read_bytes()[:-2000])
    assert same_error(tmp_path, cluster).startswith(f"{tmp_path / 'b.npz'} is damaged or truncated")


def test_the_first_illegal_value_is_named(images: dict[str, np.ndarray], tmp_path: Path, cluster: str) -> None:
    """A NaN is reported with its shard, its index and their number, also where the shard is read in parts."""
    maps = images["maps"].copy()
    maps[7, 0, 1, 2] = maps[2, 0, 159, 159] = maps[9, 0, 0, 0] = np.nan
    np.savez(tmp_path / "a.npz", maps=images["maps"][:3], masks=images["masks"][:3])
    write_zarr(tmp_path / "b.zarr", {"maps": maps[:11], "masks": images["masks"][:11]})
    np.savez(tmp_path / "c.npz", maps=maps, masks=images["masks"])
    text = same_error([tmp_path / name for name in ("a.npz", "b.zarr", "c.npz")], cluster)  # type: ignore[arg-type]
    assert f"found:   3 of 281600 values, the first is nan at {tmp_path / 'b.zarr'}: maps[2, 0, 159, 159]" in text


def test_ground_truth_in_some_shards_only(images: dict[str, np.ndarray], tmp_path: Path, cluster: str) -> None:
    """The first shard that is unlike those before it is named."""
    for name in ("a", "b", "c", "d"):
        masks = {"masks": images["masks"][:3]} if name in "ab" else {}
        np.savez(tmp_path / f"{name}.npz", maps=images["maps"][:3], **masks)
    assert same_error(tmp_path, cluster).startswith(f"{tmp_path / 'c.npz'}: maps comes without gt_mask")


def test_a_shard_that_changes_is_named(images: dict[str, np.ndarray], tmp_path: Path, cluster: str) -> None:
    """Writing to a shard between two passes is noticed by the worker that reads it again."""
    for index in range(4):
        np.savez(tmp_path / f"{index}.npz", maps=images["maps"], masks=images["masks"])
    heard: list[Progress] = []

    def touch(at: Progress) -> None:
        heard.append(at)
        if len(heard) == 8:  # all four shards have been asked for scores and for maps
            os.utime(tmp_path / "2.npz", ns=(1, 1))

    with pytest.raises(CalibrationError, match=r"2\.npz changed between two passes over it"):
        calibrate(tmp_path, dask=cluster, progress=touch)
    assert [at.number for at in heard[4:8]] == [1] * 4


def test_a_shard_that_workers_do_not_find(shards: Path, tmp_path: Path, cluster: str) -> None:
    """A file that is gone when a worker opens it is named, with what a cluster needs."""
    os.link(shards / "1.npz", tmp_path / "a.npz")
    heard: list[Progress] = []

    def remove(at: Progress) -> None:
        heard.append(at)
        if len(heard) == 1:
            (tmp_path / "a.npz").unlink()

    with pytest.raises(
        FileError, match=r"a Dask worker: cannot read .*a\.npz\n(.*\n)*  fix: +put the shards where every"
    ):
        calibrate(tmp_path, dask=cluster, progress=remove)


def test_a_failing_task_says_why(cluster: str) -> None:
    """What the user's own tasks raise comes back as the cause."""
    scores = da.zeros(8, chunks=4).map_blocks(lambda block: block[0, 0], dtype=float)
    with pytest.raises(
        CalibrationError, match="could not compute the parts of the source\n  found:   IndexError"
    ) as error:
        calibrate({"scores": scores}, dask=cluster)
    assert isinstance(error.value.__cause__, IndexError)


def test_progress_counts_values(shards: Path, cluster: str) -> None:
    """The callback hears of every part of every pass."""
    heard: list[Progress] = []
    calibrate(shards, dask=cluster, progress=heard.append)
    pixels = [each for each in heard if each.level == "pixel"]
    assert [each.values for each in pixels if each.number == 1][-1] == 60 * 160 * 160
    assert pixels[-1].number >= 2
    assert pixels[-1].values == pixels[-1].total == 60 * 160 * 160


def test_answers_hold_histograms_and_no_values(shards: Path) -> None:
    """What a part of a large source sends is its used bins; what it is sent is paths and bins."""
    parts: dict[str, Any] = {"shards": [NpzShard(shards / "1.npz")], "states": {}, "first": 0, "number": 0}
    task = partial(answer_shards, level="pixel", verify=True, **parts)
    assert len(pickle.dumps(task)) < 1000
    answer = pickle.dumps(task(Count("error", carried=0)).answer)
    count = pickle.loads(answer).counted()
    assert count.seen == 25 * 160 * 160
    assert len(answer) < 21 * len(count.table) + 2000 < count.seen / 10
    bins = np.arange(100, 110)
    divide = Divide.of(count.table, bins, bits=0)
    finer = task(divide).answer
    held = int((count.table.normal + count.table.anomalous)[bins].sum())
    assert len(finer) <= held < count.seen / 50
    assert len(pickle.dumps(finer)) < 21 * held + 2000
    assert len(pickle.dumps(divide)) < 2000


class TestCommandLine:
    """`postproc-export calibrate --dask`."""

    def test_the_workers_read_the_shards(self, shards: Path, cluster: str, tmp_path: Path, invoke: Any) -> None:
        """The statistics file is the one of a run without a cluster, and stderr says the same as there."""
        one = invoke("calibrate", shards, "-o", tmp_path / "one.json")
        run = invoke("calibrate", shards, "-o", tmp_path / "many.json", "--dask", cluster)
        assert (one.exit_code, run.exit_code) == (0, 0)
        assert run.stderr == one.stderr.replace("one.json", "many.json")
        assert f"statistics written to {tmp_path / 'many.json'}\n" in run.stderr
        assert "threshold" in run.stdout
        assert (tmp_path / "many.json").read_bytes() == (tmp_path / "one.json").read_bytes()

    def test_an_error_of_a_worker_is_one_message(self, tmp_path: Path, cluster: str, invoke: Any) -> None:
        """A damaged shard: exit code 2, its name, no traceback, no log, no file."""
        (tmp_path / "a.npz").write_bytes(b"PK")
        run = invoke("calibrate", tmp_path, "-o", tmp_path / "s.json", "--dask", cluster)
        assert run.exit_code == 2
        assert run.stderr.startswith(f"error: {tmp_path / 'a.npz'} is damaged or truncated\n  found:")
        assert len(run.stderr.splitlines()) == 3
        assert not (tmp_path / "s.json").exists()

    @pytest.mark.parametrize(
        ("address", "found"),
        [
            ("tcp://127.0.0.1:1", "OSError: Timed out trying to connect to tcp://127.0.0.1:1 after 1 s"),
            ("worker", "a Dask nanny"),
            ("127.0.0.1", "ValueError: missing port number in address '127.0.0.1'"),
            ("carrier://pigeon", "ValueError: unknown address scheme 'carrier'"),
        ],
        ids=["unreachable", "no-scheduler", "no-port", "no-scheme"],
    )
    def test_no_scheduler_there(
        self, address: str, found: str, shards: Path, addresses: tuple[str, str, str], tmp_path: Path, invoke: Any
    ) -> None:
        """One message, exit code 2, no file."""
        import dask

        address = address.replace("worker", addresses[1])
        with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
            run = invoke("calibrate", shards, "-o", tmp_path / "s.json", "--dask", address)
        assert run.exit_code == 2
        assert run.stderr.startswith(f"error: there is no Dask scheduler at {address}\n  found:   {found}")
        assert len(run.stderr.splitlines()) == 3
        assert not (tmp_path / "s.json").exists()

    def test_a_model_is_not_for_a_cluster(self, tmp_path: Path, invoke: Any) -> None:
        """`--dask` with a model to run is refused."""
        run = invoke("calibrate", "m.onnx", "--images", tmp_path, "-o", tmp_path / "s.json", "--dask", "127.0.0.1:1")
        assert run.exit_code == 2
        assert "error: --dask is for raw outputs in files\n  found:   the model m.onnx" in run.stderr


def test_a_cluster_without_workers_or_with_other_software(
    monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, str, str]
) -> None:
    """Both are said before anything is read."""
    monkeypatch.setattr(dask_level, "__version__", "0.0.0")
    text = (
        "the Dask scheduler is not the same software\n  found:   postproc-export .*\n  needed:  postproc-export 0.0.0"
    )
    with pytest.raises(CalibrationError, match=text):
        calibrate(DATA, dask=addresses[0])
    monkeypatch.setattr(dask_level, "WAIT", 0.1)
    with pytest.raises(CalibrationError, match=rf"the Dask scheduler at {addresses[2]} has no worker"):
        calibrate(DATA, dask=addresses[2])
