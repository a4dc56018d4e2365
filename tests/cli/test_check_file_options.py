"""`check --preserved` and `check --contract`: exit codes, the report's forms, files without a record."""

import json
from pathlib import Path
from xml.etree import ElementTree

import hosts
import numpy as np
import onnx
import openvino
import pytest

from postproc_export.attach import attach_postprocessing
from postproc_export.check import assert_parity
from postproc_export.cli import main
from postproc_export.errors import FileError
from postproc_export.stats import CalibrationStats, LevelStats

STATS = CalibrationStats(
    image=LevelStats(threshold=0.2, min=-1.0, max=0.75), pixel=LevelStats(threshold=0.3, min=-0.25, max=0.625)
)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Return a raw file and the attached one."""
    raw = hosts.write(hosts.score_and_map(), tmp_path / "raw.onnx")
    return raw, attach_postprocessing(raw, STATS, output=tmp_path / "attached.onnx").output


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, dict[str, object]], list[str]]:
    """Run `check --json` and return the exit code, the checks by name and what was not checked."""
    code = main(["check", *map(str, arguments), "--threads", "1", "--json"])
    document = json.loads(capsys.readouterr().out)
    return code, {check["name"]: check for check in document["checks"]}, document["not_checked"]


def edit(path: Path, *, entry: str | None = None, weight: bool = False) -> None:
    """Drop a metadata entry of a file, or change a weight."""
    model = onnx.load(path)
    if entry is not None:
        model.metadata_props.remove(next(item for item in model.metadata_props if item.key == entry))
    if weight:
        model.graph.initializer[0].float_data[0] += 1
    onnx.save(model, path)


def test_a_file_that_kept_everything_passes(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The checks stand in the report beside the others."""
    raw, attached = files
    code, checks, _ = run(capsys, attached, "--preserved", raw, "--contract", "anomalib", "--contract", "model-api")
    assert code == 0
    assert checks["preserved"]["changes"] == []
    assert checks["anomalib/outputs"]["passed"] is checks["model-api/outputs"]["passed"] is True
    assert checks["tail/pred_label/openvino"]["passed"] is True


