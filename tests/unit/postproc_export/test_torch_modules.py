"""`torch_modules`: a module by its name, and which of its outputs are raw."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch_hosts

from postproc_export.errors import PostprocError, UnsupportedModelError, UsageError
from postproc_export.torch_modules import identify_outputs, load_module, named_tensors, raw_tensors

SCORE, MAP = torch.full((2, 1), 3.0), torch.zeros(2, 1, 4, 5)


@pytest.mark.parametrize("spec", ["torch_hosts:detector", "torch_hosts:AS_IT_IS"])
def test_a_factory_or_a_module_is_loaded(spec: str) -> None:
    """A factory is called, a module is taken as it is; either is in evaluation mode."""
    module, remarks = load_module(spec)
    assert isinstance(module, torch_hosts.Detector)
    assert (module.training, remarks) == (False, ())


def test_training_mode_is_found_and_said() -> None:
    """A module in training mode is put into evaluation mode, with all of its parts, and the remark says so."""
    module, remarks = load_module("torch_hosts:in_training")
    assert not any(part.training for part in module.modules())
    assert remarks == ("torch_hosts:in_training was in training mode, and was put into evaluation mode",)
    part = torch.nn.Sequential(torch.nn.Dropout().train()).eval()
    part[0].train()
    assert load_module(part)[1]


def test_the_current_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the current folder is found, also in a package and by a dotted name, and the path is as before."""
    import sys

    (tmp_path / "parity_models").mkdir()
    (tmp_path / "parity_models" / "small.py").write_text(
        "import torch\nclass Small(torch.nn.Module):\n    @staticmethod\n    def ready():\n        return Small()\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert type(load_module("parity_models.small:Small.ready")[0]).__name__ == "Small"
    assert sys.path == before


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        pytest.param("torch_hosts", "names no PyTorch module", id="no-factory"),
        pytest.param("torch hosts:detector", "names no PyTorch module", id="no-name"),
        pytest.param(":detector", "names no PyTorch module", id="no-module"),
        pytest.param("nowhere.models:detector", "no module 'nowhere'", id="unknown-module"),
        pytest.param("torch_hosts.inner:detector", "no module 'torch_hosts.inner'", id="unknown-submodule"),
        pytest.param("torch_hosts:detectr", "there is no 'detectr'\n  found:   detector", id="unknown-factory"),
        pytest.param("torch_hosts:FORMS", "cannot be called", id="not-callable"),
        pytest.param("torch_hosts:broken", "RuntimeError: the weights are not here", id="factory-fails"),
        pytest.param("torch_hosts:Detector", "missing 1 required positional argument", id="needs-arguments"),
        pytest.param("torch_hosts:no_module", "gives no torch.nn.Module\n  found:   str", id="no-nn-module"),
    ],
)
def test_what_cannot_be_loaded_is_explained(spec: str, text: str) -> None:
    """Each way to miss a module is a `UsageError` that says what was found."""
    with pytest.raises(UsageError) as caught:
        load_module(spec)
    assert text in str(caught.value)


@pytest.mark.parametrize("body", ["import missing_package_of_the_model", "raise SystemExit(3)", "def ("])
def test_a_module_that_cannot_be_imported_is_explained(
    body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import that fails inside the module is not taken for a module that is not there."""
    (tmp_path / "failing_model.py").write_text(body + "\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="cannot import failing_model:build") as caught:
        load_module("failing_model:build")
    assert "no module 'failing_model'" not in str(caught.value)


@pytest.mark.parametrize("form", torch_hosts.FORMS)
def test_outputs_are_found_in_every_form(form: str) -> None:
    """By key or attribute, else by rank: a score and a map are found in whatever the forward call returns."""
    outputs = torch_hosts.FORMS[form](SCORE, MAP)
    found = raw_tensors(outputs, identify_outputs(outputs))
    assert found["image"].flatten().tolist() == [3.0, 3.0]
    assert found["pixel"].numel() == MAP.numel()


@pytest.mark.parametrize(("outputs", "level"), [(SCORE, "image"), (MAP, "pixel"), ([None, MAP, "text"], "pixel")])
def test_one_level_alone_is_found(outputs: Any, level: str) -> None:
    """A model with only a score or only a map is one; what is no tensor is left out."""
    assert list(raw_tensors(outputs, identify_outputs(outputs))) == [level]


def test_an_option_decides() -> None:
    """A key or an index selects an output that nothing else tells apart; ``none`` leaves a level out."""
    outputs = {"one": SCORE, "two": SCORE + 1, "map": MAP}
    by_key = raw_tensors(outputs, identify_outputs(outputs, image_output="two"))
    by_index = raw_tensors(outputs, identify_outputs(outputs, image_output=1, pixel_output="none"))
    assert by_key["image"] is by_index["image"] is outputs["two"]
    assert "pixel" not in by_index
    assert list(named_tensors(outputs)) == ["one", "two", "map"]


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        pytest.param((SCORE, SCORE, MAP), "say which with --image-output", id="two-scores"),
        pytest.param("text", "gives no tensor", id="nothing"),
        pytest.param({"pred_score": SCORE, "pred_label": SCORE > 0}, "post-processed already", id="decided"),
        pytest.param((torch.zeros(2, 3, 4, 5),), "--step channel:index=1", id="three-channels"),
    ],
)
def test_outputs_that_are_none_are_explained(outputs: Any, text: str) -> None:
    """What cannot be told apart, or is no raw output, is an error that names what decides."""
    with pytest.raises(PostprocError) as caught:
        identify_outputs(outputs)
    assert text in str(caught.value)


def test_an_output_that_comes_and_goes_is_an_error() -> None:
    """A module that returns other things for other inputs is not guessed at."""
    selection = identify_outputs({"pred_score": SCORE, "anomaly_map": MAP})
    with pytest.raises(UnsupportedModelError, match="gave no 'anomaly_map' this time"):
        raw_tensors({"pred_score": SCORE}, selection)
