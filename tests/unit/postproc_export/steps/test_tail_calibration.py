"""Calibrating behind custom steps: the statistics are those of the transformed values, and say so."""

from pathlib import Path

import hosts
import numpy as np
import pytest
from PIL import Image
from shipped_tails import behind, labelled_images

from postproc_export import CalibrationStats, attach_postprocessing
from postproc_export.calibration import Calibrator
from postproc_export.calibration.model import ModelSource
from postproc_export.cli import main
from postproc_export.errors import UnsupportedModelError, UsageError
from postproc_export.images import Preprocessing, find_samples

EXACT = Preprocessing(size=(32, 32), scale=256)  # multiples of 2^-8, on which a detector is exact
TAILS = ["gaussian:sigma=1", "top-k:k=20"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven labelled images."""
    return labelled_images(tmp_path_factory.mktemp("set"))


def calibrated(source: ModelSource) -> CalibrationStats:
    """Return statistics without the bootstrap interval, which takes longer than all the rest here."""
    return source.calibrate(Calibrator(resamples=0))


@pytest.mark.parametrize("kind", ["onnx", "xml"])
def test_statistics_are_those_behind_the_transform(kind: str, dataset: Path, tmp_path: Path) -> None:
    """As if the twins' values had been calibrated on; they record names and parameters, and the file attaches."""
    host = hosts.score_and_map(dynamic=False, batch="N", size=(32, 32))
    model = hosts.write(host, tmp_path / f"m.{kind}")
    source = ModelSource.open(model, dataset, preprocessing=EXACT, tail=TAILS)
    stats = calibrated(source)
    samples = find_samples(dataset)
    pixels = np.stack([np.asarray(Image.open(sample.image)).transpose(2, 0, 1) for sample in samples])
    values = behind(TAILS, hosts.expected((pixels / 256).astype(np.float32)), size=(32, 32))
    masks = [np.zeros((32, 32), bool) if s.mask is None else np.asarray(Image.open(s.mask)) > 0 for s in samples]
    with Calibrator(resamples=0) as wanted:
        wanted.update(**values, gt_label=[sample.label for sample in samples], gt_mask=np.stack(masks))
        expected = wanted.compute()
    for level in ("image", "pixel"):
        found, of_twins = stats.level(level), expected.level(level)
        for name in ("threshold", "min", "max"):
            assert getattr(found, name) == pytest.approx(getattr(of_twins, name), abs=1e-6)
    assert stats.details["tail"] == [
        {"name": "gaussian", "parameters": {"sigma": 1.0}},
        {"name": "top-k", "parameters": {"k": 20}},
    ]
    assert "behind: gaussian:sigma=1.0\nbehind: top-k:k=20" in source.describe()
    stats.save(tmp_path / "stats.json")
    assert attach_postprocessing(model, tmp_path / "stats.json", tail=TAILS, output=tmp_path / f"o.{kind}")
    with pytest.raises(UsageError, match="the statistics are not those behind this tail"):
        attach_postprocessing(model, tmp_path / "stats.json", output=tmp_path / f"p.{kind}")
    assert not (tmp_path / f"p.{kind}").exists()


def test_thresholds_stand_in_the_statistics_themselves(dataset: Path, tmp_path: Path) -> None:
    """The file that they came from is not needed again; another one is refused."""
    model = hosts.write(hosts.map_only(dynamic=False, batch="N", size=(32, 32)), tmp_path / "m.onnx")
    np.save(tmp_path / "t.npy", np.linspace(0, 1, 1024).reshape(32, 32))
    tail = f"thresholds:file={tmp_path / 't.npy'}"
    stats = calibrated(ModelSource.open(model, dataset, preprocessing=EXACT, tail=tail))
    assert attach_postprocessing(model, stats, tail=tail)
    np.save(tmp_path / "t.npy", np.linspace(0, 2, 1024).reshape(32, 32))
    with pytest.raises(UsageError, match="the statistics are not those behind this tail"):
        attach_postprocessing(model, stats, tail=tail, output=tmp_path / "o.onnx")


def test_a_class_of_one_s_own_is_recorded_by_name(dataset: Path, tmp_path: Path) -> None:
    """Nothing else is known of it."""
    model = hosts.write(hosts.map_only(opset=14, dynamic=False, batch="N", size=(32, 32)), tmp_path / "m.onnx")
    stats = calibrated(ModelSource.open(model, dataset, preprocessing=EXACT, tail="own_tails:OfTheMap"))
    assert stats.details["tail"] == [{"name": "own_tails:OfTheMap", "parameters": {}}]


def test_without_a_tail_nothing_is_recorded(dataset: Path, tmp_path: Path) -> None:
    """Statistics of the raw outputs say nothing of tails."""
    model = hosts.write(hosts.map_only(), tmp_path / "m.onnx")
    assert "tail" not in ModelSource.open(model, dataset, preprocessing=EXACT).details()


def test_a_finished_model_is_not_calibrated_on(dataset: Path, tmp_path: Path) -> None:
    """Also where a tail is put before: its scores are normalised already."""
    model = hosts.write(hosts.score_and_map(), tmp_path / "m.onnx")
    stats = calibrated(ModelSource.open(model, dataset, preprocessing=EXACT))
    finished = attach_postprocessing(model, stats).output
    with pytest.raises(UnsupportedModelError, match="post-processed already"):
        ModelSource.open(finished, dataset, preprocessing=EXACT, tail=TAILS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m.onnx", "--images", "set", "--step", "gate"], "'gate' stands behind the decision: it changes no raw value"),
        (["m.onnx", "--images", "set", "--step", "mebin"], "has no graph form"),
        (["values.npz", "--step", "gaussian"], "--step gaussian takes whole maps, and values without their model go"),
        (["values.npz", "--step", "own_tails:OfTheMap"], "--step own_tails:OfTheMap takes whole maps"),
        (["values.npz", "--step", "gate"], "'gate' stands behind the decision: it changes no raw value"),
        (["m.onnx", "--images", "set", "--step", "gaussian:sigma=9"], "mirrors 36 pixels"),
    ],
    ids=["behind", "no-graph", "whole-maps", "code", "behind-values", "too-wide"],
)
def test_the_command_refuses_what_cannot_be_calibrated_behind(
    arguments: list[str],
    message: str,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With exit code 2, one message, and no file."""
    (tmp_path / "set").symlink_to(dataset)
    hosts.write(hosts.map_only(dynamic=False, batch="N", size=(32, 32)), tmp_path / "m.onnx")
    np.savez(tmp_path / "values.npz", pred_score=np.array([1.0, 2.0], np.float32), gt_label=[0, 1])
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", *arguments, "-o", "stats.json"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "stats.json").exists()