def test_a_change_besides_the_tail_exits_1_with_the_list(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The list is in JSON, JUnit, Markdown and on the terminal."""
    raw, attached = files
    edit(attached, weight=True)
    code, checks, _ = run(capsys, attached, "--preserved", raw)
    assert code == 1
    changed = [{"where": "graph: initializer 'weight': values", "raw": None, "attached": None}]
    assert checks["preserved"]["changes"] == changed
    assert [name for name, check in checks.items() if not check["passed"]] == ["preserved"]
    reports = ["--junit", str(tmp_path / "new" / "j.xml"), "--markdown", str(tmp_path / "m.md")]
    assert main(["check", str(attached), "--preserved", str(raw), *reports]) == 1
    text = "1 changed: graph: initializer 'weight': values differ"
    verdict, cause, *_ = capsys.readouterr().out.splitlines()
    assert verdict.startswith(f"FAILED: {attached} is not {raw} with a tail (1 of ")
    assert cause == f"  model    {text}"
    assert text in (tmp_path / "m.md").read_text(encoding="utf-8")
    first, failure = ElementTree.parse(tmp_path / "new" / "j.xml").getroot().findall("testcase/failure")
    assert first.get("message") == verdict
    assert failure.get("message") == f"{text}; fix: attach to the original again: the model was changed since"


def test_a_contract_that_is_missed_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Found, needed and fix stand in the message and apart in JSON."""
    raw = hosts.to_ir(hosts.score_and_map(), tmp_path / "raw.xml")
    path = attach_postprocessing(raw, STATS, keep_raw=True).output
    code, checks, not_checked = run(capsys, path, "--contract", "model-api")
    assert code == 1
    missed = checks["model-api/outputs"]
    assert "pred_score_raw" in str(missed["found"])
    assert "--keep-raw" in str(missed["fix"])
    assert "found " in str(missed["message"])
    assert any("the statistics do not say how images were fed" in sentence for sentence in not_checked)


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
def test_a_stripped_file_is_missed_and_judged_as_far_as_it_can_be(
    ir: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the record the check fails, says so, and still compares what needs no record."""
    model = hosts.score_and_map()
    raw = hosts.raw_file(model, tmp_path, ir=ir)
    path = attach_postprocessing(raw, STATS).output
    if ir:
        read = openvino.Core().read_model(path)
        del read.get_rt_info()["postproc_export"]
        path = tmp_path / "stripped.xml"
        openvino.save_model(read, path, compress_to_fp16=False)
    else:
        edit(path, entry="postproc_export")
    code, checks, not_checked = run(capsys, path, "--preserved", raw, "--contract", "anomalib")
    assert code == 1
    assert "no entry 'postproc_export' in the file's metadata" in str(checks["record"]["message"])
    assert checks["preserved"]["passed"] is True
    assert checks["anomalib/outputs"]["passed"] is True
    assert any("the record of what they were is gone" in sentence for sentence in not_checked)
    assert not any(name.startswith("tail/") for name in checks)
    STATS.save(tmp_path / "stats.json")
    code, checks, _ = run(capsys, path, "--stats", tmp_path / "stats.json")
    assert code == 0
    assert checks["constants/pred_mask"]["passed"] is True


def test_assert_parity_takes_them_too(files: tuple[Path, Path]) -> None:
    """In a test suite a change besides the tail fails with the list."""
    raw, attached = files
    assert_parity(attached, preserved=raw, contracts=["anomalib"], count=1_000, threads=1)
    edit(attached, weight=True)
    with pytest.raises(AssertionError, match="FAILED preserved: 1 changed: graph: initializer 'weight': values"):
        assert_parity(attached, preserved=raw, count=1_000, threads=1)


@pytest.mark.parametrize(
    ("arguments", "finding"),
    [
        pytest.param(["--preserved", "none.onnx"], "cannot read the raw model", id="no-raw-file"),
        pytest.param(["--preserved", "raw.txt"], "raw.txt", id="no-model"),
        pytest.param(["--contract", "other"], "the contract 'other' is not known", id="unknown-contract"),
        pytest.param(
            ["--junit", "/dev/null/j.xml"], "is no folder, so that none can be made in it", id="no-folder-for-a-report"
        ),
    ],
)
def test_what_cannot_be_compared_exits_2(
    arguments: list[str], finding: str, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """One message on stderr, and no report."""
    assert main(["check", str(files[1]), *arguments]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert finding in errors


@pytest.mark.parametrize("option", ["--junit", "--markdown"])
@pytest.mark.parametrize("target", ["attached.onnx", "raw.onnx", "inputs.npz", "soft.xml"])
def test_a_report_over_an_input_is_refused(
    option: str, target: str, files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Written anew or appended to, no file that is read changes; a link to it is no other file."""
    raw, attached = files
    np.savez(tmp_path / "inputs.npz", x=np.zeros((2, 3, 8, 8), np.float32))
    (tmp_path / "soft.xml").symlink_to(raw)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    arguments = ["check", attached, "--raw", raw, "--inputs", tmp_path / "inputs.npz", option, tmp_path / target]
    assert main(list(map(str, arguments))) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert f"cannot write {tmp_path / target}: it is the file that is read" in errors
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_failures_are_not_saved_over_the_inputs(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when a failure is replayed with the options that found it; a folder that cannot be made is refused, too."""
    folder = tmp_path / "failures"
    folder.mkdir()
    np.savez(folder / "whole-0.npz", x=np.zeros((2, 3, 8, 8), np.float32))
    arguments = ["check", str(files[1]), "--inputs", str(folder / "whole-0.npz"), "--save-failures"]
    assert main([*arguments, str(folder)]) == 2
    assert f"cannot save failures in {folder}" in capsys.readouterr().err
    assert main([*arguments, str(files[1] / "new")]) == 2
    assert f"cannot write to {files[1]}" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "others"), "--threads", "1"]) == 0


def test_a_report_that_cannot_be_written_costs_no_result(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The verdict is printed before the error, whose exit code is 2."""

    def full(*_: object) -> None:
        raise FileError("cannot write r.xml", found="No space left on device")

    monkeypatch.setattr("postproc_export.files.write_text", full)
    assert main(["check", str(files[1]), "--threads", "1", "--json", "--junit", str(tmp_path / "r.xml")]) == 2
    output, errors = capsys.readouterr()
    assert json.loads(output)["passed"] is True
    assert "No space left on device" in errors
