"""The drop-in post-processor in the real Anomalib 2.7: five models through every way they are fitted, run and exported.

It needs an environment with anomalib 2.7.0, which brings torch and torchvision of its own; docs/anomalib.md has the
commands. Everything runs in processes of its own: in this one the ordinary suite has a stand-in for Anomalib.
"""

import inspect
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from anomalib_standin import AnomalibModule, AnomalibPostProcessor, ImageBatch, InferenceBatch
from scripting import run_script


def _why_not() -> str | None:
    try:
        found = version("anomalib")
    except PackageNotFoundError:
        return "anomalib is not installed: docs/anomalib.md has the commands for an environment with it"
    return None if found.startswith("2.7.") else f"anomalib {found} is installed, and 2.7 is needed"


pytestmark = [pytest.mark.slow, pytest.mark.skipif(_why_not() is not None, reason=str(_why_not()))]

MODELS = ("padim", "patchcore", "stfpm", "dfkde", "map_only")
NONE_OFF = {"labels": 0, "pixels": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the crops, the models and what was found."""
    return tmp_path_factory.mktemp("anomalib")


def _run(name: str, folder: Path) -> dict[str, Any]:
    run_script("anomalib_cases.py", name, folder, timeout=1800)
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module", params=MODELS)
def found(request: pytest.FixtureRequest, folder: Path) -> dict[str, Any]:
    """What was found of each model."""
    return _run(request.param, folder)


@pytest.fixture(scope="module")
def padim(folder: Path) -> dict[str, Any]:
    """What was found of Padim alone, in other ways."""
    return _run("more", folder)


def none_off(runs: dict[str, Any]) -> bool:
    """Whether no label and no pixel differs in any runtime, and scores are within rounding."""
    return all((run["labels"], run["pixels"]) == (0, 0) and run["scores"] < 1e-4 for run in runs.values())


def test_it_calibrates_in_fit_and_validate(found: dict[str, Any]) -> None:
    """With the same statistics, which it prints; test reaches what was calibrated."""
    assert found["stats"] == found["validated"]
    assert f"image: threshold {found['stats']['image']['threshold']:.6g}" in found["shown"]
    assert found["metrics"]["image_F1Score"] > 0.5


def test_it_calibrates_in_train(found: dict[str, Any]) -> None:
    """Which fits and tests: a validation behind it finds the same, and test decided by it."""
    assert found["trained"]["stats"] == found["trained"]["validated"]
    assert found["trained"]["stats"]["image"]["n_anomalous"] > 0
    assert found["trained"]["metrics"]["image_F1Score"] > 0.5


@pytest.mark.parametrize("comparison", ["ge", "gt"])
def test_files_decide_as_predict_does(found: dict[str, Any], comparison: str) -> None:
    """ONNX in both runtimes and the IR, every label and every pixel; both labels are among them."""
    assert found[comparison]["seen"] == [False, True]
    assert none_off(found[comparison]["onnx"])
    assert none_off(found[comparison]["ir"])


def test_gt_decides_as_anomalib_does(found: dict[str, Any]) -> None:
    """Every label and pixel of Anomalib's own class with the same buffers."""
    assert set(found["gt"]["anomalib"].values()) == {0}


def test_inferencers_decide_as_predict_does(found: dict[str, Any]) -> None:
    """Anomalib's two, of the .pt file and of ONNX and IR, and OpenVINO Model API."""
    assert set(found["inferencers"].values()) == {0}, found["inferencers"]


def test_our_commands_work_on_the_files(found: dict[str, Any]) -> None:
    """Inspect, check, update and detach."""
    for each in found["commands"].values():
        assert set(each["tails"].values()) == {"postproc_export"}
        assert set(each["raw"].values()) <= {"none"}
        assert each["check"]
        assert each["moved"]


def test_predict_puts_masks_where_they_are_on_the_images(found: dict[str, Any]) -> None:
    """Every pixel of every image, also of PatchCore, which crops inside its graph; Dfkde has no map."""
    assert set(found["misplaced"]) <= {0}
    assert len(found["misplaced"]) == (0 if found["stats"]["pixel"] is None else 2)


def test_a_sanity_check_calibrates_nothing(padim: dict[str, Any]) -> None:
    """Of a model that has one; the epoch behind it does."""
    assert padim["sanity"]["checked"]["image"] is padim["sanity"]["checked"]["pixel"] is None
    assert padim["sanity"]["fitted"]["image"] is not None


def test_a_validation_takes_constant_memory(folder: Path) -> None:
    """64 MB of values and some chunks, where Anomalib's class keeps all pixels, 210 MB of them, and copies them."""
    found = _run("memory", folder)
    assert found["ours"] < 150 < found["theirs"], found


@pytest.mark.parametrize("kind", ["fp16", "int8", "int8_ptq", "int8_acq"])
def test_compressed_files_keep_the_tail(padim: dict[str, Any], kind: str) -> None:
    """With FP16 weights, INT8 weights, and quantised after training; the tail is attached behind the compression."""
    assert set(padim[kind]["tails"].values()) == {"postproc_export"}
    assert padim[kind]["check"]


def test_accuracy_is_controlled_by_our_labels(padim: dict[str, Any]) -> None:
    """What NNCF judges of the model as it was are the labels of Engine.predict."""
    assert padim["int8_acq"]["ours"]


def test_other_exports_decide_as_predict_does(padim: dict[str, Any]) -> None:
    """Of an open size; from a checkpoint by the engine; and `predict` runs over a folder."""
    assert none_off(padim["free"])
    assert none_off(padim["loaded"])
    assert "40 images" in padim["predicted"]


def test_checkpoints_load_both_ways(padim: dict[str, Any]) -> None:
    """Ours in Anomalib's class and theirs in ours, with a post-processor given and without one."""
    classes = {name: each["class"] for name, each in padim["checkpoints"].items()}
    ours, theirs = "AnomalibPostProcessor", "PostProcessor"
    assert classes == {"ours": ours, "ours, in theirs": theirs, "theirs": theirs, "theirs, in ours": ours}
    assert all(each["same"] for each in padim["checkpoints"].values())


def test_custom_post_processors_export(padim: dict[str, Any]) -> None:
    """A transform with our tail behind it, a `forward` of one's own as it is; test and predict decide alike."""
    for name in ("Smoothed", "AnyPixel"):
        for suffix, each in padim[name].items():
            assert none_off(each["off"]), (name, suffix)
    assert {tail for each in padim["Smoothed"].values() for tail in each["tails"].values()} == {"postproc_export"}


def test_it_can_be_the_default_and_the_eager_module_stands_in(padim: dict[str, Any]) -> None:
    """Through `configure_post_processor`; and `postproc_export.PostProcessor` takes what a model gives."""
    assert padim["default"] == "AnomalibPostProcessor"
    assert set(padim["eager"].values()) == {True}


def test_two_processes_calibrate_as_one(folder: Path) -> None:
    """Lightning's distributed strategy, with an odd number of images: both have the statistics of one; in fit, too."""
    run_script("anomalib_cases.py", "ranks", folder, timeout=1800)
    first, second = (json.loads((folder / f"ranks{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1))
    assert first["size"] == second["size"] == 2
    assert first["validated"] == second["validated"] == first["alone"]
    assert first["fitted"] == second["fitted"] != first["alone"]
    assert first["alone"]["image"]["n_normal"] + first["alone"]["image"]["n_anomalous"] == 41


def test_the_constructor_takes_what_anomalibs_takes(padim: dict[str, Any]) -> None:
    """In the same order, by the same names, with the same defaults."""
    assert padim["interface"]["other in ours"] == []


def test_the_stand_in_has_anomalibs_interface(padim: dict[str, Any]) -> None:
    """Every method of the stand-in is there in Anomalib, with the same parameters."""
    real = padim["interface"]
    assert real["InferenceBatch"] == [*InferenceBatch._fields]
    for kind in (AnomalibPostProcessor, AnomalibModule):
        for name, member in vars(kind).items():
            if inspect.isfunction(member) or isinstance(member, classmethod):
                assert [*inspect.signature(getattr(kind, name)).parameters] == real[f"{kind.__name__}.{name}"], name
    assert {*inspect.signature(ImageBatch).parameters} <= {*real["ImageBatch.__init__"]}
    assert [*inspect.signature(ImageBatch.update).parameters] == real["ImageBatch.update"]


def test_the_page_runs_as_it_stands(tmp_path: Path) -> None:
    """Every snippet and command of docs/anomalib.md, in order."""
    run_script("anomalib_doc.py", tmp_path, timeout=1800)


def test_the_guide_works_with_our_class(tmp_path: Path) -> None:
    """Creating, printing, configuring, disabling, exporting, deploying, and a post-processor of one's own."""
    run_script("anomalib_guide.py", tmp_path, timeout=1800)
