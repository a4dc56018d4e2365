"""Every check runs the whole file: a file that cannot run is never passed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import hosts
import numpy as np
import onnx
import planted_onnx
import pytest
from checks import check_briefly
from onnx import TensorProto, helper, numpy_helper, parser

from postproc_export.attach import attach_postprocessing
from postproc_export.check import ParityReport, synthetic
from postproc_export.stats import CalibrationStats, LevelStats

BROKEN = Path(__file__).parents[1] / "data" / "broken"
STATS = CalibrationStats(
    image=LevelStats(threshold=0.2, min=-1.0, max=0.75), pixel=LevelStats(threshold=0.3, min=-0.25, max=0.625)
)
WEIGHT = "float[1,3,1,1] weight = {0.5, 0.25, 0.125}"
SCORE = "pred_score = ReduceMax <axes: ints = [1, 2, 3], keepdims: int = 0> (anomaly_map)"
ALL = {"onnxruntime", "onnxruntime-unoptimised", "openvino"}


def host(inputs: str, body: str, *, size: str = "8,8", constants: str = WEIGHT, domains: str = "") -> onnx.ModelProto:
    """Return a detector whose body gives `anomaly_map` [N,1,size] of `inputs`; a domain of one's own is not checked."""
    outputs = f"float[N] pred_score, float[N,1,{size}] anomaly_map"
    head = f'<ir_version: 8, opset_import: ["" : 17{domains}]>'
    return parser.parse_model(f"{head}\ng ({inputs}) => ({outputs}) <{constants}> {{ {body} {SCORE} }}")


attached = partial(hosts.attached, stats=STATS)


def checked(path: Path, **options: object) -> ParityReport:
    """Check with few raw values in every runtime."""
    return check_briefly(path, runtimes=(), **options)


def ways_that_miss(report: ParityReport, subject: str) -> set[str | None]:
    """Return the ways in which a subject was missed."""
    return {check.way for check in report.failed if check.subject == subject}


@pytest.mark.parametrize("name", ["guard_reads_state", "guard_mixes_images"])
def test_a_file_that_runs_at_no_batch_size_is_missed(name: str) -> None:
    """Attached by an earlier version, whose guard read a state for a map: no image or input is needed to see it."""
    report = checked(BROKEN / f"{name}.onnx")
    assert ways_that_miss(report, "synthetic/batch") == ALL
    runs = [check for check in report.failed if check.subject == "synthetic/batch"]
    assert all("postproc/pred_score/reshape" in check.message for check in runs)


def with_constant(model: onnx.ModelProto, name: str, values: list[int]) -> str:
    """Add a constant to a model and return its name."""
    model.graph.initializer.append(numpy_helper.from_array(np.array(values), name))
    return name


def frozen_height(model: onnx.ModelProto) -> None:
    """The mask is laid out at the first height and width that is tried, and at no other."""
    node = next(node for node in model.graph.node if "pred_mask" in node.output)
    node.output[0] = "postproc/mask"
    shape = with_constant(model, "postproc/shape", [-1, 1, 64, 96])
    model.graph.node.append(helper.make_node("Reshape", ["postproc/mask", shape], ["pred_mask"]))


@pytest.mark.parametrize(
    ("fault", "runs", "fails"),
    [
        pytest.param(planted_onnx.laid_out_for_one, "input [1, 3, 64, 96]", "input [3, 3, 128, 64]", id="batch-3"),
        pytest.param(frozen_height, "input [3, 3, 64, 96]", "input [1, 3, 128, 64]", id="another-size"),
    ],
)
@pytest.mark.parametrize("with_raw", [True, False], ids=["raw", "detached"])
def test_a_file_that_fails_at_some_sizes_alone_is_missed(
    fault: Callable[[onnx.ModelProto], None], runs: str, fails: str, with_raw: bool, tmp_path: Path
) -> None:
    """The sizes at which it fails are told, and those at which it runs are not among them."""
    raw, path = attached(hosts.score_and_map(), tmp_path)
    model = onnx.load(path)
    fault(model)
    onnx.save(model, path)
    report = checked(path, raw=raw if with_raw else None)
    assert ways_that_miss(report, "synthetic/batch") == ALL
    found = next(check for check in report.failed if check.subject == "synthetic/batch")
    assert fails in found.message
    assert runs not in found.message.partition(": ")[0]


