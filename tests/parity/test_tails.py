"""Files with custom steps, under `check`: sound ones pass at every opset, planted faults are named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import own_tails
import pytest
import torch
from checks import check_briefly
from onnx import TensorProto, numpy_helper
from shipped_tails import IMAGE, PIXEL, images, stats_behind

from postproc_export import CalibrationStats, attach_postprocessing
from postproc_export.check import ParityReport
from postproc_export.errors import MetadataError, UnsupportedModelError, UsageError
from postproc_export.steps import user_export

FED = {"input": images((4, 3, 20, 24))}
TAILS = {
    "gaussian": ["gaussian:sigma=1"],
    "top-k": ["top-k:k=5"],
    "resize": ["resize:height=9,width=31"],
    "thresholds": ["thresholds:file=thresholds.npy"],
    "negate": ["negate"],
    "gate": ["gate"],
    "points": ["points:strict=0.3,all=1,none=0"],
    "chain": [
        *("gaussian:sigma=1", "top-k:k=5", "resize", "thresholds:file=thresholds.npy", "negate:level=pixel"),
        *("gate", "points:strict=0.3"),
    ],
}


def checked(path: Path, **options: Any) -> ParityReport:
    """Check a file on few values in every runtime."""
    return check_briefly(path, runtimes=(), **options)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with thresholds, which is the working directory."""
    np.save(tmp_path / "thresholds.npy", np.random.default_rng(0).normal(size=(1, 1)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder: Path, kind: str, host: onnx.ModelProto) -> Path:
    """Write a host in a format."""
    return hosts.write(host, folder / f"m.{kind}")


def attached(folder: Path, tails: list[str], *, kind: str = "onnx", **host: Any) -> tuple[Path, Path]:
    """Return a raw file and the one that was attached to it."""
    raw = written(folder, kind, hosts.score_and_map(**host))
    stats = stats_behind(tails) if "own" not in tails[0] else stats_of_own(tails[0])
    return raw, attach_postprocessing(raw, stats, tail=tails).output


def stats_of_own(name: str) -> CalibrationStats:
    """Return statistics behind a class of one's own."""
    return CalibrationStats(image=IMAGE, pixel=PIXEL, details={"tail": [{"name": name, "parameters": {}}]})


ONE_EACH = zip(TAILS, [11, 14, 18, 11, 14, 18, 11, 14], strict=True)  # the chain, which is last, holds all of them


@pytest.mark.parametrize(
    ("name", "opset"),
    [("chain", 11), ("chain", 18), *(pytest.param(*each, marks=pytest.mark.slow) for each in ONE_EACH)],
)
def test_every_shipped_tail_passes_at_every_opset(name: str, opset: int, folder: Path) -> None:
    """Eager, ONNX Runtime and OpenVINO agree, NaN stays anomalous, and nothing besides the tails differs."""
    raw, path = attached(folder, TAILS[name], opset=opset)
    # all of them in one file; a step alone in one runtime
    whole: dict[str, Any] = {"raw": raw, "inputs": FED, "runtimes": ()} if name == "chain" else {}
    report = check_briefly(path, preserved=raw, **whole)
    assert report, report.describe()
    names = {check.subject for check in report.checks if check.judged}
    before = [tail for tail in TAILS[name] if not tail.startswith(("gate", "points"))]
    assert any(each.startswith("transform/") for each in names) is bool(before)
    assert ("transform/nan" in names) is bool(before)
    assert any(each.startswith("whole/transform/") for each in names) is bool(whole)
    for tail, output in (("gate", "pred_mask"), ("points:strict", "pred_label_strict")):
        is_there = any(each.startswith(tail) for each in TAILS[name])
        assert (f"decision/{output}" in names) is is_there
        assert (f"whole/decision/{output}" in names) is bool(whole)


def test_every_shipped_tail_passes_in_an_ir(folder: Path) -> None:
    """The same of an OpenVINO IR."""
    raw, path = attached(folder, TAILS["chain"], kind="xml")
    report = checked(path, raw=raw, inputs=FED, preserved=raw)
    assert report, report.describe()


@pytest.mark.parametrize(
    "host",
    [{"dynamic": False, "size": (20, 24), "batch": 2}, {"dtype": "float16", "opset": 14, "names": ("s", "heat")}],
    ids=["static", "half"],
)
def test_hosts_of_every_form_pass(host: dict[str, Any], folder: Path) -> None:
    """Fixed sizes and a fixed batch, and another element type."""
    raw, path = attached(folder, TAILS["chain"], **host)
    report = check_briefly(path, inputs=FED, preserved=raw)
    assert report, report.describe()


def test_a_model_with_a_map_only_passes(folder: Path) -> None:
    """Its score is one that the transform makes; the raw file has none to compare with."""
    raw = hosts.write(hosts.map_only(), folder / "m.onnx")
    path = attach_postprocessing(raw, stats_behind(["top-k:k=5"]), tail="top-k:k=5").output
    report = check_briefly(path, raw=raw, inputs=FED, preserved=raw)
    assert report, report.describe()


@pytest.mark.parametrize(
    ("kind", "tails", "options"),
    [
        ("xml", ["top-k:k=5", "gate"], {"adjustable": "sensitivity"}),
        ("xml", ["top-k:k=5", "gate"], {"adjustable": "boundary", "as_parameters": True}),
        ("onnx", ["gaussian:sigma=1"], {"layout": "packed"}),
    ],
    ids=["variables", "parameters", "packed"],
)
def test_tails_of_every_form_pass(kind: str, tails: list[str], options: dict[str, Any], folder: Path) -> None:
    """Adjusted at run time, and laid into one output."""
    raw = written(folder, kind, hosts.score_and_map())
    report = checked(attach_postprocessing(raw, stats_behind(tails), tail=tails, **options).output, preserved=raw)
    assert report, report.describe()


def test_a_level_that_is_transformed_and_left_raw_passes(folder: Path) -> None:
    """The map has no tail, and is the transform's all the same."""
    raw = written(folder, "onnx", hosts.score_and_map())
    path = attach_postprocessing(raw, stats_behind(TAILS["gaussian"]), tail=TAILS["gaussian"], levels="image").output
    report = check_briefly(path, raw=raw, inputs=FED, preserved=raw)
    assert report, report.describe()


def test_thresholds_per_channel_pass(folder: Path) -> None:
    """A map of three channels, each with a threshold of its own; none of them is a class of the model's."""
    np.save(folder / "channels.npy", np.array([0.25, -0.5, 1.0]))
    raw = hosts.write(hosts.identity(map="N,3,H,W"), folder / "m.onnx")
    tails = ["thresholds:file=channels.npy"]
    path = attach_postprocessing(raw, stats_behind(tails), tail=tails).output
    fed = {"score": images((4, 1)), "map": images((4, 3, 6, 5))}
    report = check_briefly(path, raw=raw, inputs=fed, preserved=raw)
    assert report, report.describe()


class Net(torch.nn.Module):
    """The detector of `hosts.score_and_map` in PyTorch."""

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return score and map."""
        weights = torch.tensor(hosts.CHANNEL_WEIGHTS).reshape(1, 3, 1, 1)
        anomaly_map = (image * weights).sum(dim=1, keepdim=True) + hosts.BIAS
        return {"pred_score": anomaly_map.amax(dim=(2, 3)), "anomaly_map": anomaly_map}


def test_a_pytorch_model_is_transformed_as_well(folder: Path) -> None:
    """With `--torch` the twin stands behind the module; a module without it would decide otherwise."""
    raw, path = attached(folder, TAILS["gaussian"])
    report = check_briefly(path, raw=raw, inputs=FED, torch=Net())
    assert report, report.describe()
    assert any(check.subject == "whole/torch/anomaly_map" for check in report.checks)


@pytest.mark.parametrize("kind", ["onnx", pytest.param("xml", marks=pytest.mark.slow)])
def test_a_class_of_one_s_own_passes(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found again by its name, and run eagerly on what it reads in the same compiled model."""
    monkeypatch.setattr(user_export, "OPSET", 14)  # by the exporter that takes milliseconds
    raw, path = attached(folder, ["own_tails:Weighted", "gate"], kind=kind, opset=14)
    report = checked(path, inputs=FED, preserved=raw, tail=["own_tails:Weighted", "gate"])
    assert report, report.describe()
    assert any(check.subject == "whole/transform/pred_score" for check in report.checks)


@pytest.mark.parametrize("kind", ["onnx", "xml"])
def test_a_class_that_the_file_alone_names_is_not_run(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be judged without it is judged; what needs it is not checked, and the option that names it is told."""
    monkeypatch.setattr(user_export, "OPSET", 14)
    raw, path = attached(folder, ["own_tails:Weighted", "gate"], kind=kind, opset=14)
    monkeypatch.delattr(own_tails, "Weighted")
    report = check_briefly(path, raw=raw, inputs=FED, preserved=raw, torch=Net())
    assert report, report.describe()
    groups = {check.subject.rpartition("/")[0] for check in report.checks}
    assert {"constants", "tail", "whole/tapped", "decision", "whole/decision"} <= groups
    assert not groups & {"transform", "whole/transform", "whole/raw", "whole/torch"}
    told = [sentence for sentence in report.not_checked if "--step own_tails:Weighted" in sentence]
    for what in ("the class 'own_tails:Weighted'", "the raw file run apart", "the PyTorch model"):
        assert any(what in sentence for sentence in told), told


@pytest.mark.parametrize(
    ("recorded", "named", "found"),
    [
        (["own_tails:Weighted"], "own_tails:Halved", "recorded: own_tails:Weighted"),
        (["own_tails:Weighted"], "os:abort", "recorded: own_tails:Weighted"),
        (["own_tails:Weighted"], "gaussian:sigma=1", "recorded: own_tails:Weighted"),
        (["gaussian:sigma=1"], "own_tails:Weighted", "recorded: gaussian:sigma=1.0"),
        (["gaussian:sigma=1"], "gaussian:sigma=2", "recorded: gaussian:sigma=1.0"),
        (["points:strict=0.3"], "points:strict=0.4", "recorded: points:strict=0.3"),
        (["gate"], "os:abort", "recorded: gate"),
        ([], "os:abort", "recorded: none"),
    ],
)
def test_a_name_that_the_file_does_not_record_is_refused(
    recorded: list[str], named: str, found: str, folder: Path
) -> None:
    """Before anything is imported, with what is recorded; whichever of the two is a class."""
    if recorded:
        _, path = attached(folder, recorded, opset=14)
    else:
        raw = written(folder, "onnx", hosts.score_and_map())
        path = attach_postprocessing(raw, CalibrationStats(image=IMAGE, pixel=PIXEL)).output
    with pytest.raises(UsageError, match=f"the step '{named}' is not the one that") as caught:
        check_briefly(path, tail=named)
    assert caught.value.found == found


@pytest.mark.parametrize(  # the chain holds all of them
    "name", [pytest.param(name, marks=() if name in ("gaussian", "chain") else pytest.mark.slow) for name in TAILS]
)
def test_naming_what_a_file_records_changes_nothing(name: str, folder: Path) -> None:
    """A shipped tail is equal by what its parameters mean, however they are written."""
    _, path = attached(folder, TAILS[name])
    given = [text.replace("sigma=1", "sigma=1.0").replace("strict=0.3", "strict=.30") for text in TAILS[name]]
    assert check_briefly(path, tail=given).to_json()["checks"] == check_briefly(path).to_json()["checks"]


LYING = [
    ("transform", [{"name": "gaussian", "parameters": {"sigma": 1}}, {"name": "os:abort"}]),
    ("transform", [{"name": "os"}]),
    ("transform", [{"name": "gate"}]),
    ("transform", [{"name": "thresholds", "parameters": {"file": "thresholds.npy"}}]),
    ("decision", [{"name": "os:abort"}]),
    ("decision", [{"name": "gate"}, {"name": "os:abort"}]),
]


@pytest.mark.parametrize(("layer", "tails"), LYING)
def test_a_record_that_names_what_cannot_stand_there_is_refused(
    layer: str, tails: list[dict[str, Any]], folder: Path
) -> None:
    """Neither ignored nor run nor a traceback."""
    _, path = attached(folder, ["gaussian:sigma=1", "gate"])
    model = onnx.load(path)
    entry = next(entry for entry in model.metadata_props if entry.key == f"postproc_export_{layer}")
    entry.value = json.dumps({**json.loads(entry.value), "tails": tails})
    onnx.save(model, path)
    with pytest.raises(MetadataError, match=r"cannot stand|names a file"):
        check_briefly(path)


def test_a_class_that_changed_since_is_a_miss(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the file computes is not what the class of this name computes now."""
    _, path = attached(folder, ["own_tails:Weighted"], opset=14)
    monkeypatch.setattr(own_tails, "Weighted", own_tails.OfTheMap)
    report = check_briefly(path, tail="own_tails:Weighted")
    assert "transform/pred_score" in {check.subject for check in report.failed}


def test_a_class_that_is_gone_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it there is nothing to compare with."""
    _, path = attached(folder, ["own_tails:Weighted"], opset=14)
    monkeypatch.delattr(own_tails, "Weighted")
    with pytest.raises(UsageError, match="a custom step"):
        check_briefly(path, tail="own_tails:Weighted")


class Classes(Net):
    """The detector of `hosts.draem` in PyTorch."""

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return a score and a map of two classes."""
        maps = super().forward(image)["anomaly_map"]
        probabilities = torch.softmax(torch.cat([-maps, maps], dim=1), dim=1)
        return {"score": probabilities.amax(dim=(2, 3)), "probabilities": probabilities}


@pytest.mark.parametrize("kind", ["onnx", "xml"])
def test_one_of_two_classes_passes(kind: str, folder: Path) -> None:
    """Cut out, in the whole file, behind the raw file and behind a PyTorch model with classes of its own."""
    raw = written(folder, kind, hosts.draem())
    steps = ["channel:index=1,level=image", "channel:index=1,axis=second,level=pixel"]
    path = attach_postprocessing(raw, stats_behind(steps), step="channel:index=1").output
    fed = {"input": images((4, 3, 32, 32)) / 2}
    report = checked(path, raw=raw, inputs=fed, preserved=raw, torch=Classes(), step="channel:index=1")
    assert report, report.describe()
    subjects = {check.subject for check in report.checks}
    assert {"transform/pred_score", "transform/anomaly_map", "whole/transform/anomaly_map"} <= subjects
    assert {"whole/raw/pred_mask", "whole/torch/pred_mask", "transform/nan"} <= subjects


Fault = Callable[[onnx.ModelProto], None]


def weights_off(model: onnx.ModelProto) -> None:
    """One weight of the kernel is 1 % off."""
    tensor = next(item for item in model.graph.initializer if item.name.endswith("/weights"))
    values = numpy_helper.to_array(tensor).copy()
    values.ravel()[4] *= 1.01
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def other_channel(model: onnx.ModelProto) -> None:
    """It takes the channel before."""
    for tensor in model.graph.initializer:
        if tensor.name.endswith(("/first", "/end")):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) - 1, tensor.name))


