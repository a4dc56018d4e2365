"""What the programs of this field ask of a file: each requirement met, and missed with found, needed and fix."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hosts
import onnx
import openvino
import openvino.opset13 as opset
import pytest

from postproc_export.attach import attach_postprocessing
from postproc_export.check.contracts import Requirement, check_contract
from postproc_export.errors import FileError, UnsupportedModelError, UsageError
from postproc_export.stats import CalibrationStats, LevelStats

FED = {"scale": 255.0, "mean": [0.0], "std": [1.0], "channel_order": "rgb", "layout": "nchw", "size": [8, 8]}
BOTH = ("anomalib", "model-api")


def stats(**fed: Any) -> CalibrationStats:
    """Return statistics whose record says how images were fed."""
    return CalibrationStats(
        image=LevelStats(threshold=0.5, min=0.0, max=2.0),
        pixel=LevelStats(threshold=0.25, min=-1.0, max=1.0),
        details={"preprocessing": {**FED, **fed}},
    )


def attached(
    folder: Path,
    model: onnx.ModelProto | None = None,
    *,
    ir: bool = True,
    of: CalibrationStats | None = None,
    edit: Callable[[Any], object] | None = None,
    **options: Any,
) -> Path:
    """Return a file with a tail; `edit` changes the raw IR before."""
    host = hosts.score_and_map() if model is None else model
    raw = hosts.raw_file(host, folder, ir=ir)
    if edit is not None:
        read = openvino.Core().read_model(raw)
        edit(read)
        openvino.save_model(read, folder / "edited.xml", compress_to_fp16=False)
        raw = folder / "edited.xml"
    return attach_postprocessing(raw, of or stats(), output=folder / f"attached{raw.suffix}", **options).output


def missed(requirements: list[Requirement]) -> dict[str, Requirement]:
    """Return what a file does not meet, by name."""
    return {item.name: item for item in requirements if item.holds is False}


@pytest.mark.parametrize("contract", BOTH)
@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
@pytest.mark.parametrize("mask_dtype", [None, "bool"])
def test_a_file_with_dynamic_axes_fits_both(contract: str, ir: bool, mask_dtype: str | None, tmp_path: Path) -> None:
    """The defaults of `attach` fit, in either format, and all of it could be judged."""
    requirements = check_contract(attached(tmp_path, ir=ir, mask_dtype=mask_dtype), contract)
    assert all(item.holds for item in requirements), requirements
    assert len(requirements) >= 10


@pytest.mark.parametrize(
    ("options", "model", "misses"),
    [
        pytest.param(
            {"keep_raw": True},
            None,
            {"anomalib": {"outputs", "output names"}, "model-api": {"outputs"}},
            id="raw-outputs",
        ),
        pytest.param({"layout": "packed"}, None, {"anomalib": {"outputs"}, "model-api": {"outputs"}}, id="packed"),
        pytest.param({}, hosts.score_only, {"anomalib": set(), "model-api": {"outputs"}}, id="a-score-only"),
        pytest.param(
            {"label_dtype": "uint8"}, None, {"anomalib": set(), "model-api": {"pred_label type"}}, id="uint8-labels"
        ),
        pytest.param(
            {"enable_normalization": False}, None, {"anomalib": set(), "model-api": {"map range"}}, id="raw-scores"
        ),
        pytest.param({"adjustable": "sensitivity"}, None, {"anomalib": set(), "model-api": set()}, id="variables"),
        pytest.param(
            {"adjustable": "sensitivity", "as_parameters": True},
            None,
            {"anomalib": {"inputs"}, "model-api": {"inputs"}},
            id="parameters",
        ),
        pytest.param(
            {"enable_thresholding": False}, None, {"anomalib": {"outputs"}, "model-api": {"outputs"}}, id="no-labels"
        ),
        pytest.param(
            {},
            lambda: hosts.score_and_map(dynamic=False),
            {"anomalib": set(), "model-api": {"input values"}},
            id="fixed-size",
        ),
        pytest.param(
            {},
            lambda: hosts.score_and_map(dynamic=False, batch=2),
            {"anomalib": {"input batch"}, "model-api": {"input batch", "input values"}},
            id="batch-of-two",
        ),
        pytest.param(
            {},
            lambda: hosts.identity(),
            {"anomalib": {"inputs", "input layout"}, "model-api": {"inputs", "input layout"}},
            id="two-inputs",
        ),
        pytest.param(
            {},
            lambda: hosts.identity(score="", map="1,H,W"),
            {
                "anomalib": {"inputs", "input layout", "pred_score axes", "pred_label axes"},
                "model-api": {"inputs", "input layout", "pred_score axes", "pred_label axes"},
            },
            id="scalar-score",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    options: dict[str, Any], model: Callable[[], onnx.ModelProto] | None, misses: dict[str, set[str]], tmp_path: Path
) -> None:
    """Each miss has what was found, what is needed and how to get there."""
    path = attached(tmp_path, model and model(), **options)
    for contract in BOTH:
        found = missed(check_contract(path, contract))
        assert set(found) == misses[contract], contract
        for item in found.values():
            assert item.fix
            assert f"found {item.found}; needed: {item.needed}" == item.describe()


@pytest.mark.parametrize(
    ("fed", "contracts"),
    [
        pytest.param({"mean": [0.4], "std": [0.2]}, BOTH, id="mean-and-std"),
        pytest.param({"scale": 1.0}, BOTH, id="0-to-255"),
        pytest.param({"channel_order": "bgr"}, ("anomalib",), id="bgr"),
        pytest.param({"bits": 16}, BOTH, id="16-bits"),
    ],
)
def test_another_preprocessing_than_the_programs_is_found(
    fed: dict[str, Any], contracts: tuple[str, ...], tmp_path: Path
) -> None:
    """What calibration fed stands in the record; where a program feeds other values, its decisions are others."""
    path = attached(tmp_path, of=stats(**fed))
    assert [name for name in BOTH if "input values" in missed(check_contract(path, name))] == list(contracts)


def test_a_record_without_preprocessing_is_said(tmp_path: Path) -> None:
    """Statistics of arrays do not tell how images were fed: that is not judged, and not taken for granted."""
    path = attached(tmp_path, of=CalibrationStats(image=stats().image, pixel=stats().pixel))
    for contract in BOTH:
        requirements = check_contract(path, contract)
        assert not missed(requirements)
        (unknown,) = (item for item in requirements if item.holds is None)
        assert "the statistics do not say how images were fed" in unknown.found


@pytest.mark.parametrize(
    ("settings", "fed", "fits"),
    [
        pytest.param({"scale_values": "255.0 255.0 255.0"}, {}, True, id="scaled"),
        pytest.param({"intensity_mode": "scale_to_unit"}, {}, True, id="to-unit"),
        pytest.param({}, {"scale": 1.0}, True, id="trained-on-bytes"),
        pytest.param({"scale_values": "255 128 255"}, {}, False, id="by-channel"),
        pytest.param({"scale_values": "many"}, {}, False, id="no-number"),
        pytest.param({"scale_values": "255", "mean_values": "127.5"}, {}, False, id="other-mean"),
        pytest.param(
            {"scale_values": "127.5", "mean_values": "127.5"}, {"mean": [0.5], "std": [0.5]}, True, id="same-mean"
        ),
    ],
)
@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
def test_settings_in_the_file_decide_what_a_fixed_size_is_fed(
    settings: dict[str, str], fed: dict[str, Any], fits: bool, ir: bool, tmp_path: Path
) -> None:
    """Model API reads them from model_info, in rt_info and in ONNX metadata alike."""
    model = hosts.score_and_map(dynamic=False)
    for key, value in settings.items():
        model.metadata_props.add(key=f"model_info {key}", value=value)

    def edit(read: Any) -> None:
        for key, value in settings.items():
            read.set_rt_info(value, ["model_info", key])

    path = attached(tmp_path, model, ir=ir, of=stats(**fed), edit=edit if ir else None)
    assert ("input values" not in missed(check_contract(path, "model-api"))) == fits


def test_another_wrapper_in_the_file_is_found(tmp_path: Path) -> None:
    """A file that asks for another wrapper gets it."""
    path = attached(tmp_path, edit=lambda model: model.set_rt_info("Segmentation", ["model_info", "model_type"]))
    assert missed(check_contract(path, "model-api"))["wrapper"].found == "model_type Segmentation"
    path = attached(tmp_path, edit=lambda model: model.set_rt_info("anomalydetection", ["model_info", "model_type"]))
    assert not missed(check_contract(path, "model-api"))


def _second_name(model: Any) -> None:
    result = next(item for item in model.get_results() if "anomaly_map" in item.output(0).get_names())
    result.output(0).set_names({"anomaly_map", "another"})


def _layout(model: Any) -> None:
    model.get_parameters()[0].set_layout(openvino.Layout("NHWC"))


def test_an_output_with_two_names_is_found(tmp_path: Path) -> None:
    """Of several names any one may be taken, so a level that was left alone must not have two."""
    path = attached(tmp_path, edit=_second_name, levels="image", pixel_output="anomaly_map")
    for contract in BOTH:
        assert "another" in missed(check_contract(path, contract))["output names"].found


@pytest.mark.parametrize(
    ("options", "in_ir"),
    [
        pytest.param({"label_dtype": "uint8", "mask_dtype": "uint8"}, True, id="a-conversion-of-ours"),
        pytest.param({"levels": "image", "pixel_output": "anomaly_map"}, False, id="a-copy-of-the-model"),
    ],
)
def test_a_name_that_compiling_adds_is_found(options: dict[str, Any], in_ir: bool, tmp_path: Path) -> None:
    """OpenVINO hands the names of steps that it leaves out to the output; ours have none in an IR."""
    path = attached(tmp_path, ir=False, **options)
    found = missed(check_contract(path, "anomalib"))
    assert list(found) == ["output names"]
    assert " and " in found["output names"].found
    assert "output names" not in missed(check_contract(path, "model-api")), "Model API asks the model as it was read"
    (tmp_path / "ir").mkdir()
    assert (not missed(check_contract(attached(tmp_path / "ir", **options), "anomalib"))) == in_ir


def test_a_declared_layout_counts(tmp_path: Path) -> None:
    """A layout in the file is believed before the sizes."""
    path = attached(tmp_path, edit=_layout)
    assert "layout NHWC" in missed(check_contract(path, "anomalib"))["input layout"].found
    assert "taken for NHWC" in missed(check_contract(path, "model-api"))["input layout"].found


def test_an_integer_input_is_found(tmp_path: Path) -> None:
    """An 8-bit input would make 0 of every value below 1."""

    def edit(model: Any) -> None:
        old = model.get_parameters()[0]
        new = opset.parameter(old.get_partial_shape(), openvino.Type.u8, name="input")
        old.output(0).replace(opset.convert(new, "f32").output(0))
        new.output(0).set_names({"input"})
        model.remove_parameter(old)
        model.add_parameters([new])

    path = attached(tmp_path, edit=edit)
    for contract in BOTH:
        assert missed(check_contract(path, contract))["input type"].found == "uint8"


def test_a_model_without_an_input_is_found(tmp_path: Path) -> None:
    """There is nowhere to feed an image."""
    constants = "<float[1,1] s = {1.0}, float[1,1,1,1] m = {1.0}>"
    model = hosts.parse(
        f"g () => (float[1,1] pred_score, float[1,1,1,1] anomaly_map) {constants} "
        "{ pred_score = Identity(s) anomaly_map = Identity(m) }"
    )
    path = attached(tmp_path, model, ir=False)
    for contract in BOTH:
        assert missed(check_contract(path, contract))["inputs"].found == "none"


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """An unknown program, no file, no model."""
    with pytest.raises(UsageError, match="the contract 'other' is not known"):
        check_contract(tmp_path / "none.onnx", "other")
    with pytest.raises(FileError, match="no such file"):
        check_contract(tmp_path / "none.onnx", "anomalib")
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x08")
    with pytest.raises(UnsupportedModelError):
        check_contract(tmp_path / "bad.onnx", "anomalib")
