"""`postproc_export.files.writing`: processes that are killed or terminated while they publish."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from publications import NEW, OLD, contents, fill, publish_pair

from postproc_export.errors import FileError
from postproc_export.files.writing import publishing


def killed(folder: Path, *, patch: str, number: signal.Signals = signal.SIGKILL) -> None:
    """Publish a pair over an old one in a process that kills itself at some step."""
    script = f"""
        import os, signal
        from pathlib import Path
        from postproc_export.files import writing as files
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


STEPS: dict[str, tuple[str, Callable[[dict[str, str]], bool]]] = {
    "while_writing": ("Path.write_text = die", lambda files: files == OLD),
    "before_the_backups": ("files.Publication._back_up = die", lambda files: files == OLD),
    "before_the_moves": ("files.Publication._move = die", lambda files: files == OLD),
    "between_the_moves": (
        "move = files.Publication._move; files.Publication._move = "
        "lambda self, target, undo: die() if target.suffix == '.xml' else move(self, target, undo)",
        lambda files: files == {"model.xml": "old xml", "model.bin": "new bin"},
    ),
    "before_the_backups_go": ("files.Publication._remove_backups = die", lambda files: files == NEW),
}


@pytest.mark.parametrize(("patch", "expected"), STEPS.values(), ids=STEPS.keys())
def test_a_killed_process_loses_nothing(patch: str, expected: Callable[[dict[str, str]], bool], tmp_path: Path) -> None:
    """Killed at any step, each file is whole, and where the pair is mixed the backups hold the old one."""
    fill(tmp_path, OLD)
    killed(tmp_path, patch=patch)
    left = contents(tmp_path)
    assert expected({name: left.pop(name) for name in OLD})
    backups = {name: left.pop(name) for name in list(left) if name.endswith(".postproc-backup")}
    assert all(name.startswith(".postproc-") and ".tmp" in name for name in left)
    if not backups:
        publish_pair(tmp_path)
        return
    assert backups == {f"{name}.postproc-backup": text for name, text in OLD.items()}
    with pytest.raises(FileError, match=r"an earlier run was killed [\s\S]*model.xml.postproc-backup and .*model.bin"):
        publish_pair(tmp_path)


def test_a_terminated_process_cleans_up(tmp_path: Path) -> None:
    """SIGTERM between the moves restores the pair and leaves nothing behind."""
    fill(tmp_path, OLD)
    killed(tmp_path, patch=STEPS["between_the_moves"][0], number=signal.SIGTERM)
    assert contents(tmp_path) == OLD
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(OLD)


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
