"""Records of custom steps that lie, and hosts whose nodes are called as theirs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hosts
import onnx
import openvino
import pytest
from checks import runtime_of

from postproc_export.attach import attach_postprocessing
from postproc_export.cli import main
from postproc_export.detach import detach_postprocessing
from postproc_export.errors import MetadataError
from postproc_export.record import KEYS, Where
from postproc_export.stats import CalibrationStats, LevelStats

LEVELS = {"image": LevelStats(threshold=0.5, min=0.0, max=2.0), "pixel": LevelStats(threshold=0.25, min=-1.0, max=1.0)}
TAILS: dict[Where, str] = {"transform": "gaussian:sigma=1", "decision": "gate"}
Lie = Callable[[dict[str, Any]], object]


def original(key: str, value: object) -> Lie:
    """Return a lie about the original."""
    return lambda record: record["original"].update({key: value})


LIES: dict[str, Lie] = {
    "renamed_a_list": original("renamed", ["pred_score"]),
    "renamed_no_text": original("renamed", {"anomaly_map": 3}),
    "renamed_onto_the_input": original("renamed", {"anomaly_map": "input"}),
    "renamed_what_it_has_not_taken": original("renamed", {"input": "input_before_transform"}),
    "outputs_none": lambda record: record["original"].update(outputs=[], results=[]),
    "outputs_no_list": lambda record: record["original"].update(outputs="x", results="x"),
    "outputs_no_text": lambda record: record["original"].update(outputs=[1], results=[1]),
    "reads_nothing_of_the_model": lambda record: record["read"].update(map="ghost"),
    "made_the_input": lambda record: record["made"].update(anomaly_map="input"),
    "made_nothing_of_the_model": lambda record: record["made"].update(ghost="ghost"),
    "tails_of_the_wrong_kind": lambda record: record.update(tails=[3]),
}


def attached(folder: Path, layer: Where, suffix: str, model: onnx.ModelProto | None = None) -> tuple[Path, Path]:
    """Attach with a custom step; return host and file."""
    model = hosts.score_and_map() if model is None else model
    host, path = folder / f"host{suffix}", folder / f"attached{suffix}"
    hosts.write(model, host)
    tails = [{"name": "gaussian", "parameters": {"sigma": 1.0}}] if layer == "transform" else []
    stats = CalibrationStats(**LEVELS, details={"tail": tails} if tails else {})
    attach_postprocessing(host, stats, output=path, tail=TAILS[layer])
    return host, path


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize("layer", TAILS)
def test_a_record_of_a_layer_that_lies_is_not_acted_on(lie: Lie, suffix: str, layer: Where, tmp_path: Path) -> None:
    """Nothing is written, and one message says why."""
    _, path = attached(tmp_path, layer, suffix)
    if suffix == ".onnx":
        model = onnx.load(path)
        entry = next(item for item in model.metadata_props if item.key == KEYS[layer])
        record = json.loads(entry.value)
        lie(record)
        entry.value = json.dumps(record)
        onnx.save(model, path)
    else:
        read = openvino.Core().read_model(path)
        record = json.loads(read.get_rt_info([KEYS[layer]]).astype(str))
        lie(record)
        read.set_rt_info(json.dumps(record), KEYS[layer])
        path = tmp_path / "lying.xml"
        openvino.save_model(read, path, compress_to_fp16=False)
    with pytest.raises(MetadataError):
        detach_postprocessing(path, output=tmp_path / f"out{suffix}")
    assert not (tmp_path / f"out{suffix}").exists()
    assert main(["check", str(path), "--runtime", runtime_of(path)]) != 0
    assert main(["inspect", str(path)]) in (0, 2)


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize("layer", TAILS)
def test_nodes_of_the_host_may_be_called_as_those_of_a_layer(suffix: str, layer: Where, tmp_path: Path) -> None:
    """Only what the layer made goes; the original comes back."""
    model = hosts.score_and_map()
    for index, node in enumerate(model.graph.node):
        node.name = f"postproc/{layer}/anomaly_map/{('conv', 'pad', 'result', 'mul')[index % 4]}_{index}"
    host, path = attached(tmp_path, layer, suffix, model)
    result = detach_postprocessing(path, output=tmp_path / f"out{suffix}")
    assert (tmp_path / f"out{suffix}").read_bytes() == host.read_bytes()
    assert result.is_original
