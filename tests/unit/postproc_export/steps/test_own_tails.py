"""Classes of one's own before the tail: exported at the host's form, spliced, equal to their eager run, taken off."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import pytest
import torch

from postproc_export import CalibrationStats, attach_postprocessing, detach_postprocessing
from postproc_export.comparison import own
from postproc_export.formats.onnx import OnnxFormat
from postproc_export.formats.openvino import OpenVinoFormat
from postproc_export.record import PREFIXES, TailSpec
from postproc_export.runtimes import Array, RuntimeName, open_runner
from postproc_export.runtimes.openvino import openvino_core
from postproc_export.stats import LevelStats
from postproc_export.steps import user_export
from postproc_export.steps.user import eager_own

EITHER: dict[str, str | int | None] = {"image_output": None, "pixel_output": None}
HOSTS: dict[str, Callable[..., onnx.ModelProto]] = {
    "both": hosts.score_and_map,
    "map": hosts.map_only,
    "score": hosts.score_only,
}
SIZES = ((2, 3, 20, 24), (1, 3, 33, 17))
RUNTIMES: tuple[RuntimeName, ...] = ("onnxruntime", "openvino")


def spec(name: str) -> TailSpec:
    """Name a class of `own_tails`."""
    return TailSpec(f"own_tails:{name}", {})


def put(host: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Return an ONNX host with a class behind its raw outputs."""
    model = onnx.ModelProto.FromString(host.SerializeToString())
    user_export.put_own(OnnxFormat(), model, spec(name), EITHER)
    onnx.checker.check_model(model, full_check=True)
    assert b"own_tails.py" not in model.SerializeToString(), "exporters note where the class stands in the files"
    return model


def images(shape: tuple[int, ...]) -> Array:
    """Draw images whose raw outputs are exact."""
    return np.random.default_rng(0).integers(-512, 512, shape).astype(np.float32) / np.float32(256)


def assert_equal_to_eager(name: str, runner: Any, feeds: dict[str, Array], raw: dict[str, Array]) -> None:
    """Hold a model's outputs against the class' own run on the same raw values."""
    found = runner.run(feeds)
    tensors = {level: torch.from_numpy(values) for level, values in raw.items()}
    score, anomaly_map = eager_own(spec(name))(tensors.get("pred_score"), tensors.get("anomaly_map"))
    expected = {"pred_score": score, "anomaly_map": anomaly_map}
    assert {key for key, value in expected.items() if value is not None} == set(found)
    for key, values in found.items():
        wanted = expected[key].numpy()
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, wanted, rtol=0, atol=own(wanted.min(), wanted.max()).atol)


@pytest.mark.parametrize("levels", HOSTS)
@pytest.mark.parametrize("opset", [11, 18, pytest.param(14, marks=pytest.mark.slow)])
def test_onnx_gives_what_the_class_gives(opset: int, levels: str) -> None:
    """At every opset, in both runtimes and at every size the graph is the class; the opset stays; it comes off."""
    host = HOSTS[levels](opset=opset)
    model = put(host, "Weighted")
    assert list(model.opset_import) == list(host.opset_import)
    for shape in SIZES:
        feeds = {"input": images(shape)}
        expected = hosts.expected(feeds["input"])
        raw = {item.name: expected[item.name] for item in host.graph.output}
        for runtime in RUNTIMES:
            runner = open_runner(model.SerializeToString(), runtime=runtime)
            assert_equal_to_eager("Weighted", runner, feeds, raw)
    assert OnnxFormat().take(model, "transform", where="the model")
    assert model == host


