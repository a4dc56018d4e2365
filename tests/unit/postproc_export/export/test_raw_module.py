"""`export.exporter`: any form of outputs as two fixed ones, weights, and the mode of the module."""

from pathlib import Path
from typing import Any

import export_modules
import numpy as np
import pytest
import torch

from postproc_export.errors import FileError, UnsupportedModelError, UsageError
from postproc_export.export.exporter import RawModule, as_example, evaluation_mode, load_weights

IMAGES = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
FORMS = ("tuple", "dict", "nested", "dataclass", "named tuple")


def expected() -> dict[str, Any]:
    """Return the detector's map and score."""
    with torch.no_grad():
        anomaly_map = export_modules.detector("tensor")(IMAGES)
    return {"image": anomaly_map.amax(dim=(2, 3)).numpy(), "pixel": anomaly_map.numpy()}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_score_and_map_in_this_order(form: str) -> None:
    """Tuple, dict, nested dict, dataclass and named tuple: found by key, else by rank; other outputs are gone."""
    options = {"pixel_output": "anomaly.anomaly_map"} if form == "nested" else {}
    raw = RawModule(export_modules.detector(form), IMAGES, **options)
    assert raw.names == ["pred_score", "anomaly_map"]
    found = raw.run(IMAGES)
    assert list(found) == ["image", "pixel"]
    assert all(np.array_equal(found[level], values) for level, values in expected().items())
    assert [tuple(tensor.shape) for tensor in raw.wrapper(IMAGES)] == [(2, 1), (2, 1, 8, 8)]


@pytest.mark.parametrize(("form", "names"), [("tensor", ["anomaly_map"]), ("score", ["pred_score"])])
def test_a_tensor_alone_is_one_level(form: str, names: list[str]) -> None:
    """A module with one output has that level alone."""
    assert RawModule(export_modules.detector(form), IMAGES).names == names


def test_outputs_that_are_not_clear_are_asked_for() -> None:
    """Two maps without names: the message lists them and names the option, which then decides."""
    with pytest.raises(UnsupportedModelError, match=r"2 outputs could be the anomaly map(.|\n)*--pixel-output"):
        RawModule(export_modules.Ambiguous(), IMAGES)
    raw = RawModule(export_modules.Ambiguous().eval(), IMAGES, pixel_output=1)
    assert np.array_equal(raw.run(IMAGES)["pixel"], 2 * expected()["pixel"])


def test_a_module_that_fails_is_explained() -> None:
    """What the module itself raises, and where, on which input."""
    with pytest.raises(UnsupportedModelError, match=r"does not run on float32 \[2, 3, 8, 8\](.|\n)*16 x 16 only"):
        RawModule(export_modules.SquareOnly(), IMAGES)


@pytest.mark.parametrize(
    ("example", "found"),
    [
        ("image.png", "str"),
        ((IMAGES, IMAGES), "tuple of 2"),
        (torch.zeros(0, 3), r"float32 \[0, 3\]"),
        (torch.tensor(1.0), r"float32 \[\]"),
        (torch.zeros(1, 3, dtype=torch.bfloat16), "bfloat16"),
    ],
    ids=["text", "two", "empty", "scalar", "bfloat16"],
)
def test_what_cannot_be_fed_is_no_example(example: object, found: str) -> None:
    """One tensor or array that has elements and a type of the runtimes' is needed."""
    with pytest.raises(UsageError, match=found):
        as_example(example)


def test_an_example_may_be_an_array_or_a_tuple_of_one() -> None:
    """NumPy arrays and the exporter's own form are taken."""
    assert torch.equal(as_example(IMAGES.numpy()), IMAGES)
    assert torch.equal(as_example((IMAGES,)), IMAGES)


@pytest.mark.parametrize("wrapped", [False, True], ids=["state-dict", "checkpoint"])
def test_weights_are_loaded(wrapped: bool, tmp_path: Path) -> None:
    """A state dict, alone or under the key that training frameworks give it."""
    state = {name: value + 1 for name, value in export_modules.detector().state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, tmp_path / "weights.pt")
    module = export_modules.detector()
    load_weights(module, tmp_path / "weights.pt")
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


class _Dangerous:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        pytest.param(None, FileError, "no such file", id="missing"),
        pytest.param(_Dangerous(), FileError, "needed: +tensors alone", id="code"),
        pytest.param([1, 2], UsageError, "holds no state dict", id="list"),
        pytest.param({"wrong": torch.zeros(1)}, UsageError, "not in the file: convolution.weight", id="names"),
        pytest.param(
            {"convolution.weight": torch.zeros(1), "convolution.bias": torch.zeros(1)},
            UsageError,
            "size mismatch for convolution.weight",
            id="shapes",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    content: object, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing files, pickled objects, other structures, names and shapes; nothing in the file is executed."""
    monkeypatch.chdir(tmp_path)
    if content is not None:
        torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(error, match=message):
        load_weights(export_modules.detector(), tmp_path / "weights.pt")
    assert not Path("executed").exists()


def test_a_training_module_is_said_and_given_back_as_it_was() -> None:
    """The mode of every part comes back; a module in evaluation mode gets no remark."""
    module = export_modules.training()
    module.noise.eval()
    with evaluation_mode(module) as remarks:
        assert not any(part.training for part in module.modules())
        assert remarks == (
            "the module was in training mode (2 of 3 parts, the first is the module itself): "
            "it was exported in evaluation mode",
        )
    assert (module.training, module.convolution.training, module.noise.training) == (True, True, False)
    with evaluation_mode(export_modules.detector()) as remarks:
        assert remarks == ()
