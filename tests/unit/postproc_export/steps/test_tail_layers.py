"""Custom steps in model files: put around the tail, shown, kept by an update, and taken off again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
import pytest
from shipped_tails import behind, images, stats_behind

from graph_patterns.expr import UnsupportedOpsetError
from postproc_export import (
    attach_postprocessing,
    attach_to_onnx,
    attach_to_openvino,
    detach_postprocessing,
    inspect_model,
    update_postprocessing,
)
from postproc_export.check.preserved_files import compare_files
from postproc_export.errors import PostprocError, UnsupportedModelError, UsageError
from postproc_export.formats.base import Outputs
from postproc_export.formats.onnx import OnnxFormat
from postproc_export.formats.openvino import OpenVinoFormat
from postproc_export.record import parse_tails
from postproc_export.runtimes import Array, open_runner
from postproc_export.runtimes.openvino import openvino_core, save_ir
from postproc_export.steps.around import put_before

EITHER: Outputs = {"image_output": None, "pixel_output": None}
EVERYTHING = ["gaussian:sigma=1", "top-k:k=5", "resize", "gate", "points:strict=0.3,loose=0.75"]
BEFORE = EVERYTHING[:3]
SIZES = ((2, 3, 20, 24), (1, 3, 3, 5), (1, 3, 1, 1))


def written(kind: str, folder: Path, host: onnx.ModelProto) -> Path:
    """Write a host in a format."""
    if kind == "onnx":
        return hosts.write(host, folder / "m.onnx")
    return hosts.to_ir(host, folder / "m.xml")


def contents(path: Path) -> list[bytes]:
    """Return the bytes of a model's files."""
    return [
        path.with_suffix(suffix).read_bytes() for suffix in ((".onnx",) if path.suffix == ".onnx" else (".xml", ".bin"))
    ]


def assert_equal(found: dict[str, Array], wanted: dict[str, Array]) -> None:
    """Compare values behind a transform with those of its twin; bounds are for `check`, this is far inside them."""
    assert set(found) == set(wanted)
    for name, values in wanted.items():
        assert found[name].shape == values.shape
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("opset", [*range(11, 22)])
def test_every_opset_gives_what_the_twins_give(opset: int) -> None:
    """From 11 on, the opset unchanged; maps smaller than the kernel, and of fewer pixels than k, are defined."""
    host = hosts.map_only(opset=opset, flat=bool(opset % 2))
    model = onnx.ModelProto.FromString(host.SerializeToString())
    put_before(OnnxFormat(), model, parse_tails(BEFORE), outputs=EITHER)
    onnx.checker.check_model(model, full_check=True)
    assert list(model.opset_import) == list(host.opset_import)
    runner = open_runner(model.SerializeToString())
    for shape in SIZES:
        fed = images(shape)
        raw = {"anomaly_map": hosts.expected(fed, flat=bool(opset % 2))["anomaly_map"]}
        assert_equal(runner.run({"input": fed}), behind(BEFORE, raw, size=shape[2:]))
    OnnxFormat().take(model, "transform", where="the model")
    assert model == host


def test_an_opset_below_is_refused() -> None:
    """Padding that is computed when the model runs needs opset 11; the operator and the opset are named."""
    model = hosts.map_only(opset=10, ir_version=5)
    with pytest.raises(UnsupportedOpsetError, match="cannot be expressed at opset 10") as caught:
        put_before(OnnxFormat(), model, parse_tails("gaussian:sigma=1"), outputs=EITHER)
    assert "needed:  opset 11 or later" in str(caught.value)


@pytest.mark.parametrize("flat", [False, True], ids=["rank-4", "rank-3"])
@pytest.mark.parametrize("tails", [["gaussian:sigma=1"], ["top-k:k=5"], ["resize:height=7,width=31"], BEFORE], ids=str)
def test_an_ir_gives_what_the_twins_give(tails: list[str], flat: bool) -> None:
    """With dynamic sizes, at any of them."""
    host = hosts.score_and_map(flat=flat)
    model = openvino_core(purpose="a test").read_model(host.SerializeToString())
    put_before(OpenVinoFormat(), model, parse_tails(tails), outputs=EITHER)
    runner = open_runner(model)
    for shape in SIZES:
        fed = images(shape)
        assert_equal(runner.run({"input": fed}), behind(tails, hosts.expected(fed, flat=flat), size=shape[2:]))