@pytest.mark.parametrize(
    ("levels", "name", "opset"),
    [
        ("both", "Weighted", user_export.OPSET),
        ("score", "Branching", user_export.OPSET),
        ("map", "Weighted", 14),  # by the other exporter, which takes milliseconds
        ("score", "Weighted", 14),
        ("both", "OfTheMap", 14),
    ],
)
def test_an_ir_gives_what_the_class_gives(
    levels: str, name: str, opset: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a round through a file, too; and it comes off, also where the class does not read a raw output at all."""
    monkeypatch.setattr(user_export, "OPSET", opset)
    core, path = openvino_core(purpose="a test"), hosts.to_ir(HOSTS[levels](), tmp_path / "host.xml")
    host, model = core.read_model(path), core.read_model(path)
    user_export.put_own(OpenVinoFormat(), model, spec(name), EITHER)
    written = _saved(model, tmp_path / "own.xml")
    for shape in SIZES:
        feeds = {"input": images(shape)}
        expected = hosts.expected(feeds["input"])
        raw = {port.get_any_name(): expected[port.get_any_name()] for port in host.outputs}
        assert_equal_to_eager(name, open_runner(written), feeds, raw)
    again = core.read_model(written)
    assert OpenVinoFormat().take(again, "transform", where="the model")
    restored, kept = _saved(again, tmp_path / "restored.xml"), _saved(host, tmp_path / "kept.xml")
    for suffix in (".xml", ".bin"):
        assert restored.with_suffix(suffix).read_bytes() == kept.with_suffix(suffix).read_bytes()


def test_two_runs_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of what is spliced depend on nothing but the class and the host, in both formats."""
    core, path = openvino_core(purpose="a test"), hosts.to_ir(hosts.score_and_map(), tmp_path / "host.xml")
    monkeypatch.setattr(user_export, "OPSET", 14)  # by the exporter that takes milliseconds
    written: list[tuple[bytes, bytes]] = []
    for run in ("one", "two"):
        model = core.read_model(path)
        user_export.put_own(OpenVinoFormat(), model, spec("Halved"), EITHER)
        exported = put(hosts.score_and_map(opset=14), "Weighted").SerializeToString(deterministic=True)
        written.append((exported, _saved(model, tmp_path / f"{run}.xml").read_bytes()))
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("levels", "name", "shapes"),
    [
        pytest.param("both", "Tail", (["N", 1], ["N", 1, "H", "W"]), id="handed-on"),
        pytest.param("both", "built", (["N", 1], ["N", 1, "H", "W"]), id="factory"),
        pytest.param("both", "Halved", (["N", 1], ["N", 1, None, None]), id="named-tuple-half-the-size"),
        pytest.param("both", "Fixed", (["N", 1], ["N", 1, 24, 20]), id="dataclass-fixed-size"),
        pytest.param("map", "OfTheMap", (["N", 1, "H", "W"], ["N"]), id="dict-with-a-score-of-its-own"),
        pytest.param("both", "Shipped", (["N", 1], ["N", 1, "H", "W"]), id="calls-what-is-shipped"),
        pytest.param("both", "InFloat32", (["N", 1], ["N", 1, "H", "W"]), id="parameters"),
    ],
)
def test_axes_of_the_host_stay_dynamic(levels: str, name: str, shapes: tuple[list[Any], ...]) -> None:
    """An output declares the host's own axes where they stay, a fixed one where the class fixes it, and else none."""
    host = HOSTS[levels](opset=14)
    model = put(host, name)
    declared = [
        [axis.dim_param or axis.dim_value or None for axis in item.type.tensor_type.shape.dim]
        for item in model.graph.output
    ]
    assert declared == list(shapes)
    expected = hosts.expected(images(SIZES[0]))
    raw = {item.name: expected[item.name] for item in host.graph.output}
    assert_equal_to_eager(name, open_runner(model.SerializeToString()), {"input": images(SIZES[0])}, raw)
    OnnxFormat().take(model, "transform", where="the model")
    assert model == host


@pytest.mark.parametrize(
    "host",
    [
        pytest.param({"score": "N", "map": "N,H,W"}, id="flat"),
        pytest.param({"score": "3,1", "map": "3,1,12,16"}, id="static"),
        pytest.param({"score": "", "map": "1,1,H,W"}, id="one-image"),
        pytest.param({"score": "N,1", "map": "N,1,S,S"}, id="square"),
        pytest.param({"score": "N,1", "map": "N,1,H,W", "opset": 11, "ir_version": 3}, id="before-ir-version-4"),
        pytest.param({"score": "N,1", "map": "N,1,H,W", "names": ("s", "m")}, id="other-names"),
    ],
)
def test_a_class_is_exported_at_the_form_of_the_host(host: dict[str, Any]) -> None:
    """Ranks, fixed sizes and names are the host's; names that the splice would take stay the host's own."""
    model = put(hosts.identity(**{"opset": 14, **host}), "Weighted")
    shapes = {
        key: [{"N": 3, "H": 9, "W": 8, "S": 11}.get(axis, axis) for axis in _axes(host[key])]
        for key in ("score", "map")
    }
    generator = np.random.default_rng(1)
    feeds = {key: generator.random(tuple(map(int, shape)), np.float32) for key, shape in shapes.items()}
    found = open_runner(model.SerializeToString()).run(feeds)
    score, anomaly_map = eager_own(spec("Weighted"))(*map(torch.from_numpy, feeds.values()))
    for values, wanted in zip(found.values(), (score, anomaly_map), strict=True):
        np.testing.assert_allclose(values, wanted.numpy(), rtol=0, atol=1e-5)


