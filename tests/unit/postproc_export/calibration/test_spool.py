"""The values of a stream are kept to be read again, and nothing of them stays, whatever happens."""

import errno
import gc
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from calibration_cases import LABELS, SCORES, filled

from postproc_export.calibration import CalibrationWarning, Calibrator, tally
from postproc_export.errors import CalibrationError, FileError, UsageError


def open_files() -> int:
    """Return the number of open file descriptors of this process, without what nobody holds any more."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def test_values_that_float32_merges_at_the_threshold_are_warned_about(tiny_spool: None) -> None:
    """Two float64 scores that become one float32 can no longer be told apart."""
    scores = np.array([0.0, 0.5, 0.5 + 1e-12, 1.0])
    calibrator = Calibrator(resamples=0)
    calibrator.update(np.tile(scores, 12), np.tile([0, 0, 1, 1], 12))
    with pytest.warns(
        CalibrationWarning, match=r"merges different values \(0\.5 to 0\.500000000001\) at the threshold"
    ):
        calibrator.compute()


def test_the_spool_has_no_name_and_is_closed(tiny_spool: None, tmp_path: Path) -> None:
    """Nothing is left in the folder, even while the file is in use."""
    before = open_files()
    with filled(spool_dir=tmp_path) as calibrator:
        for _ in range(5):
            calibrator.update(SCORES, LABELS, None, None)
        assert list(tmp_path.iterdir()) == []
        assert open_files() > before
        calibrator.compute()
    assert open_files() == before


@pytest.mark.parametrize("in_memory", [0, 100, 1 << 20])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_runs_of_any_length_come_back_in_their_order(
    in_memory: int, dtype: str, tiny_spool: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long ones are kept as they come and short ones together, in memory or in the file, which takes whole pages."""
    monkeypatch.setattr(tally, "IN_MEMORY", in_memory)
    spool, rng = tally.Spool(None, tally.Room()), np.random.default_rng(0)
    runs = [rng.random(size).astype(dtype) for size in (1, 2, 1, 0, 7, 1, 35, 1, 1, 1, 1, 1, 1, 1, 1, 1, 10, 1)]
    runs.insert(3, np.float32([0.5]))
    flags = [run > 0.5 for run in runs]
    for run, truth in zip(runs, flags, strict=True):
        spool.append(run, truth)
    for _ in range(2):
        found = [*spool.blocks(labelled=True)]
        np.testing.assert_array_equal(np.concatenate([block.values for block in found]), np.concatenate(runs))
        truths = [block.truth for block in found if block.truth is not None]
        np.testing.assert_array_equal(np.concatenate(truths), np.concatenate(flags))
    assert spool.on_disk == (in_memory < 1 << 20)
    spool.close()
    assert not [*spool.blocks(labelled=True)]


def test_both_levels_share_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one takes the other does not have; a reset gives it back."""
    monkeypatch.setattr(tally, "SPOOLED", 10)
    monkeypatch.setattr(tally, "IN_MEMORY", 80)
    calibrator = Calibrator(resamples=0)
    for _ in range(2):
        calibrator.update(np.arange(16, dtype=np.float32), np.arange(16) % 2)
        calibrator.update(anomaly_map=np.arange(10, dtype=np.float32).reshape(2, 5), gt_mask=np.ones((2, 5)))
        spools = {level: state.spool for level, state in calibrator._levels.items()}
        assert {level: spool.on_disk for level, spool in spools.items() if spool} == {"image": False, "pixel": True}
        calibrator.reset()


KILLED = """
import os, signal, sys
import numpy as np
from postproc_export.calibration import Calibrator, tally
tally.IN_MEMORY = 0
calibrator = Calibrator(spool_dir=sys.argv[1])
calibrator.update(np.arange(600_000.0), np.arange(600_000) % 2)
assert calibrator._levels["image"].spool.on_disk
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_no_spool(tmp_path: Path) -> None:
    """The temporary file has no name from the start, so nothing has to clean it up."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_clear_error(tiny_spool: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The message names the folder and the ways out; what is left is not computed on."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    calibrator = Calibrator(spool_dir=tmp_path)
    with pytest.raises(FileError, match=r"(?s)the spool in .* cannot be written: No space left.*exact=False"):
        calibrator.update(np.arange(100.0), np.arange(100) % 2)
    with pytest.raises(CalibrationError, match=r"no longer whole\n.*reset\(\) first"):
        calibrator.compute()
    calibrator.reset()
    calibrator.update(SCORES, LABELS)
    assert calibrator.compute().image is not None


LIMITED = """
import resource, sys
import numpy as np
from postproc_export.calibration import Calibrator, tally
from postproc_export.errors import FileError
tally.IN_MEMORY = 0
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
first, second = (Calibrator(spool_dir=sys.argv[1], resamples=0) for _ in range(2))
for calibrator in (first, second):
    calibrator.update(np.arange(520_000.0, dtype=np.float32), np.arange(520_000) % 2)
try:
    first.merge(second)
except FileError as error:
    print(error)
assert second.compute().image.n_normal == 260_000
first.reset()
first.update(np.arange(8.0), np.arange(8) % 2)
assert first.compute().image.n_normal == 4
"""


def test_what_the_system_refuses_to_write_is_a_clear_error(tmp_path: Path) -> None:
    """A real limit, met in the middle of a merge: one is reset and goes on, the other is as it was, no file is left."""
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True)
    assert re.search(r"(?s)the spool in .* cannot be written: File too large.*bytes written so far", done.stdout)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_for_the_spool_has_to_be_there(tmp_path: Path) -> None:
    """It is missed at once, not after a million values."""
    with pytest.raises(FileError, match=r"there is no folder .*/no for the spool"):
        Calibrator(spool_dir=tmp_path / "no")


def test_pickling_works_until_there_is_a_spool(tiny_spool: None) -> None:
    """A small calibrator can be sent; one with a temporary file says what to do instead."""
    small = Calibrator(resamples=0)
    small.update(SCORES, LABELS)
    assert pickle.loads(pickle.dumps(small)).compute() == small.compute()
    with pytest.raises(UsageError, match=r"(?s)cannot be pickled.*calibrate from shards"):
        pickle.dumps(filled())


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("in_memory", [0, 1 << 20], ids=["no_room", "room"])
def test_a_pickled_calibrator_goes_on(
    in_memory: int, protocol: int, tiny_spool: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is sent in the middle of a stream by any protocol, with room left in memory or without."""
    monkeypatch.setattr(tally, "IN_MEMORY", in_memory)
    whole, half = Calibrator(resamples=0), Calibrator(resamples=0)
    for _ in range(2):
        whole.update(SCORES, LABELS)
    half.update(SCORES[:2], LABELS[:2])
    half = pickle.loads(pickle.dumps(half, protocol))
    for scores, labels in ((SCORES[2:], LABELS[2:]), (SCORES, LABELS)):
        half.update(scores, labels)
    assert half.compute() == whole.compute()


def test_merging_takes_over_the_other_values(tiny_spool: None) -> None:
    """Two halves merged are the whole, and the other one stays as it is."""
    one, other, whole = (Calibrator(resamples=0) for _ in range(3))
    for part, calibrator in ((SCORES, one), (SCORES * 3, other)):
        for _ in range(9):
            calibrator.update(part, LABELS)
            whole.update(part, LABELS)
    before = other.compute()
    one.merge(other)
    assert one.compute() == whole.compute()
    assert other.compute() == before