HOSTS: dict[str, Callable[[], onnx.ModelProto]] = {
    "dynamic": lambda: hosts.score_and_map(),
    "static": lambda: hosts.score_and_map(dynamic=False, size=(20, 24)),
    "map": lambda: hosts.map_only(name="heat"),
    "half": lambda: hosts.score_and_map(dtype="float16", opset=14, names=("s", "heat")),
    "old": lambda: hosts.score_and_map(opset=11, ir_version=5),
}


@pytest.mark.parametrize("kind", ["onnx", "xml"])
@pytest.mark.parametrize("host", HOSTS)
def test_detach_gives_the_original_back(host: str, kind: str, tmp_path: Path) -> None:
    """To the last byte, and two runs give the same bytes; nothing besides the tail differs meanwhile."""
    source = written(kind, tmp_path, HOSTS[host]())
    made = attach_postprocessing(source, stats_behind(EVERYTHING), tail=EVERYTHING, output=tmp_path / f"one.{kind}")
    attach_postprocessing(source, stats_behind(EVERYTHING), tail=EVERYTHING, output=tmp_path / f"two.{kind}")
    assert contents(made.output) == contents(tmp_path / f"two.{kind}")
    assert compare_files(source, made.output).changes == ()
    back = detach_postprocessing(made.output, output=tmp_path / f"back.{kind}")
    assert back.is_original
    assert "with     points:strict=0.3,loose=0.75" in back.summary()
    assert contents(back.output) == contents(source)


@pytest.mark.parametrize("kind", ["onnx", "xml"])
def test_an_output_that_another_tool_added_stays_when_steps_go(kind: str, tmp_path: Path) -> None:
    """As it does when the tail alone goes: it is told of, once, and the original is not claimed to be back."""
    source = written(kind, tmp_path, hosts.score_and_map())
    path = attach_postprocessing(source, stats_behind(EVERYTHING), tail=EVERYTHING).output
    if kind == "onnx":
        model = onnx.load(path)
        name = str(model.graph.node[0].output[0])
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        onnx.save(model, path)
    else:
        core = openvino_core(purpose="a test")
        read = core.read_model(path)
        body = next(node for node in read.get_ordered_ops() if node.get_type_name() not in ("Parameter", "Constant"))
        added = read.add_outputs([(body.get_friendly_name(), 0)])[0]
        name = added.get_node().get_friendly_name()
        path = tmp_path / "added.xml"
        save_ir(read, path, target=path)
    back = detach_postprocessing(path, output=tmp_path / f"back.{kind}")
    assert back.output is not None
    assert not back.is_original
    assert [note for note in back.notes if "stays" in note] == [
        f"the output '{name}', which the original did not have, stays"
    ]
    assert len(open_runner(back.output).outputs) == len(open_runner(source).outputs) + 1


@pytest.mark.parametrize("kind", ["onnx", "xml"])
def test_raw_outputs_that_are_kept_are_those_behind_the_transform(kind: str, tmp_path: Path) -> None:
    """They are what the threshold is compared with; the raw map that is not transformed stays the model's."""
    source = written(kind, tmp_path, hosts.score_and_map())
    made = attach_postprocessing(source, stats_behind(["top-k:k=5"]), tail="top-k:k=5", keep_raw=True)
    assert compare_files(source, made.output).changes == ()
    fed = images(SIZES[0])
    found = open_runner(made.output).run({"input": fed})
    wanted = behind(["top-k:k=5"], hosts.expected(fed), size=SIZES[0][2:])
    kept = {name.removesuffix("_raw"): found[name] for name in found if name.endswith("_raw")}
    assert_equal(kept, wanted)
    np.testing.assert_array_equal(found["pred_label"], kept["pred_score"] >= 0.5)


