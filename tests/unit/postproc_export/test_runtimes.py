"""ONNX Runtime and OpenVINO behind one protocol."""

import subprocess
import sys
from pathlib import Path

import hosts
import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto

from postproc_export.check.attached import AdaptedRunner
from postproc_export.errors import FileError, PostprocError, UnsupportedModelError, UsageError
from postproc_export.runtimes import RuntimeName, open_runner

IMAGES = (np.random.default_rng(7).integers(0, 256, (3, 3, 6, 10)) / 256).astype(np.float32)

BOTH = pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])


def from_bytes(model: ModelProto, runtime: RuntimeName = "onnxruntime", **options: object) -> object:
    """Open a model that was never written to disk."""
    return open_runner(model.SerializeToString(), runtime=runtime, **options)


@BOTH
@pytest.mark.parametrize("flat", [False, True], ids=["[N,1,H,W]", "[N,H,W]"])
def test_a_detector_gives_its_outputs_by_name_in_order(runtime: RuntimeName, flat: bool) -> None:
    """Names, order, dtypes, shapes and values are the model's, at any batch and image size."""
    runner = from_bytes(hosts.score_and_map(flat=flat), runtime)
    for images in (IMAGES, IMAGES[:1, :, :5, :4]):
        outputs = runner.run({"input": images})
        expected = hosts.expected(images, flat=flat)
        assert list(outputs) == ["pred_score", "anomaly_map"] == [port.name for port in runner.outputs]
        for name, values in outputs.items():
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values, expected[name], strict=True)


def test_threads_that_wait_leave_their_cores_to_decoding() -> None:
    """ONNX Runtime's threads sleep between operators, instead of spinning."""
    options = from_bytes(hosts.score_and_map())._session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@BOTH
def test_an_empty_batch_gives_empty_outputs(runtime: RuntimeName) -> None:
    """N = 0 is a batch like any other."""
    runner = from_bytes(hosts.identity(), runtime)
    outputs = runner.run({"score": np.zeros((0, 1), np.float32), "map": np.zeros((0, 1, 4, 4), np.float32)})
    assert [values.shape for values in outputs.values()] == [(0, 1), (0, 1, 4, 4)]


@BOTH
def test_a_scalar_stays_a_scalar(runtime: RuntimeName) -> None:
    """A score without axes comes back without axes."""
    outputs = from_bytes(hosts.identity(score="", map=None), runtime).run({"score": np.float32(2.5).reshape(())})
    assert outputs["pred_score"].shape == ()
    assert outputs["pred_score"] == 2.5


VALUES = np.array([[1.5], [1e30], [3e-30], [-0.0], [np.inf], [np.nan]], np.float32)


@BOTH
@pytest.mark.parametrize(
    ("text", "dtype"),
    [("float", np.float32), ("float16", np.float16), ("double", np.float64), ("bfloat16", ml_dtypes.bfloat16)],
)
def test_every_float_type_keeps_its_bits(runtime: RuntimeName, text: str, dtype: type) -> None:
    """What goes in comes out bit for bit in each type, bfloat16 included, which NumPy does not know."""
    with np.errstate(over="ignore"):
        fed = VALUES.astype(dtype)
    runner = from_bytes(hosts.identity(map=None, dtype=text), runtime)
    result = runner.run({"score": fed})["pred_score"]
    assert runner.outputs[0].dtype == result.dtype.name == np.dtype(dtype).name
    assert result.tobytes() == fed.tobytes()
    assert runner.run({"score": fed[:0]})["pred_score"].shape == (0, 1)


@BOTH
@pytest.mark.parametrize(("text", "dtype"), [("bool", np.bool_), ("uint8", np.uint8), ("int64", np.int64)])
def test_labels_and_masks_come_as_they_are(runtime: RuntimeName, text: str, dtype: type) -> None:
    """Boolean and integer outputs are not converted."""
    fed = np.array([[1], [0]], dtype)
    result = from_bytes(hosts.identity(map=None, dtype=text), runtime).run({"score": fed})["pred_score"]
    np.testing.assert_array_equal(result, fed, strict=True)


@BOTH
def test_results_are_the_callers_own(runtime: RuntimeName) -> None:
    """A later run does not change what an earlier one returned, and read-only or strided feeds are fine."""
    runner = from_bytes(hosts.identity(map=None), runtime)
    fed = np.arange(6, dtype=np.float32).reshape(6, 1)[::2]
    fed.flags.writeable = False
    first = runner.run({"score": fed})["pred_score"]
    runner.run({"score": -fed})
    np.testing.assert_array_equal(first, [[0], [2], [4]])
    first += 1


