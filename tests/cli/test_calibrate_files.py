"""`postproc-export calibrate`: the input stays, and the result is not lost, whatever is asked for or goes wrong."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hosts
import numpy as np
import pytest
from conftest import Invoke
from image_files import mvtec, save
from onnx import external_data_helper, numpy_helper
from scripting import SCRIPTS, TIMEOUT, environment, run_command

from postproc_export.errors import FileError
from postproc_export.stats import CalibrationStats

SCORES = {"pred_score": np.array([1, 2, 3, 4], np.float32), "gt_label": np.array([0, 0, 1, 1])}


def npz(folder: Path, name: str = "val.npz") -> Path:
    """Write a shard of image scores."""
    np.savez(folder / name, **SCORES)
    return folder / name


def content(folder: Path) -> dict[str, bytes]:
    """Read every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _npz(folder: Path) -> tuple[list[object], Path]:
    return [npz(folder)], folder / "val.npz"


def _link(folder: Path) -> tuple[list[object], Path]:
    (folder / "link.json").symlink_to(npz(folder))
    return [folder / "val.npz"], folder / "link.json"


def _second(folder: Path) -> tuple[list[object], Path]:
    return [npz(folder), npz(folder, "more.npz")], folder / "more.npz"


def _in_a_folder(folder: Path) -> tuple[list[object], Path]:
    npz(folder)
    return [folder], folder / "val.npz"


def _csv(folder: Path) -> tuple[list[object], Path]:
    (folder / "val.csv").write_text("score,label\n1,0\n2,1\n")
    return [folder / "val.csv"], folder / "val.csv"


def _npy(folder: Path) -> tuple[list[object], Path]:
    for key, values in SCORES.items():
        np.save(folder / f"a_{key}.npy", values)
    return [folder], folder / "a_gt_label.npy"


def _zarr(folder: Path) -> tuple[list[object], Path]:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(folder / "val.zarr"), mode="w")
    for key, values in SCORES.items():
        group.create_array(key, data=values)
    return [folder / "val.zarr"], folder / "val.zarr" / "stats.json"


def _with_images(folder: Path, target: Path, *, listed: bool = False) -> tuple[list[object], Path]:
    model = hosts.write(hosts.score_and_map(), folder / "model.onnx")
    images = mvtec(folder / "set")
    for name in ("crack", "hole"):
        save(images / "test" / name / "000.png", np.full((4, 6, 3), 250, np.uint8))
    if listed:
        lines = [
            "image,label,mask",
            "set/test/good/000.png,0,",
            "set/test/hole/000.png,1,set/ground_truth/hole/000_mask.png",
        ]
        images = folder / "list.csv"
        images.write_text("\n".join(lines))
    return [model, "--images", images, "--image-size", "8"], target


def _model(folder: Path) -> tuple[list[object], Path]:
    return _with_images(folder, folder / "model.onnx")


def _image(folder: Path) -> tuple[list[object], Path]:
    return _with_images(folder, folder / "set" / "test" / "good" / "001.png")


def _mask(folder: Path) -> tuple[list[object], Path]:
    return _with_images(folder, folder / "set" / "ground_truth" / "hole" / "000_mask.png", listed=True)


def _list(folder: Path) -> tuple[list[object], Path]:
    return _with_images(folder, folder / "list.csv", listed=True)


def _weights(folder: Path) -> tuple[list[object], Path]:
    arguments, _ = _with_images(folder, folder)
    model = hosts.score_and_map()
    for tensor in model.graph.initializer:  # only raw data can be moved to a file
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    external_data_helper.convert_model_to_external_data(model, location="any.name", size_threshold=0)
    hosts.write(model, folder / "model.onnx")
    return arguments, folder / "any.name"


def _ir(folder: Path) -> tuple[list[object], Path]:
    (_, *rest), _ = _with_images(folder, folder)
    return [hosts.to_ir(hosts.score_and_map(), folder / "ir.xml"), *rest], folder / "ir.bin"


CASES = (*(_npz, _link, _second, _in_a_folder, _csv, _npy, _zarr), *(_model, _image, _mask, _list, _weights, _ir))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__.strip("_"))
def test_an_output_over_an_input_is_refused(
    case: Callable[[Path], tuple[list[object], Path]], tmp_path: Path, invoke: Invoke
) -> None:
    """Exit code 2 with one message, and every file has its bytes; another name beside them works."""
    arguments, target = case(tmp_path)
    before = content(tmp_path)
    ended = invoke("calibrate", *arguments, "-o", target)
    assert ended.exit_code == 2
    assert f"error: cannot write {target}: it " in ended.stderr
    assert "fix:     choose another path" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    assert content(tmp_path) == before
    assert invoke("calibrate", *arguments, "-o", tmp_path / "stats.json").exit_code == 0
    assert content(tmp_path) == {**before, "stats.json": (tmp_path / "stats.json").read_bytes()}