@pytest.mark.parametrize("kind", ["onnx", "xml"])
def test_a_file_tells_of_its_tails(kind: str, tmp_path: Path) -> None:
    """For people and for machines; the levels are those of the tail though a gate stands behind it."""
    source = written(kind, tmp_path, hosts.score_and_map())
    plain = inspect_model(attach_postprocessing(source, stats_behind([]), output=tmp_path / f"plain.{kind}").output)
    assert plain.to_json()["tails"] == {"before": [], "behind": []}
    made = attach_postprocessing(source, stats_behind(EVERYTHING), tail=EVERYTHING)
    found = inspect_model(made.output)
    assert found.levels == plain.levels
    assert "  before   gaussian:sigma=1.0, on the raw values" in found.summary()
    assert "  behind   gate, on the decisions above" in found.summary()
    assert found.to_json()["tails"] == {
        "before": [
            {"name": "gaussian", "parameters": {"sigma": 1.0}},
            {"name": "top-k", "parameters": {"k": 5}},
            {"name": "resize", "parameters": {}},
        ],
        "behind": [
            {"name": "gate", "parameters": {}},
            {"name": "points", "parameters": {"strict": 0.3, "loose": 0.75}},
        ],
    }


@pytest.mark.parametrize("kind", ["onnx", "xml"])
def test_an_update_keeps_what_stands_around(kind: str, tmp_path: Path) -> None:
    """The gate follows the new label; there and back gives the same bytes; the original still comes off."""
    source = written(kind, tmp_path, hosts.score_and_map())
    made = attach_postprocessing(source, stats_behind(EVERYTHING), tail=EVERYTHING)
    changed = update_postprocessing(made.output, output=tmp_path / f"u.{kind}", image_threshold=99.0)
    bright = {"input": images(SIZES[0]) + np.float32(3)}
    found = open_runner(changed.output).run(bright)
    assert not found["pred_label"].any()
    assert not found["pred_mask"].any()
    assert open_runner(made.output).run(bright)["pred_mask"].any()
    again = update_postprocessing(changed.output, stats=stats_behind(EVERYTHING), output=tmp_path / f"again.{kind}")
    assert contents(again.output) == contents(made.output)
    assert contents(detach_postprocessing(changed.output, output=tmp_path / f"d.{kind}").output) == contents(source)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stats": stats_behind([])}, "the statistics are not those behind this tail"),
        ({"layout": "packed"}, "needs labels of their own\n  found:   the results are packed"),
        ({"enable_thresholding": False}, "labels are switched off"),
        ({"adjustable": "sensitivity"}, "does not find what the label compares"),
    ],
    ids=["stats", "packed", "no-labels", "adjustable"],
)
def test_an_update_that_does_not_go_with_them_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """With the reason, and nothing is written."""
    source = hosts.write(hosts.score_and_map(), tmp_path / "m.onnx")
    made = attach_postprocessing(source, stats_behind(EVERYTHING), tail=EVERYTHING)
    with pytest.raises(PostprocError, match=message):
        update_postprocessing(made.output, output=tmp_path / "u.onnx", **changes)
    assert not (tmp_path / "u.onnx").exists()


@pytest.mark.parametrize(
    ("calibrated", "attached", "found", "needed"),
    [
        (["gaussian:sigma=1"], [], "behind --step gaussian:sigma=1.0", "on the raw outputs themselves"),
        ([], ["gaussian:sigma=1"], "on the raw outputs themselves", "behind --step gaussian:sigma=1.0"),
        (["gaussian:sigma=1"], ["gaussian:sigma=2"], "sigma=1.0", "sigma=2.0"),
        (["gaussian:sigma=1", "top-k:k=3"], ["top-k:k=3", "gaussian:sigma=1"], "gaussian", "--step top-k:k=3 --step"),
    ],
    ids=["none", "raw", "parameter", "order"],
)
def test_statistics_of_another_transform_are_refused(
    calibrated: list[str], attached: list[str], found: str, needed: str
) -> None:
    """In files and in memory; the model in memory stays as it was."""
    host = hosts.score_and_map()
    model = onnx.ModelProto.FromString(host.SerializeToString())
    with pytest.raises(UsageError, match="the statistics are not those behind this tail") as caught:
        attach_to_onnx(model, stats_behind(calibrated), tail=attached)
    assert found in str(caught.value.found)
    assert needed in str(caught.value.needed)
    assert model == host


