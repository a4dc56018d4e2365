"""`postproc_export.files`: processes that are killed or terminated while they publish."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from publications import NEW, OLD, contents, fill, publish_pair

from postproc_export import inspect_model
from postproc_export.check.attached_files import load_attached
from postproc_export.errors import FileError
from postproc_export.files import publishing, write_text
from postproc_export.process import LeftoverWarning, held_signals
from postproc_export.runtimes import open_runner


@pytest.fixture(autouse=True)
def _in_the_foreground() -> Iterator[None]:
    """Handlers as in a terminal: a job in the background hands on that SIGINT and SIGHUP are ignored."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def killed(folder: Path, *, patch: str, number: signal.Signals = signal.SIGKILL) -> None:
    """Publish a pair over an old one in a process that kills itself at some step."""
    script = f"""
        import os, signal
        from pathlib import Path
        from postproc_export import files as files
        def die(*_):
            os.kill(os.getpid(), {number})
        {patch}
        targets = [Path({str(folder)!r}, name) for name in {list(NEW)}]
        with files.publishing(targets, inputs=targets, in_place=True) as publication:
            for target in targets:
                publication.temporary(target).write_text({NEW}[target.name])
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=environment, check=False, timeout=60)
    assert ended.returncode in (-number, 128 + number)


def dying(method: str, name: str) -> str:
    """Return a patch by which a method of `Path` signals first where its last path has such a name."""
    patched = f"lambda *paths, **how: (paths[-1].name.endswith({name!r}) and die(), known(*paths, **how))[1]"
    return f"known = Path.{method}; Path.{method} = {patched}"


BEFORE_THE_SECOND_MOVE = dying("replace", "model.xml")
STEPS: dict[str, tuple[str, Callable[[dict[str, str]], bool]]] = {
    "while_writing": ("Path.write_text = die", lambda files: files == OLD),
    "before_the_backups": ("Path.hardlink_to = die", lambda files: files == OLD),
    "before_the_moves": (dying("replace", "model.bin"), lambda files: files == OLD),
    "between_the_moves": (
        BEFORE_THE_SECOND_MOVE,
        lambda files: files == {"model.xml": "old xml", "model.bin": "new bin"},
    ),
    "before_the_backups_go": (dying("unlink", ".postproc-backup"), lambda files: files == NEW),
}


@pytest.mark.parametrize(("patch", "expected"), STEPS.values(), ids=STEPS.keys())
def test_a_killed_process_loses_nothing(patch: str, expected: Callable[[dict[str, str]], bool], tmp_path: Path) -> None:
    """Killed at any step, each file is whole; the next run in the folder puts the old pair back and tidies up."""
    fill(tmp_path, OLD)
    killed(tmp_path, patch=patch)
    left = contents(tmp_path)
    assert expected({name: left.pop(name) for name in OLD})
    backups = {name: left.pop(name) for name in list(left) if name.endswith(".postproc-backup")}
    assert backups in ({}, {f"{name}.postproc-backup": text for name, text in OLD.items()})
    assert all(name.startswith(".postproc-") and ".tmp" in name for name in left)
    moved = expected is not STEPS["while_writing"][1] and expected(OLD) is False
    with pytest.warns(LeftoverWarning, match=r"put back .*model\.xml, .*model\.bin") if moved else nullcontext():
        write_text(tmp_path / "other.txt", "other")
    assert contents(tmp_path) == {**OLD, "other.txt": "other"}
    publish_pair(tmp_path)
    assert contents(tmp_path) == {**NEW, "other.txt": "other"}


@pytest.mark.parametrize("name", NEW)
def test_what_was_changed_since_is_not_put_back(name: str, tmp_path: Path) -> None:
    """Where a file of a half-replaced pair is neither the old nor the new one, nothing is touched, both are named."""
    fill(tmp_path, OLD)
    killed(tmp_path, patch=STEPS["between_the_moves"][0])
    (tmp_path / name).unlink()
    (tmp_path / name).write_text("of the user")
    before = contents(tmp_path)
    with pytest.raises(FileError, match=r"was killed [\s\S]*model.xml.postproc-backup and .*model.bin.postproc-backup"):
        publish_pair(tmp_path)
    assert contents(tmp_path) == before
    with pytest.warns(LeftoverWarning, match=r"killed between replacing .*model\.xml"):
        write_text(tmp_path / "other.txt", "other")
    assert contents(tmp_path) == {**before, "other.txt": "other"}


def test_a_backup_without_a_journal_is_never_deleted(tmp_path: Path) -> None:
    """A backup that nothing explains is named, and stays."""
    fill(tmp_path, {**OLD, "model.bin.postproc-backup": "older"})
    with pytest.raises(FileError, match=r"cannot write .*model\.xml[\s\S]*model\.bin\.postproc-backup"):
        publish_pair(tmp_path)
    assert contents(tmp_path) == {**OLD, "model.bin.postproc-backup": "older"}


def test_a_half_replaced_ir_is_not_read(tmp_path: Path) -> None:
    """While the backups are there nobody knows which .bin belongs to which .xml: every reader says so."""
    fill(tmp_path, OLD)
    killed(tmp_path, patch=STEPS["between_the_moves"][0])
    for read in (open_runner, inspect_model, load_attached):
        with pytest.raises(FileError, match=r"cannot read .*model\.xml[\s\S]*run the killed command again"):
            read(tmp_path / "model.xml")


def test_a_new_pair_that_is_half_there_goes(tmp_path: Path) -> None:
    """Killed between moving two files that are new, the one that is there is taken away again."""
    killed(tmp_path, patch=STEPS["between_the_moves"][0])
    assert (tmp_path / "model.bin").exists()
    with pytest.warns(LeftoverWarning, match="put back"):
        write_text(tmp_path / "other.txt", "other")
    assert contents(tmp_path) == {"other.txt": "other"}


def test_a_pipe_in_the_place_of_a_journal_is_not_waited_for(tmp_path: Path) -> None:
    """What is left is deleted, as where a run was killed before it had begun."""
    (tmp_path / ".postproc-left.tmp").mkdir()
    os.mkfifo(tmp_path / ".postproc-left.tmp" / "journal.json")
    write_text(tmp_path / "other.txt", "other")
    assert contents(tmp_path) == {"other.txt": "other"}


def test_where_there_are_no_locks_what_is_left_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system without flock nobody knows whether a run is alive: its folder stays and is named."""
    fill(tmp_path, OLD)
    killed(tmp_path, patch=STEPS["while_writing"][0])
    (left,) = tmp_path.glob(".postproc-*.tmp")

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.warns(LeftoverWarning, match=f"{left.name} may be left of a run that was killed"):
        publish_pair(tmp_path)
    assert left.is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {*NEW, left.name}


