"""Damaged files, through every command, in process: a clear message and exit code 2, never half a file."""

import io
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import hosts
import numpy as np
import pytest
from anomalib_files import FOLDER
from fuzz.mutations import mutate
from fuzz.regressions import REGRESSIONS

from postproc_export.attach import attach_postprocessing
from postproc_export.cli import main
from postproc_export.stats import CalibrationStats, LevelStats

SAMPLE_SEED, LONG_SEED = 20260101, 20260102
LONGEST = 60.0  # seconds that one damaged file may take on a busy machine
STATS = CalibrationStats(
    image=LevelStats(threshold=0.5, min=0.0, max=2.0), pixel=LevelStats(threshold=0.25, min=-1.0, max=1.0)
)


@dataclass(frozen=True)
class Target:
    """A command and the one of its files that is damaged."""

    name: str
    damaged: str
    files: tuple[str, ...]
    arguments: tuple[str, ...]
    weight: int = 4


def _target(command: str, model: str, *arguments: str, damaged: str | None = None, weight: int = 4) -> Target:
    """Return a target whose model is damaged, or the file that is named."""
    companion = (Path(model).with_suffix(".bin").name,) if model.endswith(".xml") else ()
    others = tuple(name for name in ("stats.json",) if name in arguments)
    what = damaged or model
    return Target(f"{command}-{what}", what, (model, *companion, *others), (command, model, *arguments), weight)


def _targets() -> Iterator[Target]:
    for model in ("attached.onnx", "anomalib.onnx", "attached.xml", "anomalib.xml"):
        suffix = Path(model).suffix
        for damaged in (model,) if suffix == ".onnx" else (model, str(Path(model).with_suffix(".bin"))):
            yield _target("inspect", model, "--json", damaged=damaged, weight=8)
            yield _target("detach", model, "-o", f"out{suffix}", damaged=damaged)
            yield _target("update", model, "-o", f"out{suffix}", "--image-sensitivity", "0.3", damaged=damaged)
    yield _target("update", "anomalib.onnx", "-o", "out.onnx", "--keep-dialect", "--image-threshold", "5")
    for model in ("host.onnx", "host.xml"):
        suffix = Path(model).suffix
        yield _target("attach", model, "-s", "stats.json", "-o", f"out{suffix}")
        yield _target("attach", model, "-s", "stats.json", "-o", f"out{suffix}", damaged="stats.json")
    yield _target("update", "attached.onnx", "-o", "out.onnx", "-s", "stats.json", damaged="stats.json")
    calibrating = ("calibrate", "shard.npz", "-o", "out.json")
    yield Target("calibrate-shard.npz", "shard.npz", ("shard.npz",), calibrating)
    yield _target("check", "attached.onnx", "--json", weight=1)


