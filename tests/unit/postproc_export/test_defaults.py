"""`inspect --defaults`: what it says that attaching with no options would do is what attaching does."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hosts
import onnx
import pytest
from tail_forms import STATS, attached

from postproc_export import attach_postprocessing, inspect_model
from postproc_export.runtimes import open_runner

CASES: dict[str, tuple[Callable[[], onnx.ModelProto], dict[str, str]]] = {
    "by-name": (
        hosts.score_and_map,
        {"image score": "its name says so", "anomaly map": "its name says so", "guard": "ONNX from opset 9 on"},
    ),
    "by-rank": (
        lambda: hosts.score_and_map(names=("first", "second")),
        {"image score": "the only output of such a type and shape", "anomaly map": "the only output of such a type"},
    ),
    "map-only": (hosts.map_only, {"image score": "no output can be an image score"}),
    "score-only": (hosts.score_only, {"anomaly map": "no output can be an anomaly map", "guard": "has no map"}),
    "float16": (
        lambda: hosts.score_and_map(dtype="float16"),
        {"computed in": "raw outputs are float16 and are cast first"},
    ),
    "opset-8": (lambda: hosts.score_and_map(opset=8), {"guard": "opsets 7 and 8, and OpenCV, have no IsNaN"}),
}


def defaults_of(path: Path) -> Mapping[str, Any]:
    """Return what is said of a file."""
    found = inspect_model(path, defaults=True).defaults
    assert found is not None
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_choices_are_told_with_their_reasons(name: str, tmp_path: Path) -> None:
    """By name or by rank, what is missing, what is cast, how NaN is found."""
    host, expected = CASES[name]
    found = defaults_of(hosts.write(host(), tmp_path / "model.onnx"))
    assert found["refused"] is None
    reasons = {item["what"]: item["why"] for item in found["choices"]}
    for what, why in expected.items():
        assert why in reasons[what]


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "ir"])
@pytest.mark.parametrize("name", ["by-name", "by-rank", "map-only", "float16"])
def test_what_is_told_is_what_happens(name: str, ir: bool, tmp_path: Path) -> None:
    """Outputs, their types and shapes, renamings and the path are those that attaching gives."""
    host = CASES[name][0]()
    raw = hosts.raw_file(host, tmp_path, ir=ir)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    choices = defaults_of(raw)["choices"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    result = attach_postprocessing(raw, STATS)
    told = {item["what"]: item["chosen"] for item in choices}
    assert told["outputs"] == "; ".join(port.describe() for port in open_runner(result.output).outputs)
    assert told["written to"] == str(result.output)
    renamed = [item["chosen"] for item in choices if item["what"] == "renamed"]
    assert renamed == [f"'{old}' becomes '{new}' inside the model" for old, new in result.renamed.items()]
    assert told["mask type"] == ("uint8" if ir else "bool")


def test_other_outputs_are_told(tmp_path: Path) -> None:
    """What is neither score nor map is kept, and listed."""
    model = hosts.parse(
        "g (float[N,1] score) => (float[N,7] features, float[N,1] pred_score) "
        "<int64[2] r = {1, 7}> { features = Tile(score, r) pred_score = Identity(score) }"
    )
    found = defaults_of(hosts.write(model, tmp_path / "model.onnx"))
    assert {"kept": "features: float32 [N, 7]"}.items() <= {
        item["what"]: item["chosen"] for item in found["choices"]
    }.items()


def test_a_refusal_is_told(tmp_path: Path) -> None:
    """Two outputs that could be the score, or post-processing that is there: the reason in place of choices."""
    two = hosts.parse("g (float[N,1] x) => (float[N,1] a, float[N,1] b) { a = Neg(x) b = Identity(x) }")
    found = defaults_of(hosts.write(two, tmp_path / "two.onnx"))
    assert found["choices"] == []
    assert found["refused"] is not None
    assert found["refused"].startswith("2 outputs could be the image score: a, b")
    assert found["possible"] is False
    _, path = attached(hosts.score_and_map(), tmp_path, ir=False)
    result = inspect_model(path, defaults=True)
    assert "attach   would be refused: the model has post-processing already" in result.summary()
