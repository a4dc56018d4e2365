"""`export_model`: from a module to finished files that give what the module gives, or to nothing at all."""

import json
from pathlib import Path
from typing import Any

import export_modules
import numpy as np
import onnx
import pytest
import torch
from shipped_tails import stats_behind

from postproc_export import CalibrationStats, LevelStats, PostProcessor, check_parity, export_model
from postproc_export.errors import FileError, MetadataError, UnsupportedModelError, UsageError
from postproc_export.export import ExportResult, exporter
from postproc_export.runtimes import open_runner

STATS = CalibrationStats(
    image=LevelStats(threshold=1.5, min=0.0, max=3.0), pixel=LevelStats(threshold=0.5, min=-1.0, max=2.5)
)
EXAMPLE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
NAMES = ["pred_score", "pred_label", "anomaly_map", "pred_mask"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportResult]:
    """One module, exported to both formats into a folder that was not there."""
    folder = tmp_path_factory.mktemp("export") / "dist"
    module = export_modules.training()
    result = export_model(
        module, EXAMPLE, STATS, output=folder, formats="onnx,openvino", dynamic="batch,height", image_sensitivity=0.6
    )
    assert module.training
    return folder, result


def test_the_files_are_finished_models(exported: tuple[Path, ExportResult]) -> None:
    """Both formats with four outputs and open axes, the statistics, and nothing else beside them."""
    folder, result = exported
    assert result, [check.message for file in result.files for check in file.report.failed]
    names = ["model.bin", "model.onnx", "model.xml", "parity.json", "statistics.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert sorted(path.name for path in result.written) == names
    assert CalibrationStats.load(folder / "statistics.json") == STATS
    for file, axes in zip(result.files, (("batch", "height"), (None, None)), strict=True):
        assert [port.name for port in file.outputs] == NAMES
        assert [port.shape for port in file.inputs] == [(axes[0], 3, axes[1], 16)]
        assert file.attached.tail.options.image_sensitivity == np.float32(0.6)
    assert onnx.load(folder / "model.onnx").opset_import[0].version == result.opset


@pytest.mark.parametrize("name", ["model.onnx", "model.xml"])
def test_the_files_decide_as_the_module_does(exported: tuple[Path, ExportResult], name: str) -> None:
    """At other sizes than the example's, labels and masks are `PostProcessor`'s on what the module gives."""
    images = torch.rand(5, 3, 40, 16, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        anomaly_map = export_modules.detector("tensor")(images)
    wanted = PostProcessor(STATS, image_sensitivity=0.6)(anomaly_map.amax(dim=(2, 3)), anomaly_map)
    found = open_runner(exported[0] / name).run({"input": images.numpy()})
    assert 0 < found["pred_mask"].sum() < found["pred_mask"].size
    assert np.array_equal(found["pred_label"], wanted.pred_label.numpy())
    assert np.array_equal(found["pred_mask"].astype(bool), wanted.pred_mask.numpy())
    assert np.allclose(found["anomaly_map"], wanted.anomaly_map.numpy(), atol=1e-5)


def test_the_report_holds_every_file_and_the_module(exported: tuple[Path, ExportResult]) -> None:
    """`parity.json`: the verdict, and per file a report as of `check --json` with the checks against the module."""
    document = json.loads((exported[0] / "parity.json").read_text(encoding="utf-8"))
    assert document["passed"] is True
    assert [Path(file["attached"]).name for file in document["files"]] == ["model.onnx", "model.xml"]
    for file, way in zip(document["files"], ("onnxruntime", "openvino"), strict=True):
        names = {check["name"] for check in file["checks"]}
        assert {f"module/raw/anomaly_map/{way}", f"module/pred_mask/{way}", f"whole/raw/pred_label/{way}"} <= names
    assert check_parity(exported[0] / "model.onnx", count=500)


class Classes(torch.nn.Module):
    """Two classes of every pixel by softmax, channels second, or the second one alone, channels last."""

    def __init__(self, *, is_last: bool) -> None:
        super().__init__()
        self.is_last = is_last
        self.conv = torch.nn.Conv2d(3, 2, 1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([[-2.0, -1.0, -0.5], [2.0, 1.0, 0.5]]).reshape(2, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the map, and what is highest in it."""
        maps = torch.softmax(self.conv(images.permute(0, 3, 1, 2) if self.is_last else images), dim=1)
        score = maps.amax(dim=(2, 3))
        return {"map": maps[:, 1:].permute(0, 2, 3, 1), "score": score[:, 1:]} if self.is_last else {"map": maps}


@pytest.mark.parametrize(
    "is_last", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["channel-last", "classes"]
)
def test_a_channel_is_taken_of_what_the_module_gives(is_last: bool, tmp_path: Path) -> None:
    """By itself where it is the last axis of one, by the step where there are several, in both formats."""
    example = EXAMPLE.permute(0, 2, 3, 1).contiguous() if is_last else EXAMPLE
    level = LevelStats(threshold=0.9, min=0.1, max=1.0)
    step = () if is_last else "channel:index=1"
    recorded = {"index": 1, "axis": "second", "level": "pixel"}
    details = {} if is_last else {"tail": [{"name": "channel", "parameters": recorded}]}
    stats = CalibrationStats(image=level, pixel=level, details=details)
    result = export_model(
        Classes(is_last=is_last), example, stats, output=tmp_path, formats="onnx,openvino", dynamic="batch", step=step
    )
    assert result, [check.message for file in result.files for check in file.report.failed]
    for file in result.files:
        assert [port.shape for port in file.outputs][2:] == [
            (file.outputs[0].size(0) or file.outputs[0].shape[0], 16, 16)
        ] * 2


def test_a_sensitivity_is_chosen_before_the_export(tmp_path: Path) -> None:
    """From the curve in the statistics, for every file; what is out of reach is refused before anything is run."""
    curve = {"threshold": [0.5, 1.0, 2.0], "tp": [4, 4, 1], "fp": [5, 1, 0]}
    counts: dict[str, Any] = {"n_normal": 5, "n_anomalous": 4, "details": {"curve": curve}}
    stats = CalibrationStats(image=LevelStats(threshold=1.5, min=0.0, max=3.0, **counts), pixel=STATS.pixel)
    given: dict[str, Any] = {"output": tmp_path / "dist", "image_sensitivity_for": "recall=1"}
    told: list[str] = []
    with pytest.raises(UsageError, match="contradict each other"):
        export_model(export_modules.training(), EXAMPLE, stats, image_sensitivity=0.5, tell=told.append, **given)
    with pytest.raises(UsageError, match="have no curve of the image level"):
        export_model(export_modules.training(), EXAMPLE, STATS, tell=told.append, **given)
    assert told == []
    result = export_model(export_modules.training(), EXAMPLE, stats, **given)
    (file,) = result.files
    assert file.attached.boundary("image") <= 1.0
    assert "for recall=1: of the 9 validation images 5 are called anomalous: 4 of 4" in result.summary()


def test_the_summary_says_what_was_done(exported: tuple[Path, ExportResult]) -> None:
    """Mode, ports with axes, sizes, statistics, a verdict for each runtime, files."""
    text = exported[1].summary()
    for expected in (
        "exported Detector at opset",
        "the module was in training mode",
        "input: float32 [batch, 3, height, 16]",
        "pred_label: bool [batch, 1]",
        "as the model at batch 1, batch 3, height 48, batch 3 x height 48",
        "pred_score and pred_label: anomalous from raw",
        "threshold 1.5, range 0.0 to 3.0",
        f"check    PASSED: {exported[0] / 'model.onnx'} decides as PyTorch does",
        f"check    PASSED: {exported[0] / 'model.xml'} decides as PyTorch does",
        f"written  {exported[0] / 'model.xml'}",
    ):
        assert expected in text


def test_a_second_export_replaces_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the same names are replaced, external weights among them; others stay, and so do the statistics read."""
    monkeypatch.setattr(exporter, "ONE_FILE", 0)
    for name in ("model.onnx", "model.onnx.data", "mine.txt"):
        (tmp_path / name).write_text(name)
    STATS.save(tmp_path / "statistics.json")
    before = (tmp_path / "statistics.json").stat()
    module = export_modules.Wide().eval()
    module.form = "score"
    assert export_model(module, EXAMPLE, tmp_path / "statistics.json", output=tmp_path, dynamic="batch")
    assert (tmp_path / "mine.txt").read_text() == "mine.txt"
    assert (tmp_path / "model.onnx.data").stat().st_size >= 64 * 27 * 4
    assert list(open_runner(tmp_path / "model.onnx").run({"input": EXAMPLE.numpy()})) == NAMES[:2]
    assert (tmp_path / "statistics.json").stat().st_ino == before.st_ino
    names = ["mine.txt", "model.onnx", "model.onnx.data", "parity.json", "statistics.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_missed_check_is_written_only_where_that_is_asked_for(tmp_path: Path) -> None:
    """A module that no export can equal: the result is falsy, and `keep_failed` writes the files all the same."""
    result = export_model(export_modules.Undecided(), EXAMPLE, STATS, output=tmp_path / "dist", keep_failed=True)
    assert not result
    assert "module/raw/anomaly_map/onnxruntime" in [check.name for check in result.files[0].report.failed]
    assert "nothing was written" not in result.summary()
    assert json.loads((tmp_path / "dist/parity.json").read_text(encoding="utf-8"))["passed"] is False


@pytest.mark.parametrize(
    ("module", "dynamic", "message"),
    [
        pytest.param(export_modules.Branching, "batch,height", "'height' (.|\n)*at height 48", id="frozen-silently"),
        pytest.param(export_modules.SquareOnly, "height", "itself takes no other size(.|\n)*16 x 16 only", id="module"),
    ],
)
def test_an_axis_that_is_not_dynamic_is_named_and_nothing_written(
    module: type[torch.nn.Module], dynamic: str, message: str, tmp_path: Path
) -> None:
    """The exporter keeps one branch without an error, or the module takes one size alone: found by running it."""
    with pytest.raises(UnsupportedModelError, match=message):
        export_model(module().eval(), EXAMPLE, STATS, output=tmp_path / "dist", dynamic=dynamic)
    assert list(tmp_path.iterdir()) == []


REFUSED: list[Any] = [
    pytest.param({"formats": "onnx,tflite"}, UsageError, "formats tflite: unknown", id="format"),
    pytest.param({"formats": ""}, UsageError, "formats (.|\n)*onnx or openvino", id="no-format"),
    pytest.param({"dynamic": "depth"}, UsageError, "dynamic depth", id="axis"),
    pytest.param({"stats": None}, UsageError, "statistics are needed", id="no-statistics"),
    pytest.param({"calibrate": "images"}, UsageError, "one of the two", id="both"),
    pytest.param({"stats": "nowhere.json"}, FileError, "nowhere.json", id="statistics"),
    pytest.param({"image_sensitivity": 2}, MetadataError, "image_sensitivity", id="option"),
    pytest.param({"sensitivity": 0.5}, TypeError, "unexpected keyword argument 'sensitivity'", id="unknown"),
    pytest.param({"in_place": True}, TypeError, "unexpected keyword argument 'in_place'", id="of-attach-alone"),
    pytest.param({"stats": None, "calibrate": "nowhere"}, FileError, "nowhere", id="calibration-images"),
    pytest.param({"stats": None, "calibrate": ".", "image_policy": "f2"}, UsageError, "f2", id="policy"),
    pytest.param({"images": "nowhere"}, FileError, "nowhere", id="images"),
    pytest.param({"name": "../model"}, UsageError, "is no name", id="name"),
    pytest.param({"output": "taken.txt"}, FileError, "found: +a file", id="output"),
    pytest.param({"example_input": "x"}, UsageError, "is no tensor", id="example"),
    pytest.param({"stats": stats_behind(["gate", "negate"])}, UsageError, "not those behind this tail", id="steps"),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED)
def test_what_cannot_be_done_is_refused_before_anything_is_exported(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong options and targets: one error, nothing written, the exporter never called."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.txt").write_text("")
    monkeypatch.setattr(torch.onnx, "export", None)
    given = {"example_input": EXAMPLE, "stats": STATS, "output": "dist", **options}
    with pytest.raises(error, match=message):
        export_model(export_modules.detector(), **given)
    assert [path.name for path in tmp_path.iterdir()] == ["taken.txt"]


@pytest.mark.parametrize(
    "name", [pytest.param("model.onnx", id="model"), pytest.param("model.bin", id="weights"), "parity.json"]
)
def test_a_file_that_is_read_is_not_replaced(name: str, tmp_path: Path) -> None:
    """It is refused before the module is exported."""
    (tmp_path / name).write_text("what the module was made from")
    told: list[str] = []
    options = {"output": tmp_path, "formats": "onnx,openvino", "inputs": [tmp_path / name], "tell": told.append}
    with pytest.raises(FileError, match=r"it is the file that is read\n  fix:     choose another folder"):
        export_model(export_modules.training(), EXAMPLE, STATS, **options)
    assert not told
    assert (tmp_path / name).read_text() == "what the module was made from"


@pytest.mark.parametrize("batch", [1, *(pytest.param(batch, marks=pytest.mark.slow) for batch in (2, 3))])
def test_the_state_of_a_module_is_no_map(batch: int, tmp_path: Path) -> None:
    """With statistics of images alone the state is left out, with a remark, whatever the example's batch."""
    example = torch.rand(batch, 5, 3, generator=torch.Generator().manual_seed(1))
    module = export_modules.WithState().eval()
    result = export_model(
        module, example, CalibrationStats(image=STATS.image), output=tmp_path / "dist", dynamic="batch"
    )
    assert result, [check.message for file in result.files for check in file.report.failed]
    assert any("the output 'state' was left out" in remark for remark in result.remarks)
    runner = open_runner(tmp_path / "dist" / "model.onnx")
    assert [port.name for port in runner.outputs] == NAMES[:2]
    for size in (1, 4):
        fed = torch.rand(size, 5, 3, generator=torch.Generator().manual_seed(size))
        with torch.no_grad():
            scores = module(fed)["score"].numpy()
        np.testing.assert_array_equal(runner.run({"input": fed.numpy()})["pred_label"], scores >= 1.5)


def test_a_state_that_is_calibrated_as_a_map_is_refused(tmp_path: Path) -> None:
    """It cannot guard, since its first axis is a layer; nothing is written."""
    with pytest.raises(UnsupportedModelError, match="nan_guard=False"):
        export_model(
            export_modules.WithState().eval(), torch.rand(2, 5, 3), STATS, output=tmp_path / "dist", dynamic="batch"
        )
    assert not list(tmp_path.rglob("*.onnx"))


@pytest.mark.parametrize("has_axis", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["[]", "[1]"])
def test_one_score_for_the_whole_batch_is_exported(has_axis: bool, tmp_path: Path) -> None:
    """The file runs at every batch, and a NaN in any map makes the one score anomalous."""
    module = export_modules.OneScore(has_axis=has_axis).eval()
    result = export_model(module, EXAMPLE, STATS, output=tmp_path / "dist", formats="onnx,openvino", dynamic="batch")
    assert result, [check.message for file in result.files for check in file.report.failed]
    for name in ("model.onnx", "model.xml"):
        runner = open_runner(tmp_path / "dist" / name)
        for size in (1, 3):
            images = np.zeros((size, 3, 16, 16), np.float32)
            assert not runner.run({"input": images})["pred_label"].any()
            images[-1, 0, 0, 0] = np.nan
            assert runner.run({"input": images})["pred_label"].all()
