"""`check --torch`: which outputs are compared, what cannot be compared, and how a run is repeated."""

from pathlib import Path
from typing import Any

import hosts
import numpy as np
import pytest
import torch
import torch_hosts

from postproc_export.attach import attach_postprocessing
from postproc_export.check import assert_parity, check_parity
from postproc_export.errors import UsageError
from postproc_export.stats import CalibrationStats, LevelStats

STATS = CalibrationStats(
    image=LevelStats(threshold=0.2, min=-1.0, max=0.75), pixel=LevelStats(threshold=0.3, min=-0.25, max=0.625)
)
IMAGES = np.random.default_rng(7).integers(0, 256, (5, 3, 8, 8)).astype(np.float32) / 256
QUICK: dict[str, Any] = {"inputs": {"input": IMAGES}, "count": 200, "runtimes": ["onnxruntime"]}


@pytest.fixture(scope="module")
def attached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an attached file: one runtime is enough here."""
    folder = tmp_path_factory.mktemp("torch")
    return attach_postprocessing(hosts.write(hosts.score_and_map(), folder / "raw.onnx"), STATS).output


@pytest.mark.parametrize("form", ["turned", "flat", "named", "nested"])
def test_the_form_of_the_outputs_does_not_matter(form: str, attached: Path) -> None:
    """Outputs in another order, rank or structure than the exported model's are the same values."""
    assert_parity(attached, torch=torch_hosts.Detector(torch_hosts.FORMS[form]), threads=1, **QUICK)


def test_outputs_that_bear_the_exported_names_are_found(tmp_path: Path) -> None:
    """Where the raw file's outputs have names of their own, the module's outputs of these names are meant."""
    raw = hosts.write(hosts.score_and_map(names=("distance", "heat")), tmp_path / "raw.onnx")
    path = attach_postprocessing(raw, STATS).output

    def form(score: torch.Tensor, anomaly_map: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"other": score + 1, "distance": score, "heat": anomaly_map}

    assert_parity(path, torch=torch_hosts.Detector(form), **QUICK)


def test_an_option_chooses_among_outputs(attached: Path) -> None:
    """An output that nothing tells apart is named by the option; another one is a miss."""
    report = check_parity(attached, torch="torch_hosts:ambiguous", image_output="two", **QUICK)
    assert report, report.describe()
    assert "image score: two (by option)" in report.environment["torch"]["outputs"]


def test_an_output_of_a_level_that_the_file_lacks_is_refused(tmp_path: Path) -> None:
    """The option would choose nothing."""
    path = attach_postprocessing(hosts.write(hosts.map_only(), tmp_path / "raw.onnx"), STATS).output
    assert_parity(path, torch="torch_hosts:map_alone", pixel_output=0, **QUICK)
    with pytest.raises(UsageError, match="image_output=0 would have no effect"):
        check_parity(path, torch="torch_hosts:map_alone", image_output=0, **QUICK)


def test_a_module_in_training_mode_is_remarked(attached: Path) -> None:
    """The report says that the module was put into evaluation mode, and with how many threads it ran."""
    before = torch.get_num_threads()
    report = check_parity(attached, torch="torch_hosts:in_training", threads=1, **QUICK)
    assert report.environment["torch"]["remarks"] == [
        "torch_hosts:in_training was in training mode, and was put into evaluation mode"
    ]
    assert report.environment["torch"]["threads"] == 1
    assert torch.get_num_threads() == before
    assert "evaluation mode" in report.describe()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        pytest.param({"torch": "torch_hosts:map_alone"}, "no output that is the raw image output", id="no-score"),
        pytest.param({"torch": "torch_hosts:ambiguous"}, "say which with image_output=NAME", id="ambiguous"),
        pytest.param({"torch": "torch_hosts:decided"}, "post-processed already", id="decided"),
        pytest.param({"torch": "torch_hosts:smaller"}, "gives 16 values per sample on the pixel level", id="size"),
        pytest.param({"torch": "torch_hosts:one_for_all"}, "a score with 1 entries for", id="batch"),
        pytest.param({"torch": "torch_hosts:failing"}, "failed on the inputs of the exported model", id="inputs"),
        pytest.param({"torch": "torch_hosts:broken"}, "the weights are not here", id="factory"),
        pytest.param({"torch": "torch_hosts:detector", "inputs": None}, "without images or inputs", id="nothing-fed"),
        pytest.param({"image_output": "two"}, "without a PyTorch model", id="no-module"),
    ],
)
def test_what_cannot_be_compared_is_an_error(options: dict[str, Any], text: str, attached: Path) -> None:
    """A module that cannot stand beside the exported model ends the check with one explanation, not with a miss."""
    with pytest.raises(UsageError) as caught:
        check_parity(attached, **{**QUICK, **options})
    assert text in str(caught.value)


