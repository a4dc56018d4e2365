"""`postproc-export stats`: every source shown and converted, what it does not say, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import hosts
import numpy as np
import pytest
import torch
from conftest import Invoke

from postproc_export import CalibrationStats, LevelStats, attach_postprocessing, calibrate

FLOAT = np.float32
BUFFERS = {"_image_threshold": 1.5, "_pixel_threshold": 0.75, "image_min": 0.5, "image_max": 3.0}
CONFIG = {"image_sensitivity": 0.25, "enable_normalization": False}


def _statistics(folder: Path) -> Path:
    values = {"pred_score": np.arange(8, dtype=FLOAT), "gt_label": np.arange(8) > 4}
    calibrate(values, resamples=0).save(folder / "calibrated.json")
    return folder / "calibrated.json"


def _checkpoint(folder: Path) -> Path:
    buffers = BUFFERS | {"pixel_min": 0.25, "pixel_max": 3.0}
    state = {f"post_processor.{name}": torch.tensor(value) for name, value in buffers.items()}
    torch.save({"state_dict": state, "anomalib_post_processor_config": CONFIG}, folder / "model.ckpt")
    return folder / "model.ckpt"


def _metadata(folder: Path) -> Path:
    numbers = {"image_threshold": 1.5, "pixel_threshold": 0.75, "min": 0.5, "max": 3.0}
    (folder / "metadata.json").write_text(json.dumps(numbers))
    return folder / "metadata.json"


def _ensemble(folder: Path) -> Path:
    ranges = {"pred_score": {"min": 0.5, "max": 3.0}, "anomaly_map": {"min": 0.25, "max": 3.0}}
    numbers = {"minmax": ranges, "image_threshold": 1.5, "pixel_threshold": 0.75}
    (folder / "stats.json").write_text(json.dumps(numbers))
    return folder / "stats.json"


def _attached(folder: Path) -> Path:
    raw = hosts.write(hosts.score_and_map(), folder / "raw.onnx")
    stats = CalibrationStats(image=LevelStats(threshold=1.5, min=0.5, max=3.0, policy="f1", n_normal=3, n_anomalous=2))
    attach_postprocessing(raw, stats, output=folder / "attached.onnx", image_sensitivity=0.3, levels="image")
    return folder / "attached.onnx"


SOURCES = {
    _statistics: ("5", ()),
    _checkpoint: ("1.5", ("read from model.ckpt: checkpoint of Anomalib 2", "enable_normalization False", "compares")),
    _metadata: ("1.5", ("read from metadata.json: metadata.json of Anomalib 0 or 1",)),
    _ensemble: ("1.5", ("tiled ensemble", "joined outputs of all tiles")),
    _attached: ("1.5", ("read from attached.onnx: model with post-processing", "image_sensitivity 0.3, ")),
}


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
def test_a_source_is_shown_and_converted(source: Callable[[Path], Path], tmp_path: Path, invoke: Invoke) -> None:
    """What is printed names it; what is written is what `--json` prints, and attaches as the source does."""
    path = source(tmp_path)
    threshold, told = SOURCES[source]
    shown = invoke("stats", "show", path, "--quiet")
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert shown.stdout.split("threshold")[1].split()[0] == threshold
    assert [text for text in told if text not in shown.stdout] == []
    printed = json.loads(invoke("stats", "show", path, "--json").stdout)
    converted = invoke("stats", "convert", path, "-o", tmp_path / "new.json")
    assert converted.exit_code == 0
    assert f"statistics written to {tmp_path / 'new.json'}" in converted.stderr
    assert converted.stdout.splitlines()[-1].startswith("next: postproc-export attach MODEL.onnx --stats ")
    assert json.loads((tmp_path / "new.json").read_text()) == printed
    assert CalibrationStats.load(tmp_path / "new.json").to_json() == printed


def test_what_is_converted_decides_as_its_source(tmp_path: Path, invoke: Invoke) -> None:
    """A checkpoint attached, and the statistics that were made of it, give the same bytes of a model."""
    path, raw = _checkpoint(tmp_path), hosts.write(hosts.score_and_map(), tmp_path / "raw.onnx")
    assert invoke("stats", "convert", path, "-o", tmp_path / "new.json").exit_code == 0
    for name, given in (("a.onnx", path), ("b.onnx", tmp_path / "new.json")):
        assert invoke("attach", raw, "--stats", given, "-o", tmp_path / name).exit_code == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_an_attached_model_gives_its_decision(tmp_path: Path, invoke: Invoke) -> None:
    """Attached to the raw model again, its statistics decide as it does."""
    path = _attached(tmp_path)
    assert invoke("stats", "convert", path, "-o", tmp_path / "new.json").exit_code == 0
    again = attach_postprocessing(tmp_path / "raw.onnx", tmp_path / "new.json", output=tmp_path / "again.onnx")
    assert again.record.options.image_sensitivity == pytest.approx(0.3)
    assert again.record.stats.image is not None
    assert (again.record.stats.image.policy, again.record.stats.image.n_normal) == ("f1", 3)


def test_a_finished_export_of_anomalib_says_what_stands_in_it(invoke: Invoke) -> None:
    """Threshold and span are read back, and that the range is not in it is told."""
    path = Path(__file__).parents[1] / "data" / "postprocessor_only" / "262_default_legacy.onnx"
    shown = invoke("stats", "show", path)
    assert shown.exit_code == 0, shown.stderr
    assert "comparison gt" in shown.stdout
    assert "note     min and max are not in the model" in shown.stdout


def test_what_cannot_be_done_is_one_message(tmp_path: Path, invoke: Invoke) -> None:
    """Exit code 2, with the command that works; nothing is written, and no source is replaced."""
    path, raw = _statistics(tmp_path), hosts.write(hosts.score_and_map(), tmp_path / "raw.onnx")
    before = {each: each.read_bytes() for each in tmp_path.iterdir()}
    for words, message in (
        (("stats", "convert", path), "--output is required\n(.*\n)*.*stats convert .* -o stats.json"),
        (("stats", "show", path, "-o", tmp_path / "x.json"), "--output would have no effect"),
        (
            ("stats", "print", path),
            "postproc-export stats print\n  needed:  show or convert\n  fix:     such as postproc-export stats convert",
        ),
        (("stats", "convert", path, "-o", path), "it is the file that is read"),
        (("stats", "show", raw), "raw.onnx has no post-processing"),
        (("attach", raw, "--stats", raw), "fix:     `postproc-export stats convert .*raw.onnx -o stats.json`"),
    ):
        result = invoke(*words)
        assert (result.exit_code, result.stdout) == (2, "")
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(result.stderr)
    assert {each: each.read_bytes() for each in tmp_path.iterdir()} == before


NUMBERS = (5, None, True, "x", [], [5], {}, [{}], 1e99)
DETAILS = (
    *("at_threshold", "threshold_interval", "auroc", "average_precision", "policies", "range", "extremes", "curve"),
    *("sensitivities", "read_from", "model", "runtime", "samples", "preprocessing"),
)


@pytest.mark.parametrize("number", NUMBERS)
def test_details_of_another_form_are_left_out(number: object, tmp_path: Path, invoke: Invoke) -> None:
    """They decide nothing, and what does is shown: of a statistics file and of a model that holds the same."""
    raw, file = hosts.write(hosts.score_and_map(), tmp_path / "raw.onnx"), tmp_path / "stats.json"
    deep = dict.fromkeys(("notes", "low", "high", "min", "max", "f1", "threshold", "policy", "digest"), number)
    for detail in (number, deep, [{**deep, "threshold": None, "reachable": {**deep, "precision": number}}]):
        details = dict.fromkeys(DETAILS, detail)
        level = {"threshold": 1.5, "min": 0.5, "max": 3.0, **details}
        file.write_text(json.dumps({"schema_version": 1, "image": level, **details}))
        attach_postprocessing(raw, CalibrationStats.load(file), output=tmp_path / "a.onnx")
        for source in (file, tmp_path / "a.onnx"):
            result = invoke("stats", "show", source)
            assert (result.exit_code, "1.5" in result.stdout) == (0, True), (source, detail, result.stderr)
