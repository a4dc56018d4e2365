"""What is said where a file cannot be written in the end, and what parsers log, which nobody is to see."""

import errno
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import pytest
from scripting import environment

from postproc_export import CalibrationStats, LevelStats, attach_postprocessing, files
from postproc_export.runtimes.openvino import import_openvino

Invoke = Callable[..., Any]
STATS = CalibrationStats(
    image=LevelStats(threshold=0.5, min=0.0, max=2.0), pixel=LevelStats(threshold=0.25, min=-1.0, max=1.0)
)


LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
from postproc_export.cli import entrypoint
entrypoint()
"""


def limited(size: int, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of which no file may grow beyond a size; the rest is as on a full disk."""
    return subprocess.run(
        [sys.executable, "-c", LIMITED.format(size=size), *command.split()],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment(),
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models of both formats, statistics and validation outputs in the commands' working folder."""
    monkeypatch.chdir(tmp_path)
    STATS.save("stats.json")
    hosts.write(hosts.score_and_map(), tmp_path / "raw.onnx")
    attach_postprocessing("raw.onnx", STATS, output="post.onnx")
    openvino = import_openvino(purpose="the tests")
    openvino.save_model(openvino.Core().read_model("raw.onnx"), "raw.xml", compress_to_fp16=False)
    np.savez("outputs.npz", pred_score=np.arange(400.0), gt_label=np.arange(400) % 2)
    np.savez("inputs.npz", input=np.zeros((1, 3, 8, 8), np.float32))
    return tmp_path


REPORT = 8_000  # more than the files that a check makes on the way, less than its report
COMMANDS = {
    "attach": (1_000, "attach raw.onnx --stats stats.json -o out.onnx", "out.onnx"),
    "attach_ir": (1_000, "attach raw.xml --stats stats.json -o out.xml", "out.xml"),
    "update_in_place": (1_000, "update post.onnx --image-sensitivity 0.3 --in-place", "post.onnx"),
    "calibrate": (1_000, "calibrate outputs.npz -o out.json", "out.json"),
    "junit": (REPORT, "check post.onnx --junit out.xml --threads 1", "out.xml"),
    "junit_in_a_new_folder": (REPORT, "check post.onnx --junit new/out.xml --threads 1", "new/out.xml"),
    "temporary": (300, "check post.onnx --threads 1", f"temporary files in {tempfile.gettempdir()}"),
}


@pytest.mark.parametrize(
    ("size", "command", "target"),
    [
        # each takes a process of its own
        pytest.param(*case, id=name, marks=pytest.mark.slow if name in ("attach_ir", "junit_in_a_new_folder") else ())
        for name, case in COMMANDS.items()
    ],
)
def test_a_file_that_cannot_be_finished_is_named_and_not_begun(
    size: int, command: str, target: str, folder: Path
) -> None:
    """The message names what was asked for and never a temporary file; everything is as it was."""
    before = {path: path.read_bytes() for path in folder.rglob("*")}
    result = limited(size, command)
    assert result.returncode == 2
    (message,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert message == f"error: cannot write {target}"
    assert "  fix:     " in result.stderr
    assert ".postproc-" not in result.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*")} == before


def test_a_summary_that_cannot_be_appended_leaves_the_page_as_it_was(folder: Path, invoke: Invoke) -> None:
    """Neither half a summary nor an empty file; one that can is behind what was there."""
    page = "# Job\n" + "log\n" * (REPORT // 4 - 100)
    Path("page.md").write_text(page)
    assert limited(REPORT, "check post.onnx --markdown page.md --threads 1").returncode == 2
    assert Path("page.md").read_text() == page
    assert invoke("check", "post.onnx", "--markdown", "page.md", "--threads", "1").exit_code == 0
    assert Path("page.md").read_text().startswith(page)
    assert len(Path("page.md").read_text()) > REPORT


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES])
def test_every_reason_is_told_with_the_target(
    number: int, folder: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, a quota, a limit, a file system that is read-only, a permission: the target, the reason, a fix."""

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(number, "the reason", str(path))

    monkeypatch.setattr(files.Path, "write_text", refuse)
    result = invoke("calibrate", "outputs.npz", "-o", "out.json")
    assert result.exit_code == 2
    assert "error: cannot write out.json\n  found:   the reason\n  fix:     " in result.stderr
    assert ".postproc-" not in result.stderr


@pytest.mark.parametrize("command", ["inspect bad.xml", "attach bad.xml --stats stats.json", "check bad.xml"])
def test_no_log_of_a_parser_stands_before_the_message(command: str, folder: Path, invoke: Invoke) -> None:
    """Of an IR that it does not know, OpenVINO tries every frontend, each of which logs what it did not understand."""
    Path("bad.xml").write_text(Path("raw.xml").read_text().replace("<net", '<net foo="'))
    Path("bad.bin").write_bytes(Path("raw.bin").read_bytes())
    result = invoke(*command.split())
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert all(line.startswith("  ") for line in result.stderr.splitlines()[1:])


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("content", [b"\xff" * 99, b"\x08\x08 pred_sco\xff\xfe", b""], ids=["noise", "bytes", "empty"])
def test_a_model_that_is_none_is_told_in_one_message(
    content: bytes, runtime: str, folder: Path, invoke: Invoke
) -> None:
    """Whatever the runtime's parser writes by itself."""
    (folder / "images" / "good").mkdir(parents=True)
    Path("junk.onnx").write_bytes(content)
    Path("images/good/a.png").write_bytes(b"")
    command = f"calibrate junk.onnx --images images --image-only --runtime {runtime} -o s.json"
    result = invoke(*command.split())
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert all(line.startswith("  ") for line in result.stderr.splitlines()[1:])