def test_a_model_with_several_inputs_gets_them_in_order(tmp_path: Path) -> None:
    """The module is called with the inputs in the exported model's order."""

    class Same(torch.nn.Module):
        def forward(self, score: torch.Tensor, anomaly_map: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return score, anomaly_map

    path = attach_postprocessing(hosts.write(hosts.identity(), tmp_path / "raw.onnx"), STATS).output
    rng = np.random.default_rng(1)
    inputs = {"map": rng.random((4, 1, 3, 5), np.float32), "score": rng.random((4, 1), np.float32)}
    assert_parity(path, torch=Same(), **{**QUICK, "inputs": inputs})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "double"])
def test_other_element_types_are_compared_in_float32(dtype: str, tmp_path: Path) -> None:
    """Outputs of every float type are rounded to float32 first, as the tail does it; bfloat16 is fed, too."""

    class Same(torch.nn.Module):
        def forward(self, score: torch.Tensor, anomaly_map: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return score, anomaly_map

    path = attach_postprocessing(hosts.write(hosts.identity(dtype=dtype), tmp_path / "raw.onnx"), STATS).output
    rng = np.random.default_rng(1)
    inputs = {"map": rng.random((4, 1, 3, 5), np.float32), "score": rng.random((4, 1), np.float32)}
    if dtype != "bfloat16":
        inputs = {name: values.astype(dtype) for name, values in inputs.items()}
    assert_parity(path, torch=Same(), **{**QUICK, "inputs": inputs})


def test_the_replay_command_names_the_module(attached: Path, tmp_path: Path) -> None:
    """A failing input is saved with a command that runs the PyTorch model on it, too."""
    module = torch_hosts.Detector(torch_hosts.FORMS["tuple"], hosts.CHANNEL_WEIGHTS[::-1])
    torch_hosts.AS_IT_WAS = module
    report = check_parity(attached, torch="torch_hosts:AS_IT_WAS", save_failures=tmp_path / "failures", **QUICK)
    assert not report
    saved = report.environment["failures"]
    assert any("--torch torch_hosts:AS_IT_WAS --inputs" in item["replay"] for item in saved)
    assert all(Path(item["file"]).is_file() for item in saved)


def test_usage_errors_exit_with_2(attached: Path, tmp_path: Path, invoke: Any) -> None:
    """On the command line a module that is not there is exit code 2, one message, no traceback."""
    np.savez(tmp_path / "images.npz", input=IMAGES)
    result = invoke("check", attached, "--inputs", tmp_path / "images.npz", "--torch", "torch_hosts:nothing")
    assert result.exit_code == 2
    assert "there is no 'nothing'" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_command_compares_with_the_module(attached: Path, tmp_path: Path, invoke: Any) -> None:
    """`check --torch` names the module in the verdict, and with -v shows the stages and a sentence for each way."""
    np.savez(tmp_path / "images.npz", input=IMAGES)
    arguments = ("--inputs", tmp_path / "images.npz", "--torch", "torch_hosts:detector")
    result = invoke("check", attached, *arguments, "-v")
    assert result.exit_code == 0, result.stderr
    assert f" {len(IMAGES)} samples beside torch_hosts:detector, in " in result.stdout.splitlines()[0]
    assert "torch -> attached" in result.stdout
    assert "openvino at float32: decides as PyTorch; " in result.stdout