TARGETS = tuple(_targets())


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a sound file of each kind."""
    folder = tmp_path_factory.mktemp("originals")
    hosts.write(hosts.score_and_map(), folder / "host.onnx")
    hosts.to_ir(hosts.score_and_map(), folder / "host.xml")
    for suffix in (".onnx", ".xml"):
        attach_postprocessing(folder / f"host{suffix}", STATS, output=folder / f"attached{suffix}")
    shutil.copy(FOLDER / "270_default_dynamo.onnx", folder / "anomalib.onnx")
    for suffix in (".xml", ".bin"):
        shutil.copy(FOLDER / f"262_default_legacy{suffix}", folder / f"anomalib{suffix}")
    STATS.save(folder / "stats.json")
    maps = np.linspace(0, 1, 4 * 9, dtype=np.float32).reshape(4, 1, 3, 3)
    np.savez(
        folder / "shard.npz", pred_score=maps.max((2, 3)), gt_label=[0, 0, 1, 1], anomaly_map=maps, gt_mask=maps > 0.5
    )
    return folder


def run(originals: Path, folder: Path, *, seed: int, number: int) -> tuple[str, int]:
    """Damage one file, run one command, check what is promised, and return the target and the exit code."""
    rng = random.Random(f"{seed}-{number}")
    target = rng.choices(TARGETS, [item.weight for item in TARGETS])[0]
    for name in target.files:
        shutil.copy(originals / name, folder / name)
    path = folder / target.damaged
    path.write_bytes(mutate(path.read_bytes(), rng))
    inputs = {item.name for item in folder.iterdir()}
    arguments = [str(folder / item) if "." in item and not item[0].isdigit() else item for item in target.arguments]
    out, err = io.StringIO(), io.StringIO()
    began = time.monotonic()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(arguments)
    written = {item.name for item in folder.iterdir()} - inputs
    assert time.monotonic() - began < LONGEST, "it took too long"
    assert code in (0, 1, 2), f"exit code {code}"
    assert "Traceback" not in err.getvalue()
    if code == 2:
        assert out.getvalue() == "" or target.name.startswith("check"), "a result beside an error"
        assert err.getvalue().startswith("error: "), err.getvalue()[:500]
        assert not written, f"left behind: {written}"
    assert written <= {"out.onnx", "out.xml", "out.bin", "out.json"}, f"left behind: {written}"
    return target.name, code


def fuzz(originals: Path, folder: Path, *, seed: int, numbers: range) -> Counter[tuple[str, int]]:
    """Run many damaged files; each failure names its seed and number, for `regressions.py`."""
    outcomes: Counter[tuple[str, int]] = Counter()
    failures: list[Exception] = []
    print(f"seed {seed}, {len(numbers)} damaged files")
    for number in numbers:
        place = folder / "work"
        place.mkdir()
        try:
            outcomes[run(originals, place, seed=seed, number=number)] += 1
        except Exception as error:
            error.add_note(f"damaged file: seed {seed}, number {number} (a row for tests/fuzz/regressions.py)")
            failures.append(error)
        finally:
            shutil.rmtree(place)
    if failures:
        raise ExceptionGroup(f"{len(failures)} of {len(numbers)} damaged files", failures)
    return outcomes


def _refused(outcomes: Counter[tuple[str, int]]) -> int:
    return sum(count for (_, code), count in outcomes.items() if code == 2)


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_refused_or_read(originals: Path, tmp_path: Path) -> None:
    """500 damaged files of every kind, through every command that reads them."""
    outcomes = fuzz(originals, tmp_path, seed=SAMPLE_SEED, numbers=range(500))
    assert outcomes.total() == 500
    assert _refused(outcomes) > 200, "the damage should be noticed more often than not"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_many_damaged_files_are_refused_or_read(originals: Path, tmp_path: Path) -> None:
    """The same with 12,000 of them."""
    outcomes = fuzz(originals, tmp_path, seed=LONG_SEED, numbers=range(12_000))
    for (name, code), count in sorted(outcomes.items()):
        print(f"{name:<28} exit {code}: {count}")
    assert outcomes.total() == 12_000


@pytest.mark.parametrize(("seed", "number", "what"), REGRESSIONS)
@pytest.mark.filterwarnings("ignore")
def test_what_once_made_trouble_does_not_again(
    seed: int, number: int, what: str, originals: Path, tmp_path: Path
) -> None:
    """Every failure that was ever found stays a test."""
    assert fuzz(originals, tmp_path, seed=seed, numbers=range(number, number + 1)), what


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (
            b'<?xml version="1.0"?>',
            b'<?xml version="1.0"?><!DOCTYPE net [<!ENTITY a SYSTEM "/etc/passwd">]>',
            "document type",
        ),
        (b"<layers>", b'<layers xmlns:xi="http://www.w3.org/2001/XInclude">', "an inclusion"),
        (b'<?xml version="1.0"?>', '<?xml version="1.0"?>'.encode("utf-16"), "begins with"),
    ],
    ids=["entity", "inclusion", "utf-16"],
)
@pytest.mark.parametrize("command", ["inspect", "detach", "update"])
def test_an_ir_that_refers_to_other_files_is_refused(
    command: str,
    old: bytes,
    new: bytes,
    found: str,
    originals: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No entity is expanded and nothing is included: the file is not parsed at all."""
    content = (originals / "attached.xml").read_bytes()
    assert old in content
    (tmp_path / "m.xml").write_bytes(content.replace(old, new))
    shutil.copy(originals / "attached.bin", tmp_path / "m.bin")
    assert main([command, str(tmp_path / "m.xml")]) == 2
    assert found in capsys.readouterr().err