def point_off(model: onnx.ModelProto) -> None:
    """A point's boundary is one float32 further."""
    tensor = next(item for item in model.graph.initializer if "pred_label_strict" in item.name)
    assert tensor.data_type == TensorProto.FLOAT
    values = np.nextafter(numpy_helper.to_array(tensor), np.float32(np.inf), dtype=np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def gate_open(model: onnx.ModelProto) -> None:
    """The gate gives the mask as it is."""
    node = next(item for item in model.graph.node if item.output[0] == "pred_mask")
    node.op_type = "Or"


@pytest.mark.parametrize(
    ("tails", "fault", "subject"),
    [
        (["gaussian:sigma=1"], weights_off, "transform/anomaly_map"),
        (["points:strict=0.3"], point_off, "decision/pred_label_strict"),
        (["gate"], gate_open, "decision/pred_mask"),
    ],
    ids=["weight", "point", "gate"],
)
def test_planted_faults_are_missed_in_every_runtime(tails: list[str], fault: Fault, subject: str, folder: Path) -> None:
    """The check names the output, and the tail itself is found sound."""
    _, path = attached(folder, tails)
    model = onnx.load(path)
    fault(model)
    onnx.save(model, path)
    report = checked(path)
    assert {check.way for check in report.failed if check.subject == subject} == {
        "onnxruntime",
        "onnxruntime-unoptimised",
        "openvino",
    }
    assert {check.subject.removeprefix("synthetic/") for check in report.failed} == {subject}


@pytest.mark.parametrize(
    ("host", "step"),
    [
        ({"map": "N,2,H,W"}, "channel:index=1,axis=second,level=pixel"),
        ({"map": "2,H,W,3"}, "channel:index=2,axis=last,level=pixel"),
        ({"score": "N,C"}, "channel:index=3,level=image"),
    ],
    ids=["map", "channel-last", "score"],
)
def test_another_channel_is_missed(host: dict[str, Any], step: str, folder: Path) -> None:
    """None of the channels that are fed is like another, whatever the batch."""
    host = {"score": "2" if host.get("map") == "2,H,W,3" else "N", **host}
    raw = hosts.write(hosts.identity(**host), folder / "m.onnx")
    path = attach_postprocessing(raw, stats_behind([step]), step=step).output
    assert check_briefly(path)
    model = onnx.load(path)
    other_channel(model)
    onnx.save(model, path)
    subject = "transform/pred_score" if "image" in step else "transform/anomaly_map"
    assert subject in {check.subject for check in check_briefly(path).failed}


def test_a_channel_that_the_record_alone_has_is_a_failure(folder: Path) -> None:
    """No traceback comes of a record that lies."""
    raw = hosts.write(hosts.identity(map="N,2,H,W"), folder / "m.onnx")
    step = "channel:index=1,axis=second,level=pixel"
    path = attach_postprocessing(raw, stats_behind([step]), step=step).output
    model = onnx.load(path)
    for item in model.metadata_props:
        item.value = item.value.replace('"index":1', '"index":7')
    onnx.save(model, path)
    with pytest.raises(UnsupportedModelError, match="the recorded steps do not run on raw values"):
        check_briefly(path)


def test_a_nan_that_is_lost_is_a_miss(folder: Path) -> None:
    """A resized map that forgets it: some images with a NaN come out normal."""
    _, path = attached(folder, ["resize:height=2,width=2"])
    model = onnx.load(path)
    node = next(item for item in model.graph.node if "transform" in item.name and item.op_type == "Where")
    node.input[1] = node.input[2]  # the number is taken in either case
    onnx.save(model, path)
    missed = {check.subject: check.message for check in check_briefly(path).failed}
    assert "normal though a NaN came in, fed [3, 1, 33, 40]" in missed["transform/nan"]