def test_statistics_may_lie_beside_the_images(tmp_path: Path, invoke: Invoke) -> None:
    """A new file in the folder of images replaces none of them."""
    arguments, target = _with_images(tmp_path, tmp_path / "set" / "stats.json")
    assert invoke("calibrate", *arguments, "-o", target).exit_code == 0


@pytest.mark.parametrize("as_json", [False, True], ids=["table", "json"])
def test_a_result_that_cannot_be_saved_is_printed(
    as_json: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Invoke
) -> None:
    """A disk that fills up during the run costs the file, not the numbers; the exit code is 2."""

    def full(*_: object) -> None:
        raise FileError("cannot write s.json", found="No space left on device")

    monkeypatch.setattr(CalibrationStats, "save", full)
    ended = invoke("calibrate", npz(tmp_path), "-o", tmp_path / "s.json", *(["--json"] if as_json else []))
    assert ended.exit_code == 2
    assert "No space left on device" in ended.stderr
    assert "written to" not in ended.stderr
    if as_json:
        assert json.loads(ended.stdout)["image"]["threshold"] == 3
    else:
        assert "calibration, in raw units" in ended.stdout


@pytest.mark.parametrize("spool", ["absent", "val.npz"])
def test_a_folder_for_the_spool_that_cannot_be_used_is_refused_first(
    spool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Invoke
) -> None:
    """Before the model is loaded, not when memory is full."""
    npz(tmp_path)
    arguments, target = _with_images(tmp_path, tmp_path / "s.json")
    monkeypatch.setattr("postproc_export.raw_model.open_runner", pytest.fail)
    ended = invoke("calibrate", *arguments, "-o", target, "--spool-dir", tmp_path / spool)
    assert ended.exit_code == 2
    assert f"cannot write to {tmp_path / spool}" in ended.stderr


def test_a_locked_folder_and_a_long_name_are_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Invoke
) -> None:
    """What the system refuses to look at is no traceback."""
    is_dir = Path.is_dir

    def locked(self: Path) -> bool:
        if self.name == "s.json":
            raise PermissionError(13, "Permission denied", str(self))
        return is_dir(self)

    monkeypatch.setattr(Path, "is_dir", locked)
    for name, message in (("s.json", "Permission denied"), ("x" * 300, "File name too long")):
        ended = invoke("calibrate", npz(tmp_path), "-o", tmp_path / name)
        assert ended.exit_code == 2
        assert message in ended.stderr
        assert ended.stderr.count("error: ") == 1
        assert "Traceback" not in ended.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("arguments", [["calibrate", "val.npz", "-o", "s.json", "--json"], ["--version"]])
def test_a_full_disk_behind_stdout_is_one_message(arguments: list[str], tmp_path: Path) -> None:
    """The statistics are saved; that they were not printed is exit code 2 without a traceback."""
    npz(tmp_path)
    command = [sys.executable, "-m", "postproc_export", *arguments]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False, env=environment()
        )
    assert ended.returncode == 2
    assert "cannot write to stdout" in ended.stderr
    assert ended.stderr.count("No space left on device") == 1
    assert "Traceback" not in ended.stderr
    assert (tmp_path / "s.json").exists() is (arguments[0] == "calibrate")


def test_json_is_the_file_to_the_letter(tmp_path: Path, invoke: Invoke) -> None:
    """A path that reads like an emoji's name, or like markup, stays as it is."""
    folder = tmp_path / "[bold]d"
    folder.mkdir()
    source = npz(folder, ":x:.npz")
    ended = invoke("calibrate", source, "-o", tmp_path / "s.json", "--json")
    assert ended.stdout == (tmp_path / "s.json").read_text()
    assert json.loads(ended.stdout)["source"] == [str(source)]


def test_remarks_are_to_the_letter_too(tmp_path: Path, invoke: Invoke) -> None:
    """Where the file is can be copied from the terminal."""
    ended = invoke("calibrate", npz(tmp_path), "-o", tmp_path / ":x:[red].json")
    assert ended.stderr == f"statistics written to {tmp_path / ':x:[red].json'}\n"


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C while the model runs: exit code 130, no statistics file, nothing in the folder of the spool."""
    arguments, target = _with_images(tmp_path, tmp_path / "s.json")
    (tmp_path / "spool").mkdir()
    before = content(tmp_path)
    command = [sys.executable, str(SCRIPTS / "slow_calibration.py"), *map(str, arguments), "-o", str(target)]
    with subprocess.Popen(
        [*command, "--spool-dir", str(tmp_path / "spool")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "spooled\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert content(tmp_path) == before
    assert not list((tmp_path / "spool").iterdir())


def test_the_command_in_a_process_of_its_own_saves(tmp_path: Path) -> None:
    """Undisturbed, it does: the negative twin of the interrupted one."""
    npz(tmp_path)
    assert run_command("calibrate", "val.npz", "-o", "s.json", cwd=tmp_path).returncode == 0
    assert CalibrationStats.load(tmp_path / "s.json").image is not None