WRITER = """
import sys
from pathlib import Path
from postproc_export.files import publishing
with publishing([Path(name) for name in sys.argv[1:]]) as publication:
    print("ready", flush=True)
    sys.stdin.readline()
    for name in sys.argv[1:]:
        publication.temporary(Path(name)).write_text("first")
"""


@contextmanager
def writing(*targets: Path) -> Iterator[None]:
    """Write some files in another process, which has begun and ends after the block."""
    command = [sys.executable, "-c", WRITER, *map(str, targets)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "ready\n"
        yield
        process.communicate("go\n")
    assert process.returncode == 0


@pytest.mark.parametrize("second", [["a.xml"], ["a.bin"], ["b.xml", "a.bin"]], ids="_".join)
def test_a_second_writer_is_refused_and_the_first_goes_on(second: list[str], tmp_path: Path) -> None:
    """Whoever writes one of the targets at the same time is refused and told so; other files of the folder may be."""
    with writing(tmp_path / "a.xml", tmp_path / "a.bin"):
        targets = [tmp_path / name for name in second]
        with pytest.raises(FileError, match=r"cannot write .*a\.\w+: another run is writing it"), publishing(targets):
            pytest.fail("nothing may be written")
        write_text(tmp_path / "c.txt", "c")
    assert contents(tmp_path) == {"a.xml": "first", "a.bin": "first", "c.txt": "c"}


def test_a_second_writer_in_another_thread_is_refused(tmp_path: Path) -> None:
    """Threads of one program are writers like any other."""
    with publishing([tmp_path / "a.txt"]) as publication, ThreadPoolExecutor(1) as pool:
        with pytest.raises(FileError, match="another run is writing it"):
            pool.submit(write_text, tmp_path / "a.txt", "second").result()
        pool.submit(write_text, tmp_path / "b.txt", "second").result()
        publication.temporary(tmp_path / "a.txt").write_text("first")
    assert contents(tmp_path) == {"a.txt": "first", "b.txt": "second"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize(("patch", "expected"), [("Path.write_text = die", OLD), (BEFORE_THE_SECOND_MOVE, NEW)])
def test_a_terminated_process_cleans_up(
    patch: str, expected: dict[str, str], number: signal.Signals, tmp_path: Path
) -> None:
    """A signal while something is written leaves the old pair, and between the moves the new one; nothing else."""
    fill(tmp_path, OLD)
    killed(tmp_path, patch=patch, number=number)
    assert contents(tmp_path) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(OLD)


def interrupted_before_touching(path: Path) -> None:
    """Make a file in a block that no signal cuts in two."""
    with held_signals():
        signal.raise_signal(signal.SIGINT)
        path.touch()


def test_every_handler_is_back_after_the_work(tmp_path: Path) -> None:
    """A program's handlers of all three signals are what they were, also after a signal was held back."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    write_text(tmp_path / "a.txt", "a")
    with pytest.raises(KeyboardInterrupt):
        interrupted_before_touching(tmp_path / "b.txt")
    assert (tmp_path / "b.txt").exists()
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_handler_of_the_host_program_is_left_alone(tmp_path: Path) -> None:
    """A program that handles SIGTERM itself keeps its handler."""
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(signal.getsignal(signal.SIGTERM)))
    try:
        with publishing([tmp_path / "a"]) as publication:
            signal.raise_signal(signal.SIGTERM)
            publication.temporary(tmp_path / "a").touch()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(seen) == 1
    assert (tmp_path / "a").exists()