def test_a_file_that_one_runtime_does_not_load_is_missed_beside_a_raw_file(tmp_path: Path) -> None:
    """An operator of ONNX Runtime's own in the tail: OpenVINO reads the raw file and not this one."""
    raw, path = attached(hosts.score_and_map(), tmp_path)
    model = onnx.load(path)
    axis = with_constant(model, "axis", [0])
    model.graph.initializer[-1].CopyFrom(numpy_helper.from_array(np.array(0, np.int32), axis))
    model.graph.node.append(helper.make_node("ExpandDims", ["pred_score", axis], ["more"], domain="com.microsoft"))
    model.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, None))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, path)
    assert ways_that_miss(checked(path, raw=raw), "synthetic/run") == {"openvino"}


def test_a_frozen_input_axis_is_missed_beside_its_raw_file(tmp_path: Path) -> None:
    """What the raw file takes the attached one has to take, inputs given or not."""
    raw, path = attached(hosts.score_and_map(), tmp_path)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, path)
    images = np.random.default_rng(1).random((3, 3, 8, 8), np.float32)
    for inputs in (None, {"input": images}):
        assert ways_that_miss(checked(path, raw=raw, inputs=inputs), "synthetic/batch") == ALL


@pytest.mark.parametrize("batch", [1, 2], ids=["at-1-alone", "at-2-alone"])
def test_sizes_at_which_the_original_fails_are_said_and_no_miss(batch: int, tmp_path: Path) -> None:
    """Some exports run at the batch size alone at which they were traced."""
    body = "m = Conv(input, weight) anomaly_map = Reshape(m, four)"
    model = host("float[N,3,8,8] input", body, constants=f"{WEIGHT}, int64[4] four = {{{batch}, 1, 8, 8}}")
    report = checked(attached(model, tmp_path)[1])
    assert report, report.describe()
    assert f"input [{batch}, 3, 8, 8]" in report.environment["synthetic"]
    said = next(line for line in report.not_checked if line.startswith("the whole file on synthetic inputs"))
    assert "openvino at input [3, 3, 8, 8]" in said
    assert "does not run either" in said


@pytest.mark.parametrize("kind", ["float", "float16", "bfloat16", "double", "uint8", "int8", "int32", "int64", "bool"])
def test_inputs_of_every_number_type_are_made_up(kind: str, tmp_path: Path) -> None:
    """Two sizes of each open axis at batch 1 and 3, compared with the reference and with the detached file."""
    body = "x = Cast <to: int = 1> (input) anomaly_map = Conv(x, weight)"
    report = checked(attached(host(f"{kind}[N,3,H,W] input", body, size="H,W"), tmp_path)[1])
    assert report, report.describe()
    fed = report.environment["synthetic"]
    assert all(f"input [{batch}, 3, {size}]" in fed for batch in (1, 3) for size in ("64, 96", "128, 64"))
    assert {check.way for check in report.checks if check.subject == "synthetic/tapped/pred_mask"} == ALL
    assert {check.way for check in report.checks if check.subject == "synthetic/raw/pred_mask"} == ALL


@pytest.mark.parametrize(
    ("inputs", "body", "domains", "reason"),
    [
        pytest.param(
            "float[N,3,8,8] input", "x = own.Op(input) anomaly_map = Conv(x, weight)", ', "own" : 1', "own:Op", id="op"
        ),
        pytest.param(
            "float[N,3,8,8] input, string[N] name",
            "s = Size(name) f = Cast <to: int = 1> (s) x = Mul(input, f) anomaly_map = Conv(x, weight)",
            "",
            "nobody can tell what to feed name: string [N]",
            id="string",
        ),
        pytest.param(
            "float[N,3,H,W] input",
            "m = Conv(input, weight) s = Constant <value_ints: ints = [-1, 1, 7, 13]> () anomaly_map = Reshape(m, s)",
            "",
            "runs at none of the sizes that were tried",
            id="sizes",
        ),
    ],
)
def test_what_cannot_be_fed_is_said_in_the_verdict(
    inputs: str, body: str, domains: str, reason: str, tmp_path: Path
) -> None:
    """The rest is judged; the verdict and the list of what was not checked name the reason."""
    raw = tmp_path / "raw.onnx"
    onnx.save(host(inputs, body, domains=domains), raw)
    report = check_briefly(attach_postprocessing(raw, STATS).output, runtimes=())
    assert report, report.describe()
    assert "but the file was not run as a whole" in report.headline()
    assert reason in report.headline()
    assert any(reason in line for line in report.not_checked)


