"""Every kind of planted fault, in both formats, through the command: exit code 1 or 2, and the fault by its name."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import planted_ir
import planted_onnx
import pytest
from checks import runtime_of

from postproc_export import check
from postproc_export.attach import attach_postprocessing
from postproc_export.stats import CalibrationStats, LevelStats

STATS = CalibrationStats(
    image=LevelStats(threshold=0.2, min=-1.0, max=0.75), pixel=LevelStats(threshold=0.3, min=-0.25, max=0.625)
)
FORMATS = {"onnx": planted_onnx, "xml": planted_ir}


def wrong_range(document: dict[str, Any]) -> None:
    """Swap min and max of the image level."""
    image = document["statistics"]["image"]
    image["min"], image["max"] = image["max"], image["min"]


def other_threshold(document: dict[str, Any]) -> None:
    """Record a threshold that is not the one behind the constants."""
    document["statistics"]["image"]["threshold"] = 0.25


def no_threshold(document: dict[str, Any]) -> None:
    """Lose one number of the record."""
    del document["statistics"]["image"]["threshold"]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a raw file that has a metadata entry, and the attached one, in both formats; and inputs."""
    import openvino

    folder = tmp_path_factory.mktemp("clean")
    model = hosts.score_and_map()
    onnx.helper.set_model_props(model, {"classes": "good, bad"})
    hosts.write(model, folder / "raw.onnx")
    hosts.to_ir(hosts.score_and_map(), folder / "plain.xml")
    ir = openvino.Core().read_model(folder / "plain.xml")
    ir.set_rt_info("good, bad", ["classes"])
    openvino.save_model(ir, folder / "raw.xml", compress_to_fp16=False)
    for suffix in FORMATS:
        attach_postprocessing(folder / f"raw.{suffix}", STATS, output=folder / f"attached.{suffix}")
    images = np.random.default_rng(7).integers(0, 256, (11, 3, 8, 8)).astype(np.float32) / 256
    np.savez(folder / "images.npz", input=images)
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command feed fewer raw values to the tail alone."""
    monkeypatch.setattr(check, "check_parity", partial(check.check_parity, count=1_000))


def planted(fault: Callable[[Any], Any], attached: Path, folder: Path) -> Path:
    """Write an attached file with a fault in it."""
    path = folder / f"faulty{attached.suffix}"
    if attached.suffix == ".onnx":
        model = onnx.load(attached)
        fault(model)
        onnx.save(model, path)
        return path
    import openvino

    ir = openvino.Core().read_model(attached)
    openvino.save_model(fault(ir) or ir, path, compress_to_fp16=False)
    return path


RAW = ("--raw", "raw.{suffix}", "--inputs", "images.npz")
TORCH = ("--inputs", "images.npz", "--torch", "torch_hosts:detector")
PRESERVED = ("--preserved", "raw.{suffix}")

FAULTS = [
    pytest.param(
        "one_ulp_off", (), "constants/pred_label", "boundary is 0.200000018 in the file", "tail", "update", id="ulp"
    ),
    pytest.param(other_threshold, (), "constants/pred_label", "0.25 by the record", "tail", "update", id="metadata"),
    pytest.param("greater", (), "constants/pred_label", "expected less, found Less", "tail", "attach", id="greater"),
    pytest.param(
        "swapped_range",
        (),
        "constants/anomaly_map",
        "alpha is -1.14285719 in the file",
        "tail",
        "update",
        id="min-and-max",
    ),
    pytest.param(
        "half_precision_boundary", (), "constants/pred_mask", "boundary is 0.300048828", "tail", "update", id="float16"
    ),
    pytest.param(
        "swapped_order",
        (),
        "outputs",
        "the outputs are in the order pred_label, pred_score",
        "tail",
        "attach",
        id="order",
    ),
    pytest.param(
        "frozen_input",
        RAW,
        "whole/batch/{runtime}",
        "axis 0 of input 'input' is frozen to 1",
        "tail or runtime",
        "attach",
        id="frozen-batch",
    ),
    pytest.param(
        "nan_as_normal", (), "constants/pred_mask", "expected logical_not, found", "tail", "attach", id="nan-as-normal"
    ),
    pytest.param(
        "swapped_channels", RAW, "whole/raw/pred_mask/{runtime}", "flipped", "model", "check", id="channels-of-the-body"
    ),
    pytest.param(
        "swapped_channels",
        TORCH,
        "whole/torch/raw_map/{runtime}",
        "channel order",
        "export",
        "export",
        id="channels-torch",
    ),
    pytest.param("lost_entry", PRESERVED, "preserved", "classes", "model", "attach", id="metadata-entry"),
    pytest.param("lost_record", PRESERVED, "record", "no entry 'postproc_export'", "tail", "check", id="record"),
    pytest.param("bfloat16", (), "constants/pred_mask", "in place of the raw value", "tail", "attach", id="bfloat16"),
]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(("fault", "options", "name", "finding", "stage", "command"), FAULTS)
def test_a_planted_fault_is_caught_and_named(
    fault: Any,
    options: tuple[str, ...],
    name: str,
    finding: str,
    stage: str,
    command: str,
    suffix: str,
    clean: Path,
    tmp_path: Path,
    invoke: Any,
) -> None:
    """The command exits with 1, the check that is missed says what is wrong, and one cause leads to the mend."""
    kinds = FORMATS[suffix]
    plant = getattr(kinds, fault) if isinstance(fault, str) else kinds.edited_record(fault)
    path = planted(plant, clean / f"attached.{suffix}", tmp_path)
    given = [clean / item.format(suffix=suffix) if "." in item else item for item in options]
    result = invoke("check", path, *given, "--threads", 1, "--runtime", runtime_of(path), "--json")
    assert result.exit_code == 1, result.stderr
    document = json.loads(result.stdout)
    missed = {check["name"]: check["message"] for check in document["checks"] if not check["passed"]}
    assert finding in missed.get(name.format(runtime=runtime_of(path)), ""), missed
    (cause,) = document["causes"]
    assert set(cause["checks"]) == set(missed)
    assert cause["stage"] in stage
    assert cause["command"].startswith(f"postproc-export {command} ")
    assert document["next"] == cause["command"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("edit", "finding"),
    [
        pytest.param(wrong_range, "the range [0.75, -1.0] is empty", id="min-and-max"),
        pytest.param(no_threshold, "image has no 'threshold'", id="one-number"),
        pytest.param(None, "it has no record of a tail", id="record"),
    ],
)
def test_a_record_that_cannot_be_read_is_said_to_be_so(
    edit: Any, finding: str, suffix: str, clean: Path, tmp_path: Path, invoke: Any
) -> None:
    """Statistics that are not legal, and no record at all, are one message and exit code 2."""
    kinds = FORMATS[suffix]
    plant = kinds.lost_record if edit is None else kinds.edited_record(edit)
    result = invoke("check", planted(plant, clean / f"attached.{suffix}", tmp_path))
    assert result.exit_code == 2
    assert finding in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_without_a_fault_passes_all_that_finds_them(suffix: str, clean: Path, invoke: Any) -> None:
    """The options by which the faults are found miss nothing in a file that has none."""
    options = [clean / item.format(suffix=suffix) if "." in item else item for item in (*RAW, *TORCH[2:], *PRESERVED)]
    result = invoke("check", clean / f"attached.{suffix}", *options, "--threads", 1)
    assert result.exit_code == 0, result.stdout


@pytest.mark.usefixtures("quick")
def test_a_raw_file_in_another_format_freezes_nothing(clean: Path, tmp_path: Path, invoke: Any) -> None:
    """An IR that was converted to one size before attaching passes beside an ONNX file that is open; ONNX does not."""
    frozen = planted(planted_ir.frozen_input, clean / "attached.xml", tmp_path)
    given = ("--inputs", clean / "images.npz", "--threads", 1)
    assert invoke("check", frozen, "--raw", clean / "raw.onnx", *given).exit_code == 0
    result = invoke(
        "check",
        planted(planted_onnx.frozen_input, clean / "attached.onnx", tmp_path),
        "--raw",
        clean / "raw.onnx",
        *given,
    )
    assert "  tail     axis 0 of output 'pred_score' is frozen to 1" in result.stdout