def test_files_of_both_formats_open_by_suffix(tmp_path: Path) -> None:
    """`.onnx` goes to ONNX Runtime, `.xml` to OpenVINO; OpenVINO takes `.onnx` on request and models in memory."""
    import openvino

    onnx_file = hosts.write(hosts.score_and_map(), tmp_path / "m.onnx")
    ir_file = hosts.to_ir(hosts.score_and_map(), tmp_path / "m.xml")
    in_memory = openvino.Core().read_model(ir_file)
    runners = [open_runner(onnx_file), open_runner(str(ir_file)), open_runner(in_memory)]
    runners.append(open_runner(onnx_file, runtime="openvino"))
    assert [runner.name for runner in runners] == ["onnxruntime-cpu", "openvino-cpu", "openvino-cpu", "openvino-cpu"]
    for runner in runners:
        assert [port.name for port in runner.outputs] == ["pred_score", "anomaly_map"]
        assert runner.version[0].isdigit()
        scores = runner.run({"input": IMAGES})["pred_score"]
        np.testing.assert_array_equal(scores, hosts.expected(IMAGES)["pred_score"])


@pytest.mark.parametrize("optimize", [False, True])
def test_optimisation_and_threads_do_not_change_a_tiny_model(optimize: bool) -> None:
    """Both levels of optimisation load and agree."""
    runner = from_bytes(hosts.score_and_map(), optimize=optimize, threads=1)
    np.testing.assert_array_equal(
        runner.run({"input": IMAGES})["anomaly_map"], hosts.expected(IMAGES)["anomaly_map"], strict=True
    )


def test_float32_precision_is_what_openvino_reports() -> None:
    """Asked for float32 the plugin infers in float32; by default it names what this machine takes."""
    model = hosts.score_and_map()
    assert from_bytes(model, "openvino", precision="float32").inference_precision == "float32"
    by_default = from_bytes(model, "openvino", precision="default", threads=1)
    assert by_default.precision == "default"
    assert by_default.inference_precision in ("float32", "bfloat16", "float16")


def test_static_shapes_and_names_of_axes_are_reported() -> None:
    """ONNX Runtime gives names to dynamic axes; static ones are sizes in both runtimes."""
    dynamic = from_bytes(hosts.score_and_map()).outputs[1]
    assert (dynamic.shape, dynamic.rank) == (("N", 1, "H", "W"), 4)
    static = hosts.score_and_map(dynamic=False, batch=2)
    for runtime in ("onnxruntime", "openvino"):
        assert from_bytes(static, runtime).inputs[0].shape == (2, 3, 8, 8)


def test_an_openvino_tensor_may_have_several_names_or_none() -> None:
    """A known name is preferred and all count; a tensor without a name is called after its index."""
    import openvino

    source = openvino.opset13.parameter([-1, 1], openvino.Type.f32)
    source.output(0).set_names({"x"})
    doubled, halved = (openvino.opset13.multiply(source, np.float32(factor)) for factor in (2, 0.5))
    doubled.output(0).set_names({"aaa", "pred_score", "zzz"})
    model = openvino.Model([doubled, halved], [source])  # which gives the second output a running number as name
    model.outputs[1].get_tensor().set_names(set())
    runner = open_runner(model)
    assert [port.name for port in runner.outputs] == ["pred_score", "output_1"]
    assert runner.outputs[0].answers_to("zzz")
    outputs = runner.run({"x": np.array([[3]], np.float32)})
    assert {name: values.item() for name, values in outputs.items()} == {"pred_score": 6, "output_1": 1.5}


@pytest.mark.parametrize("saved", [False, True], ids=["onnx", "ir"])
def test_an_output_keeps_its_onnx_name_where_openvino_merges_tensors(tmp_path: Path, saved: bool) -> None:
    """An Identity at the end gives its input's name to the output as well; the declared name is the one to use."""
    model = hosts.score_and_map(names=("zeta", "zulu"))
    path = hosts.to_ir(model, tmp_path / "m.xml") if saved else hosts.write(model, tmp_path / "m.onnx")
    runner = open_runner(path, runtime="openvino")
    assert [port.name for port in runner.outputs] == ["zeta", "zulu"]
    assert len(runner.outputs[0].aliases) > 1


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        pytest.param({}, r"inputs are others(.|\n)*needed: +\['", id="missing"),
        pytest.param({"score": VALUES, "x": VALUES}, "inputs are others", id="unknown"),
        pytest.param({"score": VALUES.astype(np.float64)}, r"element type(.|\n)*float64 \[6, 1\]", id="dtype"),
        pytest.param({"score": VALUES[:, 0]}, r"another shape(.|\n)*float32 \[6\]", id="rank"),
        pytest.param({"score": VALUES.T}, "another shape", id="static-axis"),
    ],
)
@BOTH
def test_wrong_feeds_are_refused(runtime: RuntimeName, feeds: dict[str, np.ndarray], message: str) -> None:
    """Names, element type, rank and static sizes are checked: OpenVINO would convert silently."""
    runner = from_bytes(hosts.identity(map=None), runtime)
    with pytest.raises(UsageError, match=message):
        runner.run(feeds)