def test_a_scalar_input_and_a_state_are_fed(tmp_path: Path) -> None:
    """An input declared [] gets one number; a symbol of the batch on another axis is the batch there, too."""
    body = "x = Mul(input, gain) anomaly_map = Conv(x, weight) next = Identity(state)"
    model = host("float[N,3,8,8] input, float[] gain, float[2,N,4] state", body)
    model.graph.output.append(helper.make_tensor_value_info("next", TensorProto.FLOAT, [2, "N", 4]))
    report = checked(attached(model, tmp_path)[1])
    assert report, report.describe()
    assert "input [3, 3, 8, 8], gain [], state [2, 3, 4]" in report.environment["synthetic"]


def test_open_channels_of_the_input_that_reach_a_packed_map_are_fed_as_one(tmp_path: Path) -> None:
    """The original runs with three channels as well, but then its map is none: that is no miss of the file."""
    graph = "host (float[N,C,H,W] x) => (float[N,C,H,W] anomaly_map) { anomaly_map = Abs(x) }"
    raw = hosts.write(hosts.parse(graph), tmp_path / "raw.onnx")
    path = attach_postprocessing(raw, STATS, layout="packed").output
    for report in (check_briefly(path), check_briefly(path, raw=raw)):
        assert report, report.describe()
        assert "x [3, 1, 128, 64]" in report.environment["synthetic"]


def test_a_scalar_score_beside_a_map_that_does_not_guard_it_is_judged(tmp_path: Path) -> None:
    """One score for all images and a map for each: where the map says nothing of the score it excuses nothing."""
    graph = "host (float[N,H,W] x) => (float score, float[N,H,W] heat)"
    body = " { heat = Abs(x)\nscore = ReduceMax <keepdims = 0> (x) }"
    raw = hosts.write(hosts.parse(graph + body), tmp_path / "raw.onnx")
    result = attach_postprocessing(raw, CalibrationStats(image=STATS.image))
    assert "a NaN in 'heat' does not change the image score" in result.summary()
    report = check_briefly(result.output, raw=raw)
    assert report, report.describe()
    assert report.environment["synthetic"].startswith("synthetic inputs")


def test_an_ir_is_run_as_well(tmp_path: Path) -> None:
    """An IR has no names of axes; what `detach` gives stands beside it in memory."""
    raw = hosts.to_ir(hosts.score_and_map(), tmp_path / "raw.xml")
    report = checked(attach_postprocessing(raw, STATS).output)
    assert report, report.describe()
    assert "input [3, 3, 128, 64]" in report.environment["synthetic"]
    assert any(check.name == "synthetic/raw/pred_mask/openvino" for check in report.checks)


def test_large_inputs_and_late_hours_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too large, and what is left when the time is up, is not run; something always is.

    That holds where loading the file took all the time, too.
    """
    path = attached(hosts.score_and_map(), tmp_path)[1]
    monkeypatch.setattr(synthetic, "MOST_ELEMENTS", 1)
    report = checked(path)
    assert report.environment["synthetic"].count("input [") == 1
    assert any("input [3, 3, 128, 64] is left out for its size" in line for line in report.not_checked)
    monkeypatch.setattr(synthetic.SyntheticPlan, "is_late", lambda _: True)
    late = checked(path)
    assert late, late.describe()
    assert late.environment["synthetic"].count("input [") == 1
    assert any("is left out after 30 s" in line for line in late.not_checked)


def test_what_fails_is_saved_and_replayed_by_its_seed(tmp_path: Path) -> None:
    """The inputs are kept, and the command that makes them again."""
    path = BROKEN / "guard_reads_state.onnx"
    report = checked(path, save_failures=tmp_path / "failures", seed=7)
    saved = report.environment["failures"]
    assert all(np.load(item["file"])["x"].shape[1:] == (2, 8) for item in saved)
    assert {item["replay"] for item in saved} == {f"postproc-export check {path} --seed 7 --threads 1"}
    assert saved