def test_statistics_of_the_same_transform_are_taken_however_they_are_written() -> None:
    """What parameters mean is compared: 1 and 1.0, or the same table in other bytes."""
    stats = stats_behind(["gaussian:sigma=1.00"])
    stats.details["tail"][0]["parameters"]["sigma"] = 1
    assert attach_to_onnx(hosts.score_and_map(), stats, tail="gaussian:sigma=1.0")


@pytest.mark.parametrize(
    ("tails", "options", "message"),
    [
        (["gate", "gate"], {}, "'gate' is given twice"),
        (["gate:now=1"], {}, "'gate' has no parameters"),
        (["points"], {}, "names no operating point"),
        (["points:a=1.5"], {}, "'a' at 1.5: use 0 to 1"),
        (["points:a-b=0.5"], {}, "cannot name an output"),
        (["points:a=recall=0.5"], {}, "no threshold for 'recall=0.5'"),
        (["gate"], {"layout": "packed"}, "packed into one output"),
        (["gate"], {"levels": "image"}, "needs a label and a mask"),
        (["points:a=0.5"], {"levels": "pixel"}, "needs an image label"),
        (["own_tails:Weighted", "top-k:k=3"], {}, "cannot stand beside another tail"),
    ],
)
def test_tails_that_contradict_each_other_or_the_tail_are_refused(
    tails: list[str], options: dict[str, Any], message: str
) -> None:
    """With what was found; the model in memory stays as it was, in both formats."""
    host = hosts.score_and_map()
    model = onnx.ModelProto.FromString(host.SerializeToString())
    stats = stats_behind([tail for tail in tails if not tail.startswith(("own_tails", "top-k"))])
    with pytest.raises(PostprocError, match=message):
        attach_to_onnx(model, stats, tail=tails, **options)
    assert model == host
    ir = openvino_core(purpose="a test").read_model(host.SerializeToString())
    with pytest.raises(PostprocError, match=message):
        attach_to_openvino(ir, stats, tail=tails, **options)
    assert [port.get_any_name() for port in ir.outputs] == ["pred_score", "anomaly_map"]


def test_a_name_that_is_taken_is_refused() -> None:
    """A point's label may not hide an output that the model has."""
    host = hosts.score_and_map()
    host.graph.node.append(onnx.helper.make_node("Identity", ["pred_score"], ["pred_label_a"]))
    host.graph.output.append(onnx.helper.make_tensor_value_info("pred_label_a", onnx.TensorProto.FLOAT, ["N", 1]))
    with pytest.raises(UnsupportedModelError, match="pred_label_a"):
        attach_to_onnx(host, stats_behind([]), tail="points:a=0.5")


@pytest.mark.parametrize("tail", ["gate", "gaussian:sigma=1"])
def test_a_conversion_hides_what_came_off_before(tail: str, tmp_path: Path) -> None:
    """`inspect` still tells of it; `detach` says that the ONNX file is the one to take."""
    from postproc_export.runtimes.openvino import import_openvino

    source = hosts.write(hosts.score_and_map(), tmp_path / "m.onnx")
    made = attach_postprocessing(source, stats_behind([tail]), tail=tail)
    path = tmp_path / "converted.xml"
    model = openvino_core(purpose="a test").read_model(made.output)
    import_openvino(purpose="a test").save_model(model, path, compress_to_fp16=False)
    assert [spec.name for spec in (*inspect_model(path).before, *inspect_model(path).behind)] == [tail.split(":")[0]]
    with pytest.raises(UnsupportedModelError, match=r"was converted to OpenVINO(.|\n)*fix:     take the ONNX file"):
        detach_postprocessing(path, output=tmp_path / "d.xml")
    assert not (tmp_path / "d.xml").exists()