@BOTH
def test_a_failing_run_names_the_model_and_the_cause(
    runtime: RuntimeName, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first line of the runtime's reason is in the message, and nothing is printed beside it."""
    model = hosts.parse(
        """fixed_batch (float[N,4] x) => (float[M,2] y) <int64[2] shape = {2, 2}> { y = Reshape(x, shape) }"""
    )
    runner = open_runner(hosts.write(model, tmp_path / "fixed.onnx"), runtime=runtime)
    assert runner.run({"x": np.zeros((1, 4), np.float32)})["y"].shape == (2, 2)
    with pytest.raises(
        UnsupportedModelError, match=r"failed to run fixed.onnx on x: float32 \[3, 4\](.|\n)*found: .*eshape"
    ):
        runner.run({"x": np.zeros((3, 4), np.float32)})
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "runtime"), [("m.onnx", "onnxruntime"), ("m.onnx", "openvino"), ("m.xml", "openvino")]
)
def test_a_damaged_file_is_refused_by_name(
    tmp_path: Path, name: str, runtime: RuntimeName, capfd: pytest.CaptureFixture[str]
) -> None:
    """A truncated model is an error with the file's name and the reason, printed by nobody else."""
    write = hosts.write if name == "m.onnx" else hosts.to_ir
    path = write(hosts.score_and_map(), tmp_path / name)
    path.write_bytes(path.read_bytes()[:150])
    reason = rf"{name}: .*\n  found:   it is cut off after 150 bytes" if name == "m.onnx" else f"load {name}\n  found: "
    with pytest.raises(PostprocError, match=reason):
        open_runner(path, runtime=runtime)
    if (name, runtime) != ("m.onnx", "openvino"):  # its frontends for other formats try too, and write to stderr
        assert capfd.readouterr() == ("", "")


def test_paths_and_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """A missing file, another suffix, a folder, an IR for ONNX Runtime and unknown words say what is needed."""
    with pytest.raises(FileError, match=r"absent.onnx(.|\n)*no such file"):
        open_runner(tmp_path / "absent.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(FileError, match="a folder"):
        open_runner(tmp_path / "folder.onnx")
    (tmp_path / "m.pt").touch()
    with pytest.raises(UsageError, match=r"m.pt is a PyTorch checkpoint(.|\n)*\.onnx .*\.xml"):
        open_runner(tmp_path / "m.pt")
    with pytest.raises(UsageError, match="does not read OpenVINO"):
        open_runner(hosts.to_ir(hosts.map_only(), tmp_path / "m.xml"), runtime="onnxruntime")
    with pytest.raises(UsageError, match="unknown runtime 'tensorrt'"):
        open_runner(b"", runtime="tensorrt")
    with pytest.raises(UsageError, match="unknown precision 'bf16'"):
        open_runner(b"", precision="bf16")


def test_openvino_is_imported_without_its_telemetry(tmp_path: Path) -> None:
    """OpenVINO reports its own import to a web service; ours leaves no client, no identity file, and no trace."""
    code = (
        "import sys\n"
        "from postproc_export.runtimes import open_runner\n"
        f"open_runner({str(hosts.to_ir(hosts.map_only(), tmp_path / 'm.xml'))!r})\n"
        "assert 'openvino' in sys.modules\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry')]\n"
    )
    root = Path(__file__).parents[3]
    environment = {"HOME": str(tmp_path), "PYTHONPATH": str(root), "PATH": ""}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)
    assert not (tmp_path / "intel").exists()


SIGNALLED = """
import gc, signal, sys
from pathlib import Path
from postproc_export.runtimes import open_runner

handled = []
signal.signal(signal.SIGUSR1, lambda *_: handled.append(True))
first = open_runner(Path(sys.argv[1]))
second = open_runner(Path(sys.argv[1]))
del first
gc.collect()
del second
gc.collect()
signal.raise_signal(signal.SIGUSR1)
assert handled
"""


def test_runners_that_are_gone_leave_signals_alone(tmp_path: Path) -> None:
    """A program that has let go of overlapping runners can still handle a signal."""
    path = hosts.to_ir(hosts.map_only(), tmp_path / "m.xml")
    subprocess.run([sys.executable, "-c", SIGNALLED, str(path)], check=True)


def test_a_runner_that_is_reset_is_as_it_was_at_first() -> None:
    """A state of the model's own goes from run to run until then; so do the bounds that were found on the way."""
    import openvino
    import openvino.opset13 as opset

    score = opset.parameter([-1, 1], np.float32, name="score")
    total = opset.add(score, opset.read_value(np.ones((1, 1), np.float32), "sum"))
    model = openvino.Model([opset.result(total)], [opset.assign(total, "sum")], [score], "host")
    runner = AdaptedRunner.of(open_runner(model), bounds={"image": 1.0})

    def given() -> float:
        (values,) = runner.run({runner.inputs[0].name: np.full((1, 1), 2, np.float32)}).values()
        return float(values.item())

    assert [given(), given()] == [3.0, 5.0]
    runner.reset()
    assert [given(), dict(runner.bounds)] == [3.0, {}]