def test_a_class_gets_the_element_types_of_the_host() -> None:
    """A host in float16 hands float16 to the class, whose result is rounded to float32 behind it."""
    model = put(hosts.score_and_map(opset=14, dtype="float16"), "InFloat32")
    raw = {key: values.astype(np.float16) for key, values in hosts.expected(images(SIZES[0])).items()}
    assert_equal_to_eager("InFloat32", open_runner(model.SerializeToString()), {"input": images(SIZES[0])}, raw)
    with pytest.raises(
        ValueError, match=r"does not run on pred_score: float16 \[2, 1\], anomaly_map: float16"
    ) as caught:
        put(hosts.score_and_map(opset=14, dtype="float16"), "Weighted")
    assert "let forward begin with pred_score.float()" in str(caught.value)
    with pytest.raises(ValueError, match=r"NOT_IMPLEMENTED(.|\n)*the model gives float64: let forward begin"):
        put(hosts.score_and_map(opset=14, dtype="double"), "Halved")


def test_names_that_are_taken_are_left_alone() -> None:
    """A value of the host that bears a name of the splice keeps it."""
    plain = put(hosts.map_only(opset=14), "Weighted")
    taken = [node.output[0] for node in plain.graph.node if node.name.startswith(PREFIXES["transform"])]
    host = hosts.map_only(opset=14)
    host.graph.node.append(onnx.helper.make_node("Identity", ["input"], [taken[0]]))
    model = put(host, "Weighted")
    outputs = [name for node in model.graph.node for name in node.output]
    assert len(set(outputs)) == len(outputs)
    OnnxFormat().take(model, "transform", where="the model")
    assert model == host


def test_a_level_that_is_left_out_is_none() -> None:
    """What the class is not given, and what it makes of the other, is not put into the model."""
    model = hosts.score_and_map(opset=14)
    record = user_export.put_own(OnnxFormat(), model, spec("OfTheMap"), {"image_output": "none", "pixel_output": None})
    assert record.made == {}
    assert [item.name for item in model.graph.output] == ["pred_score", "anomaly_map"]


@pytest.mark.parametrize("kind", ["onnx", "xml"])
def test_files_with_a_class_decide_and_come_off(kind: str, tmp_path: Path) -> None:
    """Labels are exact on the values behind the class, weights of a class go into the file, and the host comes back."""
    host = hosts.score_and_map(opset=18)
    source = hosts.write(host, tmp_path / f"m.{kind}")
    level = LevelStats(threshold=0.5, min=-1.0, max=2.0)
    stats = CalibrationStats(image=level, pixel=level, details={"tail": [spec("Large").to_json()]})
    result = attach_postprocessing(source, stats, output=tmp_path / f"o.{kind}", tail="own_tails:Large", keep_raw=True)
    assert "with     own_tails:Large" in result.summary()
    found = open_runner(result.output).run({"input": images((8, 3, 6, 6))})
    behind = next(values for name, values in found.items() if "pred_score" in name and name != "pred_score")
    np.testing.assert_array_equal(found["pred_label"], behind >= np.float32(0.5))
    back = detach_postprocessing(result.output, output=tmp_path / f"d.{kind}")
    assert back.output.read_bytes() == source.read_bytes()


def test_the_class_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example in docs/steps.md is found in the current folder, and gives what it says in a model of any opset."""
    text = (Path(__file__).parents[4] / "docs" / "steps.md").read_text(encoding="utf-8")
    (tmp_path / "own_tail.py").write_text(text.split("```python\n")[1].split("```")[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    named = TailSpec("own_tail:CentreWeighted", {})
    for levels in ("both", "map"):
        model = HOSTS[levels](opset=11)
        user_export.put_own(OnnxFormat(), model, named, EITHER)
        raw = hosts.expected(images(SIZES[0]))
        score = torch.from_numpy(raw["pred_score"]) if levels == "both" else None
        wanted, _ = eager_own(named)(score, torch.from_numpy(raw["anomaly_map"]))
        found = open_runner(model.SerializeToString()).run({"input": images(SIZES[0])})
        np.testing.assert_allclose(found["pred_score"], wanted.numpy(), rtol=0, atol=1e-5)


def _axes(shape: str) -> list[str]:
    return shape.split(",") if shape else []


def _saved(model: Any, path: Path) -> Path:
    from postproc_export.runtimes.openvino import import_openvino

    import_openvino(purpose="a test").save_model(model, path, compress_to_fp16=False)
    return path
