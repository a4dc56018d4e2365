"""`postproc-export inspect`: the table, the JSON form, exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import hosts
import pytest
from anomalib_files import FOLDER

from postproc_export.cli import main

ROOT = Path(__file__).parents[2]


def test_inspect_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 and one fact a line on stdout."""
    assert main(["inspect", str(FOLDER / "270_default_dynamo.onnx")]) == 0
    out = capsys.readouterr().out
    assert "  image    Anomalib's post-processing at pred_score and pred_label, read from the file" in out
    assert "  output   pred_mask: bool [b, 1, 1, 19]" in out


@pytest.mark.parametrize("name", ["270_sens_03_07_dynamo.onnx", "262_sens_03_07_legacy.xml"])
def test_inspect_prints_json(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The form of docs/json.md, nothing else on stdout."""
    assert main(["inspect", str(FOLDER / name), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    image = document["levels"]["image"]
    assert (image["tail"], image["sensitivity"], image["comparison"]) == ("anomalib", 0.3, "gt")
    assert image["threshold"] == pytest.approx(5.344675, abs=1e-5)
    assert image["certain"] == name.endswith(".onnx")


def test_a_raw_model_is_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To have no post-processing is an answer: exit code 0."""
    host = hosts.write(hosts.score_and_map(), tmp_path / "host.onnx")
    assert main(["inspect", str(host)]) == 0
    assert "  image    raw at pred_score" in capsys.readouterr().out


def test_defaults_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--defaults` adds what `attach` would do, for people and for machines, and writes nothing."""
    host = hosts.write(hosts.score_and_map(), tmp_path / "host.onnx")
    assert main(["inspect", str(host), "--defaults"]) == 0
    assert "image score  pred_score: float32 [N, 1] (its name says so)" in capsys.readouterr().out
    assert main(["inspect", str(host), "--defaults", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["defaults"]["possible"] is True
    assert main(["inspect", str(host), "--json"]) == 0
    assert "defaults" not in json.loads(capsys.readouterr().out)
    assert [path.name for path in tmp_path.iterdir()] == ["host.onnx"]


def test_what_cannot_be_read_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One clear message on stderr."""
    (tmp_path / "bad.onnx").write_bytes(b"\x00" * 64)
    assert main(["inspect", str(tmp_path / "bad.onnx")]) == 2
    assert "it is no ONNX model" in capsys.readouterr().err


def test_an_onnx_model_is_inspected_without_openvino_and_onnxruntime() -> None:
    """Neither runtime is imported: both are optional."""
    code = (
        "import sys; sys.modules['openvino'] = sys.modules['onnxruntime'] = sys.modules['torch'] = None\n"
        "from postproc_export.inspect import inspect_model\n"
        "from postproc_export.detach import detach_postprocessing\n"
        f"print(inspect_model({str(FOLDER / '270_default_dynamo.onnx')!r}).levels['image'].threshold)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert run.stderr == ""
    assert float(run.stdout) == pytest.approx(5.344675)
